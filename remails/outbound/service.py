"""The sending side.

NAME
    outbound - claims mail that leaves from this host's addresses, signs it and delivers it

DESCRIPTION
    Listens on the bus for notes that mail is ready to leave from an address this host holds, and asks the database besides:
    at start, when a note was lost, and every `poll_interval`. What it finds it claims for the length of a lease, which
    is renewed while the work goes on; after a crash others wait for its end. On SIGTERM no more is claimed, dialogues
    under way are finished within `drain_timeout`, and what was not begun is given back.

STANDARDS
    RFC 5321 (SMTP), RFC 3207 (STARTTLS), RFC 6376 and RFC 8463 (DKIM), RFC 7505 (null MX), RFC 7435 (opportunistic security),
    RFC 8461 (MTA-STS), RFC 6698 and RFC 7672 (DANE)

DIAGNOSTICS
    One line for each result: delivered, deferred, failed, ambiguous or expired, with the remote server's reply.
    "address not held": the IP agent has no valid lease for it here; see `remails address list`.

CONFIGURATION
    [outbound], [dns], [bus]; credentials encryption_keys, bus_client_key, database_password
"""

import asyncio
import contextlib
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

import msgspec

from remails import metrics, resolver, service, workers
from remails.bus import client, events
from remails.config import Settings
from remails.db import Coalescer, Connection, Database
from remails.errors import Unavailable
from remails.logs import Log
from remails.mail import address, mailbox_providers
from remails.mail.bounce import Blame
from remails.outbound import security
from remails.outbound.claiming import PACE, Claiming
from remails.outbound.delivery import Courier
from remails.outbound.destinations import Destinations
from remails.outbound.holdings import Holdings
from remails.outbound.room import Room
from remails.outbound.route import Router
from remails.outbound.rules import Rules
from remails.outbound.signing import Signing
from remails.outbound.sts import Policies
from remails.store import addresses, leases, queue, server, suppressions
from remails.store.ids import MessageId, OrganizationId
from remails.store.queue import Begun, Claim, Result
from remails.vault import Vault

log = Log("remails.outbound")

_REFRESH = 60.0  # seconds between looks for MTA-STS policies to fetch again
_LATE = 10.0  # seconds without a turn of a loop that takes one every second


