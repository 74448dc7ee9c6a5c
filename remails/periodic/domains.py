"""Looks again at the DNS of sender domains, so that a page shows what is and a domain that was set up can send.

Each domain is looked at once in the `domains_older_than` of the settings, one that waits for its records to appear at every
turn of its first day.
"""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

from remails import domaincheck, resolver
from remails.config import Settings
from remails.db import Database
from remails.logs import Log
from remails.store import domains
from remails.store.domains import Domain

log = Log("remails.periodic")

_AT_ONCE = 8  # domains; each is a handful of questions
_MOST = 5000  # domains looked through in one turn, those that waited longest first
_FIRST = timedelta(days=1)


async def run(db: Database, settings: Settings) -> None:
    """Check what is due, several domains side by side."""
    often = timedelta(seconds=settings.periodic.domains_interval / 2)
    seldom = timedelta(seconds=settings.periodic.domains_older_than)
    waiting = await db.call(domains.due_for_check, min(often, seldom), _MOST)
    due = [domain for domain in waiting if _is_due(domain, seldom)]
    if due:
        log.info("domains checked", domains=len(due), proved=sum(await _check(db, settings, due)))


def _is_due(domain: Domain, seldom: timedelta) -> bool:
    now = datetime.now(UTC)
    is_new = domain.verified_at is None and now - domain.created_at < _FIRST
    return is_new or domain.checked_at is None or now - domain.checked_at >= seldom


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
