"""`inventory/single` as it is, but for addresses and secrets: one bare host of Debian 13 becomes a whole relay."""

import json
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


@pytest.fixture
def single(ground: Fleet, world: World) -> Iterator[Single]:
    """A host of its own, which is gone afterwards."""
    with ground.lending(**{NAME: "trixie"}) as (host,):
        world.publish_address(host.ip, "relay.example.com")
        yield Single(ground, world)


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
