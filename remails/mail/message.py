"""Messages as bytes: what must be true of one before it is stored, and what is shown of it afterwards.

    raw --> prepare --> Prepared(raw', From, Subject, Message-ID ...)      at the door, once per message
              |
              | line ends, line lengths, NUL          Refused
              | header block: syntax, single fields   Refused
              | our Received, then Date and Message-ID where missing
              | less Bcc, Return-Path, and the fields that are ours to write
              `-> every other byte as it came

    raw --> preview --> Preview(text, html, attachments)                   for people, on demand

A relayed message is never parsed into a tree and written again: that changes nested multiparts and long ids, and breaks
signatures that came with it (M08). Only the header is parsed; the body is looked at with a few passes at memory speed.
"""

import ipaddress
import re
from collections import Counter
from dataclasses import dataclass
from datetime import datetime
from email.utils import format_datetime

from remails.errors import Refused
from remails.mail import address, headers, idempotency
from remails.mail.headers import Field, fields, split
from remails.mail.parts import Attachment, Preview, preview

__all__ = [
    "Attachment",
    "Field",
    "Prepared",
    "Preview",
    "fields",
    "normalise_label",
    "prepare",
    "preview",
    "received_field",
    "split",
]

# One pass each that jumps from line end to line end; `bytes.count` of one octet looks at every octet.
BARE_LF = re.compile(rb"\n(?<!\r\n)")
_BARE_CR = re.compile(rb"\r(?!\n)")

MAX_LINE = 998  # octets without CRLF, RFC 5322 §2.1.1
MAX_HEADER = 256 * 1024  # octets
MAX_FIELDS = 1000
MAX_RECEIVED = 100  # RFC 5321 §6.3
MAX_LABEL = 30  # characters

# RFC 5322 §3.6: at most once. Two readers of a message with two of them see two different messages.
_SINGLE = {
    name.lower().encode(): name for name in ("From", "Sender", "Reply-To", "To", "Cc", "Subject", "Date", "Message-ID")
}
_LABEL = b"x-remails-label"
_KEYS = tuple(name.encode() for name in idempotency.FIELDS)
_DROPPED = {b"bcc", b"resent-bcc", b"return-path", *_KEYS}
_DROPPED_PREFIX = b"x-remails-"


@dataclass(frozen=True, slots=True)
class Prepared:
    """A message fit to be stored, signed and sent, and what lists show of it."""

    raw: bytes
    header_from: str
    """The first address of From."""
    from_domains: tuple[str, ...]
    """The domains of every address of From, without repetition."""
    subject: str
    message_id: str
    """With its angle brackets."""
    label: str | None
    eight_bit: bool
    """Whether any octet is above 127: then BODY=8BITMIME is needed (RFC 6152)."""
    utf8_headers: bool
    """Whether one of the header is: then SMTPUTF8 is needed (RFC 6532)."""
    idempotency_key: str | None = None
    """What the sender calls it, so that it is stored once however often it is sent."""


def prepare(
    raw: bytes, *, received: bytes, fallback_id: str, now: datetime, hostname: str, label: str | None = None
) -> Prepared:
    """Check a submitted message and make it the one that is stored.

    Args:
        raw: the message as it came, with CRLF line ends.
        received: our complete Received field, see `received_field`.
        fallback_id: id of a message that has none, without angle brackets.
        now: when it came; the Date of a message that has none.
        hostname: our name, as in Authentication-Results fields that only we may write.
        label: goes before the label of the field X-REMAILS-LABEL.

    Raises:
        Refused: with a permanent code; the text says what to mend.
    """
    _check_octets(raw)
    end = headers.end_of_header(raw)
    found = _checked_fields(raw, end)
    first = {field.name: field for field in reversed(found)}
    senders = _senders(first)
    added, message_id = _added(first, fallback_id, now)
    kept = [field.raw for field in found if not _is_dropped(field, hostname, added)]
    header = b"".join((received, *added.values(), *kept))
    if not header.endswith(b"\n"):
        header += b"\r\n"
    return Prepared(
        raw=b"".join((header, memoryview(raw)[end:])),
        header_from=str(senders[0]),
        from_domains=tuple(dict.fromkeys(sender.domain for sender in senders)),
        subject=headers.decode(first[b"subject"].value) if b"subject" in first else "",
        message_id=message_id,
        label=normalise_label(label if label is not None else _label_of(first)),
        idempotency_key=_idempotency_key(found),
        eight_bit=not raw.isascii(),
        utf8_headers=not header.isascii(),
    )


def _refusal(text: str, code: int = 550, enhanced: str = "5.6.0", field: str | None = None) -> Refused:
    return Refused(code, enhanced, text, status=422, field=field)


def _check_octets(raw: bytes) -> None:
    """Refuse NUL, line ends other than CRLF, and overlong lines, at memory speed: a message may be 40 MB."""
    if b"\0" in raw:
        raise _refusal("The message contains a NUL octet", 554)
    # RFC 5321 §2.3.8: CR and LF stand only together. A server behind us may read a bare one as the end of a line, and
    # what follows as commands.
    if BARE_LF.search(raw) or _BARE_CR.search(raw):
        raise _refusal("The message contains a bare CR or LF, lines must end with CRLF", 550, "5.6.11")
    if _has_long_line(raw):
        text = f"The message has a line longer than {MAX_LINE} octets, use quoted-printable or base64"
        raise _refusal(text)


