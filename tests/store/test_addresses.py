"""Pools, hosts, leases, the choice of an address, and mail whose address went away; on a real PostgreSQL."""

import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest

from remails.db import Connection, Database
from remails.errors import Refused
from remails.store import addresses, ids, leases, messages, organizations, projects, sources
from remails.store.addresses import Address, Host, Pool
from remails.store.ids import DeliveryId, DomainId, HostId, MessageId
from remails.store.sources import Candidate


def _host(conn: Connection, name: str, *, most: int = 100) -> Host:
    return addresses.register_host(conn, name, "static", "", "", most, "1")


def _pool(conn: Connection, count: int = 0, name: str = "shared") -> Pool:
    """A pool with `count` addresses from 198.51.100.1 on, or from .101 on for another name."""
    pool = addresses.create_pool(conn, name)
    first = 1 if name == "shared" else 101
    for number in range(first, first + count):
        addresses.add(conn, f"198.51.100.{number}", pool.id, "static", f"mx{number}.example.com")
    return pool


def _ready(conn: Connection, host: Host, count: int = 100) -> list[Address]:
    held = leases.claim(conn, host.id, 30, count)
    for address in held:
        assert leases.set_state(conn, address.ip, address.lease_epoch, "ready")
    return held


def _expire(conn: Connection, ip: str) -> None:
    conn.execute("UPDATE addresses SET lease_until = clock_timestamp() - interval '1 ms' WHERE ip = %s", [ip])


def _events(conn: Connection, ip: str) -> list[tuple[str, int]]:
    return conn.execute("SELECT kind, epoch FROM address_events WHERE ip = %s ORDER BY id", [ip]).fetchall()


# Pools and hosts


def test_the_default_pool_is_the_last_one_made_so(conn: Connection) -> None:
    assert addresses.default_pool(conn) is None
    first = addresses.create_pool(conn, "first", is_default=True)
    assert addresses.default_pool(conn) == first
    second = addresses.create_pool(conn, "second", is_default=True)
    assert addresses.default_pool(conn) == second
    assert [(pool.name, pool.is_default) for pool in addresses.list_pools(conn)] == [("first", False), ("second", True)]


def test_a_refused_pool_leaves_the_default_where_it_was(conn: Connection) -> None:
    pool = addresses.create_pool(conn, "shared", is_default=True)
    with pytest.raises(Refused) as refused:
        addresses.create_pool(conn, "shared", is_default=True)
    assert (refused.value.status, refused.value.field) == (409, "name")
    assert addresses.default_pool(conn) == pool


def test_assign_pool_to_each_kind_of_sender(conn: Connection) -> None:
    pool = addresses.create_pool(conn, "dedicated")
    organization = organizations.create(conn, "Example")
    project = projects.create(conn, organization.id, "Mail")
    assert addresses.assign_pool(conn, pool.id, organization_id=organization.id)
    assert addresses.assign_pool(conn, pool.id, project_id=project.id)
    changed = organizations.get(conn, organization.id)
    assert changed is not None and changed.pool_id == pool.id
    assert [p.pool_id for p in projects.list_(conn, organization.id)] == [pool.id]
    assert addresses.assign_pool(conn, None, project_id=project.id)
    assert [p.pool_id for p in projects.list_(conn, organization.id)] == [None]
    assert not addresses.assign_pool(conn, pool.id, domain_id=DomainId(ids.new()))


def test_a_host_keeps_its_id_and_what_the_operator_wants_of_it(conn: Connection) -> None:
    first = _host(conn, "mx1")
    addresses.desire(conn, first.id, "drain")
    again = addresses.register_host(conn, "mx1", "upcloud", "uuid", "nl-ams1", 3, "2")
    assert (again.id, again.desired_state, again.max_addresses) == (first.id, "drain", 3)
    assert again.heartbeat_at is not None and first.heartbeat_at is not None
    assert again.heartbeat_at > first.heartbeat_at
    assert addresses.host_by_name(conn, "mx1") == again
    assert addresses.host_by_name(conn, "mx2") is None


