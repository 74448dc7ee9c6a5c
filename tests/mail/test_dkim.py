"""DKIM: our signatures verify, what must break them does, and keys are published as receivers read them.

The verifier of most tests is dkimpy used alone, on whole messages, which shares no parsing with `dkim.sign`.
"""

import base64
import re
from concurrent.futures import ThreadPoolExecutor

import dkim as dkimpy
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from dkim.canonicalization import Relaxed
from hypothesis import given
from hypothesis import strategies as st

from remails.mail import dkim, message

NOW = 1_700_000_000
HEADER = (
    b"From: App <app@example.com>\r\nTo: b@example.net\r\nSubject: a  folded\r\n\tsubject \r\n"
    b"Date: Mon, 01 Jan 2024 00:00:00 +0000\r\nMessage-ID: <m1@example.com>\r\n"
)
BODY = b"\r\nHello  there, \r\n\r\nbye\r\n"
MESSAGE = HEADER + BODY

RSA_DER = dkim.generate(dkim.Algorithm.RSA)
ED25519_DER = dkim.generate(dkim.Algorithm.ED25519)
ALGORITHMS = pytest.mark.parametrize("der", [RSA_DER, ED25519_DER], ids=["rsa", "ed25519"])


def signed(raw: bytes, der: bytes = ED25519_DER, domain: str = "example.com") -> bytes:
    return dkim.sign(raw, domain=domain, selector="remails", key=dkim.load(der), now=NOW) + raw


def verifies(raw: bytes, der: bytes = ED25519_DER) -> bool:
    return bool(dkimpy.verify(raw, dnsfunc=lambda name, timeout=0: dkim.record(der).encode()))


def tags(raw: bytes) -> dict[str, str]:
    [field] = [field for field in message.fields(message.split(raw)[0]) if field.name == b"dkim-signature"]
    pairs = (tag.partition("=")[::2] for tag in re.sub(r"\s", "", field.value.decode()).split(";"))
    return dict(pairs)


@ALGORITHMS
def test_signature_verifies(der: bytes) -> None:
    raw = signed(MESSAGE, der)
    asked: list[bytes] = []

    def txt(name: bytes, timeout: int = 0) -> bytes:
        asked.append(name)
        return dkim.record(der).encode()

    assert dkimpy.verify(raw, dnsfunc=txt)
    assert asked == [b"remails._domainkey.example.com."]


def test_tags() -> None:
    """M19: SHA-256, t=, and neither l= nor anything else that weakens it."""
    found = tags(signed(MESSAGE, RSA_DER))
    assert found.keys() == {"v", "a", "c", "d", "s", "t", "h", "bh", "b"}
    expected = {"v": "1", "a": "rsa-sha256", "c": "relaxed/relaxed", "d": "example.com", "s": "remails", "t": str(NOW)}
    assert expected.items() <= found.items()
    assert tags(signed(MESSAGE))["a"] == "ed25519-sha256"


def test_field_is_one_folded_field() -> None:
    raw = HEADER + b"References: <a@b>\r\n" * 40 + BODY
    field = dkim.sign(raw, domain="example.com", selector="remails", key=dkim.load(RSA_DER), now=NOW)
    [only] = message.fields(field)
    assert only.raw == field and only.name == b"dkim-signature"
    assert max(len(line) for line in field.split(b"\r\n")) <= 78
    assert verifies(field + raw, RSA_DER)


def test_long_domain_is_not_cut() -> None:
    domain = ".".join(["x" * 60] * 3 + ["example"])
    raw = signed(MESSAGE, domain=domain)
    assert tags(raw)["d"] == domain
    assert verifies(raw)


@pytest.mark.parametrize(
    ("raw", "body_hash"),
    [
        (HEADER + b"\r\n", "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="),
        (HEADER, "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="),
        (HEADER + b"\r\n\r\n", "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="),
        (HEADER + b"\r\n \t\r\n\r\n", "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="),
    ],
)
def test_empty_body(raw: bytes, body_hash: str) -> None:
    """M16: the hash of nothing."""
    assert tags(signed(raw))["bh"] == body_hash
    assert verifies(signed(raw))


