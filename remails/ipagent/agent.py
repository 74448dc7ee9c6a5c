"""One host's hold on its addresses: `turn` renews, claims, and takes each address a step up or down.

Order up, per address: lease, attach at the provider, verify with the provider, configure the interface, announce, publish
`ready`. Order down: unpublish (`draining`), wait until nothing is sent from it, interface, release. Nothing is ever detached:
the next holder's attaching does that, at one instant. A host that stops or restarts does not step down: its leases
outlive a restart, and mail goes on leaving.

`keep` runs beside it, so that a provider that is slow to answer keeps no lease from being renewed, and so does the `fence`; and
`check_names`, so that nobody waits for DNS.
Whatever is said about an address names the epoch of its lease, and is void after its end.

A provider that does not answer changes nothing: an address that was ready stays so. One that is certainly not here is
unpublished, with the reason, and attached again, with longer and longer waits. What becomes of an address that cannot be
attached depends on why:

denied, forbidden, not found,
refused                        `error`: tried again, and left to another host that wants it after a while
conflict                       given back at once; this host leaves it to others for ten minutes
limited, unavailable           see first whether it was done, then try again; `error` after the length of a lease
moved away too often           `error`, and nobody touches it for ten minutes

`rehearse` says what a turn would do.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final

import dns.resolver

from remails import config, metrics, service
from remails.bus.client import Publisher
from remails.bus.events import AddressesChanged
from remails.config import Settings
from remails.db import Connection, Database
from remails.errors import Refused, Unavailable
from remails.ipagent import interface, reverse
from remails.ipagent.fence import Fence, Interface
from remails.ipagent.memory import Memory
from remails.ipagent.providers import Provider, ProviderError, Seen
from remails.logs import Log
from remails.store import addresses, leases
from remails.store.addresses import Address, AddressState, Host

OBSERVE: Final = 15.0  # seconds between looks at a remote provider, as long as all is well
LEAVE_ALONE: Final = 600.0  # what we were told we cannot have, and what somebody moves again and again
LEAVE_TO_OTHERS: Final = 300.0  # what did not work here
AFTER_FORBIDDEN: Final = 60.0
ANNOUNCEMENTS: Final = 3
CHECK_NAMES: Final = 3600.0

log = Log("remails.ipagent")


class Agent:
    """Holds leases for the host named in the settings, as long as `turn` or `keep` is called more often than they end."""

    def __init__(
        self,
        settings: Settings,
        db: Database,
        publisher: Publisher,
        provider: Provider,
        nic: Interface | None = None,
        *,
        resolver: dns.resolver.Resolver | None = None,
        now: Callable[[], float] = time.monotonic,
        check: Callable[[str, tuple[str, int] | None], None] = interface.check,
    ) -> None:
        self._host = settings.host
        self._settings = settings.ipagent
        self._probes = [config.endpoint(probe, 25) for probe in settings.ipagent.probes]
        self._db, self._publisher, self._provider, self._resolver = db, publisher, provider, resolver
        self._now, self._check = now, check
        self.fence = Fence(self._settings.lease, nic if provider.configures_interface else None, now)
        self._me: Host | None = None
        self._held: list[Address] = []
        self._memories: dict[str, Memory] = {}
        self._seen: Mapping[str, Seen] | None = None
        self._seen_at = float("-inf")
        self._blind = ""
        """Why the provider does not say how things are."""
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
        states = Counter(address.state for address in self._held)
        metrics.ADDRESSES_HELD.clear()
        for state, number in states.items():
            metrics.ADDRESSES_HELD.set(number, state=state)
        return f"{states['ready']} of {len(self._held)} addresses ready"

    async def keep(self) -> None:
        """Renew what is held if that was not done for a while. Raises Unavailable."""
        async with self._one_at_a_time:
            if self._now() - self._asked >= self._settings.interval:
                await self._take()

    async def check_names(self) -> None:
        """Keep the reverse names of what is ready right, and warn of what receivers would not like. Raises Unavailable."""
        host, held = self._me, self._held
        for address in held:
            if host is not None and address.state == "ready":
                await self._check_names(host, address)

    async def rehearse(self) -> None:
        """Say what a turn would do, and do none of it. Raises Unavailable."""
        host, held = await self._db.call(self._lease_in_vain)
        try:
            seen = await asyncio.to_thread(self._provider.look, held)
        except ProviderError as error:
            log.warning("provider does not say who has the addresses", reason=error)
            return
        for address in held:
            one = seen.get(address.ip)
            here = one is not None and one.owner == self._settings.server_ref
            log.info(
                "would hold",
                address=address.ip,
                lease="claim" if address.state == "claimed" else "renew",
                provider="nothing to do" if here else f"attach, {_place(one)}",
                then="publish" if self._is_wanted(host, address) else "give back",
            )

    # Leases

    async def _take(self) -> None:
        self._asked = asked = self._now()
        try:
            self._me, self._held = await self._db.call(self._lease)
        except Refused as error:
            log.error("host cannot be registered", host=self._host, reason=error)
            self._me, self._held = None, []
        lost = await asyncio.to_thread(self.fence.hold, [address.ip for address in self._held], asked)
        for ip in lost:
            log.warning("lease lost, another host may hold the address now", address=ip)
        self._memories = {address.ip: self._memory(address, asked) for address in self._held}
        if lost:
            self._publisher.publish(AddressesChanged(self._host))

    def _memory(self, address: Address, asked: float) -> Memory:
        memory = self._memories.get(address.ip)
        if memory is None or memory.epoch != address.lease_epoch:
            log.info("address held", address=address.ip, epoch=address.lease_epoch, state=address.state)
            # One that is ready was attached under this lease, by this process before it was restarted.
            return Memory(address.lease_epoch, asked, is_confirmed=address.state == "ready")
        return memory

    def _lease(self, conn: Connection) -> tuple[Host, list[Address]]:
        mine = self._settings
        host = addresses.register_host(
            conn, self._host, self._provider.name, mine.server_ref, mine.zone, mine.max_addresses, service.release()
        )
        held = leases.renew(conn, host.id, mine.lease)
        return host, held + leases.claim(conn, host.id, mine.lease, mine.max_addresses)

    def _lease_in_vain(self, conn: Connection) -> tuple[Host, list[Address]]:
        with conn.transaction(force_rollback=True):
            return self._lease(conn)

    # Steps

    async def _settle(self) -> None:
        host, held = self._me, self._held
        if host is None:
            return
        orphans = await asyncio.to_thread(self._remove_orphans, {one.source for one in held if one.state == "ready"})
        for source in orphans:
            reason = {"reason": "on the interface without a lease"}
            await self._db.call(addresses.note, source, 0, host.id, "taken off", reason)
        await self._observe(held)
        if self._provider.is_remote:  # one after the other: each may need a good part of the requests we may make
            in_order = sorted(held, key=lambda address: address.state not in ("ready", "draining"))
            changes = [await self._step(host, address) for address in in_order]
        else:
            changes = list(await asyncio.gather(*(self._step(host, address) for address in held)))
        log.debug("settled", host=host.name, held=len(held), changes=sum(changes))
        if orphans or any(changes):
            self._publisher.publish(AddressesChanged(host.name))

    def _remove_orphans(self, keep: set[str]) -> list[str]:
        try:
            orphans = self.fence.orphans(keep)
        except OSError as error:
            log.error("interface cannot be read", reason=error)
            return []
        for source in orphans:
            log.warning("address without a lease taken off the interface", address=source)
        return orphans

    async def _step(self, host: Host, address: Address) -> bool:
        """Take one step with an address; whether anything changed. What goes wrong with one keeps none of the others."""
        memory = self._memories.get(address.ip)
        if memory is None or memory.epoch != address.lease_epoch or self.fence.left(address.ip) <= 0:
            return False
        try:
            if self._is_wanted(host, address):
                return await self._bring_up(host, address, memory)
            return await self._step_down(host, address, memory)
        except Unavailable:
            raise
        except Exception:
            log.exception("address put off", address=address.ip)
            return False

    def _is_wanted(self, host: Host, address: Address) -> bool:
        return (
            host.desired_state == "active"
            and address.is_enabled
            and address.provider == self._provider.name
            and address.next_host in (None, host.id)
        )

    async def _observe(self, held: list[Address]) -> None:
        """Ask the provider how things are, unless there is nothing to do and that was so a moment ago."""
        now = self._now()
        if not held or (
            self._provider.is_remote and now - self._seen_at < OBSERVE and all(self._is_calm(one, now) for one in held)
        ):
            return
        try:
            self._seen = await asyncio.to_thread(self._provider.look, held)
            self._seen_at, self._blind = now, ""
        except ProviderError as error:
            if not self._blind:
                log.warning("provider does not say who has the addresses", reason=error)
            self._seen, self._blind = None, str(error)

    def _is_calm(self, address: Address, now: float) -> bool:
        memory = self._memories.get(address.ip)
        if memory is None or address.is_quarantined or address.state == "draining":
            return True
        return not memory.is_doubted and (address.state == "ready" or not memory.may_try(now))

    # Up

    async def _bring_up(self, host: Host, address: Address, memory: Memory) -> bool:
        if address.is_quarantined:
            return False
        if self._seen is None:  # ready ones stay so, others wait
            if address.state == "ready":
                return await self._configure(host, address, memory, None)
            if self._now() - memory.since < self._settings.lease:
                return False
            return await self._fail(host, address, self._blind)
        seen, remote = self._seen.get(address.ip), self._provider.is_remote
        owner = seen.owner if seen else None
        is_here = seen is not None and owner == self._settings.server_ref
        if is_here and (memory.is_confirmed or not remote or (seen is not None and not seen.is_movable)):
            memory.seen_here()
            return await self._configure(host, address, memory, seen)
        if not remote or address.state != "ready":
            return await self._fetch(host, address, memory, seen)
        if not memory.is_certain(owner, self._now()):
            return await self._configure(host, address, memory, None)
        if memory.may_be_old(owner, self._now()):
            return await self._fetch(host, address, memory, seen, quietly=True)
        return await self._reassert(host, address, memory, seen)

    async def _reassert(self, host: Host, address: Address, memory: Memory, seen: Seen | None) -> bool:
        """It was moved away: take it back, but not for ever."""
        memory.is_confirmed = False
        if not memory.flip(self._now()):
            await self._say(address, "attaching", _place(seen))
            await self._fetch(host, replace(address, state="attaching"), memory, seen)
            return True
        reason = f"moved away again and again, left alone for ten minutes: {_place(seen)}"
        log.error("address cannot be used", address=address.ip, reason=reason)
        said = await self._db.call(leases.quarantine, address.ip, address.lease_epoch, LEAVE_ALONE, reason)
        await asyncio.to_thread(self.fence.take_off, address.ip)
        return said

    async def _fetch(
        self, host: Host, address: Address, memory: Memory, seen: Seen | None, *, quietly: bool = False
    ) -> bool:
        """Have an address attached to this host, and go on with it."""
        if self._provider.is_remote and (self._blind or not memory.may_try(self._now())):
            return False
        if seen is None:
            memory.failed(self._now())
            return await self._fail(host, address, f"provider {self._provider.name} knows no such address")
        if not seen.is_movable:
            return await self._leave(host, address, f"cannot be moved: {_place(seen)}")
        if address.state not in ("attaching", "error") and not quietly:
            await self._say(address, "attaching")
        try:
            got = await self._db.thread(self._attach, address)
        except ProviderError as error:
            return await self._not_attached(host, address, memory, error, quietly=quietly)
        if got is None:
            return False
        memory.is_confirmed = True
        if got.owner != self._settings.server_ref:
            memory.failed(self._now())
            return await self._fail(host, address, f"was attached, but {_place(got)}")
        memory.attached(seen.owner, self._now())
        self._seen_at = float("-inf")  # look again soon
        was_at = {"was at": seen.owner or "nowhere"}
        await self._db.call(addresses.note, address.ip, address.lease_epoch, host.id, "attached", was_at)
        return await self._configure(host, address, memory, got)

    def _attach(self, address: Address) -> Seen | None:
        """Attach under the lease, one host at a time. None: not now."""
        if not self._provider.is_remote:
            return self._provider.attach(address)
        needed = self._settings.provider_timeout + 2
        with self._db.transaction() as conn:
            if not leases.lock(conn, address.ip, address.lease_epoch, needed) or self.fence.left(address.ip) < 2:
                return None
            return self._provider.attach(address)

    async def _not_attached(
        self, host: Host, address: Address, memory: Memory, error: ProviderError, *, quietly: bool
    ) -> bool:
        memory.failed(self._now(), AFTER_FORBIDDEN if error.kind == "forbidden" else 0.0)
        memory.is_confirmed = memory.is_confirmed or error.kind == "unavailable"
        passes = error.kind in ("unavailable", "limited")
        if passes:
            self._blind = str(error)  # for the rest of this turn: the other addresses would wait for nothing
        if error.kind == "conflict":
            return await self._leave(host, address, str(error))
        if quietly or (passes and memory.failing_for(self._now()) < self._settings.lease):
            log.warning("provider does not attach the address", address=address.ip, reason=error)
            return False
        return await self._fail(host, address, str(error))

    async def _configure(self, host: Host, address: Address, memory: Memory, seen: Seen | None) -> bool:
        """It is attached: see that it is on the interface, and publish it."""
        source = (seen and seen.source) or address.source
        if self._provider.is_remote and address.state != "ready":
            if not memory.may_try(self._now()):
                return False
            if address.state not in ("configuring", "error"):
                await self._say(address, "configuring")
        try:
            if self._provider.configures_interface:
                await self._put(address, memory)
            if self.fence.left(address.ip) <= 0:
                return False
            if address.state != "ready":
                await self._probe(source)
        except OSError as error:
            return await self._not_usable(host, address, memory, error)
        memory.is_up()
        if source != address.source:
            await self._db.call(leases.bind, address.ip, address.lease_epoch, source)
        return address.state != "ready" and await self._say(address, "ready")

    async def _put(self, address: Address, memory: Memory) -> None:
        if await asyncio.to_thread(self.fence.put, address.ip, address.source):
            memory.announced = 1
        elif memory.announced < ANNOUNCEMENTS:
            memory.announced += 1
            await asyncio.to_thread(self.fence.announce, address.ip)

    async def _probe(self, source: str) -> None:
        """See that a socket can be bound to it, and that an answer comes back to it. Raises OSError."""
        peers = [peer for peer in self._probes if (":" in peer[0]) == (":" in source)]
        await asyncio.to_thread(self._check, source, peers[0] if peers else None)

    async def _not_usable(self, host: Host, address: Address, memory: Memory, error: OSError) -> bool:
        memory.failed(self._now())
        reason = f"cannot be used on this host: {error.strerror or error}"
        if isinstance(error, TimeoutError) or error.errno is None:
            reason = "no answer to it from the probe: is port 25 closed, or does another server get its packets?"
        if address.state not in ("ready", "error") and memory.failing_for(self._now()) < self._settings.lease:
            log.warning("address is not usable yet", address=address.ip, reason=reason)
            return False
        return await self._fail(host, address, reason)

    # Names

    async def _check_names(self, host: Host, address: Address) -> None:
        memory, now = self._memories.get(address.ip), self._now()
        if memory is None or (
            memory.names_checked[0] == address.ptr_name and now - memory.names_checked[1] < CHECK_NAMES
        ):
            return
        seen = self._seen.get(address.ip) if self._seen else None
        if seen is None and self._provider.is_remote:
            return
        memory.names_checked = (address.ptr_name, now)
        if seen is not None and seen.warning:
            log.warning("address at the provider", address=address.ip, warning=seen.warning)
        published = seen.ptr_name if seen is not None and self._settings.set_reverse_names else None
        if published is not None and published.rstrip(".").lower() != address.ptr_name:
            await self._set_name(host, address, published)
            return  # in DNS it is seen only after a while
        if self._resolver is not None:
            trouble = await asyncio.to_thread(reverse.trouble, self._resolver, address.ip, address.ptr_name)
            if trouble:
                log.warning("reverse name of address", address=address.ip, trouble=trouble)

    async def _set_name(self, host: Host, address: Address, before: str) -> None:
        try:
            await asyncio.to_thread(self._provider.set_name, address)
        except ProviderError as error:
            log.warning("reverse name not set", address=address.ip, name=address.ptr_name, reason=error)
            return
        log.info("reverse name set", address=address.ip, name=address.ptr_name, before=before)
        detail = {"to": address.ptr_name, "was": before}
        await self._db.call(addresses.note, address.ip, address.lease_epoch, host.id, "reverse name", detail)

    # Down

    async def _step_down(self, host: Host, address: Address, memory: Memory) -> bool:
        now = self._now()
        if address.state != "draining":
            memory.draining_since = now
            return await self._say(address, "draining")
        memory.draining_since = now if memory.draining_since is None else memory.draining_since
        if now - memory.draining_since < self._settings.drain_timeout:
            in_use: set[str] = await self._db.call(leases.in_use, [address.ip])
            if in_use:
                return False
        return await self._give_back(host, address)

    async def _leave(self, host: Host, address: Address, reason: str) -> bool:
        """It cannot be had here: let others have it."""
        log.error("address cannot be attached to this host", address=address.ip, reason=reason)
        return await self._give_back(host, address, reason)

    async def _give_back(self, host: Host, address: Address, reason: str = "") -> bool:
        def release(conn: Connection) -> bool:
            released = leases.release(conn, address.ip, address.lease_epoch, reason)
            if released and reason:
                leases.refuse(conn, address.ip, host.id, LEAVE_ALONE, reason, is_firm=True)
            return released

        async with self._one_at_a_time:
            await asyncio.to_thread(self.fence.drop, address.ip)
            released: bool = await self._db.call(release)
            self._held = [one for one in self._held if one.ip != address.ip]
        log.info("address released", address=address.ip, epoch=address.lease_epoch)
        return released

    async def _fail(self, host: Host, address: Address, reason: str) -> bool:
        """Unpublish it with the reason. It is tried again, but a host that did not try yet may take it."""
        if address.state == "error" and address.last_error == reason:
            return False

        def fail(conn: Connection) -> bool:
            said = leases.set_state(conn, address.ip, address.lease_epoch, "error", reason)
            if said:
                leases.refuse(conn, address.ip, host.id, LEAVE_TO_OTHERS, reason, is_firm=False)
            return said

        said: bool = await self._db.call(fail)
        self._log(said, address, "error", reason)
        await asyncio.to_thread(self.fence.take_off, address.ip)
        return said

    # Words

    async def _say(self, address: Address, state: AddressState, reason: str = "") -> bool:
        said: bool = await self._db.call(leases.set_state, address.ip, address.lease_epoch, state, reason)
        self._log(said, address, state, reason)
        return said

    def _log(self, said: bool, address: Address, state: str, reason: str) -> None:
        if not said:
            log.warning("lease is over, state not written", address=address.ip, state=state)
        elif reason:
            log.error("address cannot be used", address=address.ip, reason=reason)
        else:
            log.info("address", address=address.ip, state=state, epoch=address.lease_epoch)


def _place(seen: Seen | None) -> str:
    if seen is None:
        return "the provider does not know it"
    return f"the provider has it at {seen.owner}" if seen.owner else "the provider has it nowhere"
