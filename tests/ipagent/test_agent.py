"""The agent's life with its addresses: on a real PostgreSQL, with real sockets, and as a real process."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from fakes.openstack import FloatingIp, OpenStack, Port

from remails import config
from remails.bus.client import Publisher, Subscriber
from remails.bus.events import AddressesChanged
from remails.bus.service import Broker
from remails.config import Bus, IpAgent, Mail, Settings
from remails.db import Connection, Database
from remails.errors import ConfigError, Unavailable
from remails.ipagent import providers, service
from remails.ipagent.agent import Agent
from remails.store import addresses, ids, leases
from remails.store.addresses import Address, Pool
from remails.store.leases import Held

HERE = ["127.0.0.11", "127.0.0.12", "127.0.0.13", "127.0.0.14"]
ELSEWHERE = "203.0.113.9"  # RFC 5737: on no host


@pytest.fixture
def settings(database: config.Database, credentials: Path) -> Settings:
    """One host's settings."""
    return Settings(
        host="mx1",
        mail=Mail(hostname="relay.example.com"),
        database=database,
        credentials_directory=str(credentials),
        ipagent=IpAgent(lease=30, interval=0.05),
    )


@pytest.fixture
def pool(db: Database) -> Pool:
    """An empty pool."""
    return db.run(addresses.create_pool, "shared")


def _add(db: Database, pool: Pool, *ips: str, bind_ip: str | None = None) -> None:
    for ip in ips:
        db.run(addresses.add, ip, pool.id, "static", "mx.example.com", bind_ip=bind_ip)


def _agent(settings: Settings, db: Database, host: str = "mx1", publisher: Publisher | None = None) -> Agent:
    settings = msgspec.structs.replace(settings, host=host)
    return Agent(settings, db, publisher or Publisher(settings.bus, ""), providers.make(settings))


def _turn(*agents: Agent) -> None:
    async def turns() -> None:
        await asyncio.gather(*(agent.turn() for agent in agents))

    asyncio.run(turns())


def _get(db: Database, ip: str) -> Address:
    address = db.run(addresses.get, ip)
    assert address is not None
    return address


def _held(db: Database, host: str = "mx1") -> list[Held]:
    def read(conn: Connection) -> list[Held]:
        found = addresses.host_by_name(conn, host)
        return leases.held_by(conn, found.id) if found else []

    return db.run(read)


def _until(condition: Callable[[], object], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.02)


def _events(db: Database, ip: str) -> list[tuple[str, int]]:
    return db.run(
        lambda conn: conn.execute("SELECT kind, epoch FROM address_events WHERE ip = %s ORDER BY id", [ip]).fetchall()
    )


def test_an_address_of_this_host_is_ready_after_one_turn(settings: Settings, db: Database, pool: Pool) -> None:
    _add(db, pool, *HERE)
    _turn(_agent(settings, db))
    assert [(held.ip, held.epoch) for held in _held(db)] == [(ip, 1) for ip in HERE]
    host = db.run(addresses.host_by_name, "mx1")
    assert host is not None and (host.provider, host.heartbeat_at is not None) == ("static", True)


def test_it_says_what_it_holds_but_not_before_it_knows(settings: Settings, db: Database, pool: Pool) -> None:
    _add(db, pool, HERE[0], ELSEWHERE)
    agent = _agent(settings, db)
    with pytest.raises(Unavailable, match="does not get to the end of a turn"):
        agent.state()
    _turn(agent)  # what it then says is of the turn's beginning
    _turn(agent)
    assert agent.state() == "1 of 2 addresses ready"


def test_what_is_ready_stays_ready_without_a_new_event(settings: Settings, db: Database, pool: Pool) -> None:
    _add(db, pool, HERE[0])
    agent = _agent(settings, db)
    for _ in range(3):
        _turn(agent)
    assert _events(db, HERE[0]) == [("added", 0), ("claimed", 1), ("ready", 1)]


def test_two_agents_racing_never_hold_the_same_address(settings: Settings, db: Database, pool: Pool) -> None:
    _add(db, pool, *[f"127.0.1.{number}" for number in range(1, 9)])
    first, second = _agent(settings, db, "mx1"), _agent(settings, db, "mx2")
    for _ in range(5):
        _turn(first, second)
        ours, theirs = ({held.ip for held in _held(db, host)} for host in ("mx1", "mx2"))
        assert not ours & theirs
    assert len(ours | theirs) == 8


