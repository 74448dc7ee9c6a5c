"""What every test may use: a real PostgreSQL, a fresh database, credentials, the tools of this machine.

One PostgreSQL runs for the whole run (`REMAILS_TEST_DSN` names another one to use); it is migrated once into a template,
and each test that asks gets a clone of that.
"""

import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
import seed
import zmq

from remails.config import Database as DatabaseSettings
from remails.db import Connection, Database
from remails.store import migrate
from remails.vault import Pepper, Vault, new_encryption_key, new_secret

STRICT = os.environ.get("CI") == "true" or os.environ.get("REMAILS_TEST_STRICT") == "1"


def pytest_configure(config: pytest.Config) -> None:
    """Register our markers."""
    config.addinivalue_line("markers", "needs(*tools): leave the test out where one of these executables is missing")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Where a tool is missing: say so, or fail where nothing may be left out."""
    for marker in item.iter_markers("needs"):
        missing = [
            tool for tool in marker.args if shutil.which(tool, path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is None
        ]
        if missing and STRICT:
            pytest.fail(f"needs {', '.join(missing)}, which `make test` should have installed")
        if missing:
            pytest.skip(f"needs {', '.join(missing)}")


@pytest.fixture(scope="session")
def postgresql(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Connection string of the run's PostgreSQL, without a database name."""
    if dsn := os.environ.get("REMAILS_TEST_DSN"):
        yield dsn
        return
    from remails.dev import postgresql as embedded

    with embedded.Server(tmp_path_factory.mktemp("postgresql") / "data", durable=False) as server:
        yield server.dsn


@pytest.fixture(scope="session")
def template(postgresql: str) -> Iterator[str]:
    """Name of a migrated database to clone."""
    name = f"template_{uuid.uuid4().hex}"
    _admin(postgresql, f'CREATE DATABASE "{name}"')
    migrate.apply(DatabaseSettings(dsn=f"{postgresql} dbname={name}"), None)
    yield name
    _admin(postgresql, f'DROP DATABASE "{name}" WITH (FORCE)')


@pytest.fixture
def database(postgresql: str, template: str) -> Iterator[DatabaseSettings]:
    """Settings of a fresh, migrated database."""
    yield from _clone(postgresql, template)


@pytest.fixture(scope="module")
def module_database(postgresql: str, template: str) -> Iterator[DatabaseSettings]:
    """The same, for all tests of a module, which leave nothing behind in it."""
    yield from _clone(postgresql, template)


def _clone(postgresql: str, template: str) -> Iterator[DatabaseSettings]:
    name = f"test_{uuid.uuid4().hex}"
    _admin(postgresql, f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
    yield DatabaseSettings(dsn=f"{postgresql} dbname={name}")
    _admin(postgresql, f'DROP DATABASE "{name}" WITH (FORCE)')


@pytest.fixture
def db(database: DatabaseSettings) -> Iterator[Database]:
    """An open database."""
    opened = Database(database, None, "test")
    opened.open()
    yield opened
    opened.close()


@pytest.fixture
def conn(db: Database) -> Iterator[Connection]:
    """A connection in a transaction that is rolled back in the end."""
    with db.transaction() as connection, connection.transaction(force_rollback=True):
        yield connection


@pytest.fixture(scope="session")
def credentials(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a fresh set of credentials; the bus' public keys stand in `*.pub`."""
    directory = tmp_path_factory.mktemp("credentials")
    server_public, server_secret = zmq.curve_keypair()
    client_public, client_secret = zmq.curve_keypair()
    for name, text in {
        "encryption_keys": new_encryption_key("test"),
        "pepper": new_secret(40),
        "bus_server_key": server_secret.decode(),
        "bus_client_key": client_secret.decode(),
        "bus_server_key.pub": server_public.decode(),
        "bus_client_key.pub": client_public.decode(),
    }.items():
        (directory / name).write_text(text)
        (directory / name).chmod(0o600)
    return directory


@pytest.fixture(scope="session")
def vault(credentials: Path) -> Vault:
    """What opens sealed secrets."""
    return Vault((credentials / "encryption_keys").read_text())


@pytest.fixture(scope="session")
def pepper(credentials: Path) -> Pepper:
    """What digests generated secrets."""
    return Pepper((credentials / "pepper").read_text())


@pytest.fixture
def tenant(db: Database, vault: Vault, pepper: Pepper) -> seed.Tenant:
    """A sender with all it needs."""
    return seed.tenant(db, vault, pepper)


def _admin(dsn: str, statement: str) -> None:
    with psycopg.connect(f"{dsn} dbname=postgres", autocommit=True) as connection:
        connection.execute(statement)
