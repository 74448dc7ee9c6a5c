"""`remails-backup`: does one job, or tells of them."""

import argparse
import contextlib
import fcntl
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from . import __doc__ as described
from .copies import copy_away
from .drill import drill
from .programs import Failed
from .repository import back_up, check_archive
from .restore import find, restore
from .settings import SETTINGS, Settings, load_settings
from .state import job, note, state

KINDS = ("wal", "full", "independent", "drill")


@contextlib.contextmanager
def alone(settings: Settings, *, patient: bool = True) -> Iterator[None]:
    """One heavy job at a time: they share the scratch folder and the disk. Raises Failed if one runs and we do not wait for it."""
    with settings.path("lock").open("w", encoding="ascii") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if patient else fcntl.LOCK_NB))
        except BlockingIOError:
            raise Failed("a backup or a drill runs on this host; end it: systemctl stop 'remails-backup@*'") from None
        yield


def main(words: list[str]) -> int:
    """See the package's text."""
    parser = argparse.ArgumentParser(
        "remails-backup", description=described, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("word", choices=[*KINDS, "begin", "status", "find", "restore"])
    parser.add_argument("--from", dest="source", choices=["repository", "independent"], default="repository")
    parser.add_argument("--to", default="", help="the moment, as 2026-11-25T17:03:12+00")
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
        said: Any
        if given.word == "begin":
            said = [kind for kind in KINDS if not state(settings, kind) and (kind != "independent" or settings.place)]
            for kind in said:
                note(settings, kind, success=time.time())
        elif given.word == "status":
            said = {kind: state(settings, kind) for kind in KINDS}
        elif given.word == "find":
            said = find(settings, given.to)
        elif given.word == "restore":
            with alone(settings, patient=False):  # they clean up what it needs
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
