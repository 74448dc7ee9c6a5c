"""Statistics: how many messages of each status a project had on each day.

What did not arrive is rare and has an index of its own, so only that is counted; what was taken at all stands in `usage`, and
the rest was delivered. Whoever deletes messages calls `keep` first, which leaves the counts of the undelivered in `outcomes`.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from uuid import UUID

from psycopg.rows import class_row

from remails.db import Connection
from remails.store import usage
from remails.store.ids import MessageId, OrganizationId, ProjectId


@dataclass(frozen=True, slots=True)
class Count:
    """So many messages of a project have this status, of those taken on one day (UTC)."""

    project_id: ProjectId
    day: date
    status: str
    messages: int


# The status of each message that has a recipient whom it did not reach, or not yet.
_UNFINISHED = """
    SELECT message_id,
        CASE WHEN bool_or(status = 'reattempt') THEN 'reattempt'
            WHEN bool_or(status = 'accepted') THEN 'accepted'
            WHEN bool_or(status = 'held') THEN 'held'
            WHEN bool_and(status = 'suppressed')
                AND NOT EXISTS (SELECT FROM deliveries d WHERE d.message_id = waiting.message_id AND d.status = 'delivered')
                THEN 'rejected'
            ELSE 'failed' END AS status
    FROM deliveries waiting
    WHERE status IN ('accepted', 'reattempt', 'held', 'failed', 'suppressed')
"""


def by_day(conn: Connection, organization_id: OrganizationId, since: date) -> list[Count]:
    """The messages of each day from `since` on, by status."""
    others = not_delivered(conn, organization_id, since)
    left = Counter({(day.project_id, day.day): day.messages for day in usage.days(conn, organization_id, since)})
    for count in others:
        left[count.project_id, count.day] -= count.messages
    delivered = [
        Count(project_id, day, "delivered", number) for (project_id, day), number in left.items() if number > 0
    ]
    return sorted([*others, *delivered], key=lambda count: (count.day, count.project_id, count.status))


def not_delivered(conn: Connection, organization_id: OrganizationId, since: date) -> list[Count]:
    """The messages with a recipient that they did not reach, or not yet."""
    first = UUID(int=int(datetime.combine(since, time(), tzinfo=UTC).timestamp() * 1000) << 80)
    with conn.cursor(row_factory=class_row(Count)) as cursor:
        return cursor.execute(
            f"""
            WITH unfinished AS ({_UNFINISHED}
                AND organization_id = %(organization_id)s AND message_id >= %(first)s GROUP BY message_id)
            SELECT project_id, day, status, sum(messages)::bigint AS messages FROM (
                SELECT m.project_id, (m.created_at AT TIME ZONE 'UTC')::date AS day, u.status, 1 AS messages
                FROM unfinished u JOIN messages m ON m.id = u.message_id
                WHERE m.organization_id = %(organization_id)s
                UNION ALL
                SELECT project_id, day, status, messages FROM outcomes
                WHERE organization_id = %(organization_id)s AND day >= %(since)s) AS counted
            GROUP BY 1, 2, 3
            """,  # noqa: S608  # our own text
            {"organization_id": organization_id, "first": first, "since": since},
        ).fetchall()


def keep(
    conn: Connection, *, message_ids: Sequence[MessageId] | None = None, project_id: ProjectId | None = None
) -> None:
    """Keep the counts of messages that are about to be deleted: these, or all of a project. What still waits has failed."""
    conn.execute(
        f"""
        WITH going AS (
            SELECT id, organization_id, project_id, (created_at AT TIME ZONE 'UTC')::date AS day
            FROM messages WHERE id = ANY(%(message_ids)s::uuid[]) OR project_id = %(project_id)s::uuid),
        unfinished AS ({_UNFINISHED} AND message_id IN (SELECT id FROM going) GROUP BY message_id)
        INSERT INTO outcomes (organization_id, project_id, day, status, messages)
        SELECT organization_id, project_id, day, CASE WHEN status = 'rejected' THEN status ELSE 'failed' END, count(*)
        FROM going JOIN unfinished ON message_id = id GROUP BY 1, 2, 3, 4 ORDER BY 1, 2, 3, 4
        ON CONFLICT (organization_id, project_id, day, status) DO UPDATE
        SET messages = outcomes.messages + excluded.messages
        """,  # noqa: S608  # our own text
        {"message_ids": list(message_ids) if message_ids is not None else None, "project_id": project_id},
    )
