"""Random faults, seeded: hosts die and freeze, the API and the database fail in every way, others and operators move things.

Each run lives through some minutes of that, in which no address may ever be used by two hosts, and must then come to rest: every
address ready, at one host, by the database, the provider and the interfaces; with nothing written any more. The ordinary test
takes a sample; REMAILS_FAULT_RUNS=500 runs so many, from REMAILS_FAULT_SEED on.
"""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import get_args

import pytest
from fakes.cloud import Do
from rig import INTERVAL, Host, Rig

from remails.config import Database as DatabaseSettings
from remails.store import addresses

RUNS = int(os.environ.get("REMAILS_FAULT_RUNS", "50"))
FIRST = int(os.environ.get("REMAILS_FAULT_SEED", "1"))
RATE, BURST = 1.0, 5
CHAOS = (60, 240)  # seconds
REST = 900  # seconds within which all must be well again


@pytest.fixture
def rig(database: DatabaseSettings, tmp_path: Path) -> Iterator[Rig]:
    """Where it happens."""
    rig = Rig(database, tmp_path)
    yield rig
    rig.close()


@pytest.mark.timeout(0 if RUNS > 50 else 600)
def test_random_faults_come_to_rest_and_no_address_is_ever_used_twice(rig: Rig) -> None:
    for seed in range(FIRST, FIRST + RUNS):
        rig.reset(seed)
        try:
            Run(rig).play()
        except BaseException:
            sys.stderr.write(f"seed {seed}\n")
            raise


