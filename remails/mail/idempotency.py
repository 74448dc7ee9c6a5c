"""Telling a message that is sent once more from another one: the sender's key, and a fingerprint of what was sent.

A program that has heard no answer makes the request again, and often makes the message again, with a new Date, Message-ID and
multipart boundaries. So the fingerprint leaves out what differs between two makings of the same message, and nothing else.
"""

import hashlib
import re
from collections.abc import Iterable

from remails.mail import headers

FIELDS = ("idempotency-key", "x-remails-idempotency-key")
"""Header fields that name the key; they are not sent on."""
MAX_KEY = 255

_OF_THE_MAKING = {b"date", b"message-id", b"received", *(name.encode() for name in FIELDS)}
_BOUNDARY = re.compile(rb'(boundary=")([^"\r\n]{1,70})"|(boundary=)([^";\s]{1,70})')
_MOST_BOUNDARIES = 100


class BadKey(ValueError):
    """A key that cannot be kept. Says why in one ASCII sentence."""


def key(text: str) -> str:
    """A key without the quotes a client may have put around it. Raises BadKey."""
    found = text.strip()
    if len(found) > 1 and found[0] == found[-1] == '"':
        found = found[1:-1]
    if not re.fullmatch(rf"[!-~](?:[ -~]{{0,{MAX_KEY - 2}}}[!-~])?", found):
        raise BadKey(f"An idempotency key has 1 to {MAX_KEY} printable ASCII characters")
    return found


def fingerprint(envelope: Iterable[str], raw: bytes) -> bytes:
    """A digest that is the same whenever the same message is sent to the same recipients."""
    header, body = headers.split(raw)
    kept = b"".join(field.raw for field in headers.fields(header) if field.name not in _OF_THE_MAKING)
    digest = hashlib.sha256("\0".join(envelope).encode() + b"\0\0")
    for piece in _without_boundaries(kept, body):
        digest.update(piece)
    return digest.digest()


def _without_boundaries(header: bytes, body: bytes) -> tuple[bytes, ...]:
    """Both with every boundary (RFC 2046 §5.1.1) replaced by a number, where it is named and where it stands on a line."""
    names: dict[bytes, bytes] = {}

    def number(found: re.Match[bytes]) -> bytes:
        name = found[2] or found[4]
        if name not in names and len(names) < _MOST_BOUNDARIES:
            names[name] = b"%d" % len(names)
        return b"boundary=" + names.get(name, name)

    header = _BOUNDARY.sub(number, header)
    if names and b"boundary=" in body:
        body = _BOUNDARY.sub(number, body)
    # A longer one first: one may begin with another.
    for name in sorted(names, key=len, reverse=True):
        body = body.replace(b"\n--" + name, b"\n--#" + names[name])
        body = b"--#" + names[name] + body[len(name) + 2 :] if body.startswith(b"--" + name) else body
    return header, b"\r\n", body
