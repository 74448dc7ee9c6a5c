"""Postfix, the most usual receiver of all, as the remote MX."""

import hashlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator

import postfix
import pytest
from installation import Installation
from postfix import Postfix

pytestmark = [pytest.mark.needs("postfix", "swaks"), pytest.mark.timeout(240)]

BODIES = {
    "plain": b"Hello\r\n",
    "dots": b".\r\n..\r\n.x\r\n\r\nend\r\n",
    "blanks at the end": b"Hello \t\r\n  \r\n\r\n\r\n",
    "8-bit": "Grüße\r\n".encode() + bytes(range(128, 256)) + b"\r\n",
    "long lines": b"x" * 998 + b"\r\n" + b"y" * 998 + b"\r\n",
    "nested multipart": b"--a\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n\r\nx\r\n--b--\r\n--a--\r\n",  # case M08
    "large": b"0123456789" * 7 + b"\r\n" * 30_000,
}


@pytest.fixture(scope="module")
def mx(installation: Installation) -> Iterator[Postfix]:
    if os.geteuid() != 0:
        pytest.skip("Postfix starts only as root")
    home = installation.home.directory
    (home / "zone.json").write_text(
        json.dumps({"postfix.example MX": ["10 mx.postfix.example."], "mx.postfix.example A": ["127.0.0.31"]})
    )
    tls = [home / "tls" / "certificate.pem", home / "tls" / "key.pem"]
    with postfix.running("postfix.example", "127.0.0.31", installation.ports.mailbox, *tls) as running:
        yield running
    (home / "zone.json").unlink()


@pytest.mark.parametrize("name", BODIES)
def test_its_bytes_below_our_fields_are_those_submitted(installation: Installation, mx: Postfix, name: str) -> None:
    subject = f"Subject: bytes {name}\r\n".encode()
    # An unusual fold and order, and a line of 700: nothing of it is touched (case M21).
    raw = (
        b"To: a@postfix.example\r\nX-Odd:  two\r\n\t folded \r\n" + subject + b"From: me@demo.example\r\n"
        b"List-Unsubscribe: <https://demo.example/" + b"u" * 700 + b">\r\nMIME-Version: 1.0\r\n"
        b'Content-Type: multipart/mixed; boundary="a"\r\nDate: Wed, 25 Nov 2026 00:00:00 +0000\r\n'
        b"Message-ID: <" + hashlib.sha256(name.encode()).hexdigest().encode() + b"@demo.example>\r\n\r\n" + BODIES[name]
    )
    message_id = installation.send("a@postfix.example", raw=raw)
    received = mx.received(subject)
    assert received.endswith(raw)
    ours = received.removesuffix(raw)
    # Postfix's own fields first, then our signature and our trace.
    assert re.search(rb"\r\nDKIM-Signature: [^\0]*\r\nReceived: from [^\0]*$", ours)
    assert installation.final(message_id)["status"] == "delivered"


def test_it_sees_the_chosen_address_and_name(installation: Installation, mx: Postfix) -> None:
    message_id = installation.send("a@postfix.example", subject="who is it")
    shown = installation.final(message_id)
    (delivery,) = shown["deliveries"]
    source = delivery["source"]
    received = mx.received(b"Subject: who is it")
    name = {"127.0.0.11": b"out1.relay.demo.example", "127.0.0.12": b"out2.relay.demo.example"}[source]
    assert re.search(rb"Received: from " + name + rb" \(unknown \[" + source.encode() + rb"\]\)", received)
    assert delivery["mx_ip"] == "127.0.0.31"
    assert delivery["tls"].startswith("TLSv1.3")


def test_swaks_submits_with_tls_and_auth(installation: Installation, mx: Postfix) -> None:
    assert shutil.which("swaks") is not None
    demo, ports = installation.supervisor.demo, installation.ports
    for door, subject in (
        (["--tls", "--port", str(ports.submission)], "swaks starttls"),
        (["--tls-on-connect", "--port", str(ports.smtps)], "swaks smtps"),
        (["--tls", "--port", str(ports.alternate)], "swaks alternate"),
    ):
        for mechanism in ("PLAIN", "LOGIN"):
            done = subprocess.run(
                [
                    *("swaks", "--server", "127.0.0.1", *door, "--auth", mechanism),
                    *("--auth-user", demo.smtp_username, "--auth-password", demo.smtp_password),
                    *("--from", "me@demo.example", "--to", "a@postfix.example"),
                    *("--header", f"Subject: {subject} {mechanism}"),
                ],
                capture_output=True,
                text=True,
                timeout=60,
            )
            assert done.returncode == 0, done.stdout + done.stderr
            assert b"a test" in mx.received(f"Subject: {subject} {mechanism}".encode())


def test_what_it_refuses_is_told_in_its_own_words(installation: Installation, mx: Postfix) -> None:
    (installation.home.directory / "zone.json").write_text(
        json.dumps(
            {
                "postfix.example MX": ["10 mx.postfix.example."],
                "mx.postfix.example A": ["127.0.0.31"],
                "elsewhere.example MX": ["10 mx.postfix.example."],
            }
        )
    )
    shown = installation.final(installation.send("a@elsewhere.example", subject="not here"))
    assert shown["status"] == "failed"
    (delivery,) = shown["deliveries"]
    assert (delivery["last_code"], delivery["last_enhanced"]) == (554, "5.7.1")
    assert "Relay access denied" in delivery["last_reply"]
