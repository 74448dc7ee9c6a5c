"""The database cluster on the fleet: what was acknowledged survives its hosts, and its playbooks work while mail comes in."""

import contextlib
import time
from collections.abc import Iterator

import pytest
from deployment import GROUPS, Customer, Deployment, load
from hosts import until
from load import Load

pytestmark = [pytest.mark.fleet, pytest.mark.timeout(2400), pytest.mark.usefixtures("whole")]

RATE = 20
FAILOVER = 60  # seconds; measured: up to 31


@contextlib.contextmanager
def mail(deployment: Deployment, customers: dict[str, Customer], name: str) -> Iterator[list[Load]]:
    """Mail by both doors while something happens to the database, and goes on afterwards; then every mail is looked for."""
    deployment.cluster_whole()
    streams = [load(deployment, customers["other"], door, f"{name} {door}", rate=RATE) for door in ("inbound", "api")]
    with streams[0], streams[1]:
        _more(streams)
        yield streams
        _more(streams)
    for stream in streams:
        _found(deployment, stream)


def _more(streams: list[Load]) -> None:
    """Wait until mail has been taken for a second by each door."""
    wanted = [len(stream.subjects("accepted")) + RATE for stream in streams]
    until(
        lambda: all(len(s.subjects("accepted")) >= n for s, n in zip(streams, wanted, strict=True)),
        FAILOVER,
        "mail to be accepted",
    )


def _found(deployment: Deployment, stream: Load) -> None:
    """Row by row: what was acknowledged is there, once; all else that is there is what nobody got a sure answer for."""
    assert stream.given_up == set(), stream.reasons()
    accepted = {*stream.subjects("accepted")}
    # Where the answer to a commit is lost nobody knows whether it counts: such a client is told to come back, or told nothing.
    unknown = {a.subject for a in stream.attempts if a.result == "unanswered" or a.reason.startswith(("451", "503"))}
    rows = [row[0] for row in deployment.sql(f"SELECT subject FROM messages WHERE subject LIKE '{stream.name}%'")]
    assert accepted - {*rows} == set()
    assert {*rows} - accepted - unknown == set()
    assert len(rows) == len({*rows})
    deployment.wait_for(rows, stream.name, 240)
    # Twice only what was lost in the DATA window, and its timeline says so.
    assert deployment.doubled(stream) <= deployment.ambiguous(stream.name)


def test_its_members_speak_by_certificates_only(deployment: Deployment) -> None:
    host = deployment.fleet.hosts[deployment.member("Leader")]
    for port in (2379, 2380):
        said = host.run(f"(printf x; sleep 1) | openssl s_client -quiet -connect {host.ip}:{port} 2>&1; true")
        assert "alert" in said and "certificate" in said, said
    asked = "GET /leader HTTP/1.0\\r\\n\\r\\n", "POST /restart HTTP/1.0\\r\\nContent-Length: 2\\r\\n\\r\\n{}"
    speak = f"timeout 5 openssl s_client -quiet -connect {host.ip}:8008 2>/dev/null"
    codes = [host.run(f"(printf '{words}'; sleep 2) | {speak}; true").split()[1] for words in asked]
    assert codes == ["200", "403"]
    ssl = "SELECT count(*) FILTER (WHERE ssl), count(*) FROM pg_stat_ssl JOIN pg_stat_replication USING (pid)"
    assert deployment.sql(ssl) == [["2", "2"]]
    assert deployment.sql("SHOW synchronous_standby_names") == [[deployment.member("Sync Standby")]]


def test_the_primary_is_killed_while_mail_comes_in_and_goes_out(
    deployment: Deployment, customers: dict[str, Customer]
) -> None:
    """Nobody does anything, and what was answered with 250 or 201 is on the new primary."""
    with mail(deployment, customers, "killed"):
        before = deployment.leader()
        deployment.fleet.hosts[before].kill()
        until(lambda: deployment.leader() != before, FAILOVER, "another to lead")
    deployment.fleet.hosts[before].start()
    deployment.fleet.hosts[before].wait()
    deployment.cluster_whole(180)


@pytest.mark.long
def test_an_upgrade_goes_from_member_to_member(deployment: Deployment, customers: dict[str, Customer]) -> None:
    before = deployment.leader()
    with mail(deployment, customers, "upgrade"):
        deployment.controller.playbook("playbooks/upgrade-postgresql.yml", "-e", "upgrade_forced=true").ok()
        assert deployment.leader() != before
        standby = deployment.member("Sync Standby")
        deployment.controller.playbook("playbooks/switchover.yml").ok()
        assert deployment.leader() == standby
    picture = deployment.controller.playbook("playbooks/status.yml").ok()
    assert all(f"{name} " in picture.output for name in GROUPS["database"])
    assert "sync standby" in picture.output


@pytest.mark.long
def test_a_dead_member_is_replaced_by_a_bare_host(deployment: Deployment, customers: dict[str, Customer]) -> None:
    with mail(deployment, customers, "replace"):
        host = deployment.fleet.hosts[deployment.member("Sync Standby")]
        host.lose()
        deployment.controller.learn_keys()
        deployment.controller.playbook("playbooks/replace-member.yml", "-e", f"host={host.name}").ok()
        deployment.cluster_whole()
    assert deployment.site().ok().changed == dict.fromkeys(deployment.hosts, 0)


@pytest.mark.long
@pytest.mark.parametrize("dead", ["data1", "data2"])
def test_playbooks_go_on_around_a_dead_host(deployment: Deployment, customers: dict[str, Customer], dead: str) -> None:
    """The first of the group, whom others are asked through, and another one."""
    deployment.cluster_whole()
    if deployment.leader() == dead:
        deployment.controller.playbook("playbooks/switchover.yml").ok()
    with mail(deployment, customers, f"without {dead}"):
        host = deployment.fleet.hosts[dead]
        host.kill()
        until(lambda: len(deployment.members()) == len(GROUPS["database"]) - 1, 60, "the dead member to be given up")
        standby = deployment.member("Sync Standby")
        deployment.controller.playbook("playbooks/switchover.yml").ok()
        assert deployment.leader() == standby
        changed = deployment.controller.playbook("playbooks/site.yml", "--limit", f"!{dead}").ok().changed
        assert changed == dict.fromkeys(deployment.hosts.keys() - {dead}, 0)
        host.start()
        host.wait()
        deployment.cluster_whole()
    assert deployment.site().ok().changed == dict.fromkeys(deployment.hosts, 0)


def test_etcd_without_a_majority_stops_nobody(deployment: Deployment, customers: dict[str, Customer]) -> None:
    """As long as the members hear each other, the one that leads goes on (`failsafe_mode`)."""
    others = [deployment.fleet.hosts[name] for name in GROUPS["database"] if name != deployment.leader()]
    with mail(deployment, customers, "etcd") as streams:
        for host in others:
            host.run("systemctl stop etcd")
        try:
            end = time.monotonic() + 30  # longer than the right to lead lasts
            seen = [len(stream.subjects("accepted")) for stream in streams]
            until(lambda: time.monotonic() > end, 40, "the right to lead to end")
            assert all(len(s.subjects("accepted")) > n + 10 * RATE for s, n in zip(streams, seen, strict=True))
        finally:
            for host in others:
                host.run("systemctl start --no-block etcd")
    deployment.cluster_whole()
