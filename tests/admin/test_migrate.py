"""`remails migrate`, on a database that is still empty."""

import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest
from terminal import Terminal, settings

from remails.config import Database as DatabaseSettings
from remails.db import Connection, Database
from remails.errors import ConfigError, Unavailable
from remails.store import migrate


@pytest.fixture
def empty(postgresql: str, credentials: Path, settings_file: Path) -> Iterator[None]:
    """Let the settings name an empty database."""
    name = f"empty_{uuid.uuid4().hex}"
    with psycopg.connect(f"{postgresql} dbname=postgres", autocommit=True) as conn:
        conn.execute(f'CREATE DATABASE "{name}"')
        settings_file.write_text(settings(credentials, f"{postgresql} dbname={name}"))
        yield
        conn.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


@pytest.mark.usefixtures("empty")
def test_migrate(terminal: Terminal) -> None:
    check = terminal.run("migrate", "--check")
    assert check.exit_code == 1
    missing = [line.removeprefix("missing ") for line in check.stdout.splitlines()]
    assert missing == sorted(missing) and len(missing) >= 3
    assert terminal.run("migrate", "--check").exit_code == 1, "a check changes nothing"

    assert terminal.do("migrate").splitlines() == [f"applied {name}" for name in missing]
    assert terminal.do("migrate") == "nothing to do"
    assert terminal.do("migrate", "--check") == "nothing to do"


@pytest.mark.usefixtures("empty")
def test_a_command_before_migrate_says_so(terminal: Terminal) -> None:
    result = terminal.run("organization", "list")

    assert result.exit_code == 78
    assert "run `remails migrate`" in result.stderr


def test_a_database_that_is_down_is_an_outage(terminal: Terminal, credentials: Path) -> None:
    terminal.path.write_text(settings(credentials, "host=127.0.0.1 port=1"))
    result = terminal.run("migrate")

    assert (result.exit_code, result.stdout) == (75, "")
    assert result.stderr.startswith("remails: database: ") and "refused" in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_database_of_another_encoding_is_refused_in_words(postgresql: str) -> None:
    with psycopg.connect(f"{postgresql} dbname=postgres", autocommit=True) as admin:
        admin.execute("CREATE DATABASE ascii ENCODING 'SQL_ASCII' TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'")
        try:
            with pytest.raises(ConfigError, match="ascii has the encoding SQL_ASCII; make one with: createdb"):
                migrate.apply(DatabaseSettings(dsn=f"{postgresql} dbname=ascii"), None)
        finally:
            admin.execute("DROP DATABASE ascii WITH (FORCE)")


def test_a_table_in_use_makes_a_migration_give_up_and_the_queue_goes_on(
    database: DatabaseSettings, db: Database
) -> None:
    """Case X12: a long reader holds the table; ALTER TABLE would stand before everybody behind it."""

    def undo(conn: Connection) -> None:
        conn.execute("ALTER TABLE timeline DROP COLUMN host, DROP COLUMN servers")
        conn.execute("DELETE FROM _yoyo_migration WHERE migration_id = '0064.dialogues'")

    db.run(undo)
    with db.transaction() as reader, ThreadPoolExecutor(1) as threads:
        reader.execute("SELECT count(*) FROM timeline")
        migrating = threads.submit(migrate.apply, database, None)
        with pytest.raises(Unavailable, match="lock timeout"):
            migrating.result(30)
        writing = threads.submit(db.run, lambda conn: conn.execute("DELETE FROM timeline").rowcount)
        assert writing.result(5) == 0, "nobody waits for the reader"
    assert db.run(migrate.missing) == ["0064.dialogues"]
    assert migrate.apply(database, None) == ["0064.dialogues"]