class Outbound:
    """The service: what it holds, what it has claimed, and the loops that feed it.

    Args:
        number: which of the host's processes it is, from 0.
    """

    def __init__(
        self, settings: Settings, db: Database, publisher: client.Publisher, vault: Vault, number: int = 0
    ) -> None:
        self._number = number
        self._settings, self._db, self._publisher = settings, db, publisher
        self._holdings = Holdings()
        self._looked_at = float("-inf")
        self._room = Room(settings.outbound.concurrency, settings.outbound.batch, self._on_room)
        self._tasks: set[asyncio.Task[None]] = set()
        self._bodies: Coalescer[Claim, bytes | None] = Coalescer(
            self._load, most=settings.outbound.batch, weight=lambda claim: claim.size
        )
        security.trust(settings.outbound.ca_file)  # what cannot be used is said at the start
        self._destinations = Destinations(settings.outbound, self._room)
        self._claiming = Claiming(settings.outbound, db, self._holdings, self._room, self._destinations, self._start)
        self._begun: Coalescer[Begun, bool] = Coalescer(self._begin, pace=PACE / 2)
        self._results: Coalescer[tuple[Claim, Result, Blame], None] = Coalescer(
            self._record, pace=4 * PACE, patient=True
        )
        dns = resolver.asynchronous(settings.dns)
        self._policies = Policies(db, dns, settings.outbound)
        self._courier = Courier(
            settings.outbound,
            self._holdings,
            Router(dns, settings.mail.hostname, allow_private=settings.outbound.allow_private_destinations),
            Rules(dns, self._policies, settings.outbound.port),
            Signing(db, vault),
            self._destinations,
            load=self._bodies,
            begin=self._begun,
            record=self._results,
            release=self._release,
        )

    async def run(self, stop: asyncio.Event, subscriber: client.Subscriber | None) -> None:
        """Work until `stop`, then drain."""
        outbound = self._settings.outbound
        loops = [
            asyncio.create_task(loop)
            for loop in (
                service.forever("addresses", stop, outbound.poll_interval, lambda: self._look(subscriber)),
                service.forever("leases", stop, outbound.lease / 3, self._renew),
                service.forever("connections", stop, outbound.keep_connection / 2, self._destinations.reap),
                service.report(stop, self._state),
                self._poll(stop),
                self._claiming.claim_noted(stop),
                self._claiming.claim_due(stop),
                *([self._listen(stop, subscriber)] if subscriber is not None else []),
            )
        ]
        refreshing = asyncio.create_task(service.forever("policies", stop, _REFRESH, self._policies.refresh))
        done, _ = await asyncio.wait(loops, return_when=asyncio.FIRST_COMPLETED)
        refreshing.cancel()  # a slow policy host keeps nobody from stopping
        stop.set()  # they end when told; one that ends by an error takes the service with it, but not the mail in hand
        self._claiming.wake()
        await asyncio.gather(*loops, refreshing, return_exceptions=True)
        await self._drain()
        await self._destinations.close()
        for task in done:
            task.result()

    async def _look(self, subscriber: client.Subscriber | None) -> None:
        """Ask which addresses this host holds."""
        asked_at = time.monotonic()
        if self._claiming.host_id is None:
            host = await self._db.call(addresses.host_by_name, self._settings.host)
            if host is None:
                self._looked_at = asked_at
                return  # the IP agent has not registered this host yet
            self._claiming.host_id = host.id
        gained, lost = self._holdings.update(await self._db.call(leases.held_by, self._claiming.host_id), asked_at)
        self._looked_at = asked_at
        if subscriber is not None:
            for ip in gained:
                subscriber.subscribe(f"ready/{ip}/")
            for ip in lost:
                subscriber.unsubscribe(f"ready/{ip}/")
        if gained or lost:
            log.info("addresses", gained=",".join(gained) or None, lost=",".join(lost) or None)
            self._claiming.look()

    async def _state(self) -> str:
        """What it does. Raises Unavailable with what hinders it."""
        await self._db.call(server.check)
        late = _LATE + self._settings.outbound.poll_interval
        now = time.monotonic()
        if now - self._looked_at > late:
            raise Unavailable("does not get to know its addresses")
        if now - self._claiming.looked_at > late:
            raise Unavailable("does not get to ask what is due")
        if self._claiming.host_id is None:
            return "this host is not registered, see remails-ipagent"
        held = len(self._holdings.usable())
        metrics.SOURCES_USABLE.set(held)
        metrics.DELIVERIES_IN_HAND.set(len(self._room.held))
        return f"delivering from {held} address{'' if held == 1 else 'es'}, {len(self._room.held)} deliveries in hand"

    async def _listen(self, stop: asyncio.Event, subscriber: client.Subscriber) -> None:
        hearing, stopping = asyncio.ensure_future(self._hear(subscriber)), asyncio.ensure_future(stop.wait())
        await asyncio.wait([hearing, stopping], return_when=asyncio.FIRST_COMPLETED)
        if hearing.done():
            hearing.result()
        hearing.cancel()

    async def _hear(self, subscriber: client.Subscriber) -> None:
        async for note in subscriber:
            match note:
                case events.Ready(message_ids=ids) if ids:
                    # Each process hears of all, and takes its share: what another does not take in time the poll finds.
                    share = (id_ for id_ in ids if id_.int % self._settings.outbound.processes == self._number)
                    self._claiming.note(map(MessageId, share))
                case events.AddressesChanged():
                    try:
                        await self._look(subscriber)
                    except Unavailable as error:
                        log.warning("addresses not read", reason=error)
                case _:
                    self._claiming.look()

    async def _poll(self, stop: asyncio.Event) -> None:
        while not await service.pause(stop, self._settings.outbound.poll_interval):
            self._claiming.on_room(noted=False)

    def _drop(self, claims: Sequence[Claim]) -> None:
        self._room.drop(claims)
        self._claiming.wake()

    def _on_room(self, *, noted: bool) -> None:
        self._claiming.on_room(noted=noted)

    def _start(self, claims: Sequence[Claim], bodies: Mapping[MessageId, bytes]) -> None:
        by_message: defaultdict[MessageId, list[Claim]] = defaultdict(list)
        self._room.take(claims)
        for claim in claims:
            by_message[claim.message_id].append(claim)
        for message_id, group in by_message.items():
            task = asyncio.create_task(self._deliver(group, bodies.get(message_id)))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _deliver(self, claims: Sequence[Claim], raw: bytes | None) -> None:
        try:
            await self._courier.deliver(claims, raw)
        except Unavailable as error:
            log.warning("put off", message=claims[0].message_id, reason=error)
        except Exception:
            # A fault of ours: the lease runs out and the delivery comes due again.
            log.exception("delivery failed by a fault of ours", message=claims[0].message_id)
        self._drop(claims)  # not when cancelled at the end: then all of them are given back together

    async def _load(self, claims: Sequence[Claim]) -> list[bytes | None]:
        found = await self._db.call(queue.bodies, [claim.message_id for claim in claims])
        return [found.get(claim.message_id) for claim in claims]

    async def _begin(self, batch: Sequence[Begun]) -> list[bool]:
        ours = await self._db.visit(self._db.run, queue.begin, batch)
        return [begun.delivery_id in ours for begun in batch]

    async def _record(self, batch: Sequence[tuple[Claim, Result, Blame]]) -> list[None]:
        await self._db.visit(_record, self._db, batch, self._settings.host)
        self._drop([claim for claim, _, _ in batch])
        self._tell(batch)
        return [None] * len(batch)

    def _tell(self, batch: Sequence[tuple[Claim, Result, Blame]]) -> None:
        """What was recorded, to who counts and who follows."""
        outcomes: Counter[str] = Counter()
        replies: Counter[tuple[str, str]] = Counter()
        secured: Counter[tuple[str, str]] = Counter()
        attempts: defaultdict[OrganizationId, list[events.Attempt]] = defaultdict(list)
        for claim, result, _ in batch:
            outcomes[result.kind] += 1
            if result.mx_host is not None:
                reply = f"{result.code // 100}xx" if result.code else "none"
                replies[mailbox_providers.of(result.mx_host), reply] += 1
            if result.tls_policy is not None:
                proof = {True: "verified", False: "unverified", None: "none"}[result.tls_verified]
                secured[result.tls_policy, proof] += 1
            if result.milliseconds is not None:
                metrics.DELIVERY_SECONDS.observe(result.milliseconds / 1000)
            attempts[claim.organization_id].append(events.Attempt(claim.message_id, claim.id, result.status))
        for outcome, number in outcomes.items():
            metrics.DELIVERIES.add(number, outcome=outcome)
        for (provider, reply), number in replies.items():
            metrics.REPLIES.add(number, mailbox_provider=provider, reply=reply)
        for (policy, proof), number in secured.items():
            metrics.ATTEMPTS_SECURED.add(number, policy=policy, tls=proof)
        for organization_id, made in attempts.items():
            self._publisher.publish(events.Attempted(organization_id, made))

    async def _release(self, claims: Sequence[Claim], delay: float, why: str | None) -> None:
        self._drop(claims)  # their leases must not be renewed any more
        await self._db.call(queue.release, [(claim.id, claim.claim_epoch) for claim in claims], delay, why)
        if not delay:
            self._claiming.put_off(claim.message_id for claim in claims)

    async def _renew(self) -> None:
        if held := self._room.held:
            await self._db.call(queue.renew, held, self._settings.outbound.lease)

    async def _drain(self) -> None:
        """Finish what is under way; leases are renewed meanwhile."""
        if not self._tasks:
            return
        log.info("draining", messages=len(self._tasks))
        self._destinations.stop()
        drained = asyncio.Event()
        renewing = asyncio.create_task(
            service.forever("leases", drained, self._settings.outbound.lease / 3, self._renew)
        )
        _, late = await asyncio.wait(self._tasks, timeout=self._settings.outbound.drain_timeout)
        for task in late:
            task.cancel()  # what was begun and not answered is tried again as ambiguous
        drained.set()
        await asyncio.gather(*late, renewing, return_exceptions=True)
        await self._results.flush()  # what was answered is not to be given back: another host would send it once more
        if held := self._room.held:
            log.warning("given back unfinished", deliveries=len(held))
            with contextlib.suppress(Unavailable):
                await self._db.call(queue.release, held)


