"""DATA: where a message ends, what is stored of it, what is refused at its end, and how long it may take."""

import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import pytest
from inbound.dialogue import Dialogue
from inbound.running import Running, Stored
from seed import Tenant, tenant

from remails.db import Database
from remails.store import usage
from remails.vault import Pepper, Vault

HEADER = (
    b"From: a@acme.example\r\nTo: b@example.net\r\nSubject: t\r\nDate: Mon, 01 Jan 2024 00:00:00 +0000\r\n"
    b"Message-ID: <t1@acme.example>\r\n\r\n"
)
Read = Callable[[], list[Stored]]


def send(session: Dialogue, message: bytes) -> str:
    """One transaction; the reply to the end of data."""
    session.envelope("a@acme.example")
    session.send(message)
    return session.reply()


def test_reply_names_the_message(session: Dialogue, stored: Read, caplog: pytest.LogCaptureFixture) -> None:
    reply = send(session, HEADER + b"hi\r\n.\r\n")
    (message,) = stored()
    assert reply == f"250 2.6.0 Accepted as {message.id}"
    assert message.raw.endswith(b"\r\n" + HEADER + b"hi\r\n")
    (line,) = [record.fields for record in caplog.records if record.getMessage() == "accepted"]
    assert (str(line["message"]), line["client"], line["size"], line["recipients"]) == (
        message.id,
        "127.0.0.1",
        len(HEADER) + 4,
        1,
    )
    assert line["milliseconds"] >= 0


SMUGGLED = b"MAIL FROM:<evil@x.example>\r\nRCPT TO:<v@example.net>\r\nDATA\r\nSubject: s\r\n\r\nx\r\n"


@pytest.mark.parametrize("end", [b"\n.\r\n", b"\n.\n", b"\r\n.\n"])
def test_only_crlf_dot_crlf_ends_a_message(session: Dialogue, stored: Read, end: bytes) -> None:
    """P01: one message that holds everything, and no second transaction out of its body."""
    assert send(session, HEADER + b"line1" + end + SMUGGLED + b".\r\n").startswith("250 2.6.0")
    session.in_step()
    (one,) = stored()
    assert one.body == b"line1\r\n\r\n" + SMUGGLED


def test_a_message_with_a_bare_cr_is_not_taken(session: Dialogue, stored: Read) -> None:
    """P01 and P03: nobody means a line end by it."""
    assert send(session, HEADER + b"line1\r.\r" + SMUGGLED + b".\r\n").startswith("550 5.6.11")
    assert send(session, HEADER + b"l1\rl2\r\n.\r\n").startswith("550 5.6.11")
    session.in_step()
    assert stored() == []


@pytest.mark.parametrize(
    "message",
    [
        HEADER.replace(b"\r\n", b"\n") + b"l1\nl2\n..dot\n\r\n",  # what smtplib makes of as_bytes()
        HEADER + b"l1\nl2\r\n..dot\r\n\n",
        HEADER.replace(b"\r\nTo", b"\nTo") + b"l1\r\nl2\n..dot\n\r\n",
    ],
)
def test_a_bare_lf_is_taken_for_crlf(session: Dialogue, stored: Read, message: bytes) -> None:
    """P03: one policy, before storing and signing."""
    wire = message if message.endswith(b"\r\n") else message + b"\r\n"
    assert send(session, wire + b".\r\n").startswith("250 2.6.0")
    (one,) = stored()
    assert one.body.rstrip(b"\r\n") == b"l1\r\nl2\r\n.dot"
    assert b"\n" not in one.body.replace(b"\r\n", b"")


@pytest.mark.parametrize(
    ("wire", "body"),
    [
        (b"..\r\n...x\r\n.y\r\n\r\n.\r\n", b".\r\n..x\r\ny\r\n\r\n"),
        (b"..\r\n...x\r\n.y\r\n.\r\n", b".\r\n..x\r\ny\r\n"),
        (b"..\r\n.\r\n", b".\r\n"),
        (b"\r\n.\r\n", b"\r\n"),
        (b".\r\n", b""),
    ],
)
def test_dots(session: Dialogue, stored: Read, wire: bytes, body: bytes) -> None:
    """P05, M16."""
    assert send(session, HEADER + wire).startswith("250 2.6.0")
    assert [one.body for one in stored()] == [body]


def test_end_of_data_in_many_segments(session: Dialogue, stored: Read) -> None:
    session.envelope("a@acme.example")
    for octet in HEADER + b"..\r\n.\r\nNOOP\r\n":
        session.send(bytes([octet]))
    assert session.reply().startswith("250 2.6.0")
    assert session.reply() == "250 2.0.0 OK"
    assert [one.body for one in stored()] == [b".\r\n"]


def test_no_header_at_all(session: Dialogue, stored: Read) -> None:
    """M16: a lone dot right after 354."""
    assert send(session, b".\r\n").startswith("554 5.6.0")
    assert send(session, b"\r\n.\r\n").startswith("554 5.6.0")
    session.in_step()
    assert stored() == []


