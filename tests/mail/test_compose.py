"""Composed messages: what was given comes out again at a reader that is not ours, and nothing else does."""

import email
import email.policy
from datetime import UTC, datetime
from email.header import decode_header, make_header
from email.message import EmailMessage, Message
from email.utils import parseaddr
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remails.mail import compose, message
from remails.mail.compose import Mailbox

NOW = datetime(2026, 5, 4, 3, 2, 1, tzinfo=UTC)


def composed(**changes: Any) -> bytes:
    given: dict[str, Any] = {
        "sender": Mailbox("app@example.com", "App"),
        "to": [Mailbox("b@example.net")],
        "subject": "Hello",
        "text": "hi\n",
        "html": None,
        "message_id": "0190@example.com",
        "now": NOW,
    }
    raw = compose.compose(**(given | changes))
    assert b"\n" not in raw.replace(b"\r\n", b"")
    assert all(len(line) <= 998 for line in raw.split(b"\r\n"))
    return raw


def prepared(raw: bytes) -> message.Prepared:
    return message.prepare(raw, received=b"Received: x\r\n", fallback_id="none", now=NOW, hostname="relay.example")


def read(raw: bytes) -> EmailMessage:
    found = email.message_from_bytes(raw, policy=email.policy.default)
    assert isinstance(found, EmailMessage)
    return found


def content(part: Message) -> str:
    """The text of a part, with LF line ends."""
    octets = part.get_payload(decode=True)
    assert isinstance(octets, bytes)
    return octets.decode().replace("\r\n", "\n")


def test_the_whole_of_a_plain_message() -> None:
    assert composed() == (
        b"From: App <app@example.com>\r\n"
        b"To: b@example.net\r\n"
        b"Subject: Hello\r\n"
        b"Date: Mon, 04 May 2026 03:02:01 +0000\r\n"
        b"Message-ID: <0190@example.com>\r\n"
        b"MIME-Version: 1.0\r\n"
        b"Content-Type: text/plain; charset=utf-8\r\n"
        b"Content-Transfer-Encoding: 7bit\r\n"
        b"\r\n"
        b"hi\r\n"
    )


def test_every_field() -> None:
    raw = composed(
        cc=[Mailbox("c@example.net", "C"), Mailbox("d@bücher.example")],
        reply_to=Mailbox("r@example.com", "Jürgen"),
        in_reply_to="<q@example.net>",
        references=["a@example.net", "<q@example.net>"],
    )
    found = read(raw)
    assert [str(a) for a in found["Cc"].addresses] == ["C <c@example.net>", "d@xn--bcher-kva.example"]
    assert [(a.display_name, a.addr_spec) for a in found["Reply-To"].addresses] == [("Jürgen", "r@example.com")]
    assert found["In-Reply-To"] == "<q@example.net>"
    assert found["References"] == "<a@example.net> <q@example.net>"
    assert prepared(raw).raw == b"Received: x\r\n" + raw
    assert prepared(raw).message_id == "<0190@example.com>"


def test_alternative() -> None:
    raw = composed(text="grüß dich\n.\nFrom x \n", html="<p>" + "ü" * 500 + "</p>")
    plain, html = read(raw).iter_parts()
    assert isinstance(plain, EmailMessage) and isinstance(html, EmailMessage)
    assert (plain.get_content_type(), html.get_content_type()) == ("text/plain", "text/html")
    assert content(plain) == "grüß dich\n.\nFrom x "
    assert content(html) == "<p>" + "ü" * 500 + "</p>\n"
    shown = message.preview(raw)
    assert (shown.text, shown.attachments) == ("grüß dich\n.\nFrom x ", [])
    assert shown.html == "<p>" + "ü" * 500 + "</p>\n"


def test_html_alone() -> None:
    found = read(composed(text=None, html="<p>hi</p>"))
    assert found.get_content_type() == "text/html"
    assert content(found) == "<p>hi</p>\n"


@pytest.mark.parametrize(
    "name", ["from", "to[0]", "cc[1]", "reply_to", "subject", "in_reply_to", "references[1]", "message_id"]
)
@pytest.mark.parametrize("bad", ["x\r\nBcc: v@evil.example", "hello\n\nHello there", "x\r", "a\0b", "a\ud800b"])
def test_no_piece_can_end_its_line(name: str, bad: str) -> None:
    """A01, A09: the field is named."""
    changes: dict[str, dict[str, Any]] = {
        "from": {"sender": Mailbox("app@example.com", bad)},
        "to[0]": {"to": [Mailbox("b@example.net", bad)]},
        "cc[1]": {"cc": [Mailbox("b@example.net"), Mailbox("c@example.net", bad)]},
        "reply_to": {"reply_to": Mailbox(bad + "@example.com")},
        "subject": {"subject": bad},
        "in_reply_to": {"in_reply_to": bad},
        "references[1]": {"references": ["a@b", bad]},
        "message_id": {"message_id": bad},
    }
    with pytest.raises(compose.BadField) as caught:
        composed(**changes[name])
    assert caught.value.field == name
    assert str(caught.value).startswith(f"{name}: ") and str(caught.value).isascii()


