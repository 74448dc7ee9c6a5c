"""The outbound addresses this host may send from right now.

Read from the database every second or so and valid only until a deadline of the monotonic clock, so that a host that loses
its database stops using addresses before another host can lease them (the agent's rule, kept a second time here).
"""

import time
from dataclasses import dataclass

from remails.store import leases


@dataclass(frozen=True, slots=True)
class Holding:
    """One address."""

    ip: str
    bind_ip: str
    ehlo_name: str
    deadline: float
    """Monotonic time at which the lease ends."""


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
            row.ip: Holding(row.ip, row.bind_ip or row.ip, row.ptr_name, asked_at + row.seconds_left) for row in held
        }
        return set(self._held) - before, before - set(self._held)

    def usable(self) -> list[str]:
        """The addresses whose lease still runs."""
        return [ip for ip in self._held if self.get(ip) is not None]

    def get(self, ip: str) -> Holding | None:
        """This address, if it is ours to use now."""
        holding = self._held.get(ip)
        return holding if holding is not None and holding.deadline > time.monotonic() else None
