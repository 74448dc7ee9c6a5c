"""The installation on the fleet: deployed by the real playbooks, then used and broken. Each test leaves it whole."""

import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
from deployment import API_PORT, GROUPS, POOLS, SERVICES, Customer, Deployment, check, load
from hosts import until
from ports import reachable

pytestmark = [pytest.mark.fleet, pytest.mark.timeout(1800), pytest.mark.usefixtures("whole")]

# The process table: who may speak to whom, and where. A host is also an outsider to all others.
NEEDS_THE_DATABASE = ("api", "inbound", "outbound", "periodic", "ipagent")
METRICS = ("api", "inbound", "outbound", "bus", "periodic", "ipagent")  # in the order of their ports
TABLE = (
    ("control", tuple(GROUPS), {22}),
    ("world", ("edge",), {80, 443, 465, 587, 2525}),
    ("edge", ("inbound",), {465, 587, 2525}),
    ("edge", ("api",), {API_PORT}),
    ("inbound", ("api",), {API_PORT}),  # for the relay's certificate
    *((group, ("database",), {5432}) for group in NEEDS_THE_DATABASE),
    *((group, ("bus",), {5561, 5562}) for group in NEEDS_THE_DATABASE),
    ("database", ("database",), {2379, 2380, 5432, 8008}),
    ("database", ("backups",), {8432}),
    ("backups", ("database",), {8432}),
    ("monitoring", tuple(GROUPS), {9100}),
    ("monitoring", ("edge",), {8405}),
    ("monitoring", ("database",), {2381, 8008, 9187}),
    *(("monitoring", (service,), {9470 + number}) for number, service in enumerate(METRICS)),
)
EXPOSURE = 2.0
DATA_WINDOW = timedelta(seconds=5)  # a busy host may take so long from the receiver's 250 to its own commit


def test_the_first_mail_comes_from_our_own_address_within_fifteen_minutes(
    deployment: Deployment, customers: dict[str, Customer]
) -> None:
    """From bare hosts on."""
    began = time.monotonic()
    with load(deployment, customers["other"], "inbound", "first", rate=0, count=1) as stream:
        pass
    check(deployment, stream, 60)
    (record,) = deployment.world.mails(stream.name)
    assert record.peer_ip in POOLS["shared"]
    if deployment.took is not None:
        assert deployment.took + time.monotonic() - began < 15 * 60


def test_a_second_run_changes_nothing(deployment: Deployment) -> None:
    assert deployment.site().ok().changed == dict.fromkeys(deployment.hosts, 0)


def test_every_unit_runs_where_it_should_and_nowhere_else(deployment: Deployment) -> None:
    for name, host in deployment.hosts.items():
        active = host.run("systemctl list-units --type=service --state=active --plain --no-legend 'remails-*'").split(
            "\n"
        )
        running = {line.split()[0].removeprefix("remails-").removesuffix(".service") for line in active if line}
        assert running == {service for service in SERVICES if name in GROUPS[service]}
        assert host.run("systemctl is-system-running", check=False).strip() == "running"


def test_every_unit_is_well_confined(deployment: Deployment) -> None:
    for service in SERVICES:
        for name in GROUPS[service]:
            report = deployment.fleet.hosts[name].run(f"systemd-analyze security --no-pager remails-{service}.service")
            exposure = float(report.rpartition("Overall exposure level for")[2].split(":")[1].split()[0])
            assert exposure <= EXPOSURE, report


def allowed(source: str, target: str) -> set[int]:
    """The ports of a host that another end of the network may reach."""
    roles = {source, "world"} | {group for group, names in GROUPS.items() if source in names}
    return {
        port
        for one, groups, ports in TABLE
        if one in roles and any(target in GROUPS[group] for group in groups)
        for port in ports
    }


def test_an_outsider_reaches_the_doors_and_nothing_else(deployment: Deployment) -> None:
    """Every port there is, at one host of each kind."""
    kinds = {tuple(group for group, names in GROUPS.items() if name in names): name for name in deployment.hosts}
    with ThreadPoolExecutor(len(kinds)) as pool:
        scans = {
            name: pool.submit(reachable, deployment.fleet, "world", deployment.fleet.hosts[name].ip)
            for name in kinds.values()
        }
        found = {name: scan.result() for name, scan in scans.items()}
    assert found == {name: allowed("world", name) for name in kinds.values()}


