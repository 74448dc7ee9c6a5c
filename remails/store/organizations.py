"""Organizations: the tenants. Everything else belongs to one, and goes when it goes.

A quota is counted per month: the month ends at `quota_reset` and began at `quota_since`; what was used in it is asked of
`store.usage`, never kept in this row. `block_status` climbs: mail is taken but not sent, no mail is taken either,
nothing may be changed at all.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Literal
from uuid import uuid4

from psycopg.rows import class_row

from remails import db
from remails.store import constraints
from remails.store.ids import OrganizationId, PoolId, UserId

BlockStatus = Literal["not_blocked", "no_sending", "no_sending_or_receiving", "full_freeze"]

_REFUSALS = {
    "organizations_name_check": constraints.invalid("A name has 1 to 100 characters.", "name"),
    "organizations_message_quota_check": constraints.invalid("A quota is not negative.", "message_quota"),
}


# By name, so that a column more does not disturb a version that does not know it.
_COLUMNS = """o.id, o.name, o.plan, o.message_quota, o.quota_reset, o.quota_reset - interval '1 month' AS quota_since,
    o.block_status, o.pool_id, o.created_at, o.updated_at"""


@dataclass(frozen=True, slots=True)
class Organization:
    """One organization. `message_quota` is messages per month, None without limit."""

    id: OrganizationId
    name: str
    plan: str
    message_quota: int | None
    quota_reset: datetime
    quota_since: datetime
    block_status: BlockStatus
    pool_id: PoolId | None
    created_at: datetime
    updated_at: datetime


def create(
    conn: db.Connection, name: str, *, plan: str = "unlimited", message_quota: int | None = None
) -> Organization:
    """Make an organization. Raises Refused (422) for a bad name."""
    with constraints.explained(conn, _REFUSALS), conn.cursor(row_factory=class_row(Organization)) as cur:
        # Random and not ordered by time: its first digits stand in front of every SMTP user name of the organization.
        values = {"id": uuid4(), "name": name.strip(), "plan": plan, "message_quota": message_quota}
        return cur.execute(
            """INSERT INTO organizations AS o (id, name, plan, message_quota)
               VALUES (%(id)s, %(name)s, %(plan)s, %(message_quota)s) RETURNING """
            + _COLUMNS,
            values,
        ).fetchall()[0]


def get(conn: db.Connection, organization_id: OrganizationId) -> Organization | None:
    """The organization of this id."""
    with conn.cursor(row_factory=class_row(Organization)) as cur:
        return cur.execute(
            "SELECT " + _COLUMNS + " FROM organizations o WHERE o.id = %s",
            [organization_id],
        ).fetchone()


def by_name(conn: db.Connection, name: str) -> list[Organization]:
    """Those of this name, oldest first: names are not unique."""
    with conn.cursor(row_factory=class_row(Organization)) as cur:
        return cur.execute(
            "SELECT " + _COLUMNS + " FROM organizations o WHERE o.name = %s ORDER BY o.created_at, o.id",
            [name],
        ).fetchall()


def list_for_user(conn: db.Connection, user_id: UserId) -> list[Organization]:
    """Those the user is a member of, by name."""
    with conn.cursor(row_factory=class_row(Organization)) as cur:
        return cur.execute(
            "SELECT "
            + _COLUMNS
            + """ FROM organizations o
               JOIN memberships m ON m.organization_id = o.id WHERE m.user_id = %s ORDER BY o.name, o.id""",
            [user_id],
        ).fetchall()


def list_all(conn: db.Connection) -> list[Organization]:
    """Every organization, by name."""
    with conn.cursor(row_factory=class_row(Organization)) as cur:
        return cur.execute("SELECT " + _COLUMNS + " FROM organizations o ORDER BY o.name, o.id").fetchall()


def rename(conn: db.Connection, organization_id: OrganizationId, name: str) -> bool:
    """Give it another name; false when there is no such organization. Raises Refused (422) for a bad name."""
    with constraints.explained(conn, _REFUSALS):
        done = conn.execute(
            "UPDATE organizations SET name = %s, updated_at = now() WHERE id = %s", [name.strip(), organization_id]
        )
        return done.rowcount == 1


def set_block_status(conn: db.Connection, organization_id: OrganizationId, status: BlockStatus) -> bool:
    """Block or unblock; false when there is no such organization."""
    done = conn.execute(
        "UPDATE organizations SET block_status = %s, updated_at = now() WHERE id = %s", [status, organization_id]
    )
    return done.rowcount == 1


def set_quota(conn: db.Connection, organization_id: OrganizationId, message_quota: int | None) -> bool:
    """Set messages per month, None for no limit; false when there is no such organization."""
    with constraints.explained(conn, _REFUSALS):
        done = conn.execute(
            "UPDATE organizations SET message_quota = %s, updated_at = now() WHERE id = %s",
            [message_quota, organization_id],
        )
        return done.rowcount == 1


def renew_quotas(conn: db.Connection) -> int:
    """Move each `quota_reset` that lies in the past on by whole months until it lies ahead; returns how many."""
    done = conn.execute(
        """UPDATE organizations SET quota_reset = quota_reset + interval '1 month' * (
               1 + 12 * extract(year FROM age(now(), quota_reset)) + extract(month FROM age(now(), quota_reset)))
           WHERE quota_reset <= now()"""
    )
    return done.rowcount


def remove(conn: db.Connection, organization_id: OrganizationId) -> bool:
    """Delete it with all that belongs to it, its mail included; false when there is no such organization."""
    return conn.execute("DELETE FROM organizations WHERE id = %s", [organization_id]).rowcount == 1
