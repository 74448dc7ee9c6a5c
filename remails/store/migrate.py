"""Migrations: numbered SQL files, applied in order by yoyo, each in its own transaction.

Two versions of the program run side by side during a deployment, so a migration only ever expands; what the old version
still reads goes away one release later. `lock_timeout` makes a migration that would stand in the queue's way give up
instead of stopping the queue behind it (case X12), and a session's advisory lock, which a crash releases, lets one host migrate.
"""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources

import psycopg
import yoyo
from yoyo.backends.core.postgresql import PostgresqlPsycopgBackend
from yoyo.connections import parse_uri

from remails import db
from remails.config import Database
from remails.errors import ConfigError, Unavailable

_LOCK = 7235410  # any number, the same for every version: "one migration at a time"


class _Backend(PostgresqlPsycopgBackend):  # type: ignore[misc]  # yoyo is untyped
    """yoyo's PostgreSQL backend on our connection string and lock."""

    def __init__(self, conninfo: str) -> None:
        self._conninfo = conninfo
        super().__init__(parse_uri("postgresql+psycopg://"), "_yoyo_migration")

    def copy(self) -> "_Backend":
        return _Backend(self._conninfo)

    def connect(self, _dburi: object) -> psycopg.Connection:
        conn = db.connect(self._conninfo, autocommit=True)
        conn.execute("SET lock_timeout = '5s'")
        conn.execute("SET statement_timeout = '15min'")
        return conn

    def create_lock_table(self) -> None:
        """No table: a row left by a crash would lock every later migration out."""

    @contextmanager
    def lock(self, _timeout: float = 10) -> Iterator[None]:
        self.connection.execute("SELECT pg_advisory_lock(%s)", [_LOCK])
        try:
            yield
        finally:
            self.connection.execute("SELECT pg_advisory_unlock(%s)", [_LOCK])


def _read() -> yoyo.migrations.MigrationList:
    return yoyo.read_migrations(str(resources.files("remails.store") / "migrations"))


def apply(settings: Database, password: str | None) -> list[str]:
    """Bring the database to this version; returns the names of the migrations that were applied.

    Raises:
        Unavailable: the database cannot be reached, or is locked by others for too long.
        ConfigError: it refuses; the text says why.
    """
    try:
        with _Backend(db.conninfo(settings, password, "migrate")) as backend, backend.lock():
            _check_encoding(backend.connection)
            todo = backend.to_apply(_read())
            backend.apply_migrations(todo)
            return [migration.id for migration in todo]
    except psycopg.OperationalError as error:
        raise Unavailable(f"database: {str(error).strip().splitlines()[0]}") from None
    except psycopg.Error as error:
        raise ConfigError(f"database: {str(error).strip().splitlines()[0]}") from None


def _check_encoding(conn: psycopg.Connection) -> None:
    encoding = conn.info.parameter_status("server_encoding")
    if encoding != "UTF8":
        raise ConfigError(
            f"database: {conn.info.dbname} has the encoding {encoding}; make one with: createdb --encoding=UTF8 "
            "--template=template0"
        )


@functools.cache
def _names() -> tuple[str, ...]:
    return tuple(migration.id for migration in _read())


def missing(conn: db.Connection) -> list[str]:
    """Names of the migrations this version needs and the database has not."""
    names = list(_names())
    known = conn.execute("SELECT to_regclass('_yoyo_migration') IS NOT NULL").fetchone()
    if known is None or not known[0]:
        return names
    applied = {name for (name,) in conn.execute("SELECT migration_id FROM _yoyo_migration")}
    return [name for name in names if name not in applied]
