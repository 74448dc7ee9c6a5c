"""A whole demo installation as its real processes, run by its own supervisor, and what a client of it does."""

import asyncio
import contextlib
import json
import smtplib
import socket
import ssl
import threading
import time
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Callable, Coroutine, Iterator
from email.message import EmailMessage
from pathlib import Path
from typing import Any, TypeVar

from remails.dev.home import Home, Ports
from remails.dev.supervisor import Supervisor

T = TypeVar("T")


class Installation:
    """The installation, and what a client of it does."""

    def __init__(self, directory: Path, base: int, *, lease: float = 3) -> None:
        self.home = Home(directory, Ports.from_base(base), lease=lease)
        self.supervisor = Supervisor(self.home, quiet=True)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def start(self) -> None:
        """Start everything and wait until mail can be sent."""
        self._thread.start()
        self._run(self.supervisor.start(), 90)

    def stop(self) -> None:
        """Stop everything."""
        self._run(self.supervisor.stop(), 90)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self, work: Coroutine[Any, Any, T], timeout: float) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout)

    @property
    def ports(self) -> Ports:
        """Where it listens."""
        return self.home.ports

    def pid(self, word: str) -> int:
        """The process id of a service."""
        running = self.supervisor.process(word).running
        assert running is not None
        return running.pid

    def tls(self) -> ssl.SSLContext:
        """A context that trusts the installation's certificate."""
        return ssl.create_default_context(cafile=str(self.home.directory / "tls" / "certificate.pem"))

    @contextlib.contextmanager
    def smtp(self) -> Iterator[smtplib.SMTP]:
        """A client that has said STARTTLS and AUTH."""
        with smtplib.SMTP("localhost", self.ports.submission, timeout=30) as client:
            client.starttls(context=self.tls())
            client.login(self.supervisor.demo.smtp_username, self.supervisor.demo.smtp_password)
            yield client

    def send(self, *recipients: str, raw: bytes | None = None, subject: str = "Hello") -> str:
        """Submit by SMTP; returns the id."""
        if raw is None:
            message = EmailMessage()
            message["From"], message["To"], message["Subject"] = "me@demo.example", recipients[0], subject
            message.set_content("Hi\n")
            raw = message.as_bytes().replace(b"\n", b"\r\n")
        with self.smtp() as client:
            client.mail("me@demo.example")
            for recipient in recipients:
                client.rcpt(recipient)
            code, text = client.data(raw)
            if code != 250:
                raise smtplib.SMTPDataError(code, text)
            return text.decode().split()[-1]

    def api(self, method: str, path: str, body: object = None) -> tuple[int, Any, Any]:
        """One call; returns status, document and headers. `path` is below the demo's organization unless it is absolute."""
        demo = self.supervisor.demo
        url = path if path.startswith("/") else f"/api/organizations/{demo.organization_id}/{path}"
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.ports.api}{url}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={
                "Authorization": "Basic " + b64encode(f"{demo.api_key}:{demo.api_secret}".encode()).decode(),
                "Content-Type": "application/json",
            },
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                return response.status, json.loads(response.read()), response.headers
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.loads(error.read()), error.headers

    def received(self) -> list[Any]:
        """What the mailbox has."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.ports.mailbox_page}/messages.json", timeout=10) as answer:
            found: list[Any] = json.loads(answer.read())
            return found

    def arrived(self, subject: str, count: int = 1, timeout: float = 20) -> list[Any]:
        """Wait for mails with this subject."""
        return eventually(
            lambda: [r for r in self.received() if r["subject"] == subject], lambda found: len(found) >= count, timeout
        )

    def final(self, message_id: str, timeout: float = 20) -> Any:
        """Wait until a message is final; returns what the API says of it."""

        def show() -> Any:
            status, shown, _ = self.api("GET", f"emails/{message_id}")
            return shown if status == 200 else {"status": status}

        return eventually(show, lambda shown: shown["status"] in ("delivered", "failed", "rejected"), timeout)


def eventually(ask: Callable[[], T], enough: Callable[[T], bool], timeout: float = 20) -> T:
    """Ask until the answer is enough."""
    deadline = time.monotonic() + timeout
    while True:
        answer = ask()
        if enough(answer):
            return answer
        if time.monotonic() > deadline:
            raise TimeoutError(f"still {answer!r}")
        time.sleep(0.02)


def free_base() -> int:
    """A base such that all ports of an installation are free."""
    for base in range(20_000, 60_000, 1000):
        try:
            for port in Ports.from_base(base).__struct_fields__:
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", getattr(Ports.from_base(base), port)))
        except OSError:
            continue
        return base
    raise RuntimeError("no free ports")
