"""Messages at the door: what is refused, what is added and dropped, and that nothing else changes."""

import hashlib
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remails.errors import Refused
from remails.mail import message

NOW = datetime(2026, 5, 4, 3, 2, 1, tzinfo=UTC)
RECEIVED = (
    b"Received: from client.example ([192.0.2.7])\r\n\tby relay.example (Remails) with ESMTPSA\r\n\tid 1;\r\n\tx\r\n"
)
ID = "0190-1@example.com"

FROM = b"From: App <app@example.com>\r\n"
REST = b"To: b@example.net\r\nSubject: t\r\n"
DATE = b"Date: Mon, 01 Jan 2024 00:00:00 +0000\r\n"
MESSAGE_ID = b"Message-ID: <m1@example.com>\r\n"
HEADER = FROM + REST + DATE + MESSAGE_ID
BODY = b"\r\nhi\r\n"


def prepare(raw: bytes, label: str | None = None) -> message.Prepared:
    return message.prepare(raw, received=RECEIVED, fallback_id=ID, now=NOW, hostname="relay.example", label=label)


def refusal(raw: bytes) -> Refused:
    with pytest.raises(Refused) as caught:
        prepare(raw)
    refused = caught.value
    assert refused.text.isascii() and refused.text.isprintable()
    assert refused.status == 422
    return refused


def test_a_complete_message_gets_received_and_nothing_else() -> None:
    prepared = prepare(HEADER + BODY)
    assert prepared.raw == RECEIVED + HEADER + BODY
    assert prepared == message.Prepared(
        raw=RECEIVED + HEADER + BODY,
        header_from="app@example.com",
        from_domains=("example.com",),
        subject="t",
        message_id="<m1@example.com>",
        label=None,
        eight_bit=False,
        utf8_headers=False,
    )


@pytest.mark.parametrize("given_date", [True, False])
@pytest.mark.parametrize("given_id", [True, False])
def test_missing_date_and_message_id_are_added(given_date: bool, given_id: bool) -> None:
    """M01: right after Received, and the same on each preparation."""
    header = FROM + REST + DATE * given_date + MESSAGE_ID * given_id
    prepared = prepare(header + BODY)
    added = b"" if given_date else b"Date: Mon, 04 May 2026 03:02:01 +0000\r\n"
    added += b"" if given_id else b"Message-ID: <0190-1@example.com>\r\n"
    assert prepared.raw == RECEIVED + added + header + BODY
    assert prepared.message_id == ("<m1@example.com>" if given_id else "<0190-1@example.com>")
    assert prepare(header + BODY) == prepared


def test_empty_date_and_message_id_are_replaced() -> None:
    """M01."""
    prepared = prepare(FROM + b"Date:\r\n" + REST + b"Message-ID: \r\n \r\n" + BODY)
    added = b"Date: Mon, 04 May 2026 03:02:01 +0000\r\nMessage-ID: <0190-1@example.com>\r\n"
    assert prepared.raw == RECEIVED + added + FROM + REST + BODY


@pytest.mark.parametrize(
    "dropped",
    [
        b"bCC : x@example.net,\r\n\ty@example.net\r\n",
        b"Bcc: x@example.net\r\n",
        b"BCC:\r\n x@example.net\r\n",
        b"Resent-Bcc: x@example.net\r\n",
        b"Return-Path: <x@evil.example>\r\n",
        b"X-Remails-Idempotency-Key: 1\r\n",
        b"Idempotency-Key: 1\r\n",
        b"x-remails-id\t: 1\r\n",
        b"Authentication-Results: relay.example; dkim=pass\r\n",
        b"Authentication-Results: (really (honest)) Relay.Example.\r\n\t1; dkim=pass\r\n",
        b'authentication-results: "relay.example"; dkim=pass\r\n',
        b"Authentication-Results: relay.example;\r\n\tspf=pass\r\n",
    ],
)
def test_fields_that_must_not_leave(dropped: bytes) -> None:
    """M05: Bcc in every spelling; M22: what only a server may write, and our own internal fields."""
    for raw in (dropped + HEADER, FROM + dropped + REST + DATE + MESSAGE_ID, HEADER + dropped):
        assert prepare(raw + BODY).raw == RECEIVED + HEADER + BODY


