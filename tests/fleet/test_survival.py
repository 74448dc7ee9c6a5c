"""Each kind of host is lost and comes back, one after another, under one steady load: nobody repairs anything, and no mail is lost.

The table that it prints is the one of docs/availability.md; SECONDS holds the limits that stand there.
"""

import collections
import contextlib
import itertools
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest
from deployment import FRONT, GROUPS, Customer, Deployment, load
from hosts import Host, until
from load import Attempt, Load

pytestmark = [pytest.mark.fleet, pytest.mark.long, pytest.mark.timeout(2400), pytest.mark.usefixtures("whole")]

RATE = float(os.environ.get("REMAILS_FLEET_RATE", "50"))  # mails in a second at each door
CALM = 5.0  # seconds without an error after which a loss is over
LIMIT = 180.0  # seconds for that
# For how long errors may be seen at most, in seconds, by what is lost; 0: none at all.
SECONDS = {
    "edge": 20.0,
    "edge comes back": 20.0,
    "app host": 20.0,
    "every bus": 0.0,
    "outbound host": 0.0,
    "outbound host, cut off": 0.0,
    "database primary": 60.0,
    "database primary, cut off": 60.0,
    "synchronous standby": 30.0,
    "third member, with etcd": 0.0,
}


@dataclass
class Loss:
    """Something that was lost and came back, and what clients saw of it."""

    name: str
    began: float
    ended: float = 0.0
    attempts: dict[str, list[Attempt]] = field(default_factory=dict)

    def errors(self, door: str) -> list[Attempt]:
        """What was not accepted at this door."""
        return [attempt for attempt in self.attempts[door] if attempt.result != "accepted"]

    def seconds(self, door: str) -> float:
        """From the loss to the last error."""
        return max((attempt.ended - self.began for attempt in self.errors(door)), default=0.0)

    def silence(self, door: str) -> float:
        """The longest time in which nothing was accepted; from the loss itself on."""
        times = sorted(attempt.ended for attempt in self.attempts[door] if attempt.result == "accepted")
        return max(after - before for before, after in itertools.pairwise([self.began, *times, self.ended]))

    def line(self, door: str) -> str:
        """A row of the table."""
        answers = collections.Counter(attempt.answer for attempt in self.errors(door))
        told = ", ".join(f"{number} x {answer}" for answer, number in sorted(answers.items())) or "none"
        return (
            f"| {self.name} | {door} | {len(self.attempts[door])} | {len(self.errors(door))} | {self.seconds(door):.1f} "
            f"| {self.silence(door):.1f} | {told} |"
        )


