"""Finds another address for mail whose own went away for good, always in the pool the message was given."""

from remails.bus.client import Publisher
from remails.bus.events import Ready
from remails.db import Connection, Database
from remails.logs import Log
from remails.store import sources
from remails.store.sources import Moved, Orphan

log = Log("remails.periodic")

_BATCH = 500


async def run(db: Database, publisher: Publisher) -> None:
    """Move every orphaned delivery, a batch at a time, and notify whoever holds the new address; of no message, see `notify`."""
    while moved := await db.call(_choose_again):
        for source in {one.source for one in moved if one.source is not None}:
            publisher.publish(Ready(source, []))
        log.info("moved to other addresses of their pools", deliveries=len(moved))
        if len(moved) < _BATCH:
            break


def _choose_again(conn: Connection) -> list[Moved]:
    orphans = sources.orphaned(conn, _BATCH)
    pools = sources.in_pools(conn, list({orphan.pool_id for orphan in orphans}))

    def choice(orphan: Orphan) -> str | None:
        return sources.choose(pools[orphan.pool_id], sources.key(orphan.project_id, orphan.domain))

    return sources.move(conn, [(orphan.delivery_id, choice(orphan)) for orphan in orphans])
