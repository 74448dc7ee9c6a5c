"""The mail of an organization: the list, one message with all that happened to it, trying again, forgetting content.

While something on a page is not final, its region asks for itself again; when all is, the answer has no trigger any more
and the asking ends. The region is the same template whether the whole page is asked for or only its part.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import flask
from flask import request, url_for
from werkzeug.wrappers import Response

from remails.api import auth, changes
from remails.api.state import state
from remails.api.ui import answers, figures, lines, words
from remails.bus import events
from remails.db import Connection
from remails.mail import parts
from remails.store import credentials, domains, messages, projects, queue, statistics
from remails.store.ids import MessageId, OrganizationId, ProjectId
from remails.store.messages import Delivery, Message
from remails.store.users import Role

PAGE = 25
MOST_RECIPIENTS = 200
RAW_LIMIT = 64_000

blueprint = flask.Blueprint("emails", __name__, url_prefix="/<uuid:organization_id>/emails")


@dataclass(frozen=True, slots=True)
class Filters:
    """What a list is narrowed to; `before` is the last id of the page before, `after` the first of the page that follows."""

    status: str = ""
    label: str = ""
    project: ProjectId | None = None
    search: str = ""
    until: str = ""
    before: MessageId | None = None
    after: MessageId | None = None

    @classmethod
    def of(cls, query: Mapping[str, str]) -> "Filters":
        """From the address; what makes no sense is left out."""
        project, before, after = (_uuid(query.get(name)) for name in ("project", "before", "after"))
        return cls(
            status=query.get("status", ""),
            label=query.get("label", ""),
            project=ProjectId(project) if project else None,
            search=query.get("search", "").strip()[:200],
            until=query.get("until", "") if _time(query.get("until")) else "",
            before=MessageId(before) if before else None,
            after=MessageId(after) if after and not before else None,
        )

    def query(self, **changed: Any) -> dict[str, Any]:
        """For an address of the same list, with something changed."""
        everything = {name: getattr(self, name) for name in self.__slots__} | changed
        return {name: value for name, value in everything.items() if value}

    @property
    def narrow(self) -> bool:
        """Whether anything is left out of the list."""
        return bool(self.query(before=None, after=None))

    def select(self, conn: Connection, organization_id: OrganizationId, limit: int) -> list[Message]:
        """The messages."""
        return messages.list_(
            conn,
            organization_id,
            project_id=self.project,
            statuses=self.status.split(",") if self.status else None,
            labels=[self.label] if self.label else None,
            search=self.search or None,
            created_before=_time(self.until),
            before=self.before,
            after=self.after,
            limit=limit,
        )


def _uuid(text: str | None) -> UUID | None:
    try:
        return UUID(text or "")
    except ValueError:
        return None


def _time(text: str | None) -> datetime | None:
    """What a browser's field for date and time sends, taken as UTC."""
    try:
        return datetime.fromisoformat(text or "").replace(tzinfo=UTC)
    except ValueError:
        return None


@blueprint.get("")
@auth.needs(auth.member(Role.read_only, keys=False))
def list_GET(organization_id: OrganizationId) -> Response:
    """The newest messages, or those that the filters leave."""
    filters = Filters.of(request.args)
    with state().db.transaction() as conn:
        shown = filters.select(conn, organization_id, PAGE + 1)
        if filters.after and len(shown) <= PAGE:  # so near to the top that it is the first page
            filters = replace(filters, after=None)
            shown = filters.select(conn, organization_id, PAGE + 1)
        values = _region(organization_id, filters, shown)
        if not shown and not filters.narrow and not filters.before:
            values["start"] = _start(conn, organization_id)
        if answers.is_region():
            response = answers.page("emails/_list.html", **values)
            if request.headers.get("HX-Source", "").startswith("form"):
                response.headers["HX-Push-Url"] = _address(organization_id, filters)
            return response
        values["projects"] = projects.list_(conn, organization_id)
        values["labels"] = messages.labels(conn, organization_id)
        today = datetime.now(UTC).date()
        counts = statistics.by_day(conn, organization_id, figures.first_day(today))
        values["overview"] = figures.overview(counts, today)
    return answers.page("emails/list.html", place="emails", **values)


def _region(organization_id: OrganizationId, filters: Filters, shown: Sequence[Message]) -> dict[str, Any]:
    # Of those asked for `after` a message, the one too many is the newest; there is an older one, namely that message.
    page = shown[-PAGE:] if filters.after else shown[:PAGE]
    is_start = not page and not filters.narrow
    is_inside = bool(filters.before or filters.after)
    return {
        "filters": filters,
        "messages": page,
        "address": _address(organization_id, filters),
        "older": _address(organization_id, filters, before=page[-1].id, after=None)
        if page and (filters.after or len(shown) > PAGE)
        else None,
        "newer": _address(organization_id, filters, before=None, after=page[0].id) if page and is_inside else None,
        "newest": _address(organization_id, filters, before=None, after=None) if is_inside else None,
        "refresh": "every 2s" if is_start else words.refresh(page, datetime.now(UTC)),
        "waiting": sum(not words.is_final(message) for message in page),
    }


