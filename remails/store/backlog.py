"""The backlog: what waits to leave, for how long and why, and what an operator does about it.

For people at the command line. The age of a delivery is read from its message's id (UUIDv7), so no table is joined that is
not asked about; the two partial indexes of what waits and what is held are all that is read of the deliveries.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Literal, get_args

from psycopg.rows import class_row, scalar_row

from remails.db import Connection
from remails.store import queue
from remails.store.ids import DeliveryId, MessageId, OrganizationId

State = Literal["in_hand", "due", "retry", "put_off", "no_address", "address_not_ready", "held"]
STATES: tuple[State, ...] = get_args(State)
"""Why a delivery waits:

in_hand             a host is at it
due                 it could go now, and waits for room at its destination, or for a host with time
retry               it was tried; the time of its next attempt has not come
put_off             it was not tried, its destination took no more just then; the same
no_address          its pool has no outbound address
address_not_ready   its outbound address is held by no host, or not ready there
held                see `holds`
"""

Key = Literal["domain", "mx", "organization", "source"]
AGES = (5, 10, 20, 40, 80, 160, 320, 640, 1280)
"""Minutes: a delivery counts in the first column that is not younger than it; older ones count in one more."""


@dataclass(frozen=True, slots=True)
class Only:
    """Which part of the backlog; None is any."""

    domain: str | None = None
    organization_id: OrganizationId | None = None
    message_id: MessageId | None = None
    source: str | None = None
    state: State | None = None
    older_than: timedelta | None = None
    reply: str | None = None
    """Part of the last reply."""


@dataclass(frozen=True, slots=True)
class Group:
    """What waits for one destination, organization or outbound address."""

    name: str | None
    total: int
    ages: list[int]
    """By `AGES`, and the older ones."""
    states: dict[str, int]
    oldest: datetime
    next_attempt_at: datetime | None
    """When the first of them is to be tried, of those that are not due."""
    why: str | None
    """What most of them wait for, in words."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """One delivery that waits."""

    id: DeliveryId
    message_id: MessageId
    organization_id: OrganizationId
    recipient: str
    domain: str
    source: str | None
    since: datetime
    state: State
    attempts: int
    next_attempt_at: datetime
    mx_host: str | None
    why: str | None


_SINCE = "to_timestamp(('x' || substr(replace(d.message_id::text, '-', ''), 1, 12))::bit(48)::bigint / 1000.0)"
_WAITING = f"""
    SELECT d.id, d.message_id, d.organization_id, d.recipient, d.domain, d.source, d.attempts, d.next_attempt_at, d.mx_host,
        {_SINCE} AS since, s.state,
        left(CASE s.state
            WHEN 'no_address' THEN 'its pool has no outbound address'
            WHEN 'address_not_ready' THEN concat('address ', host(d.source), ' is not ready: ', a.state, nullif(': ' || a.last_error, ': '))
            WHEN 'held' THEN d.cause
            WHEN 'put_off' THEN coalesce(nullif(d.cause, ''), d.last_reply)
            ELSE nullif(concat_ws(' ', d.last_code, d.last_enhanced, d.last_reply), '')
        END, 300) AS why
    FROM (
        SELECT * FROM deliveries WHERE status IN ('accepted', 'reattempt')
        UNION ALL SELECT * FROM deliveries WHERE status = 'held') d
    LEFT JOIN addresses a ON a.ip = d.source
    CROSS JOIN LATERAL (SELECT CASE
        WHEN d.status = 'held' THEN 'held'
        WHEN d.claimed_by IS NOT NULL AND d.next_attempt_at > now() THEN 'in_hand'
        WHEN d.source IS NULL THEN 'no_address'
        WHEN a.state IS DISTINCT FROM 'ready' OR NOT a.is_enabled OR a.lease_until <= now() THEN 'address_not_ready'
        WHEN d.next_attempt_at <= now() THEN 'due'
        WHEN d.attempts = 0 THEN 'put_off'
        ELSE 'retry' END AS state) s
    WHERE (%(domain)s::text IS NULL OR d.domain = %(domain)s)
        AND (%(organization_id)s::uuid IS NULL OR d.organization_id = %(organization_id)s)
        AND (%(message_id)s::uuid IS NULL OR d.message_id = %(message_id)s)
        AND (%(source)s::inet IS NULL OR d.source = %(source)s)
        AND (%(state)s::text IS NULL OR s.state = %(state)s)
        AND (%(older_than)s::interval IS NULL OR {_SINCE} < now() - %(older_than)s)
        AND (%(reply)s::text IS NULL
            OR strpos(lower(concat_ws(' ', d.last_code, d.last_enhanced, d.last_reply)), lower(%(reply)s)) > 0)
