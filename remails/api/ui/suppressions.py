"""Addresses that an organization sends no more to."""

import flask
from flask import request
from werkzeug.wrappers import Response

from remails.api import auth, changes
from remails.api.state import state
from remails.api.ui import answers
from remails.errors import Refused
from remails.mail import address
from remails.store import constraints, suppressions
from remails.store.ids import OrganizationId
from remails.store.users import Role

PAGE = 100

blueprint = flask.Blueprint("suppressions", __name__, url_prefix="/<uuid:organization_id>/suppressions")


@blueprint.get("")
@auth.needs(auth.member(Role.read_only, keys=False))
def list_GET(organization_id: OrganizationId) -> Response:
    """The addresses, in order."""
    return _list(organization_id)


@blueprint.post("")
@auth.needs(auth.member(Role.maintainer, keys=False))
def add_POST(organization_id: OrganizationId) -> Response:
    """Add an address until it is removed."""
    try:
        key = _key(request.form.get("address", ""))
        reason = request.form.get("reason", "").strip()[:500]
        with state().db.transaction() as conn:
            suppressions.add(conn, organization_id, key, reason)
            changes.record(conn, "created", "suppression", key, {"reason": reason})
    except Refused as refusal:
        return _list(organization_id, refusal)
    return answers.go(".list_GET", "added", organization_id=organization_id)


@blueprint.post("/remove")
@auth.needs(auth.member(Role.maintainer, keys=False))
def remove_POST(organization_id: OrganizationId) -> Response:
    """Send to an address again."""
    key = request.form.get("address", "").replace("\0", "")
    with state().db.transaction() as conn:
        if suppressions.remove(conn, organization_id, key):
            changes.record(conn, "deleted", "suppression", key)
    return answers.go(".list_GET", "removed", organization_id=organization_id)


def _key(text: str) -> str:
    """One spelling of the address; raises Refused (422)."""
    try:
        return address.parse(text.strip()).key
    except address.BadAddress as error:
        raise constraints.invalid(f"This is not an address: {error}.", "address") from None


def _list(organization_id: OrganizationId, refusal: Refused | None = None) -> Response:
    after = request.args.get("after", "")
    shown = state().db.run(suppressions.list_, organization_id, after=after, limit=PAGE + 1)
    return answers.page(
        "suppressions.html",
        refusal.status if refusal else 200,
        place="suppressions",
        suppressions=shown[:PAGE],
        after=after,
        following=shown[PAGE - 1].address if len(shown) > PAGE else None,
        given=request.form,
        refusal=refusal,
    )