def test_an_address_that_is_not_here_is_in_error_with_the_reason(
    settings: Settings, db: Database, pool: Pool, caplog: pytest.LogCaptureFixture
) -> None:
    """O09: known here, before any mail meets it."""
    _add(db, pool, ELSEWHERE)
    agent = _agent(settings, db)
    _turn(agent)
    _turn(agent)
    address = _get(db, ELSEWHERE)
    assert address.state == "error"
    assert address.last_error == f"cannot bind {ELSEWHERE} on this host: Cannot assign requested address"
    assert _held(db) == []
    assert [record.levelname for record in caplog.records if record.message == "address cannot be used"] == ["ERROR"]
    assert [kind for kind, _ in _events(db, ELSEWHERE)] == ["added", "claimed", "attaching", "error"]


def test_an_address_that_leaves_the_host_is_unpublished_and_comes_back(
    settings: Settings, db: Database, pool: Pool
) -> None:
    _add(db, pool, ELSEWHERE, bind_ip=HERE[0])
    agent = _agent(settings, db)

    def bind_to(ip: str | None) -> None:
        db.run(lambda conn: conn.execute("UPDATE addresses SET bind_ip = %s", [ip]))
        _turn(agent)

    _turn(agent)
    assert [(held.ip, held.bind_ip) for held in _held(db)] == [(ELSEWHERE, HERE[0])]
    bind_to(None)
    assert (_held(db), _get(db, ELSEWHERE).state) == ([], "error")
    bind_to(HERE[1])
    assert [(held.bind_ip, held.epoch) for held in _held(db)] == [(HERE[1], 1)]
    assert _get(db, ELSEWHERE).last_error == ""


def test_an_address_in_error_is_left_to_the_host_that_has_it(settings: Settings, db: Database, pool: Pool) -> None:
    _add(db, pool, ELSEWHERE)
    _turn(_agent(settings, db, "mx1"))
    db.run(
        lambda conn: conn.execute(
            "UPDATE addresses SET updated_at = now() - interval '1 minute', bind_ip = %s", [HERE[0]]
        )
    )
    _turn(_agent(settings, db, "mx2"))
    assert [(held.ip, held.epoch) for held in _held(db, "mx2")] == [(ELSEWHERE, 2)]


def test_the_addresses_of_a_dead_host_move_with_a_higher_epoch(settings: Settings, db: Database, pool: Pool) -> None:
    _add(db, pool, *HERE[:2])
    short = msgspec.structs.replace(settings, ipagent=IpAgent(lease=1, interval=0.05))
    dead, heir = _agent(short, db, "mx1"), _agent(short, db, "mx2")
    _turn(dead)
    assert {address.lease_epoch for address in db.run(addresses.list_)} == {1}

    def moved() -> bool:
        _turn(heir)
        return {(address.lease_epoch, address.state) for address in db.run(addresses.list_)} == {(2, "ready")}

    _until(moved)
    _turn(dead)
    host = db.run(addresses.host_by_name, "mx2")
    assert host is not None
    assert {address.lease_host for address in db.run(addresses.list_)} == {host.id}


def test_losing_a_lease_is_told(settings: Settings, db: Database, pool: Pool, caplog: pytest.LogCaptureFixture) -> None:
    _add(db, pool, HERE[0])
    agent = _agent(settings, db, "mx1")
    _turn(agent)
    db.run(lambda conn: conn.execute("UPDATE addresses SET lease_until = now()"))
    _turn(_agent(settings, db, "mx2"))
    _turn(agent)
    assert "lease lost, another host may hold the address now" in caplog.messages


def test_a_lease_that_cannot_be_renewed_in_time_is_said_loudly_and_once(
    settings: Settings, db: Database, pool: Pool, caplog: pytest.LogCaptureFixture
) -> None:
    _add(db, pool, HERE[0])
    agent = _agent(msgspec.structs.replace(settings, ipagent=IpAgent(lease=0.3, interval=0.05)), db)
    _turn(agent)
    agent.fence.check()
    assert "ERROR" not in {record.levelname for record in caplog.records}

    def told() -> list[str]:
        agent.fence.check()
        return [record.message for record in caplog.records if record.levelname == "ERROR"]

    _until(told)
    assert told() == ["lease ended, database not reached in time: nothing leaves from this address"]


