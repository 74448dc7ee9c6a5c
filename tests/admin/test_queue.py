"""`remails queue`."""

from seed import Tenant
from terminal import Terminal

from remails import submission
from remails.bus.client import Publisher
from remails.config import Bus, Mail
from remails.db import Database


def test_an_empty_queue(terminal: Terminal) -> None:
    assert terminal.json("queue") == []


def test_what_waits_by_address(terminal: Terminal, db: Database, tenant: Tenant) -> None:
    mails = [tenant.submission("a@example.net", "b@example.net"), tenant.submission(), tenant.submission()]
    submission.submit(db, Publisher(Bus(), ""), Mail(hostname="relay.example"), mails)
    with db.transaction() as conn:
        conn.execute(
            "UPDATE deliveries SET next_attempt_at = now() + interval '1 hour' WHERE recipient = 'a@example.net'"
        )
        conn.execute(
            "UPDATE deliveries SET next_attempt_at = now() - interval '90 s' WHERE recipient = 'b@example.net'"
        )
        conn.execute(
            "UPDATE deliveries SET claimed_by = %s, next_attempt_at = now() + interval '1 min' WHERE id ="
            " (SELECT max(id) FROM deliveries)",
            [tenant.host_id],
        )
    (row,) = terminal.json("queue")
    assert (row["pool"], row["source"]) == ("shared", tenant.sources[0])
    assert (row["waiting"], row["due"], row["in_hand"]) == (4, 2, 1)
    assert 90 <= row["overdue"] < 100
