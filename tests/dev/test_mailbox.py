"""The development mailbox, reached by smtplib, aiosmtplib and bare sockets; signatures made by dkimpy."""

import asyncio
import base64
import contextlib
import datetime
import smtplib
import socket
import ssl
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiosmtplib
import dkim as dkimpy
import pytest
import uvloop
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from remails.dev import mailbox as module
from remails.dev.archive import Archive
from remails.dev.dns import Code, Server, StaticZone
from remails.dev.mailbox import Mailbox
from remails.dev.smtp import Action, Script

MAIL = b"From: A <a@example.com>\r\nTo: b@example.net\r\nSubject: Hello\r\n\r\nText\r\n"
NO_DNS = ("127.0.0.1", 9)  # never asked: the mails are not signed


@contextlib.asynccontextmanager
async def running(directory: Path, nameserver: tuple[str, int] = NO_DNS, **options: Any) -> AsyncIterator[Mailbox]:
    mailbox = Mailbox(directory, nameserver, **options)
    try:
        await mailbox.start()
        yield mailbox
    finally:
        await mailbox.close()


async def client(mailbox: Mailbox, work: Callable[[smtplib.SMTP], Any], source: str = "127.0.0.1") -> Any:
    """Do the work with a connected smtplib client, in a thread."""

    def connected() -> Any:
        smtp = smtplib.SMTP("127.0.0.1", mailbox.port, "client.example", timeout=10, source_address=(source, 0))
        with contextlib.closing(smtp):
            return work(smtp)

    return await asyncio.to_thread(connected)


def send(
    *recipients: str, raw: bytes = MAIL, sender: str = "a@example.com"
) -> Callable[[smtplib.SMTP], dict[str, tuple[int, bytes]]]:
    return lambda smtp: smtp.sendmail(sender, recipients, raw)


def replies(*commands: bytes | str) -> Callable[[smtplib.SMTP], list[str]]:
    """The replies to EHLO, which comes first, and the commands."""

    def work(smtp: smtplib.SMTP) -> list[str]:
        answers = [smtp.ehlo()]
        for command in commands:
            smtp.send(command if isinstance(command, bytes) else command + "\r\n")
            answers.append(smtp.getreply())
        return [f"{code} {text.decode()}" for code, text in answers]

    return work


def offers(smtp: smtplib.SMTP) -> set[str]:
    smtp.ehlo()
    return {name.upper() for name in smtp.esmtp_features}


# What is kept


