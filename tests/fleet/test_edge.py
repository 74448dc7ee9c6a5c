"""The edges on the fleet: one that dies, hosts behind them that die, slow and idle clients. test_operation deploys through them."""

import http.client
import itertools
import re
import shlex
import socket
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from deployment import FRONT, GROUPS, Customer, Deployment, check, load
from hosts import CLOUD, MX, RESOLVER, until
from load import Load, unverified

pytestmark = [pytest.mark.fleet, pytest.mark.timeout(1800), pytest.mark.usefixtures("whole")]

RATE = 50
EDGE_GONE = 8.0
"""Seconds until clients of a dead edge are served by the other one (docs/edge.md)."""
HOST_GONE = 20.0
"""Seconds until a client's mail is taken that met a dead host twice, by a session at each address (docs/edge.md: six seconds each)."""


def holders(deployment: Deployment) -> dict[str, str]:
    """The edges that have each virtual address on their interface."""
    said = {
        name: deployment.fleet.hosts[name].run("ip -4 addr", check=False)
        for name in GROUPS["edge"]
        if deployment.fleet.hosts[name].leader()
    }
    return {address: " ".join(name for name, text in said.items() if f" {address}/" in text) for address in FRONT}


DOORS = [
    f"remails-{unit}"
    for unit in ("api.socket", "api.service", "inbound-smtps.socket", "inbound.service", "certificates.timer")
]
"""Units of a host that takes mail and has the pages."""
PREFERRED = dict(zip(FRONT, GROUPS["edge"], strict=True))


@contextmanager
def streams(deployment: Deployment, customers: dict[str, Customer], name: str) -> Iterator[tuple[Load, Load]]:
    """50 mails by SMTP and 50 by REST in a second, while something happens."""
    with (
        load(deployment, customers["other"], "inbound", f"{name} smtp", rate=RATE) as smtp,
        load(deployment, customers["acme"], "api", f"{name} rest", rate=RATE) as rest,
    ):
        until(lambda: min(len(smtp.attempts), len(rest.attempts)) > 2 * RATE, 60, "the load to flow")
        yield smtp, rest


def longest_wait(stream: Load) -> float:
    """The longest time from a mail's first attempt until it was taken, in seconds."""
    waits: dict[str, float] = {}
    for attempt in stream.attempts:
        mail = attempt.subject.rpartition(" ")[0]
        waits[mail] = waits.get(mail, 0.0) + attempt.seconds
    return max(waits.values())


def told(name: str, *loads: Load) -> None:
    """Say what clients saw."""
    for stream in loads:
        trouble = sum(attempt.result != "accepted" for attempt in stream.attempts)
        print(
            f"{name}: {len(stream.attempts)} attempts, {trouble} without success, longest {longest_wait(stream):.1f} s,"
            f" {dict(stream.reasons())}",
            file=sys.__stderr__,
        )


def test_each_edge_has_the_address_that_prefers_it(deployment: Deployment) -> None:
    until(lambda: holders(deployment) == PREFERRED, 30, "the addresses to be where they belong")


def test_an_edge_dies(deployment: Deployment, customers: dict[str, Customer]) -> None:
    """Its address is at the other one within seconds, and comes back with it."""
    victim = GROUPS["edge"][0]
    with streams(deployment, customers, "edge") as (smtp, rest):
        deployment.fleet.hosts[victim].kill()
        killed = time.monotonic()
        until(lambda: set(holders(deployment).values()) == {GROUPS["edge"][1]}, 30, "the address to move")
        print(f"the address moved after {time.monotonic() - killed:.1f} s", file=sys.__stderr__)
        reached = len(smtp.attempts), len(rest.attempts)
        until(lambda: len(smtp.attempts) > reached[0] + 200 and len(rest.attempts) > reached[1] + 200, 60, "load on")
        deployment.fleet.hosts[victim].start()
        deployment.fleet.hosts[victim].wait()
        until(lambda: holders(deployment) == PREFERRED, 60, "the address to come back")
        reached = len(smtp.attempts), len(rest.attempts)
        until(lambda: len(smtp.attempts) > reached[0] + 200 and len(rest.attempts) > reached[1] + 200, 60, "load on")
    told("edge killed", smtp, rest)
    for stream in (smtp, rest):
        # A client that was waiting for an answer waits until its own patience ends, which is ten seconds here.
        assert longest_wait(stream) < EDGE_GONE + 10
        check(deployment, stream, 180)


