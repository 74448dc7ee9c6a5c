"""The way back: a database on its own host again."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from .copies import fetch, snapshot_before
from .look import clean, counted, last_commit
from .programs import Failed, pgbackrest
from .repository import backups
from .server import Server, initialize, load
from .settings import Settings


def restore(settings: Settings, source: str, to: str, timeline: str) -> dict[str, Any]:
    """Put the database into the server's folder, as it was at that moment, or as new as it can be had."""
    data = Path(settings.data)
    if (data / "postmaster.pid").exists():
        raise Failed(f"a server runs on {data}")
    moment = _moment(to)
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


def find(settings: Settings, to: str) -> dict[str, Any]:
    """The independent copy that `restore` would take."""
    return {"copy": snapshot_before(settings, _moment(to))}


def _moment(to: str) -> datetime | None:
    moment = datetime.fromisoformat(to) if to else None
    if moment and moment.tzinfo is None:
        raise Failed(f"{to} has no time zone; write it like 2026-11-25T17:03:12+00")
    return moment


def _said(at: float) -> str:
    """A moment as journalctl takes it: that of Debian 12 knows no +00:00."""
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M:%S} UTC" if at else "the end of the backup"