def test_a_record_tells_how_the_mail_came(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as mailbox:
            await client(mailbox, send("b@example.net", "c@example.org"), source="127.0.0.5")
            (record,) = await mailbox.wait(1)
            assert (record.peer_ip, record.local_ip) == ("127.0.0.5", "127.0.0.1")
            assert record.peer_port > 0
            assert record.helo == "client.example"
            assert (record.mail_from, record.rcpt_tos) == ("a@example.com", ["b@example.net", "c@example.org"])
            assert record.options == [f"SIZE={len(MAIL)}"]
            assert (record.tls, record.dkim) == (None, [])
            assert (record.subject, record.header_from) == ("Hello", "A <a@example.com>")
            assert record.header_to == "b@example.net"
            assert record.reply == f"250 2.0.0 Ok: kept as {record.id}"
            assert record.received_at.utcoffset() == datetime.timedelta(0)
            assert abs(record.received_at.timestamp() - time.time()) < 60
            assert (mailbox.raw(record.id), record.size) == (MAIL, len(MAIL))

    asyncio.run(scenario())


def test_a_mail_is_recorded_whose_sender_went_while_it_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep = Archive.keep
    written, leave, gone = threading.Event(), threading.Event(), threading.Event()

    def slowly(archive: Archive, raw: bytes) -> str:
        mail_id = keep(archive, raw)
        written.set()
        assert gone.wait(10)
        return mail_id

    def work(smtp: smtplib.SMTP) -> None:
        smtp.ehlo()
        smtp.mail("a@example.com")
        smtp.rcpt("b@example.net")
        smtp.docmd("DATA")
        smtp.send(MAIL + b".\r\n")
        assert leave.wait(10)

    async def scenario() -> None:
        async with running(tmp_path) as mailbox:
            sending = asyncio.create_task(client(mailbox, work))
            await asyncio.to_thread(written.wait, 10)
            (connection,) = mailbox._connections
            leave.set()
            await asyncio.wait({connection._handler_coroutine})  # which ends when the sender has gone
            gone.set()
            await sending
            (record,) = await mailbox.wait(1)
            assert mailbox.raw(record.id) == MAIL

    monkeypatch.setattr(Archive, "keep", slowly)
    asyncio.run(scenario())


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize(
    "body",
    [
        b".\r\n..x\r\n.y\r\n\r\n",  # P05: dots everywhere, a blank last line
        b"no dots, blank end\r\n\r\n\r\n",
        b"\r\n",
        "é ü \x80".encode() + b"\xff\xfe\r\n",
        b"nul \0 and bare \n and bare \r here\r\n",
        b"x" * 998 + b"\r\n",
    ],
)
def test_bytes_are_kept_as_sent(tmp_path: Path, body: bytes, tls: bool) -> None:
    raw = b"Subject: bytes\r\n\r\n" + body
    stuffed = b"\r\n".join(b"." + line if line.startswith(b".") else line for line in raw.split(b"\r\n"))

    def work(smtp: smtplib.SMTP) -> None:
        if tls:
            smtp.starttls()
        smtp.ehlo()
        smtp.mail("a@example.com", ["BODY=8BITMIME"])
        smtp.rcpt("b@example.net")
        assert smtp.docmd("DATA")[0] == 354
        smtp.send(stuffed + b".\r\n")
        assert smtp.getreply()[0] == 250

    async def scenario() -> None:
        async with running(tmp_path) as mailbox:
            await client(mailbox, work)
            (record,) = await mailbox.wait(1)
            assert mailbox.raw(record.id) == raw
            assert record.options == ["BODY=8BITMIME"]
            assert (record.tls is not None) == tls

    asyncio.run(scenario())


def test_smtputf8_addresses_and_null_sender(tmp_path: Path) -> None:
    """P19: `<>` is the empty sender."""
    commands = ["MAIL FROM:<> SMTPUTF8", "RCPT TO:<bü@bücher.example>".encode() + b"\r\n", "DATA"]
    text = "Subject: =?utf-8?q?gr=C3=BC=C3=9Fe?= \r\n\tan alle\r\nFrom: jörg@example.com\r\n\r\n.\r\n".encode()

    async def scenario() -> None:
        async with running(tmp_path) as mailbox:
            await client(mailbox, replies(*commands, text))
            (record,) = await mailbox.wait(1)
            assert (record.mail_from, record.rcpt_tos) == ("", ["bü@bücher.example"])
            assert record.options == ["SMTPUTF8"]
            assert record.subject == "grüße an alle"
            assert record.header_from == "jörg@example.com"

    asyncio.run(scenario())


@pytest.mark.parametrize("field", [b"=?x-no-such?q?a?=", b"=?utf-8?b?!!?=", b"\xff\xfe", b"=?utf-8?q?=ed=a0=80?=", b""])
def test_odd_fields_and_names_are_kept(tmp_path: Path, field: bytes) -> None:
    raw = b"Subject: " + field + b"\r\nFrom: " + field + b"\r\n\r\n"

    def work(smtp: smtplib.SMTP) -> None:
        smtp.send(b"EHLO \xff\xfe\r\n")
        smtp.getreply()
        send("b@example.net", raw=raw)(smtp)

    async def scenario() -> None:
        async with running(tmp_path) as mailbox:
            await client(mailbox, work)
            (record,) = await mailbox.wait(1)
            assert mailbox.raw(record.id) == raw
        async with running(tmp_path) as mailbox:
            assert mailbox.records == [record]

    asyncio.run(scenario())


def test_two_addresses_and_which_was_used(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path, addresses=[("127.0.0.1", 0), ("127.0.0.7", 0)]) as mailbox:
            assert len(mailbox.ports) == 2
            await aiosmtplib.send(MAIL, hostname="127.0.0.7", port=mailbox.ports[1], start_tls=False, **ENVELOPE)
            (record,) = await mailbox.wait(1)
            assert record.local_ip == "127.0.0.7"

    asyncio.run(scenario())


ENVELOPE: dict[str, Any] = {"sender": "a@example.com", "recipients": ["b@example.net"]}


def test_restart_keeps_messages(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path / "mails") as mailbox:
            for number in range(3):
                await client(mailbox, send("b@example.net", raw=MAIL + b"%d\r\n" % number))
            before = await mailbox.wait(3)
        assert oct((tmp_path / "mails").stat().st_mode & 0o777) == "0o700"
        async with running(tmp_path / "mails") as mailbox:
            assert mailbox.records == before
            assert [mailbox.raw(record.id)[-3:] for record in before] == [b"0\r\n", b"1\r\n", b"2\r\n"]
            await client(mailbox, send("c@example.net"))
            assert (await mailbox.wait(4))[:3] == before

    asyncio.run(scenario())


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path, limit=2) as mailbox:
            for number in range(4):
                await client(mailbox, send(f"b{number}@example.net"))
                await mailbox.wait(lambda record, number=number: record.rcpt_tos == [f"b{number}@example.net"])
            assert [record.rcpt_tos for record in mailbox.records] == [["b2@example.net"], ["b3@example.net"]]

    asyncio.run(scenario())
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".eml", ".eml", ".json", ".json"]


