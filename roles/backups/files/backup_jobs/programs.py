"""The programs that do the work: each is run to its end, and what is wrong is told in a sentence."""

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

STANZA = "remails"
DATABASE = "remails"


class Failed(Exception):
    """Says in a sentence what is wrong."""


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


def jobs() -> int:
    """How many may work at once."""
    return min(os.cpu_count() or 1, 8)
