"""Writing a message from its pieces, as the REST API and our own notices do (RFC 5322, RFC 2045 - 2047).

    Mailbox, subject, ids --> checked --> words --> _field: folded between words --\\
    text, html --> _part: 7bit, quoted-printable or base64 --> alternative ----------> bytes with CRLF

What comes in is data and stays data: a line end, NUL or half a surrogate pair in any piece is a BadField, a display name
is quoted or encoded so that no reader finds an address in it, and a field is only folded where we put a blank. The result
has 7 bits, so any server can take it; only an address that itself needs SMTPUTF8 makes an exception (RFC 6532).
"""

import base64
import binascii
import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from email.utils import format_datetime

from remails.mail import address

_MAX_FOLDED = 76  # RFC 2047 §2 for lines with encoded words
_MAX_LINE = 998  # RFC 5322 §2.1.1
_MAX_ID = 900
_ENCODED_OCTETS = 39  # 64 characters as an encoded word: fits beside the longest name of a field
_ATOMS = re.compile(r"[A-Za-z0-9!#$%&'*+/?^_`{|}~-]+(?: [A-Za-z0-9!#$%&'*+/?^_`{|}~-]+)*")
_ID = re.compile(rf"[!-;=?-~]{{1,{_MAX_ID}}}")


class BadField(ValueError):
    """A piece that cannot be part of a message: `field` is its name, the text begins with it."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}")
        self.field = field
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Mailbox:
    """An address and, if there is one, the name to show for it."""

    address: str
    name: str | None = None


def compose(
    *,
    sender: Mailbox,
    to: Sequence[Mailbox],
    cc: Sequence[Mailbox] = (),
    subject: str,
    text: str | None,
    html: str | None,
    reply_to: Mailbox | None = None,
    in_reply_to: str | None = None,
    references: Sequence[str] = (),
    message_id: str,
    now: datetime,
) -> bytes:
    """Write a message. Ids may come with or without angle brackets; at least one of `text` and `html` is needed.

    Raises:
        BadField: a piece is not fit; the names are those of the API (`from`, `to[1]`, `subject` ...).
    """
    fields = [
        _field("From", _mailboxes("from", [sender])),
        _field("To", _mailboxes("to", to)) if to else "",
        _field("Cc", _mailboxes("cc", cc)) if cc else "",
        _field("Reply-To", _mailboxes("reply_to", [reply_to])) if reply_to else "",
        _field("Subject", _words(_checked("subject", subject))),
        _field("Date", [format_datetime(now)]),
        _field("Message-ID", [_id("message_id", message_id)]),
        _field("In-Reply-To", [_id("in_reply_to", in_reply_to)]) if in_reply_to else "",
        _field("References", [_id(f"references[{n}]", given) for n, given in enumerate(references)])
        if references
        else "",
        "MIME-Version: 1.0\r\n",
    ]
    return "".join(fields).encode() + _body(text, html)


def _checked(field: str, value: str) -> str:
    """Refuse what would end a line or cannot be encoded (A01)."""
    if re.search(r"[\r\n]", value):
        raise BadField(field, "must not contain a line break")
    return _encodable(field, value)


def _encodable(field: str, value: str) -> str:
    if "\0" in value:
        raise BadField(field, "must not contain a NUL character")
    if re.search("[\ud800-\udfff]", value):
        raise BadField(field, "must not contain half of a surrogate pair")
    return value


def _mailboxes(field: str, given: Sequence[Mailbox]) -> list[str]:
    words: list[str] = []
    for number, mailbox in enumerate(given):
        name = f"{field}[{number}]" if field in ("to", "cc") else field
        words += _mailbox(name, mailbox)
        words[-1] += ","
    words[-1] = words[-1].removesuffix(",")
    return words


def _mailbox(field: str, given: Mailbox) -> list[str]:
    """`name <address>`, the name as atoms, a quoted string or encoded words (RFC 5322 §3.4, RFC 2047 §5)."""
    try:
        parsed = address.parse(_checked(field, given.address).strip())
    except address.BadAddress as error:
        raise BadField(field, str(error)) from None
    name = _checked(field, given.name or "").strip()
    if not name:
        return [str(parsed)]
    if not _is_plain(name) or len(name) > _MAX_FOLDED - 10:
        return [*_encoded_words(name), f"<{parsed}>"]
    if not _ATOMS.fullmatch(name):
        name = '"' + re.sub(r'(["\\])', r"\\\1", name) + '"'
    return [name, f"<{parsed}>"]


def _is_plain(value: str) -> bool:
    """Whether a reader sees the text itself: printable ASCII, and nothing that looks like an encoded word."""
    return value.isascii() and value.isprintable() and "=?" not in value


def _words(value: str) -> list[str]:
    """Unstructured text as words between which a line may be folded."""
    words = value.split(" ")
    if _is_plain(value) and (all(words) or not value) and max(map(len, words)) < _MAX_FOLDED - 10:
        return words
    return list(_encoded_words(value))


def _encoded_words(value: str) -> Iterator[str]:
    """RFC 2047 §4.1, whole characters in each word (§5)."""
    chunk = b""
    for character in value:
        octets = character.encode()
        if len(chunk) + len(octets) > _ENCODED_OCTETS:
            yield _encoded_word(chunk)
            chunk = b""
        chunk += octets
    yield _encoded_word(chunk)


def _encoded_word(octets: bytes) -> str:
    return f"=?utf-8?B?{base64.b64encode(octets).decode('ascii')}?="


def _id(field: str, given: str) -> str:
    """A message id in its angle brackets (RFC 5322 §3.6.4); odd ids of others are taken as they are."""
    inner = given.strip(" ").removeprefix("<").removesuffix(">")
    if not _ID.fullmatch(inner):
        raise BadField(field, "is not a message id such as <a1b2@example.com>")
    return f"<{inner}>"


def _field(name: str, words: Sequence[str]) -> str:
    """A field folded between words (RFC 5322 §2.2.3), the first of them always beside the name."""
    lines = [f"{name}: {words[0]}"]
    for word in words[1:]:
        if len(lines[-1]) + 1 + len(word) > _MAX_FOLDED:
            lines.append("")
        lines[-1] += " " + word
    return "\r\n".join(lines) + "\r\n"


def _body(text: str | None, html: str | None) -> bytes:
    """The last fields of the header, the blank line and the body."""
    parts = [
        _part(f"text/{kind}", _encodable(field, content))
        for field, kind, content in (("text", "plain", text), ("html", "html", html))
        if content is not None
    ]
    if not parts:
        raise BadField("text", "a text or an HTML body is needed")
    if len(parts) == 1:
        return parts[0]
    # The boundary is a hash of what it bounds, so nobody can have put it in there.
    boundary = b"=_" + hashlib.sha256(b"\0".join(parts)).hexdigest()[:32].encode()
    opening = b"--" + boundary + b"\r\n"
    return b"".join(
        (
            b'Content-Type: multipart/alternative;\r\n boundary="' + boundary + b'"\r\n\r\n',
            *(opening + part for part in parts),  # RFC 2046 §5.1.4: the best comes last
            b"--" + boundary + b"--\r\n",
        )
    )


def _part(mime: str, content: str) -> bytes:
    octets = re.sub(r"\r\n|\r|\n", "\r\n", content).encode()
    if not octets.endswith(b"\r\n"):
        octets += b"\r\n"
    encoding, encoded = _transfer_encoded(octets)
    return f"Content-Type: {mime}; charset=utf-8\r\nContent-Transfer-Encoding: {encoding}\r\n\r\n".encode() + encoded


def _transfer_encoded(octets: bytes) -> tuple[str, bytes]:
    """The encoding that is easiest to read and safe in 7 bits (RFC 2045 §6)."""
    foreign = len(re.findall(rb"[^\t\r\n -~]", octets))
    if not foreign and max(map(len, octets.split(b"\r\n"))) <= _MAX_LINE:
        return "7bit", octets
    if foreign * 6 > len(octets):
        return "base64", base64.encodebytes(octets).replace(b"\n", b"\r\n")
    return "quoted-printable", binascii.b2a_qp(octets)
