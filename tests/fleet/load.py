"""Applications that hand mail in while something goes wrong, and what may be said of it afterwards.

Several threads in the namespace "world" submit at a steady rate, by SMTP or by REST, each mail first to one host, then to the next,
as a client does that was given two names. Every attempt has a subject of its own, so that it can be told at the receiver:

    accepted     250 or 201: it has to arrive, once
    refused      it was certainly not taken: no connection, or an answer that says so
    unanswered   the connection ended after everything was sent: it may arrive, once
"""

import base64
import collections
import contextlib
import email.policy
import http.client
import itertools
import json
import re
import smtplib
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from email.message import EmailMessage
from typing import Generic, Literal, Protocol, TypeVar

from hosts import Fleet

PAUSE = 0.25  # seconds after an attempt on each host has failed
CONNECTION = 20  # mails on one connection
IDLE = 5.0  # seconds after which a connection is not used again: the edge ends those of HTTP that are idle for longer

Result = Literal["accepted", "refused", "unanswered"]


@dataclass(frozen=True)
class Attempt:
    """One try to hand one mail in."""

    subject: str
    host: str
    result: Result
    reason: str
    began: float  # by the monotonic clock
    seconds: float

    @property
    def ended(self) -> float:
        """When the answer was there, by the monotonic clock."""
        return self.began + self.seconds

    @property
    def answer(self) -> str:
        """The code of the answer ("451", "503"), or "timeout" or "connection" where there was none."""
        if code := re.search(r"\b[245]\d\d\b", self.reason):
            return code[0]
        return "timeout" if "TimeoutError" in self.reason or "timed out" in self.reason else "connection"

    @property
    def retriable(self) -> bool:
        """Whether a client that does as it is told tries it again (RFC 5321 section 4.2.1, RFC 9110 section 15.6)."""
        http = self.reason.startswith(("502", "503 (Retry-After)", "504"))
        return http or self.answer in ("timeout", "connection") or self.answer.startswith("4")


class Failed(Exception):
    """An attempt that was not accepted."""

    def __init__(self, result: Result, reason: object) -> None:
        super().__init__(f"{type(reason).__name__} {reason}" if isinstance(reason, Exception) else str(reason))
        self.result: Result = result


def unverified() -> ssl.SSLContext:
    """TLS with whoever is there: the hosts are named by their addresses here."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


class Closable(Protocol):
    """A connection."""

    def close(self) -> None:
        """End it."""


C = TypeVar("C", bound=Closable)


class Kept(Generic[C]):
    """The connections of each thread: one to each host, for CONNECTION mails, if none comes late."""

    def __init__(self, connect: Callable[[str], C]) -> None:
        self._connect = connect
        self._own = threading.local()

    def get(self, ip: str) -> C:
        """This thread's connection to the host; a new one where there is none."""
        connections: dict[str, tuple[C, int, float]] = self._own.__dict__
        connection, used, last = connections.get(ip, (None, 0, 0.0))
        if connection is not None and (used >= CONNECTION or time.monotonic() - last > IDLE):
            self.drop(ip)
            connection = None
        if connection is None:
            connection, used = self._connect(ip), 0
        connections[ip] = connection, used + 1, time.monotonic()
        return connection

    def drop(self, ip: str) -> None:
        """End this thread's connection to the host."""
        if known := self._own.__dict__.pop(ip, None):
            known[0].close()

    def close(self) -> None:
        """End this thread's connections."""
        for ip in list(self._own.__dict__):
            self.drop(ip)


class Smtp:
    """Submission with STARTTLS and AUTH."""

    def __init__(self, username: str, password: str, sender: str, recipient: str = "to@example.net") -> None:
        self._login, self._sender, self._recipient = (username, password), sender, recipient
        self._kept = Kept(self._connect)
        self._tls = unverified()

    def close(self) -> None:
        """End this thread's connections."""
        self._kept.close()

    def submit(self, ip: str, subject: str) -> None:
        """Hand one mail in. Raises Failed."""
        message = EmailMessage()
        message["From"], message["To"], message["Subject"] = self._sender, self._recipient, subject
        message.set_content("Your code is 123456.\n")
        client = self._kept.get(ip)
        try:
            self._envelope(client)
            self._data(client, message.as_bytes(policy=email.policy.SMTP))
        except (Failed, OSError, smtplib.SMTPException) as error:
            self._kept.drop(ip)
            raise error if isinstance(error, Failed) else Failed("refused", error) from None

    def _connect(self, ip: str) -> smtplib.SMTP:
        try:
            client = smtplib.SMTP(ip, 587, timeout=10)
        except (OSError, smtplib.SMTPException) as error:
            raise Failed("refused", error) from None
        try:
            client.starttls(context=self._tls)
            client.login(*self._login)
        except (OSError, smtplib.SMTPException) as error:
            client.close()
            raise Failed("refused", error) from None
        return client

    def _envelope(self, client: smtplib.SMTP) -> None:
        for code, text in (client.mail(self._sender), client.rcpt(self._recipient), client.docmd("data")):
            if code not in (250, 354):
                raise Failed("refused", f"{code} {text.decode()}")

    def _data(self, client: smtplib.SMTP, raw: bytes) -> None:
        try:
            client.send(raw + b".\r\n")  # no line of it begins with a dot
            code, text = client.getreply()
        except (OSError, smtplib.SMTPException) as error:
            raise Failed("unanswered", error) from None
        if code != 250:
            raise Failed("refused", f"{code} {text.decode()}")


