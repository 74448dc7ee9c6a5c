"""BDAT: a message in chunks (RFC 3030), and the same policies for it as for DATA."""

from collections.abc import Callable

import pytest
from inbound.dialogue import Dialogue
from inbound.running import Running, Stored
from seed import Tenant

HEADER = b"From: a@acme.example\r\nDate: Mon, 01 Jan 2024 00:00:00 +0000\r\nMessage-ID: <t1@acme.example>\r\n\r\n"
Read = Callable[[], list[Stored]]


def begin(session: Dialogue) -> None:
    session.play([("MAIL FROM:<a@acme.example>", "250 2.1.0"), ("RCPT TO:<b@example.net>", "250 2.1.5")])


def chunk(octets: bytes, *, last: bool = False) -> bytes:
    return b"BDAT %d%s\r\n%s" % (len(octets), b" LAST" if last else b"", octets)


def test_chunks(session: Dialogue, stored: Read) -> None:
    """P33: no octet of a chunk is a command, and a lone dot is a line like any other."""
    body = b".\r\n\r\n.\r\nMAIL FROM:<evil@x.example>\r\nRCPT TO:<v@example.net>\r\n..\r\n"
    begin(session)
    session.send(chunk(HEADER) + chunk(body[:11]) + chunk(b"") + chunk(body[11:], last=True) + b"NOOP\r\n")
    replies = [session.reply() for _ in range(5)]
    assert replies[:3] == [f"250 2.0.0 {size} octets received" for size in (len(HEADER), 11, 0)]
    assert replies[3].startswith("250 2.6.0 Accepted as ")
    assert replies[4] == "250 2.0.0 OK"
    (one,) = stored()
    assert one.body == body
    session.play([("BDAT 0 LAST", "503 5.5.1")])


def test_last_chunk_may_be_empty_and_lower_case(session: Dialogue, stored: Read) -> None:
    begin(session)
    session.send(b"bdat %d\r\n%sbdat 0 last\r\n" % (len(HEADER) + 2, HEADER + b"hi"))
    assert session.reply().startswith("250 2.0.0")
    assert session.reply().startswith("250 2.6.0")
    assert [one.body for one in stored()] == [b"hi\r\n"], "the last line gets its end"


@pytest.mark.parametrize("cut", range(1, 9))
def test_line_ends_in_chunks(session: Dialogue, stored: Read, cut: int) -> None:
    """P03: the one policy for line ends, wherever the chunks are cut."""
    body = b"a\r\nb\nc\n\r\nd"
    begin(session)
    session.send(chunk(HEADER + body[:cut]) + chunk(body[cut:], last=True))
    assert session.reply().startswith("250 2.0.0")
    assert session.reply().startswith("250 2.6.0")
    assert [one.body for one in stored()] == [b"a\r\nb\r\nc\r\n\r\nd\r\n"]


@pytest.mark.parametrize("body", [b"a\rb\r\n", b"a\r", b"\r.\r", b"a\r\r\n"])
def test_bare_cr_in_chunks(session: Dialogue, stored: Read, body: bytes) -> None:
    """P01 and P03."""
    begin(session)
    session.send(chunk(HEADER + body, last=True))
    assert session.reply().startswith("550 5.6.11")
    session.in_step()
    assert stored() == []


def test_chunks_that_are_refused_are_read(session: Dialogue, stored: Read) -> None:
    """P33: without an envelope, or behind a refused one; the octets never run as commands."""
    trap = b"MAIL FROM:<a@acme.example>\r\nRCPT TO:<b@example.net>\r\n"
    session.send(chunk(trap) + chunk(trap, last=True))
    assert [session.reply()[:9] for _ in range(2)] == ["503 5.5.1"] * 2
    session.play([("MAIL FROM:<a@acme.example>", "250")])
    session.send(chunk(trap, last=True))
    assert session.reply().startswith("554 5.5.1")
    session.play([("DATA", "554 5.5.1"), ("RSET", "250")])
    begin(session)
    session.send(chunk(HEADER + b"x" * 70 + b"\r\n" * 1_000_000))
    assert session.reply().startswith("552 5.3.4")
    session.send(chunk(trap) + chunk(trap, last=True))
    assert [session.reply()[:9] for _ in range(2)] == ["503 5.5.1"] * 2
    session.play([("RSET", "250")])
    begin(session)
    session.send(chunk(HEADER, last=True))
    assert session.reply().startswith("250 2.6.0")
    assert len(stored()) == 1


def test_order_of_commands_with_chunks(session: Dialogue, stored: Read) -> None:
    """RFC 3030 §2: DATA and BDAT do not mix; RSET forgets the chunks."""
    begin(session)
    session.send(chunk(HEADER + b"forgotten"))
    assert session.reply().startswith("250 2.0.0")
    session.play(
        [
            ("DATA", "503 5.5.1"),
            ("RCPT TO:<c@example.net>", "503 5.5.1"),
            ("MAIL FROM:<b@acme.example>", "503 5.5.1"),
            ("NOOP", "250"),
            ("RSET", "250"),
        ]
    )
    begin(session)
    session.send(chunk(HEADER + b"kept", last=True))
    assert session.reply().startswith("250 2.6.0")
    assert [(one.body, one.recipients) for one in stored()] == [(b"kept\r\n", ["b@example.net"])]


@pytest.mark.parametrize(
    "argument", ["", " x", " 5 FIRST", " -1", " 5 LAST LAST", " 5 la\u017ft", " 123456789012345678901"]
)
def test_where_a_chunk_ends_is_not_guessed(session: Dialogue, argument: str) -> None:
    begin(session)
    session.send(f"BDAT{argument}\r\nRSET\r\n".encode())
    assert session.reply().startswith("501 5.5.4")
    assert session.closed()


def test_silence_in_a_chunk(run: Callable[..., Running], acme: Tenant, stored: Read) -> None:
    """P32."""
    with run(inbound={"timeout": 0.5}).connect() as session:
        begin(session.log_in(acme))
        session.send(b"BDAT 100 LAST\r\n" + HEADER)
        assert session.reply().startswith("421 4.4.2")
        assert session.closed()
    assert stored() == []


def test_chunks_before_a_login_do_not_hold_the_connection(run: Callable[..., Running]) -> None:
    with run(inbound={"timeout": 0.5}).connect() as dialogue:
        dialogue.reply()
        dialogue.send(b"BDAT 99999999999999999999\r\n")
        assert dialogue.reply().startswith("421 4.4.2")
