"""MTA-STS policies of recipients' domains, kept for all hosts until they end (RFC 8461)."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from psycopg.rows import class_row

from remails.db import Connection
from remails.mail.sts import Mode, Policy

_REFRESH = timedelta(days=1)  # RFC 8461 §3.3: well before the end, so that nobody can make us forget a policy
_RETRY = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class Kept:
    """A policy that has not ended."""

    domain: str
    record_id: str
    """The id that the domain's TXT record had."""
    mode: str
    patterns: Sequence[str]
    max_age: int
    expires_at: datetime

    @property
    def policy(self) -> Policy:
        """What it says."""
        return Policy(Mode(self.mode), tuple(self.patterns), self.max_age)


def get(conn: Connection, domain: str) -> Kept | None:
    """The policy of a domain, in lower-case A-labels."""
    with conn.cursor(row_factory=class_row(Kept)) as cursor:
        return cursor.execute(
            """SELECT domain, record_id, mode, patterns, max_age, expires_at FROM sts_policies
               WHERE domain = %s AND expires_at > now()""",
            [domain],
        ).fetchone()


def save(conn: Connection, domain: str, record_id: str, policy: Policy) -> Kept:
    """Keep a policy that was fetched just now."""
    age = timedelta(seconds=policy.max_age)
    with conn.cursor(row_factory=class_row(Kept)) as cursor:
        kept = cursor.execute(
            """INSERT INTO sts_policies
                   (domain, record_id, mode, patterns, max_age, fetched_at, expires_at, refresh_at)
               VALUES (%(domain)s, %(record_id)s, %(mode)s, %(patterns)s, %(max_age)s,
                   now(), now() + %(age)s, now() + %(refresh)s)
               ON CONFLICT (domain) DO UPDATE SET record_id = EXCLUDED.record_id, mode = EXCLUDED.mode,
                   patterns = EXCLUDED.patterns, max_age = EXCLUDED.max_age, fetched_at = EXCLUDED.fetched_at,
                   expires_at = EXCLUDED.expires_at, refresh_at = EXCLUDED.refresh_at
               RETURNING domain, record_id, mode, patterns, max_age, expires_at""",
            {
                "domain": domain,
                "record_id": record_id,
                "mode": policy.mode,
                "patterns": list(policy.patterns),
                "max_age": policy.max_age,
                "age": age,
                "refresh": min(_REFRESH, age / 2),
            },
        ).fetchone()
    assert kept is not None
    return kept


def due_for_refresh(conn: Connection, limit: int) -> list[tuple[str, str]]:
    """Domains (with record ids) whose policies want fetching again; each is given out once an hour. What has ended is deleted."""
    conn.execute("DELETE FROM sts_policies WHERE expires_at <= now() AND refresh_at <= now()")
    return conn.execute(
        """WITH due AS MATERIALIZED (
               SELECT domain FROM sts_policies WHERE refresh_at <= now() ORDER BY refresh_at LIMIT %s
               FOR UPDATE SKIP LOCKED)
           UPDATE sts_policies p SET refresh_at = now() + %s FROM due WHERE p.domain = due.domain
           RETURNING p.domain, p.record_id""",
        [limit, _RETRY],
    ).fetchall()
