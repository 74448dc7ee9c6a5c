"""The life of every daemon: start, tell systemd, work, stop when told.

`run` sets up logs and uvloop, calls the service's `main(stop)` and waits for it. SIGTERM or SIGINT sets `stop`; the
service then takes no new work, finishes what it has and returns. The watchdog is fed from the event loop, so a loop that
hangs is a process that systemd restarts (sd_notify(3)).

What a service says of itself is in its status text, which `systemctl status` and `remails ready` show. It begins with
`ready (RELEASE):` or `not ready (RELEASE):`, and `report` looks again every few seconds. `READY=1` comes with the first
`ready`; without one it comes after `PATIENCE` all the same, for a service that waits for the database does what it can
(451, 503), and neither a boot nor `systemctl start` should hang for it.
"""

import asyncio
import contextlib
import gc
import os
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Final, NoReturn

import uvloop

import remails
from remails import logs, metrics
from remails.config import Settings
from remails.errors import ConfigError, Unavailable

EX_CONFIG = 78  # sysexits.h; units say RestartPreventExitStatus=78
PATIENCE: Final = 15.0
"""Seconds after which a service is started for systemd although it is not ready."""
LOOK_AGAIN: Final = 5.0
_GARBAGE: Final = 10_000
"""So many objects more, and the young ones are looked through."""
LOOK_AGAIN_SOON: Final = 0.5

log = logs.Log("remails.service")


def notify(state: str) -> None:
    """Send one sd_notify(3) message; does nothing without $NOTIFY_SOCKET."""
    path = os.environ.get("NOTIFY_SOCKET")
    if not path:
        return
    address = "\0" + path[1:] if path.startswith("@") else path
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.connect(address)
        sock.sendall(state.encode())


def release() -> str:
    """The release this process runs from, such as `0.1.0+3f2a91c4d0`; on a developer's machine the bare version."""
    prefix = Path(sys.prefix)
    return prefix.name if prefix.parent.name == "releases" else remails.__version__


class Readiness:
    """What a service says of itself; for one thread at a time."""

    def __init__(self) -> None:
        self._since = time.monotonic()
        self._is_started = False
        self._said = ""

    def tell(self, doing: str, trouble: str = "") -> None:
        """Say what the service does, or what keeps it from its work."""
        text = " ".join(f"{'not ready' if trouble else 'ready'} ({release()}): {trouble or doing}".split())
        if trouble and text != self._said:
            log.warning("not ready", reason=trouble)
        elif not trouble and not self._said.startswith("ready"):
            log.info("ready", doing=doing)
        starting = not self._is_started and (not trouble or time.monotonic() - self._since > PATIENCE)
        if text != self._said or starting:
            notify(f"READY=1\nSTATUS={text}" if starting else f"STATUS={text}")
        self._said, self._is_started = text, self._is_started or starting

    @contextlib.contextmanager
    def looking(self) -> Iterator[None]:
        """Find out whether the service can work; what hinders that is told too."""
        try:
            yield
        except Unavailable as error:
            self.tell("", str(error))
        except Exception:
            log.exception("readiness cannot be told")
            self.tell("", "a fault of ours, see the log")

    @property
    def look_again(self) -> float:
        """Seconds until the next look."""
        return LOOK_AGAIN if self._said.startswith("ready") else LOOK_AGAIN_SOON


async def report(stop: asyncio.Event, look: Callable[[], Awaitable[str]]) -> None:
    """Tell systemd until `stop` whether the service can work.

    Args:
        look: says what the service does, or raises Unavailable with what keeps it from its work.
    """
    readiness = Readiness()
    while not stop.is_set():
        with readiness.looking():
            readiness.tell(await look())
        await pause(stop, readiness.look_again)


def listen_fds() -> dict[str, list[socket.socket]]:
    """The sockets systemd passed, by name (sd_listen_fds(3)); empty when none were meant for this process."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return {}
    count = int(os.environ.get("LISTEN_FDS", "0"))
    names = os.environ.get("LISTEN_FDNAMES", "").split(":")
    found: dict[str, list[socket.socket]] = {}
    for offset in range(count):
        sock = socket.socket(fileno=3 + offset)
        sock.setblocking(False)
        os.set_inheritable(sock.fileno(), False)
        found.setdefault(names[offset] if offset < len(names) else "", []).append(sock)
    return found


async def pause(stop: asyncio.Event, seconds: float) -> bool:
    """Wait so long, or until `stop`; true when it is time to stop."""
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(stop.wait(), seconds)
    return stop.is_set()


async def forever(name: str, stop: asyncio.Event, interval: float, task: Callable[[], Awaitable[None]]) -> None:
    """Repeat `task` every `interval` seconds until `stop`; an error is logged and the next turn comes all the same."""
    while not stop.is_set():
        try:
            await task()
        except Unavailable as error:
            log.warning("task put off", task=name, reason=error)
            metrics.TASK_FAILURES.add(task=name)
        except Exception:
            log.exception("task failed", task=name)
            metrics.TASK_FAILURES.add(task=name)
        await pause(stop, interval)


async def _watchdog() -> None:
    interval = int(os.environ.get("WATCHDOG_USEC", "0")) / 2_000_000
    while interval:
        notify("WATCHDOG=1")
        await asyncio.sleep(interval)


async def _feel() -> None:
    """Notice when the loop is late: something of ours blocks it, or the host has too much to do."""
    worst = [0.0] * 10
    while True:
        due = time.monotonic() + 1
        await asyncio.sleep(1)
        worst = [*worst[1:], max(time.monotonic() - due, 0.0)]
        metrics.LOOP_LAG.set(max(worst))


async def _supervise(name: str, main: Callable[[asyncio.Event], Awaitable[None]]) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, stop.set)
    beside = [asyncio.create_task(_watchdog()), asyncio.create_task(_feel())]
    log.info("starting", service=name, pid=os.getpid())
    try:
        await main(stop)
    finally:
        notify("STOPPING=1")
        for task in beside:
            task.cancel()
    log.info("stopped", service=name)


def run(
    name: str,
    settings: Settings,
    main: Callable[[asyncio.Event], Awaitable[None]],
    exporter: metrics.Exporter | None = None,
) -> None:
    """Run an async service to its end. Ends the process with status 78 and one sentence on a ConfigError.

    Args:
        exporter: of the service, where it has several processes and this is one of them.
    """
    if exporter is None:
        logs.setup(settings.logs.level)
        exporter = metrics.begin(settings.metrics, name)
    exporter.serve()
    _collect_less()
    try:
        uvloop.run(_supervise(name, main))
    except ConfigError as error:
        fail(name, error)


def _collect_less() -> None:
    """Look for cycles of garbage ten times less often than Python would, and never among what lives as long as the process."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_GARBAGE)


def fail(name: str, error: ConfigError) -> NoReturn:
    """Say in one sentence why the process cannot start, and end it with status 78."""
    notify(f"STATUS={error}")
    sys.stderr.write(f"remails {name}: {error}\n")
    sys.exit(EX_CONFIG)
