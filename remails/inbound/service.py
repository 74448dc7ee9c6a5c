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

    inbound.processes share the listeners; the first process watches the others.

    main -> serve -> Server: listeners -> session.Session, one for each connection -> handler.Handler -> submission

STANDARDS
    RFC 5321 (SMTP), RFC 6409 (submission), RFC 8314 (submission with TLS), RFC 3207 (STARTTLS), RFC 4954 (AUTH),
    RFC 4616 (PLAIN), RFC 1870 (SIZE), RFC 2034 and 3463 (enhanced status codes), RFC 2920 (PIPELINING),
    RFC 6152 (8BITMIME), RFC 6531 (SMTPUTF8), RFC 3030 (CHUNKING), RFC 3461 (DSN), RFC 9422 (LIMITS), RFC 3848 (ESMTPSA), RFC 6066 (SNI), PROXY protocol 1 and 2

DIAGNOSTICS
    One line for each message accepted, each refusal and each failed login, with the client's address; a password is
    never logged. Exit status 78: a setting or credential is wrong, a port is taken, or the certificate cannot be used.

CONFIGURATION
    [inbound], [bans], [mail], [database], [bus]; credentials pepper, bus_client_key, database_password.
    Certificates that change on disk are used for new connections within seconds. Peers in `proxy_trusted` begin with a
    PROXY header and are closed without a word if they do not.
    A client that guesses at passwords is answered ever more slowly and then banned: see `remails bans`.
    Sockets of systemd named smtps, submission and alternate go before the ports of [inbound].
