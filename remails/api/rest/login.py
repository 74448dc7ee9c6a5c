"""Logging in and out, and who one is."""

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Annotated
from uuid import UUID

from msgspec import Meta, Struct
from werkzeug.wrappers import Response

from remails.api import auth
from remails.api.operations import Noun, add_header
from remails.api.state import state
from remails.store import organizations, users
from remails.store.ids import OrganizationId
from remails.store.organizations import BlockStatus
from remails.store.users import Role, User

noun = Noun("Session", "People log in with a password and get a cookie; programs use an API key.")


class Login(Struct, kw_only=True, forbid_unknown_fields=True):
    """Who logs in."""

    email: Annotated[str, Meta(max_length=320)]
    password: Annotated[str, Meta(max_length=256)]


class OrganizationRole(Struct, kw_only=True):
    """A role in an organization."""

    role: Role
    org_id: OrganizationId
    org_block_status: BlockStatus


class Whoami(Struct, kw_only=True, omit_defaults=True):
    """Who is asking. Of a user all members but `error` are there, of nobody only `error`."""

    kind: Annotated[str | None, Meta(description="`user` or `api_key`.")] = None
    id: UUID | None = None
    name: str | None = None
    email: str | None = None
    global_role: Annotated[str | None, Meta(description="`admin` for an admin of the installation.")] = None
    org_roles: list[OrganizationRole] | None = None
    password_enabled: bool | None = None
    blocked: bool | None = None
    created_at: datetime | None = None
    updated_at: datetime | None = None
    login_status: str | None = None
    csrf_token: Annotated[
        str | None,
        Meta(description="To be sent as `X-CSRF-Token` with whatever a session changes; API keys need none."),
    ] = None
    error: str | None = None


@noun.operation("POST", "/login/password", auth.public, errors=[429])
def log_in(*, body: Login) -> Whoami:
    """Log in. A wrong password and an unknown address are both 404; too many failures from a network are 429."""
    user = auth.check_password(body.email, body.password)
    carrier = Response()
    token = auth.login(carrier, user)
    add_header("Set-Cookie", carrier.headers["Set-Cookie"])
    return _user(user, token)


@noun.operation("POST", "/logout", auth.session)
def log_out() -> None:
    """Log out: the session ends."""
    carrier = Response()
    auth.logout(carrier)
    add_header("Set-Cookie", carrier.headers["Set-Cookie"])


@noun.operation("GET", "/whoami", auth.public)
def whoami() -> Whoami:
    """Say who is asking; 200 for everybody."""
    actor = auth.current()
    if actor is None:
        return Whoami(error="Not logged in.")
    if actor.user is not None:
        return _user(actor.user, auth.csrf_token())
    with state().db.transaction() as conn:
        found = [row for id_ in actor.roles if (row := organizations.get(conn, id_))]
    return Whoami(kind=actor.kind, id=actor.id, name=actor.name, org_roles=_roles(found, actor.roles))


def _user(user: User, token: str) -> Whoami:
    with state().db.transaction() as conn:
        roles = {membership.organization_id: membership.role for membership in users.memberships_of(conn, user.id)}
        found = organizations.list_for_user(conn, user.id)
    return Whoami(
        kind="user",
        id=user.id,
        name=user.name,
        email=user.email,
        global_role="admin" if user.is_admin else None,
        org_roles=_roles(found, roles),
        password_enabled=user.password_hash is not None,
        blocked=user.is_blocked,
        created_at=user.created_at,
        updated_at=user.updated_at,
        login_status="logged_in",
        csrf_token=token,
    )


def _roles(found: Iterable[organizations.Organization], roles: Mapping[OrganizationId, Role]) -> list[OrganizationRole]:
    return [
        OrganizationRole(role=roles[row.id], org_id=row.id, org_block_status=row.block_status)
        for row in found
        if row.id in roles
    ]
