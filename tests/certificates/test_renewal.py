"""A renewal under load, by the real processes: the certificate comes from the authority to SMTP and HTTPS, and no handshake fails."""

import contextlib
import hashlib
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest
from authority import issue
from certificates import pebble
from certificates.conftest import answering
from cryptography.fernet import Fernet
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from inbound.process import Process, toml
from playbooks.play import program
from scraping import free_port

from remails import certificate
from remails.api.app import create_app
from remails.bus.client import Publisher
from remails.config import Inbound, Periodic, Settings
from remails.db import Database
from remails.store import certificates as store
from remails.vault import Pepper, Vault

FETCH = Path(__file__).parents[2] / "roles/certificates/files/certificates.py"

PACE = 0.01  # seconds between two handshakes of a client, so that others get on too

HAPROXY = """\
global
    stats socket {directory}/admin.sock mode 600 level admin expose-fd listeners
defaults
    mode http
    timeout client 5s
    timeout connect 5s
    timeout server 5s
frontend https
    bind 127.0.0.1:{port} ssl crt {directory}/tls/relay.pem
    http-request return status 200
"""


def until(condition: Callable[[], object], what: str, limit: float = 60) -> None:
    deadline = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


class Client(threading.Thread):
    """Makes one TLS handshake after another, and remembers what it saw."""

    def __init__(self, port: int, greet: Callable[[socket.socket], None] = lambda _: None) -> None:
        super().__init__(daemon=True)
        self.failures: list[str] = []
        self.seen: Counter[str] = Counter()
        self._port, self._greet = port, greet
        self._ended = threading.Event()
        self._context = ssl.create_default_context()
        self._context.check_hostname, self._context.verify_mode = False, ssl.CERT_NONE
        self.start()

    def run(self) -> None:
        while not self._ended.wait(PACE):
            try:
                with socket.create_connection(("127.0.0.1", self._port), timeout=20) as sock:
                    self._greet(sock)
                    with self._context.wrap_socket(sock, server_hostname="relay.example") as secure:
                        shown = secure.getpeercert(binary_form=True)
                        assert shown
                        self.seen[hashlib.sha256(shown).hexdigest()] += 1
            except OSError as error:
                self.failures.append(repr(error))

    def end(self) -> None:
        self._ended.set()
        self.join()


def starttls(sock: socket.socket) -> None:
    with sock.makefile("rb") as reader:
        reader.readline()
        sock.sendall(b"EHLO c.example\r\n")
        while reader.readline()[3:4] == b"-":
            pass
        sock.sendall(b"STARTTLS\r\n")
        assert reader.readline().startswith(b"220")


@pytest.fixture
def haproxy(tmp_path: Path) -> Iterator[tuple[int, Callable[[], None]]]:
    """An edge: the port of HTTPS, and how it is told to reload."""
    port = free_port(0)
    (tmp_path / "haproxy.cfg").write_text(HAPROXY.format(directory=tmp_path, port=port))
    program = shutil.which("haproxy", path=f"{os.environ['PATH']}:/usr/sbin") or ""
    with (tmp_path / "haproxy.log").open("wb") as log:
        master = subprocess.Popen([program, "-W", "-f", str(tmp_path / "haproxy.cfg")], stdout=log, stderr=log)
    try:
        yield port, lambda: master.send_signal(signal.SIGUSR2)
    finally:
        master.terminate()
        master.wait()


class Fetcher:
    """The job of a host that shows the certificate."""

    def __init__(self, directory: Path, key: bytes, *urls: str) -> None:
        self.directory, self.urls = directory, urls
        self.metrics = directory / "textfiles"
        self.key = directory / "key"
        self.key.write_bytes(key + b"\n")
        self.metrics.mkdir()

    def run(self, wait: float = 0) -> tuple[int, str]:
        """Once: exit status, and what it complains about."""
        options = {
            "wait": wait,
            "directory": self.directory / "tls",
            "key": self.key,
            "metrics": self.metrics,
        }
        words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        done = subprocess.run(
            [sys.executable, str(FETCH), *words, *self.urls], capture_output=True, text=True, check=False
        )
        return done.returncode, done.stderr

    def told(self) -> dict[str, float]:
        """The metrics, by name without labels."""
        lines = (self.metrics / "remails_certificates.prom").read_text().splitlines()
        return {line.partition("{")[0]: float(line.split()[-1]) for line in lines if not line.startswith("#")}


@pytest.fixture
def fetcher(tmp_path: Path, pepper: Pepper, acme: pebble.Pebble) -> Fetcher:
    """On a host that has a certificate of its own making so far; one of two api hosts is dead."""
    (tmp_path / "tls").mkdir()
    first = issue("relay.example")
    files = [Path(path) for path in first.files(tmp_path)]
    (tmp_path / "tls/relay.pem").write_bytes(files[1].read_bytes() + files[0].read_bytes())
    (tmp_path / "tls/relay.pem").chmod(0o640)
    return Fetcher(
        tmp_path, pepper.fernet_key("certificates:1"), "http://127.0.0.1:9", f"http://127.0.0.1:{acme.web_port}"
    )


