"""The relay's certificate, for the hosts that show it; and the proof for an ACME server that our names are ours.

Hosts that show the certificate fetch it here. The edge, which the world reaches first, so needs no way into the database and none of
its secrets, only the key of this one exchange: it is derived from the pepper, proves that a host may ask, seals the answer from end
to end, and makes both worthless after minutes.
"""

import flask
import msgspec
from cryptography.fernet import Fernet, InvalidToken
from flask import request
from werkzeug.exceptions import NotFound
from werkzeug.wrappers import Response

from remails.api import auth
from remails.api.state import state
from remails.store import certificates

LIFETIME = 300
"""Seconds for which a question is taken; clocks may differ by so much."""

_ours = auth.Rule("host of ours, by the key of certificates", public=True)


def add_routes(app: flask.Flask) -> None:
    """Serve both."""

    @app.get("/.well-known/acme-challenge/<token>", endpoint="acme_challenge")
    @auth.needs(auth.public)
    def show_challenge(token: str) -> Response:
        """RFC 8555 §8.3."""
        text = state().db.run(certificates.challenge, token)
        if text is None:
            raise NotFound()
        return flask.Response(text, mimetype="application/octet-stream")

    @app.get("/internal/certificates", endpoint="certificates")
    @auth.needs(_ours)
    def show_certificates() -> Response:
        here = state()
        sealer = Fernet(here.pepper.fernet_key(f"certificates:{here.settings.certificates.key_number}"))
        asked = request.authorization
        try:
            if asked is None or asked.type != "remails":
                raise InvalidToken
            sealer.decrypt(asked.token or "", LIFETIME)
        except InvalidToken:
            raise NotFound() from None  # a stranger learns nothing
        with here.db.transaction() as conn:
            made = certificates.opened(conn, here.vault)
            failed = {row.name for row in certificates.list_(conn) if row.failures}
        found = [{"name": name, "pem": one.pem, "failed": name in failed} for name, one in made.items()]
        return flask.Response(sealer.encrypt(msgspec.json.encode(found)), mimetype="application/octet-stream")
