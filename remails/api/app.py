"""The application: routes, who may use them, how errors answer, and the headers every answer has.

`create_app` is given all it works with; nothing is global. The REST API stands in `rest`, the pages in `ui`; both state a
rule for each route (`auth`), leave errors to `problems`, and find settings and database through `state`.
"""

import ipaddress
import time
from collections.abc import Callable, Iterable
from typing import Any
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

import flask
from flask import g, request
from werkzeug.exceptions import BadRequest
from werkzeug.middleware.proxy_fix import ProxyFix
from werkzeug.wrappers import Response

from remails import __version__, metrics
from remails.api import auth, certificates, operations, problems, reference, rest
from remails.api.state import State
from remails.api.ui import pages
from remails.bus.client import Publisher
from remails.config import Api, Settings
from remails.db import Database
from remails.guard import Guard
from remails.logs import Log
from remails.vault import Pepper, Vault

log = Log("remails.api")

MAX_FORM = 100_000
"""Bytes of a request to a page; the REST API has limits of its own."""

_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")

CONTENT_SECURITY_POLICY = (
    "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; object-src 'none'"
)


def create_app(settings: Settings, db: Database, publisher: Publisher, vault: Vault, pepper: Pepper) -> flask.Flask:
    """Make the application of one process."""
    app = flask.Flask("remails.api", static_folder="static", template_folder="templates")
    app.extensions["remails"] = State(settings, db, publisher, vault, pepper, Guard(settings.bans, "api"))
    app.config["MAX_CONTENT_LENGTH"] = MAX_FORM
    app.config["SEND_FILE_MAX_AGE_DEFAULT"] = 3600  # of static files, whose address changes with the version
    app.jinja_env.trim_blocks = app.jinja_env.lstrip_blocks = True
    if settings.api.trusted_proxies:
        app.wsgi_app = _BehindProxies(app.wsgi_app, settings.api)  # type: ignore[method-assign]
    app.before_request(_start)
    problems.register(app)
    auth.register(app)
    operations.add_routes(app, rest.NOUNS)
    reference.add_routes(app, rest.NOUNS)
    certificates.add_routes(app)
    app.register_blueprint(pages.blueprint)
    app.after_request(_finish(settings))
    return app


class _BehindProxies(ProxyFix):
    """Believe what proxies say of their client, if they are ours."""

    def __init__(self, app: WSGIApplication, settings: Api) -> None:
        super().__init__(app, x_for=settings.trusted_proxies, x_proto=settings.trusted_proxies, x_host=0)
        self._networks = [ipaddress.ip_network(text) for text in settings.proxy_trusted]

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer one request."""
        peer = environ.get("REMOTE_ADDR") or "127.0.0.1"  # a UNIX socket has none
        if self._networks and not any(ipaddress.ip_address(peer) in network for network in self._networks):
            return self.app(environ, start_response)
        return super().__call__(environ, start_response)


def _start() -> None:
    g.started = time.monotonic()
    if "\0" in request.path or "\0" in "".join(request.args.values()):
        raise BadRequest("The address contains a NUL character.")


def _finish(settings: Settings) -> Callable[[flask.Response], flask.Response]:
    headers = _headers(settings)

    def finish(response: flask.Response) -> flask.Response:
        for name, value in headers.items():
            response.headers.setdefault(name, value)
        _log(response)
        return response

    return finish


def _headers(settings: Settings) -> dict[str, str]:
    headers = {
        "X-App-Version": __version__,
        "Content-Security-Policy": CONTENT_SECURITY_POLICY,
        "X-Content-Type-Options": "nosniff",
        "X-Frame-Options": "DENY",
        "Referrer-Policy": "same-origin",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cache-Control": "no-store",
    }
    if settings.api.url.startswith("https:"):
        headers["Strict-Transport-Security"] = "max-age=31536000"
    if settings.api.environment.lower() != "production":
        headers["X-Robots-Tag"] = "noindex, nofollow"
    return headers


def _log(response: Response) -> None:
    """One line for each request: nothing of its body, its query or its secrets."""
    actor: Any = g.get("actor")
    took = time.monotonic() - g.get("started", time.monotonic())
    # Checks are the edges', several a second: beside them nobody would see how clients fare.
    quiet = request.endpoint in ("static", "system_get_health")
    if not quiet:
        metrics.HTTP_REQUESTS.add(
            method=request.method if request.method in _METHODS else "other", status=str(response.status_code)
        )
        metrics.HTTP_SECONDS.observe(took)
    (log.debug if quiet else log.info)(
        "request",
        method=request.method,
        route=problems.route(),
        status=response.status_code,
        ms=round(took * 1000),
        actor=actor.id if actor is not None else None,
    )