def test_a_host_is_dead_when_its_heartbeat_stops_unless_it_is_retired(conn: Connection) -> None:
    alive, dead, retired = (_host(conn, name) for name in ("alive", "dead", "retired"))
    conn.execute("UPDATE hosts SET heartbeat_at = now() - interval '31 s' WHERE name <> 'alive'")
    addresses.desire(conn, retired.id, "retired")
    assert [host.id for host in addresses.dead_hosts(conn, 30)] == [dead.id]
    addresses.heartbeat(conn, dead.id)
    assert addresses.dead_hosts(conn, 30) == []
    assert {host.id for host in addresses.list_hosts(conn)} == {alive.id, dead.id, retired.id}


# Addresses


def test_an_address_as_it_is_added(conn: Connection) -> None:
    pool, host = _pool(conn), _host(conn, "mx1")
    added = addresses.add(
        conn,
        "2001:DB8::0:1",
        pool.id,
        "openstack",
        "MX1.Example.com.",
        bind_ip="10.0.0.7",
        zone="ams",
        provider_ref="fip-1",
        preferred_host=host.id,
    )
    assert added == addresses.get(conn, "2001:db8::1")
    assert (added.ip, added.bind_ip, added.source, added.ptr_name) == (
        "2001:db8::1",
        "10.0.0.7",
        "10.0.0.7",
        "mx1.example.com",
    )
    assert (added.state, added.lease_epoch, added.lease_host, added.no_claim_before) == ("free", 0, None, None)
    assert (added.zone, added.provider_ref, added.preferred_host, added.is_enabled) == ("ams", "fip-1", host.id, True)


@pytest.mark.parametrize(
    ("ip", "status"), [("198.51.100.1", 409), ("198.51.100.999", 422), ("198.51.100.0/24", 422), ("mx.example", 422)]
)
def test_what_cannot_be_added_is_refused_and_the_transaction_goes_on(conn: Connection, ip: str, status: int) -> None:
    pool = _pool(conn, 1)
    with pytest.raises(Refused) as refused:
        addresses.add(conn, ip, pool.id, "static", "mx.example.com")
    assert (refused.value.status, refused.value.field) == (status, "ip")
    assert [address.ip for address in addresses.list_(conn)] == ["198.51.100.1"]


# Leases


def test_a_claimed_address_is_held_under_the_next_epoch(conn: Connection) -> None:
    _pool(conn, 1)
    host = _host(conn, "mx1")
    [address] = leases.claim(conn, host.id, 30, 5)
    assert (address.ip, address.state, address.lease_epoch, address.lease_host) == (
        "198.51.100.1",
        "claimed",
        1,
        host.id,
    )
    assert address.lease_until is not None
    assert timedelta(seconds=28) < address.lease_until - datetime.now(UTC) <= timedelta(seconds=30)
    assert leases.claim(conn, host.id, 30, 5) == []
    assert _events(conn, address.ip) == [("added", 0), ("claimed", 1)]


def test_two_agents_racing_never_hold_the_same_address(db: Database) -> None:
    """All start at once, again and again; whoever claims a row has it alone and each claim is an epoch."""
    count = 24
    with db.transaction() as conn:
        _pool(conn, count)
        hosts = [_host(conn, f"mx{number}").id for number in range(4)]
    start = threading.Barrier(len(hosts))

    def run(host_id: HostId) -> list[str]:
        taken: list[str] = []
        start.wait()
        while found := db.run(leases.claim, host_id, 60, 2):
            taken += [address.ip for address in found]
        return taken

    with ThreadPoolExecutor(len(hosts)) as threads:
        taken = [ip for held in threads.map(run, hosts) for ip in held]
    # A host may come away empty-handed while another has the last rows locked, so take the rest.
    taken += [address.ip for address in db.run(leases.claim, hosts[0], 60, count)]
    assert len(taken) == len(set(taken))
    held = db.run(addresses.list_)
    assert {address.lease_epoch for address in held if address.ip in taken} == {1}
    kinds = db.run(lambda conn: conn.execute("SELECT ip, kind, epoch FROM address_events").fetchall())
    assert Counter(kinds).most_common(1)[0][1] == 1


def test_a_row_claimed_between_reading_and_locking_is_not_taken_over(db: Database) -> None:
    """The one who waits for nothing must still see, at the lock, that the row has a holder by now."""
    with db.transaction() as conn:
        _pool(conn, 1)
        first, second = _host(conn, "mx1"), _host(conn, "mx2")
    with db.transaction() as mine:
        assert len(leases.claim(mine, first.id, 30, 1)) == 1
        # The row is locked, not yet committed: skipped, not waited for.
        assert db.run(leases.claim, second.id, 30, 1) == []
    assert db.run(leases.claim, second.id, 30, 1) == []
    assert [address.lease_host for address in db.run(addresses.list_)] == [first.id]


