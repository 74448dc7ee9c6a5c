"""Metrics for Prometheus: all there are, and the listener that shows them.

Every number stands here as a constant, with its unit in its name; `docs/metrics.md` explains them and what to alert on. Labels have
few values, which are ours: never a recipient, a domain or a client. A metric is made when it is first used, for a service of several
processes has to say where they share their numbers before the library is loaded: in files, under a directory that
`begin` makes. Any of the processes may answer, on one socket that all of them share.
"""

import atexit
import contextlib
import logging
import os
import shutil
import socket
import tempfile
import threading
import time
from functools import cached_property
from http.server import ThreadingHTTPServer
from typing import Any, Final

import remails
from remails import logs
from remails.config import Metrics

PORTS: Final = {"api": 0, "inbound": 1, "outbound": 2, "bus": 3, "periodic": 4, "ipagent": 5}
"""What is added to `metrics.port` for each service."""

_MULTIPROCESS = "PROMETHEUS_MULTIPROC_DIR"
_LEVELS = ("warning", "error")

log = logs.Log("remails.metrics")


class Metric:
    """A number with a name; made in the library at its first use."""

    all: Final[dict[str, "Metric"]] = {}

    def __init__(self, kind: str, name: str, text: str, *labels: str, **options: Any) -> None:
        self.kind, self.name, self.text, self.labels, self._options = kind, f"remails_{name}", text, labels, options
        self._children: dict[tuple[tuple[str, str], ...], Any] = {}
        Metric.all[self.shown] = self

    @property
    def shown(self) -> str:
        """The name as Prometheus shows it: that of a counter ends in `_total`."""
        return f"{self.name}_total" if self.kind == "Counter" else self.name

    @cached_property
    def _made(self) -> Any:
        import prometheus_client

        return getattr(prometheus_client, self.kind)(self.name, self.text, self.labels, **self._options)

    def _of(self, labels: dict[str, str]) -> Any:
        if not labels:
            return self._made
        given = tuple(labels.items())
        if given not in self._children:  # the library takes far longer to find it
            self._children[given] = self._made.labels(**labels)
        return self._children[given]

    def add(self, number: float = 1, **labels: str) -> None:
        """Count up; a gauge may be counted down too."""
        self._of(labels).inc(number)

    def set(self, number: float, **labels: str) -> None:
        """Set a gauge."""
        self._of(labels).set(number)

    def observe(self, number: float, **labels: str) -> None:
        """Add an observation to a histogram."""
        self._of(labels).observe(number)

    def clear(self) -> None:
        """Show no numbers of this metric until there are new ones."""
        self._children.clear()
        if self.labels:
            self._made.clear()
        else:
            self._made.set(float("nan"))

    def show_zero(self) -> None:
        """Show the number before anything is counted, so that the first one is seen as a change."""
        if not self.labels and self.kind != "Gauge":
            _ = self._made


def _counter(name: str, text: str, *labels: str) -> Metric:
    return Metric("Counter", name, text, *labels)


def _gauge(name: str, text: str, *labels: str, of_processes: str = "livesum") -> Metric:
    """`of_processes`: how the numbers of several processes become one."""
    return Metric("Gauge", name, text, *labels, multiprocess_mode=of_processes)


def _histogram(name: str, text: str, *labels: str, buckets: tuple[float, ...]) -> Metric:
    return Metric("Histogram", name, text, *labels, buckets=buckets)


_FAST = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
_SLOW = (0.01, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0)

# every service
INFO = _gauge("info", "1; the service and its version.", "service", "version", of_processes="livemax")
START_TIME = _gauge("start_time_seconds", "When the service began, in seconds since 1970.", of_processes="livemax")
LOG_RECORDS = _counter("log_records", "Warnings and errors that were logged.", "level")
LOOP_LAG = _gauge(
    "loop_lag_seconds", "How late the event loop was, at the worst of the last moments.", of_processes="livemax"
)
TASK_FAILURES = _counter("task_failures", "Turns of a repeating task that failed or were put off.", "task")
WORKERS_RESTARTED = _counter("workers_restarted", "Processes of a service that ended or hung and were started again.")
DATABASE_WAIT = _histogram("database_wait_seconds", "Wait for a connection to the database.", buckets=_FAST)
DATABASE_UNAVAILABLE = _counter(
    "database_unavailable", "Transactions that failed because the database cannot be reached."
)

