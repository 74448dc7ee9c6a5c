"""The fake is like the real one, as far as requests and answers of it were recorded; and its faults are what they say."""

import time
from collections.abc import Iterator
from typing import Any

import pytest
import requests
from fakes.upcloud import UpCloud

A, B = "da:45:c4:5c:21:63", "da:45:c4:5c:21:64"
IP = "203.0.113.7"


@pytest.fixture
def moves() -> list[tuple[str, str | None]]:
    """What the network was told."""
    return []


@pytest.fixture
def cloud(moves: list[tuple[str, str | None]]) -> UpCloud:
    """Two servers and a detached floating address."""
    cloud = UpCloud(own=lambda ip, server: moves.append((ip, server)))
    cloud.add_server("out1", A, ip="198.51.100.11", uuid="uuid-1")
    cloud.add_server("out2", B, ip="198.51.100.12", uuid="uuid-2")
    cloud.add_address(IP)
    moves.clear()
    return cloud


@pytest.fixture
def url(cloud: UpCloud) -> Iterator[str]:
    """Where it is."""
    with cloud.serving() as url:
        yield url


def _patch(url: str, **body: Any) -> requests.Response:
    return requests.patch(f"{url}/ip_address/{IP}", json={"ip_address": body}, timeout=5)


def test_a_move_is_one_request_and_takes_the_address_from_whoever_has_it(
    cloud: UpCloud, url: str, moves: list[tuple[str, str | None]]
) -> None:
    assert _patch(url, mac=A).status_code == 202
    answer = _patch(url, mac=B)
    assert (answer.status_code, answer.headers["Content-Type"]) == (202, "application/json; charset=UTF-8")
    said = answer.json()["ip_address"]
    assert (said["floating"], said["mac"], said["server"]) == ("yes", B, "uuid-2")
    assert moves == [(IP, "out1"), (IP, "out2")]
    listed = requests.get(f"{url}/ip_address", timeout=5).json()["ip_addresses"]["ip_address"]
    by_ip = {one["address"]: one for one in listed}
    assert "floating" not in by_ip["198.51.100.11"], "absent means no"
    assert by_ip[IP]["server"] == "uuid-2"


def test_a_detached_address_has_neither_mac_nor_server(url: str) -> None:
    _patch(url, mac=A)
    said = _patch(url, mac=None).json()["ip_address"]
    assert not said.keys() & {"mac", "server"}


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"mac": "nonsense"}, 400, "MAC_INVALID"),
        ({"mac": "da:45:c4:5c:21:99"}, 404, "INTERFACE_NOT_FOUND"),
        ({"colour": "red"}, 400, "UNKNOWN_ATTRIBUTE"),
    ],
)
def test_refusals(url: str, body: dict[str, Any], status: int, code: str) -> None:
    answer = _patch(url, **body)
    assert (answer.status_code, answer.json()["error"]["error_code"]) == (status, code)


def test_only_floating_addresses_move_and_a_server_has_at_most_five(cloud: UpCloud, url: str) -> None:
    ordinary = requests.patch(f"{url}/ip_address/198.51.100.11", json={"ip_address": {"mac": B}}, timeout=5)
    assert (ordinary.status_code, ordinary.json()["error"]["error_code"]) == (409, "FLOATING_IP_NOT_AVAILABLE")
    for number in range(20, 24):
        cloud.add_address(f"203.0.113.{number}", mac=A)
    assert _patch(url, mac=A).json()["error"]["error_code"] == "IP_ADDRESS_LIMIT_REACHED"


def test_without_a_known_token_nothing_is_told(cloud: UpCloud, url: str) -> None:
    cloud.world.tokens = ["ucat_right", "user:right"]
    codes = [
        requests.get(f"{url}/account", headers=headers, auth=auth, timeout=5).status_code
        for headers, auth in (
            ({"Authorization": "Bearer ucat_right"}, None),
            ({"Authorization": "Bearer ucat_wrong"}, None),
            ({}, ("user", "right")),
            ({}, ("user", "wrong")),
        )
    ]
    assert codes == [200, 401, 200, 401]


def test_a_fault_hits_as_often_as_it_says_and_the_effect_is_there_or_not(cloud: UpCloud, url: str) -> None:
    cloud.fail("status", method="PATCH", status=429, retry_after="7", times=1)
    cloud.fail("apply_then_fail", method="PATCH", after=2, times=1)
    answers = [_patch(url, mac=A), _patch(url, mac=A), _patch(url, mac=B)]
    assert [answer.status_code for answer in answers] == [429, 202, 500]
    assert answers[0].headers["Retry-After"] == "7"
    assert cloud.owners(cloud.world)[IP] == "out2", "done, although it said 500"
    assert [(call.method, call.status) for call in cloud.calls] == [("PATCH", 429), ("PATCH", 202), ("PATCH", 500)]


def test_damage_on_the_way(cloud: UpCloud, url: str) -> None:
    cloud.fail("apply_then_reset", method="PATCH", times=1)
    with pytest.raises(requests.ConnectionError):
        _patch(url, mac=A)
    assert cloud.owners(cloud.world)[IP] == "out1"
    cloud.fail("truncated", times=1)
    with pytest.raises(ValueError, match="line 1"):
        requests.get(f"{url}/ip_address", timeout=5).json()


def test_reads_may_be_behind(cloud: UpCloud, url: str) -> None:
    clock = [100.0]
    cloud.now = lambda: clock[0]
    cloud.changed()
    clock[0] += 30
    _patch(url, mac=A)
    clock[0] += 5
    read = lambda: requests.get(f"{url}/ip_address/{IP}", timeout=5).json()["ip_address"].get("server")  # noqa: E731
    cloud.staleness = 20
    assert read() is None
    cloud.staleness = 4
    assert read() == "uuid-1"


def test_a_limit_on_the_rate(cloud: UpCloud, url: str) -> None:
    cloud.limit = (2, 60.0)
    codes = [requests.get(f"{url}/zone", timeout=5).status_code for _ in range(3)]
    assert codes == [200, 200, 429]


def test_programs_elsewhere_have_the_same_faults(cloud: UpCloud, url: str) -> None:
    control = url.removesuffix("/1.3") + "/__fake__"
    rule = {"do": "status", "status": 503, "html": True, "path": "/zone", "times": 1}
    assert requests.post(f"{control}/faults", json=[rule], timeout=5).status_code == 204
    assert requests.get(f"{url}/zone", timeout=5).text == "<html>Bad</html>"
    requests.post(f"{control}/do/attach_elsewhere", json={"ip": IP, "server": "uuid-2"}, timeout=5)
    assert requests.get(f"{control}/state", timeout=5).json()["owners"][IP] == "out2"
    assert requests.post(f"{control}/do/serving", timeout=5).status_code == 400
    assert [call["path"] for call in requests.get(f"{control}/calls", timeout=5).json()] == ["/zone"]


def test_a_server_that_hangs_is_left_by_its_client(cloud: UpCloud, url: str) -> None:
    cloud.fail("hang", path="/zone")
    start = time.monotonic()
    with pytest.raises(requests.Timeout):
        requests.get(f"{url}/zone", timeout=0.1)
    assert time.monotonic() - start < 5
