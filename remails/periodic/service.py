"""The repeating tasks.

NAME
    periodic - runs what repeats, on one host at a time

DESCRIPTION
    Say again what is due and was not taken; end the claims of dead hosts; find another address for mail whose own went
    away; hold the mail of blocked organizations and of domains whose DNS is wrong; look at the sender domains' DNS again; check that what
    was accepted is final or waits; have the relay's certificate renewed; fold usage and renew quotas; forget what is old.
    Each task has its own interval and they run side by side, so a slow one does not delay the
    others. None of them is needed for mail to be taken or sent.

    Run it on as many hosts as you like: one leads, by an advisory lock in the database, and the others stand by. When
    the leader stops, the next one starts within a second; when its host dies, within half a minute. A leader that loses
    its connection stops its tasks at once.

STANDARDS
    RFC 6376 (DKIM), RFC 7208 (SPF), RFC 7489 (DMARC): what the domain checks look at. RFC 8555 (ACME), RFC 2136 and 8945
    (DNS updates, TSIG): how certificates are issued.

DIAGNOSTICS
    "leading" and "leadership lost" tell which host leads. Work that was done is logged with its counts, a turn that
    found nothing only at level DEBUG. A task that fails is logged with its traceback and runs again after its interval.
    Exit status 78: a setting is wrong.

CONFIGURATION
    [periodic] notify_interval, claims_interval, domains_interval, domains_older_than, retention_interval,
    usage_interval, balance_interval, watch_interval, certificates_interval, host_timeout; [certificates]; [dns]; [database];
    [bus]; mail.hostname, mail.spf_include; credentials database_password, bus_client_key; and for certificates
    encryption_keys, acme_eab_key, acme_dns_key
"""

import asyncio
import functools
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from remails import metrics, service
from remails.bus.client import Publisher
from remails.config import Settings
from remails.db import Database
from remails.errors import Unavailable
from remails.logs import Log
from remails.periodic import balance, certificates, claims, domains, holds, notify, orphans, retention, usage, watch
from remails.store import server
from remails.store.leadership import Leadership

log = Log("remails.periodic")

_STANDBY_INTERVAL = 1.0  # seconds between two bids for the lead, and between two looks whether it is still ours


@dataclass(frozen=True, slots=True)
class Task:
    """What repeats every `interval` seconds, and rests at least `rest` times as long as its turn took."""

    name: str
    interval: float
    run: Callable[[], Awaitable[None]]
    rest: int = 0


def tasks(settings: Settings, db: Database, publisher: Publisher) -> list[Task]:
    """All repeating tasks."""
    every = settings.periodic
    # It reads all that waits: with millions of deliveries that takes seconds, and is to take no more than a twentieth of the time.
    watching = [Task("watch", every.watch_interval, lambda: watch.run(db, every.host_timeout), rest=20)]
    return [
        *(watching if settings.metrics.host else []),
        Task("notify", every.notify_interval, lambda: notify.run(db, publisher)),
        Task("claims", every.claims_interval, lambda: claims.run(db, publisher, every.host_timeout)),
        Task("orphans", every.claims_interval, lambda: orphans.run(db, publisher)),
        Task("holds", every.claims_interval, lambda: holds.run(db)),
        Task("domains", every.domains_interval, lambda: domains.run(db, settings)),
        Task("balance", every.balance_interval, lambda: balance.run(db)),
        Task("certificates", every.certificates_interval, lambda: certificates.run(db, settings)),
        Task("usage", every.usage_interval, lambda: usage.run(db)),
        Task("retention", every.retention_interval, lambda: retention.run(db, settings.mail.idempotency_keep)),
    ]


def main(settings: Settings) -> None:
    """Run the tasks, or stand by, until SIGTERM."""
    service.run("periodic", settings, lambda stop: serve(settings, stop))


async def serve(settings: Settings, stop: asyncio.Event) -> None:
    """Run the tasks, or stand by, until `stop`. Raises ConfigError."""
    publisher = Publisher(settings.bus, settings.bus_client_key())
    password = settings.database_password()
    db = Database(settings.database, password, "periodic")
    leadership = Leadership(settings.database, password, "periodic")

    async def look() -> str:
        await db.call(server.check)
        return "leading" if leadership.is_ours else "standing by"

    try:
        publisher.open()
        db.open()
        term = functools.partial(serve_term, leadership, tasks(settings, db, publisher), stop)
        await asyncio.gather(service.report(stop, look), service.forever("leadership", stop, _STANDBY_INTERVAL, term))
    finally:
        leadership.close()
        db.close()
        publisher.close()


async def serve_term(leadership: Leadership, work: list[Task], stop: asyncio.Event) -> None:
    """Bid for the lead; with it, run the tasks until it is lost or `stop`.

    Raises:
        Unavailable: the database cannot be reached.
    """
    if not await asyncio.to_thread(leadership.take):
        log.debug("standing by")
        watch.forget()
        return
    log.info("leading", tasks=len(work))
    metrics.LEADING.set(1)
    running = [asyncio.create_task(service.forever(task.name, stop, task.interval, _turn(task))) for task in work]
    try:
        while not await service.pause(stop, _STANDBY_INTERVAL):
            await asyncio.to_thread(leadership.keep)
    except Unavailable as error:
        log.warning("leadership lost, tasks stopped", reason=error)
    finally:
        for one in running:
            one.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        watch.forget()


def _turn(task: Task) -> Callable[[], Awaitable[None]]:
    async def turn() -> None:
        started = time.monotonic()
        await task.run()
        took = time.monotonic() - started
        metrics.TASK_SECONDS.observe(took, task=task.name)
        log.debug("turn", task=task.name, seconds=round(took, 3))
        await asyncio.sleep(max(0.0, took * task.rest - task.interval))

    return turn
