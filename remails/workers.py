"""Several processes of one service on one host, which share the listening sockets.

The first process opens what is to be shared, forks the **workers** and watches them; each lives as a service does on its own
(`service.run`). What a worker would tell systemd it tells the first process, by the same protocol (sd_notify(3)), which tells systemd
of all: ready when every worker is, and alive as long as it sees to them. A worker that ends is started again, one that hangs is
killed first. SIGTERM is handed on, and the first process ends after the last worker; sockets of systemd, or of the next start, take the
connections that come meanwhile.
"""

import asyncio
import contextlib
import ctypes
import os
import select
import signal
import socket
import sys
import time
import traceback
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import NoReturn

from remails import logs, metrics, service
from remails.config import Settings

log = logs.Log("remails.workers")

Main = Callable[[asyncio.Event, int], Awaitable[None]]
"""A service's `main`: until the event, as the one of the processes with this number, from 0."""

_RESTART_PAUSE = 1.0
_WATCHDOG = 30.0  # seconds of silence after which a worker is taken for hung, where systemd names no number
_PR_SET_PDEATHSIG = 1


@dataclass
class _Worker:
    """One process and what it last said."""

    number: int
    pid: int = 0
    ear: socket.socket = field(default_factory=lambda: socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
    heard_at: float = 0.0
    start_at: float = 0.0
    is_ready: bool = False
    is_told: bool = False
    status: str = ""


def run(name: str, settings: Settings, main: Main, processes: int) -> None:
    """Run an async service in so many processes to its end; in one, without a process that watches."""
    if processes == 1:
        service.run(name, settings, lambda stop: main(stop, 0))
        return
    logs.setup(settings.logs.level)
    _Workers(name, settings, main, processes).run()


class _Workers:
    def __init__(self, name: str, settings: Settings, main: Main, processes: int) -> None:
        self._name, self._settings, self._main = name, settings, main
        self._workers = [_Worker(number) for number in range(processes)]
        for worker in self._workers:
            worker.ear.bind("")  # a name in the abstract namespace, chosen by the kernel
            worker.ear.setblocking(False)
        self._silence = int(os.environ.get("WATCHDOG_USEC", "0")) / 1e6 or _WATCHDOG
        self._fed_at = float("-inf")
        self._woken, self._wake = socket.socketpair()
        self._stopping = self._said_stopping = self._is_started = False
        self._said = ""

    def run(self) -> None:
        """Until the last worker has ended after SIGTERM or SIGINT."""
        for end in (self._woken, self._wake):
            end.setblocking(False)
        signal.set_wakeup_fd(self._wake.fileno())
        for signum in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, self._stop)
        signal.signal(signal.SIGCHLD, lambda *_: None)  # wakes us
        self._exporter = metrics.begin(self._settings.metrics, self._name, len(self._workers))
        log.info("starting", service=self._name, processes=len(self._workers), pid=os.getpid())
        while not self._stopping or any(worker.pid for worker in self._workers):
            for worker in self._workers:
                if not worker.pid and not self._stopping and time.monotonic() >= worker.start_at:
                    self._start(worker)
            self._wait()
            self._reap()
            if self._stopping:
                self._hand_on()
            self._kill_hung()
            self._tell()
        log.info("stopped", service=self._name)

    def _stop(self, *_: object) -> None:
        # Nothing else: a handler may run between a fork and the moment at which the child's id is known.
        self._stopping = True

    def _hand_on(self) -> None:
        """Tell every worker to stop, once."""
        if not self._said_stopping:
            service.notify("STOPPING=1")
        self._said_stopping = True
        for worker in self._workers:
            if worker.pid and not worker.is_told:
                worker.is_told = True
                self._signal(worker, signal.SIGTERM)

    def _start(self, worker: _Worker) -> None:
        worker.is_ready, worker.is_told, worker.status, worker.heard_at = False, False, "", time.monotonic()
        sys.stdout.flush()
        parent, stops = os.getpid(), {signal.SIGTERM, signal.SIGINT}
        signal.pthread_sigmask(signal.SIG_BLOCK, stops)  # for its parent's handler is none for the child
        worker.pid = os.fork()
        if worker.pid == 0:
            self._live(worker, parent, stops)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, stops)

    def _live(self, worker: _Worker, parent: int, stops: set[signal.Signals]) -> NoReturn:
        """The whole life of a worker, in the child."""
        status = 1
        try:
            signal.set_wakeup_fd(-1)
            for signum in (*stops, signal.SIGCHLD):
                signal.signal(signum, signal.SIG_DFL)
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)  # without its parent it would live for ever
            signal.pthread_sigmask(signal.SIG_UNBLOCK, stops)
            if os.getppid() == parent:
                name = worker.ear.getsockname()
                os.environ["NOTIFY_SOCKET"] = "@" + os.fsdecode(name[1:])
                os.environ["WATCHDOG_USEC"] = str(int(self._silence * 1e6))
                for other in self._workers:
                    other.ear.close()
                service.run(self._name, self._settings, lambda stop: self._main(stop, worker.number), self._exporter)
            status = 0
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 1
        except BaseException:  # noqa: BLE001  # nothing of the parent's work must go on in the child
            traceback.print_exc()
        finally:
            with contextlib.suppress(OSError, ValueError):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(status)

    def _wait(self) -> None:
        select.select([self._woken, *(worker.ear for worker in self._workers)], [], [], self._patience())
        with contextlib.suppress(BlockingIOError):
            while self._woken.recv(4096):
                pass
        for worker in self._workers:
            with contextlib.suppress(BlockingIOError):
                while True:
                    self._hear(worker, worker.ear.recv(4096).decode("utf-8", "replace"))

    def _patience(self) -> float:
        """Seconds until there is something to do though nothing happens."""
        starts = [
            worker.start_at - time.monotonic() for worker in self._workers if not worker.pid and not self._stopping
        ]
        return max(min([self._silence / 4, *starts]), 0.01)

    def _hear(self, worker: _Worker, message: str) -> None:
        worker.heard_at = time.monotonic()
        for line in message.splitlines():
            key, _, value = line.partition("=")
            if key == "READY":
                worker.is_ready = True
            elif key == "STATUS":
                worker.status = value

    def _reap(self) -> None:
        while any(worker.pid for worker in self._workers):
            pid, ended = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            for worker in self._workers:
                if worker.pid == pid:
                    worker.pid = 0
                    self._exporter.forget(pid)
                    self._ended(worker, os.waitstatus_to_exitcode(ended))

    def _ended(self, worker: _Worker, status: int) -> None:
        if self._stopping:
            return
        if status == service.EX_CONFIG and not self._is_started:
            # It has said in a sentence what is wrong, and the others will find the same.
            self._stop()
            self._hand_on()
            while any(other.pid for other in self._workers):
                self._wait()
                self._reap()
            service.notify(f"STATUS={worker.status}")
            sys.exit(service.EX_CONFIG)
        metrics.WORKERS_RESTARTED.add()
        log.error("worker ended, starting it again", service=self._name, worker=worker.number, status=status)
        worker.is_ready, worker.status = False, f"not ready ({service.release()}): a process ended with status {status}"
        worker.start_at = time.monotonic() + _RESTART_PAUSE

    def _kill_hung(self) -> None:
        for worker in self._workers:
            if worker.pid and time.monotonic() - worker.heard_at > self._silence and not self._stopping:
                log.error("worker hangs, ending it", service=self._name, worker=worker.number, pid=worker.pid)
                self._signal(worker, signal.SIGKILL)

    def _signal(self, worker: _Worker, signum: signal.Signals) -> None:
        if worker.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker.pid, signum)

    def _tell(self) -> None:
        """Tell systemd how all of us are: as badly as the worst."""
        if time.monotonic() - self._fed_at > self._silence / 3:
            self._fed_at = time.monotonic()
            service.notify("WATCHDOG=1")
        said = [worker.status for worker in self._workers if worker.status]
        text = min(said, key=lambda status: status.startswith("ready"), default="")
        starting = not self._is_started and all(worker.is_ready for worker in self._workers)
        if text != self._said or starting:
            service.notify(f"READY=1\nSTATUS={text}" if starting else f"STATUS={text}")
        self._said, self._is_started = text, self._is_started or starting
