"""The demo world on one machine: DNS for every name, and the mailbox that is every domain's MX.

The mailbox looks up DKIM keys at this DNS server, and is closed before it.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from remails.dev import dns
from remails.dev.mailbox import Mailbox

TTL = 5  # seconds: resolvers need not ask for each mail, and who changes something in the pages need not wait


@contextlib.asynccontextmanager
async def running(
    zone: dns.Zone,
    *,
    dns_address: tuple[str, int],
    smtp_addresses: Sequence[tuple[str, int]],
    http_address: tuple[str, int],
    directory: Path,
    limit: int = 10_000,
) -> AsyncIterator[tuple[dns.Server, Mailbox]]:
    """Both, started, until the block ends; the mailbox keeps the last `limit` mails.

    Addresses are (host, port). Raises OSError if one is taken.
    """
    async with contextlib.AsyncExitStack() as stack:
        server = dns.Server(zone, *dns_address, ttl=TTL)
        stack.push_async_callback(server.close)
        await server.start()
        mailbox = Mailbox(directory, (server.host, server.port), smtp_addresses, http=http_address, limit=limit)
        stack.push_async_callback(mailbox.close)
        await mailbox.start()
        yield server, mailbox


async def serve(
    zone: dns.Zone,
    *,
    dns_address: tuple[str, int],
    smtp_addresses: Sequence[tuple[str, int]],
    http_address: tuple[str, int],
    directory: Path,
    stop: asyncio.Event,
) -> None:
    """Run both until `stop` is set."""
    async with running(
        zone,
        dns_address=dns_address,
        smtp_addresses=smtp_addresses,
        http_address=http_address,
        directory=directory,
    ):
        await stop.wait()
