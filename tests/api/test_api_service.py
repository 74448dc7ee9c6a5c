"""The service as a real process: sockets, signals, wrong settings, a dead database, slow clients, notes on the bus."""

import asyncio
import contextlib
import fcntl
import http.client
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from api.caller import basic
from scraping import scrape
from seed import PASSWORD, Tenant

import remails
from remails.bus.client import Subscriber
from remails.bus.events import Ready
from remails.bus.service import Broker
from remails.config import Bus, BusEndpoint
from remails.config import Database as DatabaseSettings


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Running:
    """One `remails api` and what it says."""

    def __init__(self, directory: Path, toml: str, credentials: Path, **options: Any) -> None:
        self.port = options.pop("port", None) or free_port()
        self.directory = directory
        (directory / "remails.toml").write_text(
            f'{toml}\n[api]\nlisten = "127.0.0.1:{self.port}"\n' + options.pop("api", "")
        )
        self._errors = (directory / "stderr").open("w+")
        program = options.pop("program", [sys.executable, "-m", "remails", "api"])
        self.process = subprocess.Popen(
            program,
            env={
                "PATH": os.environ["PATH"],
                "HOME": str(directory),
                "REMAILS_CONFIG": str(directory / "remails.toml"),
                "CREDENTIALS_DIRECTORY": str(credentials),
                **options.pop("env", {}),
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self._errors,
            **options,
        )

    @property
    def errors(self) -> str:
        """All it has written to standard error."""
        return (self.directory / "stderr").read_text()

    def request(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None, timeout: float = 30
    ) -> tuple[int, Any]:
        """One request on a connection of its own: status and JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        with contextlib.closing(connection):
            given = {"Content-Type": "application/json", **(headers or {})}
            connection.request(method, path, None if body is None else json.dumps(body), given)
            response = connection.getresponse()
            return response.status, json.loads(response.read())

    def wait(self) -> None:
        """Until it answers."""
        until(lambda: self.process.poll() is not None or self.answers())
        assert self.process.poll() is None, self.errors

    def answers(self, timeout: float = 30) -> bool:
        """Whether a new client is served within so many seconds."""
        try:
            return self.request("GET", "/api/config", timeout=timeout)[0] == 200
        except OSError:
            return False

    def stop(self) -> int:
        """As systemd does."""
        if self.process.poll() is None:
            self.process.terminate()
        try:
            return self.process.wait(40)
        finally:
            self.process.kill()
            self._errors.close()


def until(condition: Callable[[], bool], seconds: float = 30) -> None:
    """Wait for a condition."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


def settings(dsn: str, more: str = "") -> str:
    return f'host = "test"\n[mail]\nhostname = "relay.example"\n[database]\ndsn = "{dsn}"\nwait_timeout = 1.0\n{more}'


@pytest.fixture
def start(tmp_path: Path, credentials: Path, database: DatabaseSettings) -> Iterator[Callable[..., Running]]:
    """Start the service on the test's database; it is stopped in the end."""
    running: list[Running] = []

    def start(toml: str | None = None, **options: Any) -> Running:
        options.setdefault("api", "workers = 1\nthreads = 4\n")
        running.append(
            Running(tmp_path, toml or settings(database.dsn), options.pop("credentials", credentials), **options)
        )
        return running[-1]

    yield start
    for one in running:
        one.stop()


def test_it_serves_says_so_and_stops(start: Callable[..., Running], tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.bind(str(tmp_path / "notify"))
        notify.settimeout(30)
        service = start(env={"NOTIFY_SOCKET": str(tmp_path / "notify")})
        assert b"READY=1" in notify.recv(4096)
    service.wait()
    assert service.request("GET", "/api/healthy") == (200, {"healthy": True, "status": "OK"})
    # No control socket, no files in the home directory.
    assert {path.name for path in tmp_path.iterdir()} == {"remails.toml", "stderr", "notify"}
    assert service.stop() == 0
    assert "Traceback" not in service.errors
    assert "request method=GET route=/api/config status=200" in service.errors


def test_it_takes_the_socket_that_systemd_passes(start: Callable[..., Running]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        # sd_listen_fds(3): descriptor 3, and the id of the process it is meant for.
        launch = (
            f"import os, sys; os.dup2({listening.fileno()}, 3)\n"
            "os.environ.update(LISTEN_FDS='1', LISTEN_PID=str(os.getpid()))\n"
            "os.execv(sys.executable, [sys.executable, '-m', 'remails', 'api'])"
        )
        program = [sys.executable, "-c", launch]
        service = start(program=program, pass_fds=[listening.fileno()])
        own = service.port
        service.port = port
        service.wait()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", own))
        # While it restarts, clients wait and nobody is refused.
        assert service.stop() == 0
        waiting = socket.create_connection(("127.0.0.1", port))
        with waiting:
            waiting.sendall(b"GET /api/healthy HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            again = start(program=program, pass_fds=[listening.fileno()])
            waiting.settimeout(30)
            assert waiting.recv(12) == b"HTTP/1.1 200"
            again.stop()


def test_the_numbers_of_its_workers_are_one(start: Callable[..., Running], tenant: Tenant, tmp_path: Path) -> None:
    base = free_port()
    service = start(api=f'workers = 2\nthreads = 2\n[metrics]\nhost = "127.0.0.1"\nport = {base}\n')
    service.wait()
    before = scrape(base)
    for _ in range(10):
        assert service.request("GET", "/api/organizations", headers=basic(tenant.api_key, tenant.api_secret))[0] == 200
        assert service.request("GET", "/api/healthy")[0] == 200  # an edge's, which is no client
    wrong = basic(tenant.api_key, "wrong")
    assert service.request("GET", "/api/organizations", headers=wrong)[0] == 401
    for _ in range(4):  # whichever worker answers
        shown = scrape(base)
        ok = "remails_http_requests_total method=GET status=200"
        assert shown[ok] - before[ok] == 10
        assert shown["remails_logins_total door=api_key outcome=succeeded"] == 10
        assert shown["remails_logins_total door=api_key outcome=failed"] == 1
        assert shown[f"remails_info service=api version={remails.__version__}"] == 1
    assert service.stop() == 0


def fails(service: Running) -> str:
    """The one sentence of a process that cannot start."""
    assert service.process.wait(30) == 78
    lines = [line for line in service.errors.splitlines() if line.startswith("remails ")]
    assert "Traceback" not in service.errors
    assert len(lines) >= 1
    return lines[0]


def test_a_taken_port_is_one_sentence(start: Callable[..., Running]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        sentence = fails(start(port=port))
    assert sentence == f"remails api: api.listen: cannot listen on 127.0.0.1:{port}: Address already in use"


def test_a_missing_or_broken_credential_is_one_sentence(
    start: Callable[..., Running], credentials: Path, tmp_path: Path
) -> None:
    some = tmp_path / "credentials"
    some.mkdir()
    assert "credential encryption_keys: cannot read" in fails(start(credentials=some))
    (some / "encryption_keys").write_text((credentials / "encryption_keys").read_text())
    (some / "pepper").write_text("short")
    assert fails(start(credentials=some)) == "remails api: credential pepper: needs at least 32 characters"


def test_a_wrong_setting_is_one_sentence(start: Callable[..., Running]) -> None:
    service = start(api="wrokers = 1\n")
    assert service.process.wait(30) == 78
    assert "api.wrokers: unknown key" in service.errors
    assert "Traceback" not in service.errors


def test_a_wrong_key_for_the_bus_is_one_sentence(
    start: Callable[..., Running], credentials: Path, tmp_path: Path, database: DatabaseSettings
) -> None:
    some = tmp_path / "credentials"
    some.mkdir()
    for name in ("encryption_keys", "pepper"):
        (some / name).write_text((credentials / name).read_text())
    (some / "bus_client_key").write_text("not a key")
    bus = (
        f'[bus]\nserver_public_key = "{"x" * 40}"\n'
        'endpoints = [{publish = "tcp://127.0.0.1:1", subscribe = "tcp://127.0.0.1:2"}]\n'
    )
    sentence = fails(start(settings(database.dsn, bus), credentials=some))
    assert sentence.startswith("remails api: credential bus_client_key: expected a CURVE secret key")


def test_without_the_database_it_starts_and_answers_503(start: Callable[..., Running], tenant: Tenant) -> None:
    service = start(settings("host=127.0.0.1 port=1 user=x dbname=x"))  # X07
    service.wait()
    status, health = service.request("GET", "/api/healthy")
    assert (status, health["healthy"]) == (503, False)
    login = {"email": tenant.email, "password": PASSWORD}
    assert service.request("POST", "/api/login/password", login)[0] == 503
    key = basic(tenant.api_key, tenant.api_secret)
    status, problem = service.request("GET", "/api/organizations", headers=key)
    assert (status, problem["title"]) == (503, "Service Unavailable")
    assert service.process.poll() is None


def test_a_restart_waits_for_what_is_under_way(start: Callable[..., Running], tenant: Tenant) -> None:
    service = start()
    service.wait()
    body = json.dumps({"email": tenant.email, "password": PASSWORD}).encode()
    with socket.create_connection(("127.0.0.1", service.port), 30) as client:
        head = f"POST /api/login/password HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        client.sendall(head.encode() + body[:5])
        until(lambda: _is_read(client))
        service.process.send_signal(signal.SIGTERM)
        until(lambda: not service.answers(0.3))
        client.sendall(body[5:])
        assert client.recv(12) == b"HTTP/1.1 200"
    assert service.stop() == 0


def _is_read(client: socket.socket) -> bool:
    """Whether the other end has taken what was sent (SIOCOUTQ) long enough to have begun with it."""
    waiting = struct.unpack("i", fcntl.ioctl(client.fileno(), 0x5411, b"\0" * 4))[0]
    return bool(waiting == 0)


def test_a_reload_refuses_nobody(start: Callable[..., Running]) -> None:
    service = start(api="workers = 2\nthreads = 4\n")  # X10
    service.wait()
    answers: list[int] = []
    failures: list[BaseException] = []
    done = threading.Event()

    def ask() -> None:
        while not done.is_set():
            try:
                answers.append(service.request("GET", "/api/healthy")[0])
            except (OSError, http.client.HTTPException) as error:
                failures.append(error)

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    before = _workers(service)
    service.process.send_signal(signal.SIGHUP)
    until(lambda: not before & _workers(service))
    seen = len(answers)
    until(lambda: len(answers) > seen + 20)
    done.set()
    for thread in threads:
        thread.join()
    assert failures == []
    assert set(answers) == {200}


def _workers(service: Running) -> set[int]:
    children = Path(f"/proc/{service.process.pid}/task/{service.process.pid}/children").read_text()
    return {int(pid) for pid in children.split()}


def test_a_body_without_end_is_cut_off(start: Callable[..., Running], tenant: Tenant) -> None:
    service = start()  # A09
    service.wait()
    login = "POST /api/login/password HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    for head, piece in (
        ("Content-Length: 60000000\r\n\r\n", b" " * 65536),
        ("Transfer-Encoding: chunked\r\n\r\n", b"10000\r\n" + b" " * 65536 + b"\r\n"),
    ):
        with socket.create_connection(("127.0.0.1", service.port), 30) as client:
            client.sendall((login + head).encode())
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                client.sendall(piece * 4)
            answer = client.recv(12)
            assert answer == b"HTTP/1.1 413", head + repr(client.recv(3000)) + service.errors
    assert service.request("GET", "/api/healthy")[0] == 200


def test_slow_clients_do_not_keep_others_out(start: Callable[..., Running]) -> None:
    program = (
        "from remails import config\nfrom remails.api import service\n"
        "service.READ_TIMEOUT = 1.0\nservice.main(config.load())"
    )
    service = start(program=[sys.executable, "-c", program])
    service.wait()
    slow = [socket.create_connection(("127.0.0.1", service.port), 30) for _ in range(8)]
    for client in slow:
        client.sendall(b"GET /api/config HTTP/1.1\r\nX-Slow: ")
    started = time.monotonic()
    assert service.request("GET", "/api/config")[0] == 200
    assert time.monotonic() - started < 20
    for client in slow:
        with contextlib.suppress(ConnectionResetError):
            client.recv(1000)
        client.close()


def test_many_slow_clients_are_given_up_sooner(start: Callable[..., Running]) -> None:
    service = start()
    service.wait()
    with contextlib.ExitStack() as stack:
        for _ in range(16):
            client = stack.enter_context(socket.create_connection(("127.0.0.1", service.port), 30))
            client.sendall(b"POST /login HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\nX-Slow: ")
        started = time.monotonic()
        assert service.request("GET", "/api/config")[0] == 200
        assert time.monotonic() - started < 28  # one turn of the usual patience would be 30 s


@pytest.mark.parametrize("connection", ["close", "keep-alive"])
def test_who_sends_on_after_the_answer_keeps_nobody_waiting(start: Callable[..., Running], connection: str) -> None:
    """The rest of a body that was refused at once: more clients than there are threads, and none of them closes."""
    service = start()
    service.wait()
    head = f"POST /api/organizations HTTP/1.1\r\nHost: x\r\nConnection: {connection}\r\nContent-Length: 100000\r\n\r\n"
    with contextlib.ExitStack() as stack:
        started = time.monotonic()
        for _ in range(20):
            client = stack.enter_context(socket.create_connection(("127.0.0.1", service.port), 30))
            client.sendall(head.encode() + b"{")
            assert client.recv(12) == b"HTTP/1.1 401"
        assert service.request("GET", "/api/config")[0] == 200
        assert time.monotonic() - started < 10  # two seconds for each would be 40


def test_a_mail_is_stored_and_its_note_is_heard(
    start: Callable[..., Running], credentials: Path, database: DatabaseSettings, tenant: Tenant
) -> None:
    endpoint = BusEndpoint(publish=f"tcp://127.0.0.1:{free_port()}", subscribe=f"tcp://127.0.0.1:{free_port()}")
    public, clients = ((credentials / f"bus_{word}_key.pub").read_text() for word in ("server", "client"))
    own = Bus(listen_publish=endpoint.publish, listen_subscribe=endpoint.subscribe, client_public_keys=(clients,))
    broker = Broker(own, (credentials / "bus_server_key").read_text())
    broker.thread.start()
    bus = (
        f'[bus]\nserver_public_key = "{public}"\n'
        f'endpoints = [{{publish = "{endpoint.publish}", subscribe = "{endpoint.subscribe}"}}]\n'
    )
    service = start(settings(database.dsn, bus))
    service.wait()
    send = f"/api/organizations/{tenant.organization_id}/projects/{tenant.project_id}/emails"
    mail = {"from": f"a@{tenant.domain}", "to": "b@example.net", "subject": "s", "text_body": "t"}
    key = basic(tenant.api_key, tenant.api_secret)
    sent: set[str] = set()

    async def hear() -> None:
        (source,) = tenant.sources
        subscriber = Subscriber(
            Bus(endpoints=(endpoint,), server_public_key=public),
            (credentials / "bus_client_key").read_text(),
            [f"ready/{source}/"],
        )
        notes = aiter(subscriber)
        first = asyncio.ensure_future(anext(notes))
        # PUB/SUB loses what is said before both are connected (X01): send until one is heard.
        async with asyncio.timeout(30):
            while not first.done():
                status, answer = await asyncio.to_thread(service.request, "POST", send, mail, key)
                assert status == 201
                sent.add(answer["id"])
                await asyncio.wait([first], timeout=0.1)
        note = first.result()
        subscriber.close()
        assert isinstance(note, Ready)
        assert {str(id_) for id_ in note.message_ids} <= sent

    asyncio.run(hear())
    service.stop()
    broker.close()
