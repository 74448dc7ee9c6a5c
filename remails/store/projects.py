"""Projects: what an organization sends with. Credentials and messages belong to one, domains may serve several."""

from dataclasses import dataclass
from datetime import datetime

from psycopg.rows import class_row

from remails import db
from remails.store import constraints, ids, statistics
from remails.store.ids import OrganizationId, PoolId, ProjectId

_REFUSALS = {
    "projects_organization_id_name_key": constraints.conflict(
        "The organization has a project of this name already.", "name"
    ),
    "projects_name_check": constraints.invalid("A name has 1 to 100 characters.", "name"),
    "projects_retention_period_days_check": constraints.invalid(
        "Messages are kept for 1 to 365 days.", "retention_period_days"
    ),
    "projects_expires_in_check": constraints.invalid(
        "Emails are tried for a positive number of seconds.", "expires_in"
    ),
    "projects_organization_id_fkey": constraints.invalid("There is no such organization.", "organization_id"),
}


# By name, so that a column more does not disturb a version that does not know it.
_COLUMNS = (
    "id, organization_id, name, retention_period_days, plaintext_fallback, expires_in, pool_id, created_at, updated_at"
)


@dataclass(frozen=True, slots=True)
class Project:
    """One project.

    `plaintext_fallback`: whether its mail may go to a server that has no TLS; `expires_in`: seconds for which its mail is tried, if
    less than for any, 0 for no limit of its own.
    """

    id: ProjectId
    organization_id: OrganizationId
    name: str
    retention_period_days: int
    plaintext_fallback: bool
    expires_in: int
    pool_id: PoolId | None
    created_at: datetime
    updated_at: datetime


def create(
    conn: db.Connection,
    organization_id: OrganizationId,
    name: str,
    *,
    retention_period_days: int = 7,
    plaintext_fallback: bool = True,
    expires_in: int = 0,
) -> Project:
    """Make a project. Raises Refused: 409 when the name is taken, 422 for a bad name or period."""
    with constraints.explained(conn, _REFUSALS), conn.cursor(row_factory=class_row(Project)) as cur:
        return cur.execute(
            """INSERT INTO projects (id, organization_id, name, retention_period_days, plaintext_fallback, expires_in)
               VALUES (%s, %s, %s, %s, %s, %s) RETURNING """
            + _COLUMNS,
            [ids.new(), organization_id, name.strip(), retention_period_days, plaintext_fallback, expires_in],
        ).fetchall()[0]


def get(conn: db.Connection, organization_id: OrganizationId, project_id: ProjectId) -> Project | None:
    """The project of this id, if it is the organization's."""
    with conn.cursor(row_factory=class_row(Project)) as cur:
        return cur.execute(
            "SELECT " + _COLUMNS + " FROM projects WHERE organization_id = %s AND id = %s",
            [organization_id, project_id],
        ).fetchone()


def by_name(conn: db.Connection, organization_id: OrganizationId, name: str) -> Project | None:
    """The organization's project of this name."""
    with conn.cursor(row_factory=class_row(Project)) as cur:
        return cur.execute(
            "SELECT " + _COLUMNS + " FROM projects WHERE organization_id = %s AND name = %s", [organization_id, name]
        ).fetchone()


def list_(conn: db.Connection, organization_id: OrganizationId) -> list[Project]:
    """The organization's projects, by name."""
    with conn.cursor(row_factory=class_row(Project)) as cur:
        return cur.execute(
            "SELECT " + _COLUMNS + " FROM projects WHERE organization_id = %s ORDER BY name", [organization_id]
        ).fetchall()


def update(
    conn: db.Connection,
    organization_id: OrganizationId,
    project_id: ProjectId,
    *,
    name: str | None = None,
    retention_period_days: int | None = None,
    plaintext_fallback: bool | None = None,
    expires_in: int | None = None,
) -> Project | None:
    """Change what is given; None when the organization has no such project. Raises Refused as `create` does."""
    values = {
        "organization_id": organization_id,
        "id": project_id,
        "name": name if name is None else name.strip(),
        "days": retention_period_days,
        "fallback": plaintext_fallback,
        "expires_in": expires_in,
    }
    with constraints.explained(conn, _REFUSALS), conn.cursor(row_factory=class_row(Project)) as cur:
        return cur.execute(
            """UPDATE projects SET name = coalesce(%(name)s, name),
                   retention_period_days = coalesce(%(days)s, retention_period_days),
                   plaintext_fallback = coalesce(%(fallback)s, plaintext_fallback),
                   expires_in = coalesce(%(expires_in)s, expires_in), updated_at = now()
               WHERE organization_id = %(organization_id)s AND id = %(id)s RETURNING """
            + _COLUMNS,
            values,
        ).fetchone()


def remove(conn: db.Connection, organization_id: OrganizationId, project_id: ProjectId) -> bool:
    """Delete the project with its credentials and mail; false when the organization has no such project."""
    known = conn.execute(
        "SELECT FROM projects WHERE organization_id = %s AND id = %s FOR UPDATE", [organization_id, project_id]
    )
    if known.rowcount == 0:
        return False
    statistics.keep(conn, project_id=project_id)
    done = conn.execute("DELETE FROM projects WHERE organization_id = %s AND id = %s", [organization_id, project_id])
    return done.rowcount == 1
