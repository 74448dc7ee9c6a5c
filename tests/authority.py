"""A certificate authority for tests, and the certificates of servers good and bad."""

import hashlib
import ssl
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

DAY = timedelta(days=1)
_USES = (
    *("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement"),
    *("key_cert_sign", "crl_sign", "encipher_only", "decipher_only"),
)


@dataclass(frozen=True)
class Issued:
    """A certificate with its key, and what a server sends along."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey
    along: Sequence[x509.Certificate] = ()

    @property
    def der(self) -> bytes:
        """The certificate."""
        return self.certificate.public_bytes(Encoding.DER)

    @property
    def chain(self) -> list[bytes]:
        """What a server shows."""
        return [one.public_bytes(Encoding.DER) for one in (self.certificate, *self.along)]

    def tlsa(self, usage: int, selector: int = 1, matching: int = 1) -> str:
        """A TLSA record that fits it, in presentation form."""
        public = self.certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        data = public if selector == 1 else self.der
        data = {0: data, 1: hashlib.sha256(data).digest(), 2: hashlib.sha512(data).digest()}[matching]
        return f"{usage} {selector} {matching} {data.hex()}"

    def pem(self) -> str:
        """Certificate and what goes along."""
        return "".join(one.public_bytes(Encoding.PEM).decode() for one in (self.certificate, *self.along))

    def files(self, directory: Path) -> tuple[str, str]:
        """Certificate and key in files."""
        stem = directory / f"{self.certificate.serial_number:x}"
        certificate, key = stem.with_suffix(".pem"), stem.with_suffix(".key")
        certificate.write_text(self.pem())
        key.write_bytes(self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        return str(certificate), str(key)

    def context(self, directory: Path) -> ssl.SSLContext:
        """For a server that shows it."""
        made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        made.load_cert_chain(*self.files(directory))
        return made


def issue(
    *names: str,
    by: Issued | None = None,
    is_authority: bool = False,
    begins: timedelta = -DAY,
    ends: timedelta = 30 * DAY,
    along: Sequence[x509.Certificate] = (),
    common_name: str = "",
) -> Issued:
    """A certificate for some names; signed by itself unless `by` says by whom. Its dates are from now."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, common_name or (names or ("nobody",))[0])])
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(by.certificate.subject if by else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + min(begins, ends - DAY))
        .not_valid_after(now + ends)
    )
    # RFC 5280 §4.2.1: without these a strict client does not believe it.
    if is_authority:
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        usage = dict.fromkeys(_USES, False) | {"key_cert_sign": True, "crl_sign": True}
        builder = builder.add_extension(x509.KeyUsage(**usage), critical=True)
        builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    if by:
        identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(by.key.public_key())
        builder = builder.add_extension(identifier, critical=False)
    if names and not is_authority:
        alternatives = x509.SubjectAlternativeName([x509.DNSName(name) for name in names])
        builder = builder.add_extension(alternatives, critical=False)
    return Issued(builder.sign(by.key if by else key, hashes.SHA256()), key, along)


@dataclass
class Authority:
    """A root, and one below it that issues: servers send the latter along."""

    name: str = "Test"
    root: Issued = field(init=False)
    below: Issued = field(init=False)

    def __post_init__(self) -> None:
        self.root = issue(f"{self.name} Root", is_authority=True)
        self.below = issue(f"{self.name} Issuer", by=self.root, is_authority=True)

    def issue(self, *names: str, begins: timedelta = -DAY, ends: timedelta = 30 * DAY) -> Issued:
        """A certificate for a server."""
        return issue(*names, by=self.below, begins=begins, ends=ends, along=[self.below.certificate])
