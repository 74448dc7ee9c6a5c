"""Where mail and questions may go."""

import asyncio

import dns.message
import dns.name
import dns.rdataclass
import dns.rdatatype
import dns.resolver
import pytest

from remails import resolver
from remails.config import Dns
from remails.resolver import Ended


@pytest.mark.parametrize(
    ("ip", "public"),
    [
        ("9.9.9.9", True),
        ("10.0.0.1", False),
        ("127.0.0.1", False),
        ("169.254.169.254", False),  # where clouds tell secrets to their guests
        ("2a00:1450::1", True),
        ("fe80::1", False),
        ("fd00::1", False),
        ("::1", False),
        ("::ffff:10.0.0.1", False),
        ("::ffff:9.9.9.9", True),
        ("64:ff9b::909:909", True),
        ("64:ff9b::a00:1", False),
        ("64:ff9b::a9fe:a9fe", False),
        ("2002:909:909::1", True),
        ("2002:a00:1::1", False),
    ],
)
def test_private_addresses_are_told_apart_behind_translators_too(ip: str, public: bool) -> None:
    assert resolver.is_public(ip) is public


def test_an_answer_is_remembered_as_long_as_it_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    async def resolve(self: object, name: dns.name.Name, rdtype: str, **_: object) -> dns.resolver.Answer:
        asked.append(str(name))
        text = f"id 1\nopcode QUERY\nrcode NOERROR\nflags QR\n;QUESTION\n{name} IN {rdtype}\n;ANSWER\n{name} {ttl} IN {rdtype} 192.0.2.1"
        response = dns.message.from_text(text)
        assert isinstance(response, dns.message.QueryMessage)
        return dns.resolver.Answer(name, dns.rdatatype.from_text(rdtype), dns.rdataclass.IN, response)

    monkeypatch.setattr("dns.asyncresolver.Resolver.resolve", resolve)
    ours = resolver.asynchronous(Dns(nameservers=("127.0.0.1:53",)))
    for ttl, names in ((60, ["mx.example."]), (0, ["mx.example.", "mx.example."])):
        asked.clear()
        host = f"mx.example{'' if ttl else '.'}"
        for _ in range(2):
            found = asyncio.run(resolver.ask_async(ours, host, "A"))
            assert found.ended is Ended.FOUND
            assert [record.to_text() for record in found.records] == ["192.0.2.1"]
        assert asked == names
