"""Publishing and listening.

A publisher publishes to every endpoint and a subscriber listens to every one, so that one dead broker is not noticed
and a note comes once from each of the others; the second is dropped by its number. A note is three frames: topic,
publisher and number, payload. Numbers count per publisher and topic, since a subscriber sees only its topics; a missing
number becomes a `Gap`. All sockets use CURVE (RFC 26/ZMTP-CURVE of the ZeroMQ project): the broker proves itself by its key
and lets in only keys it knows.
"""

import asyncio
import os
import struct
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Iterable
from typing import Any
from uuid import uuid4

import zmq
import zmq.asyncio

from remails import metrics
from remails.bus import events
from remails.config import Bus
from remails.errors import ConfigError
from remails.logs import Log

log = Log("remails.bus")

_HEADER = struct.Struct("!8sQ")
_MOST_PUBLISHERS = 10_000
_ROUND_TRIP = 2.0
_AT_ONCE = 100  # notes read before it is somebody else's turn


def secure(socket: "zmq.Socket[Any]", settings: Bus, client_key: str) -> None:
    """Give a client's socket its CURVE keys and the options that notice a dead peer.

    Raises:
        ConfigError: a key is missing or malformed; the text names it.
    """
    if len(settings.server_public_key) != 40:
        raise ConfigError("bus.server_public_key: expected the brokers' CURVE public key, 40 characters of Z85")
    try:
        public = zmq.curve_public(client_key.encode())
    except (ValueError, zmq.ZMQError):
        raise ConfigError("credential bus_client_key: expected a CURVE secret key, 40 characters of Z85") from None
    socket.curve_serverkey = settings.server_public_key.encode()
    socket.curve_publickey, socket.curve_secretkey = public, client_key.encode()
    tune(socket)


def tune(socket: "zmq.Socket[Any]") -> None:
    """Options of every socket on the bus."""
    socket.set(zmq.LINGER, 200)
    socket.set(zmq.HEARTBEAT_IVL, 5000)
    socket.set(zmq.HEARTBEAT_TIMEOUT, 15000)
    socket.set(zmq.RECONNECT_IVL, 100)
    socket.set(zmq.RECONNECT_IVL_MAX, 1000)
    # A slow peer loses notes rather than growing our memory; what is lost is found in the database.
    socket.set(zmq.SNDHWM, 10_000)
    socket.set(zmq.RCVHWM, 10_000)


class Publisher:
    """Says notes to all brokers. Thread-safe, never blocks, never raises for a dead bus.

    The socket opens at the first use in a process, so a publisher may be made before gunicorn forks.
    """

    def __init__(self, settings: Bus, client_key: str) -> None:
        self._settings, self._key = settings, client_key
        self._lock = threading.Lock()
        self._socket: zmq.Socket[bytes] | None = None
        self._pid = 0
        self._id = b""
        self._numbers: Counter[str] = Counter()

    def open(self) -> None:
        """Connect now, so that the first note is not lost; without endpoints there is no bus. Raises ConfigError for bad keys."""
        if self._settings.endpoints:
            with self._lock:
                self._opened()

    def publish(self, event: events.Event) -> None:
        """Say one note."""
        if not self._settings.endpoints:
            return
        topic, payload = event.topic, events.encode(event)
        with self._lock:
            socket = self._opened()
            number = self._numbers[topic] = self._numbers[topic] + 1
            try:
                socket.send_multipart([topic.encode(), _HEADER.pack(self._id, number), payload], zmq.DONTWAIT)
                metrics.NOTES_SENT.add()
            except zmq.ZMQError as error:
                metrics.NOTES_UNSENT.add()
                log.debug("note lost", topic=topic, reason=error)

    def close(self) -> None:
        """Let go of the socket, after a moment for what was just said."""
        with self._lock:
            if self._socket is not None and self._pid == os.getpid():
                self._socket.close()
                self._socket = None

    def _opened(self) -> "zmq.Socket[bytes]":
        if self._socket is None or self._pid != os.getpid():
            # A context must not be carried across fork, so each process has its own.
            socket = zmq.Context().socket(zmq.PUB) if self._pid else zmq.Context.instance().socket(zmq.PUB)
            try:
                secure(socket, self._settings, self._key)
                for endpoint in self._settings.endpoints:
                    connect(socket, endpoint.publish, "publish")
            except ConfigError:
                socket.close(0)
                raise
            self._socket, self._pid, self._id = socket, os.getpid(), os.urandom(8)
            self._numbers.clear()
        return self._socket


