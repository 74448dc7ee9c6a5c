"""Recipients whose mail is suppressed are refused while the client listens."""

from collections.abc import Callable

from inbound.dialogue import Dialogue
from inbound.running import Running, Stored
from seed import Tenant, tenant

from remails.db import Database
from remails.store import suppressions
from remails.vault import Pepper, Vault

MAIL = b"From: a@acme.example\r\n\r\nhi\r\n.\r\n"


def test_suppressed_recipient(
    inbound: Running, acme: Tenant, db: Database, vault: Vault, pepper: Pepper, stored: Callable[[], list[Stored]]
) -> None:
    other = tenant(db, vault, pepper, name="globex")
    with db.transaction() as conn:
        suppressions.add(conn, acme.organization_id, "gone@example.net", "by hand")
    with inbound.connect() as session, inbound.connect() as others:
        session.log_in(acme).play(
            [
                ("MAIL FROM:<a@acme.example>", "250"),
                ('RCPT TO:<"Gone"@EXAMPLE.net>', "550 5.7.1 .*suppress"),
                ("DATA", "554 5.5.1"),
                ("RCPT TO:<b@example.net>", "250"),
                ("RCPT TO:<gone@example.net>", "550 5.7.1"),
                ("DATA", "354"),
                (MAIL, "250 2.6.0"),
            ]
        )
        others.log_in(other).play([("MAIL FROM:<a@globex.example>", "250"), ("RCPT TO:<gone@example.net>", "250")])
        with db.transaction() as conn:
            suppressions.remove(conn, acme.organization_id, "gone@example.net")
        session.play([("MAIL FROM:<a@acme.example>", "250"), ("RCPT TO:<gone@example.net>", "250")])
    assert [one.recipients for one in stored()] == [["b@example.net"]]


def test_outage_at_rcpt(session: Dialogue, acme: Tenant, db: Database, outage: Callable[[], None]) -> None:
    """A temporary trouble is a temporary refusal."""
    with db.transaction() as conn:
        suppressions.add(conn, acme.organization_id, "gone@example.net", "by hand")
    session.play([("MAIL FROM:<a@acme.example>", "250")])
    outage()
    session.play([("RCPT TO:<b@example.net>", "451 4.3.0")])
