"""Emails: sending them, and what became of them.

    NewEmail --> _Party, ... --> compose --> submission.submit --> 201
    Message, Delivery, TimelineEntry --> Email --> EmailDetails

A message's state is that of its deliveries: `deliveries` and `timeline` tell it as it is, `delivery_details` tells the same
in the form the first version of this API had.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Annotated, Any, Literal

from flask import request
from msgspec import Meta, Struct, convert, field, structs
from werkzeug.exceptions import BadRequest, Conflict, NotFound
from werkzeug.wrappers import Response

from remails import submission
from remails.api import auth, changes
from remails.api.operations import Noun, add_header, link_next, read_address
from remails.api.problems import Invalid
from remails.api.rest import projects
from remails.api.state import state
from remails.bus import events
from remails.db import Connection
from remails.errors import Refused, Unavailable
from remails.mail import compose, headers, message
from remails.mail.address import Address
from remails.store import ids, messages, queue
from remails.store.ids import ApiKeyId, DeliveryId, MessageId, ProjectId, SmtpCredentialId
from remails.store.users import Role

noun = Noun("Emails", "Send emails, and see what became of each recipient.")

ORGANIZATION = "/organizations/{organization_id}/emails"
PROJECT = "/organizations/{organization_id}/projects/{project_id}/emails"

SEND_LIMIT = 4_000_000
r"""Bytes of a request to send: two bodies of 500,000 bytes, also from a client that writes every letter as `\uXXXX`."""
IDEMPOTENCY_KEY = "Idempotency-Key"
MAX_BODY = 500_000
SHOWN_RAW = 10_000
"""Bytes of the raw message that the details show."""

Status = Literal["processing", "held", "accepted", "rejected", "delivered", "reattempt", "failed"]


class Mailbox(Struct, kw_only=True, forbid_unknown_fields=True):
    """An address with a name to show."""

    address: Annotated[str, Meta(max_length=320, extra_json_schema={"format": "email"})]
    name: Annotated[str, Meta(min_length=1, max_length=100)] | None = None


Body = Annotated[str, Meta(description=f"At most {MAX_BODY:,} bytes of UTF-8.")]
Id = Annotated[str, Meta(max_length=500)]
Positive = Annotated[float, Meta(gt=0)]
Moment = Annotated[datetime, Meta(tz=True)]
Term = Annotated[str, Meta(max_length=200)]


class NewEmail(Struct, kw_only=True, forbid_unknown_fields=True):
    """An email to be sent; it needs `text_body`, `html_body` or both."""

    from_: Annotated[str | Mailbox, Meta(description="An address in a verified domain of the project.")] = field(
        name="from"
    )
    to: str | Mailbox | Annotated[list[str | Mailbox], Meta(min_length=1, max_length=10)]
    subject: Annotated[str, Meta(max_length=500)]
    text_body: Body | None = None
    html_body: Body | None = None
    reply_to: str | Mailbox | None = None
    in_reply_to: Id | None = None
    references: Annotated[list[Id], Meta(max_length=50)] = []
    label: Annotated[str, Meta(min_length=1, max_length=30)] | None = None
    expires_in: Annotated[
        Positive | None, Meta(description="Seconds after which it is not tried any more, if less than our own limit.")
    ] = None


class LogLine(Struct, kw_only=True):
    """One thing that happened."""

    time: datetime
    level: Literal["INFO", "WARN", "ERROR"]
    msg: str


class Log(Struct, kw_only=True):
    """What happened to a recipient, oldest first; only the details of one email have it."""

    lines: list[LogLine]


class RecipientStatus(Struct, kw_only=True, omit_defaults=True):
    """How far a recipient got."""

    type: Literal["None", "Success", "Reattempt", "Failed", "Suppressed"]
    delivered: datetime | None = None


class RecipientDetails(Struct, kw_only=True):
    """How far a recipient got, and how."""

    status: RecipientStatus
    log: Log


class Email(Struct, kw_only=True):
    """An email without its content."""

    id: MessageId
    project_id: ProjectId
    status: Status
    reason: Annotated[
        str | None, Meta(description="Why it is held or rejected; else the last reply of a remote server.")
    ]
    delivery_details: Annotated[dict[str, RecipientDetails], Meta(description="By recipient.")]
    smtp_credential_id: SmtpCredentialId | None
    api_key_id: ApiKeyId | None
    from_email: Annotated[str, Meta(description="The envelope's sender.")]
    recipients: list[str]
    subject: str
    raw_size: Annotated[str, Meta(description="For people, as in `1.2 kB`.")]
    size: Annotated[int, Meta(description="Bytes.")]
    message_id_header: str
    created_at: datetime
    updated_at: datetime
    retry_after: datetime | None
    expires_at: datetime
    label: str | None
    attempts: Annotated[int, Meta(description="The most that any recipient needed.")]
    max_attempts: Annotated[int | None, Meta(description="Always null: attempts end at `expires_at`.")] = None
    has_content: bool


class Attachment(Struct, kw_only=True):
    """What there is to know of an attachment."""

    filename: str
    mime: str
    size: int


class Content(Struct, kw_only=True):
    """What an email says, as far as it is text."""

    subject: str
    date: datetime | None
    text_body: str | None
    attachments: list[Attachment]


class Delivery(Struct, kw_only=True):
    """A recipient and how far it got."""

    id: DeliveryId
    recipient: str
    status: Literal["accepted", "reattempt", "held", "delivered", "failed", "suppressed"]
    source: Annotated[str | None, Meta(description="The address of ours it leaves from.")]
    attempts: int
    next_attempt_at: datetime | None
    is_claimed: Annotated[bool, Meta(description="Whether a sending host is at it.")]
    last_code: int | None
    last_enhanced: str | None
    last_reply: str | None
    cause: Annotated[str, Meta(description="Why it waits, is held, was not sent or has ended, in words.")]
    mx_host: str | None
    mx_ip: str | None
    tls: str | None
    finished_at: datetime | None
    dsn_notify: Annotated[
        str | None,
        Meta(description="When the sender wants a report (RFC 3461): `NEVER`, or some of `SUCCESS,FAILURE,DELAY`."),
    ]
    dsn_orcpt: Annotated[
        str | None, Meta(description="Whom it was sent to at first, as the sender wrote it (RFC 3461).")
    ]


class Step(Struct, kw_only=True):
    """A step of a dialogue with a server."""

    command: Annotated[str, Meta(description="What we sent; in parentheses what is no command.")]
    reply: Annotated[str, Meta(description="What the server said, word for word.")]
    milliseconds: Annotated[int, Meta(description="Since the step before.")]


class Server(Struct, kw_only=True):
    """A server that was tried in an attempt."""

    mx_host: str
    mx_ip: str
    reply: str
    milliseconds: int
    steps: list[Step]


class TimelineEntry(Struct, kw_only=True):
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
    host: Annotated[str | None, Meta(description="The host of ours that made the attempt.")]
    servers: Annotated[list[Server], Meta(description="The servers that were tried, in order; the last one decided.")]
    cause: str
    """Why, and what happens next, in words."""
    tls_policy: Annotated[
        Literal["opportunistic", "required", "sts", "sts-testing", "dane"] | None,
        Meta(description="The rule that the connection was under."),
    ]
    tls_verified: Annotated[
        bool | None,
        Meta(description="Whether the server proved its name; null for plain text and where none answered."),
    ]
    tls_note: Annotated[str, Meta(description="What was not as it should be with TLS, in words.")]


class EmailDetails(Email, kw_only=True):
    """An email, its content and all that happened to it."""

    truncated_raw_data: Annotated[str, Meta(description=f"The first {SHOWN_RAW:,} bytes.")]
    is_truncated: bool
    message_data: Annotated[Content | None, Meta(description="Null once the content is deleted.")]
    deliveries: list[Delivery]
    timeline: list[TimelineEntry]
    dsn_ret: Annotated[str | None, Meta(description="What a report shall hold (RFC 3461): `FULL` or `HDRS`.")]
    dsn_envid: Annotated[
        str | None, Meta(description="The sender's own name for the email (RFC 3461), as it was written.")
    ]


class EmailQuery(Struct, kw_only=True, forbid_unknown_fields=True):
    """Which emails."""

    limit: Annotated[int, Meta(ge=1, le=100, description="One more is returned where there are more.")] = 10
    status: tuple[Status, ...] = ()
    labels: Annotated[tuple[str, ...], Meta(max_length=20)] = ()
    before: Annotated[Moment | None, Meta(description="Created at that time or earlier.")] = None
    project: ProjectId | None = None
    search: Annotated[Term | None, Meta(description="Part of a subject or recipient.")] = None
    cursor: Annotated[MessageId | None, Meta(description="Emails older than this one.")] = None


# Sending


@noun.operation(
    "POST",
    PROJECT,
    auth.member(Role.maintainer, people=False),
    status=201,
    errors=[429],
    limit=SEND_LIMIT,
    headers={
        IDEMPOTENCY_KEY: "A name of your own for this email, up to 255 characters. The same request with the same key is answered as "
        "the first one was, and sends nothing more, for a day at least; another email with the same key is refused."
    },
)
def send(project_id: ProjectId, *, body: NewEmail) -> Email:
    """Send an email.

    201 means that it is stored safely, and will be delivered or fail where it can be seen. All recipients are taken, or
    none.
    """
    given = _submission(project_id, body)
    outcome = submission.submit(state().db, state().publisher, state().settings.mail, [given], state().throttle)[0]
    if isinstance(outcome, Refused):
        raise outcome
    if outcome.is_repeated:
        add_header("Idempotent-Replayed", "true")
    try:
        with state().db.transaction() as conn:
            return _shown(conn, [_find(conn, outcome.id)])[0]
    except Unavailable:
        # It is stored: an error now would make the client send it again.
        return _just_accepted(body, given, outcome)


@dataclass(frozen=True, slots=True)
class _Party:
    """A sender or recipient: what the header shows, and where mail goes."""

    mailbox: compose.Mailbox
    address: Address


def _party(given: str | Mailbox, place: str) -> _Party:
    if isinstance(given, str):
        return _Party(compose.Mailbox(given), read_address(given.strip(), place))
    parsed = read_address(given.address.strip(), f"{place}.address")
    return _Party(compose.Mailbox(given.address, given.name), parsed)


def _submission(project_id: ProjectId, body: NewEmail) -> submission.Submission:
    id_, now = MessageId(ids.new()), datetime.now(UTC)
    sender = _party(body.from_, "from")
    if isinstance(body.to, list):
        recipients = [_party(one, f"to[{number}]") for number, one in enumerate(body.to)]
    else:
        recipients = [_party(body.to, "to")]
    return submission.Submission(
        sender=submission.Sender(auth.organization().id, project_id, api_key_id=ApiKeyId(auth.actor().id)),
        mail_from=sender.address,
        recipients=tuple(recipient.address for recipient in recipients),
        raw=_composed(body, sender, recipients, f"{id_}@{sender.address.domain}", now),
        id=id_,
        received=message.received_field(
            client="",
            client_ip=auth.client_address(),
            hostname=state().settings.mail.hostname,
            protocol=request.scheme.upper(),
            ident=str(id_),
            now=now,
            tls=None,
        ),
        label=body.label,
        expires_in=body.expires_in,
        idempotency_key=request.headers.get(IDEMPOTENCY_KEY),
    )


def _composed(body: NewEmail, sender: _Party, recipients: Sequence[_Party], message_id: str, now: datetime) -> bytes:
    for name, text in (("text_body", body.text_body), ("html_body", body.html_body)):
        if text is not None and len(text.encode()) > MAX_BODY:
            raise Invalid(name, f"{name}: longer than {MAX_BODY:,} bytes")
    try:
        return compose.compose(
            sender=sender.mailbox,
            to=[recipient.mailbox for recipient in recipients],
            subject=body.subject,
            text=body.text_body,
            html=body.html_body,
            reply_to=_party(body.reply_to, "reply_to").mailbox if body.reply_to is not None else None,
            in_reply_to=body.in_reply_to,
            references=body.references,
            message_id=message_id,
            now=now,
        )
    except compose.BadField as error:
        name = {"text": "text_body", "html": "html_body"}.get(error.field, error.field)
        if not isinstance(body.to, list):
            name = "to" if name == "to[0]" else name
        raise Invalid(name, f"{name}: {error.reason}") from None


def _just_accepted(body: NewEmail, given: submission.Submission, outcome: submission.Accepted) -> Email:
    """What is known of an email without looking at it again."""
    recipients = [str(recipient) for recipient in dict.fromkeys(given.recipients)]
    nothing_yet = RecipientDetails(status=RecipientStatus(type="None"), log=Log(lines=[]))
    assert outcome.expires_at is not None
    return Email(
        id=outcome.id,
        project_id=given.sender.project_id,
        status="processing",
        reason=None,
        delivery_details=dict.fromkeys(recipients, nothing_yet),
        smtp_credential_id=None,
        api_key_id=given.sender.api_key_id,
        from_email=str(given.mail_from),
        recipients=recipients,
        subject=body.subject,
        raw_size=_for_people(len(given.raw)),
        size=len(given.raw),
        message_id_header=outcome.message_id_header,
        created_at=outcome.created_at,
        updated_at=outcome.created_at,
        retry_after=None,
        expires_at=outcome.expires_at,
        label=message.normalise_label(given.label or ""),
        attempts=0,
        has_content=True,
    )


# Looking


@noun.operation("GET", ORGANIZATION, auth.member(Role.read_only))
@noun.operation("GET", PROJECT, auth.member(Role.read_only))
def list_(project_id: ProjectId | None = None, *, query: EmailQuery) -> list[Email]:
    """List emails, newest first; the header `Link` names the next page."""
    wanted = project_id or query.project
    with state().db.transaction() as conn:
        if project_id is not None:
            projects.find(conn, project_id)
        rows = messages.list_(
            conn,
            auth.organization().id,
            project_id=wanted,
            statuses=query.status,
            labels=query.labels,
            search=query.search,
            created_before=query.before,
            before=query.cursor,
            limit=query.limit + 1,
        )
        if len(rows) > query.limit:
            link_next(cursor=rows[query.limit - 1].id)
        return _shown(conn, rows)


@noun.operation("GET", ORGANIZATION + "/labels", auth.member(Role.read_only))
def list_labels() -> list[str]:
    """List the labels that emails have."""
    return state().db.run(messages.labels, auth.organization().id)


@noun.operation("GET", ORGANIZATION + "/{email_id}", auth.member(Role.read_only))
@noun.operation("GET", PROJECT + "/{email_id}", auth.member(Role.read_only))
def get(email_id: MessageId, project_id: ProjectId | None = None) -> EmailDetails:
    """Show an email, its content and all that happened to it."""
    with state().db.transaction() as conn:
        row = _find(conn, email_id, project_id)
        deliveries = messages.deliveries(conn, row.organization_id, [email_id])
        timeline = messages.timeline(conn, row.organization_id, email_id)
        raw = messages.body(conn, row.organization_id, email_id)
    return EmailDetails(
        **structs.asdict(_email(row, deliveries, timeline)),
        truncated_raw_data=(raw or b"")[:SHOWN_RAW].decode("utf-8", "replace"),
        is_truncated=len(raw or b"") > SHOWN_RAW,
        message_data=_content(row, raw) if raw is not None else None,
        deliveries=convert(deliveries, list[Delivery], from_attributes=True),
        timeline=convert(timeline, list[TimelineEntry], from_attributes=True),
        dsn_ret=row.dsn_ret,
        dsn_envid=row.dsn_envid,
    )


@noun.operation("GET", ORGANIZATION + "/{email_id}/raw", auth.member(Role.read_only), media="message/rfc822")
@noun.operation("GET", PROJECT + "/{email_id}/raw", auth.member(Role.read_only), media="message/rfc822")
def get_raw(email_id: MessageId, project_id: ProjectId | None = None) -> Response:
    """Download an email as it left, without our signature."""
    with state().db.transaction() as conn:
        row = _find(conn, email_id, project_id)
        raw = messages.body(conn, row.organization_id, email_id)
    if raw is None:
        raise NotFound("The content of this email is deleted.")
    response = Response(raw, mimetype="message/rfc822")
    response.headers["Content-Disposition"] = f'attachment; filename="{email_id}.eml"'
    response.headers["Content-Security-Policy"] = "default-src 'none'; sandbox"
    return response


# Changing


@noun.operation("DELETE", ORGANIZATION + "/{email_id}", auth.member(Role.maintainer))
@noun.operation("DELETE", PROJECT + "/{email_id}", auth.member(Role.maintainer))
def remove(email_id: MessageId, project_id: ProjectId | None = None) -> MessageId:
    """Delete the content of an email. What happened to it stays; recipients that still wait for it fail."""
    with state().db.transaction() as conn:
        row = _find(conn, email_id, project_id)
        if messages.remove_body(conn, row.organization_id, email_id):
            changes.record(conn, "deleted", "message", email_id)
    return email_id


@noun.operation("PUT", ORGANIZATION + "/{email_id}/retry", auth.member(Role.maintainer), errors=[400, 409])
@noun.operation("PUT", PROJECT + "/{email_id}/retry", auth.member(Role.maintainer), errors=[400, 409])
def retry(email_id: MessageId, project_id: ProjectId | None = None) -> Email:
    """Try the recipients that have not got it again, now."""
    with state().db.transaction() as conn:
        row = _find(conn, email_id, project_id)
        if row.status == "delivered":
            raise BadRequest("All recipients have this email already.")
        if not row.has_body:
            raise Conflict("The content of this email is deleted.")
        sources = queue.retry(conn, row.organization_id, email_id)
        changes.record(conn, "retried", "message", email_id)
        shown = _shown(conn, [_find(conn, email_id)])[0]
    for source in sources:
        state().publisher.publish(events.Ready(source, [email_id]))  # only after the commit
    return shown


def _find(conn: Connection, email_id: MessageId, project_id: ProjectId | None = None) -> messages.Message:
    found = messages.get(conn, auth.organization().id, email_id)
    if found is None or project_id not in (None, found.project_id):
        raise NotFound("There is no such email.")
    return found


# As the API shows it


def _shown(conn: Connection, rows: Sequence[messages.Message]) -> list[Email]:
    deliveries: defaultdict[MessageId, list[messages.Delivery]] = defaultdict(list)
    for delivery in messages.deliveries(conn, auth.organization().id, [row.id for row in rows]):
        deliveries[delivery.message_id].append(delivery)
    return [_email(row, deliveries[row.id]) for row in rows]


def _email(
    row: messages.Message, deliveries: Sequence[messages.Delivery], timeline: Sequence[messages.TimelineEntry] = ()
) -> Email:
    return Email(
        id=row.id,
        project_id=row.project_id,
        status=convert(row.status, Status),
        reason=row.cause if row.status in ("held", "rejected") else row.last_reply,
        delivery_details={delivery.recipient: _details(delivery, timeline) for delivery in deliveries},
        smtp_credential_id=row.smtp_credential_id,
        api_key_id=row.api_key_id,
        from_email=row.mail_from,
        recipients=row.recipients,
        subject=row.subject,
        raw_size=_for_people(row.size),
        size=row.size,
        message_id_header=row.message_id_header,
        created_at=row.created_at,
        updated_at=row.updated_at,
        retry_after=row.retry_after,
        expires_at=row.expires_at,
        label=row.label,
        attempts=row.attempts,
        has_content=row.has_body,
    )


_TYPES: dict[str, Any] = {
    "delivered": "Success",
    "reattempt": "Reattempt",
    "failed": "Failed",
    "suppressed": "Suppressed",
}
_LEVELS: dict[str, Any] = {
    "deferred": "WARN",
    "ambiguous": "WARN",
    "delayed": "WARN",
    "held": "WARN",
    "suppressed": "WARN",
    "failed": "ERROR",
    "expired": "ERROR",
}


def _details(delivery: messages.Delivery, timeline: Sequence[messages.TimelineEntry]) -> RecipientDetails:
    delivered = delivery.finished_at if delivery.status == "delivered" else None
    lines = [line for entry in timeline if entry.delivery_id in (None, delivery.id) for line in _lines(entry)]
    status = RecipientStatus(type=_TYPES.get(delivery.status, "None"), delivered=delivered)
    return RecipientDetails(status=status, log=Log(lines=lines))


def _lines(entry: messages.TimelineEntry) -> Iterator[LogLine]:
    """An entry as the first version of this API told it: the servers that did not do, then what came of it."""
    for server in entry.servers[:-1]:
        said = f"could not use {server['mx_host']} [{server['mx_ip']}]: {server['reply']}"
        yield LogLine(time=entry.at, level="WARN", msg=said)
    yield _line(entry)


def _line(entry: messages.TimelineEntry) -> LogLine:
    where = f" by {entry.mx_host} [{entry.mx_ip}]" if entry.mx_host else ""
    proved = {True: " (verified)", False: " (not verified)", None: ""}[entry.tls_verified]
    how = f" over {entry.tls}{proved}" if entry.tls else ""
    said = entry.text or entry.cause
    if entry.code and str(entry.code) not in said:  # words of ours may quote a reply with its codes
        said = " ".join(str(part) for part in (entry.code, entry.enhanced, said) if part)
    msg = f"{entry.kind}{where}{how}: {said}" if said else f"{entry.kind}{where}{how}"
    return LogLine(time=entry.at, level=_LEVELS.get(entry.kind, "INFO"), msg=msg)


def _content(row: messages.Message, raw: bytes) -> Content:
    shown = message.preview(raw)
    return Content(
        subject=row.subject,
        date=_date(raw),
        text_body=shown.text,
        attachments=convert(shown.attachments, list[Attachment], from_attributes=True),
    )


def _date(raw: bytes) -> datetime | None:
    header, _ = headers.split(raw)
    found = next((one for one in headers.fields(header) if one.name == b"date"), None)
    try:
        date = parsedate_to_datetime(headers.text(found.value)) if found else None
    except (ValueError, IndexError, OverflowError):
        return None
    return date.replace(tzinfo=UTC) if date and date.tzinfo is None else date


def _for_people(size: int) -> str:
    """A size in bytes with a unit."""
    if size < 1000:
        return f"{size} B"
    return f"{size / 1000:.1f} kB" if size < 1_000_000 else f"{size / 1_000_000:.1f} MB"