def _address(organization_id: OrganizationId, filters: Filters, **changed: Any) -> str:
    return url_for("ui.emails.list_GET", organization_id=organization_id, **filters.query(**changed))


def _start(conn: Connection, organization_id: OrganizationId) -> lines.Start:
    """What is there already of what it takes to send, for the lines to paste."""
    project = next(iter(projects.list_(conn, organization_id)), None)
    logins = credentials.list_smtp(conn, project.id) if project else []
    keys = credentials.list_keys(conn, organization_id)
    own = [domain for domain in domains.list_(conn, organization_id) if project and project.id in domain.project_ids]
    return lines.Start(
        project=project,
        domain=next((d for d in own if d.verified_at), own[0] if own else None),
        smtp=logins[0] if logins else None,
        key=next((key for key in keys if key.role.allows(Role.maintainer)), None),
    )


@blueprint.get("/<uuid:message_id>")
@auth.needs(auth.member(Role.read_only, keys=False))
def show_GET(organization_id: OrganizationId, message_id: MessageId) -> Response:
    """One message, its recipients and its timeline; with its content unless only the region is asked for."""
    with state().db.transaction() as conn:
        message = answers.found(messages.get(conn, organization_id, message_id))
        values = _progress(conn, message)
        if answers.is_region():
            return answers.page("emails/_progress.html", **values)
        values["project"] = projects.get(conn, organization_id, message.project_id)
        raw = messages.body(conn, organization_id, message_id)
    return answers.page("emails/show.html", place="emails", **values, **_content(raw))


def _progress(conn: Connection, message: Message) -> dict[str, Any]:
    deliveries = messages.deliveries(conn, message.organization_id, [message.id])
    names = {delivery.id: delivery.recipient for delivery in deliveries}
    now = datetime.now(UTC)
    return {
        "message": message,
        "deliveries": _most_interesting(deliveries),
        "count": len(deliveries),
        "timeline": messages.timeline(conn, message.organization_id, message.id),
        "names": names,
        "summary": words.summary(message, deliveries, now),
        "refresh": None if words.is_final(message) else "every 2s",
        "can_retry": message.has_body and message.status != "delivered",
        "now": now,
    }


def _most_interesting(deliveries: Sequence[Delivery]) -> Sequence[Delivery]:
    """All, or of very many the undelivered ones first."""
    if len(deliveries) <= MOST_RECIPIENTS:
        return deliveries
    return sorted(deliveries, key=lambda delivery: delivery.status == "delivered")[:MOST_RECIPIENTS]


def _content(raw: bytes | None) -> dict[str, Any]:
    """What of the content is shown: `view` is text, html (its source) or raw."""
    if raw is None:
        return {"view": None}
    shown = parts.preview(raw)
    views = [name for name, text in (("text", shown.text), ("html", shown.html), ("raw", "")) if text is not None]
    view = request.args.get("view", "")
    view = view if view in views else views[0]
    source = raw[:RAW_LIMIT].decode("utf-8", "replace").replace("\r\n", "\n")
    return {
        "views": views,
        "view": view,
        "content": {"text": shown.text, "html": shown.html, "raw": source}[view],
        "is_cut": view == "raw" and len(raw) > RAW_LIMIT,
        "attachments": shown.attachments,
    }


@blueprint.get("/<uuid:message_id>/raw")
@auth.needs(auth.member(Role.read_only, keys=False))
def raw_GET(organization_id: OrganizationId, message_id: MessageId) -> Response:
    """The message as a file."""
    raw = answers.found(state().db.run(messages.body, organization_id, message_id))
    return Response(
        raw,
        mimetype="message/rfc822",
        headers={"Content-Disposition": f'attachment; filename="{message_id}.eml"'},
    )


@blueprint.post("/<uuid:message_id>/retry")
@auth.needs(auth.member(Role.maintainer, keys=False))
def retry_POST(organization_id: OrganizationId, message_id: MessageId) -> Response:
    """Try what is not delivered again, now."""
    with state().db.transaction() as conn:
        message = answers.found(messages.get(conn, organization_id, message_id))
        can_retry = message.has_body and message.status != "delivered"
        sources = queue.retry(conn, organization_id, message_id)
        if can_retry:
            changes.record(conn, "retried", "message", message_id)
    for source in sources:
        state().publisher.publish(events.Ready(source, [message_id]))
    done = "retried" if can_retry else "nothing-to-retry"
    return answers.go(".show_GET", done, organization_id=organization_id, message_id=message_id)


@blueprint.post("/<uuid:message_id>/content/delete")
@auth.needs(auth.member(Role.maintainer, keys=False))
def delete_content_POST(organization_id: OrganizationId, message_id: MessageId) -> Response:
    """Forget the content, keep what happened to it."""
    with state().db.transaction() as conn:
        answers.found(messages.get(conn, organization_id, message_id))
        if messages.remove_body(conn, organization_id, message_id):
            changes.record(conn, "deleted", "message", message_id)
    return answers.go(".show_GET", "content-deleted", organization_id=organization_id, message_id=message_id)
