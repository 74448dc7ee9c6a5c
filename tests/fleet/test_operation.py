"""Day 2 on the fleet: new versions under load, broken ones, hosts drained and brought back, new secrets, the picture of it all."""

import json
import re
import shutil
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from controller import PROJECT, Run
from deployment import GROUPS, REMAILS, SERVICES, Customer, Deployment, check, load
from hosts import until
from load import Load

pytestmark = [pytest.mark.fleet, pytest.mark.long, pytest.mark.timeout(2400), pytest.mark.usefixtures("whole")]

HOSTS = sorted({name for service in SERVICES for name in GROUPS[service]})
RATE = 50
OUTBOUND_METRICS = 9472


def current(deployment: Deployment, link: str = "current") -> dict[str, str]:
    """The release of each host."""
    ask = f"basename $(readlink /opt/remails/{link})"
    return {name: deployment.fleet.hosts[name].run(ask).strip() for name in HOSTS}


def started(deployment: Deployment) -> dict[str, str]:
    """When the services of each host were started."""
    ask = "systemctl show --property=Id,ExecMainStartTimestamp 'remails-*.service'"
    return {name: deployment.fleet.hosts[name].run(ask) for name in HOSTS}


@pytest.fixture
def checkout(deployment: Deployment, tmp_path: Path) -> Iterator[Path]:
    """A checkout of another version, from which the controller works."""
    project = tmp_path / "checkout"
    shutil.copytree(
        PROJECT, project, symlinks=True, ignore=shutil.ignore_patterns(".*", "node_modules", "*.tar", "__pycache__")
    )
    deployment.controller.project = project
    yield project
    deployment.controller.project = PROJECT


def change(file: Path, before: str, after: str) -> None:
    """Change one place of a file."""
    text = file.read_text(encoding="utf-8")
    assert text.count(before) == 1
    file.write_text(text.replace(before, after), encoding="utf-8")


def test_a_new_version_is_deployed_under_load_and_rolled_back(
    deployment: Deployment, customers: dict[str, Customer], checkout: Path
) -> None:
    before = current(deployment)
    assert len(set(before.values())) == 1
    change(checkout / "remails/__init__.py", '__version__ = "', '__version__ = "9.')
    playbook = deployment.controller.start("playbooks/deploy.yml")
    until(
        lambda: playbook.poll() is not None or all(_has_version(deployment, name, "9.") for name in HOSTS),
        900,
        "the release to be on every host",
    )
    with (
        load(deployment, customers["other"], "inbound", "deploy smtp", rate=RATE, threads=24) as smtp,
        load(deployment, customers["acme"], "api", "deploy rest", rate=RATE, threads=24) as rest,
    ):
        run = deployment.controller.finish(playbook)
    run.ok()
    after = current(deployment)
    assert len(set(after.values())) == 1 and next(iter(after.values())).startswith("9.")
    for stream in (smtp, rest):
        told(stream)
        assert dict(stream.reasons()) == {}  # no client saw anything of it
        check(deployment, stream, 120 + len(stream.attempts) / 20)
    assert min(len(smtp.attempts), len(rest.attempts)) > RATE * 20

    again = deployment.controller.playbook("playbooks/deploy.yml").ok()
    assert again.changed == dict.fromkeys(again.changed, 0)

    with load(deployment, customers["other"], "inbound", "rollback", rate=10) as stream:
        deployment.controller.playbook("playbooks/rollback.yml").ok()
    assert current(deployment) == before
    check(deployment, stream, 180)


def _has_version(deployment: Deployment, name: str, prefix: str) -> bool:
    installed = deployment.fleet.hosts[name].run("ls -d /opt/remails/releases/*/INSTALLED", check=False)
    return f"/releases/{prefix}" in installed


def test_a_broken_version_stops_at_the_first_host_which_goes_back(deployment: Deployment, checkout: Path) -> None:
    before, previous, since = current(deployment), current(deployment, "previous"), started(deployment)
    change(checkout / "remails/inbound/service.py", "        server.listen(passed)\n", "        raise SystemExit(1)\n")
    run = deployment.controller.playbook("playbooks/deploy.yml")
    assert run.status != 0
    (failed,) = [name for name, counts in run.recap.items() if counts["failed"]]
    assert failed in GROUPS["inbound"]
    assert f"{failed} did not get ready with release" in run.output
    assert f"It runs {before[failed]} again" in " ".join(run.output.split())
    assert current(deployment) == before
    assert current(deployment, "previous") == previous  # rollback.yml would do what it would have done
    assert {name for name, text in started(deployment).items() if text != since[name]} == {failed}
    deployment.remails("ready", host=failed)


