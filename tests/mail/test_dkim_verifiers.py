"""Our signatures, by RSA and Ed25519 together, before verifiers that are not ours (RFC 6376, RFC 8463)."""

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence

import pytest
import verifiers

from remails.dev.dns import Server, StaticZone
from remails.mail import dkim

RSA, ED25519 = dkim.generate(dkim.Algorithm.RSA), dkim.generate(dkim.Algorithm.ED25519)
HEADER = (
    b"From: App <app@example.com>\r\nSender: real@example.com\r\nReply-To: help@example.com\r\nTo: b@example.net\r\n"
    b"Subject: a  folded\r\n\tsubject \r\nDate: Mon, 01 Jan 2024 00:00:00 +0000\r\nMessage-ID: <m1@example.com>\r\n"
    b"List-Unsubscribe: <https://example.com/u/1>,\r\n\t<mailto:u@example.com>\r\n"
    b"List-Unsubscribe-Post: List-Unsubscribe=One-Click\r\nMIME-Version: 1.0\r\nContent-Type: text/plain\r\n"
)
BODY = b"\r\nHello  there, \r\n\r\n.bye\t \r\n\r\n"
Verifier = Callable[[Sequence[bytes], int], list[bool]]


def mail_dkim(mails: Sequence[bytes], port: int) -> list[bool]:
    """Mail::DKIM of Debian 12 does not know Ed25519 yet: that signature must not harm the other one."""
    return [{"rsa-sha256=pass": True}.get(results[0], False) for results in verifiers.mail_dkim(mails, port)]


def mailauth(mails: Sequence[bytes], port: int) -> list[bool]:
    """mailauth knows both, and must think the same of both."""
    verdicts = []
    for results in verifiers.mailauth(mails, port):
        algorithms, said = zip(*(result.split("=") for result in results), strict=True)
        assert algorithms == ("rsa-sha256", "ed25519-sha256")
        assert len(set(said)) == 1
        verdicts.append(said[0] == "pass")
    return verdicts


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """A name server with both keys."""
    zone = StaticZone(
        {(f"{name}._domainkey.example.com", "TXT"): [dkim.record(der)] for name, der in (("r", RSA), ("e", ED25519))}
    )
    loop, server = asyncio.new_event_loop(), Server(zone)
    loop.run_until_complete(server.start())
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield server.port
    asyncio.run_coroutine_threadsafe(server.close(), loop).result(10)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


@pytest.fixture(
    params=[
        pytest.param(mail_dkim, marks=pytest.mark.needs("perl")),
        pytest.param(mailauth, marks=pytest.mark.needs("node")),
    ]
)
def verifier(request: pytest.FixtureRequest) -> Verifier:
    found: Verifier = request.param
    return found


def signed(raw: bytes = HEADER + BODY) -> bytes:
    fields = [
        dkim.sign(raw, domain="example.com", selector=name, key=dkim.load(der), now=1_700_000_000)
        for name, der in (("r", RSA), ("e", ED25519))
    ]
    return b"".join(fields) + raw


ADDED = [
    b"From: evil@x.example", b"Subject: evil", b"To: evil@x.example", b"Date: Tue, 02 Jan 2024 00:00:00 +0000",
    b"Reply-To: evil@x.example", b"Sender: evil@x.example", b"Cc: evil@x.example", b"MIME-Version: 2.0",
    b"Content-Type: text/html", b"Message-ID: <evil@x.example>", b"List-Unsubscribe: <https://x.example>",
    b"List-Unsubscribe-Post: x", b"Content-Transfer-Encoding: base64",
]  # fmt: skip


def test_both_signatures_verify(verifier: Verifier, port: int) -> None:
    """Cases M15, M16, M19, M21."""
    mails = [signed(HEADER + body) for body in (BODY, b"\r\n", b"\r\nHello! \t\r\n  \r\n\r\n", b"\r\nno end")]
    mails.append(signed(b"From: a@example.com\r\n" + BODY))
    arrived = [mail if mail.endswith(b"\r\n") else mail + b"\r\n" for mail in mails]
    assert verifier(arrived, port) == [True] * 5


def test_no_field_can_be_added(verifier: Verifier, port: int) -> None:
    """Case M18: what is oversigned cannot be put on top, whether the message had one or not."""
    bare = signed(b"From: a@example.com\r\n" + BODY)
    mails = [field + b"\r\n" + mail for field in ADDED for mail in (signed(), bare)]
    assert verifier(mails, port) == [False] * len(mails)


def test_no_text_can_be_added(verifier: Verifier, port: int) -> None:
    """Case M19: there is no l=."""
    assert verifier([signed() + b"more\r\n"], port) == [False]
