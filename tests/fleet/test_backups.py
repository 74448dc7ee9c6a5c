"""Backups on the fleet: taken, looked at, damaged, lost; and the database back on new hosts, to a chosen second.

These tests come after all others (conftest.py), for the database is made anew.
"""

import json
import sys
import time

import pytest
from deployment import GROUPS, Customer, Deployment, load
from hosts import until

pytestmark = [pytest.mark.fleet, pytest.mark.long, pytest.mark.timeout(1800)]
COUNTS = "SELECT (SELECT count(*) FROM messages), (SELECT count(*) FROM message_bodies)"
REPOSITORY = "/var/lib/pgbackrest/backup/remails"


def job(deployment: Deployment, kind: str) -> str:
    """Run a job as its timer does; what it complained of."""
    watch = deployment.fleet.hosts["watch1"]
    watch.run(f"systemctl start remails-backup@{kind}", check=False, timeout=600)
    return str(json.loads(watch.run("remails-backup status"))[kind].get("says", ""))


def metric(deployment: Deployment, name: str, kind: str) -> int:
    """What the node exporter reads of a job."""
    text = deployment.fleet.hosts["watch1"].run(f"cat /var/lib/prometheus/node-exporter/backup-{kind}.prom")
    (value,) = (line.split()[1] for line in text.splitlines() if line.startswith(f"remails_backup_{name}{{"))
    return int(value)


def test_both_backups_are_taken_and_can_be_restored(deployment: Deployment, customers: dict[str, Customer]) -> None:
    with load(deployment, customers["other"], "api", "kept", rate=0, count=20):
        pass
    said = deployment.controller.playbook("playbooks/backup.yml", "-e", "drill=yes").ok().output
    assert "Both were restored and are whole" in said
    for kind in ("wal", "full", "independent", "drill"):
        success = metric(deployment, "last_success_timestamp_seconds", kind)
        assert success > max(time.time() - 1200, metric(deployment, "last_failure_timestamp_seconds", kind))


def test_a_damaged_and_a_lost_backup_are_noticed(deployment: Deployment) -> None:
    watch = deployment.fleet.hosts["watch1"]
    file = watch.run(f"find {REPOSITORY}/*F/pg_data/base -size +20k -name '*.zst' | head -1").strip()
    watch.run(f"cp -p {file} /root/kept && printf damage | dd of={file} bs=1 seek=2000 conv=notrunc status=none")
    assert "the repository is damaged" in job(deployment, "drill")
    assert metric(deployment, "last_failure_timestamp_seconds", "drill") > time.time() - 600
    watch.run(f"mv /root/kept {file}")
    folder = watch.run(f"ls -d {REPOSITORY}/*[FD] | tail -1").strip()
    watch.run(f"mv {folder} /root/lost")
    assert "its files are gone" in job(deployment, "drill")
    watch.run(f"mv /root/lost {folder}")
    assert job(deployment, "drill") == ""


def test_the_database_comes_back_on_new_hosts_to_a_chosen_second(
    deployment: Deployment, customers: dict[str, Customer]
) -> None:
    """What waited then is held, since it was sent after that; nothing is sent twice."""
    fleet, customer = deployment.fleet, customers["other"]
    refused = deployment.controller.playbook("playbooks/restore.yml")
    assert refused.status
    assert "-e restore_over=yes" in " ".join(refused.output.split())
    senders = [fleet.hosts[name] for name in GROUPS["outbound"]]
    for host in senders:
        host.run("systemctl stop remails-outbound")
    with load(deployment, customer, "api", "waits", rate=0, count=10) as waiting:
        pass
    ((moment,),) = deployment.sql("SELECT clock_timestamp()")
    ((messages, bodies),) = deployment.sql(COUNTS)
    for host in senders:
        host.run("systemctl start remails-outbound")
    deployment.wait_for(waiting.subjects("accepted"), waiting.name, 60)
    with load(deployment, customer, "api", "after", rate=0, count=5):
        pass
    assert job(deployment, "wal") == ""  # what was committed is in the repository now, and not after a minute
    for name in GROUPS["database"]:
        fleet.hosts[name].lose()
    deployment.controller.learn_keys()
    lost = time.monotonic()
    said = deployment.controller.playbook("playbooks/restore.yml", "-e", f"restore_to='{moment}'").ok().output
    assert "they may have been sent after that: 10 recipients." in " ".join(said.split())
    took = time.monotonic() - lost
    print(f"\n{messages} messages back to {moment}; ready {took:.0f} s after the loss", file=sys.__stderr__)
    assert deployment.sql(COUNTS) == [[messages, bodies]]
    assert deployment.sql("SELECT DISTINCT status, held_for FROM deliveries WHERE status <> 'delivered'") == [
        ["held", "operator"]
    ]
    deployment.ready()
    with load(deployment, customer, "api", "again", rate=0, count=5) as again:
        pass
    deployment.wait_for(again.subjects("accepted"), again.name, 60)
    assert deployment.doubled(waiting) == set()
    until(lambda: job(deployment, "wal") == "", 60, "the new database to archive")
