"""The providers' clients against fakes that speak real HTTP."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from fakes.hetzner import Hetzner as FakeHetzner
from fakes.openstack import FloatingIp as FakeFloatingIp
from fakes.openstack import OpenStack as FakeOpenStack
from fakes.openstack import Port
from fakes.upcloud import UpCloud as FakeUpCloud

from remails.config import Database, IpAgent, Mail, Settings
from remails.errors import ConfigError
from remails.ipagent.providers import ProviderError, Seen
from remails.ipagent.providers.hetzner import Hetzner
from remails.ipagent.providers.http import Clock
from remails.ipagent.providers.openstack import OpenStack
from remails.ipagent.providers.upcloud import UpCloud
from remails.store import ids
from remails.store.addresses import Address
from remails.store.ids import PoolId

MAC = "02:00:00:00:00:01"
IP = "203.0.113.7"


class Pausing(Clock):
    """A clock whose waits are over at once, for it and for the fake."""

    def __init__(self) -> None:
        self.at = 1000.0
        self.now = lambda: self.at  # type: ignore[method-assign]
        self.sleep = self._sleep  # type: ignore[method-assign]

    def _sleep(self, seconds: float) -> None:
        self.at += seconds


@pytest.fixture
def clock() -> Pausing:
    """The clients' clock."""
    return Pausing()


def _settings(directory: Path, token: str, **mine: Any) -> Settings:
    (directory / "provider_token").write_text(token)
    return Settings(
        host="out1",
        mail=Mail(hostname="relay.example.com"),
        database=Database(dsn="dbname=none"),
        credentials_directory=str(directory),
        ipagent=IpAgent(**{"provider_timeout": 2.0, **mine}),
    )


def _address(ip: str = IP, ref: str = "", **more: Any) -> Address:
    fields: dict[str, Any] = dict.fromkeys(Address.__dataclass_fields__)
    return Address(
        **{**fields, "ip": ip, "pool_id": PoolId(ids.new()), "provider_ref": ref, "ptr_name": "mx.example.com", **more}
    )


# UpCloud, and what all have in common


@pytest.fixture
def fake() -> FakeUpCloud:
    """Two servers and an address."""
    fake = FakeUpCloud()
    fake.add_server("out1", MAC, uuid="uuid-1", ip="198.51.100.11")
    fake.add_server("out2", "02:00:00:00:00:02", uuid="uuid-2")
    fake.add_address(IP)
    fake.world.tokens = ["ucat_secret", "user:secret"]
    return fake


@pytest.fixture
def upcloud(fake: FakeUpCloud, tmp_path: Path, clock: Pausing) -> Iterator[UpCloud]:
    """The client on the first server."""
    with fake.serving() as url:
        yield UpCloud(
            _settings(tmp_path, "ucat_secret", server_ref="uuid-1", port_ref=MAC.upper(), provider_url=url), clock
        )


def test_upcloud_looks_attaches_and_names(upcloud: UpCloud, fake: FakeUpCloud) -> None:
    assert upcloud.look([_address(), _address("203.0.113.99")]) == {
        IP: Seen(None, ptr_name=fake.world.addresses[IP].ptr)
    }
    assert upcloud.attach(_address()).owner == "uuid-1"
    fake.do("attach_elsewhere", ip=IP, server="uuid-2")
    assert upcloud.look([_address()])[IP].owner == "uuid-2"
    upcloud.set_name(_address())
    assert upcloud.look([_address()])[IP].ptr_name == "mx.example.com"
    ordinary = upcloud.look([_address("198.51.100.11")])["198.51.100.11"]
    assert (ordinary.owner, ordinary.is_movable) == ("uuid-1", False)


def test_upcloud_takes_a_sub_accounts_name_and_password(fake: FakeUpCloud, tmp_path: Path, clock: Pausing) -> None:
    with fake.serving() as url:
        settings = _settings(tmp_path, "user:secret", server_ref="uuid-1", port_ref=MAC, provider_url=url)
        assert UpCloud(settings, clock).attach(_address()).owner == "uuid-1"


def test_an_address_at_another_interface_of_this_server_is_not_here(upcloud: UpCloud, fake: FakeUpCloud) -> None:
    fake.do("attach_elsewhere", ip=IP, server="uuid-1")
    fake.do("mac_change", server="uuid-1", mac="02:00:00:00:00:09")
    assert upcloud.look([_address()])[IP].owner == "uuid-1 at 02:00:00:00:00:09"


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        *((400, "refused"), (401, "denied"), (402, "refused"), (403, "forbidden"), (404, "not_found")),
        *((408, "unavailable"), (409, "conflict"), (429, "limited"), (500, "unavailable"), (502, "unavailable")),
        (301, "refused"),
    ],
)
def test_what_a_status_means(upcloud: UpCloud, fake: FakeUpCloud, status: int, kind: str) -> None:
    fake.fail("status", status=status, html=status in (301, 502))
    with pytest.raises(ProviderError) as error:
        upcloud.attach(_address())
    assert error.value.kind == kind
    assert f"with {status}" in str(error.value)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize("fault", ["reset", "apply_then_reset", "truncated", "not_json", "empty", "hang"])
