"""The REST API and the web pages.

NAME
    api - REST API, its OpenAPI document and reader, and the web UI

DESCRIPTION
    gunicorn's arbiter holds the socket (systemd's, or its own) and its workers; each worker makes its own database pool
    and publisher after the fork and serves requests in threads. SIGHUP replaces the workers one by one and refuses
    nobody; a new version is started by a restart, during which systemd holds the socket and clients wait. TLS ends at
    the proxy in front, which is counted in api.trusted_proxies. Without the database every request that needs it is
    answered 503 with Retry-After, and the service goes on.

STANDARDS
    HTTP (RFC 9110, 9112), problem details (RFC 9457), Basic authentication (RFC 7617), cookies (RFC 6265), web links
    (RFC 8288), OpenAPI 3.1, JSON (RFC 8259)

DIAGNOSTICS
    One line for each request: method, route, status, milliseconds, id of who asked. An error answered to a client has a
    reference that stands in the log too. GET /api/healthy is 200 while the service can work, else 503. Exit status 78: a
    setting or credential is wrong, or the port is taken.

CONFIGURATION
    [api], [bans], [database], [bus] endpoints, [mail]; credentials database_password (optional), encryption_keys, pepper,
    bus_client_key (where there is a bus)
"""

import contextlib
import functools
import os
import selectors
import socket
import sys
import threading
import time
from logging import WARNING, getLogger
from typing import Any

import flask
import gunicorn.app.base
import gunicorn.arbiter
import gunicorn.glogging
import gunicorn.workers.gthread

from remails import config, logs, metrics, service
from remails.api.app import create_app
from remails.api.state import State
from remails.bus.client import Publisher
from remails.config import Settings
from remails.db import Database
from remails.errors import ConfigError
from remails.guard import Guard
from remails.logs import Log
from remails.store import server
from remails.vault import Pepper, Vault

GRACEFUL_TIMEOUT = 30
"""Seconds a stopping worker gives the requests it has."""
READ_TIMEOUT = 30.0
"""Seconds a client has to send a whole request."""
BUSY_READ_TIMEOUT = 2.0
"""The same while every thread of a worker has a request, so that a few slow clients cannot keep all others out."""

DRAIN_TIMEOUT = 0.1
"""Seconds that the rest of a body may take that nobody wants, on a connection that could be kept."""
LINGER = 2.0
"""Seconds that a client has to close a connection whose answer was the last (RFC 9112 §9.6)."""

log = Log("remails.api")


def main(settings: Settings) -> None:
    """Serve until SIGTERM. Ends the process with status 78 and one sentence when it cannot start."""
    logs.setup(settings.logs.level)
    try:
        _parts(settings)
        bind = [] if os.environ.get("LISTEN_PID") == str(os.getpid()) else [f"fd://{_listen(settings.api.listen)}"]
    except ConfigError as error:
        service.fail("api", error)
    exporter = metrics.begin(settings.metrics, "api", settings.api.workers)
    arbiter = os.getpid()
    # gunicorn would call itself ready before any worker is.
    notify_socket = os.environ.pop("NOTIFY_SOCKET", None)
    log.info("starting", service="api", pid=arbiter)
    try:
        gunicorn.arbiter.Arbiter(_Application(settings, bind, notify_socket, exporter)).run()
    except SystemExit as end:
        if os.getpid() != arbiter:
            raise  # the end of a worker
        # A worker has said in a sentence why it cannot start.
        sys.exit(service.EX_CONFIG if end.code == gunicorn.arbiter.Arbiter.APP_LOAD_ERROR else end.code)


def _parts(settings: Settings) -> State:
    """What the application works with, nothing of it open yet; raises ConfigError."""
    return State(
        settings,
        Database(settings.database, settings.database_password(), "api"),
        Publisher(settings.bus, settings.bus_client_key()),
        Vault(settings.credential("encryption_keys")),
        Pepper(settings.credential("pepper")),
        Guard(settings.bans, "api"),
    )


def _listen(where: str) -> int:
    """A listening socket's descriptor; raises ConfigError where it cannot be had."""
    host, port = config.endpoint(where, 8000, "api.listen")
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
        sock.listen(2048)
    except OSError as error:
        sock.close()
        raise ConfigError(f"api.listen: cannot listen on {where}: {error.strerror}") from None
    return sock.detach()


