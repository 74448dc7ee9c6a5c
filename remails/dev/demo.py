"""`remails demo`: the whole journey of a hundred emails, without a human.

It starts everything as `remails dev` does, in a directory and on ports of its own, sends by SMTP with STARTTLS, by SMTP with
implicit TLS and by REST, follows each mail in the API until it is final, asks the receiving mailbox whether it came and
whether its DKIM signature verifies there, and prints a table. Exit status 0 when all is well, else 1.
"""

import asyncio
import http.client
import json
import smtplib
import ssl
import statistics
import sys
import time
from base64 import b64encode
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from email.message import EmailMessage
from pathlib import Path
from typing import Any

from remails import service
from remails.dev.home import DOMAIN, Home, Ports
from remails.dev.supervisor import Supervisor, interruptible
from remails.errors import ConfigError

PORT_BASE = 5000
DEADLINE = 60.0
_FINAL = ("delivered", "failed", "rejected")


@dataclass
class Sent:
    """One mail of the demo, from its sender's view and from its receiver's."""

    door: str
    recipient: str
    subject: str
    id: str = ""
    problem: str = ""
    accept_ms: float = 0
    created_at: datetime | None = None
    status: str = ""
    arrived_ms: float = 0
    dkim: bool = False
    source: str = ""


class Sender:
    """A client of the demo installation, as an application would be one."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._ports, self._demo = supervisor.home.ports, supervisor.demo
        self._tls = ssl.create_default_context(cafile=str(supervisor.home.directory / "tls" / "certificate.pem"))
        basic = b64encode(f"{self._demo.api_key}:{self._demo.api_secret}".encode()).decode()
        self._headers = {"Authorization": f"Basic {basic}", "Content-Type": "application/json"}
        self._path = f"/api/organizations/{self._demo.organization_id}"

    def starttls(self, mail: Sent) -> None:
        """Submit by SMTP on the submission port (RFC 6409)."""
        with smtplib.SMTP("localhost", self._ports.submission, timeout=30) as client:
            client.starttls(context=self._tls)
            self._submit(client, mail)

    def implicit_tls(self, mail: Sent) -> None:
        """Submit by SMTP on the submissions port (RFC 8314)."""
        with smtplib.SMTP_SSL("localhost", self._ports.smtps, timeout=30, context=self._tls) as client:
            self._submit(client, mail)

    def _submit(self, client: smtplib.SMTP, mail: Sent) -> None:
        client.login(self._demo.smtp_username, self._demo.smtp_password)
        message = EmailMessage()
        message["From"], message["To"], message["Subject"] = f"demo@{DOMAIN}", mail.recipient, mail.subject
        message.set_content(f"Your code is {abs(hash(mail.subject)) % 1_000_000:06}.\n\nGrüße aus der Demo.\n")
        client.mail(f"demo@{DOMAIN}")
        client.rcpt(mail.recipient)
        started = time.monotonic()
        code, reply = client.data(message.as_bytes())
        mail.accept_ms = (time.monotonic() - started) * 1000
        if code != 250:
            raise smtplib.SMTPDataError(code, reply)
        mail.id = reply.decode().split()[-1]

    def rest(self, mail: Sent) -> None:
        """Submit by the REST API."""
        body = {
            "from": {"name": "The demo", "address": f"demo@{DOMAIN}"},
            "to": mail.recipient,
            "subject": mail.subject,
            "text_body": "Your receipt.\n",
            "html_body": "<p>Your <b>receipt</b>.</p>",
        }
        started = time.monotonic()
        answer = self.call("POST", f"{self._path}/projects/{self._demo.project_id}/emails", body)
        mail.accept_ms = (time.monotonic() - started) * 1000
        mail.id = answer["id"]

    def show(self, mail: Sent) -> Any:
        """What the API says of it."""
        return self.call("GET", f"{self._path}/emails/{mail.id}")

    def call(self, method: str, path: str, body: object = None) -> Any:
        """One call of the REST API; raises RuntimeError with the problem's words."""
        connection = http.client.HTTPConnection("127.0.0.1", self._ports.api, timeout=30)
        try:
            connection.request(method, path, json.dumps(body) if body is not None else None, self._headers)
            response = connection.getresponse()
            text = response.read()
            if response.status >= 400:
                raise RuntimeError(f"{response.status} {text.decode()[:300]}")
            return json.loads(text)
        finally:
            connection.close()

    def received(self) -> list[Any]:
        """What the receiving mailbox has."""
        connection = http.client.HTTPConnection("127.0.0.1", self._ports.mailbox_page, timeout=30)
        try:
            connection.request("GET", "/messages.json")
            found: list[Any] = json.loads(connection.getresponse().read())
            return found
        finally:
            connection.close()


