"""Domains to send from: adding, what to publish in DNS and what was seen there, attaching to projects."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import flask
from flask import request
from werkzeug.wrappers import Response

from remails import domaincheck
from remails.api import auth, changes
from remails.api.state import state
from remails.api.ui import answers
from remails.errors import Refused
from remails.mail import records
from remails.store import constraints, domains, projects
from remails.store.domains import Domain
from remails.store.ids import DomainId, OrganizationId, ProjectId
from remails.store.users import Role

blueprint = flask.Blueprint("domains", __name__, url_prefix="/<uuid:organization_id>/domains")


@dataclass(frozen=True, slots=True)
class Wanted:
    """A record to publish, and what the last check said of it; `verdict` is None before the first."""

    record: records.Record
    verdict: Mapping[str, Any] | None


@blueprint.get("")
@auth.needs(auth.member(Role.read_only, keys=False))
def list_GET(organization_id: OrganizationId) -> Response:
    """The domains."""
    with state().db.transaction() as conn:
        names = {project.id: project.name for project in projects.list_(conn, organization_id)}
        own = domains.list_(conn, organization_id)
    return answers.page("domains/list.html", place="domains", domains=own, names=names)


@blueprint.get("/new")
@auth.needs(auth.member(Role.read_only, keys=False))
def new_GET(organization_id: OrganizationId) -> Response:
    """Ask for the name."""
    return _new(organization_id)


@blueprint.post("/new")
@auth.needs(auth.member(Role.maintainer, keys=False))
def new_POST(organization_id: OrganizationId) -> Response:
    """Add a domain, with a key of its own to sign with."""
    name = request.form.get("domain", "").strip()
    try:
        with state().db.transaction() as conn:
            mail = state().settings.mail
            made = domains.create(
                conn,
                state().vault,
                organization_id,
                name,
                selector=mail.dkim_selector,
                also_ed25519=mail.dkim_ed25519,
                project_ids=_project_ids(),
            )
            changes.record(conn, "created", "domain", made.id, {"domain": made.name})
    except Refused as refusal:
        return _new(organization_id, refusal)
    return answers.go(".show_GET", "added", organization_id=organization_id, domain_id=made.id)


@blueprint.get("/<uuid:domain_id>")
@auth.needs(auth.member(Role.read_only, keys=False))
def show_GET(organization_id: OrganizationId, domain_id: DomainId) -> Response:
    """One domain: the records to publish and what was seen of them."""
    return _show(organization_id, domain_id)


@blueprint.post("/<uuid:domain_id>/check")
@auth.needs(auth.member(Role.read_only, keys=False))
def check_POST(organization_id: OrganizationId, domain_id: DomainId) -> Response:
    """Look the records up now."""
    domain = answers.found(state().db.run(domains.get, organization_id, domain_id))
    domaincheck.check_domain(state().db, state().settings, domain)
    return answers.go(".show_GET", "checked", organization_id=organization_id, domain_id=domain_id)


@blueprint.post("/<uuid:domain_id>/projects")
@auth.needs(auth.member(Role.maintainer, keys=False))
def projects_POST(organization_id: OrganizationId, domain_id: DomainId) -> Response:
    """Choose the projects that may send from it."""
    try:
        with state().db.transaction() as conn:
            chosen = _project_ids()
            answers.found(domains.set_projects(conn, organization_id, domain_id, chosen) or None)
            changes.record(conn, "updated", "domain", domain_id, {"project_ids": [str(id_) for id_ in chosen]})
    except Refused as refusal:
        return _show(organization_id, domain_id, refusal)
    return answers.go(".show_GET", "saved", organization_id=organization_id, domain_id=domain_id)


@blueprint.post("/<uuid:domain_id>/delete")
@auth.needs(auth.member(Role.maintainer, keys=False))
def delete_POST(organization_id: OrganizationId, domain_id: DomainId) -> Response:
    """Delete it with its keys."""
    with state().db.transaction() as conn:
        domain = answers.found(domains.get(conn, organization_id, domain_id))
        domains.remove(conn, organization_id, domain_id)
        changes.record(conn, "deleted", "domain", domain_id, {"domain": domain.name})
    return answers.go(".list_GET", "removed", organization_id=organization_id)


def _new(organization_id: OrganizationId, refusal: Refused | None = None) -> Response:
    known = state().db.run(projects.list_, organization_id)
    ticked = set(request.form.getlist("project")) if refusal else {str(project.id) for project in known}
    return answers.page(
        "domains/new.html",
        refusal.status if refusal else 200,
        place="domains",
        projects=known,
        ticked=ticked,
        given=request.form,
        refusal=refusal,
    )


def _show(organization_id: OrganizationId, domain_id: DomainId, refusal: Refused | None = None) -> Response:
    with state().db.transaction() as conn:
        domain = answers.found(domains.get(conn, organization_id, domain_id))
        known = projects.list_(conn, organization_id)
    return answers.page(
        "domains/show.html",
        refusal.status if refusal else 200,
        place="domains",
        domain=domain,
        wanted=_wanted(domain),
        address=domain.verification.get("a"),
        return_path=domain.verification.get("return_path"),
        projects=known,
        ticked={str(id_) for id_ in domain.project_ids},
        refusal=refusal,
    )


def _wanted(domain: Domain) -> Sequence[Wanted]:
    """The records of all active keys, each once, with their verdicts."""
    found: dict[str, Wanted] = {}
    for key in domain.dkim_keys:
        if key.is_active:
            suggested = records.suggested(
                domain.name, key.selector, key.record, state().settings.spf_include, domain.ownership_token
            )
            for word, record in zip(("ownership", "dkim", "spf", "dmarc"), suggested, strict=True):
                found.setdefault(record.name + word, Wanted(record, domain.verification.get(word)))
    return list(found.values())


def _project_ids() -> list[ProjectId]:
    """The ticked projects; raises Refused (422) for what is no id."""
    try:
        return [ProjectId(UUID(text)) for text in request.form.getlist("project")]
    except ValueError:
        raise constraints.invalid("One of these is not a project of the organization.", "project_ids") from None
