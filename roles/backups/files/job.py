#!/usr/bin/python3
"""`remails-backup`: backups of the database, a copy at an independent place, and the proof that both can be restored.

    wal           looks whether what is committed gets into the repository, and whether a piece is missing there
    full          takes a backup into the repository: a full one each week, what has changed since then on the other days
    independent   puts a full copy at the independent place
    drill         restores the newest backup and the newest copy, and looks whether they are whole
    begin         notes that the jobs are set up, so that what has never run is late some time
    status        tells what there is
    restore       brings a database back, on a host of it, whose server is stopped; playbooks/restore.yml calls it

It runs as the user postgres, by the standard library only: nothing of Remails has to be on a host for it. pgBackRest and restic do
the work. Each job leaves what it said in `state/KIND.json` and, for the node exporter, in `metrics/KIND.prom`.
"""

import argparse
import contextlib
import fcntl
import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import tomllib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

SETTINGS = Path("/etc/remails-backups/settings.toml")
STANZA = "remails"
DATABASE = "remails"
KINDS = ("wal", "full", "independent", "drill")
ROOM = 1.2  # a restored database needs this much of its size, with the WAL that is played
DAY = 86400

SOUND = {
    "a message waits and its content is not there": """
        SELECT count(*) FROM deliveries d WHERE d.status IN ('accepted', 'reattempt', 'held')
            AND NOT EXISTS (SELECT FROM message_bodies b WHERE b.message_id = d.message_id)""",
    "a message has no recipient": """
        SELECT count(*) FROM messages m WHERE NOT EXISTS (SELECT FROM deliveries d WHERE d.message_id = m.id)""",
    "a recipient has no message": """
        SELECT count(*) FROM deliveries d WHERE NOT EXISTS (SELECT FROM messages m WHERE m.id = d.message_id)""",
    "a final state has no time": """
        SELECT count(*) FROM deliveries WHERE status IN ('delivered', 'failed') AND finished_at IS NULL""",
    "a content has no message": """
        SELECT count(*) FROM message_bodies b WHERE NOT EXISTS (SELECT FROM messages m WHERE m.id = b.message_id)""",
    "no migration was applied": "SELECT (count(*) = 0)::int FROM _yoyo_migration",
}
"""What is true of a whole database: how many rows break it."""

README = """\
A full copy of a Remails database, made by PostgreSQL's own pg_dump, without anything of a host or of a backup program.

    remails/       the database, messages included (pg_dump, format "directory")
    globals.sql    roles, without passwords
    about.json     when it was made, and how much there is in it

To have it back by hand, with any PostgreSQL of version {version} or later:

    createuser remails && createdb --owner=remails --template=template0 --encoding=UTF8 --locale=C.UTF-8 remails
    pg_restore --jobs=4 --exit-on-error --dbname=remails remails/
    vacuumdb --analyze-only remails

Not in it: the secrets of the installation (vault.yml of the inventory). Without `remails_encryption_keys` the DKIM keys in it stay
sealed, without `remails_pepper` no password and no API key fits. The queue in it is as old as the copy: hold it before anything sends.
"""


class Failed(Exception):
    """Says in a sentence what is wrong."""


@dataclass(frozen=True)
class Settings:
    """What Ansible wrote for this host.

    Attributes:
        programs: the folder of PostgreSQL's programs.
        folder: our own: state, metrics, scratch.
        data: the server's data on a host of the database; elsewhere empty.
        rpo: seconds of work that may be lost.
        standbys: whether a backup may be taken from another host than the one that writes.
        full_days: how often a backup is a full one.
        config: the file by which pgBackRest restores to `scratch`.
        place: restic's word for the independent place; empty: none.
        check_days: in how many days all of the independent place is read once.
        forget: whether old copies are removed from here; not where the credentials only let add.
    """

    programs: str
    folder: str
    data: str = ""
    rpo: int = 60
    standbys: bool = False
    full_days: int = 7
    config: str = ""
    place: str = ""
    check_days: int = 7
    forget: bool = True
    keep_daily: int = 10
    keep_monthly: int = 3

    def path(self, *names: str) -> Path:
        """Something of ours."""
        return Path(self.folder, *names)

    def program(self, name: str) -> str:
        """One of PostgreSQL's programs."""
        return str(Path(self.programs, name))

    @property
    def scratch(self) -> Path:
        """Where data is restored to for a look."""
        return self.path("scratch")


