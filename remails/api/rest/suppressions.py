"""The suppression list."""

from datetime import datetime
from typing import Annotated, Literal

from msgspec import Meta, Struct, convert
from werkzeug.exceptions import NotFound, RequestEntityTooLarge
from werkzeug.wrappers import Response

from remails.api import auth, changes
from remails.api.operations import Noun, link_next, read_address
from remails.api.state import state
from remails.mail import address, addresslist
from remails.mail.addresslist import Entry
from remails.store import suppressions
from remails.store.users import Role

noun = Noun(
    "Suppression list",
    "Addresses the organization does not send to: they do not exist, were refused five times in a row, or somebody said so.",
)

PATH = "/organizations/{organization_id}/emails/suppressed"


class Suppressed(Struct, kw_only=True):
    """An address that gets no emails."""

    email_address: str
    retry_after: Annotated[datetime | None, Meta(description="When it is tried again; null is never.")]
    kind: Literal["bounce", "complaint", "manual"]
    reason: str
    failures: int
    created_at: datetime


class NewSuppressed(Struct, kw_only=True, forbid_unknown_fields=True):
    """An address to suppress until it is removed."""

    email_address: Annotated[str, Meta(max_length=320)]
    reason: Annotated[str, Meta(max_length=500)] = ""
    retry_after: Annotated[
        Annotated[datetime, Meta(tz=True)] | None, Meta(description="When it is tried again; null is never.")
    ] = None


class BadLine(Struct, kw_only=True):
    """A line of a list that is no address."""

    line: Annotated[int, Meta(description="Counts from 1.")]
    text: str
    error: str


class Imported(Struct, kw_only=True):
    """What became of a list."""

    imported: Annotated[int, Meta(description="Addresses that are suppressed now, also those that were before.")]
    failed: Annotated[int, Meta(description="Lines that are no address; they were passed over.")]
    errors: Annotated[list[BadLine], Meta(description="The first of these lines.")]


class SuppressedQuery(Struct, kw_only=True, forbid_unknown_fields=True):
    """Which part of the list."""

    limit: Annotated[int, Meta(ge=1, le=1000)] = 1000
    after: Annotated[str, Meta(description="Only addresses that come after this one.")] = ""
    search: Annotated[str, Meta(max_length=200, description="Part of an address.")] = ""


@noun.operation("GET", PATH, auth.member(Role.read_only))
def list_(*, query: SuppressedQuery) -> list[Suppressed]:
    """List the suppressed addresses, in order; the header `Link` names the next page."""
    with state().db.transaction() as conn:
        rows = suppressions.list_(
            conn, auth.organization().id, after=query.after, search=query.search, limit=query.limit
        )
    if len(rows) == query.limit:
        link_next(after=rows[-1].address)
    return [
        Suppressed(
            email_address=row.address,
            retry_after=row.suppressed_until,
            kind=row.kind,
            reason=row.reason,
            failures=row.failures,
            created_at=row.created_at,
        )
        for row in rows
    ]


@noun.operation("POST", PATH, auth.member(Role.maintainer), status=201)
def add(*, body: NewSuppressed) -> NewSuppressed:
    """Suppress an address."""
    key = read_address(body.email_address, "email_address").key
    with state().db.transaction() as conn:
        new = Entry(key, body.reason, until=body.retry_after)
        suppressions.add_many(conn, auth.organization().id, [new])
        changes.record(conn, "created", "suppression", key, body)
    return NewSuppressed(email_address=key, reason=body.reason, retry_after=body.retry_after)


@noun.operation("POST", PATH + "/import", auth.member(Role.maintainer), limit=addresslist.MOST_BYTES)
def import_(*, body: str) -> Imported:
    """Suppress a list of addresses, one to a line or as CSV.

    A first line that names a column `email_address` (or `email`, `address`, `recipient`) is a heading; others that are read
    are `reason`, `kind` and `retry_after`. Lines that are no address are passed over and told.
    """
    try:
        found = addresslist.read(body)
    except addresslist.TooLong as error:
        raise RequestEntityTooLarge(f"{error}.") from None
    with state().db.transaction() as conn:
        imported = suppressions.add_many(conn, auth.organization().id, found.entries)
        changes.record(conn, "imported", "suppressions", imported, {"imported": imported, "failed": found.failed})
    errors = convert(found.faults, list[BadLine], from_attributes=True)
    return Imported(imported=imported, failed=found.failed, errors=errors)


@noun.operation("GET", PATH + "/export", auth.member(Role.read_only), media="text/csv")
def export() -> Response:
    """Download the list as CSV, as `import` takes it."""
    with state().db.transaction() as conn:
        text = addresslist.write(suppressions.export(conn, auth.organization().id))
        changes.record(conn, "exported", "suppressions", "all")
    headers = {"Content-Disposition": 'attachment; filename="suppressions.csv"'}
    return Response(text, mimetype="text/csv", headers=headers)


@noun.operation("DELETE", PATH + "/{email_address}", auth.member(Role.maintainer))
def remove(email_address: str) -> str:
    """Send to an address again."""
    try:
        key = address.parse(email_address).key
    except address.BadAddress:
        raise NotFound("This address is not suppressed.") from None
    with state().db.transaction() as conn:
        if not suppressions.remove(conn, auth.organization().id, key):
            raise NotFound("This address is not suppressed.")
        changes.record(conn, "deleted", "suppression", key)
    return key
