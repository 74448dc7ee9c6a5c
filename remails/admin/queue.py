"""`remails queue`: what waits to leave, for how long and why, and what can be done about it at night."""

import functools
import ipaddress
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from datetime import timedelta
from typing import Any, get_args
from uuid import UUID

import click

from remails.admin import named, output
from remails.admin.operator import Act, connected
from remails.errors import Refused
from remails.mail import address
from remails.store import backlog, holds, organizations
from remails.store import queue as deliveries
from remails.store.backlog import AGES, STATES, Group, Only
from remails.store.ids import DeliveryId, MessageId

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_COLUMNS = [str(minutes) for minutes in AGES] + [f"{AGES[-1]}+"]


class _Span(click.ParamType[timedelta]):
    """A length of time: 30m, 2h, 1d."""

    name = "30m|2h|1d"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        text = str(value)
        if text[-1:] in _UNITS and text[:-1].isdigit() and len(text) < 8:
            return timedelta(seconds=int(text[:-1]) * _UNITS[text[-1]])
        return self.fail("give a number and s, m, h or d, as in 30m", param, ctx)


@dataclass(frozen=True, slots=True)
class Filters:
    """Which part of the queue, as it was typed."""

    destination: str | None = None
    organization: str | None = None
    message_id: UUID | None = None
    source: str | None = None
    state: str | None = None
    older_than: timedelta | None = None
    reply: str | None = None

    def only(self, act: Act) -> Only:
        """As the store knows it. Raises Refused for what there is not."""
        owner = named.organization(act.conn, self.organization) if self.organization else None
        return Only(
            domain=_domain(self.destination) if self.destination else None,
            organization_id=owner.id if owner else None,
            message_id=MessageId(self.message_id) if self.message_id else None,
            source=self.source and _ip(self.source),
            state=next((state for state in STATES if state == (self.state or "").replace("-", "_")), None),
            older_than=self.older_than,
            reply=self.reply,
        )


def _filtered(command: Callable[..., None]) -> Callable[..., None]:
    """The options that say which part of the queue; the command gets them as its last argument."""

    @functools.wraps(command)
    def run(*args: Any, **options: Any) -> None:
        given = {field.name: options.pop(field.name) for field in fields(Filters)}
        command(*args, **options, filters=Filters(**given))

    for option in (
        click.option("--reply", metavar="TEXT", help="Those whose last reply contains this."),
        click.option("--older-than", type=_Span(), help="Those taken so long ago or longer."),
        click.option(
            "--state", type=click.Choice([state.replace("_", "-") for state in STATES]), help="Why they wait."
        ),
        click.option("--address", "source", metavar="IP", help="Those that leave from this outbound address."),
        click.option("--message", "message_id", metavar="ID", type=click.UUID, help="Those of this message."),
        click.option("--organization", metavar="NAME|ID", help="Those of this organization."),
        click.option("--destination", metavar="DOMAIN", help="Those to recipients in this domain."),
    ):
        run = option(run)
    return run


def _domain(text: str) -> str:
    try:
        return address.normalise_domain(text)
    except address.BadAddress as error:
        raise Refused(501, "5.1.3", f"This is no domain: {error}.", status=422) from None


def _ip(text: str) -> str:
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        raise Refused(501, "5.1.3", f"{text} is no IP address.", status=422) from None


@click.group(invoke_without_command=True)
@click.option(
    "--by",
    "key",
    type=click.Choice(get_args(backlog.Key)),
    default="domain",
    show_default=True,
    help="What makes a line: the recipients' domain, the server that was tried last, the organization, our address.",
)
@click.option(
    "--limit", type=click.IntRange(1, 100_000), default=50, show_default=True, help="Lines, the longest first."
)
@output.json_option
@_filtered
@click.pass_context
def queue(ctx: click.Context, key: backlog.Key, limit: int, as_json: bool, filters: Filters) -> None:
    """Show what waits to leave by destination: how many, for how long, and why.

    The numbers in the heading are minutes: how many were taken less than so long ago, and not less than the number before.
    WAITS counts the reasons, WHY has the most frequent one in words; docs/delivery.md explains them.
    """
    if ctx.invoked_subcommand is None:
        _show(key, limit, as_json, filters)
    elif filters != Filters():
        raise click.UsageError("Say which part of the queue after the command, not before it.")


