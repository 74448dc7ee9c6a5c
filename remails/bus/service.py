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

from remails import service
from remails.bus import client
from remails.config import Bus, Settings
from remails.errors import ConfigError
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
        self._auth.configure_curve_callback(domain="*", credentials_provider=_Known(settings.client_public_keys))
        try:
            self._inward = self._bind(zmq.XSUB, server_key, "listen_publish", settings.listen_publish)
            self._outward = self._bind(zmq.XPUB, server_key, "listen_subscribe", settings.listen_subscribe)
        except ConfigError:
            self._auth.stop()
            self._context.destroy(0)
            raise
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

    def close(self) -> None:
        """Stop forwarding."""
        self._auth.stop()
        self._context.term()
        self.thread.join()


def main(settings: Settings) -> None:
    """Run the broker until SIGTERM."""

    async def serve(stop: asyncio.Event) -> None:
        broker = Broker(settings.bus, settings.credential("bus_server_key"))
        broker.thread.start()
        service.ready(f"forwarding {settings.bus.listen_publish} to {settings.bus.listen_subscribe}")
        while not await service.pause(stop, 1.0):
            if not broker.thread.is_alive():
                raise RuntimeError("the forwarder's thread ended")
        broker.close()

    service.run("bus", settings, serve)
