"""Backups on the fleet: taken, looked at, damaged, lost; and the database back on new hosts, to a chosen second.

These tests come after all others (conftest.py), for the database is made anew.
"""

import json
import sys
import time
from datetime import UTC, datetime

import pytest
from deployment import COPIES, GROUPS, Customer, Deployment, load
from hosts import until

pytestmark = [pytest.mark.fleet, pytest.mark.long, pytest.mark.timeout(1800)]
COUNTS = "SELECT (SELECT count(*) FROM messages), (SELECT count(*) FROM message_bodies)"
REPOSITORY = "/var/lib/pgbackrest/backup/remails"
COPY_STATE = "/var/lib/remails-backups/state/independent.json"


def job(deployment: Deployment, kind: str) -> str:
    """Run a job as its timer does; what it complained of."""
    watch = deployment.fleet.hosts["watch1"]
    watch.run(f"systemctl start remails-backup@{kind}", check=False, timeout=600)
    return str(json.loads(watch.run("remails-backup status"))[kind].get("says", ""))


def metric(deployment: Deployment, name: str, kind: str) -> float:
    """What the node exporter reads of a job."""
    text = deployment.fleet.hosts["watch1"].run(f"cat /var/lib/prometheus/node-exporter/backup-{kind}.prom")
    (value,) = (line.split()[1] for line in text.splitlines() if line.startswith(f"remails_backup_{name}{{"))
    return float(value)


def test_both_backups_are_taken_and_can_be_restored(deployment: Deployment, customers: dict[str, Customer]) -> None:
    with load(deployment, customers["other"], "api", "kept", rate=0, count=20):
        pass
    said = deployment.controller.playbook("playbooks/backup.yml", "-e", "drill=yes").ok().output
    assert "Both were restored and are whole" in said
    for kind in ("wal", "full", "independent", "drill"):
        success = metric(deployment, "last_success_timestamp_seconds", kind)
        assert success > max(time.time() - 1200, metric(deployment, "last_failure_timestamp_seconds", kind))


def test_a_drill_before_the_first_independent_copy_is_well(deployment: Deployment) -> None:
    watch, place = deployment.fleet.hosts["watch1"], deployment.fleet.hosts["place1"]
    watch.run(f"mv {COPY_STATE} /root/kept")
    place.run(f"mv {COPIES}/remails {COPIES}/kept")
    try:
        assert job(deployment, "drill") == ""
    finally:
        watch.run(f"mv /root/kept {COPY_STATE}")
        place.run(f"mv {COPIES}/kept {COPIES}/remails")


@pytest.mark.parametrize(
    ("find", "harm", "named"),
    [
        (
            f"find {REPOSITORY}/*F/pg_data/base -size +20k -name '*.zst' | head -1",
            "cp -rp {0} /root/kept && printf damage | dd of={0} bs=1 seek=2000 conv=notrunc status=none",
            "the repository is damaged",
        ),
        (f"ls -d {REPOSITORY}/*[FD] | tail -1", "mv {0} /root/kept", "its files are gone"),
    ],
    ids=["damaged", "lost"],
)
def test_a_backup_that_is_not_whole_is_noticed(deployment: Deployment, find: str, harm: str, named: str) -> None:
    """The drill says what is wrong, and whoever is on call gets a mail; another one when it is mended."""
    watch, since = deployment.fleet.hosts["watch1"], datetime.now(UTC)
    victim = watch.run(find).strip()
    watch.run(harm.format(victim))
    try:
        assert named in job(deployment, "drill")
        assert metric(deployment, "last_failure_timestamp_seconds", "drill") > time.time() - 600
        deployment.paged("DrillFailed watch1", since)
    finally:
        watch.run(f"rm -rf {victim} && mv /root/kept {victim}")
    assert job(deployment, "drill") == ""
    until(lambda: deployment.world.mails("over: DrillFailed watch1", since), 300, "a mail that tells of the end")


