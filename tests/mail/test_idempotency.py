"""When two mails are the same mail, and what a key may look like."""

from email.message import EmailMessage

import pytest

from remails.mail import idempotency


def made(text: str = "Hello", attachment: bytes = b"file") -> bytes:
    """A message as a program makes it: with a new Date, Message-ID and boundary each time."""
    message = EmailMessage()
    message["From"], message["Subject"] = "a@acme.example", "Order 1"
    message["Message-ID"], message["Date"] = (
        f"<{id(message)}@acme.example>",
        f"Mon, 01 Jan 2024 00:00:{len(text):02} +0000",
    )
    message.set_content(text)
    message.add_alternative(f"<p>{text}</p>", subtype="html")
    message.add_attachment(attachment, maintype="application", subtype="pdf", filename="a.pdf")
    return message.as_bytes().replace(b"\n", b"\r\n")


def test_the_same_message_made_again() -> None:
    one, other = made(), made()
    assert one != other
    assert idempotency.fingerprint(["a", "b"], one) == idempotency.fingerprint(["a", "b"], other)


def test_another_message() -> None:
    raw = made()
    prints = {
        idempotency.fingerprint(envelope, message)
        for envelope, message in [
            (["a", "b"], raw),
            (["a", "c"], raw),
            (["ab"], raw),
            (["a", "b"], made("Hello!")),
            (["a", "b"], made(attachment=b"other")),
            (["a", "b"], raw.replace(b"Order 1", b"Order 2")),
            (["a", "b"], b"X: 1\r\n" + raw),
        ]
    }
    assert len(prints) == 7


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (b"\r\n--aaaaaaaa\r\n", b"\r\n--bbbbbbbb\r\n", False),
        (b'Content-Type: m/m; boundary="a"\r\n\r\n--a\r\n', b'Content-Type: m/m; boundary="b"\r\n\r\n--b\r\n', True),
        (
            b"Content-Type: m/m; boundary=a\r\n\r\n--a\r\n1 a\r\n",
            b"Content-Type: m/m; boundary=b\r\n\r\n--b\r\n1 b\r\n",
            False,
        ),
        (
            b"Content-Type: m/m; boundary=a\r\n\r\n--a\r\nContent-Type: m/m; boundary=ab\r\n\r\n--ab\r\n--ab--\r\n--a--\r\n",
            b"Content-Type: m/m; boundary=x\r\n\r\n--x\r\nContent-Type: m/m; boundary=y\r\n\r\n--y\r\n--y--\r\n--x--\r\n",
            True,
        ),
    ],
)
def test_boundaries(one: bytes, other: bytes, same: bool) -> None:
    assert (idempotency.fingerprint([], one) == idempotency.fingerprint([], other)) is same


@pytest.mark.parametrize(
    ("text", "key"),
    [("a", "a"), (' "8e03-97" ', "8e03-97"), ("order 1", "order 1"), ("x" * 255, "x" * 255), ('"', '"')],
)
def test_keys(text: str, key: str) -> None:
    assert idempotency.key(text) == key


@pytest.mark.parametrize("text", ["", " ", '""', '" a"', "x" * 256, "a\tb", "\u00e9", "a\0"])
def test_what_is_no_key(text: str) -> None:
    with pytest.raises(idempotency.BadKey):
        idempotency.key(text)
