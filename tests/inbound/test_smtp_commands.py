"""The dialogue around a mail transaction: order, syntax, parameters, addresses, limits."""

import smtplib
import ssl
from collections.abc import Callable

import pytest
from inbound.dialogue import Dialogue, plain
from inbound.running import Running, Stored
from seed import Tenant

from remails.db import Database
from remails.store import credentials, organizations

HELLO = bytes.fromhex("16030100c8010000c40303") + b"\r\n\x00" + bytes(190)


def test_banner_and_offers(inbound: Running) -> None:
    with inbound.connect() as dialogue:
        assert dialogue.reply() == "220 mail.relay.example ESMTP"
        assert dialogue.say("EHLO client.example").split("\r\n") == [
            "250-mail.relay.example",
            "250-PIPELINING",
            "250-SIZE 1000000",
            "250-8BITMIME",
            "250-SMTPUTF8",
            "250-CHUNKING",
            "250-DSN",
            "250-LIMITS RCPTMAX=1000",
            "250-STARTTLS",
            "250 ENHANCEDSTATUSCODES",
        ]
        dialogue.start_tls()
        offers = dialogue.say("EHLO client.example").split("\r\n")
        assert "250-AUTH PLAIN LOGIN" in offers
        assert not any("STARTTLS" in offer for offer in offers)


@pytest.mark.parametrize("listener", ["smtps", "submission", "alternate"])
def test_every_listener_takes_mail(
    inbound: Running, acme: Tenant, stored: Callable[[], list[Stored]], listener: str
) -> None:
    with inbound.connect(listener) as dialogue:
        dialogue.log_in(acme).envelope("a@acme.example")
        dialogue.send(b"From: a@acme.example\r\n\r\nhi\r\n.\r\n")
        assert dialogue.reply().startswith("250 2.6.0 Accepted as ")
    assert [message.body for message in stored()] == [b"hi\r\n"]


def test_smtplib(inbound: Running, acme: Tenant, stored: Callable[[], list[Stored]]) -> None:
    context = ssl.create_default_context(cafile=inbound.settings.inbound.tls_certificate)
    context.check_hostname = False
    mail = "From: a@acme.example\r\nSubject: hi\r\n\r\n.leading dot\r\n"
    with smtplib.SMTP("127.0.0.1", inbound.port("submission")) as client:
        client.starttls(context=context)
        client.login(acme.smtp_username, acme.smtp_password)
        assert client.sendmail("a@acme.example", ["b@example.net", "c@example.net"], mail) == {}
    with smtplib.SMTP_SSL("127.0.0.1", inbound.port("smtps"), context=context) as client:
        client.login(acme.smtp_username, acme.smtp_password)
        assert client.sendmail("a@acme.example", ["d@example.net"], mail) == {}
    messages = stored()
    assert [message.recipients for message in messages] == [["b@example.net", "c@example.net"], ["d@example.net"]]
    assert {message.body for message in messages} == {b".leading dot\r\n"}
    received = messages[0].raw.split(b"\r\nFrom:")[0]
    assert received.startswith(b"Received: from ") and b"with ESMTPSA" in received and b"TLSv1.3" in received
    assert messages[0].id.encode() in received


def test_pipelined_transactions_are_answered_in_order(session: Dialogue, stored: Callable[[], list[Stored]]) -> None:
    """RFC 2920: groups in one segment, and commands behind the dot."""
    body = "From: a@acme.example\r\n\r\n%d\r\n.\r\n"
    session.send(b"MAIL FROM:<a@acme.example>\r\nRCPT TO:<b@example.net>\r\nRCPT TO:<nobody>\r\nDATA\r\n")
    assert [session.reply()[:9] for _ in range(4)] == ["250 2.1.0", "250 2.1.5", "553 5.1.3", "354 End d"]
    session.send(
        (body % 1).encode()
        + b"MAIL FROM:<a@acme.example>\r\nRCPT TO:<c@example.net>\r\nDATA\r\n"
        + (body % 2).encode()
        + b"RSET\r\nNOOP\r\nQUIT\r\n"
    )
    assert [session.reply()[:9] for _ in range(8)] == [
        "250 2.6.0",
        "250 2.1.0",
        "250 2.1.5",
        "354 End d",
        "250 2.6.0",
        "250 2.0.0",
        "250 2.0.0",
        "221 2.0.0",
    ]
    assert session.closed()
    assert [(message.recipients, message.body) for message in stored()] == [
        (["b@example.net"], b"1\r\n"),
        (["c@example.net"], b"2\r\n"),
    ]