@ALGORITHMS
@pytest.mark.parametrize(
    "body",
    [
        b"Hello!\r\n  \r\n\r\n",
        b"Hello! \t\r\n",
        b"Hello!",
        b"Hello! \t",
        b"Hello!\r\n\r\n\r\n",
        b"\r\n\r\nHello!\r\n",
        b" Hello!\r\n",
        b".\r\n..\r\n",
        "grüß \t dich\r\n".encode(),
    ],
)
def test_bodies(der: bytes, body: bytes) -> None:
    """M15: blank last lines, blanks at line ends, no last line end (SMTP adds it on the way)."""
    raw = signed(HEADER + b"\r\n" + body, der)
    arrived = raw if raw.endswith(b"\r\n") else raw + b"\r\n"
    assert verifies(arrived, der)
    assert [verdict.ok for verdict in dkim.verify(raw, lambda name: [dkim.record(der).encode()])] == [True]


@pytest.mark.parametrize(
    "change",
    [
        (b"Hello  there, \r\n", b"Hello there,\r\n"),
        (b"bye\r\n", b"bye\r\n\r\n\r\n"),
        (b"To: b@example.net\r\n", b"TO:   b@example.net \r\n"),
        (b"Subject: a  folded\r\n\tsubject \r\n", b"Subject:\r\n a folded subject\r\n"),
    ],
)
def test_changes_that_relaxed_allows(change: tuple[bytes, bytes]) -> None:
    raw = signed(MESSAGE)
    assert verifies(raw.replace(*change)) and raw.replace(*change) != raw


@pytest.mark.parametrize(
    "change",
    [
        (b"bye", b"Bye"),
        (b"bye\r\n", b"bye\r\nappended\r\n"),
        (b"a  folded", b"another"),
        (b"To: b@example.net\r\n", b""),
        (b"app@example.com", b"ape@example.com"),
        (b"t=1700000000", b"t=1700000001"),
        (b"<m1@", b"<m2@"),
    ],
)
def test_tampering_breaks_it(change: tuple[bytes, bytes]) -> None:
    raw = signed(MESSAGE)
    assert raw.replace(*change, 1) != raw
    assert not _accepted(raw.replace(*change, 1))


def _accepted(raw: bytes) -> bool:
    try:
        return verifies(raw)
    except dkimpy.ValidationError:
        return False


@pytest.mark.parametrize("name", [name.decode() for name in dkim._GUARDED])
@pytest.mark.parametrize("present", [False, True])
@pytest.mark.parametrize("on_top", [False, True])
def test_adding_a_field_breaks_it(name: str, present: bool, on_top: bool) -> None:
    """M18: whether or not the message has one already, and wherever the other is put."""
    added = f"{name.title()}: evil@x.example\r\n".encode()
    own = b"" if not present or name.encode() + b":" in HEADER.lower() else f"{name}: 1\r\n".encode()
    raw = signed(own + MESSAGE)
    assert verifies(raw)
    assert not _accepted(added + raw if on_top else raw.replace(BODY, added + BODY))


@pytest.mark.parametrize("name", [name.decode() for name in (*dkim._PROTECTED, *dkim._REPEATABLE)])
def test_other_signed_fields(name: str) -> None:
    """Signed where present, free where absent; a resender may put a new block of Resent- fields on top."""
    field = f"{name.title()}: 1\r\n".encode()
    raw = signed(field + MESSAGE)
    assert verifies(raw)
    assert not _accepted(raw.replace(field, field.replace(b"1", b"2")))
    assert _accepted(field + signed(MESSAGE))
    assert _accepted(field + raw) == name.startswith("resent-")


@pytest.mark.parametrize("field", [b"Received: x\r\n", b"X-Other: 1\r\n", b"Return-Path: <a@b>\r\n"])
def test_trace_fields_are_free(field: bytes) -> None:
    assert verifies(field + signed(MESSAGE))


def test_every_field_of_the_list_is_covered() -> None:
    names = """From Sender Reply-To To Cc Subject Date Message-ID MIME-Version Content-Type Content-Transfer-Encoding
        Content-ID Content-Description In-Reply-To References List-Id List-Help List-Unsubscribe List-Unsubscribe-Post
        List-Subscribe List-Post List-Owner List-Archive Resent-Date Resent-From Resent-Sender Resent-To Resent-Cc
        Resent-Message-ID Feedback-ID"""
    expected = names.split()
    raw = b"".join(f"{name}: 1\r\n".encode() for name in expected) + b"\r\n"
    assert set(tags(signed(raw))["h"].split(":")) == {name.lower() for name in expected}


