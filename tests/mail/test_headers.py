"""Header fields: how they are cut, and what their values say."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remails.mail import address, headers


@pytest.mark.parametrize(
    ("raw", "header", "body"),
    [
        (b"A: 1\r\nB: 2\r\n\r\nbody\r\n", b"A: 1\r\nB: 2\r\n", b"body\r\n"),
        (b"A: 1\r\n\r\n", b"A: 1\r\n", b""),
        (b"A: 1\r\n", b"A: 1\r\n", b""),
        (b"A: 1", b"A: 1", b""),
        (b"\r\nbody\r\n", b"", b"body\r\n"),
        (b"\r\n\r\nbody\r\n", b"", b"\r\nbody\r\n"),
        (b"\r\n", b"", b""),
        (b"", b"", b""),
        (b"A: 1\r\n\r\n\r\nbody", b"A: 1\r\n", b"\r\nbody"),
    ],
)
def test_split(raw: bytes, header: bytes, body: bytes) -> None:
    """M16: an empty body, no blank line, no header."""
    assert headers.split(raw) == (header, body)


def test_fields_keep_every_byte() -> None:
    block = b"Subject: a\r\n\tb\r\nbCC : x@example.net,\r\n  y\r\nno field\r\n: none\r\nX:\r\nlast: 1"
    found = headers.fields(block)
    assert [field.name for field in found] == [b"subject", b"bcc", b"", b"", b"x", b"last"]
    assert b"".join(field.raw for field in found) == block
    assert [field.value for field in found[:2]] == [b"a\tb", b"x@example.net,  y"]


@given(block=st.binary(max_size=200) | st.text("aB:\r\n\t -", max_size=60).map(str.encode))
def test_fields_of_any_octets_join_to_the_same(block: bytes) -> None:
    assert b"".join(field.raw for field in headers.fields(block)) == block


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"plain", "plain"),
        ("grüß".encode(), "grüß"),
        (b"caf\xe9", "caf\ufffd"),
        (b"=?utf-8?q?gr=C3=BC=C3=9F_dich?=", "grüß dich"),
        (b"=?UTF-8?B?Z3LDvMOf?= you", "grüß you"),
        (b"=?utf-8?q?a?= =?utf-8?q?b?= c", "ab c"),
        (b"=?utf-8?b?4pyT4pw?=\t=?utf-8?b?kw==?=", "✓✓"),
        (b"=?iso-8859-1?q?=E9?= =?utf-8?q?=C3=A9?=", "éé"),
        (b"=?utf-8*en?q?hi?=", "hi"),
        (b"=?foo-bar?q?x=41?=", "xA"),
        (b"=?zlib?q?x?=", "x"),
        (b"=?idna?q?x?=", "x"),
        (b"=?utf-8?b?!!!?=", ""),
        (b"=?utf-8?x?abc?=", "=?utf-8?x?abc?="),
        (b"=?utf-8?q?a=00b=0Ac?=", "abc"),
        (b"a\x1b[31m\x7fb", "a[31mb"),
        ("\u202eevil\u2028".encode(), "evil"),
        (b"=?koi8-r?q?=D0=D2=C9?=", "при"),
        (b"", ""),
    ],
)
def test_decode(value: bytes, expected: str) -> None:
    """M12: any charset name, even one that Python takes for another kind of codec."""
    assert headers.decode(value) == expected


def test_decode_is_bounded() -> None:
    assert headers.decode(b"x" * 10_000) == "x" * 500
    assert headers.decode(b"x" * 10_000, 7) == "x" * 7


@given(value=st.binary(max_size=300) | st.from_regex(rb"(=\?[a-z0-9-]{1,10}\?[bqQB]\?[ -~]{0,30}\?= ?){1,5}"))
def test_decode_never_raises(value: bytes) -> None:
    decoded = headers.decode(value)
    assert "\0" not in decoded and "\n" not in decoded
    decoded.encode()


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"app@example.com", ["app@example.com"]),
        (b"<app@example.com>", ["app@example.com"]),
        (b"App <app@example.com>", ["app@example.com"]),
        (b"A. P. Person, <b@example.com>", None),
        (b"A. P. Person <b@example.com>", ["b@example.com"]),
        (b'"Person, A. <c@victim.example>" <b@example.com>', ["b@example.com"]),
        (b'"a \\" <c@victim.example>" <b@example.com>', ["b@example.com"]),
        (b"=?utf-8?q?Evil_=3Cceo=40victim.example=3E?= <a@example.com>", ["a@example.com"]),
        (b"=?utf-8?q?a=40evil.example=2C?= <b@example.net>, c@example.net", ["b@example.net", "c@example.net"]),
        (b"App <app@example.com> (ceo@victim.example)", ["app@example.com"]),
        (b"(<ceo@victim.example>,) App <app@example.com>", ["app@example.com"]),
        (b"(a (nested \\) one) x) app@example.com", ["app@example.com"]),
        ("Grüße [neu] <app@example.com>".encode(), ["app@example.com"]),
        (b"caf\xe9 <app@example.com>", ["app@example.com"]),
        (b"Re: it's <app@example.com>", ["app@example.com"]),
        (b'"odd user"@example.net', ['"odd user"@example.net']),
        (b'X <"a@b,c"@example.net>, d@example.net', ['"a@b,c"@example.net', "d@example.net"]),
        ("a@bücher.example".encode(), ["a@xn--bcher-kva.example"]),
        ("bü@example.com".encode(), ["bü@example.com"]),
        (b"a@example.com , <b@example.net>", ["a@example.com", "b@example.net"]),
        (b"", None),
        (b"nobody", None),
        (b"<>", None),
        (b"App <>", None),
        (b"a@example.com b@example.net", None),
        (b"ceo@victim.example <a@example.com>", None),
        (b"a@example.com,", None),
        (b",a@example.com", None),
        (b"a@example.com,,b@example.com", None),
        (b"a@example.com; b@example.net", None),
        (b"Group: a@example.com, b@example.com;", None),
        (b"undisclosed-recipients:;", None),
        (b"<a@example.com", None),
        (b"a@example.com>", None),
        (b"<<a@example.com>>", None),
        (b"<@h1.example:a@example.com>", None),
        (b"a@example.com(x)victim.example", None),
        (b"a(x)@example.com", None),
        (b"(a@example.com", None),
        (b'"a@example.com', None),
        (b"App <a@example.com> <b@victim.example>", None),
        (b"a@\xff.example", None),
        (b"a@exa\x00mple.example", None),
    ],
)
def test_mailboxes(value: bytes, expected: list[str] | None) -> None:
    """M10: what a display name says never becomes an address; a line that two readers read differently is refused."""
    if expected is None:
        with pytest.raises(address.BadAddress):
            headers.mailboxes(value)
    else:
        assert [str(found) for found in headers.mailboxes(value)] == expected


@given(value=st.binary(max_size=100) | st.text('a@b.c"\\<>(),:; \t', max_size=40).map(str.encode))
def test_mailboxes_of_any_octets_are_read_or_refused(value: bytes) -> None:
    try:
        assert headers.mailboxes(value)
    except address.BadAddress as error:
        assert str(error).isascii()


@pytest.mark.parametrize(
    ("value", "word", "given"),
    [
        (b"text/plain", "text/plain", {}),
        (b'TEXT/Plain; Charset="utf-8"', "text/plain", {"charset": "utf-8"}),
        (b'text/plain; charset="utf-8; x"; a = b', "text/plain", {"charset": "utf-8; x", "a": "b"}),
        (b"text/plain (c; d=e); charset=us-ascii (US)", "text/plain", {"charset": "us-ascii"}),
        (b'attachment; filename="a\\"b.txt"', "attachment", {"filename": 'a"b.txt'}),
        (b"attachment; filename*=utf-8''gr%C3%BC%C3%9F.txt", "attachment", {"filename": "grüß.txt"}),
        (b"attachment; filename=gr.txt; filename*=utf-8''gr%C3%BC.txt", "attachment", {"filename": "grü.txt"}),
        (
            b"attachment; filename*0*=utf-8''a%20; filename*1=\"b%20\"; filename*2*=%43",
            "attachment",
            {"filename": "a b%20C"},
        ),
        (b"attachment; filename*1=b", "attachment", {"filename": ""}),
        (b"attachment; filename*0=a; filename*2=c", "attachment", {"filename": "a"}),
        (b"attachment; filename*=nosuch'x", "attachment", {"filename": "nosuch'x"}),
        (b'x; a="open', "x", {"a": '"open'}),
        (b"", "", {}),
    ],
)
def test_parameters(value: bytes, word: str, given: dict[str, str]) -> None:
    assert headers.parameters(value) == (word, given)


@given(value=st.binary(max_size=100) | st.text("a;=*0\"\\'% ()", max_size=40).map(str.encode))
def test_parameters_never_raise(value: bytes) -> None:
    headers.parameters(value)


@pytest.mark.parametrize(
    "line", ['"""', '"a" "', 'x@y.example, """<a@b.example>', '"a\\"@b.example', '"a"b"@c.example']
)
def test_a_quote_without_its_fellow_is_no_address(line: str) -> None:
    """Debian 12's Python took these for quoted strings (python/cpython#106052)."""
    with pytest.raises(address.BadAddress):
        headers.mailboxes(line.encode())
