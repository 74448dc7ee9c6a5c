"""API keys of an organization."""

import flask
from flask import request
from werkzeug.wrappers import Response

from remails.api import auth, changes
from remails.api.state import state
from remails.api.ui import answers, lines
from remails.errors import Refused
from remails.store import constraints, credentials, domains, projects
from remails.store.ids import ApiKeyId, OrganizationId
from remails.store.users import Role

blueprint = flask.Blueprint("keys", __name__, url_prefix="/<uuid:organization_id>/keys")


@blueprint.get("")
@auth.needs(auth.member(Role.read_only, keys=False))
def list_GET(organization_id: OrganizationId) -> Response:
    """The keys."""
    return _list(organization_id)


@blueprint.post("")
@auth.needs(auth.member(Role.maintainer, keys=False))
def new_POST(organization_id: OrganizationId) -> Response:
    """Make a key and show its secret: this once, in the answer itself."""
    description, role = request.form.get("description", "").strip()[:500], request.form.get("role", "")
    try:
        if role not in ("read_only", "maintainer"):
            raise constraints.invalid("Choose what the key may do.", "role")
        with state().db.transaction() as conn:
            made, secret = credentials.create_key(
                conn, state().pepper, organization_id, description, Role(role), answers.words("networks")
            )
            details = {"description": made.description, "role": made.role, "networks": made.networks}
            changes.record(conn, "created", "api_key", made.id, details)
            project = next(iter(projects.list_(conn, organization_id)), None)
            own = [d for d in domains.list_(conn, organization_id) if project and project.id in d.project_ids]
    except Refused as refusal:
        return _list(organization_id, refusal)
    start = lines.Start(project=project, domain=next(iter(own), None), key=made)
    return answers.page(
        "key.html", 201, place="keys", made=made, secret=secret, project=project, line=lines.curl(start, secret)
    )


@blueprint.post("/<uuid:key_id>/delete")
@auth.needs(auth.member(Role.maintainer, keys=False))
def delete_POST(organization_id: OrganizationId, key_id: ApiKeyId) -> Response:
    """Delete a key."""
    with state().db.transaction() as conn:
        answers.found(credentials.get_key(conn, organization_id, key_id))
        credentials.remove_key(conn, organization_id, key_id)
        changes.record(conn, "deleted", "api_key", key_id)
    return answers.go(".list_GET", "removed", organization_id=organization_id)


def _list(organization_id: OrganizationId, refusal: Refused | None = None) -> Response:
    keys = state().db.run(credentials.list_keys, organization_id)
    given = request.form if refusal else {"role": "maintainer"}
    return answers.page(
        "keys.html", refusal.status if refusal else 200, place="keys", keys=keys, given=given, refusal=refusal
    )
