"""Previews: what people are shown of a message, whatever the message is like."""

import base64
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remails.mail import message
from remails.mail.message import Attachment

HEADER = b"From: App <app@example.com>\r\nMIME-Version: 1.0\r\n"


def part(mime: str, body: bytes, *more: str) -> bytes:
    return "".join(f"{line}\r\n" for line in (f"Content-Type: {mime}", *more)).encode() + b"\r\n" + body


def multipart(kind: str, boundary: str, *parts: bytes) -> bytes:
    inner = b"".join(b"--" + boundary.encode() + b"\r\n" + piece + b"\r\n" for piece in parts)
    return part(f"multipart/{kind}; boundary={boundary}", inner + f"--{boundary}--\r\n".encode())


def test_plain_text() -> None:
    shown = message.preview(HEADER + b"\r\nhi\r\nthere\r\n")
    assert (shown.text, shown.html, shown.attachments) == ("hi\nthere\n", None, [])


@pytest.mark.parametrize("raw", [b"", b"\r\n", HEADER, HEADER + b"\r\n"])
def test_no_body(raw: bytes) -> None:
    """M16."""
    assert message.preview(raw).text == ""


def test_alternative_and_attachments() -> None:
    pdf = b"%PDF" + bytes(range(256)) * 10
    raw = HEADER + multipart(
        "mixed",
        "o",
        multipart(
            "alternative",
            "i",
            part("text/plain; charset=utf-8", "grüß\r\n".encode()),
            part(
                "text/html; charset=utf-8", b"<p>gr=C3=\r\n=BC=C3=9F</p>", "Content-Transfer-Encoding: quoted-printable"
            ),
        ),
        part(
            "application/pdf",
            base64.encodebytes(pdf).replace(b"\n", b"\r\n"),
            "Content-Transfer-Encoding: base64",
            "Content-Disposition: attachment; filename*=utf-8''../gr%C3%BC%C3%9F.pdf",
        ),
        part("text/plain; name=notes.txt", b"12345", "Content-Disposition: attachment"),
        part('image/png; name="=?utf-8?q?bild_=C3=BC.png?="', b"123"),
    )
    shown = message.preview(raw)
    assert shown.text == "grüß\n"
    assert shown.html == "<p>grüß</p>"
    assert shown.attachments == [
        Attachment("grüß.pdf", "application/pdf", len(pdf)),
        Attachment("notes.txt", "text/plain", 5),
        Attachment("bild ü.png", "image/png", 3),
    ]


def test_inner_boundary_directly_before_the_outer() -> None:
    """M08's shape."""
    raw = HEADER + (
        b"Content-Type: multipart/mixed; boundary=o\r\n\r\n--o\r\nContent-Type: multipart/alternative; boundary=oo\r\n\r\n"
        b"--oo\r\n\r\nt\r\n--oo--\r\n--o\r\nContent-Type: text/html\r\n\r\nz\r\n--o--\r\nepilogue\r\n"
    )
    shown = message.preview(raw)
    assert (shown.text, shown.html, shown.attachments) == ("t", "z", [])


@pytest.mark.parametrize(
    "charset", ["foo-bar", "unicode-1-1-utf-7", '"utf-8; x"', "zlib", "idna", "undefined", "\\", "a" * 5000]
)
def test_bogus_charsets(charset: str) -> None:
    """M12: the text is shown, with replacement characters where need be."""
    shown = message.preview(
        HEADER + f"Content-Type: text/plain; charset={charset}\r\n\r\n".encode() + b"caf\xe9 au lait"
    )
    assert shown.text is not None and shown.text.startswith("caf") and shown.text.endswith("au lait")


def test_known_charset() -> None:
    assert message.preview(HEADER + b"Content-Type: text/plain; charset=ISO-8859-1\r\n\r\ncaf\xe9").text == "café"


def test_attached_message_is_not_opened() -> None:
    raw = HEADER + multipart("mixed", "o", part("text/plain", b"t"), part("message/rfc822", b"Subject: x\r\n\r\ny"))
    assert message.preview(raw).attachments == [Attachment("", "message/rfc822", 15)]


def test_text_is_cut_at_the_limit() -> None:
    encoded = base64.encodebytes("ü".encode() * 5000).replace(b"\n", b"\r\n")
    raw = HEADER + part("text/html; charset=utf-8", encoded, "Content-Transfer-Encoding: base64")
    assert message.preview(raw, 1000).html == "ü" * 1000


def test_multipart_without_close_or_boundary() -> None:
    raw = HEADER + b"Content-Type: multipart/mixed; boundary=o\r\n\r\n--o\r\n\r\nfirst\r\n--o\r\n\r\nsecond"
    shown = message.preview(raw)
    assert shown.text == "first"
    assert shown.attachments == [Attachment("", "text/plain", 6)]
    assert message.preview(HEADER + b"Content-Type: multipart/mixed\r\n\r\nx").text is None


def nested(depth: int) -> bytes:
    raw = b""
    for level in range(depth):
        raw += f"Content-Type: multipart/mixed; boundary=b{level}\r\n\r\n--b{level}\r\n".encode()
    return raw + b"Content-Type: text/plain\r\n\r\nx"


def test_depth_is_bounded() -> None:
    assert message.preview(nested(10)).text == "x"
    assert message.preview(nested(5000)).text is None


def test_work_is_bounded() -> None:
    """A million multiparts in one another's row cost no more than a few hundred."""
    many = b"--o\r\nContent-Type: multipart/x; boundary=i\r\n\r\n\r\n" * 200_000
    started = time.process_time()
    shown = message.preview(b"Content-Type: multipart/mixed; boundary=o\r\n\r\n" + many)
    assert len(shown.attachments) <= 200
    assert time.process_time() - started < 2


@given(raw=st.binary(max_size=300))
def test_never_raises_on_octets(raw: bytes) -> None:
    message.preview(raw)


@given(
    lines=st.lists(
        st.sampled_from(
            [
                b"Content-Type: multipart/mixed; boundary=o",
                b"Content-Type: text/html; charset=utf-16",
                b"Content-Transfer-Encoding: base64",
                b"Content-Transfer-Encoding: quoted-printable",
                b"Content-Disposition: attachment; filename*0*=x'y'%ff",
                b"",
                b"--o",
                b"--o--",
                b"=?utf-8?b?a",
                b"=ZZ=\xff",
                b"AAAAA",
            ]
        ),
        max_size=20,
    )
)
def test_never_raises_on_shuffled_parts(lines: list[bytes]) -> None:
    shown = message.preview(b"\r\n".join(lines), 50)
    assert all(len(text) <= 50 and "\0" not in text for text in (shown.text or "", shown.html or ""))
