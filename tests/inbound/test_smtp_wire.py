"""The reader of messages and the parsers, without a network."""

import asyncio
import itertools
import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remails.config import Inbound
from remails.errors import Refused
from remails.inbound import data, syntax
from remails.inbound.intake import Incoming, Intake

PIECES = st.sampled_from([b"\r\n", b".", b"\r", b"\n", b"x", b"\r\n.", b"..", b"\x00", b"\xff", b"abcdefgh" * 5])
MESSAGES = st.lists(PIECES, max_size=30).map(b"".join).map(lambda text: text + b"\r\n" if text else b"")


def stuffed(message: bytes) -> bytes:
    """As a client sends it (RFC 5321 §4.5.2); also one that takes LF for a line end, as smtplib does."""
    return re.sub(rb"(?m)^\.", b"..", message) + b".\r\n"


def read(chunks: list[bytes], limit: int, block: int) -> tuple[bytes | None, bytes]:
    """What the reader makes of chunks, None if it refuses it, and what it leaves."""
    settings = Inbound(receive_memory=300)

    async def feed() -> tuple[bytes | None, bytes]:
        reader = asyncio.StreamReader(limit=block)
        intake = Intake(settings, limit)
        incoming = Incoming(intake)
        task = asyncio.create_task(data.read(reader, incoming.add))
        for chunk in chunks:
            await asyncio.sleep(0)
            reader.feed_data(chunk)
        reader.feed_eof()
        try:
            await task
            async with incoming.whole() as message:
                return message, await reader.read()
        except Refused:
            return None, await reader.read()
        finally:
            intake.close()
            incoming.close()
            assert (intake.memory, intake.disk) == (settings.receive_memory, settings.receive_disk)

    return asyncio.run(feed())


@given(message=MESSAGES, cuts=st.lists(st.integers(0, 400), max_size=8))
def test_any_message_in_any_chunks(message: bytes, cuts: list[int]) -> None:
    """BDAT: every octet belongs to the message, and line ends are what they are after DATA."""
    text = data.Text(stuffed=False)
    bounds = [0, *sorted(min(cut, len(message)) for cut in cuts), len(message)]
    got = b"".join(text.add(message[start:end]) for start, end in itertools.pairwise(bounds)) + text.end()
    meant = re.sub(rb"(?<!\r)\n", b"\r\n", message)
    assert got == (meant if meant.endswith(b"\n") else meant + b"\r\n")


@given(message=MESSAGES, cuts=st.lists(st.integers(0, 400), max_size=6), block=st.integers(8, 64), rest=PIECES)
def test_any_message_in_any_pieces(message: bytes, cuts: list[int], block: int, rest: bytes) -> None:
    """P05: what the client meant is what we get, and what follows the end of data is left."""
    wire = stuffed(message) + rest
    bounds = [0, *sorted(min(cut, len(wire)) for cut in cuts), len(wire)]
    chunks = [wire[start:end] for start, end in itertools.pairwise(bounds)]
    meant = re.sub(rb"(?<!\r)\n", b"\r\n", message)  # P03
    assert read(chunks, 10_000, block) == (meant, rest)


