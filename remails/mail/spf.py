"""SPF as a receiver evaluates it: check_host() of RFC 7208 §4, with its limits.

    address, domain --> the record's terms in order --> the first that matches decides; `all`, `redirect=`, neutral
                                    `include` asks the same of another domain

Pure: who calls gives the DNS lookups. One that fails (SERVFAIL, a timeout) raises what it likes, which is not caught: nothing is known then.
"""

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

LOOKUPS = 10  # RFC 7208 §4.6.4
VOID_LOOKUPS = 2

Ip = ipaddress.IPv4Address | ipaddress.IPv6Address


class Result(StrEnum):
    """RFC 7208 §2.6, without temperror."""

    NONE = "none"
    NEUTRAL = "neutral"
    PASS = "pass"  # noqa: S105  # a word of the standard
    FAIL = "fail"
    SOFTFAIL = "softfail"
    PERMERROR = "permerror"


class Lookups(Protocol):
    """DNS; an empty answer for what there is not."""

    def texts(self, name: str) -> Sequence[str]:
        """TXT records, each with its strings joined."""

    def addresses(self, name: str, version: int) -> Sequence[str]:
        """A or AAAA records."""

    def servers(self, name: str) -> Sequence[str]:
        """The hosts of MX records."""


class PermError(Exception):
    """The record cannot be evaluated; says why."""


_VERSION = re.compile(r"v=spf1(?: |\Z)", re.IGNORECASE)  # RFC 7208 §4.5
_TERM = re.compile(
    r"([+?~-]?)(all|include|a|mx|ptr|ip4|ip6|exists)(?::([^/\s][^\s]*?))?((?:/\d+)?(?://\d+)?)", re.IGNORECASE
)
_MODIFIER = re.compile(r"([a-z][a-z0-9._-]*)=(\S*)", re.IGNORECASE)
_MACRO = re.compile(r"%(?:([%_-])|\{([slodiphcrtv])(\d*)(r?)([.\-+,/_=]*)\})", re.IGNORECASE)
# RFC 7208 §7.1: a domain-spec ends in a top label, which is no number, or in a macro.
_STRING = r"(?:%(?:[%_-]|\{[slodiphcrtv]\d*r?[.\-+,/_=]*\})|[!-$&-~])*"
_MACRO_STRING = re.compile(_STRING, re.IGNORECASE)
_DOMAIN_SPEC = re.compile(
    rf"{_STRING}(?:\.(?:[a-z0-9]*[a-z][a-z0-9]*|[a-z0-9]+-[a-z0-9-]*[a-z0-9])\.?|%\{{[slodiphcrtv]\d*r?[.\-+,/_=]*\}}|%[%_-])",
    re.IGNORECASE,
)
_LENGTH = re.compile(r"(?:/(?:0|[1-9]\d?))?(?://(?:0|[1-9]\d{0,2}))?")
_QUALIFIER = {"+": Result.PASS, "-": Result.FAIL, "~": Result.SOFTFAIL, "?": Result.NEUTRAL}


