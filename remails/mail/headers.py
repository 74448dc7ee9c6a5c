"""The header of a message: cut into fields, and what a field's value says.

    raw --> split --> header block --> fields --> Field(name, raw).value --> decode       for people to read
                  `-> body                                              |--> mailboxes    From and its like
                                                                        `--> parameters   Content-Type and its like

Everything here reads; nothing is written back, so an odd field costs a worse display and never a changed message.
Encoded words are decoded for display only, never before addresses are read: a decoded `<` or `,` in a display name
would make an address out of a name.
"""

import base64
import binascii
import encodings.aliases
import re
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

from remails.mail import address
from remails.mail.patterns import QUOTED, runs

# RFC 5322 §2.2, with the blanks before the colon of §4.5. A line that is no field matches without a name.
_FIELD = re.compile(rb"(?!\Z)((?:([!-9;-~]++)[ \t]*+:)?+[^\n]*+\n?+(?:[ \t][^\n]*+\n?+)*+)")


@dataclass(frozen=True, slots=True)
class Field:
    """One header field: `name` in lower case, empty if the line is no field; `raw` is all of it with folds and CRLF."""

    name: bytes
    raw: bytes

    @property
    def value(self) -> bytes:
        """What follows the colon, unfolded (RFC 5322 §2.2.3), without blanks around it."""
        return self.raw.partition(b":")[2].replace(b"\r\n", b"").strip(b" \t\r\n")


def end_of_header(raw: bytes, start: int = 0, end: int | None = None) -> int:
    """Where the blank line begins, or else the end: a message need not have a body (RFC 5322 §3.5)."""
    if raw.startswith(b"\r\n", start, end):
        return start
    found = raw.find(b"\r\n\r\n", start, end)
    if found < 0:
        return len(raw) if end is None else end
    return found + 2


def split(raw: bytes) -> tuple[bytes, bytes]:
    """The header block with its last CRLF, and the body after the blank line; either may be empty."""
    end = end_of_header(raw)
    return raw[:end], raw[end + 2 :]


def fields(header: bytes) -> list[Field]:
    """Cut a header block into its fields; their `raw` joined is the block again."""
    return [Field(name.lower(), raw) for raw, name in _FIELD.findall(header)]


# --- text -----------------------------------------------------------------------------------------------------------

_WORD = r"=\?([^?\s*]{1,40})(?:\*[^?\s]*)?\?([bBqQ])\?([^?]*)\?="
_ENCODED_WORD = re.compile(_WORD)
_ENCODED_WORDS = re.compile(f"(?:{_WORD})+")
_BETWEEN_WORDS = re.compile(r"(?<=\?=)[ \t]+(?==\?)")
# Control characters, line separators, marks that turn the direction of writing, halves of surrogate pairs.
_UNFIT = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_ALIASES = encodings.aliases.aliases
_CODECS = {**_ALIASES, **{name: name for name in (*_ALIASES.values(), "koi8_u", "cp874")}}


def text(octets: bytes, charset: str = "utf-8") -> str:
    """Decode with the charset a message names, or UTF-8; with replacement characters for what does not fit (M12)."""
    # Only names known beforehand are looked up: Python searches its folders for any other and remembers it for ever.
    codec = _CODECS.get(charset.lower().replace("-", "_"), "utf_8")
    try:
        return octets.decode(codec, "replace")
    except (LookupError, ValueError):  # zlib, rot13 and their like decode no text
        return octets.decode("utf-8", "replace")


def clean(value: str) -> str:
    """Without the characters that are unfit for one line of a page, a log or a database column."""
    return _UNFIT.sub("", value)


def decode(value: bytes, limit: int = 500) -> str:
    """An unstructured value for people to read: encoded words decoded (RFC 2047), `limit` characters at most."""
    line = text(value[: limit * 20])  # a character in encoded words may need so many octets
    if "=?" in line:
        line = _ENCODED_WORDS.sub(_decode_words, _BETWEEN_WORDS.sub("", line))  # RFC 2047 §6.2
    return clean(line.replace("\t", " "))[:limit]


def _decode_words(run: re.Match[str]) -> str:
    """Decode neighbours as one: senders cut characters in two, although RFC 2047 §5 forbids it."""
    decoded, charset, octets = "", "", b""
    for word_charset, encoding, encoded in _ENCODED_WORD.findall(run[0]):
        if word_charset != charset:
            decoded += text(octets, charset)
            charset, octets = word_charset, b""
        octets += _word_octets(encoding, encoded.encode("ascii", "ignore"))
    return decoded + text(octets, charset)


