"""Rates: a token bucket for each organization that has a limit, shared by all processes and hosts.

A process takes what it needs at once and, while there is plenty, a **block** on top, which it may use for `LEASE` seconds without
asking. Blocks shrink with what is left, so that near the limit nothing lies idle with one process. Tokens out on lease count
as if they were in the bucket: never is there more than `burst` in all, and so never do more than `burst + elapsed * rate`
messages pass, whoever asks and whoever dies. A lease that is not returned in time is lost, which errs on the safe side.

The bucket's row is locked until the caller's transaction ends. It is touched once for a block, not once for a message.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from remails import db
from remails.store import ids
from remails.store.ids import OrganizationId

LEASE = 10.0
"""Seconds for which a block may be used."""

_BLOCK = 1.0  # a block is at most what comes back in so many seconds
_SHARE = 8  # and at most this part of what is left


@dataclass(frozen=True, slots=True)
class Rate:
    """`burst` messages at once, `per_hour` in the long run."""

    burst: int
    per_hour: int

    @property
    def per_second(self) -> float:
        """Tokens that come back in a second."""
        return self.per_hour / 3600

    def __str__(self) -> str:
        return f"{self.per_hour} messages per hour, {self.burst} at once"


@dataclass(frozen=True, slots=True)
class Ask:
    """Wants tokens; `returned` are earlier leases with what is unused of them."""

    organization_id: OrganizationId
    rate: Rate
    wanted: int
    returned: tuple[tuple[UUID, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Grant:
    """What was given: `tokens` of those wanted, `kept` on lease `lease`, and seconds until there is a token again."""

    tokens: int
    lease: UUID
    kept: int
    retry_after: float


def take(conn: db.Connection, asks: Sequence[Ask]) -> dict[OrganizationId, Grant]:
    """Take tokens for these organizations, one ask for each; counts only if the transaction is committed."""
    asked = sorted(ask.organization_id for ask in asks)
    buckets = _lock(conn, asked)
    leases = conn.execute(
        """SELECT id, organization_id, tokens, until > clock_timestamp() FROM rate_leases
           WHERE organization_id = ANY(%s)""",
        [asked],
    ).fetchall()
    now = _now(conn)
    given: dict[OrganizationId, Grant] = {}
    left: list[tuple[OrganizationId, float]] = []
    gone: list[UUID] = []
    for ask in asks:
        if ask.organization_id not in buckets:
            continue  # it was deleted this moment
        unused = dict(ask.returned)
        mine = [row for row in leases if row[1] == ask.organization_id]
        gone += [id_ for id_, _, _, valid in mine if not valid or id_ in unused]
        tokens, at = buckets[ask.organization_id]
        tokens += max((now - at).total_seconds(), 0) * ask.rate.per_second
        tokens += sum(min(unused[id_], lent) for id_, _, lent, valid in mine if valid and id_ in unused)
        lent = sum(lent for id_, _, lent, valid in mine if valid and id_ not in unused)
        grant, rest = _grant(ask, max(min(tokens, ask.rate.burst - lent), 0.0))
        given[ask.organization_id] = grant
        left.append((ask.organization_id, rest))
    _write(conn, left, now, gone, [(id_, grant) for id_, grant in given.items() if grant.kept])
    return given


def _grant(ask: Ask, tokens: float) -> tuple[Grant, float]:
    whole = math.floor(tokens + 1e-9)
    given = min(ask.wanted, whole)
    kept = int(min(ask.rate.per_second * _BLOCK, (whole - given) / _SHARE))
    retry_after = 0.0 if given == ask.wanted else (1 - (tokens - given)) / ask.rate.per_second
    return Grant(given, ids.new(), kept, retry_after), tokens - given - kept


def _lock(conn: db.Connection, asked: list[OrganizationId]) -> dict[OrganizationId, tuple[float, datetime]]:
    locked = _locked(conn, asked)
    if len(locked) < len(asked):
        conn.execute(
            """INSERT INTO rate_buckets (organization_id) SELECT id FROM organizations WHERE id = ANY(%s)
               ORDER BY id ON CONFLICT DO NOTHING""",
            [asked],
        )
        locked = _locked(conn, asked)
    return locked


def _locked(conn: db.Connection, asked: list[OrganizationId]) -> dict[OrganizationId, tuple[float, datetime]]:
    rows = conn.execute(
        """SELECT organization_id, tokens, at FROM rate_buckets WHERE organization_id = ANY(%s)
           ORDER BY organization_id FOR UPDATE""",
        [asked],
    )
    return {id_: (tokens, at) for id_, tokens, at in rows}


def _now(conn: db.Connection) -> datetime:
    """Not `now()`, which is when the transaction began: others may have had the bucket since."""
    now: datetime = conn.execute("SELECT clock_timestamp()").fetchall()[0][0]
    return now


def _write(
    conn: db.Connection,
    left: Sequence[tuple[OrganizationId, float]],
    now: datetime,
    gone: Sequence[UUID],
    kept: Sequence[tuple[OrganizationId, Grant]],
) -> None:
    conn.execute(
        """UPDATE rate_buckets b SET tokens = taken.tokens, at = greatest(b.at, %s)
           FROM unnest(%s::uuid[], %s::float8[]) AS taken (organization_id, tokens)
           WHERE b.organization_id = taken.organization_id""",
        [now, [id_ for id_, _ in left], [tokens for _, tokens in left]],
    )
    if gone:
        conn.execute("DELETE FROM rate_leases WHERE id = ANY(%s)", [list(gone)])
    if kept:
        conn.execute(
            """INSERT INTO rate_leases (id, organization_id, tokens, until)
               SELECT id, organization_id, tokens, clock_timestamp() + make_interval(secs => %s)
               FROM unnest(%s::uuid[], %s::uuid[], %s::int[]) AS kept (id, organization_id, tokens)""",
            [LEASE, [g.lease for _, g in kept], [id_ for id_, _ in kept], [g.kept for _, g in kept]],
        )


def wait(conn: db.Connection, organization_id: OrganizationId, rate: Rate) -> float:
    """Seconds until there is a token, without taking one; 0 when there is."""
    row = conn.execute(
        """SELECT tokens + greatest(extract(epoch FROM clock_timestamp() - at), 0)::float8 * %s
           FROM rate_buckets WHERE organization_id = %s""",
        [rate.per_second, organization_id],
    ).fetchone()
    return 0.0 if row is None else max(1 - float(row[0]), 0.0) / rate.per_second
