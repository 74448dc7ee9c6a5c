"""Messages: storing them many at a time, and reading them for people.

A list never touches a body. What a message's status is, is not stored but follows from its deliveries, in the words of the
public API: so there is no second place that could be wrong, and no second row to write for each delivery.
"""

import struct
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any

import msgspec
from psycopg.rows import class_row, scalar_row

from remails.db import Connection
from remails.store import statistics
from remails.store.ids import (
    ApiKeyId,
    DeliveryId,
    DomainId,
    MessageId,
    OrganizationId,
    PoolId,
    ProjectId,
    SmtpCredentialId,
)

LARGE = 1024 * 1024
"""Bytes of a body above which it takes a statement of its own."""
_PIECE = 256 * 1024

FINAL = ("delivered", "failed", "rejected")
"""Message statuses after which nothing more happens."""


@dataclass(frozen=True, slots=True)
class NewDelivery:
    """One recipient of a message that is being stored."""

    recipient: str
    domain: str
    status: str
    source: str | None
    cause: str = ""
    """Why it is held or suppressed, as a sentence."""
    held_for: str | None = None
    """block or domain, of what is held."""
    dsn_notify: str | None = None
    dsn_orcpt: str | None = None


@dataclass(frozen=True, slots=True)
class NewMessage:
    """A message that is being stored; `raw` is what will leave, without our signature."""

    id: MessageId
    organization_id: OrganizationId
    project_id: ProjectId
    domain_id: DomainId
    smtp_credential_id: SmtpCredentialId | None
    api_key_id: ApiKeyId | None
    pool_id: PoolId
    created_at: datetime
    expires_at: datetime
    mail_from: str
    header_from: str
    subject: str
    message_id_header: str
    label: str | None
    eight_bit: bool
    smtputf8: bool
    raw: bytes
    deliveries: tuple[NewDelivery, ...]
    dsn_ret: str | None = None
    """What the sender asked for (`mail.dsn`), as it was given."""
    dsn_envid: str | None = None


def insert_many(conn: Connection, messages: Sequence[NewMessage]) -> None:
    """Store messages with their bodies and deliveries, and count them as used: one statement, however many there are; large bodies
    take another."""
    used: defaultdict[tuple[OrganizationId, ProjectId], list[int]] = defaultdict(list)
    for m in messages:
        used[m.organization_id, m.project_id].append(len(m.deliveries))
    small = [m for m in messages if len(m.raw) <= LARGE]
    # What is many goes in as JSON: as an array for each column it would take both sides far longer.
    conn.execute(
        """
        WITH message AS (
            INSERT INTO messages (id, organization_id, project_id, domain_id, smtp_credential_id, api_key_id, pool_id,
                created_at, expires_at, mail_from, header_from, subject, message_id_header, label, dsn_ret, dsn_envid,
                eight_bit, smtputf8, size, recipients)
            SELECT * FROM json_to_recordset(%s) AS new (id uuid, organization_id uuid, project_id uuid, domain_id uuid,
                smtp_credential_id uuid, api_key_id uuid, pool_id uuid, created_at timestamptz, expires_at timestamptz,
                mail_from text, header_from text, subject text, message_id_header text, label text, dsn_ret text,
                dsn_envid text, eight_bit bool, smtputf8 bool, size int, recipients int)),
        body AS (
            INSERT INTO message_bodies (message_id, raw) SELECT * FROM unnest(%b::uuid[], %b::bytea[])),
        used AS (
            INSERT INTO usage_log (organization_id, project_id, messages, recipients)
            SELECT * FROM unnest(%b::uuid[], %b::uuid[], %b::int[], %b::int[]))
        INSERT INTO deliveries (message_id, organization_id, recipient, domain, status, source, cause, held_for,
            dsn_notify, dsn_orcpt, next_attempt_at, finished_at)
        SELECT message_id, organization_id, recipient, domain, status, source, cause, held_for,
            dsn_notify, dsn_orcpt, now(), CASE WHEN status = 'suppressed' THEN now() END
        FROM json_to_recordset(%s) AS new (message_id uuid, organization_id uuid, recipient text, domain text,
            status delivery_status, source inet, cause text, held_for text, dsn_notify text, dsn_orcpt text)
        """,
        [
            _json(_row(m, _METADATA) | {"size": len(m.raw), "recipients": len(m.deliveries)} for m in messages),
            [m.id for m in small],
            [m.raw for m in small],
            *_columns(4, ((*key, len(numbers), sum(numbers)) for key, numbers in used.items())),
            _json(
                _row(d, _DELIVERY) | {"message_id": m.id, "organization_id": m.organization_id}
                for m in messages
                for d in m.deliveries
            ),
        ],
    )
    if large := [m for m in messages if len(m.raw) > LARGE]:
        _copy_bodies(conn, large)


