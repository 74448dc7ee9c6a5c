"""The files of an edge, read by the programs that they are for."""

import re
import subprocess
from pathlib import Path

import pytest
from edge.proxy import render
from playbooks.play import PROJECT, Ansible, program

from remails.api.rest import emails
from remails.mail import addresslist

BOTH = {"edge_addresses": ["192.0.2.101", "192.0.2.102/24", "2001:db8::101"]}


def checked(path: Path, certificate: str) -> str:
    """The settings that HAProxy has nothing against, with a certificate that is there."""
    text = path.read_text(encoding="utf-8").replace("/etc/remails/tls/relay.pem", certificate)
    servers = path.with_name("servers")
    servers.write_text("1\n", encoding="ascii")
    text = text.replace("/run/haproxy/servers", str(servers))
    # Who runs the tests may be nobody special.
    path.write_text(re.sub(r"    (?:chroot|user|group) .*\n", "", text), encoding="utf-8")
    done = subprocess.run(["haproxy", "-c", "-f", path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr, done.stderr
    return path.read_text(encoding="utf-8")


@pytest.mark.needs("haproxy")
def test_haproxy_takes_its_settings(ansible: Ansible, tmp_path: Path, certificate: tuple[str, str, str]) -> None:
    render(ansible, tmp_path, **BOTH)
    text = checked(tmp_path / "edge1.haproxy.cfg", certificate[2])
    assert re.findall(r"    bind (\S+)", text) == [
        *(":80", ":443", ":465", ":587", ":2525"),
        *("127.0.0.41:8405", "127.0.0.1:8406"),
    ]
    # A line of a macro in the first column would belong to no section.
    assert [
        line for line in text.splitlines() if re.match(r"(?!global|defaults|frontend|backend|#|    |$)", line)
    ] == []


@pytest.mark.needs("haproxy")
def test_ipv6_and_a_load_balancer_in_front(ansible: Ansible, tmp_path: Path, certificate: tuple[str, str, str]) -> None:
    facts = {"ansible_facts": {"default_ipv4": {"interface": "eth0"}, "all_ipv6_addresses": ["2001:db8::41"]}}
    render(ansible, tmp_path, facts, edge_proxy_trusted=["192.0.2.0/24", "2001:db8:1::/64"])
    text = checked(tmp_path / "edge2.haproxy.cfg", certificate[2])
    for port in (80, 443, 465, 587, 2525):
        assert re.search(rf"bind :::{port} v6only", text)
    expected = "tcp-request connection expect-proxy layer4 if { src 192.0.2.0/24 2001:db8:1::/64 }"
    assert (
        text.count(expected) == text.count("table submission unless { src 192.0.2.0/24 2001:db8:1::/64 }") == 3
    )  # each frontend
    assert "server app1 127.0.0.11:8000 check\n" in text


def test_each_address_prefers_another_edge(ansible: Ansible, tmp_path: Path) -> None:
    inner = {"device": "eth1", "ipv4": {"address": "127.0.0.41"}}
    facts = {"interfaces": ["lo", "eth0", "eth1"], "lo": {}, "eth0": {"ipv4": {"address": "192.0.2.41"}}, "eth1": inner}
    render(ansible, tmp_path, {"ansible_facts": facts | {"default_ipv4": {"interface": "eth0"}}}, **BOTH)
    for name, priorities in (("edge1", ["150", "140"]), ("edge2", ["140", "150"])):
        text = (tmp_path / f"{name}.keepalived.conf").read_text(encoding="utf-8")
        assert re.findall(r"    priority (\d+)", text) == priorities
        assert re.findall(r"virtual_router_id (\d+)", text) == ["51", "52"]
        # One that is not ready has less than any that is.
        (weight,) = re.findall(r"weight -(\d+)", text)
        assert 150 - int(weight) < 140
        assert re.findall(r"unicast_peer \{\s+(\S+)", text) == ["127.0.0.42" if name == "edge1" else "127.0.0.41"] * 2
        assert re.findall(r"    interface (\S+)", text) == ["eth1" if name == "edge1" else "eth0"] * 2  # facts of edge1
        assert re.findall(r"        192\.\S+ dev (\S+)", text) == ["eth0"] * 2
        # VRRP of IPv4 can speak for addresses of IPv6, but not in its packets, and keepalived wants one of IPv4 beside them.
        assert [re.findall(r" (\S+) dev eth0", block) for block in text.split("vrrp_instance")[1:]] == [
            ["192.0.2.101", "2001:db8::101"],
            ["192.0.2.102/24"],
        ]
        assert re.findall(r"virtual_ipaddress_excluded \{\s+(\S+)", text) == ["2001:db8::101"]


def test_an_edge_without_ipv4_has_its_addresses_on_the_interface_that_leads_out(
    ansible: Ansible, tmp_path: Path
) -> None:
    facts = {"default_ipv4": {}, "default_ipv6": {"interface": "eth7"}, "all_ipv6_addresses": ["2001:db8::41"]}
    said = {"ansible_facts": facts, "remails_address": "2001:db8::41"}
    render(ansible, tmp_path, said, edge_addresses=["2001:db8::101"])
    text = (tmp_path / "edge1.keepalived.conf").read_text(encoding="utf-8")
    assert "        2001:db8::101 dev eth7\n" in text


@pytest.mark.parametrize(
    ("ip", "interface"),
    [("10.0.0.41", "br-a"), ("10.0.0.42", "br-a"), ("2001:db8:0::41", "eth1"), ("10.0.0.43", "")],
)
def test_the_interface_of_an_address_is_found_by_any_that_it_has(ip: str, interface: str) -> None:
    facts = {
        "interfaces": ["lo", "br-a", "eth1"],
        "br_a": {"device": "br-a", "ipv4": {"address": "10.0.0.41"}, "ipv4_secondaries": [{"address": "10.0.0.42"}]},
        "eth1": {"device": "eth1", "ipv6": [{"address": "fe80::1"}, {"address": "2001:db8::41"}]},
    }
    assert program("filter_plugins/fleet.py").interface_of(facts, ip) == interface


def test_each_api_is_asked_at_its_own_port(ansible: Ansible, tmp_path: Path) -> None:
    render(ansible, tmp_path, api_listen="{{ '[::]:8080' if inventory_hostname == 'app2' else '0.0.0.0:8000' }}")
    text = (tmp_path / "edge1.haproxy.cfg").read_text(encoding="utf-8")
    servers = re.findall(r"    server (app\S+) (127\.\S+:\d+)", text)
    assert servers == 2 * [
        *(("app1", "127.0.0.11:8000"), ("app2", "127.0.0.12:8080")),
        *(("app1.anyway", "127.0.0.11:8000"), ("app2.anyway", "127.0.0.12:8080")),
    ]


def test_the_edge_takes_the_largest_body_that_the_api_takes() -> None:
    text = (PROJECT / "roles/edge/vars/main.yml").read_text(encoding="utf-8")
    assert f"__edge_largest_body: {max(emails.SEND_LIMIT, addresslist.MOST_BYTES)}\n" in text


def test_the_check_before_an_address_moves_asks_the_port_that_answers() -> None:
    """The script is a plain file, so its port stands there too."""
    (port,) = re.findall(r"ready: (\d+)", (PROJECT / "roles/edge/vars/main.yml").read_text(encoding="utf-8"))
    assert f"/dev/tcp/127.0.0.1/{port} " in (PROJECT / "roles/edge/files/edge-ready").read_text(encoding="utf-8")
