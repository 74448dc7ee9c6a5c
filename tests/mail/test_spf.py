"""SPF as receivers evaluate it (RFC 7208); the cases have the names that the standard's sections give them."""

import ipaddress
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remails.mail import spf
from remails.mail.spf import Result

OURS, OTHER, OURS6 = "198.51.100.7", "203.0.113.9", "2001:db8:1::7"


class Zone(dict[tuple[str, str], list[str]]):
    """DNS in a dictionary."""

    def texts(self, name: str) -> Sequence[str]:
        return self.get((name.lower(), "TXT"), [])

    def addresses(self, name: str, version: int) -> Sequence[str]:
        return self.get((name.lower(), "A" if version == 4 else "AAAA"), [])

    def servers(self, name: str) -> Sequence[str]:
        return self.get((name.lower(), "MX"), [])


RELAY = {
    ("spf.relay.example", "TXT"): ["v=spf1 ip4:198.51.100.0/24 ip6:2001:db8:1::/48 -all"],
    ("mail.example.com", "A"): [OURS],
    ("mail.example.com", "AAAA"): [OURS6],
    ("example.com", "MX"): ["mail.example.com"],
    ("nested.example", "TXT"): ["v=spf1 include:spf.relay.example ~all"],
    ("loop.example", "TXT"): ["v=spf1 include:loop.example -all"],
    ("redirected.example", "TXT"): ["v=spf1 redirect=spf.relay.example"],
    ("two.example", "TXT"): ["v=spf1 -all", "V=SPF1 +all"],
    ("7.100.51.198.in-addr.example.com.x.example", "A"): ["127.0.0.2"],
}


def check(record: str, ip: str = OURS, **more: list[str]) -> spf.Check:
    zone = Zone(RELAY | {("example.com", "TXT"): [record]} | {(name, "TXT"): texts for name, texts in more.items()})
    made = spf.Check(ipaddress.ip_address(ip), zone, ("postmaster", "example.com"))
    made.reason = made.host("example.com").value + " " + made.reason
    return made


def result(record: str, ip: str = OURS) -> Result:
    return Result(check(record, ip).reason.partition(" ")[0])


@pytest.mark.parametrize(
    ("record", "ours", "other"),
    [
        ("v=spf1 include:spf.relay.example -all", "pass", "fail"),
        ("v=spf1 include:spf.relay.example ~all", "pass", "softfail"),
        ("v=spf1 include:spf.relay.example ?all", "pass", "neutral"),
        ("v=spf1 include:spf.relay.example", "pass", "neutral"),
        ("V=SPF1 INCLUDE:SPF.RELAY.EXAMPLE -ALL", "pass", "fail"),
        ("v=spf1 include:nested.example -all", "pass", "fail"),  # an include's ~all is no match
        ("v=spf1 redirect=nested.example", "pass", "softfail"),
        ("v=spf1 include:redirected.example -all", "pass", "fail"),
        ("v=spf1 -all include:spf.relay.example", "fail", "fail"),  # D08
        ("v=spf1 ?include:spf.relay.example -all", "neutral", "fail"),  # D08
        ("v=spf1 -ip4:198.51.0.0/16 include:spf.relay.example +all", "fail", "pass"),
        ("v=spf1 ip4:198.51.100.7 -all", "pass", "fail"),
        ("v=spf1 ip4:198.51.100.8 -all", "fail", "fail"),
        ("v=spf1 ip6:2001:db8::/32 -all", "fail", "fail"),
        ("v=spf1 a:mail.example.com -all", "pass", "fail"),
        ("v=spf1 a:mail.example.com/25 -all", "pass", "fail"),
        ("v=spf1 a -all", "fail", "fail"),
        ("v=spf1 mx -all", "pass", "fail"),
        ("v=spf1 mx:example.com/32//64 -all", "pass", "fail"),
        ("v=spf1 ptr -all", "fail", "fail"),
        ("v=spf1 exists:%{ir}.%{v}.%{d}.x.example -all", "pass", "fail"),
        ("v=spf1 redirect=spf.relay.example -all", "fail", "fail"),  # all goes before redirect
        ("v=spf1 unknown=x exp=why.%{d} include:spf.relay.example -all", "pass", "fail"),
        ("v=spf10 -all", "none", "none"),  # D06
        ("v=spf1", "neutral", "neutral"),
    ],
)
def test_results(record: str, ours: str, other: str) -> None:
    assert (result(record), result(record, OTHER)) == (ours, other)


