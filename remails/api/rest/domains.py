"""Sender domains."""

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Annotated, Any

from msgspec import Meta, Struct, convert
from werkzeug.exceptions import NotFound

from remails import domaincheck
from remails.api import auth, changes
from remails.api.operations import Noun
from remails.api.state import state
from remails.db import Connection
from remails.mail import records
from remails.store import domains
from remails.store.domains import Algorithm
from remails.store.ids import DomainId, OrganizationId, ProjectId
from remails.store.users import Role

noun = Noun(
    "Domains",
    "Domains to send from. A domain may send once its ownership and DKIM records were seen in DNS, for the projects it is "
    "attached to.",
)

PATH = "/organizations/{organization_id}/domains"


ProjectIds = Annotated[list[ProjectId], Meta(max_length=1000)]


class Verdict(Struct, kw_only=True):
    """What was seen of a record."""

    status: records.Status
    reason: str
    value: str | None
    checked: Annotated[bool, Meta(description="False where DNS gave no answer; the status is the one before.")] = True


class Verification(Struct, kw_only=True):
    """What the last look at the domain's DNS saw; all null before the first."""

    timestamp: datetime | None = None
    ownership: Verdict | None = None
    dkim: Verdict | None = None
    spf: Verdict | None = None
    dmarc: Verdict | None = None
    a: Verdict | None = None
    return_path: Verdict | None = None


class Record(Struct, kw_only=True):
    """A record to publish in DNS."""

    name: str
    type: str
    value: str
    purpose: str
    required: bool


class Domain(Struct, kw_only=True):
    """A domain, what to publish for it, and what was seen of that."""

    id: DomainId
    organization_id: OrganizationId
    project_ids: list[ProjectId]
    domain: str
    dkim_key_type: Algorithm
    dkim_public_key: Annotated[str, Meta(description="Base64, as in the DKIM record.")]
    dns_records: list[Record]
    verified_at: Annotated[datetime | None, Meta(description="Since when it may send.")]
    verification_status: Verification
    hold_reason: Annotated[str | None, Meta(description="Why mail from it is held; null: it goes out.")]
    created_at: datetime
    updated_at: datetime


class NewDomain(Struct, kw_only=True, forbid_unknown_fields=True):
    """A domain to be added."""

    domain: Annotated[str, Meta(min_length=3, max_length=253)]
    project_ids: ProjectIds = []
    dkim_key_type: Algorithm = "rsa_sha256"


@noun.operation("GET", PATH, auth.member(Role.read_only))
def list_() -> list[Domain]:
    """List the domains."""
    return [_shown(row) for row in state().db.run(domains.list_, auth.organization().id)]


@noun.operation("POST", PATH, auth.member(Role.maintainer), status=201, errors=[409])
def create(*, body: NewDomain) -> Domain:
    """Add a domain, with a new DKIM key. Its records are to be published then, and verified."""
    with state().db.transaction() as conn:
        made = domains.create(
            conn,
            state().vault,
            auth.organization().id,
            body.domain,
            selector=state().settings.mail.dkim_selector,
            algorithm=body.dkim_key_type,
            also_ed25519=state().settings.mail.dkim_ed25519,
            project_ids=body.project_ids,
        )
        changes.record(conn, "created", "domain", made.id, body)
    return _shown(made)


@noun.operation("GET", PATH + "/{domain_id}", auth.member(Role.read_only))
def get(domain_id: DomainId) -> Domain:
    """Show a domain."""
    with state().db.transaction() as conn:
        return _shown(_find(conn, domain_id))


@noun.operation("PUT", PATH + "/{domain_id}", auth.member(Role.maintainer))
def set_projects(domain_id: DomainId, *, body: ProjectIds) -> Domain:
    """Attach a domain to exactly these projects. The body is the list of their ids."""
    with state().db.transaction() as conn:
        if not domains.set_projects(conn, auth.organization().id, domain_id, body):
            raise NotFound("The organization has no such domain.")
        changes.record(conn, "updated", "domain", domain_id, {"project_ids": [str(id_) for id_ in body]})
        return _shown(_find(conn, domain_id))


@noun.operation("GET", PATH + "/{domain_id}/verify", auth.member(Role.read_only), errors=[409])
def verify(domain_id: DomainId) -> Verification:
    """Look at the domain's DNS now; takes as long as DNS takes. What is seen is kept."""
    with state().db.transaction() as conn:
        found = _find(conn, domain_id)
    return _verification(
        domaincheck.check_domain(state().db, state().settings, found)
    )  # no connection is held meanwhile


@noun.operation("DELETE", PATH + "/{domain_id}", auth.member(Role.maintainer))
def remove(domain_id: DomainId) -> DomainId:
    """Delete a domain with its keys."""
    with state().db.transaction() as conn:
        found = _find(conn, domain_id)
        domains.remove(conn, auth.organization().id, domain_id)
        changes.record(conn, "deleted", "domain", domain_id, {"domain": found.name})
    return domain_id


def _find(conn: Connection, domain_id: DomainId) -> domains.Domain:
    found = domains.get(conn, auth.organization().id, domain_id)
    if found is None:
        raise NotFound("The organization has no such domain.")
    return found


def _shown(row: domains.Domain) -> Domain:
    key = next((key for key in row.dkim_keys if key.is_active), row.dkim_keys[0])
    return Domain(
        id=row.id,
        organization_id=row.organization_id,
        project_ids=row.project_ids,
        domain=row.name,
        dkim_key_type=key.algorithm,
        dkim_public_key=key.record.rpartition("p=")[2],
        dns_records=list(_records(row)),
        verified_at=row.verified_at,
        verification_status=_verification(row.verification),
        hold_reason=row.hold_reason if row.verified_at else None,
        created_at=row.created_at,
        updated_at=row.updated_at,
    )


def _records(row: domains.Domain) -> Iterator[Record]:
    """What to publish: a record for each active key, the others once."""
    seen = set()
    for key in row.dkim_keys:
        for one in records.suggested(
            row.name, key.selector, key.record, state().settings.spf_include, row.ownership_token
        ):
            if key.is_active and one not in seen:
                seen.add(one)
                yield convert(one, Record, from_attributes=True)


def _verification(seen: Mapping[str, Any]) -> Verification:
    return convert(seen, Verification)
