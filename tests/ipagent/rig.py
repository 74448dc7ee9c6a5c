"""Sending hosts, the agent on each, a fake UpCloud between them, and a real PostgreSQL: all in a time of its own.

Nothing waits. The agents have a clock that `Rig.pass_time` moves on, and the database has it too: `clock_timestamp()` is found in a
schema `simulated` that comes before PostgreSQL's. While a host waits for the provider, is paused in the middle of a
request, or waits for the database, time passes for all the others: they take their turns inside its call.

What must hold at every instant is looked at each second (`violations`): an address is never usable on two hosts, nor on the
interfaces of two hosts that run. What must hold of the log of events is `check_log`.
"""

import asyncio
import contextlib
import errno
import io
import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import requests
import requests.adapters
from fakes.cloud import Answer, Lost
from fakes.upcloud import UpCloud

from remails.bus.client import Publisher
from remails.config import Database as DatabaseSettings
from remails.config import IpAgent, Mail, Settings
from remails.db import Connection, Database
from remails.errors import Unavailable
from remails.ipagent.agent import Agent
from remails.ipagent.providers import upcloud
from remails.ipagent.providers.http import Clock
from remails.store import addresses, leases
from remails.store.addresses import Address
from remails.store.ids import HostId

START = datetime(2030, 1, 1, tzinfo=UTC)
LEASE, INTERVAL, TIMEOUT = 30.0, 5.0, 8.0
URL = "http://upcloud.test/1.3"
SESSION_ENDS = 2 * (
    TIMEOUT + 2
)  # seconds after which the server ends a session that froze inside an attaching transaction

PREPARE = """
CREATE SCHEMA simulated;
CREATE FUNCTION simulated.clock_timestamp() RETURNS timestamptz LANGUAGE sql VOLATILE
    AS $$ SELECT current_setting('simulated.now')::timestamptz $$;
ALTER TABLE addresses ALTER updated_at SET DEFAULT simulated.clock_timestamp();
ALTER TABLE address_events ALTER at SET DEFAULT simulated.clock_timestamp();
"""


class SimulatedDatabase(Database):
    """A database with the rig's clock, which may be out of this host's reach."""

    def __init__(self, settings: DatabaseSettings, name: str, rig: "Rig") -> None:
        super().__init__(settings, None, name)
        self._rig = rig
        self.is_cut = False

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Connection]:
        """See `Database.transaction`; a cut while it is open leaves nothing committed."""
        self._check()
        with super().transaction() as conn:
            conn.execute("SELECT set_config('simulated.now', %s, true)", [self._rig.timestamp])
            yield conn
            if self.is_cut:
                raise psycopg.Rollback
        self._check()

    def _check(self) -> None:
        if self.is_cut or (self._rig.is_down and self is not self._rig.admin):
            raise Unavailable("database: cut off")