def test_hosts_go_back_to_one_release(deployment: Deployment) -> None:
    """A deployment that ended half way leaves hosts that have had different ones."""
    before, host = current(deployment), deployment.fleet.hosts["app2"]
    link = host.run("readlink /opt/remails/previous").strip()
    host.run("ln -sfn $(readlink /opt/remails/current) /opt/remails/previous")
    try:
        run = deployment.controller.playbook("playbooks/rollback.yml")
        assert run.status != 0
        assert "Not every host has had the same release before" in " ".join(run.output.split())
        assert current(deployment) == before
    finally:
        host.run(f"ln -sfn {link} /opt/remails/previous")


def test_a_host_is_emptied_and_brought_back(deployment: Deployment, customers: dict[str, Customer]) -> None:
    address, victim = next(iter(deployment.holders().items()))
    with load(deployment, customers["other"], "inbound", "drain", rate=10) as stream:
        drained = deployment.controller.playbook("playbooks/drain.yml", "-e", f"host={victim}")
        reached = len(stream.attempts)
        until(lambda: len(stream.attempts) > reached + 50, 60, "mail to go on")
    drained.ok()
    assert f"{victim} is empty" in drained.output
    services = deployment.fleet.hosts[victim].run("systemctl is-active remails-outbound remails-ipagent", check=False)
    assert services.split() == ["inactive", "inactive"]
    deployment.ready()
    assert victim not in deployment.holders().values()
    assert f"{address} is ready on {deployment.holders()[address]}" in drained.output
    arguments = ["-e", f"host={victim}", "-e", "undrain_patience=1"]  # nothing comes back by itself
    undrained = deployment.controller.playbook("playbooks/undrain.yml", *arguments).ok()
    assert f"{victim} holds no address yet" in undrained.output
    assert {row["name"]: row["state"] for row in deployment.table("host", "list")}[victim] == "active"
    check(deployment, stream, 180)


def test_the_picture_of_the_fleet(deployment: Deployment) -> None:
    deployment.ready()
    run = deployment.controller.playbook("playbooks/status.yml").ok()
    assert run.changed == dict.fromkeys(run.changed, 0)
    lines = [line.split() for line in run.output.splitlines()]
    releases = current(deployment)
    for service in SERVICES:
        for name in GROUPS[service]:
            assert any(line[:4] == [name, releases[name], service, "yes"] for line in lines), run.output
    for ip, holder in deployment.holders().items():
        assert any(line[:1] == [ip] and line[2:4] == ["ready", holder] for line in lines), run.output


def test_a_host_that_is_off_is_part_of_the_picture(deployment: Deployment) -> None:
    deployment.fleet.hosts["out3"].kill()
    run = deployment.controller.playbook("playbooks/status.yml")
    assert re.search(r"out3 +- +- +NO +the host does not answer", run.output)
    assert re.search(r"app1 +\S+ +inbound +yes", run.output)


@pytest.mark.parametrize(("name", "seen"), [("edge1", {"connection"}), ("app1", set()), ("out1", set())])
def test_a_host_is_rebooted_under_load(
    deployment: Deployment, customers: dict[str, Customer], name: str, seen: set[str]
) -> None:
    """Clients see nothing of it, but that an edge's address takes no connection along when it moves (docs/edge.md)."""
    reboot(deployment, customers, name, seen)


def test_a_standby_is_rebooted_under_load(deployment: Deployment, customers: dict[str, Customer]) -> None:
    """Clients see nothing of it, though it is the one that commits wait for; who leads the database is not rebooted."""
    deployment.cluster_whole()
    leader, standby = deployment.leader(), deployment.member("Sync Standby")
    refused = deployment.controller.playbook("playbooks/reboot.yml", "-e", f"host={leader}")
    assert refused.status and f"{leader} leads the database" in " ".join(refused.output.split())
    reboot(deployment, customers, standby, set())
    deployment.cluster_whole()


