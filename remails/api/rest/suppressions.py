"""The suppression list."""

from datetime import datetime
from typing import Annotated

from msgspec import Meta, Struct
from werkzeug.exceptions import NotFound

from remails.api import auth, changes
from remails.api.operations import Noun, link_next, read_address
from remails.api.state import state
from remails.mail import address
from remails.store import suppressions
from remails.store.users import Role

noun = Noun(
    "Suppression list",
    "Addresses the organization does not send to: after five permanent failures in a row, or because somebody said so.",
)

PATH = "/organizations/{organization_id}/emails/suppressed"


class Suppressed(Struct, kw_only=True):
    """An address that gets no emails."""

    email_address: str
    retry_after: Annotated[datetime | None, Meta(description="When it is tried again; null is never.")]
    reason: str
    failures: int
    created_at: datetime


class NewSuppressed(Struct, kw_only=True, forbid_unknown_fields=True):
    """An address to suppress until it is removed."""

    email_address: Annotated[str, Meta(max_length=320)]
    reason: Annotated[str, Meta(max_length=500)] = ""


class SuppressedQuery(Struct, kw_only=True, forbid_unknown_fields=True):
    """Which part of the list."""

    limit: Annotated[int, Meta(ge=1, le=1000)] = 1000
    after: Annotated[str, Meta(description="Only addresses that come after this one.")] = ""


@noun.operation("GET", PATH, auth.member(Role.read_only))
def list_(*, query: SuppressedQuery) -> list[Suppressed]:
    """List the suppressed addresses, in order; the header `Link` names the next page."""
    with state().db.transaction() as conn:
        rows = suppressions.list_(conn, auth.organization().id, after=query.after, limit=query.limit)
    if len(rows) == query.limit:
        link_next(after=rows[-1].address)
    return [
        Suppressed(
            email_address=row.address,
            retry_after=row.suppressed_until,
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
        suppressions.add(conn, auth.organization().id, key, body.reason)
        changes.record(conn, "created", "suppression", key, body)
    return NewSuppressed(email_address=key, reason=body.reason)


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
