"""What may be on this host's network interface, and until when: the part of the agent that works when all else hangs.

For each address held there is a deadline by the monotonic clock, which nobody can set back: when it passes, the address
comes off the interface, whatever the database, the provider or the event loop are doing. That is well before the lease
ends and another host may take the address. The kernel knows the deadlines too, and keeps them when there is no agent any more.
The fence runs in a thread of its own; each of its methods is atomic, so that
an address which is given up is not put back by somebody who did not know yet.
"""

import threading
import time
from collections.abc import Callable, Collection
from typing import Final, Protocol

from remails.ipagent import interface
from remails.logs import Log

INTERVAL: Final = 0.5  # seconds between looks at the deadlines

log = Log("remails.ipagent")


class Interface(Protocol):
    """What is needed of `interface.Interface`. Each method may raise OSError."""

    def ours(self) -> set[str]: ...
    def present(self) -> set[str]: ...
    def add(self, ip: str, seconds: float) -> None: ...
    def remove(self, ip: str) -> None: ...
    def announce(self, ip: str) -> None: ...


class Fence:
    """Deadlines by address, and the interface they are about (None: addresses are not ours to configure).

    Args:
        lease: how long a lease lasts, in seconds; an address may be used for a part of it.
        now: the monotonic clock.
    """

    def __init__(self, lease: float, interface: Interface | None, now: Callable[[], float] = time.monotonic) -> None:
        # provider.md 6.2: 22 of 30 seconds. Without an interface there is nothing to do before the end.
        self._use = lease if interface is None else lease - min(8.0, lease * 8 / 30)
        self._interface, self._now = interface, now
        self._deadlines: dict[str, float] = {}
        self._configured: dict[str, str] = {}  # what is on the interface, by lease
        self._stuck: set[str] = set()  # what should not be there, and could not be removed
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []

    # From the agent

    def hold(self, ips: Collection[str], asked: float) -> set[str]:
        """These addresses are leased, as was asked at `asked`; returns those that were and are no more, now taken off."""
        with self._lock:
            lost = self._deadlines.keys() - set(ips)
            for ip in lost:
                self._drop(ip)
            self._deadlines = dict.fromkeys(ips, asked + self._use)
            for source in self._configured.values():
                self._prolong(source, asked + self._use - self._now())
            return lost

    def left(self, ip: str) -> float:
        """Seconds for which an address may still be used."""
        with self._lock:
            return self._deadlines.get(ip, float("-inf")) - self._now()

    def put(self, ip: str, source: str) -> bool:
        """Have `source` on the interface, announced, as long as `ip` is held; whether it was missing.

        Raises OSError: it cannot be put there.
        """
        with self._lock:
            if self._interface is None or self._deadlines.get(ip, 0) <= self._now():
                return False
            missing = source not in self._interface.present()
            self._interface.add(source, self._deadlines[ip] - self._now())
            if missing or ip not in self._configured:
                self._interface.announce(source)
            self._configured[ip] = source
            return missing

    def announce(self, ip: str) -> None:
        """Say again whose the address is. Raises OSError."""
        with self._lock:
            if self._interface is not None and ip in self._configured:
                self._interface.announce(self._configured[ip])

    def take_off(self, ip: str) -> None:
        """Take a held address off the interface; the lease stays."""
        with self._lock:
            self._take_off(ip)

    def drop(self, ip: str) -> None:
        """Give an address up."""
        with self._lock:
            self._drop(ip)

    def orphans(self, keep: Collection[str]) -> list[str]:
        """Remove what we added once and have no use for, after a crash for instance; returns it. Raises OSError.

        What is to `keep` stays: after a restart it is in use, and was not put there by this process.
        """
        with self._lock:
            if self._interface is None:
                return []
            orphans = sorted(self._interface.ours() - set(self._configured.values()) - set(keep))
            for source in orphans:
                self._interface.remove(source)
            return orphans

    # By itself

    def start(self) -> None:
        """Begin to watch the deadlines, and what others do to the interface."""
        watchers = [self._watch] if self._interface is None else [self._watch, self._watch_interface]
        self._threads = [threading.Thread(target=one, name="fence", daemon=True) for one in watchers]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Stop watching. What is on the interface stays: a restart does not interrupt sending."""
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def check(self) -> list[str]:
        """Take off what is past its deadline; returns it."""
        with self._lock:
            now = self._now()
            over = [ip for ip, deadline in self._deadlines.items() if deadline <= now]
            for ip in over:
                log.error("lease ended, database not reached in time: nothing leaves from this address", address=ip)
                self._drop(ip)
            stuck, self._stuck = self._stuck, set()
            for source in stuck - set(self._configured.values()):
                self._remove(source)
            return over

    def restore(self, source: str) -> None:
        """Put an address back that somebody else took off, at once: a DHCP client, `netplan apply`."""
        with self._lock:
            for ip, configured in self._configured.items():
                left = self._deadlines.get(ip, float("-inf")) - self._now()
                if configured != source or left <= 0 or self._interface is None:
                    continue
                log.warning("address was taken off the interface by others, put back", address=ip)
                try:
                    self._interface.add(source, left)
                    self._interface.announce(source)
                except OSError as error:  # it is off again, which will be noticed too; or the agent's next turn sees it
                    log.error("address cannot be put back", address=ip, reason=error)

    def _prolong(self, source: str, seconds: float) -> None:
        try:
            if self._interface is not None and seconds > 0:
                self._interface.add(source, seconds)
        except OSError as error:
            log.error("address cannot be kept on the interface", address=source, reason=error)

    def _drop(self, ip: str) -> None:
        self._deadlines.pop(ip, None)
        self._take_off(ip)

    def _take_off(self, ip: str) -> None:
        # First forgotten, then removed: the note of its removal must not put it back.
        if ip in self._configured:
            self._remove(self._configured.pop(ip))

    def _remove(self, source: str) -> None:
        try:
            if self._interface is not None:
                self._interface.remove(source)
        except OSError as error:
            self._stuck.add(source)
            log.error("address cannot be taken off the interface, again in a moment", address=source, reason=error)

    def _watch(self) -> None:
        while not self._stop.wait(INTERVAL):
            self.check()

    def _watch_interface(self) -> None:
        while not self._stop.is_set():
            try:
                interface.watch(self.restore, self._stop.is_set)
            except OSError as error:
                log.error("interface is not watched", reason=error)
                self._stop.wait(INTERVAL)
