"""Dialogues with remote servers, each bound to the chosen source address.

    connect -> Session: greeted, perhaps secured --> offer(message) --> a Reply for each recipient --> kept for the next one

Nothing but `Reply` values leaves this module: every timeout, reset and TLS failure becomes one that knows how far the dialogue had
come. The socket is made, bound and connected here, so that an address that is not on this host is told apart from a remote
server that does not answer. Where a server offers PIPELINING, MAIL, every RCPT and DATA leave in one write (RFC 2920), and the
reply to each is read in its turn.

A kept session may have died meanwhile. Its next message begins with RSET: when that is not answered by 250 the session is `Gone`, and
nothing of the message has been sent.
"""

import asyncio
import contextlib
import errno
import socket
import ssl
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import cast

import aiosmtplib
from aiosmtplib.esmtp import parse_esmtp_extensions

from remails.config import Outbound
from remails.errors import Unavailable
from remails.mail import dane, dsn, reply, retry
from remails.mail.reply import Phase, Reply
from remails.outbound.protocol import Exchange, Protocol
from remails.outbound.route import Target
from remails.outbound.security import Secured, Security, Trust, presented, server_name, trust

_BLOCK = 256 * 1024
_FRESH = 1.0
"""Seconds from asking whether a message is still ours to send to the first octet of it: far less than a lease."""
_LAST_WORD = 2.0  # seconds for the answer to QUIT, and for the end of TLS


@dataclass(frozen=True, slots=True)
class Envelope:
    """What to send to one destination."""

    mail_from: str
    recipients: Sequence[str]
    wire: bytes
    """The signed message."""
    eight_bit: bool
    seven_bit: Callable[[], Awaitable[bytes | None]]
    """The same message in seven bits, signed anew, for a server without 8BITMIME; None when that cannot be."""
    smtputf8: bool
    begin: Callable[[Sequence[str]], Mapping[str, asyncio.Future[bool]]]
    """Notes durably that the message may be on its way to these; false for whom it is no longer ours to send."""
    asked: dsn.Asked = dsn.NOTHING
    """What the sender wants to be told; passed on to a server that offers DSN."""
    asked_of: Mapping[str, dsn.AskedOf] = field(default_factory=dict)
    """The same of single recipients."""


class SourceMissing(Exception):
    """The source address is not on this host: a trouble of ours, no attempt."""


class Gone(Exception):
    """A kept session is no longer there. Nothing of the message was sent."""


class Broken(Exception):
    """The dialogue cannot go on; carries the reply for all who have none yet."""

    def __init__(self, why: Reply) -> None:
        super().__init__(why.line)
        self.reply = why


@dataclass(frozen=True, slots=True)
class Place:
    """Where a session starts and ends."""

    target: Target
    source: str
    """The local address it is bound to."""
    ehlo_name: str
    """The name that the PTR record of the source says (RFC 5321 §4.1.1.1)."""
    security: Security


async def connect(settings: Outbound, place: Place) -> "Session":
    """Open a session.

    Raises:
        SourceMissing: the source cannot be bound.
        Broken: there is no session with this server as secure as is asked.
    """
    try:
        return await _opened(settings, place)
    except Broken as broken:
        if broken.reply.phase is not Phase.TLS or place.security.is_required:
            raise
        failure = broken.reply.text
    # RFC 7435 §3: opportunistic; a server whose TLS is broken gets the mail in the clear.
    return await _opened(settings, place, failure)


async def _opened(settings: Outbound, place: Place, failure: str | None = None) -> "Session":
    protocol = await _connected(settings, place)
    session = Session(settings, place, protocol)
    try:
        await session.greet(failure)
    except BaseException:
        session.abort()
        raise
    return session


async def _connected(settings: Outbound, place: Place) -> Protocol:
    loop = asyncio.get_running_loop()
    target, source = place.target, place.source
    sock = _bound(source)
    where = f"{target.host} [{target.ip}]"
    started = time.monotonic()
    try:
        async with asyncio.timeout(settings.connect_timeout):
            await loop.sock_connect(sock, (target.ip, settings.port))
        _, protocol = await loop.create_connection(Protocol, sock=sock)
        protocol.dialogue.append(Exchange("(connect)", "", round((time.monotonic() - started) * 1000)))
    except TimeoutError:
        sock.close()
        raise Broken(reply.lost(Phase.CONNECT, f"no answer from {where}")) from None
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRNOTAVAIL:
            raise SourceMissing(f"cannot send from {source}: {error.strerror}") from None
        raise Broken(reply.lost(Phase.CONNECT, f"cannot connect to {where}: {error.strerror}")) from None
    except BaseException:
        sock.close()
        raise
    return protocol


