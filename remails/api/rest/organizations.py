"""Organizations, their members, what they sent, and who changed what."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from datetime import UTC, date, datetime, timedelta
from typing import Annotated, Any
from uuid import UUID

from msgspec import Meta, Struct
from werkzeug.exceptions import Forbidden, NotFound

from remails.api import auth, changes, removal
from remails.api.operations import Noun, link_next
from remails.api.state import state
from remails.db import Connection
from remails.store import audit, organizations, statistics, usage, users
from remails.store.ids import OrganizationId, ProjectId, UserId
from remails.store.organizations import BlockStatus
from remails.store.plans import PLANS
from remails.store.users import Role

noun = Noun("Organizations", "The tenants: everything else belongs to one of them.")

PATH = "/organizations/{organization_id}"

EntryId = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Name = Annotated[str, Meta(min_length=1, max_length=100)]


class Organization(Struct, kw_only=True):
    """An organization and how much of its quota is used."""

    id: OrganizationId
    name: str
    plan: str
    total_message_quota: Annotated[int | None, Meta(description="Messages per month; null is without limit.")]
    used_message_quota: int
    quota_reset: Annotated[datetime, Meta(description="When the count begins anew.")]
    block_status: BlockStatus
    created_at: datetime
    updated_at: datetime


class NewOrganization(Struct, kw_only=True, forbid_unknown_fields=True):
    """An organization to be made, or its new name."""

    name: Name


class Member(Struct, kw_only=True):
    """A user's place in an organization."""

    user_id: UserId
    email: str
    name: str
    role: Role
    added_at: datetime
    updated_at: datetime


class Statistic(Struct, kw_only=True):
    """How many messages of each status a project had on a day, or in the month that begins on it."""

    organization_id: OrganizationId
    project_id: ProjectId
    date: date
    statistics: dict[str, int]


class Statistics(Struct, kw_only=True):
    """What was sent in the last year by month, and in the last 30 days by day (UTC)."""

    monthly: list[Statistic]
    daily: list[Statistic]


class AuditQuery(Struct, kw_only=True, forbid_unknown_fields=True):
    """Which part of the audit log."""

    limit: Annotated[int, Meta(ge=1, le=500)] = 500
    before: Annotated[EntryId | None, Meta(description="Only entries with a smaller id.")] = None


class AuditEntry(Struct, kw_only=True):
    """Somebody changed something."""

    id: int
    occurred_at: datetime
    actor_type: str
    actor_id: UUID | None
    actor_name: str
    action: str
    target_type: str
    target_id: str
    details: dict[str, Any]


@noun.operation("GET", "/organizations", auth.anyone)
def list_() -> list[Organization]:
    """List the organizations you belong to; an API key belongs to one, an admin of the installation to all."""
    actor = auth.actor()
    with state().db.transaction() as conn:
        if actor.is_admin:
            rows = organizations.list_all(conn)
        elif actor.kind == "user":
            rows = organizations.list_for_user(conn, UserId(actor.id))
        else:
            rows = [row for id_ in actor.roles if (row := organizations.get(conn, id_))]
        return [_shown(conn, row) for row in rows]


@noun.operation("POST", "/organizations", auth.session, status=201)
def create(*, body: NewOrganization) -> Organization:
    """Make an organization, whose admin you are."""
    actor = auth.actor()
    with state().db.transaction() as conn:
        plan = "unlimited" if actor.is_admin else "free"
        made = organizations.create(conn, body.name, plan=plan, message_quota=PLANS[plan].message_quota)
        users.add_member(conn, UserId(actor.id), made.id, Role.admin)
        audit.record(conn, actor.audit, made.id, "created", "organization", made.id, {"name": made.name})
        return _shown(conn, made)


@noun.operation("GET", PATH, auth.member(Role.read_only))
def get() -> Organization:
    """Show an organization."""
    return state().db.run(_shown, auth.organization())


@noun.operation("PUT", PATH, auth.member(Role.admin, keys=False))
def update(*, body: NewOrganization) -> Organization:
    """Rename an organization."""
    with state().db.transaction() as conn:
        organizations.rename(conn, auth.organization().id, body.name)
        changes.record(conn, "updated", "organization", auth.organization().id, body)
        return _shown(conn, _again(conn))


@noun.operation("DELETE", PATH, auth.member(Role.admin, keys=False))
def remove() -> OrganizationId:
    """Delete an organization. All that belongs to it goes too, its emails included."""
    found = auth.organization()
    removal.remove_mail(found.id)
    with state().db.transaction() as conn:
        organizations.remove(conn, found.id)
        # In the installation's own log, since that of the organization goes with it.
        audit.record(conn, auth.actor().audit, None, "deleted", "organization", found.id, {"name": found.name})
    return found.id


