"""The service as it runs, on a loop of its own in a thread; its certificate; what it has stored."""

import asyncio
import socket
import threading
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import uvloop
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from inbound.dialogue import Dialogue

from remails.config import Settings
from remails.inbound import service


@dataclass(frozen=True)
class Certificate:
    certificate: str
    key: str


def make_certificate(directory: Path) -> Certificate:
    """A self-signed certificate and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "mail.relay.example")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    (directory / "certificate.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (directory / "key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return Certificate(str(directory / "certificate.pem"), str(directory / "key.pem"))


class Running:
    """`service.serve` in a thread, on free ports of loopback."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        sockets = {name: socket.create_server(("127.0.0.1", 0)) for name in ("smtps", "submission", "alternate")}
        self._ports: dict[str, int] = {name: sock.getsockname()[1] for name, sock in sockets.items()}
        for sock in sockets.values():
            sock.setblocking(False)
        self._stop = asyncio.Event()
        self._loop = uvloop.new_event_loop()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=[{name: [sock] for name, sock in sockets.items()}])
        self._thread.start()

    def _run(self, sockets: dict[str, list[socket.socket]]) -> None:
        try:
            with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
                runner.run(service.serve(self.settings, self._stop, sockets))
        except BaseException as error:  # noqa: BLE001  # handed to the test by `join`
            self._failure = error

    def port(self, name: str = "submission") -> int:
        return self._ports[name]

    def connect(self, name: str = "submission") -> Dialogue:
        return Dialogue(self._ports[name], smtps=name == "smtps")

    def begin_stop(self) -> None:
        """As SIGTERM does."""
        self._loop.call_soon_threadsafe(self._stop.set)

    def join(self) -> None:
        """Wait for the end."""
        self._thread.join(30)
        assert not self._thread.is_alive()
        if self._failure is not None:
            raise self._failure

    def stop(self) -> None:
        if self._thread.is_alive():
            self.begin_stop()
        self.join()


@dataclass(frozen=True)
class Stored:
    """A message in the database."""

    id: str
    mail_from: str
    recipients: list[str]
    raw: bytes

    @property
    def body(self) -> bytes:
        return self.raw.partition(b"\r\n\r\n")[2]
