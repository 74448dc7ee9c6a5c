"""The cloud IP agent.

NAME
    ipagent - holds outbound addresses for this host and publishes the ones it can send from

DESCRIPTION
    Runs on every sending host. Every few seconds it renews its leases on outbound addresses, claims free ones of its
    provider and zone up to a limit, has each attached to this host, and publishes it as ready. `outbound` sends only
    from addresses that are ready under a running lease, so when this host or its connection to the database dies,
    another one takes its addresses over when the lease ends, and two never send from one address.

    On SIGTERM the leases are kept: a restart within `lease` seconds does not interrupt sending. To empty a host, set its
    desired state to `drain`: its addresses are unpublished, and released when nothing is sent from them any more.

    A provider attaches addresses to hosts. `static` knows those that are on the host anyway.

STANDARDS
    None.

DIAGNOSTICS
    An address that cannot be used is in state `error`, with the reason in the log and in the list of addresses. A lease
    that ends because the database cannot be reached is logged as an error. Exit status 78: a setting is wrong.

CONFIGURATION
    host, [ipagent] provider, server_ref, zone, lease, interval, max_addresses; [database]; [bus]; credentials
    database_password, bus_client_key
"""

import asyncio

from remails import service
from remails.bus.client import Publisher
from remails.config import Settings
from remails.db import Database
from remails.errors import ConfigError
from remails.ipagent import agent, providers

_FENCE_INTERVAL = 1.0  # seconds


def main(settings: Settings) -> None:
    """Run the agent until SIGTERM."""
    service.run("ipagent", settings, lambda stop: serve(settings, stop))


async def serve(settings: Settings, stop: asyncio.Event) -> None:
    """Hold addresses until `stop`. Raises ConfigError."""
    provider = providers.make(settings)
    if settings.ipagent.lease <= 2 * settings.ipagent.interval:
        raise ConfigError("ipagent.lease: must be more than twice ipagent.interval, or a late turn loses the addresses")
    publisher = Publisher(settings.bus, settings.bus_client_key())
    db = Database(settings.database, settings.database_password(), "ipagent")
    mine = agent.Agent(settings, db, publisher, provider)
    try:
        publisher.open()
        db.open()
        service.ready(f"holding addresses of provider {provider.name}")
        await asyncio.gather(
            service.forever("leases", stop, settings.ipagent.interval, mine.turn),
            service.forever("fence", stop, _FENCE_INTERVAL, mine.watch),
        )
    finally:
        db.close()
        publisher.close()
