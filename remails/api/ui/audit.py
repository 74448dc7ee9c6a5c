"""Who changed what in an organization."""

import json

import flask
from flask import request, url_for
from werkzeug.wrappers import Response

from remails.api import auth
from remails.api.state import state
from remails.api.ui import answers
from remails.store import audit
from remails.store.ids import OrganizationId
from remails.store.users import Role

PAGE = 50

blueprint = flask.Blueprint("audit", __name__, url_prefix="/<uuid:organization_id>/audit")


@blueprint.get("")
@auth.needs(auth.member(Role.read_only, keys=False))
def list_GET(organization_id: OrganizationId) -> Response:
    """The log, newest first."""
    text = request.args.get("before", "")
    before = int(text) if text.isascii() and text.isdecimal() and len(text) < 19 else None
    entries = state().db.run(audit.list_, organization_id, before=before, limit=PAGE + 1)
    here = url_for(".list_GET", organization_id=organization_id)
    return answers.page(
        "audit.html",
        place="audit",
        entries=entries[:PAGE],
        newest=here if before else None,
        older=f"{here}?before={entries[PAGE - 1].id}" if len(entries) > PAGE else None,
        details=_details,
    )


def _details(entry: audit.Entry) -> str:
    """The details on one line, in words as far as they go."""
    return ", ".join(
        f"{name.replace('_', ' ')}: {value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}"
        for name, value in entry.details.items()
    )
