"""The bus: notes arrive where they should, strangers neither hear nor say anything, nothing blocks when it is dead."""

import asyncio
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import UUID, uuid4

import pytest
import zmq
from msgspec import structs

from remails.bus import events, keys
from remails.bus.client import Publisher, Subscriber
from remails.bus.events import AddressesChanged, Attempt, Attempted, Event, Gap, Ready
from remails.bus.service import Broker
from remails.config import Bus, BusEndpoint
from remails.errors import ConfigError, Unavailable


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def settings(credentials: Path, brokers: int = 1) -> Bus:
    endpoints = tuple(
        BusEndpoint(publish=f"tcp://127.0.0.1:{free_port()}", subscribe=f"tcp://127.0.0.1:{free_port()}")
        for _ in range(brokers)
    )
    return Bus(
        endpoints=endpoints,
        server_public_key=(credentials / "bus_server_key.pub").read_text(),
        client_public_keys=((credentials / "bus_client_key.pub").read_text(),),
    )


def of_endpoint(bus: Bus, number: int) -> Bus:
    return Bus(
        listen_publish=bus.endpoints[number].publish,
        listen_subscribe=bus.endpoints[number].subscribe,
        client_public_keys=bus.client_public_keys,
    )


@contextmanager
def broker(bus: Bus, credentials: Path, number: int = 0) -> Iterator[Broker]:
    running = Broker(of_endpoint(bus, number), (credentials / "bus_server_key").read_text())
    running.thread.start()
    yield running
    running.close()


def key(credentials: Path) -> str:
    return (credentials / "bus_client_key").read_text()


async def connected(publisher: Publisher, subscriber: Subscriber, topic_event: Event) -> None:
    """Say a note until it is heard: PUB/SUB loses what is said before both are connected."""
    notes = aiter(subscriber)
    heard = asyncio.ensure_future(anext(notes))
    async with asyncio.timeout(10):
        while not heard.done():
            publisher.publish(topic_event)
            await asyncio.wait([heard], timeout=0.02)
    async with asyncio.timeout(10):  # swallow the rest of what was said for connecting
        marker = Ready(topic_event.source, [UUID(int=1)]) if isinstance(topic_event, Ready) else topic_event
        publisher.publish(marker)
        while await anext(notes) != marker:
            pass


async def heard(subscriber: Subscriber, last: Event) -> list[Event | Gap]:
    """What comes, up to this one."""
    found: list[Event | Gap] = []
    async with asyncio.timeout(10):
        async for event in subscriber:
            found.append(event)
            if event == last:
                break
    return found


def test_a_note_reaches_who_holds_the_address_and_nobody_else(credentials: Path) -> None:
    bus = settings(credentials)

    async def main() -> None:
        with broker(bus, credentials):
            publisher, subscriber = Publisher(bus, key(credentials)), Subscriber(bus, key(credentials))
            subscriber.subscribe("ready/198.51.100.7/")
            await connected(publisher, subscriber, Ready("198.51.100.7", []))
            ids = [uuid4()]
            publisher.publish(Ready("198.51.100.70", [uuid4()]))
            publisher.publish(Ready("198.51.100.7", ids))
            assert await heard(subscriber, Ready("198.51.100.7", ids)) == [Ready("198.51.100.7", ids)]
            publisher.close()
            subscriber.close()

    asyncio.run(main())


def test_a_bus_that_has_only_an_ipv6_address(credentials: Path) -> None:
    there = settings(credentials).endpoints[0]
    there = BusEndpoint(
        publish=there.publish.replace("127.0.0.1", "[::1]"), subscribe=there.subscribe.replace("127.0.0.1", "[::1]")
    )
    bus = structs.replace(settings(credentials), endpoints=(there,))

    async def main() -> None:
        with broker(bus, credentials) as running:
            await running.check()
            publisher, subscriber = Publisher(bus, key(credentials)), Subscriber(bus, key(credentials), ["ready/"])
            await connected(publisher, subscriber, Ready("2001:db8::7", []))
            publisher.close()
            subscriber.close()

    asyncio.run(main())


def test_two_brokers_give_each_note_once_and_one_may_die(credentials: Path) -> None:
    bus = settings(credentials, brokers=2)

    async def main() -> None:
        publisher, subscriber = Publisher(bus, key(credentials)), Subscriber(bus, key(credentials), ["ready/"])
        with broker(bus, credentials, 0):
            with broker(bus, credentials, 1):
                await connected(publisher, subscriber, Ready("192.0.2.1", []))
            notes = [Ready("192.0.2.1", [uuid4()]) for _ in range(5)]
            for note in notes:
                publisher.publish(note)
            assert await heard(subscriber, notes[-1]) == notes
        publisher.close()
        subscriber.close()

    asyncio.run(main())


