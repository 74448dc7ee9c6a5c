"""The mail servers that are compared: ours as its real processes, and others, each relaying to the sink with AUTH and TLS.

Each is a context manager that yields a `System`, ready to take mail. They get one certificate, one name and one password.
"""

import contextlib
import functools
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import names
import nexthops
import psycopg
from generator import Login
from groups import Group
from installation import free_base
from postfix import lay_out as lay_out_postfix
from postfix import started as postfix_started
from workbench import free_port

from remails import config
from remails.config import Settings
from remails.db import Database
from remails.dev import postgresql
from remails.dev.home import DOMAIN, HOSTNAME, Demo, Home, Ports
from remails.store import addresses, domains, migrate
from remails.store.ids import OrganizationId

HERE = Path(__file__).parent
ROLE = HERE.parent / "roles/postgresql/templates/remails.conf.j2"
SINK_IP = "127.0.0.21"
SENDER = f"shop@{DOMAIN}"
USERNAME, PASSWORD = "shop", "correct-horse-battery"
WORDS = ("bus", "ipagent", "outbound", "periodic", "inbound", "api")
SEEN = "mail.example"
"""The recipients' domain; the sink is its MX."""


@dataclass(frozen=True)
class Door:
    """Where and as whom mail is handed in (TLS from the first octet, AUTH PLAIN)."""

    port: int
    logins: Sequence[Login]


@dataclass(frozen=True)
class Place:
    """What all of them share: a directory on the disk, a certificate, and where the sink listens."""

    directory: Path
    certificate: Path
    key: Path
    sink_port: int


class System:
    """One of them, which runs."""

    name = ""
    signs = False

    def __init__(self, door: Door, groups: Mapping[str, Group]) -> None:
        self.door, self.groups = door, groups

    def cpu(self) -> dict[str, float]:
        """Seconds of processor time so far by group."""
        return {name: group.cpu() for name, group in self.groups.items()}

    def memory(self) -> dict[str, dict[str, float]]:
        """MB by group, see Group.memory."""
        return {name: group.memory() for name, group in self.groups.items()}

    def settle(self, patience: float = 20.0) -> None:
        """Wait until it has done what it put off, so that the next one does not pay for it."""
        deadline, before = time.monotonic() + patience, sum(self.cpu().values())
        while time.monotonic() < deadline:
            time.sleep(0.3)
            now = sum(self.cpu().values())
            if now - before < 0.03:
                return
            before = now

    def unfinished(self) -> int:
        """Mails that were handed in and of which it does not say that they were delivered."""
        return 0


@contextlib.contextmanager
def _groups(*names: str, within: str = "", memory: Mapping[str, int] | None = None) -> Iterator[dict[str, Group]]:
    made = {name: Group(f"{within}-{name}".strip("-"), (memory or {}).get(name, 0)) for name in names}
    try:
        yield made
    finally:
        for group in made.values():
            group.remove()


# ---- ours


class Remails(System):
    """Ours."""

    name = "remails"
    signs = True

    def __init__(
        self, door: Door, groups: Mapping[str, Group], home: Home, settings: Settings, demo: Demo, db: Database
    ) -> None:
        super().__init__(door, groups)
        self.home, self.settings, self.demo, self.db = home, settings, demo, db

    def unfinished(self) -> int:
        def count(conn: psycopg.Connection) -> int:
            row = conn.execute(
                "SELECT count(*) FROM deliveries WHERE status <> 'delivered' AND next_attempt_at < now() + interval '1 hour'"
            ).fetchone()
            assert row is not None
            return int(row[0])

        return self.db.run(count)

    @contextlib.contextmanager
    def started(self, word: str) -> Iterator[None]:
        """One of the services, ready, until the block ends."""
        with contextlib.ExitStack() as stack:
            with self.groups[word].adopting():
                stack.enter_context(_service(self.home, word))
            yield

    def flushes(self) -> int:
        """How often the write-ahead log was brought to the disk so far."""
        return self.db.run(_flushes)

    def keys(self) -> dict[str, bytes]:
        """The DKIM records by their names."""
        found = self.db.run(lambda conn: list(domains.all_names_with_records(conn)))
        return {f"{selector}._domainkey.{name}": text.encode() for name, _, keys in found for selector, text in keys}


def _flushes(conn: psycopg.Connection) -> int:
    version = conn.info.server_version
    statement = (
        "SELECT coalesce(sum(fsyncs), 0) FROM pg_stat_io WHERE object = 'wal'"
        if version >= 180000
        else "SELECT wal_sync FROM pg_stat_wal"
    )
    row = conn.execute(statement).fetchone()
    assert row is not None
    return int(row[0])