def test_verbs_and_parameters_in_any_case(session: Dialogue) -> None:
    """P27."""
    session.play(
        [
            ("eHlO c.example", "250-mail"),
            ("mail from:<a@acme.example> size=10 body=8bitmime SmtpUtf8", "250 2.1.0"),
            ("rCpT tO:<b@example.net>", "250 2.1.5"),
            ("rset", "250 2.0.0"),
            ("R\u017fet", "500 5.5.1"),  # which is RSET in upper case, to Unicode
        ]
    )


def test_auth_parameter(session: Dialogue) -> None:
    """P11: whoever offers AUTH takes AUTH= in MAIL (RFC 4954 §5)."""
    session.play(
        [
            ("MAIL FROM:<a@acme.example> SIZE=1459 AUTH=<>", "250 2.1.0"),
            ("RSET", "250"),
            ("MAIL FROM:<a@acme.example> AUTH=e+3Dmc2@acme.example BODY=7BIT", "250 2.1.0"),
            ("RSET", "250"),
            ("MAIL FROM:<a@acme.example> AUTH", "501 5.5.4"),
        ]
    )


def test_parameters_that_were_not_offered(session: Dialogue) -> None:
    """P12: 555, and the transaction stays as it was."""
    session.play(
        [
            ("MAIL FROM:<a@acme.example> MT-PRIORITY=3", "555 5.5.4"),
            ("MAIL FROM:<a@acme.example>", "250 2.1.0"),
            ("RCPT TO:<b@example.net> RRVS=2024-01-01T00:00:00Z", "555 5.5.4"),
            ("RCPT TO:<b@example.net>", "250 2.1.5"),
            ("DATA", "354"),
        ]
    )


def test_spaces_after_the_colon(session: Dialogue) -> None:
    """P13: printers and scanners."""
    session.play(
        [
            ("MAIL FROM: <a@acme.example>", "250 2.1.0"),
            ("RCPT TO:  <b@example.net> ", "250 2.1.5"),
            ("RCPT TO:c@example.net", "250 2.1.5"),
        ]
    )


def test_quoted_local_parts_are_kept(session: Dialogue, stored: Callable[[], list[Stored]]) -> None:
    """P15: the quotes stay, the domain comes after the last @ that is not quoted."""
    addresses = ['"odd user"@example.net', '"a@b"@example.net', r'"a\"b"@example.net', '"a>b"@example.net']
    session.envelope('"a b"@acme.example', *addresses)
    session.send(b"From: a@acme.example\r\n\r\n.\r\n")
    assert session.reply().startswith("250 2.6.0")
    assert [(message.mail_from, message.recipients) for message in stored()] == [('"a b"@acme.example', addresses)]


def test_source_routes_are_taken_off(session: Dialogue, stored: Callable[[], list[Stored]]) -> None:
    """P17."""
    session.envelope("@relay.example:a@acme.example", "@h1.example,@h2.example:b@example.net")
    session.send(b"From: a@acme.example\r\n\r\n.\r\n")
    assert session.reply().startswith("250 2.6.0")
    assert [(message.mail_from, message.recipients) for message in stored()] == [("a@acme.example", ["b@example.net"])]


