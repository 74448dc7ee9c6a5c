"""What a remote server said, and what follows from it. Outcomes are values, not exceptions.

A `Reply` is one SMTP reply or our own words for a trouble on the way there; `verdict` is the table that says what it means for
a recipient, depending on the phase of the dialogue in which it came.
"""

import re
from dataclasses import dataclass
from enum import StrEnum

_ENHANCED = re.compile(r"([245]\.\d{1,3}\.\d{1,3})(?:\s+|$)")  # RFC 2034 §4, RFC 3463 §2
_UNKNOWN_USER = re.compile(
    r"unknown|no such|not exist|not found|no mailbox|invalid (?:recipient|user|mailbox|address)", re.I
)
_HARD_ADDRESS = frozenset({"5.1.1", "5.1.2", "5.1.3", "5.1.6", "5.1.10", "5.2.1"})
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


class Outcome(StrEnum):
    """What a reply means for a recipient."""

    DELIVERED = "delivered"
    DEFERRED = "deferred"
    FAILED = "failed"
    AMBIGUOUS = "ambiguous"
    """The connection was lost after the final dot (RFC 1047): tried again, and may arrive twice."""


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
    valid = text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return " ".join("".join(c if c.isprintable() else " " for c in valid).split())[:_LONGEST_TEXT]


def verdict(reply: Reply) -> Outcome:
    """What a reply means for a recipient to whom it applies (RFC 5321 §4.2.1, §4.5.4.1).

    A 5yz greeting or answer to EHLO speaks of us, not of the mail: it is retried elsewhere and later.
    """
    if reply.code is None:
        return Outcome.AMBIGUOUS if reply.phase is Phase.BODY else Outcome.DEFERRED
    if reply.phase is Phase.BODY and reply.code // 100 == 2:
        return Outcome.DELIVERED
    if reply.code // 100 == 5 and reply.phase in (Phase.DNS, Phase.MAIL, Phase.RCPT, Phase.DATA, Phase.BODY):
        return Outcome.FAILED
    return Outcome.DEFERRED


def tries_next_host(reply: Reply) -> bool:
    """Whether another MX of the domain may do better: it is this host that has a problem (RFC 5321 §5.1)."""
    if reply.phase in (Phase.CONNECT, Phase.BANNER, Phase.EHLO, Phase.TLS):
        return True
    return reply.phase in (Phase.MAIL, Phase.RCPT, Phase.DATA) and (reply.code is None or reply.code == 421)


def blames_address(reply: Reply) -> bool:
    """Whether the recipient's address itself is bad, so that it should be suppressed; a policy's refusal is not that."""
    if verdict(reply) is not Outcome.FAILED or reply.phase not in (Phase.RCPT, Phase.BODY, Phase.DNS):
        return False
    if reply.enhanced is not None:
        return reply.enhanced in _HARD_ADDRESS
    return reply.phase is Phase.RCPT and reply.code in (550, 551, 553) and bool(_UNKNOWN_USER.search(reply.text))
