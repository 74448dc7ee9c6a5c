"""A message made fit for a server without 8BITMIME (RFC 6152 §3): the same content, in seven bits.

    raw --> _entity: header, body --- all ASCII ---------> as it is, byte for byte
              |--- multipart, message/rfc822 ------------> each part by itself
              |--- text ---------------------------------> quoted-printable
              `--- anything else ------------------------> base64

Only parts with octets above 127 are written anew, and of their header only Content-Transfer-Encoding. What must not be touched is
not: signed or encrypted multiparts, and headers in UTF-8, which no encoding of the body can help. The message has to be signed
afterwards. Depth and number of parts are bounded.
"""

import base64
import binascii
import re
from itertools import islice

from remails.mail import headers, parts
from remails.mail.headers import Field

_ENCODING = b"content-transfer-encoding"
_PLAIN = ("", "7bit", "8bit", "binary")
_SEALED = ("multipart/signed", "multipart/encrypted")
_LONE_LF = re.compile(rb"(?<!\r)\n")


class _Untouchable(Exception):
    """There is no way to say the same in seven bits."""


def encode(raw: bytes) -> bytes | None:
    """The message, whose lines end with CRLF, in 7-bit octets and lines of at most 998; None where that cannot be."""
    try:
        return _entity(raw, 0, len(raw), depth=0, default="text/plain", is_message=True)
    except _Untouchable:
        return None


def _entity(raw: bytes, start: int, end: int, *, depth: int, default: str, is_message: bool = False) -> bytes:
    whole = raw[start:end]
    if whole.isascii():
        return whole
    body = headers.end_of_header(raw, start, end)
    found = headers.fields(raw[start:body])
    mime, boundary, encoding = _described(found, default)
    if mime in _SEALED or depth > parts.MAX_DEPTH:
        raise _Untouchable
    if mime.startswith("multipart/"):
        encoded, content = "7bit", _multipart(raw, body, end, boundary, depth, mime)
    elif mime == "message/rfc822":  # never encoded itself
        inner = _entity(raw, min(body + 2, end), end, depth=depth + 1, default="text/plain", is_message=True)
        encoded, content = "7bit", b"\r\n" + inner
    elif mime.startswith("message/"):
        raise _Untouchable
    else:
        octets = _decoded(raw[min(body + 2, end) : end], encoding)
        encoded, lines = _encoded(octets, mime)
        content = b"\r\n" + lines
        if is_message and not any(field.name == b"content-type" for field in found):
            found = [*found, Field(b"content-type", _type_of(octets))]
    if encoded == "7bit" and encoding not in _PLAIN:
        raise _Untouchable  # a multipart is never encoded itself
    return b"".join((*_header(found, encoded, is_message=is_message), content))


def _described(found: list[Field], default: str) -> tuple[str, str, str]:
    """Type, boundary and transfer encoding. Two fields of one name would be read by each reader in his own way."""
    if not all(field.raw.isascii() for field in found):
        raise _Untouchable
    values = {field.name: field.value for field in found}
    for name in (b"content-type", _ENCODING):
        if sum(field.name == name for field in found) > 1:
            raise _Untouchable
    mime, given = headers.parameters(values.get(b"content-type", b""))
    encoding = headers.without_comments(headers.text(values.get(_ENCODING, b""))).strip().lower()
    return mime if "/" in mime else default, given.get("boundary", ""), encoding


def _multipart(raw: bytes, body: int, end: int, boundary: str, depth: int, mime: str) -> bytes:
    """The parts one by one; what stands around them is for nobody to read (RFC 2046 §5.1.1)."""
    pieces = list(islice(parts.pieces(raw, body, end, boundary), parts.MAX_PARTS + 1)) if boundary else []
    if not 0 < len(pieces) <= parts.MAX_PARTS or not boundary.isascii():
        raise _Untouchable
    default = "message/rfc822" if mime == "multipart/digest" else "text/plain"
    written, position = [], body
    for start, stop in pieces:
        written += [_ascii(raw[position:start]), _entity(raw, start, stop, depth=depth + 1, default=default)]
        position = stop
    return b"".join((*written, _ascii(raw[position:end])))


def _ascii(octets: bytes) -> bytes:
    return octets if octets.isascii() else octets.decode("ascii", "replace").replace("\ufffd", "?").encode()


def _decoded(content: bytes, encoding: str) -> bytes:
    if encoding in _PLAIN:
        return content
    if encoding == "quoted-printable":
        return binascii.a2b_qp(content)
    if encoding == "base64":
        return headers.from_base64(content)
    raise _Untouchable


def _encoded(octets: bytes, mime: str) -> tuple[str, bytes]:
    """Name and form. Quoted-printable only where people would still read it, and no broken line can look like a boundary."""
    if mime.startswith("text/") and 3 * len(octets.translate(None, bytes(range(128)))) < len(octets):
        quoted = _LONE_LF.sub(b"\r\n", binascii.b2a_qp(octets, istext=True))
        if b"=\r\n--" not in quoted:
            return "quoted-printable", quoted
    lines = base64.encodebytes(octets).rstrip(b"\n")
    return "base64", lines.replace(b"\n", b"\r\n")


def _type_of(octets: bytes) -> bytes:
    """For a message from before MIME (RFC 1428 §3)."""
    try:
        octets.decode("utf-8")
    except ValueError:
        return b"Content-Type: text/plain; charset=unknown-8bit\r\n"
    return b"Content-Type: text/plain; charset=utf-8\r\n"


def _header(found: list[Field], encoding: str, *, is_message: bool) -> list[bytes]:
    line = f"Content-Transfer-Encoding: {encoding}\r\n".encode()
    written = [line if field.name == _ENCODING else field.raw for field in found]
    if line not in written and encoding != "7bit":
        written.append(line)
    if is_message and not any(field.name == b"mime-version" for field in found):
        written.append(b"MIME-Version: 1.0\r\n")
    return written
