#!/usr/bin/env python3
"""Where the time goes: the parts alone, one after the other, in one process each.

    PYTHONPATH=tests python bench/micro.py [--seconds 2] [--keep]

The store's batches against a durable PostgreSQL, signing, the bus, then the whole way in without outbound, and the whole way out of what that
left waiting. Rates are mails a second; `own` and `postgresql` are milliseconds of processor time for each mail.
"""

import argparse
import asyncio
import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

import compare
import kept
import msgspec
import seed
import systems
import uvloop
from compare import SIZES, Case, Wrong
from groups import Group, stop_when_told

from remails import submission
from remails.bus import client, events
from remails.config import Bus, Mail
from remails.config import Database as DatabaseSettings
from remails.db import Database
from remails.mail import dkim
from remails.store import migrate, queue
from remails.store.queue import Begun, Claim, Result
from remails.vault import Pepper, Vault, new_encryption_key, new_secret

MAIL = Mail(hostname="relay.example")
BATCHES = (1, 10, 50, 200)
LEASE = 60.0


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """One part."""

    what: str
    per_s: float
    own_ms: float
    postgresql_ms: float = 0.0


def figure(what: str, count: int, seconds: float, cpu: float, postgresql: float = 0.0) -> Figure:
    """Print it and return it."""
    made = Figure(what=what, per_s=count / seconds, own_ms=cpu * 1000 / count, postgresql_ms=postgresql * 1000 / count)
    print(
        f"{what:<46} {made.per_s:9,.0f}/s  own {made.own_ms:7.3f} ms  postgresql {made.postgresql_ms:6.3f} ms",
        flush=True,
    )
    return made


