"""The cloud IP agent.

NAME
    ipagent - holds outbound addresses for this host and publishes the ones it can send from

DESCRIPTION
    Runs on every sending host. Every few seconds it renews its leases on outbound addresses, claims free ones of its
    provider and zone up to a limit, has each attached to this host, and publishes it as ready. `outbound` sends only
    from addresses that are ready under a running lease, so when this host or its connection to the database dies,
    another one takes its addresses over when the lease ends, and two never send from one address.

    On SIGTERM the leases are kept: a restart within two thirds of `lease` seconds does not interrupt sending. To empty a
    host, drain it (`remails host drain`): its addresses are unpublished, and released when nothing is sent from them any more.

    A provider attaches addresses to hosts: `upcloud`, `hetzner` and `openstack` through their APIs, after which the
    address is put on the network interface. `static` knows those that are on the host anyway. Addresses are never
    detached, and nothing is ever deleted at a provider.

    A thread of its own takes an address off the interface when its lease could not be renewed in time, whatever else
    hangs, and puts back at once what somebody else took off. Without an agent the kernel takes it off, since it has a
    lifetime there. What the agent did not put there it leaves alone.

STANDARDS
    RFC 5227 (announcing an IPv4 address), RFC 4861 (unsolicited neighbour advertisements).

DIAGNOSTICS
    An address that cannot be used is in state `error`, with the reason in the log and in the list of addresses. A lease
    that ends because the database cannot be reached is logged as an error. Every change is a row in the log of events
    (`remails address show`). With `dry_run` it says what it would do, and does nothing. Exit status 78: a setting is wrong.

CONFIGURATION
    host, [ipagent], [database], [bus], [dns]; credentials database_password, bus_client_key and, but for `static`,
    provider_token
"""

import asyncio

from remails import resolver, service
from remails.bus.client import Publisher
from remails.config import Settings
from remails.db import Database
from remails.errors import ConfigError
from remails.ipagent import agent, interface, providers
from remails.store import server

_KEEP_INTERVAL = 1.0  # seconds


def main(settings: Settings) -> None:
    """Run the agent until SIGTERM."""
    service.run("ipagent", settings, lambda stop: serve(settings, stop))


async def serve(settings: Settings, stop: asyncio.Event) -> None:
    """Hold addresses until `stop`. Raises ConfigError."""
    mine = settings.ipagent
    provider = await asyncio.to_thread(providers.make, settings)  # which may read the interface, with a loop of its own
    if mine.lease <= 2 * mine.interval:
        raise ConfigError("ipagent.lease: must be more than twice ipagent.interval, or a late turn loses the addresses")
    if provider.is_remote and mine.lease < 2 * mine.provider_timeout + mine.interval:
        raise ConfigError("ipagent.lease: must be more than twice ipagent.provider_timeout and an interval")
    publisher = Publisher(settings.bus, settings.bus_client_key())
    db = Database(settings.database, settings.database_password(), "ipagent")
    nic = interface.Interface(mine.interface)
    holder = agent.Agent(settings, db, publisher, provider, nic, resolver=resolver.synchronous(settings.dns))

    async def look() -> str:
        await db.call(server.check)
        return holder.state()

    try:
        publisher.open()
        db.open()
        if mine.dry_run:
            service.notify(f"READY=1\nSTATUS=rehearsing with addresses of provider {provider.name}")
            await service.forever("rehearsal", stop, mine.interval, holder.rehearse)
            return
        holder.fence.start()
        await asyncio.gather(
            service.report(stop, look),
            service.forever("addresses", stop, mine.interval, holder.turn),
            service.forever("leases", stop, _KEEP_INTERVAL, holder.keep),
            service.forever("names", stop, mine.interval, holder.check_names),
        )
    finally:
        holder.fence.close()
        db.close()
        publisher.close()
