"""Errors become answers here and nowhere else.

    Refused, HTTPException, Invalid --> what is wrong, for whoever asked     4xx
    Unavailable                     --> "come back" with Retry-After         503
    anything else                   --> a reference, and a traceback in the log   500

A client of the API gets `application/problem+json` (RFC 9457) with two members of our own: `reference`, which also stands
in the log, and `field`, the JSON field at fault; `description` repeats `detail` under the name the first version of this
API gave it. A browser gets a page, and where it has to log in first, the way there.
"""

import uuid
from http import HTTPStatus
from urllib.parse import urlencode

import flask
import msgspec
from flask import request
from jinja2 import TemplateNotFound
from werkzeug.exceptions import HTTPException, Unauthorized, UnprocessableEntity
from werkzeug.wrappers import Response

from remails.errors import Refused, Unavailable
from remails.logs import Log

log = Log("remails.api")

RETRY_AFTER = "5"


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """A problem in the words of RFC 9457 §3.1."""

    title: str
    status: int
    detail: str
    instance: str
    description: str
    reference: str
    type: str = "about:blank"
    field: str | msgspec.UnsetType = msgspec.UNSET


class Invalid(UnprocessableEntity):
    """A value in the request is not one we can take. `field` names it, as in `to[2].address`."""

    def __init__(self, field: str | None, text: str) -> None:
        super().__init__(text)
        self.field = field


def register(app: flask.Flask) -> None:
    """Answer this application's errors."""
    app.register_error_handler(Refused, _refused)
    app.register_error_handler(Unavailable, _unavailable)
    app.register_error_handler(HTTPException, _http)
    app.register_error_handler(Exception, _unexpected)


def _refused(error: Refused) -> Response:
    response = _answer(error.status, error.text, field=error.field)
    if error.retry_after is not None:
        response.headers["Retry-After"] = str(error.retry_after)
    return response


def _unavailable(error: Unavailable) -> Response:
    response = _answer(
        503, "Something we depend on cannot be reached just now. Try again in a few seconds.", log_as=error
    )
    response.headers["Retry-After"] = RETRY_AFTER
    return response


def _http(error: HTTPException) -> Response:
    if error.code is None or error.code < 400:
        return error.get_response()  # a redirect to the right spelling of a path
    if isinstance(error, Unauthorized) and not _for_program():
        return _to_login()
    response = _answer(error.code, error.description or "", field=getattr(error, "field", None))
    for name, value in error.get_headers():
        if name.lower() not in ("content-type", "content-length"):
            response.headers[name] = value
    return response


def _unexpected(_error: Exception) -> Response:
    reference = str(uuid.uuid4())
    log.exception("request failed", reference=reference, method=request.method, route=route())
    return _answer(500, "An error of ours. It has been logged; name the reference when you ask about it.", reference)


def route() -> str:
    """The rule of the route that was asked for: unlike the path, it tells nothing about anybody."""
    return request.url_rule.rule if request.url_rule else "(none)"


def _for_program() -> bool:
    return request.path.startswith("/api/") or not request.accept_mimetypes.accept_html


def _answer(
    status: int, detail: str, reference: str | None = None, *, field: str | None = None, log_as: Exception | None = None
) -> Response:
    reference = reference or str(uuid.uuid4())
    title = HTTPStatus(status).phrase
    if log_as is not None:
        log.warning("request put off", reference=reference, route=route(), reason=log_as)
    else:
        # What is wrong with a field quotes the field, which is nobody's business.
        reason = None if field else detail
        log.info("request refused", reference=reference, route=route(), status=status, reason=reason, field=field)
    if _for_program():
        problem = Problem(
            title=title,
            status=status,
            detail=detail,
            instance=f"urn:uuid:{reference}",
            description=detail,
            reference=reference,
            field=field or msgspec.UNSET,
        )
        return Response(msgspec.json.encode(problem), status, mimetype="application/problem+json")
    return _page(status, title, detail, reference)


def _page(status: int, title: str, detail: str, reference: str) -> Response:
    try:
        text = flask.render_template("error.html", status=status, title=title, detail=detail, reference=reference)
    except TemplateNotFound:
        return Response(f"{status} {title}\n\n{detail}\n\nReference: {reference}\n", status, mimetype="text/plain")
    return Response(text, status, mimetype="text/html")


def _to_login() -> Response:
    """Send a browser to the log-in page, and from there back; htmx follows a header of its own."""
    back = request.full_path.removesuffix("?") if request.method == "GET" else "/"
    location = "/login?" + urlencode({"next": back})
    if request.headers.get("HX-Request"):
        return Response(status=401, headers={"HX-Redirect": location})
    return Response(status=303, headers={"Location": location})