def test_notes_that_have_come_are_read_without_a_turn_of_the_loop_for_each(credentials: Path) -> None:
    """A turn takes long on a busy loop, and notes come faster."""
    bus = settings(credentials)

    async def main() -> None:
        publisher = Publisher(bus, key(credentials))
        subscriber, other = (Subscriber(bus, key(credentials), ["ready/"]) for _ in range(2))
        with broker(bus, credentials):
            await connected(publisher, other, Ready("192.0.2.1", []))
            await connected(publisher, subscriber, Ready("192.0.2.2", []))
            notes = [Ready("192.0.2.3", [uuid4()]) for _ in range(200)]
            for note in notes:
                publisher.publish(note)
            assert notes[-1] in await heard(other, notes[-1])  # so they have come to both
            turns = 0

            async def count() -> None:
                nonlocal turns
                while True:
                    turns += 1
                    await asyncio.sleep(0)

            counting = asyncio.ensure_future(count())
            assert (await heard(subscriber, notes[-1]))[-200:] == notes
            counting.cancel()
            assert 0 < turns < 60
        publisher.close()
        subscriber.close()
        other.close()

    asyncio.run(main())


def test_a_lost_note_is_a_gap(credentials: Path) -> None:
    bus = settings(credentials)

    async def main() -> None:
        publisher, subscriber = Publisher(bus, key(credentials)), Subscriber(bus, key(credentials), ["ready/"])
        with broker(bus, credentials):
            await connected(publisher, subscriber, Ready("192.0.2.1", []))
            publisher._numbers["ready/192.0.2.1/"] += 1  # as if one had been said and was lost
            note = Ready("192.0.2.1", [uuid4()])
            publisher.publish(note)
            assert await heard(subscriber, note) == [Gap("ready/192.0.2.1/"), note]
        publisher.close()
        subscriber.close()

    asyncio.run(main())


def test_a_dead_bus_neither_blocks_nor_fails(credentials: Path) -> None:
    publisher = Publisher(settings(credentials), key(credentials))
    started = time.monotonic()
    for _ in range(20_000):
        publisher.publish(Ready("192.0.2.1", []))
    publisher.close()
    assert time.monotonic() - started < 5


def test_a_stranger_hears_nothing(credentials: Path) -> None:
    bus = settings(credentials)

    async def main() -> None:
        with broker(bus, credentials):
            publisher, subscriber = Publisher(bus, key(credentials)), Subscriber(bus, key(credentials), ["ready/"])
            stranger = Subscriber(bus, zmq.curve_keypair()[1].decode(), [""])
            forger = Publisher(bus, zmq.curve_keypair()[1].decode())
            forger.open()
            await connected(publisher, subscriber, Ready("192.0.2.1", []))
            forger.publish(Ready("192.0.2.1", [uuid4()]))
            note = Ready("192.0.2.1", [uuid4()])
            publisher.publish(note)
            assert await heard(subscriber, note) == [note]  # and not the forged one before it
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.5):
                    await anext(aiter(stranger))
            for sock in (publisher, subscriber, stranger, forger):
                sock.close()

    asyncio.run(main())


@pytest.mark.parametrize(
    "event",
    [
        Ready("2001:db8::1", [uuid4(), uuid4()]),
        Attempted(uuid4(), [Attempt(uuid4(), 7, "delivered")]),
        AddressesChanged("out1"),
    ],
)
def test_every_note_survives_the_wire(event: Event) -> None:
    assert events.decode(event.topic, events.encode(event)) == event


def test_nonsense_is_not_understood() -> None:
    with pytest.raises(ValueError, match="unknown topic"):
        events.decode("evil/x/", b"")
    with pytest.raises(ValueError, match="MessagePack"):
        events.decode("ready/x/", b"\xc1")


def test_wrong_keys_and_taken_ports_are_one_sentence(credentials: Path) -> None:
    bus = settings(credentials)
    with pytest.raises(ConfigError, match="credential bus_client_key: expected a CURVE secret key"):
        Publisher(bus, "short").open()
    with pytest.raises(ConfigError, match=r"bus\.server_public_key"):
        Publisher(Bus(endpoints=bus.endpoints), key(credentials)).open()
    with pytest.raises(ConfigError, match="credential bus_server_key"):
        Broker(of_endpoint(bus, 0), "short")
    with (
        broker(bus, credentials),
        pytest.raises(ConfigError, match=r"bus\.listen_publish: cannot listen on .*: Address already in use"),
    ):
        Broker(of_endpoint(bus, 0), (credentials / "bus_server_key").read_text())
    with pytest.raises(ConfigError, match=r"bus\.client_public_keys"):
        Broker(Bus(), (credentials / "bus_server_key").read_text())


def test_a_broker_knows_whether_notes_go_through_it(credentials: Path) -> None:
    bus = settings(credentials)
    with broker(bus, credentials) as running:
        asyncio.run(running.check())
    silent = Broker(of_endpoint(settings(credentials), 0), (credentials / "bus_server_key").read_text())
    try:
        with pytest.raises(Unavailable, match=r"no note goes through tcp://127\.0\.0\.1:"):
            asyncio.run(silent.check())  # nothing forwards: its thread has not begun
    finally:
        silent.thread.start()
        silent.close()


def test_ansible_takes_no_key_for_a_template() -> None:
    for _ in range(500):
        assert not any(begin in key for key in keys.generate_keys() for begin in ("{{", "{%", "{#"))
