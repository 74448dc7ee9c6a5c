"""Statistics: how many messages of each status a project had on each day.

What did not arrive is rare and has an index of its own, so only that is counted; what was taken at all stands in `usage`, and
the rest was delivered.
"""

from collections import Counter
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from uuid import UUID

from psycopg.rows import class_row

from remails.db import Connection
from remails.store import usage
from remails.store.ids import OrganizationId, ProjectId


@dataclass(frozen=True, slots=True)
class Count:
    """So many messages of a project have this status, of those taken on one day (UTC)."""

    project_id: ProjectId
    day: date
    status: str
    messages: int


def by_day(conn: Connection, organization_id: OrganizationId, since: date) -> list[Count]:
    """The messages of each day from `since` on, by status. Those that are forgotten by now count as delivered."""
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
            """
            WITH unfinished AS (
                SELECT message_id,
                    CASE WHEN bool_or(status = 'reattempt') THEN 'reattempt'
                        WHEN bool_or(status = 'accepted') THEN 'accepted'
                        WHEN bool_or(status = 'held') THEN 'held'
                        WHEN bool_and(status = 'suppressed') THEN 'suppressed'
                        ELSE 'failed' END AS status
                FROM deliveries
                WHERE organization_id = %(organization_id)s AND message_id >= %(first)s
                    AND status IN ('accepted', 'reattempt', 'held', 'failed', 'suppressed')
                GROUP BY message_id)
            SELECT m.project_id, (m.created_at AT TIME ZONE 'UTC')::date AS day,
                CASE WHEN u.status <> 'suppressed' THEN u.status
                    WHEN EXISTS (SELECT FROM deliveries d WHERE d.message_id = m.id AND d.status = 'delivered')
                        THEN 'failed'
                    ELSE 'rejected' END AS status,
                count(*) AS messages
            FROM unfinished u JOIN messages m ON m.id = u.message_id
            WHERE m.organization_id = %(organization_id)s
            GROUP BY 1, 2, 3
            """,
            {"organization_id": organization_id, "first": first},
        ).fetchall()
