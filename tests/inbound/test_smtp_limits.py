"""Limits of an organization and of a guessing client, as the client sees them."""

import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from inbound.dialogue import Dialogue, plain
from inbound.running import Running
from installation import eventually
from seed import Tenant

from remails import guard
from remails.config import Bans
from remails.db import Database
from remails.store import bans as store
from remails.store import credentials, networks, plans
from remails.store.rates import Rate

MAIL = b"From: a@acme.example\r\n\r\nhi\r\n.\r\n"


def test_who_is_too_fast_is_told_at_the_end_of_the_mail_and_then_at_mail_from(
    session: Dialogue, acme: Tenant, db: Database
) -> None:
    db.run(plans.set_rate, acme.organization_id, Rate(1, 60))
    session.envelope("a@acme.example")
    session.send(MAIL)
    assert session.reply().startswith("250 2.6.0 ")
    session.envelope("a@acme.example")  # the answer at MAIL is remembered for a moment
    session.send(MAIL)
    text = "451 4.7.1 This organization may send 60 messages per hour, 1 at once; try again in "
    assert session.reply().startswith(text)
    assert session.say("MAIL FROM:<a@sub.acme.example>").startswith(text)
    session.in_step()


def test_a_used_up_quota_is_told_at_mail_from(inbound: Running, acme: Tenant, db: Database) -> None:
    db.run(plans.set_plan, acme.organization_id, "not_subscribed")
    with inbound.connect() as dialogue:
        dialogue.log_in(acme)
        assert dialogue.say("MAIL FROM:<a@acme.example>").startswith(
            "452 4.7.1 The monthly quota of 0 messages is used up"
        )