@pytest.mark.parametrize(
    "kept",
    [
        b"Authentication-Results: mx.other.example; dkim=pass\r\n",
        b"Authentication-Results: relay.example.evil; dkim=pass\r\n",
        b"DKIM-Signature: v=1; d=victim.example\r\n",
        b"Received: from a by b; x\r\n",
        b"X-Bcc: a\r\n",
        b"X-Odd : a\r\n",
        b"Delivered-To: a\r\nDelivered-To: b\r\n",
        b"X-Empty:\r\n",
        b"List-Unsubscribe: <https://u.example.com/?d=" + b"A%0A" * 200 + b">,\r\n\t<mailto:u@example.com>\r\n",
        b"References: <" + b"r" * 60 + b"@e.example> <" + b"s" * 60 + b"@e.example>\r\n",
    ],
)
def test_other_fields_stay_as_they_are(kept: bytes) -> None:
    """M08, M21, M22: byte for byte."""
    assert prepare(HEADER + kept + BODY).raw == RECEIVED + HEADER + kept + BODY


def test_nested_multipart_stays_as_it_is() -> None:
    """M08: the sha256 of the body is that of the input."""
    body = (
        b"\r\n--o\r\nContent-Type: multipart/alternative; boundary=i\r\n\r\n--i\r\n\r\nt\r\n--i--\r\n"
        b"--o\r\nContent-Type: text/plain\r\n\r\nz\r\n--o--\r\n"
    )
    header = HEADER + b"MIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=o\r\n"
    _, sent = message.split(prepare(header + body).raw)
    assert hashlib.sha256(sent).digest() == hashlib.sha256(body[2:]).digest()


@pytest.mark.parametrize("body", [b"", b"\r\n", b"\r\n\r\n", b"\r\n.\r\n", b"\r\nno line end"])
def test_empty_and_unfinished_bodies(body: bytes) -> None:
    """M16: an empty body, and a message that is only a header."""
    assert prepare(HEADER + body).raw == RECEIVED + HEADER + body


def test_header_without_last_line_end_gets_one() -> None:
    assert prepare(HEADER[:-2]).raw == RECEIVED + HEADER


@pytest.mark.parametrize(
    ("raw", "reply"),
    [
        (b"", "554 5.6.0 The message has no header"),
        (b"\r\nhi\r\n", "554 5.6.0 The message has no header"),
        (b"hello\r\n\r\nhi\r\n", "no header field: hello"),
        (b" folded\r\n" + HEADER + BODY, "no header field: folded"),
        (FROM + b"no field\r\n" + BODY, "no header field: no field"),
        (FROM + b": nameless\r\n" + BODY, "no header field"),
        (FROM + "Sübject: x\r\n".encode() + BODY, "no header field"),
        (b"From me Sat Dec 6\r\n" + HEADER + BODY, "no header field: From me"),
        (REST + BODY, "550 5.6.0 The message has no From field"),
        (FROM + b"from : ceo@victim.example\r\n" + REST + BODY, "more than one From field"),
        (b"From: ceo@victim.example\r\n" + FROM + BODY, "more than one From field"),
        (b"From: nobody\r\n" + BODY, "From field cannot be read"),
        (b"From:\r\n" + BODY, "From field cannot be read"),
        (b"From: app@[192.0.2.1]\r\n" + BODY, "address literals"),
        (b"From: a@example.com b@victim.example\r\n" + BODY, "From field cannot be read"),
        (HEADER + b"Subject: t2\r\n" + BODY, "550 5.6.0 The message has more than one Subject field"),
        (HEADER + b"Message-ID: <m2@example.com>\r\n" + BODY, "more than one Message-ID field"),
        (HEADER + b"To: c@example.net\r\n" + BODY, "more than one To field"),
        (HEADER + b"Cc: c@example.net\r\ncc: d@example.net\r\n" + BODY, "more than one Cc field"),
        (HEADER + DATE + BODY, "more than one Date field"),
        (HEADER + b"Sender: a@example.com\r\n" * 2 + BODY, "more than one Sender field"),
        (HEADER + b"Reply-To: a@example.com\r\n" * 2 + BODY, "more than one Reply-To field"),
        (HEADER + b"X: 1\r\n" * 1000 + BODY, "more than 1000 fields"),
        (HEADER + b"X: " + b"x" * 900 + b"\r\n" + (b" " + b"x" * 900 + b"\r\n") * 300 + BODY, "header is larger"),
        (HEADER + b"\r\na\nb\r\n", "550 5.6.11 The message contains a bare CR or LF"),
        (HEADER + b"\r\na\rb\r\n", "550 5.6.11"),
        (HEADER + b"\r\na\r\r\nb\r\n", "550 5.6.11"),
        (HEADER + b"\r\na\n\rb\r\n", "550 5.6.11"),
        (HEADER + b"\r\na\n.\r\n", "550 5.6.11"),
        (HEADER.replace(b"\r\n", b"\n") + b"\nhi\n", "550 5.6.11"),
        (HEADER + b"X: a\nBcc: b\r\n" + BODY, "550 5.6.11"),
        (HEADER + b"\r\na\r", "550 5.6.11"),
        (HEADER + b"\r\nc\0d\r\n", "554 5.6.0 The message contains a NUL octet"),
        (HEADER + b"X: a\0b\r\n" + BODY, "554 5.6.0 The message contains a NUL octet"),
    ],
)
def test_refusals(raw: bytes, reply: str) -> None:
    """M02, M04, M16, P03, P09: permanent codes, and a sentence that names what is wrong."""
    assert reply in refusal(raw).reply