def test_each_host_reaches_what_the_process_table_says(deployment: Deployment) -> None:
    """Every port that something listens on, from each host and the controller."""
    hosts = deployment.hosts
    listening = {
        name: sorted({int(line.rpartition(":")[2]) for line in host.run("ss -Hltn | awk '{print $4}'").split()})
        for name, host in hosts.items()
    }
    pairs = [(source, target) for source in ("control", *hosts) for target in hosts if source != target]

    def found(pair: tuple[str, str]) -> set[int]:
        source, target = pair
        return reachable(deployment.fleet, source, hosts[target].ip, listening[target])

    with ThreadPoolExecutor(len(hosts)) as pool:
        assert dict(zip(pairs, pool.map(found, pairs), strict=True)) == {pair: allowed(*pair) for pair in pairs}


@pytest.mark.parametrize("door", ["inbound", "api"])
@pytest.mark.parametrize("name", ["acme", "other"])
def test_mail_leaves_from_its_own_pool_only(
    deployment: Deployment, customers: dict[str, Customer], door: str, name: str
) -> None:
    customer = customers[name]
    with load(deployment, customer, door, f"pool {door}", rate=0, count=20) as stream:
        pass
    check(deployment, stream, 60)
    records = deployment.world.mails(stream.name)
    assert {record.peer_ip for record in records} <= set(POOLS[customer.pool])
    assert {signature.ok for record in records for signature in record.dkim} == {True}


def test_the_host_that_holds_addresses_is_killed_while_two_thousand_mails_wait(
    deployment: Deployment, customers: dict[str, Customer]
) -> None:
    """Its addresses are ready elsewhere within 90 seconds, and all mail leaves from the address that it was given."""
    holders = deployment.holders()
    (own,) = POOLS["acme"]
    victim = holders[own]
    lost = {ip for ip, holder in holders.items() if holder == victim}
    for name in GROUPS["outbound"]:
        deployment.fleet.hosts[name].run("systemctl stop remails-outbound.service")
    with (
        load(deployment, customers["acme"], "inbound", "takeover own", rate=0, count=1000) as acme,
        load(deployment, customers["other"], "inbound", "takeover shared", rate=0, count=1000) as other,
    ):
        pass
    assert acme.given_up | other.given_up == set()
    assert deployment.waiting() >= 2000
    chosen = deployment.sources("takeover")
    for name in GROUPS["outbound"]:
        deployment.fleet.hosts[name].run("systemctl start remails-outbound.service")
    until(lambda: len(deployment.arrived(acme.name)) >= 50, 60, "the first mails to leave")
    deployment.fleet.hosts[victim].kill()
    killed, at = time.monotonic(), datetime.now(UTC)
    until(lambda: all(deployment.holders().get(ip, victim) != victim for ip in lost), 90, f"{lost} to be elsewhere")
    print(f"{len(lost)} addresses ready elsewhere after {time.monotonic() - killed:.0f} s", file=sys.__stderr__)
    for stream in (acme, other):
        deployment.wait_for(stream.subjects("accepted"), stream.name, 300)
    until(lambda: deployment.waiting() == 0, 300, "the queue to be empty")
    records = deployment.world.mails("takeover")
    assert {record.peer_ip for record in records if record.subject.startswith(acme.name)} == {own}
    assert [record.subject for record in records if record.peer_ip not in chosen[record.subject]] == []
    # Twice only what the receiver had taken, and the host not yet written down, when it died.
    first = {record.subject: record.received_at for record in reversed(records)}
    doubled = acme.doubled(deployment.arrived(acme.name)) | other.doubled(deployment.arrived(other.name))
    assert [subject for subject in doubled if not at - DATA_WINDOW < first[subject] <= at + timedelta(seconds=1)] == []
    assert {record.peer_ip for record in records if record.subject in doubled} <= lost


def test_a_cable_is_pulled_and_put_back(deployment: Deployment) -> None:
    """The address moves once, and never has two hosts: on no interface at no sample, and by the log of events."""
    before = deployment.holders()
    ip = POOLS["shared"][-1]
    victim = deployment.fleet.hosts[before[ip]]
    moving = {one for one, holder in before.items() if holder == victim.name}
    start = deployment.last_event()
    samples: list[dict[str, list[str]]] = []

    def moved() -> bool:
        samples.append(deployment.configured())
        held = deployment.holders()
        return all(held.get(one, victim.name) != victim.name for one in moving)

    victim.cut()
    try:
        until(moved, 90, f"{moving} to be elsewhere")
    finally:
        victim.heal()
    settled = deployment.holders()
    end = time.monotonic() + 45  # more than a lease: whoever wanted to take it back would have
    until(lambda: samples.append(deployment.configured()) or time.monotonic() > end, 60, "45 seconds")
    assert [sample for sample in samples if any(len(names) > 1 for names in sample.values())] == []
    assert deployment.holders() == settled
    claims = deployment.claims(start)
    assert sorted(claims) == sorted(moving)
    assert {len(hosts) for hosts in claims.values()} == {1}, claims
