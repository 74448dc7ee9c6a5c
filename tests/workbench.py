"""Outbound at work on this loop, between a real database, a real DNS server and real mail servers."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
from seed import Tenant

from remails import submission
from remails.bus.client import Publisher, Subscriber
from remails.config import Bus, Dns, Mail, Outbound, Settings
from remails.config import Database as DatabaseSettings
from remails.db import Database
from remails.dev.dns import Server, StaticZone
from remails.dev.mailbox import Mailbox
from remails.dev.smtp import Script
from remails.outbound.service import Outbound as Service
from remails.store import domains, messages
from remails.store.ids import MessageId
from remails.vault import Vault


def free_port() -> int:
    """A port that is free on every loopback address we use."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Bench:
    """What a test of outbound works with. `serve` starts a mail server on an address, `work` the service."""

    database: DatabaseSettings
    db: Database
    vault: Vault
    tenant: Tenant
    directory: Path
    zone: StaticZone = field(default_factory=StaticZone)
    port: int = field(default_factory=free_port)
    nameserver: tuple[str, int] = ("127.0.0.1", 0)
    ttl: int = 0
    """Seconds for which DNS answers may be cached."""
    options: dict[str, Any] = field(default_factory=dict)

    @contextlib.asynccontextmanager
    async def dns(self) -> AsyncIterator[None]:
        """The DNS server, which knows the tenant's DKIM key and `example.net` with its MX at 127.0.0.21."""
        for name, _, keys in self.db.run(lambda conn: list(domains.all_names_with_records(conn))):
            for selector, record in keys:
                self.zone[f"{selector}._domainkey.{name}", "TXT"] = [record]
        self.zone["example.net", "MX"] = ["10 mx.example.net."]
        self.zone["mx.example.net", "A"] = ["127.0.0.21"]
        server = Server(self.zone, ttl=self.ttl)
        await server.start()
        self.nameserver = ("127.0.0.1", server.port)
        try:
            yield
        finally:
            await server.close()

    @contextlib.asynccontextmanager
    async def serve(
        self, ip: str = "127.0.0.21", script: Script | None = None, **options: Any
    ) -> AsyncIterator[Mailbox]:
        """A mail server on the port of the bench."""
        mailbox = Mailbox(
            self.directory / f"mailbox-{ip}", self.nameserver, [(ip, self.port)], script=script, **options
        )
        await mailbox.start()
        try:
            yield mailbox
        finally:
            await mailbox.close()

    def settings(self) -> Settings:
        """As the service gets them."""
        return Settings(
            host="test",
            mail=Mail(hostname="relay.example"),
            database=self.database,
            dns=Dns(nameservers=(f"{self.nameserver[0]}:{self.nameserver[1]}",), timeout=2),
            outbound=msgspec.structs.replace(
                Outbound(port=self.port, allow_private_destinations=True, poll_interval=0.05, drain_timeout=5),
                **self.options,
            ),
        )

    @contextlib.asynccontextmanager
    async def work(self, subscriber: Subscriber | None = None) -> AsyncIterator[Service]:
        """The service, until the block ends and it has drained; it hears what the subscriber hears."""
        stop = asyncio.Event()
        service = Service(self.settings(), self.db, Publisher(Bus(), ""), self.vault)
        running = asyncio.create_task(service.run(stop, subscriber))
        try:
            yield service
        finally:
            stop.set()
            await running

    async def submit(self, *recipients: str, **fields: Any) -> MessageId:
        """Hand in a mail."""
        options = {"expires_in": fields.pop("expires_in", None)}
        given = self.tenant.submission(*recipients, **fields)
        given = replace(given, **options)
        (outcome,) = await self.db.thread(
            submission.submit, self.db, Publisher(Bus(), ""), Mail(hostname="relay.example"), [given]
        )
        assert isinstance(outcome, submission.Accepted), outcome
        return outcome.id

    async def deliveries(
        self, message_id: MessageId, until: Callable[[messages.Delivery], bool] = lambda row: row.attempts > 0
    ) -> dict[str, messages.Delivery]:
        """The deliveries of a message by recipient, once each is as `until` wants it."""
        async with asyncio.timeout(20):
            while True:
                rows = await self.db.call(messages.deliveries, self.tenant.organization_id, [message_id])
                if all(until(row) for row in rows):
                    return {row.recipient: row for row in rows}
                await asyncio.sleep(0.02)

    async def timeline(self, message_id: MessageId) -> list[messages.TimelineEntry]:
        """What happened to it."""
        return await self.db.call(messages.timeline, self.tenant.organization_id, message_id)