def _has_long_line(raw: bytes) -> bool:
    """Jump from line end to line end, each time the last one that a legal line can reach."""
    start = 0
    while len(raw) - start > MAX_LINE:
        start = raw.rfind(b"\n", start, start + MAX_LINE + 2) + 1
        if start == 0:
            return True
    return False


def _checked_fields(raw: bytes, end: int) -> list[Field]:
    if not end:
        raise _refusal("The message has no header", 554)
    if end > MAX_HEADER:
        raise _refusal(f"The header is larger than {MAX_HEADER} octets")
    found = fields(raw[:end])
    if len(found) > MAX_FIELDS:
        raise _refusal(f"The header has more than {MAX_FIELDS} fields")
    occurrences = Counter([field.name for field in found])
    if b"" in occurrences:
        broken = next(field for field in found if not field.name)
        line = address.shown(headers.text(broken.raw).strip())
        raise _refusal(f"The message header has a line that is no header field: {line}")
    for name, title in _SINGLE.items():
        if occurrences[name] > 1:
            field = "from" if name == b"from" else None
            raise _refusal(f"The message has more than one {title} field (RFC 5322 section 3.6)", field=field)
    if occurrences[b"received"] >= MAX_RECEIVED:
        raise _refusal("The message is in a loop, it has too many Received fields", 554, "5.4.6")
    return found


def _senders(first: dict[bytes, Field]) -> list[address.Address]:
    if b"from" not in first:
        raise _refusal("The message has no From field", field="from")
    try:
        return headers.mailboxes(first[b"from"].value)
    except address.BadAddress as error:
        raise _refusal(f"The From field cannot be read: {error}", field="from") from None


def _added(first: dict[bytes, Field], fallback_id: str, now: datetime) -> tuple[dict[bytes, bytes], str]:
    """The fields a submission server adds (RFC 6409 §8.2, §8.3), and the Message-ID; an empty field is none."""
    added: dict[bytes, bytes] = {}
    if b"date" not in first or not first[b"date"].value:
        added[b"date"] = f"Date: {format_datetime(now)}\r\n".encode()
    given = headers.clean(headers.text(first[b"message-id"].value))[:MAX_LINE] if b"message-id" in first else ""
    if not given:
        added[b"message-id"] = f"Message-ID: <{fallback_id}>\r\n".encode()
    return added, given or f"<{fallback_id}>"


def _is_dropped(field: Field, hostname: str, added: dict[bytes, bytes]) -> bool:
    """Bcc (RFC 5322 §3.6.3, M05), what the final delivery writes (RFC 5321 §4.4), and what is ours to write (M22)."""
    name = field.name
    if name in _DROPPED or name in added or name.startswith(_DROPPED_PREFIX):
        return True
    return name == b"authentication-results" and _authserv_id(field.value) == hostname.lower()


def _authserv_id(value: bytes) -> str:
    """RFC 8601 §2.2: the first word, perhaps quoted and after a comment."""
    line = headers.without_comments(headers.text(value)).strip()
    return re.split(r"[\s;]", line, maxsplit=1)[0].strip('"').rstrip(".").lower()


def _label_of(first: dict[bytes, Field]) -> str:
    return headers.decode(first[_LABEL].value) if _LABEL in first else ""


def _idempotency_key(found: list[Field]) -> str | None:
    try:
        keys = {idempotency.key(headers.text(field.value)) for field in found if field.name in _KEYS}
    except idempotency.BadKey as error:
        raise _refusal(str(error)) from None
    if len(keys) > 1:
        raise _refusal("The message has two idempotency keys")
    return keys.pop() if keys else None


def normalise_label(text: str) -> str | None:
    """Trimmed, lower case, one `-` for blanks and commas, at most 30 characters; None when nothing is left."""
    joined = re.sub(r"[\s,]+", "-", text.strip().lower())
    return headers.clean(joined)[:MAX_LABEL] or None


def received_field(
    *, client: str, client_ip: str, hostname: str, protocol: str, ident: str, now: datetime, tls: str | None
) -> bytes:
    """Our Received field (RFC 5321 §4.4), folded, with its CRLF.

    Args:
        client: the name a client gave in EHLO; what is no host name is left out.
        client_ip: where it came from.
        protocol: `ESMTPSA` and the like (RFC 3848), or `HTTP`.
        ident: id of the message.
        tls: version and cipher, None without TLS.
    """
    literal = _literal(client_ip)
    name = client if re.fullmatch(r"[A-Za-z0-9._-]{1,255}|\[[0-9A-Za-z:.]{1,60}\]", client) else literal
    lines = [
        f"Received: from {name} ({literal})",
        *([f"\t(using {re.sub(r'[^A-Za-z0-9 ._/:-]', '', tls)[:100]})"] if tls else []),
        f"\tby {hostname} (Remails) with {_word(protocol)}",
        f"\tid {_word(ident)};",
        f"\t{format_datetime(now)}",
    ]
    return "".join(f"{line}\r\n" for line in lines).encode("ascii", "replace")


def _literal(ip: str) -> str:
    """An address literal (RFC 5321 §4.1.3)."""
    try:
        parsed = ipaddress.ip_address(ip.partition("%")[0])
    except ValueError:
        return "unknown"
    return f"[IPv6:{parsed}]" if parsed.version == 6 else f"[{parsed}]"


def _word(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._+-]", "", text)[:100] or "unknown"
