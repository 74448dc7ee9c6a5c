"""The queue: which deliveries are due, who has them, and what became of them.

A claim is a lease. It moves `next_attempt_at` to the end of the lease and counts `claim_epoch` up, so a claim whose
owner died simply comes due again, and a result is only recorded under the epoch it belongs to: a late worker
cannot overwrite what a later one did. The one exception is "delivered", which is true whoever says it, and which fences off
whoever has the claim by then.

Before a message's first octet is sent, while the server answers its envelope, its delivery is marked as begun (`begin`), which is
refused when the claim is no longer ours, or has a result. A result takes the mark away. A claim that finds it knows that a worker
died over it: the timeline then says "ambiguous".

Claims take lists of addresses or messages and results go in by the list: no work per delivery that could be per batch. A list goes in as
one parameter of JSON: as an array for each column it would take both sides far longer. It goes in by the deliveries' ids, so that two
statements that meet in the same rows do not wait for each other.
"""

import time
from collections.abc import Sequence
from dataclasses import astuple, dataclass, field
from datetime import datetime, timedelta
from operator import attrgetter
from typing import LiteralString

import msgspec
from psycopg.rows import class_row, scalar_row

from remails.db import Connection, one_statement
from remails.store.ids import DeliveryId, DomainId, HostId, MessageId, OrganizationId, PoolId, ProjectId


@dataclass(frozen=True, slots=True)
class Claim:
    """One delivery, ours until the lease ends."""

    id: DeliveryId
    message_id: MessageId
    organization_id: OrganizationId
    project_id: ProjectId
    domain_id: DomainId
    pool_id: PoolId
    recipient: str
    domain: str
    source: str
    attempts: int
    claim_epoch: int
    created_at: datetime
    expires_at: datetime
    mail_from: str
    recipients: int | None
    """Of the message, in all; None of one that is older than the column."""
    size: int
    eight_bit: bool
    smtputf8: bool
    plaintext_fallback: bool
    avoided: list[str]
    """MX hosts that left three attempts or more without a last word."""
    dsn_ret: str | None
    """What the sender asked for (`mail.dsn`), of the message and of the recipient."""
    dsn_envid: str | None
    dsn_notify: str | None
    dsn_orcpt: str | None
    claimed_at: datetime
    """By the database's clock."""
    raw: bytes | None = field(repr=False)
    """The message, where it is small and has no other recipient: most need no other round trip for it."""
    _since: float = field(default_factory=time.monotonic, repr=False, compare=False)

    def now(self) -> datetime:
        """The time by the database's clock, by which mail comes due: this host's may be wrong, and jump (case X09)."""
        return self.claimed_at + timedelta(seconds=time.monotonic() - self._since)


@dataclass(frozen=True, slots=True)
class Result:
    """What became of a claim, and its entry in the timeline."""

    delivery_id: DeliveryId
    message_id: MessageId
    claim_epoch: int
    status: str
    kind: str
    """The timeline's word: delivered, deferred, failed, ambiguous, expired."""
    text: str
    next_attempt_at: datetime | None = None
    """When to try again; None for a final status."""
    counts: bool = True
    """Whether it was an attempt; a trouble of our own is not."""
    code: int | None = None
    enhanced: str | None = None
    source: str | None = None
    mx_host: str | None = None
    mx_ip: str | None = None
    tls: str | None = None
    milliseconds: int | None = None
    cause: str = ""
    """Why, and what happens next, as sentences."""
    is_delayed: bool = False
    """Whether it has waited for so long that its sender should know; noted once."""
    tls_policy: str | None = None
    tls_verified: bool | None = None
    tls_note: str = ""
    servers: str = "[]"
    """JSON: each server that was tried, in order, with what was said step by step."""


@dataclass(frozen=True, slots=True)
class Note:
    """Something that happened to a delivery apart from an attempt, for the timeline."""

    message_id: MessageId
    delivery_id: DeliveryId | None
    """None: to all of them."""
    kind: str
    text: str = ""
    cause: str = ""