def _mails(run: str, count: int) -> list[Sent]:
    doors = ("SMTP STARTTLS", "SMTP implicit TLS", "REST")
    return [
        Sent(doors[number % 3], f"user{number}@example{number % 5}.net", f"Demo {run} mail {number}")
        for number in range(count)
    ]


def _send(sender: Sender, mail: Sent) -> None:
    submit: Callable[[Sent], None] = {
        "SMTP STARTTLS": sender.starttls,
        "SMTP implicit TLS": sender.implicit_tls,
        "REST": sender.rest,
    }[mail.door]
    try:
        submit(mail)
    except (OSError, smtplib.SMTPException, RuntimeError, http.client.HTTPException) as error:
        mail.problem = f"not accepted: {error}"


def _follow(sender: Sender, mails: Sequence[Sent]) -> None:
    """Ask the API for each mail until it is final, then the mailbox for all."""
    deadline = time.monotonic() + DEADLINE
    waiting = [mail for mail in mails if mail.id]
    while waiting and time.monotonic() < deadline:
        for mail in waiting:
            shown = sender.show(mail)
            mail.status, mail.created_at = shown["status"], datetime.fromisoformat(shown["created_at"])
        waiting = [mail for mail in waiting if mail.status not in _FINAL]
        time.sleep(0.2 if waiting else 0)
    by_subject: dict[str, Any] = {}
    while time.monotonic() < deadline:
        by_subject = {record["subject"]: record for record in sender.received()}
        if all(mail.subject in by_subject for mail in mails if mail.status == "delivered"):
            break
        time.sleep(0.2)
    for mail in mails:
        _compare(mail, by_subject.get(mail.subject))


def _compare(mail: Sent, record: Any) -> None:
    if mail.problem:
        return
    if record is None:
        mail.problem = f"status {mail.status}, and it did not arrive"
        return
    assert mail.created_at is not None
    mail.arrived_ms = (datetime.fromisoformat(record["received_at"]) - mail.created_at).total_seconds() * 1000
    mail.source = record["peer_ip"]
    mail.dkim = any(signature["ok"] and signature["domain"] == DOMAIN for signature in record["dkim"])
    if mail.status != "delivered":
        mail.problem = f"it arrived, but its status is {mail.status}"
    elif not mail.dkim:
        mail.problem = f"DKIM does not verify: {record['dkim']}"


def _table(mails: Sequence[Sent]) -> str:
    heading = ("door", "mails", "accepted", "delivered", "DKIM ok", "accept ms p50/max", "arrival ms p50/max", "from")
    rows = [heading]
    for door in (*dict.fromkeys(mail.door for mail in mails), "all"):
        chosen = [mail for mail in mails if door in (mail.door, "all")]
        rows.append(
            (
                door,
                str(len(chosen)),
                str(sum(bool(mail.id) for mail in chosen)),
                str(sum(mail.status == "delivered" for mail in chosen)),
                str(sum(mail.dkim for mail in chosen)),
                _spread([mail.accept_ms for mail in chosen if mail.id]),
                _spread([mail.arrived_ms for mail in chosen if mail.dkim]),
                ", ".join(sorted({mail.source for mail in chosen if mail.source})),
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(heading))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.0f} / {max(values):.0f}" if values else "-"


async def _run(home: Home, count: int) -> bool:
    supervisor = Supervisor(home, quiet=True)
    started = time.monotonic()
    _say("Starting PostgreSQL, the demo world and every service ...")
    try:
        await supervisor.start()
        _say(f"Ready after {time.monotonic() - started:.1f} s. Sending {count} mails by three doors ...")
        mails = _mails(str(time.time_ns()), count)
        sender = Sender(supervisor)
        with ThreadPoolExecutor(4) as pool:
            await asyncio.to_thread(lambda: list(pool.map(lambda mail: _send(sender, mail), mails)))
        await asyncio.to_thread(_follow, sender, mails)
    finally:
        await supervisor.stop()
    _say(f"\n{_table(mails)}\n")
    problems = [mail for mail in mails if mail.problem]
    for mail in problems:
        _say(f"{mail.door}, {mail.recipient}: {mail.problem}")
    _say(f"{len(problems)} problems." if problems else f"All {count} mails delivered, all DKIM signatures verified.")
    return not problems


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def main(directory: Path, port_base: int | None, count: int = 100) -> None:
    """Run the demo; ends the process with status 0 or 1."""
    try:
        well = asyncio.run(
            interruptible(_run(Home(directory / "demo", Ports.from_base(port_base or PORT_BASE)), count))
        )
    except ConfigError as error:
        service.fail("demo", error)
    sys.exit(0 if well else 1)
