"""How we show an ACME server that a name is ours: `Web` by HTTP (RFC 8555 §8.3), `Dynamic` and `Hook` in the DNS (§8.4)."""

import abc
import subprocess
import time
from collections.abc import Sequence
from datetime import timedelta

import dns.exception
import dns.message
import dns.name
import dns.query
import dns.rcode
import dns.rdatatype
import dns.resolver
import dns.tsig
import dns.tsigkeyring
import dns.update

from remails import resolver
from remails.config import Settings, endpoint
from remails.db import Database
from remails.periodic.acme import Failure, Proof, Solver
from remails.store import certificates as store

_PREFIX = "_acme-challenge"
_TTL = 30  # seconds
_TIMEOUT = 10.0  # seconds for one question or change
_HOOK_TIMEOUT = 120.0
_CNAMES = 8


def solver(settings: Settings, db: Database) -> Solver:
    """What the settings ask for. Raises ConfigError."""
    if settings.certificates.challenge == "http-01":
        return Web(db, timedelta(seconds=settings.certificates.timeout))
    return Hook(settings) if settings.certificates.dns_hook else Dynamic(settings)


class Web:
    """The text stands in the database, and any api host answers with it: it does not matter which one is asked."""

    kind = "http-01"

    def __init__(self, db: Database, lifetime: timedelta) -> None:
        self._db, self._lifetime = db, lifetime

    def present(self, proofs: Sequence[Proof]) -> None:
        """See `Solver`."""
        for proof in proofs:
            self._db.run(store.add_challenge, proof.token, proof.text, self._lifetime)

    def withdraw(self, proofs: Sequence[Proof]) -> None:
        """See `Solver`."""
        for proof in proofs:
            self._db.run(store.remove_challenge, proof.token)


class _Dns(abc.ABC):
    """TXT records at the names `_acme-challenge`, or where a CNAME there leads."""

    kind = "dns-01"

    def __init__(self, settings: Settings) -> None:
        self._settings = settings.certificates
        self._resolver = resolver.synchronous(settings.dns)
        self._resolver.cache = None

    def present(self, proofs: Sequence[Proof]) -> None:
        """See `Solver`."""
        for proof in proofs:
            self._change("add", self._owner(proof.domain), proof.text)
        if proofs:
            time.sleep(self._settings.dns_wait)

    def withdraw(self, proofs: Sequence[Proof]) -> None:
        """See `Solver`."""
        for proof in proofs:
            self._change("remove", self._owner(proof.domain), proof.text)

    def _owner(self, domain: str) -> str:
        name = f"{_PREFIX}.{domain}"
        for _ in range(_CNAMES):
            found = resolver.ask(self._resolver, name, "CNAME")
            if found.ended is not resolver.Ended.FOUND:
                break
            name = found.records[0].to_text().rstrip(".")
        return name

    @abc.abstractmethod
    def _change(self, what: str, name: str, text: str) -> None:
        """Have the text added to, or removed from, the TXT records of the name."""


class Dynamic(_Dns):
    """Changes a zone itself (RFC 2136), signed by TSIG (RFC 8945) where the settings name a key."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._where = endpoint(self._settings.dns_server, 53)
        self._key: dns.tsig.Key | None = None
        if self._settings.dns_key_name:
            name, algorithm = self._settings.dns_key_name, self._settings.dns_key_algorithm
            ring = dns.tsigkeyring.from_text({name: (f"{algorithm}.", settings.acme_dns_key())})
            self._key = ring[dns.name.from_text(name)]

    def _change(self, what: str, name: str, text: str) -> None:
        update = dns.update.UpdateMessage(self._zone(name), keyring=self._key)
        owner = dns.name.from_text(name)
        if what == "add":
            update.add(owner, _TTL, "TXT", f'"{text}"')
        else:
            update.delete(owner, "TXT", f'"{text}"')
        answer = self._ask(update)
        if answer.rcode() != dns.rcode.NOERROR:
            said = dns.rcode.to_text(answer.rcode())
            raise Failure(f"the name server {self._settings.dns_server} refuses to {what} the record at {name}: {said}")

    def _zone(self, name: str) -> dns.name.Name:
        """The zone that the name is in, as its server says."""
        zone = dns.name.from_text(name)
        while zone != dns.name.root:
            zone = zone.parent()
            answer = self._ask(dns.message.make_query(zone, "SOA"))
            if any(found.rdtype == dns.rdatatype.SOA and found.name == zone for found in answer.answer):
                return zone
        raise Failure(
            f"the name server {self._settings.dns_server} has no zone with {name}; see certificates.dns_server"
        )

    def _ask(self, message: dns.message.Message) -> dns.message.Message:
        host, port = self._where
        try:
            return dns.query.tcp(message, host, _TIMEOUT, port)
        except (OSError, dns.exception.DNSException) as error:
            raise Failure(
                f"the name server {self._settings.dns_server} does not do it: {error or type(error).__name__}"
            ) from None


class Hook(_Dns):
    """Has a program of the operator's change the zone."""

    def _change(self, what: str, name: str, text: str) -> None:
        command = [self._settings.dns_hook, what, name, text]
        try:
            done = subprocess.run(  # noqa: S603  # the operator's own program
                command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_HOOK_TIMEOUT, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise Failure(f"{self._settings.dns_hook} {what} {name}: {error}") from None
        if done.returncode:
            said = (done.stderr or done.stdout).strip()[-200:]
            raise Failure(f"{self._settings.dns_hook} {what} {name}: exit status {done.returncode}: {said}")