def _copy_bodies(conn: Connection, messages: Sequence[NewMessage]) -> None:
    """Send large bodies piece by piece: as a statement's parameter one is held three times over, and the client library
    keeps the room for it. The format is that of PostgreSQL's COPY, "Binary Format"."""
    statement = "COPY message_bodies (message_id, raw) FROM STDIN (FORMAT BINARY)"
    with conn.cursor() as cursor, cursor.copy(statement) as copy:
        copy.write(b"PGCOPY\n\xff\r\n\0" + bytes(8))
        for m in messages:
            copy.write(struct.pack("!hi16si", 2, 16, m.id.bytes, len(m.raw)))
            view = memoryview(m.raw)
            for start in range(0, len(view), _PIECE):
                copy.write(view[start : start + _PIECE])
        copy.write(struct.pack("!h", -1))


_METADATA = tuple(one.name for one in fields(NewMessage) if one.name not in ("raw", "deliveries"))
_DELIVERY = tuple(one.name for one in fields(NewDelivery))


def _row(item: object, names: Sequence[str]) -> dict[str, Any]:
    return {name: getattr(item, name) for name in names}


def _json(rows: Iterable[dict[str, Any]]) -> str:
    return msgspec.json.encode(list(rows)).decode()


def _columns(number: int, rows: Iterable[Sequence[Any]]) -> list[list[Any]]:
    """So many columns, also where there are no rows."""
    return [list(column) for column in zip(*rows, strict=True)] or [[]] * number


@dataclass(frozen=True, slots=True)
class Message:
    """A message as lists and pages show it."""

    id: MessageId
    organization_id: OrganizationId
    project_id: ProjectId
    smtp_credential_id: SmtpCredentialId | None
    api_key_id: ApiKeyId | None
    created_at: datetime
    expires_at: datetime
    mail_from: str
    header_from: str
    subject: str
    message_id_header: str
    label: str | None
    size: int
    status: str
    recipients: list[str]
    attempts: int
    """The most attempts any recipient needed."""
    retry_after: datetime | None
    """When the next attempt is due, while one is."""
    updated_at: datetime
    last_reply: str | None
    cause: str | None
    """Why it is held or was not sent, in words; None where a reply says what there is to say."""
    has_body: bool
    dsn_ret: str | None = None
    """What the sender asked for (`mail.dsn`), as it was given."""
    dsn_envid: str | None = None


@dataclass(frozen=True, slots=True)
class Delivery:
    """One recipient of a message and how far it got."""

    id: DeliveryId
    message_id: MessageId
    recipient: str
    status: str
    source: str | None
    attempts: int
    next_attempt_at: datetime | None
    is_claimed: bool
    last_code: int | None
    last_enhanced: str | None
    last_reply: str | None
    """What a remote server said last, or what we say of it."""
    cause: str
    """Why it waits, is held, was not sent or has ended, in words; empty while there is nothing to say."""
    mx_host: str | None
    mx_ip: str | None
    tls: str | None
    finished_at: datetime | None
    dsn_notify: str | None = None
    """What the sender asked for (`mail.dsn`), as it was given."""
    dsn_orcpt: str | None = None


