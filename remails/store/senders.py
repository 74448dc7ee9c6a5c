"""What submission has to know about senders and what they send: read for a whole batch at once, in one round trip."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

import msgspec

from remails.db import Connection
from remails.store import plans
from remails.store.ids import DomainId, OrganizationId, PoolId, ProjectId
from remails.store.rates import Rate
from remails.store.sources import Candidate
from remails.store.suppressions import Pair


@dataclass(frozen=True, slots=True)
class Project:
    """A project with what its organization may do."""

    project_id: ProjectId
    organization_id: OrganizationId
    block_status: str
    message_quota: int | None
    quota_since: datetime
    quota_reset: datetime
    plan: str
    rate_burst: int | None
    rate_per_hour: int | None
    expires_in: int
    """Seconds for which the project's mail is tried, 0 for as long as any."""
    pool_id: PoolId | None
    """The project's pool, else its organization's, else the default; None where there is no pool at all."""
    asked_at: datetime
    """The time of the transaction, by the database's clock."""
    is_storage_short: bool
    """Whether the database's disk has less room than is kept in reserve. What was seen long ago does not count."""

    @property
    def rate(self) -> Rate | None:
        """How fast its organization may send; None as fast as it can."""
        return plans.rate(self.plan, self.rate_burst, self.rate_per_hour)


@dataclass(frozen=True, slots=True)
class Domain:
    """A domain that is attached to a project."""

    project_id: ProjectId
    asked: str
    id: DomainId
    name: str
    verified_at: datetime | None
    pool_id: PoolId | None
    hold_reason: str | None
    """Why mail from it is held; None: it goes out."""


Asked = tuple[ProjectId, OrganizationId, str, tuple[str, ...]]
"""A project with its organization, a domain to send from, and the names that cover it: itself and its parents."""


@dataclass(frozen=True, slots=True)
class Known:
    """What there is of what was asked for."""

    projects: Mapping[tuple[ProjectId, OrganizationId], Project]
    """Those that exist and belong to the organization named with them."""
    domains: Mapping[tuple[ProjectId, str], Domain]
    """For each domain asked for the closest one that is attached to the project; a verified one goes before one that is not, so that
    adding a sub-domain does not stop the mail of its parent."""
    pools: Mapping[PoolId, Sequence[Candidate]]
    """The enabled addresses of the pools of all these."""
    suppressed: Mapping[Pair, str]
    """The recipients that are suppressed now, with the reason."""


def look_up(conn: Connection, asked: Collection[Asked], recipients: Collection[Pair] = ()) -> Known:
    """The projects and domains of some mails, the addresses they may leave from, and who of their recipients gets none."""
    wanted = [
        {"project_id": project, "organization_id": organization, "asked": domain, "name": name}
        for project, organization, domain, names in asked
        for name in names
    ]
    pairs = [{"organization_id": organization, "address": key} for organization, key in recipients]
    rows = conn.execute(
        """
        WITH wanted AS (
            SELECT * FROM json_to_recordset(%s) AS w (project_id uuid, organization_id uuid, asked text, name text)),
        domain AS (
            SELECT DISTINCT ON (w.project_id, w.asked) w.project_id, w.asked, d.id, d.name, d.verified_at, d.pool_id,
                d.hold_reason
            FROM wanted w JOIN domains_projects dp ON dp.project_id = w.project_id
            JOIN domains d ON d.id = dp.domain_id AND d.name = w.name
            ORDER BY w.project_id, w.asked, d.verified_at IS NULL, length(d.name) DESC)
        SELECT p.id, p.organization_id, o.block_status::text, o.message_quota, o.quota_reset - interval '1 month',
            o.quota_reset, o.plan, r.burst, r.per_hour, p.expires_in, own.pool_id, now(),
            EXISTS (SELECT FROM storage WHERE is_short AND seen_at > now() - interval '2 minutes'),
            d.project_id, d.asked, d.id, d.name, d.verified_at, d.pool_id, d.hold_reason,
            coalesce(d.pool_id, own.pool_id),
            (SELECT json_agg(json_build_array(host(c.ip), c.is_ready) ORDER BY c.ip)
             FROM candidates c WHERE c.pool_id = coalesce(d.pool_id, own.pool_id)),
            (SELECT json_agg(json_build_array(s.organization_id, s.address, s.reason))
             FROM json_to_recordset(%s) AS r (organization_id uuid, address text)
             JOIN suppressions s USING (organization_id, address) WHERE s.suppressed_until > now())
        FROM (SELECT DISTINCT project_id, organization_id FROM wanted) w
        JOIN projects p ON p.id = w.project_id AND p.organization_id = w.organization_id
        JOIN organizations o ON o.id = p.organization_id
        CROSS JOIN LATERAL (
            SELECT coalesce(p.pool_id, o.pool_id, (SELECT id FROM pools WHERE is_default)) AS pool_id) own
        LEFT JOIN rates r ON r.organization_id = o.id
        LEFT JOIN domain d ON d.project_id = p.id
        """,
        [msgspec.json.encode(wanted).decode(), msgspec.json.encode(pairs).decode()],
    ).fetchall()
    projects = [Project(*row[:13]) for row in rows]
    domains = [Domain(*row[13:20]) for row in rows if row[13] is not None]
    suppressed = (rows[0][22] or ()) if rows else ()  # the same in each row
    return Known(
        {(one.project_id, one.organization_id): one for one in projects},
        {(one.project_id, one.asked): one for one in domains},
        {row[20]: [Candidate(*one) for one in row[21] or ()] for row in rows},
        {(OrganizationId(UUID(organization)), address): reason for organization, address, reason in suppressed},
    )


def lock_quotas(conn: Connection, organization_ids: Iterable[OrganizationId]) -> None:
    """Until this transaction ends nobody else counts against the quotas of these organizations.

    An advisory lock for each batch, taken in order: exact under concurrency without a row that every mail updates.
    """
    conn.execute(
        "SELECT pg_advisory_xact_lock(hashtextextended(id, 0)) FROM unnest(%s::text[]) AS quota (id)",
        [sorted(str(id_) for id_ in organization_ids)],
    )
