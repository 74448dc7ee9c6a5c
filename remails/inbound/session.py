"""The dialogue with one client: RFC 5321, as RFC 6409 wants it for submission.

`Session` is aiosmtpd's protocol. What it keeps of it is the connection: transport, reader, task. The task is one loop: read a
line, call the `smtp_` method of its verb, which says its reply. What takes more than the dialogue to know is asked of the
handler; and whatever is raised on the way, the handler turns into a reply.

    connection_made -> greeting -> [ line -> smtp_VERB -> handler -> reply ]* -> 221 or 421 -> close

Replies are written without waiting, so that a group of commands (RFC 2920) is answered in one go; only a client that
does not read them is waited for, before its next command. One timer runs while we wait for the client, and only then.
It is not renewed before a login: nobody holds a connection for longer than `inbound.timeout` without a credential.
"""

import asyncio
import base64
import contextlib
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator

from aiosmtpd import smtp

from remails import metrics
from remails.config import Settings
from remails.errors import Refused
from remails.guard import network_of
from remails.inbound import auth, data, syntax
from remails.inbound.certificates import Certificates
from remails.inbound.handler import Handler
from remails.inbound.intake import Incoming, Intake
from remails.inbound.transaction import Client, Envelope
from remails.logs import Log

log = Log("remails.inbound")

_MAX_ERRORS = 10
_MAX_FAILED_LOGINS = 3
_MAX_SKIPPED = 1024 * 1024  # bytes of an overlong line
_LINES_IN_TURN = 50

_HANDSHAKE_TIMEOUT = 30.0
_DATA_TIMEOUTS = 12  # a message may take so many times `inbound.timeout` as long as something arrives
_GRACE = 1.0  # seconds in which a client may still speak first before we leave
_LINGER = 5.0  # seconds for a client to take our last reply

