"""Holds what waits and may not go out, because of its organization or its sender's domain, and lets go what may again."""

from remails.db import Database
from remails.logs import Log
from remails.store import holds

log = Log("remails.periodic")


async def run(db: Database) -> None:
    """Bring the queue in line with the organizations' block status and the domains' DNS."""
    done = await db.call(holds.settle)
    if done.held or done.released or done.expired:
        log.info("mail held or let go", held=done.held, released=done.released, expired=done.expired)