def server_tools() -> Path | None:
    """Where the programs of the newest of Debian's PostgreSQL servers are; None: there is none."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[-3]))
    return found[-1].parent if found else None


MEMORY = 4 << 30
"""Octets, for which PostgreSQL's settings are."""


def server(directory: Path) -> postgresql.Server:
    """A PostgreSQL with the settings that the role gives it, as far as they do not follow from the host."""
    given = [line for line in ROLE.read_text().splitlines() if "=" in line and "{{" not in line and line[0] != "#"]
    given += ["shared_buffers = '1GB'", "effective_cache_size = '2400MB'", "maintenance_work_mem = '256MB'"]
    options = {name: value.strip("'") for name, value in (re.split(r"\s*=\s*", line, maxsplit=1) for line in given)}
    # There is no repository here, and of a command that fails PostgreSQL keeps each file of its log instead of using it again.
    options["archive_command"] = "true"
    tools = server_tools()
    if tools is None:
        options["wal_compression"] = "on"  # the one of the tests is built without lz4
    return postgresql.Server(directory, tools=tools, options=options)


def check_durable(conn: psycopg.Connection) -> None:
    """Raises SystemExit where PostgreSQL does not keep what it said it had."""
    for name in ("fsync", "synchronous_commit", "full_page_writes"):
        row = conn.execute("SELECT current_setting(%s)", [name]).fetchone()
        if row != ("on",):
            raise SystemExit(f"{name} is {row}: what is measured like this does not count")


@contextlib.contextmanager
def remails(
    place: Place,
    name: str = "remails",
    options: Mapping[str, Mapping[str, object]] | None = None,
    exchanges: Mapping[str, str] | None = None,
    words: Sequence[str] = WORDS,
    memory: int = 0,
) -> Iterator[Remails]:
    """Ours: every service as a process of its own, and PostgreSQL.

    Args:
        place: where.
        name: of its own, where several of ours run.
        options: more settings, by section.
        exchanges: the MX of more domains, see names.running.
        words: the services to start.
        memory: the octets that PostgreSQL and its files have, all of them in use; 0 for what there is.
    """
    ports = Ports.from_base(free_base())
    home = Home(place.directory / name, ports)
    home.make()
    with contextlib.ExitStack() as stack:
        limits = {"postgresql": memory}
        groups = stack.enter_context(_groups("postgresql", "names", *WORDS, within=name, memory=limits))
        if memory:
            groups["postgresql"].fill(home.directory / "ballast", memory)
        database = server(home.directory / "postgresql")
        stack.callback(database.stop)
        with groups["postgresql"].adopting():
            database.start()
        database.create_database("remails")
        home.prepare(database.dsn)
        settings = _write_settings(home, place, options or {})
        migrate.apply(settings.database, None)
        db = Database(settings.database, None, "bench")
        db.open(wait=True)
        stack.callback(db.close)
        db.run(check_durable)
        demo = home.seed(db, settings)
        db.run(lambda conn: _verify(conn, demo))
        with groups["names"].adopting():
            stack.enter_context(names.running(ports.dns, {SEEN: SINK_IP, f"*.{SEEN}": SINK_IP} | dict(exchanges or {})))
        door = Door(ports.smtps, [Login(demo.smtp_username, demo.smtp_password, SENDER)])
        system = Remails(door, groups, home, settings, demo, db)
        for word in words:
            stack.enter_context(system.started(word))
        _wait_for_addresses(db)
        yield system


def _write_settings(home: Home, place: Place, options: Mapping[str, Mapping[str, object]]) -> Settings:
    text = home.settings_path.read_text()
    defaults: dict[str, dict[str, object]] = {
        "outbound": {"port": place.sink_port},
        "periodic": {"domains_interval": 300},
    }
    for section, values in options.items():
        defaults.setdefault(section, {}).update(values)
    for section, values in defaults.items():
        if f"[{section}]\n" not in text:
            text += f"\n[{section}]\n"
        head, _, rest = text.partition(f"[{section}]\n")
        body, gap, rest = rest.partition("\n[")
        for name, value in values.items():
            body = re.sub(rf"(?m)^{name} = .*\n?", "", body)
            body = f"{name} = {_toml(value)}\n{body}"
        text = f"{head}[{section}]\n{body}{gap}{rest}"
    home.settings_path.write_text(text)
    return config.decode(text.encode(), str(home.settings_path))


def _toml(value: object) -> str:
    return (
        str(value).lower()
        if isinstance(value, bool)
        else repr(value)
        if isinstance(value, int | float)
        else f'"{value}"'
    )


