"""STARTTLS and AUTH: what is offered when, both mechanisms, every way to get them wrong."""

import re
import socket
import ssl
import time
from collections.abc import Callable, Iterator

import msgspec
import pytest
from inbound.dialogue import Dialogue, b64, plain
from inbound.running import Running
from seed import Tenant, tenant

from remails.config import Settings
from remails.db import Database
from remails.inbound.lookup import REMEMBERED
from remails.store import credentials
from remails.vault import Pepper, Vault


@pytest.fixture
def greeted(inbound: Running) -> Iterator[Dialogue]:
    """A client under TLS that has said EHLO."""
    with inbound.connect("smtps") as dialogue:
        dialogue.reply()
        dialogue.say("EHLO client.example")
        yield dialogue


def test_nothing_before_tls(inbound: Running, acme: Tenant, caplog: pytest.LogCaptureFixture) -> None:
    """P24: the password is neither tried nor logged."""
    with inbound.connect() as dialogue:
        dialogue.reply()
        assert "AUTH" not in dialogue.say("EHLO c.example")
        dialogue.play(
            [
                (f"AUTH PLAIN {plain(acme.smtp_username, acme.smtp_password)}", "538 5.7.11"),
                ("AUTH LOGIN", "538 5.7.11"),
                (b64(acme.smtp_password), "500 5.5.1"),
                ("MAIL FROM:<a@acme.example>", "530 5.7.0 .*STARTTLS"),
            ]
        )
    assert_not_logged(caplog, acme.smtp_password)


def test_commands_behind_starttls_are_dropped(inbound: Running) -> None:
    """P25: what came in the clear is not taken for something said under TLS; EHLO is needed again."""
    with inbound.connect() as dialogue:
        dialogue.reply()
        dialogue.say("EHLO client.example")
        dialogue.send(b"STARTTLS\r\nMAIL FROM:<inj@x.example>\r\nEHLO y\r\n")
        assert dialogue.reply().startswith("220 2.0.0")
        dialogue._wrap()
        dialogue.play(
            [
                ("NOOP", "250 2.0.0 OK"),
                ("MAIL FROM:<a@acme.example>", "503 5.5.1 .*EHLO"),
                ("AUTH PLAIN", "503 5.5.1"),
                ("STARTTLS", "503 5.5.1"),
                ("STARTTLS now", "501 5.5.4"),
                ("EHLO client.example", "250-mail"),
                ("STARTTLS", "503 5.5.1"),
            ]
        )


def test_failed_handshake_ends_the_connection(inbound: Running) -> None:
    with inbound.connect() as dialogue:
        dialogue.reply()
        dialogue.say("EHLO client.example")
        assert dialogue.say("STARTTLS").startswith("220 2.0.0")
        dialogue.send(b"EHLO, is this TLS?\r\n" * 10)
        with pytest.raises((EOFError, AssertionError, ConnectionError)):  # a TLS alert is no SMTP reply
            dialogue.reply()
    with inbound.connect() as dialogue:
        assert dialogue.reply().startswith("220 ")


def test_old_tls_is_refused(inbound: Running) -> None:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning):
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    with (
        socket.create_connection(("127.0.0.1", inbound.port("smtps")), 10) as sock,
        pytest.raises((ssl.SSLError, ConnectionError)),
    ):
        context.wrap_socket(sock)


def test_plain(greeted: Dialogue, acme: Tenant) -> None:
    greeted.play(
        [
            (f"AUTH PLAIN {plain(acme.smtp_username, acme.smtp_password)}", "235 2.7.0"),
            (f"AUTH PLAIN {plain(acme.smtp_username, acme.smtp_password)}", "503 5.5.1"),
            ("MAIL FROM:<a@acme.example>", "250"),
        ]
    )


def test_plain_without_initial_response(greeted: Dialogue, acme: Tenant) -> None:
    """P23: the empty challenge is `334` and one space."""
    assert greeted.say("AUTH PLAIN") == "334 "
    assert greeted.say(plain(acme.smtp_username, acme.smtp_password)).startswith("235 2.7.0")


@pytest.mark.parametrize("mechanism", ["LOGIN", "login", "Login"])
def test_login(greeted: Dialogue, acme: Tenant, mechanism: str) -> None:
    """P20, P27: strict clients look for these two prompts; the mechanism comes in any case."""
    assert greeted.say(f"auth {mechanism}") == "334 VXNlcm5hbWU6"
    assert greeted.say(b64(acme.smtp_username)) == "334 UGFzc3dvcmQ6"
    assert greeted.say(b64(acme.smtp_password)).startswith("235 2.7.0")