def test_a_damaged_answer_means_that_nobody_knows(upcloud: UpCloud, fake: FakeUpCloud, fault: Any) -> None:
    fake.fail(fault)
    with pytest.raises(ProviderError) as error:
        upcloud.attach(_address())
    assert error.value.kind == "unavailable"
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    "body",
    [
        "null",
        "[]",
        '"text"',
        "{}",
        '{"ip_addresses": {"ip_address": [1]}}',
        '{"ip_addresses": {"ip_address": {}}}',
        "1" * 9_000_000,
    ],
)
def test_an_answer_of_another_shape_is_no_answer(upcloud: UpCloud, fake: FakeUpCloud, body: str) -> None:
    fake.addresses = lambda world, request: _answer(body)  # type: ignore[method-assign]
    with pytest.raises(ProviderError) as error:
        upcloud.look([_address()])
    assert error.value.kind == "unavailable"


def _answer(body: str) -> Any:
    from fakes.cloud import Answer

    return Answer(200, body)


def test_errors_of_the_newer_shape_are_told_too(upcloud: UpCloud, fake: FakeUpCloud) -> None:
    problem = {"type": "https://developers.upcloud.com/1.3/errors#ERROR_X", "title": "Not so.", "status": 400}
    fake.error = lambda status, code="", text="": _problem(status, problem)  # type: ignore[method-assign]
    fake.fail("status", status=400)
    with pytest.raises(ProviderError, match=r"with 400 \(Not so\.\)"):
        upcloud.look([_address()])


def _problem(status: int, body: Any) -> Any:
    answer = _answer(json.dumps(body))
    answer.status = status
    return answer


def test_reads_leave_the_last_requests_to_writes(upcloud: UpCloud, fake: FakeUpCloud, clock: Pausing) -> None:
    start = clock.at
    for _ in range(3):
        upcloud.look([_address()])
    upcloud.attach(_address())
    upcloud.attach(_address())
    assert clock.at == start, "five at once"
    upcloud.look([_address()])
    assert clock.at - start == 1.5, "a third token is waited for, at two a second"


def test_a_setting_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^ipagent\.server_ref: "):
        UpCloud(_settings(tmp_path, "ucat_secret"))
    with pytest.raises(ConfigError, match=r"^ipagent\.server_ref: "):
        Hetzner(_settings(tmp_path, "token", server_ref="out1"))
    with pytest.raises(ConfigError, match=r"^credential provider_token: "):
        UpCloud(_settings(tmp_path, "-", provider="upcloud", server_ref="uuid-1"))


# Hetzner


@pytest.fixture
def fsn() -> FakeHetzner:
    """Two servers, an IPv4 address and an IPv6 network."""
    fake = FakeHetzner()
    fake.add_server(41, "out1")
    fake.add_server(42, "out2")
    fake.add_address(7, IP, server=42)
    fake.add_address(8, "2001:db8:7::")
    fake.world.tokens = ["secret"]
    return fake


@pytest.fixture
def hetzner(fsn: FakeHetzner, tmp_path: Path, clock: Pausing) -> Iterator[Hetzner]:
    """The client on the first server."""
    with fsn.serving() as url:
        yield Hetzner(_settings(tmp_path, "secret", server_ref="41", provider_url=url), clock)


def test_hetzner_looks_assigns_and_names(hetzner: Hetzner, fsn: FakeHetzner) -> None:
    four, six = _address(ref="7"), _address("2001:db8:7::25", "8")
    assert hetzner.look([four, six, _address("203.0.113.8", "9")]) == {
        IP: Seen("42", ptr_name=""),
        six.ip: Seen(None, ptr_name=""),
    }
    assert hetzner.attach(four).owner == hetzner.attach(six).owner == "41"
    assert fsn.owners(fsn.world) == {IP: "out1", "2001:db8:7::": "out1"}
    hetzner.set_name(six)
    assert hetzner.look([six])[six.ip].ptr_name == "mx.example.com"


def test_hetzner_has_more_addresses_than_fit_a_page(hetzner: Hetzner, fsn: FakeHetzner) -> None:
    for number in range(100, 200):
        fsn.add_address(number, f"192.0.2.{number}", server=41)
    assert hetzner.look([_address("192.0.2.199", "199")])["192.0.2.199"].owner == "41"


