"""Who is asking, and may they: decided in one place, before any view runs.

    request --> authorise --> what rule has this route?      none: the request fails, whoever asks
                    |         who is it?                     an API key by HTTP Basic, else the cookie of a session
                    |         a page could have forged it?   Sec-Fetch-Site, Origin, and a token bound to the session
                    +-------> does the rule let them in?     404 for what is not theirs, 403 for what their role lacks

Every route states its rule by `needs(...)`; the path's `organization_id` is always held against the actor, and a stranger
learns nothing, not even that it exists. `current()` is the actor and `organization()` the organization that was checked.

A session is a row in the database under the digest of the cookie's secret, so it can be ended; the cookie is HttpOnly,
SameSite=Lax and, where the pages are reached by HTTPS, Secure with the prefix `__Host-` (RFC 6265bis §4.1.3.2).
"""

import hmac
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Literal, TypeVar
from urllib.parse import urlsplit
from uuid import UUID

import flask
from flask import current_app, g, request
from werkzeug.datastructures import WWWAuthenticate
from werkzeug.exceptions import Forbidden, HTTPException, NotFound, TooManyRequests, Unauthorized
from werkzeug.wrappers import Response

from remails import metrics, vault
from remails.api.state import state
from remails.db import Connection
from remails.guard import network_of
from remails.store import audit, credentials, networks, organizations, users
from remails.store.ids import ApiKeyId, OrganizationId
from remails.store.organizations import Organization
from remails.store.users import Role, User

LIFETIME = timedelta(days=7)
SAFE_METHODS = ("GET", "HEAD", "OPTIONS")  # RFC 9110 §9.2.1

PUBLIC_LIMIT = 10_000
"""Bytes of a request to a route for everybody. The edge hands on at once what fits into its buffer, so no stranger holds a thread by sending slowly."""

ACCOUNT_FAILURES, ACCOUNT_WINDOW = 5, timedelta(minutes=1)

View = TypeVar("View", bound=Callable[..., object])


@dataclass(frozen=True, slots=True)
class Actor:
    """Who acts: a user with a session, or an API key.

    Args:
        name: for people: the user's name or the key's description.
        is_admin: of the whole installation; may do everything everywhere.
        session: digest of the session's secret, None for an API key.
    """

    kind: Literal["user", "api_key"]
    id: UUID
    name: str
    is_admin: bool = False
    roles: Mapping[OrganizationId, Role] = field(default_factory=dict)
    session: bytes | None = field(default=None, repr=False)
    user: User | None = None

    def role_in(self, organization_id: OrganizationId) -> Role | None:
        """The role in an organization; None for a stranger."""
        return Role.admin if self.is_admin else self.roles.get(organization_id)

    @property
    def audit(self) -> audit.Actor:
        """The actor as the audit log names it."""
        return audit.Actor(self.kind, self.id, self.name)


@dataclass(frozen=True, slots=True)
class Rule:
    """Who may use a route. `text` is how documents and reviews name it."""

    text: str
    role: Role | None = None
    """What it takes in the organization that the path names."""
    people: bool = True
    keys: bool = True
    public: bool = False
    installation: bool = False


public = Rule("public", public=True)
"""Everybody, also without credentials."""
anyone = Rule("user or API key")
"""Whoever has proved who they are."""
session = Rule("user", keys=False)
"""A person who is logged in."""
installation_admin = Rule("admin of the installation", keys=False, installation=True)


def member(role: Role, *, people: bool = True, keys: bool = True) -> Rule:
    """Whoever has at least this role in the organization that the path names as `organization_id`."""
    who = "user or API key" if people and keys else "user" if people else "API key"
    return Rule(f"{who}, {role} of the organization", role=role, people=people, keys=keys)


def needs(rule: Rule) -> Callable[[View], View]:
    """State the rule of a view; stands below the route decorator."""

    def state_rule(view: View) -> View:
        view.remails_rule = rule  # type: ignore[attr-defined]  # functions take attributes
        return view

    return state_rule


def rule_of(view: Callable[..., object]) -> Rule | None:
    """The rule a view states."""
    found: Rule | None = getattr(view, "remails_rule", None)
    return found


def register(app: flask.Flask) -> None:
    """Stand before every view of this application."""
    app.before_request(authorise)
    needs(public)(app.view_functions["static"])


