"""Projects: what an organization sends with, their settings, and the SMTP credentials of each."""

import re

import flask
import msgspec
from flask import request
from werkzeug.wrappers import Response

from remails.api import auth, changes, removal
from remails.api.state import state
from remails.api.ui import answers, lines
from remails.errors import Refused
from remails.store import constraints, credentials, domains, projects
from remails.store.ids import OrganizationId, ProjectId, SmtpCredentialId
from remails.store.projects import Project
from remails.store.users import Role

blueprint = flask.Blueprint("projects", __name__, url_prefix="/<uuid:organization_id>/projects")


class Asked(msgspec.Struct, frozen=True):
    """The settings as a form asks for them."""

    name: str
    retention_period_days: int
    plaintext_fallback: bool
    expires_in: int


@blueprint.get("")
@auth.needs(auth.member(Role.read_only, keys=False))
def list_GET(organization_id: OrganizationId) -> Response:
    """The projects."""
    return answers.page(
        "projects/list.html", place="projects", projects=state().db.run(projects.list_, organization_id)
    )


@blueprint.get("/new")
@auth.needs(auth.member(Role.read_only, keys=False))
def new_GET(organization_id: OrganizationId) -> Response:  # noqa: ARG001  # the rule reads it
    """Ask for name and settings."""
    return answers.page("projects/new.html", place="projects", given={"retention": 7, "fallback": True, "minutes": ""})


@blueprint.post("/new")
@auth.needs(auth.member(Role.maintainer, keys=False))
def new_POST(organization_id: OrganizationId) -> Response:
    """Make a project."""
    try:
        with state().db.transaction() as conn:
            asked = _asked()
            project = projects.create(
                conn,
                organization_id,
                asked.name,
                retention_period_days=asked.retention_period_days,
                plaintext_fallback=asked.plaintext_fallback,
                expires_in=asked.expires_in,
            )
            changes.record(conn, "created", "project", project.id, asked)
    except Refused as refusal:
        return answers.refused("projects/new.html", refusal, place="projects", given=_given())
    return answers.go(".show_GET", "added", organization_id=organization_id, project_id=project.id)


@blueprint.get("/<uuid:project_id>")
@auth.needs(auth.member(Role.read_only, keys=False))
def show_GET(organization_id: OrganizationId, project_id: ProjectId) -> Response:
    """One project: credentials, domains, settings."""
    return _show(organization_id, project_id)


@blueprint.post("/<uuid:project_id>")
@auth.needs(auth.member(Role.maintainer, keys=False))
def show_POST(organization_id: OrganizationId, project_id: ProjectId) -> Response:
    """Change the settings."""
    try:
        with state().db.transaction() as conn:
            asked = _asked()
            changed = projects.update(
                conn,
                organization_id,
                project_id,
                name=asked.name,
                retention_period_days=asked.retention_period_days,
                plaintext_fallback=asked.plaintext_fallback,
                expires_in=asked.expires_in,
            )
            answers.found(changed)
            changes.record(conn, "updated", "project", project_id, asked)
    except Refused as refusal:
        return _show(organization_id, project_id, refusal)
    return answers.go(".show_GET", "saved", organization_id=organization_id, project_id=project_id)


@blueprint.post("/<uuid:project_id>/delete")
@auth.needs(auth.member(Role.maintainer, keys=False))
def delete_POST(organization_id: OrganizationId, project_id: ProjectId) -> Response:
    """Delete it with its credentials and mail."""
    answers.found(state().db.run(projects.get, organization_id, project_id))
    removal.remove_mail(organization_id, project_id)
    with state().db.transaction() as conn:
        project = answers.found(projects.get(conn, organization_id, project_id))
        projects.remove(conn, organization_id, project_id)
        changes.record(conn, "deleted", "project", project_id, {"name": project.name})
    return answers.go(".list_GET", "removed", organization_id=organization_id)