@dataclass(frozen=True, slots=True)
class TimelineEntry:
    """Something that happened to a delivery."""

    id: int
    delivery_id: DeliveryId | None
    at: datetime
    kind: str
    text: str
    code: int | None
    enhanced: str | None
    source: str | None
    mx_host: str | None
    mx_ip: str | None
    tls: str | None
    milliseconds: int | None
    host: str | None
    """The sending host that made the attempt."""
    servers: list[dict[str, Any]]
    """Each server that was tried in this attempt, the last one decided: mx_host, mx_ip, reply, milliseconds, steps (command,
    reply, milliseconds)."""
    cause: str
    """Why, and what happens next, in words; empty where the kind says it all."""
    tls_policy: str | None
    """Which rule the connection was under: a word of `outbound.security.Policy`."""
    tls_verified: bool | None
    tls_note: str


def list_(
    conn: Connection,
    organization_id: OrganizationId,
    *,
    project_id: ProjectId | None = None,
    statuses: Sequence[str] | None = None,
    labels: Sequence[str] | None = None,
    search: str | None = None,
    created_before: datetime | None = None,
    before: MessageId | None = None,
    after: MessageId | None = None,
    limit: int = 10,
    message_id: MessageId | None = None,
) -> list[Message]:
    """Messages of an organization, newest first.

    `search` is found anywhere in a subject or recipient, regardless of case; `before` is the last id of the page
    before, `after` the first id of the page that follows: then it is those next to it, not the newest of all.
    `created_before` includes its own instant.
    """
    with conn.cursor(row_factory=class_row(Message)) as cursor:
        found = cursor.execute(
            f"""
            SELECT m.id, m.organization_id, m.project_id, m.smtp_credential_id, m.api_key_id, m.created_at, m.expires_at,
                m.mail_from, m.header_from, m.subject, m.message_id_header, m.label, m.size,
                s.status, s.recipients, s.attempts, s.retry_after, s.last_reply, s.cause,
                coalesce(s.updated_at, m.created_at) AS updated_at,
                EXISTS (SELECT FROM message_bodies b WHERE b.message_id = m.id) AS has_body, m.dsn_ret, m.dsn_envid
            FROM messages m CROSS JOIN LATERAL (
                SELECT CASE
                        WHEN bool_or(d.status = 'reattempt') THEN 'reattempt'
                        WHEN bool_or(d.status = 'accepted') THEN 'accepted'
                        WHEN bool_or(d.status = 'held') THEN 'held'
                        WHEN bool_and(d.status = 'delivered') THEN 'delivered'
                        WHEN bool_and(d.status = 'suppressed') THEN 'rejected'
                        ELSE 'failed' END AS status,
                    array_agg(d.recipient ORDER BY d.id) AS recipients,
                    max(d.attempts) AS attempts,
                    min(d.next_attempt_at) FILTER (WHERE d.status IN ('accepted', 'reattempt')) AS retry_after,
                    (array_agg(concat_ws(' ', d.last_code, d.last_enhanced, d.last_reply) ORDER BY d.status = 'delivered', d.id)
                        FILTER (WHERE d.last_reply IS NOT NULL))[1]
                        AS last_reply,
                    (array_agg(d.cause ORDER BY d.id) FILTER (WHERE d.status IN ('held', 'suppressed') AND d.cause <> ''))[1]
                        AS cause,
                    max(d.finished_at) AS updated_at
                FROM deliveries d WHERE d.message_id = m.id) s
            WHERE m.organization_id = %(organization_id)s
                AND (%(message_id)s::uuid IS NULL OR m.id = %(message_id)s)
                AND (%(project_id)s::uuid IS NULL OR m.project_id = %(project_id)s)
                AND (%(labels)s::text[] IS NULL OR m.label = ANY(%(labels)s))
                AND (%(created_before)s::timestamptz IS NULL OR m.created_at <= %(created_before)s)
                AND (%(before)s::uuid IS NULL OR m.id < %(before)s)
                AND (%(after)s::uuid IS NULL OR m.id > %(after)s)
                AND (%(statuses)s::text[] IS NULL OR s.status = ANY(%(statuses)s))
                AND (%(search)s::text IS NULL OR m.subject ILIKE %(search)s
                    OR EXISTS (SELECT FROM deliveries d WHERE d.message_id = m.id AND d.recipient ILIKE %(search)s))
            ORDER BY m.id {"DESC" if after is None else "ASC"}
            LIMIT %(limit)s
            """,  # noqa: S608  # our own text
            {
                "organization_id": organization_id,
                "message_id": message_id,
                "project_id": project_id,
                "statuses": list(statuses) if statuses else None,
                "labels": list(labels) if labels else None,
                "search": f"%{_like(search)}%" if search else None,
                "created_before": created_before,
                "before": before,
                "after": after,
                "limit": limit,
            },
        ).fetchall()
    return found if after is None else found[::-1]


