"""Fair, deterministic, and no needless moves."""

from dataclasses import replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from remails.ipagent.placement import plan
from remails.store import ids
from remails.store.addresses import Address, Host
from remails.store.ids import HostId, PoolId

HOSTS = [HostId(ids.new()) for _ in range(4)]
POOLS = [PoolId(ids.new()) for _ in range(3)]


def _host(number: int, most: int = 9, **more: Any) -> Host:
    fields: dict[str, Any] = dict.fromkeys(Host.__dataclass_fields__)
    place = {"provider": "upcloud", "zone": "nl-ams1"}
    return Host(**{**fields, "id": HOSTS[number], "name": f"out{number}", "max_addresses": most, **place, **more})


def _address(number: int, at: int, **more: Any) -> Address:
    fields: dict[str, Any] = dict.fromkeys(Address.__dataclass_fields__)
    mine = {
        "ip": f"203.0.113.{number}",
        "lease_host": HOSTS[at],
        "state": "ready",
        "pool_id": POOLS[0],
        "provider_ref": "",
    }
    return Address(**{**fields, **mine, **more})


def _moves(hosts: list[Host], addresses: list[Address]) -> list[tuple[str, str]]:
    return [(move.ip, move.target.name) for move in plan(hosts, addresses)]


def test_what_is_fair_stays() -> None:
    assert _moves([_host(0), _host(1)], [_address(1, 0), _address(2, 0), _address(3, 1)]) == []


def test_the_fullest_gives_to_the_emptiest() -> None:
    held = [_address(number, 0) for number in range(1, 5)]
    assert _moves([_host(0), _host(1)], held) == [("203.0.113.1", "out1"), ("203.0.113.2", "out1")]
    assert _moves([_host(0), _host(1, most=1)], held) == [("203.0.113.1", "out1")]


def test_an_address_goes_to_its_preferred_host_and_stays_there() -> None:
    held = [
        _address(1, 0, preferred_host=HOSTS[1]),
        *(_address(number, 1, preferred_host=HOSTS[1]) for number in (2, 3)),
    ]
    assert _moves([_host(0), _host(1)], held) == [("203.0.113.1", "out1")]
    assert _moves([_host(0), _host(1, most=2)], held) == [], "it has no room"


def test_a_pool_is_spread() -> None:
    held = [_address(1, 0), _address(2, 0, pool_id=POOLS[1]), _address(3, 0, pool_id=POOLS[1]), _address(4, 1)]
    assert _moves([_host(0), _host(1)], held) == [("203.0.113.2", "out1")]


def test_what_is_one_thing_at_the_provider_moves_together_or_not() -> None:
    pair = [_address(number, 0, provider_ref="net") for number in (1, 2)]
    assert _moves([_host(0), _host(1)], pair) == [], "then the other one would have two more"
    assert _moves([_host(0), _host(1)], [*pair, _address(3, 0), _address(4, 0)]) == [("203.0.113.1", "out1")]


def test_what_cannot_move_does_not() -> None:
    held = [_address(number, 0, state="error") for number in range(1, 5)]
    assert _moves([_host(0), _host(1)], held) == []
    ready = [replace(one, state="ready") for one in held]
    assert _moves([_host(0), _host(1, zone="fi-hel1")], ready) == []
    assert _moves([_host(0, provider="static"), _host(1, provider="static")], ready) == []


@given(
    places=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2), st.sampled_from(["", "", "a", "b"])), max_size=25),
    most=st.lists(st.integers(0, 12), min_size=4, max_size=4),
)
def test_moves_end_fair_and_a_second_plan_is_empty(places: list[tuple[int, int, str]], most: list[int]) -> None:
    at: dict[str, int] = {}
    held = []
    for number, (host, pool, ref) in enumerate(places, 1):
        at.setdefault(ref or str(number), host)
        held.append(_address(number, at[ref or str(number)], pool_id=POOLS[pool], provider_ref=ref))
    hosts = [_host(number, limit) for number, limit in enumerate(most)]
    moves = plan(hosts, held)
    assert moves == plan(hosts[::-1], held)
    where = {one.ip: one.lease_host for one in held}
    for move in moves:
        ref = next(one.provider_ref for one in held if one.ip == move.ip)
        for one in held:
            if one.ip == move.ip or (ref and one.provider_ref == ref):
                where[one.ip] = move.target.id
    after = [replace(one, lease_host=where[one.ip]) for one in held]
    assert plan(hosts, after) == []
    for host in hosts:
        count = sum(one.lease_host == host.id for one in after)
        assert count <= max(host.max_addresses, sum(one.lease_host == host.id for one in held))
    assert len({move.ip for move in moves}) == len(moves), "nothing moves twice"
