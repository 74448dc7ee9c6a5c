#!/usr/bin/env python3
"""A coverage-guided fuzz target over the readers of DATA and BDAT (atheris).

    .venv/bin/pip install -e '.[fuzz]' && .venv/bin/python tests/inbound/fuzz_data.py -max_total_time=600

The input says how the network cuts the wire, and then what is on it. Whatever it is, the reader finds the same end of data and the same
message as a model that sees all at once; it stops by itself, and leaves the next command where it is.
"""

import asyncio
import re
import sys

import atheris

with atheris.instrument_imports(include=["remails.inbound"]):
    from remails.inbound import data

END = b"\r\n.\r\n"


def model(wire: bytes) -> tuple[bytes, bytes] | None:
    """Message and rest, or None where the end of data is missing (RFC 5321 §4.5.2)."""
    found = (b"\r\n" + wire).find(END)
    if found < 0:
        return None
    lines = re.sub(rb"(?<!\r)\n", b"\r\n", (b"\r\n" + wire)[: found + 2])
    return lines.replace(b"\r\n.", b"\r\n")[2:], wire[found + 3 :]


async def readers(cuts: list[int], block: int, wire: bytes) -> None:
    """Read what is on the wire by DATA, and by BDAT as one chunk."""
    reader = asyncio.StreamReader(limit=block)
    pieces: list[bytes] = []

    async def keep(piece: bytes) -> None:
        pieces.append(piece)

    task = asyncio.create_task(data.read(reader, keep))
    start = 0
    for cut in [*cuts, len(wire)]:
        reader.feed_data(wire[start : start + cut])
        start += cut
        await asyncio.sleep(0)
    reader.feed_eof()
    try:
        await asyncio.wait_for(task, 5)
    except asyncio.IncompleteReadError:
        assert model(wire) is None
    else:
        assert (b"".join(pieces), await reader.read()) == model(wire)

    text, start, got = data.Text(stuffed=False), 0, b""
    for cut in [*cuts, len(wire)]:
        got += text.add(wire[start : start + cut])
        start += cut
    meant = re.sub(rb"(?<!\r)\n", b"\r\n", wire)
    assert got + text.end() == (meant if meant.endswith(b"\n") else meant + b"\r\n")


def one(given: bytes) -> None:
    """One input."""
    if len(given) > 5:
        asyncio.run(readers(list(given[:4]), 8 + given[4] % 64, given[5:]))


if __name__ == "__main__":
    atheris.Setup(sys.argv, one)
    atheris.Fuzz()