@connected
def _show(act: Act, key: backlog.Key, limit: int, as_json: bool, filters: Filters) -> None:
    found = backlog.groups(act.conn, key, filters.only(act), limit=limit)
    if key == "organization":
        names = {str(one.id): one.name for one in organizations.list_all(act.conn)}
        found = [replace(one, name=names.get(one.name or "", one.name)) for one in found]
    if as_json:
        rows = [asdict(one) | {"ages": dict(zip(_COLUMNS, one.ages, strict=True))} for one in found]
        output.show(rows, ("name", "total", "ages", "states", "oldest", "next_attempt_at", "why"), as_json=True)
    else:
        output.show(map(_line, found), ("name", "total", *_COLUMNS, "waits", "next", "why"), as_json=False)


def _line(one: Group) -> dict[str, Any]:
    waits = [f"{one.states[state]} {state.replace('_', ' ')}" for state in STATES if one.states.get(state)]
    ages = dict(zip(_COLUMNS, one.ages, strict=True))
    return {
        "name": one.name,
        "total": one.total,
        **ages,
        "waits": waits,
        "next": one.next_attempt_at,
        "why": (one.why or "")[:120],
    }


@queue.command("addresses")
@output.json_option
@connected
def queue_addresses(act: Act, as_json: bool) -> None:
    """Show what waits to leave by pool and address.

    `due` should be under way by now and is not, `overdue` is for how many seconds; more than a few mean that nobody sends
    from that address, see `remails address list`.
    """
    rows = [asdict(row) | {"overdue": round(row.overdue)} for row in deliveries.waiting(act.conn)]
    output.show(rows, ("pool", "source", "waiting", "due", "in_hand", "overdue"), as_json=as_json)


@queue.command("list")
@click.option("--limit", type=click.IntRange(1, 100_000), default=100, show_default=True)
@output.json_option
@_filtered
@connected
def queue_list(act: Act, limit: int, as_json: bool, filters: Filters) -> None:
    """List what waits, recipient by recipient, the oldest first."""
    rows = [asdict(one) for one in backlog.list_(act.conn, filters.only(act), limit=limit)]
    columns = ("message_id", "recipient", "since", "state", "attempts", "next_attempt_at", "source", "mx_host", "why")
    output.show(rows, ("id", "organization_id", *columns) if as_json else columns, as_json=as_json)


def _change(act: Act, action: str, filters: Filters, change: Callable[[list[DeliveryId]], int], *, all_: bool) -> None:
    """Do something to a part of the queue, and say to how many."""
    if filters == Filters() and not all_:
        raise click.UsageError("Say which part of the queue, or --all.")
    only = filters.only(act)
    changed = change(backlog.ids(act.conn, only))
    given = {name: str(value) for name, value in asdict(filters).items() if value is not None}
    act.log(
        only.organization_id, action, "queue", "all" if all_ and not given else "part", given | {"recipients": changed}
    )
    click.echo(f"{changed} recipients.")


_all = click.option("--all", "all_", is_flag=True, help="The whole queue.")
_because = click.option("--because", default="", metavar="SENTENCE", help="Why; senders see it.")


@queue.command("retry")
@_all
@_filtered
@connected
def queue_retry(act: Act, all_: bool, filters: Filters) -> None:
    """Try a part of the queue now, whenever it would have been its time."""
    _change(act, "retried", filters, functools.partial(backlog.retry, act.conn), all_=all_)


@queue.command("cancel")
@_all
@_because
@_filtered
@connected
def queue_cancel(act: Act, all_: bool, because: str, filters: Filters) -> None:
    """Give up a part of the queue, held or not: it fails. What a host has in hand is left alone."""
    why = f"The operator gave it up. {because}".strip()
    _change(act, "cancelled", filters, lambda ids: backlog.cancel(act.conn, ids, why), all_=all_)


@queue.command("hold")
@_all
@_because
@_filtered
@connected
def queue_hold(act: Act, all_: bool, because: str, filters: Filters) -> None:
    """Keep a part of the queue back until `remails queue release`. What comes in later is not held."""
    why = f"The operator holds it back. {because}".strip()
    _change(act, "held", filters, lambda ids: holds.hold(act.conn, ids, why), all_=all_)


@queue.command("restored")
@connected
def queue_restored(act: Act) -> None:
    """Keep back what may have been sent since the moment that the database was brought back to.

    playbooks/restore.yml does it before any service runs. What is only due later nobody can have tried, so it is left.
    """
    why = "The database was brought back to an earlier moment: the message may have been delivered since."
    held = holds.hold_restored(act.conn, why)
    act.log(None, "held", "queue", "restored", {"recipients": held})
    click.echo(f"{held} recipients.")


@queue.command("release")
@_all
@_filtered
@connected
def queue_release(act: Act, all_: bool, filters: Filters) -> None:
    """Let go of what `remails queue hold` keeps back; it is tried at once."""
    _change(act, "released", filters, functools.partial(holds.release, act.conn), all_=all_)