def test_mails_to_many_recipients_share_no_large_transaction(
    inbound: Running, acme: Tenant, db: Database, stack: ExitStack
) -> None:
    """What waits is stored together, but no mail waits for rows by the ten thousand that are not its own."""
    sessions = [stack.enter_context(inbound.connect()).log_in(acme) for _ in range(12)]
    for session in sessions:
        session.send(b"MAIL FROM:<a@acme.example>\r\n")
        session.send(b"".join(b"RCPT TO:<b%d@example.net>\r\n" % number for number in range(500)) + b"DATA\r\n")
        assert [session.reply()[:3] for _ in range(502)] == ["250"] * 501 + ["354"]
    with db.transaction() as conn:
        conn.execute("LOCK TABLE messages IN SHARE MODE")
        sessions[0].send(MAIL)
        waiting = "SELECT count(*) FROM pg_locks WHERE relation = 'messages'::regclass AND NOT granted"
        eventually(lambda: conn.execute(waiting).fetchone(), lambda row: row == (1,))
        for session in sessions[1:]:
            session.send(MAIL)
        with inbound.connect() as last:
            last.log_in(acme)  # by now the others have been read
    assert [session.reply()[:9] for session in sessions] == ["250 2.6.0"] * 12
    with db.transaction() as conn:
        together = conn.execute("SELECT count(*) FROM deliveries GROUP BY xmin::text").fetchall()
    assert sum(number for (number,) in together) == 6000
    assert max(number for (number,) in together) <= 2500


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers to guesses wait a hundredth of the time."""
    monkeypatch.setattr(guard, "_FIRST_DELAY", 0.005)
    monkeypatch.setattr(guard, "LONGEST_DELAY", 0.08)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """Closes the connections."""
    with ExitStack() as stack:
        yield stack


def source(running: Running, address: str, name: str = "submission") -> Dialogue:
    """A client at an address of its own."""
    return Dialogue(running.port(name), smtps=name == "smtps", source=address)


def test_a_guessing_client_is_slowed_and_banned_and_nobody_else(
    run: Callable[..., Running], acme: Tenant, db: Database, quick: None, stack: ExitStack
) -> None:
    inbound = run(bans=Bans(allow=(), sync_interval=0.05))
    working = stack.enter_context(source(inbound, "127.0.0.66", "smtps")).log_in(acme)  # before: it stays
    guesses, last = 0, ""
    waits: list[float] = []
    while guesses < 100:
        with source(inbound, "127.0.0.66") as guesser:
            last = guesser.reply()
            if not last.startswith("220"):
                break
            guesser.say("EHLO client.example")
            guesser.start_tls()
            guesser.say("EHLO client.example")
            for _ in range(3):
                guesses += 1
                started = time.monotonic()
                if guesser.say(f"AUTH PLAIN {plain(acme.smtp_username, f'guess {guesses}')}")[:3] not in ("535", "454"):
                    break
                waits.append(time.monotonic() - started)
    assert 10 <= guesses <= 12
    assert min(waits[5:9]) > 0.07
    assert re.fullmatch(r"421 4\.7\.0 Too many failed logins from your network, try again in 1[45] minutes", last)
    with socket.create_connection(("127.0.0.1", inbound.port("smtps")), 10, ("127.0.0.66", 0)) as refused:
        assert refused.recv(100) == b""  # not even a handshake
    with source(inbound, "127.0.0.67") as good:
        good.log_in(acme)
        good.envelope("a@acme.example")
        good.send(MAIL)
        assert good.reply().startswith("250 2.6.0 ")
    working.envelope("a@acme.example")
    working.send(MAIL)
    assert working.reply().startswith("250 2.6.0 ")
    (banned,) = [row for row in db.run(store.list_, guard.limit_of(Bans()), 100) if row.banned_until]
    assert (banned.name, banned.service, banned.bans) == ("127.0.0.66", "inbound", 1)


def test_a_success_forgives_nothing_and_the_right_password_does_not_help_who_is_banned(
    run: Callable[..., Running], acme: Tenant, db: Database, quick: None, stack: ExitStack
) -> None:
    inbound = run(bans=Bans(allow=(), sync_interval=0.05, guesses=4))
    open_already = stack.enter_context(source(inbound, "127.0.0.66", "smtps"))
    open_already.reply()
    open_already.say("EHLO client.example")
    for number in range(4):
        with source(inbound, "127.0.0.66", "smtps") as guesser:
            guesser.reply()
            guesser.say("EHLO client.example")
            assert guesser.say(f"AUTH PLAIN {plain('victim', f'guess {number}')}").startswith("535 ")
        if number < 3:
            stack.enter_context(source(inbound, "127.0.0.66", "smtps")).log_in(acme)  # its own account
    reply = open_already.say(f"AUTH PLAIN {plain(acme.smtp_username, acme.smtp_password)}")
    assert reply == "454 4.7.0 Too many failed logins from your network, try again later"
    eventually(lambda: db.run(store.lift, "127.0.0.66"), bool)
    stack.enter_context(source(inbound, "127.0.0.67")).log_in(acme)

    def welcome() -> str:
        with source(inbound, "127.0.0.66") as client:
            return client.reply()[:3]

    assert eventually(welcome, lambda code: code == "220") == "220"


def test_the_right_password_in_the_wrong_place_is_no_guess(
    run: Callable[..., Running], acme: Tenant, db: Database, quick: None, stack: ExitStack
) -> None:
    inbound = run(bans=Bans(allow=(), guesses=2))
    (credential,) = db.run(credentials.list_smtp, acme.project_id)
    db.run(networks.of_smtp_credential, credential.id, ["127.0.0.66/32"])
    for _ in range(5):
        with source(inbound, "127.0.0.67", "smtps") as elsewhere:
            elsewhere.reply()
            elsewhere.say("EHLO client.example")
            reply = elsewhere.say(f"AUTH PLAIN {plain(acme.smtp_username, acme.smtp_password)}")
            assert "5.7.1 This credential may not be used from 127.0.0.67" in reply
    stack.enter_context(source(inbound, "127.0.0.66", "smtps")).log_in(acme)