@blueprint.post("/<uuid:project_id>/credentials")
@auth.needs(auth.member(Role.maintainer, keys=False))
def new_credential_POST(organization_id: OrganizationId, project_id: ProjectId) -> Response:
    """Make an SMTP credential and show its password: this once, in the answer itself."""
    username, description = request.form.get("username", "").strip(), request.form.get("description", "")
    try:
        with state().db.transaction() as conn:
            project = answers.found(projects.get(conn, organization_id, project_id))
            made, password = credentials.create_smtp(
                conn, state().pepper, project, username, description[:500], answers.words("networks")
            )
            changes.record(
                conn,
                "created",
                "smtp_credential",
                made.id,
                {"username": made.username, "networks": made.networks},
            )
            own = [d for d in domains.list_(conn, organization_id) if project.id in d.project_ids]
    except Refused as refusal:
        return _show(organization_id, project_id, refusal)
    start = lines.Start(project=project, domain=next(iter(own), None), smtp=made)
    return answers.page(
        "projects/credential.html",
        201,
        place="projects",
        project=project,
        made=made,
        password=password,
        server=lines.server(),
        ports=lines.ports(),
        line=lines.swaks(start, password),
    )


@blueprint.post("/<uuid:project_id>/credentials/<uuid:credential_id>/delete")
@auth.needs(auth.member(Role.maintainer, keys=False))
def delete_credential_POST(
    organization_id: OrganizationId, project_id: ProjectId, credential_id: SmtpCredentialId
) -> Response:
    """Delete an SMTP credential."""
    with state().db.transaction() as conn:
        answers.found(projects.get(conn, organization_id, project_id))
        answers.found(credentials.get_smtp(conn, project_id, credential_id))
        credentials.remove_smtp(conn, project_id, credential_id)
        changes.record(conn, "deleted", "smtp_credential", credential_id)
    return answers.go(".show_GET", "removed", organization_id=organization_id, project_id=project_id)


def _show(organization_id: OrganizationId, project_id: ProjectId, refusal: Refused | None = None) -> Response:
    with state().db.transaction() as conn:
        project = answers.found(projects.get(conn, organization_id, project_id))
        logins = credentials.list_smtp(conn, project_id)
        own = [d for d in domains.list_(conn, organization_id) if project_id in d.project_ids]
    given = {**_given_by(project), **(request.form.to_dict() if refusal is not None else {})}
    if "retention" in request.form:
        given["fallback"] = "fallback" in request.form
    return answers.page(
        "projects/show.html",
        refusal.status if refusal else 200,
        place="projects",
        project=project,
        logins=logins,
        domains=own,
        given=given,
        refusal=refusal,
        server=lines.server(),
        ports=lines.ports(),
    )


def _given() -> dict[str, object]:
    """What was typed, for the form to show again."""
    form = request.form
    return {**form.to_dict(), "fallback": "fallback" in form}


def _given_by(project: Project) -> dict[str, object]:
    return {
        "name": project.name,
        "retention": project.retention_period_days,
        "fallback": project.plaintext_fallback,
        "minutes": f"{project.expires_in / 60:.2f}".rstrip("0").rstrip(".") if project.expires_in else "",
    }


def _asked() -> Asked:
    """The settings of a form; raises Refused (422) for a number that is none."""
    days = request.form.get("retention", "")
    if not (days.isascii() and days.isdecimal() and len(days) < 5):
        raise constraints.invalid("Give a number of days, 1 to 365.", "retention_period_days")
    minutes = request.form.get("minutes", "").strip()
    if not re.fullmatch(r"(?a:\d{1,6}([.]\d{1,2})?)?", minutes):
        raise constraints.invalid("Give a number of minutes, or nothing.", "expires_in")
    return Asked(
        name=request.form.get("name", ""),
        retention_period_days=int(days),
        plaintext_fallback="fallback" in request.form,
        expires_in=round(float(minutes or 0) * 60),
    )
