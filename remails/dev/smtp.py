"""The mailbox's side of an SMTP dialogue: aiosmtpd, a script that may say something else, and an `Inbox` to ask.

aiosmtpd reads and parses commands and calls the hooks of a `_Receiver`, which asks the script first and the inbox
second; the reply decides the state. `Connection` is aiosmtpd's protocol with what a script needs besides: the banner,
STARTTLS and DATA, replies sent as raw bytes, 421 that closes, and hanging up.
"""

import asyncio
import collections
import contextlib
import enum
import logging
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn, Protocol

from aiosmtpd import smtp

log = logging.getLogger(__name__)

COMMAND_SIZE = 1000  # octets; RFC 5321 §4.5.3.1.4 asks for 512 and more with extensions


class Action(enum.Enum):
    """Instead of a reply."""

    CLOSE = "close"
    HANG = "hang"


Reply = str | bytes | Action | None


@dataclass(frozen=True, kw_only=True)
class Script:
    """What the server says instead of its own replies, per verb.

    A str is one reply ("\\r\\n" inside it allowed, its end is added); bytes are sent as they are, right or wrong; an
    Action closes or hangs; None leaves it to the server. A function gets the argument (banner: the peer's address;
    ehlo: its name; mail and rcpt: the address; data and dot: the recipients, separated by spaces) and returns one of
    these. What a reply says, happens: 2xx to RCPT accepts, 421 closes. A 220 to STARTTLS is followed by the end of the
    connection in place of a handshake, and a 354 to DATA by our own.

    `delay` is the seconds before the reply to a verb, or an event that it waits for. `without` is what EHLO does not offer and nobody does: STARTTLS,
    8BITMIME, SMTPUTF8 or any other keyword; with "ESMTP" in it EHLO itself is unknown.
    """

    banner: Reply | Callable[[str], Reply] = None
    ehlo: Reply | Callable[[str], Reply] = None
    starttls: Reply | Callable[[str], Reply] = None
    mail: Reply | Callable[[str], Reply] = None
    rcpt: Reply | Callable[[str], Reply] = None
    data: Reply | Callable[[str], Reply] = None
    dot: Reply | Callable[[str], Reply] = None
    delay: Mapping[str, float | asyncio.Event] = field(default_factory=dict)
    without: frozenset[str] = frozenset()

    def reply(self, verb: str, argument: str) -> Reply:
        """What to say to a verb."""
        line: Reply | Callable[[str], Reply] = getattr(self, verb)
        return line(argument) if callable(line) else line


class Inbox(Protocol):
    """Who decides what is accepted, where the script says nothing."""

    def recipient(self, peer: str, sender: str, address: str) -> str:
        """The reply to RCPT."""
        ...

    def message(self, recipients: list[str]) -> Reply:
        """The reply to the final dot; None accepts."""
        ...

    def patience(self, recipients: list[str]) -> float:
        """Seconds before that reply."""
        ...

    async def keep(self, connection: "Connection", envelope: smtp.Envelope, reply: Reply) -> str:
        """Store the message; the answer is the reply that accepts it."""
        ...


class Connection(smtp.SMTP):
    """One connection. `connections` is where it notes itself while it lives."""

    command_size_limit = COMMAND_SIZE

    def __init__(
        self,
        inbox: Inbox,
        script: Script,
        connections: "set[Connection]",
        *,
        hostname: str,
        size_limit: int,
        tls: ssl.SSLContext | None,
    ) -> None:
        # aiosmtpd keeps these in its class, where every connection of the process changes them.
        self.command_size_limits = collections.defaultdict(lambda: COMMAND_SIZE)
        super().__init__(
            _Receiver(inbox),
            hostname=hostname,
            ident="ESMTP development mailbox",
            data_size_limit=size_limit,
            enable_SMTPUTF8="SMTPUTF8" not in script.without,
            tls_context=None if "STARTTLS" in script.without else tls,
            auth_exclude_mechanism=("LOGIN", "PLAIN"),
            loop=asyncio.get_running_loop(),
        )
        self.script = script
        self.refused = False
        self._greeted = False
        self._connections = connections

    # No property: aiosmtpd's constructor reads every attribute there is, in search of auth_ methods.
    def peer(self) -> tuple[str, int]:
        """Address and port of the client, as we see them."""
        assert self.session is not None and self.session.peer is not None
        return self.session.peer[0], int(self.session.peer[1])

    def info(self, name: str) -> Any:
        """What the transport knows: "sockname", "ssl_object"."""
        return self.transport.get_extra_info(name) if self.transport else None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._connections.add(self)
        super().connection_made(transport)

    def connection_lost(self, error: Exception | None) -> None:
        self._connections.discard(self)
        if self.transport:
            self.transport.close()  # the TLS one, which aiosmtpd forgets
        super().connection_lost(error)

    def abort(self) -> "asyncio.Task[None] | None":
        """End at once; the task is finished when all is over."""
        if isinstance(self.transport, asyncio.Transport):
            with contextlib.suppress(AttributeError):  # Python 3.11.2, when TLS is closed already
                self.transport.abort()
        if self._handler_coroutine is not None:
            self._handler_coroutine.cancel()  # after a handshake that failed, nobody tells it that all is over
        return self._handler_coroutine

    def hang_up(self) -> NoReturn:
        """Close without a word and leave the command being served."""
        if self.transport:
            self.transport.close()
        raise asyncio.CancelledError  # how aiosmtpd's own QUIT ends the dialogue

    async def push(self, status: str | bytes) -> None:
        """Send a reply, the banner first of all."""
        if not self._greeted:
            self._greeted = True
            status = await self.scripted("banner", self.peer()[0]) or status
            self.refused = not _is_positive(status)
        if isinstance(status, bytes):
            self._writer.write(status)
            await self._writer.drain()
        else:
            await super().push(status)
        if status[:3] in ("421", b"421") and self.transport:  # RFC 5321 §3.8
            self.transport.close()

    async def scripted(self, verb: str, argument: str) -> str | bytes | None:
        """What the script says to a verb, after its delay; None if nothing."""
        return await self.act(self.script.reply(verb, argument), self.script.delay.get(verb, 0))

    async def act(self, reply: Reply, delay: float | asyncio.Event) -> str | bytes | None:
        """Wait, and close or hang if that is the reply; otherwise hand it back."""
        await (delay.wait() if isinstance(delay, asyncio.Event) else asyncio.sleep(delay))
        if reply is Action.CLOSE:
            self.hang_up()
        if reply is Action.HANG:
            await self.loop.create_future()  # until the client goes
        assert not isinstance(reply, Action)
        return reply

    async def smtp_STARTTLS(self, arg: str) -> None:
        """RFC 3207, or what the script makes of it."""
        reply = await self.scripted("starttls", "")
        if reply is None:
            await super().smtp_STARTTLS(arg)
            return
        await self.push(reply)
        if _is_positive(reply):
            await self._reader.read(1)  # the ClientHello
            self.hang_up()

    async def smtp_DATA(self, arg: str) -> None:
        """DATA, unless the script refuses it."""
        recipients = self.envelope.rcpt_tos if self.envelope else []
        reply = await self.scripted("data", " ".join(recipients)) if recipients else None
        if reply is None or reply[:1] in ("3", b"3"):
            await super().smtp_DATA(arg)
        else:
            await self.push(reply)

    async def handle_exception(self, error: Exception) -> str:
        """A fault of ours is a temporary error; a failed handshake is the client's affair."""
        if isinstance(error, smtp.TLSSetupException):
            log.info("no TLS with %s: %s", self.peer()[0], error.__cause__)
        else:
            log.error("cannot serve %s", self.peer()[0], exc_info=error)
        return "451 4.3.0 Local error"


