"""DNS records of sender domains: what is right, what is wrong, and whether the reason says what to change."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remails.mail import dkim, records
from remails.mail.spf import Result

KEY = "MIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEA" + "A" * 340 + "IDAQAB"
DKIM = f"v=DKIM1; k=rsa; p={KEY}"
INCLUDE = "spf.relay.example"
TOKEN = "3f9c0b1d2e"


def test_suggested_records_are_judged_right() -> None:
    record = dkim.record(dkim.generate(dkim.Algorithm.ED25519))
    owner, key, spf, dmarc = records.suggested("example.com", "remails", record, INCLUDE, TOKEN)
    assert [one.name for one in (owner, key, spf, dmarc)] == [
        "_remails.example.com",
        "remails._domainkey.example.com",
        "example.com",
        "_dmarc.example.com",
    ]
    assert [one.required for one in (owner, key, spf, dmarc)] == [True, True, True, False]
    assert {one.type for one in (owner, key, spf, dmarc)} == {"TXT"}
    assert spf.value == "v=spf1 include:spf.relay.example -all"
    assert records.ownership([owner.value], TOKEN).status == "Success"
    assert records.dkim([key.value], record).status == "Success"
    assert records.spf([spf.value], INCLUDE).status == "Success"
    assert records.dmarc([dmarc.value]).status == "Success"


def test_unknown_is_not_checked() -> None:
    """D12: no answer is neither missing nor wrong."""
    verdict = records.unknown("SERVFAIL")
    assert (verdict.status, verdict.checked, verdict.value) == ("Warning", False, None)
    assert "SERVFAIL" in verdict.reason
    assert records.dkim([], DKIM).checked


# --- DKIM -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "record",
    [
        DKIM,
        f"v=DKIM1;k=rsa;p={KEY};",
        f"p={KEY}",
        f"v=DKIM1; p={KEY}",
        f"v = DKIM1 ; h=sha1 : sha256; s=email; t=s; n=note; p={KEY[:100]} {KEY[100:]}  ",
        f"v=DKIM1; s=*; p={KEY}",
    ],
)
def test_right_dkim_records(record: str) -> None:
    """D01: the strings of a record come joined, so a long key is just a long text."""
    assert records.dkim([record], DKIM) == records.Verdict("Success", "The DKIM record is right", record)


@pytest.mark.parametrize(
    ("answers", "reason"),
    [
        ([], "There is no DKIM record"),
        (["v=spf1 -all"], "There is no DKIM record"),
        ([DKIM, "v=DKIM1; p=AAAA"], "more than one DKIM record"),
        ([DKIM, DKIM], "more than one DKIM record"),
        (["v=DKIM1; k=rsa; p="], "revoked"),
        (["v=DKIM1; k=rsa"], "no key"),
        (["v=DKIM1; k=rsa; p=AAAA"], "not ours"),
        ([DKIM[:255]], "cut off after 237 of 390 characters"),
        ([DKIM + KEY], "entered twice"),
        ([f"v=DKIM1; k=ed25519; p={KEY}"], "it must say k=rsa"),
        ([f"k=rsa; v=DKIM1; p={KEY}"], "must begin with v=DKIM1"),
        ([f"v=DKIM2; p={KEY}"], "must begin with v=DKIM1"),
        ([f"{DKIM}; p={KEY}"], "a tag twice"),
        ([f"v=DKIM1; h=sha1; p={KEY}"], "SHA-256"),
        ([f"v=DKIM1; s=tlsrpt; p={KEY}"], "not for mail"),
        ([DKIM.replace(";", "\\;")], "write `;` and not `\\;`"),
        ([f'"{DKIM}"'], "quotation marks"),
        ([DKIM[:100] + '" "' + DKIM[100:]], "quotation marks"),
        ([f"'{DKIM}'"], "quotation marks"),
        ([f"\u201c{DKIM}\u201d"], "typographic quotation marks"),
        ([DKIM.replace(" ", "\u00a0")], "no-break space (U+00A0)"),
        (["\ufeff" + DKIM], "U+FEFF, zero width no-break space"),
        ([DKIM[:50] + "\u200b" + DKIM[50:]], "U+200B, zero width space"),
        ([DKIM + "\ufffd"], "U+FFFD"),
        ([" " + DKIM], "begins with a blank"),
    ],
)
def test_wrong_dkim_records(answers: Sequence[str], reason: str) -> None:
    """D04, D13: the exact hint."""
    verdict = records.dkim(answers, DKIM)
    assert (verdict.status, verdict.checked) == ("Error", True)
    assert reason in verdict.reason
    assert verdict.reason.isascii()


def test_dkim_record_at_the_doubled_name() -> None:
    """D13."""
    assert "ends in the domain twice" in records.dkim([], DKIM, doubled=[DKIM]).reason
    assert "twice" not in records.dkim([], DKIM, doubled=["v=spf1 -all"]).reason


@pytest.mark.parametrize(
    ("answers", "reason"), [([f"v=DKIM1; t=y:s; p={KEY}"], "t=y"), ([DKIM, "v=spf1 -all"], "Another TXT record")]
)
def test_dkim_records_that_work_for_some(answers: Sequence[str], reason: str) -> None:
    verdict = records.dkim(answers, DKIM)
    assert verdict.status == "Warning" and reason in verdict.reason


# --- SPF ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("record", "status", "reason"),
    [
        ("v=spf1 include:spf.relay.example -all", "Success", "right"),
        ("V=SPF1 Include:SPF.Relay.Example. -ALL ", "Success", "right"),
        ("v=spf1 include:spf.relay.example ~all", "Info", "not just the one"),
        (
            "v=spf1 mx ip4:192.0.2.0/24 ip6:2001:db8::/32 a:x.example/24 include:spf.relay.example -all",
            "Info",
            "allowed",
        ),
        ("v=spf1 +include:spf.relay.example exists:%{i}.x.example exp=e.example -all", "Info", "allowed"),
        ("v=spf1 include:spf.relay.example redirect=_spf.x.example", "Info", "_spf.x.example decides"),
        ("v=spf1 -all include:spf.relay.example", "Warning", "unreachable"),
        ("v=spf1 include:spf.relay.example -all mx", "Warning", "move mx in front"),
        ("v=spf1 include:spf.relay.example +all", "Warning", "every server in the world"),
        ("v=spf1 include:spf.relay.example all", "Warning", "every server in the world"),
        ("v=spf1 include:spf.relay.example ?all", "Warning", "forbids nobody"),
        ("v=spf1 include:spf.relay.example", "Warning", "forbids nobody"),
        ("v=spf1 ?include:spf.relay.example -all", "Warning", "remove the ?"),
        ("v=spf1 ~include:spf.relay.example -all", "Warning", "remove the ~"),
        ("v=spf1 -include:spf.relay.example -all", "Error", "remove the -"),
        ("v=spf1 include:other.example -all", "Error", "does not have include:spf.relay.example"),
        ("v=spf1 include:evilspf.relay.example -all", "Error", "does not have include:spf.relay.example"),
        ("v=spf1 redirect=_spf.x.example", "Error", "does not have"),
        ("v=spf1 -all", "Error", "does not have"),
        ("v=spf1", "Error", "does not have"),
        ("v=spf1 include: spf.relay.example -all", "Error", "not valid at include:"),
        ("v=spf1 include=spf.relay.example -all", "Error", "does not have"),
        ("v=spf1 spf.relay.example -all", "Error", "not valid at spf.relay.example"),
        ("v=spf1 include:spf.relay.example; -all", "Error", "does not have"),
        ("v=spf1 ipv4:192.0.2.1 include:spf.relay.example -all", "Error", "not valid at ipv4:192.0.2.1"),
        ("v=spf1 " + "mx:x.example " * 10 + "include:spf.relay.example -all", "Error", "more than 10 DNS lookups"),
        ("v=spf1 include:spf.relay.example\u00a0-all", "Error", "no-break space"),
        ("\u201cv=spf1 include:spf.relay.example -all\u201d", "Error", "typographic quotation marks"),
        ('"v=spf1 include:spf.relay.example -all"', "Error", "quotation marks"),
        ("'v=spf1 include:spf.relay.example -all'", "Error", "quotation marks"),
        (" v=spf1 include:spf.relay.example -all", "Error", "begins with a blank"),
        ("\ufeffv=spf1 include:spf.relay.example -all", "Error", "U+FEFF"),
    ],
)
def test_spf(record: str, status: str, reason: str) -> None:
    """D08, D13: an include must be there, be read, and allow."""
    verdict = records.spf(["google-site-verification=x", record, "v=spf10 x"], INCLUDE)
    assert verdict.status == status
    assert reason in verdict.reason
    assert verdict.value == record


def test_several_spf_records() -> None:
    """D06: whatever the case of v=spf1."""
    answers = ["v=spf1 include:spf.relay.example -all", "V=SPF1 ip4:192.0.2.1 ~all", "v=spf10 nope"]
    verdict = records.spf(answers, INCLUDE)
    assert verdict.status == "Error" and "permerror" in verdict.reason


@pytest.mark.parametrize("answers", [[], ["v=spf10 x"], ["google-site-verification=x"], ["xv=spf1 -all"]])
def test_no_spf_record(answers: Sequence[str]) -> None:
    """D06."""
    assert records.spf(answers, INCLUDE) == records.Verdict("Error", "There is no SPF record")


ZONE = {
    "_spf.x.example": ["v=spf1 include:inner.example ~all"],
    "inner.example": ["other", "v=spf1 ip4:192.0.2.1 include:spf.relay.example -all"],
    "dead.example": ["v=spf1 -all include:spf.relay.example"],
    "denied.example": ["v=spf1 -include:spf.relay.example -all"],
    "two.example": ["v=spf1 include:spf.relay.example -all", "v=spf1 -all"],
    "broken.example": ["v=spf1 nonsense include:spf.relay.example -all"],
    "loop.example": ["v=spf1 include:loop.example include:loop2.example -all"],
    "loop2.example": ["v=spf1 redirect=loop.example"],
}


@pytest.mark.parametrize(
    ("record", "status"),
    [
        ("v=spf1 include:_spf.x.example -all", "Info"),
        ("v=spf1 redirect=_spf.x.example", "Info"),
        ("v=spf1 -all redirect=_spf.x.example", "Error"),
        ("v=spf1 ?include:_spf.x.example -all", "Error"),
        ("v=spf1 include:dead.example -all", "Error"),
        ("v=spf1 include:denied.example -all", "Error"),
        ("v=spf1 include:two.example -all", "Error"),
        ("v=spf1 include:broken.example -all", "Error"),
        ("v=spf1 include:loop.example -all", "Error"),
        ("v=spf1 include:nowhere.example -all", "Error"),
    ],
)
def test_include_behind_another(record: str, status: str) -> None:
    """D08: a nested include counts when it is effective."""
    asked: list[str] = []

    def lookup(name: str) -> Sequence[str]:
        asked.append(name)
        return ZONE.get(name, [])

    assert records.spf([record], INCLUDE, lookup=lookup).status == status
    assert len(asked) <= 10 and len(set(asked)) == len(asked)


def test_lookups_are_bounded() -> None:
    asked: list[str] = []

    def lookup(name: str) -> Sequence[str]:
        asked.append(name)
        return [f"v=spf1 include:a{len(asked)}.example include:b{len(asked)}.example -all"]

    assert records.spf(["v=spf1 include:x.example -all"], INCLUDE, lookup=lookup).status == "Error"
    assert len(asked) == 10


# --- DMARC ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answers", "status", "reason"),
    [
        (["v=DMARC1; p=reject"], "Success", "right"),
        (["v=DMARC1;P=Reject"], "Success", "right"),
        (["v=DMARC1; p=reject; sp=reject; rua=mailto:r@example.com; adkim=s;"], "Success", "right"),
        (["v=DMARC1; p=quarantine"], "Info", "p=quarantine"),
        (["v=DMARC1; p=none; rua=mailto:r@example.com"], "Info", "p=none"),
        (["v=DMARC1; p=reject; sp=none"], "Info", "sp=none"),
        (["v=DMARC1; p=reject; pct=20"], "Info", "a part of the mail"),
        (["v=DMARC1; p=reject; t=y"], "Info", "as a test"),
        ([], "Info", "no DMARC record"),
        (["v=spf1 -all"], "Info", "no DMARC record"),
        (["v=DMARC1; sp=reject; rua=mailto:x@y.example"], "Warning", "p=none (sp=reject is only for subdomains)"),
        (
            ["v=DMARC1; p=rejct; rua=mailto:x@y.example"],
            "Warning",
            "p=rejct is not valid, so receivers take it for p=none",
        ),
        (["v=DMARC1; sp=reject"], "Warning", "receivers ignore the DMARC record"),
        (["v=DMARC1"], "Warning", "receivers ignore the DMARC record"),
        (["v=DMARC1; p=reject; sp=foo"], "Warning", "sp=foo is not valid"),
        (["v=dmarc1; p=none"], "Warning", "must begin with v=DMARC1"),
        (["p=none; v=DMARC1"], "Warning", "must begin with v=DMARC1"),
        (["v=DMARC10; p=none"], "Warning", "must begin with v=DMARC1"),
        (["v=DMARC1; p=reject", "v=DMARC1; p=none"], "Warning", "more than one DMARC record"),
        (["v=DMARC1\\; p=reject"], "Warning", "write `;` and not `\\;`"),
        (['"v=DMARC1; p=reject"'], "Warning", "quotation marks"),
        (["v=DMARC1;\u00a0p=reject"], "Warning", "no-break space"),
    ],
)
def test_dmarc(answers: Sequence[str], status: str, reason: str) -> None:
    """D09, D13: sp= is not p=, v= comes first and is exact, values are not."""
    verdict = records.dmarc(answers)
    assert verdict.status == status
    assert reason in verdict.reason


def test_the_walk_to_the_organizational_domain_is_bounded() -> None:
    """D11: RFC 9989 §4.10."""
    assert records.dmarc_walk("mail.example.com") == ["example.com", "com"]
    deep = records.dmarc_walk("a.b.c.d.e.f.g.h.i.example.com")
    assert deep == ["e.f.g.h.i.example.com".partition(".")[2] if n else "e.f.g.h.i.example.com" for n in (0, 1)] + [
        "g.h.i.example.com",
        "h.i.example.com",
        "i.example.com",
        "example.com",
        "com",
    ]


@pytest.mark.parametrize(
    ("walked", "found"),
    [
        ([("b.example", []), ("example", [])], None),
        ([("x.b.example", ["v=DMARC1; p=none"]), ("b.example", ["v=DMARC1; p=reject"])], "b.example"),
        ([("x.b.example", ["v=DMARC1; p=none; psd=n"]), ("b.example", ["v=DMARC1; p=reject"])], "x.b.example"),
        ([("b.example", ["v=DMARC1; p=none"]), ("example", ["v=DMARC1; p=reject; psd=y"])], "b.example"),
        ([("b.example", []), ("example", ["v=DMARC1; p=reject; psd=y"])], "example"),
        ([("b.example", ["v=DMARC1; p=none", "v=DMARC1; p=reject"]), ("example", [])], None),
    ],
)
def test_which_dmarc_record_above_counts(walked: Sequence[tuple[str, Sequence[str]]], found: str | None) -> None:
    """D11: psd= is honoured, several records at a name are none."""
    parent = records.dmarc_parent(walked)
    assert (parent[0] if parent else None) == found


def test_the_policy_above_counts_where_there_is_none() -> None:
    """D11, D09: sp= before p=."""
    verdict = records.dmarc([], parent=("example.com", "v=DMARC1; p=reject; sp=none"))
    assert (verdict.status, verdict.reason) == ("Info", "The DMARC record of example.com counts: none")
    assert records.dmarc([], parent=("example.com", "v=DMARC1; p=reject")).status == "Success"
    assert records.dmarc([], parent=("example.com", "v=DMARC1; p=no")).status == "Warning"
    assert "p=none" in records.dmarc(["v=DMARC1; p=none"], parent=("example.com", "v=DMARC1; p=reject")).reason


def test_reports_to_another_domain_have_to_be_wanted_there() -> None:
    """D14."""
    record = (
        "v=DMARC1; p=reject; rua=mailto:a@example.com,mailto:d@Reports.relay.example!10m; ruf=mailto:x@sub.example.com"
    )
    assert records.dmarc_reports(record, "example.com") == ["reports.relay.example"]
    verdict = records.dmarc([record], unwanted=["reports.relay.example"])
    assert (verdict.status, verdict.reason.partition(":")[0]) == ("Warning", "No reports will come")


@pytest.mark.parametrize(
    ("status", "results", "expected", "reason"),
    [
        ("Success", [], "Success", "x"),
        ("Success", [("1", Result.PASS, "")], "Success", "x"),
        ("Error", [("1", Result.PASS, ""), ("2", Result.PASS, "")], "Info", "by their addresses"),
        ("Error", [("1", Result.PASS, ""), ("2", Result.FAIL, "")], "Error", "x"),
        ("Error", [("1", Result.PERMERROR, "no")], "Error", "x"),
        ("Info", [("1", Result.PASS, ""), ("2", Result.PERMERROR, "too deep")], "Error", "too deep"),
        ("Info", [("1", Result.FAIL, "")], "Error", "for our address 1 it says fail"),
        ("Info", [("1", Result.NEUTRAL, "")], "Warning", "neutral"),
        ("Warning", [("1", Result.FAIL, "")], "Warning", "x"),
    ],
)
def test_a_verdict_is_held_against_what_receivers_find(
    status: records.Status, results: list[tuple[str, Result, str]], expected: str, reason: str
) -> None:
    verdict = records.spf_evaluated(records.Verdict(status, "x"), results)
    assert verdict.status == expected and reason in verdict.reason


def test_dmarc_record_at_the_doubled_name() -> None:
    """D13."""
    assert "ends in the domain twice" in records.dmarc([], doubled=["v=DMARC1; p=none"]).reason


# --- ownership ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answers", "status", "reason"),
    [
        (["remails-verification=3f9c0b1d2e"], "Success", ""),
        (["x", "remails-verification=other", "remails-verification=3f9c0b1d2e"], "Success", ""),
        ([], "Error", "no ownership record"),
        (["x"], "Error", "no ownership record"),
        (["remails-verification=other"], "Error", "another token"),
        (["3f9c0b1d2e"], "Error", "must be remails-verification=3f9c0b1d2e"),
        (["remails-verification=3f9c0b1d2ef"], "Error", "must be remails-verification=3f9c0b1d2e"),
        (['"remails-verification=3f9c0b1d2e"'], "Error", "quotation marks"),
    ],
)
def test_ownership(answers: Sequence[str], status: str, reason: str) -> None:
    verdict = records.ownership(answers, TOKEN)
    assert verdict.status == status and reason in verdict.reason


def test_ownership_at_the_doubled_name() -> None:
    """D13."""
    verdict = records.ownership([], TOKEN, doubled=["remails-verification=3f9c0b1d2e"])
    assert verdict.status == "Error" and "ends in the domain twice" in verdict.reason


@pytest.mark.parametrize(
    ("servers", "addresses", "status", "reason"),
    [
        (["10 mx.example.com."], [], "Success", "way back"),
        (["0 .", "10 mx.example.com."], [], "Success", "way back"),
        ([], ["192.0.2.1"], "Success", "way back"),
        (["0 ."], ["192.0.2.1"], "Warning", "takes no mail"),
        ([], [], "Warning", "no mail server"),
    ],
)
def test_return_path(servers: Sequence[str], addresses: Sequence[str], status: str, reason: str) -> None:
    """D12: beside a timeout, what is there decides."""
    verdict = records.return_path(servers, addresses)
    assert verdict.status == status and reason in verdict.reason and verdict.checked


def test_address() -> None:
    assert records.a(["192.0.2.1", "192.0.2.2"]) == records.Verdict(
        "Success", "The domain has an address", "192.0.2.1, 192.0.2.2"
    )
    assert records.a([]).status == "Info"


anything = st.lists(
    st.text(max_size=60)
    | st.text("v=spf1DMARCKIMp;:+?~-all include \\\"'\u00a0.", max_size=60)
    | st.from_regex(r"v=(spf1|DMARC1|DKIM1)[ ;][ -~]{0,50}", fullmatch=True),
    max_size=3,
)


@given(answers=anything)
def test_any_answers_are_judged(answers: list[str]) -> None:
    for verdict in (
        records.spf(answers, INCLUDE, lookup=lambda name: answers),
        records.dkim(answers, DKIM, doubled=answers),
        records.dmarc(answers, doubled=answers),
        records.ownership(answers, TOKEN, doubled=answers),
    ):
        assert verdict.reason.isprintable() and len(verdict.reason) < 400
