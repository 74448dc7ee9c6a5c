"""Forgets what is old, in batches, so that nobody waits for a long transaction.

Contents go after the days their project says, finished messages with all that happened to them after `MESSAGE_DAYS`.
"""

from collections.abc import Callable
from uuid import UUID

from remails.db import Connection, Database
from remails.logs import Log
from remails.store import addresses, bans, idempotency, messages, suppressions, users
from remails.store.ids import MessageId

log = Log("remails.periodic")

MESSAGE_DAYS = 90
EVENT_DAYS = 90

_BATCH = 500


async def run(db: Database, idempotency_keep: float) -> None:
    """Forget bodies, messages, keys older than `idempotency_keep` seconds, what happened to addresses, expired sessions, failed logins, guessers and stale suppressions."""
    removed = {
        "bodies": await _bodies(db),
        "messages": await _batches(db, lambda conn: messages.remove_old(conn, MESSAGE_DAYS, _BATCH)),
        "address_events": await _batches(db, lambda conn: addresses.remove_old_events(conn, EVENT_DAYS, _BATCH)),
        "idempotency_keys": await _batches(db, lambda conn: idempotency.remove_old(conn, idempotency_keep, _BATCH)),
        "logins": await db.call(users.purge),
        "bans": await db.call(bans.purge),
        "suppressions": await db.call(suppressions.purge),
    }
    if any(removed.values()):
        log.info("forgot what is old", **removed)


async def _bodies(db: Database) -> int:
    """One walk from the oldest to the first that is too young for all: some projects keep theirs fifty times as long as others."""
    total, after = 0, MessageId(UUID(int=0))
    while True:
        forgotten, last = await db.call(messages.remove_old_bodies, after, _BATCH)
        total += forgotten
        if last is None:
            return total
        after = last


async def _batches(db: Database, remove: Callable[[Connection], int]) -> int:
    """Call `remove` until it finds less than a batch; how many it was in all."""
    total = 0
    while rows := await db.call(remove):
        total += rows
        if rows < _BATCH:
            break
    return total
