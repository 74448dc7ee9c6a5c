"""The life of every daemon: start, tell systemd, work, stop when told.

`run` sets up logs and uvloop, calls the service's `main(stop)` and waits for it. SIGTERM or SIGINT sets `stop`; the
service then takes no new work, finishes what it has and returns. `ready()` sends `READY=1` once the service really can work;
the watchdog is fed from the event loop, so a loop that hangs is a process that systemd restarts (sd_notify(3)).
"""

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable
from typing import NoReturn

import uvloop

from remails import logs
from remails.config import Settings
from remails.errors import ConfigError, Unavailable

EX_CONFIG = 78  # sysexits.h; units say RestartPreventExitStatus=78

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


def ready(status: str = "") -> None:
    """Tell systemd that the service works now."""
    notify(f"READY=1\nSTATUS={status}" if status else "READY=1")


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
        except Exception:
            log.exception("task failed", task=name)
        await pause(stop, interval)


async def _watchdog() -> None:
    interval = int(os.environ.get("WATCHDOG_USEC", "0")) / 2_000_000
    while interval:
        notify("WATCHDOG=1")
        await asyncio.sleep(interval)


async def _supervise(name: str, main: Callable[[asyncio.Event], Awaitable[None]]) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, stop.set)
    watchdog = asyncio.create_task(_watchdog())
    log.info("starting", service=name, pid=os.getpid())
    try:
        await main(stop)
    finally:
        notify("STOPPING=1")
        watchdog.cancel()
    log.info("stopped", service=name)


def run(name: str, settings: Settings, main: Callable[[asyncio.Event], Awaitable[None]]) -> None:
    """Run an async service to its end. Ends the process with status 78 and one sentence on a ConfigError."""
    logs.setup(settings.logs.level)
    try:
        uvloop.run(_supervise(name, main))
    except ConfigError as error:
        fail(name, error)


def fail(name: str, error: ConfigError) -> NoReturn:
    """Say in one sentence why the process cannot start, and end it with status 78."""
    notify(f"STATUS={error}")
    sys.stderr.write(f"remails {name}: {error}\n")
    sys.exit(EX_CONFIG)
