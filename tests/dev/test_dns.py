"""The DNS server of the demo world, asked by dnspython's own resolver over real sockets."""

import asyncio
import contextlib
import logging
import random
import socket
import threading
from collections.abc import AsyncIterator

import dns.asyncquery
import dns.asyncresolver
import dns.exception
import dns.flags
import dns.message
import dns.opcode
import dns.rcode
import dns.rdatatype
import dns.resolver
import pytest

from remails.dev.dns import Code, Server, StaticZone, Zone

LONG = "v=DKIM1; k=rsa; p=" + "A" * 600


@contextlib.asynccontextmanager
async def serving(zone: Zone, **options: int) -> AsyncIterator[Server]:
    server = Server(zone, **options)
    await server.start()
    try:
        yield server
    finally:
        await server.close()


def resolver(server: Server, lifetime: float = 5) -> dns.asyncresolver.Resolver:
    stub = dns.asyncresolver.Resolver(configure=False)
    stub.nameservers = [server.host]
    stub.port = server.port
    stub.lifetime = lifetime
    return stub


async def ask(server: Server, name: str, rdtype: str, lifetime: float = 5) -> list[str]:
    answer = await resolver(server, lifetime).resolve(name, rdtype, search=False)
    return sorted(rdata.to_text() for rdata in answer)


async def ask_udp(server: Server, name: str, rdtype: str, **options: int) -> dns.message.Message:
    query = dns.message.make_query(name, rdtype, **options)
    return await dns.asyncquery.udp(query, server.host, port=server.port, timeout=5)


def test_answers_records_of_several_types() -> None:
    zone = StaticZone(
        {
            ("example.net", "MX"): ["10 mx1.example.net", "20 mx2.example.net."],
            ("mx1.example.net", "A"): ["127.0.0.11"],
            ("mx1.example.net", "AAAA"): ["2001:db8::11"],
            ("11.0.0.127.in-addr.arpa", "PTR"): ["mx1.example.net"],
        }
    )

    async def scenario() -> None:
        async with serving(zone) as server:
            assert await ask(server, "example.net", "MX") == ["10 mx1.example.net.", "20 mx2.example.net."]
            assert await ask(server, "mx1.example.net", "A") == ["127.0.0.11"]
            assert await ask(server, "MX1.Example.NET", "AAAA") == ["2001:db8::11"]
            assert await ask(server, "11.0.0.127.in-addr.arpa", "PTR") == ["mx1.example.net."]

    asyncio.run(scenario())
    assert zone.queries == [
        ("example.net", "MX"),
        ("mx1.example.net", "A"),
        ("mx1.example.net", "AAAA"),
        ("11.0.0.127.in-addr.arpa", "PTR"),
    ]


def test_null_mx_is_answered_as_it_stands() -> None:
    """O01: the root as an exchange."""

    async def scenario() -> None:
        async with serving(StaticZone({("example.net", "MX"): ["0 ."]})) as server:
            assert await ask(server, "example.net", "MX") == ["0 ."]

    asyncio.run(scenario())


@pytest.mark.parametrize("text", ["v=spf1 -all", "", LONG, 'say "hi" \\ bye; é', "x" * 255, "y" * 256])
def test_txt_keeps_its_text_in_strings_of_255_octets(text: str) -> None:
    async def scenario() -> None:
        async with serving(StaticZone({("t.example", "TXT"): [text]})) as server:
            (rdata,) = await resolver(server).resolve("t.example", "TXT", search=False)
            assert b"".join(rdata.strings) == text.encode()
            assert all(len(string) == 255 for string in rdata.strings[:-1])

    asyncio.run(scenario())


def test_nxdomain_and_nodata_differ() -> None:
    zone = StaticZone({("a.b.example.net", "A"): ["127.0.0.1"], ("empty.example", "MX"): []})

    async def scenario() -> None:
        async with serving(zone) as server:
            for name, rdtype in [("a.b.example.net", "MX"), ("b.example.net", "A"), ("empty.example", "MX")]:
                with pytest.raises(dns.resolver.NoAnswer):
                    await ask(server, name, rdtype)
            for name in ("x.b.example.net", "gone.example", "notempty.example"):
                with pytest.raises(dns.resolver.NXDOMAIN):
                    await ask(server, name, "A")

    asyncio.run(scenario())


@pytest.mark.parametrize(("code", "rcode"), [(Code.SERVFAIL, "SERVFAIL"), (Code.REFUSED, "REFUSED")])
def test_failures_are_played(code: Code, rcode: str) -> None:
    """O03: a failing MX beside an A record that is fine."""
    zone = StaticZone({("example.net", "MX"): code, ("example.net", "A"): ["127.0.0.1"]})

    async def scenario() -> None:
        async with serving(zone) as server:
            assert (await ask_udp(server, "example.net", "MX")).rcode() == dns.rcode.from_text(rcode)
            with pytest.raises(dns.resolver.NoNameservers, match=rcode):
                await ask(server, "example.net", "MX")
            assert await ask(server, "example.net", "A") == ["127.0.0.1"]

    asyncio.run(scenario())


