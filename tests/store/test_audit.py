"""The audit log."""

from uuid import uuid4

from remails.db import Connection
from remails.store import audit, organizations
from remails.store.audit import Actor


def test_entry_is_what_was_recorded(conn: Connection) -> None:
    acme, ann = organizations.create(conn, "Acme").id, uuid4()
    audit.record(conn, Actor("user", ann, "Ann"), acme, "created", "project", uuid4(), {"name": "Shop"})

    (entry,) = audit.list_(conn, acme)
    assert (entry.organization_id, entry.actor_type, entry.actor_id, entry.actor_name) == (acme, "user", ann, "Ann")
    assert (entry.action, entry.target_type, entry.details) == ("created", "project", {"name": "Shop"})


def test_newest_first_in_pages(conn: Connection) -> None:
    acme = organizations.create(conn, "Acme").id
    for number in range(5):
        audit.record(conn, Actor("system"), acme, "updated", "domain", number)

    first = audit.list_(conn, acme, limit=3)
    rest = audit.list_(conn, acme, before=first[-1].id, limit=3)

    assert [entry.target_id for entry in first + rest] == ["4", "3", "2", "1", "0"]


def test_organizations_and_the_installation_are_apart(conn: Connection) -> None:
    acme, other = organizations.create(conn, "Acme").id, organizations.create(conn, "Other").id
    audit.record(conn, Actor("operator"), acme, "created", "organization", acme)
    audit.record(conn, Actor("operator"), None, "created", "user", "ann")

    assert [entry.target_type for entry in audit.list_(conn, acme)] == ["organization"]
    assert audit.list_(conn, other) == []
    assert [entry.target_id for entry in audit.list_(conn, None)] == ["ann"]
