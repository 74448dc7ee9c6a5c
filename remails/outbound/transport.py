"""One dialogue with one remote server, by aiosmtplib, bound to the chosen source address.

Nothing but `Dialogue` values leaves this module: every reply, timeout, reset and TLS failure becomes a `Reply` that knows how far
the dialogue had come. The socket is made, bound and connected here, so that an address that is not on this host is
told apart from a remote server that does not answer.
"""

import asyncio
import contextlib
import errno
import functools
import socket
import ssl
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import aiosmtplib

from remails.config import Outbound
from remails.mail import reply
from remails.mail.reply import Phase, Reply
from remails.outbound.route import Target


@dataclass(frozen=True, slots=True)
class Envelope:
    """What to send to one destination."""

    mail_from: str
    recipients: Sequence[str]
    wire: bytes
    """The signed message."""
    eight_bit: bool
    smtputf8: bool
    require_tls: bool


@dataclass(slots=True)
class Dialogue:
    """What came of a dialogue."""

    replies: dict[str, Reply] = field(default_factory=dict)
    """The reply that decided each recipient."""
    tls: str | None = None
    """TLS version and cipher, None for plain text."""


class SourceMissing(Exception):
    """The source address is not on this host: a trouble of ours, no attempt."""


class _Broken(Exception):
    """The dialogue cannot go on; carries the reply for all who have none yet."""

    def __init__(self, why: Reply) -> None:
        super().__init__(why.line)
        self.reply = why


async def send(settings: Outbound, target: Target, source: str, ehlo_name: str, envelope: Envelope) -> Dialogue:
    """Offer a message to one server.

    Args:
        source: the local address to bind, literal.
        ehlo_name: the name that its PTR record says (RFC 5321 §4.1.1.1).

    Raises:
        SourceMissing: `source` cannot be bound.
    """
    dialogue = await _once(settings, target, source, ehlo_name, envelope, starttls=True)
    failed_tls = any(answer.phase is Phase.TLS for answer in dialogue.replies.values())
    if failed_tls and not envelope.require_tls:
        # RFC 7435 §3: opportunistic; a server whose TLS is broken gets the mail in the clear.
        return await _once(settings, target, source, ehlo_name, envelope, starttls=False)
    return dialogue


async def _once(
    settings: Outbound, target: Target, source: str, ehlo_name: str, envelope: Envelope, *, starttls: bool
) -> Dialogue:
    dialogue = Dialogue()
    client: aiosmtplib.SMTP | None = None
    try:
        client = await _connect(settings, target, source)
        await _hello(client, ehlo_name)
        if starttls:
            await _start_tls(client, target, ehlo_name, envelope)
        elif envelope.require_tls:
            raise _Broken(Reply(Phase.TLS, None, "4.7.4", "TLS is required"))
        dialogue.tls = _tls_facts(client)
        await _transact(client, settings, envelope, dialogue)
    except _Broken as broken:
        for recipient in envelope.recipients:
            dialogue.replies.setdefault(recipient, broken.reply)
    finally:
        if client is not None:
            await _quit(client)
    return dialogue


async def _connect(settings: Outbound, target: Target, source: str) -> aiosmtplib.SMTP:
    loop = asyncio.get_running_loop()
    family = socket.AF_INET6 if ":" in source else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        # The port is chosen at connect, so that one address can have more connections than it has ports.
        sock.setsockopt(socket.IPPROTO_IP, getattr(socket, "IP_BIND_ADDRESS_NO_PORT", 24), 1)
        sock.bind((source, 0))
    except OSError as error:
        sock.close()
        raise SourceMissing(f"cannot send from {source}: {error.strerror}") from None
    try:
        async with asyncio.timeout(settings.connect_timeout):
            await loop.sock_connect(sock, (target.ip, settings.port))
    except TimeoutError:
        sock.close()
        raise _Broken(reply.lost(Phase.CONNECT, f"no answer from {target.host} [{target.ip}]")) from None
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRNOTAVAIL:
            raise SourceMissing(f"cannot send from {source}: {error.strerror}") from None
        why = f"cannot connect to {target.host} [{target.ip}]: {error.strerror}"
        raise _Broken(reply.lost(Phase.CONNECT, why)) from None
    client = aiosmtplib.SMTP(
        sock=sock, hostname=None, port=None, use_tls=False, start_tls=False, timeout=settings.command_timeout
    )
    with _phase(Phase.BANNER):
        await client.connect()
    return client


async def _hello(client: aiosmtplib.SMTP, name: str) -> None:
    with _phase(Phase.EHLO):
        try:
            await client.ehlo(hostname=name)
        except aiosmtplib.SMTPHeloError as error:
            if error.code == 421 or error.code // 100 != 5:
                raise
            await client.helo(hostname=name)  # RFC 5321 §3.2: an old server knows only HELO


async def _start_tls(client: aiosmtplib.SMTP, target: Target, name: str, envelope: Envelope) -> None:
    if not client.supports_extension("starttls"):
        if envelope.require_tls:
            raise _Broken(Reply(Phase.TLS, None, "4.7.4", f"{target.host} offers no TLS, which this project requires"))
        return
    with _phase(Phase.TLS):
        await client.starttls(server_hostname=target.host, tls_context=_context(verify=envelope.require_tls))
    await _hello(client, name)  # RFC 3207 §4.2