def test_an_expired_lease_moves_to_the_other_host_with_a_higher_epoch(conn: Connection) -> None:
    _pool(conn, 1)
    old, new = _host(conn, "mx1"), _host(conn, "mx2")
    [before] = _ready(conn, old)
    assert leases.claim(conn, new.id, 30, 1) == []
    _expire(conn, before.ip)
    [after] = leases.claim(conn, new.id, 30, 1)
    assert (after.lease_host, after.lease_epoch, after.state) == (new.id, before.lease_epoch + 1, "claimed")
    assert leases.renew(conn, old.id, 30) == []
    assert leases.held_by(conn, old.id) == []


def test_under_an_old_epoch_nothing_can_be_done(conn: Connection) -> None:
    _pool(conn, 1)
    [before] = _ready(conn, _host(conn, "mx1"))
    _expire(conn, before.ip)
    [after] = leases.claim(conn, _host(conn, "mx2").id, 30, 1)
    for state in ("ready", "error", "draining"):
        assert not leases.set_state(conn, before.ip, before.lease_epoch, state)
    assert not leases.release(conn, before.ip, before.lease_epoch)
    assert addresses.get(conn, before.ip) == after
    assert _events(conn, before.ip)[-1] == ("claimed", 2)


def test_an_expired_lease_is_not_renewed_and_publishes_nothing(conn: Connection) -> None:
    _pool(conn, 1)
    host = _host(conn, "mx1")
    [address] = leases.claim(conn, host.id, 30, 1)
    _expire(conn, address.ip)
    assert leases.renew(conn, host.id, 30) == []
    assert not leases.set_state(conn, address.ip, address.lease_epoch, "ready")
    [again] = leases.claim(conn, host.id, 30, 1)
    assert again.lease_epoch == address.lease_epoch + 1


def test_renewing_prolongs_and_keeps_state_and_epoch(conn: Connection) -> None:
    _pool(conn, 2)
    host = _host(conn, "mx1")
    ready, broken = leases.claim(conn, host.id, 10, 5)
    leases.set_state(conn, ready.ip, 1, "ready")
    leases.set_state(conn, broken.ip, 1, "error", "cable")
    renewed = leases.renew(conn, host.id, 60)
    assert [(a.ip, a.state, a.lease_epoch, a.last_error) for a in renewed] == [
        (ready.ip, "ready", 1, ""),
        (broken.ip, "error", 1, "cable"),
    ]
    assert all(a.lease_until is not None and a.lease_until - datetime.now(UTC) > timedelta(seconds=50) for a in renewed)


def test_a_released_address_is_free_at_once(conn: Connection) -> None:
    _pool(conn, 1)
    [address] = _ready(conn, _host(conn, "mx1"))
    other = _host(conn, "mx2")
    assert leases.release(conn, address.ip, address.lease_epoch)
    assert not leases.release(conn, address.ip, address.lease_epoch)
    assert not leases.set_state(conn, address.ip, address.lease_epoch, "ready")
    assert [a.lease_host for a in leases.claim(conn, other.id, 30, 1)] == [other.id]
    assert _events(conn, address.ip) == [("added", 0), ("claimed", 1), ("ready", 1), ("released", 1), ("claimed", 2)]


def test_hosts_share_and_what_one_leaves_the_other_takes_one_by_one(conn: Connection) -> None:
    _pool(conn, 6)
    first, second = _host(conn, "mx1"), _host(conn, "mx2")
    assert len(leases.claim(conn, first.id, 30, 100)) == 3
    assert leases.claim(conn, first.id, 30, 100) == []
    conn.execute("UPDATE addresses SET updated_at = now() - interval '11 s'")
    assert [len(leases.claim(conn, first.id, 30, 100)) for _ in range(4)] == [1, 1, 1, 0]
    assert leases.claim(conn, second.id, 30, 100) == []


def test_a_host_alone_takes_all_it_may_have(conn: Connection) -> None:
    _pool(conn, 6)
    host = _host(conn, "mx1", most=5)
    _host(conn, "gone")
    conn.execute("UPDATE hosts SET heartbeat_at = now() - interval '1 day' WHERE name = 'gone'")
    assert len(leases.claim(conn, host.id, 30, 100)) == 5
    assert leases.claim(conn, host.id, 30, 100) == []


