"""Bans: client networks that guess at passwords, and the accounts that are guessed at.

Guesses are added up here from all processes (`fold`) and leak away at the rate of the limit; a network that reaches it is banned for a
while, each time twice as long. An account is never banned: whoever knows its name could lock its owner out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, NamedTuple

from psycopg.rows import class_row

from remails import db

Kind = Literal["network", "account"]

_MOST = 50_000  # bans that a process takes to memory


class Counted(NamedTuple):
    """Guesses of a network, or at an account, that were not folded yet."""

    kind: Kind
    name: str
    guesses: float


@dataclass(frozen=True, slots=True)
class Limit:
    """So many guesses in so many seconds are a ban for `duration` seconds, which doubles up to `longest`."""

    guesses: int
    window: float
    duration: float
    longest: float

    def is_reached(self, guesses: float) -> bool:
        """Whether it is time for a ban. What leaked away since the first guess does not count as a whole one."""
        return guesses > self.guesses - 1


@dataclass(frozen=True, slots=True)
class Guesser:
    """A row as the operator sees it."""

    kind: Kind
    name: str
    guesses: float
    service: str
    bans: int
    banned_until: datetime | None
    counted_at: datetime


def fold(
    conn: db.Connection, service: str, counted: Sequence[Counted], limit: Limit
) -> dict[tuple[Kind, str], tuple[float, bool]]:
    """Add guesses and ban whom it is time to ban; for each of `counted` the guesses in all, and whether it was banned now."""
    rows = conn.execute(
        """INSERT INTO bans AS known (kind, name, guesses, service)
           SELECT kind, name, guesses, %(service)s
           FROM unnest(%(kinds)s::text[], %(names)s::text[], %(guesses)s::float8[]) AS counted (kind, name, guesses)
           ORDER BY 1, 2
           ON CONFLICT (kind, name) DO UPDATE SET
               guesses = excluded.guesses + greatest(0,
                   known.guesses - extract(epoch FROM now() - known.counted_at)::float8 * %(leak)s),
               counted_at = now(), service = excluded.service
           RETURNING kind, name, guesses""",
        {
            "service": service,
            "kinds": [one.kind for one in counted],
            "names": [one.name for one in counted],
            "guesses": [one.guesses for one in counted],
            "leak": limit.guesses / limit.window,
        },
    ).fetchall()
    over = [name for kind, name, guesses in rows if kind == "network" and limit.is_reached(guesses)]
    banned = set(_ban(conn, over, limit)) if over else set()
    return {
        (kind, name): (0.0, True) if kind == "network" and name in banned else (guesses, False)
        for kind, name, guesses in rows
    }


def _ban(conn: db.Connection, networks: Sequence[str], limit: Limit) -> list[str]:
    rows = conn.execute(
        """UPDATE bans SET guesses = 0, bans = bans + 1,
               banned_until = now() + make_interval(secs => least(%(duration)s * 2.0 ^ least(bans, 30), %(longest)s))
           WHERE kind = 'network' AND name = ANY(%(networks)s) AND (banned_until IS NULL OR banned_until <= now())
           RETURNING name""",
        {"duration": limit.duration, "longest": limit.longest, "networks": list(networks)},
    )
    return [name for (name,) in rows]


def active(conn: db.Connection) -> dict[str, float]:
    """The networks that are banned now, and for how many seconds more."""
    rows = conn.execute(
        """SELECT name, extract(epoch FROM banned_until - clock_timestamp())::float8 FROM bans
           WHERE kind = 'network' AND banned_until > now() ORDER BY banned_until DESC LIMIT %s""",
        [_MOST],
    )
    return dict(rows.fetchall())


def list_(conn: db.Connection, limit: Limit, most: int) -> list[Guesser]:
    """Those who are banned, then those with most guesses now; networks and accounts."""
    with conn.cursor(row_factory=class_row(Guesser)) as cur:
        return cur.execute(
            """SELECT kind, name, service, bans, counted_at,
                   CASE WHEN banned_until > now() THEN banned_until END AS banned_until,
                   greatest(0, guesses - extract(epoch FROM now() - counted_at)::float8 * %s) AS guesses
               FROM bans ORDER BY 6 DESC NULLS LAST, 7 DESC, kind, name LIMIT %s""",
            [limit.guesses / limit.window, most],
        ).fetchall()


def lift(conn: db.Connection, network: str) -> bool:
    """End a network's ban and forget its guesses; false when there is nothing to forget."""
    return conn.execute("DELETE FROM bans WHERE kind = 'network' AND name = %s", [network]).rowcount == 1


def purge(conn: db.Connection) -> int:
    """Forget who has not guessed for a week; returns how many."""
    done = conn.execute(
        """DELETE FROM bans WHERE counted_at < now() - interval '7 days'
           AND (banned_until IS NULL OR banned_until < now() - interval '7 days')"""
    )
    return done.rowcount