class Survival:
    """The load, and the losses that it goes through."""

    def __init__(self, deployment: Deployment, streams: dict[str, Load]) -> None:
        self.deployment, self.streams = deployment, streams
        self.losses: list[Loss] = []

    @contextlib.contextmanager
    def lost(self, name: str) -> Iterator[None]:
        """What the block takes away and brings back; afterwards there is calm again."""
        self._calm(f"calm before {name}")
        loss = Loss(name, time.monotonic())
        self.losses.append(loss)
        yield
        self._calm(f"calm after {name}")
        loss.ended = time.monotonic()

    def _calm(self, what: str) -> None:
        since = time.monotonic()
        until(lambda: self._errors_end(since) + CALM < time.monotonic(), LIMIT, what)

    def _errors_end(self, since: float) -> float:
        recent = (attempt for stream in self.streams.values() for attempt in stream.attempts[-3000:])
        return max((attempt.ended for attempt in recent if attempt.result != "accepted"), default=since)

    def goes_on(self, seconds: float = CALM) -> None:
        """Let the load go on for so long."""
        end = time.monotonic() + seconds
        until(lambda: time.monotonic() > end, seconds + 10, "the load")

    def assign(self) -> None:
        """Give each attempt to the loss in whose time it ended: what was under way when a host fell silent is its victim."""
        for loss, after in zip(self.losses, [*self.losses[1:], None], strict=True):
            end = after.began if after else float("inf")
            for door, stream in self.streams.items():
                loss.attempts[door] = [one for one in stream.attempts if loss.began <= one.ended < end]

    def table(self) -> str:
        """All of it."""
        head = "| lost | door | attempts | errors | seconds with errors | seconds without any accepted | answers |"
        rows = [loss.line(door) for loss in self.losses for door in self.streams]
        return "\n".join([head, "|" + " --- |" * 7, *rows, "", *self._rates()])

    def write(self, file: Path) -> None:
        """Each error, to see why: what was lost, seconds since then, door, edge, seconds, reason."""
        lines = [
            f"{loss.name}\t{one.ended - loss.began:.1f}\t{door}\t{one.host}\t{one.seconds:.1f}\t{one.reason}\n"
            for loss in self.losses
            for door in self.streams
            for one in loss.errors(door)
        ]
        file.write_text("".join(lines), encoding="utf-8")

    def _rates(self) -> Iterator[str]:
        """What the load came to: the machine may be too slow for what was wanted."""
        for door, stream in self.streams.items():
            accepted = [attempt.ended for attempt in stream.attempts if attempt.result == "accepted"]
            seconds = max(accepted) - min(accepted)
            yield f"{door}: {len(accepted)} mails accepted in {seconds:.0f} s, {len(accepted) / seconds:.1f} a second"


def test_every_kind_of_host_is_lost_under_load(deployment: Deployment, customers: dict[str, Customer]) -> None:
    """Errors are such that a client tries again, and end in time; each mail arrives, twice only what is told to be in doubt."""
    with (
        load(deployment, customers["other"], "inbound", "survive smtp", rate=RATE, threads=24) as smtp,
        load(deployment, customers["acme"], "api", "survive rest", rate=RATE, threads=24) as rest,
    ):
        survival = Survival(deployment, {"inbound": smtp, "api": rest})
        survival.goes_on()
        for lose in LOSSES:
            lose(survival)
    survival.assign()
    print(f"\n{survival.table()}", file=sys.__stderr__)
    survival.write(deployment.fleet.directory / "survival.tsv")
    _delivered(deployment, (smtp, rest))
    _nothing_else_than_retriable(survival)
    late = [
        f"{loss.name}, {door}: {loss.seconds(door):.1f} s"
        for loss in survival.losses
        for door in survival.streams
        if loss.seconds(door) > SECONDS[loss.name]
    ]
    assert late == []
    _whole(deployment)


def _edge(survival: Survival) -> None:
    """The one that has the first virtual address."""
    hosts = {name: survival.deployment.fleet.hosts[name] for name in GROUPS["edge"]}
    (name,) = (name for name, host in hosts.items() if _has(host, FRONT[0]))
    (other,) = hosts.keys() - {name}
    with survival.lost("edge"):
        hosts[name].kill()
        until(lambda: all(_has(hosts[other], address) for address in FRONT), 60, "the other edge to have all addresses")
    with survival.lost("edge comes back"):  # and its address moves a second time
        _back(survival, name)
        until(lambda: _has(hosts[name], FRONT[0]), 60, "the edge to have its address again")
        survival.goes_on(20)


def _has(host: Host, address: str) -> bool:
    return f" {address}/" in host.run("ip -4 addr")


def _app_host(survival: Survival) -> None:
    """With the active one of periodic, a bus, an inbound and an api."""
    name = survival.deployment.active()
    with survival.lost("app host"):
        survival.deployment.fleet.hosts[name].kill()
        until(lambda: survival.deployment.active() not in ("", name), 60, "another active periodic")
        survival.goes_on()
        _back(survival, name)


def _every_bus(survival: Survival) -> None:
    hosts = [survival.deployment.fleet.hosts[name] for name in GROUPS["bus"]]
    with survival.lost("every bus"):
        for host in hosts:
            host.run("systemctl kill --signal=KILL remails-bus && systemctl stop remails-bus")
        survival.goes_on()
        for host in hosts:
            host.run("systemctl start remails-bus")


