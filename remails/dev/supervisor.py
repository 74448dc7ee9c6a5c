"""`remails dev`: every service as its own process on one machine, as systemd runs them on a fleet.

The supervisor starts PostgreSQL, migrates, seeds the demo, and starts the processes; each tells by sd_notify(3) that it is
ready, as it would tell systemd. A process that dies is started again after a second, PostgreSQL too; one that ends with
status 78 has a wrong setting, and ends all. On SIGINT, SIGTERM or SIGHUP mail is no longer taken first, then what is under
way is finished, and PostgreSQL stops last.
"""

import asyncio
import contextlib
import os
import secrets
import shlex
import signal
import socket
import sys
from collections.abc import AsyncIterator, Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

from remails import service
from remails.config import Settings
from remails.db import Database
from remails.dev.home import DOMAIN, Demo, Home, Ports
from remails.dev.postgresql import Server
from remails.errors import ConfigError
from remails.store import addresses, domains, migrate
from remails.store.ids import OrganizationId

PORT_BASE = 4000
FIRST = ("demoworld", "bus")
SERVICES = ("ipagent", "outbound", "periodic", "inbound", "api")
START_TIMEOUT = 60.0
STOP_TIMEOUT = 30.0
_POSTGRESQL = "postgres"
_COLOURS = dict(zip((*FIRST, *SERVICES, _POSTGRESQL), (90, 35, 36, 34, 33, 32, 31, 37), strict=True))

T = TypeVar("T")


@dataclass
class Process:
    """One child and what is known of it."""

    word: str
    command: list[str]
    environment: dict[str, str]
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    running: asyncio.subprocess.Process | None = None
    last_line: str = ""


