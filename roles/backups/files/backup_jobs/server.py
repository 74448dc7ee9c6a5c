"""A server of PostgreSQL that nobody else can reach."""

import contextlib
import re
import shutil
import subprocess
import time
from pathlib import Path

from .programs import DATABASE, STANZA, Failed, jobs, run
from .settings import Settings


class Server:
    """PostgreSQL on a folder of data, by a socket in a folder of its user only. As a context it runs, recovered.

    With `archive`, what it writes goes to the repository, as it would from the real one.
    """

    def __init__(self, settings: Settings, data: Path, *, archive: bool = False) -> None:
        self._settings, self._data, self._archive = settings, data, archive
        self._private = settings.path("server")

    def __enter__(self) -> "Server":
        shutil.rmtree(self._private, ignore_errors=True)
        self._private.mkdir(mode=0o700)
        written = {
            "listen_addresses": "",
            "unix_socket_directories": str(self._private),
            "hba_file": str(self._private / "hba"),
            "ident_file": str(self._private / "ident"),
            # Not asked while it recovers, so it may have fewer connections than the one it comes from.
            "hot_standby": "off",
            "archive_mode": "on" if self._archive else "off",
            "archive_command": f"pgbackrest --stanza={STANZA} archive-push %p" if self._archive else "",
            "max_connections": "40",
            "shared_buffers": "256MB",
            "maintenance_work_mem": "256MB",
            "max_wal_size": "4GB",
            "fsync": "off" if self._data == self._settings.scratch else "on",
        }
        lines = [f"{name} = '{value}'\n" for name, value in written.items()]
        (self._private / "conf").write_text("".join(lines), encoding="utf-8")
        (self._private / "hba").write_text("local all all trust\n", encoding="utf-8")  # only we get to the socket
        (self._private / "ident").touch()
        self._control("start", f"--options=-c config_file={self._private}/conf", f"--log={self._private}/log", "--wait")
        try:
            self._recovered()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(Failed):  # it may have ended by itself
            self._control("stop", "--mode=fast", "--wait")

    def _control(self, *words: str) -> None:
        # Its output goes nowhere: the server would keep a pipe open for as long as it runs.
        done = subprocess.run(
            [self._settings.program("pg_ctl"), f"--pgdata={self._data}", "--timeout=86400", *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=False,
        )
        if done.returncode:
            raise Failed(f"the restored server does not {words[0]}: {self._last_words()}")

    def _recovered(self) -> None:
        """Wait until it has played what it was told to."""
        while True:
            with contextlib.suppress(Failed):
                if self.sql("SELECT pg_is_in_recovery()", "postgres") == [["f"]]:
                    return
            if not (self._data / "postmaster.pid").exists():
                raise Failed(f"the restored server gave up: {self._last_words()}")
            time.sleep(0.2)

    def _last_words(self) -> str:
        try:
            text = (self._private / "log").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return "it left no word"
        told = [line for line in text.splitlines() if re.search(r"FATAL|PANIC|ERROR", line)]
        return " / ".join(line.partition("] ")[2] or line for line in (told or text.splitlines())[-3:])

    def program(self, name: str, *words: str | Path) -> str:
        """Run one of PostgreSQL's programs against it."""
        return run(self._settings.program(name), *words, more={"PGHOST": str(self._private), "PGPORT": "5432"})

    def sql(self, statement: str, database: str = DATABASE) -> list[list[str]]:
        """The rows of a query, as text."""
        words = ("-XAtq", "--set=ON_ERROR_STOP=1", f"--dbname={database}", f"--command={statement}")
        return [line.split("|") for line in self.program("psql", *words).splitlines()]

    def number(self, statement: str) -> int:
        """The one number of a query."""
        return int(self.sql(statement)[0][0])


def initialize(settings: Settings, data: Path) -> None:
    """An empty server."""
    words = (
        "--auth-local=trust",
        "--encoding=UTF8",
        "--locale=C.UTF-8",
        "--data-checksums",
        "--username=postgres",
        *(["--no-sync"] if data == settings.scratch else []),
    )
    run(settings.program("initdb"), f"--pgdata={data}", *words)


def load(server: Server, dump: Path) -> None:
    """Put a copy into a server, in place of what it has."""
    server.sql(f"DROP DATABASE IF EXISTS {DATABASE} WITH (FORCE)", "postgres")
    if [DATABASE] not in server.sql("SELECT rolname FROM pg_roles", "postgres"):
        server.sql(f"CREATE ROLE {DATABASE} LOGIN", "postgres")
    how = "TEMPLATE template0 ENCODING 'UTF8' LOCALE 'C.UTF-8'"
    server.sql(f"CREATE DATABASE {DATABASE} OWNER {DATABASE} {how}", "postgres")
    server.program("pg_restore", "--exit-on-error", f"--jobs={jobs()}", f"--dbname={DATABASE}", dump / DATABASE)
    server.program("vacuumdb", "--analyze-only", "--quiet", f"--jobs={jobs()}", f"--dbname={DATABASE}")
