"""Exim and OpenSMTPD as the remote MX; Postfix is in tests/journey."""

import asyncio
import os
import subprocess
from collections.abc import Iterator

import nexthops
import pytest
from nexthops import Server
from workbench import Bench

BODIES = {
    "dots": b".\r\n..\r\n.x\r\n\r\nend\r\n",
    "8-bit": "Grüße\r\n".encode() + bytes(range(160, 256)) + b"\r\n",
    "long lines": b"x" * 990 + b"\r\n" + b"y" * 990 + b"\r\n",
}


@pytest.fixture(params=nexthops.KINDS)
def server(request: pytest.FixtureRequest, bench: Bench) -> Iterator[Server]:
    kind = nexthops.KINDS[request.param]
    if os.geteuid() != 0 or subprocess.run(["unshare", "-m", "true"], check=False).returncode != 0:
        pytest.skip("needs root, and mounts of its own")
    if not kind.is_here:
        say = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        say(f"{kind.package} was not unpacked by tests/prepare")
    with nexthops.running(kind, "hop.example", "127.0.0.32", bench.port) as running:
        bench.zone["hop.example", "MX"] = ["10 mx.hop.example."]
        bench.zone["mx.hop.example", "A"] = ["127.0.0.32"]
        yield running


def test_mail_arrives_as_it_was_submitted_and_strangers_are_refused(bench: Bench, server: Server) -> None:
    async def main() -> None:
        bench.zone["foreign.example", "MX"] = ["10 mx.hop.example."]
        async with bench.dns(), bench.work():
            sent = []
            for name, body in BODIES.items():
                head = f"From: sender@acme.example\r\nTo: a@hop.example\r\nSubject: {name}\r\nX-Odd:  two\r\n\t folded \r\n"
                # What a relay may add is there already.
                head += f"Date: Wed, 25 Nov 2026 00:00:00 +0000\r\nMessage-ID: <{len(sent)}@acme.example>\r\n\r\n"
                sent.append(head.encode() + body)
                message_id = await bench.submit("a@hop.example", "b@hop.example", raw=sent[-1])
                rows = await bench.deliveries(message_id)
                assert {row.status for row in rows.values()} == {"delivered"}
            async with asyncio.timeout(20):
                while len(received := server.received()) < 2 * len(sent):
                    await asyncio.sleep(0.05)
            for raw in sent:
                assert sum(one.endswith(raw) for one in received) == 2
            assert all(b"DKIM-Signature: " in one for one in received)
            refused = await bench.submit("x@foreign.example")
            assert {(row.status, row.last_code) for row in (await bench.deliveries(refused)).values()} == {
                ("failed", 550)
            }

    asyncio.run(main())