class Rest:
    """The REST API by HTTPS."""

    def __init__(self, path: str, key: str, secret: str, sender: str, recipient: str = "to@example.net") -> None:
        self._path, self._sender, self._recipient = path, sender, recipient
        self._kept = Kept(self._connect)
        self._tls = unverified()
        basic = base64.b64encode(f"{key}:{secret}".encode()).decode()
        self._headers = {"Authorization": f"Basic {basic}", "Content-Type": "application/json"}

    def close(self) -> None:
        """End this thread's connections."""
        self._kept.close()

    def submit(self, ip: str, subject: str) -> None:
        """Hand one mail in. Raises Failed."""
        mail = {"from": self._sender, "to": [self._recipient], "subject": subject, "text_body": "Your receipt.\n"}
        connection = self._kept.get(ip)
        try:
            connection.request("POST", self._path, json.dumps(mail), self._headers)
            answer = connection.getresponse()
            text = answer.read()
        except (OSError, http.client.HTTPException) as error:
            self._kept.drop(ip)
            raise Failed("unanswered", error) from None
        if answer.status != 201:
            again = "" if answer.getheader("Retry-After") is None else " (Retry-After)"
            # The edge's own answer about a host that fell silent: whether it had taken the mail, nobody knows.
            result: Result = "unanswered" if answer.status in (502, 504) else "refused"
            raise Failed(result, f"{answer.status}{again} {text.decode()[:200]}")

    def _connect(self, ip: str) -> http.client.HTTPSConnection:
        connection = http.client.HTTPSConnection(ip, timeout=10, context=self._tls)
        try:
            connection.connect()
        except OSError as error:
            raise Failed("refused", error) from None
        return connection


@dataclass
class Load:
    """A steady stream of mails through one door; use it as a context, in which something happens.

    Args:
        hosts: the addresses of the hosts; mail number n is tried at each, beginning with n modulo their number.
        rate: mails in a second; 0: as fast as the threads can.
        count: most mails; None: until the end of the block.
        patience: seconds after which a mail that no host has taken is given up.
    """

    fleet: Fleet
    name: str
    door: Smtp | Rest
    hosts: Sequence[str]
    rate: float
    count: int | None = None
    threads: int = 8
    patience: float = 180
    attempts: list[Attempt] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._numbers = itertools.count()
        self._stop = threading.Event()
        self._start = 0.0
        self._workers = [threading.Thread(target=self._work, daemon=True) for _ in range(self.threads)]

    def __enter__(self) -> "Load":
        self._start = time.monotonic()
        for worker in self._workers:
            worker.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.count is None:
            self._stop.set()
        for worker in self._workers:
            worker.join()

    def _work(self) -> None:
        with self.fleet.network("world"), contextlib.closing(self.door):
            while not self._stop.is_set():
                number = next(self._numbers)
                if self.count is not None and number >= self.count:
                    return
                if self.rate and self._stop.wait(max(0.0, self._start + number / self.rate - time.monotonic())):
                    return
                self._mail(number)

    def _mail(self, number: int) -> None:
        end = time.monotonic() + self.patience
        for attempt in itertools.count():
            if attempt and attempt % len(self.hosts) == 0:
                time.sleep(PAUSE)
                if time.monotonic() > end:
                    return
            ip = self.hosts[(number + attempt) % len(self.hosts)]
            subject = f"{self.name} {number} {attempt}"
            started, result, reason = time.monotonic(), "accepted", ""
            try:
                self.door.submit(ip, subject)
            except Failed as failed:
                result, reason = failed.result, str(failed)
            self.attempts.append(Attempt(subject, ip, result, reason, started, time.monotonic() - started))
            if result == "accepted":
                return

    # What may be said afterwards

    def subjects(self, result: Result) -> list[str]:
        """The subjects of the attempts that ended so."""
        return [attempt.subject for attempt in self.attempts if attempt.result == result]

    @property
    def mails(self) -> int:
        """How many mails were to be handed in."""
        return len({self._mail_of(attempt.subject) for attempt in self.attempts})

    @property
    def given_up(self) -> set[str]:
        """Mails that no host took in the end."""
        taken = {self._mail_of(subject) for subject in self.subjects("accepted")}
        return {self._mail_of(attempt.subject) for attempt in self.attempts} - taken

    def reasons(self) -> collections.Counter[str]:
        """Why attempts were not accepted."""
        return collections.Counter(f"{a.result}: {a.reason}" for a in self.attempts if a.result != "accepted")

    @staticmethod
    def _mail_of(subject: str) -> str:
        return subject.rpartition(" ")[0]

    def lost(self, arrived: Iterable[str]) -> set[str]:
        """What was accepted and is not among these subjects."""
        return set(self.subjects("accepted")) - set(arrived)

    def doubled(self, arrived: Iterable[str]) -> set[str]:
        """What is among these subjects more than once."""
        return {subject for subject, number in collections.Counter(arrived).items() if number > 1}