@dataclass(frozen=True, slots=True)
class Begun:
    """A claim whose message is about to be sent, and where to."""

    delivery_id: DeliveryId
    claim_epoch: int
    mx_host: str
    mx_ip: str


_DELIVERY = attrgetter("delivery_id")

IN_HAND = "d.claimed_by IS NOT NULL AND d.next_attempt_at > clock_timestamp()"
"""Of a delivery `d`: whether a host has it in hand. It comes back, or is done, and nobody else touches it."""

_CLAIM = """
, lost AS (
    INSERT INTO timeline (message_id, delivery_id, kind, text, source, mx_host, mx_ip, cause)
    SELECT message_id, id, 'ambiguous', 'the relay was interrupted', source, mx_host, mx_ip,
        'The relay was interrupted while it sent the message: it may have arrived. It is tried again now.'
    FROM due WHERE begun_at IS NOT NULL)
UPDATE deliveries d SET claimed_by = %(host_id)s, claim_epoch = d.claim_epoch + 1,
    next_attempt_at = clock_timestamp() + %(lease)s,
    begun_at = NULL, attempts = d.attempts + (due.begun_at IS NOT NULL)::int
FROM due, messages m, projects p
WHERE d.id = due.id AND m.id = d.message_id AND p.id = m.project_id
RETURNING d.id, d.message_id, d.organization_id, m.project_id, m.domain_id, m.pool_id, d.recipient, d.domain,
    host(d.source) AS source, d.attempts, d.claim_epoch, m.created_at, m.expires_at, m.mail_from, m.recipients, m.size,
    m.eight_bit, m.smtputf8, p.plaintext_fallback,
    CASE WHEN d.attempts < 3 THEN '{}'::text[] ELSE ARRAY(
        SELECT t.mx_host FROM timeline t
        WHERE t.message_id = d.message_id AND t.delivery_id = d.id AND t.kind = 'ambiguous' AND t.mx_host IS NOT NULL
        GROUP BY t.mx_host HAVING count(*) >= 3) END AS avoided,
    m.dsn_ret, m.dsn_envid, d.dsn_notify, d.dsn_orcpt, clock_timestamp() AS claimed_at,
    CASE WHEN m.recipients = 1 AND m.size <= %(small)s
        THEN (SELECT b.raw FROM message_bodies b WHERE b.message_id = m.id) END AS raw
"""

SMALL = 64 * 1024
"""Bytes of a message that comes along with its claim, or is loaded with those of others; a larger one is loaded when it is its turn."""


@dataclass(frozen=True, slots=True)
class Closed:
    """What an organization sends from an address to a domain: not now."""

    source: str
    domain: str
    organization_id: OrganizationId


@dataclass(frozen=True, slots=True)
class But:
    """What is left out of a claim, due as it may be: there is no room for it where it goes, or its sender has enough in hand."""

    closed: Sequence[Closed] = ()
    organizations: Sequence[OrganizationId] = ()

    @property
    def any(self) -> bool:
        """Whether anything is left out."""
        return bool(self.closed or self.organizations)


_NOTHING = But()

# The time stands in a subquery, so that the index is asked for what is due: a bare clock_timestamp() is looked at anew for each
# row, so all that waits would be read.
_OPEN = """
    d.next_attempt_at <= (SELECT clock_timestamp())
    AND d.organization_id <> ALL(%(organizations)s::uuid[])
    AND (%(is_open)s OR (d.domain || ' ' || host(d.source) || ' ' || d.organization_id) <> ALL(%(closed)s::text[]))
"""

_COLUMNS = "d.id, d.message_id, d.source, d.mx_host, d.mx_ip, d.begun_at"

