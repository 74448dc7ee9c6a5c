"""The whole journey of one email through real processes: clients, doors, failures on the way, receivers."""

import os
import shutil
import signal
import smtplib
import statistics
import subprocess
import sys
import time
from datetime import datetime
from email.message import EmailMessage
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
import verifiers
from installation import Installation, eventually, free_base

pytestmark = pytest.mark.timeout(240)


def test_a_mail_by_smtp_is_delivered_signed_and_shown(installation: Installation) -> None:
    message_id = installation.send("a@example.net", "b@example.org", subject="by smtp")
    shown = installation.final(message_id)
    assert shown["status"] == "delivered"
    assert shown["recipients"] == ["a@example.net", "b@example.org"]
    assert {d["status"]["type"] for d in shown["delivery_details"].values()} == {"Success"}
    records = installation.arrived("by smtp", 2)
    assert sorted(r["rcpt_tos"][0] for r in records) == ["a@example.net", "b@example.org"]
    for record in records:
        assert [(s["domain"], s["ok"]) for s in record["dkim"]] == [("demo.example", True)]
        assert record["peer_ip"] in ("127.0.0.11", "127.0.0.12")
        assert record["tls"]["version"] == "TLSv1.3"


def test_a_mail_by_rest_is_delivered_signed_and_shown(installation: Installation) -> None:
    demo = installation.supervisor.demo
    status, sent, _ = installation.api(
        "POST",
        f"projects/{demo.project_id}/emails",
        {
            "from": "me@demo.example",
            "to": ["a@example.net"],
            "subject": "by rest",
            "text_body": "Grüße",
            "label": "A b",
        },
    )
    assert status == 201
    assert (sent["status"], sent["label"]) == ("accepted", "a-b")
    assert installation.final(sent["id"])["status"] == "delivered"
    (record,) = installation.arrived("by rest")
    assert record["dkim"][0]["ok"]


def test_the_clients_of_the_readme(installation: Installation) -> None:
    """What `remails dev` prints can be pasted: it is run here as it is printed."""
    if shutil.which("swaks") is None or shutil.which("curl") is None:
        _missing("swaks, curl")
    from remails.dev.supervisor import banner

    printed = banner(installation.supervisor).replace("\\\n", " ")
    for program in ("swaks ", "curl "):
        (line,) = [line.strip() for line in printed.splitlines() if line.strip().startswith(program)]
        done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr
    assert len(installation.arrived("Hello", 2)) >= 2


def _missing(tools: str) -> None:
    if os.environ.get("CI") == "true":
        pytest.fail(f"needs {tools}, which `make test` should have installed")
    pytest.skip(f"needs {tools}")


def test_a_mail_is_under_way_at_once(installation: Installation) -> None:
    """From acceptance to the first attempt: median under 100 ms on an idle machine."""
    waits = []
    for number in range(21):
        message_id = installation.send("a@example.net", subject=f"soon {number}")
        (record,) = installation.arrived(f"soon {number}")
        _, shown, _ = installation.api("GET", f"emails/{message_id}")
        taken = datetime.fromisoformat(record["received_at"]) - datetime.fromisoformat(shown["created_at"])
        waits.append(taken.total_seconds())
    assert statistics.median(waits) < 0.1, waits


def test_without_the_bus_mail_is_taken_and_delivered_a_little_later(installation: Installation) -> None:
    bus = installation.pid("bus")
    os.kill(bus, signal.SIGSTOP)  # not even the supervisor's restart helps
    try:
        started = time.monotonic()
        installation.send("a@example.net", subject="no bus")
        accepted = time.monotonic() - started
        installation.arrived("no bus", timeout=3)
        assert accepted < 1
    finally:
        os.kill(bus, signal.SIGCONT)
    os.kill(bus, signal.SIGKILL)
    installation.send("a@example.net", subject="dead bus")
    installation.arrived("dead bus", timeout=3)
    eventually(lambda: installation.pid("bus") != bus and installation.supervisor.process("bus").ready.is_set(), bool)

    def wait() -> float:
        subject = f"bus again {time.monotonic()}"
        started = time.monotonic()
        installation.send("a@example.net", subject=subject)
        installation.arrived(subject)
        return time.monotonic() - started

    # Everybody reconnects within a second or so; then notes carry again.
    eventually(lambda: statistics.median(wait() for _ in range(5)), lambda median: median < 0.5)


def test_a_mail_whose_worker_is_killed_is_delivered_by_another(installation: Installation) -> None:
    outbound = installation.pid("outbound")
    message_id = installation.send("slow@example.net", subject="killed")

    def is_claimed() -> bool:
        _, shown, _ = installation.api("GET", f"emails/{message_id}")
        return any(delivery["is_claimed"] for delivery in shown["deliveries"])

    eventually(is_claimed, bool)
    os.kill(outbound, signal.SIGKILL)
    shown = installation.final(message_id, timeout=40)
    assert shown["status"] == "delivered"
    assert installation.pid("outbound") != outbound


