"""The retry policy, as one table: what a reply means for the recipients to whom it applies.

    Reply --> the first row of TABLE that fits --> Decision: final or not, another MX or not, whose fault, and in words

The first digit of the basic code decides (RFC 5321 §4.2.1); an enhanced code only refines it (RFC 3463). A 5yz once the mail is
under discussion ends it for its recipient: no other MX, no other TLS level. A 5yz before that speaks of us. When to try
again is `backoff`'s affair; `wait_asked` reads what the remote server asked for. What a refusal for good is about, and whether the
address is to blame, is told by `bounce`.
"""

import re
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum

from remails.mail import bounce
from remails.mail.reply import Phase, Reply


class Outcome(StrEnum):
    """What a reply means for a recipient."""

    DELIVERED = "delivered"
    DEFERRED = "deferred"
    FAILED = "failed"
    AMBIGUOUS = "ambiguous"
    """The connection was lost after the final dot (RFC 1047): tried again, and may arrive twice."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What follows from a reply."""

    outcome: Outcome
    next_host: bool
    """Another MX may do better: it is this host that has a problem (RFC 5321 §5.1)."""
    throttles: bool
    """The destination is overloaded, away, or wants less of us: fewer connections for a while."""
    cause: str
    """Why, for people, as a sentence."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One row: the first whose phase, code and enhanced code fit a reply is the one that counts."""

    phases: frozenset[Phase]
    codes: tuple[str, ...]
    """Beginnings of the basic code; `-` stands for a connection that failed instead."""
    enhanced: tuple[str, ...]
    """Enhanced codes; one that ends in a dot is a beginning; empty: any or none."""
    text: re.Pattern[str] | None
    outcome: Outcome
    cause: str
    """Empty: `bounce` knows."""
    next_host: bool = False
    throttles: bool = False

    def fits(self, reply: Reply) -> bool:
        """Whether this row speaks of such a reply."""
        return (
            reply.phase in self.phases
            and (f"{reply.code:03}" if reply.code is not None else "-").startswith(self.codes)
            and (not self.enhanced or _listed(reply.enhanced, self.enhanced))
            and (self.text is None or self.text.search(reply.text) is not None)
        )


def _listed(enhanced: str | None, patterns: tuple[str, ...]) -> bool:
    return enhanced is not None and any(
        enhanced == pattern or (pattern.endswith(".") and enhanced.startswith(pattern)) for pattern in patterns
    )


def decide(reply: Reply) -> Decision:
    """What a reply means."""
    rule = next(rule for rule in TABLE if rule.fits(reply))
    return Decision(rule.outcome, rule.next_host, rule.throttles, rule.cause or bounce.classify(reply).cause)


_ASKED = re.compile(
    r"(?:again|retry|wait|come back|greylisted|deferred|delayed)\W+(?:\w+\W+){0,3}?(\d{1,5})\s*(s|m|h)(?:ec|in|ours?\b|r)?",
    re.I | re.A,
)
_UNIT = {"s": 1, "m": 60, "h": 3600}


def wait_asked(reply: Reply) -> timedelta | None:
    """How long the remote server asks us to wait ("try again in 5 minutes"); None where it does not say."""
    if reply.code is None or reply.code // 100 != 4:
        return None
    found = _ASKED.search(reply.text)
    return timedelta(seconds=int(found[1]) * _UNIT[found[2].lower()]) if found else None


def asks_for_another_transaction(reply: Reply) -> bool:
    """Whether this recipient was one too many for one transaction (RFC 5321 §4.5.3.1.10, O15)."""
    return reply.phase is Phase.RCPT and reply.code in (452, 552) and reply.enhanced in ("4.5.3", "5.5.3")


_LOCAL, _DNS = frozenset({Phase.LOCAL}), frozenset({Phase.DNS})
_ARRIVING = frozenset({Phase.CONNECT, Phase.BANNER, Phase.EHLO})
_TLS = frozenset({Phase.TLS})
_RCPT, _BODY = frozenset({Phase.RCPT}), frozenset({Phase.BODY})
_MAIL = frozenset({Phase.MAIL})
_ASKING = frozenset({Phase.MAIL, Phase.RCPT, Phase.DATA})
_TALKING = _ASKING | _BODY
_ALL = frozenset(Phase)

_GREYLISTED = re.compile(r"gr[ae]y-?list", re.I)
_TOO_FAST = re.compile(r"\brate\b|too many|too much|limit|throttl|busy|slow down|unusual|overload", re.I)