def test_wait_for_a_record_that_fits(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as mailbox:
            waiting = asyncio.create_task(mailbox.wait(lambda record: "c@example.net" in record.rcpt_tos))
            await client(mailbox, send("b@example.net"))
            await mailbox.wait(1)
            assert not waiting.done()
            await client(mailbox, send("c@example.net"))
            assert [record.rcpt_tos for record in await waiting] == [["c@example.net"]]
            with pytest.raises(TimeoutError):
                await mailbox.wait(3, timeout=0.05)

    asyncio.run(scenario())


# The protocol


def test_ehlo_offers(tmp_path: Path) -> None:
    def work(smtp: smtplib.SMTP) -> tuple[set[str], set[str], str]:
        before = offers(smtp)
        smtp.starttls()
        return before, offers(smtp), smtp.esmtp_features["size"]

    async def scenario() -> None:
        async with running(tmp_path, size_limit=123_456) as mailbox:
            before, after, size = await client(mailbox, work)
            assert after == {"8BITMIME", "SMTPUTF8", "SIZE", "ENHANCEDSTATUSCODES", "PIPELINING"}
            assert before == after | {"STARTTLS"}
            assert size == "123456"

    asyncio.run(scenario())


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_starttls_with_a_self_signed_certificate(tmp_path: Path, new_loop: Any) -> None:
    def work(smtp: smtplib.SMTP) -> bytes:
        smtp.starttls()
        send("b@example.net")(smtp)
        assert isinstance(smtp.sock, ssl.SSLSocket)
        certificate = smtp.sock.getpeercert(binary_form=True)
        assert certificate
        return certificate

    async def scenario() -> None:
        async with running(tmp_path, hostname="mx.example.test") as mailbox:
            certificate = x509.load_der_x509_certificate(await client(mailbox, work))
            key = certificate.public_key()
            assert isinstance(key, ec.EllipticCurvePublicKey)
            assert key.curve.name == "secp256r1"
            certificate.verify_directly_issued_by(certificate)
            names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            assert names.get_values_for_type(x509.DNSName) == ["mx.example.test"]
            await aiosmtplib.send(
                MAIL, hostname="127.0.0.1", port=mailbox.port, start_tls=True, validate_certs=False, **ENVELOPE
            )
            for record in await mailbox.wait(2):
                assert record.tls
                assert record.tls.version == "TLSv1.3"
                assert record.tls.cipher.startswith("TLS_")

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(scenario())


def test_a_client_that_verifies_fails_and_the_next_is_served(tmp_path: Path) -> None:
    def work(smtp: smtplib.SMTP) -> None:
        with pytest.raises(ssl.SSLCertVerificationError):
            smtp.starttls(context=ssl.create_default_context())

    async def scenario() -> None:
        async with running(tmp_path) as mailbox:
            await client(mailbox, work)
            await client(mailbox, send("b@example.net"))
            await mailbox.wait(1)

    asyncio.run(scenario())


def test_without_tls_none_is_offered(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path, tls=False) as mailbox:
            assert "STARTTLS" not in await client(mailbox, offers)
            assert (await client(mailbox, replies("STARTTLS")))[1].startswith("454 ")

    asyncio.run(scenario())


def test_pipelined_commands_are_answered_in_order(tmp_path: Path) -> None:
    """RFC 2920: MAIL, RCPT and DATA in one write, the text and the next transaction in another."""

    def work(smtp: smtplib.SMTP) -> list[int]:
        smtp.ehlo()
        smtp.send("MAIL FROM:<a@example.com>\r\nRCPT TO:<bounce@x.example>\r\nRCPT TO:<b@x.example>\r\nDATA\r\n")
        codes = [smtp.getreply()[0] for _ in range(4)]
        smtp.send("Subject: 1\r\n\r\n.\r\nMAIL FROM:<a@example.com>\r\nQUIT\r\n")
        return codes + [smtp.getreply()[0] for _ in range(3)]

    async def scenario() -> None:
        async with running(tmp_path) as mailbox:
            assert await client(mailbox, work) == [250, 550, 250, 354, 250, 250, 221]
            assert [record.rcpt_tos for record in await mailbox.wait(1)] == [["b@x.example"]]

    asyncio.run(scenario())


def test_too_big_is_refused(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path, size_limit=1000) as mailbox:
            with pytest.raises(smtplib.SMTPSenderRefused, match="552"):
                await client(mailbox, send("b@example.net", raw=b"x" * 1001))
            text = b"x" * 500 + b"\r\n"
            answers = await client(
                mailbox, replies("MAIL FROM:<a@example.com>", "RCPT TO:<b@example.net>", "DATA", text * 3 + b".\r\n")
            )
            assert answers[-1].startswith("552 ")
            assert mailbox.records == []

    asyncio.run(scenario())


def test_close_ends_open_connections(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as mailbox:
            reader, writer = await asyncio.open_connection("127.0.0.1", mailbox.port)
            assert (await reader.readline()).startswith(b"220 mailbox.test ")
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
        writer.close()

    asyncio.run(scenario())


# Magic local parts


@pytest.mark.parametrize(
    ("address", "reply"),
    [
        ("bounce@example.net", "550 5.1.1 "),
        ("Bounce+1@other.example", "550 5.1.1 "),
        ("defer@example.net", "451 4.3.0 "),
        ("full+a+b@example.net", "452 4.2.2 "),
        ("bouncer@example.net", "250 "),
        ("x+bounce@example.net", "250 "),
    ],
)
def test_magic_at_rcpt(tmp_path: Path, address: str, reply: str) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as mailbox:
            commands = ["MAIL FROM:<a@example.com>", f"RCPT TO:<{address}>", f"RCPT TO:<{address}>"]
            for answer in (await client(mailbox, replies(*commands)))[2:]:
                assert answer.startswith(reply)

    asyncio.run(scenario())


def test_one_refused_recipient_does_not_stop_the_other(tmp_path: Path) -> None:
    """O13."""

    async def scenario() -> None:
        async with running(tmp_path) as mailbox:
            failed = await client(mailbox, send("b@example.net", "bounce@example.net", "defer@example.net"))
            assert {address: code for address, (code, _) in failed.items()} == {
                "bounce@example.net": 550,
                "defer@example.net": 451,
            }
            (record,) = await mailbox.wait(1)
            assert record.rcpt_tos == ["b@example.net"]

    asyncio.run(scenario())


def test_busy_says_421_and_closes(tmp_path: Path) -> None:
    def work(smtp: smtplib.SMTP) -> None:
        assert replies("MAIL FROM:<a@example.com>", "RCPT TO:<busy@example.net>")(smtp)[2].startswith("421 4.7.0 ")
        assert smtp.sock
        assert smtp.sock.recv(1) == b""

    async def scenario() -> None:
        async with running(tmp_path) as mailbox:
            await client(mailbox, work)

    asyncio.run(scenario())


def test_greylist_passes_after_its_period(tmp_path: Path) -> None:
    """O16: per source address, sender and recipient."""

    async def scenario() -> None:
        async with running(tmp_path, greylist_period=0.3) as mailbox:

            async def code(source: str = "127.0.0.1", sender: str = "a@example.com") -> int:
                try:
                    await client(mailbox, send("greylist@example.net", sender=sender), source)
                except smtplib.SMTPRecipientsRefused as refused:
                    ((code, text),) = refused.recipients.values()
                    assert text.startswith(b"4.7.1 ")
                    return int(code)
                return 250

            begun = time.monotonic()
            assert await code() == 451
            while await code() == 451:
                assert time.monotonic() - begun < 10
            assert time.monotonic() - begun >= 0.3
            assert await code(source="127.0.0.6") == 451
            assert await code(sender="b@example.com") == 451
            assert await code() == 250

    asyncio.run(scenario())


def test_greylist_keeps_deferring_within_its_period(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as mailbox:
            for _ in range(3):
                with pytest.raises(smtplib.SMTPRecipientsRefused):
                    await client(mailbox, send("greylist+x@example.net"))

    asyncio.run(scenario())


def test_slow_accepts_late(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path, slow_reply=0.3) as mailbox:
            begun = time.monotonic()
            await client(mailbox, send("slow@example.net"))
            assert time.monotonic() - begun >= 0.3
            await mailbox.wait(1)

    asyncio.run(scenario())


@pytest.mark.parametrize("tls", [False, True])
def test_drop_leaves_the_sender_without_a_reply(tmp_path: Path, tls: bool) -> None:
    """O23: the mail is there, and the sender cannot know."""

    def work(smtp: smtplib.SMTP) -> None:
        if tls:
            smtp.starttls()
        with pytest.raises(smtplib.SMTPServerDisconnected):
            send("drop@example.net")(smtp)

    async def scenario() -> None:
        async with running(tmp_path) as mailbox:
            await client(mailbox, work)
            (record,) = await mailbox.wait(1)
            assert record.reply == ""
            assert mailbox.raw(record.id) == MAIL

    asyncio.run(scenario())


def test_reject_data_refuses_the_content_and_nothing_is_kept(tmp_path: Path) -> None:
    def work(smtp: smtplib.SMTP) -> None:
        with pytest.raises(smtplib.SMTPDataError) as refused:
            send("b@example.net", "reject-data@example.net")(smtp)
        assert refused.value.smtp_code == 554
        assert refused.value.smtp_error.startswith(b"5.7.1 ")
        send("c@example.net")(smtp)

    async def scenario() -> None:
        async with running(tmp_path) as mailbox:
            await client(mailbox, work)
            assert [record.rcpt_tos for record in await mailbox.wait(1)] == [["c@example.net"]]

    asyncio.run(scenario())


def test_every_magic_part_is_in_the_docstring() -> None:
    assert module.__doc__
    assert all(f"{part}@" in module.__doc__ for part in module.MAGIC)
    assert set(module.MAGIC) == {*module.AT_RCPT, *module.AT_DOT, "greylist", "slow"}


# DKIM


@contextlib.asynccontextmanager
async def with_keys(directory: Path, zone: StaticZone) -> AsyncIterator[Mailbox]:
    server = Server(zone)
    await server.start()
    try:
        async with running(directory, (server.host, server.port)) as mailbox:
            yield mailbox
    finally:
        await server.close()


def signed(selector: bytes, raw: bytes = MAIL) -> tuple[bytes, str]:
    """The mail with an Ed25519 signature for example.com, and the key record."""
    key = ed25519.Ed25519PrivateKey.generate()
    secret = base64.b64encode(key.private_bytes_raw())
    field = dkimpy.sign(raw, selector, b"example.com", secret, signature_algorithm=b"ed25519-sha256")
    public = base64.b64encode(key.public_key().public_bytes_raw()).decode()
    return field + raw, f"v=DKIM1; k=ed25519; p={public}"


def test_dkim_verdicts(tmp_path: Path) -> None:
    raw, key = signed(b"s1")
    twice, key2 = signed(b"s2", raw)
    zone = StaticZone({("s1._domainkey.example.com", "TXT"): [key], ("s2._domainkey.example.com", "TXT"): [key2]})

    async def scenario() -> None:
        async with with_keys(tmp_path, zone) as mailbox:
            for number, text in enumerate([raw, raw.replace(b"Text", b"Test"), MAIL, twice]):
                await client(mailbox, send(f"b{number}@example.net", raw=text))
            records = {record.rcpt_tos[0][:2]: record for record in await mailbox.wait(4)}
            (good,) = records["b0"].dkim
            assert (good.domain, good.selector, good.algorithm) == ("example.com", "s1", "ed25519-sha256")
            assert good.ok
            (bad,) = records["b1"].dkim
            assert not bad.ok
            assert bad.reason
            assert records["b2"].dkim == []
            assert {(s.selector, s.ok) for s in records["b3"].dkim} == {("s1", True), ("s2", True)}
            before = mailbox.records
        async with running(tmp_path) as mailbox:
            assert sorted(mailbox.records, key=lambda r: r.id) == sorted(before, key=lambda r: r.id)

    asyncio.run(scenario())


@pytest.mark.parametrize("answer", [Code.NXDOMAIN, Code.SERVFAIL, ["v=DKIM1; p="], ["nonsense"]])
def test_dkim_without_a_usable_key_fails_with_a_reason(
    tmp_path: Path, answer: Code | list[str], caplog: pytest.LogCaptureFixture
) -> None:
    raw, _ = signed(b"s1")

    async def scenario() -> None:
        async with with_keys(tmp_path, StaticZone({("s1._domainkey.example.com", "TXT"): answer})) as mailbox:
            await client(mailbox, send("b@example.net", raw=raw))
            ((verdict,),) = [record.dkim for record in await mailbox.wait(1)]
            assert not verdict.ok
            assert verdict.reason

    asyncio.run(scenario())
    assert "cannot verify" not in caplog.text


# Scripts


def scripted(directory: Path, script: Script, work: Callable[[smtplib.SMTP], Any]) -> tuple[Any, list[list[str]]]:
    """What the work returns, and the recipients of each mail kept."""

    async def scenario() -> tuple[Any, list[list[str]]]:
        async with running(directory, script=script) as mailbox:
            result = await client(mailbox, work)
            await mailbox.close()
            return result, [record.rcpt_tos for record in mailbox.records]

    return asyncio.run(scenario())


def test_script_banner_421_closes(tmp_path: Path) -> None:
    """O11."""
    with pytest.raises(smtplib.SMTPConnectError, match=r"421.*try again"):
        scripted(tmp_path, Script(banner="421 4.7.0 try again later"), replies())


def test_script_banner_554_leaves_only_quit(tmp_path: Path) -> None:
    async def scenario() -> list[bytes]:
        async with running(tmp_path, script=Script(banner="554 5.7.1 blocked")) as mailbox:
            reader, writer = await asyncio.open_connection("127.0.0.1", mailbox.port)
            writer.write(b"EHLO c.example\r\nHELO c.example\r\nMAIL FROM:<a@example.com>\r\nQUIT\r\n")
            lines = (await reader.read()).splitlines()
            writer.close()
            return lines

    assert [line[:3] for line in asyncio.run(scenario())] == [b"554", b"503", b"503", b"503", b"221"]


@pytest.mark.parametrize("missing", ["STARTTLS", "8BITMIME", "SMTPUTF8", "PIPELINING", "SIZE"])
def test_script_without_an_extension(tmp_path: Path, missing: str) -> None:
    found, _ = scripted(tmp_path, Script(without=frozenset({missing})), offers)
    assert found == {"STARTTLS", "8BITMIME", "SMTPUTF8", "SIZE", "ENHANCEDSTATUSCODES", "PIPELINING"} - {missing}


def test_script_what_is_not_offered_is_refused(tmp_path: Path) -> None:
    """O27, O28."""
    script = Script(without=frozenset({"8BITMIME", "SMTPUTF8", "STARTTLS"}))
    commands = ["MAIL FROM:<a@example.com> BODY=8BITMIME", "MAIL FROM:<a@example.com> SMTPUTF8", "STARTTLS"]
    answers, _ = scripted(tmp_path, script, replies(*commands))
    assert [answer[:3] for answer in answers[1:]] == ["555", "501", "454"]


def test_script_without_esmtp_there_is_helo(tmp_path: Path) -> None:
    def work(smtp: smtplib.SMTP) -> None:
        send("b@example.net")(smtp)  # smtplib falls back to HELO
        assert smtp.helo_resp and not smtp.does_esmtp
        assert smtp.docmd("EHLO", "x")[0] == 502

    _, kept = scripted(tmp_path, Script(without=frozenset({"ESMTP"})), work)
    assert kept == [["b@example.net"]]


def test_script_replies_per_verb_and_recipient(tmp_path: Path) -> None:
    """O15: the third recipient is one too many."""
    script = Script(
        ehlo="250-mx.example\r\n250 SIZE 10",
        mail="250 sender fine",
        rcpt=lambda address: "452 4.5.3 too many recipients" if address == "b3@example.net" else None,
        dot="250 Accepted",
    )
    commands = ["MAIL FROM:<a@example.com>", *(f"RCPT TO:<b{n}@example.net>" for n in (1, 2, 3)), "DATA", b"\r\n.\r\n"]
    answers, kept = scripted(tmp_path, script, replies(*commands))
    assert answers[0] == "250 mx.example\nSIZE 10"
    assert answers[1] == "250 sender fine"
    assert [answer[:3] for answer in answers[2:6]] == ["250", "250", "452", "354"]
    assert answers[6] == "250 Accepted"
    assert kept == [["b1@example.net", "b2@example.net"]]


@pytest.mark.parametrize("verb", ["ehlo", "mail", "rcpt", "data", "dot"])
def test_script_refuses_at_any_verb(tmp_path: Path, verb: str) -> None:
    script = Script(**{verb: "451 4.3.2 not now"})
    commands = ["MAIL FROM:<a@example.com>", "RCPT TO:<b@example.net>", "DATA"]
    if verb == "dot":
        commands.append("\r\n.")
    answers, kept = scripted(tmp_path, script, replies(*commands))
    at = ["ehlo", "mail", "rcpt", "data", "dot"].index(verb)
    assert answers[at] == "451 4.3.2 not now"
    assert all(answer[:3] in ("250", "354") for answer in answers[:at])
    assert all(answer.startswith("503 ") for answer in answers[at + 1 :])
    assert kept == []


@pytest.mark.parametrize("verb", ["banner", "ehlo", "mail", "rcpt", "data", "dot"])
def test_script_closes_at_any_verb(tmp_path: Path, verb: str) -> None:
    def work(smtp: smtplib.SMTP) -> None:
        send("b@example.net")(smtp)

    with pytest.raises(smtplib.SMTPServerDisconnected):
        scripted(tmp_path, Script(**{verb: Action.CLOSE}), work)
    assert len(list(tmp_path.glob("*.json"))) == (verb == "dot")


def test_script_hangs_until_the_client_goes(tmp_path: Path) -> None:
    """O23: the mail is kept, the reply never comes."""

    def work(smtp: smtplib.SMTP) -> None:
        smtp.ehlo()
        assert smtp.sock
        smtp.sock.settimeout(0.3)
        with pytest.raises((TimeoutError, smtplib.SMTPServerDisconnected)):
            send("b@example.net")(smtp)

    _, kept = scripted(tmp_path, Script(dot=Action.HANG), work)
    assert kept == [["b@example.net"]]


def test_script_sends_bytes_as_they_are(tmp_path: Path) -> None:
    """O25: codes that differ, a bare LF, octets that are not UTF-8."""

    def work(smtp: smtplib.SMTP) -> bytes:
        replies("MAIL FROM:<a@example.com>")(smtp)
        assert smtp.sock
        smtp.sock.sendall(b"RCPT TO:<b@example.net>\r\nQUIT\r\n")
        received = b""
        while chunk := smtp.sock.recv(1000):
            received += chunk
        return received

    received, _ = scripted(tmp_path, Script(rcpt=b"550-5.7.1 a\n250 Empf\xe4nger\r\n"), work)
    assert received == b"550-5.7.1 a\n250 Empf\xe4nger\r\n221 Bye\r\n"


def test_script_delays(tmp_path: Path) -> None:
    """O31: a tarpit at the banner and at RCPT."""
    begun = time.monotonic()
    scripted(tmp_path, Script(delay={"banner": 0.2, "rcpt": 0.1}), send("b@example.net", "c@example.net"))
    assert time.monotonic() - begun >= 0.4


def test_script_starttls_refused(tmp_path: Path) -> None:
    def work(smtp: smtplib.SMTP) -> None:
        with pytest.raises(smtplib.SMTPResponseException, match="454"):
            smtp.starttls()
        send("b@example.net")(smtp)

    _, kept = scripted(tmp_path, Script(starttls="454 4.7.0 TLS not available"), work)
    assert kept == [["b@example.net"]]


def test_script_starttls_that_comes_to_nothing(tmp_path: Path) -> None:
    """O17: 220, and then no handshake."""

    def work(smtp: smtplib.SMTP) -> None:
        with pytest.raises((ssl.SSLError, ConnectionError)):
            smtp.starttls()

    scripted(tmp_path, Script(starttls="220 2.0.0 go ahead"), work)


def test_a_vanished_client_leaves_nothing_behind(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as mailbox:
            halfway = b"EHLO x\r\nMAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>\r\nDATA\r\nhalf"
            for text in (b"", b"EHLO x\r\n", halfway):
                with socket.create_connection(("127.0.0.1", mailbox.port)) as sock:
                    sock.sendall(text)
            await client(mailbox, send("b@example.net"))
            assert len(await mailbox.wait(1)) == 1

    asyncio.run(scenario())
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []
