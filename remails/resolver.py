"""The DNS resolver, as set in `[dns]`: synchronous for checks, asynchronous for delivery.

Answers are cached by their TTL in the process. `Lookup` says how a question ended, since "there is none" and "could not be
asked" lead to different ends: RFC 5321 §5.1 wants a mail to wait in the second case.
"""

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


def synchronous(settings: Dns) -> dns.resolver.Resolver:
    """A resolver for threads."""
    return _configured(dns.resolver.Resolver, settings)


def asynchronous(settings: Dns) -> dns.asyncresolver.Resolver:
    """A resolver for an event loop."""
    return _configured(dns.asyncresolver.Resolver, settings)


def ask(resolver: dns.resolver.Resolver, name: str, rdtype: str) -> Lookup:
    """Ask one question."""
    try:
        answer = resolver.resolve(_absolute(name), rdtype, raise_on_no_answer=False)
    except dns.exception.DNSException as error:
        return _failed(error)
    return _found(answer, resolver)


async def ask_async(resolver: dns.asyncresolver.Resolver, name: str, rdtype: str) -> Lookup:
    """Ask one question without holding up the event loop."""
    try:
        answer = await resolver.resolve(_absolute(name), rdtype, raise_on_no_answer=False)
    except dns.exception.DNSException as error:
        return _failed(error)
    return _found(answer, resolver)


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
