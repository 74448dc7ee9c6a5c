"""Looks at a sender domain's DNS and keeps what it saw.

    questions, side by side --> answers --> verdicts of `mail.records` --> what is shown, and whether it may send
                            `-> none to be had --> the last verdict stands (D12)

The pages and the API call `check_domain` when somebody asks, `periodic` when a domain was not looked at for long. A domain
is verified when the ownership token and the record of every active DKIM key are right, in the same look. From then on a DKIM or SPF
record that is definitely wrong holds the domain's mail, and the look that finds it mended lets it go. DMARC, the way back
for bounces and the domain's address are judged and shown, nothing more.
"""

import ipaddress
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import dns.resolver

from remails import resolver
from remails.config import Settings
from remails.db import Connection, Database
from remails.errors import Refused
from remails.mail import records, spf
from remails.mail.records import Verdict
from remails.store import domains, holds
from remails.store.domains import DkimKey, Domain

Verification = dict[str, Any]
"""`timestamp` (ISO 8601), and for each record its verdict: status, reason, value, checked."""

_PROBES = 4  # of our addresses, for which a domain's SPF is evaluated
_SEVERITY = ("Success", "Info", "Warning", "Error")


class _Unanswered(Exception):
    """DNS did not say; the text tells why."""


def check_domain(db: Database, settings: Settings, domain: Domain) -> Verification:
    """Look at the domain's DNS now and store what was seen. Takes as long as DNS does, a few timeouts at most.

    Raises:
        Unavailable: the database cannot be reached.
    """
    seen = look(resolver.synchronous(settings.dns), domain, settings.spf_include)
    return db.run(save, domain, seen)


def look(asked: dns.resolver.Resolver, domain: Domain, spf_include: str) -> dict[str, Verdict]:
    """The verdicts on the domain's records by name; stores nothing."""
    dns_of = _Dns(asked, domain.name)
    questions: dict[str, Callable[[], Verdict]] = {
        "ownership": lambda: _ownership(dns_of, domain),
        "dkim": lambda: _dkim(dns_of, domain),
        "spf": lambda: _spf(dns_of, domain, spf_include),
        "dmarc": lambda: _dmarc(dns_of, domain),
        "a": lambda: records.a(dns_of.ask(domain.name, "A")),
        "return_path": lambda: _return_path(dns_of, domain),
    }
    with ThreadPoolExecutor(len(questions), thread_name_prefix="dns") as threads:
        return dict(zip(questions, threads.map(_answered, questions.values()), strict=True))


def save(conn: Connection, domain: Domain, seen: Mapping[str, Verdict]) -> Verification:
    """Store what a look saw, and with it whether the domain may send; hold its mail or let it go."""
    verification: Verification = {"timestamp": datetime.now(UTC).isoformat(timespec="seconds")}
    for name, verdict in seen.items():
        verification[name] = _standing(verdict, domain.verification.get(name))
    try:
        domains.save_verification(
            conn, domain.id, verification, verified=is_proved(seen), hold_reason=_hold_reason(domain, seen)
        )
    except Refused as refusal:
        verification["ownership"] = asdict(Verdict("Error", refusal.text, seen["ownership"].value))
        domains.save_verification(conn, domain.id, verification, verified=False)
    holds.settle(conn, domain_id=domain.id)
    return verification


def _hold_reason(domain: Domain, seen: Mapping[str, Verdict]) -> str | None:
    """Why mail from the domain is to be held. Where DNS did not say, it stays as it was (D12)."""
    needed = [seen[name] for name in ("dkim", "spf")]
    wrong = next((verdict for verdict in needed if verdict.checked and verdict.status == "Error"), None)
    if wrong is not None:
        return f"The DNS of {domain.name} is wrong. {wrong.reason}."
    return domain.hold_reason if not all(verdict.checked for verdict in needed) else None


def _standing(verdict: Verdict, last: Mapping[str, Any] | None) -> dict[str, Any]:
    """A verdict as it is stored. One that could not be reached says so, and leaves the last one standing."""
    if verdict.checked or last is None:
        return asdict(verdict)
    return {**last, "reason": verdict.reason, "checked": False}


def is_proved(seen: Mapping[str, Verdict]) -> bool:
    """Whether ownership and DKIM were seen to be right: what a domain needs to send."""
    return seen["ownership"].status == "Success" and seen["dkim"].status == "Success"


def _answered(question: Callable[[], Verdict]) -> Verdict:
    try:
        return question()
    except _Unanswered as error:
        return records.unknown(str(error))


