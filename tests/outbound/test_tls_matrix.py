"""What becomes of a message at servers with every kind of TLS, under every rule: real handshakes, one row each."""

import asyncio
import contextlib
import ssl
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import authority
import pytest
import uvloop
from authority import Authority, Issued, issue
from outbound.marks import ours

from remails.config import Outbound
from remails.dev.archive import Record
from remails.dev.mailbox import Mailbox
from remails.dev.smtp import Action, Script
from remails.mail.dane import Tlsa, usable
from remails.outbound import transport
from remails.outbound.route import Target
from remails.outbound.security import Policy, Secured, Security
from remails.outbound.transport import Envelope, Place

HOST = "mx.example.net"
CA = Authority()
STRANGE = Authority("Strange")
GOOD = CA.issue(HOST)
TLS12, TLS13 = "TLSv1.2", "TLSv1.3"


@dataclass(frozen=True)
class Server:
    """How a server is set up. `raw` replaces it by a dialogue written out."""

    certificate: Issued = GOOD
    newest: ssl.TLSVersion | None = None
    oldest: ssl.TLSVersion | None = None
    ciphers: str = ""
    script: Script | None = None
    other: Issued | None = None
    """Shown to who asks for no name, or another one."""
    raw: bytes | None = None
    """Sent in place of the reply to STARTTLS; then comes the handshake."""
    garbage: bytes | None = None
    """Sent in place of that."""

    def context(self, directory: Path) -> ssl.SSLContext:
        made = self.certificate.context(directory)
        if self.ciphers:
            made.set_ciphers(self.ciphers)
        for name, version in (("maximum_version", self.newest), ("minimum_version", self.oldest)):
            if version is not None:
                setattr(made, name, version)
        if self.other is not None:
            named, other = made, self.other.context(directory)

            def choose(connection: ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> None:
                connection.context = named if name == HOST else other

            other.sni_callback = choose
            return other
        return made


def dane(*texts: str) -> Security:
    records = [text.split() for text in texts]
    parsed = (Tlsa(int(usage), int(select), int(match), bytes.fromhex(data)) for usage, select, match, data in records)
    return Security(Policy.DANE, "DANE", tlsa=usable(parsed), names=(HOST, "example.net"))


OPPORTUNISTIC = Security()
REQUIRED = Security(Policy.REQUIRED, "the project")
STS = Security(Policy.STS, "the MTA-STS policy of example.net")
TESTING = Security(Policy.TESTING)
ENCRYPTED = Security(Policy.DANE, "DANE")  # TLSA records, none of them usable


@dataclass(frozen=True)
class Sent:
    """The message was taken: over which TLS ("" is plain text), by a server that has proved its name?"""

    tls: str = TLS13
    verified: bool | None = True
    note: str = ""


@dataclass(frozen=True)
class Refused:
    """Nothing was sent, for this reason."""

    enhanced: str
    text: str


EXPIRED = Server(CA.issue(HOST, ends=-authority.DAY / 2))
EARLY = Server(CA.issue(HOST, begins=authority.DAY))
SELF_SIGNED = Server(issue(HOST))
WRONG_NAME = Server(CA.issue("other.example"))
WILDCARD = Server(CA.issue("*.example.net"))
DEEP_WILDCARD = Server(CA.issue("*.net"))
COMMON_NAME_ONLY = Server(issue(by=CA.below, along=[CA.below.certificate], common_name=HOST))
STRANGER = Server(STRANGE.issue(HOST))
NO_ISSUER = Server(Issued(GOOD.certificate, GOOD.key))
SEVERAL_NAMES = Server(CA.issue("a.example", HOST, "b.example"))
WEAK = "DEFAULT:@SECLEVEL=0"
TLS_1_0 = Server(newest=ssl.TLSVersion.TLSv1, oldest=ssl.TLSVersion.TLSv1, ciphers=WEAK)
TLS_1_1 = Server(newest=ssl.TLSVersion.TLSv1_1, oldest=ssl.TLSVersion.TLSv1_1, ciphers=WEAK)
TLS_1_2 = Server(newest=ssl.TLSVersion.TLSv1_2)
NONE = Server(script=Script(without=frozenset({"STARTTLS"})))
NO_ESMTP = Server(script=Script(without=frozenset({"ESMTP"})))
LATER = Server(script=Script(starttls="454 4.7.0 TLS not available"))
NEVER = Server(script=Script(starttls="502 5.5.1 not here"))
HANGS_UP = Server(script=Script(starttls=Action.CLOSE))
GO_AND_CLOSE = Server(script=Script(starttls="220 go ahead"))
GARBAGE = Server(raw=b"220 go ahead\r\n", garbage=b"\x00garbage, no handshake\r\n" * 20)
INJECTED = Server(raw=b"220 go ahead\r\n250-injected\r\n250 SIZE 1\r\n")
BY_NAME = Server(GOOD, other=issue("default.example"))
SELF_EXPIRED = Server(issue(ends=-authority.DAY / 2))

PLAIN = Sent("", None, "offers no TLS")
FAILED = Sent("", None, "TLS failed, so it went in the clear")

ROWS: list[tuple[str, Server, Security, Sent | Refused]] = [
    ("valid", Server(), OPPORTUNISTIC, Sent()),
    ("valid", Server(), REQUIRED, Sent()),
    ("valid", Server(), STS, Sent()),
    ("valid", Server(), TESTING, Sent()),
    ("valid, TLS 1.2", TLS_1_2, STS, Sent(TLS12)),
    ("several names", SEVERAL_NAMES, STS, Sent()),
    ("wildcard", WILDCARD, OPPORTUNISTIC, Sent()),
    ("wildcard", WILDCARD, STS, Sent()),
    ("expired", EXPIRED, OPPORTUNISTIC, Sent(verified=False, note="expired")),
    ("expired", EXPIRED, REQUIRED, Refused("4.7.5", "the project requires a secure connection, but mx.example.net: its certificate is not valid: certificate has expired")),
    ("expired", EXPIRED, STS, Refused("4.7.5", "certificate has expired")),
    ("expired", EXPIRED, TESTING, Sent(verified=False, note="expired")),
    ("not valid yet", EARLY, OPPORTUNISTIC, Sent(verified=False, note="not valid yet")),
    ("not valid yet", EARLY, REQUIRED, Refused("4.7.5", "not yet valid")),
    ("self-signed", SELF_SIGNED, OPPORTUNISTIC, Sent(verified=False, note="no authority")),
    ("self-signed", SELF_SIGNED, REQUIRED, Refused("4.7.5", "self-signed")),
    ("self-signed", SELF_SIGNED, TESTING, Sent(verified=False, note="no authority")),
    ("wrong name", WRONG_NAME, OPPORTUNISTIC, Sent(verified=False, note="other names")),
    ("wrong name", WRONG_NAME, REQUIRED, Refused("4.7.5", "Hostname mismatch")),
    ("wrong name", WRONG_NAME, STS, Refused("4.7.5", "Hostname mismatch")),
    ("wrong name", WRONG_NAME, TESTING, Sent(verified=False, note="other names")),
    ("wildcard for too much", DEEP_WILDCARD, STS, Refused("4.7.5", "Hostname mismatch")),
    ("name as common name only", COMMON_NAME_ONLY, OPPORTUNISTIC, Sent(verified=False, note="names no host")),
    ("name as common name only", COMMON_NAME_ONLY, STS, Refused("4.7.5", "Hostname mismatch")),  # RFC 9525 §6.3
    ("authority unknown", STRANGER, OPPORTUNISTIC, Sent(verified=False, note="no authority")),
    ("authority unknown", STRANGER, STS, Refused("4.7.5", "unable to get local issuer")),
    ("issuer not sent", NO_ISSUER, OPPORTUNISTIC, Sent(verified=False, note="no authority")),
    ("issuer not sent", NO_ISSUER, REQUIRED, Refused("4.7.5", "unable to get local issuer")),
    ("TLS 1.0 only", TLS_1_0, OPPORTUNISTIC, Sent("TLSv1 ")),  # O17: old is better than none
    ("TLS 1.0 only", TLS_1_0, REQUIRED, Refused("4.7.5", "TLS|tls")),
    ("TLS 1.1 only", TLS_1_1, OPPORTUNISTIC, Sent("TLSv1.1 ")),
    ("TLS 1.1 only", TLS_1_1, TESTING, Sent("TLSv1.1 ")),
    ("TLS 1.1 only", TLS_1_1, STS, Refused("4.7.5", "TLS|tls")),
    ("TLS 1.1 only", TLS_1_1, dane(GOOD.tlsa(3)), Refused("4.7.5", "TLS|tls")),
    ("no STARTTLS", NONE, OPPORTUNISTIC, PLAIN),
    ("no STARTTLS", NONE, TESTING, PLAIN),
    ("no STARTTLS", NONE, REQUIRED, Refused("4.7.4", "offers no TLS")),
    ("no STARTTLS", NONE, STS, Refused("4.7.4", "the MTA-STS policy of example.net requires a secure connection, but")),
    ("no STARTTLS", NONE, dane(GOOD.tlsa(3)), Refused("4.7.4", "offers no TLS")),
    ("no STARTTLS", NONE, ENCRYPTED, Refused("4.7.4", "offers no TLS")),
    ("no ESMTP", NO_ESMTP, OPPORTUNISTIC, PLAIN),
    ("no ESMTP", NO_ESMTP, STS, Refused("4.7.4", "offers no TLS")),
    ("STARTTLS refused with 454", LATER, OPPORTUNISTIC, FAILED),
    ("STARTTLS refused with 454", LATER, REQUIRED, Refused("4.7.5", "454 4.7.0 TLS not available")),
    ("STARTTLS refused with 502", NEVER, OPPORTUNISTIC, FAILED),
    ("STARTTLS refused with 502", NEVER, STS, Refused("4.7.5", "502 5.5.1 not here")),  # never a bounce
    ("hangs up at STARTTLS", HANGS_UP, OPPORTUNISTIC, FAILED),
    ("hangs up at STARTTLS", HANGS_UP, dane(GOOD.tlsa(3)), Refused("4.7.5", "connection lost")),
    ("220, then closes", GO_AND_CLOSE, OPPORTUNISTIC, FAILED),
    ("220, then closes", GO_AND_CLOSE, STS, Refused("4.7.5", "")),
    ("220, then garbage", GARBAGE, OPPORTUNISTIC, FAILED),
    ("220, then garbage", GARBAGE, REQUIRED, Refused("4.7.5", "handshake failed")),
    ("plain text behind the 220", INJECTED, OPPORTUNISTIC, Sent()),  # it is not read as said inside TLS
    ("plain text behind the 220", INJECTED, STS, Sent()),
    ("certificate by name", BY_NAME, OPPORTUNISTIC, Sent()),
    ("certificate by name", BY_NAME, STS, Sent()),
    ("certificate by name", BY_NAME, dane(GOOD.tlsa(3)), Sent()),
    ("DANE-EE fits", Server(), dane(GOOD.tlsa(3)), Sent()),
    ("DANE-EE fits, TLS 1.2", TLS_1_2, dane(GOOD.tlsa(3, 0, 2)), Sent(TLS12)),
    ("DANE-EE does not fit", Server(), dane(SELF_SIGNED.certificate.tlsa(3)), Refused("4.7.5", "fits none of the TLSA records")),
    ("DANE-EE, self-signed", SELF_SIGNED, dane(SELF_SIGNED.certificate.tlsa(3)), Sent()),
    ("DANE-EE, expired, no name", SELF_EXPIRED, dane(SELF_EXPIRED.certificate.tlsa(3)), Sent()),
    ("DANE-EE, rollover", Server(), dane(STRANGER.certificate.tlsa(3), GOOD.tlsa(3)), Sent()),
    ("DANE-TA fits", Server(), dane(CA.below.tlsa(2)), Sent()),
    ("DANE-TA of an unknown authority", STRANGER, dane(STRANGE.below.tlsa(2)), Sent()),
    ("DANE-TA, expired", EXPIRED, dane(CA.below.tlsa(2)), Refused("4.7.5", "expired")),
    ("DANE-TA, wrong name", WRONG_NAME, dane(CA.below.tlsa(2)), Refused("4.7.5", "other names")),
    ("DANE-TA, the domain's name", Server(CA.issue("example.net")), dane(CA.below.tlsa(2)), Sent()),
    ("DANE-TA, issuer not sent", NO_ISSUER, dane(CA.below.tlsa(2)), Refused("4.7.5", "fits none")),
    ("DANE, nothing usable", SELF_SIGNED, ENCRYPTED, Sent(verified=False, note="no authority")),
    ("DANE, nothing usable, TLS broken", GARBAGE, ENCRYPTED, Refused("4.7.5", "handshake failed")),
]  # fmt: skip


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("tls")
    (made / "roots.pem").write_text(CA.root.pem())
    return made


@asynccontextmanager
async def served(server: Server, directory: Path) -> AsyncIterator[tuple[int, Mailbox]]:
    """The port of such a server, and the mailbox behind it."""
    mailbox = Mailbox(
        Path(tempfile.mkdtemp(dir=directory)), ("127.0.0.1", 9), tls=server.context(directory), script=server.script
    )
    await mailbox.start()
    if server.raw is not None:
        # aiosmtpd's 220 is replaced on the wire, by one that has more behind it
        for_starttls = server.raw

        async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            behind_reader, behind_writer = await asyncio.open_connection("127.0.0.1", mailbox.port)
            replaced = False

            async def there() -> None:
                while data := await reader.read(65536):
                    behind_writer.write(data)
                behind_writer.close()

            async def back() -> None:
                nonlocal replaced
                while data := await behind_reader.read(65536):
                    if not replaced and b"220 Ready" in data:
                        replaced, data = True, for_starttls
                    elif replaced and server.garbage is not None:
                        data = server.garbage
                    writer.write(data)
                writer.close()

            await asyncio.gather(there(), back(), return_exceptions=True)

        front = await asyncio.start_server(relay, "127.0.0.1", 0)
        port = front.sockets[0].getsockname()[1]
    else:
        front, port = None, mailbox.port
    try:
        yield port, mailbox
    finally:
        if front is not None:
            front.close()
        await mailbox.close()


async def none() -> None:
    """There is no other form of it."""


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1:DeprecationWarning")
@pytest.mark.parametrize(
    ("server", "security", "expected"), [row[1:] for row in ROWS], ids=[f"{row[0]}, {row[2].policy}" for row in ROWS]
)
def test_server(server: Server, security: Security, expected: Sent | Refused, directory: Path) -> None:
    """Cases O17, O19 and O21."""

    async def main() -> tuple[transport.Session | transport.Broken, list[Record]]:
        async with served(server, directory) as (port, mailbox):
            settings = Outbound(port=port, ca_file=str(directory / "roots.pem"), command_timeout=5)
            place = Place(Target(HOST, "127.0.0.1"), "127.0.0.1", "relay.example", security)
            try:
                session = await transport.connect(settings, place)
            except transport.Broken as broken:
                return broken, mailbox.records
            replies = await session.offer(
                Envelope(
                    mail_from="a@relay.example",
                    recipients=["b@example.net"],
                    wire=b"Subject: x\r\n\r\nx\r\n",
                    eight_bit=False,
                    seven_bit=none,
                    smtputf8=False,
                    begin=ours,
                )
            )
            assert replies["b@example.net"].code == 250, replies
            await session.close()
            return session, await mailbox.wait(1)

    outcome, records = uvloop.run(main())  # the loop of the service
    if isinstance(expected, Refused):
        assert isinstance(outcome, transport.Broken), outcome.secured
        assert outcome.reply.phase == "tls"
        assert (outcome.reply.code, outcome.reply.enhanced) == (None, expected.enhanced)
        assert any(text in outcome.reply.text for text in expected.text.split("|")), outcome.reply.text
        assert records == []
        return
    assert isinstance(outcome, transport.Session), outcome
    secured: Secured = outcome.secured
    assert (secured.policy, secured.verified) == (security.policy, expected.verified), secured
    assert expected.note in secured.note
    assert bool(expected.note) == bool(secured.note)
    assert (secured.tls or "").startswith(expected.tls)
    assert (secured.tls is None) == (expected.tls == "")
    assert len(records) == 1
    assert (records[0].tls is None) == (expected.tls == "")


def test_a_host_whose_name_cannot_stand_in_a_certificate(directory: Path) -> None:
    """The DNS may hold any octets: no rule is fulfilled, and no exception is raised."""
    host = "\\252" * 40 + ".example.net"

    async def main() -> None:
        async with served(Server(), directory) as (port, _):
            settings = Outbound(port=port, ca_file=str(directory / "roots.pem"), command_timeout=5)
            where = Target(host, "127.0.0.1"), "127.0.0.1", "relay.example"
            session = await transport.connect(settings, Place(*where, OPPORTUNISTIC))
            assert (session.secured.tls is not None, session.secured.verified) == (True, False)
            await session.close()
            with pytest.raises(transport.Broken, match="no name that a certificate can have"):
                await transport.connect(settings, Place(*where, STS))

    uvloop.run(main())


def test_goodbye_to_a_server_that_has_gone_silent(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither QUIT nor the end of TLS is answered: the socket is closed all the same, and soon."""
    monkeypatch.setattr(transport, "_LAST_WORD", 0.1)

    async def main() -> None:
        async with served(Server(), directory) as (port, _):
            silent, closed, ends = asyncio.Event(), asyncio.Event(), contextlib.ExitStack()

            async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                ends.callback(writer.transport.abort)
                behind_reader, behind_writer = await asyncio.open_connection("127.0.0.1", port)

                async def back() -> None:
                    while data := await behind_reader.read(65536):
                        if not silent.is_set():
                            writer.write(data)

                answering = asyncio.create_task(back())
                with contextlib.suppress(ConnectionResetError):
                    while data := await reader.read(65536):
                        behind_writer.write(data)
                closed.set()
                for end in (behind_writer, writer):
                    end.close()
                await answering

            async with await asyncio.start_server(relay, "127.0.0.1", 0) as front:
                settings = Outbound(port=front.sockets[0].getsockname()[1], command_timeout=5)
                place = Place(Target(HOST, "127.0.0.1"), "127.0.0.1", "relay.example", OPPORTUNISTIC)
                session = await transport.connect(settings, place)
                assert session.secured.tls is not None
                silent.set()
                await session.close()
                with ends:
                    async with asyncio.timeout(5):  # asyncio itself would wait 30 s for the end of TLS
                        await closed.wait()

    uvloop.run(main())
