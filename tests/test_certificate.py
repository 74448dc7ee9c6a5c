"""Certificates in PEM: what is fit for use and what is not, in whatever order it comes."""

from datetime import UTC, datetime, timedelta

import pytest
from authority import DAY, Authority, Issued, issue
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, NoEncryption, PrivateFormat

from remails import certificate
from remails.errors import ConfigError


def key(one: Issued, *, password: bytes = b"", form: PrivateFormat = PrivateFormat.PKCS8) -> str:
    secrecy = BestAvailableEncryption(password) if password else NoEncryption()
    return one.key.private_bytes(Encoding.PEM, form, secrecy).decode()


def public(one: Issued) -> str:
    return one.certificate.public_bytes(Encoding.PEM).decode()


def test_key_and_chain_in_any_order_with_strangers_between() -> None:
    authority = Authority()
    ours = authority.issue("Relay.example", "*.more.example")
    text = "".join([public(authority.below), public(issue("stranger.example")), key(ours), "words\n", public(ours)])
    made = certificate.read(text.encode())
    assert [one.serial_number for one in made.chain] == [
        ours.certificate.serial_number,
        authority.below.certificate.serial_number,
    ]
    assert made.names == ["relay.example", "*.more.example"]
    assert made.pem.startswith("-----BEGIN PRIVATE KEY-----") and made.pem.count("BEGIN CERTIFICATE") == 2
    assert certificate.read(made.pem.encode()).pem == made.pem
    assert certificate.join(made.chain_pem, made.key_der).pem == made.pem
    assert certificate.trouble(made, ["relay.example", "x.more.example"]) is None
    old_form = key(ours, form=PrivateFormat.TraditionalOpenSSL) + ours.pem()
    assert "BEGIN EC PRIVATE KEY" in old_form and certificate.read(old_form.encode()).pem == made.pem


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (lambda a, b: key(a), "no certificate"),
        (lambda a, b: public(a), "no private key"),
        (lambda a, b: public(a) + key(b), "not that of the certificate"),
        (lambda a, b: public(a) + key(a, password=b"secret"), "without a passphrase"),
        (lambda a, b: "", "no certificate"),
        (lambda a, b: public(a).replace("MII", "mii") + key(a), "no certificate"),
    ],
)
def test_what_is_of_no_use_is_said(text: object, why: str) -> None:
    assert callable(text)
    with pytest.raises(ConfigError, match=why):
        certificate.read(text(issue("relay.example"), issue("relay.example")).encode())


def test_why_clients_would_not_take_it() -> None:
    authority = Authority()

    def trouble(one: Issued, *wanted: str, whole: bool = True) -> str | None:
        made = certificate.read((key(one) + (one.pem() if whole else public(one))).encode())
        return certificate.trouble(made, wanted, datetime.now(UTC))

    good = authority.issue("relay.example", "*.relay.example")
    assert trouble(good, "relay.example", "mx.relay.example") is None
    assert "not for other.example" in str(trouble(good, "relay.example", "other.example"))
    assert "a.b.relay.example" in str(trouble(good, "a.b.relay.example"))  # the star is one label
    assert "chain" in str(trouble(good, "relay.example", whole=False))
    assert "expired" in str(trouble(authority.issue("relay.example", ends=-timedelta(hours=1)), "relay.example"))
    assert "only from" in str(trouble(authority.issue("relay.example", begins=DAY, ends=9 * DAY), "relay.example"))
    assert trouble(issue("relay.example"), "relay.example") is None  # self-signed: who made it may trust it
