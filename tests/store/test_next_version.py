"""A database that the next version has migrated already: this version goes on with it, for a deployment takes its time."""

from datetime import timedelta

from seed import Tenant

from remails.db import Database
from remails.store import (
    addresses,
    audit,
    credentials,
    domains,
    leases,
    messages,
    organizations,
    projects,
    suppressions,
    users,
)
from remails.store.audit import Actor


def test_a_column_that_we_do_not_know_disturbs_nobody(db: Database, tenant: Tenant) -> None:
    """What reads whole rows; an unknown column has a default, as migrations that expand give it."""
    acme = tenant.organization_id
    with db.transaction() as conn:
        audit.record(conn, Actor("system"), acme, "created", "project", tenant.project_id)
        tables = conn.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
        for (table,) in tables:
            conn.execute(f"ALTER TABLE \"{table}\" ADD COLUMN of_the_next_version text NOT NULL DEFAULT 'new'")  # type: ignore[arg-type]  # a table of ours
        fresh = users.create(conn, "ann@example.com", "Ann", None)
        users.start_session(conn, fresh.id, b"digest", "browser", timedelta(hours=1))
        assert users.session_user(conn, b"digest") == fresh == users.get(conn, fresh.id)
        assert users.by_email(conn, "ann@example.com") == fresh
        assert users.update(conn, fresh.id, name="Anna") != fresh
        assert len(users.list_all(conn)) == 2
        (member,) = users.members(conn, acme)
        assert users.memberships_of(conn, member.user_id) == [member]
        organization = organizations.get(conn, acme)
        assert organization is not None
        assert [organization] == organizations.by_name(conn, organization.name) == organizations.list_all(conn)
        assert [organization] == organizations.list_for_user(conn, member.user_id)
        assert organizations.create(conn, "Other").id != acme
        assert [project.id for project in projects.list_(conn, acme)] == [tenant.project_id]
        (domain,) = domains.list_(conn, acme)
        assert domains.get(conn, acme, domain.id) == domain
        assert len(audit.list_(conn, acme)) >= 1
        assert len(credentials.list_smtp(conn, tenant.project_id)) == len(credentials.list_keys(conn, acme)) == 1
        assert suppressions.list_(conn, acme) == []
        assert messages.list_(conn, acme) == []
        assert [row.ip for row in addresses.list_(conn)] == list(tenant.sources)
        assert [row.ip for row in leases.held_by(conn, tenant.host_id)] == list(tenant.sources)