def test_draining_waits_for_what_is_under_way_then_releases(settings: Settings, db: Database, pool: Pool) -> None:
    _add(db, pool, HERE[0])
    agent = _agent(settings, db)
    _turn(agent)
    host = db.run(addresses.host_by_name, "mx1")
    assert host is not None
    db.run(_one_claimed_delivery, pool, host.id)
    db.run(addresses.desire, host.id, "drain")
    _turn(agent)
    assert (_held(db), _get(db, HERE[0]).state) == ([], "draining")
    _turn(agent)
    assert _get(db, HERE[0]).lease_host == host.id
    db.run(lambda conn: conn.execute("UPDATE deliveries SET claimed_by = NULL"))
    _turn(agent)
    address = _get(db, HERE[0])
    assert (address.state, address.lease_host) == ("free", None)
    _turn(agent)
    assert _get(db, HERE[0]) == address, "a draining host takes nothing"
    _turn(_agent(settings, db, "mx2"))
    assert [(held.ip, held.epoch) for held in _held(db, "mx2")] == [(HERE[0], 2)]


def _one_claimed_delivery(conn: Connection, pool: Pool, host_id: ids.HostId) -> None:
    organization_id, project_id, message_id = ids.new(), ids.new(), ids.new()
    conn.execute("INSERT INTO organizations (id, name) VALUES (%s, 'Example')", [organization_id])
    conn.execute(
        "INSERT INTO projects (id, organization_id, name) VALUES (%s, %s, 'Mail')", [project_id, organization_id]
    )
    conn.execute(
        """
        INSERT INTO messages (id, organization_id, project_id, domain_id, pool_id, expires_at, mail_from, header_from,
            subject, message_id_header, size, eight_bit, smtputf8)
        VALUES (%s, %s, %s, %s, %s, now() + interval '1 day', '', '', '', '', 0, false, false)
        """,
        [message_id, organization_id, project_id, ids.new(), pool.id],
    )
    conn.execute(
        """
        INSERT INTO deliveries (message_id, organization_id, recipient, domain, status, source, next_attempt_at, claimed_by)
        VALUES (%s, %s, 'a@example.net', 'example.net', 'accepted', %s, now() + interval '1 minute', %s)
        """,
        [message_id, organization_id, HERE[0], host_id],
    )


def test_a_disabled_address_is_given_back_and_an_enabled_one_taken_again(
    settings: Settings, db: Database, pool: Pool
) -> None:
    _add(db, pool, HERE[0])
    agent = _agent(settings, db)
    _turn(agent)
    db.run(addresses.disable, HERE[0])
    _turn(agent)
    _turn(agent)
    assert (_get(db, HERE[0]).state, _get(db, HERE[0]).lease_host) == ("free", None)
    db.run(addresses.enable, HERE[0])
    _turn(agent)
    assert [(held.ip, held.epoch) for held in _held(db)] == [(HERE[0], 2)]


def test_a_change_is_said_on_the_bus_and_no_change_is_not(
    settings: Settings, db: Database, pool: Pool, bus: Bus, credentials: Path
) -> None:
    _add(db, pool, HERE[0])
    key = (credentials / "bus_client_key").read_text()

    async def hear() -> list[object]:
        publisher, subscriber = Publisher(bus, key), Subscriber(bus, key, ["addresses/mx1/"])
        publisher.open()
        notes = aiter(subscriber)
        while True:  # until the two have found each other
            publisher.publish(AddressesChanged("mx1"))
            try:
                async with asyncio.timeout(0.2):
                    await anext(notes)
                break
            except TimeoutError:
                notes = aiter(subscriber)
        agent = _agent(settings, db, publisher=publisher)
        for _ in range(3):
            await agent.turn()
        publisher.publish(AddressesChanged("mx1"))
        async with asyncio.timeout(10):
            heard = [await anext(notes), await anext(notes)]
        subscriber.close()
        publisher.close()
        return heard

    assert asyncio.run(hear()) == [AddressesChanged("mx1")] * 2


def test_an_unknown_provider_is_refused_with_the_known_ones(settings: Settings) -> None:
    wrong = msgspec.structs.replace(settings, ipagent=IpAgent(provider="upclod"))
    with pytest.raises(
        ConfigError,
        match=r"^ipagent\.provider: unknown provider 'upclod', known are: hetzner, openstack, static, upcloud$",
    ):
        providers.make(wrong)


def test_a_lease_shorter_than_two_turns_is_refused(settings: Settings) -> None:
    wrong = msgspec.structs.replace(settings, ipagent=IpAgent(lease=9, interval=5))
    with pytest.raises(ConfigError, match=r"^ipagent\.lease: "):
        asyncio.run(service.serve(wrong, asyncio.Event()))


