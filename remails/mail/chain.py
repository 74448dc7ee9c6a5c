"""What a server shows of itself in TLS: its certificate and those that vouch for it (RFC 5280, RFC 9525).

`Roots.why_not` judges a chain after the handshake. Where a valid certificate decides whether mail is sent, OpenSSL itself checks it in
the handshake; this is for DANE, whose trust anchors come from DNS, and for telling what a certificate was worth where any was taken.
"""

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache

from cryptography import x509
from cryptography.utils import CryptographyDeprecationWarning
from cryptography.x509 import verification
from cryptography.x509.verification import Criticality, ExtensionPolicy

_DEPTH = 8
_CA = ExtensionPolicy.permit_all().require_present(x509.BasicConstraints, Criticality.AGNOSTIC, None)
_SERVER = ExtensionPolicy.permit_all().require_present(x509.SubjectAlternativeName, Criticality.AGNOSTIC, None)
_UNKNOWN = "no authority that is believed vouches for its certificate"
_TEXTS = {
    "no matching subjectAltName": "its certificate is for other names",
    "has no subjectAltName": "its certificate names no host",
    "not valid at validation time": "its certificate, or one that vouches for it, has expired or is not valid yet",
}


@dataclass(frozen=True, slots=True)
class Certificate:
    """One certificate."""

    der: bytes
    parsed: x509.Certificate
    public_key: bytes
    """SubjectPublicKeyInfo, as it stands there."""


@lru_cache(maxsize=1000)
def parse(der: bytes) -> Certificate | None:
    """Read a certificate from DER; None when it is none."""
    try:
        with warnings.catch_warnings():  # odd ones are read all the same
            warnings.simplefilter("ignore", CryptographyDeprecationWarning)
            parsed = x509.load_der_x509_certificate(der)
        return Certificate(der, parsed, _public_key(parsed.tbs_certificate_bytes))
    except (ValueError, IndexError):
        return None


def _public_key(tbs: bytes) -> bytes:
    """SubjectPublicKeyInfo out of a TBSCertificate (RFC 5280 §4.1), whatever its algorithm, to the byte."""
    start, _ = _content(tbs, 0)
    if tbs[start] == 0xA0:  # version, absent in version 1
        start = _content(tbs, start)[1]
    for _ in range(5):  # serial number, signature, issuer, validity, subject
        start = _content(tbs, start)[1]
    return tbs[start : _content(tbs, start)[1]]


def _content(der: bytes, start: int) -> tuple[int, int]:
    """Where the content of the element at `start` begins and ends (X.690 §8.1.3)."""
    length, begin = der[start + 1], start + 2
    if length & 0x80:
        octets = length & 0x7F
        length, begin = int.from_bytes(der[begin : begin + octets]), begin + octets
    return begin, begin + length


class Roots:
    """Certificate authorities that are believed.

    Args:
        ders: their certificates; what cannot be read is left out.
    """

    def __init__(self, ders: Iterable[bytes]) -> None:
        self.certificates = [found.parsed for der in ders if (found := parse(der)) is not None]
        self._store = verification.Store(self.certificates) if self.certificates else None

    def why_not(self, presented: Sequence[bytes], names: Iterable[str], now: datetime) -> str | None:
        """None when one of these vouches for the first certificate and it is for one of the names; else why not, in words.

        Args:
            presented: the server's certificate and those it sent along, as DER.
            names: host names, in A-labels.
            now: aware.
        """
        certificates = [found.parsed for der in presented if (found := parse(der)) is not None]
        if not certificates or len(certificates) != len(presented):
            return "it shows no certificate that can be read"
        if self._store is None:
            return _UNKNOWN
        policy = (
            verification.PolicyBuilder()
            .store(self._store)
            .time(now.astimezone(UTC).replace(tzinfo=None))
            .max_chain_depth(_DEPTH)
            .extension_policies(ca_policy=_CA, ee_policy=_SERVER)
        )
        reason = ""
        for name in names:
            try:
                policy.build_server_verifier(x509.DNSName(name)).verify(certificates[0], certificates[1:])
            except verification.VerificationError as error:
                said = next((text for words, text in _TEXTS.items() if words in str(error)), _UNKNOWN)
                reason = reason or said  # what is said of the first name says most
            except ValueError:  # a name that no certificate can have
                continue
            else:
                return None
        return reason or _UNKNOWN
