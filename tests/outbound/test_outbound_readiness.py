"""What `outbound` tells systemd of itself."""

import asyncio
import socket
from pathlib import Path

import pytest
from workbench import Bench

import remails
from remails.store import addresses


@pytest.fixture
def notify(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> socket.socket:
    """Where systemd would listen."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    sock.bind(str(tmp_path / "notify"))
    sock.setblocking(False)
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    return sock


async def heard(notify: socket.socket) -> str:
    """The next notification, on one line."""
    async with asyncio.timeout(20):
        return " ".join((await asyncio.get_running_loop().sock_recv(notify, 4096)).decode().split("\n"))


def test_it_is_ready_once_it_knows_its_addresses_and_has_asked_what_is_due(bench: Bench, notify: socket.socket) -> None:
    async def main() -> None:
        with notify:
            async with bench.dns(), bench.work():
                said = await heard(notify)
                while "not ready" in said:
                    said = await heard(notify)
        text = "delivering from 1 address, 0 deliveries in hand"
        assert said == f"READY=1 STATUS=ready ({remails.__version__}): {text}"

    asyncio.run(main())


def test_it_is_not_ready_without_the_migrations_it_needs(bench: Bench, notify: socket.socket) -> None:
    with bench.db.transaction() as conn:
        conn.execute("DELETE FROM _yoyo_migration WHERE migration_id LIKE '0010%%'")

    async def main() -> None:
        with notify:
            async with bench.dns(), bench.work():
                assert "not ready" in (said := await heard(notify))
                assert said.endswith("database: migrations are missing: 0010.delivery")

    asyncio.run(main())


def test_a_host_that_is_not_registered_says_so(bench: Bench, notify: socket.socket) -> None:
    with bench.db.transaction() as conn:
        (host,) = addresses.list_hosts(conn)
        conn.execute("UPDATE hosts SET name = 'another' WHERE id = %s", [host.id])

    async def main() -> None:
        with notify:
            async with bench.dns(), bench.work():
                said = await heard(notify)
                while "not ready" in said:
                    said = await heard(notify)
        assert said.endswith("this host is not registered, see remails-ipagent")

    asyncio.run(main())
