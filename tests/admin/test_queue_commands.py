"""`remails queue`: what waits by destination and why, and what an operator does about it."""

import dataclasses
import uuid
from datetime import UTC, datetime, timedelta

import pytest
import seed
from seed import Tenant
from terminal import Terminal

from remails import submission
from remails.bus.client import Publisher
from remails.config import Bus, Mail
from remails.db import Database
from remails.store import addresses, audit, holds, messages, queue
from remails.store.ids import MessageId
from remails.vault import Pepper, Vault


def _id(age: timedelta) -> MessageId:
    """As a message has that was taken so long ago."""
    milliseconds = int((datetime.now(UTC) - age).timestamp() * 1000)
    return MessageId(uuid.UUID(int=(milliseconds << 80) | (7 << 76) | (2 << 62) | uuid.uuid4().int & (1 << 62) - 1))


def _send(db: Database, tenant: Tenant, *recipients: str, age: timedelta = timedelta()) -> MessageId:
    given = dataclasses.replace(tenant.submission(*recipients), id=_id(age))
    (outcome,) = submission.submit(db, Publisher(Bus(), ""), Mail(hostname="relay.example"), [given])
    assert isinstance(outcome, submission.Accepted)
    return outcome.id


def _change(db: Database, recipient: str, assignments: str) -> None:
    db.run(lambda conn: conn.execute(f"UPDATE deliveries SET {assignments} WHERE recipient = %s", [recipient]))


def _statuses(db: Database, tenant: Tenant, message_id: MessageId) -> list[str]:
    return [row.status for row in db.run(messages.deliveries, tenant.organization_id, [message_id])]


def test_an_empty_queue(terminal: Terminal) -> None:
    assert terminal.json("queue") == []
    assert terminal.json("queue", "list") == []
    assert terminal.json("queue", "addresses") == []
    assert terminal.do("queue").startswith("NAME  TOTAL  5  10  20")


def test_what_waits_by_destination_with_its_age_and_why(terminal: Terminal, db: Database, tenant: Tenant) -> None:
    _send(db, tenant, "a@slow.example", "b@slow.example", age=timedelta(minutes=7))
    _send(db, tenant, "c@slow.example", age=timedelta(days=2))
    _send(db, tenant, "d@fast.example")
    again = "attempts = 2, last_code = 451, last_enhanced = '4.7.1', mx_host = 'mx.slow.example', status = 'reattempt'"
    for name in ("a", "b"):
        _change(
            db,
            f"{name}@slow.example",
            f"{again}, last_reply = 'Greylisted', next_attempt_at = now() + interval '1 hour'",
        )
    _change(db, "c@slow.example", f"{again}, last_reply = 'Busy', next_attempt_at = now() - interval '1 s'")

    slow, fast = terminal.json("queue")
    assert (slow["name"], slow["total"], fast["name"], fast["total"]) == ("slow.example", 3, "fast.example", 1)
    assert {minutes: number for minutes, number in slow["ages"].items() if number} == {"10": 2, "1280+": 1}
    assert {minutes: number for minutes, number in fast["ages"].items() if number} == {"5": 1}
    assert (slow["states"], fast["states"]) == ({"retry": 2, "due": 1}, {"due": 1})
    assert slow["why"] == "451 4.7.1 Greylisted"
    assert datetime.fromisoformat(slow["next_attempt_at"]) > datetime.now(UTC) + timedelta(minutes=59)
    heading, first, *_ = terminal.do("queue").splitlines()
    assert heading.split()[:4] == ["NAME", "TOTAL", "5", "10"]
    assert "1 due, 2 retry" in first and first.endswith("451 4.7.1 Greylisted")

    assert [row["name"] for row in terminal.json("queue", "--by", "mx")] == ["mx.slow.example", None]
    assert [row["name"] for row in terminal.json("queue", "--by", "organization")] == ["acme"]
    assert [row["name"] for row in terminal.json("queue", "--by", "source")] == [tenant.sources[0]]