def test_line_length(session: Dialogue, stored: Read) -> None:
    """P06: 998 is legal; longer is refused, and only after the end of data."""
    assert send(session, HEADER + b"a" * 998 + b"\r\n.\r\n").startswith("250 2.6.0")
    for length in (999, 1000, 1500, 200_000):
        assert send(session, HEADER + b"a" * length + b"\r\n.\r\n").startswith("550 5.6.0")
        session.in_step()
    assert [one.body for one in stored()] == [b"a" * 998 + b"\r\n"]


def test_nul(session: Dialogue, stored: Read) -> None:
    """P09."""
    assert send(session, b"From: a@acme.example\r\nSubject: a\0b\r\n\r\nc\0d\r\n.\r\n").startswith("554 5.6.0")
    session.in_step()
    assert stored() == []


def test_eight_bit_octets_stay(session: Dialogue, stored: Read) -> None:
    body = bytes(octet for octet in range(1, 256) if octet not in b"\r\n.") + b"\r\n"
    assert send(session, HEADER + body + b".\r\n").startswith("250 2.6.0")
    assert [one.body for one in stored()] == [body]


def test_too_large(session: Dialogue, stored: Read) -> None:
    """P37: who lied about the size is read to the end and told so, and the session goes on."""
    line = b"x" * 70 + b"\r\n"
    session.play([("MAIL FROM:<a@acme.example> SIZE=1", "250"), ("RCPT TO:<b@example.net>", "250"), ("DATA", "354")])
    session.send(HEADER + line * 100_000 + b".\r\nMAIL FROM:<a@acme.example>\r\n")
    assert session.reply().startswith("552 5.3.4")
    assert session.reply().startswith("250 2.1.0")
    session.play([("RCPT TO:<b@example.net>", "250"), ("DATA", "354")])
    body = (line * 20_000)[: 1_000_000 - len(HEADER) - 2] + b"\r\n"
    body = body.replace(b"\r\r\n", b"x\r\n")
    session.send(HEADER + body + b".\r\n")
    assert session.reply().startswith("250 2.6.0")
    session.envelope("a@acme.example")
    session.send(HEADER + b"x" + body + b".\r\n")
    assert session.reply().startswith("552 5.3.4")
    assert [one.body for one in stored()] == [body]


def test_connection_lost_in_data(inbound: Running, acme: Tenant, stored: Read, db: Database) -> None:
    """P30: nothing stored, no quota used; the `run` fixture sees to it that no error is logged."""
    for _ in range(3):
        with inbound.connect() as session:
            session.log_in(acme).envelope("a@acme.example")
            session.send(HEADER + b"partial")
    inbound.stop()
    assert stored() == []
    with db.transaction() as conn:
        assert conn.execute("SELECT count(*) FROM usage").fetchone() == (0,)


def test_closed_behind_the_dot(inbound: Running, acme: Tenant) -> None:
    """Whether it is stored depends on who was faster, but nothing breaks."""
    for _ in range(20):
        with inbound.connect() as session:
            session.log_in(acme).envelope("a@acme.example")
            session.send(HEADER + b"hi\r\n.\r\n")
    inbound.stop()


def test_slow_but_honest_upload(run: Callable[..., Running], acme: Tenant, stored: Read) -> None:
    """P32 (b): the time limit is on a block, not on the message."""
    with run(inbound={"timeout": 1.0}).connect() as session:
        session.log_in(acme).envelope("a@acme.example")
        session.send(HEADER)
        started = time.monotonic()
        while time.monotonic() < started + 2.5:
            time.sleep(0.25)
            session.send(b"a few more words\r\n")
        session.send(b".\r\n")
        assert session.reply().startswith("250 2.6.0")
    assert len(stored()) == 1


def test_silence_in_data(run: Callable[..., Running], acme: Tenant, stored: Read) -> None:
    """P32 (c): 421 before the connection is closed."""
    with run(inbound={"timeout": 0.5}).connect() as session:
        session.log_in(acme).envelope("a@acme.example")
        session.send(HEADER)
        assert session.reply().startswith("421 4.4.2")
        assert session.closed()
    assert stored() == []


def test_drip_in_data_ends_some_day(run: Callable[..., Running], acme: Tenant) -> None:
    """P32: twelve times the time limit, however busy the client looks."""
    with run(inbound={"timeout": 0.2}).connect() as session:
        session.log_in(acme).envelope("a@acme.example")
        stop = threading.Event()
        dripping = threading.Thread(target=drip, args=[session, stop])
        started = time.monotonic()
        dripping.start()
        try:
            assert session.reply().startswith("421 4.4.2")
            assert 2.0 < time.monotonic() - started < 8
        finally:
            stop.set()
            dripping.join()


