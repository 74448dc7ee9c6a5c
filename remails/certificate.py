"""A certificate with its chain and its key, as read from PEM, and whether they are fit for use.

On hosts they stand in one file, the key first: HAProxy wants it so, and one file is replaced in one step.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from remails.errors import ConfigError

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


@dataclass(frozen=True, slots=True)
class Certificate:
    """A chain, our own certificate first, and the key of that. The two fit: `read` has seen to it."""

    chain: Sequence[x509.Certificate]
    key: PrivateKey = field(repr=False)

    @property
    def own(self) -> x509.Certificate:
        """The certificate itself."""
        return self.chain[0]

    @property
    def names(self) -> list[str]:
        """The host names it is for (RFC 9525 §6.1), in lower case."""
        return names_of(self.own)

    @property
    def serial(self) -> str:
        """Its serial number in hexadecimal."""
        return f"{self.own.serial_number:x}"

    @property
    def chain_pem(self) -> str:
        """The chain in PEM."""
        return "".join(one.public_bytes(Encoding.PEM).decode("ascii") for one in self.chain)

    @property
    def key_der(self) -> bytes:
        """The key as PKCS#8."""
        return self.key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())

    @property
    def pem(self) -> str:
        """Key and chain, as they stand in a file."""
        key = self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return key.decode("ascii") + self.chain_pem


def names_of(certificate: x509.Certificate) -> list[str]:
    """The host names a certificate is for, in lower case."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return [name.lower() for name in names.get_values_for_type(x509.DNSName)]


def covers(names: Iterable[str], wanted: str) -> bool:
    """Whether a certificate for `names` is one for the host name `wanted`."""
    wanted = wanted.lower().rstrip(".")
    # RFC 9525 §6.3: the star stands for exactly one label, the first.
    return any(name in (wanted, "*." + wanted.partition(".")[2]) for name in names)


def read(pem: bytes) -> Certificate:
    """Certificate, chain and key out of PEM; the order of the chain is put right.

    Raises:
        ConfigError: something of it is missing, or does not belong to the rest.
    """
    try:
        given = x509.load_pem_x509_certificates(pem)
    except ValueError:
        raise ConfigError("there is no certificate in PEM in it") from None
    try:
        key = serialization.load_pem_private_key(_key_block(pem), None)
    except (ValueError, TypeError):
        raise ConfigError("there is no private key in PEM without a passphrase in it") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
        raise ConfigError("the key is neither one of ECDSA nor one of RSA")
    return _made(given, key)


def chain_of(pem: str) -> list[x509.Certificate]:
    """The certificates in a text of PEM, as they come."""
    return x509.load_pem_x509_certificates(pem.encode("ascii"))


def join(chain_pem: str, key_der: bytes) -> Certificate:
    """The same out of a chain in PEM and a key in PKCS#8. Raises ConfigError."""
    key = serialization.load_der_private_key(key_der, None)
    assert isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey)
    return _made(chain_of(chain_pem), key)


def _made(given: Sequence[x509.Certificate], key: PrivateKey) -> Certificate:
    own = next((one for one in given if _public(one) == _public(key)), None)
    if own is None:
        raise ConfigError("the key is not that of the certificate")
    return Certificate(_chain(own, [one for one in given if one is not own]), key)


def _chain(own: x509.Certificate, others: list[x509.Certificate]) -> list[x509.Certificate]:
    """From our own certificate upwards; what does not belong to it is left out."""
    chain = [own]
    while above := next((one for one in others if _has_issued(one, chain[-1])), None):
        chain.append(above)
        others.remove(above)
    return chain


def _has_issued(issuer: x509.Certificate, one: x509.Certificate) -> bool:
    try:
        one.verify_directly_issued_by(issuer)
    except (InvalidSignature, ValueError, TypeError):
        return False
    return True


def _public(one: x509.Certificate | PrivateKey) -> bytes:
    return one.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _key_block(pem: bytes) -> bytes:
    """From the line that begins a key to its end."""
    for kind in (b"PRIVATE KEY", b"EC PRIVATE KEY", b"RSA PRIVATE KEY"):
        start, end = b"-----BEGIN " + kind + b"-----", b"-----END " + kind + b"-----"
        if start in pem and end in pem:
            return pem[pem.index(start) : pem.index(end) + len(end)] + b"\n"
    return b""


def trouble(made: Certificate, wanted: Iterable[str] = (), now: datetime | None = None) -> str | None:
    """Why clients would not take it, in one sentence; None if they would, provided that they know the authority.

    Args:
        wanted: host names that it has to be for.
        now: None is the present.
    """
    now = now or datetime.now(UTC)
    if now >= made.own.not_valid_after_utc:
        return f"it expired on {made.own.not_valid_after_utc:%Y-%m-%d}"
    if now < made.own.not_valid_before_utc:
        return f"it is valid only from {made.own.not_valid_before_utc:%Y-%m-%d %H:%M} UTC on"
    if missing := [name for name in wanted if not covers(made.names, name)]:
        return f"it is for {', '.join(made.names) or 'no name'}, and not for {', '.join(missing)}"
    if len(made.chain) == 1 and made.own.issuer != made.own.subject:
        return "the certificate of its issuer is missing; put the whole chain into it"
    return None