def test_a_host_behind_the_edges_dies(deployment: Deployment, customers: dict[str, Customer]) -> None:
    """Whoever connects afterwards sees nothing of it; whoever was being served is told to come back."""
    victim = GROUPS["api"][1]
    with streams(deployment, customers, "host") as (smtp, rest):
        deployment.fleet.hosts[victim].kill()
        reached = len(smtp.attempts), len(rest.attempts)
        until(lambda: len(smtp.attempts) > reached[0] + 400 and len(rest.attempts) > reached[1] + 400, 90, "load on")
        deployment.fleet.hosts[victim].start()
        deployment.fleet.hosts[victim].wait()
    told("host killed", smtp, rest)
    for stream in (smtp, rest):
        assert longest_wait(stream) < HOST_GONE
        trouble = [attempt for attempt in stream.attempts if attempt.result != "accepted"]
        assert len(trouble) < 2 * RATE
        check(deployment, stream, 180)


def test_an_edge_is_emptied_and_brought_back(deployment: Deployment, customers: dict[str, Customer]) -> None:
    victim = GROUPS["edge"][1]
    run = deployment.controller.playbook("playbooks/drain.yml", "-e", f"host={victim}").ok()
    assert set(holders(deployment).values()) == {GROUPS["edge"][0]}, run.output
    with load(deployment, customers["other"], "inbound", "one edge", rate=0, count=20) as stream:
        pass
    assert stream.given_up == set()
    deployment.controller.playbook("playbooks/undrain.yml", "-e", f"host={victim}").ok()
    until(lambda: holders(deployment) == PREFERRED, 30, "the address to come back")


def test_an_edge_that_has_booted_loads_its_certificates_once(deployment: Deployment) -> None:
    """A reload closes connections that clients keep, so there is none without a reason."""
    host = deployment.fleet.hosts[GROUPS["edge"][1]]
    host.reboot()
    host.run("systemctl start remails-certificates.service")
    assert "Reloading" not in host.run("journalctl --boot --unit haproxy.service --output cat --no-pager")
    until(lambda: holders(deployment) == PREFERRED, 30, "the address to come back")


def test_an_edge_that_cannot_be_asked_ends_a_deployment_in_words(deployment: Deployment) -> None:
    """Before anything is restarted; and it can be gone on without."""
    dead, host = GROUPS["edge"][1], GROUPS["api"][0]
    deployment.fleet.hosts[dead].kill()
    try:
        arguments = ("playbooks/drain.yml", "-e", f"host={host}")
        failed = deployment.controller.playbook(*arguments)
        assert failed.status != 0
        said = " ".join(failed.output.split())
        assert f"{dead} cannot be reached, and would go on to send clients to {host} while api restarts." in said
        assert f"-e edge_dead={dead}" in said
        deployment.remails("ready", host=host)
        deployment.controller.playbook(*arguments, "-e", f"edge_dead={dead}").ok()
        deployment.controller.playbook("playbooks/undrain.yml", "-e", f"host={host}", "-e", f"edge_dead={dead}").ok()
    finally:
        deployment.fleet.hosts[dead].start()
        deployment.fleet.hosts[dead].wait()
    until(lambda: holders(deployment) == PREFERRED, 60, "the address to come back")