def test_an_action_may_fail_or_take_too_long(hetzner: Hetzner, fsn: FakeHetzner) -> None:
    fsn.action_error = "not in this location"
    with pytest.raises(ProviderError, match=r"could not assign .*: not in this location") as error:
        hetzner.attach(_address(ref="7"))
    assert error.value.kind == "conflict"
    fsn.action_error, fsn.looks = "", 1000
    with pytest.raises(ProviderError, match="still assigning") as error:
        hetzner.attach(_address(ref="7"))
    assert error.value.kind == "unavailable"
    with pytest.raises(ProviderError, match="locked") as error:
        hetzner.attach(_address(ref="7"))
    assert error.value.kind == "unavailable", "somebody else changes it just now"


# OpenStack


@pytest.fixture
def neutron() -> FakeOpenStack:
    """Two hosts with two fixed addresses each, and two floating ones."""
    fake = FakeOpenStack()
    fake.world.credentials = {"id": "secret"}
    fake.world.ports = {
        "port-1": Port("port-1", "out1", ["10.0.0.11", "10.0.0.12"]),
        "port-2": Port("port-2", "out2", ["10.0.0.21", "10.0.0.22"]),
    }
    fake.world.floating_ips = {
        "fip-7": FakeFloatingIp("fip-7", IP),
        "fip-8": FakeFloatingIp("fip-8", "203.0.113.8", "port-2", "10.0.0.21"),
    }
    return fake


@pytest.fixture
def openstack(neutron: FakeOpenStack, tmp_path: Path, clock: Pausing) -> Iterator[OpenStack]:
    """The client on the first host."""
    with neutron.serving() as url:
        neutron.url = url
        yield OpenStack(_openstack_settings(tmp_path, url), clock)


def _openstack_settings(directory: Path, url: str, token: str = "id:secret", **more: Any) -> Settings:
    mine: dict[str, Any] = {
        "provider": "openstack",
        "provider_url": f"{url}/v3",
        "server_ref": "server-1",
        "port_ref": "port-1",
        "zone": "dc2",
        "fixed_addresses": ("10.0.0.11", "10.0.0.12"),
        "max_addresses": 2,
    }
    return _settings(directory, token, **mine, **more)


def test_openstack_looks_and_points_each_address_to_a_fixed_one_of_this_host(
    openstack: OpenStack, neutron: FakeOpenStack
) -> None:
    seven, eight = _address(ref="fip-7"), _address("203.0.113.8", "fip-8", bind_ip="10.0.0.21")
    assert openstack.look([seven, eight]) == {IP: Seen(None), "203.0.113.8": Seen("port-2")}
    assert openstack.attach(seven) == Seen("server-1", source="10.0.0.11")
    assert openstack.attach(replace(seven, bind_ip="10.0.0.11")) == Seen("server-1", source="10.0.0.11")
    assert openstack.attach(eight) == Seen("server-1", source="10.0.0.12"), "not the one of the host it came from"
    assert neutron.owners(neutron.world) == {IP: "out1", "203.0.113.8": "out1"}
    neutron.world.floating_ips["fip-9"] = FakeFloatingIp("fip-9", "203.0.113.9")
    with pytest.raises(ProviderError, match=r"every one of ipagent\.fixed_addresses is in use") as error:
        openstack.attach(_address("203.0.113.9", "fip-9"))
    assert error.value.kind == "conflict"


def test_a_token_that_is_revoked_is_replaced(openstack: OpenStack, neutron: FakeOpenStack) -> None:
    openstack.look([])
    neutron.do("revoke_tokens")
    with pytest.raises(ProviderError) as error:
        openstack.look([])
    assert error.value.kind == "denied"
    assert openstack.look([_address(ref="fip-7")]) == {IP: Seen(None)}


def test_a_wrong_application_credential_is_tried_once_a_minute(
    neutron: FakeOpenStack, tmp_path: Path, clock: Pausing
) -> None:
    with neutron.serving() as url:
        neutron.url = url
        client = OpenStack(_openstack_settings(tmp_path, url, "id:wrong"), clock)
        for _ in range(5):
            with pytest.raises(ProviderError, match="does not accept the application credential"):
                client.look([])
        assert len(neutron.calls) == 1
        clock.at += 61
        neutron.world.credentials["id"] = "wrong"
        assert client.look([_address(ref="fip-7")]) == {IP: Seen(None)}


def test_openstack_wants_a_fixed_address_for_each_it_may_hold(tmp_path: Path) -> None:
    settings = _openstack_settings(tmp_path, "http://127.0.0.1:1")
    more = msgspec.structs.replace(settings, ipagent=msgspec.structs.replace(settings.ipagent, max_addresses=3))
    with pytest.raises(ConfigError, match=r"^ipagent\.fixed_addresses: fewer than"):
        OpenStack(more)