@noun.operation("PUT", PATH + "/admin", auth.installation_admin)
def set_block_status(*, body: BlockStatus) -> Organization:
    """Block or unblock an organization. The body is one of the words as a JSON string."""
    with state().db.transaction() as conn:
        organizations.set_block_status(conn, auth.organization().id, body)
        changes.record(conn, "updated", "organization", auth.organization().id, {"block_status": body})
        return _shown(conn, _again(conn))


def _again(conn: Connection) -> organizations.Organization:
    found = organizations.get(conn, auth.organization().id)
    if found is None:
        raise NotFound("There is no such organization.")
    return found


def _shown(conn: Connection, row: organizations.Organization) -> Organization:
    return Organization(
        id=row.id,
        name=row.name,
        plan=row.plan,
        total_message_quota=row.message_quota,
        used_message_quota=usage.used_since(conn, row.id, row.quota_since),
        quota_reset=row.quota_reset,
        block_status=row.block_status,
        created_at=row.created_at,
        updated_at=row.updated_at,
    )


# Members


@noun.operation("GET", PATH + "/members", auth.member(Role.read_only))
def list_members() -> list[Member]:
    """List the members of an organization."""
    with state().db.transaction() as conn:
        return [_member(row) for row in users.members(conn, auth.organization().id)]


@noun.operation("PUT", PATH + "/members/{user_id}", auth.member(Role.admin, keys=False), errors=[409])
def set_role(user_id: UserId, *, body: Role) -> Member:
    """Change a member's role. The body is the role as a JSON string. The last admin cannot step down."""
    with state().db.transaction() as conn:
        if not users.set_role(conn, user_id, auth.organization().id, body):
            raise NotFound("The organization has no such member.")
        changes.record(conn, "updated", "member", user_id, {"role": body})
        return next(_member(row) for row in users.members(conn, auth.organization().id) if row.user_id == user_id)


@noun.operation("DELETE", PATH + "/members/{user_id}", auth.member(Role.read_only, keys=False), errors=[409])
def remove_member(user_id: UserId) -> UserId:
    """Remove a member; everybody may leave, admins may remove others. The last admin cannot leave."""
    actor = auth.actor()
    if user_id != actor.id and actor.role_in(auth.organization().id) != Role.admin:
        raise Forbidden("Only an admin of the organization may remove others.")
    with state().db.transaction() as conn:
        if not users.remove_member(conn, user_id, auth.organization().id):
            raise NotFound("The organization has no such member.")
        changes.record(conn, "removed", "member", user_id)
    return user_id


def _member(row: users.Membership) -> Member:
    return Member(
        user_id=row.user_id,
        email=row.email,
        name=row.name,
        role=row.role,
        added_at=row.created_at,
        updated_at=row.updated_at,
    )


# Statistics and audit log


@noun.operation("GET", PATH + "/statistics", auth.member(Role.read_only))
def get_statistics() -> Statistics:
    """Show how many messages had which status, by project."""
    today = datetime.now(UTC).date()
    first_month = today.replace(year=today.year - 1, day=1)
    counts = state().db.run(statistics.by_day, auth.organization().id, first_month)
    month_ago = today - timedelta(days=29)
    return Statistics(
        monthly=_summed(counts, lambda day: day.replace(day=1)),
        daily=_summed((count for count in counts if count.day >= month_ago), lambda day: day),
    )


def _summed(counts: Iterable[statistics.Count], period: Callable[[date], date]) -> list[Statistic]:
    sums: defaultdict[tuple[date, ProjectId], Counter[str]] = defaultdict(Counter)
    for count in counts:
        sums[period(count.day), count.project_id][count.status] += count.messages
    id_ = auth.organization().id
    return [
        Statistic(organization_id=id_, project_id=project_id, date=day, statistics=dict(numbers))
        for (day, project_id), numbers in sorted(sums.items())
    ]


@noun.operation("GET", PATH + "/audit-log", auth.member(Role.read_only))
def list_audit_log(*, query: AuditQuery) -> list[AuditEntry]:
    """List what was changed, newest first; the header `Link` names the next page."""
    rows = state().db.run(audit.list_, auth.organization().id, query.before, query.limit)
    if len(rows) == query.limit:
        link_next(before=rows[-1].id)
    return [_entry(row) for row in rows]


def _entry(row: audit.Entry) -> AuditEntry:
    return AuditEntry(
        id=row.id,
        occurred_at=row.at,
        actor_type=row.actor_type,
        actor_id=row.actor_id,
        actor_name=row.actor_name,
        action=row.action,
        target_type=row.target_type,
        target_id=row.target_id,
        details=row.details,
    )