def test_an_openstack_address_is_sent_from_by_one_of_the_hosts_own(
    settings: Settings, db: Database, pool: Pool, tmp_path: Path
) -> None:
    """Which fixed address that is differs from host to host: the holder says so under its lease."""
    neutron = OpenStack()
    neutron.world.credentials = {"id": "secret"}
    neutron.world.ports = {"port-1": Port("port-1", "mx1", HERE[:2]), "port-2": Port("port-2", "mx2", HERE[2:])}
    neutron.world.floating_ips = {"fip": FloatingIp("fip", ELSEWHERE, "port-2", HERE[2])}
    db.run(addresses.add, ELSEWHERE, pool.id, "openstack", "mx.example.com", provider_ref="fip", bind_ip=HERE[2])
    (tmp_path / "provider_token").write_text("id:secret")
    with neutron.serving() as url:
        neutron.url = url
        mine = IpAgent(
            provider="openstack",
            provider_url=f"{url}/v3",
            server_ref="server-1",
            port_ref="port-1",
            fixed_addresses=tuple(HERE[:2]),
            max_addresses=2,
        )
        changed = msgspec.structs.replace(settings, ipagent=mine, credentials_directory=str(tmp_path))
        _turn(_agent(changed, db))
    assert [(held.ip, held.bind_ip) for held in _held(db)] == [(ELSEWHERE, HERE[0])]
    assert neutron.owners(neutron.world) == {ELSEWHERE: "mx1"}


# As a process


def _start(settings: Settings, directory: Path) -> "subprocess.Popen[bytes]":
    path = directory / "remails.toml"
    mine = settings.ipagent
    path.write_text(
        f"""
        host = "{settings.host}"
        credentials_directory = "{settings.credentials_directory}"
        mail.hostname = "{settings.mail.hostname}"
        database.dsn = "{settings.database.dsn}"
        ipagent = {{ provider = "{mine.provider}", lease = {mine.lease}, interval = {mine.interval} }}
        """
    )
    code = "from remails import config; from remails.ipagent import service; service.main(config.load())"
    return subprocess.Popen(
        [sys.executable, "-c", code], env={**os.environ, "REMAILS_CONFIG": str(path)}, stderr=subprocess.PIPE
    )


@pytest.fixture
def start(settings: Settings, tmp_path: Path) -> Iterator[Callable[..., "subprocess.Popen[bytes]"]]:
    """Starts the service as a process, which is gone after the test."""
    started: list[subprocess.Popen[bytes]] = []

    def begin(changed: Settings = settings) -> "subprocess.Popen[bytes]":
        started.append(_start(changed, tmp_path))
        return started[-1]

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def test_sigterm_ends_the_agent_and_keeps_its_leases_over_a_restart(
    start: Callable[[], "subprocess.Popen[bytes]"], db: Database, pool: Pool
) -> None:
    _add(db, pool, HERE[0])
    first = start()
    _until(lambda: _held(db))
    first.send_signal(signal.SIGTERM)
    assert first.wait(10) == 0
    assert [held.epoch for held in _held(db)] == [1]
    until = _get(db, HERE[0]).lease_until
    assert until is not None
    start()
    _until(lambda: (_get(db, HERE[0]).lease_until or until) > until)
    assert [kind for kind, _ in _events(db, HERE[0])] == ["added", "claimed", "ready"]


def test_a_wrong_setting_ends_the_process_with_one_sentence(
    settings: Settings, start: Callable[[Settings], "subprocess.Popen[bytes]"]
) -> None:
    process = start(msgspec.structs.replace(settings, ipagent=IpAgent(provider="upclod")))
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 78
    assert errors.decode().splitlines()[-1] == (
        "remails ipagent: ipagent.provider: unknown provider 'upclod', known are: hetzner, openstack, static, upcloud"
    )


@pytest.fixture
def bus(credentials: Path) -> Iterator[Bus]:
    """A running broker, as its clients reach it."""
    publish, subscribe = _free_ports(2)
    settings = Bus(
        endpoints=(config.BusEndpoint(publish=publish, subscribe=subscribe),),
        listen_publish=publish,
        listen_subscribe=subscribe,
        server_public_key=(credentials / "bus_server_key.pub").read_text(),
        client_public_keys=((credentials / "bus_client_key.pub").read_text(),),
    )
    broker = Broker(settings, (credentials / "bus_server_key").read_text())
    broker.thread.start()
    yield settings
    broker.close()


def _free_ports(count: int) -> list[str]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    urls = [f"tcp://127.0.0.1:{sock.getsockname()[1]}" for sock in sockets]
    for sock in sockets:
        sock.close()
    return urls
