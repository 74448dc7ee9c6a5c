"""CURVE keys of the bus: 32 bytes each, written as 40 characters of Z85 (ZeroMQ RFC 32)."""

import zmq

from remails.errors import ConfigError


def generate_keys() -> tuple[str, str]:
    """A fresh key pair: the public key, which stands in the settings, and the secret one, a credential."""
    public, secret = zmq.curve_keypair()
    return public.decode("ascii"), secret.decode("ascii")


def public_key(secret: str, name: str) -> str:
    """The public key that belongs to the secret key of the credential `name`. Raises ConfigError for a malformed one."""
    try:
        return zmq.curve_public(secret.encode()).decode("ascii")
    except (ValueError, zmq.ZMQError):
        raise ConfigError(f"credential {name}: expected a CURVE secret key, 40 characters of Z85") from None
