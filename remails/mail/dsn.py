"""What a sender wants to be told of a message's fate: the parameters of RFC 3461, checked and kept as they were given.

    MAIL FROM:<a@example.com> RET=HDRS ENVID=QQ314159           of the message: `Asked`
    RCPT TO:<b@example.net> NOTIFY=NEVER ORCPT=rfc822;b@...     of one recipient: `AskedOf`

They are stored in the form they came in, which is also how the next server wants them, and decoded for people only.
"""

import re
from dataclasses import dataclass

from remails.mail.patterns import runs

MAX_ENVID = 100  # characters, RFC 3461 §4.4
MAX_ORCPT = 500  # characters, RFC 3461 §4.2

# RFC 3461 §4: printable ASCII without "+" and "=", which are written as "+" and two upper-case hexadecimal digits.
_XTEXT = re.compile(runs("[!-*,-<>-~]", r"\+[0-9A-F]{2}"))
_ENCODED = re.compile(r"\+([0-9A-F]{2})")
_ADDRESS_TYPE = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]*+")
# RFC 6533 §3: an address in UTF-8 in the form every server takes, with characters written as \x{20AC}.
_UTF8_TEXT = re.compile(runs(runs(r"[!-*,-<>-\[\]-~]", r"\\x\{[0-9A-F]{2,6}\}"), r"\+[0-9A-F]{2}"))
_WORDS = ("SUCCESS", "FAILURE", "DELAY")


class BadParameter(ValueError):
    """A parameter is not what RFC 3461 allows. Says why in one ASCII sentence."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What was asked for with MAIL; None is not asked."""

    ret: str | None = None
    """How much of the message a report about a failure shall hold: `FULL` or `HDRS`."""
    envid: str | None = None
    """The sender's own name for the transaction, in xtext."""

    @property
    def parameters(self) -> str:
        """As MAIL says it, with a blank in front; empty for nothing."""
        return "".join(f" {name}={value}" for name, value in (("RET", self.ret), ("ENVID", self.envid)) if value)


@dataclass(frozen=True, slots=True)
class AskedOf:
    """What was asked for with RCPT; None is not asked."""

    notify: str | None = None
    """`NEVER`, or some of `SUCCESS,FAILURE,DELAY`; without it failures are reported, and perhaps delays."""
    orcpt: str | None = None
    """The address the message was sent to at first: type, semicolon, and the address in xtext."""

    @property
    def parameters(self) -> str:
        """As RCPT says it, with a blank in front; empty for nothing."""
        return "".join(f" {name}={value}" for name, value in (("NOTIFY", self.notify), ("ORCPT", self.orcpt)) if value)


NOTHING = Asked()
NOT_ASKED = AskedOf()


def ret(value: str | None) -> str:
    """Check RET (RFC 3461 §4.3). Raises BadParameter."""
    found = (value or "").upper()
    if found not in ("FULL", "HDRS"):
        raise BadParameter("RET is FULL or HDRS")
    return found


def envid(value: str | None) -> str:
    """Check ENVID (RFC 3461 §4.4). Raises BadParameter."""
    if not value or len(value) > MAX_ENVID:
        raise BadParameter(f"ENVID has 1 to {MAX_ENVID} characters")
    _printable(value, "ENVID")
    return value


def notify(value: str | None) -> str:
    """Check NOTIFY (RFC 3461 §4.1); words come back in one order, each once. Raises BadParameter."""
    words = (value or "").upper().split(",")
    if words == ["NEVER"]:
        return "NEVER"
    if not words or not set(words) <= set(_WORDS):
        raise BadParameter("NOTIFY is NEVER, or some of SUCCESS, FAILURE and DELAY with commas between them")
    return ",".join(word for word in _WORDS if word in words)


def orcpt(value: str | None) -> str:
    """Check ORCPT (RFC 3461 §4.2, RFC 6533 §3). Raises BadParameter."""
    kind, semicolon, address = (value or "").partition(";")
    if not semicolon or not _ADDRESS_TYPE.fullmatch(kind) or not address:
        raise BadParameter("ORCPT is an address type, a semicolon and an address, as in rfc822;b@example.net")
    if len(value or "") > MAX_ORCPT:
        raise BadParameter(f"ORCPT has at most {MAX_ORCPT} characters")
    if kind.lower() == "utf-8":
        if not _UTF8_TEXT.fullmatch(address):
            raise BadParameter("ORCPT holds characters that must be encoded")
    else:
        _printable(address, "ORCPT")
    return f"{kind};{address}"


def _printable(value: str, name: str) -> None:
    """RFC 3461 §4.2 and §4.4: once it is decoded, all of it is printable ASCII."""
    if not _XTEXT.fullmatch(value):
        raise BadParameter(f"{name} is not xtext: other characters than printable ASCII, + and = are written as +XX")
    if not re.fullmatch(r"[ -~]+", plain(value)):
        raise BadParameter(f"{name} holds characters that are not printable")


def plain(xtext: str) -> str:
    """Xtext for people (RFC 3461 §4)."""
    return _ENCODED.sub(lambda found: chr(int(found[1], 16)), xtext)