D, T, F, A = Outcome.DELIVERED, Outcome.DEFERRED, Outcome.FAILED, Outcome.AMBIGUOUS


def _row(
    phases: frozenset[Phase],
    codes: str,
    enhanced: str,
    outcome: Outcome,
    cause: str,
    *,
    text: re.Pattern[str] | None = None,
    flags: str = "",
) -> Rule:
    """A row in short: codes and enhanced codes by blanks; flags `n` next host, `t` throttles."""
    listed = tuple(enhanced.split())
    return Rule(phases, tuple(codes.split()) or ("",), listed, text, outcome, cause, "n" in flags, "t" in flags)


TABLE: tuple[Rule, ...] = (
    # The final dot decides for all who were accepted. Any 2yz is a success (O34), no reply is no answer (O23, RFC 1047).
    _row(_BODY, "2", "", D, "The recipient's server has accepted the message."),
    _row(_BODY, "-", "", A, "The connection broke after the message was sent: it may have arrived."),
    # Before a server is found
    _row(_DNS, "5", "5.1.10 5.1.2", F, ""),
    _row(_DNS, "5", "5.4.6", F, "The recipient's domain names this relay as its mail server: a loop."),
    _row(_DNS, "5", "", F, "The recipient's domain has no mail server that can be reached."),
    _row(_DNS, "4", "4.4.4", T, "The recipient's servers have only IP addresses of a version that this mail cannot leave by."),
    _row(_DNS, "4 -", "", T, "The recipient's domain could not be looked up; its name servers have a problem."),
    _row(_LOCAL, "5", "", F, "The message cannot be sent."),
    _row(_LOCAL, "4 -", "", T, "The relay has a problem of its own."),
    # Before the mail is spoken of: whatever it is, it is not the recipient's fault (O11)
    _row(frozenset({Phase.CONNECT}), "", "", T, "The recipient's server does not answer.", flags="nt"),
    _row(_ARRIVING, "-", "", T, "The recipient's server closed the connection.", flags="nt"),
    _row(_ARRIVING, "4", "", T, "The recipient's server is busy, or wants less mail from this address.", flags="nt"),
    _row(_ARRIVING, "5", "", T, "The recipient's server does not talk to the address this mail leaves from.", flags="nt"),
    _row(_ARRIVING, "", "", T, "The recipient's server does not speak SMTP as it should.", flags="nt"),
    _row(_TLS, "", "4.7.4", T, "The recipient's server offers no encryption, which is required.", flags="n"),
    _row(_TLS, "", "4.7.5", T, "The recipient's server could not prove that it is the right one, which is required.", flags="n"),
    _row(_TLS, "", "", T, "No connection as secure as is required could be made.", flags="n"),
    # Content that this server cannot take; another server of the domain is no better
    _row(_MAIL, "5", "5.6.3", F, "The message has 8-bit content, which the recipient's server cannot take."),
    _row(_MAIL, "5", "5.6.7", F, "The address is not plain ASCII, which the recipient's server cannot take."),
    # Too many recipients at once: the rest in another transaction
    _row(_RCPT, "452 552", "4.5.3 5.5.3", T, "The server takes fewer recipients at once; the others follow."),
    # Broken off before the message was sent
    _row(_ASKING, "-", "", T, "The connection broke before the message was sent.", flags="nt"),
    _row(_ASKING, "421", "", T, "The recipient's server is busy, or wants less mail from this address.", flags="nt"),
    _row(_BODY, "421", "", T, "The recipient's server is busy, or wants less mail from this address.", flags="t"),
    # Later, perhaps
    _row(_TALKING, "4", "", T, "The recipient's server greylists: it takes a message at the second try.", text=_GREYLISTED),
    _row(_TALKING, "4", "4.2.2", T, "The recipient's mailbox is full."),
    _row(_TALKING, "4", "", T, "The recipient's server wants less mail from this address.", text=_TOO_FAST, flags="t"),
    _row(_MAIL | _BODY, "4", "4.7.", T, "The recipient's server is wary of this sender or address.", flags="t"),
    _row(_RCPT, "4", "4.7.", T, "The recipient's server greylists, or is wary of this sender."),
    _row(_TALKING, "4", "", T, "The recipient's server has a temporary problem."),
    # Never
    _row(_TALKING, "5", "", F, ""),
    # 1yz, 3yz out of place, 2yz where none is due: nonsense is never a success
    _row(_ALL, "", "", T, "The recipient's server does not speak SMTP as it should."),
)  # fmt: skip
