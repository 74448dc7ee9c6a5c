"""What a permanent refusal is about, and whether it is the recipient's address that is bad.

    Reply, 5yz --> the first row of TABLE that fits --> Kind --> in words, and how surely the address is to blame

Servers use enhanced codes as they please: `5.1.1` comes with a full mailbox (Orange), `5.5.0` with an unknown user (Outlook). So a text
that speaks of something else than the address goes first, then the code (RFC 3463), then a text that speaks of the address. A
wrong suppression loses a customer his mail and a missing one costs a few connections: what is not clear counts for little, and policy,
spam, the sender and a full mailbox never count (case O32).
"""

import re
from dataclasses import dataclass
from enum import Enum, IntEnum

from remails.mail.reply import Phase, Reply


class Blame(IntEnum):
    """How surely the address itself is bad."""

    NONE = 0
    """It speaks of something else; never suppresses."""
    PERHAPS = 1
    """Suppressed when it goes on: the fifth in a row."""
    SURELY = 2
    """There is no such mailbox: suppressed at once."""


class Kind(Enum):
    """What a refusal is about: the cause as a sentence, and whose fault it is."""

    UNKNOWN_USER = ("The address does not exist.", Blame.SURELY)
    DOUBTFUL_USER = ("The recipient's server does not take mail for the address.", Blame.PERHAPS)
    MOVED = ("The mailbox has moved, or is no longer on that server.", Blame.SURELY)
    DISABLED = ("The recipient's mailbox is disabled.", Blame.PERHAPS)
    UNKNOWN_DOMAIN = ("The recipient's domain does not exist.", Blame.PERHAPS)
    NO_MAIL = ("The recipient's domain accepts no mail at all (null MX).", Blame.SURELY)
    FULL = ("The recipient's mailbox is full.", Blame.NONE)
    RATE = ("The recipient's server takes no more mail for now, from us or for this mailbox.", Blame.NONE)
    SIZE = ("The message is larger than the recipient's server takes.", Blame.NONE)
    SENDER = ("The recipient's server does not accept the sender's address.", Blame.NONE)
    AUTHENTICATION = ("The recipient's server could not authenticate the sender (SPF, DKIM, DMARC, reverse DNS).", Blame.NONE)  # fmt: skip
    REPUTATION = ("The recipient's server blocks the address this mail leaves from.", Blame.NONE)
    SPAM = ("The recipient's server takes the message for spam.", Blame.NONE)
    CONTENT = ("The recipient's server refuses the message's content.", Blame.NONE)
    RELAYING = ("The server found in DNS does not take mail for the recipient's domain.", Blame.NONE)
    LOOP = ("The message goes round in a loop behind the recipient's server.", Blame.NONE)
    POLICY = ("The recipient's server refuses the message by its policy.", Blame.NONE)
    UNCLEAR = ("The recipient's server refuses the message for good.", Blame.NONE)

    def __init__(self, cause: str, blame: Blame) -> None:
        self.cause, self.blame = cause, blame


@dataclass(frozen=True, slots=True)
class Row:
    """One row: the first whose code and text fit is the one that counts."""

    kind: Kind
    enhanced: tuple[str, ...]
    """Enhanced codes; one that ends in a dot is a beginning; empty: any or none."""
    text: re.Pattern[str] | None

    def fits(self, enhanced: str, text: str) -> bool:
        """Whether this row speaks of such a refusal."""
        listed = any(enhanced == one or (one.endswith(".") and enhanced.startswith(one)) for one in self.enhanced)
        return (not self.enhanced or listed) and (self.text is None or self.text.search(text) is not None)


def classify(reply: Reply) -> Kind:
    """What a refusal (5yz) is about; UNCLEAR for every other reply."""
    if reply.code is None or reply.code // 100 != 5:
        return Kind.UNCLEAR
    enhanced, text = _enhanced(reply), _bare(reply.text)
    return next((row.kind for row in TABLE if row.fits(enhanced, text)), Kind.UNCLEAR)


def blame(reply: Reply, recipient: str, *, is_alone: bool) -> Blame:
    """How surely the recipient's address is bad, by this refusal of it.

    Args:
        recipient: the address as it was given to the server.
        is_alone: whether the reply was for this recipient and nobody else.
    """
    if reply.phase not in (Phase.DNS, Phase.RCPT, Phase.BODY) or (reply.enhanced or "5")[0] != "5":
        return Blame.NONE  # it speaks of the sender, or contradicts itself
    if (reply.enhanced or "").startswith(_NEVER):
        return Blame.NONE
    if reply.phase is Phase.BODY and not is_alone and recipient.lower() not in reply.text.lower():
        return Blame.NONE  # one answer for several: nobody knows for whom
    found = classify(reply).blame
    if recipient.partition("@")[0].lower() in ROLES:
        return min(found, Blame.PERHAPS)
    return found