@pytest.mark.parametrize("field", ["text", "html"])
@pytest.mark.parametrize("bad", ["a\0b", "a\ud800b"])
def test_bodies_that_cannot_be_sent(field: str, bad: str) -> None:
    """A09."""
    with pytest.raises(compose.BadField) as caught:
        composed(**{field: bad})
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"text": None, "html": None}, "text: a text or an HTML body is needed"),
        ({"sender": Mailbox("nobody")}, "from: nobody has no @"),
        ({"to": [Mailbox("b@example.net"), Mailbox("b@[192.0.2.1]")]}, "to[1]: address literals"),
        ({"to": [Mailbox("Name <a@b.example>")]}, "to[0]: the local part"),
        ({"in_reply_to": "a b"}, "in_reply_to: is not a message id"),
        ({"references": ["<a@b> <c@d>"]}, "references[0]: is not a message id"),
        ({"references": ["x" * 901]}, "references[0]: is not a message id"),
        ({"message_id": "é@example.com"}, "message_id: is not a message id"),
    ],
)
def test_unfit_pieces(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match="^" + text.replace("[", r"\[")):
        composed(**changes)


@pytest.mark.parametrize(
    "name",
    [
        'Müller, "X" <ceo@victim.example>',
        '"a@b" <c@d.example>',
        "ceo@victim.example",
        "ceo@victim.example, other",
        "a (comment) b",
        "back\\slash",
        "=?utf-8?q?=3Cceo=40victim.example=3E?=",
        "x" * 300,
        "Ü" * 300,
        "👨‍👩‍👧 family",
        "A. P. Person",
        "two  blanks",
        "tab\there",
    ],
)
def test_a_name_is_data(name: str) -> None:
    """A07, M10: every reader finds the one address, and the name as it was given."""
    raw = composed(sender=Mailbox(" app@example.com ", f" {name} "))
    assert prepared(raw).from_domains == ("example.com",)
    [found] = read(raw)["From"].addresses
    assert found.addr_spec == "app@example.com"
    line = next(field for field in message.fields(message.split(raw)[0]) if field.name == b"from").value.decode()
    shown, addr = parseaddr(line)
    assert addr == "app@example.com"
    assert str(make_header(decode_header(shown))) == name


def test_many_recipients_are_folded() -> None:
    """M10: folding adds and loses none."""
    to = [Mailbox(f"user{n}@example.net", f"a@evil.example, {n}" if n % 2 else None) for n in range(50)]
    raw = composed(to=to)
    assert [a.addr_spec for a in read(raw)["To"].addresses] == [mailbox.address for mailbox in to]
    assert max(map(len, raw.split(b"\r\n"))) <= 78


def test_quoted_and_international_local_parts() -> None:
    """P15, O28: only what needs SMTPUTF8 has a header in UTF-8."""
    raw = composed(to=[Mailbox('"odd user"@example.net'), Mailbox("bü@example.net")])
    assert 'To: "odd user"@example.net, bü@example.net\r\n'.encode() in raw
    assert prepared(raw).utf8_headers
    assert not prepared(composed(subject="é", text="é")).eight_bit


@pytest.mark.parametrize(
    "subject",
    [
        "",
        "Grüße",
        "x" * 500,
        "word " * 100,
        " lead and trail ",
        "a  b",
        "=?utf-8?q?x?=",
        "tab\t",
        "漢字" * 100,
        "a=b?c",
    ],
)
def test_subjects(subject: str) -> None:
    raw = composed(subject=subject)
    value = next(field for field in message.fields(message.split(raw)[0]) if field.name == b"subject").value.decode()
    assert str(make_header(decode_header(value))) == subject
    assert max(map(len, raw.split(b"\r\n"))) <= 78


def test_long_words_and_references_stay_within_a_line() -> None:
    """P06."""
    references = ["x" * 480 + f"{n}@example.com" for n in range(50)]
    assert read(composed(references=references))["References"] == " ".join(f"<{one}>" for one in references)


texts = st.text(st.characters(exclude_characters="\r\n\0", exclude_categories=["Cs"]), max_size=120)
names: st.SearchStrategy[str] = texts.map(str.strip)


@given(subject=texts, name=names)
def test_any_subject_and_name_round_trip(subject: str, name: str) -> None:
    raw = composed(subject=subject, sender=Mailbox("app@example.com", name))
    assert raw.isascii()
    found = prepared(raw)
    assert found.from_domains == ("example.com",)
    values = {field.name: field.value.decode() for field in message.fields(message.split(raw)[0])}
    expected = subject if "=?" in values[b"subject"] else subject.strip()
    assert str(make_header(decode_header(values[b"subject"]))) == expected
    assert str(make_header(decode_header(parseaddr(values[b"from"])[0]))) == name
    assert len(values) == 8


@given(
    text=st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=300)
    | st.text("a= \t.\n\rü\x0b", max_size=200)
    | st.text("ab", min_size=990, max_size=1010)
)
def test_any_text_round_trips(text: str) -> None:
    raw = composed(text=text, html=text)
    assert raw.isascii()
    expected = text.replace("\r\n", "\n").replace("\r", "\n").removesuffix("\n")
    parts = read(raw).get_payload()
    assert isinstance(parts, list)
    for part in parts:
        # The last line end belongs to the boundary, unless base64 keeps it inside.
        assert isinstance(part, Message) and content(part) in (expected, expected + "\n")
    shown = message.preview(raw)
    assert shown.text in (expected, expected + "\n") and shown.html == shown.text
    assert prepared(raw).raw.endswith(raw)
