"""Ends the claims of hosts that died, so that their mail need not wait for the end of the lease."""

from remails.bus.client import Publisher
from remails.db import Database
from remails.logs import Log
from remails.periodic import notify
from remails.store import queue

log = Log("remails.periodic")


async def run(db: Database, publisher: Publisher, host_timeout: float) -> None:
    """Free what hosts claimed whose heartbeat is older than `host_timeout` seconds, and say that it is due."""
    freed = await db.call(queue.free_dead_claims, host_timeout)
    if freed:
        log.warning("claims of dead hosts ended", deliveries=freed)
        await notify.run(db, publisher, older_than=0)
