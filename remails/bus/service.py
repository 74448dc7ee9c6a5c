"""The broker.

NAME
    bus - forwards notes from every publisher to every subscriber

DESCRIPTION
    An XSUB/XPUB forwarder. Best effort: it keeps nothing, and a note that finds no listener is gone. Nothing in the
    system depends on it; without it mail is still taken, and found by the sending hosts a second later. Run one, or
    several on different hosts: publishers publish to all and subscribers listen to all.

STANDARDS
    ZMTP 3.1, CURVE (ZeroMQ RFC 23, 26), ZAP (ZeroMQ RFC 27)

DIAGNOSTICS
    Refused keys are logged as warnings. Exit status 78: a setting or credential is wrong, or a port is taken.

CONFIGURATION
    [bus] listen_publish, listen_subscribe, client_public_keys; credential bus_server_key
"""

import asyncio
import threading

import zmq
from zmq.auth.thread import ThreadAuthenticator

from remails import metrics, service
from remails.bus import client
from remails.config import Bus, BusEndpoint, Settings
from remails.errors import ConfigError, Unavailable
from remails.logs import Log

log = Log("remails.bus")


class _Known:
    """Answers ZAP's question whether a client's key is one of ours."""

    def __init__(self, keys: tuple[str, ...]) -> None:
        self._keys = {key.encode() for key in keys}

    def callback(self, domain: str, key: bytes) -> bool:
        """Called by the authenticator's thread for each connection."""
        known = key in self._keys
        if not known:
            metrics.BUS_CLIENTS_REFUSED.add()
            log.warning("client refused, its key is not in bus.client_public_keys", domain=domain)
        return known


class Broker:
    """The forwarder, in a thread of its own: `zmq.proxy` runs without Python's lock."""

    def __init__(self, settings: Bus, server_key: str) -> None:
        if not settings.client_public_keys:
            raise ConfigError("bus.client_public_keys: empty, so nobody could connect")
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._auth = ThreadAuthenticator(self._context)
        self._auth.start()
        probe_key, self._probe_secret = zmq.curve_keypair()
        known = _Known((*settings.client_public_keys, probe_key.decode()))
        self._auth.configure_curve_callback(domain="*", credentials_provider=known)
        try:
            self._inward = self._bind(zmq.XSUB, server_key, "listen_publish", settings.listen_publish)
            self._outward = self._bind(zmq.XPUB, server_key, "listen_subscribe", settings.listen_subscribe)
        except ConfigError:
            self._auth.stop()
            self._context.destroy(0)
            raise
        endpoint = BusEndpoint(publish=_near(self._inward), subscribe=_near(self._outward))
        public_key = zmq.curve_public(server_key.encode()).decode()
        self._probe = Bus(endpoints=(endpoint,), server_public_key=public_key)
        self.thread = threading.Thread(target=self._forward, name="broker", daemon=True)

    def _bind(self, kind: int, server_key: str, name: str, url: str) -> "zmq.Socket[bytes]":
        socket = self._context.socket(kind)
        try:
            socket.curve_publickey = zmq.curve_public(server_key.encode())
            socket.curve_secretkey = server_key.encode()
        except (ValueError, zmq.ZMQError):
            raise ConfigError("credential bus_server_key: expected a CURVE secret key, 40 characters of Z85") from None
        socket.curve_server = True
        client.tune(socket)
        client.speak_ipv6(socket, url)
        try:
            socket.bind(url)
        except zmq.ZMQError as error:
            raise ConfigError(f"bus.{name}: cannot listen on {url}: {error.strerror}") from None
        return socket

    def _forward(self) -> None:
        try:
            zmq.proxy(self._inward, self._outward)
        except zmq.ContextTerminated:
            pass
        finally:
            self._inward.close(0)
            self._outward.close(0)

    async def check(self) -> None:
        """See, as a client of a key of its own, that a note goes through. Raises Unavailable."""
        try:
            await client.round_trip(self._probe, self._probe_secret.decode())
        except TimeoutError:
            raise Unavailable(f"no note goes through {self._probe.endpoints[0].publish}") from None

    def close(self) -> None:
        """Stop forwarding."""
        self._auth.stop()
        self._context.term()
        self.thread.join()


def _near(socket: "zmq.Socket[bytes]") -> str:
    """How to reach a socket from this host."""
    bound = socket.getsockopt_string(zmq.LAST_ENDPOINT)
    return bound.replace("//0.0.0.0:", "//127.0.0.1:").replace("//[::]:", "//[::1]:")


def main(settings: Settings) -> None:
    """Run the broker until SIGTERM."""

    async def serve(stop: asyncio.Event) -> None:
        broker = Broker(settings.bus, settings.credential("bus_server_key"))
        broker.thread.start()

        async def look() -> str:
            await broker.check()
            return f"forwarding {settings.bus.listen_publish} to {settings.bus.listen_subscribe}"

        telling = asyncio.create_task(service.report(stop, look))
        while not await service.pause(stop, 1.0):
            if not broker.thread.is_alive():
                raise RuntimeError("the forwarder's thread ended")
        await telling
        broker.close()

    service.run("bus", settings, serve)