def _verify(conn: psycopg.Connection, demo: Demo) -> None:
    """As if the domain's records had been seen in DNS."""
    for domain in domains.list_(conn, OrganizationId(UUID(demo.organization_id))):
        domains.save_verification(conn, domain.id, {}, verified=True)


@contextlib.contextmanager
def _service(home: Home, word: str) -> Iterator[None]:
    """One service, ready, until the block ends."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told, (home.directory / f"{word}.log").open("wb") as log:
        address = f"@remails-bench-{os.getpid()}-{home.directory.name}-{word}"
        told.bind("\0" + address[1:])
        told.settimeout(60)
        process = subprocess.Popen(
            [sys.executable, "-m", "remails", "--config", home.settings_path, word],
            env={**os.environ, "NOTIFY_SOCKET": address},
            stdout=log,
            stderr=log,
            start_new_session=True,  # as the others are: on a busy machine the kernel shares out processors by session
        )
        try:
            try:
                while b"READY=1" not in told.recv(4096):
                    pass
            except TimeoutError:
                raise RuntimeError(f"{word} is not ready: {_end_of(log.name)}") from None
            threading.Thread(target=_hear, args=(told,), daemon=True).start()
            yield
        finally:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                print(f"{word} did not end: {_end_of(log.name)}", file=sys.stderr)
                process.kill()
                process.wait()
            told.shutdown(socket.SHUT_RD)


def _end_of(log: str) -> str:
    return Path(log).read_text()[-2000:]


def _hear(told: socket.socket) -> None:
    """Take what a service goes on telling of itself; it waits for that."""
    with contextlib.suppress(OSError):  # the end
        told.settimeout(None)
        while told.recv(4096):
            pass


def _wait_for_addresses(db: Database) -> None:
    deadline = time.monotonic() + 60
    while any(row.state != "ready" for row in db.run(addresses.list_)):
        if time.monotonic() > deadline:
            raise RuntimeError("the addresses did not become ready")
        time.sleep(0.1)


# ---- the others

_POSTFIX = """\
myhostname = {hostname}
inet_interfaces = 127.0.0.1
relayhost = [{sink_ip}]:{sink_port}
smtpd_client_connection_count_limit = 0
smtpd_tls_wrappermode = yes
smtpd_tls_security_level = encrypt
smtpd_sasl_auth_enable = yes
cyrus_sasl_config_path = {directory}/etc/sasl
smtpd_sasl_local_domain = {hostname}
smtpd_relay_restrictions = permit_sasl_authenticated, reject
"""
_POSTFIX_MASTER = """\
smtp unix - - n - - smtp
relay unix - - n - - smtp
scache unix - - n - 1 scache
"""
_SASL = """\
pwcheck_method: auxprop
auxprop_plugin: sasldb
sasldb_path: {directory}/data/sasldb2
mech_list: PLAIN LOGIN
"""


class Postfix(System):
    """Postfix, as it comes; passwords in a sasldb."""

    name = "postfix"


@contextlib.contextmanager
def postfix(place: Place) -> Iterator[Postfix]:
    """Postfix with its queue on the same disk."""
    directory = place.directory / "postfix"
    values = _values(place, directory)
    owner = lay_out_postfix(main=_POSTFIX, master=_POSTFIX_MASTER, **values)
    (directory / "etc/sasl").mkdir()
    (directory / "etc/sasl/smtpd.conf").write_text(_SASL.format(**values))
    passwords = directory / "data/sasldb2"
    subprocess.run(
        ["saslpasswd2", "-p", "-c", "-f", passwords, "-u", HOSTNAME, USERNAME], input=PASSWORD.encode(), check=True
    )
    os.chown(passwords, owner.pw_uid, owner.pw_gid)
    with _groups("postfix") as groups, contextlib.ExitStack() as stack:
        with groups["postfix"].adopting():
            stack.enter_context(postfix_started(directory))
        yield Postfix(Door(values["port"], [Login(USERNAME, PASSWORD, SENDER)]), groups)


_EXIM = """\
primary_hostname = {hostname}
split_spool_directory = true
tls_on_connect_ports = {port}
tls_advertise_hosts = *
tls_certificate = {certificate}
tls_privatekey = {key}
smtp_accept_max = 300
smtp_accept_queue_per_connection = 0
smtp_accept_max_per_connection = 0
never_users =
begin acl
rcpt:
  accept authenticated = *
  deny message = relay not permitted
begin routers
sink:
  driver = manualroute
  route_list = * {sink_ip}
  self = send
  transport = sink
