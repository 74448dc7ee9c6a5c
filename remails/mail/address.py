"""Addresses of mailboxes: an addr-spec of RFC 5321 §4.1.2 with the extensions of RFC 6531.

    text --> parse --> Address(local as given, domain in lower-case A-labels)
               |
               | an ordinary ASCII address: one regular expression
               | all else: a quoted local part, U-labels to A-labels, and a sentence for what is wrong

The local part is never changed: its meaning is known only to the host of the domain. Address literals are refused, and so
is every domain whose last label does not begin with a letter: a resolver may read `127.1` or `0x7f.1` as an IP address,
and mail to it would go to a neighbour in our own network.
"""

import re
import unicodedata
from dataclasses import dataclass

import idna

MAX_LOCAL = 64  # octets, RFC 5321 §4.5.3.1.1
MAX_ADDRESS = 254  # octets: a path of 256 less its brackets, RFC 5321 §4.5.3.1.3
MAX_DOMAIN = 253

_ATEXT = r"A-Za-z0-9!#$%&'*+/=?^_`{|}~\-"
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_HOSTNAME = rf"(?:{_LABEL}\.)+(?=[A-Za-z]){_LABEL}"
_ORDINARY = re.compile(rf"([{_ATEXT}]+(?:\.[{_ATEXT}]+)*)@({_HOSTNAME})")
_DOMAIN = re.compile(_HOSTNAME)
_DOT_STRING = re.compile(rf"[{_ATEXT}\x80-\U0010ffff]+(?:\.[{_ATEXT}\x80-\U0010ffff]+)*")
_QUOTED_STRING = re.compile(r'"(?:[^"\\]|\\[ -~])*"')


class BadAddress(ValueError):
    """The text is no address we can send to or from. Says why in one ASCII sentence."""


@dataclass(frozen=True, slots=True)
class Address:
    """A mailbox: `local` exactly as given, quotes included; `domain` in lower-case A-labels."""

    local: str
    domain: str

    def __str__(self) -> str:
        return f"{self.local}@{self.domain}"

    @property
    def needs_smtputf8(self) -> bool:
        """Whether the address can only be named with SMTPUTF8 (RFC 6531 §3.2)."""
        return not self.local.isascii()

    @property
    def key(self) -> str:
        """One spelling for all spellings that a suppression treats as the same mailbox."""
        local = self.local
        if local.startswith('"'):
            # RFC 5321 §4.1.2: "Joe" and Joe are the same; an escape means the character itself.
            plain = re.sub(r"\\(.)", r"\1", local[1:-1])
            local = plain if _DOT_STRING.fullmatch(plain) else '"' + re.sub(r'(["\\])', r"\\\1", plain) + '"'
        return f"{unicodedata.normalize('NFC', local).lower()}@{self.domain}"


def parse(text: str) -> Address:
    """Read an addr-spec, without angle brackets or display name.

    Raises:
        BadAddress: it is not one, or is one that mail cannot be sent to.
    """
    if len(text) > MAX_ADDRESS:
        raise BadAddress(f"the address is longer than {MAX_ADDRESS} octets")
    ordinary = _ORDINARY.fullmatch(text)
    if ordinary is None:
        return _parse_unusual(text)
    local, domain = ordinary.groups()
    if len(local) > MAX_LOCAL:
        raise BadAddress(f"the local part is longer than {MAX_LOCAL} octets")
    return Address(local, domain.lower())


def _parse_unusual(text: str) -> Address:
    _refuse_characters(text)
    local, domain = _halves(text)
    if len(local.encode()) > MAX_LOCAL:
        raise BadAddress(f"the local part is longer than {MAX_LOCAL} octets")
    found = Address(local, normalise_domain(domain))
    if len(str(found).encode()) > MAX_ADDRESS:
        raise BadAddress(f"the address is longer than {MAX_ADDRESS} octets")
    return found


def _refuse_characters(text: str) -> None:
    """Refuse what no address has: control, format and unpaired surrogate characters, line and exotic spaces."""
    for character in text:
        if character != " " and unicodedata.category(character)[0] in "CZ":
            raise BadAddress(f"the address {shown(text)} contains the character U+{ord(character):04X}")


def _halves(text: str) -> tuple[str, str]:
    """Split at the last @ that is not quoted, and check the local part."""
    quoted = _QUOTED_STRING.match(text)
    if quoted and text[quoted.end() : quoted.end() + 1] == "@":
        return quoted[0], text[quoted.end() + 1 :]
    local, at, domain = text.rpartition("@")
    if not at:
        raise BadAddress(f"{shown(text)} has no @")
    if not local:
        raise BadAddress(f"{shown(text)} has nothing before the @")
    if not _DOT_STRING.fullmatch(local):
        raise BadAddress(f"the local part {shown(local)} is not valid; unusual characters must stand in double quotes")
    return local, domain


def normalise_domain(text: str) -> str:
    """The domain in lower-case A-labels, without final dot (RFC 5891 §4.4, mapped as by UTS #46).

    Raises:
        BadAddress: it is not a domain of at least two labels.
    """
    name = text.removesuffix(".")
    if not name:
        raise BadAddress("the domain is empty")
    if name.startswith("["):
        raise BadAddress(f"address literals such as {shown(name)} are not accepted, give a domain")
    if len(name) > MAX_DOMAIN:
        raise BadAddress(f"the domain is longer than {MAX_DOMAIN} octets")
    if not name.isascii():
        name = _a_labels(name)
    if "." not in name:
        raise BadAddress(f"the domain {shown(name)} has only one label, give the full name")
    if len(name) > MAX_DOMAIN or not _DOMAIN.fullmatch(name):
        raise BadAddress(f"the domain {shown(name)} is not valid")
    return name.lower()


def _a_labels(name: str) -> str:
    try:
        return idna.encode(name, uts46=True).decode("ascii").removesuffix(".")
    except (idna.IDNAError, UnicodeError):
        raise BadAddress(f"the internationalised domain {shown(name)} is not valid") from None


def shown(text: str) -> str:
    """The text as it may stand in a sentence: ASCII, one line, at most 80 characters."""
    plain = ascii(text)[1:-1]
    return plain if len(plain) <= 80 else plain[:77] + "..."


def parents(domain: str) -> tuple[str, ...]:
    """The domain itself, then each parent that has at least two labels."""
    labels = domain.split(".")
    return (domain, *(".".join(labels[start:]) for start in range(1, len(labels) - 1)))


def covers(parent: str, domain: str) -> bool:
    """Whether `domain` is `parent` or below it; `evilexample.com` is not below `example.com`."""
    return domain == parent or domain.endswith("." + parent)