# bus
NOTES_SENT = _counter("notes_sent", "Notes handed to the bus.")
NOTES_UNSENT = _counter("notes_unsent", "Notes that the bus had no room for.")
NOTES_RECEIVED = _counter("notes_received", "Notes heard.")
NOTES_MISSED = _counter("notes_missed", "Gaps in the numbers of notes: something was not heard.")
BUS_CLIENTS_REFUSED = _counter("bus_clients_refused", "Connections to the bus with a key that it does not know.")

# submission
MESSAGES_ACCEPTED = _counter("messages_accepted", "Messages stored.", "door")
MESSAGES_REFUSED = _counter("messages_refused", "Messages refused after they were handed in.", "door", "reason")
SUBMIT_SECONDS = _histogram("submit_seconds", "Time to check and store a batch of messages.", buckets=_FAST)
LOGINS = _counter("logins", "Logins: by SMTP, by API key, by password on a page.", "door", "outcome")
BANNED_NETWORKS = _gauge("banned_networks", "Client networks that are banned for guessing.", of_processes="livemax")
SMTP_SESSIONS = _gauge("smtp_sessions", "SMTP sessions that are open.")
SMTP_CONNECTIONS = _counter("smtp_connections", "SMTP connections that came in.", "outcome")
SMTP_REFUSALS = _counter("smtp_refusals", "4xx and 5xx replies to SMTP clients.", "command", "code")
HTTP_REQUESTS = _counter("http_requests", "Requests to the API and the pages.", "method", "status")
HTTP_SECONDS = _histogram("http_seconds", "Time to answer a request.", buckets=_FAST)

# delivery
DELIVERIES = _counter("deliveries", "Results of attempts to deliver, one for each recipient.", "outcome")
DELIVERY_SECONDS = _histogram("delivery_seconds", "From an attempt's first command to the reply.", buckets=_SLOW)
REPLIES = _counter(
    "replies", "Last words of the servers of large mailbox providers, by their kind.", "mailbox_provider", "reply"
)
ATTEMPTS_SECURED = _counter(
    "attempts_secured", "Attempts at a server, by the rule for its TLS and what it came to.", "policy", "tls"
)
STS_FETCHES = _counter("sts_fetches", "MTA-STS policies of recipients' domains that were asked for.", "outcome")
DELIVERIES_IN_HAND = _gauge("deliveries_in_hand", "Deliveries that this host has claimed and not finished.")
SOURCES_USABLE = _gauge("sources_usable", "Outbound addresses that this host may send from now.")
ADDRESSES_HELD = _gauge("addresses_held", "Outbound addresses that this host's IP agent has leased.", "state")

# the whole installation, from the periodic service that leads
LEADING = _gauge("leading", "1 where the periodic tasks run; 0 where they stand by.")
TASK_SECONDS = _histogram("task_seconds", "Length of a turn of a periodic task.", "task", buckets=_SLOW)
QUEUE_DELIVERIES = _gauge("queue_deliveries", "Deliveries that are not final, by status.", "status")
QUEUE_OVERDUE = _gauge("queue_overdue_seconds", "How long the delivery that is due longest has been due.")
QUEUE_OLDEST = _gauge("queue_oldest_seconds", "Age of the oldest message with a delivery that is to be sent.")
ADDRESSES = _gauge("addresses", "Outbound addresses that are enabled, by state; `none` is held by no host.", "state")
HOSTS_DEAD = _gauge("hosts_dead", "Sending hosts that are expected to live and have not been heard of.")
ADDRESS_MOVES = _gauge("address_moves", "How often the address that moved most changed hosts within the last hour.")
STORAGE_SHORT = _gauge(
    "storage_short", "1 while mail is refused since the disk of the database is nearly full, else 0."
)
STORAGE_SEEN = _gauge("storage_seen_seconds", "How long ago the host of the database said how full its disk is.")
BALANCE_CHECKED = _counter("balance_checked", "Messages whose deliveries were counted.")
BALANCE_MISSING = _gauge(
    "balance_missing", "Messages with other deliveries than they were accepted with, or no content."
)
BALANCE_UNFINISHED = _gauge("balance_unfinished", "Deliveries that wait an hour after they had to be final.")
BALANCE_BEHIND = _gauge("balance_behind_seconds", "Age of the oldest message whose deliveries were never counted.")