def _like(text: str) -> str:
    return text.replace("\0", "").replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")


def get(conn: Connection, organization_id: OrganizationId, message_id: MessageId) -> Message | None:
    """One message of an organization."""
    found = list_(conn, organization_id, message_id=message_id, limit=1)
    return found[0] if found else None


def deliveries(conn: Connection, organization_id: OrganizationId, message_ids: Sequence[MessageId]) -> list[Delivery]:
    """The deliveries of some messages, in the order their recipients were given."""
    with conn.cursor(row_factory=class_row(Delivery)) as cursor:
        return cursor.execute(
            """
            SELECT id, message_id, recipient, status::text AS status, host(source) AS source, attempts,
                CASE WHEN status IN ('accepted', 'reattempt') THEN next_attempt_at END AS next_attempt_at,
                claimed_by IS NOT NULL AND next_attempt_at > clock_timestamp() AS is_claimed,
                last_code, last_enhanced, last_reply, cause, mx_host, host(mx_ip) AS mx_ip, tls, finished_at,
                dsn_notify, dsn_orcpt
            FROM deliveries WHERE message_id = ANY(%s) AND organization_id = %s ORDER BY id
            """,
            [list(message_ids), organization_id],
        ).fetchall()


def timeline(conn: Connection, organization_id: OrganizationId, message_id: MessageId) -> list[TimelineEntry]:
    """All that happened to a message, oldest first."""
    with conn.cursor(row_factory=class_row(TimelineEntry)) as cursor:
        return cursor.execute(
            """
            SELECT t.id, t.delivery_id, t.at, t.kind, t.text, t.code, t.enhanced, host(t.source) AS source, t.mx_host,
                host(t.mx_ip) AS mx_ip, t.tls, t.milliseconds, t.host, t.servers, t.cause, t.tls_policy, t.tls_verified,
                t.tls_note
            FROM timeline t JOIN messages m ON m.id = t.message_id
            WHERE t.message_id = %s AND m.organization_id = %s ORDER BY t.id
            """,
            [message_id, organization_id],
        ).fetchall()


def body(conn: Connection, organization_id: OrganizationId, message_id: MessageId) -> bytes | None:
    """The raw message, while it is kept."""
    with conn.cursor(row_factory=scalar_row, binary=True) as cursor:
        return cursor.execute(
            """
            SELECT b.raw FROM message_bodies b JOIN messages m ON m.id = b.message_id
            WHERE b.message_id = %s AND m.organization_id = %s
            """,
            [message_id, organization_id],
        ).fetchone()


def labels(conn: Connection, organization_id: OrganizationId) -> list[str]:
    """The labels an organization uses, in order."""
    with conn.cursor(row_factory=scalar_row) as cursor:
        return cursor.execute(
            "SELECT DISTINCT label FROM messages WHERE organization_id = %s AND label IS NOT NULL ORDER BY label",
            [organization_id],
        ).fetchall()