def authorise() -> None:
    """Let the request through to its view, or raise what is wrong with it."""
    if request.routing_exception is not None or request.endpoint is None:
        return  # no such route: Flask says so
    rule = rule_of(current_app.view_functions[request.endpoint])
    if rule is None:
        raise RuntimeError(f"the route {request.url_rule} states no rule")
    if rule.public:
        request.max_content_length = PUBLIC_LIMIT
        _refuse_other_sites()
        return
    organization_id: UUID | None = (request.view_args or {}).get("organization_id")
    if request.authorization is not None:
        _refuse_banned()
    with state().db.transaction() as conn:
        actor = g.actor = _identify(conn)
        if organization_id is not None:
            g.organization = organizations.get(conn, OrganizationId(organization_id))
    _admit(actor, rule)


def current() -> Actor | None:
    """Who is asking; None for somebody without credentials, which only a public route meets."""
    if "actor" not in g:
        if request.authorization is not None:
            _refuse_banned()
        with state().db.transaction() as conn:
            g.actor = _identify(conn)
    found: Actor | None = g.actor
    return found


def actor() -> Actor:
    """Who is asking, where the route's rule made sure that it is somebody."""
    found = current()
    if found is None:
        raise _unauthorized()
    return found


def organization() -> Organization:
    """The organization that the path names; the actor may see it."""
    found: Organization = g.organization
    return found


def _admit(actor: Actor | None, rule: Rule) -> None:
    if actor is None:
        raise _unauthorized()
    if actor.session is not None:
        _refuse_forgery(actor)
    if rule.installation and not actor.is_admin:
        raise NotFound()
    if "organization_id" in (request.view_args or {}):
        _admit_to_organization(actor, rule)
    if not (rule.people if actor.kind == "user" else rule.keys):
        raise Forbidden("This needs a user who is logged in." if actor.kind == "api_key" else "This needs an API key.")


def _admit_to_organization(actor: Actor, rule: Rule) -> None:
    found: Organization | None = g.organization
    role = actor.role_in(found.id) if found is not None else None
    if found is None or role is None:
        raise NotFound()
    if rule.role is not None and not role.allows(rule.role):
        raise Forbidden(f"This needs the role {rule.role} in the organization; yours is {role}.")
    if found.block_status == "full_freeze" and request.method not in SAFE_METHODS and not actor.is_admin:
        raise Forbidden("The organization is frozen: nothing in it may be changed. Contact the operator.")


def _unauthorized() -> HTTPException:
    # RFC 9110 §11.6.1. A browser's own scripts are not asked: it would open a dialog of its own.
    # The blank makes werkzeug quote the realm (§11.5).
    ask = None if "Sec-Fetch-Mode" in request.headers else WWWAuthenticate("basic", {"realm": "Remails API"})
    text = "Log in, or give an API key by HTTP Basic: its id is the user name, its secret the password."
    return Unauthorized(text, www_authenticate=ask)


# Who is it?


def _identify(conn: Connection) -> Actor | None:
    return _by_key(conn) or _by_session(conn)


def _by_key(conn: Connection) -> Actor | None:
    """RFC 7617: the user name is the key's id, the password its secret."""
    given = request.authorization
    if given is None or given.type != "basic":
        return None
    try:
        key = credentials.find_key(conn, ApiKeyId(UUID(given.username)))
    except ValueError:
        key = None
    digest = key.digest if key else bytes(32)  # an unknown key takes as long
    if not state().pepper.matches(given.password or "", digest) or key is None:
        _note_failure("api_key", given.username or "", given.password or "")
        return None
    if not networks.admit(key.networks, client_address()):
        metrics.LOGINS.add(door="api_key", outcome="elsewhere")
        raise Forbidden(
            f"This API key may not be used from {client_address()}. Add its network to those it may be used from."
        )
    metrics.LOGINS.add(door="api_key", outcome="succeeded")
    return Actor("api_key", key.id, key.description, roles={key.organization_id: key.role})


def _by_session(conn: Connection) -> Actor | None:
    secret = request.cookies.get(cookie_name())
    if not secret:
        return None
    digest = state().pepper.digest(secret)
    user = users.session_user(conn, digest)
    if user is None:
        return None
    roles = {m.organization_id: m.role for m in users.memberships_of(conn, user.id)}
    return Actor("user", user.id, user.name, user.is_admin, roles, digest, user)


# Sessions


def _is_https() -> bool:
    return state().settings.api.url.startswith("https:")


def cookie_name() -> str:
    """The name of the session's cookie."""
    return "__Host-remails" if _is_https() else "remails"


