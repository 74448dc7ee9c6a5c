"""DANE for SMTP: which TLSA records count, and whether a server's certificates fit one (RFC 6698, RFC 7671, RFC 7672).

    TLSA records (looked up by `outbound.dane`) --> usable --> matches(chain): usage 3, the server's own certificate
                                                                               usage 2, one of its chain that vouches for it

Nothing here trusts a record: that they came by DNSSEC is the caller's affair.
"""

import hashlib
import hmac
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from remails.mail import chain

TRUST_ANCHOR, END_ENTITY = 2, 3  # DANE-TA, DANE-EE
CERTIFICATE, PUBLIC_KEY = 0, 1  # selectors
_DIGESTS: dict[int, Callable[[bytes], bytes]] = {
    1: lambda data: hashlib.sha256(data).digest(),
    2: lambda data: hashlib.sha512(data).digest(),
}
_SIZES = {1: 32, 2: 64}
_FULL = 0


@dataclass(frozen=True, slots=True, order=True)
class Tlsa:
    """One TLSA record."""

    usage: int
    selector: int
    matching: int
    data: bytes

    @property
    def is_usable(self) -> bool:
        """Whether SMTP can use it: PKIX-TA and PKIX-EE mean nothing here (RFC 7672 §3.1.3)."""
        if self.usage not in (TRUST_ANCHOR, END_ENTITY) or self.selector not in (CERTIFICATE, PUBLIC_KEY):
            return False
        if self.matching == _FULL:
            return self.selector == PUBLIC_KEY or chain.parse(self.data) is not None
        return len(self.data) == _SIZES.get(self.matching, -1)

    def fits(self, certificate: chain.Certificate) -> bool:
        """Whether it speaks of this certificate."""
        selected = certificate.der if self.selector == CERTIFICATE else certificate.public_key
        wanted = selected if self.matching == _FULL else _DIGESTS[self.matching](selected)
        return hmac.compare_digest(wanted, self.data)


def usable(records: Iterable[Tlsa]) -> tuple[Tlsa, ...]:
    """The records that count, in order.

    Of several digests for the same usage and selector only the strongest counts (RFC 7671 §9): what the weaker ones say
    might be forged one day.
    """
    found = sorted({record for record in records if record.is_usable})
    strongest: dict[tuple[int, int], int] = {}
    for record in found:
        key = record.usage, record.selector
        strongest[key] = max(strongest.get(key, _FULL), record.matching)
    return tuple(record for record in found if record.matching in (_FULL, strongest[record.usage, record.selector]))


def why_not(records: Sequence[Tlsa], presented: Sequence[bytes], names: Iterable[str], now: datetime) -> str | None:
    """None when what a server has shown fits one of the usable records; otherwise what is wrong, in words.

    Args:
        presented: its certificate and those it sent along, as DER.
        names: reference identifiers, any of which may stand in the certificate (RFC 7672 §3.2.3).
        now: aware.
    """
    certificates = [found for der in presented if (found := chain.parse(der)) is not None]
    if not certificates or len(certificates) != len(presented):
        return "it shows no certificate that can be read"
    # RFC 7672 §3.1.1: with DANE-EE the record is the binding: neither names nor dates nor issuers matter.
    if any(record.fits(certificates[0]) for record in records if record.usage == END_ENTITY):
        return None
    anchors = _anchors([record for record in records if record.usage == TRUST_ANCHOR], certificates)
    if not anchors:
        return "its certificate fits none of the TLSA records"
    return chain.Roots(anchors).why_not(presented, names, now)


def _anchors(records: Sequence[Tlsa], certificates: Sequence[chain.Certificate]) -> list[bytes]:
    """The trust anchors: certificates shown that fit a record, and those that stand in a record itself."""
    shown = [one.der for one in certificates if any(record.fits(one) for record in records)]
    return [*shown, *(one.data for one in records if (one.selector, one.matching) == (CERTIFICATE, _FULL))]
