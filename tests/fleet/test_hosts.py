"""The test network itself: that hosts are hosts, that cables and the provider's filter work, and that nothing gets out."""

import json
import subprocess
import time
from pathlib import Path

import pytest
from controller import Controller
from hosts import BYOIP, CONTROL, MX, Fleet, until
from image import run
from world import World

pytestmark = [pytest.mark.fleet, pytest.mark.timeout(600)]
ADDRESS = f"{BYOIP}.250"  # of no pool
HELLO = """
- name: Greet
  hosts: greeted
  tasks:
    - name: Greeting
      ansible.builtin.copy: {dest: /root/greeting, content: "{{ greeting }}", mode: "0644"}
"""


def connects(fleet: Fleet, end: str, source: str, target: str) -> bool:
    """Whether a TCP connection from `source` reaches the port 22 or 25 of `target`."""
    port = 25 if target == MX else 22
    script = f"import socket; socket.create_connection(('{target}', {port}), 1, ('{source}', 0))"
    command = [*fleet.inside(end), "python3", "-c", script]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def test_hosts_have_identities_of_their_own(fleet: Fleet) -> None:
    ids = {host.run("cat /etc/machine-id /etc/ssh/ssh_host_ed25519_key.pub") for host in fleet.hosts.values()}
    assert len(ids) == len(fleet.hosts)


def test_a_host_cannot_touch_the_machine(fleet: Fleet, host: str) -> None:
    """No CAP_SYS_TIME (25), SYS_MODULE (16), SYS_RAWIO (17); the real calls are never tried here."""
    capabilities = int(fleet.hosts[host].run("sed -n 's/^CapEff:.//p' /proc/self/status"), 16)
    assert not capabilities & (1 << 25 | 1 << 16 | 1 << 17)
    assert capabilities & 1 << 12  # CAP_NET_ADMIN: its network is its own


def test_nothing_leaves_the_network(fleet: Fleet, host: str) -> None:
    links = json.loads(run("ip", "-json", "-4", "addr"))
    real = [address["local"] for link in links if link["ifname"] != "lo" for address in link["addr_info"]]
    assert real
    for end in ("world", "control"):
        assert [link["ifname"] for link in json.loads(run(*fleet.inside(end), "ip", "-json", "link"))] == ["lo", "eth0"]
    for address in real:
        assert "unreachable" in run(*fleet.inside("world"), "sh", "-c", f"ip route get {address} 2>&1; true")


def test_an_address_works_at_its_owner_only(fleet: Fleet, world: World) -> None:
    out1, out2 = fleet.hosts["out1"], fleet.hosts["out2"]
    for host in (out1, out2):
        host.run(f"ip addr add {ADDRESS}/32 dev eth0")
    try:
        for owner, other in ((out1, out2), (out2, out1)):
            fleet.own(ADDRESS, owner)
            assert fleet.owner(ADDRESS) == owner.name
            run(*fleet.inside("world"), "ip", "neigh", "flush", "all")
            assert connects(fleet, owner.name, ADDRESS, MX)
            assert not connects(fleet, other.name, ADDRESS, MX)
        fleet.own(ADDRESS, None)
        assert fleet.owner(ADDRESS) is None
        assert not connects(fleet, "out2", ADDRESS, MX)
    finally:
        for host in (out1, out2):
            host.run(f"ip addr del {ADDRESS}/32 dev eth0")


def test_a_host_that_loses_power_comes_back_without_the_addresses_it_had(fleet: Fleet, spare: str) -> None:
    host = fleet.hosts[spare]
    host.run(f"ip addr add {ADDRESS}/32 dev eth0 && touch /root/kept && sync")
    host.kill()
    assert host.leader() is None
    host.start()
    assert host.wait() == "running"
    assert ADDRESS not in host.run("ip addr")
    host.run("rm /root/kept")


def test_a_host_reboots_itself(fleet: Fleet, spare: str) -> None:
    fleet.hosts[spare].reboot()
    assert fleet.hosts[spare].wait() == "running"


def test_a_host_shuts_down_in_good_order(fleet: Fleet, spare: str) -> None:
    host = fleet.hosts[spare]
    host.stop()
    host.start()
    assert host.wait() == "running"


def test_a_cable_that_is_cut_and_put_back(fleet: Fleet, spare: str) -> None:
    host = fleet.hosts[spare]
    assert connects(fleet, "control", CONTROL, host.ip)
    host.cut()
    assert not connects(fleet, "control", CONTROL, host.ip)
    host.heal()
    until(lambda: connects(fleet, "control", CONTROL, host.ip), 10, "the cable to carry again")


def test_ansible_reaches_every_host(fleet: Fleet, tmp_path: Path) -> None:
    playbook = tmp_path / "hello.yml"
    playbook.write_text(HELLO, encoding="utf-8")
    greeting = f"hello {time.time()}"
    controller = Controller(fleet, {"greeted": list(fleet.hosts)}, {"greeting": greeting}, "greeter")
    assert controller.playbook(playbook).ok().changed == dict.fromkeys(fleet.hosts, 1)
    assert controller.playbook(playbook).ok().changed == dict.fromkeys(fleet.hosts, 0)
    assert {host.run("cat /root/greeting") for host in fleet.hosts.values()} == {greeting}