def _record(db: Database, batch: Sequence[tuple[Claim, Result, Blame]], host: str) -> None:
    results = [result for _, result, _ in batch]
    if any(blame for _, _, blame in batch):
        db.run(_record_bounces, batch, results, host)
    else:
        db.run(queue.record_many, results, host)
    if good := [(claim.organization_id, _key(claim)) for claim, result, _ in batch if result.status == "delivered"]:
        with contextlib.suppress(
            Unavailable
        ):  # what is recorded must not be recorded twice; the next success forgets as well
            db.run(suppressions.record_successes, good)


def _record_bounces(
    conn: Connection, batch: Sequence[tuple[Claim, Result, Blame]], results: Sequence[Result], host: str
) -> None:
    """Record results and whom they suppress, together; a result that does not count, or did before, suppresses nobody."""
    ours = queue.record_many(conn, results, host)
    bad = [
        suppressions.Bounced(claim.organization_id, _key(claim), blame is Blame.SURELY, _reason(result))
        for claim, result, blame in batch
        if blame and claim.id in ours
    ]
    suppressed = suppressions.record_bounces(conn, bad)
    notes = [
        queue.Note(claim.message_id, claim.id, "suppressed", cause=_SUPPRESSED)
        for claim, _, blame in batch
        if blame and claim.id in ours and (claim.organization_id, _key(claim)) in suppressed
    ]
    queue.note_many(conn, notes)