"""  # noqa: S608  # our own text
_NAMES: dict[Key, str] = {
    "domain": "domain",
    "mx": "mx_host",
    "organization": "organization_id::text",
    "source": "host(source)",
}


def groups(conn: Connection, key: Key, only: Only, *, limit: int = 1000) -> list[Group]:
    """The backlog by destination (or another key), the longest first."""
    with conn.cursor(row_factory=class_row(Group)) as cursor:
        return cursor.execute(
            f"""
            WITH counted AS (
                SELECT {_NAMES[key]} AS name, state, coalesce(why, '') COLLATE "C" AS why,
                    width_bucket(extract(epoch FROM now() - since)::float / 60, %(ages)s::float[]) AS age,
                    count(*) AS number, min(since) AS oldest,
                    min(next_attempt_at) FILTER (WHERE state IN ('retry', 'put_off')) AS next_attempt_at
                FROM ({_WAITING}) AS waiting GROUP BY 1, 2, 3, 4),
            summed AS (
                SELECT name, sum(number)::bigint AS total, min(oldest) AS oldest, min(next_attempt_at) AS next_attempt_at,
                    ARRAY[{", ".join(f"sum(number) FILTER (WHERE age = {age})" for age in range(len(AGES) + 1))}]::bigint[] AS ages
                FROM counted GROUP BY name ORDER BY total DESC, name LIMIT %(limit)s),
            by_state AS (
                SELECT name, jsonb_object_agg(state, n) AS states
                FROM (SELECT name, state, sum(number)::bigint AS n FROM counted GROUP BY 1, 2) AS each GROUP BY 1),
            by_why AS (
                SELECT DISTINCT ON (name) name, why
                FROM (SELECT name, why, sum(number) AS n FROM counted WHERE why <> '' GROUP BY 1, 2) AS each
                ORDER BY name, n DESC, why)
            SELECT s.name, s.total, array_replace(s.ages, NULL, 0) AS ages, b.states, s.oldest, s.next_attempt_at, w.why
            FROM summed s JOIN by_state b ON coalesce(b.name, '') = coalesce(s.name, '')
            LEFT JOIN by_why w ON coalesce(w.name, '') = coalesce(s.name, '')
            ORDER BY s.total DESC, s.name
            """,  # noqa: S608  # our own text
            asdict(only) | {"ages": list(AGES), "limit": limit},
        ).fetchall()


def list_(conn: Connection, only: Only, *, limit: int = 1000) -> list[Waiting]:
    """The deliveries that wait, the oldest first."""
    with conn.cursor(row_factory=class_row(Waiting)) as cursor:
        return cursor.execute(
            f"""
            SELECT id, message_id, organization_id, recipient, domain, host(source) AS source, since, state, attempts,
                next_attempt_at, mx_host, why
            FROM ({_WAITING}) AS waiting ORDER BY message_id, id LIMIT %(limit)s
            """,  # noqa: S608  # our own text
            asdict(only) | {"limit": limit},
        ).fetchall()


def ids(conn: Connection, only: Only) -> list[DeliveryId]:
    """The deliveries that wait, for what is done to them."""
    with conn.cursor(row_factory=scalar_row) as cursor:
        return cursor.execute(f"SELECT id FROM ({_WAITING}) AS waiting ORDER BY id", asdict(only)).fetchall()  # noqa: S608


def retry(conn: Connection, delivery_ids: Sequence[DeliveryId]) -> int:
    """Make these due now, as far as no host has them in hand; how many it was."""
    return _noted(
        conn,
        f"""
        WITH changed AS (
            UPDATE deliveries d SET next_attempt_at = clock_timestamp(), claim_epoch = d.claim_epoch + 1, claimed_by = NULL
            WHERE d.id = ANY(%(ids)s) AND d.status IN ('accepted', 'reattempt')
                AND NOT ({queue.IN_HAND})
            RETURNING d.id, d.message_id)
        INSERT INTO timeline (message_id, delivery_id, kind, cause)
        SELECT message_id, id, 'retried', 'An operator asked for it.' FROM changed RETURNING delivery_id
        """,  # noqa: S608  # our own text
        delivery_ids,
    )


def cancel(conn: Connection, delivery_ids: Sequence[DeliveryId], why: str) -> int:
    """Give these up, held or not, as far as no host has them in hand; how many it was. `why` is a sentence."""
    queue.interrupted(conn, delivery_ids)
    return _noted(
        conn,
        f"""
        WITH changed AS (
            UPDATE deliveries d SET status = 'failed', finished_at = clock_timestamp(), claimed_by = NULL,
                claim_epoch = d.claim_epoch + 1, cause = %(why)s
            WHERE d.id = ANY(%(ids)s) AND d.status IN ('accepted', 'reattempt', 'held')
                AND NOT ({queue.IN_HAND})
            RETURNING d.id, d.message_id)
        INSERT INTO timeline (message_id, delivery_id, kind, cause)
        SELECT message_id, id, 'failed', %(why)s FROM changed RETURNING delivery_id
        """,  # noqa: S608  # our own text
        delivery_ids,
        why,
    )


def _noted(conn: Connection, statement: str, delivery_ids: Sequence[DeliveryId], why: str = "") -> int:
    return conn.execute(statement, {"ids": list(delivery_ids), "why": why}).rowcount
