"""Logging in: the SASL exchanges PLAIN (RFC 4616) and LOGIN, and whom a user name and password speak for.

An exchange gets the initial response, if there was one, and a function to ask for more; it returns a `Login`. Whom it
speaks for is asked of `Authenticator`. A user name that does not exist takes the same way, query and comparison included,
as one that does.
"""

import base64
import hmac
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from remails.db import Connection, Database
from remails.errors import Refused
from remails.inbound.lookup import Lookup
from remails.store import credentials, networks
from remails.submission import Sender
from remails.vault import Pepper, new_secret

Ask = Callable[[bytes], Awaitable[bytes]]
"""Sends a challenge and returns the client's response, both without base64."""


_MAX_RESPONSE = 12288  # octets, RFC 4954 §4


@dataclass(frozen=True, slots=True)
class Login:
    """A user name and what shall prove it."""

    username: str
    password: str = field(repr=False)
    authzid: str = ""
    """Who the client wants to act as; empty: who it is."""


async def plain(initial: bytes | None, ask: Ask) -> Login:
    """`authzid NUL authcid NUL password` (RFC 4616 §2)."""
    response = _text(await ask(b"") if initial is None else initial)
    if response.count("\0") != 2:
        raise _malformed()
    authzid, authcid, password = response.split("\0")
    return Login(authcid, password, authzid)


async def login(initial: bytes | None, ask: Ask) -> Login:
    """User name, then password (draft-murchison-sasl-login); strict clients look for these two words."""
    username = _text(await ask(b"Username:") if initial is None else initial)
    return Login(username, _text(await ask(b"Password:")))


MECHANISMS: dict[str, Callable[[bytes | None, Ask], Awaitable[Login]]] = {"PLAIN": plain, "LOGIN": login}


def decode(text: str) -> bytes:
    """A response out of its base64 (RFC 4954 §4); a lone `=` is an empty one, a lone `*` gives up.

    Raises:
        Refused: 501, or 500 for one that is too long.
    """
    if len(text) > _MAX_RESPONSE:
        raise Refused(500, "5.5.6", "Authentication exchange line is too long", status=400)
    if text == "*":
        raise Refused(501, "5.7.0", "Authentication cancelled", status=400)
    try:
        return b"" if text == "=" else base64.b64decode(text, validate=True)
    except ValueError:
        raise _malformed() from None


def _text(response: bytes) -> str:
    try:
        return response.decode()
    except UnicodeDecodeError:
        raise _malformed() from None


def _malformed() -> Refused:
    return Refused(501, "5.5.2", "Cannot decode the authentication response", status=400)


def _invalid() -> Refused:
    # RFC 4954 §6: the same, whatever is wrong.
    return Refused(535, "5.7.8", "Authentication credentials invalid", status=401)


class Authenticator:
    """Knows whom a login speaks for."""

    def __init__(self, db: Database, pepper: Pepper) -> None:
        self._pepper = pepper
        # Digests, not passwords: they are what is remembered, and only for logins that were right.
        self._lookup: Lookup[tuple[str, bytes], tuple[Sender, list[str]]] = Lookup(db, _senders)

    async def __call__(self, login: Login, client: str) -> Sender:
        """Whom `login` speaks for, when a client of this address says it.

        Raises:
            Refused: 535, for nobody; 550 where it is right, but may not be used from there.
            Unavailable: the database cannot be reached.
        """
        if login.authzid not in ("", login.username):
            # Nobody may act as somebody else here, and to ignore the wish would send mail in another name than asked for.
            raise _invalid()
        sender, allowed = await self._lookup((login.username, self._pepper.digest(login.password)))
        if not networks.admit(allowed, client):
            # Said only to who knows the password; RFC 4954 §6 has no code for it.
            text = f"This credential may not be used from {client}, add its network to those it may be used from"
            raise Refused(550, "5.7.1", text, status=403)
        return sender


# Compared with where there is no such user name.
_NOBODY = new_secret().encode()


def _senders(
    conn: Connection, logins: Sequence[tuple[str, bytes]]
) -> dict[tuple[str, bytes], tuple[Sender, list[str]] | Refused]:
    names = {username for username, _ in logins if re.fullmatch(r"[a-zA-Z0-9_-]{2,128}", username)}
    known = {row.username: row for row in credentials.authenticate_smtp(conn, sorted(names))}
    answers: dict[tuple[str, bytes], tuple[Sender, list[str]] | Refused] = {}
    for username, digest in logins:
        row = known.get(username)
        matches = hmac.compare_digest(row.digest if row else _NOBODY, digest)
        answers[username, digest] = (
            (Sender(row.organization_id, row.project_id, row.credential_id), row.networks)
            if row and matches
            else _invalid()
        )
    return answers