class Moment:
    """A moment that a database is brought back to: ten mails waited then, and have been sent since; others came after it.

    Attributes:
        at: by the clock of the database, as PostgreSQL writes it.
        counts: the messages and contents of then.
        waiting: the mails that waited.
    """

    def __init__(self, deployment: Deployment, customer: Customer, copy: str) -> None:
        self._deployment, self._customer = deployment, customer
        senders = [deployment.fleet.hosts[name] for name in GROUPS["outbound"]]
        for host in senders:
            host.run("systemctl stop remails-outbound")
        with load(deployment, customer, "api", "waits", rate=0, count=10) as self.waiting:
            pass
        ((self.at,),) = deployment.sql("SELECT clock_timestamp()")
        (self.counts,) = deployment.sql(COUNTS)
        assert job(deployment, "wal") == ""  # what was committed is in the repository now, and not after a minute
        assert copy == "repository" or job(deployment, copy) == ""
        for host in senders:
            host.run("systemctl start remails-outbound")
        deployment.wait_for(self.waiting.subjects("accepted"), self.waiting.name, 60)
        with load(deployment, customer, "api", "after", rate=0, count=5):
            pass
        assert job(deployment, "wal") == ""

    def is_back(self, said: str) -> None:
        """All of then is here and nothing of later; what may have been sent is held until it is let go, and new mail is sent."""
        deployment = self._deployment
        assert "they may have been sent after that: 10 recipients." in " ".join(said.split())
        assert deployment.sql(COUNTS) == [self.counts]
        states = "SELECT DISTINCT status, held_for FROM deliveries WHERE status <> 'delivered'"
        assert deployment.sql(states) == [["held", "operator"]]
        deployment.ready()
        deployment.cluster_whole()
        for name in {*GROUPS["inbound"], *GROUPS["edge"]}:
            deployment.fleet.hosts[name].run("! systemctl is-failed remails-certificates")
        with load(deployment, self._customer, "api", "again", rate=0, count=5) as again:
            pass
        deployment.wait_for(again.subjects("accepted"), again.name, 60)
        assert deployment.doubled(self.waiting) == set()
        deployment.remails("queue", "release", "--all")  # an operator who would rather have doubles
        assert deployment.doubled(self.waiting) == {*self.waiting.subjects("accepted")}
        until(lambda: job(deployment, "wal") == "", 60, "the new database to archive")


def test_the_database_comes_back_on_new_hosts_to_a_chosen_second(
    deployment: Deployment, customers: dict[str, Customer]
) -> None:
    """Every host of it is lost with its disk. What restores it leaves nothing for others to set up."""
    refused = deployment.controller.playbook("playbooks/restore.yml")
    assert refused.status
    assert "-e restore_over=yes" in " ".join(refused.output.split())
    moment = Moment(deployment, customers["other"], "repository")
    for name in GROUPS["database"]:
        deployment.fleet.hosts[name].lose()
    deployment.controller.learn_keys()
    lost = time.monotonic()
    said = deployment.controller.playbook("playbooks/restore.yml", "-e", f"restore_to='{moment.at}'").ok().output
    took = time.monotonic() - lost
    print(f"\n{moment.counts[0]} messages back to {moment.at}; ready {took:.0f} s after the loss", file=sys.__stderr__)
    moment.is_back(said)
    assert deployment.site().ok().changed == dict.fromkeys(deployment.hosts, 0)


@pytest.mark.parametrize("copy", ["repository", "independent"])
def test_a_database_that_lives_is_written_over_if_that_is_said(
    deployment: Deployment, customers: dict[str, Customer], copy: str
) -> None:
    """From either place; the independent one has what there was when the copy was made."""
    moment = Moment(deployment, customers["other"], copy)
    to = [f"restore_to='{moment.at}'"] if copy == "repository" else []
    words = [word for value in ("restore_over=yes", f"restore_from={copy}", *to) for word in ("-e", value)]
    began = time.monotonic()
    said = deployment.controller.playbook("playbooks/restore.yml", *words).ok().output
    print(f"\n{moment.counts[0]} messages back from {copy}: {time.monotonic() - began:.0f} s", file=sys.__stderr__)
    moment.is_back(said)