def test_timeout_is_silence_on_udp_and_tcp() -> None:
    async def scenario() -> None:
        async with serving(StaticZone({("example.net", "MX"): Code.TIMEOUT})) as server:
            with pytest.raises(dns.resolver.LifetimeTimeout):
                await ask(server, "example.net", "MX", lifetime=0.3)
            with pytest.raises(dns.exception.Timeout):
                query = dns.message.make_query("example.net", "MX")
                await dns.asyncquery.tcp(query, server.host, port=server.port, timeout=0.3)

    asyncio.run(scenario())


def test_cname_chain_is_followed() -> None:
    """O02, O05: an alias of an alias, and what stands at its end."""
    zone = StaticZone(
        {
            ("www.example", "CNAME"): ["a.example"],
            ("a.example", "CNAME"): ["B.example."],
            ("b.example", "A"): ["127.0.0.9"],
            ("dangling.example", "CNAME"): ["gone.example"],
            ("broken.example", "CNAME"): ["servfail.example"],
            ("servfail.example", "A"): Code.SERVFAIL,
            ("loop.example", "CNAME"): ["pool.example"],
            ("pool.example", "CNAME"): ["loop.example"],
        }
    )

    async def scenario() -> None:
        async with serving(zone) as server:
            answer = await resolver(server).resolve("www.example", "A", search=False)
            assert [rdata.to_text() for rdata in answer] == ["127.0.0.9"]
            assert answer.canonical_name.to_text().lower() == "b.example."
            assert await ask(server, "www.example", "CNAME") == ["a.example."]
            with pytest.raises(dns.resolver.NoAnswer):
                await ask(server, "www.example", "MX")
            dangling = await ask_udp(server, "dangling.example", "A")
            assert dangling.rcode() == dns.rcode.NXDOMAIN
            assert [rrset.rdtype for rrset in dangling.answer] == [dns.rdatatype.CNAME]
            assert (await ask_udp(server, "broken.example", "A")).rcode() == dns.rcode.SERVFAIL
            assert (await ask_udp(server, "loop.example", "A")).rcode() == dns.rcode.SERVFAIL

    asyncio.run(scenario())


def test_wildcards_follow_rfc_4592() -> None:
    zone = StaticZone(
        {
            ("*.example.net", "MX"): ["5 mx.example.net"],
            ("here.example.net", "A"): ["127.0.0.1"],
            ("*.alias.example", "CNAME"): ["here.example.net"],
        }
    )

    async def scenario() -> None:
        async with serving(zone) as server:
            assert await ask(server, "x.example.net", "MX") == ["5 mx.example.net."]
            assert await ask(server, "x.y.example.net", "MX") == ["5 mx.example.net."]
            assert await ask(server, "any.alias.example", "A") == ["127.0.0.1"]
            for name in ("here.example.net", "example.net"):  # they exist: no wildcard stands for them
                with pytest.raises(dns.resolver.NoAnswer):
                    await ask(server, name, "MX")
            with pytest.raises(dns.resolver.NXDOMAIN):
                await ask(server, "below.here.example.net", "MX")

    asyncio.run(scenario())


def test_a_wildcard_at_the_root_covers_the_whole_world() -> None:
    async def scenario() -> None:
        async with serving(StaticZone({("*", "MX"): ["10 mailbox.test"]})) as server:
            assert await ask(server, "whatever.example", "MX") == ["10 mailbox.test."]

    asyncio.run(scenario())


def test_changed_answers_are_seen_at_once_even_through_a_cache() -> None:
    zone = StaticZone()

    async def scenario() -> None:
        async with serving(zone) as server:
            stub = resolver(server)
            stub.cache = dns.resolver.Cache()

            async def mx() -> list[str]:
                answer = await stub.resolve("example.net", "MX", raise_on_no_answer=False, search=False)
                return [rdata.to_text() for rdata in answer.rrset or []]

            with pytest.raises(dns.resolver.NXDOMAIN):
                await mx()
            zone["Example.NET.", "mx"] = []
            assert await mx() == []
            zone["example.net", "MX"] = ["10 a.example"]
            assert await mx() == ["10 a.example."]
            zone["example.net", "MX"] = ["10 b.example"]
            assert await mx() == ["10 b.example."]
            del zone["example.net", "MX"]
            with pytest.raises(dns.resolver.NXDOMAIN):
                await mx()

    asyncio.run(scenario())


