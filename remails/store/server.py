"""What PostgreSQL says of itself: whether it is the server that we may trust a 250 to."""

from dataclasses import dataclass
from datetime import datetime

from psycopg.rows import class_row

from remails import db
from remails.errors import Unavailable
from remails.store import migrate


@dataclass(frozen=True, slots=True)
class State:
    """The server at the other end of a connection. `now` is its clock."""

    version: str
    now: datetime
    is_standby: bool
    fsync: bool
    full_page_writes: bool
    synchronous_commit: str


def state(conn: db.Connection) -> State:
    """Ask the server."""
    with conn.cursor(row_factory=class_row(State)) as cur:
        return cur.execute(
            """SELECT current_setting('server_version') AS version, clock_timestamp() AS now,
                   pg_is_in_recovery() AS is_standby, current_setting('fsync')::bool AS fsync,
                   current_setting('full_page_writes')::bool AS full_page_writes,
                   current_setting('synchronous_commit') AS synchronous_commit"""
        ).fetchall()[0]


def check(conn: db.Connection) -> None:
    """See that mail may be trusted to this server.

    Raises:
        Unavailable: it is a standby (X05), or migrations of this version are missing.
    """
    if state(conn).is_standby:
        raise Unavailable("database: the server is a standby, it takes no mail")
    if missing := migrate.missing(conn):
        raise Unavailable(f"database: migrations are missing: {', '.join(missing)}")
