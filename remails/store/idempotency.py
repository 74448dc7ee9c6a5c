"""Idempotency keys: which message a project stored under which key of its own.

`take` is exact under concurrency: of two transactions that take a key at once the second waits for the first to commit, and
then finds the key taken.
"""

from collections.abc import Collection, Sequence
from dataclasses import astuple, dataclass
from datetime import datetime, timedelta

from psycopg.rows import class_row

from remails.db import Connection
from remails.store.ids import MessageId, ProjectId

Place = tuple[ProjectId, str]
"""A project and a key of its own."""


@dataclass(frozen=True, slots=True)
class Kept:
    """What was stored under a key."""

    project_id: ProjectId
    key: str
    message_id: MessageId
    fingerprint: bytes
    message_id_header: str
    created_at: datetime

    @property
    def place(self) -> Place:
        """Whose key it is, and the key."""
        return self.project_id, self.key


def find(conn: Connection, places: Collection[Place]) -> dict[Place, Kept]:
    """What is kept under these keys."""
    with conn.cursor(row_factory=class_row(Kept)) as cursor:
        rows = cursor.execute(
            """SELECT k.project_id, k.key, k.message_id, k.fingerprint, k.message_id_header, k.created_at
               FROM idempotency_keys k
               JOIN unnest(%s::uuid[], %s::text[]) AS asked (project_id, key) USING (project_id, key)""",
            [[project_id for project_id, _ in places], [key for _, key in places]],
        )
        return {row.place: row for row in rows}


def take(conn: Connection, wanted: Sequence[Kept]) -> set[Place]:
    """Keep these, each under another key; returns the keys that were free."""
    rows = conn.execute(
        """INSERT INTO idempotency_keys (project_id, key, message_id, fingerprint, message_id_header, created_at)
           SELECT * FROM unnest(%b::uuid[], %b::text[], %b::uuid[], %b::bytea[], %b::text[], %b::timestamptz[])
               AS new (project_id, key)
           ORDER BY project_id, key  -- one order of locks for all
           ON CONFLICT DO NOTHING RETURNING project_id, key""",
        [list(column) for column in zip(*map(astuple, wanted), strict=True)],
    )
    return {(project_id, key) for project_id, key in rows}


def remove_old(conn: Connection, seconds: float, limit: int) -> int:
    """Forget keys that are older than so many seconds; returns how many."""
    return conn.execute(
        """DELETE FROM idempotency_keys WHERE ctid = ANY(ARRAY(
               SELECT ctid FROM idempotency_keys WHERE created_at < now() - %s
               ORDER BY created_at LIMIT %s FOR UPDATE SKIP LOCKED))""",
        [timedelta(seconds=seconds), limit],
    ).rowcount
