"""What many clients at once cost the process, in memory and in others' time.

The numbers are small, so that it is quick. `REMAILS_TEST_FULL=1` takes those that production is promised: 20 clients with 40 MB
each below 400 MB, 2,000 idle connections below 200 MB.
"""

import os
import re
import resource
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import msgspec
import pytest
from inbound.dialogue import Dialogue
from inbound.process import Process
from inbound.running import Running, Stored
from seed import Tenant

from remails.config import Settings

FULL = os.environ.get("REMAILS_TEST_FULL") == "1"
MB = 1024 * 1024
CLIENTS, SIZE, MOST = (20, 40 * MB, 400) if FULL else (8, 12 * MB, 250)
IDLE, MOST_IDLE = (2000, 200) if FULL else (100, 120)
HEADER = b"From: a@acme.example\r\n\r\n"
LINE = b"x" * 76 + b"\r\n"


@pytest.fixture
def files() -> Iterator[None]:
    """Enough of them for either side of many connections."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 16384), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def resident(process: Process, word: str) -> float:
    """Megabytes of resident memory: `VmRSS` now, `VmHWM` at most so far."""
    status = Path(f"/proc/{process.child.pid}/status").read_text()
    found = re.search(rf"{word}:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) / 1024


def test_large_messages_at_once(
    spawn: Callable[..., Process], settings: Settings, acme: Tenant, stored: Callable[[], list[Stored]]
) -> None:
    """Each client sends its message in step with the others, so that all are there at the same time."""
    large = msgspec.structs.replace(settings.mail, max_size=40 * MB + 1000)
    process = spawn("smtps", sections={"mail": large})
    process.ready()
    together = threading.Barrier(CLIENTS)

    def client(number: int) -> str:
        with Dialogue(process.ports["smtps"], smtps=True) as session:
            session.sock.settimeout(300)
            session.log_in(acme).envelope("a@acme.example")
            session.send(HEADER + b"%d\r\n" % number)
            piece = LINE * (MB // len(LINE))
            for _ in range(SIZE // MB):
                together.wait(300)
                session.send(piece)
            session.send(b".\r\n")
            return session.reply()

    with ThreadPoolExecutor(CLIENTS) as pool:
        replies = list(pool.map(client, range(CLIENTS)))
    peak = resident(process, "VmHWM")
    assert [reply[:9] for reply in replies] == ["250 2.6.0"] * CLIENTS
    assert peak < MOST, f"{peak:.0f} MB"
    assert process.end()[0] == 0


def test_a_message_in_small_pieces_takes_no_more_than_a_large_one(spawn: Callable[..., Process], acme: Tenant) -> None:
    """What is in memory is counted by its octets, so a piece must not cost more than it has."""
    process = spawn("smtps")
    process.ready()
    chunk, together, groups = b"BDAT 2\r\nxx", 1000, 200
    with Dialogue(process.ports["smtps"], smtps=True) as session:
        session.log_in(acme)
        session.play([("MAIL FROM:<a@acme.example>", "250"), ("RCPT TO:<b@example.net>", "250")])
        before = resident(process, "VmRSS")
        for _ in range(groups):
            session.send(chunk * together)
            heard = 0
            while heard < together:
                heard += session.sock.recv(65536).count(b"\n")
        used = resident(process, "VmRSS") - before
        assert used < 4, f"{used:.1f} MB for {2 * together * groups} octets"
    assert process.end()[0] == 0


def test_idle_connections(spawn: Callable[..., Process], acme: Tenant, files: None) -> None:
    limits = {"max_connections_per_client": 2 * IDLE, "max_connections": 2 * IDLE}
    process = spawn("submission", "smtps", timeout=1000, **limits)
    process.ready()
    with ExitStack() as stack:
        for number in range(IDLE):
            name = "smtps" if number % 2 else "submission"
            session = stack.enter_context(Dialogue(process.ports[name], smtps=name == "smtps"))
            session.log_in(acme) if number % 4 == 0 else session.reply()
        used = resident(process, "VmRSS")
        assert used < MOST_IDLE, f"{used:.0f} MB"
        with Dialogue(process.ports["smtps"], smtps=True) as one_more:
            one_more.log_in(acme)
    assert process.end()[0] == 0


def test_a_slow_client_delays_no_one(run: Callable[..., Running], acme: Tenant) -> None:
    """With half a message there and a large one being stored, small ones are answered as if they were alone."""
    running = run(mail={"max_size": 10 * MB})
    with running.connect() as slow, running.connect() as large, running.connect() as quick:
        slow.log_in(acme).envelope("a@acme.example")
        slow.send(HEADER + LINE)
        large.log_in(acme).envelope("a@acme.example")
        large.send(HEADER + LINE * (8 * MB // len(LINE)) + b".\r\n")
        quick.log_in(acme)
        slowest = 0.0
        for _ in range(20):
            started = time.monotonic()
            quick.envelope("a@acme.example")
            quick.send(HEADER + b"hi\r\n.\r\n")
            assert quick.reply().startswith("250 2.6.0")
            slowest = max(slowest, time.monotonic() - started)
        assert large.reply().startswith("250 2.6.0")
        slow.send(b".\r\n")
        assert slow.reply().startswith("250 2.6.0")
        assert slowest < 2.0