def test_too_big_for_udp_is_truncated_and_whole_on_tcp() -> None:
    texts = sorted(f"{number:03d}" + "z" * 200 for number in range(20))

    async def scenario() -> None:
        async with serving(StaticZone({("big.example", "TXT"): texts, ("mid.example", "TXT"): ["m" * 700]})) as server:
            truncated = await ask_udp(server, "big.example", "TXT", use_edns=0, payload=4096)
            assert truncated.flags & dns.flags.TC
            assert len(truncated.to_wire()) <= 1232
            answer = await resolver(server).resolve("big.example", "TXT", search=False)
            assert sorted(rdata.strings[0].decode() for rdata in answer) == texts
            # 700 octets: too big without EDNS (RFC 1035 §4.2.1), fine with it
            assert (await ask_udp(server, "mid.example", "TXT", use_edns=False)).flags & dns.flags.TC
            assert not (await ask_udp(server, "mid.example", "TXT", use_edns=0, payload=1232)).flags & dns.flags.TC

    asyncio.run(scenario())


def test_one_tcp_connection_carries_several_questions() -> None:
    async def scenario() -> None:
        async with serving(StaticZone({("a.example", "A"): ["127.0.0.1"]})) as server:
            reader, writer = await asyncio.open_connection(server.host, server.port)
            queries = [dns.message.make_query("a.example", "A") for _ in range(3)]
            for query in queries:  # all before the first answer
                writer.write(query.to_wire(prepend_length=True))
            for query in queries:
                wire = await reader.readexactly(int.from_bytes(await reader.readexactly(2)))
                assert query.is_response(dns.message.from_wire(wire))
            writer.close()

    asyncio.run(scenario())


def test_junk_gets_no_answer_and_does_no_harm(caplog: pytest.LogCaptureFixture) -> None:
    chance = random.Random(1)
    question = dns.message.make_query("a.example", "A").to_wire()
    junk = [b"", b"\0", question[:-1], question[:12], b"\xff" * 600]
    junk += [chance.randbytes(chance.randrange(1, 80)) for _ in range(100)]
    response = dns.message.make_response(dns.message.make_query("a.example", "A")).to_wire()

    async def scenario() -> None:
        async with serving(StaticZone({("a.example", "A"): ["127.0.0.1"]})) as server:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
                for packet in [*junk, response]:
                    peer.sendto(packet, (server.host, server.port))
            _, writer = await asyncio.open_connection(server.host, server.port)
            writer.write(b"\x00\x05hello")
            assert await ask(server, "a.example", "A") == ["127.0.0.1"]
            writer.close()

    asyncio.run(scenario())
    assert not caplog.records


def test_other_opcodes_and_classes_are_declined() -> None:
    async def scenario() -> None:
        async with serving(StaticZone({("a.example", "A"): ["127.0.0.1"]})) as server:
            notify = dns.message.make_query("a.example", "SOA")
            notify.set_opcode(dns.opcode.NOTIFY)
            answer = await dns.asyncquery.udp(notify, server.host, port=server.port, timeout=5)
            assert answer.rcode() == dns.rcode.NOTIMP
            chaos = dns.message.make_query("version.bind", "TXT", rdclass="CH")
            answer = await dns.asyncquery.udp(chaos, server.host, port=server.port, timeout=5)
            assert answer.rcode() == dns.rcode.REFUSED

    asyncio.run(scenario())


def test_a_zone_that_raises_or_speaks_nonsense_is_servfail(caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        def answer(self, name: str, rdtype: str) -> list[str] | Code:
            if name == "nonsense.example":
                return ["not an address"]
            raise RuntimeError("the database is away")

    async def scenario() -> None:
        async with serving(Broken()) as server:
            assert (await ask_udp(server, "a.example", "A")).rcode() == dns.rcode.SERVFAIL
            assert (await ask_udp(server, "nonsense.example", "A")).rcode() == dns.rcode.SERVFAIL

    with caplog.at_level(logging.ERROR):
        asyncio.run(scenario())
    assert "the database is away" in caplog.text


def test_a_slow_zone_delays_only_its_own_question() -> None:
    go_on = threading.Event()

    class Slow:
        def answer(self, name: str, rdtype: str) -> list[str] | Code:
            if name == "slow.example":
                assert go_on.wait(10)
            return ["127.0.0.1"]

    async def scenario() -> None:
        async with serving(Slow()) as server:
            slow = asyncio.create_task(ask(server, "slow.example", "A"))
            assert await ask(server, "fast.example", "A") == ["127.0.0.1"]
            assert not slow.done()
            go_on.set()
            assert await slow == ["127.0.0.1"]

    asyncio.run(scenario())


def test_a_taken_port_is_an_error() -> None:
    async def scenario() -> None:
        async with serving(StaticZone()) as server:
            with pytest.raises(OSError, match="in use"):
                await Server(StaticZone(), port=server.port).start()

    asyncio.run(scenario())


def test_port_is_free_again_after_close() -> None:
    async def scenario() -> None:
        async with serving(StaticZone()) as first:
            pass
        async with serving(StaticZone({("a.example", "A"): ["127.0.0.2"]}), port=first.port) as second:
            assert second.port == first.port
            assert await ask(second, "a.example", "A") == ["127.0.0.2"]

    asyncio.run(scenario())