class Supervisor:
    """Runs a demo installation."""

    def __init__(self, home: Home, *, quiet: bool = False) -> None:
        self.home = home
        self.settings: Settings
        self.demo: Demo
        self.postgresql = Server(home.directory / "postgresql")
        self.failed: asyncio.Future[str]
        self._quiet = quiet
        self._processes: dict[str, Process] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._stopping = False
        self._preparing: asyncio.Future[Database] | None = None
        self._watching: asyncio.Task[None] | None = None

    def process(self, word: str) -> Process:
        """The child of this name."""
        return self._processes[word]

    async def start(self) -> None:
        """Start everything and wait until mail can be sent.

        Raises:
            ConfigError: something cannot start; the text says what.
        """
        self.failed = asyncio.get_running_loop().create_future()
        _check_ports(self.home.ports)
        self._preparing = asyncio.ensure_future(asyncio.to_thread(self._prepare))
        database = await asyncio.shield(self._preparing)  # a thread goes on when it is not waited for any more
        self._watching = asyncio.create_task(self._keep_postgresql())
        for words in (FIRST, SERVICES):
            for word in words:
                self._spawn(word)
            await self._ready(words)
        await self._sendable(database)
        database.close()

    def _prepare(self) -> Database:
        self.home.make()
        self.postgresql.start()
        self.settings = self.home.prepare(self.postgresql.dsn)
        self.postgresql.create_database("remails")
        migrate.apply(self.settings.database, None)
        database = Database(self.settings.database, None, "dev")
        database.open(wait=True)
        self.demo = self.home.seed(database, self.settings)
        return database

    def _spawn(self, word: str) -> None:
        if word == "demoworld":
            base = str(self.home.ports.dns - 53)
            command = [sys.executable, "-m", "remails.dev.demoworld", str(self.home.directory), base]
        else:
            command = [sys.executable, "-m", "remails", "--config", str(self.home.settings_path), word]
        # A name in the abstract namespace needs no file and no cleaning up.
        address = f"@remails-{os.getpid()}-{word}-{secrets.token_hex(4)}"
        environment = {**os.environ, "NOTIFY_SOCKET": address, "PYTHONUNBUFFERED": "1"}
        process = self._processes[word] = Process(word, command, environment)
        self._tasks[word] = asyncio.create_task(self._keep_running(process))

    async def _keep_running(self, process: Process) -> None:
        async with _notifications(process):
            while not self._stopping:
                process.running = await asyncio.create_subprocess_exec(
                    *process.command,
                    env=process.environment,
                    stdout=asyncio.subprocess.PIPE,
                    stderr=asyncio.subprocess.STDOUT,
                    start_new_session=True,  # Ctrl-C reaches us alone, and we stop the others in order
                )
                status = await self._follow(process, process.running)
                process.ready.clear()
                if self._stopping:
                    return
                if status == service.EX_CONFIG:
                    if not self.failed.done():
                        self.failed.set_result(process.last_line or f"{process.word} cannot start")
                    return
                self._say(process.word, f"ended with status {status}, starting again in a second")
                await asyncio.sleep(1)

    async def _keep_postgresql(self) -> None:
        while True:
            await asyncio.sleep(0.5)
            if not self.postgresql.has_died:
                continue
            self._say(_POSTGRESQL, "ended, starting again")
            try:
                await asyncio.shield(asyncio.to_thread(self.postgresql.start))
            except ConfigError as error:
                if not self.failed.done():
                    self.failed.set_result(str(error))
                return

    async def _follow(self, process: Process, running: asyncio.subprocess.Process) -> int:
        assert running.stdout is not None
        async for line in running.stdout:
            process.last_line = line.decode("utf-8", "replace").rstrip()
            self._say(process.word, process.last_line)
        return await running.wait()

    def _say(self, word: str, line: str) -> None:
        if self._quiet:
            return
        label = f"{word:>9}"
        if sys.stdout.isatty():
            label = f"\033[{_COLOURS[word]}m{label}\033[0m"
        _print(f"{label} | {line}\n")

    async def _ready(self, words: Sequence[str]) -> None:
        try:
            async with asyncio.timeout(START_TIMEOUT):
                for word in words:
                    await self.unless_failed(self._processes[word].ready.wait())
        except TimeoutError:
            late = [word for word in words if not self._processes[word].ready.is_set()]
            raise ConfigError(f"not ready after {START_TIMEOUT:.0f} s: {', '.join(late)}") from None

    async def unless_failed(self, awaited: Coroutine[None, None, object]) -> None:
        """Wait for something; raises ConfigError when meanwhile a process cannot start."""
        task = asyncio.ensure_future(awaited)
        waited: set[asyncio.Future[Any]] = {task, self.failed}
        try:
            await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
        finally:
            task.cancel()
        if self.failed.done():
            raise ConfigError(self.failed.result())

    async def _sendable(self, database: Database) -> None:
        """Wait for the addresses to be ready and the demo's domain to be verified, both by the services' own work."""

        def pending() -> list[str]:
            with database.transaction() as conn:
                known = list(domains.list_(conn, OrganizationId(UUID(self.demo.organization_id))))
                waiting = [row.ip for row in addresses.list_(conn) if row.is_enabled and row.state != "ready"]
            return waiting + [row.name for row in known if row.name == DOMAIN and row.verified_at is None]

        for _ in range(int(START_TIMEOUT * 10)):
            if not (waiting := await database.thread(pending)):
                return
            await asyncio.sleep(0.1)
        raise ConfigError(f"not ready to send after {START_TIMEOUT:.0f} s: {', '.join(waiting)}")

    async def stop(self) -> None:
        """Stop everything, the doors first."""
        self._stopping = True
        if self._preparing is not None:
            await asyncio.wait([self._preparing])
        if self._watching is not None:
            self._watching.cancel()
        for words in (("api", "inbound", "periodic"), ("outbound",), ("ipagent",), ("bus", "demoworld")):
            await asyncio.gather(*(self._stop(word) for word in words))
        await asyncio.to_thread(self.postgresql.stop)

    async def _stop(self, word: str) -> None:
        task = self._tasks.get(word)
        if task is None or task.done():
            return
        running = self._processes[word].running
        if running is not None and running.returncode is None:
            running.send_signal(signal.SIGTERM)
        _, late = await asyncio.wait([task], timeout=STOP_TIMEOUT)
        if late:
            if running is not None and running.returncode is None:
                running.kill()
            task.cancel()
            await asyncio.wait([task])