# A browser can be made to send us a request that goes on as SMTP.
_HTTP = {"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "CONNECT", "TRACE", "PATCH", "PRI"}


class Session(smtp.SMTP):
    """The protocol of one connection.

    Args:
        handler: the policy.
        certificates: for STARTTLS; where a listener begins with TLS, the transport has it already.
        sessions: all sessions of this process; each enters and leaves by itself.
        intake: room for the messages of all sessions.
        clients: how many of them each client's network has.
        client: address of the client, which a proxy may have told.
    """

    line_length_limit = data.BLOCK  # of the reader; what a command may have is checked apart
    session: Client
    envelope: Envelope

    def __init__(
        self,
        handler: Handler,
        settings: Settings,
        certificates: Certificates,
        intake: Intake,
        sessions: set["Session"],
        clients: Counter[str],
        client: str,
    ) -> None:
        super().__init__(
            None,  # instead of aiosmtpd's hooks, `handler` is called
            hostname=settings.mail.hostname,
            tls_context=certificates.context,
            timeout=settings.inbound.timeout,
            loop=asyncio.get_running_loop(),
        )
        self._handler = handler
        self._max_size, self._max_recipients = settings.mail.max_size, settings.mail.max_recipients
        self._max_connections = settings.inbound.max_connections
        self._sessions, self._intake = sessions, intake
        self._certificates = certificates
        self._clients, self._client, self._network = clients, client, network_of(client)
        self._max_of_client = settings.inbound.max_connections_per_client
        self._login_until = self.loop.time() + settings.inbound.timeout
        self._data_until: float | None = None
        self._heard = self._waiting = self._draining = False
        self._verb = ""
        self._errors = self._lines = 0

    def __dir__(self) -> list[str]:
        # aiosmtpd looks at all of dir() for commands whenever a client connects; that took longer than the greeting.
        return _COMMANDS

    def _create_session(self) -> Client:
        return Client(self.loop)

    def _set_rset_state(self) -> None:
        self._forget_message()
        self.envelope = Envelope()

    def _forget_message(self) -> None:
        if self.envelope is not None and self.envelope.incoming is not None:
            self.envelope.incoming.close()

    # --- the connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Enter; the base class starts the task."""
        super().connection_made(transport)
        self._sessions.add(self)
        metrics.SMTP_SESSIONS.add()
        self._clients[self._network] += 1
        self.session.address = self._client
        self._note_tls()

    def data_received(self, data: bytes) -> None:
        """Take what has arrived."""
        if self._data_until is not None:
            # RFC 5321 §4.5.3.2.5: the time limit is on a block, not on the message.
            self._reset_timeout(min(self._timeout_duration, self._data_until - self.loop.time()))
        if not self._heard and self.session.ssl is None and data.startswith(b"\x16\x03"):
            # A ClientHello: its client would wait for ours until its patience ends.
            return self._dismiss("500 5.5.1 TLS begins with STARTTLS on this port")
        self._heard = True
        return super().data_received(data)

    def eof_received(self) -> bool | None:
        """The client says no more, but may still read; commands that came before are carried out."""
        # Past aiosmtpd, which would cancel the task, and with it a message that is being committed.
        return asyncio.StreamReaderProtocol.eof_received(self)

    def connection_lost(self, error: Exception | None) -> None:
        """The connection is gone; the task finds out at its next read."""
        self._disarm()
        asyncio.StreamReaderProtocol.connection_lost(self, error)
        self.transport = None

    @property
    def task(self) -> "asyncio.Task[None]":
        """Ends when the connection is closed and nothing of it is being stored any more."""
        assert self._handler_coroutine is not None
        return self._handler_coroutine

    def drain(self) -> None:
        """Begin no other transaction, and leave soon."""
        self._draining = True
        if self._waiting:
            self._arm()

    def abort(self) -> None:
        """Leave now, except where a message is complete: its client shall hear that it is stored."""
        if self._waiting or self._data_until is not None:
            self._dismiss("421 4.3.2 Service is shutting down")

    def _note_tls(self) -> None:
        connection = self._writer.get_extra_info("ssl_object")
        if connection is not None:
            self.session.ssl = {"version": connection.version(), "cipher": connection.cipher()[0]}

    def _gone(self) -> bool:
        return self.transport is None or self.transport.is_closing()

    def _arm(self) -> None:
        """Wait for the client as long as it may take now."""
        limit = self._timeout_duration
        if self.session.sender is None:
            limit = max(self._login_until - self.loop.time(), 0.001)
        if self._draining and self.envelope.reverse_path is None:
            limit = min(limit, _GRACE)
        self._reset_timeout(limit)

    def _disarm(self) -> None:
        if self._timeout_handle is not None:
            self._timeout_handle.cancel()

    def _timeout_cb(self) -> None:
        # RFC 5321 §3.8 and §4.2.3: a server that must end a session says 421.
        self._dismiss(
            "421 4.3.2 Service is shutting down" if self._draining else "421 4.4.2 Timeout, closing the connection"
        )

    def _dismiss(self, status: str) -> None:
        """Say a last reply and close."""
        self.reply(status)
        if not self._gone():
            self._writer.close()
            self._disarm()
            self._timeout_handle = self.loop.call_later(_LINGER, self._writer.transport.abort)

    # --- the loop

    async def _handle_client(self) -> None:
        try:
            await self._converse()
        except (EOFError, OSError) as error:
            if self.envelope.reverse_path is not None:
                log.info("connection lost", client=self.session.address, user=self.session.username, reason=error)
        except Exception:
            log.exception("session failed", client=self.session.address)
            self._dismiss("421 4.3.0 Internal error")
        finally:
            self._forget_message()
            await self._leave()
            self._sessions.discard(self)
            metrics.SMTP_SESSIONS.add(-1)
            self._clients[self._network] -= 1
            if not self._clients[self._network]:
                del self._clients[self._network]

    async def _leave(self) -> None:
        if self.transport is not None:
            self._writer.close()
            with contextlib.suppress(OSError):
                async with asyncio.timeout(_LINGER):
                    await self._writer.wait_closed()
            self._writer.transport.abort()

    async def _converse(self) -> None:
        if len(self._sessions) > self._max_connections:
            return self._dismiss("421 4.3.2 Too many connections, try again later")
        if self._clients[self._network] > self._max_of_client:
            return self._dismiss("421 4.7.0 Too many connections from your address, close some first")
        self.reply(f"220 {self.hostname} ESMTP")
        while not self._gone():
            await self._turn()
            if self.session.failed_logins >= _MAX_FAILED_LOGINS:
                return self._dismiss("421 4.7.0 Too many failed logins")
            if self._errors >= _MAX_ERRORS:
                return self._dismiss("421 4.7.0 Too many errors")
        return None

    async def _turn(self) -> None:
        try:
            verb, argument = syntax.command(await self._line())
            if self._draining and self.envelope.reverse_path is None:
                return self._dismiss("421 4.3.2 Service is shutting down")
            await self._method(verb)(argument)
        except (EOFError, ConnectionError):
            raise
        except Exception as error:
            if error is self._reader.exception():
                raise
            self.reply(self._handler.explain(error))
        return None

    def _method(self, verb: str) -> Callable[[str], Awaitable[None]]:
        method: Callable[[str], Awaitable[None]] | None = self._smtp_methods.get(verb)
        # What is no command is not logged: it may be the password of a client that is out of step.
        self._verb = verb if method is not None else ""
        if method is None and verb in _HTTP:
            self._errors = _MAX_ERRORS
            raise Refused(554, "5.5.1", "This is not an HTTP server", status=400)
        if method is None:
            raise Refused(500, "5.5.1", "Command not recognized", status=400)
        return method

    async def _line(self) -> bytes:
        """The client's next line, without its end. Raises Refused (500) if that is not CRLF, or more than `data.BLOCK` away."""
        self._waiting = True
        self._arm()
        try:
            await self._take_turns()
            line = await self._reader.readuntil(b"\n")
        except asyncio.LimitOverrunError as overrun:
            await self._skip_line(overrun.consumed)
            raise syntax.too_long() from None
        finally:
            self._waiting = False
            self._disarm()
        if not line.endswith(b"\r\n"):
            raise syntax.unreadable("A line ends with CR LF")  # RFC 5321 §2.3.8
        return line[:-2]

    async def _take_turns(self) -> None:
        """Let other sessions work while a client has more commands in our buffer, or does not read our replies."""
        self._lines += 1
        if self._lines % _LINES_IN_TURN == 0:
            await asyncio.sleep(0)
        await self._writer.drain()

    async def _skip_line(self, overrun: int) -> None:
        skipped = 0
        while skipped < _MAX_SKIPPED:
            skipped += len(await self._reader.readexactly(overrun))
            try:
                await self._reader.readuntil(b"\n")
                return
            except asyncio.LimitOverrunError as error:
                overrun = error.consumed
        self._dismiss("421 4.7.0 Endless line")

    def reply(self, status: str) -> None:
        """Say a reply, which may have several lines; a refusal is logged."""
        if self._gone():
            return
        if status[0] in "45":
            self._note_refusal(status)
        self._writer.write(status.encode("ascii", "backslashreplace") + b"\r\n")

    def _note_refusal(self, status: str) -> None:
        client = self.session
        metrics.SMTP_REFUSALS.add(command=self._verb or "none", code=" ".join(status.split(" ", 2)[:2]))
        log.info("refused", client=client.address, user=client.username, command=self._verb or None, reply=status)
        # Of someone who has logged in only what is no SMTP counts: a list may well have many bad recipients, and a client that
        # sends its commands in groups has said RCPT and DATA before it hears that MAIL was refused (RFC 2920 §3.1).
        is_no_smtp = status[4:7] == "5.5" and status[:3] not in ("503", "554")
        if status[0] == "5" and (client.sender is None or is_no_smtp):
            self._errors += 1

    # --- commands (RFC 5321 §4.1.1); the base class finds them by their names

    async def smtp_EHLO(self, hostname: str) -> None:
        """Begin anew, and say what we offer."""
        if not self._greet(hostname):
            return
        *offers, last = [
            self.hostname,
            "PIPELINING",
            f"SIZE {self._max_size}",
            "8BITMIME",
            "SMTPUTF8",
            "CHUNKING",
            "DSN",
            f"LIMITS RCPTMAX={self._max_recipients}",  # RFC 9422 §4.2
            "AUTH PLAIN LOGIN" if self.session.ssl else "STARTTLS",
            "ENHANCEDSTATUSCODES",
        ]
        self.reply("".join(f"250-{offer}\r\n" for offer in offers) + f"250 {last}")

    async def smtp_HELO(self, hostname: str) -> None:
        """Begin anew; without extensions there is no AUTH, and so no mail."""
        if self._greet(hostname):
            self.reply(f"250 {self.hostname}")

    def _greet(self, hostname: str) -> bool:
        if not hostname:
            self.reply(f"501 5.5.4 Syntax: {self._verb} hostname")
            return False
        self._set_rset_state()  # RFC 5321 §4.1.4; who has logged in stays logged in
        self.session.host_name = hostname
        return True

    async def smtp_STARTTLS(self, argument: str) -> None:
        """Go on under TLS, as if nothing had been said before (RFC 3207 §4.2)."""
        if argument:
            return self.reply("501 5.5.4 Syntax: STARTTLS")
        if self.session.ssl is not None:
            return self.reply("503 5.5.1 TLS is active already")
        self.reply("220 2.0.0 Ready to start TLS")
        await self._writer.drain()
        # What was sent in the clear behind STARTTLS must not be taken for something said under TLS.
        self._reader._buffer.clear()  # type: ignore[attr-defined]  # the reader offers no way to drop what it has
        await self._start_tls()
        self._set_rset_state()
        self.session = self._create_session()
        self.session.address = self._client
        self._note_tls()
        return None

    async def _start_tls(self) -> None:
        try:
            await self._writer.start_tls(self._certificates.context, ssl_handshake_timeout=_HANDSHAKE_TIMEOUT)
        except OSError as error:
            # uvloop tells the one who waits for a handshake, and not the protocol.
            self.connection_lost(error)
            raise ConnectionAbortedError(f"TLS handshake failed: {error}") from error
        self.transport = self._writer.transport
        self._reader._transport = self.transport  # type: ignore[attr-defined]  # start_tls leaves it the old one

    async def smtp_AUTH(self, argument: str) -> None:
        """Log in (RFC 4954)."""
        mechanism, _, initial = argument.partition(" ")
        if self.session.ssl is None:
            return self.reply("538 5.7.11 Encryption required, say STARTTLS first")
        if not self.session.host_name:
            return self.reply("503 5.5.1 Say EHLO first")
        if self.session.sender is not None:
            return self.reply("503 5.5.1 Already authenticated")
        if not mechanism:
            return self.reply("501 5.5.4 Syntax: AUTH mechanism")
        if mechanism.upper() not in auth.MECHANISMS:
            return self.reply("504 5.5.4 Unrecognized authentication type")
        response = auth.decode(initial) if initial else None
        return self.reply(await self._handler.log_in(self.session, mechanism.upper(), response, self._challenge))

    async def _challenge(self, text: bytes) -> bytes:
        """Send a challenge and wait for the response, both in base64 (RFC 4954 §4).

        Raises:
            Refused: the response is not base64, or the client gave up.
        """
        self.reply(f"334 {base64.b64encode(text).decode()}")
        return auth.decode((await self._line()).decode("latin-1"))

    async def smtp_MAIL(self, argument: str) -> None:
        """Begin a transaction."""
        if not self.session.host_name:
            return self.reply("503 5.5.1 Say EHLO first")
        if self.session.ssl is None:
            return self.reply("530 5.7.0 Must issue a STARTTLS command first")  # RFC 3207 §4
        if self.session.sender is None:
            return self.reply("530 5.7.0 Authentication required")  # RFC 4954 §6
        if self.envelope.reverse_path is not None:
            return self.reply("503 5.5.1 A transaction has begun already")
        path, parameters = syntax.path_and_parameters("FROM", argument)
        self.envelope.asked = syntax.mail_parameters(parameters, self._max_size)
        return self.reply(await self._handler.begin(self.session, self.envelope, path, "SMTPUTF8" in parameters))

    async def smtp_RCPT(self, argument: str) -> None:
        """Add a recipient."""
        if self.envelope.reverse_path is None:
            return self.reply("503 5.5.1 Say MAIL first")
        if self.envelope.chunks is not None:
            return self.reply("503 5.5.1 The message has begun already")
        path, parameters = syntax.path_and_parameters("TO", argument)
        asked = syntax.rcpt_parameters(parameters)
        return self.reply(await self._handler.add_recipient(self.session, self.envelope, path, asked))

    async def smtp_DATA(self, argument: str) -> None:
        """Take the message; whatever comes of it, the transaction ends."""
        if argument:
            return self.reply("501 5.5.4 Syntax: DATA")
        if self.envelope.chunks is not None:
            return self.reply("503 5.5.1 The message has begun in chunks, go on with BDAT")  # RFC 3030 §2
        if refusal := self._nothing_to_send():
            return self.reply(refusal)
        self.reply("354 End data with <CR><LF>.<CR><LF>")
        incoming = self.envelope.incoming = Incoming(self._intake)
        try:
            with self._receiving():
                await data.read(self._reader, incoming.add)
            await self._store(incoming)
        finally:
            self._set_rset_state()
        return None

    async def smtp_BDAT(self, argument: str) -> None:
        """Take a chunk of the message (RFC 3030 §2); after the last one, or a refused one, the transaction has ended.

        What follows BDAT is read as a chunk even where it is refused, so that it is never taken for commands.
        """
        try:
            size, is_last = syntax.chunk(argument)
        except Refused as bad:
            return self._dismiss(bad.reply)  # nobody knows where the next command begins
        envelope = self.envelope
        refusal = "503 5.5.1 A chunk was refused, say RSET" if envelope.is_spoilt else self._nothing_to_send()
        if refusal:
            with self._receiving():
                await data.read_chunk(self._reader, size, _forget)
            return self.reply(refusal)
        if envelope.incoming is None or envelope.chunks is None:
            envelope.incoming, envelope.chunks = Incoming(self._intake), data.Text(stuffed=False)
        incoming, text = envelope.incoming, envelope.chunks

        async def keep(block: bytes) -> None:
            await incoming.add(text.add(block))

        envelope.is_spoilt = True
        with self._receiving():
            await data.read_chunk(self._reader, size, keep)
        if incoming.refusal is not None:
            raise incoming.refusal
        if not is_last:
            envelope.is_spoilt = False
            return self.reply(f"250 2.0.0 {size} octets received")
        try:
            await incoming.add(text.end())
            await self._store(incoming)
        finally:
            self._set_rset_state()
        return None

    def _nothing_to_send(self) -> str | None:
        """The refusal of a message without envelope."""
        if self.envelope.reverse_path is None:
            return "503 5.5.1 Say MAIL first"
        return None if self.envelope.forward_paths else "554 5.5.1 No valid recipients"

    @contextlib.contextmanager
    def _receiving(self) -> Iterator[None]:
        """Wait for a message as long as something of it arrives, but not for ever."""
        self._data_until = self.loop.time() + _DATA_TIMEOUTS * self._timeout_duration
        if self.session.sender is None:
            self._data_until = self._login_until
        self._reset_timeout(min(self._timeout_duration, max(self._data_until - self.loop.time(), 0.001)))
        try:
            yield
        except (EOFError, OSError):
            raise
        except Exception:
            self._dismiss("421 4.3.0 Internal error, try again later")  # what follows is not a command
            raise
        finally:
            self._data_until = None
            self._disarm()

    async def _store(self, incoming: Incoming) -> None:
        if self._gone():
            raise ConnectionResetError("closed before the reply")  # who cannot hear 250 will send it again
        self.reply(await self._handler.store(self.session, self.envelope, incoming))
        self._errors = 0

    async def smtp_RSET(self, _: str) -> None:
        """Forget the transaction."""
        self._set_rset_state()
        self.reply("250 2.0.0 OK")

    async def smtp_NOOP(self, _: str) -> None:
        """Do nothing (RFC 5321 §4.1.1.9: an argument is ignored)."""
        self.reply("250 2.0.0 OK")

    async def smtp_QUIT(self, _: str) -> None:
        """Say goodbye."""
        self._dismiss("221 2.0.0 Bye")

    async def smtp_HELP(self, _: str) -> None:
        """Name the commands."""
        self.reply("214 2.0.0 EHLO STARTTLS AUTH MAIL RCPT DATA BDAT RSET NOOP QUIT: see RFC 5321 and RFC 6409")

    async def smtp_VRFY(self, _: str) -> None:
        """Tell nothing about addresses (RFC 5321 §7.3)."""
        self.reply("252 2.0.0 Cannot verify, but will take the message and try to deliver it")

    async def smtp_EXPN(self, _: str) -> None:
        """There are no lists here."""
        self.reply("502 5.5.1 Command not implemented")


async def _forget(_: bytes) -> None:
    """What becomes of a chunk that is refused."""


_COMMANDS = [name for name in vars(Session) if name.startswith("smtp_")]


def address_of(peer: object) -> str:
    """The client's IP address as text; one of IPv4 that came over an IPv6 socket is written as IPv4."""
    if not isinstance(peer, tuple) or not peer:
        return "unknown"
    host = str(peer[0])
    return host.removeprefix("::ffff:") if "." in host else host