ROLES = frozenset(("postmaster", "abuse", "hostmaster", "noc", "security", "webmaster"))
"""Mailboxes that a domain is asked to have (RFC 5321 §4.5.1, RFC 2142): one refusal is rather an accident than the truth."""

_CODE = re.compile(r"#\s?(5\.\d{1,3}\.\d{1,3})|\((5\.\d{1,3}\.\d{1,3})\)")
_QUOTED = re.compile(r"<[^>]*>|[^\s<>()\[\]:;,]+@[\w.-]+|\bhttps?:\S+|\bwww\.\S+", re.I)
_NEVER = ("5.7.", "5.6.", "5.3.", "5.2.2", "5.2.3")


def _enhanced(reply: Reply) -> str:
    """The enhanced code, also where a server hides it in the text as qmail and IronPort do."""
    if reply.enhanced:
        return "5" + reply.enhanced[1:]
    hidden = _CODE.search(reply.text)
    return (hidden[1] or hidden[2]) if hidden else ""


def _bare(text: str) -> str:
    """The text without addresses and links, whose words mean nothing: `<spam@policy.example>`."""
    return _QUOTED.sub(" ", text)


def _row(kind: Kind, enhanced: str = "", text: str = "") -> Row:
    return Row(kind, tuple(enhanced.split()), re.compile(text, re.I) if text else None)


_UNKNOWN = (
    r"(?:user|recipient|mailbox|account|alias|local part)s?\W+(?:\w+\W+){0,4}?"
    r"(?:unknown|not (?:be )?found|(?:does|do) ?n[o']t exist|not exist|invalid|not known|not listed|inconnue?|unbekannt)"
    r"|(?:unknown|invalid|non-?existent|bad|no such|no valid) (?:\w+ )?(?:user|recipient|mailbox|local|address|account|alias|person)"
    r"|no such\b|no mailbox|not (?:a valid|have an?) (?:\w+[. ])*(?:recipient|mailbox|user|account)|not our customer"
    r"|(?:does|do)(?:n't| not) have an? \S+ account|(?:address|account|adresse)\W+(?:\w+\W+){0,5}?(?:does ?n[o']t exist|invalide?\b|not found)"
    r"|no user record|no(?:t a)? known (?:user|recipient)|is not a (?:valid|known) (?:mailbox|user|recipient)"
    r"|(?:destinataire|utilisateur|boite)\W+(?:\w+\W+){0,2}?(?:inconnue?|invalide|inexistante?)"
    r"|(?:empf.{1,3}nger|benutzer|postfach|adresse)\W+(?:\w+\W+){0,3}?(?:unbekannt|existiert nicht|nicht gefunden)"
    r"|(?:usuario|destinatario|buz.n|cuenta|utente|casella)\W+(?:\w+\W+){0,2}?(?:desconocid|no existe|sconosciut|inesistente|non esiste)"
    r"|(?:gebruiker|ontvanger|mailbox)\W+(?:\w+\W+){0,2}?(?:onbekend|bestaat niet)"
)

