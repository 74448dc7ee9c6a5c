"""The repository of pgBackRest: backups, and all WAL since."""

import itertools
import json
import re
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from .programs import STANZA, Failed, pgbackrest
from .settings import Settings

DAY = 86400


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

    Of one database. pgBackRest's own `verify` counts no gap. Each timeline is looked at by itself; a segment has 16 MiB (PostgreSQL's
    default), so 256 to each of the 2^32 logs.
    """
    timelines: dict[str, list[int]] = defaultdict(list)
    for name in names:
        if found := re.search(r"([0-9A-F]{8})([0-9A-F]{8})([0-9A-F]{8})-[0-9a-f]{40}", name):
            timelines[found[1]].append(int(found[2], 16) << 8 | int(found[3], 16))
    missing = []
    for timeline, numbers in sorted(timelines.items()):
        numbers.sort()
        for one, following in itertools.pairwise(numbers):
            missing += [
                f"{timeline}{number >> 8:08X}{number & 0xFF:08X}" for number in range(one + 1, min(following, one + 9))
            ]
    return [name for name in missing if name[8:] >= since[8:]]


def stored(path: str) -> list[str]:
    """The names of all files below a folder of the repository."""
    return list(json.loads(pgbackrest("--output=json", "--recurse", "repo-ls", path)))


def lacking(backup: Mapping[str, Any]) -> list[str]:
    """The segments of WAL that are missing since that backup was made.

    Of its own database: another one, of before a restore from the independent place, may have had the same timelines.
    """
    names = (
        name for name in stored(f"archive/{STANZA}") if name.split("/")[0].endswith(f"-{backup['database']['id']}")
    )
    return gaps(names, backup["archive"]["start"])


def check_archive() -> dict[str, Any]:
    """The way from the server to the repository works: a segment is ended now, and gets there. None is missing since the newest backup."""
    pgbackrest("check")
    newest = backups()[-1:]
    if newest and (missing := lacking(newest[0])):
        raise Failed(
            f"WAL is missing in the repository, from {missing[0]} on: no time after it and before the next backup can be restored. "
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
    if missing := lacking(there[-1]):
        raise Failed(f"WAL is missing in the repository: {', '.join(missing[:4])}")