begin transports
sink:
  driver = smtp
  port = {sink_port}
  hosts_try_fastopen =
begin authenticators
plain:
  driver = plaintext
  public_name = PLAIN
  server_prompts = :
  server_condition = ${{{{if eq{{{{$auth2:$auth3}}}}{{{{{username}:{password}}}}}}}}}
  server_set_id = $auth2
"""


class Exim(System):
    """Exim, which delivers at once, in a process for each mail, as it comes."""

    name = "exim"


@contextlib.contextmanager
def exim(place: Place) -> Iterator[Exim]:
    """Exim, unpacked by `tests/prepare bench`."""
    known = nexthops.KINDS["exim"]
    with _groups("exim") as groups, tempfile.TemporaryDirectory(prefix="exim-tls-") as private:
        values = _values(place, Path(private))
        for name, path in (("certificate", place.certificate), ("key", place.key)):
            values[name] = shutil.copy(path, private)
            os.chown(values[name], nexthops.USER, nexthops.USER)
        Path(private).chmod(0o755)
        kind = nexthops.Kind(known.package, known.program, known.arguments, nexthops.EXIM + _EXIM.format(**values))
        with contextlib.ExitStack() as stack:
            with groups["exim"].adopting():
                stack.enter_context(nexthops.running(kind, HOSTNAME, "127.0.0.1", values["port"]))
            yield Exim(Door(values["port"], [Login(USERNAME, PASSWORD, SENDER)]), groups)


_HARAKA = {
    "config/me": "{hostname}\n",
    "config/smtp.ini": "listen=127.0.0.1:{port}\nsmtps_port={port}\nnodes=2\n",
    "config/tls.ini": "key={key}\ncert={certificate}\n",
    "config/plugins": "tls\nauth/flat_file\nto_sink\n",
    "config/auth_flat_file.ini": "[core]\nmethods=PLAIN,LOGIN\nconstrain_sender=false\n[users]\n{username}={password}\n",
    "config/host_list": "",
    "config/outbound.ini": "enable_tls=false\n",
    "config/log.ini": "[main]\nlevel=notice\nformat=default\n",
    "plugins/to_sink.js": "exports.hook_get_mx = (next) => next(OK, {{priority: 0, exchange: '{sink_ip}', port: {sink_port}}})\n",
}


class Haraka(System):
    """Haraka with one process for each core and its queue on the disk."""

    name = "haraka"


@contextlib.contextmanager
def haraka(place: Place) -> Iterator[Haraka]:
    """Haraka, from bench/package.json."""
    directory = place.directory / "haraka"
    values = _values(place, directory)
    shutil.copytree(HERE / "node_modules/Haraka/config", directory / "config")
    (directory / "plugins").mkdir()
    for name, text in _HARAKA.items():
        (directory / name).write_text(text.format(**values))
    (directory / "queue").mkdir()
    with _groups("haraka") as groups, (directory / "log").open("wb") as log:
        with groups["haraka"].adopting():
            process = subprocess.Popen(
                ["node", HERE / "node_modules/Haraka/bin/haraka", "-c", directory],
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            _wait_for_port(values["port"], process, directory / "log")
            yield Haraka(Door(values["port"], [Login(USERNAME, PASSWORD, SENDER)]), groups)
        finally:
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(3)
            process.kill()
            process.wait()


def _wait_for_port(port: int, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.1)
    raise RuntimeError(log.read_text())


def _values(place: Place, directory: Path) -> dict[str, Any]:
    return {
        "directory": directory,
        "hostname": HOSTNAME,
        "ip": "127.0.0.1",
        "port": free_port(),
        "certificate": place.certificate,
        "key": place.key,
        "sink_ip": SINK_IP,
        "sink_port": place.sink_port,
        "username": USERNAME,
        "password": PASSWORD,
    }


def missing(name: str) -> str:
    """What is needed for one of the others and not here; empty: nothing."""
    match name:
        case "postfix":
            here = all(shutil.which(tool, path="/usr/sbin:/usr/bin") for tool in ("postfix", "saslpasswd2"))
            return "" if here else "the packages postfix and sasl2-bin"
        case "exim":
            return "" if nexthops.KINDS["exim"].is_here else "exim4-daemon-light in tests/.unpacked"
        case "haraka":
            here = shutil.which("node") is not None and (HERE / "node_modules/Haraka").exists()
            return "" if here else "node and bench/node_modules"
    return ""


STARTERS: dict[str, Callable[[Place], AbstractContextManager[System]]] = {
    "remails": functools.partial(remails, memory=MEMORY),
    "postfix": postfix,
    "exim": exim,
    "haraka": haraka,
}