def test_login_with_initial_response(greeted: Dialogue, acme: Tenant) -> None:
    """P20: then only the password is asked for."""
    assert greeted.say(f"AUTH LOGIN {b64(acme.smtp_username)}") == "334 UGFzc3dvcmQ6"
    assert greeted.say(b64(acme.smtp_password)).startswith("235 2.7.0")


def test_pipelined_login(greeted: Dialogue, acme: Tenant) -> None:
    greeted.send(
        f"AUTH LOGIN\r\n{b64(acme.smtp_username)}\r\n{b64(acme.smtp_password)}\r\nMAIL FROM:<a@acme.example>\r\n".encode()
    )
    assert [greeted.reply()[:3] for _ in range(4)] == ["334", "334", "235", "250"]


def test_authorization_identity(inbound: Running, acme: Tenant) -> None:
    """P22: the same is allowed, another one is refused, never ignored and never taken for the user."""
    name, password = acme.smtp_username, acme.smtp_password
    for response, reply in {
        plain(name, password, authzid=name): "235 2.7.0",
        plain(name, password, authzid="admin"): "535 5.7.8",
        plain("", password, authzid=name): "535 5.7.8",
        plain("", password): "535 5.7.8",
        plain(name, ""): "535 5.7.8",
    }.items():
        with inbound.connect("smtps") as dialogue:
            dialogue.reply()
            dialogue.play([("EHLO x", "250"), (f"AUTH PLAIN {response}", reply)])


def test_malformed_responses(greeted: Dialogue, acme: Tenant) -> None:
    """P22: 501 for what cannot be decoded, and the session goes on."""
    greeted.play(
        [
            ("AUTH PLAIN !!!!", "501 5.5.2"),
            ("AUTH PLAIN =", "501 5.5.2"),
            (f"AUTH PLAIN {b64('u' + chr(0) + 'p')}", "501 5.5.2"),
            (f"AUTH PLAIN {b64(bytes([0, 255, 0, 112]))}", "501 5.5.2"),
            ("AUTH PLAIN two words", "501 5.5.2"),
            ("AUTH", "501 5.5.4"),
            ("AUTH CRAM-MD5", "504 5.5.4"),
        ]
    )
    greeted.play([(f"AUTH PLAIN {plain(acme.smtp_username, acme.smtp_password)}", "235 2.7.0")])


def test_cancelled_and_broken_exchanges(greeted: Dialogue, acme: Tenant) -> None:
    greeted.play(
        [
            ("AUTH LOGIN", "334"),
            ("*", "501 5.7.0"),
            ("AUTH PLAIN", "334"),
            ("*", "501 5.7.0"),
            ("AUTH LOGIN", "334"),
            ("not base64", "501 5.5.2"),
            ("AUTH PLAIN", "334"),
            ("A" * 12_300, "500 5.5.6"),
            (f"AUTH PLAIN {'A' * 12_300}", "500 5.5.2"),
            (f"AUTH PLAIN {plain(acme.smtp_username, acme.smtp_password)}", "235 2.7.0"),
        ]
    )


def test_wrong_logins(inbound: Running, acme: Tenant, caplog: pytest.LogCaptureFixture) -> None:
    """Three in a session; each is logged with address and user name, without the password."""
    with inbound.connect("smtps") as dialogue:
        dialogue.reply()
        dialogue.play(
            [
                ("EHLO x", "250"),
                (f"AUTH PLAIN {plain(acme.smtp_username, 'wrong-secret')}", "535 5.7.8"),
                (f"AUTH PLAIN {plain('nobody-here', 'wrong-secret')}", "535 5.7.8"),
                ("AUTH LOGIN", "334"),
                (b64("x\0" * 400), "334"),
                (b64("wrong-secret"), "535 5.7.8"),
            ]
        )
        assert dialogue.reply().startswith("421 4.7.0")
        assert dialogue.closed()
    failures = [fields(record) for record in caplog.records if record.getMessage() == "login failed"]
    assert [(one["client"], one["user"][:11]) for one in failures] == [
        ("127.0.0.1", acme.smtp_username[:11]),
        ("127.0.0.1", "nobody-here"),
        ("127.0.0.1", ("x\0" * 400)[:11]),
    ]
    assert_not_logged(caplog, "wrong-secret")


def test_right_password_of_another(inbound: Running, acme: Tenant, db: Database, vault: Vault, pepper: Pepper) -> None:
    other = tenant(db, vault, pepper, name="other")
    for username, password, reply in [
        (acme.smtp_username, acme.smtp_password, "235"),
        (acme.smtp_username, other.smtp_password, "535"),
        (other.smtp_username, acme.smtp_password, "535"),
        (acme.smtp_username.upper(), acme.smtp_password, "535"),
        (other.smtp_username, other.smtp_password, "235"),
    ]:
        with inbound.connect("smtps") as dialogue:
            dialogue.reply()
            dialogue.play([("EHLO x", "250"), (f"AUTH PLAIN {plain(username, password)}", reply)])