def test_addresses_mail_cannot_go_to(session: Dialogue) -> None:
    """P18: literals would have us connect to whatever host a client names."""
    session.play(
        [
            ("MAIL FROM:<a@acme.example>", "250"),
            ("RCPT TO:<b@[127.0.0.1]>", "550 5.1.2"),
            ("RCPT TO:<b@[IPv6:::1]>", "550 5.1.2"),
            ("RCPT TO:<b@127.0.0.1>", "553 5.1.3"),
            ("RCPT TO:<b>", "553 5.1.3"),
            ("RCPT TO:<>", "553 5.1.3"),
            ("RCPT TO:<Postmaster>", "553 5.1.3"),
            ("RCPT TO:<b@exam_ple.net>", "553 5.1.3"),
            ("RCPT TO:<b\x00c@example.net>", "553 5.1.3"),
            ("RCPT TO:<b@example.net.>", "250 2.1.5"),
            ("RCPT TO:", "501 5.5.4"),
            ("RCPT TO:<b@example.net", "501 5.5.4"),
            ("RCPT b@example.net", "501 5.5.4"),
        ]
    )


def test_bad_senders(session: Dialogue) -> None:
    """P19: bounces are not taken here. And a sender must be the client's own, on a label boundary."""
    session.play(
        [
            ("MAIL FROM:<>", "550 5.7.1 .*submission"),
            ("MAIL FROM:<a>", "553 5.1.7"),
            ("MAIL FROM:<a@[192.0.2.1]>", "550 5.1.2"),
            ("MAIL FROM:<a@other.example>", "550 5.7.1 .*other.example"),
            ("MAIL FROM:<a@evilacme.example>", "550 5.7.1"),
            ("MAIL FROM:<a@sub.acme.example>", "250 2.1.0"),
        ]
    )


def test_internationalized_addresses(session: Dialogue, stored: Callable[[], list[Stored]]) -> None:
    """RFC 6531 §3.4: only with SMTPUTF8; the domain is stored in A-labels."""
    session.play(
        [
            ("MAIL FROM:<a@acme.example>", "250"),
            ("RCPT TO:<jos\u00e9@example.net>", "553 5.6.7"),
            (b"RCPT TO:<\xff@example.net>\r\n", "500 5.5.2"),
            ("RSET", "250"),
            ("MAIL FROM:<jos\u00e9@acme.example> SMTPUTF8=1", "501 5.5.4"),
            ("MAIL FROM:<jos\u00e9@acme.example> SMTPUTF8", "250"),
            ("RCPT TO:<\u00fc@b\u00fccher.example>", "250"),
            ("DATA", "354"),
            (b"From: jos\xc3\xa9@acme.example\r\n\r\n.\r\n", "250 2.6.0"),
        ]
    )
    (message,) = stored()
    assert (message.mail_from, message.recipients) == ("jos\u00e9@acme.example", ["\u00fc@xn--bcher-kva.example"])
    assert b"with UTF8SMTPSA" in message.raw


def test_declared_size(session: Dialogue) -> None:
    """P37, at MAIL."""
    session.play(
        [
            ("MAIL FROM:<a@acme.example> SIZE=999999999999", "552 5.3.4"),
            ("MAIL FROM:<a@acme.example> SIZE=1000001", "552 5.3.4"),
            ("MAIL FROM:<a@acme.example> SIZE=abc", "501 5.5.4"),
            ("MAIL FROM:<a@acme.example> SIZE=", "501 5.5.4"),
            ("MAIL FROM:<a@acme.example> SIZE", "501 5.5.4"),
            ("MAIL FROM:<a@acme.example> SIZE=-1", "501 5.5.4"),
            ("MAIL FROM:<a@acme.example> SIZE=1 SIZE=2", "501 5.5.4"),
            ("MAIL FROM:<a@acme.example> BODY=BINARYMIME", "501 5.5.4"),
            ("MAIL FROM:<a@acme.example> SIZE=1000000", "250 2.1.0"),
        ]
    )