@functools.cache
def _context(*, verify: bool) -> ssl.SSLContext:
    context = ssl.create_default_context()
    if not verify:
        # Any certificate is better than plain text (RFC 7435 §3); nothing else is weakened.
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _tls_facts(client: aiosmtplib.SMTP) -> str | None:
    tls = client.get_transport_info("ssl_object")
    return f"{tls.version()} {tls.cipher()[0]}" if tls is not None else None


async def _transact(client: aiosmtplib.SMTP, settings: Outbound, envelope: Envelope, dialogue: Dialogue) -> None:
    await _mail(client, envelope)
    accepted = [recipient for recipient in envelope.recipients if await _rcpt(client, recipient, dialogue)]
    if not accepted:
        return
    with _phase(Phase.DATA):
        code, text = await client.execute_command(b"DATA")
    if code != 354:
        raise _Broken(reply.of(Phase.DATA, code, text))
    with _phase(Phase.BODY):
        code, text = await _body(client, settings, envelope.wire)
    answer = reply.of(Phase.BODY, code, text)
    dialogue.replies.update(dict.fromkeys(accepted, answer))


async def _mail(client: aiosmtplib.SMTP, envelope: Envelope) -> None:
    parameters = []
    if client.supports_extension("size"):
        limit = client.esmtp_extensions.get("size", "").strip()
        if limit.isdigit() and 0 < int(limit) < len(envelope.wire):  # RFC 1870 §6.1
            text = f"the message of {len(envelope.wire)} bytes is larger than the server's limit of {limit}"
            raise _Broken(Reply(Phase.MAIL, 552, "5.3.4", text))
        parameters.append(f"SIZE={len(envelope.wire)}")
    if envelope.eight_bit:
        if not client.supports_extension("8bitmime"):
            raise _Broken(Reply(Phase.MAIL, 554, "5.6.3", "the server does not take 8-bit content (8BITMIME)"))
        parameters.append("BODY=8BITMIME")  # RFC 6152 §3
    if envelope.smtputf8:
        if not client.supports_extension("smtputf8"):
            raise _Broken(Reply(Phase.MAIL, 553, "5.6.7", "the server does not take addresses in UTF-8 (SMTPUTF8)"))
        parameters.append("SMTPUTF8")  # RFC 6531 §3.4
    command = " ".join([f"FROM:<{envelope.mail_from}>", *parameters])
    with _phase(Phase.MAIL):
        code, text = await client.execute_command(b"MAIL", command.encode())
    if code // 100 != 2:
        raise _Broken(reply.of(Phase.MAIL, code, text))


async def _rcpt(client: aiosmtplib.SMTP, recipient: str, dialogue: Dialogue) -> bool:
    with _phase(Phase.RCPT):
        code, text = await client.execute_command(b"RCPT", f"TO:<{recipient}>".encode())
    if code // 100 == 2:
        return True
    dialogue.replies[recipient] = reply.of(Phase.RCPT, code, text)
    if code == 421:  # RFC 5321 §3.8: the server is about to close the connection
        raise _Broken(dialogue.replies[recipient])
    return False


async def _body(client: aiosmtplib.SMTP, settings: Outbound, wire: bytes) -> tuple[int, str]:
    """Send the message and its final dot. It is CRLF throughout, so only dots need care (RFC 5321 §4.5.2)."""
    protocol = client.protocol
    if protocol is None:
        raise aiosmtplib.SMTPServerDisconnected("Connection lost")
    stuffed = wire.replace(b"\r\n.", b"\r\n..")
    if stuffed.startswith(b"."):
        stuffed = b"." + stuffed
    protocol.write(stuffed + (b".\r\n" if stuffed.endswith(b"\r\n") else b"\r\n.\r\n"))
    code, text = await protocol.read_response(timeout=settings.data_timeout)
    return code, text


async def _quit(client: aiosmtplib.SMTP) -> None:
    with contextlib.suppress(aiosmtplib.SMTPException, OSError, ValueError, RuntimeError):
        await client.quit(timeout=2)
    client.close()


@contextlib.contextmanager
def _phase(phase: Phase) -> Iterator[None]:
    """Turn whatever goes wrong in here into the reply of this phase."""
    try:
        yield
    except aiosmtplib.SMTPResponseException as error:
        raise _Broken(
            reply.of(phase, error.code, error.message) if error.code > 0 else reply.lost(phase, error.message)
        ) from None
    except ssl.SSLError as error:
        raise _Broken(reply.lost(phase, f"TLS: {error.reason or error}")) from None
    except (aiosmtplib.SMTPTimeoutError, TimeoutError):
        raise _Broken(reply.lost(phase, f"timed out during {phase}")) from None
    except (aiosmtplib.SMTPException, OSError) as error:
        raise _Broken(reply.lost(phase, f"connection lost during {phase}: {error}")) from None