def test_drip_and_silence_between_commands(run: Callable[..., Running], acme: Tenant) -> None:
    """P32 (a): a command has to come within the time limit as a whole."""
    running = run(inbound={"timeout": 1.0})
    with running.connect() as session:
        session.log_in(acme)
        stop = threading.Event()
        dripping = threading.Thread(target=drip, args=[session, stop])
        dripping.start()
        try:
            assert session.reply().startswith("421 4.4.2")
        finally:
            stop.set()
            dripping.join()


def test_login_has_to_come_in_time(run: Callable[..., Running]) -> None:
    """Commands without a login do not keep a connection."""
    with run(inbound={"timeout": 1.0}).connect("smtps") as dialogue:
        started = time.monotonic()
        dialogue.reply()
        while (reply := dialogue.say("NOOP")).startswith("250"):
            time.sleep(0.1)
            assert time.monotonic() - started < 10
        assert reply.startswith("421 4.4.2")


def drip(session: Dialogue, stop: threading.Event) -> None:
    try:
        while not stop.wait(0.05):
            session.send(b"x")
    except OSError:
        pass


def test_a_mistake_of_ours_is_451(
    inbound: Running, acme: Tenant, db: Database, stored: Read, caplog: pytest.LogCaptureFixture
) -> None:
    """Never a permanent error; the log has the traceback and names the message."""
    with inbound.connect() as session:
        session.log_in(acme)
        with db.transaction() as conn:
            conn.execute("UPDATE pools SET is_default = false")  # which submission does not reckon with
        assert send(session, HEADER + b"hi\r\n.\r\n").startswith("451 4.3.0")
        session.play([("RCPT TO:<b@example.net>", "503"), ("MAIL FROM:<a@acme.example>", "250")])
    assert stored() == []
    errors = [record for record in caplog.records if record.levelname == "ERROR"]
    assert [record.getMessage() for record in errors] == ["internal error"]
    assert errors[0].exc_info is not None and errors[0].exc_info[1] is not None
    assert "from 127.0.0.1" in errors[0].exc_info[1].__notes__[0]
    caplog.clear()


def test_many_sessions_at_once(
    inbound: Running, acme: Tenant, db: Database, vault: Vault, pepper: Pepper, stored: Read
) -> None:
    """Every message is stored once, with its own envelope and body, under its own tenant, whatever its neighbours do."""
    tenants = [acme, tenant(db, vault, pepper, name="globex")]

    def client(seed: int) -> dict[str, tuple[str, list[str]]]:
        dice = random.Random(seed)
        mine = tenants[seed % 2]
        accepted: dict[str, tuple[str, list[str]]] = {}
        with inbound.connect(dice.choice(["smtps", "submission"])) as session:
            session.log_in(mine)
            for number in range(dice.randint(1, 15)):
                token = f"{seed}-{number}"
                sender = f"{token}@{mine.domain}"
                recipients = [f"{token}.{i}@example.net" for i in range(dice.randint(1, 4))]
                kind = dice.choice(["good", "good", "good", "foreign", "bare", "reset"])
                text = f"From: {sender}\r\n\r\n{token}\r\n" + "x" * dice.randint(0, 900) + "\r\n" * dice.randint(1, 50)
                if kind == "foreign":
                    text = text.replace(mine.domain, tenants[1 - seed % 2].domain)
                if kind == "bare":
                    text += "\r.\r\n"
                commands = [f"MAIL FROM:<{sender}>", *(f"RCPT TO:<{one}>" for one in recipients)]
                session.send("".join(f"{command}\r\n" for command in commands).encode())
                assert all(session.reply().startswith("250 ") for _ in commands)
                if kind == "reset":
                    session.play([("RSET", "250"), ("DATA", "503")])
                    continue
                session.play([("DATA", "354")])
                octets = text.encode() + b".\r\n"
                cut = dice.randint(0, len(octets))
                session.send(octets[:cut])
                session.send(octets[cut:])
                reply = session.reply()
                assert reply.startswith({"good": "250 2.6.0", "foreign": "550 5.7.1", "bare": "550 5.6.11"}[kind])
                if kind == "good":
                    accepted[reply.rpartition(" ")[2]] = (sender, recipients)
                    assert token in text
        return accepted

    with ThreadPoolExecutor(16) as pool:
        accepted = {id_: envelope for one in pool.map(client, range(32)) for id_, envelope in one.items()}
    messages = stored()
    assert {message.id: (message.mail_from, message.recipients) for message in messages} == accepted
    for message in messages:
        assert message.body.startswith(message.mail_from.partition("@")[0].encode() + b"\r\n")
    with db.transaction() as conn:
        rows = conn.execute("SELECT organization_id, mail_from FROM messages").fetchall()
        organizations = {one.domain: one.organization_id for one in tenants}
        assert all(organizations[sender.partition("@")[2]] == organization for organization, sender in rows)
        counted = sum(usage.used_since(conn, one.organization_id, datetime.now(UTC)) for one in tenants)
    assert counted == len(messages) > 50
