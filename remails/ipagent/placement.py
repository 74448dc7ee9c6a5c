"""Which addresses should be on which host: the moves that make it fair, and no others.

Fair is: an address is at its preferred host as long as that one can have it, and among the hosts of one provider and zone none has
two more than another that has room. The same hosts and addresses always give the same moves. What is one thing at the provider
(one `provider_ref`) moves together; among those that could move, the one goes whose pool is the most crowded on its host, so that
a host's death takes no pool away as a whole.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from remails.store.addresses import Address, Host
from remails.store.ids import HostId


@dataclass(frozen=True, slots=True)
class Move:
    """An address (the first of those that move together), from where it is to where it should be."""

    ip: str
    source: Host
    target: Host


@dataclass(frozen=True, slots=True)
class _Unit:
    """What moves together."""

    addresses: tuple[Address, ...]

    @property
    def first(self) -> Address:
        return self.addresses[0]


def plan(hosts: Sequence[Host], addresses: Sequence[Address]) -> list[Move]:
    """The moves between these hosts, which live and are active. Only what is ready moves; `static` addresses cannot."""
    moves: list[Move] = []
    for place in sorted({(host.provider, host.zone) for host in hosts} - {("static", host.zone) for host in hosts}):
        here = sorted((host for host in hosts if (host.provider, host.zone) == place), key=lambda host: host.name)
        moves += _Place(here, _units(addresses, {host.id for host in here})).plan()
    return moves


def _units(addresses: Sequence[Address], hosts: set[HostId]) -> list[_Unit]:
    found: dict[str, list[Address]] = {}
    for address in addresses:
        if address.lease_host in hosts:
            found.setdefault(address.provider_ref or address.ip, []).append(address)
    return [_Unit(tuple(together)) for together in found.values()]


class _Place:
    """The hosts of one provider and zone, and what they hold; it changes with each move that is planned."""

    def __init__(self, hosts: list[Host], units: list[_Unit]) -> None:
        self._hosts = {host.id: host for host in hosts}
        self._at = {unit: host_id for unit in units if (host_id := unit.first.lease_host) is not None}
        self._loads = Counter(dict.fromkeys(self._hosts, 0))
        for unit, host_id in self._at.items():
            self._loads[host_id] += len(unit.addresses)
        self._moves: list[Move] = []

    def plan(self) -> list[Move]:
        for unit in list(self._at):
            preferred = unit.first.preferred_host
            if preferred is not None and preferred != self._at[unit] and self._can_move(unit, preferred):
                self._move(unit, preferred)
        while self._level():
            pass
        return self._moves

    def _level(self) -> bool:
        """Move one from the fullest to the emptiest, if that makes it fairer."""
        names = {host_id: host.name for host_id, host in self._hosts.items()}
        for source in sorted(self._loads, key=lambda one: (-self._loads[one], names[one])):
            for target in sorted(self._loads, key=lambda one: (self._loads[one], names[one])):
                units = [
                    unit
                    for unit, at in self._at.items()
                    if at == source
                    and unit.first.preferred_host != source
                    and self._loads[source] - self._loads[target] > len(unit.addresses)
                    and self._can_move(unit, target)
                ]
                if units:
                    crowds = Counter((unit.first.pool_id, at) for unit, at in self._at.items())
                    self._move(
                        max(
                            units,
                            key=lambda unit: crowds[unit.first.pool_id, source] - crowds[unit.first.pool_id, target],
                        ),
                        target,
                    )
                    return True
        return False

    def _can_move(self, unit: _Unit, target: HostId) -> bool:
        host = self._hosts.get(target)
        return (
            host is not None
            and self._loads[target] + len(unit.addresses) <= host.max_addresses
            and all(address.state == "ready" and address.next_host is None for address in unit.addresses)
        )

    def _move(self, unit: _Unit, target: HostId) -> None:
        source = self._at[unit]
        self._moves.append(Move(unit.first.ip, self._hosts[source], self._hosts[target]))
        self._loads[source] -= len(unit.addresses)
        self._loads[target] += len(unit.addresses)
        self._at[unit] = target