_DUE = (
    """
WITH due AS MATERIALIZED (
    SELECT waiting.*
    FROM unnest(%(sources)s::inet[]) AS mine (ip)
    CROSS JOIN LATERAL (
        SELECT """
    + _COLUMNS
    + """ FROM deliveries d WHERE d.source = mine.ip AND d.status IN ('accepted', 'reattempt') AND """
    + _OPEN
    + """
        ORDER BY d.next_attempt_at LIMIT %(limit)s
        FOR UPDATE SKIP LOCKED) AS waiting
    LIMIT %(limit)s)
"""
)

# Here and below a status is looked at in a CASE, so that deliveries that are named are looked up by what names them. With statistics of
# a queue that was empty a moment ago PostgreSQL would take the index on what waits to be the shorter way, and read all of it.
_DUE_OF = (
    """
WITH due AS MATERIALIZED (
    SELECT """
    + _COLUMNS
    + """ FROM deliveries d
    WHERE d.message_id = ANY(%(message_ids)s)
        AND CASE WHEN d.status IN ('accepted', 'reattempt') THEN d.source = ANY(%(sources)s::inet[]) AND """
    + _OPEN
    + """ END
    LIMIT %(limit)s
    FOR UPDATE SKIP LOCKED)
"""
)


@one_statement
def claim_due(
    conn: Connection, host_id: HostId, sources: Sequence[str], *, lease: float, limit: int, but: But = _NOTHING
) -> list[Claim]:
    """Claim up to `limit` deliveries that are due from these addresses, longest waiting first for each address."""
    return _claim(conn, _DUE, host_id, sources, lease=lease, limit=limit, but=but, message_ids=())


@one_statement
def claim_messages(
    conn: Connection,
    host_id: HostId,
    sources: Sequence[str],
    message_ids: Sequence[MessageId],
    *,
    lease: float,
    limit: int | None = None,
    but: But = _NOTHING,
) -> list[Claim]:
    """Claim what is due of these messages from these addresses: the answer to a note, ahead of any backlog."""
    return _claim(conn, _DUE_OF, host_id, sources, lease=lease, limit=limit, but=but, message_ids=message_ids)


def _claim(
    conn: Connection,
    due: LiteralString,
    host_id: HostId,
    sources: Sequence[str],
    *,
    lease: float,
    limit: int | None,
    but: But,
    message_ids: Sequence[MessageId],
) -> list[Claim]:
    with conn.cursor(row_factory=class_row(Claim), binary=True) as cursor:
        return cursor.execute(
            due + _CLAIM,
            {
                "small": SMALL,
                "sources": list(sources),
                "host_id": host_id,
                "lease": timedelta(seconds=lease),
                "limit": limit,
                "message_ids": list(message_ids),
                "organizations": list(but.organizations),
                "is_open": not but.closed,
                "closed": [f"{one.domain} {one.source} {one.organization_id}" for one in but.closed],
            },
        ).fetchall()


@one_statement
def bodies(conn: Connection, message_ids: Sequence[MessageId]) -> dict[MessageId, bytes]:
    """The raw bytes of some messages, each read once."""
    with conn.cursor(binary=True) as cursor:
        rows = cursor.execute(
            "SELECT message_id, raw FROM message_bodies WHERE message_id = ANY(%s)", [list(message_ids)]
        )
        return {MessageId(message_id): raw for message_id, raw in rows}


@one_statement
def begin(conn: Connection, begun: Sequence[Begun]) -> set[DeliveryId]:
    """Note that these may be on their way from now on; returns those that are still ours to send."""
    with conn.cursor(row_factory=scalar_row) as cursor:
        rows = cursor.execute(
            """
            UPDATE deliveries d SET begun_at = clock_timestamp(), mx_host = b.mx_host, mx_ip = b.mx_ip
            FROM json_to_recordset(%s) AS b (delivery_id bigint, claim_epoch int, mx_host text, mx_ip inet)
            WHERE d.id = b.delivery_id AND d.claim_epoch = b.claim_epoch
                AND CASE WHEN d.status IN ('accepted', 'reattempt') THEN d.claimed_by IS NOT NULL END
            RETURNING d.id
            """,
            [msgspec.json.encode(sorted(begun, key=_DELIVERY)).decode()],
        )
        return set(rows.fetchall())


