"""Programs that customers send with, each by every way to log in and to secure the connection that it has."""

import json
import smtplib
import ssl
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from inbound.running import Running, Stored
from seed import Tenant

NODE_MODULES = Path(__file__).parents[1] / "node_modules"
PHPMAILER = Path("/usr/share/php/libphp-phpmailer")
MAIL = b"From: a@acme.example\r\nTo: b@example.net\r\nSubject: hi\r\n\r\n.leading dot\r\n\r\n..\r\nlast\r\n"
BODY = b".leading dot\r\n\r\n..\r\nlast\r\n"
RECIPIENTS = ["b@example.net", "c@example.net"]


@dataclass(frozen=True)
class Place:
    """Where and how to send."""

    port: int
    username: str
    password: str
    mechanism: str
    implicit: bool
    directory: Path

    def run(self, *command: str, stdin: bytes = b"") -> None:
        done = subprocess.run(command, input=stdin, capture_output=True, timeout=60, check=False, cwd=self.directory)
        assert done.returncode == 0, (done.stdout + done.stderr).decode(errors="replace")

    def values(self) -> str:
        """As JSON, for programs in other languages."""
        return json.dumps(
            {
                "port": self.port,
                "username": self.username,
                "password": self.password,
                "mechanism": self.mechanism,
                "implicit": self.implicit,
                "text": BODY.decode(),
            }
        )


def by_smtplib(place: Place) -> None:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if place.implicit:
        client: smtplib.SMTP = smtplib.SMTP_SSL("127.0.0.1", place.port, context=context)
    else:
        client = smtplib.SMTP("127.0.0.1", place.port)
        client.starttls(context=context)
    with client:
        client.ehlo_or_helo_if_needed()
        client.user, client.password = place.username, place.password  # type: ignore[attr-defined]  # as `login` does
        client.auth(place.mechanism, {"PLAIN": client.auth_plain, "LOGIN": client.auth_login}[place.mechanism])
        assert client.sendmail("a@acme.example", RECIPIENTS, MAIL) == {}


def by_curl(place: Place) -> None:
    (place.directory / "mail").write_bytes(MAIL)
    place.run(
        *("curl", "--silent", "--show-error", "--ssl-reqd", "--insecure"),
        *("--login-options", f"AUTH={place.mechanism}", "--user", f"{place.username}:{place.password}"),
        *("--url", f"{'smtps' if place.implicit else 'smtp'}://127.0.0.1:{place.port}"),
        *("--mail-from", "a@acme.example", "--upload-file", "mail"),
        *(word for recipient in RECIPIENTS for word in ("--mail-rcpt", recipient)),
    )


def by_swaks(place: Place) -> None:
    place.run(
        *("swaks", "--server", "127.0.0.1", "--port", str(place.port), "--auth", place.mechanism),
        *("--tls-on-connect" if place.implicit else "--tls", "--from", "a@acme.example", "--to", ",".join(RECIPIENTS)),
        *("--auth-user", place.username, "--auth-password", place.password, "--data", "-"),
        stdin=MAIL.replace(b"\r\n", b"\n"),
    )


def by_msmtp(place: Place) -> None:
    config = place.directory / "msmtprc"
    config.write_text(
        f"account default\nhost 127.0.0.1\nport {place.port}\nfrom a@acme.example\ntls on\ntls_certcheck off\n"
        f"tls_starttls {'off' if place.implicit else 'on'}\nauth {place.mechanism.lower()}\n"
        f"user {place.username}\npassword {place.password}\n"
    )
    config.chmod(0o600)
    place.run("msmtp", "--file", str(config), *RECIPIENTS, stdin=MAIL.replace(b"\r\n", b"\n"))


NODEMAILER = """
const place = JSON.parse(process.argv[2]);
require('nodemailer').createTransport({
  host: '127.0.0.1', port: place.port, secure: place.implicit, requireTLS: true, authMethod: place.mechanism,
  auth: {user: place.username, pass: place.password}, tls: {rejectUnauthorized: false},
}).sendMail({
  from: 'a@acme.example', to: ['b@example.net', 'c@example.net'], subject: 'hi', text: place.text,
  textEncoding: 'quoted-printable',
}).catch(error => { console.error(error); process.exit(1); });
"""


