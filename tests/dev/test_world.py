"""DNS and mailbox together, as the demo runs them."""

import asyncio
import smtplib
from pathlib import Path

import dns.asyncresolver

from remails.dev import world
from remails.dev.dns import StaticZone


def test_a_mail_finds_its_way_by_dns_and_serve_ends_when_told(tmp_path: Path) -> None:
    zone = StaticZone({("*", "MX"): ["10 mailbox.test"], ("mailbox.test", "A"): ["127.0.0.25"]})

    async def scenario() -> None:
        async with world.running(
            zone,
            dns_address=("127.0.0.1", 0),
            smtp_addresses=[("127.0.0.25", 0), ("127.0.0.26", 0)],
            http_address=("127.0.0.1", 0),
            directory=tmp_path,
        ) as (server, mailbox):
            stub = dns.asyncresolver.Resolver(configure=False)
            stub.nameservers, stub.port = [server.host], server.port
            (mx,) = await stub.resolve("any.example", "MX", search=False)
            (a,) = await stub.resolve(mx.exchange, "A", search=False)

            def send() -> None:
                with smtplib.SMTP(a.address, mailbox.port, "client.example", timeout=10) as smtp:
                    smtp.sendmail("a@example.com", ["b@any.example"], b"Subject: x\r\n\r\n")

            await asyncio.to_thread(send)
            (record,) = await mailbox.wait(1)
            assert record.local_ip == "127.0.0.25"
            addresses = [("127.0.0.25", mailbox.ports[0]), ("127.0.0.26", mailbox.ports[1])]
            dns_address = (server.host, server.port)
            assert mailbox.page
            http_address = ("127.0.0.1", mailbox.page.port)

        stop = asyncio.Event()
        serving = asyncio.create_task(
            world.serve(
                zone,
                dns_address=dns_address,
                smtp_addresses=addresses,
                http_address=http_address,
                directory=tmp_path,
                stop=stop,
            )
        )
        while True:  # until it listens
            try:
                reader, writer = await asyncio.open_connection(*http_address)
                break
            except ConnectionRefusedError:
                assert not serving.done()
                await asyncio.sleep(0.01)
        writer.write(b"GET /messages.json HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert record.id.encode() in await reader.read()
        writer.close()
        stop.set()
        await serving

    asyncio.run(scenario())