@dataclass(slots=True)
class Check:
    """One evaluation. `sender`: the local part and domain of MAIL FROM."""

    ip: Ip
    lookups: Lookups
    sender: tuple[str, str]
    asked: int = 0
    void: int = 0
    reason: str = field(default="")
    """Why it is a permerror."""

    def host(self, domain: str) -> Result:
        """The result for a domain (RFC 7208 §4)."""
        if isinstance(self.ip, ipaddress.IPv6Address) and self.ip.ipv4_mapped:
            self.ip = self.ip.ipv4_mapped  # RFC 7208 §5
        try:
            return self._host(domain)
        except PermError as error:
            self.reason = str(error)
            return Result.PERMERROR

    def _host(self, domain: str) -> Result:
        if not _is_domain(domain):
            return Result.NONE  # RFC 7208 §4.3
        found = [text for text in self.lookups.texts(domain) if _VERSION.match(text)]
        if len(found) > 1:
            raise PermError(f"{domain} has more than one SPF record")
        if not found:
            return Result.NONE
        terms, redirect = _terms(found[0])
        for qualifier, name, value, prefix in terms:
            if self._matches(name, value, prefix, domain):
                return _QUALIFIER[qualifier or "+"]
        if redirect is None:
            return Result.NEUTRAL
        self._ask()
        result = self._host(self._expanded(redirect, domain))
        if result is Result.NONE:  # RFC 7208 §6.1
            raise PermError("the domain of redirect= has no SPF record")
        return result

    def _ask(self) -> None:
        self.asked += 1
        if self.asked > LOOKUPS:
            raise PermError(f"it takes more than {LOOKUPS} DNS lookups")

    def _found(self, answers: Sequence[str]) -> Sequence[str]:
        if not answers:
            self.void += 1
            if self.void > VOID_LOOKUPS:
                raise PermError(f"more than {VOID_LOOKUPS} of its DNS lookups find nothing")
        return answers

    def _matches(self, name: str, value: str, prefix: str, domain: str) -> bool:
        if name == "all":
            return True
        if name in ("ip4", "ip6"):
            return _is_in(self.ip, [f"{value}{prefix}"])
        self._ask()
        target = self._expanded(value, domain) if value else domain
        if name == "include":
            result = self._host(target)
            if result is Result.NONE:  # RFC 7208 §5.2
                raise PermError(f"include:{target} has no SPF record")
            return result is Result.PASS
        if name == "exists":
            return bool(self._found(self.lookups.addresses(target, 4)))
        if name == "ptr":
            return False  # RFC 7208 §5.5: not to be used, and nobody publishes our names so
        return self._is_host(name, target, prefix)

    def _is_host(self, name: str, target: str, prefix: str) -> bool:
        four, _, six = prefix.partition("//")
        length = four.removeprefix("/") or "32" if self.ip.version == 4 else six or "128"
        hosts: Sequence[str] = [target]
        if name == "mx":
            hosts = self._found(self.lookups.servers(target))
            if len(hosts) > LOOKUPS:
                raise PermError(f"{target} has more than {LOOKUPS} MX records")
        found = [ip for host in hosts for ip in self.lookups.addresses(host, self.ip.version)]
        if name == "a":
            self._found(found)
        return _is_in(self.ip, [f"{ip}/{length}" for ip in found])

    def _expanded(self, text: str, domain: str) -> str:
        """A domain-spec with its macros replaced (RFC 7208 §7), cut to 253 characters from the left."""
        rest = _MACRO.sub("", text)
        if "%" in rest:
            raise PermError(f"{text[:60]} has a macro that is none")
        local, sender = self.sender

        def replaced(match: re.Match[str]) -> str:
            if match[1]:
                return {"%": "%", "_": " ", "-": "%20"}[match[1]]
            if match[2].lower() in "crt":
                raise PermError(f"{text[:60]} has a macro that is only for exp=")
            if match[3] and int(match[3]) == 0:
                raise PermError(f"{text[:60]} has a macro that is none")
            value = {
                "s": f"{local}@{sender}",
                "l": local,
                "o": sender,
                "d": domain,
                "i": _dotted(self.ip),
                "p": "unknown",
                "v": "in-addr" if self.ip.version == 4 else "ip6",
                "h": sender,
            }[match[2].lower()]
            parts = re.split(f"[{re.escape(match[5])}]" if match[5] else r"\.", value)
            parts = parts[::-1] if match[4] else parts
            return ".".join(parts[-int(match[3]) :] if match[3] else parts)

        name = _MACRO.sub(replaced, text).removesuffix(".")
        while len(name) > 253:
            name = name.partition(".")[2]
        return name


def _dotted(ip: Ip) -> str:
    return str(ip) if ip.version == 4 else ".".join(ip.exploded.replace(":", ""))


def _is_domain(name: str) -> bool:
    labels = name.removesuffix(".").split(".")
    return len(labels) > 1 and all(0 < len(label) < 64 for label in labels)


def _is_in(ip: Ip, networks: Sequence[str]) -> bool:
    for text in networks:
        network = ipaddress.ip_network(text, strict=False)
        if network.version == ip.version and ip in network:
            return True
    return False


def _terms(record: str) -> tuple[list[tuple[str, str, str, str]], str | None]:
    """Mechanisms (qualifier, name, value, prefix length) and the redirect. Raises PermError (RFC 7208 §4.6)."""
    if not record.isascii():
        raise PermError("it has characters that are not ASCII")
    terms, redirects, explanations = [], [], []
    for word in record.split(" ")[1:]:
        if not word:
            continue
        term, modifier = _TERM.fullmatch(word), _MODIFIER.fullmatch(word)
        if term is not None and _is_valid(term[2].lower(), term[3] or "", term[4]):
            terms.append((term[1], term[2].lower(), term[3] or "", term[4]))
        elif modifier is None:
            raise PermError(f"it is not valid at {word[:60]}")
        elif modifier[1].lower() == "redirect":
            redirects.append(modifier[2])
        elif modifier[1].lower() == "exp":
            explanations.append(modifier[2])
        elif not _MACRO_STRING.fullmatch(modifier[2]):
            raise PermError(f"it is not valid at {word[:60]}")
    if len(redirects) > 1 or len(explanations) > 1 or not all(map(_DOMAIN_SPEC.fullmatch, redirects + explanations)):
        raise PermError("its redirect= or exp= is not valid, or there more than once")
    return terms, redirects[0] if redirects and not any(term[1] == "all" for term in terms) else None


def _is_valid(name: str, value: str, prefix: str) -> bool:
    if not _LENGTH.fullmatch(prefix):
        return False
    if name in ("ip4", "ip6"):
        try:
            network = ipaddress.ip_network(f"{value}{prefix}", strict=False)
        except ValueError:
            return False
        return "//" not in prefix and network.version == int(name[2])
    if value and not _DOMAIN_SPEC.fullmatch(value):
        return False
    if name in ("include", "exists"):
        return bool(value) and not prefix
    if name in ("all", "ptr"):
        return not prefix and not (name == "all" and value)
    four, _, six = prefix.partition("//")
    return int(four.removeprefix("/") or 0) <= 32 and int(six or 0) <= 128


def networks(record: str) -> list[str]:
    """An address from each network that a record lists by itself. Raises PermError."""
    listed = [f"{value}{prefix}" for _, name, value, prefix in _terms(record)[0] if name in ("ip4", "ip6")]
    return [str(next(iter(ipaddress.ip_network(one, strict=False)))) for one in listed]
