"""What a remote server said. Outcomes are values, not exceptions.

A `Reply` is one SMTP reply, or our own words for a trouble on the way there, with the phase of the dialogue in which it came.
`retry` has the table that says what follows from it.
"""

import re
from dataclasses import dataclass
from enum import StrEnum

_ENHANCED = re.compile(r"([245]\.\d{1,3}\.\d{1,3})(?:\s+|$)")  # RFC 2034 §4, RFC 3463 §2
_LONGEST_TEXT = 1000


class Phase(StrEnum):
    """How far a dialogue had come."""

    LOCAL = "local"
    """Trouble of our own, before anything was tried."""
    DNS = "dns"
    CONNECT = "connect"
    BANNER = "banner"
    EHLO = "ehlo"
    TLS = "tls"
    MAIL = "mail"
    RCPT = "rcpt"
    DATA = "data"
    """Up to the 354."""
    BODY = "body"
    """While the message was being sent or its reply awaited: it may have been taken."""


@dataclass(frozen=True, slots=True)
class Reply:
    """One reply. `code` is None when the connection failed instead; `text` is one line, printable, bounded."""

    phase: Phase
    code: int | None
    enhanced: str | None
    text: str

    @property
    def line(self) -> str:
        """The reply as it is shown to people."""
        return " ".join(str(part) for part in (self.code, self.enhanced, self.text) if part)


def of(phase: Phase, code: int, text: str) -> Reply:
    """A reply as the remote server sent it; several lines become one."""
    clean = printable(text)
    match = _ENHANCED.match(clean)
    if match is None:
        return Reply(phase, code, None, clean)
    enhanced = match.group(1)
    # The code stands on each line of a multi-line reply.
    return Reply(phase, code, enhanced, clean[match.end() :].replace(f" {enhanced} ", " ").strip())


def lost(phase: Phase, text: str) -> Reply:
    """The dialogue broke off."""
    return Reply(phase, None, None, printable(text))


def printable(text: str) -> str:
    """Valid, printable, on one line and bounded: what a remote server may have sent is not (case O25)."""
    if not (text.isascii() and text.isprintable()):
        valid = text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
        text = "".join(c if c.isprintable() else " " for c in valid)
    return " ".join(text.split())[:_LONGEST_TEXT]
