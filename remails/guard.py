"""Who guesses at passwords, at any door: slowed, then banned for a while, by every process of every host.

    failed login --> count in memory --> the answer waits      0.5, 1, 2, ... 8 s, a client's own affair
                          |
                          every `sync_interval`, all in one statement --> store.bans --> bans, known to every process

What counts is a **guess**: a name and password that this network has not tried lately. A program with an outdated password says the
same again and again; it is slowed, and banned only when it hammers. A success forgives nothing: whoever owns one account may guess
at others. While an account is being guessed at from many networks, a guess at it weighs more, so that each of them gets fewer. The
account itself stays open, or anyone could lock its owner out. Memory is bounded, whatever comes.
"""

import hashlib
import ipaddress
import re
import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Sequence

from remails import metrics
from remails.config import Bans
from remails.db import Connection, Database
from remails.logs import Log
from remails.store import bans
from remails.store.bans import Counted, Limit

log = Log("remails.guard")

LONGEST_DELAY = 8.0
"""Seconds that the answer to a failed login waits at most."""

_FIRST_DELAY = 0.5
_REPEATED = 0.05  # what the same guess again counts
_ATTACKED = 5  # times the limit of a network: so many guesses at one account are an attack on it
_WEIGHT = 5  # of a guess at an account that is attacked
_REMEMBERED = 32  # guesses of a network
_MOST_NETWORKS = 10_000
_MOST_FOLDED = 1000
_ACCOUNT = re.compile(r"[A-Za-z0-9_.@+-]{1,128}")


class _Network:
    """What is known of one client network."""

    __slots__ = ("at", "guesses", "recent", "unfolded")

    def __init__(self, at: float) -> None:
        self.guesses = self.unfolded = 0.0
        self.at = at
        self.recent: deque[bytes] = deque(maxlen=_REMEMBERED)


def limit_of(settings: Bans) -> Limit:
    """The limit that the settings set."""
    return Limit(settings.guesses, settings.window, settings.duration, settings.longest)


class Guard:
    """The guesses that one process has seen, and the bans of all. Thread-safe.

    Args:
        settings: the section `bans`.
        service: whose logins these are, for the operator.
        allowed: more networks that are never slowed or banned.
    """

    def __init__(self, settings: Bans, service: str, allowed: Sequence[str] = ()) -> None:
        self._settings, self._service = settings, service
        self._limit = limit_of(settings)
        self._allowed = [ipaddress.ip_network(text) for text in (*settings.allow, *allowed)]
        self._lock, self._syncing = threading.Lock(), threading.Lock()
        self._networks: OrderedDict[str, _Network] = OrderedDict()
        self._accounts: Counter[str] = Counter()
        self._attacked: set[str] = set()
        self._banned: dict[str, float] = {}
        self._synced = float("-inf")

    def banned(self, network: str) -> float:
        """For how many seconds more this network is banned; 0 for most."""
        until = self._banned.get(network)
        return 0.0 if until is None else max(until - time.monotonic(), 0.0)

    def failed(self, network: str, account: str, password: str) -> float:
        """A login failed; returns for how many seconds its answer shall wait."""
        if self._is_allowed(network):
            return 0.0
        now = time.monotonic()
        # A few bytes of a digest tell guesses apart, and nothing about them.
        guess = hashlib.blake2b(f"{account}\0{password}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
        with self._lock:
            one = self._network(network, now)
            repeated = guess in one.recent
            weight = _REPEATED if repeated else _WEIGHT if account in self._attacked else 1.0
            one.guesses += weight
            one.unfolded += weight
            if not repeated:
                one.recent.append(guess)
                if _ACCOUNT.fullmatch(account) and (account in self._accounts or len(self._accounts) < _MOST_NETWORKS):
                    self._accounts[account] += 1
            if self._limit.is_reached(one.guesses) and not self.banned(network):
                self._banned[network] = now + self._limit.duration  # the others hear of it from the database
            return min(_FIRST_DELAY * 2 ** max(one.guesses - 1, 0.0), LONGEST_DELAY)

    def sync(self, conn: Connection) -> None:
        """Add what was counted to the database, and learn who is banned."""
        counted = self._take()
        try:
            known = bans.fold(conn, self._service, counted, self._limit) if counted else {}
            active = bans.active(conn)
        except BaseException:
            self._put_back(counted)
            raise
        now = time.monotonic()
        with self._lock:
            for (kind, name), (guesses, _) in known.items():
                if kind == "network" and (one := self._networks.get(name)) is not None:
                    one.guesses, one.at = guesses + one.unfolded, now
            self._banned = {name: now + seconds for name, seconds in active.items()}
            for (kind, name), (guesses, _) in known.items():
                if kind == "account":
                    self._note_attack(name, guesses)
            self._synced = now
        metrics.BANNED_NETWORKS.set(len(active))
        for (_, name), (_, is_new) in known.items():
            if is_new:
                log.warning("banned for guessing", network=name, seconds=round(active.get(name, 0)))

    def sync_if_due(self, db: Database) -> None:
        """`sync`, where nothing repeats it: at most one thread at a time, and not more often than `sync_interval`."""
        if time.monotonic() - self._synced < self._settings.sync_interval or not self._syncing.acquire(blocking=False):
            return
        try:
            db.run(self.sync)
        finally:
            self._syncing.release()

    def _note_attack(self, account: str, guesses: float) -> None:
        if guesses < self._limit.guesses * _ATTACKED:
            self._attacked.discard(account)
        elif len(self._attacked) < _MOST_NETWORKS:
            self._attacked.add(account)

    def _network(self, network: str, now: float) -> _Network:
        one = self._networks.get(network)
        if one is None:
            if len(self._networks) >= _MOST_NETWORKS:
                self._networks.popitem(last=False)
            one = self._networks[network] = _Network(now)
        self._networks.move_to_end(network)
        one.guesses = max(one.guesses - (now - one.at) * self._limit.guesses / self._limit.window, 0.0)
        one.at = now
        return one

    def _take(self) -> list[Counted]:
        """What to fold now: the most eager first; the others wait for the next time."""
        with self._lock:
            networks = sorted(
                ((one.unfolded, name) for name, one in self._networks.items() if one.unfolded), reverse=True
            )[:_MOST_FOLDED]
            for _, name in networks:
                self._networks[name].unfolded = 0.0
            accounts = self._accounts.most_common(_MOST_FOLDED)
            self._accounts.clear()
        return [
            *(Counted("network", name, guesses) for guesses, name in networks),
            *(Counted("account", name, float(guesses)) for name, guesses in accounts),
        ]

    def _put_back(self, counted: Sequence[Counted]) -> None:
        with self._lock:
            for kind, name, guesses in counted:
                if kind == "account":
                    self._accounts[name] += int(guesses)
                elif (one := self._networks.get(name)) is not None:
                    one.unfolded += guesses

    def _is_allowed(self, network: str) -> bool:
        try:
            address = ipaddress.ip_network(network)
        except ValueError:
            return True  # no address: what a UNIX socket has
        return any(
            address.version == one.version and address.subnet_of(one)  # type: ignore[arg-type]  # the same version
            for one in self._allowed
        )


def network_of(client: str) -> str:
    """What counts as one client: an IPv4 address, or the /64 network that an IPv6 site gives to one machine at least."""
    try:
        address = ipaddress.ip_address(client.partition("%")[0])
    except ValueError:
        return client[:100]
    address = getattr(address, "ipv4_mapped", None) or address
    return str(address) if address.version == 4 else str(ipaddress.ip_network((address, 64), strict=False))