class Subscriber:
    """Hears the notes of some topics; `async for event in subscriber`."""

    def __init__(self, settings: Bus, client_key: str, topics: Iterable[str] = ()) -> None:
        self._socket: zmq.asyncio.Socket = zmq.asyncio.Context.instance().socket(zmq.SUB)
        self._last: OrderedDict[tuple[bytes, str], int] = OrderedDict()
        try:
            secure(self._socket, settings, client_key)
            for topic in topics:
                self.subscribe(topic)
            for endpoint in settings.endpoints:
                connect(self._socket, endpoint.subscribe, "subscribe")
        except ConfigError:
            self._socket.close(0)
            raise

    def subscribe(self, topic: str) -> None:
        """Hear this topic from now on."""
        self._socket.subscribe(topic.encode())

    def unsubscribe(self, topic: str) -> None:
        """Hear it no longer."""
        self._socket.unsubscribe(topic.encode())

    def close(self) -> None:
        """Stop listening."""
        self._socket.close(0)

    async def __aiter__(self) -> AsyncIterator[events.Event | events.Gap]:
        while True:
            # What has come already is read without a turn of the loop for each, which may be slow.
            for _ in range(_AT_ONCE):
                for event in self._read(await self._socket.recv_multipart()):
                    yield event
            await asyncio.sleep(0)

    def _read(self, frames: list[bytes]) -> list[events.Event | events.Gap]:
        try:
            topic_frame, header, payload = frames
            publisher, number = _HEADER.unpack(header)
            topic = topic_frame.decode()
            event = events.decode(topic, payload)
        except (ValueError, struct.error) as error:
            log.warning("note not understood", reason=error)
            return []
        last = self._last.get((publisher, topic), number - 1)
        if number <= last and last != number - 1:
            return []  # the same note by way of another broker
        self._remember(publisher, topic, number)
        metrics.NOTES_RECEIVED.add()
        if number == last + 1:
            return [event]
        metrics.NOTES_MISSED.add()
        return [events.Gap(topic), event]

    def _remember(self, publisher: bytes, topic: str, number: int) -> None:
        self._last[publisher, topic] = number
        self._last.move_to_end((publisher, topic))
        if len(self._last) > _MOST_PUBLISHERS:
            self._last.popitem(last=False)


def speak_ipv6(socket: "zmq.Socket[Any]", url: str) -> None:
    """Let a socket take an IPv6 address, such as `tcp://[2001:db8::5]:5561`; ZeroMQ takes none by default."""
    socket.set(zmq.IPV6, "[" in url)


def connect(socket: "zmq.Socket[Any]", url: str, name: str) -> None:
    """Connect one socket; raises ConfigError naming the setting."""
    speak_ipv6(socket, url)
    try:
        socket.connect(url)
    except zmq.ZMQError as error:
        raise ConfigError(f"bus.endpoints: {name}: cannot use {url!r}: {error.strerror}") from None


async def round_trip(settings: Bus, client_key: str) -> float:
    """Say a note until it is heard; seconds until then. Raises TimeoutError, ConfigError."""
    note = events.AddressesChanged(f"probe-{uuid4()}")
    subscriber, publisher = Subscriber(settings, client_key, [note.topic]), Publisher(settings, client_key)

    async def speak() -> None:
        while True:
            publisher.publish(note)
            await asyncio.sleep(0.02)

    start, speaking = time.monotonic(), asyncio.create_task(speak())
    try:
        async with asyncio.timeout(_ROUND_TRIP):
            async for event in subscriber:
                if event == note:
                    break
    finally:
        speaking.cancel()
        publisher.close()
        subscriber.close()
    return time.monotonic() - start
