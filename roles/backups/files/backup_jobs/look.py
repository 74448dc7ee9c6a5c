"""A look at what was restored: whether it is whole, and how much and how new it is."""

import contextlib
import shutil
from collections.abc import Iterator
from typing import Any

from .programs import DATABASE, Failed, pgbackrest
from .repository import backups
from .server import Server
from .settings import Settings

ROOM = 1.2  # a restored database needs this much of its size, with the WAL that is played
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
