"""What became of the jobs: `state/KIND.json` for people, `metrics/KIND.prom` for the node exporter."""

import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .settings import Settings


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
        if word in known or word in ("success", "failure"):
            lines += [f"# HELP remails_backup_{name} {text}", f"# TYPE remails_backup_{name} gauge"]
            lines += [f'remails_backup_{name}{{kind="{kind}"}} {known.get(word, 0):.3f}']
    return "\n".join(lines) + "\n"


def _replace(path: Path, text: str) -> None:
    new = path.with_suffix(".new")
    with new.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())  # or an empty file could be left by a power cut, which no job could read
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
