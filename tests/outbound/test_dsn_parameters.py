"""What the sender wants to be told goes on to a server that offers DSN, and to no other (RFC 3461 §5.2)."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import pytest
from outbound.marks import ours
from workbench import Bench

from remails import submission
from remails.bus.client import Publisher
from remails.config import Bus, Mail, Outbound
from remails.mail import address, dsn
from remails.outbound import transport
from remails.outbound.route import Target
from remails.outbound.security import Security
from remails.outbound.transport import Envelope, Place


class Server:
    """Takes every mail, and notes the commands; offers what it is told to."""

    def __init__(self, *offers: str) -> None:
        self._offers = offers
        self.commands: list[str] = []
        self.ended = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mx.example.net ESMTP\r\n")
        while line := (await reader.readline()).decode().strip():
            self.commands.append(line)
            if line.startswith("EHLO"):
                lines = ["mx.example.net", *self._offers]
                reply = "\r\n".join([*(f"250-{one}" for one in lines[:-1]), f"250 {lines[-1]}"])
            elif line == "DATA":
                writer.write(b"354 go on\r\n")
                await reader.readuntil(b"\r\n.\r\n")
                reply = "250 2.0.0 taken"
            else:
                reply = "221 2.0.0 bye" if line == "QUIT" else "250 2.1.0 ok"
            writer.write(f"{reply}\r\n".encode())
        writer.close()
        await writer.wait_closed()
        self.ended.set()


@pytest.mark.parametrize("offers", [("DSN",), ("PIPELINING", "DSN"), ("PIPELINING",), ()])
def test_parameters_for_a_server(offers: Sequence[str]) -> None:
    async def none() -> None:
        return None

    async def main() -> tuple[transport.Session, list[str]]:
        server = Server(*offers)
        async with await asyncio.start_server(server.serve, "127.0.0.1", 0) as listening:
            settings = Outbound(port=listening.sockets[0].getsockname()[1], command_timeout=5)
            place = Place(Target("mx.example.net", "127.0.0.1"), "127.0.0.1", "relay.example", Security())
            session = await transport.connect(settings, place)
            replies = await session.offer(
                Envelope(
                    mail_from="a@relay.example",
                    recipients=["b@example.net", "c@example.net"],
                    wire=b"Subject: x\r\n\r\nx\r\n",
                    eight_bit=False,
                    seven_bit=none,
                    smtputf8=False,
                    begin=ours,
                    asked=dsn.Asked("HDRS", "job+2B1"),
                    asked_of={"b@example.net": dsn.AskedOf("NEVER", "rfc822;b@example.net")},
                )
            )
            assert {reply.code for reply in replies.values()} == {250}
            await session.close()
            await server.ended.wait()
        return session, server.commands

    session, commands = asyncio.run(main())
    told = "DSN" in offers
    assert f"MAIL FROM:<a@relay.example>{' RET=HDRS ENVID=job+2B1' if told else ''}" in commands
    assert f"RCPT TO:<b@example.net>{' NOTIFY=NEVER ORCPT=rfc822;b@example.net' if told else ''}" in commands
    assert "RCPT TO:<c@example.net>" in commands
    said = [one.command for one in session.dialogue("b@example.net") if one.command.startswith("RCPT")]
    assert len(said) == 1 and said[0].startswith("RCPT TO:<b@example.net>")


def test_a_claim_knows_what_was_asked(bench: Bench) -> None:
    """From submission to the wire, and to a server without DSN as ever."""

    async def main() -> None:
        recipient = address.parse("b@example.net")
        given = replace(
            bench.tenant.submission(str(recipient)),
            asked=dsn.Asked("FULL", "1"),
            asked_of={recipient: dsn.AskedOf("SUCCESS")},
        )
        async with bench.dns(), bench.serve() as mx, bench.work():
            await bench.db.thread(
                submission.submit, bench.db, Publisher(Bus(), ""), Mail(hostname="relay.example"), [given]
            )
            row = (await bench.deliveries(given.id))["b@example.net"]
            assert (row.status, row.dsn_notify, len(await mx.wait(1))) == ("delivered", "SUCCESS", 1)

    asyncio.run(main())