def login(response: Response, user: User) -> str:
    """Start a session for the user, ending the browser's earlier one; returns the new session's CSRF token."""
    secret = vault.new_secret(40)
    digest = state().pepper.digest(secret)
    with state().db.transaction() as conn:
        _end_session(conn)
        users.start_session(conn, user.id, digest, request.headers.get("User-Agent", ""), LIFETIME)
        audit.record(conn, audit.Actor("user", user.id, user.name), None, "logged_in", "user", user.id)
    response.set_cookie(
        cookie_name(),
        secret,
        max_age=LIFETIME,
        path="/",
        secure=_is_https(),
        httponly=True,
        samesite="Lax",
    )
    return _token(digest)


def logout(response: Response) -> None:
    """End the session this request belongs to."""
    with state().db.transaction() as conn:
        _end_session(conn)
    response.delete_cookie(cookie_name(), path="/", secure=_is_https(), httponly=True, samesite="Lax")


def _end_session(conn: Connection) -> None:
    if secret := request.cookies.get(cookie_name()):
        users.end_session(conn, state().pepper.digest(secret))


# Passwords


def check_password(email: str, password: str) -> User:
    """The user with this email address and password.

    A wrong password, an unknown address and an account that is being guessed at (more than `ACCOUNT_FAILURES` in a
    minute) get the same answer after the same time. Sessions that exist are not touched by any of it.

    Raises:
        NotFound: no.
        Forbidden: yes, but the user is blocked.
        TooManyRequests: the client's network is banned for guessing.
    """
    _refuse_banned()
    email = email.replace("\0", "").strip().lower()[:254]
    account = f"account:{email}"
    with state().db.transaction() as conn:
        guessed = users.recent_failures(conn, account, ACCOUNT_WINDOW) >= ACCOUNT_FAILURES
        user = users.by_email(conn, email)
    right = vault.check_password(password, user.password_hash if user else None)  # no connection is held meanwhile
    if user is None or guessed or not right:
        with state().db.transaction() as conn:
            users.record_failure(conn, account)
        _note_failure("password", email, password)
        raise NotFound("There is no user with this email address and password.")
    if user.is_blocked:
        raise Forbidden("This user is blocked. Contact the operator.")
    state().db.run(users.clear_failures, account)
    metrics.LOGINS.add(door="password", outcome="succeeded")
    return user


def client_address() -> str:
    """The IP address of the client."""
    return request.remote_addr or "127.0.0.1"  # a UNIX socket has none


def _refuse_banned() -> None:
    """Whoever guesses is not listened to for a while, at no door. Sessions that exist are not touched by it."""
    guard = state().guard
    guard.sync_if_due(state().db)
    if seconds := guard.banned(network_of(client_address())):
        metrics.LOGINS.add(door="password" if request.authorization is None else "api_key", outcome="banned")
        text = f"Too many failed logins from your network. Try again in {math.ceil(seconds / 60)} minutes."
        raise TooManyRequests(text, retry_after=math.ceil(seconds))


def _note_failure(door: str, account: str, password: str) -> None:
    """Count a failed login. The answer is not held back, as by SMTP: it would hold one of few threads."""
    metrics.LOGINS.add(door=door, outcome="failed")
    state().guard.failed(network_of(client_address()), account, password)


# Forged requests


def csrf_token() -> str:
    """The token that a form (`csrf_token`) or script (`X-CSRF-Token`) of ours sends; empty without a session."""
    found = current()
    return _token(found.session) if found is not None and found.session is not None else ""


def _token(session_digest: bytes) -> str:
    return hmac.digest(state().pepper.derive("csrf"), session_digest, "sha256").hex()


def _refuse_forgery(actor: Actor) -> None:
    """A request that changes something and comes with a cookie must come from a page of ours."""
    if request.method in SAFE_METHODS or actor.session is None:
        return
    _refuse_other_sites()
    given = request.headers.get("X-CSRF-Token") or request.form.get("csrf_token", "")
    if not hmac.compare_digest(given.encode(), _token(actor.session).encode()):
        raise Forbidden("The page is out of date. Load it again and repeat what you did.")


def _refuse_other_sites() -> None:
    """Refuse what a browser says was sent by a page of another site; programs say nothing."""
    if request.method in SAFE_METHODS:
        return
    site, origin = request.headers.get("Sec-Fetch-Site"), request.headers.get("Origin")
    ours = (_origin(state().settings.api.url), _origin(request.host_url))
    foreign = site not in ("same-origin", "none") if site else origin is not None and _origin(origin) not in ours
    if foreign:
        raise Forbidden("The request came from a page of another site.")


def _origin(url: str) -> tuple[str, str]:
    try:
        parts = urlsplit(url)
    except ValueError:
        return "", ""  # nobody's
    return parts.scheme, parts.netloc.lower()