def reboot(deployment: Deployment, customers: dict[str, Customer], name: str, seen: set[str]) -> None:
    """Reboot a host while mail comes in, and clients see no errors but these."""
    before = deployment.fleet.hosts[name].leader()
    with (
        load(deployment, customers["other"], "inbound", f"reboot {name} smtp", rate=10) as smtp,
        load(deployment, customers["acme"], "api", f"reboot {name} rest", rate=10) as rest,
    ):
        deployment.controller.playbook("playbooks/reboot.yml", "-e", f"host={name}").ok()
    assert deployment.fleet.hosts[name].leader() not in (before, None)
    for stream in (smtp, rest):
        told(stream)
        assert {attempt.answer for attempt in stream.attempts if attempt.result != "accepted"} <= seen
        check(deployment, stream, 120)
    deployment.ready()


def told(stream: Load) -> None:
    """Say what clients saw."""
    slowest = max(attempt.seconds for attempt in stream.attempts)
    print(
        f"{stream.name}: {len(stream.attempts)} attempts, slowest {slowest:.1f} s, {dict(stream.reasons())}",
        file=sys.__stderr__,
    )


def test_a_host_that_needs_no_reboot_is_left_alone(deployment: Deployment) -> None:
    host = deployment.fleet.hosts["out2"]
    deployment.ready()
    before, held = host.leader(), deployment.holders()
    deployment.controller.playbook("playbooks/reboot.yml", "-e", f"host={host.name}", "-e", "needed=true").ok()
    assert host.leader() == before and deployment.holders() == held


def test_secrets_are_rotated_without_losing_mail(deployment: Deployment, customers: dict[str, Customer]) -> None:
    """As docs/operations.md says: all three kinds at once, then the old ones go."""
    (old,) = sealed(deployment)
    streams = [load(deployment, customers["acme"], door, f"rotate {door}", rate=10) for door in ("inbound", "api")]
    with streams[0], streams[1]:
        for kind in ("encryption", "bus", "database"):
            deployment.keys("rotate", kind)
        rotate(deployment)
        (new,) = sealed(deployment).keys() - {old}
        assert sealed(deployment)[new] > 0 and sealed(deployment)[old] == 0
        deployment.keys("rotate", "forget")
        rotate(deployment)
    assert [*sealed(deployment)] == [new]
    for name in HOSTS:
        deployment.remails("ready", "--wait", "60", host=name)
    heard = notes_heard(deployment)
    with load(deployment, customers["acme"], "api", "notes", rate=0, count=10) as stream:
        pass
    until(lambda: notes_heard(deployment) > heard, 30, "the bus to carry notes under its new keys")
    for one in (*streams, stream):
        told(one)
        refusals = {reason for reason in one.reasons() if re.search(r": [45]\d\d ", reason)}
        assert {reason for reason in refusals if ": 421 " not in reason} == set()
        check(deployment, one, 180)


def sealed(deployment: Deployment) -> dict[str, int]:
    """How many stored values each encryption key has sealed that the hosts know."""
    return {row["name"]: row["sealed"] for row in deployment.table("keys", "list")}


def notes_heard(deployment: Deployment) -> int:
    """How many notes the sending hosts have had from the bus since they were started."""
    said = ""
    for host in (deployment.fleet.hosts[name] for name in GROUPS["outbound"]):
        url = f"http://{host.ip}:{OUTBOUND_METRICS}/metrics"
        with deployment.fleet.network(host.name), urllib.request.urlopen(url, timeout=10) as answer:
            said += answer.read().decode()
    return sum(
        int(float(number)) for number in re.findall(r"^remails_notes_received_total\S* (\S+)$", said, re.MULTILINE)
    )


def rotate(deployment: Deployment) -> Run:
    """Bring the secrets of the inventory to every host."""
    deployment.controller.write(GROUPS, deployment.variables())
    return deployment.controller.playbook("playbooks/rotate.yml").ok()


def test_ready_says_what_hinders(deployment: Deployment) -> None:
    databases = [deployment.fleet.hosts[name] for name in GROUPS["database"]]
    for database in databases:
        database.kill()
    try:
        host = deployment.fleet.hosts["out1"]
        until(
            lambda: "not ready" in host.run("systemctl status remails-outbound", check=False), 60, "outbound to notice"
        )
        said = json.loads(host.run(f"{REMAILS} ready outbound --json", check=False))
        assert [answer["ready"] for answer in said] == [False]
        assert said[0]["text"].startswith("database:")
    finally:
        for database in databases:
            database.start()
        for database in databases:
            database.wait()
    for name in HOSTS:
        deployment.remails("ready", "--wait", "60", host=name)
