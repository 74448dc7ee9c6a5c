"""Folds what was used into sums per day, and moves the quotas of organizations on to their next month."""

from remails.db import Database
from remails.logs import Log
from remails.store import organizations, usage

log = Log("remails.periodic")

_BATCH = 10_000


async def run(db: Database) -> None:
    """Fold all there is, then renew quotas."""
    folded = 0
    while rows := await db.call(usage.fold, _BATCH):
        folded += rows
        if rows < _BATCH:
            break
    renewed = await db.call(organizations.renew_quotas)
    log.debug("usage", folded=folded, quotas=renewed)
    if renewed:
        log.info("quotas renewed", organizations=renewed)
