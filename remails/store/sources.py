"""Which address mail leaves from, and mail whose address went away for good.

`in_pools` and `choose` pick the address of a new message, `orphaned` and `move` another one for mail that lost its own, always
inside the pool the message was given.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from psycopg.rows import class_row

from remails.db import Connection
from remails.store.ids import DeliveryId, MessageId, PoolId, ProjectId


@dataclass(frozen=True, slots=True)
class Candidate:
    """An enabled address of a pool, and whether some host can send from it just now."""

    ip: str
    ready: bool


@dataclass(frozen=True, slots=True)
class Orphan:
    """A pending delivery whose source is not (or no longer) an enabled address of its message's pool."""

    delivery_id: DeliveryId
    message_id: MessageId
    project_id: ProjectId
    pool_id: PoolId
    domain: str
    source: str | None


@dataclass(frozen=True, slots=True)
class Moved:
    """A delivery that has a new source."""

    delivery_id: DeliveryId
    source: str | None


def in_pools(conn: Connection, pool_ids: Sequence[PoolId]) -> dict[PoolId, list[Candidate]]:
    """The enabled addresses of each of the pools."""
    found: dict[PoolId, list[Candidate]] = {pool_id: [] for pool_id in pool_ids}
    rows = conn.execute(
        "SELECT pool_id, host(ip), is_ready FROM candidates WHERE pool_id = ANY(%s) ORDER BY ip",
        [list(found)],
    )
    for pool_id, ip, ready in rows:
        found[pool_id].append(Candidate(ip, ready))
    return found


def key(project_id: ProjectId, domain: str) -> bytes:
    """What sticks to an address: a project's mail to one recipient domain."""
    return project_id.bytes + domain.encode()


def choose(candidates: Sequence[Candidate], key: bytes) -> str | None:
    """The address for `key`: among the ready ones, else among all; None when there is none.

    Rendezvous hashing: the same key stays with its address while that one is there, and when one comes or goes only the
    keys it gains or had are moved.
    """
    chosen = [candidate.ip for candidate in candidates if candidate.ready] or [candidate.ip for candidate in candidates]
    return max(chosen, key=lambda ip: hashlib.blake2b(key + b"\0" + ip.encode(), digest_size=8).digest(), default=None)


def orphaned(conn: Connection, limit: int) -> list[Orphan]:
    """Up to `limit` pending deliveries that nobody is at, with a source that is not an enabled address of their pool.

    The first `limit` of each source are looked at, by index: nobody claims an orphan, so it comes to the front. One
    that has no source is left out while its pool has no address.
    """
    with conn.cursor(row_factory=class_row(Orphan)) as cursor:
        return cursor.execute(
            """
            WITH RECURSIVE sources (source) AS (
                SELECT '0.0.0.0/0'::inet
                UNION ALL
                SELECT (SELECT d.source FROM deliveries d
                        WHERE d.status IN ('accepted', 'reattempt') AND d.source > s.source
                        ORDER BY d.source LIMIT 1)
                FROM sources s WHERE s.source IS NOT NULL
            ), pending AS (
                SELECT d.* FROM sources s CROSS JOIN LATERAL (
                    SELECT id, message_id, source, domain, claimed_by, next_attempt_at FROM deliveries
                    WHERE status IN ('accepted', 'reattempt') AND source = s.source
                    ORDER BY next_attempt_at LIMIT %(limit)s) d
                UNION ALL
                (SELECT id, message_id, source, domain, claimed_by, next_attempt_at FROM deliveries
                 WHERE status IN ('accepted', 'reattempt') AND source IS NULL
                 ORDER BY next_attempt_at LIMIT %(limit)s)
            )
            SELECT d.id AS delivery_id, d.message_id, m.project_id, m.pool_id, d.domain, host(d.source) AS source
            FROM pending d JOIN messages m ON m.id = d.message_id
            WHERE (d.claimed_by IS NULL OR d.next_attempt_at <= clock_timestamp())
                AND NOT EXISTS (SELECT FROM addresses a
                                WHERE a.ip = d.source AND a.pool_id = m.pool_id AND a.is_enabled)
                AND (d.source IS NOT NULL
                    OR EXISTS (SELECT FROM addresses a WHERE a.pool_id = m.pool_id AND a.is_enabled))
            ORDER BY d.next_attempt_at LIMIT %(limit)s
            """,
            {"limit": limit},
        ).fetchall()


def move(conn: Connection, choices: Sequence[tuple[DeliveryId, str | None]]) -> list[Moved]:
    """Give pending deliveries another source; each becomes a row `moved` in the timeline.

    Left alone, and not in the result: what is no longer pending, is claimed just now, or would leave its pool.
    """
    with conn.cursor(row_factory=class_row(Moved)) as cursor:
        return cursor.execute(
            """
            WITH chosen AS (
                SELECT * FROM unnest(%(ids)s::bigint[], %(sources)s::inet[]) AS c (id, source)
            ), moved AS (
                UPDATE deliveries d SET source = chosen.source
                FROM chosen, messages m
                WHERE d.id = chosen.id AND m.id = d.message_id AND d.status IN ('accepted', 'reattempt')
                    AND d.source IS DISTINCT FROM chosen.source
                    AND (d.claimed_by IS NULL OR d.next_attempt_at <= clock_timestamp())
                    AND (chosen.source IS NULL OR EXISTS (
                        SELECT FROM addresses a WHERE a.ip = chosen.source AND a.pool_id = m.pool_id))
                RETURNING d.id, d.message_id, d.source
            )
            INSERT INTO timeline (message_id, delivery_id, kind, source, text)
            SELECT message_id, id, 'moved', source,
                CASE WHEN source IS NULL THEN 'Its pool has no address now' ELSE 'To another address of its pool' END
            FROM moved
            RETURNING delivery_id, host(source) AS source
            """,
            {"ids": [delivery_id for delivery_id, _ in choices], "sources": [source for _, source in choices]},
        ).fetchall()
