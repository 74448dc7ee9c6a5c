"""Several processes of one sending host: each mail leaves once, and one that dies costs its lease."""

import asyncio
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from inbound.process import toml
from workbench import Bench

from remails.bus.client import Publisher, Subscriber
from remails.bus.events import Event, Gap, Ready
from remails.config import Bus
from remails.outbound.service import Outbound, _share_of_one
from remails.store import ids

pytestmark = pytest.mark.needs("ps")


async def workers(pid: int) -> list[int]:
    listed = await asyncio.to_thread(
        subprocess.run, ["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True
    )
    return [int(found) for found in listed.stdout.split()]


def test_each_mail_leaves_once_also_when_one_process_dies(bench: Bench, credentials: Path) -> None:
    bench.options.update(processes=2, lease=2.0, batch=5)

    async def main() -> None:
        async with bench.dns(), bench.serve() as mx:
            path = bench.directory / "remails.toml"
            settings = msgspec.structs.replace(bench.settings(), credentials_directory=str(credentials))
            path.write_text(toml(settings, "mail", "database", "dns", "outbound"))
            command = [sys.executable, "-m", "remails", "--config", str(path), "outbound"]
            process = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE)
            try:
                ids = [await bench.submit(f"r{number}@example.net") for number in range(60)]
                await mx.wait(10)
                found = await workers(process.pid)
                assert len(found) == 2
                os.kill(found[0], signal.SIGKILL)
                for id_ in ids:
                    rows = await bench.deliveries(id_, lambda row: row.status == "delivered")
                    assert len(rows) == 1
                process.terminate()
                _, log = await asyncio.wait_for(process.communicate(), 30)
            finally:
                if process.returncode is None:
                    process.kill()
                    await process.wait()
            assert process.returncode == 0, log.decode()
            assert b"worker ended, starting it again service=outbound" in log
            arrived = Counter(record.rcpt_tos[0] for record in await mx.wait(60))
            assert set(arrived) == {f"r{number}@example.net" for number in range(60)}
            # A mail in the hands of the one that died may come twice, which its timeline says; no other.
            for number, id_ in enumerate(ids):
                interrupted = [entry for entry in await bench.timeline(id_) if entry.kind == "ambiguous"]
                assert arrived[f"r{number}@example.net"] <= 1 + len(interrupted) <= 2

    asyncio.run(main())


def test_the_limits_of_a_host_are_shared(bench: Bench) -> None:
    bench.options.update(processes=3, concurrency=100, connections_per_destination=2)
    ours = _share_of_one(bench.settings()).outbound
    assert (ours.concurrency, ours.connections_per_destination) == (33, 1)


def test_processes_share_what_they_hear_of(bench: Bench) -> None:
    """Each asks the database for its own part: two that ask for the same find it taken, which costs as much."""
    bench.options.update(processes=3)
    message_ids = [ids.new() for _ in range(200)]

    class Notes(Subscriber):
        def __init__(self, stop: asyncio.Event) -> None:
            self._stop = stop

        async def __aiter__(self) -> AsyncIterator[Event | Gap]:
            yield Ready("192.0.2.1", message_ids)
            self._stop.set()
            yield Ready("192.0.2.1", [])

    async def heard(number: int) -> set[object]:
        stop = asyncio.Event()
        one = Outbound(bench.settings(), bench.db, Publisher(Bus(), ""), bench.vault, number)
        await one._listen(stop, Notes(stop))
        return set(one._claiming._noted)

    async def main() -> list[set[object]]:
        return [await heard(number) for number in range(3)]

    shares = asyncio.run(main())
    assert all(shares)
    assert sum(map(len, shares)) == 200
    assert set[object]().union(*shares) == set(message_ids)
