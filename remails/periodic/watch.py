"""Counts what waits in the whole installation, for the metrics."""

from remails import metrics
from remails.db import Database
from remails.store import addresses, balance, overview


async def run(db: Database, host_timeout: float) -> None:
    """Look, and show it."""
    now = await db.call(overview.read)
    dead = await db.call(addresses.dead_hosts, host_timeout)
    for status, number in now.deliveries.items():
        metrics.QUEUE_DELIVERIES.set(number, status=status)
    metrics.ADDRESSES.clear()
    for state, number in now.addresses.items():
        metrics.ADDRESSES.set(number, state=state)
    metrics.QUEUE_OVERDUE.set(now.overdue)
    metrics.QUEUE_OLDEST.set(now.oldest)
    metrics.HOSTS_DEAD.set(len(dead))
    metrics.ADDRESS_MOVES.set(now.moves)
    metrics.STORAGE_SHORT.set(now.is_short)
    metrics.STORAGE_SEEN.set(float("nan") if now.storage_seen is None else now.storage_seen)
    metrics.BALANCE_UNFINISHED.set(await db.call(balance.unfinished))


def forget() -> None:
    """Another host leads: what we saw last is no longer true."""
    metrics.LEADING.set(0)
    for metric in metrics.FLEET:
        metric.clear()
