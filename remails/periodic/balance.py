"""Checks that what was accepted is delivered, given up or waits: every recipient has one delivery, and that has what it needs."""

from remails import metrics
from remails.db import Database
from remails.logs import Log
from remails.store import balance

log = Log("remails.periodic")

_BATCH = 2000  # messages in one statement, some ten milliseconds
_MOST = 20  # batches of new ones in one turn


async def run(db: Database) -> None:
    """Look at all that is new and at a part of the rest, and show how the balance stands."""
    await db.call(balance.settle)
    await _step(db, "again")
    for _ in range(_MOST):
        if await _step(db, "new") < _BATCH:
            break
    now = await db.call(balance.state)
    metrics.BALANCE_MISSING.set(now.imbalances)
    metrics.BALANCE_BEHIND.set(now.behind)


async def _step(db: Database, name: balance.Name) -> int:
    step = await db.call(balance.walk, name, _BATCH)
    metrics.BALANCE_CHECKED.add(step.messages)
    for one in step.found:
        log.error("message does not add up", message=one.message_id, problem=one.problem)
    return step.messages
