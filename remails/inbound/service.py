"""SMTP submission.

NAME
    inbound - takes mail from customers' programs by SMTP, and stores it

DESCRIPTION
    Listens for submission (RFC 6409): on port 465 with TLS from the start (RFC 8314), on 587 and 2525 with STARTTLS. A
    client logs in with an SMTP credential of a project; without TLS it cannot. A message is answered with 250 only
    after it has been committed in PostgreSQL; then the sending host is told by way of the bus, which may be dead.
    PostgreSQL out of reach is 454 to AUTH and 451 to mail, and never a permanent error.

    When told to stop, it stops listening, lets transactions under way come to their end, says 421 to the others and
    ends after `drain_timeout` at the latest. Sockets that systemd holds take the connections that come meanwhile.

    main -> serve -> Server: listeners -> session.Session, one for each connection -> handler.Handler -> submission

STANDARDS
    RFC 5321 (SMTP), RFC 6409 (submission), RFC 8314 (submission with TLS), RFC 3207 (STARTTLS), RFC 4954 (AUTH),
    RFC 4616 (PLAIN), RFC 1870 (SIZE), RFC 2034 and 3463 (enhanced status codes), RFC 2920 (PIPELINING),
    RFC 6152 (8BITMIME), RFC 6531 (SMTPUTF8), RFC 3848 (ESMTPSA)

DIAGNOSTICS
    One line for each message accepted, each refusal and each failed login, with the client's address; a password is
    never logged. Exit status 78: a setting or credential is wrong, a port is taken, or the certificate cannot be used.

CONFIGURATION
    [inbound], [mail], [database], [bus]; credentials pepper, bus_client_key, database_password.
    Sockets of systemd named smtps, submission and alternate go before the ports of [inbound].
"""

import asyncio
import errno
import socket
import ssl
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cryptography import x509

from remails import service
from remails.bus.client import Publisher
from remails.config import Inbound, Settings
from remails.db import Database
from remails.errors import ConfigError
from remails.inbound.handler import Handler
from remails.inbound.session import Session
from remails.logs import Log
from remails.vault import Pepper

log = Log("remails.inbound")

SMTPS, SUBMISSION, ALTERNATE = "smtps", "submission", "alternate"

_BACKLOG = 2048
_HANDSHAKE_TIMEOUT = 30.0
_SHUTDOWN_TIMEOUT = 5.0
_ABORT_TIMEOUT = 10.0
_ADVICE = {
    errno.EADDRINUSE: "it is in use, stop the other program or set another port",
    errno.EACCES: "not allowed to this user, let systemd pass the socket or set a port above 1023",
    errno.EADDRNOTAVAIL: "this host does not have the address, set inbound.host",
}


def main(settings: Settings) -> None:
    """Take mail until SIGTERM."""
    service.run("inbound", settings, lambda stop: serve(settings, stop, service.listen_fds()))


async def serve(settings: Settings, stop: asyncio.Event, passed: Mapping[str, Sequence[socket.socket]]) -> None:
    """Take mail until `stop`, on the sockets `passed` or else on the ports of the settings. Raises ConfigError."""
    pepper = Pepper(settings.credential("pepper"))
    publisher = Publisher(settings.bus, settings.bus_client_key())
    db = Database(settings.database, settings.database_password(), "inbound")
    handler = Handler(db, publisher, pepper, settings.mail)
    server = Server(settings, handler, tls_context(settings.inbound))
    try:
        publisher.open()
        db.open()
        await server.listen(passed)
        service.ready("taking mail")
        await stop.wait()
        await server.drain()
        await handler.flush()
    finally:
        server.close()
        db.close()
        publisher.close()