def test_slow_and_idle_clients_are_in_nobodys_way(deployment: Deployment, customers: dict[str, Customer]) -> None:
    """2,000 connections that say nothing, and 200 that say little, of three clients: a second later the API answers as ever."""
    fleet, connections = deployment.fleet, []
    clients = itertools.cycle((RESOLVER, MX, CLOUD))  # a client alone may have 1,000
    context = unverified()
    try:
        with fleet.network("world"):
            for _ in range(2000):
                connections.append(socket.create_connection((FRONT[0], 443), 10, (next(clients), 0)))
            for _ in range(200):
                slow = http.client.HTTPSConnection(
                    FRONT[0], timeout=30, context=context, source_address=(next(clients), 0)
                )
                slow.connect()
                slow.sock.sendall(
                    b"POST /api/organizations HTTP/1.1\r\nHost: relay.test\r\nContent-Length: 100\r\n\r\n{"
                )
                connections.append(slow)
        with load(deployment, customers["acme"], "api", "slow", rate=20, count=100) as stream:
            pass
        told("slow clients", stream)
        assert dict(stream.reasons()) == {}
        assert max(attempt.seconds for attempt in stream.attempts) < 3
    finally:
        for connection in connections:
            connection.close()
    check(deployment, stream, 60)


def test_what_haproxy_may_do_is_little(deployment: Deployment) -> None:
    for name in GROUPS["edge"]:
        report = deployment.fleet.hosts[name].run("systemd-analyze security --no-pager haproxy.service")
        exposure = float(report.rpartition("Overall exposure level for")[2].split(":")[1].split()[0])
        assert exposure <= 4.0, report
        lines = deployment.fleet.hosts[name].run(
            f"journalctl --unit haproxy.service --output cat --no-pager -g {shlex.quote('^(request|smtp) client=')} | tail -1"
        )
        assert re.match(r"(request|smtp) client=\d+\.\d+\.\d+\.\d+ ", lines), lines


@pytest.mark.long
def test_hosts_end_what_the_inventory_has_taken_from_them(
    deployment: Deployment, customers: dict[str, Customer]
) -> None:
    """One edge is one no longer, the other has no virtual addresses, one host takes no mail; and then all of it comes back."""
    (kept, former), controller = GROUPS["edge"], deployment.controller
    taking, without = GROUPS["api"]
    shrunk = GROUPS | {"edge": [kept], "api": [taking], "inbound": [taking], "idle": [former]}
    try:
        controller.write(shrunk, deployment.variables() | {"edge_addresses": []})
        with deployment.fleet.network("world"):
            idle = socket.create_connection((deployment.fleet.hosts[former].ip, 587), 10)
        with idle:  # who says nothing more is waited for, and then not any longer
            deployment.site().ok()
        assert set(holders(deployment).values()) == {""}
        assert enabled(deployment, former, "haproxy.service", "keepalived.service") == {"inactive": 2}
        assert enabled(deployment, kept, "haproxy.service", "keepalived.service") == {
            "active enabled": 1,
            "inactive": 1,
        }
        assert enabled(deployment, without, *DOORS) == {"inactive": len(DOORS)}
        assert "pepper" not in deployment.fleet.hosts[without].run("ls /etc/remails/credentials").split()
        assert set(deployment.site().ok().changed.values()) == {0}
        ip = [deployment.fleet.hosts[kept].ip]
        for customer, client in (
            (customers["other"], customers["other"].smtp),
            (customers["acme"], customers["acme"].rest),
        ):
            with Load(deployment.fleet, f"one edge {customer.organization}", client, ip, rate=0, count=20) as stream:
                pass
            check(deployment, stream, 120)
    finally:
        controller.write(GROUPS, deployment.variables())
        deployment.site().ok()
    until(lambda: holders(deployment) == PREFERRED, 30, "the addresses to be where they belong")
    assert enabled(deployment, without, *DOORS) == {"active enabled": len(DOORS)}


def enabled(deployment: Deployment, host: str, *units: str) -> Counter[str]:
    """How many of the units are in which state, and begin with the host."""
    said = deployment.fleet.hosts[host].run(
        "; ".join(
            f"echo $(systemctl is-active {unit}; systemctl is-enabled {unit} 2>&1 | grep -x enabled)" for unit in units
        )
    )
    return Counter(said.splitlines())