def run(*command: str | Path, more: Mapping[str, str] | None = None) -> str:
    """What a program prints. Raises Failed with the last it said."""
    done = subprocess.run(
        [str(word) for word in command],
        env=os.environ | (more or {}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        said = "\n".join((done.stderr.strip() or done.stdout.strip()).splitlines()[-8:])
        raise Failed(f"{Path(command[0]).name} ended with {done.returncode}: {said}")
    return done.stdout


def pgbackrest(*words: str) -> str:
    """One command of pgBackRest for our stanza."""
    return run("pgbackrest", f"--stanza={STANZA}", *words)


# A server that nobody else can reach


class Server:
    """PostgreSQL on a folder of data, by a socket in a folder of its user only. As a context it runs, recovered.

    With `archive`, what it writes goes to the repository, as it would from the real one.
    """

    def __init__(self, settings: Settings, data: Path, *, archive: bool = False) -> None:
        self._settings, self._data, self._archive = settings, data, archive
        self._private = settings.path("server")

    def __enter__(self) -> "Server":
        shutil.rmtree(self._private, ignore_errors=True)
        self._private.mkdir(mode=0o700)
        written = {
            "listen_addresses": "",
            "unix_socket_directories": str(self._private),
            "hba_file": str(self._private / "hba"),
            "ident_file": str(self._private / "ident"),
            # Not asked while it recovers, so it may have fewer connections than the one it comes from.
            "hot_standby": "off",
            "archive_mode": "on" if self._archive else "off",
            "archive_command": f"pgbackrest --stanza={STANZA} archive-push %p" if self._archive else "",
            "max_connections": "40",
            "shared_buffers": "256MB",
            "maintenance_work_mem": "256MB",
            "max_wal_size": "4GB",
            "fsync": "off" if self._data == self._settings.scratch else "on",
        }
        lines = [f"{name} = '{value}'\n" for name, value in written.items()]
        (self._private / "conf").write_text("".join(lines), encoding="utf-8")
        (self._private / "hba").write_text("local all all trust\n", encoding="utf-8")  # only we get to the socket
        (self._private / "ident").touch()
        self._control("start", f"--options=-c config_file={self._private}/conf", f"--log={self._private}/log", "--wait")
        try:
            self._recovered()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(Failed):  # it may have ended by itself
            self._control("stop", "--mode=fast", "--wait")

    def _control(self, *words: str) -> None:
        # Its output goes nowhere: the server would keep a pipe open for as long as it runs.
        done = subprocess.run(
            [self._settings.program("pg_ctl"), f"--pgdata={self._data}", "--timeout=86400", *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=False,
        )
        if done.returncode:
            raise Failed(f"the restored server does not {words[0]}: {self._last_words()}")

    def _recovered(self) -> None:
        """Wait until it has played what it was told to."""
        while True:
            with contextlib.suppress(Failed):
                if self.sql("SELECT pg_is_in_recovery()", "postgres") == [["f"]]:
                    return
            if not (self._data / "postmaster.pid").exists():
                raise Failed(f"the restored server gave up: {self._last_words()}")
            time.sleep(0.2)

    def _last_words(self) -> str:
        try:
            text = (self._private / "log").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return "it left no word"
        told = [line for line in text.splitlines() if re.search(r"FATAL|PANIC|ERROR", line)]
        return " / ".join(line.partition("] ")[2] or line for line in (told or text.splitlines())[-3:])

    def program(self, name: str, *words: str | Path) -> str:
        """Run one of PostgreSQL's programs against it."""
        return run(self._settings.program(name), *words, more={"PGHOST": str(self._private), "PGPORT": "5432"})

    def sql(self, statement: str, database: str = DATABASE) -> list[list[str]]:
        """The rows of a query, as text."""
        words = ("-XAtq", "--set=ON_ERROR_STOP=1", f"--dbname={database}", f"--command={statement}")
        return [line.split("|") for line in self.program("psql", *words).splitlines()]

    def number(self, statement: str) -> int:
        """The one number of a query."""
        return int(self.sql(statement)[0][0])


# The repository


def backups() -> list[dict[str, Any]]:
    """The backups of the repository, oldest first. Raises Failed if the repository cannot be read."""
    (stanza,) = json.loads(pgbackrest("--output=json", "info"))
    if stanza["status"]["code"] not in (0, 2):  # 2: no backup yet
        raise Failed(f"the repository is not in order: {stanza['status']['message']}")
    found: list[dict[str, Any]] = stanza["backup"]
    return found


def missing_backups(there: Iterable[Mapping[str, Any]], names: Iterable[str]) -> list[str]:
    """The backups that the repository's list has and its folder has not; pgBackRest's own `verify` does not look."""
    manifests = {name.split("/")[0] for name in names if name.endswith("/backup.manifest")}
    return [backup["label"] for backup in there if backup["label"] not in manifests]


def gaps(names: Iterable[str], since: str = "") -> list[str]:
    """The segments of WAL that are missing between those that the repository has, from segment `since` on.

    pgBackRest's own `verify` counts no gap. Each timeline is looked at by itself; a segment has 16 MiB (PostgreSQL's default), so
    256 to each of the 2^32 logs.
    """
    timelines: dict[str, list[int]] = defaultdict(list)
    for name in names:
        if found := re.search(r"([0-9A-F]{8})([0-9A-F]{8})([0-9A-F]{8})-[0-9a-f]{40}", name):
            timelines[found[1]].append(int(found[2], 16) << 8 | int(found[3], 16))
    lacking = []
    for timeline, numbers in sorted(timelines.items()):
        numbers.sort()
        for one, following in itertools.pairwise(numbers):
            lacking += [
                f"{timeline}{number >> 8:08X}{number & 0xFF:08X}" for number in range(one + 1, min(following, one + 9))
            ]
    return [name for name in lacking if name[8:] >= since[8:]]


def stored(path: str) -> list[str]:
    """The names of all files below a folder of the repository."""
    return list(json.loads(pgbackrest("--output=json", "--recurse", "repo-ls", path)))


def check_archive() -> dict[str, Any]:
    """The way from the server to the repository works: a segment is ended now, and gets there. None is missing since the newest backup."""
    pgbackrest("check")
    newest = backups()[-1:]
    lacking = gaps(stored(f"archive/{STANZA}"), newest[0]["archive"]["start"]) if newest else []
    if lacking:
        raise Failed(
            f"WAL is missing in the repository, from {lacking[0]} on: no time after it and before the next backup can be restored. "
            "Take a backup now (playbooks/backup.yml)."
        )
    return {}


def back_up(settings: Settings) -> dict[str, Any]:
    """A backup into the repository."""
    there = backups()
    full = max((one["timestamp"]["stop"] for one in there if one["type"] == "full"), default=0)
    # Half a day less than the days: a week later the run may begin a little sooner.
    kind = "full" if time.time() - full > (settings.full_days - 0.5) * DAY else "diff"
    words = (f"--type={kind}", "backup")
    try:
        pgbackrest("--backup-standby" if settings.standbys else "--no-backup-standby", *words)
    except Failed as failed:
        if not settings.standbys or "standby" not in str(failed):
            raise
        pgbackrest("--no-backup-standby", *words)  # the one that writes is all there is just now
    new = backups()[-1]
    if new["error"]:
        raise Failed(
            f"backup {new['label']} has pages with a wrong checksum: the database itself is damaged; see pgbackrest info"
        )
    return {
        "label": new["label"],
        "type": new["type"],
        "bytes": new["info"]["repository"]["delta"],
        "whole": new["info"]["size"],
    }


def verify() -> None:
    """Every file of the repository is there and has its checksum."""
    there = backups()
    if not there:
        raise Failed("the repository has no backup")
    if lost := missing_backups(there, stored(f"backup/{STANZA}")):
        raise Failed(f"backup {lost[0]} is in the repository's list, but its files are gone")
    said = pgbackrest("--output=text", "verify")
    if "status: error" in said:  # its exit status is 0 all the same
        wrong = [" ".join(line.split()) for line in said.splitlines() if re.search(r"invalid|missing: [1-9]", line)]
        raise Failed(f"the repository is damaged: {'; '.join(wrong[:4]) or ' '.join(said.split())}")
    lacking = gaps(stored(f"archive/{STANZA}"), there[0]["archive"]["start"])
    if lacking and lacking[-1][8:] >= there[-1]["archive"]["start"][8:]:
        raise Failed(f"WAL is missing in the repository: {', '.join(lacking[:4])}")


# Looks


def clean(settings: Settings) -> None:
    """Nothing restored stays lying about: it is mail."""
    for folder in (settings.scratch, settings.path("server"), settings.path("copy")):
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def newest_restored(settings: Settings, room: float) -> Iterator[tuple[Server, float]]:
    """The newest backup and all WAL after it, on a server of its own, and how new that is, in seconds since 1970.

    `room` is how many times its size has to be free.
    """
    there = backups()
    if not there:
        raise Failed("the repository has no backup")
    size = there[-1]["info"]["size"]
    if (free := shutil.disk_usage(settings.folder).free) < size * room:
        raise Failed(
            f"{settings.folder} has {free >> 20} MiB free, but {int(size * room) >> 20} MiB are needed to restore to it"
        )
    clean(settings)
    settings.scratch.mkdir(mode=0o700)
    try:
        pgbackrest(f"--config={settings.config}", "--archive-mode=off", "--type=default", "restore")
        with Server(settings, settings.scratch) as server:
            yield server, last_commit(server) or float(there[-1]["timestamp"]["stop"])
    finally:
        clean(settings)


def sound(server: Server) -> dict[str, Any]:
    """How much there is in a restored database. Raises Failed if what has to be true of one is not."""
    server.program("pg_amcheck", "--install-missing", "--heapallindexed", "--jobs=2", DATABASE)
    for what, statement in SOUND.items():
        if count := server.number(statement):
            raise Failed(f"the restored database is not sound: {what} ({count} times)")
    return counted(server)


def counted(server: Server) -> dict[str, Any]:
    """How much there is in a database."""
    return {
        "messages": server.number("SELECT count(*) FROM messages"),
        "bodies": server.number("SELECT count(*) FROM message_bodies"),
        "waiting": server.number("SELECT count(*) FROM deliveries WHERE status IN ('accepted', 'reattempt', 'held')"),
        "migration": server.sql("SELECT max(migration_id) FROM _yoyo_migration")[0][0],
        "newest": server.sql("SELECT coalesce(extract(epoch FROM max(created_at))::bigint, 0) FROM messages")[0][0],
    }


def last_commit(server: Server) -> float:
    """When the last was committed of what was played into a restored server, in seconds since 1970; 0 if nothing was."""
    return float(server.sql("SELECT coalesce(extract(epoch FROM pg_last_xact_replay_timestamp()), 0)")[0][0])


def drill(settings: Settings) -> dict[str, Any]:
    """Both ways back, gone to their end."""
    began = time.time()
    verify()
    with newest_restored(settings, ROOM) as (server, at):
        took = time.time() - began
        late = began - at
        # A relay at work commits every few seconds: leases, heartbeats.
        if late > 2 * settings.rpo + 60:
            raise Failed(f"the newest that can be restored is {late:.0f} s old; {settings.rpo} s are promised")
        found = sound(server)
    if settings.place:
        found["copy"] = drill_copy(settings)
    return found | {"late": round(max(late, 0)), "restored_in": round(took)}


def drill_copy(settings: Settings) -> dict[str, Any]:
    """The newest copy of the independent place, as one would have it back where nothing of ours is left."""
    clean(settings)
    try:
        about = fetch(settings, settings.path("copy"), "latest")
        if (age := time.time() - about["made"]) > 2 * DAY:
            raise Failed(f"the newest independent copy is {age / 3600:.0f} hours old")
        initialize(settings, settings.scratch)
        with Server(settings, settings.scratch) as server:
            load(server, settings.path("copy", "dump"))
            found = sound(server)
        for name in ("messages", "bodies", "waiting"):
            if found[name] != about[name]:
                raise Failed(f"the independent copy should have {about[name]} {name}, and has {found[name]}")
        return found | {"made": about["made"]}
    finally:
        clean(settings)


def initialize(settings: Settings, data: Path) -> None:
    """An empty server."""
    words = (
        "--auth-local=trust",
        "--encoding=UTF8",
        "--locale=C.UTF-8",
        "--data-checksums",
        "--username=postgres",
        *(["--no-sync"] if data == settings.scratch else []),
    )
    run(settings.program("initdb"), f"--pgdata={data}", *words)


def load(server: Server, dump: Path) -> None:
    """Put a copy into a server, in place of what it has."""
    server.sql(f"DROP DATABASE IF EXISTS {DATABASE} WITH (FORCE)", "postgres")
    if [DATABASE] not in server.sql("SELECT rolname FROM pg_roles", "postgres"):
        server.sql(f"CREATE ROLE {DATABASE} LOGIN", "postgres")
    how = "TEMPLATE template0 ENCODING 'UTF8' LOCALE 'C.UTF-8'"
    server.sql(f"CREATE DATABASE {DATABASE} OWNER {DATABASE} {how}", "postgres")
    server.program("pg_restore", "--exit-on-error", f"--jobs={jobs()}", f"--dbname={DATABASE}", dump / DATABASE)
    server.program("vacuumdb", "--analyze-only", "--quiet", f"--jobs={jobs()}", f"--dbname={DATABASE}")


def jobs() -> int:
    """How many may work at once."""
    return min(os.cpu_count() or 1, 8)


# The independent place


def restic(settings: Settings, *words: str | Path) -> str:
    """One command of restic. Its secrets are files that systemd, or restore.yml, gives for as long as it runs."""
    given = Path(os.environ.get("CREDENTIALS_DIRECTORY", ""))
    more = {
        "RESTIC_REPOSITORY": settings.place,
        "RESTIC_PASSWORD_FILE": str(given / "independent_password"),
        "RESTIC_CACHE_DIR": str(settings.path("cache")),
        "AWS_SHARED_CREDENTIALS_FILE": str(given / "independent_s3_credentials"),
        "HOME": settings.folder,
    }
    return run("restic", "--quiet", *by_ssh(settings.place, given / "independent_ssh_key"), *words, more=more)


def by_ssh(place: str, key: Path) -> list[str]:
    """How restic comes to an SFTP server: with our key, and only if the server has the key that we know.

    A place is `sftp:user@host:/path` or `sftp://user@host:2222//path` (restic's manual, "Preparing a new repository").
    """
    found = re.match(r"sftp:(//)?(?:([^@/]+)@)?(\[[^]]+]|[^:/]+)(?(1)(?::(\d+))?)", place)
    if not found:
        return []
    known = ("-o", f"UserKnownHostsFile={SETTINGS.with_name('known_hosts')}", "-o", "StrictHostKeyChecking=yes")
    words = [
        "ssh",
        "-i",
        str(key),
        *known,
        "-o",
        "BatchMode=yes",
        "-o",
        "ServerAliveInterval=30",
        "-p",
        found[4] or "22",
    ]
    words += ["-l", found[2]] if found[2] else []
    return ["-o", f"sftp.command={shlex.join([*words, found[3].strip('[]'), '-s', 'sftp'])}"]


def copy_away(settings: Settings) -> dict[str, Any]:
    """A full copy at the independent place.

    It is made from the newest backup, restored: so it costs the database nothing, each one proves that backup, and it is logical, so
    that a damaged page or a bug of the backup's format ends here, loudly, and is not carried along.
    """
    dump = settings.path("copy", "dump")
    with newest_restored(settings, 2 * ROOM) as (server, at):
        dump.mkdir(mode=0o700, parents=True)
        server.program(
            *("pg_dump", "--format=directory", "--compress=0", "--no-sync", f"--jobs={jobs()}"),
            *(f"--dbname={DATABASE}", f"--file={dump / DATABASE}"),
        )
        server.program("pg_dumpall", "--globals-only", "--no-role-passwords", f"--file={dump / 'globals.sql'}")
        version = server.sql("SELECT current_setting('server_version_num')::int / 10000", "postgres")[0][0]
        about = {**counted(server), "made": at, "postgresql": version}
        (dump / "about.json").write_text(json.dumps(about, indent=1), encoding="utf-8")
        (dump / "README").write_text(README.format(version=version), encoding="utf-8")
        try:
            restic(settings, "cat", "config")
        except Failed as failed:
            # Only for the first copy: a place that lost all others is an alarm, and not a fresh start.
            is_absent = re.search(r"not exist|no such|unable to open config", str(failed))
            if not is_absent or state(settings, "independent").get("first"):
                raise
            restic(settings, "init")
        restic(settings, "unlock")  # what a run that was killed has left
        said = restic(settings, "backup", "--json", "--host", STANZA, "--tag", "daily", dump)
        summary: dict[str, Any] = next(
            one for one in map(json.loads, said.splitlines()) if one.get("message_type") == "summary"
        )
    if settings.forget:
        keep = (f"--keep-daily={settings.keep_daily}", f"--keep-monthly={settings.keep_monthly}")
        restic(settings, "forget", "--prune", "--group-by=host", *keep)
    part = datetime.now(UTC).timetuple().tm_yday % settings.check_days + 1
    restic(settings, "check", f"--read-data-subset={part}/{settings.check_days}")
    return {
        "label": summary["snapshot_id"][:8],
        "bytes": summary["data_added"],
        "whole": summary["total_bytes_processed"],
        "first": state(settings, "independent").get("first") or time.time(),
        **{name: about[name] for name in ("messages", "waiting", "made")},
    }


def fetch(settings: Settings, folder: Path, snapshot: str) -> dict[str, Any]:
    """Bring a copy here; what its about.json says."""
    restic(settings, "restore", snapshot, "--target", folder / "fetched")
    (about,) = (folder / "fetched").rglob("about.json")
    about.parent.rename(folder / "dump")
    found: dict[str, Any] = json.loads((folder / "dump/about.json").read_bytes())
    return found


def snapshot_before(settings: Settings, moment: datetime | None) -> str:
    """The newest copy that is not newer than that moment. Raises Failed if there is none."""
    told: list[dict[str, str]] = json.loads(restic(settings, "snapshots", "--json"))
    times = {one["short_id"]: datetime.fromisoformat(re.sub(r"\.\d+", "", one["time"])) for one in told}
    fitting = {name: at for name, at in times.items() if moment is None or at <= moment}
    if not fitting:
        raise Failed(
            f"there is no copy of that time or before; there are {', '.join(map(str, sorted(times.values())))}"
        )
    return max(fitting, key=lambda name: fitting[name])


# The way back


def restore(settings: Settings, source: str, to: str, timeline: str) -> dict[str, Any]:
    """Put the database into the server's folder, as it was at that moment, or as new as it can be had."""
    data = Path(settings.data)
    if (data / "postmaster.pid").exists():
        raise Failed(f"a server runs on {data}")
    moment = datetime.fromisoformat(to) if to else None
    if moment and moment.tzinfo is None:
        raise Failed(f"{to} has no time zone; write it like 2026-11-25 17:03:12+00")
    if source == "independent":
        clean(settings)
        try:
            about = fetch(settings, settings.path("copy"), snapshot_before(settings, moment))
            if not (data / "PG_VERSION").exists():
                initialize(settings, data)
            with Server(settings, data) as server:
                load(server, settings.path("copy", "dump"))
                return {"restored_to": _said(about["made"]), **counted(server)}
        finally:
            clean(settings)
    there = backups()
    if not there:
        raise Failed("the repository has no backup; there may be an independent copy: -e restore_from=independent")
    if moment and moment.timestamp() < there[0]["timestamp"]["stop"]:
        raise Failed(
            f"the oldest backup ended at {_said(there[0]['timestamp']['stop'])}; choose that moment or a later one"
        )
    words = ["--type=default"]
    if moment:
        words = ["--type=time", f"--target={moment.isoformat(sep=' ')}", "--target-action=promote"]
    if timeline:
        words.append(f"--target-timeline={timeline}")
    data.mkdir(mode=0o700, exist_ok=True)
    pgbackrest("--delta", *words, "restore")
    with Server(settings, data, archive=True) as server:
        # A member that is copied from this one is to follow it, and not to stop at our moment.
        for name in ("", "_name", "_time", "_xid", "_lsn", "_inclusive", "_timeline", "_action"):
            server.sql(f"ALTER SYSTEM RESET recovery_target{name}", "postgres")
        server.sql("ALTER SYSTEM RESET restore_command", "postgres")
        return {"restored_to": _said(last_commit(server)), **counted(server)}


def _said(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(sep=" ", timespec="seconds") if at else "the end of the backup"


# What became of the jobs


def state(settings: Settings, kind: str) -> dict[str, Any]:
    """What is known of the last runs of a job."""
    try:
        known: dict[str, Any] = json.loads(settings.path("state", f"{kind}.json").read_bytes())
    except FileNotFoundError:
        return {}
    return known


def note(settings: Settings, kind: str, **news: Any) -> None:
    """Keep what is new of a job, for people and for Prometheus."""
    known = state(settings, kind) | news
    _replace(settings.path("state", f"{kind}.json"), json.dumps(known, indent=1))
    _replace(settings.path("metrics", f"{kind}.prom"), metrics(kind, known))


def metrics(kind: str, known: Mapping[str, Any]) -> str:
    """The state of a job as the node exporter's textfile collector reads it."""
    names = {
        "last_success_timestamp_seconds": (
            "success",
            "When the job last went well; of one that never ran, when it was set up.",
        ),
        "last_failure_timestamp_seconds": ("failure", "When the job last failed; 0: never."),
        "duration_seconds": ("seconds", "How long the last run took that went well."),
        "size_bytes": ("bytes", "How much the last run has added that went well."),
    }
    lines = []
    for name, (word, text) in names.items():
        if word in known or word == "failure":
            lines += [f"# HELP remails_backup_{name} {text}", f"# TYPE remails_backup_{name} gauge"]
            lines += [f'remails_backup_{name}{{kind="{kind}"}} {known.get(word, 0):.0f}']
    return "\n".join(lines) + "\n"


def _replace(path: Path, text: str) -> None:
    new = path.with_suffix(".new")
    new.write_text(text, encoding="utf-8")
    new.chmod(0o644)
    new.replace(path)


def job(settings: Settings, kind: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Do the work of a job and keep what came of it. Raises Failed."""
    began = time.time()
    try:
        found = work()
    except Exception as error:
        note(settings, kind, failure=time.time(), says=str(error) or type(error).__name__)
        raise
    note(settings, kind, success=time.time(), seconds=time.time() - began, says="", **found)
    return found


@contextlib.contextmanager
def alone(settings: Settings) -> Iterator[None]:
    """One heavy job at a time: they share the scratch folder and the disk."""
    with settings.path("lock").open("w", encoding="ascii") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def load_settings(path: Path) -> Settings:
    """What Ansible wrote."""
    return Settings(**tomllib.loads(path.read_text(encoding="utf-8")))


def main(words: list[str]) -> int:
    """See the module's text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("word", choices=[*KINDS, "begin", "status", "restore"])
    parser.add_argument("--from", dest="source", choices=["repository", "independent"], default="repository")
    parser.add_argument("--to", default="", help="the moment, as 2026-11-25 17:03:12+00")
    parser.add_argument("--timeline", default="", help="of the repository, if not the newest")
    parser.add_argument("--settings", type=Path, default=SETTINGS)
    given = parser.parse_args(words)
    settings = load_settings(given.settings)
    os.umask(0o077)
    os.chdir(settings.folder)
    works: dict[str, Callable[[], dict[str, Any]]] = {
        "full": lambda: back_up(settings),
        "independent": lambda: copy_away(settings),
        "drill": lambda: drill(settings),
    }
    try:
        if given.word == "begin":
            for kind in KINDS:
                if not state(settings, kind) and (kind != "independent" or settings.place):
                    note(settings, kind, success=time.time())
            said: Any = {}
        elif given.word == "status":
            said = {kind: state(settings, kind) for kind in KINDS}
        elif given.word == "restore":
            said = restore(settings, given.source, given.to, given.timeline)
        elif given.word == "wal":
            said = job(settings, "wal", check_archive)
        else:
            with alone(settings):
                said = job(settings, given.word, works[given.word])
    except Failed as failed:
        sys.stderr.write(f"{given.word} failed: {failed}\n")
        return 1
    if said:
        sys.stdout.write(json.dumps(said) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
