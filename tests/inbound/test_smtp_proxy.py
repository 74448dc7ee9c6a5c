"""The PROXY protocol, as a trusted peer and as anybody else speaks it; limits for each client."""

import ipaddress
import struct
import time
from collections.abc import Callable

import pytest
from inbound.dialogue import Dialogue
from inbound.running import Running, Stored
from seed import Tenant

TRUSTED = {"proxy_trusted": ("127.0.0.0/8",)}
MESSAGE = b"From: a@acme.example\r\n\r\nhi\r\n.\r\n"


def v1(client: str = "192.0.2.7") -> bytes:
    family, server = ("TCP6", "2001:db8::1") if ":" in client else ("TCP4", "198.51.100.1")
    return f"PROXY {family} {client} {server} 40000 25\r\n".encode()


def v2(client: str = "192.0.2.7", *, command: int = 0x21, more: bytes = b"") -> bytes:
    address = ipaddress.ip_address(client)
    family = 0x11 if address.version == 4 else 0x21
    body = address.packed * 2 + struct.pack("!HH", 40000, 25) + more
    return b"\r\n\r\n\x00\r\nQUIT\n" + struct.pack("!BBH", command, family, len(body)) + body


def begin(inbound: Running, header: bytes, name: str = "submission") -> Dialogue:
    dialogue = Dialogue(inbound.port(name))
    dialogue.send(header)
    if name == "smtps":
        dialogue._wrap()
    return dialogue


@pytest.mark.parametrize("name", ["submission", "smtps"])
@pytest.mark.parametrize(
    ("header", "client"),
    [
        (v1(), "192.0.2.7"),
        (v1("2001:db8::7"), "2001:db8::7"),
        (b"PROXY UNKNOWN\r\n", "127.0.0.1"),
        (b"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n", "127.0.0.1"),
        (v2(), "192.0.2.7"),
        (v2("2001:db8::7", more=b"\x04\x00\x01x"), "2001:db8::7"),
        (v2("::ffff:192.0.2.7"), "192.0.2.7"),
        (v2(command=0x20), "127.0.0.1"),
    ],
)
def test_client_is_whom_a_trusted_proxy_names(
    run: Callable[..., Running],
    acme: Tenant,
    stored: Callable[[], list[Stored]],
    caplog: pytest.LogCaptureFixture,
    name: str,
    header: bytes,
    client: str,
) -> None:
    """P34: the address is in Received and in the log; the header may come together with what follows it."""
    with begin(run(inbound=TRUSTED), header, name) as dialogue:
        dialogue.log_in(acme).envelope("a@acme.example")
        dialogue.send(MESSAGE)
        assert dialogue.reply().startswith("250 2.6.0")
    (message,) = stored()
    received = message.raw.partition(b"\r\n\r\n")[0].decode()
    assert f"[{client}]" in received or f"[IPv6:{client}]" in received
    assert [record.fields["client"] for record in caplog.records if record.msg == "accepted"] == [client]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "header",
    [
        b"EHLO client.example\r\n",
        b"PROXY TCP4 192.0.2.7 198.51.100.1 40000 70000\r\n",
        b"PROXY TCP4 2001:db8::7 198.51.100.1 40000 25\r\n",
        b"PROXY TCP4 192.0.2.700 198.51.100.1 40000 25\r\n",
        b"PROXY " + b"x" * 200,
        v2(command=0x31),
        v2(command=0x22),
        v2(more=b"x" * 4000),
        b"\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x04\x01\x02\x03\x04",
        b"\x16\x03\x01\x00\xff\x01\x00\x00\xfb\x03\x03\x00",
    ],
)
def test_bad_header_of_a_trusted_proxy(run: Callable[..., Running], header: bytes) -> None:
    """P34: it is closed without a word."""
    with begin(run(inbound=TRUSTED), header) as dialogue:
        assert dialogue.closed()


def test_silent_proxy_delays_nobody(run: Callable[..., Running]) -> None:
    inbound = run(inbound=TRUSTED)
    with begin(inbound, b"PROXY TC") as silent:
        started = time.monotonic()
        with begin(inbound, v1()) as other:
            assert other.reply().startswith("220 ")
        assert time.monotonic() - started < 3
        assert silent.closed()
        assert 4 < time.monotonic() - started < 10


def test_untrusted_peer_is_not_believed(run: Callable[..., Running], caplog: pytest.LogCaptureFixture) -> None:
    """P34: to anybody else a PROXY header is an unknown command."""
    with begin(run(inbound={"proxy_trusted": ("192.0.2.0/24",)}), v1()) as dialogue:
        assert dialogue.reply().startswith("220 ")
        assert dialogue.reply().startswith("5")
    clients = {getattr(record, "fields", {}).get("client") for record in caplog.records}
    assert clients - {None} == {"127.0.0.1"}


def test_connections_of_one_client(run: Callable[..., Running]) -> None:
    """They are counted for an IPv4 address and for an IPv6 /64; another client is not touched."""
    inbound = run(inbound=TRUSTED | {"max_connections_per_client": 1})
    with begin(inbound, v1("2001:db8::1")) as first, begin(inbound, v1("192.0.2.7")) as other:
        assert first.reply().startswith("220 ")
        assert other.reply().startswith("220 ")
        with begin(inbound, v1("2001:db8::2")) as second:
            assert second.reply().startswith("421 4.7.0")
            assert second.closed()
        with begin(inbound, v1("2001:db8:0:1::1")) as next_network:
            assert next_network.reply().startswith("220 ")
        assert first.say("QUIT").startswith("221")
        assert first.closed()
        deadline = time.monotonic() + 10
        while True:
            with begin(inbound, v2("2001:db8::2")) as second:
                if second.reply().startswith("220 "):
                    break
            assert time.monotonic() < deadline
