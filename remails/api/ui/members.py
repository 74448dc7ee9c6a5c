"""The people of an organization and what they may do."""

import flask
from flask import request
from werkzeug.wrappers import Response

from remails.api import auth, changes
from remails.api.state import state
from remails.api.ui import answers
from remails.errors import Refused
from remails.store import constraints, users
from remails.store.ids import OrganizationId, UserId
from remails.store.users import Role

blueprint = flask.Blueprint("members", __name__, url_prefix="/<uuid:organization_id>/members")


@blueprint.get("")
@auth.needs(auth.member(Role.read_only, keys=False))
def list_GET(organization_id: OrganizationId) -> Response:
    """The members."""
    return _list(organization_id)


@blueprint.post("")
@auth.needs(auth.member(Role.admin, keys=False))
def add_POST(organization_id: OrganizationId) -> Response:
    """Take in somebody who has a user here."""
    try:
        role = _role()
        with state().db.transaction() as conn:
            user = users.by_email(conn, request.form.get("email", "").replace("\0", ""))
            if user is None:
                raise constraints.invalid("There is no user with this email address; the operator makes one.", "email")
            users.add_member(conn, user.id, organization_id, role)
            changes.record(conn, "created", "member", user.id, {"email": user.email, "role": role})
    except Refused as refusal:
        return _list(organization_id, refusal)
    return answers.go(".list_GET", "added", organization_id=organization_id)


@blueprint.post("/<uuid:user_id>")
@auth.needs(auth.member(Role.admin, keys=False))
def role_POST(organization_id: OrganizationId, user_id: UserId) -> Response:
    """Give a member another role."""
    try:
        role = _role()
        with state().db.transaction() as conn:
            answers.found(users.set_role(conn, user_id, organization_id, role) or None)
            changes.record(conn, "updated", "member", user_id, {"role": role})
    except Refused as refusal:
        return _list(organization_id, refusal)
    return answers.go(".list_GET", "saved", organization_id=organization_id)


@blueprint.post("/<uuid:user_id>/remove")
@auth.needs(auth.member(Role.admin, keys=False))
def remove_POST(organization_id: OrganizationId, user_id: UserId) -> Response:
    """End somebody's membership."""
    return _end(organization_id, user_id, "removed")


@blueprint.post("/leave")
@auth.needs(auth.member(Role.read_only, keys=False))
def leave_POST(organization_id: OrganizationId) -> Response:
    """End one's own membership."""
    return _end(organization_id, UserId(auth.actor().id), "left")


def _end(organization_id: OrganizationId, user_id: UserId, done: str) -> Response:
    try:
        with state().db.transaction() as conn:
            answers.found(users.remove_member(conn, user_id, organization_id) or None)
            changes.record(conn, "removed", "member", user_id)
    except Refused as refusal:
        return _list(organization_id, refusal)
    if done == "left":
        return answers.go("ui.organizations.home_GET", done)
    return answers.go(".list_GET", done, organization_id=organization_id)


def _role() -> Role:
    try:
        return Role(request.form.get("role", ""))
    except ValueError:
        raise constraints.invalid("Choose a role.", "role") from None


def _list(organization_id: OrganizationId, refusal: Refused | None = None) -> Response:
    members = state().db.run(users.members, organization_id)
    given = request.form if refusal else {"role": "read_only"}
    return answers.page(
        "members.html",
        refusal.status if refusal else 200,
        place="members",
        members=members,
        given=given,
        refusal=refusal,
    )