@contextlib.contextmanager
def periodic(directory: Path, settings: Settings) -> Iterator[None]:
    """`remails periodic` as a process."""
    directory.mkdir()
    (directory / "remails.toml").write_text(toml(settings, "mail", "database", "periodic", "certificates", "logs"))
    command = [sys.executable, "-m", "remails", "--config", str(directory / "remails.toml"), "periodic"]
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        yield
    finally:
        process.terminate()
        process.wait()


@pytest.mark.timeout(300)
@pytest.mark.needs("pebble", "haproxy")
def test_a_renewal_under_load_fails_no_handshake(
    settings: Settings,
    api: str,
    db: Database,
    fetcher: Fetcher,
    haproxy: tuple[int, Callable[[], None]],
    tmp_path: Path,
) -> None:
    path = tmp_path / "tls/relay.pem"

    def serial() -> str:
        return certificate.read(path.read_bytes()).serial

    def shown() -> str:
        return hashlib.sha256(ssl.PEM_cert_to_DER_cert(certificate.read(path.read_bytes()).chain_pem)).hexdigest()

    settings = msgspec.structs.replace(
        settings,
        inbound=Inbound(tls_certificate=str(path), tls_key=str(path)),
        periodic=Periodic(certificates_interval=0.1),
    )
    (tmp_path / "inbound").mkdir()
    inbound = Process(tmp_path / "inbound", settings, "smtps", "submission")
    clients: list[Client] = []
    try:
        inbound.ready()
        port, reload_edge = haproxy
        until(lambda: is_open(port), "haproxy to listen")
        clients = [Client(inbound.ports["smtps"]), Client(inbound.ports["submission"], starttls), Client(port)]
        began = [shown()]
        with periodic(tmp_path / "periodic", settings):
            for is_renewal in (False, True):
                before = serial()
                if is_renewal:
                    db.run(store.want, "relay")
                # As the timer does on each host, and what follows where something has changed.
                until(lambda: fetcher.run()[0] == 0 and serial() != before, "a new certificate on this host")  # noqa: B023
                began.append(shown())
                reload_edge()
                until(lambda: all(began[-1] in client.seen for client in clients), "the new certificate to be shown")
    finally:
        for client in clients:
            client.end()
        inbound.close()
    assert [client.failures for client in clients] == [[], [], []]
    for client in clients:
        assert all(client.seen[one] for one in began), client.seen
        assert client.seen.keys() <= {*began}
    assert path.stat().st_mode & 0o777 == 0o640
    assert sorted(one.name for one in path.parent.iterdir()) == ["relay.pem"]


def test_what_a_host_is_told_and_tells(
    settings: Settings, api: str, db: Database, vault: Vault, fetcher: Fetcher, acme: pebble.Pebble
) -> None:
    path = fetcher.directory / "tls/relay.pem"
    own = path.read_bytes()
    # Nothing is issued yet: what is there stays, and is told.
    assert fetcher.run() == (0, "")
    end = certificate.read(own).own.not_valid_after_utc.timestamp()
    assert fetcher.told() == {
        "remails_certificate_not_after_timestamp_seconds": int(end),
        "remails_certificate_renewal_failed": 0,
    }
    made = issued()
    with db.transaction() as conn:
        store.save(conn, vault, "relay", made, "import")
    assert fetcher.run() == (0, "") and path.read_bytes() == made.pem.encode()
    placed = path.stat()
    assert fetcher.run() == (0, "") and path.stat() == placed  # it is the same
    # The renewal failed, elsewhere; every host says so.
    db.run(store.fail, "relay", "no", timedelta(hours=1))
    assert fetcher.run() == (0, "") and fetcher.told()["remails_certificate_renewal_failed"] == 1
    # Nobody is there: the file stays, and this host says so.
    db.run(store.save, vault, "relay", made, "import")
    fetcher.urls = ("http://127.0.0.1:9",)
    status, said = fetcher.run()
    assert status == 1 and "refused" in said and path.read_bytes() == made.pem.encode()
    assert fetcher.told()["remails_certificate_renewal_failed"] == 1


def test_a_host_that_starts_before_the_relay_waits_for_it(
    settings: Settings, db: Database, vault: Vault, pepper: Pepper, fetcher: Fetcher
) -> None:
    made = issued()
    db.run(store.save, vault, "relay", made, "import")
    port = free_port(0)
    fetcher.urls = (f"http://127.0.0.1:{port}",)
    with ThreadPoolExecutor() as threads:
        with socket.create_server(("127.0.0.1", port)) as early:
            running = threads.submit(fetcher.run, 60)
            early.accept()[0].close()
        with answering(create_app(settings, db, Publisher(settings.bus, ""), vault, pepper), port):
            assert running.result() == (0, "")
            assert (fetcher.directory / "tls/relay.pem").read_bytes() == made.pem.encode()
            # Who answers that the key is wrong will not take it in a minute either.
            fetcher.key.write_bytes(Fernet.generate_key())
            began = time.monotonic()
            assert fetcher.run(60)[0] == 1 and time.monotonic() - began < 30


