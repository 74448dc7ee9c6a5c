"""Suppressions: addresses to which an organization sends no more, because mail to them keeps failing or by its own wish.

A refusal that says that there is no such mailbox suppresses its address at once. Of the doubtful ones each counts one up, and from
the fifth in a row on the address is suppressed too (`mail.bounce` tells them apart). A delivery forgets the count. Suppressed is
for 30 days; then one attempt is let through, and its failure suppresses for another 30 days. What a person or a complaint put here
stays until its own end, or until a person takes it away. Addresses are compared by their key
(`mail.address.Address.key`), never as written.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from psycopg.rows import class_row

from remails import db
from remails.mail.addresslist import Entry, Kind
from remails.store import constraints
from remails.store.ids import OrganizationId

FAILURES = 5
DAYS = 30

Pair = tuple[OrganizationId, str]
"""An organization and the key of an address."""


class Bounced(NamedTuple):
    """A refusal of an address by its server. `is_sure`: there is no such mailbox."""

    organization_id: OrganizationId
    address: str
    is_sure: bool
    reason: str


@dataclass(frozen=True, slots=True)
class Suppression:
    """A suppressed address; `suppressed_until` is None for good."""

    organization_id: OrganizationId
    address: str
    kind: Kind
    reason: str
    failures: int
    suppressed_until: datetime | None
    created_at: datetime
    updated_at: datetime


def active_among(conn: db.Connection, pairs: Collection[Pair]) -> dict[Pair, str]:
    """Those of the pairs that are suppressed now, with the reason."""
    rows = conn.execute(
        """SELECT s.organization_id, s.address, s.reason FROM suppressions s
           JOIN unnest(%(organizations)s::uuid[], %(keys)s::text[]) AS asked (organization_id, address)
               USING (organization_id, address)
           WHERE s.suppressed_until > now()""",
        _columns(pairs),
    )
    return {(organization_id, address): reason for organization_id, address, reason in rows}


def organizations_among(conn: db.Connection, organization_ids: Collection[OrganizationId]) -> set[OrganizationId]:
    """Those of the organizations that suppress any address now."""
    rows = conn.execute(
        """SELECT asked.id FROM unnest(%s::uuid[]) AS asked (id)
           WHERE EXISTS (SELECT FROM suppressions s WHERE s.organization_id = asked.id AND s.suppressed_until > now())""",
        [list(organization_ids)],
    )
    return {id_ for (id_,) in rows}


def list_(
    conn: db.Connection, organization_id: OrganizationId, *, after: str = "", search: str = "", limit: int = 1000
) -> list[Suppression]:
    """The addresses the organization does not send to now, by address; `after` is the last one of the page before.

    `search` is found anywhere in an address.
    """
    with conn.cursor(row_factory=class_row(Suppression)) as cur:
        return cur.execute(
            """SELECT organization_id, address, kind, reason, failures, created_at, updated_at,
                   nullif(suppressed_until, 'infinity') AS suppressed_until
               FROM suppressions WHERE organization_id = %s AND suppressed_until > now() AND address > %s
                   AND strpos(address, lower(%s)) > 0
               ORDER BY address LIMIT %s""",
            [organization_id, after, search, limit],
        ).fetchall()


def add(conn: db.Connection, organization_id: OrganizationId, address_key: str, reason: str) -> None:
    """Suppress an address until it is removed."""
    add_many(conn, organization_id, [Entry(address_key, reason)])


def add_many(conn: db.Connection, organization_id: OrganizationId, new: Sequence[Entry]) -> int:
    """Suppress addresses, each by its key; what is said of one that is suppressed already is replaced. How many it was."""
    if not new:
        return 0
    by_address = {one.address: one for one in new}
    rows = [by_address[key] for key in sorted(by_address)]  # one order of locks for all
    with constraints.explained(conn, {}):
        conn.execute(
            """INSERT INTO suppressions (organization_id, address, kind, reason, suppressed_until)
               SELECT %s, address, kind, reason, coalesce(until, 'infinity')
               FROM unnest(%s::text[], %s::text[], %s::text[], %s::timestamptz[]) AS new (address, kind, reason, until)
               ON CONFLICT (organization_id, address) DO UPDATE
               SET kind = excluded.kind, reason = excluded.reason, suppressed_until = excluded.suppressed_until,
                   updated_at = now()""",
            [
                organization_id,
                [one.address for one in rows],
                [one.kind for one in rows],
                [one.reason for one in rows],
                [one.until for one in rows],
            ],
        )
    return len(rows)


def export(
    conn: db.Connection, organization_id: OrganizationId
) -> list[tuple[str, Kind, str, datetime | None, datetime]]:
    """All that is suppressed now, as `addresslist.write` takes it."""
    return conn.execute(
        """SELECT address, kind, reason, nullif(suppressed_until, 'infinity'), created_at
           FROM suppressions WHERE organization_id = %s AND suppressed_until > now() ORDER BY address""",
        [organization_id],
    ).fetchall()


def remove(conn: db.Connection, organization_id: OrganizationId, address_key: str) -> bool:
    """Send to the address again and forget its failures; false when it was not suppressed."""
    rows = conn.execute(
        """DELETE FROM suppressions WHERE organization_id = %s AND address = %s
           RETURNING coalesce(suppressed_until > now(), false)""",
        [organization_id, address_key],
    ).fetchall()
    return rows == [(True,)]


def record_bounces(conn: db.Connection, bounced: Sequence[Bounced]) -> set[Pair]:
    """Count refusals of addresses; returns those that are suppressed by them from now on.

    Only for what speaks of the address itself (`mail.bounce.blame`), which the caller decides.
    """
    rows = conn.execute(
        """WITH failed AS (
               SELECT organization_id, address, count(*) AS failures, bool_or(is_sure) AS is_sure,
                   (array_agg(reason ORDER BY is_sure DESC))[1] AS reason
               FROM unnest(%(organizations)s::uuid[], %(keys)s::text[], %(sure)s::bool[], %(reasons)s::text[])
                   AS bounced (organization_id, address, is_sure, reason)
               GROUP BY 1, 2)
           INSERT INTO suppressions AS s (organization_id, address, failures, suppressed_until, reason)
           SELECT failed.organization_id, failed.address, failures,
               CASE WHEN is_sure OR failures >= %(failures)s THEN now() + %(days)s * interval '1 day' END, reason
           FROM failed JOIN organizations ON organizations.id = failed.organization_id
           ORDER BY 1, 2  -- one order of locks for all
           ON CONFLICT (organization_id, address) DO UPDATE
           SET failures = s.failures + excluded.failures, updated_at = now(), kind = 'bounce', reason = excluded.reason,
               suppressed_until = coalesce(excluded.suppressed_until,
                   CASE WHEN s.failures + excluded.failures >= %(failures)s THEN now() + %(days)s * interval '1 day' END)
           WHERE (s.kind = 'bounce' AND s.suppressed_until IS DISTINCT FROM 'infinity') OR s.suppressed_until < now()
           RETURNING organization_id, address, coalesce(suppressed_until > now(), false)""",
        {
            **_columns([(one.organization_id, one.address) for one in bounced]),
            "sure": [one.is_sure for one in bounced],
            "reasons": [one.reason for one in bounced],
            "failures": FAILURES,
            "days": DAYS,
        },
    )
    return {(organization_id, address) for organization_id, address, suppressed in rows if suppressed}


@db.one_statement
def record_successes(conn: db.Connection, pairs: Collection[Pair]) -> None:
    """Forget the failures of addresses that took a message; what a person or a complaint suppressed stays."""
    conn.execute(
        """DELETE FROM suppressions WHERE ctid IN (
               SELECT s.ctid FROM suppressions s
               JOIN unnest(%(organizations)s::uuid[], %(keys)s::text[]) AS asked (organization_id, address)
                   USING (organization_id, address)
               WHERE s.kind = 'bounce' AND s.suppressed_until IS DISTINCT FROM 'infinity'
               ORDER BY s.organization_id, s.address FOR UPDATE OF s)""",
        _columns(pairs),
    )


def purge(conn: db.Connection) -> int:
    """Delete what was untouched for 90 days and suppresses nothing any more; returns how many."""
    done = conn.execute(
        """DELETE FROM suppressions WHERE updated_at < now() - interval '90 days'
           AND coalesce(suppressed_until, '-infinity') < now()"""
    )
    return done.rowcount


def _columns(pairs: Collection[Pair]) -> dict[str, object]:
    return {"organizations": [pair[0] for pair in pairs], "keys": [pair[1] for pair in pairs]}
