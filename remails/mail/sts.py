"""MTA-STS: the record that says there is a policy, and the policy itself (RFC 8461). Pure: `outbound.sts` fetches them.

_mta-sts.example.net TXT "v=STSv1; id=20260101;"    --> record_id: the policy has changed when this has
https://mta-sts.example.net/.well-known/mta-sts.txt --> parse: a Policy --> allows(mx host)
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

LONGEST_AGE = 31_557_600  # seconds, a year (RFC 8461 §3.2)
LARGEST = 65_536  # bytes of a policy; RFC 8461 §3.3 suggests 64 kilobytes
MOST_PATTERNS = 500

_ID = re.compile(r"[A-Za-z0-9]{1,32}")
_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
# A last label of digits only is that of an IP address (O21): no host is called so.
_PATTERN = re.compile(rf"(?:\*\.)?(?:{_LABEL}\.)*(?!\d+$){_LABEL}")


class Mode(StrEnum):
    """What a sender does about a server that the policy does not fit."""

    ENFORCE = "enforce"
    """Do not deliver to it."""
    TESTING = "testing"
    """Deliver all the same."""
    NONE = "none"
    """The domain has no policy any more (RFC 8461 §2.6)."""


@dataclass(frozen=True, slots=True)
class Policy:
    """What a domain says of its mail servers."""

    mode: Mode
    patterns: tuple[str, ...]
    """Names of MX hosts, in lower case; one that begins with `*.` stands for one label more."""
    max_age: int
    """Seconds for which a sender keeps it."""

    def allows(self, host: str) -> bool:
        """Whether an MX host is one of the domain's (RFC 8461 §4.1): the star stands for exactly one label, the first."""
        name = host.lower().rstrip(".")
        return name in self.patterns or f"*.{name.partition('.')[2]}" in self.patterns


def record_id(strings: Sequence[str]) -> str | None:
    """The id in a domain's TXT records; None where they say that it has no policy (RFC 8461 §3.1).

    Anything but exactly one record that begins with `v=STSv1` means that.
    """
    records = [text for text in strings if re.match(r"v=STSv1\s*(?:;|$)", text)]
    if len(records) != 1:
        return None
    fields = (part.partition("=") for part in records[0].split(";")[1:])
    found = next((value.strip() for name, _, value in fields if name.strip() == "id"), "")
    return found if _ID.fullmatch(found) else None


def parse(text: bytes) -> Policy:
    """Read a policy (RFC 8461 §3.2).

    Of a field that may stand once the first counts, unknown fields are passed over, and so are `mx` lines that name no
    host, such as an IP address (case O21).

    Raises:
        ValueError: it is none; the text says why.
    """
    fields: dict[str, str] = {}
    patterns: dict[str, None] = {}
    for line in text.decode("utf-8", "replace").splitlines():
        name, colon, value = (part.strip() for part in line.partition(":"))
        if not colon:
            if name:
                raise ValueError("a line of it is no `name: value`")
        elif name == "mx":
            pattern = value.lower().rstrip(".")
            if _PATTERN.fullmatch(pattern) and len(patterns) < MOST_PATTERNS:
                patterns[pattern] = None
        else:
            fields.setdefault(name, value)
    if fields.get("version") != "STSv1":
        raise ValueError("it does not say `version: STSv1`")
    mode, age = fields.get("mode", ""), fields.get("max_age", "")
    if mode not in set(Mode):
        raise ValueError("its mode is not enforce, testing or none")
    if not re.fullmatch(r"[0-9]{1,10}", age):
        raise ValueError("its max_age is not a number of seconds")
    if not patterns and mode != Mode.NONE:
        raise ValueError("it names no mail server")
    return Policy(Mode(mode), tuple(patterns), min(int(age), LONGEST_AGE))
