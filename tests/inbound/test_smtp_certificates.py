"""Certificates: the right one by name, and new ones without a restart."""

import shutil
import ssl
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from inbound.dialogue import Dialogue
from inbound.running import Running

from remails import config


def make(directory: Path, *names: str) -> config.Certificate:
    directory.mkdir(exist_ok=True)
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, names[0])])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name) for name in names]), critical=False)
        .sign(key, hashes.SHA256())
    )
    (directory / "c.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (directory / "k.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return config.Certificate(certificate=str(directory / "c.pem"), key=str(directory / "k.pem"))


def shown(dialogue: Dialogue, name: str | None) -> bytes:
    """The certificate that a client gets who asks for this name, on a connection that is still plain."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with context.wrap_socket(dialogue.sock, server_hostname=name) as secure:
        got = secure.getpeercert(binary_form=True)
    assert got is not None
    return got


def ask(inbound: Running, name: str | None = None, *, starttls: bool = False) -> bytes:
    with Dialogue(inbound.port("submission" if starttls else "smtps")) as dialogue:
        if starttls:
            dialogue.play([("EHLO c.example", "220 "), ("STARTTLS", "250-")])
            dialogue.reply()
        return shown(dialogue, name)


def der(certificate: config.Certificate) -> bytes:
    return ssl.PEM_cert_to_DER_cert(Path(certificate.certificate).read_text())


@pytest.mark.parametrize("starttls", [False, True])
def test_certificate_by_name(run: Callable[..., Running], tmp_path: Path, starttls: bool) -> None:
    first, second = make(tmp_path / "1", "mail.relay.example"), make(tmp_path / "2", "a.example", "*.b.example")
    inbound = run(
        inbound={"tls_certificate": first.certificate, "tls_key": first.key, "certificates": (second,)},
    )
    wanted = {
        None: first,
        "mail.relay.example": first,
        "elsewhere.example": first,
        "b.example": first,
        "x.y.b.example": first,
        "a.example": second,
        "A.Example": second,
        "mx.b.example": second,
    }
    for name, certificate in wanted.items():
        assert ask(inbound, name, starttls=starttls) == der(certificate), name


def test_new_certificate_without_a_restart(
    run: Callable[..., Running], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    used = make(tmp_path / "used", "mail.relay.example")
    old, new = der(used), make(tmp_path / "new", "mail.relay.example")
    inbound = run(inbound={"tls_certificate": used.certificate, "tls_key": used.key})
    assert ask(inbound) == old

    Path(used.certificate).write_text("no certificate")
    await_(lambda: "new certificate cannot be used" in caplog.text)
    assert ask(inbound) == old

    shutil.copy(new.certificate, used.certificate)
    shutil.copy(new.key, used.key)
    await_(lambda: ask(inbound) == der(new))
    assert ask(inbound, starttls=True) == der(new)


def await_(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
