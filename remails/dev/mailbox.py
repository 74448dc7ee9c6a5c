"""The development mailbox: a mail server that accepts everything, keeps it and shows it.

It is the MX of every domain of the demo world, so that no mail leaves the machine and no code path of the product is a
special one; the tests use it as a real peer.

    smtp.Connection --> Mailbox.keep: the mail is in the archive --> 250
                                `--> in a thread: its DKIM signatures, with keys from the demo world's own DNS
                                       `--> the record: in `records`, to whoever is in `wait`, on the page

So that every outcome can be seen, these local parts are magic at any domain, and a `+tag` may follow them: bounce@,
defer@, greylist@, full@, busy@, slow@, drop@ and reject-data@. `MAGIC` below and the page say what each does.
Everything else is accepted. A `Script` goes further, for tests: see `remails.dev.smtp`.
"""

import asyncio
import contextlib
import datetime
import email.header
import email.parser
import email.policy
import logging
import ssl
import tempfile
import time
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from email.errors import MessageError
from pathlib import Path
from typing import Any, TypeVar

import dns.exception
import dns.resolver
import msgspec
from aiosmtpd.smtp import Envelope
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from remails.dev.archive import Archive, Record, Signature, Tls
from remails.dev.page import Page
from remails.dev.smtp import Action, Connection, Reply, Script
from remails.mail import dkim

T = TypeVar("T")

log = logging.getLogger(__name__)

MAGIC = {
    "bounce": "550 5.1.1 at RCPT",
    "defer": "451 4.3.0 at RCPT, always",
    "greylist": "451 4.7.1 at RCPT for the first 20 seconds per source address, sender and recipient; then accepted",
    "full": "452 4.2.2 at RCPT",
    "busy": "421 4.7.0 at RCPT, and the connection is closed",
    "slow": "accepted, but the reply to the final dot takes 10 seconds",
    "drop": "no reply to the final dot: the connection is closed (the mail is kept)",
    "reject-data": "554 5.7.1 after the final dot",
}
AT_RCPT = {
    "bounce": "550 5.1.1 No such user here",
    "defer": "451 4.3.0 Try again later",
    "full": "452 4.2.2 Mailbox full",
    "busy": "421 4.7.0 Too busy, closing the connection",
}
AT_DOT: dict[str, Reply] = {
    "reject-data": "554 5.7.1 Content rejected",
    "drop": Action.CLOSE,
}
TRIPLETS = 10_000  # remembered by greylisting
DNS_LIFETIME = 5.0  # seconds for one key
FIELD_SIZE = 500  # characters of a header field in the record
HEADER_SIZE = 65_536  # octets searched for it