def _drain(conn: Connection, host: Host) -> None:
    addresses.desire(conn, host.id, "drain")


def _disable(conn: Connection, host: Host) -> None:
    assert addresses.disable(conn, "198.51.100.1")
    assert not addresses.disable(conn, "198.51.100.1")


def _elsewhere(conn: Connection, host: Host) -> None:
    conn.execute("UPDATE addresses SET zone = 'other'")


def _foreign(conn: Connection, host: Host) -> None:
    conn.execute("UPDATE addresses SET provider = 'upcloud'")


def _later(conn: Connection, host: Host) -> None:
    conn.execute("UPDATE addresses SET no_claim_before = now() + interval '1 minute'")


@pytest.mark.parametrize("obstacle", [_drain, _disable, _elsewhere, _foreign, _later])
def test_what_is_not_for_this_host_is_not_claimed(
    conn: Connection, obstacle: Callable[[Connection, Host], None]
) -> None:
    _pool(conn, 1)
    host = _host(conn, "mx1")
    obstacle(conn, host)
    assert leases.claim(conn, host.id, 30, 1) == []


def test_an_address_goes_to_its_preferred_host_while_that_lives(conn: Connection) -> None:
    pool = _pool(conn)
    preferred, other = _host(conn, "mx1"), _host(conn, "mx2")
    addresses.add(conn, "198.51.100.1", pool.id, "static", "mx1.example.com", preferred_host=preferred.id)
    assert leases.claim(conn, other.id, 30, 1) == []
    conn.execute("UPDATE hosts SET heartbeat_at = now() - interval '31 s' WHERE name = 'mx1'")
    assert len(leases.claim(conn, other.id, 30, 1)) == 1
    _host(conn, "mx1")
    assert leases.claim(conn, preferred.id, 30, 1) == [], "a live lease is not taken back"


def test_a_holder_that_cannot_use_an_address_loses_it_after_the_length_of_a_lease(conn: Connection) -> None:
    _pool(conn, 1)
    first, second = _host(conn, "mx1"), _host(conn, "mx2")
    [address] = leases.claim(conn, first.id, 30, 1)
    leases.set_state(conn, address.ip, 1, "error", "not here")
    assert leases.claim(conn, second.id, 30, 1) == []
    conn.execute("UPDATE addresses SET updated_at = now() - interval '31 s'")
    assert leases.claim(conn, first.id, 30, 1) == [], "its own it has already"
    [taken] = leases.claim(conn, second.id, 30, 1)
    assert (taken.lease_host, taken.lease_epoch, taken.last_error) == (second.id, 2, "")


def test_a_preferred_host_without_room_is_not_waited_for(conn: Connection) -> None:
    pool = _pool(conn, 1)
    preferred = _host(conn, "mx1", most=1)
    assert len(leases.claim(conn, preferred.id, 30, 1)) == 1
    other = _host(conn, "mx2")
    addresses.add(conn, "198.51.100.50", pool.id, "static", "mx.example.com", preferred_host=preferred.id)
    assert [one.ip for one in leases.claim(conn, other.id, 30, 5)] == ["198.51.100.50"]


def test_a_host_that_refuses_firmly_leaves_a_free_address_and_its_preference_is_not_waited_for(
    conn: Connection,
) -> None:
    _pool(conn, 1)
    first, second = _host(conn, "mx1"), _host(conn, "mx2")
    ip = "198.51.100.1"
    addresses.prefer(conn, ip, first.id)
    leases.refuse(conn, ip, first.id, 600, "409", is_firm=True)
    assert leases.claim(conn, first.id, 30, 1) == []
    assert [one.ip for one in leases.claim(conn, second.id, 30, 1)] == [ip]


def test_a_host_that_refuses_for_want_of_luck_takes_what_is_free_but_nothing_from_another(conn: Connection) -> None:
    _pool(conn, 1)
    first, second = _host(conn, "mx1"), _host(conn, "mx2")
    leases.refuse(conn, "198.51.100.1", second.id, 300, "503", is_firm=False)
    [held] = leases.claim(conn, first.id, 30, 1)
    leases.set_state(conn, held.ip, 1, "error", "503")
    conn.execute("UPDATE addresses SET updated_at = now() - interval '31 s'")
    assert leases.claim(conn, second.id, 30, 1) == []
    _expire(conn, held.ip)
    assert len(leases.claim(conn, second.id, 30, 1)) == 1


