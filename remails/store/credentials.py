"""Credentials of programs: SMTP user names, which speak for a project, and API keys, which speak for an organization.

We choose the secret, show it once and keep its keyed digest (`vault.Pepper`). Looking up and comparing are apart, so that
a service can look up many at once, and compares also where nothing was found (constant time is the caller's).
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from psycopg.rows import class_row, kwargs_row

from remails import db, vault
from remails.store import constraints, ids, networks
from remails.store.ids import ApiKeyId, OrganizationId, ProjectId, SmtpCredentialId
from remails.store.organizations import BlockStatus
from remails.store.projects import Project
from remails.store.users import Role

_REFUSALS = {
    "smtp_credentials_username_key": constraints.conflict("This user name is taken.", "username"),
    "smtp_credentials_username_check": constraints.invalid(
        "A user name has 2 to 100 letters, digits, underscores and hyphens.", "username"
    ),
    "api_keys_role_check": constraints.invalid("An API key is read_only or maintainer, never admin.", "role"),
    "api_keys_organization_id_fkey": constraints.invalid("There is no such organization.", "organization_id"),
}


@dataclass(frozen=True, slots=True)
class SmtpCredential:
    """A user name for SMTP AUTH."""

    id: SmtpCredentialId
    project_id: ProjectId
    username: str
    description: str
    created_at: datetime
    updated_at: datetime
    networks: list[str] = field(default_factory=list)
    """From where it may be used; empty: from anywhere."""


@dataclass(frozen=True, slots=True)
class SmtpLogin:
    """What AUTH has to know of a user name."""

    username: str
    digest: bytes = field(repr=False)
    credential_id: SmtpCredentialId
    project_id: ProjectId
    organization_id: OrganizationId
    block_status: BlockStatus
    networks: list[str]


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key for the REST API; its id is the user name of HTTP Basic."""

    id: ApiKeyId
    organization_id: OrganizationId
    description: str
    role: Role
    digest: bytes = field(repr=False)
    created_at: datetime
    updated_at: datetime
    networks: list[str] = field(default_factory=list)
    """From where it may be used; empty: from anywhere."""


_SMTP = """SELECT c.id, c.project_id, c.username, c.description, c.created_at, c.updated_at,
    ARRAY(SELECT n.network::text FROM credential_networks n WHERE n.smtp_credential_id = c.id ORDER BY n.network) AS networks
    FROM smtp_credentials c WHERE c.project_id = %s"""
_KEY = """SELECT k.id, k.organization_id, k.description, k.role, k.digest, k.created_at, k.updated_at,
    ARRAY(SELECT n.network::text FROM credential_networks n WHERE n.api_key_id = k.id ORDER BY n.network) AS networks
    FROM api_keys k WHERE"""


def _api_key(*, role: str, **columns: Any) -> ApiKey:
    return ApiKey(role=Role(role), **columns)


def create_smtp(
    conn: db.Connection,
    pepper: vault.Pepper,
    project: Project,
    username: str,
    description: str,
    allowed: Iterable[str] = (),
) -> tuple[SmtpCredential, str]:
    """Make an SMTP credential; returns it and the password, which is never to be had again.

    It may be used from the networks `allowed`, or from anywhere when there are none.

    The user name stored begins with the first 8 hexadecimal digits of the organization's id and a hyphen.

    Raises:
        Refused: 422 for a bad user name, 409 when it is taken.
    """
    if not re.fullmatch(r"[a-zA-Z0-9_-]{2,100}", username):
        raise _REFUSALS["smtp_credentials_username_check"]
    found = networks.read(allowed)
    cleartext = vault.new_secret(20)
    values = {
        "id": ids.new(),
        "project_id": project.id,
        "username": f"{project.organization_id.hex[:8]}-{username}",
        "description": description.strip(),
        "digest": pepper.digest(cleartext),
    }
    with constraints.explained(conn, _REFUSALS), conn.cursor(row_factory=class_row(SmtpCredential)) as cur:
        made = cur.execute(
            """INSERT INTO smtp_credentials (id, project_id, username, description, digest)
               VALUES (%(id)s, %(project_id)s, %(username)s, %(description)s, %(digest)s)
               RETURNING id, project_id, username, description, created_at, updated_at""",
            values,
        ).fetchall()[0]
    networks.of_smtp_credential(conn, made.id, found)
    return replace(made, networks=found), cleartext


def list_smtp(conn: db.Connection, project_id: ProjectId) -> list[SmtpCredential]:
    """The project's SMTP credentials, by user name."""
    with conn.cursor(row_factory=class_row(SmtpCredential)) as cur:
        return cur.execute(
            _SMTP + " ORDER BY c.username",
            [project_id],
        ).fetchall()


def get_smtp(conn: db.Connection, project_id: ProjectId, credential_id: SmtpCredentialId) -> SmtpCredential | None:
    """The SMTP credential of this id, if it is the project's."""
    with conn.cursor(row_factory=class_row(SmtpCredential)) as cur:
        return cur.execute(
            _SMTP + " AND c.id = %s",
            [project_id, credential_id],
        ).fetchone()


