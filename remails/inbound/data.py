"""A message on the wire: reading it up to the end of data, or chunk by chunk.

After DATA only CRLF.CRLF ends a message (RFC 5321 §4.1.1.4), wherever the network has cut it, and what follows stays in the
buffer: the next command of a client that pipelines. The CRLF of the DATA command is the first half of the end of an empty
message, so it is put back in front, and then one rule holds everywhere. BDAT says how many octets follow (RFC 3030 §2), and no
octet of them has a meaning of its own. We read blocks, not lines: a block is what has arrived, and the dots are taken out of
the whole at once.

A bare LF is taken for the CRLF that a sloppy client meant, here and before anything else looks at the message: it never ends
one, and what is stored, signed and sent is the same, with CRLF throughout. A bare CR or a NUL passes here, and
`mail.message.prepare` refuses the message.
"""

import asyncio
from collections.abc import Awaitable, Callable

from remails.mail.message import BARE_LF

END = b"\r\n.\r\n"
BLOCK = 64 * 1024
"""Bytes that are looked at together; the reader's buffer holds little more than twice as many."""

Keep = Callable[[bytes], Awaitable[None]]
"""Takes the next piece of the message."""


class Text:
    """Makes the message out of what was on the wire, piece by piece, wherever that was cut.

    Args:
        stuffed: whether dots were added for transport, and the CRLF before the message belongs to it (DATA).
    """

    def __init__(self, *, stuffed: bool) -> None:
        self._stuffed = stuffed
        self._skip = len("\r\n") if stuffed else 0
        self._held = b""

    def add(self, wire: bytes) -> bytes:
        """The message as far as it can be told; a line end may go on in the next piece and is held back."""
        text = self._held + wire if self._held else wire
        held = 2 if text.endswith(b"\r\n") else 1 if text.endswith((b"\r", b"\n")) else 0
        self._held = text[len(text) - held :]
        return self._made(text[: len(text) - held])

    def end(self) -> bytes:
        """What was held back; and the line end that the last line of a message in chunks may lack."""
        text, self._held = self._made(self._held), b""
        return text if self._stuffed or text.endswith(b"\n") else text + b"\r\n"

    def _made(self, text: bytes) -> bytes:
        if BARE_LF.search(text):  # at memory speed, however many there are
            text = text.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
        if self._stuffed:
            text = text.replace(b"\r\n.", b"\r\n")  # RFC 5321 §4.5.2
        if self._skip:
            text, self._skip = text[self._skip :], max(self._skip - len(text), 0)
        return text


async def read(reader: asyncio.StreamReader, keep: Keep) -> None:
    """Read one message to its end of data, and hand it on without the dots that were added for transport.

    Raises:
        asyncio.IncompleteReadError: the connection ended before the message.
    """
    reader._buffer[:0] = b"\r\n"  # type: ignore[attr-defined]  # there is no public way to put back what was read
    text = Text(stuffed=True)
    block = b""
    while not block.endswith(END):
        block = await _block(reader)
        await keep(text.add(block.removesuffix(b".\r\n") if block.endswith(END) else block))
    await keep(text.end())


async def read_chunk(reader: asyncio.StreamReader, size: int, keep: Keep) -> None:
    """Read `size` octets, and hand them on as they are.

    Raises:
        asyncio.IncompleteReadError: the connection ended before them.
    """
    while size:
        block = await reader.read(min(size, BLOCK))
        if not block:
            raise asyncio.IncompleteReadError(b"", size)
        size -= len(block)
        await keep(block)


async def _block(reader: asyncio.StreamReader) -> bytes:
    """All up to the end of data, or else what can be told not to contain it."""
    try:
        return await reader.readuntil(END)
    except asyncio.LimitOverrunError as overrun:
        return await reader.readexactly(overrun.consumed)