def test_a_killed_postgresql_loses_nothing_that_was_accepted(installation: Installation) -> None:
    accepted, refused = [], []

    def submit(number: int) -> None:
        message = EmailMessage()
        message["From"], message["To"], message["Subject"] = "me@demo.example", "a@example.net", f"kill {number}"
        message.set_content("Hi\n")
        code, text = client.mail("me@demo.example")
        if code == 250:
            client.rcpt("a@example.net")
            code, text = client.data(message.as_bytes())
        (accepted if code == 250 else refused).append((code, text.decode(), number))
        if code != 250:
            client.rset()

    with installation.smtp() as client:
        for number in range(10):
            submit(number)
        installation.supervisor.postgresql.kill()
        for number in range(10, 13):
            submit(number)
        status, problem, headers = installation.api("GET", "emails")
        healthy, _, _ = installation.api("GET", "/api/healthy")
        installation.supervisor.postgresql.start()
        eventually(lambda: (submit(100), accepted[-1][2] == 100)[1], bool)
    assert [number for _, _, number in accepted[:10]] == list(range(10))
    assert {(code, text.split()[0]) for code, text, _ in refused} == {(451, "4.3.0")}
    assert len(refused) >= 3
    assert (status, healthy, headers["Retry-After"]) == (503, 503, "5")
    assert problem["status"] == 503
    for _, text, number in accepted:
        assert installation.final(text.split()[-1], timeout=90)["status"] == "delivered"
        installation.arrived(f"kill {number}")


@pytest.mark.needs("perl")
def test_dkim_verifies_by_mail_dkim(installation: Installation) -> None:
    """Perl's Mail::DKIM, which shares nothing with our library, with keys from the demo world's DNS."""
    mails = _signed_mails(installation)
    assert verifiers.mail_dkim(mails, installation.ports.dns) == [["rsa-sha256=pass"]] * len(mails)


@pytest.mark.needs("node")
def test_dkim_verifies_by_mailauth(installation: Installation) -> None:
    """mailauth from npm, a third implementation."""
    mails = _signed_mails(installation)
    assert verifiers.mailauth(mails, installation.ports.dns) == [["rsa-sha256=pass"]] * len(mails)


def _signed_mails(installation: Installation) -> list[bytes]:
    subject = f"signed {time.monotonic()}"
    head = f"From: =?utf-8?q?J=C3=B6rg?= <me@demo.example>\r\nTo: a@example.net\r\nSubject: {subject}\r\n".encode()
    bodies = (b"\r\nHi\r\n", b"\r\n", b"\r\nHello! \t\r\n  \r\n\r\n", b"\r\n.dot\r\n..\r\n" + b"x" * 900 + b"\r\n")
    for body in bodies:
        installation.send("a@example.net", raw=head + body)
    return [_raw(installation, record) for record in installation.arrived(subject, len(bodies))]


def _raw(installation: Installation, record: Any) -> bytes:
    with urlopen(
        f"http://127.0.0.1:{installation.ports.mailbox_page}/messages/{record['id']}.eml", timeout=10
    ) as answer:
        raw: bytes = answer.read()
        return raw


def test_bad_submissions_get_their_code_and_leave_nothing(installation: Installation) -> None:
    before = len(installation.api("GET", "emails?limit=100")[1])
    with smtplib.SMTP("localhost", installation.ports.submission, timeout=30) as client:
        client.ehlo()
        assert "auth" not in client.esmtp_features
        assert client.docmd("AUTH PLAIN AGEAYg==")[0] == 538
        assert client.mail("me@demo.example")[0] == 530
        client.starttls(context=installation.tls())
        with pytest.raises(smtplib.SMTPAuthenticationError) as caught:
            client.login(installation.supervisor.demo.smtp_username, "wrong")
        assert caught.value.smtp_code == 535
    with installation.smtp() as client:
        assert client.mail("me@unknown.example")[0] == 550
        assert client.mail("me@evildemo.example")[0] == 550
        assert client.mail("not an address")[0] in (501, 553)
        assert client.docmd("MAIL FROM:<me@demo.example> SIZE=99999999999")[0] == 552
        assert client.mail("me@demo.example")[0] == 250
        assert client.docmd("DATA")[0] == 554  # RFC 5321 §3.3: no valid recipients
        assert client.rcpt("b@[127.0.0.1]")[0] == 550
        assert client.rcpt("nobody")[0] == 553
        assert client.rcpt("a@example.net")[0] == 250
        code, text = client.data(b"From: boss@victim.example\r\nSubject: x\r\n\r\nx\r\n")
        assert (code, text.split()[0]) == (550, b"5.7.1")
        # and the connection is clean
        assert client.mail("me@demo.example")[0] == 250
        assert client.rcpt("a@example.net")[0] == 250
        assert client.data(b"From: me@demo.example\r\nSubject: clean\r\n\r\nx\r\n")[0] == 250
    installation.arrived("clean")
    assert len(installation.api("GET", "emails?limit=100")[1]) in (before + 1, 101)


def test_the_demo_command(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "remails", "demo", "--directory", str(tmp_path), "--port-base", str(free_base())],
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "All 100 mails delivered, all DKIM signatures verified." in done.stdout
    (total,) = [line.split() for line in done.stdout.splitlines() if line.startswith("all ")]
    assert total[:5] == ["all", "100", "100", "100", "100"]