def interrupted(conn: Connection, delivery_ids: Sequence[DeliveryId]) -> None:
    """Note of these, as far as no host has them in hand, that a lost worker may have sent them: before they are ended or held."""
    conn.execute(
        f"""
        WITH begun AS (
            SELECT d.id, d.message_id, d.source, d.mx_host, d.mx_ip FROM deliveries d
            WHERE d.id = ANY(%s) AND d.begun_at IS NOT NULL AND NOT ({IN_HAND}) ORDER BY d.id FOR UPDATE),
        attempted AS (
            UPDATE deliveries d SET begun_at = NULL, attempts = d.attempts + 1 FROM begun WHERE d.id = begun.id)
        INSERT INTO timeline (message_id, delivery_id, kind, text, source, mx_host, mx_ip, cause)
        SELECT message_id, id, 'ambiguous', 'the relay was interrupted', source, mx_host, mx_ip,
            'The relay was interrupted while it sent the message: it may have arrived.' FROM begun
        """,
        [list(delivery_ids)],
    )


@one_statement
def record_many(conn: Connection, results: Sequence[Result], host: str | None = None) -> set[DeliveryId]:
    """Record results and their timeline, made on `host`; returns the deliveries that were still ours to decide.

    The timeline gets every entry: what a late worker did happened all the same. Only of a message that was deleted meanwhile,
    with its organization or project, nothing is kept; and of a claim that has its result already, for a commit of which no answer
    came is made again.
    """
    with conn.cursor(row_factory=scalar_row) as cursor:
        rows = cursor.execute(
            """
            WITH result AS (
                SELECT * FROM json_to_recordset(%s) AS r (delivery_id bigint, message_id uuid, claim_epoch int,
                    status text, kind text, text text, next_attempt_at timestamptz, counts bool, code smallint,
                    enhanced text, source inet, mx_host text, mx_ip inet, tls text, milliseconds int, cause text,
                    is_delayed bool, tls_policy text, tls_verified bool, tls_note text, servers text)),
            entry AS (
                INSERT INTO timeline (message_id, delivery_id, kind, text, code, enhanced, source, mx_host, mx_ip, tls,
                    milliseconds, cause, tls_policy, tls_verified, tls_note, servers, host)
                SELECT message_id, delivery_id, kind, text, code, enhanced, source, mx_host, mx_ip, tls,
                    milliseconds, cause, tls_policy, tls_verified, tls_note, servers::jsonb, %s::text
                FROM result r WHERE EXISTS (SELECT FROM deliveries d WHERE d.id = r.delivery_id
                    AND (d.claim_epoch <> r.claim_epoch OR d.claimed_by IS NOT NULL))),
            late AS (
                INSERT INTO timeline (message_id, delivery_id, kind, text, cause)
                SELECT r.message_id, r.delivery_id, 'delayed', r.text, r.cause
                FROM result r JOIN deliveries d ON d.id = r.delivery_id
                WHERE r.is_delayed AND d.delayed_at IS NULL AND d.claim_epoch = r.claim_epoch)
            UPDATE deliveries d SET
                status = r.status::delivery_status,
                next_attempt_at = coalesce(r.next_attempt_at, d.next_attempt_at),
                attempts = d.attempts + r.counts::int,
                claimed_by = NULL,
                begun_at = NULL,
                claim_epoch = CASE WHEN d.claim_epoch = r.claim_epoch THEN d.claim_epoch ELSE d.claim_epoch + 1 END,
                last_code = CASE WHEN r.counts THEN r.code ELSE d.last_code END,
                last_enhanced = CASE WHEN r.counts THEN r.enhanced ELSE d.last_enhanced END,
                last_reply = CASE WHEN r.counts THEN r.text ELSE coalesce(d.last_reply, r.text) END, cause = r.cause,
                mx_host = r.mx_host, mx_ip = r.mx_ip, tls = r.tls,
                delayed_at = CASE WHEN r.is_delayed THEN coalesce(d.delayed_at, clock_timestamp()) ELSE d.delayed_at END,
                finished_at = CASE WHEN r.status IN ('delivered', 'failed') THEN clock_timestamp() END
            FROM result r
            WHERE d.id = r.delivery_id AND CASE WHEN d.status IN ('accepted', 'reattempt')
                THEN d.claim_epoch = r.claim_epoch AND d.claimed_by IS NOT NULL OR r.status = 'delivered' END
            RETURNING d.id
            """,
            [msgspec.json.encode(sorted(results, key=_DELIVERY)).decode(), host],
        )
        return set(rows.fetchall())


