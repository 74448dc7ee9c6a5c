"""One host's hold on its addresses: a turn of the agent, and the fence.

Order up, per address: lease, attach at the provider, verify with the provider, publish `ready`. What belongs to the
network interface (configure, announce) comes between the last two; the provider `static` needs none of it. Order down:
unpublish (`draining`), wait until nothing is sent from it, release the lease. A host that stops or restarts does not
step down: its leases outlive a restart, and mail goes on leaving.

A provider that does not answer changes nothing: an address that was ready stays so. One that is certainly not here is
unpublished at once, with the reason, tried again every turn, and left to another host that wants it after a while.
"""

import asyncio
import time

import remails
from remails.bus.client import Publisher
from remails.bus.events import AddressesChanged
from remails.config import Settings
from remails.db import Connection, Database
from remails.ipagent.providers import Provider, ProviderError
from remails.logs import Log
from remails.store import addresses
from remails.store.addresses import Address, AddressState, Host

log = Log("remails.ipagent")


class Agent:
    """Holds leases for the host named in the settings, as long as `turn` is called more often than they end."""

    def __init__(self, settings: Settings, db: Database, publisher: Publisher, provider: Provider) -> None:
        self._host = settings.host
        self._settings = settings.ipagent
        self._db, self._publisher, self._provider = db, publisher, provider
        # When each lease ends by this host's own clock, which no one can set back.
        self._deadlines: dict[str, float] = {}

    async def turn(self) -> None:
        """Renew what is held, take what is free, and bring each address on its way up or down.

        Raises:
            Unavailable: the database cannot be reached.
        """
        asked = time.monotonic()
        host, held = await self._db.call(self._lease)
        lost = self._deadlines.keys() - {address.ip for address in held}
        for ip in lost:
            log.warning("lease lost, another host may hold the address now", address=ip)
        self._deadlines = {address.ip: asked + self._settings.lease for address in held}
        changes = await asyncio.gather(*(self._settle(host, address) for address in held))
        log.debug("turn", host=host.name, held=len(held), changes=sum(changes))
        if lost or any(changes):
            self._publisher.publish(AddressesChanged(host.name))

    async def watch(self) -> None:
        """Say loudly which leases ended because the database could not be reached in time.

        Nobody sends from such an address any more: `outbound` keeps the same deadline and it is over there first.
        """
        now = time.monotonic()
        for ip in [ip for ip, deadline in self._deadlines.items() if deadline <= now]:
            del self._deadlines[ip]
            log.error("lease ended, database not reached in time: nothing leaves from this address", address=ip)

    def _lease(self, conn: Connection) -> tuple[Host, list[Address]]:
        mine = self._settings
        host = addresses.register_host(
            conn, self._host, self._provider.name, mine.server_ref, mine.zone, mine.max_addresses, remails.__version__
        )
        held = addresses.renew(conn, host.id, mine.lease)
        claimed = addresses.claim(conn, host.id, mine.lease, mine.max_addresses)
        for address in claimed:
            log.info("address claimed", address=address.ip, epoch=address.lease_epoch)
        return host, held + claimed

    async def _settle(self, host: Host, address: Address) -> bool:
        """Take one step with an address; whether anything changed."""
        if host.desired_state == "active" and address.is_enabled and address.provider == self._provider.name:
            return await self._bring_up(address)
        return await self._step_down(address)

    async def _bring_up(self, address: Address) -> bool:
        try:
            owner = await asyncio.to_thread(self._provider.owner, address)
        except ProviderError as error:
            log.warning("provider does not say who has the address", address=address.ip, reason=error)
            return False
        if owner != self._settings.server_ref:
            reason = await self._attach(address)
            if reason:
                known = address.state == "error" and address.last_error == reason
                return not known and await self._say(address, "error", reason)
        return address.state != "ready" and await self._say(address, "ready")

    async def _attach(self, address: Address) -> str:
        """Have the address attached to this host; what is wrong, or nothing."""
        if address.state != "error":
            await self._say(address, "attaching")
        try:
            await asyncio.to_thread(self._provider.attach, address)
            owner = await asyncio.to_thread(self._provider.owner, address)
        except ProviderError as error:
            return str(error)
        return "" if owner == self._settings.server_ref else f"attached, but the provider has it at {owner}"

    async def _step_down(self, address: Address) -> bool:
        if address.state != "draining":
            return await self._say(address, "draining")
        if await self._db.call(addresses.in_use, [address.ip]):
            return False
        released = await self._db.call(addresses.release, address.ip, address.lease_epoch)
        self._deadlines.pop(address.ip, None)
        log.info("address released", address=address.ip, epoch=address.lease_epoch)
        return released

    async def _say(self, address: Address, state: AddressState, reason: str = "") -> bool:
        said = await self._db.call(addresses.set_state, address.ip, address.lease_epoch, state, reason)
        if not said:
            log.warning("lease is over, state not written", address=address.ip, state=state)
        elif reason:
            log.error("address cannot be used", address=address.ip, reason=reason)
        else:
            log.info("address", address=address.ip, state=state, epoch=address.lease_epoch)
        return said
