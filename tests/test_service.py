"""The life of every daemon: what it tells systemd of itself."""

import asyncio
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import remails
from remails import service
from remails.errors import Unavailable


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """Where a service's notifications arrive."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        yield sock


def heard(systemd: socket.socket) -> list[list[str]]:
    """The notifications so far, by lines."""
    found = []
    while True:
        try:
            found.append(systemd.recv(4096).decode().splitlines())
        except BlockingIOError:
            return found


VERSION = remails.__version__


def test_it_is_ready_when_it_can_work_and_not_before(systemd: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "LOOK_AGAIN_SOON", 0.001)
    answers = iter(
        [Unavailable("database: connection refused"), Unavailable("database: connection refused"), "sending"]
    )
    stop = asyncio.Event()

    async def look() -> str:
        answer = next(answers)
        if isinstance(answer, Unavailable):
            raise answer
        stop.set()
        return answer

    asyncio.run(service.report(stop, look))
    assert heard(systemd) == [
        [f"STATUS=not ready ({VERSION}): database: connection refused"],
        ["READY=1", f"STATUS=ready ({VERSION}): sending"],
    ]


def test_what_changes_is_told_once(systemd: socket.socket) -> None:
    readiness = service.Readiness()
    for doing, trouble in [("a", ""), ("a", ""), ("", "no\nnews"), ("", "no\nnews"), ("b", ""), ("b", "")]:
        readiness.tell(doing, trouble)
    assert heard(systemd) == [
        ["READY=1", f"STATUS=ready ({VERSION}): a"],
        [f"STATUS=not ready ({VERSION}): no news"],
        [f"STATUS=ready ({VERSION}): b"],
    ]


def test_a_boot_does_not_hang_for_a_dead_database(systemd: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    readiness = service.Readiness()
    readiness.tell("", "database: gone")
    now += service.PATIENCE + 1
    readiness.tell("", "database: gone")
    readiness.tell("", "database: gone")
    said = f"STATUS=not ready ({VERSION}): database: gone"
    assert heard(systemd) == [[said], ["READY=1", said]]


def test_a_fault_of_ours_is_not_readiness_and_ends_nothing(systemd: socket.socket) -> None:
    stop = asyncio.Event()

    async def look() -> str:
        stop.set()
        raise ZeroDivisionError

    asyncio.run(service.report(stop, look))
    assert heard(systemd) == [[f"STATUS=not ready ({VERSION}): a fault of ours, see the log"]]


@pytest.mark.parametrize(
    ("prefix", "release"),
    [("/opt/remails/releases/0.1.0+3f2a91c4d0", "0.1.0+3f2a91c4d0"), ("/home/me/remails/.venv", VERSION)],
)
def test_the_release_is_the_folder_it_runs_from(monkeypatch: pytest.MonkeyPatch, prefix: str, release: str) -> None:
    monkeypatch.setattr("sys.prefix", prefix)
    assert service.release() == release
