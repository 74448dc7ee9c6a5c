"""Projects."""

from datetime import datetime
from typing import Annotated

from msgspec import Meta, Struct, convert
from werkzeug.exceptions import NotFound

from remails.api import auth, changes, removal
from remails.api.operations import Noun
from remails.api.state import state
from remails.db import Connection
from remails.store import projects
from remails.store.ids import OrganizationId, ProjectId
from remails.store.users import Role

noun = Noun("Projects", "What an organization sends with: credentials and emails belong to a project.")

Name = Annotated[str, Meta(min_length=1, max_length=100)]
Days = Annotated[int, Meta(ge=1, le=365, description="Days after which the content of an email is deleted.")]
PlaintextFallback = Annotated[bool, Meta(description="Whether emails may go to servers that offer no TLS.")]

ExpiresIn = Annotated[
    int,
    Meta(
        ge=0,
        le=2_000_000_000,
        description="Seconds for which an email is tried, if less than for any; 0: no own limit.",
    ),
]


class Project(Struct, kw_only=True):
    """A project."""

    id: ProjectId
    organization_id: OrganizationId
    name: str
    retention_period_days: Days
    plaintext_fallback: PlaintextFallback
    expires_in: ExpiresIn
    created_at: datetime
    updated_at: datetime


class NewProject(Struct, kw_only=True, forbid_unknown_fields=True):
    """A project to be made."""

    name: Name
    retention_period_days: Days = 7
    plaintext_fallback: PlaintextFallback = True
    expires_in: ExpiresIn = 0


class ProjectChange(Struct, kw_only=True, forbid_unknown_fields=True):
    """What to change; what is left out stays."""

    name: Name | None = None
    retention_period_days: Days | None = None
    plaintext_fallback: PlaintextFallback | None = None
    expires_in: ExpiresIn | None = None


def find(conn: Connection, project_id: ProjectId) -> projects.Project:
    """The project of the organization that the path names; raises NotFound."""
    found = projects.get(conn, auth.organization().id, project_id)
    if found is None:
        raise NotFound("The organization has no such project.")
    return found


@noun.operation("GET", "/organizations/{organization_id}/projects", auth.member(Role.read_only))
def list_() -> list[Project]:
    """List the projects."""
    with state().db.transaction() as conn:
        return [_shown(row) for row in projects.list_(conn, auth.organization().id)]


@noun.operation(
    "POST", "/organizations/{organization_id}/projects", auth.member(Role.maintainer), status=201, errors=[409]
)
def create(*, body: NewProject) -> Project:
    """Make a project."""
    with state().db.transaction() as conn:
        made = projects.create(
            conn,
            auth.organization().id,
            body.name,
            retention_period_days=body.retention_period_days,
            plaintext_fallback=body.plaintext_fallback,
            expires_in=body.expires_in,
        )
        changes.record(conn, "created", "project", made.id, body)
    return _shown(made)


@noun.operation("GET", "/organizations/{organization_id}/projects/{project_id}", auth.member(Role.read_only))
def get(project_id: ProjectId) -> Project:
    """Show a project."""
    with state().db.transaction() as conn:
        return _shown(find(conn, project_id))


@noun.operation(
    "PUT", "/organizations/{organization_id}/projects/{project_id}", auth.member(Role.maintainer), errors=[409]
)
def update(project_id: ProjectId, *, body: ProjectChange) -> Project:
    """Change a project."""
    with state().db.transaction() as conn:
        changed = projects.update(
            conn,
            auth.organization().id,
            project_id,
            name=body.name,
            retention_period_days=body.retention_period_days,
            plaintext_fallback=body.plaintext_fallback,
            expires_in=body.expires_in,
        )
        if changed is None:
            raise NotFound("The organization has no such project.")
        changes.record(conn, "updated", "project", project_id, body)
    return _shown(changed)


@noun.operation("DELETE", "/organizations/{organization_id}/projects/{project_id}", auth.member(Role.maintainer))
def remove(project_id: ProjectId) -> ProjectId:
    """Delete a project with its credentials and emails."""
    state().db.run(find, project_id)
    removal.remove_mail(auth.organization().id, project_id)
    with state().db.transaction() as conn:
        found = find(conn, project_id)
        projects.remove(conn, auth.organization().id, project_id)
        changes.record(conn, "deleted", "project", project_id, {"name": found.name})
    return project_id


def _shown(row: projects.Project) -> Project:
    return convert(row, Project, from_attributes=True)
