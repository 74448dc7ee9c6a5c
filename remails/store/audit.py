"""The audit log: who changed what. Written in the transaction of the change, so that neither is without the other."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from psycopg.rows import class_row
from psycopg.types.json import Jsonb

from remails import db
from remails.store.ids import OrganizationId

ActorType = Literal["user", "api_key", "operator", "system"]


@dataclass(frozen=True, slots=True)
class Actor:
    """Who acts: a user, an API key, an operator at the command line, or the system itself."""

    type: ActorType
    id: UUID | None = None
    name: str = ""


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the log; `organization_id` is None for what concerns the installation."""

    id: int
    at: datetime
    organization_id: OrganizationId | None
    actor_type: ActorType
    actor_id: UUID | None
    actor_name: str
    action: str
    target_type: str
    target_id: str
    details: dict[str, Any]


def record(
    conn: db.Connection,
    actor: Actor,
    organization_id: OrganizationId | None,
    action: str,
    target_type: str,
    target_id: object,
    details: Mapping[str, Any] | None = None,
) -> None:
    """Add a line. `action` is a verb such as `created`; `details` hold what JSON can, and never a secret."""
    conn.execute(
        """INSERT INTO audit_log
               (organization_id, actor_type, actor_id, actor_name, action, target_type, target_id, details)
           VALUES (%s, %s, %s, %s, %s, %s, %s, %s)""",
        [organization_id, actor.type, actor.id, actor.name, action, target_type, str(target_id), Jsonb(details or {})],
    )


def list_(
    conn: db.Connection, organization_id: OrganizationId | None, before: int | None = None, limit: int = 100
) -> list[Entry]:
    """The newest lines of an organization (None: of the installation) with an id below `before`, newest first."""
    with conn.cursor(row_factory=class_row(Entry)) as cur:
        return cur.execute(
            """SELECT id, at, organization_id, actor_type, actor_id, actor_name, action, target_type, target_id, details
               FROM audit_log
               WHERE (organization_id = %(organization)s OR %(organization)s::uuid IS NULL AND organization_id IS NULL)
                 AND (%(before)s::bigint IS NULL OR id < %(before)s)
               ORDER BY id DESC LIMIT %(limit)s""",
            {"organization": organization_id, "before": before, "limit": limit},
        ).fetchall()
