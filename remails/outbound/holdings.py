"""The outbound addresses this host may send from right now.

Read from the database every second or so and valid only until a deadline of the monotonic clock, so that a host that loses
its database stops using addresses before another host can lease them (the agent's rule, kept a second time here).
"""

import time
from dataclasses import dataclass

from remails.store import leases, sources
from remails.store.ids import PoolId
from remails.store.sources import Candidate


@dataclass(frozen=True, slots=True)
class Holding:
    """One address."""

    ip: str
    bind_ip: str
    ehlo_name: str
    pool_id: PoolId
    deadline: float
    """Monotonic time at which the lease ends."""

    @property
    def version(self) -> int:
        """Of IP."""
        return 6 if ":" in self.bind_ip else 4


class Holdings:
    """The addresses by IP."""

    def __init__(self) -> None:
        self._held: dict[str, Holding] = {}

    def update(self, held: list[leases.Held], asked_at: float) -> tuple[set[str], set[str]]:
        """Take over what the database said; `asked_at` is the monotonic time before the question was put.

        Returns:
            The addresses gained and lost.
        """
        before = set(self._held)
        self._held = {
            row.ip: Holding(row.ip, row.bind_ip or row.ip, row.ptr_name, row.pool_id, asked_at + row.seconds_left)
            for row in held
        }
        return set(self._held) - before, before - set(self._held)

    def usable(self) -> list[str]:
        """The addresses whose lease still runs."""
        return [ip for ip in self._held if self.get(ip) is not None]

    def get(self, ip: str) -> Holding | None:
        """This address, if it is ours to use now."""
        holding = self._held.get(ip)
        return holding if holding is not None and holding.deadline > time.monotonic() else None

    def beside(self, holding: Holding, key: bytes) -> Holding | None:
        """The address of the same pool that stands in where only the other version of IP leads; the same one for a `key`."""
        others = [
            Candidate(ip, ready=True)
            for ip in self.usable()
            if self._held[ip].pool_id == holding.pool_id and self._held[ip].version != holding.version
        ]
        ip = sources.choose(others, key)
        return self.get(ip) if ip is not None else None