class Interface:
    """A host's network interface."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self.until: dict[str, float] = {}
        self.foreign: set[str] = set()
        self.announced: list[str] = []

    @property
    def mine(self) -> set[str]:
        """What the agent added, until the kernel takes it off."""
        return {ip for ip, until in self.until.items() if until > self._now()}

    def ours(self) -> set[str]:
        """See interface.Interface."""
        return self.mine

    def present(self) -> set[str]:
        """See interface.Interface."""
        return self.mine | self.foreign

    def add(self, ip: str, seconds: float) -> None:
        """See interface.Interface."""
        if ip not in self.foreign:
            self.until[ip] = self._now() + max(1, int(seconds))

    def remove(self, ip: str) -> None:
        """See interface.Interface."""
        self.until.pop(ip, None)

    def announce(self, ip: str) -> None:
        """See interface.Interface."""
        self.announced.append(ip)

    def check(self, ip: str, peer: tuple[str, int] | None) -> None:
        """See interface.check."""
        if ip not in self.present():
            raise OSError(errno.EADDRNOTAVAIL, "Cannot assign requested address")


@dataclass
class Host:
    """A sending host."""

    rig: "Rig"
    name: str
    settings: Settings
    db: SimulatedDatabase
    runner: asyncio.Runner
    nic: Interface
    agent: Agent | None = None
    is_frozen: bool = False
    usable: dict[str, float] = field(default_factory=dict)
    """As `outbound` sees it: until when it may use each address."""
    next_turn: float = 0.0
    is_busy: bool = False
    _id: HostId | None = None

    def start(self) -> None:
        """Start the agent, as systemd does."""
        clock = Clock()
        clock.now, clock.sleep = self.rig.now, self.rig.wait  # type: ignore[method-assign]
        provider = upcloud.UpCloud(self.settings, clock)
        provider.client.session.mount("http://", InProcess(self))
        publisher = Publisher(self.settings.bus, "")
        self.agent = Agent(
            self.settings, self.db, publisher, provider, self.nic, now=self.rig.now, check=self.nic.check
        )
        self.next_turn = self.rig.clock

    def stop(self) -> None:
        """End the agent's process; the interface stays as it is."""
        self.agent = None

    def die(self) -> None:
        """Pull the plug."""
        self.agent, self.is_frozen = None, False
        self.nic.until.clear()
        self.usable.clear()

    def run(self, what: str) -> None:
        """Run `turn` or `keep` of the agent; from inside its own call if it is in the middle of one."""
        if self.agent is None:
            return
        before, self.is_busy = self.is_busy, True
        coroutine = self._turn(self.agent) if what == "turn" else self.agent.keep()
        try:
            if before:
                asyncio.run_coroutine_threadsafe(coroutine, self.runner.get_loop()).result()
            else:
                self.runner.run(coroutine)
        except Unavailable:
            pass
        finally:
            self.is_busy = before
        self._look()

    async def _turn(self, agent: Agent) -> None:
        await agent.turn()
        await agent.check_names()

    def _look(self) -> None:
        with contextlib.suppress(Unavailable):
            asked = self.rig.clock
            held = self.db.run(leases.held_by, self.id) if self.id else []
            self.usable = {one.ip: asked + one.seconds_left for one in held}

    @property
    def id(self) -> HostId | None:
        """Its id in the database; None as long as it is not registered."""
        if self._id is None and (found := self.rig.admin.run(addresses.host_by_name, self.name)):
            self._id = found.id
        return self._id


class InProcess(requests.adapters.BaseAdapter):
    """The way from a host's client to the fake, without a socket and in the rig's time."""

    def __init__(self, host: Host) -> None:
        super().__init__()
        self._host = host

    def send(self, request: requests.PreparedRequest, *args: Any, **kwargs: Any) -> requests.Response:
        """Have the fake answer. Raises requests' exceptions."""
        rig, start = self._host.rig, self._host.rig.clock
        rig.asking.append(self._host)
        try:
            answer = self._answer(request)
        except Lost as lost:
            raise (requests.ReadTimeout if lost.hangs else requests.ConnectionError)() from None
        finally:
            rig.asking.pop()
        if rig.clock - start > kwargs["timeout"]:
            raise requests.ReadTimeout
        response = requests.Response()
        response.status_code = answer.status
        response.headers = requests.structures.CaseInsensitiveDict(answer.headers)
        response.raw = io.BytesIO(answer.encoded())
        return response

    def _answer(self, request: requests.PreparedRequest) -> Answer:
        rig = self._host.rig
        parts = urlsplit(str(request.url))
        target = f"{parts.path}?{parts.query}"
        body = request.body if isinstance(request.body, bytes) else b""
        method, headers = str(request.method), dict(request.headers)
        match rig.fate(method):
            case "late":  # the client gives up, and then it is done all the same
                rig.late.append((rig.clock + rig.chance.uniform(6, 40), method, target, headers, body))
                rig.wait(TIMEOUT / 2)
                raise Lost(hangs=True)
            case "frozen":
                rig.freeze(self._host, rig.chance.uniform(5, 70))
        return rig.cloud.answer(method, target, headers, body)

    def close(self) -> None:
        """Nothing to close."""


