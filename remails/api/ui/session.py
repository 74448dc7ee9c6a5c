"""Logging in and out."""

import flask
from flask import request, url_for
from werkzeug.exceptions import Forbidden, HTTPException, NotFound, TooManyRequests
from werkzeug.wrappers import Response

from remails.api import auth
from remails.api.ui import answers

blueprint = flask.Blueprint("session", __name__)


@blueprint.get("/login")
@auth.needs(auth.public)
def login_GET() -> Response:
    """Ask for email address and password."""
    if auth.current() is not None:
        return Response(status=303, headers={"Location": _next()})
    return answers.page("login.html", email="", next=_next())


@blueprint.post("/login")
@auth.needs(auth.public)
def login_POST() -> Response:
    """Start a session."""
    email = request.form.get("email", "")
    try:
        user = auth.check_password(email, request.form.get("password", ""))
    except (NotFound, Forbidden, TooManyRequests) as error:
        return _denied(error, email)
    response = Response(status=303, headers={"Location": _next()})
    auth.login(response, user)
    return response


def _denied(error: HTTPException, email: str) -> Response:
    # A wrong password is no missing page: 401 keeps browsers from offering to save it.
    status = 401 if isinstance(error, NotFound) else error.code or 403
    response = answers.page("login.html", status, email=email, next=_next(), wrong=error.description)
    for name, value in error.get_headers():
        if name == "Retry-After":
            response.headers[name] = value
    return response


@blueprint.post("/logout")
@auth.needs(auth.session)
def logout_POST() -> Response:
    """End the session."""
    response = answers.go("ui.session.login_GET", done="logged-out")
    auth.logout(response)
    return response


def _next() -> str:
    """Where to go after logging in: a path of ours, never another site."""
    path = request.values.get("next", "")
    ours = path.startswith("/") and not path.startswith(("//", "/\\")) and path.isprintable() and "\\" not in path
    return path if ours else url_for("ui.organizations.home_GET")
