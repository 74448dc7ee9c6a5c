"""API keys."""

from datetime import datetime
from typing import Annotated

from msgspec import Meta, Struct
from werkzeug.exceptions import NotFound

from remails.api import auth, changes
from remails.api.operations import Noun
from remails.api.rest.smtp_credentials import Networks
from remails.api.state import state
from remails.store import credentials
from remails.store.ids import ApiKeyId, OrganizationId
from remails.store.users import Role

noun = Noun("API keys", "Keys with which programs use this API, by HTTP Basic: the id is the user name.")

PATH = "/organizations/{organization_id}/api_keys"

Description = Annotated[str, Meta(max_length=500)]
KeyRole = Annotated[Role, Meta(description="`read_only` or `maintainer`; a key is never an admin.")]


class ApiKey(Struct, kw_only=True):
    """An API key, without its secret."""

    id: ApiKeyId
    organization_id: OrganizationId
    description: str
    role: KeyRole
    created_at: datetime
    updated_at: datetime
    networks: Networks


class ApiKeyWithPassword(ApiKey, kw_only=True):
    """A new API key; the password is never shown again."""

    password: str


class NewApiKey(Struct, kw_only=True, forbid_unknown_fields=True):
    """An API key to be made."""

    description: Description = ""
    role: KeyRole
    networks: Networks = []


class ApiKeyChange(Struct, kw_only=True, forbid_unknown_fields=True):
    """What to change; what is left out stays."""

    description: Description | None = None
    role: KeyRole | None = None
    networks: Networks | None = None


@noun.operation("GET", PATH, auth.member(Role.maintainer, keys=False))
def list_() -> list[ApiKey]:
    """List the API keys."""
    with state().db.transaction() as conn:
        return [_shown(row) for row in credentials.list_keys(conn, auth.organization().id)]


@noun.operation("POST", PATH, auth.member(Role.maintainer, keys=False), status=201)
def create(*, body: NewApiKey) -> ApiKeyWithPassword:
    """Make an API key. Its password is in the answer, and never to be had again."""
    with state().db.transaction() as conn:
        made, password = credentials.create_key(
            conn, state().pepper, auth.organization().id, body.description, body.role, body.networks
        )
        changes.record(conn, "created", "api_key", made.id, body)
    return ApiKeyWithPassword(
        id=made.id,
        organization_id=made.organization_id,
        description=made.description,
        role=made.role,
        created_at=made.created_at,
        updated_at=made.updated_at,
        networks=made.networks,
        password=password,
    )


@noun.operation("PUT", PATH + "/{api_key_id}", auth.member(Role.maintainer, keys=False))
def update(api_key_id: ApiKeyId, *, body: ApiKeyChange) -> ApiKey:
    """Change an API key."""
    with state().db.transaction() as conn:
        changed = credentials.update_key(
            conn,
            auth.organization().id,
            api_key_id,
            description=body.description,
            role=body.role,
            allowed=body.networks,
        )
        if changed is None:
            raise NotFound("The organization has no such API key.")
        changes.record(conn, "updated", "api_key", api_key_id, body)
    return _shown(changed)


@noun.operation("DELETE", PATH + "/{api_key_id}", auth.member(Role.maintainer, keys=False))
def remove(api_key_id: ApiKeyId) -> ApiKeyId:
    """Delete an API key: it stops working at once."""
    with state().db.transaction() as conn:
        found = credentials.get_key(conn, auth.organization().id, api_key_id)
        if found is None:
            raise NotFound("The organization has no such API key.")
        credentials.remove_key(conn, auth.organization().id, api_key_id)
        changes.record(conn, "deleted", "api_key", api_key_id, {"description": found.description})
    return api_key_id


def _shown(row: credentials.ApiKey) -> ApiKey:
    return ApiKey(
        id=row.id,
        organization_id=row.organization_id,
        description=row.description,
        role=row.role,
        created_at=row.created_at,
        updated_at=row.updated_at,
        networks=row.networks,
    )
