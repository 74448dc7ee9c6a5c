"""The mailbox's page, read over HTTP."""

import asyncio
import contextlib
import http.client
import smtplib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest

from remails.dev.archive import Record
from remails.dev.mailbox import MAGIC, Mailbox

EVIL = '<script>alert("1")</script>'


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()


@contextlib.asynccontextmanager
async def running(directory: Path) -> AsyncIterator[Mailbox]:
    mailbox = Mailbox(directory, ("127.0.0.1", 9), http=("127.0.0.1", 0))
    try:
        await mailbox.start()
        yield mailbox
    finally:
        await mailbox.close()


async def deliver(mailbox: Mailbox, raw: bytes, *recipients: str, sender: str = "a@example.com") -> Record:
    def send() -> None:
        with smtplib.SMTP("127.0.0.1", mailbox.port, "client.example", timeout=10) as smtp:
            smtp.sendmail(sender, recipients or ["b@example.net"], raw)

    count = len(mailbox.records)
    await asyncio.to_thread(send)
    return (await mailbox.wait(count + 1))[-1]


async def fetch(mailbox: Mailbox, path: str, method: str = "GET", host: str = "localhost") -> Answer:
    assert mailbox.page
    port = mailbox.page.port

    def request() -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        with contextlib.closing(connection):
            connection.request(method, path, headers={"Host": host})
            response = connection.getresponse()
            return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())

    return await asyncio.to_thread(request)


async def speak(mailbox: Mailbox, request: bytes) -> bytes:
    assert mailbox.page
    reader, writer = await asyncio.open_connection("127.0.0.1", mailbox.page.port)
    writer.write(request)
    answer = await reader.read()
    writer.close()
    return answer


def check(directory: Path, scenario: Callable[[Mailbox], Any]) -> None:
    async def run() -> None:
        async with running(directory) as mailbox:
            await scenario(mailbox)

    asyncio.run(run())


def test_list_and_page_of_a_mail(tmp_path: Path) -> None:
    raw = (
        "From: =?utf-8?q?J=C3=B6rg?= <j@example.com>\r\nTo: b@example.net\r\nSubject: Good day\r\nX-Own: field\r\n"
        "Content-Type: text/plain; charset=utf-8\r\n\r\nZwölf Boxkämpfer\r\n"
    ).encode()

    async def scenario(mailbox: Mailbox) -> None:
        empty = await fetch(mailbox, "/")
        assert "No mail yet" in empty.text
        assert all(f"{part}@" in empty.text and what in empty.text for part, what in MAGIC.items())
        record = await deliver(mailbox, raw, "b1@example.net", "b2@example.net")
        page = (await fetch(mailbox, "/")).text
        for piece in ("Good day", "Jörg &lt;j@example.com&gt;", "b1@example.net, b2@example.net", "127.0.0.1"):
            assert piece in page
        assert "not signed" in page
        assert f'href="/messages/{record.id}"' in page
        mail = (await fetch(mailbox, f"/messages/{record.id}")).text
        for piece in ("Zwölf Boxkämpfer", "X-Own: field", "client.example", f"/messages/{record.id}.eml", record.reply):
            assert piece in mail

    check(tmp_path, scenario)


