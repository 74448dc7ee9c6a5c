"""Calls: the opening of connections to one destination, and what they tell of its servers.

Servers that do not exist any more keep a call waiting for all of `connect_timeout`, so not hearing anything for a while tells something too.
A server that does not answer is mute for a while, and better tried after its fellows. Where all of them are, the destination is silent
until one answers, or no call is under way any more.
"""

import asyncio
import time
from collections.abc import Callable, Set

from remails.config import Outbound
from remails.mail.reply import Phase, Reply
from remails.outbound import transport
from remails.outbound.transport import Place, Session

_PATIENCE = 2.0  # seconds without an answer to a call, after which a server is mute
_MUTE = 300.0  # seconds for which it stays so


class Calls:
    """Those to one destination.

    Args:
        heard: called when an answer has come, and when none has come in time.

    Attributes:
        servers: the destination's, by IP.
        answers: whether it answered, the last time.
        is_silent: whether all of its servers are mute, and one is being called.
    """

    def __init__(self, settings: Outbound, heard: Callable[[], None]) -> None:
        self._settings, self._heard = settings, heard
        self.servers: Set[str] = frozenset()
        self.answers = self.is_silent = False
        self._answered_at = float("-inf")
        self._under_way = 0
        self._mute: dict[str, float] = {}
        """Until when (monotonic)."""

    def is_mute(self, server: str) -> bool:
        """Whether that server is better tried after its fellows."""
        return self._mute.get(server, 0) > time.monotonic()

    async def call(self, place: Place) -> Session:
        """Connect, and see whether it answers. Raises transport.Broken and transport.SourceMissing."""
        server = place.target.ip
        timer = asyncio.get_running_loop().call_later(_PATIENCE, self._hear_nothing, server, time.monotonic())
        self._under_way += 1
        if server in self._mute:
            self._avoid(server)  # one looks whether it is back
        try:
            session = await transport.connect(self._settings, place)
        except transport.Broken as broken:
            if _is_silence(broken.reply):
                self._avoid(server)
            raise
        finally:
            timer.cancel()
            self._under_way -= 1
            if not self._under_way:
                self.is_silent = False
        self._mute.pop(server, None)
        self.answered()
        return session

    def heed(self, answer: Reply) -> None:
        """This came of a message."""
        if answer.code is not None:
            self.answered()
        elif _is_silence(answer):
            self.answers = False

    def answered(self) -> None:
        """It said something."""
        self._answered_at = time.monotonic()
        self.answers, self.is_silent = True, False
        self._heard()

    def forget(self) -> None:
        """Forget servers of which long nothing was heard."""
        long_ago = time.monotonic() - _MUTE
        self._mute = {server: until for server, until in self._mute.items() if until > long_ago}

    def _avoid(self, server: str) -> None:
        self._mute[server] = time.monotonic() + _MUTE

    def _hear_nothing(self, server: str, since: float) -> None:
        self._avoid(server)
        if self._answered_at < since:
            self.answers = False
            self.is_silent = all(map(self.is_mute, self.servers))
            self._heard()


def _is_silence(reply: Reply) -> bool:
    """Who is only not as secure as the rules of one domain or project want has answered all the same."""
    return reply.code is None and reply.phase is not Phase.TLS