@pytest.mark.parametrize(
    ("options", "found"),
    [
        (("--destination", "SLOW.example."), "ab"),
        (("--destination", "slow.example", "--state", "retry"), "b"),
        (("--state", "due"), "ac"),
        (("--reply", "grey"), "b"),
        (("--older-than", "1h"), "c"),
        (("--organization", "acme"), "abc"),
        (("--organization", "other"), "d"),
        (("--address", "127.0.0.11"), "abc"),
        (("--address", "127.0.0.12"), ""),
    ],
)
def test_filters(
    terminal: Terminal, db: Database, vault: Vault, pepper: Pepper, tenant: Tenant, options: tuple[str, ...], found: str
) -> None:
    other = seed.tenant(db, vault, pepper, name="other")
    _send(db, tenant, "a@slow.example", "b@slow.example")
    _send(db, tenant, "c@fast.example", age=timedelta(hours=2))
    message_id = _send(db, other, "d@slow.example")
    _change(db, "d@slow.example", "source = NULL")
    _change(db, "b@slow.example", "attempts = 1, next_attempt_at = now() + interval '1 min', last_reply = 'Greylisted'")
    if options == ("--destination", "SLOW.example."):
        options += ("--organization", "acme")
    if options == ("--state", "due"):
        options += ("--address", "127.0.0.11")
    rows = terminal.json("queue", "list", *options)
    assert {row["recipient"][0] for row in rows} == set(found)
    assert sum(row["total"] for row in terminal.json("queue", *options)) == len(found)
    (row,) = terminal.json("queue", "list", "--message", str(message_id))
    assert (row["state"], row["why"]) == ("no_address", "its pool has no outbound address")


def test_each_reason_has_its_words(terminal: Terminal, db: Database, tenant: Tenant) -> None:
    _send(db, tenant, *[f"{name}@example.net" for name in "abcde"])
    _change(db, "a@example.net", f"claimed_by = '{tenant.host_id}', next_attempt_at = now() + interval '1 min'")
    _change(db, "b@example.net", "cause = 'the destination rests', next_attempt_at = now() + interval '1 min'")
    _change(db, "c@example.net", "status = 'held', held_for = 'domain', cause = 'The DNS is wrong.'")
    _change(
        db,
        "d@example.net",
        "attempts = 3, last_code = 421, last_reply = 'Busy', next_attempt_at = now() + interval '1 h'",
    )

    def why() -> dict[str, tuple[str, str | None]]:
        return {row["recipient"][0]: (row["state"], row["why"]) for row in terminal.json("queue", "list")}

    assert why() == {
        "a": ("in_hand", None),
        "b": ("put_off", "the destination rests"),
        "c": ("held", "The DNS is wrong."),
        "d": ("retry", "421 Busy"),
        "e": ("due", None),
    }
    db.run(addresses.disable, tenant.sources[0])
    assert why()["e"] == ("address_not_ready", f"address {tenant.sources[0]} is not ready: ready")


def test_retry_cancel_hold_and_release(terminal: Terminal, db: Database, tenant: Tenant) -> None:
    first = _send(db, tenant, "a@slow.example", "b@slow.example")
    second = _send(db, tenant, "c@fast.example")
    _change(db, "a@slow.example", "attempts = 1, status = 'reattempt', next_attempt_at = now() + interval '1 hour'")
    _change(db, "b@slow.example", f"claimed_by = '{tenant.host_id}', next_attempt_at = now() + interval '1 min'")

    assert terminal.do("queue", "retry", "--destination", "slow.example") == "1 recipients.", "b is in hand"
    (due,) = (row for row in db.run(messages.deliveries, tenant.organization_id, [first]) if row.recipient[0] == "a")
    assert due.next_attempt_at is not None and due.next_attempt_at <= datetime.now(UTC)

    assert terminal.do("queue", "hold", "--all", "--because", "Migration tonight.") == "2 recipients."
    assert _statuses(db, tenant, first) == ["held", "accepted"]
    assert db.run(holds.settle) == holds.Settled(0, 0, 0), "nothing lets it go but the operator"
    db.run(lambda conn: conn.execute("UPDATE messages SET expires_at = now() - interval '1 s'"))
    assert db.run(holds.settle) == holds.Settled(0, 0, 0), "it has all the time that the operator takes"
    assert terminal.do("queue", "release", "--destination", "slow.example") == "1 recipients."
    assert _statuses(db, tenant, first) == ["reattempt", "accepted"]
    claims = db.run(queue.claim_due, tenant.host_id, tenant.sources, lease=60, limit=9)
    assert [claim.expires_at > datetime.now(UTC) + timedelta(hours=23) for claim in claims] == [True]

    assert terminal.do("queue", "cancel", "--message", str(second), "--because", "Sent twice.") == "1 recipients."
    (entry, *_), row = (
        _timeline(db, tenant, second)[::-1],
        db.run(messages.deliveries, tenant.organization_id, [second])[0],
    )
    assert (row.status, row.cause, entry.kind) == ("failed", "The operator gave it up. Sent twice.", "failed")
    assert row.finished_at is not None
    kinds = [one.kind for one in _timeline(db, tenant, first)]
    assert kinds == ["retried", "held", "released"]

    logged = db.run(audit.list_, None)
    assert [entry.action for entry in logged] == ["cancelled", "released", "held", "retried"]
    assert logged[-1].details == {"destination": "slow.example", "recipients": 1}