def update_smtp(
    conn: db.Connection,
    project_id: ProjectId,
    credential_id: SmtpCredentialId,
    *,
    description: str | None = None,
    allowed: Iterable[str] | None = None,
) -> SmtpCredential | None:
    """Change what is given; None when the project has no such credential. Raises Refused (422) for a bad network."""
    found = networks.read(allowed) if allowed is not None else None
    with constraints.explained(conn, _REFUSALS), conn.cursor(row_factory=class_row(SmtpCredential)) as cur:
        changed = cur.execute(
            """UPDATE smtp_credentials SET description = coalesce(%s, description), updated_at = now()
               WHERE project_id = %s AND id = %s
               RETURNING id, project_id, username, description, created_at, updated_at""",
            [description.strip() if description is not None else None, project_id, credential_id],
        ).fetchone()
    if changed is not None and found is not None:
        networks.of_smtp_credential(conn, credential_id, found)
    return get_smtp(conn, project_id, credential_id)


def remove_smtp(conn: db.Connection, project_id: ProjectId, credential_id: SmtpCredentialId) -> bool:
    """Delete it; false when the project has no such credential."""
    done = conn.execute("DELETE FROM smtp_credentials WHERE project_id = %s AND id = %s", [project_id, credential_id])
    return done.rowcount == 1


def authenticate_smtp(conn: db.Connection, usernames: Sequence[str]) -> list[SmtpLogin]:
    """What is known of these user names, in no order, the unknown left out. The caller compares the digest."""
    known = [name for name in usernames if name.isascii() and "\0" not in name]
    with conn.cursor(row_factory=class_row(SmtpLogin)) as cur:
        return cur.execute(
            """SELECT c.username, c.digest, c.id AS credential_id, c.project_id, p.organization_id, o.block_status,
                   ARRAY(SELECT n.network::text FROM credential_networks n WHERE n.smtp_credential_id = c.id) AS networks
               FROM smtp_credentials c JOIN projects p ON p.id = c.project_id
               JOIN organizations o ON o.id = p.organization_id
               WHERE c.username = ANY(%s)""",
            [known],
        ).fetchall()


def create_key(
    conn: db.Connection,
    pepper: vault.Pepper,
    organization_id: OrganizationId,
    description: str,
    role: Role,
    allowed: Iterable[str] = (),
) -> tuple[ApiKey, str]:
    """Make an API key; returns it and its secret, which is never to be had again. Raises Refused (422) for `admin`.

    It may be used from the networks `allowed`, or from anywhere when there are none.
    """
    found = networks.read(allowed)
    cleartext = vault.new_secret(32)
    with constraints.explained(conn, _REFUSALS), conn.cursor(row_factory=kwargs_row(_api_key)) as cur:
        made = cur.execute(
            """INSERT INTO api_keys (id, organization_id, description, role, digest) VALUES (%s, %s, %s, %s, %s)
               RETURNING id, organization_id, description, role, digest, created_at, updated_at""",
            [ids.new(), organization_id, description.strip(), role, pepper.digest(cleartext)],
        ).fetchall()[0]
    networks.of_api_key(conn, made.id, found)
    return replace(made, networks=found), cleartext


def list_keys(conn: db.Connection, organization_id: OrganizationId) -> list[ApiKey]:
    """The organization's API keys, oldest first."""
    with conn.cursor(row_factory=kwargs_row(_api_key)) as cur:
        return cur.execute(_KEY + " k.organization_id = %s ORDER BY k.id", [organization_id]).fetchall()


def get_key(conn: db.Connection, organization_id: OrganizationId, key_id: ApiKeyId) -> ApiKey | None:
    """The API key of this id, if it is the organization's."""
    with conn.cursor(row_factory=kwargs_row(_api_key)) as cur:
        return cur.execute(_KEY + " k.organization_id = %s AND k.id = %s", [organization_id, key_id]).fetchone()


def find_key(conn: db.Connection, key_id: ApiKeyId) -> ApiKey | None:
    """The API key of this id, whosesoever; for authentication only. The caller compares the digest."""
    with conn.cursor(row_factory=kwargs_row(_api_key)) as cur:
        return cur.execute(_KEY + " k.id = %s", [key_id]).fetchone()


def update_key(
    conn: db.Connection,
    organization_id: OrganizationId,
    key_id: ApiKeyId,
    *,
    description: str | None = None,
    role: Role | None = None,
    allowed: Iterable[str] | None = None,
) -> ApiKey | None:
    """Change what is given; None when the organization has no such key. Raises Refused (422) for `admin` or a bad network."""
    found = networks.read(allowed) if allowed is not None else None
    values = {"organization_id": organization_id, "id": key_id, "description": description, "role": role}
    with constraints.explained(conn, _REFUSALS):
        changed = conn.execute(
            """UPDATE api_keys SET description = coalesce(%(description)s, description),
                   role = coalesce(%(role)s::role, role), updated_at = now()
               WHERE organization_id = %(organization_id)s AND id = %(id)s""",
            values,
        ).rowcount
    if changed and found is not None:
        networks.of_api_key(conn, key_id, found)
    return get_key(conn, organization_id, key_id)


def remove_key(conn: db.Connection, organization_id: OrganizationId, key_id: ApiKeyId) -> bool:
    """Delete it; false when the organization has no such key."""
    done = conn.execute("DELETE FROM api_keys WHERE organization_id = %s AND id = %s", [organization_id, key_id])
    return done.rowcount == 1
