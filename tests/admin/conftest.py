"""An operator at the command line, on a database of its own."""

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from terminal import Terminal, settings

from remails.config import Database as DatabaseSettings
from remails.dev import dns


@pytest.fixture
def settings_file(tmp_path: Path, database: DatabaseSettings, credentials: Path) -> Path:
    """The settings of a host with little in them."""
    path = tmp_path / "remails.toml"
    path.write_text(settings(credentials, database.dsn))
    return path


@pytest.fixture
def terminal(settings_file: Path, monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """An operator called root, with nothing about Remails in the environment."""
    for name in ("REMAILS_CONFIG", "CREDENTIALS_DIRECTORY", "SUDO_USER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LOGNAME", "root")
    return Terminal(settings_file)


@pytest.fixture
def nameserver() -> Iterator[tuple[dns.StaticZone, int]]:
    """A DNS server of its own loop and thread, and what it answers."""
    zone = dns.StaticZone()
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    running = dns.Server(zone)
    asyncio.run_coroutine_threadsafe(running.start(), loop).result(10)
    yield zone, running.port
    asyncio.run_coroutine_threadsafe(running.close(), loop).result(10)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()
