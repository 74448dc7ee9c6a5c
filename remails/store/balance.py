"""The balance: every recipient that was accepted has one delivery, which is final or waits with all that it needs.

    accepted = final + waiting

A message says with how many deliveries it was stored. `walk` counts those of a few thousand messages at a time, by two indexes, so no
look costs more than the last one, however much is stored. What does not add up becomes a row of `imbalances` and stays one until it
does, or the message is forgotten.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal
from uuid import UUID

from psycopg.rows import class_row

from remails.db import Connection
from remails.store.ids import MessageId

Name = Literal["new", "again"]
"""new: once over all that comes in, soon after it came; again: over all there is, from the oldest on, over and over."""

SETTLED = timedelta(minutes=1)
"""Younger messages are not looked at by the walk: their transaction may not have ended."""

_WAITING = "d.status IN ('accepted', 'reattempt', 'held')"
# Ids of messages begin with the milliseconds at which they came (UUIDv7, RFC 9562 §5.7).
_ID_AT = "(lpad(to_hex((extract(epoch FROM {})::numeric * 1000)::bigint), 12, '0') || repeat('0', 20))::uuid"

_COUNTED = f"""
    SELECT looked.id, looked.recipients, counted.final, counted.waiting,
        CASE
            WHEN counted.final + counted.waiting <> coalesce(looked.recipients, greatest(counted.final + counted.waiting, 1))
                THEN format('%%s deliveries of %%s', counted.final + counted.waiting, coalesce(looked.recipients::text, 'one or more'))
            WHEN counted.waiting > 0 AND NOT EXISTS (SELECT FROM message_bodies b WHERE b.message_id = looked.id)
                THEN 'waits without its content'
        END AS problem
    FROM looked CROSS JOIN LATERAL (
        SELECT count(*) FILTER (WHERE {_WAITING}) AS waiting, count(*) FILTER (WHERE NOT {_WAITING}) AS final
        FROM deliveries d WHERE d.message_id = looked.id) counted
"""  # noqa: S608  # our own text


@dataclass(frozen=True, slots=True)
class Imbalance:
    """A message that does not add up, and how, in words."""

    message_id: MessageId
    problem: str


@dataclass(frozen=True, slots=True)
class Step:
    """What one step of a walk has seen: so many messages, and of them these that do not add up for the first time."""

    messages: int
    found: list[Imbalance]


def walk(conn: Connection, name: Name, limit: int) -> Step:
    """Look at the next `limit` messages of a walk, and keep what does not add up.

    The first time ever, `new` begins an hour ago; `again` begins anew at the oldest message where it comes to the end.
    """
    rows = conn.execute(
        f"""
        WITH looked AS MATERIALIZED (
            SELECT id, recipients FROM messages
            WHERE id > coalesce((SELECT position FROM balance_walks WHERE name = %(name)s),
                    CASE WHEN %(name)s = 'new' THEN {_ID_AT.format("now() - interval '1 hour'")}
                         ELSE '00000000-0000-0000-0000-000000000000' END)
                AND id < {_ID_AT.format("now() - %(settled)s")}
            ORDER BY id LIMIT %(limit)s),
        last AS (SELECT id FROM looked ORDER BY id DESC LIMIT 1),
        moved AS (
            INSERT INTO balance_walks (name, position) SELECT %(name)s, id FROM last
            ON CONFLICT (name) DO UPDATE SET position = excluded.position),
        counted AS ({_COUNTED}),
        kept AS (
            INSERT INTO imbalances (message_id, problem) SELECT id, problem FROM counted WHERE problem IS NOT NULL ORDER BY id
            ON CONFLICT (message_id) DO NOTHING RETURNING message_id, problem)
        SELECT (SELECT count(*) FROM looked), message_id, problem FROM kept
        UNION ALL SELECT count(*), NULL, NULL FROM looked
        """,  # noqa: S608  # our own text
        {"name": name, "limit": limit, "settled": SETTLED},
    ).fetchall()
    if name == "again" and rows[-1][0] < limit:
        conn.execute("DELETE FROM balance_walks WHERE name = 'again'")
    return Step(rows[-1][0], [Imbalance(MessageId(UUID(str(row[1]))), row[2]) for row in rows if row[1] is not None])


def settle(conn: Connection) -> None:
    """Look again at what did not add up, and forget what does by now or is not there any more."""
    conn.execute(
        f"""
        WITH looked AS MATERIALIZED (
            SELECT m.id, m.recipients FROM imbalances i JOIN messages m ON m.id = i.message_id),
        counted AS ({_COUNTED})
        DELETE FROM imbalances WHERE message_id NOT IN (SELECT id FROM counted WHERE problem IS NOT NULL)
        """  # noqa: S608  # our own text
    )


@dataclass(frozen=True, slots=True)
class State:
    """How the balance stands.

    Args:
        imbalances: messages that do not add up.
        behind: seconds since the newest message came that `new` has looked at, where there is a newer one it should have.
    """

    imbalances: int
    behind: float


def state(conn: Connection) -> State:
    """How the balance stands now."""
    with conn.cursor(row_factory=class_row(State)) as cursor:
        (found,) = cursor.execute(
            f"""
            SELECT (SELECT count(*) FROM imbalances) AS imbalances,
                coalesce((
                    SELECT extract(epoch FROM now() - m.created_at)::float8 FROM messages m
                    WHERE m.id > (SELECT position FROM balance_walks WHERE name = 'new')
                        AND m.id < {_ID_AT.format("now() - %(settled)s")}
                    ORDER BY m.id LIMIT 1), 0) AS behind
            """,  # noqa: S608  # our own text
            {"settled": SETTLED},
        ).fetchall()
        return found


def unfinished(conn: Connection) -> int:
    """How many deliveries wait an hour after their message had to be delivered or given up. What an operator holds may wait.

    It reads all that waits, and of the messages only those that are old enough, each by its id.
    """
    ((number,),) = conn.execute(
        f"""
        SELECT count(*) FROM (
            SELECT message_id FROM deliveries WHERE status IN ('accepted', 'reattempt')
            UNION ALL SELECT message_id FROM deliveries WHERE status = 'held' AND held_for IS DISTINCT FROM 'operator') d
        WHERE d.message_id < {_ID_AT.format("now() - interval '1 hour'")}
            -- Not as a join, which would read all messages there are where much waits.
            AND (SELECT m.expires_at FROM messages m WHERE m.id = d.message_id) < now() - interval '1 hour'
        """  # noqa: S608  # our own text
    ).fetchall()
    return int(number)


def list_(conn: Connection, limit: int = 1000) -> Sequence[Imbalance]:
    """The messages that do not add up, the oldest first."""
    with conn.cursor(row_factory=class_row(Imbalance)) as cursor:
        return cursor.execute(
            "SELECT message_id, problem FROM imbalances ORDER BY message_id LIMIT %s", [limit]
        ).fetchall()