def _word_octets(encoding: str, encoded: bytes) -> bytes:
    return from_base64(encoded) if encoding in "bB" else binascii.a2b_qp(encoded, header=True)


def from_base64(encoded: bytes) -> bytes:
    """Decode what can be decoded; foreign characters and missing padding are passed over."""
    letters = re.sub(rb"[^A-Za-z0-9+/]+", b"", encoded)
    if len(letters) % 4 == 1:
        letters = letters[:-1]
    return base64.b64decode(letters + b"=" * (-len(letters) % 4))


# --- addresses ------------------------------------------------------------------------------------------------------

_COMMENT_OR_NOT = re.compile(rf'{QUOTED}|\\.|[^"\\()]++|.', re.DOTALL)
_IN_COMMENT = re.compile(r"\\.|[^\\()]++|.", re.DOTALL)
# A name in front of <...>: quoted strings and words. More characters than RFC 5322 allows in words, but none of those
# that make two readers of the same line see different addresses.
_WORDS, _IN_BRACKETS, _BARE = r'[^"(),<>@\x00-\x08\x0a-\x1f\x7f]', r'[^"<> \t]', r'[^"(),:;<> \t]'
_MAILBOX = re.compile(
    rf"""[ \t]*(?:
        {runs(_WORDS, QUOTED)} < [ \t]*(?P<angle>{runs(_IN_BRACKETS, QUOTED)})[ \t]* >
        | (?P<bare>(?:{_BARE}|{QUOTED}){runs(_BARE, QUOTED)})
    )[ \t]*(?:,|\Z)""",
    re.VERBOSE,
)


def mailboxes(value: bytes) -> list[address.Address]:
    """The addresses of a mailbox-list (RFC 5322 §3.4), in order.

    Raises:
        BadAddress: one of them cannot be read, or there is none.
    """
    line = without_comments(value.decode("utf-8", "surrogateescape")).strip()
    found: list[address.Address] = []
    position = 0
    while position < len(line) or not found or line.endswith(","):
        mailbox = _MAILBOX.match(line, position)
        if mailbox is None:
            raise address.BadAddress(f"{address.shown(line[position:])} is not an address")
        found.append(address.parse(mailbox["angle"] or mailbox["bare"] or ""))
        position = mailbox.end()
    return found


def without_comments(line: str) -> str:
    """The line with a blank in place of each comment (RFC 5322 §3.2.2); comments may be nested."""
    if "(" not in line:
        return line
    kept: list[str] = []
    depth = position = 0
    while token := (_IN_COMMENT if depth else _COMMENT_OR_NOT).match(line, position):
        position = token.end()
        if token[0] == "(":
            depth += 1
            kept.append(" ")
        elif depth and token[0] == ")":
            depth -= 1
        elif not depth:
            kept.append(token[0])
    return "".join(kept)


# --- parameters -----------------------------------------------------------------------------------------------------

_PARAMETER = re.compile(rf";\s*+([^\s=;]++)\s*+=\s*+({QUOTED}|[^\s;]*+)")


def parameters(value: bytes) -> tuple[str, dict[str, str]]:
    """A value like `text/plain; charset=utf-8`: the word and the parameters, names in lower case (RFC 2045 §5.1)."""
    line = without_comments(text(value))
    word = line.partition(";")[0].strip().lower()
    given = {name.lower(): _unquoted(item) for name, item in _PARAMETER.findall(line)}
    return word, {name: _continued(name, given) for name in {name.partition("*")[0] for name in given}}


def _unquoted(item: str) -> str:
    return re.sub(r"\\(.)", r"\1", item[1:-1]) if len(item) > 1 and item[0] == item[-1] == '"' else item


def _continued(name: str, given: dict[str, str]) -> str:
    """A parameter's value, put together from its parts and decoded where it is encoded (RFC 2231 §3, §4)."""
    keys = _part_names(name, given)
    if not keys:
        return given.get(name, "")
    charset, octets = "utf-8", b""
    for number, key in enumerate(keys):
        part = given[key]
        if not key.endswith("*"):
            octets += part.encode("utf-8", "surrogateescape")
            continue
        if number == 0 and part.count("'") >= 2:
            charset, _, part = part.split("'", 2)
        octets += unquote_to_bytes(part)
    return text(octets, charset)


def _part_names(name: str, given: dict[str, str]) -> list[str]:
    """`name*`, or `name*0`, `name*1*` ... as far as they go."""
    if f"{name}*" in given:
        return [f"{name}*"]
    found: list[str] = []
    for number in range(len(given)):
        key = next((key for key in (f"{name}*{number}", f"{name}*{number}*") if key in given), None)
        if key is None:
            break
        found.append(key)
    return found
