"""Addresses that an organization sends no more to."""

from datetime import UTC, datetime

import flask
from flask import request
from werkzeug.wrappers import Response

from remails.api import auth, changes
from remails.api.state import state
from remails.api.ui import answers
from remails.errors import Refused
from remails.mail import address, addresslist
from remails.mail.addresslist import Entry
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
            until = _until(request.form.get("until", ""))
            suppressions.add_many(conn, organization_id, [Entry(key, reason, until=until)])
            details = {"reason": reason} | ({"until": until.isoformat()} if until else {})
            changes.record(conn, "created", "suppression", key, details)
    except Refused as refusal:
        return _list(organization_id, refusal)
    return answers.go(".list_GET", "added", organization_id=organization_id)


@blueprint.post("/import")
@auth.needs(auth.member(Role.maintainer, keys=False))
def import_POST(organization_id: OrganizationId) -> Response:
    """Add a list; lines that are no address are told."""
    try:
        found = addresslist.read(request.form.get("list", ""))
    except addresslist.TooLong as error:
        return _list(organization_id, constraints.invalid(f"{error}.", "list"))
    with state().db.transaction() as conn:
        imported = suppressions.add_many(conn, organization_id, found.entries)
        if imported:
            changes.record(conn, "imported", "suppressions", imported, {"imported": imported, "failed": found.failed})
    if not found.failed and imported:
        return answers.go(".list_GET", "added", organization_id=organization_id)
    return _list(organization_id, imported=imported, read=found)


@blueprint.get("/export")
@auth.needs(auth.member(Role.read_only, keys=False))
def export_GET(organization_id: OrganizationId) -> Response:
    """The whole list as a file."""
    with state().db.transaction() as conn:
        text = addresslist.write(suppressions.export(conn, organization_id))
        changes.record(conn, "exported", "suppressions", "all")
    headers = {"Content-Disposition": 'attachment; filename="suppressions.csv"'}
    return Response(text, mimetype="text/csv", headers=headers)


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


def _until(text: str) -> datetime | None:
    """The day (UTC) from which on it is sent to again; raises Refused (422)."""
    try:
        return datetime.fromisoformat(text).replace(tzinfo=UTC) if text else None
    except ValueError:
        raise constraints.invalid("This is not a day.", "until") from None


def _list(
    organization_id: OrganizationId,
    refusal: Refused | None = None,
    imported: int = 0,
    read: addresslist.List | None = None,
) -> Response:
    after, search = request.args.get("after", ""), request.args.get("search", "").strip()[:200]
    shown = state().db.run(suppressions.list_, organization_id, after=after, search=search, limit=PAGE + 1)
    return answers.page(
        "suppressions.html",
        refusal.status if refusal else 200,
        place="suppressions",
        suppressions=shown[:PAGE],
        after=after,
        search=search,
        imported=imported,
        read=read,
        following=shown[PAGE - 1].address if len(shown) > PAGE else None,
        given=request.form,
        refusal=refusal,
    )
