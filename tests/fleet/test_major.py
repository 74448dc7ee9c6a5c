"""The database moves to new hosts with a newer Debian while mail comes in. Last of all: the fleet is another one afterwards."""

import sys

import pytest
from deployment import GROUPS, Customer, Deployment, load

pytestmark = [pytest.mark.fleet, pytest.mark.long, pytest.mark.timeout(2400)]

NEW = {"database": ["data4", "data5", "data6"], "backups": ["watch2"]}
PATIENCE = 600  # seconds in which everything that was put off has been taken, and then everything has arrived


def test_the_database_moves_to_a_newer_debian(deployment: Deployment, customers: dict[str, Customer]) -> None:
    """Clients are told to come back for as long as it takes, and every mail of before and of meanwhile arrives."""
    fleet, before = deployment.fleet, GROUPS["database"]
    keeper = fleet.hosts[GROUPS["backups"][0]]
    for name in (name for names in NEW.values() for name in names if name not in fleet.hosts):
        fleet.add(name, "trixie").wait()
    count = "SELECT count(*) FROM messages"
    version, ((messages,),) = deployment.sql("SHOW server_version_num"), deployment.sql(count)
    controller = deployment.controller
    controller.learn_keys()
    controller.write(GROUPS | NEW | {"database_before": before}, deployment.variables())
    assert "The group database_before has hosts" in " ".join(controller.playbook("playbooks/site.yml").output.split())
    with (
        load(deployment, customers["other"], "inbound", "major smtp", rate=5, patience=PATIENCE) as smtp,
        load(deployment, customers["acme"], "api", "major rest", rate=5, patience=PATIENCE) as rest,
    ):
        moved = controller.playbook("playbooks/upgrade-postgresql-major.yml")
    moved.ok()
    GROUPS.update(NEW)
    assert deployment.sql("SHOW server_version_num") > version
    for stream in (smtp, rest):
        refused = [attempt for attempt in stream.attempts if attempt.result != "accepted"]
        assert [attempt.reason for attempt in refused if not attempt.retriable] == []
        silence = max((one.ended for one in refused), default=0.0) - min((one.began for one in refused), default=0.0)
        print(f"\n{stream.name}: {len(refused)} errors in {silence:.0f} s", file=sys.__stderr__)
        assert stream.given_up == set()
        deployment.wait_for(stream.subjects("accepted"), stream.name, PATIENCE)
        assert deployment.doubled(stream) <= deployment.ambiguous(stream.name)
    ((now,),) = deployment.sql(count)
    assert int(now) >= int(messages) + len(smtp.subjects("accepted")) + len(rest.subjects("accepted"))
    for name in before:
        assert fleet.hosts[name].run("systemctl is-active patroni etcd", check=False).split() == [
            "inactive",
            "inactive",
        ]
    controller.write(GROUPS, deployment.variables())
    deployment.site().ok()
    deployment.cluster_whole()
    controller.playbook("playbooks/backup.yml").ok()
    assert not keeper.run(
        "systemctl --no-legend list-timers --all 'remails-backup-*'; ls /var/lib/prometheus/node-exporter | grep backup",
        check=False,
    )
    assert set(deployment.site().ok().changed.values()) == {0}