@pytest.mark.parametrize("action", ["cancel", "hold", "expire"])
def test_what_a_lost_worker_may_have_sent_is_told_before_it_is_ended(
    terminal: Terminal, db: Database, tenant: Tenant, action: str
) -> None:
    message_id = _send(db, tenant, "a@example.net")
    (claim,) = db.run(queue.claim_due, tenant.host_id, tenant.sources, lease=0, limit=9)
    db.run(queue.begin, [queue.Begun(claim.id, claim.claim_epoch, "mx.example.net", "127.0.0.21")])
    if action == "expire":
        _change(db, "a@example.net", "status = 'held', held_for = 'domain', cause = 'The DNS is wrong.'")
        db.run(lambda conn: conn.execute("UPDATE messages SET expires_at = now() - interval '1 s'"))
        assert db.run(holds.settle).expired == 1
    else:
        assert terminal.do("queue", action, "--all", "--because", "Enough.") == "1 recipients."
    kinds = [(one.kind, one.mx_host) for one in _timeline(db, tenant, message_id)]
    assert kinds == [
        ("ambiguous", "mx.example.net"),
        ({"cancel": "failed", "hold": "held", "expire": "expired"}[action], None),
    ]
    assert [row.attempts for row in db.run(messages.deliveries, tenant.organization_id, [message_id])] == [1]


def _timeline(db: Database, tenant: Tenant, message_id: MessageId) -> list[messages.TimelineEntry]:
    return db.run(messages.timeline, tenant.organization_id, message_id)


def test_nothing_is_done_to_everything_by_accident(terminal: Terminal, db: Database, tenant: Tenant) -> None:
    message_id = _send(db, tenant, "a@example.net")
    for words in (("cancel",), ("retry",), ("hold",), ("release",)):
        assert "or --all" in terminal.run("queue", *words).stderr
    assert "after the command" in terminal.run("queue", "--destination", "a.example", "cancel", "--all").stderr
    assert "no organization" in terminal.refused("queue", "cancel", "--organization", "nobody")
    assert "is no domain" in terminal.refused("queue", "cancel", "--destination", "x")
    assert "is no IP address" in terminal.refused("queue", "list", "--address", "x")
    assert "as in 30m" in terminal.run("queue", "list", "--older-than", "soon").stderr
    assert _statuses(db, tenant, message_id) == ["accepted"]


def test_what_waits_by_address(terminal: Terminal, db: Database, tenant: Tenant) -> None:
    for recipients in (("a@example.net", "b@example.net"), ("c@example.net",), ("d@example.net",)):
        _send(db, tenant, *recipients)
    _change(db, "a@example.net", "next_attempt_at = now() + interval '1 hour'")
    _change(db, "b@example.net", "next_attempt_at = now() - interval '90 s'")
    _change(db, "d@example.net", f"claimed_by = '{tenant.host_id}', next_attempt_at = now() + interval '1 min'")
    (row,) = terminal.json("queue", "addresses")
    assert (row["pool"], row["source"]) == ("shared", tenant.sources[0])
    assert (row["waiting"], row["due"], row["in_hand"]) == (4, 2, 1)
    assert 90 <= row["overdue"] < 100


def test_after_a_restore_is_held_what_may_have_been_sent_since(
    terminal: Terminal, db: Database, tenant: Tenant
) -> None:
    """Due, or in hand of a host then; what is due later was not due in all that time."""
    message = _send(
        db, tenant, "due@a.example", "later@b.example", "claimed@c.example", "begun@d.example", "done@e.example"
    )
    _change(db, "later@b.example", "attempts = 1, status = 'reattempt', next_attempt_at = now() + interval '1 hour'")
    in_hand = f"claimed_by = '{tenant.host_id}', next_attempt_at = now() + interval '5 min'"
    _change(db, "claimed@c.example", in_hand)
    _change(db, "begun@d.example", f"{in_hand}, begun_at = now()")
    _change(db, "done@e.example", "status = 'delivered', finished_at = now()")
    assert terminal.do("queue", "restored") == "3 recipients."
    found = {row.recipient: row.status for row in db.run(messages.deliveries, tenant.organization_id, [message])}
    assert found == {
        "due@a.example": "held",
        "later@b.example": "reattempt",
        "claimed@c.example": "held",
        "begun@d.example": "held",
        "done@e.example": "delivered",
    }
    assert [entry.cause for entry in _timeline(db, tenant, message) if entry.kind == "ambiguous"] == [
        "The relay was interrupted while it sent the message: it may have arrived."
    ]
    assert terminal.do("queue", "restored") == "0 recipients."
    assert terminal.do("queue", "release", "--all") == "3 recipients."
