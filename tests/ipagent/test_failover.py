"""Every failure that the agent is built for, against the fake UpCloud and a real PostgreSQL, in simulated time."""

import asyncio
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from rig import Host, Rig

from remails.config import Database as DatabaseSettings
from remails.store import addresses

IP = "203.0.113.7"
IPS = [f"203.0.113.{number}" for number in range(11, 15)]


@pytest.fixture(scope="module")
def rigged(module_database: DatabaseSettings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """A world."""
    rig = Rig(module_database, tmp_path_factory.mktemp("rig"))
    yield rig
    rig.close()


@pytest.fixture
def rig(rigged: Rig) -> Iterator[Rig]:
    """An empty world; in the end, what must always hold did."""
    rigged.reset(0)
    yield rigged
    assert rigged.violations == []
    rigged.check_log()
    rigged.check_calls(2.0, 5)


def _two(rig: Rig, *ips: str, first: str = "out1") -> tuple[Host, Host]:
    """Two hosts, the first of which has the addresses."""
    one = rig.add_host(first)
    rig.add_addresses(*ips)
    rig.until(lambda: rig.holders() == dict.fromkeys(ips, first), 60)
    two = rig.add_host("out2")
    rig.pass_time(10)
    return one, two


def _kinds(rig: Rig, ip: str = IP) -> list[str]:
    return [event.kind for event in reversed(rig.admin.run(addresses.events, ip, 1000))]


def _writes(rig: Rig) -> int:
    return sum(call.is_write for call in rig.cloud.calls)


def _ready(rig: Rig, host: str, ip: str = IP) -> bool:
    return rig.holders().get(ip) == host == rig.owners()[ip] and ip in rig.hosts[host].nic.mine


# All is well


def test_an_address_is_leased_attached_configured_announced_and_published(rig: Rig) -> None:
    host = rig.add_host("out1")
    rig.add_addresses(IP)
    rig.until(lambda: _ready(rig, "out1"), 10)
    rig.pass_time(20)
    assert host.nic.announced == [IP] * 3
    assert _kinds(rig) == ["added", "claimed", "attaching", "attached", "configuring", "ready"]


def test_as_long_as_all_is_well_a_host_looks_four_times_a_minute_and_writes_nothing(rig: Rig) -> None:
    _two(rig, IP, *IPS)
    rig.pass_time(60)
    before = len(rig.cloud.calls)
    rig.pass_time(120)
    calls = rig.cloud.calls[before:]
    assert {call.method for call in calls} == {"GET"}
    assert len(calls) <= 9, "of one host, the other one holds nothing"


def test_three_agents_share_and_none_takes_what_another_has(rig: Rig) -> None:
    for number in (1, 2, 3):
        rig.add_host(f"out{number}")
    rig.pass_time(6)
    rig.add_addresses(*IPS, IP)
    rig.until(lambda: len(rig.holders()) == 5, 30)
    counts = sorted(list(rig.holders().values()).count(name) for name in rig.hosts)
    assert counts == [1, 2, 2]


def test_a_dry_run_changes_nothing_anywhere(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    host = rig.add_host("out1")
    rig.add_addresses(IP)
    agent, host.agent = host.agent, None
    assert agent is not None
    caplog.set_level("INFO")
    host.runner.run(agent.rehearse())
    [said] = [record for record in caplog.records if record.message == "would hold"]
    assert {
        "address": IP,
        "lease": "claim",
        "provider": "attach, the provider has it nowhere",
        "then": "publish",
    }.items() <= (said.__dict__.get("fields") or said.__dict__).items()
    assert (_writes(rig), rig.address(IP).lease_epoch, host.nic.mine) == (0, 0, set())
    assert rig.admin.run(addresses.list_hosts) == []


# Hosts


def test_the_addresses_of_a_dead_host_are_ready_elsewhere_within_45_seconds(rig: Rig) -> None:
    one, _ = _two(rig, IP, *IPS)
    one.die()
    assert rig.until(lambda: rig.holders() == dict.fromkeys([IP, *IPS], "out2"), 90) <= 60
    assert set(rig.owners().values()) == {"out2"}
    assert "expired" in _kinds(rig)


def test_one_address_of_a_dead_host_is_ready_elsewhere_within_45_seconds(rig: Rig) -> None:
    one, _ = _two(rig, IP)
    one.die()
    assert rig.until(lambda: _ready(rig, "out2"), 90) <= 45


def test_a_host_without_the_database_steps_down_before_another_may_take_over(rig: Rig) -> None:
    one, _ = _two(rig, IP)
    one.db.is_cut = True
    assert rig.until(lambda: IP not in one.nic.mine, 40) < 30 - 5
    assert rig.address(IP).lease_host == one.id, "the lease still runs"
    rig.until(lambda: _ready(rig, "out2"), 60)
    one.db.is_cut = False
    rig.pass_time(30)
    assert _ready(rig, "out2"), "and nothing is taken back"


def test_a_frozen_host_wakes_up_and_sees_that_it_holds_nothing(rig: Rig) -> None:
    one, _ = _two(rig, IP)
    rig.freeze(one, 90)
    assert _ready(rig, "out2")
    rig.pass_time(1)
    assert IP not in one.nic.mine
    writes = _writes(rig)
    rig.pass_time(30)
    assert (_writes(rig), _ready(rig, "out2")) == (writes, True)


def test_a_host_paused_in_the_middle_of_attaching_steals_once_and_the_new_holder_takes_it_back(rig: Rig) -> None:
    one = rig.add_host("out1")
    rig.add_host("out2")
    rig.pass_time(6)
    fates = iter(["frozen"])
    rig.fate = lambda method: next(fates, "") if method == "PATCH" and rig.asking[-1] is one else ""
    rig.chance.uniform = lambda low, high: 70.0 if high == 70 else low  # type: ignore[method-assign]
    rig.add_addresses(IP)
    rig.admin.run(addresses.ask_for, IP, one.id or pytest.fail())
    rig.until(lambda: one.is_frozen or rig.owners()[IP] is not None, 20)
    rig.until(lambda: _ready(rig, "out2"), 200)
    rig.pass_time(60)
    assert _ready(rig, "out2")
    owners = [call.body["ip_address"]["mac"][-1] for call in rig.cloud.calls if call.is_write]
    assert owners[:2] == ["2", "1"], "the first request came late"
    assert set(owners[2:]) == {"2"}, "and its host did not repeat it"


def test_a_restart_writes_nothing_and_takes_no_address_off(rig: Rig) -> None:
    host = rig.add_host("out1")
    rig.add_addresses(IP)
    rig.until(lambda: _ready(rig, "out1"), 10)
    rig.pass_time(20)
    writes, kinds = _writes(rig), _kinds(rig)
    removed: list[str] = []
    host.nic.remove = removed.append  # type: ignore[method-assign]
    host.stop()
    rig.pass_time(12)
    host.start()
    rig.pass_time(30)
    assert (_writes(rig), _kinds(rig), removed, _ready(rig, "out1")) == (writes, kinds, [], True)


def test_after_a_crash_our_own_addresses_without_a_lease_come_off_and_no_others(rig: Rig) -> None:
    host = rig.add_host("out1")
    host.nic.add("203.0.113.99", 1e9)
    host.nic.foreign = {"198.51.100.11", "203.0.113.98"}
    rig.pass_time(10)
    assert (host.nic.mine, host.nic.foreign) == (set(), {"198.51.100.11", "203.0.113.98"})
    assert _kinds(rig, "203.0.113.99") == ["taken off"]


def test_a_second_host_with_the_same_server_id_gets_nothing(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    _, two = _two(rig, IP)
    two.settings = msgspec.structs.replace(
        two.settings, host="out3", ipagent=msgspec.structs.replace(two.settings.ipagent, server_ref="uuid-out1")
    )
    two.start()
    rig.pass_time(40)
    assert _ready(rig, "out1")
    assert "host cannot be registered" in caplog.messages


# The database


def test_without_the_database_all_step_down_and_come_back(rig: Rig) -> None:
    one, two = _two(rig, IP, *IPS)
    rig.is_down = True
    rig.pass_time(31)
    assert one.nic.mine | two.nic.mine == set()
    rig.is_down = False
    rig.until(lambda: len(rig.holders()) == 5, 30)


def test_a_short_outage_of_the_database_is_not_noticed(rig: Rig) -> None:
    one, _ = _two(rig, IP)
    kinds, epoch = _kinds(rig), rig.address(IP).lease_epoch
    rig.is_down = True
    rig.pass_time(12)
    rig.is_down = False
    rig.pass_time(10)
    assert (_kinds(rig), rig.address(IP).lease_epoch, one.nic.mine) == (kinds, epoch, {IP})


# The provider


@pytest.mark.parametrize("fault", [{"do": "status", "status": 503, "html": True}, {"do": "hang", "seconds": 4}])
def test_an_api_that_is_down_unconfigures_nothing(rig: Rig, fault: dict[str, Any]) -> None:
    _two(rig, IP)
    kinds = _kinds(rig)
    rig.cloud.fail(**fault)
    rig.pass_time(300)
    assert (_ready(rig, "out1"), _kinds(rig)) == (True, kinds)


def test_while_the_api_is_down_a_dead_hosts_address_waits_and_is_then_taken(rig: Rig) -> None:
    one, _ = _two(rig, IP)
    rig.cloud.fail("status", status=502)
    one.die()
    rig.pass_time(120)
    assert rig.address(IP).state == "error"
    assert "502" in rig.address(IP).last_error
    rig.cloud.faults.clear()
    assert rig.until(lambda: _ready(rig, "out2"), 90) <= 70


def test_a_token_that_is_not_accepted_stops_requests_for_a_minute_and_no_mail(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    """401: keep serving."""
    _two(rig, IP)
    rig.cloud.world.tokens.remove("ucat_out1")
    rig.pass_time(20)
    before = len(rig.cloud.calls)
    rig.pass_time(240)
    assert _ready(rig, "out1")
    mine = [call for call in rig.cloud.calls[before:] if call.credential == "Bearer ucat_out1"]
    assert len(mine) <= 5
    assert "ucat_out1" not in caplog.text


def test_when_no_token_is_accepted_an_address_does_not_go_round_and_round(rig: Rig) -> None:
    rig.add_host("out1")
    rig.add_host("out2")
    rig.cloud.world.tokens = ["another"]
    rig.add_addresses(IP)
    rig.pass_time(1200)
    assert rig.address(IP).state == "error"
    assert "401" in rig.address(IP).last_error
    assert _kinds(rig).count("claimed") <= 9
    rig.cloud.world.tokens = ["ucat_out1", "ucat_out2"]
    rig.until(lambda: len(rig.holders()) == 1, 150)


def test_what_is_forbidden_for_one_address_keeps_no_other(rig: Rig) -> None:
    """403."""
    rig.add_host("out1")
    rig.add_addresses(IP, IPS[0])
    rig.cloud.world.addresses[IP].delegated = True
    rig.until(lambda: _ready(rig, "out1", IPS[0]), 20)
    assert rig.until(lambda: rig.address(IP).state == "error", 10) < 10
    before = _writes(rig)
    rig.pass_time(300)
    assert _writes(rig) - before <= 5
    rig.cloud.world.addresses[IP].delegated = False
    rig.until(lambda: _ready(rig, "out1"), 90)


def test_an_address_that_the_provider_does_not_know_is_unpublished_and_kept(rig: Rig) -> None:
    """404."""
    _two(rig, IP)
    rig.cloud.do("delete_ip", ip=IP)
    rig.until(lambda: rig.address(IP).state == "error", 40)
    assert rig.address(IP).last_error == "provider upcloud knows no such address"
    rig.pass_time(300)
    assert rig.address(IP).state == "error"
    rig.cloud.do("restore_ip", ip=IP)
    rig.until(lambda: len(rig.holders()) == 1, 120)


def test_what_a_server_cannot_have_another_one_takes_and_it_is_not_asked_again_for_ten_minutes(rig: Rig) -> None:
    """409: here the server has as many addresses as it may have."""
    _two(rig)
    rig.cloud.world.servers["uuid-out1"].most_addresses = 0
    rig.add_addresses(IP, preferred_host=rig.hosts["out1"].id)
    rig.until(lambda: _ready(rig, "out2"), 40)
    [refusal] = rig.admin.run(addresses.refusals)
    assert (refusal.ip, refusal.host, refusal.is_firm) == (IP, "out1", True)
    assert "IP_ADDRESS_LIMIT_REACHED" in refusal.reason
    asked = [call for call in rig.cloud.calls if call.credential == "Bearer ucat_out1" and call.is_write]
    assert len(asked) == 1


def test_when_no_server_can_have_it_each_asks_once_in_ten_minutes(rig: Rig) -> None:
    rig.add_host("out1")
    rig.add_host("out2")
    rig.add_addresses(IP)
    rig.cloud.world.addresses[IP].zone = "fi-hel1"
    rig.pass_time(590)
    assert _writes(rig) == 2
    assert (rig.address(IP).state, "ZONE_MISMATCH" in rig.address(IP).last_error) == ("free", True)
    rig.cloud.world.addresses[IP].zone = "nl-ams1"
    rig.until(lambda: len(rig.holders()) == 1, 60)


def test_after_429_nothing_is_asked_until_the_time_it_names(rig: Rig) -> None:
    """X14."""
    rig.add_host("out1")
    rig.add_addresses(IP)
    rig.cloud.fail("status", status=429, retry_after="40", times=1)
    rig.until(lambda: _ready(rig, "out1"), 60)
    first, second = (call.at for call in rig.cloud.calls[:2])
    assert second - first >= 40


def test_a_storm_of_429_stays_within_the_budget(rig: Rig) -> None:
    rig.add_host("out1")
    rig.add_addresses(IP, *IPS)
    rig.cloud.fail("status", status=429)
    rig.pass_time(600)
    assert len(rig.cloud.calls) <= 61, "without Retry-After ten seconds"


@pytest.mark.parametrize(
    "fault",
    [
        {"do": "apply_then_fail"},
        {"do": "apply_then_reset"},
        {"do": "delay_after", "seconds": 10},
        {"do": "truncated"},
        {"do": "not_json"},
        {"do": "empty"},
    ],
)
def test_what_was_done_although_the_answer_got_lost_is_seen_and_not_done_again(rig: Rig, fault: dict[str, Any]) -> None:
    """X14: look first."""
    rig.add_host("out1")
    rig.add_addresses(IP)
    rig.cloud.fail(**fault, method="PATCH", times=1)
    rig.until(lambda: _ready(rig, "out1"), 40)
    assert _writes(rig) == 1
    assert "error" not in _kinds(rig)


def test_what_was_not_done_is_done_after_a_look(rig: Rig) -> None:
    rig.add_host("out1")
    rig.add_addresses(IP)
    rig.cloud.fail("reset", method="PATCH", times=2)
    rig.until(lambda: _ready(rig, "out1"), 60)
    methods = [call.method for call in rig.cloud.calls]
    for at, method in enumerate(methods):
        assert method != "PATCH" or methods[at - 1] == "GET"


def test_old_answers_make_nothing_flap(rig: Rig) -> None:
    one, two = _two(rig, IP)
    rig.cloud.staleness = 19.0
    one.die()
    rig.until(lambda: rig.holders() == {IP: "out2"}, 90)
    kinds = _kinds(rig)
    rig.pass_time(120)
    assert [kind for kind in _kinds(rig)[len(kinds) :] if kind != "attached"] == []
    assert two.nic.mine == {IP}


def test_an_answer_from_before_the_lease_is_not_believed(rig: Rig) -> None:
    """It was here once, and the provider's list still says so; another host has it since."""
    one, _ = _two(rig, IP)
    rig.admin.run(addresses.ask_for, IP, rig.hosts["out2"].id or pytest.fail())
    rig.until(lambda: _ready(rig, "out2"), 60)
    rig.cloud.staleness = 60.0
    rig.admin.run(addresses.ask_for, IP, one.id or pytest.fail())
    rig.until(lambda: rig.holders() == {IP: "out1"}, 60)
    assert rig.owners()[IP] == "out1"


def test_an_address_moved_by_others_is_taken_back_but_not_for_ever(rig: Rig) -> None:
    one, two = _two(rig, IP)
    for _ in range(4):
        rig.cloud.do("attach_elsewhere", ip=IP, server="uuid-out2")
        rig.pass_time(40)
        assert _ready(rig, "out1")
    rig.cloud.do("attach_elsewhere", ip=IP, server="uuid-out2")
    rig.until(lambda: rig.address(IP).state == "error", 40)
    assert rig.address(IP).last_error.startswith("moved away again and again")
    assert one.nic.mine | two.nic.mine == set()
    writes, calls = _writes(rig), len(rig.cloud.calls)
    rig.pass_time(560)
    assert (_writes(rig), rig.owners()[IP]) == (writes, "out2"), "left alone"
    assert len(rig.cloud.calls) - calls <= 560 / 15 + 1
    rig.until(lambda: len(rig.holders()) == 1, 120)


def test_a_detached_address_is_attached_again(rig: Rig) -> None:
    _two(rig, IP)
    rig.cloud.do("drop_attachment", ip=IP)
    assert rig.until(lambda: _ready(rig, "out1") and "attaching" in _kinds(rig)[5:], 40) <= 35


def test_a_server_with_another_interface_gets_its_addresses_there(rig: Rig) -> None:
    host = rig.add_host("out1")
    rig.add_addresses(IP)
    rig.until(lambda: _ready(rig, "out1"), 10)
    rig.cloud.world.servers["uuid-out1"].mac = "02:00:00:00:01:01"
    host.stop()
    host.settings = msgspec.structs.replace(
        host.settings, ipagent=msgspec.structs.replace(host.settings.ipagent, port_ref="02:00:00:00:01:01")
    )
    host.start()
    rig.until(lambda: rig.owners()[IP] == "out1", 60)


# What operators do


def test_a_drained_host_gives_its_addresses_away_in_order(rig: Rig) -> None:
    one, _ = _two(rig, IP)
    kinds = len(_kinds(rig))
    rig.admin.run(addresses.desire, one.id or pytest.fail(), "drain")
    assert rig.until(lambda: _ready(rig, "out2"), 60) <= 25
    assert _kinds(rig)[kinds:] == [
        *("draining", "released", "claimed", "attaching", "attached", "configuring", "ready"),
    ]
    assert one.nic.mine == set()
    rig.admin.run(addresses.desire, one.id or pytest.fail(), "active")
    rig.pass_time(60)
    assert _ready(rig, "out2"), "no needless move"


def test_an_address_goes_where_the_operator_wants_it(rig: Rig) -> None:
    _, two = _two(rig, IP)
    rig.admin.run(addresses.ask_for, IP, two.id or pytest.fail())
    assert rig.until(lambda: _ready(rig, "out2"), 60) <= 25


def test_a_wish_for_a_host_that_has_no_room_or_is_dead_is_not_waited_for(rig: Rig) -> None:
    _, two = _two(rig, IP)
    rig.admin.run(addresses.ask_for, IP, two.id or pytest.fail())
    two.die()
    rig.until(lambda: _ready(rig, "out1") and "released" in _kinds(rig), 120)


# Names, probes, IPv6


def test_the_reverse_name_is_kept_right_at_the_provider(rig: Rig) -> None:
    rig.add_host("out1", set_reverse_names=True)
    rig.add_addresses(IP)
    rig.until(lambda: rig.cloud.world.addresses[IP].ptr == "mx.example.com", 40)
    rig.admin.run(addresses.rename, IP, "out7.example.com")
    rig.until(lambda: rig.cloud.world.addresses[IP].ptr == "out7.example.com", 40)
    assert _kinds(rig).count("reverse name") == 2
    rig.cloud.calls = [call for call in rig.cloud.calls if "ptr_record" not in str(call.body)]


def test_an_address_that_goes_with_its_server_is_warned_of(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    rig.add_host("out1")
    rig.add_addresses(IP)
    rig.cloud.do("set_policy", ip=IP, policy="release")
    rig.pass_time(30)
    assert "address at the provider" in caplog.messages


def test_an_address_from_which_nothing_is_reached_is_not_published(rig: Rig) -> None:
    host = rig.add_host("out1", probes=("192.0.2.25:25",))
    asked: list[object] = []

    def check(ip: str, peer: object) -> None:
        asked.append(peer)
        raise TimeoutError("timed out")

    host.nic.check = check  # type: ignore[method-assign]
    host.start()
    rig.add_addresses(IP)
    rig.pass_time(20)
    assert rig.address(IP).state == "configuring"
    rig.until(lambda: rig.address(IP).state == "error", 60)
    assert rig.address(IP).last_error.startswith("no answer to it from the probe")
    assert set(asked) == {("192.0.2.25", 25)}
    rig.pass_time(300)
    assert len(asked) <= 15


def test_an_ipv6_address_stays_with_its_server_and_the_agent_finds_it_there(rig: Rig) -> None:
    """At UpCloud IPv6 addresses do not move."""
    ip = "2001:db8::7"
    _, two = _two(rig)
    rig.add_addresses(ip)
    rig.cloud.world.addresses[ip].floating, rig.cloud.world.addresses[ip].mac = False, two.settings.ipagent.port_ref
    two.nic.foreign.add(ip)
    rig.until(lambda: rig.holders() == {ip: "out2"}, 90)
    assert _writes(rig) == 0
    two.die()
    rig.pass_time(60)
    assert two.nic.foreign == {ip}
    assert rig.holders() == {}


def test_turns_do_not_need_each_other(rig: Rig) -> None:
    """`keep` renews while a turn hangs in the provider for longer than a lease."""
    one, _ = _two(rig, IP, *IPS)
    rig.cloud.fail("hang", seconds=4)
    epochs = {ip: rig.address(ip).lease_epoch for ip in IPS}
    for ip in IPS:
        rig.cloud.do("attach_elsewhere", ip=ip, server="uuid-out2")
    rig.pass_time(120)
    assert {ip: rig.address(ip).lease_epoch for ip in IPS} == epochs
    assert asyncio.iscoroutinefunction(one.agent.keep if one.agent else None)
