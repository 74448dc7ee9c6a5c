"""The inventories that a provider's API makes, against a fake of UpCloud and recorded answers of Hetzner Cloud."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from fakes.upcloud import UpCloud
from play import Ansible

GROUPS = {"remails-outbound": "", "remails-ipagent": ""}


def test_upcloud(ansible: Ansible) -> None:
    """An address that floats is never how Ansible comes to a host, wherever it stands in the list."""
    cloud = UpCloud()
    cloud.world.tokens = ["ucat_x"]
    out = cloud.add_server("out1", "de:ad:00:00:00:01", ip="192.0.2.1", labels=GROUPS)
    for number in range(1, 5):
        cloud.add_address(f"203.0.113.{number}", mac=out.mac)
    cloud.add_server("app1", "de:ad:00:00:00:02", ip="192.0.2.2", labels={"remails-api": ""})
    cloud.add_server("other", "de:ad:00:00:00:03", ip="192.0.2.3", labels={"team": "another"})
    with cloud.serving() as url:
        done = ansible(
            *("ansible-inventory", "--inventory", "inventory/upcloud", "--list"),
            UPCLOUD_API_ROOT=url,
            UPCLOUD_TOKEN="ucat_x",
        )
    assert done.returncode == 0, done.stdout
    found = json.loads(done.stdout)
    assert found["outbound"]["hosts"] == found["ipagent"]["hosts"] == ["out1"]
    assert found["api"]["hosts"] == ["app1"]
    hosts = found["_meta"]["hostvars"]
    assert sorted(hosts) == ["app1", "out1"]
    assert (hosts["out1"]["ansible_host"], hosts["out1"]["remails_address"]) == ("192.0.2.1", "192.0.2.1")
    assert hosts["out1"]["remails_host_settings"]["ipagent"] == {
        "provider": "upcloud",
        "server_ref": out.uuid,
        "zone": "nl-ams1",
    }
    assert {call.method for call in cloud.calls} == {"GET"}


def server(number: int, name: str, labels: dict[str, str], *, private: str = "") -> dict[str, Any]:
    """A server as Hetzner Cloud describes it, as far as we read it."""
    return {
        "id": number,
        "name": name,
        "labels": labels,
        "public_net": {"ipv4": {"ip": f"192.0.2.{number}"}, "ipv6": None, "floating_ips": [478]},
        "private_net": [{"network": 4711, "ip": private}] if private else [],
        "location": {"name": "fsn1", "network_zone": "eu-central"},
    }


@pytest.fixture
def hetzner() -> Iterator[str]:
    """The URL of two pages of servers."""
    pages = [
        ([server(1, "out1", GROUPS, private="10.0.0.1")], 2),
        ([server(2, "app1", {"remails-api": ""}), server(3, "other", {})], None),
    ]

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            allowed = self.headers["Authorization"] == "Bearer token"
            found, following = pages[int(self.path.rpartition("page=")[2]) - 1]
            answer = {"servers": found, "meta": {"pagination": {"next_page": following}}}
            self.send_response(200 if allowed else 401)
            self.end_headers()
            self.wfile.write(json.dumps(answer).encode())

        def log_message(self, *args: Any) -> None:
            """Nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        threading.Thread(target=http.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()


def test_hetzner(ansible: Ansible, hetzner: str) -> None:
    done = ansible(
        *("ansible-inventory", "--inventory", "inventory/hetzner", "--list"),
        HCLOUD_ENDPOINT=hetzner,
        HCLOUD_TOKEN="token",
    )
    assert done.returncode == 0, done.stdout
    found = json.loads(done.stdout)
    assert found["outbound"]["hosts"] == found["ipagent"]["hosts"] == ["out1"]
    hosts = found["_meta"]["hostvars"]
    assert sorted(hosts) == ["app1", "out1"]
    assert (hosts["out1"]["ansible_host"], hosts["out1"]["remails_address"]) == ("192.0.2.1", "10.0.0.1")
    assert (hosts["app1"]["ansible_host"], hosts["app1"]["remails_address"]) == ("192.0.2.2", "192.0.2.2")
    assert hosts["out1"]["remails_host_settings"]["ipagent"] == {
        "provider": "hetzner",
        "server_ref": "1",
        "zone": "eu-central",
    }


@pytest.mark.parametrize(("name", "variable"), [("upcloud", "UPCLOUD_TOKEN"), ("hetzner", "HCLOUD_TOKEN")])
def test_without_a_token_it_is_no_empty_fleet(ansible: Ansible, name: str, variable: str) -> None:
    done = ansible("ansible-inventory", "--inventory", f"inventory/{name}", "--list", **{variable: ""})
    assert done.returncode != 0