def _bound(source: str) -> socket.socket:
    family = socket.AF_INET6 if ":" in source else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        # The port is chosen at connect, so that one address can have more connections than it has ports.
        sock.setsockopt(socket.IPPROTO_IP, getattr(socket, "IP_BIND_ADDRESS_NO_PORT", 24), 1)
        sock.bind((source, 0))
    except OSError as error:
        sock.close()
        raise SourceMissing(f"cannot send from {source}: {error.strerror}") from None
    return sock


@dataclass(slots=True)
class _Transaction:
    """The replies of one MAIL ... final dot."""

    replies: dict[str, Reply] = field(default_factory=dict)
    accepted: list[str] = field(default_factory=list)


class Session:
    """One connection to one server. `connect` makes it; `offer` sends one message; it may be kept while `usable`."""

    def __init__(self, settings: Outbound, place: Place, protocol: Protocol) -> None:
        self.place = place
        self.secured = Secured(place.security.policy, note=place.security.note)
        self.messages = 0
        """Messages offered so far."""
        self.idle_since = 0.0
        self._settings, self._protocol = settings, protocol
        self._extensions: dict[str, str] = {}

    @property
    def usable(self) -> bool:
        """Whether another message may be offered, as far as one can know."""
        return (
            self._protocol.is_connected
            and not self._protocol.stale
            and self.messages < self._settings.messages_per_connection
        )

    async def greet(self, failure: str | None) -> None:
        """Read the banner, say EHLO, start TLS unless it was tried and was a `failure`. Raises Broken."""
        with _phase(Phase.BANNER):
            code, text = await self._protocol.read_response(self._settings.command_timeout)
        if code != 220:
            raise Broken(reply.of(Phase.BANNER, code, text))
        await self._hello()
        if failure is None:
            await self._start_tls()
        else:
            self.secured = self.secured.but(f"TLS failed, so it went in the clear: {failure}")

    async def offer(self, envelope: Envelope) -> dict[str, Reply]:
        """Offer a message to all its recipients, in as many transactions as the server needs; their replies.

        Raises:
            Gone: the session was kept and has died; nothing was sent.
        """
        begun = self.messages > 0
        self.messages += 1
        if begun:
            self._protocol.dialogue.clear()
        replies: dict[str, Reply] = {}
        waiting = list(envelope.recipients)
        while waiting:
            batch = waiting[: self._settings.recipients_per_transaction]
            try:
                transaction = await self._transact(envelope, batch, reset=begun)
            except Gone:
                if not replies:
                    raise
                replies.update(dict.fromkeys(waiting, reply.lost(Phase.MAIL, "the connection was closed")))
                break
            begun = True
            replies.update(transaction.replies)
            # RFC 5321 §4.5.3.1.10: too many recipients for one transaction, the rest in another one at once
            surplus = [one for one in batch if retry.asks_for_another_transaction(replies[one])]
            waiting = [*(surplus if transaction.accepted else []), *waiting[len(batch) :]]
        return replies

    def dialogue(self, recipient: str) -> list[Exchange]:
        """What was said about the last message, with the server or of this recipient."""
        own = f"RCPT TO:<{recipient}>"
        said = self._protocol.dialogue
        return [one for one in said if not one.command.startswith("RCPT ") or f"{one.command} ".startswith(f"{own} ")]

    async def close(self) -> None:
        """Say QUIT, end TLS and close; in bounded time."""
        with contextlib.suppress(aiosmtplib.SMTPException, OSError, ValueError, RuntimeError):
            await self._protocol.execute_command(b"QUIT", timeout=_LAST_WORD)
        if self._protocol.transport is not None:
            with contextlib.suppress(AttributeError):  # Python 3.11.2, when TLS is closed already
                self._protocol.transport.close()
        # Below TLS the socket stays open until the server has ended TLS too: when the loop ends before, it is never closed.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LAST_WORD):
                await self._protocol.ended.wait()
        self.abort()

    def abort(self) -> None:
        """Close without a word."""
        if (transport := cast(asyncio.WriteTransport | None, self._protocol.transport)) is not None:
            with contextlib.suppress(AttributeError):  # Python 3.11.2, when TLS is closed already
                transport.abort()

    async def _command(self, line: str) -> tuple[int, str]:
        return await self._protocol.execute_command(line.encode(), timeout=self._settings.command_timeout)

    async def _hello(self) -> None:
        self._extensions = {}
        with _phase(Phase.EHLO):
            code, text = await self._command(f"EHLO {self.place.ehlo_name}")
            if code == 250:
                self._extensions, _ = parse_esmtp_extensions(text)
                return
            if code // 100 == 5:
                code, text = await self._command(f"HELO {self.place.ehlo_name}")  # RFC 5321 §3.2: an old server
        if code != 250:
            raise Broken(reply.of(Phase.EHLO, code, text))

    async def _start_tls(self) -> None:
        security, host = self.place.security, self.place.target.host
        if "starttls" not in self._extensions:
            if security.is_required:
                raise self._insecure("4.7.4", f"{host} offers no TLS")
            self.secured = self.secured.but("the server offers no TLS")
            return
        name = server_name(security.server_name or host)
        if name is None and security.is_verified_by_authority:
            raise self._insecure("4.7.5", f"{host} is no name that a certificate can have")
        believed = trust(self._settings.ca_file)
        try:
            with _phase(Phase.TLS):
                await self._protocol.start_tls(
                    believed.context(security),
                    server_hostname=name,
                    timeout=self._settings.command_timeout,
                )
            tls = self._tls()
            self.secured = replace(self._judged(tls, believed), tls=f"{tls.version()} {(tls.cipher() or '?')[0]}")
            await self._hello()  # RFC 3207 §4.2; with TLS 1.3 a handshake that failed shows here first
        except Broken as broken:
            if broken.reply.code is not None and broken.reply.phase is not Phase.TLS:
                raise
            raise self._insecure("4.7.5", f"{host}: {broken.reply.line}") from None

    def _tls(self) -> ssl.SSLObject:
        transport = self._protocol.transport
        tls = transport.get_extra_info("ssl_object") if transport is not None else None
        if tls is None:
            raise Broken(reply.lost(Phase.TLS, "connection lost during tls"))
        return cast(ssl.SSLObject, tls)

    def _judged(self, tls: ssl.SSLObject, believed: Trust) -> Secured:
        """Whether the server has proved its name. Raises Broken when it must have, and has not."""
        security = self.place.security
        if security.is_verified_by_authority:
            return replace(self.secured, verified=True)  # by OpenSSL, in the handshake
        shown, now = presented(tls), datetime.now(UTC)
        if security.tlsa:
            reason = dane.why_not(security.tlsa, shown, security.names, now)
            if reason is not None:
                raise Broken(reply.lost(Phase.TLS, reason))
            return replace(self.secured, verified=True)
        reason = believed.roots.why_not(shown, [self.place.target.host], now)
        return replace(self.secured.but(reason or ""), verified=reason is None)

    def _insecure(self, enhanced: str, text: str) -> Broken:
        because = self.place.security.because
        words = f"{because} requires a secure connection, but {text}" if self.place.security.is_required else text
        return Broken(Reply(Phase.TLS, None, enhanced, reply.printable(words)))

    async def _transact(self, envelope: Envelope, recipients: Sequence[str], *, reset: bool) -> _Transaction:
        transaction = _Transaction()
        begun: Mapping[str, asyncio.Future[bool]] = {}
        asked_at = time.monotonic()
        try:
            wire = await self._fit(envelope)
            mail = f"MAIL {self._mail(envelope, wire)}"
            rcpt = {recipient: f"RCPT {self._rcpt(envelope, recipient)}" for recipient in recipients}
            if "pipelining" in self._extensions:
                begun = _begin(envelope, recipients)  # meanwhile: no connection is held for our database
                await self._pipelined(mail, rcpt, transaction, reset=reset)
            else:
                await self._step_by_step(mail, rcpt, transaction, reset=reset)
            if transaction.accepted:
                if not begun or time.monotonic() - asked_at > _FRESH:
                    begun = _begin(envelope, transaction.accepted)
                await self._ours([begun[recipient] for recipient in transaction.accepted])
                answer = await self._body(wire)
                transaction.replies.update(dict.fromkeys(transaction.accepted, answer))
        except Broken as broken:
            for recipient in recipients:
                transaction.replies.setdefault(recipient, broken.reply)
        if any(answer.code in (None, 421) for answer in transaction.replies.values()):
            self._protocol.stale = True
        return transaction

    async def _is_alive(self) -> None:
        """Read the answer to RSET. Raises Gone."""
        try:
            code, _ = await self._next()
        except (aiosmtplib.SMTPException, OSError):
            code = 0
        if code != 250:
            self._protocol.stale = True
            raise Gone

    async def _fit(self, envelope: Envelope) -> bytes:
        """The message as this server can take it. Raises Broken."""
        if not envelope.eight_bit or "8bitmime" in self._extensions:
            return envelope.wire
        with _outage():
            seven_bit = await envelope.seven_bit()
        if seven_bit is None:
            raise Broken(Reply(Phase.MAIL, 554, "5.6.3", "the server does not take 8-bit content (8BITMIME)"))
        return seven_bit

    def _mail(self, envelope: Envelope, wire: bytes) -> str:
        """The argument of MAIL. Raises Broken when the server cannot take the message."""
        parameters = []
        size = len(wire)
        if "size" in self._extensions:
            limit = self._extensions["size"].strip()
            if limit.isascii() and limit.isdigit() and 0 < int(limit[:20]) < size:  # RFC 1870 §6.1
                text = f"the message of {size} bytes is larger than the server's limit of {limit[:20]}"
                raise Broken(Reply(Phase.MAIL, 552, "5.3.4", text))
            parameters.append(f"SIZE={size}")
        if wire is envelope.wire and envelope.eight_bit:
            parameters.append("BODY=8BITMIME")  # RFC 6152 §3
        if envelope.smtputf8:
            if "smtputf8" not in self._extensions:
                raise Broken(Reply(Phase.MAIL, 553, "5.6.7", "the server does not take addresses in UTF-8 (SMTPUTF8)"))
            parameters.append("SMTPUTF8")  # RFC 6531 §3.4
        asked = envelope.asked.parameters if "dsn" in self._extensions else ""  # RFC 3461 §5.2.1
        return " ".join([f"FROM:<{envelope.mail_from}>", *parameters]) + asked

    def _rcpt(self, envelope: Envelope, recipient: str) -> str:
        """The argument of RCPT."""
        asked = envelope.asked_of.get(recipient, dsn.NOT_ASKED).parameters if "dsn" in self._extensions else ""
        return f"TO:<{recipient}>{asked}"

    def _send(self, *commands: str) -> None:
        self._protocol.ask("".join(f"{command}\r\n" for command in commands).encode(), len(commands))

    async def _step_by_step(
        self, mail: str, rcpt: Mapping[str, str], transaction: _Transaction, *, reset: bool
    ) -> None:
        if reset:
            with contextlib.suppress(aiosmtplib.SMTPServerDisconnected):
                self._send("RSET")
            await self._is_alive()
        with _phase(Phase.MAIL):
            code, text = await self._command(mail)
        _expect(2, Phase.MAIL, code, text)
        for recipient, command in rcpt.items():
            with _phase(Phase.RCPT):
                code, text = await self._command(command)
            _note(recipient, code, text, transaction)
        if transaction.accepted:
            with _phase(Phase.DATA):
                code, text = await self._command("DATA")
            _expect(3, Phase.DATA, code, text)

    async def _pipelined(self, mail: str, rcpt: Mapping[str, str], transaction: _Transaction, *, reset: bool) -> None:
        """RFC 2920 §3.1: the replies come in the order of the commands."""
        commands = [mail, *rcpt.values(), "DATA"]
        with _phase(Phase.MAIL) if not reset else contextlib.suppress(aiosmtplib.SMTPServerDisconnected):
            self._send(*(["RSET"] if reset else []), *commands)
        if reset:
            await self._is_alive()
        with _phase(Phase.MAIL):
            code, text = await self._next()
        refused = None if code // 100 == 2 else reply.of(Phase.MAIL, code, text)
        for recipient in rcpt:
            with _phase(Phase.RCPT) if refused is None else _phase_of(refused):
                code, text = await self._next()
            if refused is None:
                _note(recipient, code, text, transaction)
        with _phase(Phase.DATA) if transaction.accepted else _ended(self._protocol):
            code, text = await self._next()
        if not transaction.accepted:
            if code == 354:
                # It waits for a message for nobody. An empty one could be delivered, so the connection ends here.
                self._protocol.stale = True
                self.abort()
            if refused is not None:
                raise Broken(refused)
            return
        _expect(3, Phase.DATA, code, text)

    async def _next(self) -> tuple[int, str]:
        return await self._protocol.read_response(self._settings.command_timeout)

    async def _ours(self, begun: Sequence[asyncio.Future[bool]]) -> None:
        """Whether the message may be sent. Raises Broken: nothing was, and the server waits for it in vain."""
        is_ours = False
        try:
            with _outage():
                is_ours = all([await one for one in begun])
            if not is_ours:
                raise Broken(
                    Reply(Phase.LOCAL, 451, "4.3.0", "another worker has taken the message over, nothing was sent")
                )
        finally:
            if not is_ours:
                self._protocol.stale = True
                self.abort()

    async def _body(self, wire: bytes) -> Reply:
        """Send the message and its final dot. It is CRLF throughout, so only dots need care (RFC 5321 §4.5.2).

        Until the last block is handed over it cannot have been taken: a loss before that is not ambiguous.
        """
        stuffed = wire.replace(b"\r\n.", b"\r\n..")
        if stuffed.startswith(b"."):
            stuffed = b"." + stuffed
        view = memoryview(stuffed)
        last = max(0, (len(view) - 1) // _BLOCK * _BLOCK)
        self._protocol.ask(b"", 1)
        for start in range(0, last, _BLOCK):
            refusal = await self._block(bytes(view[start : start + _BLOCK]))
            if refusal is not None:
                return refusal
        end = b".\r\n" if stuffed.endswith(b"\r\n") else b"\r\n.\r\n"
        with _phase(Phase.BODY):
            self._protocol.write(b"".join((view[last:], end)))
            code, text = await self._protocol.read_response(self._settings.data_timeout)
        return reply.of(Phase.BODY, code, text)

    async def _block(self, block: bytes) -> Reply | None:
        """Send a part of the message; the reply when the server ends it early."""
        try:
            self._protocol.write(block)
            async with asyncio.timeout(self._settings.block_timeout):  # RFC 5321 §4.5.3.2.5
                await self._protocol.drain()
        except (aiosmtplib.SMTPException, OSError):
            self._protocol.stale = True
            with _phase(Phase.DATA):
                code, text = await self._protocol.read_response(_LAST_WORD)
            return reply.of(Phase.DATA, code, text)
        return None


def _begin(envelope: Envelope, recipients: Sequence[str]) -> Mapping[str, asyncio.Future[bool]]:
    begun = envelope.begin(recipients)
    for note in begun.values():
        note.add_done_callback(_heard)
    return begun


def _heard(note: asyncio.Future[bool]) -> None:
    """Nobody waits for it any more when the envelope was refused; asyncio wants each error to be looked at."""
    if not note.cancelled():
        note.exception()


def _expect(digit: int, phase: Phase, code: int, text: str) -> None:
    if code // 100 != digit:
        raise Broken(reply.of(phase, code, text))


def _note(recipient: str, code: int, text: str, transaction: _Transaction) -> None:
    if code // 100 == 2:
        transaction.accepted.append(recipient)
        return
    transaction.replies[recipient] = reply.of(Phase.RCPT, code, text)
    if code == 421:  # RFC 5321 §3.8: the server is about to close the connection
        raise Broken(transaction.replies[recipient])


@contextlib.contextmanager
def _outage() -> Iterator[None]:
    """Turn the absence of our own database into a reply, so that what was answered before is kept."""
    try:
        yield
    except Unavailable as error:
        raise Broken(Reply(Phase.LOCAL, 451, "4.3.0", f"nothing was sent: {error}")) from None


@contextlib.contextmanager
def _phase(phase: Phase) -> Iterator[None]:
    """Turn whatever goes wrong in here into the reply of this phase."""
    try:
        yield
    except aiosmtplib.SMTPResponseException as error:
        raise Broken(
            reply.of(phase, error.code, error.message) if error.code > 0 else reply.lost(phase, error.message)
        ) from None
    except ssl.SSLCertVerificationError as error:
        raise Broken(reply.lost(phase, f"its certificate is not valid: {error.verify_message}")) from None
    except ssl.SSLError as error:
        words = (error.reason or str(error)).replace("_", " ").lower()
        raise Broken(reply.lost(phase, f"the TLS handshake failed: {words}")) from None
    except (aiosmtplib.SMTPTimeoutError, TimeoutError):
        raise Broken(reply.lost(phase, f"timed out during {phase}")) from None
    except (aiosmtplib.SMTPException, OSError) as error:
        raise Broken(reply.lost(phase, f"connection lost during {phase}: {error}")) from None


@contextlib.contextmanager
def _phase_of(refused: Reply) -> Iterator[None]:
    """What was refused stays refused, however the dialogue ends."""
    try:
        yield
    except (aiosmtplib.SMTPException, OSError):
        raise Broken(refused) from None


@contextlib.contextmanager
def _ended(protocol: Protocol) -> Iterator[None]:
    """Every recipient has an answer; only the connection is lost."""
    try:
        yield
    except (aiosmtplib.SMTPException, OSError):
        protocol.stale = True