CERTIFICATE_NOT_AFTER = _gauge(
    "certificate_not_after_timestamp_seconds", "When the certificate that was issued last ends.", "name"
)
CERTIFICATE_RENEWAL_FAILED = _gauge(
    "certificate_renewal_failed", "1 if the last attempt to have a new certificate issued failed, else 0.", "name"
)

FLEET = (
    *(QUEUE_DELIVERIES, QUEUE_OVERDUE, QUEUE_OLDEST, ADDRESSES, HOSTS_DEAD, ADDRESS_MOVES),
    *(STORAGE_SHORT, STORAGE_SEEN),
    *(BALANCE_MISSING, BALANCE_UNFINISHED, BALANCE_BEHIND),
    *(CERTIFICATE_NOT_AFTER, CERTIFICATE_RENEWAL_FAILED),
)


class Exporter:
    """The listener of a service; without one where `metrics.host` is empty.

    Made before a service forks; then each of its processes calls `serve`.
    """

    def __init__(self, sock: socket.socket | None = None, directory: str | None = None) -> None:
        self._sock, self._directory = sock, directory

    def serve(self) -> None:
        """Answer, in a thread."""
        if self._sock is None:
            return
        from prometheus_client import REGISTRY, CollectorRegistry, multiprocess
        from prometheus_client.exposition import MetricsHandler

        registry = REGISTRY
        if self._directory is not None:
            registry = CollectorRegistry()
            multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        handler = type("Handler", (MetricsHandler,), {"registry": registry, "timeout": 10})
        server = _Server(("", 0), handler, bind_and_activate=False)
        server.socket.close()
        server.socket = self._sock
        # The thread waits for a request, and for nothing else.
        threading.Thread(target=server.serve_forever, args=[3600], name="metrics", daemon=True).start()

    def forget(self, pid: int) -> None:
        """A process of several has ended: what it counted stays, what it had open does not."""
        if self._directory is not None:
            from prometheus_client import multiprocess

            with contextlib.suppress(OSError):
                multiprocess.mark_process_dead(pid)  # type: ignore[no-untyped-call]


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away is nothing to us."""


def begin(settings: Metrics, service: str, processes: int = 1) -> Exporter:
    """Count from now on, and listen where the settings say so. A port that is taken costs the metrics, not the service."""
    directory = None
    if settings.host and processes > 1:
        directory = os.environ[_MULTIPROCESS] = tempfile.mkdtemp(prefix=f"remails-{service}-metrics-")
        atexit.register(_remove, directory, os.getpid())
    logging.getLogger().addHandler(_Count(logging.WARNING))
    START_TIME.set(time.time())
    INFO.set(1, service=service, version=remails.__version__)
    for metric in Metric.all.values():
        metric.show_zero()
    for level in _LEVELS:  # an alert waits for the first error
        LOG_RECORDS.add(0, level=level)
    if not settings.host:
        return Exporter()
    port = settings.port + PORTS.get(service, len(PORTS))
    try:
        sock = socket.create_server((settings.host, port), family=_family(settings.host))
    except OSError as error:
        log.error("no metrics", address=f"{settings.host}:{port}", reason=error.strerror or error)
        return Exporter(directory=directory)
    sock.setblocking(False)  # of several processes that wake, one has the connection
    return Exporter(sock, directory)


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _remove(directory: str, owner: int) -> None:
    if os.getpid() == owner:
        shutil.rmtree(directory, ignore_errors=True)


class _Count(logging.Handler):
    """Counts what is logged."""

    def emit(self, record: logging.LogRecord) -> None:
        LOG_RECORDS.add(level=_LEVELS[record.levelno >= logging.ERROR])
