"""Full copies at the independent place, kept by restic."""

import json
import os
import re
import shlex
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from .look import ROOM, counted, newest_restored
from .programs import DATABASE, STANZA, Failed, jobs, run
from .settings import SETTINGS, Settings
from .state import state

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