def note_many(conn: Connection, notes: Sequence[Note]) -> None:
    """Put these into the timeline."""
    conn.execute(
        """
        INSERT INTO timeline (message_id, delivery_id, kind, text, cause)
        SELECT * FROM unnest(%s::uuid[], %s::bigint[], %s::text[], %s::text[], %s::text[])
        """,
        [list(column) for column in zip(*map(astuple, notes), strict=True)] or [[]] * 5,
    )


@one_statement
def renew(conn: Connection, claims: Sequence[tuple[DeliveryId, int]], lease: float) -> set[DeliveryId]:
    """Prolong the leases of claims that are being worked on; returns those that are.

    It waits for nobody: what others write to at the moment is being ended, or prolonged the next time.
    """
    with conn.cursor(row_factory=scalar_row) as cursor:
        rows = cursor.execute(
            """
            WITH ours AS MATERIALIZED (
                SELECT d.id FROM deliveries d JOIN unnest(%s::bigint[], %s::int[]) AS mine (id, claim_epoch) USING (id)
                WHERE CASE WHEN d.status IN ('accepted', 'reattempt') THEN d.claim_epoch = mine.claim_epoch END
                FOR UPDATE OF d SKIP LOCKED)
            UPDATE deliveries d SET next_attempt_at = clock_timestamp() + %s FROM ours WHERE d.id = ours.id
            RETURNING d.id
            """,
            [[id_ for id_, _ in claims], [epoch for _, epoch in claims], timedelta(seconds=lease)],
        )
        return set(rows.fetchall())


@one_statement
def release(
    conn: Connection, claims: Sequence[tuple[DeliveryId, int]], delay: float = 0, why: str | None = None
) -> None:
    """Give claims back that were not tried; they come due again after `delay` seconds. `why` is shown meanwhile."""
    conn.execute(
        """
        UPDATE deliveries d SET next_attempt_at = clock_timestamp() + %s, claimed_by = NULL,
            cause = coalesce(%s::text, d.cause)
        FROM unnest(%s::bigint[], %s::int[]) AS mine (id, claim_epoch)
        WHERE d.id = mine.id AND CASE WHEN d.status IN ('accepted', 'reattempt') THEN d.claim_epoch = mine.claim_epoch END
        """,
        [timedelta(seconds=delay), why, [id_ for id_, _ in claims], [epoch for _, epoch in claims]],
    )


def due(conn: Connection, *, older_than: float) -> list[str]:
    """The outbound addresses from which something has been due for longer than so many seconds that nobody took."""
    with conn.cursor(row_factory=scalar_row) as cursor:
        return cursor.execute(
            """
            SELECT host(a.ip) FROM addresses a
            -- Not EXISTS, for which PostgreSQL reads all that waits.
            WHERE (SELECT min(d.next_attempt_at) FROM deliveries d WHERE d.status IN ('accepted', 'reattempt') AND d.source = a.ip)
                <= clock_timestamp() - %s
            """,
            [timedelta(seconds=older_than)],
        ).fetchall()


