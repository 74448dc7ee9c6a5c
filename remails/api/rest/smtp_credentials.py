"""SMTP credentials."""

from datetime import datetime
from typing import Annotated

from msgspec import Meta, Struct, convert
from werkzeug.exceptions import NotFound

from remails.api import auth, changes
from remails.api.operations import Noun
from remails.api.rest import projects
from remails.api.state import state
from remails.store import credentials, networks
from remails.store.ids import ProjectId, SmtpCredentialId
from remails.store.users import Role

noun = Noun("SMTP credentials", "User names and passwords with which programs hand in mail for a project by SMTP.")

PATH = "/organizations/{organization_id}/projects/{project_id}/smtp_credentials"

Description = Annotated[str, Meta(max_length=500)]
Networks = Annotated[
    list[Annotated[str, Meta(max_length=50)]],
    Meta(
        max_length=networks.MOST,
        description="From where it may be used, as in `198.51.100.0/24` or `2001:db8::1`; empty: from anywhere.",
    ),
]


class SmtpCredential(Struct, kw_only=True):
    """An SMTP credential, without its password."""

    id: SmtpCredentialId
    description: str
    username: str
    project_id: ProjectId
    created_at: datetime
    updated_at: datetime
    networks: Networks


class SmtpCredentialWithPassword(SmtpCredential, kw_only=True):
    """A new SMTP credential; the password is never shown again."""

    cleartext_password: str


class NewSmtpCredential(Struct, kw_only=True, forbid_unknown_fields=True):
    """An SMTP credential to be made."""

    username: Annotated[
        str,
        Meta(
            pattern="^[a-zA-Z0-9_-]{2,100}$",
            description="The user name becomes this with the first 8 digits of the organization's id and `-` before it.",
        ),
    ]
    description: Description = ""
    networks: Networks = []


class SmtpCredentialChange(Struct, kw_only=True, forbid_unknown_fields=True):
    """What to change; what is left out stays."""

    description: Description | None = None
    networks: Networks | None = None


@noun.operation("GET", PATH, auth.member(Role.read_only))
def list_(project_id: ProjectId) -> list[SmtpCredential]:
    """List the SMTP credentials of a project."""
    with state().db.transaction() as conn:
        projects.find(conn, project_id)
        return [_shown(row) for row in credentials.list_smtp(conn, project_id)]


@noun.operation("POST", PATH, auth.member(Role.maintainer), status=201, errors=[409])
def create(project_id: ProjectId, *, body: NewSmtpCredential) -> SmtpCredentialWithPassword:
    """Make an SMTP credential. Its password is in the answer, and never to be had again."""
    with state().db.transaction() as conn:
        project = projects.find(conn, project_id)
        made, password = credentials.create_smtp(
            conn, state().pepper, project, body.username, body.description, body.networks
        )
        changes.record(conn, "created", "smtp_credential", made.id, body)
    return SmtpCredentialWithPassword(
        id=made.id,
        description=made.description,
        username=made.username,
        project_id=made.project_id,
        created_at=made.created_at,
        updated_at=made.updated_at,
        networks=made.networks,
        cleartext_password=password,
    )


@noun.operation("PUT", PATH + "/{smtp_credential_id}", auth.member(Role.maintainer))
def update(
    project_id: ProjectId,
    smtp_credential_id: SmtpCredentialId,
    *,
    body: SmtpCredentialChange,
) -> SmtpCredential:
    """Change an SMTP credential. Who is logged in with it stays so."""
    with state().db.transaction() as conn:
        projects.find(conn, project_id)
        changed = credentials.update_smtp(
            conn, project_id, smtp_credential_id, description=body.description, allowed=body.networks
        )
        if changed is None:
            raise NotFound("The project has no such SMTP credential.")
        changes.record(conn, "updated", "smtp_credential", smtp_credential_id, body)
    return _shown(changed)


@noun.operation("DELETE", PATH + "/{smtp_credential_id}", auth.member(Role.maintainer))
def remove(
    project_id: ProjectId,
    smtp_credential_id: SmtpCredentialId,
) -> SmtpCredentialId:
    """Delete an SMTP credential: nobody can log in with it any more."""
    with state().db.transaction() as conn:
        projects.find(conn, project_id)
        found = credentials.get_smtp(conn, project_id, smtp_credential_id)
        if found is None:
            raise NotFound("The project has no such SMTP credential.")
        credentials.remove_smtp(conn, project_id, smtp_credential_id)
        changes.record(conn, "deleted", "smtp_credential", smtp_credential_id, {"username": found.username})
    return smtp_credential_id


def _shown(row: credentials.SmtpCredential) -> SmtpCredential:
    return convert(row, SmtpCredential, from_attributes=True)