class Server:
    """The listeners of this process, and the sessions that came in by them."""

    def __init__(self, settings: Settings, handler: Handler, tls: ssl.SSLContext) -> None:
        self._settings, self._handler, self._tls = settings, handler, tls
        self._listeners: list[asyncio.Server] = []
        self._sessions: set[Session] = set()

    async def listen(self, passed: Mapping[str, Sequence[socket.socket]]) -> None:
        """Open the listeners: on sockets passed by systemd, or else on the ports of the settings.

        Raises:
            ConfigError: a port cannot be had, or there is nothing to listen on.
        """
        if unknown := set(passed) - {SMTPS, SUBMISSION, ALTERNATE}:
            raise ConfigError(f"socket {min(unknown)!r}: FileDescriptorName= must be smtps, submission or alternate")
        for name, sockets in passed.items():
            for sock in sockets:
                await self._listen(name, sock)
        if not passed:
            for name, sock in self._bound():
                await self._listen(name, sock)
        if not self._listeners:
            raise ConfigError("inbound: nothing to listen on, set smtps_port, submission_port or alternate_port")

    def _bound(self) -> Iterator[tuple[str, socket.socket]]:
        ours = self._settings.inbound
        ports = {SMTPS: ours.smtps_port, SUBMISSION: ours.submission_port, ALTERNATE: ours.alternate_port}
        for name, port in ports.items():
            if port:
                yield name, _bind(ours.host, port, f"inbound.{name}_port")

    async def _listen(self, name: str, sock: socket.socket) -> None:
        tls: dict[str, Any] = {
            "ssl": self._tls,
            "ssl_handshake_timeout": _HANDSHAKE_TIMEOUT,
            "ssl_shutdown_timeout": _SHUTDOWN_TIMEOUT,
        }
        listener = await asyncio.get_running_loop().create_server(
            self._session, sock=sock, backlog=_BACKLOG, **(tls if name == SMTPS else {})
        )
        self._listeners.append(listener)
        log.info("listening", listener=name, address=_shown(sock))

    def _session(self) -> Session:
        return Session(self._handler, self._settings, self._tls, self._sessions)

    async def drain(self) -> None:
        """Take no more connections, and wait until the sessions have come to an end."""
        self.close()
        log.info("draining", sessions=len(self._sessions))
        for session in self._sessions:
            session.drain()
        if not await self._ended(self._settings.inbound.drain_timeout):
            for session in self._sessions:
                session.abort()
            await self._ended(_ABORT_TIMEOUT)

    async def _ended(self, seconds: float) -> bool:
        """Wait so long for the end of all sessions."""
        tasks = [session.task for session in self._sessions]
        return not tasks or not (await asyncio.wait(tasks, timeout=seconds))[1]

    def close(self) -> None:
        """Stop listening."""
        for listener in self._listeners:
            listener.close()
        self._listeners.clear()


def tls_context(settings: Inbound) -> ssl.SSLContext:
    """TLS as we offer it, with the certificate of the settings.

    Raises:
        ConfigError: certificate or key are missing, unreadable, or do not belong together.
    """
    for name, path in (("tls_certificate", settings.tls_certificate), ("tls_key", settings.tls_key)):
        try:
            Path(path).read_bytes()
        except OSError as error:
            raise ConfigError(f"inbound.{name}: cannot read {path}: {error.strerror}") from None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2  # RFC 8996, RFC 8314 §4.1
    context.options |= ssl.OP_NO_RENEGOTIATION
    try:
        # Without a password given here, OpenSSL would ask for one at the terminal.
        context.load_cert_chain(settings.tls_certificate, settings.tls_key, password="")
    except ssl.SSLError as error:
        raise ConfigError(_why_not(error, settings)) from None
    return context


def _why_not(error: ssl.SSLError, settings: Inbound) -> str:
    """What is wrong with certificate or key, in one sentence."""
    if error.reason == "KEY_VALUES_MISMATCH":
        return f"inbound.tls_key: {settings.tls_key} is not the key of the certificate in {settings.tls_certificate}"
    try:
        x509.load_pem_x509_certificates(Path(settings.tls_certificate).read_bytes())
    except ValueError:
        return f"inbound.tls_certificate: {settings.tls_certificate} does not begin with a certificate in PEM"
    return f"inbound.tls_key: {settings.tls_key} is not a private key in PEM without a passphrase"


def _bind(host: str, port: int, setting: str) -> socket.socket:
    """A socket on this port. Raises ConfigError, which says why not."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        sock = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ConfigError(f"inbound.host: {host}: {error.strerror or error}") from None
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(_BACKLOG)
    except OSError as error:
        sock.close()
        raise ConfigError(
            f"{setting}: cannot listen on {host} port {port}: {_ADVICE.get(error.errno or 0, error.strerror)}"
        ) from None
    sock.setblocking(False)
    return sock


def _shown(sock: socket.socket) -> str:
    host, port, *_ = sock.getsockname()
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