def test_what_is_one_thing_at_the_provider_is_held_by_one_host(conn: Connection) -> None:
    pool = _pool(conn)
    first, second = _host(conn, "mx1"), _host(conn, "mx2")
    for number in (1, 2, 3):
        addresses.add(conn, f"2001:db8::{number}", pool.id, "static", "mx.example.com", provider_ref="net")
    assert [one.ip for one in leases.claim(conn, first.id, 30, 5)] == ["2001:db8::1"], "the first, and then the others"
    assert leases.claim(conn, second.id, 30, 5) == []
    assert [one.ip for one in leases.claim(conn, first.id, 30, 5)] == ["2001:db8::2"]
    addresses.ask_for(conn, "2001:db8::2", second.id)
    assert {one.next_host for one in addresses.list_(conn)} == {second.id}, "they move together"


def test_the_end_of_a_lease_that_nobody_gave_back_is_in_the_log(conn: Connection) -> None:
    _pool(conn, 1)
    [before] = _ready(conn, _host(conn, "mx1"))
    _expire(conn, before.ip)
    leases.claim(conn, _host(conn, "mx2").id, 30, 1)
    assert _events(conn, before.ip)[-2:] == [("expired", 1), ("claimed", 2)]
    [claimed, expired, *_] = addresses.events(conn, before.ip, 5)
    assert (claimed.host, expired.host, expired.detail[:7]) == ("mx2", "mx1", "until: ")


def test_the_time_in_a_state_is_counted_from_its_first_reason(conn: Connection) -> None:
    _pool(conn, 1)
    [held] = _ready(conn, _host(conn, "mx1"))
    leases.set_state(conn, held.ip, 1, "error", "one")
    first = addresses.get(conn, held.ip)
    leases.set_state(conn, held.ip, 1, "error", "two")
    second = addresses.get(conn, held.ip)
    assert first is not None and second is not None
    assert (second.updated_at, second.last_error) == (first.updated_at, "two")


def test_two_hosts_cannot_be_the_same_server_unless_one_is_retired(conn: Connection) -> None:
    first = addresses.register_host(conn, "mx1", "upcloud", "uuid", "", 5, "1")
    with pytest.raises(Refused, match="Another host has this server_ref"):
        addresses.register_host(conn, "mx2", "upcloud", "uuid", "", 5, "1")
    addresses.desire(conn, first.id, "retired")
    assert addresses.register_host(conn, "mx2", "upcloud", "uuid", "", 5, "1").name == "mx2"


# What outbound may send from


def test_only_what_is_published_under_the_running_lease_is_held(conn: Connection) -> None:
    pool = _pool(conn, 4)
    host = _host(conn, "mx1")
    ready, claimed, draining, disabled = leases.claim(conn, host.id, 30, 4)
    other = _host(conn, "mx2")
    assert leases.held_by(conn, host.id) == []
    for address in (ready, draining, disabled):
        leases.set_state(conn, address.ip, 1, "ready")
    leases.set_state(conn, draining.ip, 1, "draining")
    addresses.disable(conn, disabled.ip)
    [held] = leases.held_by(conn, host.id)
    assert (held.ip, held.epoch, held.ptr_name, held.pool_id) == (ready.ip, 1, ready.ptr_name, pool.id)
    assert 25 < held.seconds_left <= 30
    assert leases.held_by(conn, other.id) == []
    assert claimed.state == "claimed"


def test_the_last_seconds_of_a_lease_are_not_used(conn: Connection) -> None:
    _pool(conn, 1)
    host = _host(conn, "mx1")
    _ready(conn, host)
    conn.execute("UPDATE addresses SET lease_until = clock_timestamp() + interval '4.9 s'")
    assert leases.held_by(conn, host.id) == []


# The choice


def test_in_pools_tells_which_are_ready_and_leaves_out_the_disabled(conn: Connection) -> None:
    shared, dedicated, empty = _pool(conn, 3), _pool(conn, 1, "dedicated"), _pool(conn, 0, "empty")
    host = _host(conn, "mx1")
    [first, second, *_] = _ready(conn, host)
    addresses.disable(conn, second.ip)
    _expire(conn, "198.51.100.101")
    assert first.ip == "198.51.100.1"
    assert sources.in_pools(conn, [shared.id, dedicated.id, empty.id]) == {
        shared.id: [Candidate("198.51.100.1", True), Candidate("198.51.100.3", True)],
        dedicated.id: [Candidate("198.51.100.101", False)],
        empty.id: [],
    }