def _outbound_host(survival: Survival) -> None:
    name, moving = _holder(survival.deployment)
    with survival.lost("outbound host"):
        survival.deployment.fleet.hosts[name].kill()
        until(partial(_moved, survival.deployment, name, moving), 90, f"{moving} to be elsewhere")
        _back(survival, name)


def _outbound_cable(survival: Survival) -> None:
    name, moving = _holder(survival.deployment)
    with survival.lost("outbound host, cut off"):
        survival.deployment.fleet.hosts[name].cut()
        until(partial(_moved, survival.deployment, name, moving), 90, f"{moving} to be elsewhere")
        survival.deployment.fleet.hosts[name].heal()


def _holder(deployment: Deployment) -> tuple[str, set[str]]:
    """The host that holds most addresses, and these."""
    holders = deployment.holders()
    ((name, _),) = collections.Counter(holders.values()).most_common(1)
    return name, {ip for ip, holder in holders.items() if holder == name}


def _moved(deployment: Deployment, name: str, moving: set[str]) -> bool:
    holders = deployment.holders()
    return all(holders.get(ip, name) != name for ip in moving)


def _primary(survival: Survival) -> None:
    name = survival.deployment.leader()
    with survival.lost("database primary"):
        survival.deployment.fleet.hosts[name].kill()
        until(lambda: survival.deployment.leader() != name, 90, "another primary")
        survival.goes_on()
        _back(survival, name)
        survival.deployment.cluster_whole()


def _primary_cable(survival: Survival) -> None:
    name = survival.deployment.leader()
    with survival.lost("database primary, cut off"):
        survival.deployment.fleet.hosts[name].cut()
        until(lambda: survival.deployment.leader() != name, 90, "another primary")
        survival.goes_on()
        survival.deployment.fleet.hosts[name].heal()
        survival.deployment.cluster_whole()


def _standby(survival: Survival) -> None:
    _member(survival, "Sync Standby", "synchronous standby")


def _third(survival: Survival) -> None:
    _member(survival, "Replica", "third member, with etcd")


def _member(survival: Survival, role: str, what: str) -> None:
    name = survival.deployment.member(role)
    with survival.lost(what):
        survival.deployment.fleet.hosts[name].kill()
        survival.goes_on(30)  # longer than its lease
        _back(survival, name)
        survival.deployment.cluster_whole()


def _back(survival: Survival, name: str) -> None:
    host = survival.deployment.fleet.hosts[name]
    host.start()
    host.wait()


LOSSES: tuple[Callable[[Survival], None], ...] = (
    _edge,
    _app_host,
    _every_bus,
    _outbound_host,
    _outbound_cable,
    _primary,
    _primary_cable,
    _standby,
    _third,
)


def _nothing_else_than_retriable(survival: Survival) -> None:
    for loss in survival.losses:
        for door in survival.streams:
            assert [one.reason for one in loss.errors(door) if not one.retriable] == [], f"{loss.name}, {door}"


def _delivered(deployment: Deployment, streams: tuple[Load, ...]) -> None:
    """All that was accepted is at its receiver, and what is there twice was told to be in doubt."""
    for stream in streams:
        assert stream.given_up == set()
        doubled = deployment.doubled(stream, 900)  # two processors are slow to send what they took that fast
        assert stream.lost(deployment.arrived(stream.name)) == set()
        assert doubled <= deployment.ambiguous(stream.name)


def _whole(deployment: Deployment) -> None:
    """Everything is as before, by itself."""
    deployment.ready()
    deployment.cluster_whole()
    for name in {name for group in ("api", "outbound") for name in GROUPS[group]}:
        deployment.remails("ready", "--wait", "60", host=name)
    assert deployment.site().ok().changed == dict.fromkeys(deployment.hosts, 0)
