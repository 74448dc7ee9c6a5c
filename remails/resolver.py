"""The DNS resolver, as set in `[dns]`: synchronous for checks, asynchronous for delivery.

Answers are cached by their TTL in the process, for delivery as they were understood. `Lookup` says how a question ended, since
"there is none" and "could not be asked" lead to different ends: RFC 5321 §5.1 wants a mail to wait in the second case.
"""

import ipaddress
import time
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

import dns.asyncresolver
import dns.exception
import dns.flags
import dns.name
import dns.nameserver
import dns.rdata
import dns.resolver

from remails.config import Dns, endpoint
from remails.errors import ConfigError

CACHE_ENTRIES = 20_000

_NAT64 = ipaddress.ip_network("64:ff9b::/96")

R = TypeVar("R", bound=dns.resolver.BaseResolver)


class Ended(StrEnum):
    """How a question ended."""

    FOUND = "found"
    NO_DATA = "no data"
    NO_DOMAIN = "no such domain"
    FAILED = "failed"
    """SERVFAIL, REFUSED, a timeout or nonsense: it may work later."""


@dataclass(frozen=True, slots=True)
class Lookup:
    """The answer to one question; `reason` says in words what went wrong."""

    ended: Ended
    records: tuple[dns.rdata.Rdata, ...] = ()
    reason: str = ""
    is_secure: bool = False
    """Whether a resolver that we trust has validated it by DNSSEC: all of it, CNAMEs too."""
    canonical: str = ""
    """The name that the records are at, behind CNAMEs; lower case, no final dot."""

    @property
    def strings(self) -> list[str]:
        """TXT records, each with its strings joined without a separator (RFC 6376 §3.6.2.2, RFC 7208 §3.3)."""
        return [b"".join(record.strings).decode("utf-8", "replace") for record in self.records]  # type: ignore[attr-defined]  # TXT


class Asynchronous(dns.asyncresolver.Resolver):
    """A resolver for an event loop that remembers what was found: to find it in the library's cache, and to understand it again,
    takes longer than all else that is done to choose a route."""

    def __init__(self, *, configure: bool) -> None:
        super().__init__(configure=configure)
        self._remembered: dict[tuple[str, str], tuple[float, Lookup]] = {}

    def known(self, name: str, rdtype: str) -> Lookup | None:
        """What was found of late, if it still holds."""
        until, lookup = self._remembered.get((name, rdtype), (0.0, None))
        return lookup if until > time.monotonic() else None

    def remember(self, name: str, rdtype: str, lookup: Lookup, seconds: float) -> None:
        """Let this hold for so many seconds."""
        self._remembered.pop((name, rdtype), None)
        if len(self._remembered) >= CACHE_ENTRIES:
            del self._remembered[next(iter(self._remembered))]
        self._remembered[name, rdtype] = time.monotonic() + seconds, lookup


def synchronous(settings: Dns) -> dns.resolver.Resolver:
    """A resolver for threads."""
    return _configured(dns.resolver.Resolver, settings)


def asynchronous(settings: Dns) -> Asynchronous:
    """A resolver for an event loop."""
    return _configured(Asynchronous, settings)


def ask(resolver: dns.resolver.Resolver, name: str, rdtype: str) -> Lookup:
    """Ask one question."""
    try:
        answer = resolver.resolve(_absolute(name), rdtype, raise_on_no_answer=False)
    except dns.exception.DNSException as error:
        return _failed(error)
    return _found(answer, resolver)


async def ask_async(resolver: Asynchronous, name: str, rdtype: str) -> Lookup:
    """Ask one question without holding up the event loop."""
    if (known := resolver.known(name, rdtype)) is not None:
        return known
    try:
        answer = await resolver.resolve(_absolute(name), rdtype, raise_on_no_answer=False)
    except dns.exception.DNSException as error:
        return _failed(error)
    lookup = _found(answer, resolver)
    resolver.remember(name, rdtype, lookup, answer.expiration - time.time())
    return lookup


def _configured(kind: type[R], settings: Dns) -> R:
    try:
        resolver = kind(configure=not settings.nameservers)
    except dns.resolver.NoResolverConfiguration:
        raise ConfigError("dns.nameservers: empty, and /etc/resolv.conf names no resolver either") from None
    if settings.nameservers:
        resolver.nameservers = [
            dns.nameserver.Do53Nameserver(*endpoint(text, 53, "dns.nameservers")) for text in settings.nameservers
        ]
    if settings.validating:
        resolver.flags = dns.flags.RD | dns.flags.AD  # RFC 6840 §5.7: tell us whether it is authentic
    resolver.lifetime = settings.timeout
    resolver.timeout = min(2.0, settings.timeout)
    resolver.cache = dns.resolver.LRUCache(CACHE_ENTRIES)
    return resolver


def _absolute(name: str) -> dns.name.Name:
    return dns.name.from_text(name.removesuffix(".") + ".")


def _found(answer: dns.resolver.Answer, resolver: dns.resolver.BaseResolver) -> Lookup:
    # AD is believed of resolvers only that it was asked of: those that the settings say to be trustworthy.
    is_asked = bool((resolver.flags or 0) & dns.flags.AD)
    is_secure = is_asked and bool(answer.response.flags & dns.flags.AD)
    canonical = answer.canonical_name.to_text(omit_final_dot=True).lower()
    if answer.rrset is None:
        return Lookup(Ended.NO_DATA, (), "no such record", is_secure, canonical)
    return Lookup(Ended.FOUND, tuple(answer.rrset), "", is_secure, canonical)


def _failed(error: dns.exception.DNSException) -> Lookup:
    if isinstance(error, dns.resolver.NXDOMAIN):
        return Lookup(Ended.NO_DOMAIN, reason="no such domain")
    if isinstance(error, dns.exception.Timeout):
        return Lookup(Ended.FAILED, reason="the resolver did not answer in time")
    if isinstance(error, dns.resolver.NoNameservers):
        return Lookup(Ended.FAILED, reason="the domain's name servers failed or refused (SERVFAIL)")
    return Lookup(Ended.FAILED, reason=str(error)[:200] or type(error).__name__)


def is_public(ip: str) -> bool:
    """Whether this is an address of the public network, also behind a translator (RFC 6052 §2.1) or 6to4 (RFC 3056 §2)."""
    address = ipaddress.ip_address(ip)
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if address in _NAT64:
            inner = ipaddress.IPv4Address(address.packed[-4:])
        if inner is not None:
            return inner.is_global
    return address.is_global