def test_order_of_commands(session: Dialogue) -> None:
    """P28: RSET and EHLO end the transaction and keep the login; a second MAIL does not touch the first."""
    session.play(
        [
            ("RCPT TO:<b@example.net>", "503 5.5.1"),
            ("DATA", "503 5.5.1"),
            ("MAIL FROM:<a@acme.example>", "250"),
            ("DATA", "554 5.5.1"),
            ("RCPT TO:<b@example.net>", "250"),
            ("MAIL FROM:<other@acme.example>", "503 5.5.1"),
            ("DATA now", "501 5.5.4"),
            ("RSET", "250 2.0.0"),
            ("DATA", "503 5.5.1"),
        ]
    )
    session.play([("MAIL FROM:<a@acme.example>", "250"), ("RCPT TO:<b@example.net>", "250"), ("EHLO x", "250-mail")])
    session.play([("DATA", "503 5.5.1"), ("MAIL FROM:<a@acme.example>", "250")])


def test_second_mail_keeps_the_first_envelope(session: Dialogue, stored: Callable[[], list[Stored]]) -> None:
    """P28."""
    session.play(
        [
            ("MAIL FROM:<a@acme.example>", "250"),
            ("RCPT TO:<b@example.net>", "250"),
            ("MAIL FROM:<other@acme.example>", "503 5.5.1"),
            ("DATA", "354"),
            (b"From: a@acme.example\r\n\r\n.\r\n", "250 2.6.0"),
            ("RCPT TO:<c@example.net>", "503 5.5.1"),
        ]
    )
    assert [(message.mail_from, message.recipients) for message in stored()] == [("a@acme.example", ["b@example.net"])]


def test_recipients_do_not_leak_into_the_next_message(session: Dialogue, stored: Callable[[], list[Stored]]) -> None:
    for recipient in ("one@example.net", "two@example.net"):
        session.envelope("a@acme.example", recipient)
        session.send(b"From: a@acme.example\r\n\r\n.\r\n")
        assert session.reply().startswith("250 2.6.0")
    assert [message.recipients for message in stored()] == [["one@example.net"], ["two@example.net"]]


def test_helo_and_greeting_needed(inbound: Running, acme: Tenant) -> None:
    with inbound.connect("smtps") as dialogue:
        dialogue.reply()
        dialogue.play(
            [
                ("MAIL FROM:<a@acme.example>", "503 5.5.1"),
                (f"AUTH PLAIN {plain(acme.smtp_username, acme.smtp_password)}", "503 5.5.1"),
                ("EHLO", "501 5.5.4"),
                ("HELO client.example", "250 mail.relay.example$"),
                ("MAIL FROM:<a@acme.example>", "530 5.7.0"),
                (f"AUTH PLAIN {plain(acme.smtp_username, acme.smtp_password)}", "235 2.7.0"),
                ("MAIL FROM:<a@acme.example>", "250 2.1.0"),
            ]
        )


def test_too_many_recipients(run: Callable[..., Running], acme: Tenant, stored: Callable[[], list[Stored]]) -> None:
    """P36: 452 for the extra ones, the others are delivered (RFC 5321 §4.5.3.1.10)."""
    with run(mail={"max_recipients": 100}).connect() as session:
        session.log_in(acme).play([("MAIL FROM:<a@acme.example>", "250")])
        session.send(b"".join(b"RCPT TO:<u%d@example.net>\r\n" % number for number in range(500)))
        replies = [session.reply()[:9] for _ in range(500)]
        assert replies == ["250 2.1.5"] * 100 + ["452 4.5.3"] * 400
        session.play([("DATA", "354"), (b"From: a@acme.example\r\n\r\n.\r\n", "250 2.6.0")])
    (message,) = stored()
    assert message.recipients == [f"u{number}@example.net" for number in range(100)]


def test_long_command_lines(session: Dialogue) -> None:
    """P08: 500 once per line, at any length, in step afterwards."""
    for length in (600, 12_300, 70_000, 300_000):
        session.send(b"NOOP " + b"x" * length + b"\r\n")
        assert session.reply().startswith("500 5.5.2")
        session.in_step()
    session.send(b"X" * 70_000 + b"\r\n")
    assert session.reply().startswith("500 5.5.2")
    session.in_step()


def test_endless_command_line_ends(session: Dialogue) -> None:
    """P08: a line without end is not waited for."""
    session.send(b"x" * 2_500_000)
    assert session.reply().startswith("421 4.7.0")
    assert session.closed()


