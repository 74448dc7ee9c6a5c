"""Usage: how much was sent, counted without a row that every message has to update.

Each batch appends to `usage_log` (`messages.insert_many`); `fold` now and then moves what stands there into sums per project and day. The one statement
of `fold` and the one of `used_since` see a moment, so nothing is counted twice or missed between the two tables.
"""

from dataclasses import dataclass
from datetime import date, datetime

from psycopg.rows import class_row

from remails import db
from remails.store.ids import OrganizationId, ProjectId


@dataclass(frozen=True, slots=True)
class Day:
    """What a project used on one day (UTC)."""

    project_id: ProjectId
    day: date
    messages: int
    recipients: int


def fold(conn: db.Connection, limit: int = 10_000) -> int:
    """Move at most so many rows of the log into the sums; returns how many. Safe beside `append` and another `fold`."""
    row = conn.execute(
        """WITH taken AS (
               DELETE FROM usage_log WHERE ctid = ANY(ARRAY(
                   SELECT ctid FROM usage_log LIMIT %s FOR UPDATE SKIP LOCKED))
               RETURNING organization_id, project_id, (at AT TIME ZONE 'UTC')::date AS day, messages, recipients
           ), summed AS (
               INSERT INTO usage (organization_id, project_id, day, messages, recipients)
               SELECT organization_id, project_id, day, sum(messages), sum(recipients)
               FROM taken WHERE EXISTS (SELECT FROM organizations o WHERE o.id = organization_id)
               GROUP BY 1, 2, 3 ORDER BY 1, 2, 3
               ON CONFLICT (organization_id, project_id, day) DO UPDATE
               SET messages = usage.messages + excluded.messages, recipients = usage.recipients + excluded.recipients
           )
           SELECT count(*) FROM taken""",
        [limit],
    ).fetchone()
    return int(row[0]) if row else 0


def used_since(conn: db.Connection, organization_id: OrganizationId, since: datetime) -> int:
    """Messages of an organization since then; the day (UTC) of `since` counts in full."""
    row = conn.execute(
        """SELECT coalesce((SELECT sum(messages) FROM usage
                            WHERE organization_id = %(id)s AND day >= (%(since)s AT TIME ZONE 'UTC')::date), 0)
                + coalesce((SELECT sum(messages) FROM usage_log
                            WHERE organization_id = %(id)s
                              AND (at AT TIME ZONE 'UTC')::date >= (%(since)s AT TIME ZONE 'UTC')::date), 0)""",
        {"id": organization_id, "since": since},
    ).fetchone()
    return int(row[0]) if row else 0


def days(conn: db.Connection, organization_id: OrganizationId, since: date) -> list[Day]:
    """What each project used per day since then, what is not folded yet included."""
    with conn.cursor(row_factory=class_row(Day)) as cur:
        return cur.execute(
            """SELECT project_id, day, sum(messages)::bigint AS messages, sum(recipients)::bigint AS recipients
               FROM (SELECT project_id, day, messages, recipients FROM usage WHERE organization_id = %(id)s
                     UNION ALL
                     SELECT project_id, (at AT TIME ZONE 'UTC')::date, messages, recipients
                     FROM usage_log WHERE organization_id = %(id)s) AS counted
               WHERE day >= %(since)s GROUP BY 1, 2 ORDER BY 2, 1""",
            {"id": organization_id, "since": since},
        ).fetchall()