def test_odd_headers_are_signed_as_they_are() -> None:
    """M05's obsolete blank before the colon, raw UTF-8, long folds: nothing raises, and our own verifier agrees."""
    raw = (
        HEADER.replace(b"Subject:", b"Subject :")
        + "X: ü\r\nList-Unsubscribe: <https://u.example.com/?d=".encode()
        + b"A%0A" * 200
        + b">,\r\n\t<mailto:u@example.com>\r\n"
        + BODY
    )
    [verdict] = dkim.verify(signed(raw), lambda name: [dkim.record(ED25519_DER).encode()])
    assert verdict.ok, verdict.reason


def test_one_key_signs_in_many_threads() -> None:
    key = dkim.load(RSA_DER)
    raws = [HEADER + b"\r\n" + str(number).encode() * 50 + b"\r\n" for number in range(40)]
    with ThreadPoolExecutor(8) as threads:
        fields = list(
            threads.map(lambda raw: dkim.sign(raw, domain="example.com", selector="s", key=key, now=NOW), raws)
        )
    assert all(verifies(field + raw, RSA_DER) for field, raw in zip(fields, raws, strict=True))


bodies = st.binary(max_size=60) | st.text(" \t\r\nab", max_size=60).map(str.encode)
lines = st.lists(st.text(" \tab", max_size=8), max_size=8).map(
    lambda found: "".join(f"{x}\r\n" for x in found).encode()
)


@given(body=bodies | lines)
def test_relaxed_body_agrees_with_dkimpy(body: bytes) -> None:
    """M15: our passes give what dkimpy's expressions give, once the last line end is there."""
    whole = body if not body or body.endswith(b"\r\n") else body + b"\r\n"
    assert dkim.relaxed_body(body) == Relaxed.canonicalize_body(whole)


values = st.text(" \t=;xB\u00fc", max_size=20).map(str.encode)


@given(name=st.sampled_from([b"Subject", b"subject ", b"SUBJECT\t"]), parts=st.lists(values, min_size=1, max_size=4))
def test_relaxed_fields_agree_with_dkimpy(name: bytes, parts: list[bytes]) -> None:
    """M15: whatever blanks there are, and wherever it is folded."""
    value = b"\r\n ".join(parts) + b"\r\n"
    [(canonical, text)] = Relaxed.canonicalize_headers([(name, value)])
    assert dkim._relaxed(name + b":" + value) == canonical + b":" + text


@given(fields=st.lists(st.sampled_from([b"Subject", b"To", b"X-Other", b"Resent-To", b"References"]), max_size=9))
def test_any_number_of_fields_verifies(fields: list[bytes]) -> None:
    header = b"".join(b"%b: %d\r\n" % (name, number) for number, name in enumerate(fields))
    assert verifies(signed(b"From: a@example.com\r\n" + header + BODY))


@given(body=lines)
def test_any_body_verifies(body: bytes) -> None:
    assert verifies(signed(HEADER + b"\r\n" + body))


# --- keys -----------------------------------------------------------------------------------------------------------


def test_rsa_record() -> None:
    """The record is SPKI of 2048 bits, and p= is what the API shows."""
    match = re.fullmatch(r"v=DKIM1; k=rsa; p=([A-Za-z0-9+/]+=*)", dkim.record(RSA_DER))
    assert match and match[1] == dkim.public_key(RSA_DER)
    assert base64.b64decode(match[1]).startswith(bytes.fromhex("30820122300d06092a864886f70d01010105000382010f00"))
    assert dkim.load(RSA_DER).algorithm is dkim.Algorithm.RSA


def test_ed25519_record_is_that_of_the_rfc() -> None:
    """RFC 8463 appendix A.2: the 32 bytes, without any wrapping."""
    seed = base64.b64decode("nWGxne/9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A=")
    private = ed25519.Ed25519PrivateKey.from_private_bytes(seed)
    der = private.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    assert dkim.record(der) == "v=DKIM1; k=ed25519; p=11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo="
    assert dkim.load(der).algorithm is dkim.Algorithm.ED25519