class Rig:
    """Everything, at `clock` seconds."""

    def __init__(self, settings: DatabaseSettings, directory: Path) -> None:
        with psycopg.connect(settings.dsn, autocommit=True) as conn:
            conn.execute(PREPARE)
            name = conn.info.dbname
            conn.execute(f'ALTER DATABASE "{name}" SET search_path = simulated, public, pg_catalog')
        self._settings, self._directory = settings, directory
        self.admin = SimulatedDatabase(settings, "rig", self)
        self.admin.open()
        self._databases: dict[str, SimulatedDatabase] = {}
        self._runners: dict[str, asyncio.Runner] = {}
        self.reset(0)

    def reset(self, seed: int) -> None:
        """An empty world."""
        self.clock, self.is_down = 1000.0, False
        self.chance = random.Random(seed)
        self.violations: list[str] = []
        self.hosts: dict[str, Host] = {}
        self.asking: list[Host] = []
        self.late: list[tuple[float, str, str, Mapping[str, str], bytes]] = []
        self.fate: Callable[[str], str] = lambda method: ""
        self.cloud = UpCloud(seed=seed)
        self.cloud.now, self.cloud.pause = self.now, self.wait
        self.admin.run(
            lambda conn: conn.execute("TRUNCATE address_events, address_refusals, addresses, hosts, pools CASCADE")
        )
        self.pool = self.admin.run(addresses.create_pool, "shared", is_default=True)

    def close(self) -> None:
        """Close every database and event loop."""
        for one in (self.admin, *self._databases.values(), *self._runners.values()):
            one.close()

    # What there is

    def add_host(self, name: str, **more: Any) -> Host:
        """A host whose agent runs."""
        number = len(self.hosts) + 1
        server = self.cloud.add_server(name, f"02:00:00:00:00:{number:02x}", uuid=f"uuid-{name}", most_addresses=9)
        token = f"ucat_{name}"
        self.cloud.world.tokens.append(token)
        directory = self._directory / name
        directory.mkdir(exist_ok=True)
        (directory / "provider_token").write_text(token)
        mine = IpAgent(
            **{
                "provider": "upcloud",
                "provider_url": URL,
                "server_ref": server.uuid,
                "port_ref": server.mac,
                "zone": "nl-ams1",
                "lease": LEASE,
                "interval": INTERVAL,
                "set_reverse_names": False,
                **more,
            }
        )
        settings = Settings(
            host=name,
            mail=Mail(hostname="relay.example.com"),
            database=self._settings,
            credentials_directory=str(directory),
            ipagent=mine,
        )
        if name not in self._databases:
            self._databases[name] = SimulatedDatabase(self._settings, f"sim-{name}", self)
            self._databases[name].open()
            self._runners[name] = asyncio.Runner()
        self._databases[name].is_cut = False
        self.hosts[name] = Host(self, name, settings, self._databases[name], self._runners[name], Interface(self.now))
        self.hosts[name].start()
        return self.hosts[name]

    def add_addresses(self, *ips: str, **more: Any) -> None:
        """Floating addresses, known to both."""
        for ip in ips:
            self.cloud.add_address(ip)
            self.admin.run(addresses.add, ip, self.pool.id, "upcloud", "mx.example.com", **{"zone": "nl-ams1", **more})

    def address(self, ip: str) -> Address:
        """An address as the database has it."""
        found = self.admin.run(addresses.get, ip)
        assert found is not None
        return found

    def holders(self) -> dict[str, str]:
        """Who has each ready address, by the database."""
        names = {host.id: host.name for host in self.hosts.values()}
        return {
            one.ip: names[one.lease_host]
            for one in self.admin.run(addresses.list_)
            if one.state == "ready" and one.lease_host is not None
        }

    def owners(self) -> dict[str, str | None]:
        """Who has each address, by the provider."""
        return self.cloud.owners(self.cloud.world)

    # Time

    def now(self) -> float:
        """The clock of everything."""
        return self.clock

    @property
    def timestamp(self) -> str:
        """The same for the database."""
        return (START + timedelta(seconds=self.clock)).isoformat()

    def wait(self, seconds: float) -> None:
        """Let the host that is asking wait for so long."""
        self.pass_time(seconds)

    def freeze(self, host: Host, seconds: float) -> None:
        """Stop a host in the middle of whatever it does, and let it go on."""
        host.is_frozen = True
        until = self.clock + seconds
        self.pass_time(min(seconds, SESSION_ENDS))
        if self.clock < until:
            self._end_sessions(host)
            self.pass_time(until - self.clock)
        host.is_frozen = False

    def _end_sessions(self, host: Host) -> None:
        with psycopg.connect(self._settings.dsn, autocommit=True) as conn:
            conn.execute(
                """
                SELECT pg_terminate_backend(pid, 1000) FROM pg_stat_activity
                WHERE datname = current_database() AND application_name = %s AND state LIKE 'idle in transaction%%'
                """,
                [f"remails-sim-{host.name}"],
            )

    def pass_time(self, seconds: float, each: Callable[[], None] | None = None) -> None:
        """Let every host live for so long; `each` is called every second."""
        end = self.clock + seconds
        while self.clock < end:
            self.clock = min(end, self.clock + 1.0)
            if each is not None:
                each()
            self._tick()

    def until(self, condition: Callable[[], bool], limit: float) -> float:
        """Let time pass until the condition holds; how many seconds it took. Raises AssertionError."""
        start = self.clock
        while not condition():
            assert self.clock - start < limit, f"not after {limit} s: {self.admin.run(addresses.list_)}"
            self.pass_time(1)
        return self.clock - start

    def _tick(self) -> None:
        due = [one for one in self.late if one[0] <= self.clock]
        self.late = [one for one in self.late if one[0] > self.clock]
        for _, method, target, headers, body in due:
            with contextlib.suppress(Lost):
                self.cloud.answer(method, target, headers, body)
        hosts = list(self.hosts.values())
        self.chance.shuffle(hosts)
        for host in hosts:
            if host.agent is None or host.is_frozen:
                continue
            host.agent.fence.check()
            if host.is_busy:
                if self.clock - host.agent._asked >= INTERVAL:
                    host.run("keep")
            elif self.clock >= host.next_turn:
                host.next_turn = self.clock + INTERVAL + self.chance.uniform(-0.5, 0.5)
                host.run("turn")
        self._look()

    # What must hold

    def _look(self) -> None:
        running = [host for host in self.hosts.values() if not host.is_frozen]
        for ip in {ip for host in running for ip in (*host.usable, *host.nic.mine)}:
            users = [host.name for host in running if host.usable.get(ip, 0) > self.clock]
            if len(users) > 1:
                self.violations.append(f"{self.clock}: {ip} is used by {users}")
            on = [host.name for host in running if ip in host.nic.mine]
            if len(on) > 1:
                self.violations.append(f"{self.clock}: {ip} is on the interfaces of {on}")

    def check_log(self) -> None:
        """In the log of events, leases and uses of an address never overlap, and epochs only grow."""
        rows = self.admin.run(
            lambda conn: conn.execute(
                """
                SELECT host(ip), epoch, host_id, kind, at, (detail->>'until')::timestamptz
                FROM address_events ORDER BY id
                """
            ).fetchall()
        )
        by_ip: dict[str, list[tuple[Any, ...]]] = defaultdict(list)
        for ip, *event in rows:
            by_ip[ip].append(tuple(event))
        for ip, events in by_ip.items():
            self._check_address(ip, events)

    def _check_address(self, ip: str, events: list[tuple[Any, ...]]) -> None:
        holder, epoch, published, ended = None, 0, False, START
        for number, host, kind, at, until in events:
            match kind:
                case "claimed":
                    assert holder is None, f"{ip}: claimed by {host} while {holder} holds it"
                    assert number == epoch + 1, f"{ip}: epoch {number} after {epoch}"
                    assert at >= ended, f"{ip}: claimed at {at}, the lease before ended at {ended}"
                    holder, epoch = host, number
                case "released" | "expired" | "taken over":
                    assert (host, number) == (holder, epoch), f"{ip}: {kind} of {number} in {epoch}"
                    assert kind != "taken over" or not published, f"{ip}: taken over while published"
                    ended = until if kind == "expired" else at
                    holder, published = None, False
                case "attaching" | "configuring" | "ready" | "draining" | "error":
                    assert (host, number) == (holder, epoch), f"{ip}: {kind} of {number} in {epoch}"
                    published = kind == "ready"

    def check_calls(self, rate: float, burst: int) -> None:
        """No host asks more often than it may, and nothing is ever detached or deleted."""
        by_host: dict[str, list[float]] = defaultdict(list)
        for call in self.cloud.calls:
            assert call.method != "DELETE"
            assert call.method == "GET" or (call.body and call.body["ip_address"].get("mac")), call
            by_host[call.credential].append(call.at)
        for credential, times in by_host.items():
            for first, start in enumerate(times):
                for window in (1.0, 10.0, 60.0):
                    count = sum(1 for at in times[first:] if at <= start + window)
                    assert count <= burst + rate * window + 1, f"{credential}: {count} calls in {window} s"