def test_the_field_at_fault_is_named_for_the_api() -> None:
    assert refusal(REST + BODY).field == "from"
    assert refusal(FROM * 2 + BODY).field == "from"
    assert refusal(b"From: x\r\n" + BODY).field == "from"
    assert refusal(HEADER + DATE + BODY).field is None


@pytest.mark.parametrize(("count", "accepted"), [(0, True), (5, True), (99, True), (100, False), (120, False)])
def test_loops_end(count: int, accepted: bool) -> None:
    """M14: with ours, a message carries at most 100 Received fields."""
    raw = b"Received: from h0.example by h1.example; Mon, 01 Jan 2024 00:00:00 +0000\r\n" * count + HEADER + BODY
    if accepted:
        assert prepare(raw).raw == RECEIVED + raw
    else:
        assert refusal(raw).reply.startswith("554 5.4.6 ")


@pytest.mark.parametrize(
    ("lines", "accepted"),
    [
        ([998], True),
        ([998] * 50, True),
        ([999], False),
        ([1000], False),
        ([1500], False),
        ([50_000], False),
        ([10, 998, 3, 999], False),
        ([10] * 300 + [998] + [0] * 3000, True),
        ([10] * 300 + [999], False),
        ([0] * 3000 + [999] + [0] * 3000, False),
    ],
)
@pytest.mark.parametrize("end", [b"\r\n", b""])
def test_line_length(lines: list[int], accepted: bool, end: bytes) -> None:
    """P06: 998 octets without CRLF are a line, 999 are refused wherever they stand."""
    raw = HEADER + b"\r\n" + b"\r\n".join(b"x" * length for length in lines) + end
    if accepted:
        assert prepare(raw).raw == RECEIVED + raw
    else:
        assert refusal(raw).reply.startswith("550 5.6.0 The message has a line longer than 998 octets")


@given(
    lines=st.lists(st.integers(0, 1005) | st.sampled_from([0, 1, 997, 998, 999, 1000]), max_size=12), end=st.booleans()
)
def test_line_length_agrees_with_counting(lines: list[int], end: bool) -> None:
    """P06."""
    raw = HEADER + b"\r\n" + b"\r\n".join(b"x" * length for length in lines) + b"\r\n" * end
    try:
        prepare(raw)
    except Refused:
        assert max(lines) > 998
    else:
        assert max(lines, default=0) <= 998


def test_several_from_addresses_each_count() -> None:
    """M02: alignment has to look at every one."""
    prepared = prepare(b'From: "A, B" <a@Example.com>, b@other.example, c@example.com\r\n' + REST + BODY)
    assert prepared.header_from == "a@example.com"
    assert prepared.from_domains == ("example.com", "other.example")


def test_a_display_name_is_no_address() -> None:
    """M10: encoded words and quoted strings stay names."""
    prepared = prepare(b"From: =?utf-8?q?Evil_=3Cceo=40victim.example=3E?= <a@example.com>\r\n" + REST + BODY)
    assert (prepared.header_from, prepared.from_domains) == ("a@example.com", ("example.com",))