class Mailbox:
    """The listener on one or several addresses, its archive, and its page if `http` is given.

    Args:
        directory: where mails are kept; made if absent.
        nameserver: address and port of the DNS server that has the DKIM keys.
        addresses: what to listen on. Port 0 asks for a free one: after `start`, `ports` has them, in this order.
        http: address and port of the page, or None.
        tls: False for no STARTTLS, or a context to use instead of a new self-signed certificate.
        limit: mails kept.
        greylist_period, slow_reply: seconds, of those magic addresses.
    """

    def __init__(
        self,
        directory: Path,
        nameserver: tuple[str, int],
        addresses: Sequence[tuple[str, int]] = (("127.0.0.1", 0),),
        *,
        http: tuple[str, int] | None = None,
        hostname: str = "mailbox.test",
        tls: ssl.SSLContext | bool = True,
        size_limit: int = 50 * 2**20,
        limit: int = 10_000,
        greylist_period: float = 20.0,
        slow_reply: float = 10.0,
        script: Script | None = None,
    ) -> None:
        self.hostname = hostname
        self.ports: list[int] = []
        self.script = script or Script()
        self._archive = Archive(directory, limit)
        self.page = Page(self._archive, MAGIC, *http) if http else None
        self._addresses = addresses
        self._tls = tls
        self._size_limit = size_limit
        self._greylist_period = greylist_period
        self._slow_reply = slow_reply
        self._first_seen: dict[tuple[str, str, str], float] = {}
        self._resolver = _resolver(*nameserver)
        # Not the loop's shared threads: the DNS server that has to answer may be in this process.
        self._verifiers = ThreadPoolExecutor(4, "dkim-verify")
        self._servers: list[asyncio.Server] = []
        self._connections: set[Connection] = set()
        self._settling: set[asyncio.Task[Any]] = set()
        self._added = asyncio.Condition()

    async def start(self) -> None:
        """Read the archive and listen on the running loop. Raises OSError."""
        await asyncio.to_thread(self._archive.open)
        context = await asyncio.to_thread(self_signed, self.hostname) if self._tls is True else self._tls or None
        loop = asyncio.get_running_loop()
        for host, port in self._addresses:
            server = await loop.create_server(lambda: self._connection(context), host, port)
            self._servers.append(server)
            self.ports.append(server.sockets[0].getsockname()[1])
        if self.page:
            await self.page.start()

    async def close(self) -> None:
        """Stop listening, end connections, and finish the records of what was accepted."""
        for server in self._servers:
            server.close()
        tasks = [connection.abort() for connection in self._connections]
        await asyncio.gather(*(task for task in tasks if task), return_exceptions=True)
        while self._settling:
            await asyncio.gather(*self._settling, return_exceptions=True)
        if self.page:
            await self.page.close()
        self._verifiers.shutdown(wait=False)

    @property
    def port(self) -> int:
        """The port of the first address."""
        return self.ports[0]

    @property
    def records(self) -> list[Record]:
        """What has been kept, oldest first."""
        return self._archive.records

    def raw(self, mail_id: str) -> bytes:
        """The bytes of a mail as received. Raises FileNotFoundError."""
        return self._archive.raw(mail_id)

    def wait(self, until: int | Callable[[Record], bool], timeout: float = 40) -> Coroutine[Any, Any, list[Record]]:
        """Wait for so many records, and return all; or for one that fits, and return those that do.

        Raises TimeoutError after `timeout` seconds.
        """
        return asyncio.wait_for(self._matching(until), timeout)

    async def _matching(self, until: int | Callable[[Record], bool]) -> list[Record]:
        async with self._added:
            while True:
                found = self.records if isinstance(until, int) else [r for r in self.records if until(r)]
                if len(found) >= (until if isinstance(until, int) else 1):
                    return found
                await self._added.wait()

    def _connection(self, context: ssl.SSLContext | None) -> Connection:
        return Connection(
            self, self.script, self._connections, hostname=self.hostname, size_limit=self._size_limit, tls=context
        )

    def recipient(self, peer: str, sender: str, address: str) -> str:
        """The reply to RCPT (`smtp.Inbox`)."""
        part = _magic(address)
        if part == "greylist" and self._is_greylisted((peer, sender, address)):
            return "451 4.7.1 Greylisted, try again later"
        return AT_RCPT.get(part, "250 2.1.5 Ok")

    def _is_greylisted(self, triplet: tuple[str, str, str]) -> bool:
        if triplet not in self._first_seen and len(self._first_seen) >= TRIPLETS:
            del self._first_seen[next(iter(self._first_seen))]
        now = time.monotonic()
        return now - self._first_seen.setdefault(triplet, now) < self._greylist_period

    def message(self, recipients: list[str]) -> Reply:
        """The reply to the final dot, None to accept (`smtp.Inbox`)."""
        parts = {_magic(address) for address in recipients}
        return next((reply for part, reply in AT_DOT.items() if part in parts), None)

    def patience(self, recipients: list[str]) -> float:
        """Seconds before that reply (`smtp.Inbox`)."""
        return self._slow_reply if any(_magic(address) == "slow" for address in recipients) else 0

    async def keep(self, connection: Connection, envelope: Envelope, reply: Reply) -> str:
        """Write the mail, and see to its record (`smtp.Inbox`), even if its sender goes meanwhile. Raises OSError."""
        return await asyncio.shield(self._see_to(self._keep(connection, envelope, reply)))

    def _see_to(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(work)
        self._settling.add(task)
        task.add_done_callback(self._settling.discard)
        return task

    async def _keep(self, connection: Connection, envelope: Envelope, reply: Reply) -> str:
        raw = envelope.original_content or b""
        record = _record(raw, connection, envelope)  # the connection may be gone afterwards
        mail_id = await asyncio.to_thread(self._archive.keep, raw)
        accepted = f"250 2.0.0 Ok: kept as {mail_id}"
        said = accepted if reply is None else "" if isinstance(reply, Action) else reply
        reply_text = said if isinstance(said, str) else said.decode("utf-8", "replace")
        self._see_to(self._settle(msgspec.structs.replace(record, id=mail_id, reply=reply_text)))
        return accepted

    async def _settle(self, record: Record) -> None:
        """Check the signatures, write the record and show it."""
        loop = asyncio.get_running_loop()
        signatures = await loop.run_in_executor(self._verifiers, self._verify, record.id)
        try:
            self._archive.add(msgspec.structs.replace(record, dkim=signatures))
        except OSError:
            log.exception("cannot keep the record of %s", record.id)
        async with self._added:
            self._added.notify_all()

    def _verify(self, mail_id: str) -> list[Signature]:
        try:
            verdicts = dkim.verify(self._archive.raw(mail_id), self._txt)
        except dns.exception.DNSException as error:
            return [Signature("", "", "", ok=False, reason=f"no answer for the key: {error}")]
        except Exception as error:  # the service loop: a mail that breaks the verifier is still shown
            log.exception("cannot verify %s", mail_id)
            return [Signature("", "", "", ok=False, reason=f"not verified: {error}")]
        return [Signature(v.domain, v.selector, v.algorithm, v.ok, v.reason) for v in verdicts]

    def _txt(self, name: str) -> list[bytes]:
        """The TXT records of a name, each in one piece. Raises dns.exception.DNSException for a failure of DNS."""
        try:
            answer = self._resolver.resolve(name, "TXT", search=False)
        except (dns.resolver.NXDOMAIN, dns.resolver.NoAnswer):
            return []
        return [b"".join(rdata.strings) for rdata in answer]


def _magic(address: str) -> str:
    """What is magic in an address: the local part in lower case, without its tag."""
    return address.rpartition("@")[0].partition("+")[0].lower()


def _resolver(host: str, port: int) -> dns.resolver.Resolver:
    resolver = dns.resolver.Resolver(configure=False)
    resolver.nameservers = [host]
    resolver.port = port
    resolver.lifetime = DNS_LIFETIME
    return resolver


def _record(raw: bytes, connection: Connection, envelope: Envelope) -> Record:
    """What is known of a mail before it has an id and a reply."""
    tls = connection.info("ssl_object")
    head = raw[:HEADER_SIZE].decode("utf-8", "replace")
    fields = email.parser.HeaderParser(policy=email.policy.compat32).parsestr(head)
    assert connection.session is not None
    return Record(
        id="",
        received_at=datetime.datetime.now(datetime.UTC),
        peer_ip=connection.peer()[0],
        peer_port=connection.peer()[1],
        local_ip=connection.info("sockname")[0],
        helo=_clean(connection.session.host_name or ""),
        tls=Tls(tls.version(), tls.cipher()[0]) if tls else None,
        mail_from=_clean((envelope.mail_from or "").removeprefix("<").removesuffix(">")),
        rcpt_tos=[_clean(address) for address in envelope.rcpt_tos],
        options=[_clean(option) for option in envelope.mail_options],
        reply="",
        size=len(raw),
        subject=_readable(fields["Subject"]),
        header_from=_readable(fields["From"]),
        header_to=_readable(fields["To"]),
        message_id=_readable(fields["Message-ID"]),
    )


def _clean(text: str) -> str:
    """Text without the surrogates that stand for octets that are not UTF-8: JSON knows none."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _readable(value: str | None) -> str:
    """A header field for reading: encoded words decoded, white space folded, shortened."""
    text = value or ""
    with contextlib.suppress(MessageError, LookupError, ValueError):  # if it breaks the rules: as it came
        text = str(email.header.make_header(email.header.decode_header(text)))
    return " ".join(_clean(text).split())[:FIELD_SIZE]


def self_signed(hostname: str) -> ssl.SSLContext:
    """A server context with a new self-signed certificate for the name: EC P-256, valid for a year."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, hostname)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=365))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(hostname)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with tempfile.NamedTemporaryFile() as pem:  # the ssl module reads certificates from files only
        pem.write(certificate.public_bytes(serialization.Encoding.PEM))
        pem.write(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        pem.flush()
        context.load_cert_chain(pem.name)
    return context
