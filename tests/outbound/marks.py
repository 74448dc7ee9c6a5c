"""The mark of a message that is about to be sent, for dialogues without a database."""

import asyncio
from collections.abc import Sequence


def ours(recipients: Sequence[str]) -> dict[str, asyncio.Future[bool]]:
    """The message is ours to send to all of them."""
    noted = {recipient: asyncio.get_running_loop().create_future() for recipient in recipients}
    for note in noted.values():
        note.set_result(True)
    return noted
