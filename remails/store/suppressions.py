"""Suppressions: addresses to which an organization sends no more, because mail to them keeps failing or by its own wish.

Each hard failure of an address counts one up, a delivery forgets the count. From the fifth in a row on, the address is
suppressed for 30 days; then one attempt is let through, and its failure suppresses for another 30 days. An address that a person
put here (`suppressed_until` infinity in the table) stays until a person takes it away. Addresses are compared
by their key (`mail.address.Address.key`), never as written.
"""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

from psycopg.rows import class_row

from remails import db
from remails.store import constraints
from remails.store.ids import OrganizationId

FAILURES = 5
DAYS = 30

Pair = tuple[OrganizationId, str]
"""An organization and the key of an address."""


@dataclass(frozen=True, slots=True)
class Suppression:
    """A suppressed address; `suppressed_until` is None for good."""

    organization_id: OrganizationId
    address: str
    reason: str
    failures: int
    suppressed_until: datetime | None
    created_at: datetime
    updated_at: datetime


def active_among(conn: db.Connection, pairs: Collection[Pair]) -> set[Pair]:
    """Those of the pairs that are suppressed now."""
    rows = conn.execute(
        """SELECT s.organization_id, s.address FROM suppressions s
           JOIN unnest(%(organizations)s::uuid[], %(keys)s::text[]) AS asked (organization_id, address)
               USING (organization_id, address)
           WHERE s.suppressed_until > now()""",
        _columns(pairs),
    )
    return {(organization_id, address) for organization_id, address in rows}


def list_(
    conn: db.Connection, organization_id: OrganizationId, *, after: str = "", limit: int = 1000
) -> list[Suppression]:
    """The addresses the organization does not send to now, by address; `after` is the last one of the page before."""
    with conn.cursor(row_factory=class_row(Suppression)) as cur:
        return cur.execute(
            """SELECT organization_id, address, reason, failures, created_at, updated_at,
                   nullif(suppressed_until, 'infinity') AS suppressed_until
               FROM suppressions WHERE organization_id = %s AND suppressed_until > now() AND address > %s
               ORDER BY address LIMIT %s""",
            [organization_id, after, limit],
        ).fetchall()


def add(conn: db.Connection, organization_id: OrganizationId, address_key: str, reason: str) -> None:
    """Suppress an address until it is removed."""
    with constraints.explained(conn, {}):
        conn.execute(
            """INSERT INTO suppressions (organization_id, address, reason, suppressed_until)
               VALUES (%s, %s, %s, 'infinity')
               ON CONFLICT (organization_id, address) DO UPDATE
               SET reason = excluded.reason, suppressed_until = 'infinity', updated_at = now()""",
            [organization_id, address_key, reason],
        )


def remove(conn: db.Connection, organization_id: OrganizationId, address_key: str) -> bool:
    """Send to the address again and forget its failures; false when it was not suppressed."""
    rows = conn.execute(
        """DELETE FROM suppressions WHERE organization_id = %s AND address = %s
           RETURNING coalesce(suppressed_until > now(), false)""",
        [organization_id, address_key],
    ).fetchall()
    return rows == [(True,)]


def record_failures(conn: db.Connection, pairs: Collection[Pair]) -> set[Pair]:
    """Count a hard failure for each pair; returns those that are suppressed from now on.

    Only for replies that speak of the address itself (no such user), which the caller decides.
    """
    rows = conn.execute(
        """INSERT INTO suppressions AS s (organization_id, address, failures, suppressed_until, reason)
           SELECT failed.organization_id, failed.address, count(*),
               CASE WHEN count(*) >= %(failures)s THEN now() + %(days)s * interval '1 day' END,
               'Mail to this address failed permanently several times in a row.'
           FROM unnest(%(organizations)s::uuid[], %(keys)s::text[]) AS failed (organization_id, address)
           JOIN organizations ON organizations.id = failed.organization_id
           GROUP BY 1, 2 ORDER BY 1, 2  -- one order of locks for all
           ON CONFLICT (organization_id, address) DO UPDATE
           SET failures = s.failures + excluded.failures, updated_at = now(),
               suppressed_until = CASE WHEN s.suppressed_until = 'infinity' THEN s.suppressed_until
                   WHEN s.failures + excluded.failures >= %(failures)s THEN now() + %(days)s * interval '1 day' END
           RETURNING organization_id, address, coalesce(suppressed_until > now(), false)""",
        _columns(pairs) | {"failures": FAILURES, "days": DAYS},
    )
    return {(organization_id, address) for organization_id, address, suppressed in rows if suppressed}


def record_successes(conn: db.Connection, pairs: Collection[Pair]) -> None:
    """Forget the failures of addresses that took a message; what a person suppressed stays."""
    conn.execute(
        """DELETE FROM suppressions WHERE ctid IN (
               SELECT s.ctid FROM suppressions s
               JOIN unnest(%(organizations)s::uuid[], %(keys)s::text[]) AS asked (organization_id, address)
                   USING (organization_id, address)
               WHERE s.suppressed_until IS DISTINCT FROM 'infinity'
               ORDER BY s.organization_id, s.address FOR UPDATE OF s)""",
        _columns(pairs),
    )


def purge(conn: db.Connection) -> int:
    """Delete counts untouched for 90 days that suppress nothing any more; returns how many."""
    done = conn.execute(
        """DELETE FROM suppressions WHERE updated_at < now() - interval '90 days'
           AND coalesce(suppressed_until, '-infinity') < now()"""
    )
    return done.rowcount


def _columns(pairs: Collection[Pair]) -> dict[str, object]:
    return {"organizations": [pair[0] for pair in pairs], "keys": [pair[1] for pair in pairs]}
