"""Messages for servers without 8BITMIME: the same content in seven bits."""

import email
import email.policy
from email.message import EmailMessage, Message

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remails.mail import sevenbit


def crlf(text: str, charset: str = "utf-8") -> bytes:
    return text.replace("\n", "\r\n").encode(charset)


def leaves(raw: bytes) -> list[tuple[str, bytes]]:
    """Type and decoded content of each leaf, by Python's own parser."""
    message: Message = email.message_from_bytes(raw)
    found: list[tuple[str, bytes]] = []
    for part in message.walk():
        content = part.get_payload(decode=True)
        if not part.is_multipart():
            assert isinstance(content, bytes)
            found.append((part.get_content_type(), content))
    return found


def is_fit(raw: bytes) -> bool:
    return raw.isascii() and raw.count(b"\n") == raw.count(b"\r\n") and max(map(len, raw.split(b"\r\n"))) <= 998


def test_ascii_stays_as_it_is() -> None:
    raw = crlf("Subject: x\nContent-Transfer-Encoding: 8bit\n\nplain = text \n")
    assert sevenbit.encode(raw) == raw


def test_text_becomes_quoted_printable_and_only_its_encoding_field_changes() -> None:
    """Case O27."""
    raw = crlf(
        "From: a@example.net\nMIME-Version: 1.0\nContent-Type: text/plain;\n charset=utf-8\n"
        "content-transfer-encoding: 8bit\nX-Odd:  two  blanks\n\nYour cafe is a café = nice\n"
    )
    assert sevenbit.encode(raw) == crlf(
        "From: a@example.net\nMIME-Version: 1.0\nContent-Type: text/plain;\n charset=utf-8\n"
        "Content-Transfer-Encoding: quoted-printable\nX-Odd:  two  blanks\n\nYour cafe is a caf=C3=A9 =3D nice\n"
    )


def test_a_message_from_before_mime_is_given_what_a_reader_needs() -> None:
    encoded = sevenbit.encode(crlf("Subject: x\n\nGrüße aus einer alten Zeit\n"))
    assert encoded is not None
    message = email.message_from_bytes(encoded, policy=email.policy.default)
    assert isinstance(message, EmailMessage)
    assert message["MIME-Version"] == "1.0"
    assert message.get_content() == "Grüße aus einer alten Zeit\r\n"
    latin = sevenbit.encode(crlf("Subject: x\n\nGrüße aus einer alten Zeit\n", "latin-1"))
    assert latin is not None
    assert b"charset=unknown-8bit" in latin


def test_only_the_part_that_needs_it_is_written_anew() -> None:
    signed = "Content-Type: multipart/signed; boundary=s\n\n--s\n\nplain \n--s\nContent-Type: application/pgp-signature\n\nx\n--s--"
    raw = crlf(
        "MIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=b\nContent-Transfer-Encoding: 8bit\n\n"
        f"Vorwort ü\n--b\n{signed}\n--b\nContent-Type: image/png\n\n\u00ff\u00fe\u00fd\n--b--\nNachwort ü\n",
        "latin-1",
    )
    encoded = sevenbit.encode(raw)
    assert encoded is not None
    assert is_fit(encoded)
    assert crlf(signed) in encoded
    assert crlf("Content-Type: image/png\nContent-Transfer-Encoding: base64\n\n//79\n--b--\nNachwort ?\n") in encoded
    assert b"boundary=b\r\nContent-Transfer-Encoding: 7bit\r\n" in encoded


def test_a_forwarded_message_is_changed_inside_and_never_encoded_itself() -> None:
    raw = crlf(
        "MIME-Version: 1.0\nContent-Type: message/rfc822\n\nSubject: inner\nMIME-Version: 1.0\n\nzwölf Boxer jagen\n"
    )
    encoded = sevenbit.encode(raw)
    assert encoded is not None
    assert encoded.startswith(crlf("MIME-Version: 1.0\nContent-Type: message/rfc822\n\nSubject: inner\n"))
    assert leaves(encoded) == [("text/plain", "zwölf Boxer jagen\r\n".encode())]
    assert b"zw=C3=B6lf" in encoded


@pytest.mark.parametrize(
    "text",
    [
        "Content-Type: multipart/signed; boundary=b\n\n--b\n\nü\n--b\n\nx\n--b--\n",
        "Content-Type: multipart/encrypted; boundary=b\n\n--b\n\nü\n--b--\n",
        "Content-Type: multipart/mixed; boundary=o\n\n--o\nContent-Type: multipart/signed; boundary=b\n\n--b\n\nü\n--b--\n--o--\n",
        "Subject: Grüße\n\nx\n",
        "Content-Type: multipart/mixed; boundary=b\n\n--b\nContent-Disposition: attachment; filename=ü\n\nx\n--b--\n",
        "Content-Type: multipart/mixed; boundary=b\nContent-Transfer-Encoding: base64\n\n--b\n\nü\n--b--\n",
        "Content-Type: multipart/mixed\n\nü\n",
        "Content-Type: message/partial\n\nü\n",
        "Content-Transfer-Encoding: x-uuencode\n\nü\n",
        "Content-Type: text/plain\nContent-Type: text/html\n\nü\n",
    ],
)
def test_what_must_not_be_touched_is_not(text: str) -> None:
    assert sevenbit.encode(crlf(text)) is None


def test_a_broken_line_never_looks_like_a_boundary() -> None:
    for length in range(60, 80):
        line = "ü" + "x" * length + "--b"
        raw = crlf(f"MIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=b\n\n--b\n\n{line}\n--b--\n")
        encoded = sevenbit.encode(raw)
        assert encoded is not None
        assert [content for _, content in leaves(encoded)] == [line.encode()]


_LINES = st.lists(st.binary(max_size=300).map(lambda octets: octets.translate(None, b"\r\n\0")), max_size=12)


@given(
    bodies=st.lists(
        st.tuples(st.sampled_from(["text/plain", "text/html", "application/pdf"]), _LINES), min_size=1, max_size=4
    )
)
def test_the_content_stays_the_same(bodies: list[tuple[str, list[bytes]]]) -> None:
    contents = [(mime, b"\r\n".join(line for line in lines if not line.startswith(b"--"))) for mime, lines in bodies]
    raw = b"MIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=frontier\r\n\r\n"
    for mime, content in contents:
        raw += b"--frontier\r\nContent-Type: " + mime.encode() + b"\r\n\r\n" + content + b"\r\n"
    raw += b"--frontier--\r\n"
    encoded = sevenbit.encode(raw)
    assert encoded is not None
    assert is_fit(encoded)
    assert leaves(encoded) == contents


@given(st.binary(max_size=2000))
def test_anything_at_all_ends_in_seven_bits_or_not_at_all(octets: bytes) -> None:
    encoded = sevenbit.encode(b"Subject: x\r\n\r\n" + octets)
    assert encoded is None or encoded.isascii()
