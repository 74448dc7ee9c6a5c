"""The way in: to the one organization of a user, or to a choice among several."""

import flask
from werkzeug.wrappers import Response

from remails.api import auth
from remails.api.state import state
from remails.api.ui import answers
from remails.store import organizations
from remails.store.ids import UserId

blueprint = flask.Blueprint("organizations", __name__)


@blueprint.get("/")
@auth.needs(auth.session)
def home_GET() -> Response:
    """Where a user starts."""
    me = auth.actor()
    mine = state().db.run(organizations.list_for_user, UserId(me.id))
    if len(mine) == 1:
        return answers.go("ui.emails.list_GET", organization_id=mine[0].id)
    if not mine and me.is_admin:
        return answers.go("ui.fleet.organizations_GET")
    return answers.page("organizations.html", mine=mine)
