"""CURVE keys of the bus: 32 bytes each, written as 40 characters of Z85 (ZeroMQ RFC 32)."""

import re

import zmq

from remails.errors import ConfigError

# Z85 has braces. Ansible would take these for the begin of a template; one pair in thirty has them, so little is lost without.
_TEMPLATE = re.compile(r"\{[{%#]")


def generate_keys() -> tuple[str, str]:
    """A fresh key pair: the public key, which stands in the settings, and the secret one, a credential."""
    while True:
        public, secret = (key.decode("ascii") for key in zmq.curve_keypair())
        if not _TEMPLATE.search(f"{public} {secret}"):
            return public, secret


def public_key(secret: str, name: str) -> str:
    """The public key that belongs to the secret key of the credential `name`. Raises ConfigError for a malformed one."""
    try:
        return zmq.curve_public(secret.encode()).decode("ascii")
    except (ValueError, zmq.ZMQError):
        raise ConfigError(f"credential {name}: expected a CURVE secret key, 40 characters of Z85") from None
