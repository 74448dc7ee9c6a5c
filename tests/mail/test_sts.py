"""MTA-STS records and policies."""

import pytest

from remails.mail import sts
from remails.mail.sts import Mode, Policy

GOOD = b"version: STSv1\r\nmode: enforce\r\nmx: mail.example.net\r\nmx: *.example.org\r\nmax_age: 604800\r\n"


@pytest.mark.parametrize(
    ("records", "found"),
    [
        (["v=STSv1; id=20160831085700Z;"], "20160831085700Z"),
        (["v=STSv1;id=1"], "1"),
        (["v=STSv1; x=y; id=abc; z=1;"], "abc"),
        (["google-site-verification=x", "v=STSv1; id=2"], "2"),
        ([], None),
        (["v=STSv1; id=1", "v=STSv1; id=2"], None),  # more than one
        (["v=STSv2; id=1"], None),
        (["v=STSv1x; id=1"], None),
        (["id=1; v=STSv1"], None),
        (["v=STSv1"], None),
        (["v=STSv1; id=has-dash"], None),
        (["v=STSv1; id=" + "a" * 33], None),
    ],
)
def test_record(records: list[str], found: str | None) -> None:
    """RFC 8461 §3.1."""
    assert sts.record_id(records) == found


def test_policy() -> None:
    assert sts.parse(GOOD) == Policy(Mode.ENFORCE, ("mail.example.net", "*.example.org"), 604800)


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        (GOOD.replace(b"\r\n", b"\n"), Policy(Mode.ENFORCE, ("mail.example.net", "*.example.org"), 604800)),
        (b"max_age:1\nmx:A.Example.\nmode:testing\nversion:STSv1", Policy(Mode.TESTING, ("a.example",), 1)),
        (b"version: STSv1\nmode: none\nmax_age: 86400\n", Policy(Mode.NONE, (), 86400)),
        (b"version: STSv1\nmode: none\nmode: enforce\nmax_age: 5\n", Policy(Mode.NONE, (), 5)),  # the first counts
        (b"version: STSv1\nmode: none\nmax_age: 9999999999\n", Policy(Mode.NONE, (), 31_557_600)),
        # Case O21: an IP address is passed over
        (b"version: STSv1\nmode: enforce\nmx: *.pue.example\nmx: 192.0.2.56\nmax_age: 9\n", Policy(Mode.ENFORCE, ("*.pue.example",), 9)),
        (b"version: STSv1\nnew: thing\nmode: testing\nmx: a.b\nmx: *.*.c\nmx: a.*.c\nmax_age: 9\n", Policy(Mode.TESTING, ("a.b",), 9)),
    ],
)  # fmt: skip
def test_policies_of_every_kind(text: bytes, policy: Policy) -> None:
    assert sts.parse(text) == policy


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b"", "STSv1"),
        (b"<!doctype html><title>Not found</title>", "no `name: value`"),
        (GOOD.replace(b"STSv1", b"STSv2"), "STSv1"),
        (GOOD.replace(b"enforce", b"Enforce"), "mode"),
        (GOOD.replace(b"604800", b"-1"), "max_age"),
        (GOOD.replace(b"604800", b"1e9"), "max_age"),
        (b"version: STSv1\nmode: enforce\nmx: 192.0.2.56\nmax_age: 5\n", "no mail server"),
        (b"version: STSv1\nmode: testing\nmax_age: 5\n", "no mail server"),
    ],
)
def test_what_is_no_policy(text: bytes, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        sts.parse(text)


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("mail.example.net", True),
        ("MAIL.example.NET.", True),
        ("a.example.org", True),
        ("example.org", False),
        ("a.b.example.org", False),  # O21: the star is one label
        ("a.mail.example.net", False),
        ("*.example.org", True),
        ("aexample.org", False),
    ],
)
def test_hosts(host: str, *, allowed: bool) -> None:
    """RFC 8461 §4.1, case O21."""
    assert sts.parse(GOOD).allows(host) is allowed