@pytest.mark.parametrize("size", [98, 99, 100, 101, 102, 130, 131, 1000, 100_000])
@pytest.mark.parametrize("dots", [False, True])
def test_limit_counts_the_message_and_not_its_dots(size: int, dots: bool) -> None:
    line = b".\r\n" if dots else b"x\r\n"
    message = (line * (size // 3 + 1))[: size - 2] + b"\r\n"
    assert len(message) == size
    message = message.replace(b"\r\r\n", b"x\r\n")
    expected = message if size <= 100 else None
    assert read([stuffed(message) + b"NOOP\r\n"], 100, 50) == (expected, b"NOOP\r\n")


@pytest.mark.parametrize(
    "end", [b"\n.\n", b"\n.\r\n", b"\r.\r", b"\r\n.\n", b"\r\n.\r", b"\r.\r\n", b"\r\n.\x00\r\n", b"\r\n\x00.\r\n"]
)
def test_nothing_else_ends_a_message(end: bytes) -> None:
    """P01: only CRLF.CRLF does."""
    message, rest = read([b"a" + end + b"MAIL FROM:<x@y.example>\r\n.\r\nNOOP\r\n"], 1000, 500)
    assert message is not None
    assert b"MAIL FROM" in message
    assert rest == b"NOOP\r\n"


def test_connection_lost_in_a_message() -> None:
    """P30."""
    with pytest.raises(asyncio.IncompleteReadError):
        read([b"From: a@b.example\r\n\r\nhal"], 1000, 500)


def test_large_message_is_read_in_linear_time() -> None:
    message = (b"x" * 76 + b"\r\n") * 250_000
    chunks = [message[start : start + 65_536] for start in range(0, len(message), 65_536)]
    started = time.process_time()
    got, rest = read([*chunks, b".\r\n"], 40_000_000, 65_536)
    assert time.process_time() - started < 2
    assert got == message
    assert rest == b""


@pytest.mark.parametrize(
    ("argument", "path", "parameters"),
    [
        ("FROM:<a@b.example>", "a@b.example", {}),
        ("from: <a@b.example>", "a@b.example", {}),
        ("FROM:a@b.example", "a@b.example", {}),
        ("FROM:<>", "", {}),
        ("FROM:<@x,@y:a@b.example>", "a@b.example", {}),
        ('FROM:<"a>b c"@b.example>  SIZE=1', '"a>b c"@b.example', {"SIZE": "1"}),
        (r'FROM:<"a\" b"@b.example>', r'"a\" b"@b.example', {}),
        (
            "FROM:<a@b.example> size=1 Body=8BitMime SMTPUTF8",
            "a@b.example",
            {"SIZE": "1", "BODY": "8BitMime", "SMTPUTF8": None},
        ),
        ("FROM:<a@b.example> AUTH=<>", "a@b.example", {"AUTH": "<>"}),
    ],
)
def test_paths(argument: str, path: str, parameters: dict[str, str | None]) -> None:
    assert syntax.path_and_parameters("FROM", argument) == (path, parameters)


@pytest.mark.parametrize(
    "argument",
    [
        "",
        "FROM",
        "FROM:",
        "FROM <a@b.example>",
        "TO:<a@b.example>",
        "FROM:<a@b.example",
        "FROM:a@b.example>",
        "FROM:<<a@b.example>>",
        'FROM:<"a@b.example>',
        "FROM:<a@b.example>SIZE=1",
        "FROM:<a@b.example> SIZE=1=2",
        "FROM:<a@b.example> =1",
        "FROM:<a@b.example> SIZE=",
        "FROM:<a@b.example> size=1 SIZE=1",
    ],
)
def test_what_is_no_path(argument: str) -> None:
    with pytest.raises(Refused) as refusal:
        syntax.path_and_parameters("FROM", argument)
    assert (refusal.value.code, refusal.value.enhanced) == (501, "5.5.4")


@given(st.text(max_size=200))
def test_any_argument_is_taken_or_refused(text: str) -> None:
    for argument in (f"FROM:{text}", f"FROM:<{text}>"):
        try:
            path, _ = syntax.path_and_parameters("FROM", argument)
        except Refused as refusal:
            assert refusal.code == 501
        else:
            assert path in argument


@pytest.mark.parametrize(
    "text", ['"' * 2001, '<"' + "\\" * 2000, "<" + "@a" * 1000, "<@" + "a," * 1000, "<a> " + "x=" * 1000, " " * 2000]
)
def test_parsing_takes_bounded_time(text: str) -> None:
    started = time.process_time()
    with pytest.raises(Refused):
        syntax.path_and_parameters("FROM", "FROM:" + text)
    assert time.process_time() - started < 0.05


def test_command() -> None:
    assert syntax.command(b"ehlo  x ") == ("EHLO", "x")
    assert syntax.command(b"NOOP") == ("NOOP", "")
    assert syntax.command(b"") == ("", "")
    for line in (b"\xff", b"NOOP " + b"x" * 506, b"MAIL " + b"x" * 2042, b"AUTH " + b"x" * 12_282):
        with pytest.raises(Refused) as refusal:
            syntax.command(line)
        assert (refusal.value.code, refusal.value.enhanced) == (500, "5.5.2")
        syntax.command(line[:-1])
