"""A message on the wire: reading it up to the end of data.

Only CRLF.CRLF ends a message (RFC 5321 §4.1.1.4), wherever the network has cut it, and what follows stays in the buffer:
the next command of a client that pipelines. The CRLF of the DATA command is the first half of the end of an empty
message, so it is put back in front, and then one rule holds everywhere. We read blocks, not lines: a block is what has
arrived, and the dots are taken out of the whole at once.

A bare LF is taken for the CRLF that a sloppy client meant, here and before anything else looks at the message: it never ends
one, and what is stored, signed and sent is the same, with CRLF throughout. A bare CR or a NUL passes here, and
`mail.message.prepare` refuses the message.
"""

import asyncio
import re

END = b"\r\n.\r\n"
_BARE_LF = re.compile(rb"(?<!\r)\n")


async def read(reader: asyncio.StreamReader, limit: int) -> bytes | None:
    """Read one message, without the dots that were added for transport; None when it has more than `limit` bytes.

    A message that is too large is read to its end all the same, but not kept, so that the session stays in step.

    Raises:
        asyncio.IncompleteReadError: the connection ended before the message.
    """
    # A message of nothing but stuffed dots grows by a third on the wire.
    most = limit + limit // 3 + len(END)
    reader._buffer[:0] = b"\r\n"  # type: ignore[attr-defined]  # there is no public way to put back what was read
    blocks: list[bytes] = []
    size = 0
    while not (blocks and blocks[-1].endswith(END)):
        block = await _block(reader)
        size += len(block)
        if size > most:
            blocks.clear()
        blocks.append(block)
    if size > most:
        return None
    message = _unstuff(b"".join(blocks))
    return message if len(message) <= limit else None


async def _block(reader: asyncio.StreamReader) -> bytes:
    """All up to the end of data, or else what can be told not to contain it."""
    try:
        return await reader.readuntil(END)
    except asyncio.LimitOverrunError as overrun:
        return await reader.readexactly(overrun.consumed)


def _unstuff(wire: bytes) -> bytes:
    """The message between the CRLF before it and the dot that ends it (RFC 5321 §4.5.2)."""
    text = wire[: -len(".\r\n")]
    if text.count(b"\n") != text.count(b"\r\n"):
        text = _BARE_LF.sub(b"\r\n", text)
    return text.replace(b"\r\n.", b"\r\n")[len("\r\n") :]