def test_what_strangers_write_is_escaped(tmp_path: Path) -> None:
    raw = (
        f'Subject: {EVIL}\r\nFrom: "{EVIL}" <a@example.com>\r\nTo: {EVIL}\r\n'
        f'Content-Type: multipart/mixed; boundary="x"\r\n\r\n'
        f"--x\r\nContent-Type: text/html\r\n\r\n{EVIL}\r\n"
        f'--x\r\nContent-Type: image/png; name="{EVIL.replace(chr(34), "")}"\r\n\r\nabc\r\n'
        f"--x\r\nContent-Type: text/{EVIL}\r\n\r\n{EVIL}\r\n--x--\r\n"
    ).encode()

    async def scenario(mailbox: Mailbox) -> None:
        record = await deliver(mailbox, raw, sender='"<script>"@example.com')
        for path in ("/", f"/messages/{record.id}"):
            answer = await fetch(mailbox, path)
            assert answer.status == 200
            assert "<script" not in answer.text
            assert "&lt;script&gt;alert(" in answer.text
            assert answer.headers["content-security-policy"].startswith("default-src 'none'; style-src 'self'; ")
            assert "unsafe" not in answer.headers["content-security-policy"]
            assert answer.headers["x-content-type-options"] == "nosniff"

    check(tmp_path, scenario)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"no header at all\r\n",
        b"Content-Type: text/plain; charset=no-such\r\n\r\n\xff\r\n",
        b"Content-Type: text/plain; charset=base64\r\n\r\nx\r\n",
        b"Content-Type: text/plain\r\nContent-Transfer-Encoding: base64\r\n\r\n!!!\r\n",
        b"Content-Type: multipart/mixed\r\n\r\nno boundary\r\n",
        b"Content-Type: message/rfc822\r\n\r\nSubject: inner\r\n\r\nx\r\n",
        b"".join(b"Content-Type: multipart/mixed; boundary=b%d\r\n\r\n--b%d\r\n" % (n, n) for n in range(2000)),
        b"Content-Type: multipart/mixed; boundary=b\r\n\r\n" + b"--b\r\n\r\nx\r\n" * 500 + b"--b--\r\n",
        b"Content-Disposition: attachment; filename*=utf-8''%ff%fe\r\nContent-Type: a/b\r\n\r\nx\r\n",
    ],
)
def test_broken_mails_are_shown(tmp_path: Path, raw: bytes, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(mailbox: Mailbox) -> None:
        record = await deliver(mailbox, raw)
        assert (await fetch(mailbox, f"/messages/{record.id}")).status == 200

    check(tmp_path, scenario)
    assert "cannot show" not in caplog.text


def test_raw_bytes_are_the_mail(tmp_path: Path) -> None:
    raw = b"Subject: x\r\n\r\n\xff.\r\n\r\n"

    async def scenario(mailbox: Mailbox) -> None:
        record = await deliver(mailbox, raw)
        answer = await fetch(mailbox, f"/messages/{record.id}.eml")
        assert answer.body == raw
        assert answer.headers["content-type"] == "message/rfc822"
        assert answer.headers["content-disposition"] == f'attachment; filename="{record.id}.eml"'

    check(tmp_path, scenario)


def test_messages_json_and_since(tmp_path: Path) -> None:
    async def scenario(mailbox: Mailbox) -> None:
        records = [await deliver(mailbox, b"Subject: %d\r\n\r\n" % number) for number in range(3)]
        answer = await fetch(mailbox, "/messages.json")
        assert answer.headers["content-type"] == "application/json"
        assert msgspec.json.decode(answer.body, type=list[Record]) == records
        assert "raw" not in msgspec.json.decode(answer.body)[0]
        answer = await fetch(mailbox, f"/messages.json?since={records[1].id}")
        assert msgspec.json.decode(answer.body, type=list[Record]) == records[2:]

    check(tmp_path, scenario)


def test_older_mails_are_on_further_pages(tmp_path: Path) -> None:
    async def scenario(mailbox: Mailbox) -> None:
        with smtplib.SMTP() as smtp:
            await asyncio.to_thread(smtp.connect, "127.0.0.1", mailbox.port)
            for number in range(101):
                raw = b"Subject: number-%d-\r\n\r\n" % number
                await asyncio.to_thread(smtp.sendmail, "a@example.com", ["b@example.net"], raw)
                await mailbox.wait(number + 1)
            await asyncio.to_thread(smtp.quit)
        first = (await fetch(mailbox, "/")).text
        assert "number-100-" in first
        assert "number-0-" not in first
        (link,) = [part.partition('"')[0] for part in first.split('href="')[1:] if part.startswith("/?before=")]
        second = (await fetch(mailbox, link)).text
        assert "number-0-" in second
        assert "number-1-" not in second
        assert "before=" not in second

    check(tmp_path, scenario)


def test_head_has_no_body(tmp_path: Path) -> None:
    async def scenario(mailbox: Mailbox) -> None:
        answer = await speak(mailbox, b"HEAD / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
        assert answer.endswith(b"\r\n\r\n")
        assert b"Content-Length: 0" not in answer

    check(tmp_path, scenario)


@pytest.mark.parametrize(
    ("method", "path", "host", "status"),
    [
        ("GET", "/style.css", "127.0.0.1:8025", 200),
        ("GET", "/style.css", "[::1]:8025", 200),
        ("GET", "/style.css", "mail.localhost", 200),
        ("GET", "/", "evil.example", 421),
        ("GET", "/", "localhost.evil.example", 421),
        ("GET", "/messages/none", "localhost", 404),
        ("GET", "/messages/../../etc/passwd", "localhost", 404),
        ("GET", "/messages/%2e%2e%2fx.eml", "localhost", 404),
        ("GET", "//[", "localhost", 404),
        ("POST", "/", "localhost", 405),
        ("DELETE", "/messages.json", "localhost", 405),
    ],
)
def test_statuses(tmp_path: Path, method: str, path: str, host: str, status: int) -> None:
    async def scenario(mailbox: Mailbox) -> None:
        answer = await fetch(mailbox, path, method, host)
        assert answer.status == status
        assert answer.headers["content-security-policy"].startswith("default-src 'none'; ")

    check(tmp_path, scenario)


@pytest.mark.parametrize(
    ("request_head", "status"),
    [
        (b"\r\n\r\n", b"400"),
        (b"GET /\r\n\r\n", b"400"),
        (b"GET http://x/ HTTP/1.1\r\n\r\n", b"400"),
        (b"\xff\xfe \xff \xff\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\n\r\n", b"421"),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n", b"421"),
        (b"GET / HTTP/1.1\r\nX: " + b"x" * 20_000 + b"\r\n\r\n", b"431"),
    ],
)
def test_odd_requests(tmp_path: Path, request_head: bytes, status: bytes) -> None:
    async def scenario(mailbox: Mailbox) -> None:
        assert (await speak(mailbox, request_head))[9:12] == status

    check(tmp_path, scenario)