def test_unfit_keys() -> None:
    """M19: RFC 8301 forbids less than 1024 bits."""
    der = (Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    short = rsa.generate_private_key(65537, 1024).private_bytes(*der)
    assert dkim.load(short).algorithm is dkim.Algorithm.RSA
    with pytest.raises(ValueError, match="RSA or Ed25519"):
        dkim.load(ec.generate_private_key(ec.SECP256R1()).private_bytes(*der))
    with pytest.raises(ValueError):
        dkim.load(b"junk")


# --- verify ---------------------------------------------------------------------------------------------------------

RFC_8463 = b"""\
DKIM-Signature: v=1; a=ed25519-sha256; c=relaxed/relaxed;
 d=football.example.com; i=@football.example.com;
 q=dns/txt; s=brisbane; t=1528637909; h=from : to :
 subject : date : message-id : from : subject : date;
 bh=2jUSOH9NhtVGCQWNr9BrIAPreKQjO6Sn7XIkfJVOzv8=;
 b=/gCrinpcQOoIfuHNQIbq4pgh9kyIK3AQUdt9OdqQehSwhEIug4D11Bus
 Fa3bT3FY5OsU7ZbnKELq+eXdp1Q1Dw==
From: Joe SixPack <joe@football.example.com>
To: Suzie Q <suzie@shopping.example.net>
Subject: Is dinner ready?
Date: Fri, 11 Jul 2003 21:00:37 -0700 (PDT)
Message-ID: <20030712040037.46341.5F8J@football.example.com>

Hi.

We lost the game.  Are you hungry yet?

Joe.
""".replace(b"\n", b"\r\n")


def test_verifies_the_message_of_the_rfc() -> None:
    """RFC 8463 appendix A.3."""
    records = {
        "brisbane._domainkey.football.example.com": [
            b"v=DKIM1; k=ed25519; p=11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo="
        ]
    }
    [verdict] = dkim.verify(RFC_8463, records.__getitem__)
    assert verdict == dkim.Verdict("football.example.com", "brisbane", "ed25519-sha256", True, "")


def published(der: bytes = ED25519_DER) -> list[bytes]:
    return [dkim.record(der).encode()]


def test_every_signature_has_its_verdict() -> None:
    foreign = b"DKIM-Signature: v=1; a=rsa-sha256; d=victim.example; s=x; h=from; bh=AAAA; b=AAAA\r\n"
    verdicts = dkim.verify(foreign + signed(MESSAGE), lambda name: published())
    assert [(verdict.domain, verdict.ok) for verdict in verdicts] == [("victim.example", False), ("example.com", True)]
    assert dkim.verify(MESSAGE, lambda name: published()) == []


@pytest.mark.parametrize(
    ("records", "reason"),
    [
        ([], "0 key records at remails._domainkey.example.com"),
        (published() * 2, "2 key records"),
        ([b"v=DKIM1; k=ed25519; p="], "not valid"),
        ([b"v=DKIM1; k=ed25519; p=AAAA"], "not valid"),
        ([b"v=DKIM1; k=rsa; p=!"], "not valid"),
        ([rb"v=DKIM1\; k=rsa\; p=AAAA"], "not valid"),
        ([b"v=DKIM2; p=AAAA"], "not valid"),
        ([b"junk"], "not valid"),
        ([b""], "not valid"),
        ([dkim.record(dkim.generate(dkim.Algorithm.ED25519)).encode()], "does not fit"),
    ],
)
def test_bad_key_records(records: list[bytes], reason: str) -> None:
    """D04, D13: none, several, cut, or another key."""
    [verdict] = dkim.verify(signed(MESSAGE), lambda name: records)
    assert not verdict.ok and reason in verdict.reason
    assert (verdict.domain, verdict.selector) == ("example.com", "remails")


def test_changed_body_is_named() -> None:
    [verdict] = dkim.verify(signed(MESSAGE).replace(b"bye", b"Bye"), lambda name: published())
    assert not verdict.ok and verdict.reason.startswith("body hash mismatch")


def test_failures_of_dns_reach_the_caller() -> None:
    """D12: "could not check" is not "bad"."""

    def txt(name: str) -> list[bytes]:
        raise TimeoutError(name)

    with pytest.raises(TimeoutError):
        dkim.verify(signed(MESSAGE), txt)


@given(value=st.binary(max_size=80) | st.text("abvdhs=;:@1 \r\n\t+/", max_size=60).map(str.encode))
def test_odd_signatures_only_fail(value: bytes) -> None:
    for raw in (
        b"DKIM-Signature: " + value + b"\r\n" + MESSAGE,
        b"DKIM-Signature: v=1; a=rsa-sha256; " + value + b"\r\n" + MESSAGE,
    ):
        assert not any(verdict.ok for verdict in dkim.verify(raw, lambda name: published()))


def test_number_of_signatures_is_bounded() -> None:
    assert len(dkim.verify(b"DKIM-Signature: x\r\n" * 100 + MESSAGE, lambda name: published())) == 10
