"""One of many: which process runs what must run once.

The leader is whoever's session holds an advisory lock, so leadership ends with the connection, whatever ended that, and
PostgreSQL gives it to the next one who asks. It is a connection of its own, since a pool would hand the lock about;
PostgreSQL must be reached directly, not through a pooler that shares sessions. A leader that is cut off notices within
10 seconds (its `tcp_user_timeout`), the server ends such a session after 25: first one stops, then another starts.
"""

import psycopg

from remails import db
from remails.config import Database as DatabaseSettings
from remails.errors import Unavailable

_LOCK = 7235411  # any number, the same for every version; next to that of `migrate`


class Leadership:
    """One process's bid to be the leader; plain and synchronous, for one thread at a time.

    Args:
        settings: the section `database`.
        password: the credential, or None where the server asks for none.
        name: `application_name`, the service's word.
    """

    def __init__(self, settings: DatabaseSettings, password: str | None, name: str) -> None:
        self._conninfo = db.conninfo(settings, password, name)
        self._conn: db.Connection | None = None
        self.is_ours = False
        """Whether this process leads."""

    def take(self) -> bool:
        """Ask to be the leader; false while another one is.

        Raises:
            Unavailable: PostgreSQL cannot be reached.
        """
        self.is_ours = self._ask(
            "SELECT CASE WHEN pg_is_in_recovery() THEN false ELSE pg_try_advisory_lock(%s) END", [_LOCK]
        )
        return self.is_ours

    def keep(self) -> None:
        """See that this process, which was the leader, still is.

        Raises:
            Unavailable: it is not; the connection is gone, or the server is a primary no longer.
        """
        if self._conn is None or not self._ask("SELECT NOT pg_is_in_recovery()", []):
            self.close()
            raise Unavailable("database: the server is a standby now")

    def close(self) -> None:
        """Lead no longer."""
        self.is_ours = False
        if self._conn is not None:
            self._conn.close()
            self._conn = None

    def _ask(self, question: str, parameters: list[int]) -> bool:
        try:
            if self._conn is None:
                self._conn = self._connect()
            row = self._conn.execute(question, parameters).fetchone()
        except psycopg.Error as error:
            self.close()
            reason, _, _ = str(error).strip().partition("\n")
            raise Unavailable(f"database: {reason}") from error
        return row is not None and bool(row[0])

    def _connect(self) -> db.Connection:
        conn = db.connect(self._conninfo, autocommit=True)
        # How soon the server notices that the leader's host is gone; its own default is two hours. Where there is a
        # tcp_user_timeout, and a server may have one, Linux goes by it and not by the number of unanswered probes.
        conn.execute("SET tcp_keepalives_idle = 10; SET tcp_keepalives_interval = 5; SET tcp_keepalives_count = 3")
        conn.execute("SET tcp_user_timeout = '25s'")
        return conn
