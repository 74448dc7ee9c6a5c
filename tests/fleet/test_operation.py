"""Day 2 on the fleet: new versions under load, broken ones, hosts drained and brought back, new secrets, the picture of it all."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from controller import PROJECT, Run
from deployment import GROUPS, REMAILS, SERVICES, Customer, Deployment, check, load
from hosts import until

from remails import vault

pytestmark = [pytest.mark.fleet, pytest.mark.long, pytest.mark.timeout(2400), pytest.mark.usefixtures("whole")]

HOSTS = sorted({name for service in SERVICES for name in GROUPS[service]})
RATE = 50


def current(deployment: Deployment) -> dict[str, str]:
    """The release of each host."""
    return {name: _link(deployment, name, "current") for name in HOSTS}


def _link(deployment: Deployment, name: str, link: str) -> str:
    return deployment.fleet.hosts[name].run(f"basename $(readlink /opt/remails/{link})").strip()


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
    before, since = current(deployment), started(deployment)
    change(checkout / "remails/inbound/service.py", "        server.listen(passed)\n", "        raise SystemExit(1)\n")
    run = deployment.controller.playbook("playbooks/deploy.yml")
    assert run.status != 0
    (failed,) = [name for name, counts in run.recap.items() if counts["failed"]]
    assert failed in GROUPS["inbound"]
    assert f"{failed} did not get ready with release" in run.output
    assert f"It runs {before[failed]} again" in " ".join(run.output.split())
    assert current(deployment) == before
    assert {name for name, text in started(deployment).items() if text != since[name]} == {failed}
    deployment.remails("ready", host=failed)


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


def test_secrets_are_rotated_without_losing_mail(deployment: Deployment, customers: dict[str, Customer]) -> None:
    credentials = deployment.fleet.directory / "credentials"
    encryption, password = credentials / "encryption_keys", credentials / "database_password"
    old = encryption.read_text(encoding="ascii").split()[0]
    name = f"fleet{len(encryption.read_text(encoding='ascii'))}"
    encryption.write_text(f"{vault.new_encryption_key(name)}\n{old}\n", encoding="ascii")
    password.write_text(f"{vault.new_secret()}\n{password.read_text(encoding='ascii').split()[0]}\n", encoding="ascii")
    with load(deployment, customers["acme"], "inbound", "rotate", rate=10) as stream:
        _rotate(deployment)
        sealed = {row["name"]: row["sealed"] for row in json.loads(deployment.remails("keys", "list", "--json"))}
        assert sealed[name] > 0 and sealed[old.partition(":")[0]] == 0
        # The old ones go.
        for path in (encryption, password):
            path.write_text(path.read_text(encoding="ascii").split()[0] + "\n", encoding="ascii")
        _rotate(deployment)
    assert [row["name"] for row in deployment.table("keys", "list")] == [name]
    assert {
        reason for reason in stream.reasons() if re.search(r": [45]\d\d ", reason) and ": 421 " not in reason
    } == set()
    check(deployment, stream, 180)


def _rotate(deployment: Deployment) -> Run:
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
