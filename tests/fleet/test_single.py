"""`inventory/single` as it is, but for addresses and secrets: one bare host of Debian 13 becomes a whole relay.

Then it gets a kernel of its own, to lose its power for good and to run short of memory.
"""

import json
import shlex
import socket
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest
from click.testing import CliRunner
from controller import Controller, Run
from deployment import UNSIGNED, Deployment
from hosts import CONTROL, RESOLVER, Fleet, until
from issuer import Issuer
from load import Load
from machine import Machine
from world import World

from remails import cli

pytestmark = [pytest.mark.fleet, pytest.mark.long, pytest.mark.timeout(1800)]
NAME = "solo"


class Single(Deployment):
    """An installation on one host, which sends from its own address."""

    def __init__(self, fleet: Fleet, world: World) -> None:
        self.fleet, self.world = fleet, world
        self.controller = Controller(fleet, {}, {}, NAME)
        self.issuer = Issuer(fleet, world)
        self.secrets = self.controller.directory / "vault.yml"
        CliRunner().invoke(cli.main, ["keys", "vault", str(self.secrets)], catch_exceptions=False)

    def site(self) -> Run:
        """Everything, by `playbooks/site.yml`."""
        ip = self.fleet.hosts[NAME].ip
        said = {
            "ansible_host": ip,
            "firewall_control": [CONTROL],
            "resolver_forward": [RESOLVER],
            "resolver_unsigned": UNSIGNED,
            "certificates_authorities": self.issuer.authorities(),
            "remails_settings": {"api": {"url": "http://127.0.0.1:8000"}, **self.issuer.settings()},
            "ipagent_addresses": [{"ip": ip, "pool": "shared", "ptr_name": "relay.example.com"}],
        }
        extra = ("--extra-vars", f"@{self.secrets}", "--extra-vars", json.dumps(said))
        return self.controller.playbook("playbooks/site.yml", "--inventory", "inventory/single", *extra)

    def leader(self, limit: float = 60) -> str:
        """The only host."""
        return NAME

    def remails(self, *words: str, host: str = NAME) -> str:
        """Run an operator's command. Raises RuntimeError."""
        return super().remails(*words, host=host)


@pytest.fixture(scope="module")
def single(ground: Fleet, world: World) -> Iterator[Single]:
    """A host of its own, which is gone afterwards."""
    with ground.lending(**{NAME: "trixie"}) as (host,):
        world.publish_address(host.ip, "relay.example.com")
        yield Single(ground, world)


@pytest.fixture(scope="module")
def machine(single: Single) -> Machine:
    """The relay with a kernel of its own, ready."""
    single.site().ok()
    single.ready()
    machine = Machine.instead_of(single.fleet.hosts[NAME], single.fleet)
    single.fleet.hosts[NAME] = machine
    machine.start()
    machine.wait(300)
    single.remails("ready", "--wait", "120")
    return machine


def test_one_host_is_a_whole_relay(single: Single) -> None:
    single.site().ok()
    single.ready()
    assert single.site().ok().changed == {"relay": 0}
    customer = single.customer("Solo")
    host = single.fleet.hosts[NAME]
    # Its certificate is one of the authority, which saw on port 80 that the name is ours; nothing else is answered there.
    context = ssl.create_default_context(cadata=single.issuer.root())
    with single.fleet.network("world"), socket.create_connection((host.ip, 465), timeout=20) as sock:
        context.wrap_socket(sock, server_hostname="relay.example.com").close()
    with single.fleet.network("world"), pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"http://{host.ip}/login", timeout=20)
    with refused.value as answer:
        assert answer.code == 404
    with Load(single.fleet, "single", customer.smtp, [host.ip], rate=0, count=20) as stream:
        pass
    assert stream.given_up == set()
    single.wait_for(stream.subjects("accepted"), stream.name, 60)
    assert {record.peer_ip for record in single.world.mails(stream.name)} == {host.ip}
    host.reboot()
    single.remails("ready", "--wait", "90")
    # With every variable as it comes, nothing on the host fails: neither what serves nor what timers start.
    until(lambda: single.sql("SELECT now() - seen_at < interval '15 seconds' FROM storage") == [["t"]], 60, "its room")
    assert host.run("systemctl list-units --failed --plain --no-legend") == ""


def test_what_was_acknowledged_survives_a_power_cut(single: Single, machine: Machine) -> None:
    """Its page cache is lost, so a database that acknowledged what it had not flushed would be noticed."""
    customer = single.customer("Power")
    with Load(single.fleet, "power", customer.smtp, [machine.ip], rate=20, patience=0) as stream:
        until(lambda: len(stream.subjects("accepted")) > 100, 120, "mail to be taken")
        machine.run("echo flushed >/root/flushed; sync; echo cached >/root/cached")
        taken = len(stream.subjects("accepted"))
        until(lambda: len(stream.subjects("accepted")) > taken, 30, "mail to be taken")
        machine.kill()
    machine.start()
    machine.wait(300)
    assert machine.run("cat /root/flushed /root/cached 2>/dev/null", check=False) == "flushed\n"
    single.remails("ready", "--wait", "120")
    stored = {subject for (subject,) in single.sql("SELECT subject FROM messages WHERE subject LIKE 'power %'")}
    assert stream.lost(stored) == set()
    single.wait_for(stream.subjects("accepted"), stream.name, 300)
    assert single.doubled(stream) <= single.ambiguous(stream.name)


def test_a_service_with_too_much_memory_is_started_anew(single: Single, machine: Machine) -> None:
    """It neither crawls on nor takes the database along."""
    customer = single.customer("Memory")
    before = single.sql("SELECT pg_postmaster_start_time()")
    takes = "x = []\nwhile True: x.append(b'x' * 10_000_000)"
    machine.run(
        f"echo $$ >/sys/fs/cgroup/system.slice/remails-inbound.service/cgroup.procs; exec python3 -c {shlex.quote(takes)}",
        check=False,
        timeout=60,
    )
    until(
        lambda: machine.run("systemctl show --value --property NRestarts remails-inbound").strip() == "1",
        60,
        "its restart",
    )
    with Load(single.fleet, "memory", customer.smtp, [machine.ip], rate=0, count=5) as stream:
        pass
    assert stream.given_up == set()
    assert single.sql("SELECT pg_postmaster_start_time()") == before