KEYS = [f"key {number}".encode() for number in range(400)]
ALL = [Candidate(f"198.51.100.{number}", True) for number in range(1, 5)]


def test_the_choice_is_the_same_whatever_the_order_and_spreads(conn: Connection) -> None:
    chosen = {key: sources.choose(ALL, key) for key in KEYS}
    assert chosen == {key: sources.choose(ALL[::-1], key) for key in KEYS}
    assert min(Counter(chosen.values()).values()) > 60
    assert set(chosen.values()) == {candidate.ip for candidate in ALL}


def test_when_an_address_goes_only_its_own_keys_move() -> None:
    gone, left = ALL[0], ALL[1:]
    for key in KEYS:
        before = sources.choose(ALL, key)
        after = sources.choose(left, key)
        assert after == before if before != gone.ip else after in {candidate.ip for candidate in left}


def test_ready_addresses_go_first_then_any_then_none() -> None:
    some = [Candidate("198.51.100.1", False), Candidate("198.51.100.2", True), Candidate("198.51.100.3", False)]
    assert {sources.choose(some, key) for key in KEYS} == {"198.51.100.2"}
    none_ready = [Candidate(candidate.ip, False) for candidate in some]
    assert {sources.choose(none_ready, key) for key in KEYS} == {candidate.ip for candidate in some}
    assert sources.choose([], b"key") is None


def test_the_choice_is_the_one_it_was_in_earlier_versions() -> None:
    """Another hash would move every sender to another address, and its reputation with it."""
    assert [sources.choose(ALL, key) for key in (b"a", b"b", b"c", b"d", b"e")] == [
        "198.51.100.1",
        "198.51.100.2",
        "198.51.100.1",
        "198.51.100.2",
        "198.51.100.4",
    ]


# Mail whose address went away


def _mail(conn: Connection, pool: Pool, *sources: str | None, status: str = "accepted") -> list[DeliveryId]:
    """A message of the pool with one recipient per source; the deliveries in order."""
    organization = organizations.create(conn, "Example")
    project = projects.create(conn, organization.id, "Mail")
    message_id = MessageId(ids.new())
    now = datetime.now(UTC)
    new = messages.NewMessage(
        id=message_id,
        organization_id=organization.id,
        project_id=project.id,
        domain_id=DomainId(ids.new()),
        smtp_credential_id=None,
        api_key_id=None,
        pool_id=pool.id,
        created_at=now,
        expires_at=now + timedelta(days=1),
        mail_from="a@example.com",
        header_from="a@example.com",
        subject="",
        message_id_header="<a@example.com>",
        label=None,
        eight_bit=False,
        smtputf8=False,
        raw=b"\r\n",
        deliveries=tuple(
            messages.NewDelivery(f"{number}@example.net", "example.net", status, source)
            for number, source in enumerate(sources)
        ),
    )
    messages.insert_many(conn, [new])
    return [delivery.id for delivery in messages.deliveries(conn, organization.id, [message_id])]


def test_orphans_are_those_without_an_enabled_address_of_their_pool(conn: Connection) -> None:
    pool = _pool(conn, 2)
    _pool(conn, 1, "dedicated")
    addresses.disable(conn, "198.51.100.2")
    good, none, disabled, unknown, foreign = _mail(
        conn, pool, "198.51.100.1", None, "198.51.100.2", "198.51.100.77", "198.51.100.101"
    )
    found = sources.orphaned(conn, 100)
    assert {orphan.delivery_id for orphan in found} == {none, disabled, unknown, foreign}
    assert good not in {orphan.delivery_id for orphan in found}
    assert {(orphan.pool_id, orphan.domain) for orphan in found} == {(pool.id, "example.net")}
    assert {orphan.source for orphan in found} == {None, "198.51.100.2", "198.51.100.77", "198.51.100.101"}
    assert len(sources.orphaned(conn, 3)) == 3


