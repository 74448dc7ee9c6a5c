"""What submission has to know about senders: read for a whole batch at once."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import datetime

from psycopg.rows import class_row

from remails.db import Connection
from remails.store import plans
from remails.store.ids import DomainId, OrganizationId, PoolId, ProjectId
from remails.store.rates import Rate


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


def projects(
    conn: Connection, wanted: Collection[tuple[ProjectId, OrganizationId]]
) -> dict[tuple[ProjectId, OrganizationId], Project]:
    """The projects among `wanted` that exist and belong to the organization named with them."""
    with conn.cursor(row_factory=class_row(Project)) as cursor:
        rows = cursor.execute(
            """
            SELECT p.id AS project_id, p.organization_id, o.block_status::text AS block_status, o.message_quota,
                o.quota_reset - interval '1 month' AS quota_since, o.quota_reset, o.plan, r.burst AS rate_burst,
                r.per_hour AS rate_per_hour, p.expires_in,
                coalesce(p.pool_id, o.pool_id, (SELECT id FROM pools WHERE is_default)) AS pool_id,
                now() AS asked_at,
                EXISTS (SELECT FROM storage WHERE is_short AND seen_at > now() - interval '2 minutes') AS is_storage_short
            FROM unnest(%s::uuid[], %s::uuid[]) AS wanted (project_id, organization_id)
            JOIN projects p ON p.id = wanted.project_id AND p.organization_id = wanted.organization_id
            JOIN organizations o ON o.id = p.organization_id
            LEFT JOIN rates r ON r.organization_id = o.id
            """,
            [[project for project, _ in wanted], [organization for _, organization in wanted]],
        )
        return {(row.project_id, row.organization_id): row for row in rows}


def domains(
    conn: Connection, asked: Iterable[tuple[ProjectId, str, Iterable[str]]]
) -> dict[tuple[ProjectId, str], Domain]:
    """For each project and domain asked for: the closest attached domain among the given names (itself and parents).

    A verified one goes before one that is not, so that adding a sub-domain does not stop the mail of its parent.
    """
    rows = [(project, domain, name) for project, domain, names in asked for name in names]
    with conn.cursor(row_factory=class_row(Domain)) as cursor:
        found = cursor.execute(
            """
            SELECT DISTINCT ON (wanted.project_id, wanted.asked) wanted.project_id, wanted.asked, d.id, d.name, d.verified_at,
                d.pool_id, d.hold_reason
            FROM unnest(%s::uuid[], %s::text[], %s::text[]) AS wanted (project_id, asked, name)
            JOIN domains_projects dp ON dp.project_id = wanted.project_id
            JOIN domains d ON d.id = dp.domain_id AND d.name = wanted.name
            ORDER BY wanted.project_id, wanted.asked, d.verified_at IS NULL, length(d.name) DESC
            """,
            [[row[0] for row in rows], [row[1] for row in rows], [row[2] for row in rows]],
        )
        return {(domain.project_id, domain.asked): domain for domain in found}


def lock_quotas(conn: Connection, organization_ids: Iterable[OrganizationId]) -> None:
    """Until this transaction ends nobody else counts against the quotas of these organizations.

    An advisory lock for each batch, taken in order: exact under concurrency without a row that every mail updates.
    """
    conn.execute(
        "SELECT pg_advisory_xact_lock(hashtextextended(id, 0)) FROM unnest(%s::text[]) AS quota (id)",
        [sorted(str(id_) for id_ in organization_ids)],
    )