class _Dns:
    """One look at a domain."""

    def __init__(self, asked: dns.resolver.Resolver, domain: str) -> None:
        self._asked, self._domain = asked, domain

    def ask(self, name: str, rdtype: str) -> list[str]:
        """The records as text. Raises _Unanswered."""
        lookup = resolver.ask(self._asked, name, rdtype)
        if lookup.ended is resolver.Ended.FAILED:
            raise _Unanswered(lookup.reason)
        return lookup.strings if rdtype == "TXT" else [record.to_text() for record in lookup.records]

    def texts(self, name: str) -> list[str]:
        """The TXT records. Raises _Unanswered."""
        return self.ask(name, "TXT")

    def addresses(self, name: str, version: int) -> list[str]:
        """A or AAAA records. Raises _Unanswered."""
        return self.ask(name, "A" if version == 4 else "AAAA")

    def servers(self, name: str) -> list[str]:
        """The hosts of the MX records. Raises _Unanswered."""
        return [answer.split()[-1].removesuffix(".") for answer in self.ask(name, "MX")]

    def wants(self, host: str) -> bool:
        """Whether another domain takes reports about this one (RFC 7489 §7.1). Raises _Unanswered."""
        return any("dmarc1" in text.lower() for text in self.texts(f"{self._domain}._report._dmarc.{host}"))

    def doubled(self, name: str, found: list[str]) -> list[str]:
        """What stands where a record lands when a provider adds the domain itself; only asked for when it helps (D13)."""
        return [] if found else resolver.ask(self._asked, f"{name}.{self._domain}", "TXT").strings


def _ownership(dns_of: _Dns, domain: Domain) -> Verdict:
    name = records.ownership_name(domain.name)
    found = dns_of.texts(name)
    return records.ownership(found, domain.ownership_token, doubled=dns_of.doubled(name, found))


def look_at_key(asked: dns.resolver.Resolver, domain: Domain, key: DkimKey) -> Verdict:
    """The verdict on the record of one key, active or not."""
    return _answered(lambda: _key(_Dns(asked, domain.name), domain, key))


def _key(dns_of: _Dns, domain: Domain, key: DkimKey) -> Verdict:
    name = records.dkim_name(key.selector, domain.name)
    found = dns_of.texts(name)
    return records.dkim(found, key.record, doubled=dns_of.doubled(name, found))


def _dkim(dns_of: _Dns, domain: Domain) -> Verdict:
    """The worst of the domain's keys: mail is signed with every active one."""
    verdicts = [_key(dns_of, domain, key) for key in domain.dkim_keys if key.is_active]
    nothing = Verdict("Error", "The domain has no active DKIM key")
    return max(verdicts, key=lambda verdict: _SEVERITY.index(verdict.status), default=nothing)


def _return_path(dns_of: _Dns, domain: Domain) -> Verdict:
    servers = dns_of.ask(domain.name, "MX")
    addresses = [] if servers else dns_of.ask(domain.name, "A") or dns_of.ask(domain.name, "AAAA")
    return records.return_path(servers, addresses)


def _dmarc(dns_of: _Dns, domain: Domain) -> Verdict:
    name = records.dmarc_name(domain.name)
    found = dns_of.texts(name)
    own = next((answer for answer in found if "dmarc1" in answer.lower()), None)
    parent = None
    if own is None:
        walked = [(above, dns_of.texts(records.dmarc_name(above))) for above in records.dmarc_walk(domain.name)]
        parent = records.dmarc_parent(walked)
    unwanted = [host for host in records.dmarc_reports(own or "", domain.name)[:3] if not dns_of.wants(host)]
    return records.dmarc(found, doubled=dns_of.doubled(name, found), parent=parent, unwanted=unwanted)


def _spf(dns_of: _Dns, domain: Domain, include: str) -> Verdict:
    """What the record says, held against what a receiver would find for some of the addresses behind our include."""
    verdict = records.spf(dns_of.texts(domain.name), include, lookup=dns_of.texts)
    try:
        ours = records.spf_records(dns_of.texts(include.removeprefix("include:")))
        probes = spf.networks(ours[0])[:_PROBES] if len(ours) == 1 else []
    except (_Unanswered, spf.PermError):
        return verdict  # our own record cannot be read, which is not the domain's fault
    results = []
    for ip in probes:
        check = spf.Check(ipaddress.ip_address(ip), dns_of, ("postmaster", domain.name))
        results.append((ip, check.host(domain.name), check.reason))
    return records.spf_evaluated(verdict, results)
