"""Says again, on the bus, what is due and was not taken: its first note was lost, or nobody was there to hear it."""

from remails.bus.client import Publisher
from remails.bus.events import Ready
from remails.db import Database
from remails.logs import Log
from remails.store import queue

log = Log("remails.periodic")


async def run(db: Database, publisher: Publisher, *, older_than: float = 2.0) -> None:
    """Publish `Ready` for addresses with deliveries that have been due for `older_than` seconds.

    No message is named: a host that hears of it asks for all that is due. Named, a storm of retries would go ahead of fresh mail.
    """
    sources = await db.call(queue.due, older_than=older_than)
    for source in sources:
        publisher.publish(Ready(source, []))
    if sources:
        log.info("notified again", addresses=len(sources))
