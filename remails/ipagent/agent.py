"""One host's hold on its addresses: `turn` renews, claims, and takes each address a step up or down.

Order up, per address: lease, attach at the provider, verify with the provider, configure the interface, announce, publish
`ready`. Order down: unpublish (`draining`), wait until nothing is sent from it, interface, release. Nothing is ever detached:
the next holder's attaching does that, at one instant. A host that stops or restarts does not step down: its leases
outlive a restart, and mail goes on leaving.

`keep` runs beside it, so that a provider that is slow to answer keeps no lease from being renewed, and so does the `fence`.
Whatever is said about an address names the epoch of its lease, and is void after its end.

A provider that does not answer changes nothing: an address that was ready stays so. One that is certainly not here is
unpublished, with the reason, and attached again, with longer and longer waits. What becomes of an address that cannot be
attached depends on why:

denied, refused, not found     `error`: tried again, and left to another host that wants it after a while
conflict                       given back at once; this host leaves it to others for ten minutes
unavailable                    nobody knows whether it was done: see first, then try again; `error` after the length of a lease
moved away too often           `error`, and nobody touches it for ten minutes

`rehearse` says what a turn would do.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Final

import dns.resolver

import remails
from remails.bus.client import Publisher
from remails.bus.events import AddressesChanged
from remails.config import Settings
from remails.db import Connection, Database
from remails.errors import Unavailable
from remails.ipagent import reverse
from remails.ipagent.fence import Fence, Interface
from remails.ipagent.memory import Memory
from remails.ipagent.providers import Provider, ProviderError
from remails.logs import Log
from remails.store import addresses
from remails.store.addresses import Address, AddressState, Host

OBSERVE: Final = 15.0  # seconds between looks at a remote provider, as long as all is well
LEAVE_ALONE: Final = 600.0
ANNOUNCEMENTS: Final = 3
CHECK_REVERSE: Final = 3600.0

log = Log("remails.ipagent")


class Agent:
    """Holds leases for the host named in the settings, as long as `lease` is called more often than they end."""

    def __init__(
        self,
        settings: Settings,
        db: Database,
        publisher: Publisher,
        provider: Provider,
        interface: Interface | None = None,
        *,
        resolver: dns.resolver.Resolver | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._host = settings.host
        self._settings = settings.ipagent
        self._db, self._publisher, self._provider, self._resolver, self._now = db, publisher, provider, resolver, now
        self.fence = Fence(self._settings.lease, interface if provider.configures_interface else None, now)
        self._me: Host | None = None
        self._held: list[Address] = []
        self._memories: dict[str, Memory] = {}
        self._left_alone: dict[str, float] = {}
        self._owners: dict[str, str | None] | None = None
        self._observed_at = float("-inf")
        self._blind = ""
        self._settled_at = float("-inf")
        self._asked = float("-inf")
        self._one_at_a_time = asyncio.Lock()

    async def turn(self) -> None:
        """Renew what is held, take what is free, and bring each address on its way up or down.

        Raises:
            Unavailable: the database cannot be reached.
        """
        async with self._one_at_a_time:
            await self._take()
        await self._settle()
        self._settled_at = self._now()

    def state(self) -> str:
        """What it holds. Raises Unavailable when it has come to no end of a turn for the length of a lease."""
        if self._now() - self._settled_at > self._settings.lease:
            raise Unavailable("does not get to the end of a turn")
        if self._me is not None and self._me.desired_state != "active":
            return f"{self._me.desired_state}: {len(self._held)} left to give back"
        ready = sum(address.state == "ready" for address in self._held)
        return f"{ready} of {len(self._held)} addresses ready"

    async def keep(self) -> None:
        """Renew what is held if that was not done for a while. Raises Unavailable."""
        async with self._one_at_a_time:
            if self._now() - self._asked >= self._settings.interval:
                await self._take()

    async def rehearse(self) -> None:
        """Say what a turn would do, and do none of it. Raises Unavailable."""
        host, held = await self._db.call(self._lease_in_vain)
        try:
            owners = await asyncio.to_thread(self._provider.owners, held)
        except ProviderError as error:
            log.warning("provider does not say who has the addresses", reason=error)
            return
        for address in held:
            here = owners.get(address.ip) == self._settings.server_ref
            log.info(
                "would hold",
                address=address.ip,
                lease="claim" if address.state == "claimed" else "renew",
                provider="nothing to do" if here else f"attach, it is at {owners.get(address.ip, 'no place known')}",
                then="publish" if self._is_wanted(host, address) else "give back",
            )

    # Leases

    async def _take(self) -> None:
        self._asked = asked = self._now()
        self._left_alone = {ip: until for ip, until in self._left_alone.items() if until > asked}
        self._me, self._held = await self._db.call(self._lease)
        lost = await asyncio.to_thread(self.fence.hold, [address.ip for address in self._held], asked)
        for ip in lost:
            log.warning("lease lost, another host may hold the address now", address=ip)
        for address in self._held:
            if address.ip not in self._memories or self._memories[address.ip].epoch != address.lease_epoch:
                self._memories[address.ip] = Memory(address.lease_epoch, asked)
                log.info("address held", address=address.ip, epoch=address.lease_epoch, state=address.state)
        if lost:
            self._publisher.publish(AddressesChanged(self._host))

    def _lease(self, conn: Connection) -> tuple[Host, list[Address]]:
        mine = self._settings
        host = addresses.register_host(
            conn, self._host, self._provider.name, mine.server_ref, mine.zone, mine.max_addresses, remails.__version__
        )
        held = addresses.renew(conn, host.id, mine.lease)
        return host, held + addresses.claim(conn, host.id, mine.lease, mine.max_addresses, refused=self._left_alone)

    def _lease_in_vain(self, conn: Connection) -> tuple[Host, list[Address]]:
        try:
            return self._lease(conn)
        finally:
            conn.rollback()

    # Steps

    async def _settle(self) -> None:
        host, held = self._me, self._held
        if host is None:
            return
        orphans = await asyncio.to_thread(self._remove_orphans)
        for source in orphans:
            reason = {"reason": "on the interface without a lease"}
            await self._db.call(addresses.note, source, 0, host.id, "taken off", reason)
        await self._observe(held)
        if self._provider.is_remote:  # one after the other: each may need a good part of the requests we may make
            changes = [await self._step(host, address) for address in held]
        else:
            changes = list(await asyncio.gather(*(self._step(host, address) for address in held)))
        log.debug("settled", host=host.name, held=len(held), changes=sum(changes))
        if orphans or any(changes):
            self._publisher.publish(AddressesChanged(host.name))
        await asyncio.gather(*(self._check_reverse(address) for address in held if address.state == "ready"))

    def _remove_orphans(self) -> list[str]:
        try:
            orphans = self.fence.orphans()
        except OSError as error:
            log.error("interface cannot be read", reason=error)
            return []
        for source in orphans:
            log.warning("address without a lease taken off the interface", address=source)
        return orphans

    async def _step(self, host: Host, address: Address) -> bool:
        """Take one step with an address; whether anything changed."""
        if self.fence.left(address.ip) <= 0:
            return False
        return await (self._bring_up(address) if self._is_wanted(host, address) else self._step_down(address))

    def _is_wanted(self, host: Host, address: Address) -> bool:
        return (
            host.desired_state == "active"
            and address.is_enabled
            and address.provider == self._provider.name
            and address.next_host in (None, host.id)
        )

    async def _observe(self, held: list[Address]) -> None:
        """Ask the provider who has which address, unless all is well and was so a moment ago."""
        now = self._now()
        calm = all(address.state == "ready" and self._memories[address.ip].is_settled for address in held)
        if not held or (self._provider.is_remote and calm and now - self._observed_at < OBSERVE):
            return
        try:
            self._owners = await asyncio.to_thread(self._provider.owners, held)
            self._observed_at, self._blind = now, ""
        except ProviderError as error:
            if not self._blind:
                log.warning("provider does not say who has the addresses", reason=error)
            self._owners, self._blind = None, str(error)

    async def _bring_up(self, address: Address) -> bool:
        memory = self._memories[address.ip]
        if address.is_quarantined or (self._owners is None and address.state != "ready"):
            return await self._wait_for_provider(address, memory)
        if self._owners is None:
            return await self._configure(address, memory)
        owner = self._owners.get(address.ip)
        if owner == self._settings.server_ref:
            memory.seen_here()
            return await self._configure(address, memory)
        if not self._provider.is_remote or address.state != "ready":
            return await self._fetch(address, memory, owner)
        if not memory.is_certain(owner, self._now()):
            return await self._configure(address, memory)
        if memory.may_be_old(owner, self._now()):
            return await self._fetch(address, memory, owner, quietly=True)
        return await self._reassert(address, memory, owner)

    async def _wait_for_provider(self, address: Address, memory: Memory) -> bool:
        """See nothing, do nothing; but let another host try when it takes too long."""
        if address.is_quarantined or self._now() - memory.since < self._settings.lease:
            return False
        return await self._fail(address, self._blind)

    async def _reassert(self, address: Address, memory: Memory, owner: str | None) -> bool:
        """It was moved away: take it back, but not for ever."""
        reason = f"the provider has it at {owner}" if owner else "the provider has it nowhere"
        if not memory.flip(self._now()):
            await self._say(address, "attaching", reason)
            await self._fetch(address, memory, owner)
            return True
        await asyncio.to_thread(self.fence.take_off, address.ip)
        reason = f"moved away again and again, left alone for ten minutes: {reason}"
        log.error("address cannot be used", address=address.ip, reason=reason)
        return await self._db.call(addresses.quarantine, address.ip, address.lease_epoch, LEAVE_ALONE, reason)

    async def _fetch(self, address: Address, memory: Memory, owner: str | None, *, quietly: bool = False) -> bool:
        """Have an address attached to this host, and go on with it."""
        if self._owners is not None and address.ip not in self._owners:
            return await self._fail(address, f"provider {self._provider.name} knows no such address")
        if self._provider.is_remote and not memory.may_try(self._now()):
            return False
        if address.state not in ("attaching", "error") and not quietly:
            await self._say(address, "attaching")
        try:
            now_at = await self._db.thread(self._attach, address)
        except ProviderError as error:
            memory.failed(self._now())
            if quietly and error.kind != "conflict":
                log.warning("provider does not attach the address", address=address.ip, reason=error)
                return False
            return await self._not_attached(address, memory, error)
        if now_at != self._settings.server_ref:
            memory.failed(self._now())
            return now_at != "" and await self._fail(address, f"attached, but the provider has it at {now_at}")
        memory.attached(owner, self._now())
        if self._owners is not None:
            self._owners[address.ip] = now_at
        self._observed_at = float("-inf")  # look again soon
        if self._me is not None:
            was_at = {"was at": owner or "nowhere"}
            await self._db.call(addresses.note, address.ip, address.lease_epoch, self._me.id, "attached", was_at)
        return await self._configure(address, memory)

    def _attach(self, address: Address) -> str | None:
        """Attach under the lease, one host at a time; an empty answer: not now."""
        if not self._provider.is_remote:
            return self._provider.attach(address)
        needed = self._settings.provider_timeout + 2
        with self._db.transaction() as conn:
            if not addresses.lock(conn, address.ip, address.lease_epoch, needed) or self.fence.left(address.ip) < 2:
                return ""
            return self._provider.attach(address)

    async def _not_attached(self, address: Address, memory: Memory, error: ProviderError) -> bool:
        match error.kind:
            case "conflict":
                log.error("address cannot be attached to this host", address=address.ip, reason=error)
                return await self._give_back(address, str(error), LEAVE_ALONE)
            case "unavailable" if memory.failing_for(self._now()) < self._settings.lease:
                log.warning("provider does not attach the address", address=address.ip, reason=error)
                return False
        return await self._fail(address, str(error))

    async def _configure(self, address: Address, memory: Memory) -> bool:
        """It is attached: see that it is on the interface, and publish it."""
        if self._provider.configures_interface:
            if address.state not in ("ready", "configuring"):
                await self._say(address, "configuring")
            try:
                missing = await asyncio.to_thread(self.fence.put, address.ip, address.source)
                if missing:
                    memory.announced = 0
                elif memory.announced < ANNOUNCEMENTS - 1:
                    memory.announced += 1
                    await asyncio.to_thread(self.fence.announce, address.ip)
            except OSError as error:
                return await self._fail(address, f"cannot be put on the interface: {error.strerror or error}")
            if self.fence.left(address.ip) <= 0:
                return False
        return address.state != "ready" and await self._say(address, "ready")

    async def _check_reverse(self, address: Address) -> None:
        """Warn of names that receivers would not like; nothing else follows from them."""
        memory, now = self._memories[address.ip], self._now()
        if self._resolver is None or (
            memory.reverse_checked is not None and now - memory.reverse_checked < CHECK_REVERSE
        ):
            return
        memory.reverse_checked = now
        trouble = await asyncio.to_thread(reverse.trouble, self._resolver, address.ip, address.ptr_name)
        if trouble:
            log.warning("reverse name of address", address=address.ip, trouble=trouble)

    async def _step_down(self, address: Address) -> bool:
        memory, now = self._memories[address.ip], self._now()
        if address.state != "draining":
            memory.draining_since = now
            return await self._say(address, "draining")
        patience = self._settings.drain_timeout
        memory.draining_since = now if memory.draining_since is None else memory.draining_since
        if now - memory.draining_since < patience:
            in_use: set[str] = await self._db.call(addresses.in_use, [address.ip])
            if in_use:
                return False
        return await self._give_back(address, "", self._settings.lease)

    async def _give_back(self, address: Address, reason: str, leave_alone: float) -> bool:
        """Give an address back, and not take it again at once where this host is not what others have to wait for."""
        await asyncio.to_thread(self.fence.drop, address.ip)
        released = await self._db.call(addresses.release, address.ip, address.lease_epoch, reason)
        if self._me is not None and self._me.desired_state == "active" and address.is_enabled:
            self._left_alone[address.ip] = self._now() + leave_alone
        self._held = [one for one in self._held if one.ip != address.ip]
        log.info("address released", address=address.ip, epoch=address.lease_epoch)
        return released

    # Words

    async def _fail(self, address: Address, reason: str) -> bool:
        if address.state == "error" and address.last_error == reason:
            return False
        said = await self._say(address, "error", reason)
        await asyncio.to_thread(self.fence.take_off, address.ip)
        return said

    async def _say(self, address: Address, state: AddressState, reason: str = "") -> bool:
        said = await self._db.call(addresses.set_state, address.ip, address.lease_epoch, state, reason)
        if not said:
            log.warning("lease is over, state not written", address=address.ip, state=state)
        elif reason:
            log.error("address cannot be used", address=address.ip, reason=reason)
        else:
            log.info("address", address=address.ip, state=state, epoch=address.lease_epoch)
        return said
