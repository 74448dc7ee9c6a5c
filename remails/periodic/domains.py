"""Looks again at the DNS of sender domains, so that a page shows what is and a domain that was set up can send.

Each domain is looked at once in the `domains_older_than` of the settings, one that waits for its records to appear at every
turn of its first day.
"""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

from remails import domaincheck, resolver
from remails.config import Settings
from remails.db import Database
from remails.logs import Log
from remails.store import domains
from remails.store.domains import Domain

log = Log("remails.periodic")

_AT_ONCE = 8  # domains; each is a handful of questions
_MOST = 1000  # domains in one turn, those that waited longest first


async def run(db: Database, settings: Settings) -> None:
    """Check what is due, several domains side by side."""
    often = timedelta(seconds=settings.periodic.domains_interval / 2)
    seldom = timedelta(seconds=settings.periodic.domains_older_than)
    due = await db.call(domains.due_for_check, seldom, _MOST, new_older_than=often)
    if due:
        log.info("domains checked", domains=len(due), proved=sum(await _check(db, settings, due)))


async def _check(db: Database, settings: Settings, due: list[Domain]) -> list[bool]:
    """Whether each of the domains is proved now. Answers that many have in common are asked for once."""
    asked = resolver.synchronous(settings.dns)
    loop = asyncio.get_running_loop()
    threads = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="domains")

    async def check(domain: Domain) -> bool:
        seen = await loop.run_in_executor(threads, domaincheck.look, asked, domain, settings.spf_include)
        await db.call(domaincheck.save, domain, seen)
        if domain.verified_at is not None:
            for name in ("ownership", "dkim"):
                if seen[name].checked and seen[name].status != "Success":
                    log.warning("domain is not as it was", domain=domain.name, record=name, reason=seen[name].reason)
        return domaincheck.is_proved(seen)

    try:
        return await asyncio.gather(*(check(domain) for domain in due))
    finally:
        threads.shutdown(wait=False, cancel_futures=True)