def test_finished_and_claimed_mail_is_no_orphan_until_the_claim_is_over(conn: Connection) -> None:
    pool = _pool(conn, 1)
    _mail(conn, pool, None, "198.51.100.77", status="delivered")
    [claimed] = _mail(conn, pool, "198.51.100.77")
    conn.execute(
        "UPDATE deliveries SET claimed_by = %s, next_attempt_at = now() + interval '1 minute' WHERE id = %s",
        [ids.new(), claimed],
    )
    assert sources.orphaned(conn, 100) == []
    assert sources.move(conn, [(claimed, "198.51.100.1")]) == []
    conn.execute("UPDATE deliveries SET next_attempt_at = clock_timestamp() WHERE id = %s", [claimed])
    assert [orphan.delivery_id for orphan in sources.orphaned(conn, 100)] == [claimed]


def test_mail_without_address_waits_quietly_while_its_pool_has_none(conn: Connection) -> None:
    pool = _pool(conn)
    [none, lost] = _mail(conn, pool, None, "198.51.100.77")
    assert [orphan.delivery_id for orphan in sources.orphaned(conn, 100)] == [lost]
    assert [moved.source for moved in sources.move(conn, [(lost, None)])] == [None]
    assert sources.orphaned(conn, 100) == []
    addresses.add(conn, "198.51.100.1", pool.id, "static", "mx1.example.com")
    assert {orphan.delivery_id for orphan in sources.orphaned(conn, 100)} == {none, lost}


def test_an_orphan_is_found_behind_a_long_queue_of_others(conn: Connection) -> None:
    """Healthy mail is claimed and goes; what nobody may claim comes to the front."""
    pool, other = _pool(conn, 1), _pool(conn, 0, "other")
    _mail(conn, pool, *["198.51.100.1"] * 50)
    conn.execute("UPDATE deliveries SET next_attempt_at = now() + interval '1 hour'")
    [foreign] = _mail(conn, other, "198.51.100.1")
    assert [orphan.delivery_id for orphan in sources.orphaned(conn, 5)] == [foreign]


def test_moved_mail_has_its_new_source_and_an_entry_in_the_timeline(conn: Connection) -> None:
    pool = _pool(conn, 2)
    [delivery] = _mail(conn, pool, "198.51.100.77")
    due = conn.execute("SELECT next_attempt_at FROM deliveries WHERE id = %s", [delivery]).fetchone()
    [moved] = sources.move(conn, [(delivery, "198.51.100.2")])
    assert (moved.delivery_id, moved.source) == (delivery, "198.51.100.2")
    rows = conn.execute("SELECT host(source), next_attempt_at FROM deliveries WHERE id = %s", [delivery]).fetchall()
    assert due is not None and rows == [("198.51.100.2", due[0])]
    entries = conn.execute("SELECT kind, host(source) FROM timeline WHERE delivery_id = %s", [delivery]).fetchall()
    assert entries == [("moved", "198.51.100.2")]
    assert sources.move(conn, [(delivery, "198.51.100.2")]) == [], "it is there already"
    assert sources.move(conn, []) == []


def test_mail_never_moves_out_of_its_pool(conn: Connection) -> None:
    pool = _pool(conn, 1)
    _pool(conn, 1, "dedicated")
    [delivery] = _mail(conn, pool, "198.51.100.77")
    assert sources.move(conn, [(delivery, "198.51.100.101")]) == []
    assert [orphan.source for orphan in sources.orphaned(conn, 9)] == ["198.51.100.77"]


def test_in_use_is_what_somebody_sends_from(conn: Connection) -> None:
    pool = _pool(conn, 2)
    first, second = _mail(conn, pool, "198.51.100.1", "198.51.100.2")
    both = ["198.51.100.1", "198.51.100.2"]
    assert leases.in_use(conn, both) == set()
    conn.execute(
        "UPDATE deliveries SET claimed_by = %s, next_attempt_at = now() + interval '1 minute' WHERE id = %s",
        [ids.new(), second],
    )
    assert leases.in_use(conn, both) == {"198.51.100.2"}
    assert first != second


def test_old_events_are_forgotten_in_batches(conn: Connection) -> None:
    _pool(conn, 3)
    conn.execute("UPDATE address_events SET at = now() - interval '31 days' WHERE ip <> '198.51.100.3'")
    assert addresses.remove_old_events(conn, 30, 1) == 1
    assert addresses.remove_old_events(conn, 30, 100) == 1
    assert _events(conn, "198.51.100.3") == [("added", 0)]