class Store:
    """The store's functions in batches; what a batch needs is made before its time begins."""

    def __init__(self, db: Database, tenant: seed.Tenant, group: Group, seconds: float) -> None:
        self._db, self._tenant, self._group, self._seconds = db, tenant, group, seconds
        self._publisher = client.Publisher(Bus(), "")

    def all(self) -> Iterator[Figure]:
        """Each of them."""
        for batch in BATCHES:
            yield self._timed(f"submit, 4 kB, {batch} at once", partial(self._mails, batch, 4), self._submit)
        yield self._timed("submit, 50 kB, 20 at once", lambda: self._mails(20, 50), self._submit)
        for batch in (10, 50):
            yield self._timed(f"claim, {batch} at once", partial(range, batch), lambda given: self._claim(len(given)))
        claims = self._claim(50)
        yield self._timed("bodies, 4 kB, 50 at once", lambda: claims, self._bodies)
        yield self._timed("begin, 50 at once", lambda: claims, self._begin)
        for batch in (1, 50):
            yield self._timed(f"record, {batch} at once", partial(self._claim, batch), self._record)

    def _timed(self, what: str, make: Callable[[], Sequence[Any]], work: Callable[[Any], object]) -> Figure:
        count, spent, cpu, theirs = 0, 0.0, 0.0, 0.0
        while spent < self._seconds:
            given = make()
            before = time.monotonic(), time.process_time(), self._group.cpu()
            work(given)
            after = time.monotonic(), time.process_time(), self._group.cpu()
            spent, cpu, theirs = (
                total + end - start for total, start, end in zip((spent, cpu, theirs), before, after, strict=True)
            )
            count += len(given)
        return figure(what, count, spent, cpu, theirs)

    def _mails(self, batch: int, size: int) -> list[submission.Submission]:
        body = (b"x" * 70 + b"\r\n") * (SIZES[size] // 72 - 2)
        raw = f"From: sender@{self._tenant.domain}\r\nTo: r@example.net\r\nSubject: Hello\r\n\r\n".encode() + body
        return [self._tenant.submission(raw=raw) for _ in range(batch)]

    def _submit(self, given: Sequence[submission.Submission]) -> None:
        outcomes = submission.submit(self._db, self._publisher, MAIL, given)
        if not all(isinstance(outcome, submission.Accepted) for outcome in outcomes):
            raise Wrong(f"refused: {outcomes[0]}")

    def _claim(self, count: int) -> list[Claim]:
        tenant = self._tenant
        claims = self._db.run(queue.claim_due, tenant.host_id, tenant.sources, lease=LEASE, limit=count)
        if len(claims) < count:  # all are taken: more of them
            self._submit(self._mails(1000, 4))
            return self._claim(count)
        return claims

    def _bodies(self, claims: Sequence[Claim]) -> None:
        self._db.run(queue.bodies, [claim.message_id for claim in claims])

    def _begin(self, claims: Sequence[Claim]) -> None:
        self._db.run(
            queue.begin, [Begun(claim.id, claim.claim_epoch, "mx.example.net", "127.0.0.21") for claim in claims]
        )

    def _record(self, claims: Sequence[Claim]) -> None:
        results = [
            Result(
                delivery_id=claim.id,
                message_id=claim.message_id,
                claim_epoch=claim.claim_epoch,
                status="delivered",
                kind="delivered",
                text="250 2.0.0 Ok",
                code=250,
                enhanced="2.0.0",
                source=claim.source,
                mx_host="mx.example.net",
                mx_ip="127.0.0.21",
                milliseconds=20,
            )
            for claim in claims
        ]
        self._db.run(queue.record_many, results, "bench")


def store(seconds: float) -> Iterator[Figure]:
    """In a database of its own."""
    with (
        tempfile.TemporaryDirectory(prefix="remails-bench-", dir="/var/tmp") as directory,
        contextlib.ExitStack() as stack,
    ):
        group = Group("micro-postgresql")
        stack.callback(group.remove)
        server = systems.server(Path(directory) / "data")
        stack.callback(server.stop)
        with group.adopting():
            server.start()
        server.create_database("remails")
        settings = DatabaseSettings(dsn=f"{server.dsn} dbname=remails")
        migrate.apply(settings, None)
        db = Database(settings, None, "bench")
        db.open(wait=True)
        stack.callback(db.close)
        db.run(systems.check_durable)
        tenant = seed.tenant(db, Vault(new_encryption_key("bench")), Pepper(new_secret(40)))
        yield from Store(db, tenant, group, seconds).all()


def signing(seconds: float) -> Iterator[Figure]:
    """DKIM, RSA-2048."""
    key = dkim.load(dkim.generate(dkim.Algorithm.RSA))
    for size, octets in SIZES.items():
        raw = b"From: a@acme.example\r\nTo: b@example.net\r\nSubject: Hello\r\n\r\n" + (b"y" * 70 + b"\r\n") * (
            octets // 72
        )
        count, started, cpu = 0, time.monotonic(), time.process_time()
        while time.monotonic() - started < seconds:
            dkim.sign(raw, domain="acme.example", selector="remails", key=key, now=1_800_000_000)
            count += 1
        yield figure(f"sign, {size} kB", count, time.monotonic() - started, time.process_time() - cpu)


def ways(seconds: float) -> Iterator[Figure]:
    """The whole way in, with nobody who sends; the bus; then the whole way out of what waits."""
    with compare.place() as (place, sink), systems.remails(place, words=("bus", "ipagent", "inbound")) as system:
        compare.send(compare.order(system, Case(4, 10), "warm-", 1.0))
        before = system.cpu()
        sent = compare.send(compare.order(system, Case(4, 10), "in-", seconds))
        after = system.cpu()
        took = max(sent.taken) - min(sent.begun)
        mails = sum(1 for at in sent.taken if at)
        own, theirs = (after[name] - before[name] for name in ("inbound", "postgresql"))
        yield figure("inbound alone, 4 kB, 10 sessions", mails, took, own, theirs)
        yield uvloop.run(_bus(system, seconds))
        waiting = system.unfinished()
        with system.started("outbound"):
            while not sink.total():
                time.sleep(0.002)
            first, before = time.monotonic(), system.cpu()
            compare.wait(sink, waiting)
            took = time.monotonic() - first
            system.settle()
        after = system.cpu()
        own, theirs = (after[name] - before[name] for name in ("outbound", "postgresql"))
        if (count := sink.total()) != waiting:
            raise Wrong(f"{waiting} mails waited and {count} came")
        yield figure("outbound alone, 4 kB, of what waits", waiting, took, own, theirs)


async def _bus(system: systems.Remails, seconds: float) -> Figure:
    """Notes through the broker, all of them of one publisher, to one subscriber."""
    settings, key = system.settings.bus, system.settings.bus_client_key()
    note = events.Ready("198.51.100.1", [UUID(int=number) for number in range(10)])
    subscriber, publisher = client.Subscriber(settings, key, [note.topic]), client.Publisher(settings, key)
    heard = aiter(subscriber)
    first = asyncio.ensure_future(anext(heard))
    while not first.done():
        publisher.publish(note)
        await asyncio.sleep(0.02)
    count, started, cpu = 0, time.monotonic(), time.process_time()
    while time.monotonic() - started < seconds:
        for _ in range(100):
            publisher.publish(note)
        for _ in range(100):
            await anext(heard)
        count += 100
    took = time.monotonic() - started, time.process_time() - cpu
    publisher.close()
    subscriber.close()
    return figure("notes over the bus", count, *took)


def main() -> None:
    """Measure all parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2.0, help="for each part")
    parser.add_argument("--keep", action="store_true", help="write bench/results/micro.json")
    options = parser.parse_args()
    here = kept.machine()
    stop_when_told()
    try:
        found = [*signing(options.seconds), *store(options.seconds), *ways(options.seconds)]
    except Wrong as error:
        raise SystemExit(f"FAILED: {error}") from None
    if options.keep:
        kept.write("micro", here, f"{options.seconds:g} s each", found)


if __name__ == "__main__":
    main()
