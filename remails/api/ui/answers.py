"""How handlers answer: a page, another page with a notice of what was done, or not at all.

A notice travels as a word in the address (`?done=added`) and is looked up here, so it needs no session and nobody can
make a page say something by a link.
"""

from typing import Any, TypeVar

import flask
from flask import g, request, url_for
from werkzeug.exceptions import NotFound
from werkzeug.wrappers import Response

from remails.api import auth
from remails.errors import Refused
from remails.store.organizations import Organization
from remails.store.users import Role

T = TypeVar("T")

NOTICES = {
    "added": "Added.",
    "saved": "Saved.",
    "removed": "Removed.",
    "retried": "It is being tried again.",
    "nothing-to-retry": "Nothing of it can be tried again: all is delivered, or its content is gone.",
    "content-deleted": "The content is deleted. What happened to it stays here.",
    "checked": "The DNS records were looked up just now.",
    "left": "You are no longer a member.",
    "logged-out": "You are logged out.",
}


def page(template: str, status: int = 200, **values: Any) -> Response:
    """A page. `refusal`, where a form was refused, is None unless given."""
    values.setdefault("refusal", None)
    return Response(flask.render_template(template, **values), status, mimetype="text/html")


def refused(template: str, refusal: Refused, **values: Any) -> Response:
    """The page again, with what is wrong."""
    return page(template, refusal.status, refusal=refusal, **values)


def go(endpoint: str, done: str | None = None, **values: Any) -> Response:
    """Another page, with a notice on it (RFC 9110 §15.4.4)."""
    return Response(status=303, headers={"Location": url_for(endpoint, done=done, **values)})


def notice() -> str | None:
    """The sentence for what was just done."""
    return NOTICES.get(request.args.get("done", ""))


def words(name: str) -> list[str]:
    """What stands in a field of the form, between commas and blanks."""
    return request.form.get(name, "").replace(",", " ").split()


def found(value: T | None) -> T:
    """The value; raises NotFound for none."""
    if value is None:
        raise NotFound()
    return value


def organization() -> Organization | None:
    """The organization of this page, if it has one that the actor may see."""
    actor, here = g.get("actor"), g.get("organization")
    return here if actor is not None and here is not None and actor.role_in(here.id) is not None else None


def lacks(needed: str) -> str:
    """Why the actor may not do what takes the role `needed` in this organization; empty if they may."""
    actor, here = auth.actor(), auth.organization()
    role = actor.role_in(here.id)
    if role is None or not role.allows(Role(needed)):
        return f"To change this takes the role {needed}; yours is {role}."
    if here.block_status == "full_freeze" and not actor.is_admin:
        return "The organization is frozen: nothing in it may be changed."
    return ""


def is_region() -> bool:
    """Whether htmx asks for the live region of a page alone."""
    return request.headers.get("HX-Request-Type") == "partial"
