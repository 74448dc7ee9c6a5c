"""The service, a tenant who may log in, a client that has done so, and what is in the database."""

import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import psycopg
import pytest
from inbound.dialogue import Dialogue
from inbound.process import Process
from inbound.running import Certificate, Running, Stored, make_certificate
from psycopg.conninfo import conninfo_to_dict
from seed import Tenant, tenant

from remails.config import Database as DatabaseSettings
from remails.config import Inbound, Mail, Settings
from remails.db import Database
from remails.vault import Pepper, Vault


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def settings(database: DatabaseSettings, credentials: Path, certificate: Certificate) -> Settings:
    return Settings(
        host="test",
        mail=Mail(hostname="mail.relay.example", max_size=1_000_000),
        database=database,
        credentials_directory=str(credentials),
        inbound=Inbound(
            smtps_port=0,
            submission_port=0,
            alternate_port=0,
            tls_certificate=certificate.certificate,
            tls_key=certificate.key,
            timeout=60,
            drain_timeout=10,
        ),
    )


@pytest.fixture
def run(settings: Settings, caplog: pytest.LogCaptureFixture) -> Iterator[Callable[..., Running]]:
    """Start the service with other settings; `inbound` and `mail` are changed key by key. It is stopped in the end."""
    caplog.set_level("INFO", "remails")
    started: list[Running] = []

    def start(*, inbound: dict[str, Any] | None = None, mail: dict[str, Any] | None = None, **changes: Any) -> Running:
        changes["inbound"] = msgspec.structs.replace(settings.inbound, **inbound or {})
        changes["mail"] = msgspec.structs.replace(settings.mail, **mail or {})
        started.append(Running(msgspec.structs.replace(settings, **changes)))
        return started[-1]

    yield start
    for one in started:
        one.stop()
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == []


@pytest.fixture
def inbound(run: Callable[..., Running]) -> Running:
    """The service."""
    return run()


@pytest.fixture
def spawn(tmp_path: Path, settings: Settings) -> Iterator[Callable[..., Process]]:
    """Start a process; keywords change `[inbound]`, or whole sections by `sections`."""
    processes: list[Process] = []

    def start(
        *names: str,
        sections: dict[str, Any] | None = None,
        sockets: dict[str, socket.socket] | None = None,
        environment: dict[str, str] | None = None,
        **inbound: Any,
    ) -> Process:
        changed = msgspec.structs.replace(settings, inbound=msgspec.structs.replace(settings.inbound, **inbound))
        changed = msgspec.structs.replace(changed, **sections or {})
        processes.append(Process(tmp_path, changed, *names, sockets=sockets, environment=environment))
        return processes[-1]

    yield start
    for process in processes:
        process.close()


@pytest.fixture
def acme(db: Database, vault: Vault, pepper: Pepper) -> Tenant:
    """A tenant with the verified domain acme.example."""
    return tenant(db, vault, pepper)


@pytest.fixture
def session(inbound: Running, acme: Tenant) -> Iterator[Dialogue]:
    """A client that has logged in on port 587."""
    with inbound.connect() as dialogue:
        yield dialogue.log_in(acme)


@pytest.fixture
def stored(db: Database) -> Callable[[], list[Stored]]:
    """All messages there are, oldest first."""

    def read() -> list[Stored]:
        with db.transaction() as conn:
            rows = conn.execute(
                """
                SELECT m.id::text, m.mail_from, array_agg(d.recipient ORDER BY d.id), b.raw
                FROM messages m JOIN message_bodies b ON b.message_id = m.id JOIN deliveries d ON d.message_id = m.id
                GROUP BY m.id, m.mail_from, b.raw ORDER BY m.id
                """
            ).fetchall()
        return [Stored(*row) for row in rows]

    return read


@pytest.fixture
def outage(postgresql: str, database: DatabaseSettings) -> Iterator[Callable[[], None]]:
    """Lets nobody into the database and throws out who is in."""
    name = conninfo_to_dict(database.dsn)["dbname"]

    def begin() -> None:
        with psycopg.connect(f"{postgresql} dbname=postgres", autocommit=True) as conn:
            conn.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false')
            conn.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name])

    yield begin
    _allow(postgresql, database)


@pytest.fixture
def recovery(postgresql: str, database: DatabaseSettings) -> Callable[[], None]:
    """Ends an `outage`."""
    return lambda: _allow(postgresql, database)


def _allow(postgresql: str, database: DatabaseSettings) -> None:
    name = conninfo_to_dict(database.dsn)["dbname"]
    with psycopg.connect(f"{postgresql} dbname=postgres", autocommit=True) as conn:
        conn.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true')
