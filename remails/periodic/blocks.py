"""Holds what waits of organizations that were blocked, and lets go what was held of those that may send again."""

from remails.db import Database
from remails.logs import Log
from remails.store import queue

log = Log("remails.periodic")


async def run(db: Database) -> None:
    """Bring the queue in line with the organizations' block status."""
    held, freed = await db.call(queue.settle_blocks)
    if held or freed:
        log.info("blocked organizations", held=held, freed=freed)
