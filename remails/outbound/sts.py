"""MTA-STS policies: found in DNS, fetched over HTTPS, kept in the database (RFC 8461).

    of(domain) --> TXT at _mta-sts.<domain> --> its id is that of the policy we keep: use it
                                            `-> another id, or none kept: fetch it, keep it
                     no record, no answer   --> what we keep counts until it ends (§5.1): nobody can take it away by hiding it

A fetch that fails changes nothing, and is not repeated for five minutes. One that takes long goes on while its mail waits in the queue, so that
slow policy hosts hold no claims. Policies are fetched anew every day whether there is
mail or not (`refresh`), by any one of the hosts.
"""

import asyncio
import http.client
import io
import ssl
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypeVar

from remails import metrics, resolver
from remails.config import Outbound
from remails.db import Database
from remails.logs import Log
from remails.mail import sts
from remails.mail.sts import Policy
from remails.outbound.security import trust
from remails.resolver import Ended
from remails.store import sts as store
from remails.store.sts import Kept

log = Log("remails.outbound")

_MOST_KNOWN = 10_000  # domains remembered in this process
_LOOK_AGAIN = 300.0  # seconds until the database is asked again, or a policy host that failed (RFC 8461 §3.3)
_MOST_ADDRESSES = 4
_HEADER = 32_768  # bytes of a response besides the policy
_AT_ONCE = 10
_MOST_FETCHES = 50
_PATIENCE = 2.0  # seconds for which a mail waits for a fetch before it goes back into the queue
_FRESH = 5.0  # seconds without asking DNS again: the resolver's cache costs more than the mail's whole route
_SILENCE = 60.0  # the same after DNS has failed, or each mail would wait for its silence


class Pending(Exception):
    """A policy is being fetched. `delay`: seconds until it is worth another look."""

    delay = 5.0


class Unfetched(Exception):
    """There is no policy to be had, for this reason."""


@dataclass(frozen=True, slots=True)
class _Known:
    """What the database said, and when (monotonic)."""

    kept: Kept | None
    at: float

    @property
    def is_current(self) -> bool:
        return (
            time.monotonic() - self.at < _LOOK_AGAIN if self.kept is None else self.kept.expires_at > datetime.now(UTC)
        )


class Policies:
    """The policies of the domains that mail goes to."""

    def __init__(self, db: Database, dns_resolver: resolver.Asynchronous, settings: Outbound) -> None:
        self._db, self._resolver, self._settings = db, dns_resolver, settings
        self._known: dict[str, _Known] = {}
        self._failed: dict[str, tuple[str, float]] = {}
        self._records: dict[str, tuple[str | None, float]] = {}
        self._fetching: dict[str, asyncio.Task[Kept | None]] = {}
        self._fetches = asyncio.Semaphore(_MOST_FETCHES)

    async def of(self, domain: str) -> Policy | None:
        """The policy of a domain, None when it has none.

        Raises:
            Pending: it is being fetched.
            Unavailable: it may have one, which only the database knows.
        """
        record_id = await self._record_id(domain)
        kept = await self._kept(domain)
        if record_id is not None and (kept is None or kept.record_id != record_id):
            kept = await self._renewed(domain, record_id) or kept
        return kept.policy if kept is not None else None

    async def refresh(self) -> None:
        """Fetch again what was fetched long ago."""
        due = await self._db.call(store.due_for_refresh, _AT_ONCE)
        await asyncio.gather(*(self._refresh(domain, old_id) for domain, old_id in due))

    async def _refresh(self, domain: str, old_id: str) -> None:
        await self._fetched(domain, await self._record_id(domain) or old_id)

    async def _record_id(self, domain: str) -> str | None:
        record_id, until = self._records.get(domain, (None, 0.0))
        if until <= time.monotonic():
            lookup = await resolver.ask_async(self._resolver, f"_mta-sts.{domain}", "TXT")
            record_id = sts.record_id(lookup.strings) if lookup.ended is Ended.FOUND else None
            until = time.monotonic() + (_SILENCE if lookup.ended is Ended.FAILED else _FRESH)
            _bounded(self._records)[domain] = record_id, until
        return record_id

    async def _kept(self, domain: str, *, anew: bool = False) -> Kept | None:
        known = self._known.get(domain)
        if known is None or anew or not known.is_current:
            known = self._remember(domain, await self._db.call(store.get, domain))
        return known.kept

    def _remember(self, domain: str, kept: Kept | None) -> _Known:
        _bounded(self._known)[domain] = known = _Known(kept, time.monotonic())
        return known

    async def _renewed(self, domain: str, record_id: str) -> Kept | None:
        """The policy with this id: another host may have it already; fetched once for all who wait for it. Raises Pending."""
        failed_id, failed_at = self._failed.get(domain, ("", 0.0))
        if failed_id == record_id and time.monotonic() - failed_at < _LOOK_AGAIN:
            return None
        kept = await self._kept(domain, anew=True)
        if kept is not None and kept.record_id == record_id:
            return kept
        task = self._fetching.get(domain)
        if task is None:
            task = self._fetching[domain] = asyncio.create_task(self._fetched(domain, record_id))
            task.add_done_callback(lambda _: self._fetching.pop(domain, None))
        done, _ = await asyncio.wait([task], timeout=_PATIENCE)
        if not done:
            raise Pending(f"the MTA-STS policy of {domain} is being fetched")
        return task.result()

    async def _fetched(self, domain: str, record_id: str) -> Kept | None:
        try:
            async with self._fetches:
                policy = await fetch(domain, self._resolver, self._settings)
        except Unfetched as error:
            log.warning("MTA-STS policy not fetched", domain=domain, reason=error)
            metrics.STS_FETCHES.add(outcome="failed")
            _bounded(self._failed)[domain] = record_id, time.monotonic()
            return None
        self._failed.pop(domain, None)
        log.info(
            "MTA-STS policy", domain=domain, mode=policy.mode, mx=",".join(policy.patterns), max_age=policy.max_age
        )
        kept = await self._db.call(store.save, domain, record_id, policy)
        self._remember(domain, kept)
        return kept


