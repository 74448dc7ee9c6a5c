"""One leader runs the tasks; when it stops or is cut off the next one does, and a slow task delays no other."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
import seed

from remails import service, submission
from remails.bus.client import Publisher, Subscriber
from remails.bus.events import Event, Gap, Ready
from remails.bus.service import Broker
from remails.config import Bus, BusEndpoint, Mail
from remails.config import Database as DatabaseSettings
from remails.db import Database
from remails.periodic.service import Task, serve_term
from remails.store.leadership import Leadership


class Process:
    """What one `periodic` process does with the lead, in this loop: one task that goes on for ever, one that counts."""

    def __init__(self, leadership: Leadership) -> None:
        self.turns = 0
        self.working = False
        self.stop = asyncio.Event()
        work = [Task("slow", 0.01, self._slow), Task("quick", 0.01, self._quick)]
        term = lambda: serve_term(leadership, work, self.stop)  # noqa: E731  # as in `serve`
        self.task = asyncio.create_task(service.forever("leadership", self.stop, 0.02, term))

    async def _slow(self) -> None:
        self.working = True
        try:
            await asyncio.Event().wait()
        finally:
            self.working = False

    async def _quick(self) -> None:
        self.turns += 1


async def _until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


@pytest.fixture
def bids(database: DatabaseSettings) -> Iterator[list[Leadership]]:
    """Two processes' bids."""
    with ExitStack() as stack:
        yield [stack.enter_context(closing(Leadership(database, None, "periodic"))) for _ in range(2)]


def _leaders(db: Database) -> list[int]:
    """Process ids of the PostgreSQL sessions that hold the lock."""
    return db.run(
        lambda conn: [
            pid
            for (pid,) in conn.execute(
                """
                SELECT l.pid FROM pg_locks l JOIN pg_stat_activity a USING (pid)
                WHERE locktype = 'advisory' AND granted AND a.datname = current_database()
                    AND a.application_name = 'remails-periodic'
                """
            )
        ]
    )


def test_the_tasks_move_to_the_other_process_when_the_leaders_backend_is_killed(
    bids: list[Leadership], db: Database, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        first, second = Process(bids[0]), Process(bids[1])
        await _until(lambda: first.working or second.working)
        leader, heir = (first, second) if first.working else (second, first)
        await _until(lambda: leader.turns > 3)  # the slow task does not hold the quick one up
        assert (heir.working, heir.turns) == (False, 0)
        [pid] = _leaders(db)
        db.run(lambda conn: conn.execute("SELECT pg_terminate_backend(%s)", [pid]))
        await _until(lambda: not leader.working)
        await _until(lambda: first.turns and second.turns and (first.working or second.working))
        assert not (first.working and second.working)
        for process in (first, second):
            process.stop.set()
            await process.task
        assert not first.working and not second.working

    asyncio.run(scenario())
    assert "leadership lost, tasks stopped" in caplog.messages


def test_a_leader_that_is_told_to_stop_stops_its_tasks(bids: list[Leadership]) -> None:
    async def scenario() -> None:
        process = Process(bids[0])
        await _until(lambda: process.working)
        process.stop.set()
        async with asyncio.timeout(5):
            await process.task
        assert not process.working

    asyncio.run(scenario())


# As processes


@pytest.fixture
def bus(credentials: Path) -> Iterator[Bus]:
    """A running broker, as its clients reach it."""
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    publish, subscribe = (f"tcp://127.0.0.1:{probe.getsockname()[1]}" for probe in probes)
    for probe in probes:
        probe.close()
    settings = Bus(
        endpoints=(BusEndpoint(publish=publish, subscribe=subscribe),),
        listen_publish=publish,
        listen_subscribe=subscribe,
        server_public_key=(credentials / "bus_server_key.pub").read_text(),
        client_public_keys=((credentials / "bus_client_key.pub").read_text(),),
    )
    broker = Broker(settings, (credentials / "bus_server_key").read_text())
    broker.thread.start()
    yield settings
    broker.close()


@pytest.fixture
def start(
    database: DatabaseSettings, credentials: Path, bus: Bus, tmp_path: Path
) -> Iterator[Callable[[], "subprocess.Popen[bytes]"]]:
    """Starts the service as a process, which is gone after the test."""
    path = tmp_path / "remails.toml"
    [endpoint] = bus.endpoints
    path.write_text(
        f"""
        host = "test"
        credentials_directory = "{credentials}"
        mail.hostname = "relay.example"
        database.dsn = "{database.dsn}"
        dns.nameservers = ["127.0.0.1:1"]
        periodic.notify_interval = 0.2
        [bus]
        server_public_key = "{bus.server_public_key}"
        endpoints = [{{ publish = "{endpoint.publish}", subscribe = "{endpoint.subscribe}" }}]
        """
    )
    code = "from remails import config; from remails.periodic import service; service.main(config.load())"
    started: list[subprocess.Popen[bytes]] = []

    def begin() -> "subprocess.Popen[bytes]":
        environment = {**os.environ, "REMAILS_CONFIG": str(path)}
        started.append(subprocess.Popen([sys.executable, "-c", code], env=environment, stderr=subprocess.PIPE))
        return started[-1]

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def test_mail_whose_note_was_lost_is_said_again_by_whoever_leads(
    start: Callable[[], "subprocess.Popen[bytes]"], db: Database, tenant: seed.Tenant, bus: Bus, credentials: Path
) -> None:
    silent = Publisher(Bus(), "")
    [accepted] = submission.submit(db, silent, Mail(hostname="relay.example"), [tenant.submission()])
    assert isinstance(accepted, submission.Accepted)
    [source] = tenant.sources
    expected = Ready(source, [])

    async def scenario() -> None:
        subscriber = Subscriber(bus, (credentials / "bus_client_key").read_text(), [f"ready/{source}/"])
        notes = aiter(subscriber)

        async def hear() -> Event | Gap:
            async with asyncio.timeout(20):
                while isinstance(note := await anext(notes), Gap):
                    pass
            return note

        with closing(subscriber):
            first = start()
            assert await hear() == expected
            await _until(lambda: len(_leaders(db)) == 1)
            second = start()  # a process is told to stop when it has said something, and not while it begins
            for process, left in ((first, 1), (second, 0)):
                process.send_signal(signal.SIGTERM)
                assert process.wait(10) == 0
                await _until(lambda: len(_leaders(db)) == left)  # noqa: B023  # called at once
                if left:
                    assert await hear() == expected

    asyncio.run(scenario())


def test_a_task_rests_as_long_as_its_turn_asks_for(bids: list[Leadership]) -> None:
    """What reads much takes a bounded part of the time, however much it has to read."""

    async def play() -> tuple[int, int]:
        turns = {"heavy": 0, "light": 0}

        def work(name: str) -> Callable[[], Awaitable[None]]:
            async def run() -> None:
                turns[name] += 1
                await asyncio.sleep(0.02)

            return run

        tasks = [Task("heavy", 0.01, work("heavy"), rest=1000), Task("light", 0.01, work("light"))]
        stop = asyncio.Event()
        term = asyncio.create_task(serve_term(bids[0], tasks, stop))
        await _until(lambda: turns["light"] == 4)
        stop.set()
        async with asyncio.timeout(5):  # and it ends at once
            await term
        return turns["heavy"], turns["light"]

    heavy, light = asyncio.run(play())
    assert heavy == 1
    assert light >= 4
