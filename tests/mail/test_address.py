"""Addresses: what is read, what is refused, and that nothing changes on the way."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remails.mail import address

ATEXT = "abcXYZ019!#$%&'*+/=?^_`{|}~-"


@pytest.mark.parametrize(
    ("text", "local", "domain"),
    [
        ("app@example.com", "app", "example.com"),
        ("App.User+tag@Mail.EXAMPLE.com", "App.User+tag", "mail.example.com"),
        ("a@example.com.", "a", "example.com"),
        ("a@3com.example", "a", "3com.example"),
        ("a@b.c.d.e.f.example.com", "a", "b.c.d.e.f.example.com"),
        ("o'neil&sons/x=y@example.com", "o'neil&sons/x=y", "example.com"),
        ('"odd user"@example.net', '"odd user"', "example.net"),
        ('"a@b"@example.net', '"a@b"', "example.net"),
        (r'"a\"b"@example.net', r'"a\"b"', "example.net"),
        (r'"a\\"@example.net', r'"a\\"', "example.net"),
        ('"<evil@x.example> ORCPT=x"@example.net', '"<evil@x.example> ORCPT=x"', "example.net"),
        ("b@bücher.example", "b", "xn--bcher-kva.example"),
        ("b@BÜCHER.example", "b", "xn--bcher-kva.example"),
        ("b@XN--BCHER-KVA.example", "b", "xn--bcher-kva.example"),
        ("b@例え。テスト", "b", "xn--r8jz45g.xn--zckzah"),
        ("bü@bücher.example", "bü", "xn--bcher-kva.example"),
        ("x" * 64 + "@example.com", "x" * 64, "example.com"),
    ],
)
def test_reads_an_address(text: str, local: str, domain: str) -> None:
    """P15: a quoted local part keeps its quotes and the domain begins after the last unquoted @."""
    found = address.parse(text)
    assert (found.local, found.domain) == (local, domain)
    assert str(found) == f"{local}@{domain}"
    assert address.parse(str(found)) == found


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "has no @"),
        ("b", "has no @"),
        ("@example.com", "nothing before the @"),
        ("b@", "domain is empty"),
        ("b@.", "domain is empty"),
        ("b@example", "only one label"),
        ("b@[192.0.2.1]", "address literals"),
        ("b@[IPv6:2001:db8::1]", "address literals"),
        ("b@127.0.0.1", "domain 127.0.0.1 is not valid"),
        ("b@127.1", "is not valid"),
        ("b@0x7f.0x1", "is not valid"),
        ("b@exam_ple.net", "domain exam_ple.net is not valid"),
        ("b@-example.net", "is not valid"),
        ("b@example-.net", "is not valid"),
        ("b@exa..mple.net", "is not valid"),
        ("b@.example.net", "is not valid"),
        ("b@example.net..", "is not valid"),
        ("b@" + "x" * 64 + ".example", "is not valid"),
        ("b@exam ple.net", "is not valid"),
        ("b@☃.example", "internationalised domain"),
        ("b@ex\uff20mple.example", "internationalised domain"),
        ("a..b@example.com", "local part a..b"),
        (".a@example.com", "local part .a"),
        ("a.@example.com", "local part a."),
        ("a b@example.com", "local part a b"),
        ("a@b@example.com", "local part a@b"),
        ('"a"b@example.com', "double quotes"),
        ('"a@example.com', "double quotes"),
        ("<a@example.com>", "double quotes"),
        ("@relay.example:a@example.com", "double quotes"),
        (" a@example.com", "double quotes"),
        ("a@example.com ", "is not valid"),
        ("a\0b@example.com", "U+0000"),
        ("a@example.com\r\nRCPT TO:<v@x.example>", "U+000D"),
        ('"a\nb"@example.com', "U+000A"),
        ("a\xa0b@example.com", "U+00A0"),
        ("\ufeffa@example.com", "U+FEFF"),
        ("a\u202eb@example.com", "U+202E"),
        ("a\ud800@example.com", "U+D800"),
        ("x" * 65 + "@example.com", "64 octets"),
        ("ü" * 33 + "@example.com", "64 octets"),
        ("a@" + "x." * 150 + "example", "254 octets"),
        ("a" * 64 + "@" + ("x" * 60 + ".") * 3 + "exampleee", "254 octets"),
        ("ü" * 32 + "@" + ("x" * 60 + ".") * 3 + "exampleee", "254 octets"),
    ],
)
def test_refuses_what_is_no_address(text: str, reason: str) -> None:
    """P18: literals, single labels and bad labels are refused, and the sentence says which it was."""
    with pytest.raises(address.BadAddress) as caught:
        address.parse(text)
    said = str(caught.value)
    assert reason in said
    assert said.isascii() and said.isprintable() and len(said) < 200


def test_echoes_no_more_than_80_characters() -> None:
    with pytest.raises(address.BadAddress) as caught:
        address.parse("y" * 200)
    assert str(caught.value).count("y") < 80


def test_longest_address_is_accepted() -> None:
    longest = "a" * 64 + "@" + ("x" * 60 + ".") * 3 + "museum"
    assert len(longest) == 254
    assert str(address.parse(longest)) == longest


def test_smtputf8_only_for_the_local_part() -> None:
    """O28: an internationalised domain needs no SMTPUTF8, a local part does."""
    assert not address.parse("b@bücher.example").needs_smtputf8
    assert address.parse("bü@example.com").needs_smtputf8


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("User+tag@Bücher.example", "user+TAG@xn--bcher-kva.example"),
        ('"user+tag"@example.com', "user+tag@example.com"),
        (r'"us\er"@example.com', "user@example.com"),
        (r'"a\ b"@example.com', '"A b"@example.com'),
        ("e\u0301@example.com", "\u00c9@example.com"),
        ("a@example.com", "a@EXAMPLE.com."),
    ],
)
def test_key_is_the_same_for_one_mailbox(one: str, other: str) -> None:
    """A11: suppressions match in spite of case, quoting and the form of the domain."""
    assert address.parse(one).key == address.parse(other).key


@pytest.mark.parametrize(
    ("one", "other"),
    [("user+tag@example.com", "user@example.com"), ('"a b"@example.com', '"ab"@example.com')],
)
def test_key_differs_for_two_mailboxes(one: str, other: str) -> None:
    """A11: plus tags are distinct."""
    assert address.parse(one).key != address.parse(other).key


def test_parents() -> None:
    assert address.parents("a.b.example.com") == ("a.b.example.com", "b.example.com", "example.com")
    assert address.parents("example.com") == ("example.com",)


def test_covers_on_label_boundary_only() -> None:
    assert address.covers("example.com", "example.com")
    assert address.covers("example.com", "mail.example.com")
    assert not address.covers("example.com", "evilexample.com")
    assert not address.covers("mail.example.com", "example.com")


dot_atoms = st.lists(st.text(ATEXT, min_size=1, max_size=8), min_size=1, max_size=4).map(".".join)
quoted = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=20).map(
    lambda text: '"' + text.replace("\\", r"\\").replace('"', r"\"") + '"'
)


@given(local=st.one_of(dot_atoms, quoted))
def test_every_valid_local_part_round_trips(local: str) -> None:
    """P15."""
    found = address.parse(f"{local}@example.net")
    assert (found.local, found.domain) == (local, "example.net")
    assert address.parse(found.key).key == found.key


@given(text=st.text(max_size=80) | st.text('ab"\\@.<> \r\n\0ü[]', max_size=30))
def test_any_text_is_read_or_refused(text: str) -> None:
    """Nothing but BadAddress comes out, and what is read holds no character that ends a line or a path."""
    try:
        found = address.parse(text)
    except address.BadAddress as error:
        assert str(error).isascii() and str(error).isprintable()
        return
    assert found.domain.isascii() and found.domain == found.domain.lower()
    assert not set(str(found)) & set("\r\n\0")
    assert address.parse(str(found)) == found