def remove_body(conn: Connection, organization_id: OrganizationId, message_id: MessageId) -> bool:
    """Forget a message's content, keep what happened to it; refuses nothing. False when there was none.

    Recipients that are still waiting can no longer be sent to and fail.
    """
    removed = conn.execute(
        """
        DELETE FROM message_bodies b USING messages m
        WHERE m.id = b.message_id AND b.message_id = %s AND m.organization_id = %s
        """,
        [message_id, organization_id],
    ).rowcount
    conn.execute(
        """
        UPDATE deliveries SET status = 'failed', finished_at = now(), last_reply = 'content deleted', claimed_by = NULL,
            claim_epoch = claim_epoch + 1, cause = 'The content was deleted before it could be delivered.'
        WHERE message_id = %s AND organization_id = %s AND status IN ('accepted', 'reattempt', 'held')
        """,
        [message_id, organization_id],
    )
    return removed > 0


def remove_old_bodies(conn: Connection, after: MessageId, limit: int) -> tuple[int, MessageId | None]:
    """Look at the next bodies by age, and forget those that are older than their project keeps them and not waiting.

    Returns:
        How many were forgotten, and the last one looked at, None when those after it are too young for every project.
    """
    row = conn.execute(
        """
        WITH found AS MATERIALIZED (
            SELECT m.id, m.created_at, p.retention_period_days
            FROM (SELECT message_id FROM message_bodies WHERE message_id > %s ORDER BY message_id LIMIT %s) b
            JOIN messages m ON m.id = b.message_id JOIN projects p ON p.id = m.project_id),
        forgotten AS (
            DELETE FROM message_bodies b USING found f
            WHERE b.message_id = f.id AND f.created_at < now() - make_interval(days => f.retention_period_days)
                AND NOT EXISTS (SELECT FROM deliveries d WHERE d.message_id = f.id
                    AND d.status IN ('accepted', 'reattempt', 'held'))
            RETURNING b.message_id)
        SELECT (SELECT count(*) FROM forgotten), id,
            created_at < now() - make_interval(days => (SELECT min(retention_period_days) FROM projects))
        FROM found ORDER BY id DESC LIMIT 1
        """,
        [after, limit],
    ).fetchone()
    if row is None:
        return 0, None
    forgotten, last, is_old = row
    return forgotten, last if is_old else None


def remove_some(
    conn: Connection, organization_id: OrganizationId, limit: int, *, project_id: ProjectId | None = None
) -> int:
    """Forget some messages of an organization, or of one of its projects, finished or not, all but their numbers; returns how many."""
    with conn.cursor(row_factory=scalar_row) as cursor:
        some = cursor.execute(
            """
            SELECT id FROM messages WHERE organization_id = %s AND (%s::uuid IS NULL OR project_id = %s)
            ORDER BY id LIMIT %s FOR UPDATE SKIP LOCKED
            """,
            [organization_id, project_id, project_id, limit],
        ).fetchall()
    # In the order in which results are recorded, or the two would wait for each other.
    conn.execute("SELECT FROM deliveries WHERE message_id = ANY(%s) ORDER BY id FOR UPDATE", [some])
    return _remove(conn, some)


def remove_old(conn: Connection, days: int, limit: int) -> int:
    """Forget finished messages altogether after so many days, all but their numbers; returns how many."""
    with conn.cursor(row_factory=scalar_row) as cursor:
        old = cursor.execute(
            """
            SELECT m.id FROM messages m WHERE m.created_at < now() - make_interval(days => %s)
                AND NOT EXISTS (SELECT FROM deliveries d WHERE d.message_id = m.id
                    AND d.status IN ('accepted', 'reattempt', 'held'))
            ORDER BY m.id LIMIT %s FOR UPDATE OF m SKIP LOCKED
            """,
            [days, limit],
        ).fetchall()
    return _remove(conn, old)


def _remove(conn: Connection, message_ids: Sequence[MessageId]) -> int:
    statistics.keep(conn, message_ids=message_ids)
    return conn.execute("DELETE FROM messages WHERE id = ANY(%s)", [list(message_ids)]).rowcount