def free_dead_claims(conn: Connection, host_timeout: float) -> int:
    """End the claims of hosts whose heartbeat stopped, so that others need not wait for the lease; returns how many."""
    return conn.execute(
        """
        WITH dead AS MATERIALIZED (
            SELECT d.id FROM hosts h JOIN deliveries d ON d.claimed_by = h.id
            WHERE h.heartbeat_at < clock_timestamp() - %s AND d.status IN ('accepted', 'reattempt')
            FOR UPDATE OF d SKIP LOCKED)  -- what such a host writes to at the moment ends without us
        UPDATE deliveries d SET next_attempt_at = clock_timestamp(), claimed_by = NULL, claim_epoch = claim_epoch + 1
        FROM dead WHERE d.id = dead.id
        """,
        [timedelta(seconds=host_timeout)],
    ).rowcount


def retry(conn: Connection, organization_id: OrganizationId, message_id: MessageId) -> list[str]:
    """Make a message's unfinished, failed and suppressed deliveries due now; returns the addresses to notify.

    The message must still have its body, and gets a day to be delivered if its time was up.
    """
    with conn.cursor(row_factory=scalar_row) as cursor:
        rows = cursor.execute(
            """
            WITH again AS (
                UPDATE deliveries d SET
                    status = CASE WHEN d.attempts = 0 THEN 'accepted' ELSE 'reattempt' END::delivery_status,
                    next_attempt_at = clock_timestamp(), claimed_by = NULL, claim_epoch = d.claim_epoch + 1,
                    finished_at = NULL
                FROM messages m
                WHERE m.id = d.message_id AND d.message_id = %(message_id)s AND m.organization_id = %(organization_id)s
                    AND d.status IN ('accepted', 'reattempt', 'failed', 'suppressed')
                    AND NOT (d.claimed_by IS NOT NULL AND d.next_attempt_at > clock_timestamp())
                    AND EXISTS (SELECT FROM message_bodies b WHERE b.message_id = m.id)
                RETURNING d.id, d.message_id, d.source),
            entry AS (
                INSERT INTO timeline (message_id, delivery_id, kind, text)
                SELECT message_id, id, 'retried', 'by hand' FROM again),
            longer AS (
                UPDATE messages SET expires_at = now() + interval '1 day'
                WHERE id = %(message_id)s AND expires_at < now() + interval '1 day' AND EXISTS (SELECT FROM again))
            SELECT DISTINCT host(source) FROM again WHERE source IS NOT NULL
            """,
            {"message_id": message_id, "organization_id": organization_id},
        )
        return rows.fetchall()


@dataclass(frozen=True, slots=True)
class Waiting:
    """What waits to leave from one address; `source` is None where its pool has no address."""

    pool: str
    source: str | None
    waiting: int
    due: int
    """Those that should be under way by now, and are not."""
    in_hand: int
    overdue: float
    """Seconds that the first of them has been due for."""


def waiting(conn: Connection) -> list[Waiting]:
    """The whole queue, by pool and source."""
    with conn.cursor(row_factory=class_row(Waiting)) as cursor:
        return cursor.execute(
            """
            WITH counted AS (
                SELECT m.pool_id, d.source, count(*) AS waiting,
                    count(*) FILTER (WHERE d.next_attempt_at <= clock_timestamp()) AS due,
                    count(*) FILTER (WHERE d.claimed_by IS NOT NULL AND d.next_attempt_at > clock_timestamp()) AS in_hand,
                    greatest(0, extract(epoch FROM clock_timestamp() - min(d.next_attempt_at)))::float AS overdue
                FROM deliveries d JOIN messages m ON m.id = d.message_id
                WHERE d.status IN ('accepted', 'reattempt') GROUP BY m.pool_id, d.source
            )
            SELECT p.name AS pool, host(c.source) AS source, c.waiting, c.due, c.in_hand, c.overdue
            FROM counted c JOIN pools p ON p.id = c.pool_id ORDER BY p.name, c.source
            """
        ).fetchall()