class _Receiver:
    """aiosmtpd's hooks: they return the reply and set the state it stands for."""

    def __init__(self, inbox: Inbox) -> None:
        self._inbox = inbox

    async def handle_HELO(self, server: Connection, session: smtp.Session, _: smtp.Envelope, name: str) -> str:
        if server.refused:
            return "503 5.5.1 No service here"  # RFC 5321 §3.1
        session.host_name = name
        return f"250 {server.hostname}"

    async def handle_EHLO(
        self, server: Connection, session: smtp.Session, _: smtp.Envelope, name: str, lines: list[str]
    ) -> list[str | bytes]:
        if server.refused:
            return ["503 5.5.1 No service here"]
        reply = await server.scripted("ehlo", name)
        if reply is None:
            reply = _ehlo(server.hostname, lines, server.script.without)
        if _is_positive(reply):
            session.host_name = name
        return [reply]

    async def handle_MAIL(
        self, server: Connection, _: smtp.Session, envelope: smtp.Envelope, address: str, options: list[str]
    ) -> str | bytes:
        reply = await server.scripted("mail", address)
        if reply is None:
            unknown = "8BITMIME" in server.script.without and "BODY=8BITMIME" in options
            reply = "555 5.5.4 Unknown parameter BODY" if unknown else "250 2.1.0 Ok"
        if _is_positive(reply):
            envelope.mail_from = address
            envelope.mail_options.extend(options)
        return reply

    async def handle_RCPT(
        self, server: Connection, _: smtp.Session, envelope: smtp.Envelope, address: str, _options: list[str]
    ) -> str | bytes:
        reply = await server.scripted("rcpt", address)
        if reply is None:
            reply = self._inbox.recipient(server.peer()[0], envelope.mail_from or "", address)
        if _is_positive(reply):
            envelope.rcpt_tos.append(address)
        return reply

    async def handle_DATA(self, server: Connection, _: smtp.Session, envelope: smtp.Envelope) -> str | bytes:
        recipients = envelope.rcpt_tos
        reply = server.script.reply("dot", " ".join(recipients))
        if reply is None:
            reply = self._inbox.message(recipients)
        accepted = "250 2.0.0 Ok"
        # A server that leaves without a reply may well have the mail: that is what makes the outcome unknown.
        if reply is None or isinstance(reply, Action) or _is_positive(reply):
            accepted = await self._inbox.keep(server, envelope, reply)
        await asyncio.sleep(self._inbox.patience(recipients))
        return await server.act(reply, server.script.delay.get("dot", 0)) or accepted


def _is_positive(reply: str | bytes) -> bool:
    return reply[:1] in ("2", b"2")


def _ehlo(hostname: str, lines: list[str], without: frozenset[str]) -> str:
    """aiosmtpd's offers, without AUTH and HELP and with what it does but does not say (RFC 2920, RFC 2034)."""
    if "ESMTP" in without:
        return "502 5.5.1 Command not implemented"
    offers = [*(line[4:] for line in lines[1:]), "PIPELINING", "ENHANCEDSTATUSCODES"]
    hidden = without | {"AUTH", "HELP"}
    words = [hostname, *(offer for offer in offers if offer.split()[0] not in hidden)]
    return "\r\n".join([*(f"250-{word}" for word in words[:-1]), f"250 {words[-1]}"])