"""

import asyncio
import errno
import ipaddress
import math
import socket
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from remails import metrics, service, workers
from remails.bus.client import Publisher
from remails.config import Inbound, Settings
from remails.db import Database
from remails.errors import ConfigError
from remails.guard import Guard, network_of
from remails.inbound import proxy
from remails.inbound.certificates import Certificates
from remails.inbound.handler import Handler
from remails.inbound.intake import Intake
from remails.inbound.session import Session, address_of
from remails.logs import Log
from remails.store import server as database_server
from remails.vault import Pepper

log = Log("remails.inbound")

SMTPS, SUBMISSION, ALTERNATE = "smtps", "submission", "alternate"

_BACKLOG = 2048
_HANDSHAKE_TIMEOUT = 30.0
_SHUTDOWN_TIMEOUT = 5.0
_ABORT_TIMEOUT = 10.0
_PROXY_TIMEOUT = 5.0
_OPENING_TIMEOUT = 2.0
_RELOAD_INTERVAL = 2.0
_ACCEPTED_IN_TURN = 50
_ACCEPT_PAUSE = 0.5
_ADVICE = {
    errno.EADDRINUSE: "it is in use, stop the other program or set another port",
    errno.EACCES: "not allowed to this user, let systemd pass the socket or set a port above 1023",
    errno.EADDRNOTAVAIL: "this host does not have the address, set inbound.host",
}


def main(settings: Settings) -> None:
    """Take mail until SIGTERM."""
    sockets: Mapping[str, Sequence[socket.socket]] = service.listen_fds()
    processes = settings.inbound.processes
    try:
        if not sockets and processes > 1:
            sockets = {name: [sock] for name, sock in _bound(settings.inbound)}
    except ConfigError as error:
        service.fail("inbound", error)
    workers.run("inbound", settings, lambda stop, _: serve(settings, stop, sockets), processes)


async def serve(settings: Settings, stop: asyncio.Event, passed: Mapping[str, Sequence[socket.socket]]) -> None:
    """Take mail until `stop`, on the sockets `passed` or else on the ports of the settings. Raises ConfigError."""
    pepper = Pepper(settings.credential("pepper"))
    publisher = Publisher(settings.bus, settings.bus_client_key())
    patience = settings.database.wait_timeout
    db = Database(settings.database, settings.database_password(), "inbound", lock_timeout=patience)
    guard = Guard(settings.bans, "inbound", settings.inbound.proxy_trusted)
    handler = Handler(db, publisher, pepper, settings.mail, guard)
    certificates = Certificates(settings.inbound)
    intake = Intake(settings.inbound, settings.mail.max_size)
    server = Server(settings, handler, certificates, guard, intake)

    async def reload() -> None:
        certificates.reload()

    async def look() -> str:
        await db.call(database_server.check)
        return f"taking mail on {', '.join(server.names)}"

    async def sync() -> None:
        await db.call(guard.sync)

    repeating = [
        asyncio.create_task(service.forever("certificates", stop, _RELOAD_INTERVAL, reload)),
        asyncio.create_task(service.forever("bans", stop, settings.bans.sync_interval, sync)),
    ]
    try:
        publisher.open()
        db.open()
        server.listen(passed)
        telling = asyncio.create_task(service.report(stop, look))
        await stop.wait()
        await server.drain()
        await handler.flush()
        await telling
    finally:
        for task in repeating:
            task.cancel()
        server.close()
        intake.close()
        await db.finish()
        db.close()
        publisher.close()


class Server:
    """The listeners of this process, and the sessions that came in by them.

    A connection is accepted without TLS and goes on in a task of its own: a PROXY header from a trusted peer, the TLS
    handshake where TLS begins at once, then the session. So nobody waits for a peer that is slow.
    """

    def __init__(
        self, settings: Settings, handler: Handler, certificates: Certificates, guard: Guard, intake: Intake
    ) -> None:
        self._settings, self._handler, self._certificates = settings, handler, certificates
        self._guard, self._intake = guard, intake
        self._trusted = [ipaddress.ip_network(network) for network in settings.inbound.proxy_trusted]
        self._listeners: dict[socket.socket, str] = {}
        self._opening: set[asyncio.Task[None]] = set()
        self._sessions: set[Session] = set()
        self._clients: Counter[str] = Counter()
        self._handshakes: Counter[str] = Counter()
        """How many TLS handshakes each client's network has under way, on the port where TLS begins at once."""

    def listen(self, passed: Mapping[str, Sequence[socket.socket]]) -> None:
        """Open the listeners: on sockets passed by systemd, or else on the ports of the settings.

        Raises:
            ConfigError: a port cannot be had, or there is nothing to listen on.
        """
        if unknown := set(passed) - {SMTPS, SUBMISSION, ALTERNATE}:
            raise ConfigError(f"socket {min(unknown)!r}: FileDescriptorName= must be smtps, submission or alternate")
        for name, sockets in passed.items():
            for sock in sockets:
                self._listen(name, sock)
        if not passed:
            for name, sock in _bound(self._settings.inbound):
                self._listen(name, sock)
        if not self._listeners:
            raise ConfigError("inbound: nothing to listen on, set smtps_port, submission_port or alternate_port")

    @property
    def names(self) -> list[str]:
        """Which listeners there are."""
        return sorted(set(self._listeners.values()))

    def _listen(self, name: str, sock: socket.socket) -> None:
        sock.listen(_BACKLOG)
        self._listeners[sock] = name
        self._watch(sock)
        log.info("listening", listener=name, address=_shown(sock))

    def _watch(self, sock: socket.socket) -> None:
        if sock in self._listeners:
            asyncio.get_running_loop().add_reader(sock, self._accept, sock)

    def _accept(self, sock: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        # With other processes on the same socket a few at a time, or the first to wake would have them all.
        for _ in range(_ACCEPTED_IN_TURN if self._settings.inbound.processes == 1 else 2):
            try:
                connection, _peer = sock.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                # Out of files or memory: the clients stay in the backlog for a moment.
                log.warning("cannot accept", reason=error)
                loop.remove_reader(sock)
                loop.call_later(_ACCEPT_PAUSE, self._watch, sock)
                return
            connection.setblocking(False)
            task = loop.create_task(self._open(connection, tls=self._listeners[sock] == SMTPS))
            self._opening.add(task)
            task.add_done_callback(self._opening.discard)

    async def _open(self, connection: socket.socket, *, tls: bool) -> None:
        """Bring a connection to where its session begins."""
        client = "unknown"
        try:
            client, speaks_for_itself = await self._client(connection)
            if seconds := self._guard.banned(network_of(client)):
                metrics.SMTP_CONNECTIONS.add(outcome="banned")
                return await _turn_away(connection, client, seconds, speaks=not tls)
            if len(self._opening) > self._settings.inbound.max_connections:
                raise OSError("too many connections are being opened")
            if tls:
                await self._open_tls(connection, client)
            else:
                await asyncio.get_running_loop().connect_accepted_socket(lambda: self._session(client), connection)
            metrics.SMTP_CONNECTIONS.add(outcome="check" if speaks_for_itself else "served")
        except (proxy.BadHeader, EOFError, OSError) as error:
            # TimeoutError and SSLError are OSErrors.
            metrics.SMTP_CONNECTIONS.add(outcome="failed")
            log.info("connection not opened", client=client, reason=str(error) or type(error).__name__)
            connection.close()
        except asyncio.CancelledError:
            connection.close()
            raise
        return None

    async def _open_tls(self, connection: socket.socket, client: str) -> None:
        """The handshake. There is no session yet to count, so those of one client have a limit of their own, or one could
        take the room of all by saying nothing."""
        network = network_of(client)
        if self._handshakes[network] >= self._settings.inbound.max_connections_per_client:
            raise OSError("too many connections of this client are being opened")
        self._handshakes[network] += 1
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: self._session(client),
                connection,
                ssl=self._certificates.context,
                ssl_handshake_timeout=_HANDSHAKE_TIMEOUT,
                ssl_shutdown_timeout=_SHUTDOWN_TIMEOUT,
            )
        finally:
            self._handshakes[network] -= 1
            if not self._handshakes[network]:
                del self._handshakes[network]

    async def _client(self, connection: socket.socket) -> tuple[str, bool]:
        """The address of who speaks, the peer or whom a trusted peer speaks for; and whether that is a proxy for itself, which looks
        how we are."""
        peer = address_of(connection.getpeername())
        if not self._trusts(peer):
            return peer, False
        try:
            async with asyncio.timeout(_PROXY_TIMEOUT):
                told = await proxy.client(connection)
                return told or peer, told is None
        except (proxy.BadHeader, EOFError, OSError) as error:
            raise proxy.BadHeader(f"trusted proxy {peer}: {str(error) or 'no PROXY header in time'}") from None

    def _trusts(self, peer: str) -> bool:
        if not self._trusted:
            return False
        address = ipaddress.ip_address(peer.partition("%")[0])
        return any(address in network for network in self._trusted)

    def _session(self, client: str) -> Session:
        return Session(
            self._handler, self._settings, self._certificates, self._intake, self._sessions, self._clients, client
        )

    async def drain(self) -> None:
        """Take no more connections, and wait until the sessions have come to an end."""
        self.close()
        await self._opened()
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
        for sock in self._listeners:
            asyncio.get_running_loop().remove_reader(sock)
            sock.close()
        self._listeners.clear()

    async def _opened(self) -> None:
        """Wait until whoever was accepted has a session, or give it up."""
        if self._opening:
            _, late = await asyncio.wait(self._opening, timeout=_OPENING_TIMEOUT)
            for task in late:
                task.cancel()


async def _turn_away(connection: socket.socket, client: str, seconds: float, *, speaks: bool) -> None:
    """End the connection of a banned client. Where TLS comes first it hears no reason: a handshake is what costs us most."""
    log.debug("banned client turned away", client=client)
    with connection:
        if speaks:
            minutes = math.ceil(seconds / 60)
            text = f"421 4.7.0 Too many failed logins from your network, try again in {minutes} minutes\r\n"
            await asyncio.get_running_loop().sock_sendall(connection, text.encode())


def _bound(settings: Inbound) -> Iterator[tuple[str, socket.socket]]:
    """A socket for each port of the settings, by name. Raises ConfigError."""
    ports = {SMTPS: settings.smtps_port, SUBMISSION: settings.submission_port, ALTERNATE: settings.alternate_port}
    for name, port in ports.items():
        if port:
            yield name, _bind(settings.host, port, f"inbound.{name}_port")


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
