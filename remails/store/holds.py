"""Holds: mail that is kept back, and why, until the reason is gone.

    block      its organization may not send
    domain     the DNS of its sender's domain is definitely wrong (`domains.hold_reason`)
    operator   an operator said so; only an operator releases it

`settle` brings deliveries in line with the first two. Submission holds what comes in meanwhile, and `settle` finds what it missed.
What is held for longer than it has time fails; what an operator holds does not.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from psycopg.rows import class_row, scalar_row

from remails.db import Connection
from remails.store import queue
from remails.store.ids import DeliveryId, DomainId

BLOCKED = "The organization may not send at present."

_RELEASE = """
    status = CASE WHEN d.attempts = 0 THEN 'accepted' ELSE 'reattempt' END::delivery_status,
    next_attempt_at = clock_timestamp(), held_for = NULL, cause = ''
"""


@dataclass(frozen=True, slots=True)
class Settled:
    """How many deliveries changed."""

    held: int
    released: int
    expired: int


def settle(conn: Connection, *, domain_id: DomainId | None = None) -> Settled:
    """Hold what may not go out now, let go what may again, end what was held for too long. Of all domains, or one."""
    given = {"domain_id": domain_id, "blocked": BLOCKED}
    begun = conn.execute("SELECT id FROM deliveries WHERE status = 'held' AND begun_at IS NOT NULL").fetchall()
    if begun:  # a lost worker had begun them before they were held
        queue.interrupted(conn, [delivery_id for (delivery_id,) in begun])
    with conn.cursor(row_factory=class_row(Settled)) as cursor:
        # OFFSET 0: from what is blocked or held to its messages, one by one, and never through all messages.
        row = cursor.execute(
            f"""
            WITH wrong AS (
                SELECT d.id, 'block' AS held_for, %(blocked)s AS cause
                FROM organizations o CROSS JOIN LATERAL (
                    SELECT d.id FROM deliveries d
                    WHERE d.organization_id = o.id AND d.status IN ('accepted', 'reattempt') OFFSET 0) d
                WHERE o.block_status <> 'not_blocked' AND %(domain_id)s::uuid IS NULL
                UNION ALL
                SELECT d.id, 'domain', s.hold_reason
                FROM domains s CROSS JOIN LATERAL (
                    SELECT d.id, d.message_id FROM deliveries d
                    WHERE d.organization_id = s.organization_id AND d.status IN ('accepted', 'reattempt') OFFSET 0) d
                CROSS JOIN LATERAL (SELECT m.domain_id FROM messages m WHERE m.id = d.message_id OFFSET 0) m
                WHERE s.hold_reason IS NOT NULL AND m.domain_id = s.id
                    AND (%(domain_id)s::uuid IS NULL OR s.id = %(domain_id)s)),
            held AS (
                UPDATE deliveries d SET status = 'held', claim_epoch = d.claim_epoch + 1, claimed_by = NULL,
                    held_for = wrong.held_for, cause = wrong.cause
                FROM wrong WHERE d.id = wrong.id AND d.status IN ('accepted', 'reattempt') AND NOT ({queue.IN_HAND})
                RETURNING d.id, d.message_id, d.cause),
            kept AS MATERIALIZED (
                SELECT d.id, m.expires_at < now() AS is_late,
                    o.block_status = 'not_blocked' AND s.id IS NULL AS is_mended
                FROM (SELECT * FROM deliveries WHERE status = 'held' AND held_for IS DISTINCT FROM 'operator' OFFSET 0) d
                CROSS JOIN LATERAL (SELECT * FROM messages m WHERE m.id = d.message_id OFFSET 0) m
                JOIN organizations o ON o.id = d.organization_id
                LEFT JOIN domains s ON s.id = m.domain_id AND s.hold_reason IS NOT NULL
                WHERE %(domain_id)s::uuid IS NULL OR m.domain_id = %(domain_id)s),
            late AS (
                UPDATE deliveries d SET status = 'failed', finished_at = clock_timestamp(),
                    cause = 'It was held until its time was over. ' || d.cause
                WHERE d.id IN (SELECT id FROM kept WHERE is_late) AND d.status = 'held'
                RETURNING d.id, d.message_id, d.cause),
            released AS (
                UPDATE deliveries d SET {_RELEASE}
                WHERE d.id IN (SELECT id FROM kept WHERE is_mended AND NOT is_late) AND d.status = 'held'
                RETURNING d.id, d.message_id),
            entry AS (
                INSERT INTO timeline (message_id, delivery_id, kind, cause)
                SELECT message_id, id, 'held', cause FROM held
                UNION ALL SELECT message_id, id, 'expired', cause FROM late
                UNION ALL SELECT message_id, id, 'released', 'What it was held for is mended.' FROM released)
            SELECT (SELECT count(*) FROM held) AS held, (SELECT count(*) FROM released) AS released,
                (SELECT count(*) FROM late) AS expired
            """,  # noqa: S608  # our own text
            given,
        ).fetchone()
    assert row is not None
    return row


def hold(conn: Connection, delivery_ids: Sequence[DeliveryId], why: str) -> int:
    """Keep these back until `release`, as an operator's wish; how many it was, without those that a host has in hand."""
    queue.interrupted(conn, delivery_ids)
    return _changed(
        conn,
        f"""
        WITH changed AS (
            UPDATE deliveries d SET status = 'held', claim_epoch = d.claim_epoch + 1, claimed_by = NULL,
                held_for = 'operator', cause = %(why)s
            WHERE d.id = ANY(%(ids)s) AND d.status IN ('accepted', 'reattempt', 'held') AND NOT ({queue.IN_HAND})
            RETURNING d.id, d.message_id)
        INSERT INTO timeline (message_id, delivery_id, kind, cause) SELECT message_id, id, 'held', %(why)s FROM changed
        RETURNING delivery_id
        """,  # noqa: S608  # our own text
        {"ids": list(delivery_ids), "why": why},
    )


