"""Where mail for a domain goes: its MX hosts in order, each with its addresses (RFC 5321 §5.1)."""

import asyncio
import ipaddress
import random
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from remails import resolver
from remails.mail.reply import Phase, Reply
from remails.resolver import Ended, Lookup

_TYPE = {4: "A", 6: "AAAA"}
MOST_HOSTS = 10  # a bound for domains that list dozens


@dataclass(frozen=True, slots=True)
class Target:
    """One address of one MX host."""

    host: str
    ip: str
    vouched: tuple[str, ...] = field(default=(), compare=False)
    """Where its TLSA records may be, in the order to look; empty unless MX and address came by DNSSEC (RFC 7672 §2.2)."""


@dataclass(frozen=True, slots=True)
class _Hosts:
    """MX hosts in order, and whether they came by DNSSEC."""

    names: Sequence[str]
    preferences: Mapping[str, int]
    is_secure: bool

    def before(self, ours: Iterable[str]) -> "_Hosts":
        """Those that are preferred to each of these."""
        limit = min((self.preferences[name] for name in ours), default=None)
        if limit is None:
            return self
        return replace(self, names=[name for name in self.names if self.preferences[name] < limit])


class Router:
    """Looks up routes.

    Args:
        hostname: the relay's own.
        allow_private: whether loopback, private and link-local addresses are destinations. An MX record is written by
            strangers: without this guard it could make us talk to our own internal services.
    """

    def __init__(self, dns_resolver: resolver.Asynchronous, hostname: str, *, allow_private: bool) -> None:
        self._resolver, self._allow_private = dns_resolver, allow_private
        self._hostname = hostname
        self._random = random.Random()  # noqa: S311  # spreads load, guards nothing

    async def resolve(self, domain: str, versions: Sequence[int], ours: Collection[str] = ()) -> list[Target] | Reply:
        """The targets for `domain`, in the order to try, or why there is none.

        Args:
            versions: of IP, that we can send by; for each host the first of them goes first.
            ours: names and addresses that we send from. Where they are an MX, neither it nor what is no better is tried (RFC 5321 §5.1).
        """
        names = {name.rstrip(".").lower() for name in (self._hostname, *ours)}
        loop = Reply(Phase.DNS, 550, "5.4.6", f"the best mail server of {domain} is this relay itself: a loop")
        hosts = await self._hosts(domain)
        if isinstance(hosts, Reply):
            return hosts
        hosts = hosts.before(name for name in hosts.names if name in names)
        if not hosts.names:
            return loop
        targets, problem = await self._all(hosts, versions)
        # On loopback, the same address at another port is another server.
        left = hosts.before(
            one.host for one in targets if one.ip in names and not ipaddress.ip_address(one.ip).is_loopback
        )
        if not left.names:
            return loop
        if targets := [target for target in targets if target.host in left.names]:
            return targets
        if problem is None and (others := {4, 6} - set(versions)):
            unreachable, problem = await self._all(hosts, tuple(others))
            if unreachable:
                text = f"the mail servers of {domain} have only IPv{max(others)} addresses, and this mail has none to leave from"
                return Reply(Phase.DNS, 451, "4.4.4", text)
        return problem or Reply(Phase.DNS, 550, "5.4.4", f"no mail server of {domain} has an address")

    async def _all(self, hosts: "_Hosts", versions: Sequence[int]) -> tuple[list[Target], Reply | None]:
        """The targets at all hosts, and what went wrong."""
        questions = [(host, version) for host in hosts.names[:MOST_HOSTS] for version in versions]
        asked = (self._addresses(host, version, is_vouched=hosts.is_secure) for host, version in questions)
        if all(self._resolver.known(host, _TYPE[version]) for host, version in questions):
            found = [await one for one in asked]  # nobody waits, and a task for each would cost more than all the rest
        else:
            found = await asyncio.gather(*asked)
        # What may pass comes before what is for good: the server that nobody knows now may be the one that takes the mail.
        problem = min((one for one in found if isinstance(one, Reply)), key=lambda one: one.code or 0, default=None)
        return [target for one in found if not isinstance(one, Reply) for target in one], problem

    async def _hosts(self, domain: str) -> "_Hosts | Reply":
        lookup = await resolver.ask_async(self._resolver, domain, "MX")
        if lookup.ended is Ended.FAILED:
            # Not "no MX": falling back to the domain's own address would bounce good mail (case O03).
            return Reply(Phase.DNS, 451, "4.4.3", f"MX records of {domain}: {lookup.reason}")
        if lookup.ended is Ended.NO_DOMAIN:
            return Reply(Phase.DNS, 550, "5.1.2", f"the domain {domain} does not exist")
        if lookup.ended is Ended.NO_DATA:
            return _Hosts([domain], {domain: 0}, lookup.is_secure)  # RFC 5321 §5.1: the implicit MX
        records = [(record.preference, record.exchange.to_text().rstrip(".").lower()) for record in lookup.records]  # type: ignore[attr-defined]  # MX
        best = {host: preference for preference, host in sorted(records, reverse=True)}
        hosts = self._ordered((preference, host) for preference, host in records if host)
        if not hosts:
            # RFC 7505 §3: the domain says that it takes no mail
            return Reply(Phase.DNS, 556, "5.1.10", f"the domain {domain} does not accept mail (null MX)")
        return _Hosts(hosts, best, lookup.is_secure)

    def _ordered(self, records: Iterable[tuple[int, str]]) -> list[str]:
        """By preference, those of equal preference in random order (RFC 5321 §5.1)."""
        shuffled = sorted((preference, self._random.random(), host) for preference, host in records)
        return list(dict.fromkeys(host for _, _, host in shuffled))

    async def _addresses(self, host: str, version: int, *, is_vouched: bool) -> list[Target] | Reply:
        lookup = await resolver.ask_async(self._resolver, host, _TYPE[version])
        if lookup.ended is Ended.FAILED:
            return Reply(Phase.DNS, 451, "4.4.3", f"address of {host}: {lookup.reason}")
        ips = [record.address for record in lookup.records]  # type: ignore[attr-defined]  # A, AAAA
        vouched = await self._vouched(host, lookup) if is_vouched else ()
        allowed = [Target(host, ip, vouched) for ip in ips if self._allow_private or resolver.is_public(ip)]
        if ips and not allowed:
            return Reply(Phase.DNS, 550, "5.4.4", f"{host} has only private addresses, where mail is never sent")
        return allowed

    async def _vouched(self, host: str, addresses: Lookup) -> tuple[str, ...]:
        """RFC 7672 §2.2.2: the name behind CNAMEs if all of them are secure, then the MX host's own if it is itself."""
        if addresses.canonical in ("", host):
            return (host,) if addresses.is_secure else ()
        if addresses.is_secure:
            return addresses.canonical, host
        alias = await resolver.ask_async(self._resolver, host, "CNAME")
        return (host,) if alias.is_secure and alias.ended is Ended.FOUND else ()
