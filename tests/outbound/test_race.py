"""Several workers race for the same deliveries while one after the other is killed.

`REMAILS_RACE=10000 make test ARGS="-k killed_workers --log-cli-level=INFO"` is the long form; without, it is 1,000 deliveries.
"""

import asyncio
import contextlib
import logging
import os
import random
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import sink as sinks
from workbench import Bench, free_port

from remails import submission
from remails.bus.client import Publisher
from remails.bus.events import Ready
from remails.bus.service import Broker
from remails.config import Bus, BusEndpoint, Mail
from remails.db import Connection

log = logging.getLogger(__name__)

DELIVERIES = int(os.environ.get("REMAILS_RACE", "1000"))
WORKERS = 4
CONNECTIONS = 10
PAUSE = 0.05  # seconds that the server takes for each answer: most of a worker's time it waits for one

_CONFIG = """\
host = "test"
credentials_directory = "{credentials}"
[mail]
hostname = "relay.example"
[database]
dsn = "{dsn}"
[bus]
server_public_key = '{bus.server_public_key}'
[[bus.endpoints]]
publish = "{bus.endpoints[0].publish}"
subscribe = "{bus.endpoints[0].subscribe}"
[dns]
nameservers = ["{nameserver[0]}:{nameserver[1]}"]
[outbound]
port = {port}
allow_private_destinations = true
connections_per_destination = {connections}
poll_interval = 0.2
lease = 5.0
first_retry = 1.0
drain_timeout = 20.0
"""


@pytest.fixture
def bus(credentials: Path) -> Iterator[Bus]:
    """A broker, and how to reach it."""
    ends = [f"tcp://127.0.0.1:{free_port()}" for _ in range(2)]
    settings = Bus(
        endpoints=(BusEndpoint(publish=ends[0], subscribe=ends[1]),),
        listen_publish=ends[0],
        listen_subscribe=ends[1],
        server_public_key=(credentials / "bus_server_key.pub").read_text(),
        client_public_keys=((credentials / "bus_client_key.pub").read_text(),),
    )
    broker = Broker(settings, (credentials / "bus_server_key").read_text())
    broker.thread.start()
    yield settings
    broker.close()


class Workers:
    """Four `remails outbound`, all of the same host."""

    def __init__(self, config: Path) -> None:
        self._config = config
        self._log = (config.parent / "workers.log").open("ab")
        self._running: list[asyncio.subprocess.Process] = []
        self.killed = 0

    async def start(self) -> None:
        """Start one more."""
        self._running.append(
            await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "remails", "--config", str(self._config), "outbound"),
                stdout=self._log,
                stderr=self._log,
            )
        )

    async def kill(self) -> None:
        """Kill one of them, as the kernel does, and start another in its place."""
        victim = self._running.pop(random.randrange(len(self._running)))
        victim.kill()
        await victim.wait()
        self.killed += 1
        await self.start()

    async def stop(self) -> list[int]:
        """Tell them to end; their exit codes."""
        for one in self._running:
            with contextlib.suppress(ProcessLookupError):
                one.send_signal(signal.SIGTERM)
        codes = [await one.wait() for one in self._running]
        self._log.close()
        return codes


@contextlib.asynccontextmanager
async def workers(bench: Bench, bus: Bus, credentials: Path) -> AsyncIterator[Workers]:
    """They run, until the block ends."""
    config = bench.directory / "remails.toml"
    config.write_text(
        _CONFIG.format(
            credentials=credentials,
            dsn=bench.database.dsn,
            bus=bus,
            nameserver=bench.nameserver,
            port=bench.port,
            connections=CONNECTIONS,
        )
    )
    running = Workers(config)
    for _ in range(WORKERS):
        await running.start()
    try:
        yield running
    finally:
        codes = await running.stop()
    assert set(codes) <= {0, -signal.SIGTERM}  # the one started last may not have come so far as to listen


async def hand_in(bench: Bench, publisher: Publisher) -> None:
    """All deliveries, each announced three times."""
    for start in range(0, DELIVERIES, 100):
        numbers = range(start, min(start + 100, DELIVERIES))
        given = [
            bench.tenant.submission(
                f"r{number}@example.net",
                raw=b"From: sender@acme.example\r\nSubject: %d\r\n\r\nHi\r\n" % number,
            )
            for number in numbers
        ]
        outcomes = await bench.db.thread(submission.submit, bench.db, publisher, Mail(hostname="relay.example"), given)
        ids = [outcome.id for outcome in outcomes if isinstance(outcome, submission.Accepted)]
        assert len(ids) == len(numbers)
        for _ in range(2):
            publisher.publish(Ready(bench.tenant.sources[0], ids))


def waiting(conn: Connection) -> int:
    row = conn.execute("SELECT count(*) FROM deliveries WHERE status <> 'delivered'").fetchone()
    assert row is not None
    return int(row[0])


def under_way(conn: Connection) -> set[str]:
    """The subjects of messages that were begun and have no result yet; a statement of who was killed may still be running."""
    conn.execute("LOCK TABLE deliveries IN SHARE MODE")
    begun = conn.execute(
        "SELECT m.subject FROM messages m JOIN deliveries d ON d.message_id = m.id WHERE d.begun_at IS NOT NULL"
    )
    return {subject for (subject,) in begun}


def ambiguous(conn: Connection) -> set[str]:
    """The subjects of messages that may have arrived twice, as the timeline says."""
    return {
        subject
        for (subject,) in conn.execute(
            "SELECT m.subject FROM messages m JOIN timeline t ON t.message_id = m.id WHERE t.kind = 'ambiguous'"
        )
    }


@pytest.mark.timeout(60 + DELIVERIES // 20)
def test_killed_workers_lose_nothing_and_double_only_what_is_marked(bench: Bench, bus: Bus, credentials: Path) -> None:
    bench.ttl = 300

    async def main() -> None:
        publisher = Publisher(bus, (credentials / "bus_client_key").read_text())
        publisher.open()
        with sinks.running("127.0.0.21", bench.port, delay=PAUSE) as sink:
            async with bench.dns(), workers(bench, bus, credentials) as running:
                await hand_in(bench, publisher)
                due, begun = DELIVERIES, set[str]()
                while left := await bench.db.call(waiting):
                    if left < due:  # killings follow progress, whatever the machine's speed
                        await running.kill()
                        begun |= await bench.db.call(under_way)
                        due = left - min(DELIVERIES // 5, 500)
                    await asyncio.sleep(0.1)
            arrived = sink.counts()["mails"]
        publisher.close()
        marked = await bench.db.call(ambiguous)
        doubled = {subject for subject, copies in arrived.items() if copies > 1}
        log.info(
            "%d killed, %d begun then, %d marked as ambiguous, %d arrived twice",
            *(running.killed, len(begun), len(marked), len(doubled)),
        )
        assert set(arrived) == {str(number) for number in range(DELIVERIES)}
        assert running.killed >= 4
        assert doubled <= marked
        assert marked <= begun
        rows = await bench.db.call(
            lambda conn: conn.execute(
                "SELECT count(*) FROM deliveries WHERE begun_at IS NOT NULL OR claimed_by IS NOT NULL"
            ).fetchall()
        )
        assert rows == [(0,)]

    asyncio.run(main())
