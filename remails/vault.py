"""Secrets at rest: what is sealed with a key, and what is only ever compared as a digest.

Private keys are sealed with AES-256-GCM under a key that comes as the systemd credential `encryption_keys`: one
`id:base64` per line, the first seals, all open, so a key is changed by putting a new line on top and re-sealing. The
`context` (what the secret belongs to) is authenticated, so a sealed value moved to another row does not open.

API keys and SMTP passwords are long and random, so a keyed fast hash is right for them (`Pepper`); Argon2id is for
passwords that people choose (`hash_password`).
"""

import base64
import hashlib
import hmac
import os
import secrets

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from remails.errors import ConfigError

_ALPHABET = "ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz23456789"
_passwords = PasswordHasher(time_cost=2, memory_cost=19 * 1024, parallelism=1)
# A password is checked against this when there is no such user, so that both take as long.
_NOBODY = _passwords.hash(secrets.token_hex(16))


class Vault:
    """Seals and opens secrets. `text` is the credential `encryption_keys`."""

    def __init__(self, text: str) -> None:
        self._keys: dict[bytes, AESGCM] = {}
        for line in text.split():
            name, _, encoded = line.partition(":")
            try:
                key = base64.b64decode(encoded, validate=True)
                self._keys[name.encode("ascii")] = AESGCM(key)
            except ValueError:
                raise ConfigError("credential encryption_keys: each line must be `id:base64 of 32 bytes`") from None
        if not self._keys:
            raise ConfigError("credential encryption_keys: no key in it")
        self._current = next(iter(self._keys))

    @property
    def names(self) -> list[str]:
        """The names of the keys, the one that seals first."""
        return [name.decode("ascii") for name in self._keys]

    def seal(self, secret: bytes, context: str) -> bytes:
        """Encrypt; the result names the key that opens it."""
        nonce = os.urandom(12)
        sealed = self._keys[self._current].encrypt(nonce, secret, context.encode())
        return self._current + b":" + nonce + sealed

    def open(self, sealed: bytes, context: str) -> bytes:
        """Decrypt. Raises ConfigError when the key is not at hand or does not fit."""
        name, _, rest = sealed.partition(b":")
        if name not in self._keys:
            raise ConfigError(
                f"credential encryption_keys: no key {name.decode('ascii', 'replace')!r}, but data uses it"
            )
        try:
            return self._keys[name].decrypt(rest[:12], rest[12:], context.encode())
        except InvalidTag:
            raise ConfigError(
                f"credential encryption_keys: key {name.decode('ascii')!r} does not open {context}"
            ) from None


def sealer_of(sealed: bytes) -> str:
    """The name of the key that has sealed it."""
    return sealed.partition(b":")[0].decode("ascii", "replace")


def new_encryption_key(name: str) -> str:
    """A fresh line for the credential `encryption_keys`."""
    return f"{name}:{base64.b64encode(os.urandom(32)).decode()}"


class Pepper:
    """The server's key for digests of generated secrets (credential `pepper`)."""

    def __init__(self, text: str) -> None:
        if len(text) < 32:
            raise ConfigError("credential pepper: needs at least 32 characters")
        self._key = text.encode()

    def digest(self, secret: str) -> bytes:
        """HMAC-SHA-256 of a generated secret, 32 bytes."""
        return hmac.digest(self._key, secret.encode("utf-8", "surrogatepass"), "sha256")

    def matches(self, secret: str, digest: bytes) -> bool:
        """Compare in constant time."""
        return hmac.compare_digest(self.digest(secret), digest)

    def derive(self, purpose: str) -> bytes:
        """A key for another purpose, e.g. signing CSRF tokens."""
        return hashlib.sha256(self._key + b"\0" + purpose.encode()).digest()

    def fernet_key(self, purpose: str) -> bytes:
        """The same as a key for Fernet, which seals what two parties of ours say to each other."""
        return base64.urlsafe_b64encode(self.derive(purpose))


def new_secret(length: int = 32) -> str:
    """A random secret of letters and digits that read unambiguously; 32 of them carry about 187 bits."""
    return "".join(secrets.choice(_ALPHABET) for _ in range(length))


def hash_password(password: str) -> str:
    """Argon2id hash of a password that a person chose; tens of milliseconds."""
    return _passwords.hash(password)


def check_password(password: str, stored: str | None) -> bool:
    """Whether it is the password; takes as long for `None` (no such user)."""
    try:
        return _passwords.verify(stored or _NOBODY, password) and stored is not None
    except (VerificationError, InvalidHashError):
        return False