class _Application(gunicorn.app.base.BaseApplication):  # type: ignore[misc]  # gunicorn is untyped
    """What gunicorn runs, and how."""

    def __init__(
        self, settings: Settings, bind: list[str], notify_socket: str | None, exporter: metrics.Exporter
    ) -> None:
        self._settings, self._bind, self._notify_socket, self._exporter = settings, bind, notify_socket, exporter
        super().__init__()

    def load_config(self) -> None:
        """Called by gunicorn at the start, and again at SIGHUP."""
        api = self._settings.api
        values: dict[str, Any] = {
            "bind": self._bind,
            "workers": api.workers,
            "threads": api.threads,
            "worker_class": _Worker,
            "logger_class": _Logger,
            "accesslog": None,
            "proc_name": "remails-api",
            "graceful_timeout": GRACEFUL_TIMEOUT,
            "keepalive": 5,
            "control_socket_disable": True,
            # Only `create_app` knows how many proxies to believe.
            "forwarder_headers": "",
            "secure_scheme_headers": {},
            "post_worker_init": self._ready,
            "worker_exit": _close,
            "child_exit": lambda _arbiter, worker: self._exporter.forget(worker.pid),
        }
        for name, value in values.items():
            self.cfg.set(name, value)

    def _ready(self, worker: Any) -> None:
        """Called by gunicorn in each worker when it can take requests; the first makes the service ready."""
        if self._notify_socket is not None:
            os.environ["NOTIFY_SOCKET"] = self._notify_socket
            made: State = worker.wsgi.extensions["remails"]
            threading.Thread(target=_report, args=[made], name="readiness", daemon=True).start()

    def load(self) -> flask.Flask:
        """Called by gunicorn in each worker, after the fork: pools and sockets must not be shared."""
        try:
            made = _parts(self._settings)
            made.publisher.open()
        except ConfigError as error:
            sys.stderr.write(f"remails api: {error}\n")
            sys.exit(gunicorn.arbiter.Arbiter.APP_LOAD_ERROR)
        made.db.open()
        self._exporter.serve()
        return create_app(made.settings, made.db, made.publisher, made.vault, made.pepper)


def _report(made: State) -> None:
    """Tell systemd whether this worker can work, as long as it lives."""
    readiness = service.Readiness()
    while True:
        with readiness.looking():
            made.db.run(server.check)
            readiness.tell(f"serving {made.settings.api.url}")
        time.sleep(readiness.look_again)


def _close(_arbiter: object, worker: Any) -> None:
    """Called by gunicorn at the end of a worker, in the worker; and in the arbiter, where nothing is open."""
    app: flask.Flask | None = getattr(worker, "wsgi", None)
    if app is not None:
        made: State = app.extensions["remails"]
        made.publisher.close()
        made.db.close()


class _Worker(gunicorn.workers.gthread.ThreadWorker):  # type: ignore[misc]  # gunicorn is untyped
    """gunicorn's threads, and a limit to how long a client may hold one, or the loop that feeds them, by sending slowly.

    `handle` runs in a thread and reads a request as fast or slowly as it comes; the main loop calls `murder_pending` every
    second. A socket that is shut for reading ends the wait for more, and still takes an answer.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._reading: dict[Any, float] = {}
        self._lingering: dict[Any, float] = {}

    def handle(self, conn: Any) -> Any:
        """Serve one request of a connection."""
        self._reading[conn] = time.monotonic()
        try:
            return super().handle(conn)
        finally:
            self._reading.pop(conn, None)

    def _keepalive_after(self, conn: Any, keepalive: bool) -> bool:
        """Whether the connection can have another request; gunicorn would wait five seconds for a body that nobody wants."""
        return keepalive and bool(conn.parser.finish_body(deadline=time.monotonic() + DRAIN_TIMEOUT))

    def finish_request(self, conn: Any, fs: Any) -> None:
        """Called in the main loop, where gunicorn would wait for the client's end of a connection, and everybody with it."""
        if not fs.cancelled() and fs.exception() is None and fs.result():
            super().finish_request(conn, fs)
            return
        self._lingering[conn] = time.monotonic() + LINGER
        try:
            conn.sock.shutdown(socket.SHUT_WR)
            conn.sock.setblocking(False)
            self.poller.register(conn.sock, selectors.EVENT_READ, functools.partial(self._drain, conn))
        except (KeyError, OSError, ValueError):  # it is closed already
            self._close(conn)

    def _drain(self, conn: Any, sock: socket.socket) -> None:
        """Called in the main loop when a client sends more than anybody wants: unread, it would cost the client our answer."""
        try:
            if sock.recv(65536):
                return
        except BlockingIOError:
            return
        except OSError:
            pass
        self._close(conn)

    def _close(self, conn: Any) -> None:
        del self._lingering[conn]
        with contextlib.suppress(KeyError, OSError, ValueError):
            self.poller.unregister(conn.sock)
        self.nr_conns -= 1
        conn.close()

    def murder_pending(self) -> None:
        """Give up on clients that are late."""
        super().murder_pending()
        now = time.monotonic()
        for conn in [conn for conn, end in self._lingering.items() if end < now]:
            self._close(conn)
        reading = list(self._reading.items())
        patience = READ_TIMEOUT if len(reading) < self.cfg.threads else min(READ_TIMEOUT, BUSY_READ_TIMEOUT)
        for conn, started in reading:
            if started < now - patience:
                with contextlib.suppress(OSError):
                    conn.sock.shutdown(socket.SHUT_RD)


class _Logger(gunicorn.glogging.Logger):  # type: ignore[misc]  # gunicorn is untyped
    """gunicorn's warnings and errors, in our log; what it says of requests we say ourselves."""

    def setup(self, cfg: Any) -> None:
        """Called by gunicorn at the start, and again at SIGHUP."""
        super().setup(cfg)
        for handler in list(self.error_log.handlers):
            self.error_log.removeHandler(handler)
        self.error_log.propagate = True
        self.error_log.setLevel(max(WARNING, getLogger().level))