def by_nodemailer(place: Place) -> None:
    script = place.directory / "send.js"
    script.write_text(NODEMAILER)
    place.run("env", f"NODE_PATH={NODE_MODULES}", "node", str(script), place.values())


PHP = """<?php
require '%s/autoload.php';
$place = json_decode($argv[1]);
$mail = new PHPMailer\\PHPMailer\\PHPMailer(true);
$mail->isSMTP();
$mail->Host = '127.0.0.1'; $mail->Port = $place->port; $mail->SMTPAuth = true; $mail->AuthType = $place->mechanism;
$mail->SMTPSecure = $place->implicit ? 'ssl' : 'tls';
$mail->SMTPOptions = ['ssl' => ['verify_peer' => false, 'verify_peer_name' => false]];
$mail->Username = $place->username; $mail->Password = $place->password;
$mail->setFrom('a@acme.example'); $mail->addAddress('b@example.net'); $mail->addAddress('c@example.net');
$mail->Subject = 'hi'; $mail->Body = $place->text;
$mail->send();
"""


def by_phpmailer(place: Place) -> None:
    script = place.directory / "send.php"
    script.write_text(PHP % PHPMAILER)
    place.run("php", str(script), place.values())


DJANGO = """
import json, ssl, sys
from django.conf import settings
place = json.loads(sys.argv[1])
ssl.create_default_context = ssl._create_unverified_context  # newer versions verify, older ones do not
settings.configure(
    EMAIL_HOST="127.0.0.1", EMAIL_PORT=place["port"], EMAIL_HOST_USER=place["username"],
    EMAIL_HOST_PASSWORD=place["password"], EMAIL_USE_SSL=place["implicit"], EMAIL_USE_TLS=not place["implicit"],
)
from django.core.mail import EmailMessage
EmailMessage("hi", place["text"], "a@acme.example", ["b@example.net", "c@example.net"]).send()
"""


def by_django(place: Place) -> None:
    script = place.directory / "send.py"
    script.write_text(DJANGO)
    place.run("/usr/bin/python3", str(script), place.values())


CLIENTS: dict[Callable[[Place], None], tuple[str, ...]] = {
    by_smtplib: (),
    by_curl: ("curl",),
    by_swaks: ("swaks",),
    by_msmtp: ("msmtp",),
    by_nodemailer: ("node", "npm"),
    by_phpmailer: ("php",),
    by_django: ("django-admin",),
}
WAYS = [
    pytest.param(
        client, mechanism, listener, marks=pytest.mark.needs(*tools), id=f"{client.__name__[3:]}-{mechanism}-{listener}"
    )
    for client, tools in CLIENTS.items()
    for mechanism in ("PLAIN", "LOGIN")
    for listener in ("submission", "smtps")
    if client is not by_django or mechanism == "PLAIN"  # which it takes of those that are offered
]


@pytest.mark.parametrize(("client", "mechanism", "listener"), WAYS)
def test_client(
    inbound: Running,
    acme: Tenant,
    stored: Callable[[], list[Stored]],
    tmp_path: Path,
    client: Callable[[Place], None],
    mechanism: str,
    listener: str,
) -> None:
    """P20, P22, P23: what it was given is what is stored, for both recipients, in one message."""
    login = acme.smtp_username, acme.smtp_password
    client(Place(inbound.port(listener), *login, mechanism, listener == "smtps", tmp_path))
    (one,) = stored()
    assert sorted(one.recipients) == RECIPIENTS
    assert one.mail_from == "a@acme.example"
    assert one.body.rstrip(b"\r\n") == BODY.rstrip(b"\r\n")
    assert b"Subject: hi\r\n" in one.raw and b"with ESMTPSA" in one.raw