class Run:
    """One run, all of it from the rig's seed."""

    def __init__(self, rig: Rig) -> None:
        self.rig, self.chance = rig, rig.chance
        count = self.chance.randint(2, 4)
        self.ips = [f"203.0.113.{number}" for number in range(1, self.chance.randint(1, 6) + 1)]
        most = -(-len(self.ips) // (count - 1)) + self.chance.randint(0, 2)
        for number in range(1, count + 1):
            rig.add_host(f"out{number}", requests_per_second=RATE, requests_burst=BURST, max_addresses=most)
        rig.add_addresses(*self.ips)
        self.undo: list[tuple[float, Callable[[], object]]] = []
        self.events = [
            *(self.kill, self.kill, self.restart, self.freeze, self.cut, self.outage, self.api_fault, self.api_fault),
            *(self.api_fault, self.api_down, self.stale, self.token, self.stolen, self.stolen, self.detached),
            *(self.deleted, self.drain, self.disable, self.ask_for, self.gone_from_interface, self.limited),
        ]

    def play(self) -> None:
        """All of it. Raises AssertionError."""
        rig = self.rig
        rig.fate = self.fate
        rig.pass_time(self.chance.uniform(0, 30))
        rig.pass_time(self.chance.uniform(*CHAOS), self.something)
        self.heal()
        rig.until(self.is_at_rest, REST)
        self.check_rest()
        assert rig.violations == []
        rig.check_log()
        rig.check_calls(RATE, BURST)

    # Chaos

    def fate(self, method: str) -> str:
        """What becomes of a request on its way."""
        if method == "GET":
            return ""
        return self.chance.choices(["", "late", "frozen"], [0.9, 0.05, 0.05])[0]

    def something(self) -> None:
        """Perhaps something happens in this second; and what has happened ends."""
        for at, action in self.undo:
            if at <= self.rig.clock:
                action()
        self.undo = [one for one in self.undo if one[0] > self.rig.clock]
        if self.chance.random() < 0.06:
            self.chance.choice(self.events)()

    def later(self, action: Callable[[], object], least: float = 5, most: float = 60) -> None:
        """Undo it after a while."""
        self.undo.append((self.rig.clock + self.chance.uniform(least, most), action))

    def a_host(self) -> Host:
        """Any host that is in no call."""
        return self.chance.choice([host for host in self.rig.hosts.values() if not host.is_busy] or [None])  # type: ignore[list-item]

    def kill(self) -> None:
        """A host loses its power, and boots."""
        if (host := self.a_host()) and host.agent is not None:
            host.die()
            self.later(lambda: self.boot(host), 5, 90)

    def boot(self, host: Host) -> None:
        """Start what does not run."""
        if host.agent is None:
            host.start()

    def restart(self) -> None:
        """An agent is restarted."""
        if (host := self.a_host()) and host.agent is not None:
            host.stop()
            self.later(lambda: self.boot(host), 1, 15)

    def freeze(self) -> None:
        """A host stands still between two turns."""
        if host := self.a_host():
            host.is_frozen = True
            self.later(lambda: setattr(host, "is_frozen", False))

    def cut(self) -> None:
        """A host does not reach the database."""
        if host := self.a_host():
            host.db.is_cut = True
            self.later(lambda: setattr(host.db, "is_cut", False))

    def outage(self) -> None:
        """The database is down for all."""
        self.rig.is_down = True
        self.later(lambda: setattr(self.rig, "is_down", False), 3, 50)

    def api_fault(self) -> None:
        """Some requests fail, in some way."""
        fault = self.rig.cloud.fail(
            self.chance.choice([do for do in get_args(Do) if do not in ("stale", "drift")]),
            method=self.chance.choice(["GET", "PATCH", ".*"]),
            times=self.chance.randint(1, 6),
            probability=self.chance.choice([0.3, 1.0]),
            status=self.chance.choice([400, 402, 403, 404, 409, 429, 500, 502, 503, 504]),
            retry_after=self.chance.choice(["", "5", "40"]),
            seconds=self.chance.uniform(1, 12),
            html=self.chance.random() < 0.3,
        )
        self.later(lambda: setattr(fault, "times", 0))

    def api_down(self) -> None:
        """The API is down."""
        fault = self.rig.cloud.fail("status", status=503, html=True)
        self.later(lambda: setattr(fault, "times", 0), 5, 120)

    def limited(self) -> None:
        """The API takes fewer requests."""
        self.rig.cloud.limit = (3, 20.0)
        self.later(lambda: setattr(self.rig.cloud, "limit", None))

    def stale(self) -> None:
        """Reads are behind."""
        self.rig.cloud.staleness = self.chance.uniform(2, 25)
        self.later(lambda: setattr(self.rig.cloud, "staleness", 0.0))

    def token(self) -> None:
        """A host's token is not accepted."""
        name, tokens = self.chance.choice([*self.rig.hosts]), self.rig.cloud.world.tokens
        if f"ucat_{name}" in tokens:
            tokens.remove(f"ucat_{name}")
            self.later(lambda: tokens.append(f"ucat_{name}"))

    def stolen(self) -> None:
        """Somebody moves an address."""
        ip, server = self.chance.choice(self.ips), self.chance.choice([*self.rig.cloud.world.servers])
        if ip in self.rig.cloud.world.addresses:
            self.rig.cloud.do("attach_elsewhere", ip=ip, server=server)

    def detached(self) -> None:
        """Somebody detaches an address."""
        ip = self.chance.choice(self.ips)
        if ip in self.rig.cloud.world.addresses:
            self.rig.cloud.do("drop_attachment", ip=ip)

    def deleted(self) -> None:
        """Somebody deletes an address, and gets it back."""
        ip = self.chance.choice(self.ips)
        if ip in self.rig.cloud.world.addresses:
            self.rig.cloud.do("delete_ip", ip=ip)
            self.later(lambda: self.rig.cloud.do("restore_ip", ip=ip))

    def gone_from_interface(self) -> None:
        """A DHCP client flushes an interface."""
        if host := self.a_host():
            host.nic.until.clear()

    def drain(self) -> None:
        """The operator drains a host, and takes it back."""
        if (host := self.a_host()) and host.id:
            host_id = host.id
            self.rig.admin.run(addresses.desire, host_id, "drain")
            self.later(lambda: self.rig.admin.run(addresses.desire, host_id, "active"), 20, 90)

    def disable(self) -> None:
        """The operator takes an address out of use for a while."""
        ip = self.chance.choice(self.ips)
        self.rig.admin.run(addresses.disable, ip)
        self.later(lambda: self.rig.admin.run(addresses.enable, ip))

    def ask_for(self) -> None:
        """The operator moves an address."""
        if (host := self.a_host()) and host.id:
            self.rig.admin.run(addresses.ask_for, self.chance.choice(self.ips), host.id)

    # Rest

    def heal(self) -> None:
        """All is well from now on, but for one host that may stay dead."""
        rig = self.rig
        rig.is_down, rig.fate = False, lambda method: ""
        rig.cloud.faults.clear()
        rig.cloud.staleness, rig.cloud.limit = 0.0, None
        rig.cloud.world.tokens = [f"ucat_{name}" for name in rig.hosts]
        for ip in self.ips:
            rig.cloud.do("restore_ip", ip=ip)
            rig.admin.run(addresses.enable, ip)
        dead = self.chance.choice([*rig.hosts.values(), None])
        for host in rig.hosts.values():
            host.is_frozen = host.db.is_cut = False
            if host.id:
                rig.admin.run(addresses.desire, host.id, "active")
            if host is dead and not host.is_busy:
                host.die()
            else:
                self.boot(host)

    def is_at_rest(self) -> bool:
        """Every address is ready, where the provider and the interfaces have it."""
        holders = self.rig.holders()
        on = {ip: host.name for host in self.rig.hosts.values() if host.agent for ip in host.nic.mine}
        return not self.rig.late and len(holders) == len(self.ips) and holders == self.rig.owners() == on

    def check_rest(self) -> None:
        """It stays so, for a look every fifteen seconds and no write."""
        rig = self.rig
        rig.pass_time(45)
        assert self.is_at_rest()
        before = len(rig.cloud.calls)
        rig.pass_time(60)
        assert self.is_at_rest()
        calls = rig.cloud.calls[before:]
        assert [call for call in calls if call.is_write] == []
        assert len(calls) <= len(rig.hosts) * (60 / (15 - INTERVAL) + 1)