def test_removed_credential(inbound: Running, acme: Tenant, db: Database) -> None:
    """What was remembered of it is forgotten within seconds."""

    def log_in() -> str:
        with inbound.connect("smtps") as dialogue:
            dialogue.reply()
            dialogue.say("EHLO x")
            return dialogue.say(f"AUTH PLAIN {plain(acme.smtp_username, acme.smtp_password)}")[:9]

    assert log_in() == "235 2.7.0"
    with db.transaction() as conn:
        (credential,) = credentials.list_smtp(conn, acme.project_id)
        credentials.remove_smtp(conn, acme.project_id, credential.id)
    deadline = time.monotonic() + REMEMBERED + 1
    while log_in() != "535 5.7.8":
        assert time.monotonic() < deadline


def test_database_out_of_reach(
    run: Callable[..., Running],
    settings: Settings,
    acme: Tenant,
    outage: Callable[[], None],
    recovery: Callable[[], None],
) -> None:
    """454 to AUTH and never 535, which would make a client forget its password; 451 to MAIL and DATA, then all is well."""
    inbound = run(database=msgspec.structs.replace(settings.database, wait_timeout=0.5))
    with inbound.connect() as session, inbound.connect("smtps") as late:
        session.log_in(acme).envelope("a@acme.example")
        late.reply()
        outage()
        late.play(
            [("EHLO x", "250"), (f"AUTH PLAIN {plain(acme.smtp_username, acme.smtp_password + 'x')}", "454 4.7.0")]
        )
        session.send(b"From: a@acme.example\r\n\r\n.\r\n")
        assert session.reply().startswith("451 4.3.0")
        session.play([("RCPT TO:<b@example.net>", "503"), ("MAIL FROM:<a@sub.acme.example>", "451 4.3.0")])
        recovery()
        deadline = time.monotonic() + 30
        while not transaction(session).startswith("250 2.6.0"):
            assert time.monotonic() < deadline


def transaction(session: Dialogue) -> str:
    """A whole one; the reply to MAIL, if that fails, or to the end of data."""
    reply = session.say("MAIL FROM:<a@acme.example>")
    if reply.startswith("250"):
        session.play([("RCPT TO:<b@example.net>", "250"), ("DATA", "354")])
        session.send(b"From: a@acme.example\r\n\r\n.\r\n")
        reply = session.reply()
    assert reply[:9] in ("250 2.6.0", "451 4.3.0")
    return reply


def fields(record: object) -> dict[str, str]:
    return getattr(record, "fields", {})


def assert_not_logged(caplog: pytest.LogCaptureFixture, secret: str) -> None:
    text = "\n".join(f"{record.getMessage()} {fields(record)}" for record in caplog.records)
    assert caplog.records
    assert secret not in text
    assert b64(secret) not in text


def test_a_credential_for_certain_networks(run: Callable[..., Running], acme: Tenant, db: Database) -> None:
    """The address that counts is the client's, which a trusted proxy tells."""

    def allow(*networks: str) -> None:
        with db.transaction() as conn:
            (one,) = credentials.list_smtp(conn, acme.project_id)
            credentials.update_smtp(conn, acme.project_id, one.id, allowed=networks)

    inbound = run(inbound={"proxy_trusted": ["127.0.0.0/8"]})
    right = f"AUTH PLAIN {plain(acme.smtp_username, acme.smtp_password)}"

    def reply(line: str, client: str) -> str:
        with inbound.connect() as dialogue:
            dialogue.send(f"PROXY TCP{6 if ':' in client else 4} {client} {client} 4000 587\r\n".encode())
            assert dialogue.reply().startswith("220 ")
            dialogue.say("EHLO x")
            dialogue.start_tls()
            dialogue.say("EHLO x")
            return dialogue.say(line)

    allow("198.51.100.0/24", "2001:db8::/32")
    assert reply(right, "198.51.100.7").startswith("235 2.7.0")
    assert reply(right, "2001:db8::7").startswith("235 2.7.0")
    assert re.match(r"550 5\.7\.1 .*203\.0\.113\.9", reply(right, "203.0.113.9"))
    wrong = f"AUTH PLAIN {plain(acme.smtp_username, 'wrong')}"
    assert reply(wrong, "203.0.113.9").startswith("535 5.7.8"), "who does not know the password learns nothing"