_SUPPRESSED = (
    f"No more mail is sent to this address for {suppressions.DAYS} days, unless it is taken off the suppression list."
)


def _key(claim: Claim) -> str:
    return address.parse(claim.recipient).key


def _reason(result: Result) -> str:
    said = " ".join(str(part) for part in (result.code, result.enhanced, result.text) if part)
    return f"{said[:300]} ({result.mx_host})" if result.mx_host else said[:300]


def main(settings: Settings) -> None:
    """Run the service until SIGTERM."""
    settings = _share_of_one(settings)

    async def serve(stop: asyncio.Event, number: int) -> None:
        vault = Vault(settings.credential("encryption_keys"))
        db = Database(settings.database, settings.database_password(), "outbound")
        key = settings.bus_client_key()
        publisher = client.Publisher(settings.bus, key)
        subscriber = client.Subscriber(settings.bus, key, [f"addresses/{settings.host}/"]) if key else None
        publisher.open()
        db.open()
        try:
            await Outbound(settings, db, publisher, vault, number).run(stop, subscriber)
        finally:
            if subscriber is not None:
                subscriber.close()
            publisher.close()
            await db.finish()
            db.close()

    workers.run("outbound", settings, serve, settings.outbound.processes)


def _share_of_one(settings: Settings) -> Settings:
    """What is left for each of several processes, which know of each other only what they have claimed."""
    ours = settings.outbound
    shared = msgspec.structs.replace(
        ours,
        concurrency=max(ours.concurrency // ours.processes, 1),
        connections_per_destination=max(ours.connections_per_destination // ours.processes, 1),
    )
    return msgspec.structs.replace(settings, outbound=shared)