# The texts are strangers': a repeated group must end where its next round cannot begin, so that no text takes long.
TABLE: tuple[Row, ...] = (
    # Exactly so at one provider, whatever else the words may mean
    _row(Kind.DOUBTFUL_USER, "5.4.1", r"recipient address rejected: access denied"),  # Exchange Online: no such recipient
    _row(Kind.UNKNOWN_USER, "5.5.0", r"mailbox unavailable.*\(S\d+\)"),  # outlook.com
    _row(Kind.UNKNOWN_USER, "", r"mailbox unavailable for explanation"),  # GMX, WEB.DE
    # The text speaks of something else than the address
    _row(
        Kind.FULL,
        "",
        r"over ?-?quota|\bquota\b|(?:mailbox|inbox|boite|postfach|box|casilla|buz.n|casella|storage)\W+(?:\w+\W+){0,5}?(?:is )?(?:full|pleine|voll|llen[oa]|pien[oa])\b"
        r"|\bfull mailbox|out of (?:storage|space)|exceeded (?:its |the )?storage|storage allocation|not enough (?:storage|space)|overquota",
    ),
    _row(
        Kind.RATE,
        "",
        r"receiving mail (?:at a rate|too)|too (?:many|much) (?!recipients)|\brate\b|throttl|slow down|limit(?:s)? (?:\w+ )?exceeded|unusual",
    ),
    _row(
        Kind.SENDER,
        "",
        r"\bsender\W+(?:\w+\W+){0,4}?(?:reject|refus|denied|invalid|unknown|fail|not (?:exist|found|allowed|valid|accepted)|does ?n[o']t|unverif|block)"
        r"|sender verif|verification failed for|(?:domain|address) of sender|(?:unknown|invalid|bad|blocked|your) (?:\w+ )?(?:sender|originator)"
        r"|return ?-?path|envelope ?-?from|reverse ?-?path|\bmail ?from\b|\bfrom (?:address|domain|header)|originat|sender domain|sending domain.*(?:exist|found)",
    ),
    _row(
        Kind.AUTHENTICATION,
        "",
        r"\bSPF\b|\bDKIM\b|\bDMARC\b|unauthenticated|authenticat|\bPTR\b|reverse (?:dns|hostname|lookup|name)|\brDNS\b|sender ?-?id\b",
    ),
    _row(
        Kind.RELAYING,
        "",
        r"relay(?:ing)?[- ](?:access )?(?:is )?(?:denied|not|prohibited|refused)|(?:not|unable|denied|n't) (?:\w+ ){0,3}?(?:to )?relay|rcpthosts|relay not",
    ),
    _row(
        Kind.REPUTATION,
        "",
        r"(?:block|black|deny)\s?-?list|\b[rd]?[nb][sb]l\b|spamhaus|spamcop|barracuda|sorbs|senderscore|cloudmark|blocked using|reputation|banned|\blisted\b"
        r"|(?:\bip|client|host|server|network)\b\W+(?:\w+\W+){0,12}?(?:block|bloqu|reject|denied|gesperrt)|access from ip|bl ?ocked - see|\bblocked\b.*\bip",
    ),
    _row(
        Kind.SPAM,
        "",
        r"\bspam|unsolicited|\bbulk\b|\bjunk\b|phish|\bUBE\b|\bUCE\b|looks like|suspicious|unwanted",
    ),
    _row(
        Kind.SIZE,
        "",
        r"(?:message|mail|size)\W+(?:\w+\W+){0,5}?(?:too (?:large|big)|exceed|limit)|too (?:large|big)",
    ),
    _row(Kind.CONTENT, "", r"virus|malware|infected|\bcontents?\b|attachment|malformed|\bheaders?\b|not RFC|bare (?:LF|CR)"),
    _row(Kind.LOOP, "", r"hop count|too many hops|\bloop"),
    _row(
        Kind.POLICY,
        "5.7. 5.4. 5.3. 5.2.0 5.1.0",
        r"polic|prohibit|not authori[sz]ed|permission|restrict|blocked|security|rules",
    ),
    _row(
        Kind.POLICY,
        "",
        r"\bpolic(?:y|ies)\b|\bprohibit|administrativ|not authori[sz]ed|permission|restrict|\bblocked\b|security|mail rejet|by rule",
    ),
    # The code says what it is about
    _row(Kind.NO_MAIL, "5.1.10", r"null mx"),
    _row(Kind.MOVED, "5.1.6"),
    _row(Kind.UNKNOWN_USER, "5.1.1 5.1.3 5.1.10"),
    _row(Kind.UNKNOWN_DOMAIN, "5.1.2 5.4.310"),
    _row(Kind.SENDER, "5.1.7 5.1.8 5.1.9"),
    _row(Kind.DISABLED, "5.2.1"),
    _row(Kind.FULL, "5.2.2"),
    _row(Kind.SIZE, "5.2.3 5.3.4"),
    _row(Kind.LOOP, "5.4.6 5.4.14"),
    _row(Kind.AUTHENTICATION, "5.7.8 5.7.9 5.7.20 5.7.21 5.7.22 5.7.23 5.7.24 5.7.25 5.7.26 5.7.27 5.7.509 5.7.515"),
    _row(Kind.POLICY, "5.7."),
    _row(Kind.CONTENT, "5.6."),
    # Only the text is left: codes such as 5.0.0, 5.1.0, 5.2.0 and 5.5.0, or none
    _row(Kind.DISABLED, "", r"(?:mailbox|account|user)\W+(?:\w+\W+){0,3}?(?:disabled|inactive|deactivated|suspended|locked|closed|expired)"),
    _row(Kind.UNKNOWN_USER, "", _UNKNOWN),
    _row(Kind.UNKNOWN_DOMAIN, "", r"(?:unknown|no such|invalid) domain|domain (?:does not exist|not found|unknown)|host (?:unknown|not found)"),
    _row(
        Kind.DOUBTFUL_USER,
        "",
        r"mailbox (?:is )?(?:currently )?(?:unavailable|not available)|unrout(?:e?able) address|(?:recipient|address|user|mailbox)(?: address)?\W+(?:\w+\W+){0,2}?(?:rejected|refused|denied|not accepted)"
        r"|undeliverable|not (?:be )?deliver(?:able|ed)",
    ),
)  # fmt: skip
