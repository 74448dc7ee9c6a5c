"""A database of one host becomes a cluster of three, lives with a dead member, and comes back from one that is left. On four hosts."""

from collections.abc import Iterator, Mapping

import pytest
from click.testing import CliRunner
from controller import Controller, Run
from deployment import SERVICES, UNSIGNED, Customer, Deployment, check
from hosts import CONTROL, RESOLVER, Fleet, until
from load import Load
from world import World

from remails import cli

pytestmark = [pytest.mark.fleet, pytest.mark.long, pytest.mark.timeout(3600)]

APP, DATA = "solo1", ["data1", "data2", "data3"]


class Growing(Deployment):
    """A whole relay on one host, with the repository of the backups, and its database on others."""

    def __init__(self, fleet: Fleet, world: World) -> None:
        self.fleet, self.world = fleet, world
        ip = fleet.hosts[APP].ip
        world.publish_address(ip, "out.growing.test")
        self._said = {
            "firewall_control": [CONTROL],
            "resolver_forward": [RESOLVER],
            "resolver_unsigned": UNSIGNED,
            "remails_hostname": "relay.growing.test",
            "postgresql_memory": 1024,
            "postgresql_reserve": 512,
            "postgresql_ballast": 16,
            "backups_independent_repository": "none",
            "remails_settings": {"api": {"url": "http://127.0.0.1:8000"}},
            "ipagent_pools": [{"name": "shared", "default": True}],
            "ipagent_addresses": [{"ip": ip, "pool": "shared", "ptr_name": "out.growing.test"}],
        }
        self.controller = Controller(fleet, self._groups(1), self._said, "growing")
        self._secrets = self.controller.directory / "vault.yml"
        CliRunner().invoke(cli.main, ["keys", "vault", str(self._secrets)], catch_exceptions=False)
        self._lead = DATA[0]

    def _groups(self, size: int) -> Mapping[str, list[str]]:
        return {group: [APP] for group in (*SERVICES, "backups")} | {"database": DATA[:size]}

    def grow(self) -> None:
        """From now on the inventory has a cluster."""
        self.controller.write(self._groups(3), self._said)
        self._lead = ""

    def playbook(self, name: str, *arguments: str) -> Run:
        """Run one to its end."""
        return self.controller.playbook(f"playbooks/{name}.yml", "--extra-vars", f"@{self._secrets}", *arguments)

    def site(self) -> Run:
        """Everything, by `playbooks/site.yml`."""
        return self.playbook("site")

    def leader(self, limit: float = 60) -> str:
        """The host that leads the database."""
        return self._lead or super().leader(limit)

    def remails(self, *words: str, host: str = APP) -> str:
        """Run an operator's command. Raises RuntimeError."""
        return super().remails(*words, host=host)

    def messages(self) -> int:
        """How many there are."""
        return int(self.sql("SELECT count(*) FROM messages")[0][0])

    def bare(self, name: str) -> None:
        """A new host in the place of a dead one."""
        self.fleet.hosts[name].lose()
        self.controller.learn_keys()


@pytest.fixture
def growing(ground: Fleet, world: World) -> Iterator[Growing]:
    """Four hosts of its own, which are gone afterwards."""
    with ground.lending(**dict.fromkeys((APP, *DATA), "bookworm")):
        yield Growing(ground, world)


def mail(growing: Growing, customer: Customer, name: str) -> None:
    """Mail is taken, kept and delivered."""
    ip = growing.fleet.hosts[APP].ip
    before = growing.messages()
    with Load(growing.fleet, name, customer.smtp, [ip], rate=0, count=20) as stream:
        pass
    check(growing, stream, 120)
    assert growing.messages() == before + 20


def test_one_host_becomes_three_and_is_left_by_two(growing: Growing) -> None:
    growing.site().ok()
    growing.ready()
    customer = growing.customer("Growing")
    mail(growing, customer, "single")

    # docs/operations.md, "The database cluster": two more hosts after its own, and a site.yml.
    growing.grow()
    growing.site().ok()
    growing.cluster_whole()
    mail(growing, customer, "cluster")
    assert set(growing.site().ok().changed.values()) == {0}

    # "Lose a host": any one is dead, and playbooks go on without it.
    dead = next(name for name in DATA if name != growing.leader())
    growing.fleet.hosts[dead].kill()
    until(lambda: len(growing.members()) == 2, 60, "the dead member to be given up")
    growing.playbook("site", "--limit", f"!{dead}").ok()
    led = growing.leader()
    growing.playbook("switchover").ok()
    assert growing.leader() not in (led, dead)
    growing.fleet.hosts[dead].start()
    growing.fleet.hosts[dead].wait()
    growing.cluster_whole()
    assert set(growing.site().ok().changed.values()) == {0}
    mail(growing, customer, "without one")

    # "No member leads": two are gone for good, and the last one had led.
    last = growing.leader()
    gone = [name for name in DATA if name != last]
    kept = growing.messages()
    for name in gone:
        growing.fleet.hosts[name].kill()
    host = growing.fleet.hosts[last]
    host.run("systemctl stop patroni etcd")
    host.run("echo ETCD_FORCE_NEW_CLUSTER=true >> /etc/default/etcd")
    host.run("systemctl start etcd && sed -i /ETCD_FORCE_NEW_CLUSTER/d /etc/default/etcd")
    host.run("systemctl start patroni")
    assert growing.leader(90) == last
    for at, name in enumerate(gone):
        growing.bare(name)
        still_gone = [f"!{other}" for other in gone[at + 1 :]]
        growing.playbook("replace-member", "-e", f"host={name}", *(["--limit", *still_gone] if still_gone else [])).ok()
    growing.cluster_whole()
    assert growing.messages() == kept
    growing.site().ok()
    mail(growing, customer, "again")