def hold_restored(conn: Connection, why: str) -> int:
    """Keep back what may have been sent since the moment that this database was brought back to; how many it was. No host may run.

    What is due later than now was not due in all that time, so nobody can have tried it.
    """
    conn.execute(
        """
        UPDATE deliveries SET next_attempt_at = clock_timestamp(), claimed_by = NULL, claim_epoch = claim_epoch + 1
        WHERE claimed_by IS NOT NULL AND status IN ('accepted', 'reattempt')
        """
    )
    with conn.cursor(row_factory=scalar_row) as cursor:
        due: list[DeliveryId] = cursor.execute(
            "SELECT id FROM deliveries WHERE status IN ('accepted', 'reattempt') AND next_attempt_at <= clock_timestamp()"
        ).fetchall()
    return hold(conn, due, why)


def release(conn: Connection, delivery_ids: Sequence[DeliveryId]) -> int:
    """Let go of these what an operator held; how many it was. Whose time is up gets a day.

    What the organization or domain does not allow is held again by the next `settle`.
    """
    return _changed(
        conn,
        f"""
        WITH changed AS (
            UPDATE deliveries d SET {_RELEASE}
            WHERE d.id = ANY(%(ids)s) AND d.status = 'held' AND d.held_for = 'operator'
            RETURNING d.id, d.message_id),
        longer AS (
            UPDATE messages SET expires_at = now() + interval '1 day'
            WHERE id IN (SELECT message_id FROM changed) AND expires_at < now() + interval '1 day')
        INSERT INTO timeline (message_id, delivery_id, kind, cause)
        SELECT message_id, id, 'released', 'An operator let it go.' FROM changed
        RETURNING delivery_id
        """,  # noqa: S608  # our own text
        {"ids": list(delivery_ids)},
    )


def _changed(conn: Connection, statement: str, given: dict[str, object]) -> int:
    with conn.cursor(row_factory=scalar_row) as cursor:
        return len(cursor.execute(statement, given).fetchall())