def test_folded_message_id() -> None:
    """M07: no blank in front; the wire keeps the fold."""
    folded = b"Message-ID:\r\n <" + b"B" * 70 + b"@x.prod.outlook.example>\r\n"
    prepared = prepare(FROM + REST + DATE + folded + BODY)
    assert prepared.message_id == "<" + "B" * 70 + "@x.prod.outlook.example>"
    assert folded in prepared.raw


def test_subject_for_display() -> None:
    """P09, M12: decoded, bounded, and without what a database or a page cannot take."""
    subject = b"Subject: =?foo-bar?q?a=00?= =?utf-8?q?gr=C3=BC=C3=9F?=\r\n\t=?utf-8?q?=0Adich?=\r\n"
    assert prepare(FROM + subject + BODY).subject == "agrüßdich"
    assert prepare(FROM + BODY).subject == ""
    assert len(prepare(FROM + b"Subject: " + b"x" * 900 + b"\r\n" + BODY).subject) == 500


def test_eight_bit() -> None:
    """O27, O28: what the next server has to support."""
    assert not prepare(HEADER + BODY).eight_bit
    prepared = prepare(HEADER + "\r\né\r\n".encode())
    assert (prepared.eight_bit, prepared.utf8_headers) == (True, False)
    prepared = prepare(HEADER + "X: é\r\n".encode() + BODY)
    assert (prepared.eight_bit, prepared.utf8_headers) == (True, True)
    prepared = prepare(HEADER + "Bcc: é\r\n".encode() + BODY)
    assert not prepared.utf8_headers


def test_label() -> None:
    raw = FROM + b"X-REMAILS-LABEL:  Password,\r\n  Reset \r\n" + REST + DATE + MESSAGE_ID + BODY
    assert prepare(raw).label == "password-reset"
    assert prepare(raw).raw == RECEIVED + HEADER + BODY
    assert prepare(raw, "Other").label == "other"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("News Letter", "news-letter"),
        (" a , \t b,,c ", "a-b-c"),
        ("x" * 50, "x" * 30),
        ("a\0b\x7f", "ab"),
        ("Grüße", "grüße"),
        ("  ", None),
        ("", None),
        ("\0", None),
    ],
)
def test_normalise_label(text: str, expected: str | None) -> None:
    assert message.normalise_label(text) == expected


def received(client: str = "app.example.com", client_ip: str = "192.0.2.7", tls: str | None = None) -> bytes:
    return message.received_field(
        client=client,
        client_ip=client_ip,
        hostname="relay.example",
        protocol="ESMTPSA",
        ident="0190-1",
        now=NOW,
        tls=tls,
    )


def test_received_field() -> None:
    assert received(tls="TLSv1.3 with cipher TLS_AES_256_GCM_SHA384") == (
        b"Received: from app.example.com ([192.0.2.7])\r\n"
        b"\t(using TLSv1.3 with cipher TLS_AES_256_GCM_SHA384)\r\n"
        b"\tby relay.example (Remails) with ESMTPSA\r\n"
        b"\tid 0190-1;\r\n"
        b"\tMon, 04 May 2026 03:02:01 +0000\r\n"
    )
    assert received(client_ip="2001:db8::7").startswith(b"Received: from app.example.com ([IPv6:2001:db8::7])\r\n\tby")


@pytest.mark.parametrize("client", ["", "a b", "x\r\nBcc: v@evil.example", "a(b", "é.example", "x" * 300, "a;b"])
def test_received_field_does_not_repeat_what_is_no_host_name(client: str) -> None:
    assert received(client) == received("[192.0.2.7]")


def test_received_field_takes_any_text() -> None:
    field = message.received_field(
        client="\r\n",
        client_ip="\r\nX: 1",
        hostname="relay.example",
        protocol="HT\nTP",
        ident="\r\n",
        now=NOW,
        tls="a)\r\nX: 1",
    )
    [only] = message.fields(field)
    assert only.name == b"received" and only.raw == field
    assert b"with HTTP\r\n" in field


@given(raw=st.binary(max_size=200) | st.text("From: a@b.c\r\n <>\0Ü", max_size=60).map(str.encode))
def test_any_octets_are_prepared_or_refused(raw: bytes) -> None:
    try:
        prepared = prepare(raw)
    except Refused:
        return
    assert prepared.raw.startswith(RECEIVED)
    assert b"\0" not in prepared.raw
