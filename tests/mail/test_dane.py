"""TLSA records against what servers show (RFC 6698, RFC 7671, RFC 7672)."""

from datetime import UTC, datetime, timedelta

import authority
import pytest
from authority import Authority, Issued, issue
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from remails.mail import chain, dane
from remails.mail.dane import Tlsa

NOW = datetime.now(UTC)
CA = Authority()
GOOD = CA.issue("mx.example.net", "*.wild.example")
EXPIRED = CA.issue("mx.example.net", ends=-authority.DAY / 2)
OTHER = CA.issue("other.example")
SELF = issue("mx.example.net")
SELF_EXPIRED = issue(ends=-authority.DAY / 2)
EARLY = CA.issue("mx.example.net", begins=authority.DAY)
NO_AUTHORITY = issue("not an authority", by=CA.root)
FORGED = issue("mx.example.net", by=NO_AUTHORITY, along=[NO_AUTHORITY.certificate])
NAMES = ("mx.example.net", "example.net")


def tlsa(text: str) -> Tlsa:
    usage, selector, matching, data = text.split()
    return Tlsa(int(usage), int(selector), int(matching), bytes.fromhex(data))


def test_the_public_key_is_taken_as_it_stands() -> None:
    for one in (GOOD, CA.root, SELF):
        parsed = chain.parse(one.der)
        assert parsed is not None
        assert parsed.public_key == one.certificate.public_key().public_bytes(
            Encoding.DER, PublicFormat.SubjectPublicKeyInfo
        )
    assert chain.parse(b"") is None
    assert chain.parse(GOOD.der[:-9]) is None


OK, NO_FIT = None, "fits none"
ROWS: list[tuple[str, Issued, list[str], str | None]] = [
    ("3 1 1", GOOD, [GOOD.tlsa(3, 1, 1)], OK),
    ("3 1 2", GOOD, [GOOD.tlsa(3, 1, 2)], OK),
    ("3 1 0", GOOD, [GOOD.tlsa(3, 1, 0)], OK),
    ("3 0 1", GOOD, [GOOD.tlsa(3, 0, 1)], OK),
    ("3 0 2", GOOD, [GOOD.tlsa(3, 0, 2)], OK),
    ("3 0 0", GOOD, [GOOD.tlsa(3, 0, 0)], OK),
    ("3 1 1 of another certificate", GOOD, [OTHER.tlsa(3)], NO_FIT),
    ("one of several fits (rollover)", GOOD, [OTHER.tlsa(3), GOOD.tlsa(3)], OK),
    ("3: dates do not matter", EXPIRED, [EXPIRED.tlsa(3)], OK),
    ("3: names do not matter", OTHER, [OTHER.tlsa(3)], OK),
    ("3: self-signed, expired, nameless", SELF_EXPIRED, [SELF_EXPIRED.tlsa(3)], OK),
    ("3 of the issuer is not for the server", GOOD, [CA.below.tlsa(3)], NO_FIT),
    ("2 1 1 of the issuer", GOOD, [CA.below.tlsa(2)], OK),
    ("2 0 1 of the issuer", GOOD, [CA.below.tlsa(2, 0, 1)], OK),
    ("2 0 2 of the issuer", GOOD, [CA.below.tlsa(2, 0, 2)], OK),
    ("2 1 0 of the issuer", GOOD, [CA.below.tlsa(2, 1, 0)], OK),
    ("2 0 0: the root, which the server does not send", GOOD, [CA.root.tlsa(2, 0, 0)], OK),
    ("2 1 1: the root, which the server does not send", GOOD, [CA.root.tlsa(2, 1, 1)], NO_FIT),
    ("2: dates matter", EXPIRED, [CA.below.tlsa(2)], "expired"),
    ("2: not valid yet", EARLY, [CA.below.tlsa(2)], "not valid yet"),
    ("2: names matter", OTHER, [CA.below.tlsa(2)], "other names"),
    ("2: no name at all", issue(by=CA.below, along=[CA.below.certificate]), [CA.below.tlsa(2)], "names no host"),
    ("2: the domain's name will do", CA.issue("example.net"), [CA.below.tlsa(2)], OK),
    ("2: shown, but it did not sign this", Issued(SELF.certificate, SELF.key, [CA.below.certificate]), [CA.below.tlsa(2)], "no authority"),
    ("2: what is no authority vouches for nobody", FORGED, [NO_AUTHORITY.tlsa(2)], "no authority"),
    ("2: self-signed, its own anchor", SELF, [SELF.tlsa(2)], OK),
    ("3 fails, 2 fits", GOOD, [OTHER.tlsa(3), CA.below.tlsa(2)], OK),
    ("a weak digest does not count beside a strong one", GOOD, [GOOD.tlsa(3, 1, 1), OTHER.tlsa(3, 1, 2)], NO_FIT),
    ("per usage and selector", GOOD, [GOOD.tlsa(3, 0, 1), OTHER.tlsa(3, 1, 2)], OK),
]  # fmt: skip


@pytest.mark.parametrize(("shown", "records", "why"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS])
def test_what_fits(shown: Issued, records: list[str], why: str | None) -> None:
    found = dane.why_not(dane.usable(map(tlsa, records)), shown.chain, NAMES, NOW)
    assert (found is None) is (why is None), found
    if why is not None:
        assert found is not None
        assert why in found


@pytest.mark.parametrize("shown", [[], [b"junk"], [GOOD.der, b"junk"]])
def test_what_is_no_chain_fits_nothing(shown: list[bytes]) -> None:
    assert dane.why_not((tlsa(GOOD.tlsa(3)),), shown, NAMES, NOW) == "it shows no certificate that can be read"


@pytest.mark.parametrize(
    "text",
    [
        GOOD.tlsa(0),  # PKIX-TA and PKIX-EE
        GOOD.tlsa(1),
        GOOD.tlsa(3).replace("3 1 1", "4 1 1"),
        GOOD.tlsa(3).replace("3 1 1", "255 1 1"),
        GOOD.tlsa(3).replace("3 1 1", "3 2 1"),
        GOOD.tlsa(3).replace("3 1 1", "3 1 3"),
        GOOD.tlsa(3)[:-2],  # a digest of 31 octets
        GOOD.tlsa(3).replace("3 1 1", "3 1 2"),  # one of 32 where 64 are due
        "2 0 0 3003020101",  # no certificate
    ],
)
def test_what_is_unusable(text: str) -> None:
    """RFC 7672 §2.2, §3.1.3."""
    assert dane.usable([tlsa(text)]) == ()


def test_wildcards_stand_for_one_label() -> None:
    records = (tlsa(CA.below.tlsa(2)),)
    assert dane.why_not(records, GOOD.chain, ["a.wild.example"], NOW) is None
    assert dane.why_not(records, GOOD.chain, ["a.b.wild.example"], NOW) is not None
    assert dane.why_not(records, GOOD.chain, ["odd name", "a.wild.example"], NOW) is None
    assert dane.why_not(records, GOOD.chain, ["odd name"], NOW) is not None


def test_roots() -> None:
    roots = chain.Roots([CA.root.der, b"junk"])
    assert roots.why_not(GOOD.chain, ["mx.example.net"], NOW) is None
    assert roots.why_not(GOOD.chain[:1], ["mx.example.net"], NOW) is not None  # the issuer is missing
    assert roots.why_not(GOOD.chain, ["mx.example.net"], NOW + timedelta(days=40)) is not None
    assert chain.Roots([]).why_not(GOOD.chain, ["mx.example.net"], NOW) is not None
    assert roots.why_not([], ["mx.example.net"], NOW) is not None
