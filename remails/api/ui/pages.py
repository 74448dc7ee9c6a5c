"""All pages, as one blueprint, and what every template may use.

A module per noun has a blueprint of its own; `blueprint` holds them all. Values become words through the filters of
`words`. Pages need no script: htmx asks for a region of a page by the same address and gets that region alone.
"""

from datetime import UTC, datetime
from typing import Any

import flask
from flask import url_for
from flask.blueprints import BlueprintSetupState

from remails import __version__
from remails.api import auth
from remails.api.state import state
from remails.api.ui import (
    answers,
    audit,
    domains,
    emails,
    fleet,
    keys,
    lines,
    members,
    organizations,
    projects,
    session,
    suppressions,
    words,
)
from remails.errors import Unavailable
from remails.mail import dsn
from remails.store import organizations as stored
from remails.store.ids import UserId

blueprint = flask.Blueprint("ui", __name__)

for part in (session, organizations, emails, domains, projects, keys, suppressions, members, audit, fleet):
    blueprint.register_blueprint(part.blueprint)


@blueprint.record_once
def _add_filters(setup: BlueprintSetupState) -> None:
    for word in (words.moment, words.absolute, words.span, words.size, words.number, words.recipients, words.domain):
        setup.app.add_template_filter(word)
    setup.app.add_template_filter(dsn.plain, "xtext")
    setup.app.jinja_env.globals |= {
        "asset": asset,
        "curl": lines.curl,
        "swaks": lines.swaks,
        "csrf_token": auth.csrf_token,
        "lacks": answers.lacks,
        "organization": answers.organization,
        "reply": words.reply,
        "statuses": words.STATUSES,
        "blocks": words.BLOCKS,
        "roles": words.ROLES,
        "happenings": words.HAPPENINGS,
    }


@blueprint.app_context_processor
def _context() -> dict[str, Any]:
    """One moment for the whole page, who looks at it, and what was just done."""
    return {"me": flask.g.get("actor"), "others": _others, "notice": answers.notice(), "now": datetime.now(UTC)}


def _others() -> list[stored.Organization]:
    """The other organizations a user can switch to."""
    me, here = auth.current(), answers.organization()
    if me is None or here is None:
        return []
    try:
        mine = state().db.run(stored.list_for_user, UserId(me.id))
    except Unavailable:
        return []  # the page that says so needs no list
    return [one for one in mine if one.id != here.id]


def asset(name: str) -> str:
    """The address of a file of ours; a new version of it has a new address."""
    return url_for("static", filename=name, v=__version__)
