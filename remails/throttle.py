"""How fast an organization may send: what one process holds of the token buckets in the database (`store.rates`).

A token is a message, whatever its number of recipients. Whoever has a block on hand is let through without a query; whoever was
found without tokens is refused without one for a moment, so that a client that does not listen costs little.
"""

import threading
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from uuid import UUID

from remails.db import Connection
from remails.store import rates
from remails.store.ids import OrganizationId
from remails.store.rates import Ask, Grant, Rate

_REMEMBERED = 1.0  # seconds for which an empty bucket is not asked again
_MOST_REMEMBERED = 10_000


@dataclass(slots=True)
class _Lease:
    id: UUID
    tokens: int
    until: float


@dataclass(frozen=True, slots=True)
class Drawn:
    """What one transaction has drawn; `Throttle.keep` it once that is committed.

    Args:
        tokens: messages that may pass.
        retry_after: seconds until there is a token again, for those that may not.
    """

    tokens: Mapping[OrganizationId, int]
    retry_after: Mapping[OrganizationId, float]
    granted: Mapping[OrganizationId, Grant]
    started: float


class Throttle:
    """The blocks of one process. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: defaultdict[OrganizationId, list[_Lease]] = defaultdict(list)
        self._empty: dict[OrganizationId, tuple[float, float]] = {}
        """Until when an empty bucket is not asked again, and when it has a token."""

    def draw(self, conn: Connection, wanted: Mapping[OrganizationId, tuple[Rate, int]]) -> Drawn:
        """Draw so many tokens for each, or as many as there are."""
        now = time.monotonic()
        tokens: dict[OrganizationId, int] = {}
        retry_after: dict[OrganizationId, float] = {}
        asks: list[Ask] = []
        with self._lock:
            for id_, (rate, number) in wanted.items():
                tokens[id_], returned = self._use(id_, number, now)
                if tokens[id_] == number:
                    continue
                until, refilled = self._empty.get(id_, (0.0, 0.0))
                if now < until:
                    retry_after[id_] = refilled - now
                else:
                    asks.append(Ask(id_, rate, number - tokens[id_], tuple(returned)))
        granted = rates.take(conn, asks) if asks else {}
        for id_, grant in granted.items():
            tokens[id_] += grant.tokens
            retry_after[id_] = grant.retry_after
        return Drawn(tokens, retry_after, granted, now)

    def keep(self, drawn: Drawn) -> None:
        """What was drawn is committed: the blocks are ours. Without this call they are lost, and nobody is let through twice."""
        with self._lock:
            for id_, grant in drawn.granted.items():
                if grant.kept:
                    self._held[id_].append(_Lease(grant.lease, grant.kept, drawn.started + rates.LEASE))
                if grant.retry_after:
                    if len(self._empty) >= _MOST_REMEMBERED:
                        self._empty.clear()
                    refilled = drawn.started + grant.retry_after
                    self._empty[id_] = min(refilled, drawn.started + _REMEMBERED), refilled

    def wait(self, conn: Connection, organization_id: OrganizationId, rate: Rate) -> float:
        """Seconds until a message may pass; 0 when one may now. Draws nothing."""
        now = time.monotonic()
        with self._lock:
            if any(lease.tokens and lease.until > now for lease in self._held.get(organization_id, ())):
                return 0.0
        return rates.wait(conn, organization_id, rate)

    def _use(self, organization_id: OrganizationId, wanted: int, now: float) -> tuple[int, list[tuple[UUID, int]]]:
        """Use up to so many tokens of the blocks on hand; returns how many, and the blocks that are of no more use."""
        leases = self._held.get(organization_id, [])
        used, returned = 0, []
        while leases and used < wanted:
            lease = leases[0]
            if lease.tokens == 0 or lease.until <= now:
                returned.append((lease.id, lease.tokens))
                leases.pop(0)
                continue
            part = min(wanted - used, lease.tokens)
            lease.tokens -= part
            used += part
        if not leases:
            self._held.pop(organization_id, None)
        return used, returned