def test_a_stranger_learns_nothing_of_certificates(
    settings: Settings, api: str, db: Database, vault: Vault, pepper: Pepper, fetcher: Fetcher
) -> None:
    made = issued()
    db.run(store.save, vault, "relay", made, "import")
    key = Fernet(pepper.fernet_key("certificates:1"))
    old = key.encrypt_at_time(b"certificates", int(time.time()) - 1000).decode()
    other = Fernet(pepper.fernet_key("certificates:2")).encrypt(b"certificates").decode()
    for header in (None, "Basic eDp5", "Remails", "Remails x", f"Remails {old}", f"Remails {other}"):
        request = urllib.request.Request(
            f"{api}/internal/certificates", headers={"Authorization": header} if header else {}
        )
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request, timeout=10)
        with refused.value as answer:
            assert answer.code == 404
    right = {"Authorization": f"Remails {key.encrypt(b'certificates').decode()}"}
    with urllib.request.urlopen(
        urllib.request.Request(f"{api}/internal/certificates", headers=right), timeout=10
    ) as answer:
        sealed = answer.read()
    assert b"PRIVATE" not in sealed and made.pem.encode() in key.decrypt(sealed).replace(b"\\n", b"\n")
    with pytest.raises(urllib.error.HTTPError) as unknown:
        urllib.request.urlopen(f"{api}/.well-known/acme-challenge/nothing", timeout=10)
    with unknown.value as answer:
        assert answer.code == 404


def test_a_host_takes_no_file_that_is_no_certificate(
    settings: Settings, api: str, db: Database, vault: Vault, fetcher: Fetcher
) -> None:
    """A key of the exchange that is wrong, and a certificate whose name is a path."""
    path = fetcher.directory / "tls/relay.pem"
    before = path.read_bytes()
    db.run(store.save, vault, "../relay", issued(), "import")
    assert fetcher.run()[0] == 1
    fetcher.key.write_bytes(Fernet.generate_key())
    status, said = fetcher.run()
    assert status == 1 and "does not know our key" in said
    assert path.read_bytes() == before and len(list(path.parent.iterdir())) == 1


def test_the_inventory_makes_the_key_that_api_makes(pepper: Pepper, credentials: Path) -> None:
    filters = program("filter_plugins/fleet.py")
    text = (credentials / "pepper").read_text()
    for number in (1, 2):
        made = filters.certificates_key(text + "\n", number)
        assert made.encode() == pepper.fernet_key(f"certificates:{number}")
    hosts = {
        "app1": {"ansible_host": "192.0.2.1", "remails_address": "10.0.0.1", "api_listen": "0.0.0.0:8000"},
        "app2": {"ansible_host": "2001:db8::2", "api_listen": "[::]:8001"},
        "app3": {"ansible_host": "192.0.2.3"},
    }
    elsewhere = ["http://10.0.0.1:8000", "http://[2001:db8::2]:8001"]
    assert filters.certificate_sources("edge1", hosts, hosts) == elsewhere
    assert filters.certificate_sources("app3", hosts, hosts) == [*elsewhere, "http://127.0.0.1:8000"]


def test_port_80_without_an_edge_answers_authorities_only(settings: Settings, api: str, db: Database) -> None:
    db.run(store.add_challenge, "a-Token_1", "a-Token_1.thumbprint", timedelta(minutes=1))
    listening = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    # As systemd starts it: the socket is descriptor 3.
    program = FETCH.with_name("challenges.py")
    command = ["bash", "-c", f'exec "$0" "$@" 3<&{listening.fileno()}', sys.executable, str(program), api]
    with subprocess.Popen(command, pass_fds=[listening.fileno()]) as process:
        try:
            with urllib.request.urlopen(f"{url}/.well-known/acme-challenge/a-Token_1", timeout=20) as answer:
                assert answer.read() == b"a-Token_1.thumbprint"
            for path in (
                "/",
                "/login",
                "/api/config",
                "/.well-known/acme-challenge/../../login",
                "/.well-known/acme-challenge/b",
            ):
                with pytest.raises(urllib.error.HTTPError) as refused:
                    urllib.request.urlopen(f"{url}{path}", timeout=20)
                with refused.value as answer:
                    assert (answer.code, answer.read()) == (404, b"")
        finally:
            process.terminate()
            listening.close()


def issued() -> certificate.Certificate:
    made = issue("relay.example")
    key = made.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return certificate.read(key + made.pem().encode())


def is_open(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False