@contextlib.asynccontextmanager
async def _notifications(process: Process) -> AsyncIterator[None]:
    """Listen for the child's sd_notify messages."""

    class Listener(asyncio.DatagramProtocol):
        def datagram_received(self, data: bytes, addr: object) -> None:  # noqa: ARG002  # asyncio's
            if b"READY=1" in data.splitlines():
                process.ready.set()

    address = "\0" + process.environment["NOTIFY_SOCKET"][1:]
    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
        Listener, local_addr=address, family=socket.AF_UNIX
    )
    try:
        yield
    finally:
        transport.close()


def _check_ports(ports: Ports) -> None:
    for name in ports.__struct_fields__:
        port = getattr(ports, name)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM if name == "dns" else socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                text = f"port {port} ({name}) is taken; is it running already? --port-base chooses other ports"
                raise ConfigError(text) from None


def banner(supervisor: Supervisor) -> str:
    """What a newcomer needs next."""
    ports, demo = supervisor.home.ports, supervisor.demo
    certificate = shlex.quote(str(supervisor.home.directory / "tls" / "certificate.pem"))
    settings = shlex.quote(str(supervisor.home.settings_path))
    emails = f"http://127.0.0.1:{ports.api}/api/organizations/{demo.organization_id}/projects/{demo.project_id}/emails"
    body = f'{{"from": "you@{DOMAIN}", "to": "friend@example.net", "subject": "Hello", "text_body": "By REST"}}'
    return f"""
  Remails is running. Nothing leaves this machine: every domain's MX is the development mailbox.

    Pages            http://127.0.0.1:{ports.api}/      login {demo.email}, password {demo.password}
    Received mail    http://127.0.0.1:{ports.mailbox_page}/
    API reference    http://127.0.0.1:{ports.api}/api/docs

  Send one by SMTP:

    swaks --server localhost:{ports.submission} --tls --tls-ca-path {certificate} \\
      --auth PLAIN --auth-user {demo.smtp_username} --auth-password {demo.smtp_password} \\
      --from you@{DOMAIN} --to friend@example.net --header 'Subject: Hello'

  and by REST:

    curl -u {demo.api_key}:{demo.api_secret} \\
      -H 'Content-Type: application/json' \\
      -d '{body}' \\
      {emails}

  Other recipients show other outcomes: bounce@, defer@, greylist@, slow@, drop@ (any domain).
  Operate it:  .venv/bin/remails --config {settings} doctor
  Stop with Ctrl-C; the next start goes on with the same data.
"""


async def interruptible(work: Coroutine[Any, Any, T]) -> T | None:
    """Do the work until it ends, or is cancelled by the first SIGINT, SIGTERM or SIGHUP; then the answer is None."""
    task = asyncio.ensure_future(work)
    interrupted = asyncio.Event()

    def interrupt() -> None:
        if not interrupted.is_set():  # who presses Ctrl-C twice does not want processes left behind
            interrupted.set()
            task.cancel()

    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(signum, interrupt)
    try:
        return await task
    except asyncio.CancelledError:
        if not interrupted.is_set():
            raise
        return None


async def _run(home: Home) -> None:
    supervisor = Supervisor(home)
    try:
        await supervisor.start()
        _print(banner(supervisor))
        await supervisor.unless_failed(asyncio.Event().wait())
    except asyncio.CancelledError:
        _print("\n  Stopping: what is under way is finished first.\n")
        raise
    finally:
        await supervisor.stop()


def _print(text: str) -> None:
    with contextlib.suppress(OSError):  # the terminal is gone
        sys.stdout.write(text)
        sys.stdout.flush()


def main(directory: Path, port_base: int | None) -> None:
    """Run until Ctrl-C."""
    home = Home(directory, Ports.from_base(port_base or PORT_BASE))
    try:
        asyncio.run(interruptible(_run(home)))
    except ConfigError as error:
        service.fail("dev", error)
