"""An ACME server, the DNS it asks, an api that answers its challenges, and settings that lead there."""

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from certificates import pebble
from flask import Flask
from werkzeug.serving import make_server

from remails.api.app import create_app
from remails.bus.client import Publisher
from remails.config import Certificates, Mail, Settings
from remails.config import Database as DatabaseSettings
from remails.db import Database
from remails.dev import dns
from remails.vault import Pepper, Vault


@pytest.fixture(scope="session")
def zone() -> dns.StaticZone:
    """What the ACME server sees in the DNS."""
    return dns.StaticZone({("relay.example", "A"): ["127.0.0.1"], ("more.example", "A"): ["127.0.0.1"]})


@pytest.fixture(scope="session")
def name_server(zone: dns.StaticZone) -> Iterator[str]:
    """`address:port` of who answers so."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    server = dns.Server(zone)
    asyncio.run_coroutine_threadsafe(server.start(), loop).result(10)
    yield f"127.0.0.1:{server.port}"
    asyncio.run_coroutine_threadsafe(server.close(), loop).result(10)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


@pytest.fixture(scope="session")
def acme(tmp_path_factory: pytest.TempPathFactory, name_server: str) -> Iterator[pebble.Pebble]:
    """The ACME server."""
    with pebble.running(tmp_path_factory.mktemp("pebble"), name_server) as running:
        yield running


@pytest.fixture
def settings(acme: pebble.Pebble, database: DatabaseSettings, credentials: Path) -> Settings:
    """As on a host that has the relay's certificate issued."""
    return Settings(
        host="test",
        mail=Mail(hostname="relay.example"),
        database=database,
        credentials_directory=str(credentials),
        certificates=Certificates(directory=acme.directory, ca_file=acme.ca_file, contact="ops@relay.example"),
    )


@pytest.fixture
def api(acme: pebble.Pebble, settings: Settings, db: Database, vault: Vault, pepper: Pepper) -> Iterator[str]:
    """Where an api host answers; the ACME server looks there too."""
    app = create_app(settings, db, Publisher(settings.bus, ""), vault, pepper)
    with answering(app, acme.web_port):
        yield f"http://127.0.0.1:{acme.web_port}"


@contextlib.contextmanager
def answering(app: Flask, port: int) -> Iterator[None]:
    """Something that answers on this port of 127.0.0.1."""
    server = make_server("127.0.0.1", port, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
