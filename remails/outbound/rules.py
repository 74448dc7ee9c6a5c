"""Which rule each MX host of a domain is under: DANE where DNSSEC has it, MTA-STS where the domain has a policy, the project's wish.

    DANE, records that can be used    --> dane: they decide, whatever a policy says (RFC 8461 §2)
    MTA-STS, mode enforce             --> sts, for the hosts that the policy names; the others are not talked to
    the project wants TLS             --> required
    DANE, none that can be used       --> dane: encryption is a must, by any certificate (RFC 7672 §2.2)
    MTA-STS, mode testing             --> sts-testing
    else                              --> opportunistic

TLSA records that cannot be looked up are a reason to wait: somebody may be hiding them (RFC 7672 §2.1.2).
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from remails import resolver
from remails.mail import dane, sts
from remails.mail.dane import TRUST_ANCHOR, Tlsa
from remails.mail.reply import Phase, Reply
from remails.outbound.route import Target
from remails.outbound.security import Policy, Security
from remails.outbound.sts import Policies
from remails.resolver import Ended


@dataclass(frozen=True, slots=True)
class _Records:
    """The TLSA records of a host, and the name they are of."""

    base: str
    usable: tuple[Tlsa, ...]


class Rules:
    """Looks up rules.

    Args:
        port: of the remote servers; TLSA records are for it.
    """

    def __init__(self, dns_resolver: resolver.Asynchronous, policies: Policies, port: int) -> None:
        self._resolver, self._policies, self._port = dns_resolver, policies, port

    async def of(self, domain: str, targets: Sequence[Target], *, strict: bool) -> Mapping[str, Security | Reply]:
        """What is asked of each host; a Reply says why it cannot be talked to. `strict`: the project wants TLS.

        Raises:
            Pending: the domain's policy is being fetched.
            Unavailable: the database is needed to know.
        """
        hosts: dict[str, Target] = {}
        for target in targets:
            if (
                target.vouched or target.host not in hosts
            ):  # where DNSSEC vouches for one of its addresses, it does for it
                hosts[target.host] = target
        if not any(target.vouched for target in hosts.values()):
            policy = await self._policies.of(domain)
            return {host: _rule(domain, host, None, policy, strict=strict) for host in hosts}
        policy, found = await asyncio.gather(
            self._policies.of(domain), asyncio.gather(*(self._records(target) for target in hosts.values()))
        )
        return {
            host: _rule(domain, host, records, policy, strict=strict)
            for host, records in zip(hosts, found, strict=True)
        }

    async def _records(self, target: Target) -> _Records | Reply | None:
        """None where there are none, or none that are vouched for."""
        for base in target.vouched:
            lookup = await resolver.ask_async(self._resolver, f"_{self._port}._tcp.{base}", "TLSA")
            if lookup.ended is Ended.FAILED:
                text = f"the TLSA records of {base}, which say how to know it, cannot be looked up: {lookup.reason}"
                return Reply(Phase.TLS, None, "4.4.3", text)
            if lookup.ended is Ended.FOUND and lookup.is_secure:
                return _Records(base, dane.usable(map(_tlsa, lookup.records)))
        return None


def _tlsa(record: object) -> Tlsa:
    return Tlsa(record.usage, record.selector, record.mtype, record.cert)  # type: ignore[attr-defined]  # TLSA


def _rule(
    domain: str, host: str, records: _Records | Reply | None, policy: sts.Policy | None, *, strict: bool
) -> Security | Reply:
    if isinstance(records, Reply):
        return records
    if records is not None and records.usable:
        is_named = any(record.usage == TRUST_ANCHOR for record in records.usable)
        names = tuple(dict.fromkeys((records.base, host, domain))) if is_named else ()  # RFC 7672 §3.2.3
        return Security(
            Policy.DANE, f"DANE at {records.base}", tlsa=records.usable, server_name=records.base, names=names
        )
    mode = policy.mode if policy is not None else sts.Mode.NONE
    is_foreign = policy is not None and not policy.allows(host)
    if mode is sts.Mode.ENFORCE:
        if is_foreign:
            text = f"{host} is no mail server of {domain} by the domain's MTA-STS policy"
            return Reply(Phase.TLS, None, "4.7.5", text)
        return Security(Policy.STS, f"the MTA-STS policy of {domain}")
    if strict:
        return Security(Policy.REQUIRED, "the project")
    if records is not None:
        return Security(Policy.DANE, f"DANE at {records.base}", server_name=records.base)
    if mode is sts.Mode.TESTING:
        note = "the MTA-STS policy, which is in testing, does not name this server" if is_foreign else ""
        return Security(Policy.TESTING, note=note)
    return Security()
