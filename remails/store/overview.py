"""The whole installation in a few numbers, for whoever watches it."""

from collections.abc import Mapping
from dataclasses import dataclass

from remails import db


@dataclass(frozen=True, slots=True)
class Overview:
    """What is waiting, and what there is to send it from.

    Args:
        deliveries: that are not final, by status.
        overdue: seconds for which the one that is due longest has been due.
        oldest: seconds since the oldest message that is to be sent came in.
        addresses: that are enabled, by state; `none` is held by no host.
        moves: how often the address that moved most was taken by a host within the last hour, of its last 100 events.
        is_short: whether mail is refused since the disk of the database is nearly full.
        storage_seen: seconds since its host said how full it is; nothing where none ever did.
    """

    deliveries: Mapping[str, int]
    overdue: float
    oldest: float
    addresses: Mapping[str, int]
    moves: int
    is_short: bool
    storage_seen: float | None


def read(conn: db.Connection) -> Overview:
    """The numbers of this moment; one look through the index of what is due."""
    waiting = conn.execute(
        """SELECT d.status::text, count(*),
               extract(epoch FROM now() - least(min(d.next_attempt_at), now()))::float8,
               -- Ids of messages begin with the milliseconds at which they came.
               extract(epoch FROM now())::float8
                   - ('x' || translate(left(min(d.message_id::text), 13), '-', ''))::bit(48)::bigint / 1000.0::float8
           FROM deliveries d WHERE d.status IN ('accepted', 'reattempt') GROUP BY 1"""
    ).fetchall()
    held = conn.execute("SELECT count(*) FROM deliveries WHERE status = 'held'").fetchall()[0][0]
    states = conn.execute(
        """SELECT CASE WHEN lease_until > now() THEN state::text ELSE 'none' END, count(*)
           FROM addresses WHERE is_enabled GROUP BY 1"""
    ).fetchall()
    ((moves,),) = conn.execute(
        """SELECT coalesce(max(taken.number), 0) FROM addresses a CROSS JOIN LATERAL (
               SELECT count(*) AS number FROM (
                   SELECT kind, at FROM address_events e WHERE e.ip = a.ip ORDER BY e.id DESC LIMIT 100) last
               WHERE kind = 'claimed' AND at > now() - interval '1 hour') taken"""
    ).fetchall()
    short, seen = conn.execute(
        """SELECT coalesce(bool_or(is_short AND seen_at > now() - interval '2 minutes'), false),
               extract(epoch FROM now() - max(seen_at))::float8 FROM storage"""
    ).fetchall()[0]
    return Overview(
        {"accepted": 0, "reattempt": 0, **{status: number for status, number, _, _ in waiting}, "held": held},
        max((overdue for _, _, overdue, _ in waiting), default=0.0),
        max((max(age, 0.0) for _, _, _, age in waiting), default=0.0),
        {"ready": 0, "none": 0, **dict(states)},
        moves,
        short,
        seen,
    )