def test_lines_end_with_crlf(session: Dialogue) -> None:
    """RFC 5321 §2.3.8: a bare LF ends no command."""
    session.send(b"NOOP\nRSET\r\n")
    assert session.reply().startswith("500 5.5.2")
    assert session.reply().startswith("250 2.0.0")
    session.send(b"NOOP\n\r\n")
    assert [session.reply()[:9] for _ in range(2)] == ["500 5.5.2", "500 5.5.1"]
    session.in_step()


def test_commands_without_effect(session: Dialogue) -> None:
    """P42."""
    session.play(
        [
            ("NOOP x y", "250 2.0.0"),
            ("HELP", "214 2.0.0"),
            ("HELP MAIL", "214 2.0.0"),
            ("VRFY b@example.net", "252 2.0.0"),
            ("EXPN list", "502 5.5.1"),
            ("ETRN example.net", "500 5.5.1"),
            ("QUIT", "221 2.0.0"),
        ]
    )
    assert session.closed()


def test_http_on_the_smtp_port(inbound: Running) -> None:
    """P39: what follows a request is not carried out."""
    with inbound.connect() as dialogue:
        dialogue.reply()
        dialogue.send(
            b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\nEHLO x\r\nMAIL FROM:<a@example.com>\r\n"
        )
        assert dialogue.reply().startswith("554 5.5.1")
        assert dialogue.reply().startswith("421 4.7.0")
        assert dialogue.closed()


def test_junk_commands(inbound: Running) -> None:
    """P39: ten and no more."""
    with inbound.connect() as dialogue:
        dialogue.reply()
        dialogue.send(b"JUNK\r\n" * 60)
        assert [dialogue.reply()[:9] for _ in range(10)] == ["500 5.5.1"] * 10
        assert dialogue.reply().startswith("421 4.7.0")
        assert dialogue.closed()


def test_refused_recipients_do_not_end_the_session(session: Dialogue) -> None:
    session.play([("MAIL FROM:<a@acme.example>", "250")])
    session.play([("RCPT TO:<b>", "553 5.1.3")] * 30)
    session.play([("RCPT TO:<b@example.net>", "250")])


def test_refused_transactions_of_a_client_that_pipelines_do_not_end_the_session(session: Dialogue) -> None:
    """RFC 2920: what follows MAIL was sent before its refusal was heard."""
    group = b"MAIL FROM:<a@%s.example>\r\nRCPT TO:<%s>\r\nRCPT TO:<%s>\r\nDATA\r\n"
    for sender, recipient in [(b"other", b"b@example.net")] * 6 + [(b"acme", b"b")] * 12:
        session.send(group % (sender, recipient, recipient))
        replies = [session.reply()[:3] for _ in range(4)]
        assert replies == (["550", "503", "503", "503"] if sender == b"other" else ["250", "553", "553", "554"])
        session.play([("RSET", "250")])
    session.in_step()


def test_tls_hello_on_a_plain_port(inbound: Running) -> None:
    """P39: one reply and a close, though the client waits for an answer to its hello."""
    with inbound.connect() as dialogue:
        dialogue.reply()
        dialogue.send(HELLO)
        assert dialogue.reply().startswith("500 5.5.1")
        assert dialogue.closed()


def test_blocked_organization(inbound: Running, acme: Tenant, db: Database) -> None:
    with inbound.connect() as session:
        session.log_in(acme).play([("MAIL FROM:<a@acme.example>", "250"), ("RSET", "250")])
        with db.transaction() as conn:
            organizations.set_block_status(conn, acme.organization_id, "full_freeze")
        session.play([("MAIL FROM:<a@sub.acme.example>", "550 5.7.1 .*blocked")])


def test_removed_credential_ends_what_its_session_may(inbound: Running, acme: Tenant, db: Database) -> None:
    with inbound.connect() as session:
        session.log_in(acme)
        with db.transaction() as conn:
            (credential,) = credentials.list_smtp(conn, acme.project_id)
            credentials.remove_smtp(conn, acme.project_id, credential.id)
        session.play([("MAIL FROM:<a@acme.example>", "550 5.7.1 .*credential")])