def test_ipv6_and_mapped_addresses() -> None:
    assert result("v=spf1 include:spf.relay.example -all", OURS6) is Result.PASS
    assert result("v=spf1 a:mail.example.com//64 -all", "2001:db8:1::8") is Result.PASS
    assert result("v=spf1 a:mail.example.com//128 -all", "2001:db8:1::8") is Result.FAIL
    assert result("v=spf1 ip4:198.51.100.7 -all", "::ffff:198.51.100.7") is Result.PASS


@pytest.mark.parametrize(
    ("record", "why"),
    [
        ("v=spf1 include:two.example -all", "more than one SPF record"),  # D06
        ("v=spf1 include:nothing.example -all", "has no SPF record"),
        ("v=spf1 redirect=nothing.example", "has no SPF record"),
        ("v=spf1 include:loop.example -all", "more than 10 DNS lookups"),
        ("v=spf1 " + "a:mail.example.com " * 11 + "-all", "more than 10 DNS lookups"),
        ("v=spf1 a:x.example a:y.example a:z.example -all", "find nothing"),
        ("v=spf1 ip4:198.51.100 -all", "not valid at ip4:198.51.100"),
        ("v=spf1 ip4:198.51.100.0/33 -all", "not valid"),
        ("v=spf1 ip6:198.51.100.7 -all", "not valid"),
        ("v=spf1 ip4:198.51.100.0/024 -all", "not valid"),
        ("v=spf1 include: -all", "not valid"),
        ("v=spf1 a:198.51.100.7 -all", "not valid"),
        ("v=spf1 include:spf.relay.example; -all", "not valid"),
        ("v=spf1 redirect=a.example redirect=b.example", "more than once"),
        ("v=spf1 exists:%{z}.example -all", "not valid"),
        ("v=spf1 exists:%{d0}.example -all", "a macro that is none"),
        ("v=spf1 exists:%{c}.example -all", "only for exp="),
        ("v=spf1 include:sp\u00e4m.example -all", "not ASCII"),
    ],
)
def test_what_cannot_be_evaluated_says_why(record: str, why: str) -> None:
    made = check(record, OTHER)
    assert made.reason.startswith("permerror ") and why in made.reason


def test_what_comes_before_the_limit_still_passes() -> None:
    """RFC 7208 §4.6.4: the limit counts what is looked up, not what is there."""
    assert result("v=spf1 include:spf.relay.example " + "a:mail.example.com " * 11 + "-all") is Result.PASS


def test_macros() -> None:
    made = spf.Check(ipaddress.ip_address(OURS), Zone(), ("strong-bad", "email.example.com"))
    for text, expanded in {
        "%{s}": "strong-bad@email.example.com",
        "%{d4}": "email.example.com",
        "%{d2}": "example.com",
        "%{dr}": "com.example.email",
        "%{d1r}": "email",
        "%{l-}": "strong.bad",
        "%{lr-}": "bad.strong",
        "%{ir}.%{v}._spf.%{d2}": "7.100.51.198.in-addr._spf.example.com",
        "%%%_%-": "% %20",
    }.items():
        assert made._expanded(text, "email.example.com") == expanded


def test_addresses_of_a_record() -> None:
    assert spf.networks(RELAY["spf.relay.example", "TXT"][0]) == ["198.51.100.0", "2001:db8:1::"]
    assert spf.networks("v=spf1 include:x.example -all") == []


@given(st.text())
def test_any_record_is_evaluated(text: str) -> None:
    assert result(f"v=spf1 {text}") in Result