V = TypeVar("V")


def _bounded(memory: dict[str, V]) -> dict[str, V]:
    """The same, with room for one more: what has been there longest is forgotten."""
    if len(memory) >= _MOST_KNOWN:
        del memory[next(iter(memory))]
    return memory


async def fetch(domain: str, dns_resolver: resolver.Asynchronous, settings: Outbound) -> Policy:
    """Fetch the policy of a domain from `mta-sts.<domain>` (RFC 8461 §3.3).

    Its certificate must be valid for that name, redirects are not followed, and all of it is bounded: time, size, addresses.

    Raises:
        Unfetched: it cannot be had, or is no policy.
    """
    host = f"mta-sts.{domain}"
    try:
        async with asyncio.timeout(settings.sts_timeout):
            reason = f"{host} has no address"
            for ip in await _addresses(host, dns_resolver, settings):
                try:
                    return _policy(await _get(host, ip, settings))
                except (OSError, ValueError) as error:
                    reason = f"{host} [{ip}]: {_in_words(error)}"
            raise Unfetched(reason)
    except TimeoutError:
        raise Unfetched(f"{host} took longer than {settings.sts_timeout:g} seconds") from None


async def _addresses(host: str, dns_resolver: resolver.Asynchronous, settings: Outbound) -> list[str]:
    lookups = await asyncio.gather(*(resolver.ask_async(dns_resolver, host, kind) for kind in ("A", "AAAA")))
    ips = [record.address for lookup in lookups for record in lookup.records]  # type: ignore[attr-defined]  # A, AAAA
    # The name is a stranger's choice: without this guard it could make us talk to our own internal services.
    allowed = [ip for ip in ips if settings.allow_private_destinations or resolver.is_public(ip)]
    return allowed[:_MOST_ADDRESSES]


async def _get(host: str, ip: str, settings: Outbound) -> bytes:
    """The response to our one request. Raises OSError, ValueError."""
    reader, writer = await asyncio.open_connection(
        ip, settings.sts_port, ssl=trust(settings.ca_file).verified, server_hostname=host
    )
    try:
        writer.write(
            f"GET /.well-known/mta-sts.txt HTTP/1.1\r\nHost: {host}\r\nAccept: text/plain\r\n"
            "User-Agent: remails\r\nConnection: close\r\n\r\n".encode("ascii")
        )
        received = bytearray()
        while block := await reader.read(65_536):
            received += block
            if len(received) > sts.LARGEST + _HEADER:
                raise ValueError("its answer is too large")
    finally:
        writer.transport.abort()
    return bytes(received)


class _Received:
    """What http.client takes for a socket."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def makefile(self, *_: object) -> io.BytesIO:
        """All there is to read."""
        return io.BytesIO(self._data)


def _policy(received: bytes) -> Policy:
    """The policy in a response. Raises ValueError."""
    response = http.client.HTTPResponse(_Received(received))  # type: ignore[arg-type]  # it needs no more of a socket
    try:
        response.begin()
        body = response.read()
    except http.client.HTTPException as error:
        raise ValueError(f"its answer is no HTTP ({type(error).__name__})") from None
    if response.status != 200:  # RFC 8461 §3.3: redirects are not followed
        raise ValueError(f"it answers {response.status}")
    kind = response.headers.get_content_type()
    if kind != "text/plain":  # RFC 8461 §3.2: a web page that stands at every address is no policy
        raise ValueError(f"its answer is {kind}, not text/plain")
    if len(body) > sts.LARGEST:
        raise ValueError("its answer is too large")
    return sts.parse(body)


def _in_words(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not valid: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return f"the TLS handshake failed: {error.reason}"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__
