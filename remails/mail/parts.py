"""The MIME parts of a message, for people to look at (RFC 2045, RFC 2046).

    raw --> _leaves --> Part, Part ...     each only a range of `raw`: nothing is copied or decoded on the way
                          |
                          |-- the first text/plain and the first text/html: decoded, cut to a limit
                          `-- every other one: an attachment, of which only name, type and size are told

Whatever the message looks like, the work is bounded: so many levels, so many parts, so much decoded text. Nothing raises.
"""

import binascii
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from remails.mail import headers

MAX_DEPTH = 20
MAX_PARTS = 200
MAX_PART_HEADER = 64 * 1024  # octets
MAX_FILENAME = 255  # characters
_OCTETS_PER_CHARACTER = 12  # of quoted-printable UTF-8, at most


@dataclass(frozen=True, slots=True)
class Attachment:
    """What is told of a part that is not shown; `size` in octets when decoded, `filename` may be empty."""

    filename: str
    mime: str
    size: int


@dataclass(frozen=True, slots=True)
class Preview:
    """What a message says, as text; both None when it has no such part."""

    text: str | None
    html: str | None
    attachments: list[Attachment]


@dataclass(frozen=True, slots=True)
class _Part:
    mime: str
    charset: str
    encoding: str
    filename: str
    is_attachment: bool
    start: int
    end: int


def preview(raw: bytes, limit: int = 100_000) -> Preview:
    """The message for people to read: `limit` characters of each text at most, charsets guessed where unknown (M12)."""
    shown: dict[str, str] = {}
    attachments: list[Attachment] = []
    for part in _leaves(raw):
        if part.mime in ("text/plain", "text/html") and part.mime not in shown and not part.is_attachment:
            shown[part.mime] = _text(raw, part, limit)
        else:
            attachments.append(Attachment(part.filename, part.mime, _size(raw, part)))
    return Preview(shown.get("text/plain"), shown.get("text/html"), attachments)


def _leaves(raw: bytes) -> Iterator[_Part]:
    """The parts that are no multiparts, in order; multiparts count towards MAX_PARTS too."""
    waiting = [(0, len(raw), 0)]
    for _ in range(MAX_PARTS):
        if not waiting:
            return
        start, end, depth = waiting.pop()
        body = headers.end_of_header(raw, start, end)
        values = {field.name: field.value for field in headers.fields(raw[start : min(body, start + MAX_PART_HEADER)])}
        mime, parameters = headers.parameters(values.get(b"content-type", b""))
        boundary = parameters.get("boundary", "")
        if mime.startswith("multipart/") and boundary and depth < MAX_DEPTH:
            found = islice(pieces(raw, body, end, boundary), MAX_PARTS)
            waiting += reversed([(*piece, depth + 1) for piece in found])
        else:
            yield _leaf(values, mime, parameters, (min(body + 2, end), end))


def _leaf(values: dict[bytes, bytes], mime: str, parameters: dict[str, str], place: tuple[int, int]) -> _Part:
    disposition, more = headers.parameters(values.get(b"content-disposition", b""))
    return _Part(
        mime=headers.clean(mime)[:100] if "/" in mime else "text/plain",  # RFC 2045 §5.2
        charset=parameters.get("charset", "utf-8"),
        encoding=headers.text(values.get(b"content-transfer-encoding", b"")).lower(),
        filename=_file_name(more.get("filename") or parameters.get("name") or ""),
        is_attachment=disposition == "attachment",
        start=place[0],
        end=place[1],
    )


def pieces(raw: bytes, start: int, end: int, boundary: str) -> Iterator[tuple[int, int]]:
    """The ranges between the delimiter lines (RFC 2046 §5.1.1); the last may lack its close.

    `start` is where the blank line begins, so that a delimiter in the first line has its CRLF.
    """
    delimiter = re.compile(rb"\r\n--" + re.escape(boundary.encode()) + rb"(--)?[ \t]*(?=\r\n|\Z)")
    opened: int | None = None
    for found in delimiter.finditer(raw, start, end):
        if opened is not None:
            yield opened, max(opened, found.start())
        if found[1]:
            return
        opened = min(found.end() + 2, end)
    if opened is not None:
        yield opened, end


def _text(raw: bytes, part: _Part, limit: int) -> str:
    octets = raw[part.start : min(part.end, part.start + limit * _OCTETS_PER_CHARACTER)]
    if part.encoding == "base64":
        octets = headers.from_base64(octets)
    elif part.encoding == "quoted-printable":
        octets = binascii.a2b_qp(octets)
    return headers.text(octets, part.charset).replace("\r\n", "\n").replace("\0", "")[:limit]


def _size(raw: bytes, part: _Part) -> int:
    """Octets of the content, reckoned from the encoded length."""
    length = part.end - part.start
    if part.encoding != "base64":
        return length
    letters = length - sum(raw.count(c, part.start, part.end) for c in (b"\r", b"\n", b" ", b"="))
    return letters * 3 // 4


def _file_name(given: str) -> str:
    """A name for display and for saving: one path component, encoded words decoded though RFC 2047 §5 forbids them."""
    name = headers.decode(given.encode("utf-8", "replace"), MAX_FILENAME)
    return re.split(r"[/\\]", name)[-1].strip()
