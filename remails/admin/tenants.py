"""Commands about who sends: organizations, their projects, and the people who act for them."""

import sys
from typing import get_args

import click

from remails import vault
from remails.admin import named, output
from remails.admin.operator import Act, connected
from remails.errors import Refused
from remails.store import organizations, plans, projects, usage, users
from remails.store.organizations import BlockStatus
from remails.store.plans import PLANS
from remails.store.rates import Rate
from remails.store.users import Role

_role = click.Choice([role.value for role in Role])
_plan = click.Choice([*PLANS])


@click.group
def organization() -> None:
    """Organizations: the tenants."""


@organization.command("list")
@output.json_option
@connected
def organization_list(act: Act, as_json: bool) -> None:
    """List all organizations."""
    own = plans.own_rates(act.conn)
    rows = [
        {
            "id": one.id,
            "name": one.name,
            "plan": one.plan,
            "used": usage.used_since(act.conn, one.id, one.quota_since),
            "quota": one.message_quota,
            "quota_reset": one.quota_reset,
            "rate": str(rate) if (rate := own.get(one.id) or plans.rate(one.plan, None, None)) else None,
            "block_status": one.block_status,
        }
        for one in organizations.list_all(act.conn)
    ]
    columns = ("id", "name", "plan", "used", "quota", "quota_reset", "rate", "block_status")
    output.show(rows, columns, as_json=as_json)


@organization.command("create")
@click.argument("name")
@click.option("--plan", type=_plan, default="unlimited", show_default=True)
@click.option("--quota", type=click.IntRange(min=0), help="Messages per month; without it those of the plan.")
@connected
def organization_create(act: Act, name: str, plan: str, quota: int | None) -> None:
    """Make an organization and print its id."""
    quota = PLANS[plan].message_quota if quota is None else quota
    made = organizations.create(act.conn, name, plan=plan, message_quota=quota)
    act.log(made.id, "created", "organization", made.id, {"name": made.name, "plan": plan, "message_quota": quota})
    click.echo(str(made.id))


@organization.command("block")
@click.argument("name", metavar="ORGANIZATION")
@click.argument("status", type=click.Choice(get_args(BlockStatus)))
@connected
def organization_block(act: Act, name: str, status: BlockStatus) -> None:
    """Block an organization, or unblock it.

    \b
    not_blocked              everything works
    no_sending               mail is taken and held
    no_sending_or_receiving  mail is refused
    full_freeze              mail is refused, and members can change nothing
    """
    found = named.organization(act.conn, name)
    organizations.set_block_status(act.conn, found.id, status)
    act.log(found.id, "updated", "organization", found.id, {"block_status": status})


def _quota(text: str) -> int | str:
    if text == "none":
        return text
    if not (text.isascii() and text.isdigit()):
        raise click.BadParameter(f"{text!r} is neither a number of messages nor `none`.")
    return int(text)


@organization.command("quota")
@click.argument("name", metavar="ORGANIZATION")
@click.argument("messages", type=_quota, metavar="MESSAGES|none")
@connected
def organization_quota(act: Act, name: str, messages: int | str) -> None:
    """Set how many messages an organization may send per month."""
    found = named.organization(act.conn, name)
    quota = messages if isinstance(messages, int) else None
    organizations.set_quota(act.conn, found.id, quota)
    act.log(found.id, "updated", "organization", found.id, {"message_quota": quota})


@organization.command("plan")
@click.argument("name", metavar="ORGANIZATION")
@click.argument("plan", type=_plan)
@connected
def organization_plan(act: Act, name: str, plan: str) -> None:
    """Give an organization a plan: its quota, and its rate where the organization has none of its own."""
    found = named.organization(act.conn, name)
    plans.set_plan(act.conn, found.id, plan)
    act.log(found.id, "updated", "organization", found.id, {"plan": plan, "message_quota": PLANS[plan].message_quota})


@organization.command("rate")
@click.argument("name", metavar="ORGANIZATION")
@click.option("--burst", type=click.IntRange(1, 2**31 - 1), help="Messages that may be sent at once.")
@click.option("--per-hour", type=click.IntRange(1, 2**31 - 1), help="Messages per hour in the long run.")
@connected
def organization_rate(act: Act, name: str, burst: int | None, per_hour: int | None) -> None:
    """Give an organization a rate of its own; without options that of its plan holds again.

    A message counts once, whatever the number of its recipients. What comes too fast is refused for the moment (451, 429).
    """
    if (burst is None) != (per_hour is None):
        raise click.UsageError("Give both --burst and --per-hour, or none of them.")
    found = named.organization(act.conn, name)
    own = Rate(burst, per_hour) if burst is not None and per_hour is not None else None
    plans.set_rate(act.conn, found.id, own)
    act.log(found.id, "updated", "organization", found.id, {"rate": str(own) if own else None})


@click.group
def project() -> None:
    """Projects of an organization."""


@project.command("list")
@click.argument("organization")
@output.json_option
@connected
def project_list(act: Act, organization: str, as_json: bool) -> None:
    """List an organization's projects."""
    rows = [
        {
            "id": one.id,
            "name": one.name,
            "retention_period_days": one.retention_period_days,
            "plaintext_fallback": one.plaintext_fallback,
            "expires_in": one.expires_in,
        }
        for one in projects.list_(act.conn, named.organization(act.conn, organization).id)
    ]
    output.show(rows, ("id", "name", "retention_period_days", "plaintext_fallback", "expires_in"), as_json=as_json)


@project.command("create")
@click.argument("organization")
@click.argument("name")
@click.option("--retention-days", type=click.IntRange(1, 365), default=7, show_default=True)
@click.option("--require-tls", is_flag=True, help="Never deliver to a server that has no TLS.")
@click.option("--expires-in", type=click.IntRange(0), default=0, help="Seconds for which its mail is tried; 0: as any.")
@connected
def project_create(
    act: Act, organization: str, name: str, retention_days: int, require_tls: bool, expires_in: int
) -> None:
    """Make a project and print its id."""
    owner = named.organization(act.conn, organization)
    values = {"retention_period_days": retention_days, "plaintext_fallback": not require_tls, "expires_in": expires_in}
    made = projects.create(
        act.conn,
        owner.id,
        name,
        retention_period_days=retention_days,
        plaintext_fallback=not require_tls,
        expires_in=expires_in,
    )
    act.log(owner.id, "created", "project", made.id, {"name": made.name, **values})
    click.echo(str(made.id))


@click.group
def user() -> None:
    """People who log in."""


@user.command("list")
@output.json_option
@connected
def user_list(act: Act, as_json: bool) -> None:
    """List all users."""
    rows = [
        {
            "id": one.id,
            "email": one.email,
            "name": one.name,
            "admin": one.is_admin,
            "blocked": one.is_blocked,
            "password": one.password_hash is not None,
        }
        for one in users.list_all(act.conn)
    ]
    output.show(rows, ("id", "email", "name", "admin", "blocked", "password"), as_json=as_json)


_password_option = click.option(
    "--password-stdin", is_flag=True, help="Read the password from standard input instead of asking for it."
)


def _read_password(from_stdin: bool) -> str:
    """Ask for a password, twice; returns its hash. It never stands on the command line, where others could see it."""
    text = sys.stdin.readline().rstrip("\r\n") if from_stdin else ""
    if not from_stdin:
        text = click.prompt("Password", hide_input=True, confirmation_prompt=True)
    if not 10 <= len(text) <= 256:
        raise Refused(554, "5.3.0", "A password has 10 to 256 characters.", status=422, field="password")
    return vault.hash_password(text)


@user.command("create")
@click.argument("email")
@click.option("--name", help="Full name; without it the email address.")
@click.option("--admin", is_flag=True, help="Make the user an admin of the whole installation.")
@_password_option
@click.option("--no-password", is_flag=True, help="Set none: the user cannot log in until one is set.")
def user_create(email: str, name: str | None, admin: bool, password_stdin: bool, no_password: bool) -> None:
    """Make a user and print the id."""
    _create_user(email, name or email, None if no_password else _read_password(password_stdin), admin)


@connected
def _create_user(act: Act, email: str, name: str, password_hash: str | None, admin: bool) -> None:
    made = users.create(act.conn, email, name, password_hash, is_admin=admin)
    act.log(None, "created", "user", made.id, {"email": made.email, "is_admin": admin})
    click.echo(str(made.id))


@user.command("password")
@click.argument("email")
@_password_option
def user_password(email: str, password_stdin: bool) -> None:
    """Set a user's password and end all sessions."""
    _set_password(email, _read_password(password_stdin))


@connected
def _set_password(act: Act, email: str, password_hash: str) -> None:
    found = named.user(act.conn, email)
    users.set_password(act.conn, found.id, password_hash)
    users.end_sessions_of(act.conn, found.id)
    act.log(None, "updated", "user", found.id, {"email": found.email, "password": "changed"})


@user.command("admin")
@click.argument("email")
@click.option("--revoke", is_flag=True, help="Take the right away.")
@connected
def user_admin(act: Act, email: str, revoke: bool) -> None:
    """Make a user an admin of the whole installation."""
    found = named.user(act.conn, email)
    users.set_admin(act.conn, found.id, not revoke)
    act.log(None, "updated", "user", found.id, {"email": found.email, "is_admin": not revoke})


@user.command("block")
@click.argument("email")
@click.option("--undo", is_flag=True, help="Unblock.")
@connected
def user_block(act: Act, email: str, undo: bool) -> None:
    """Block a user: all sessions end, and no new one begins."""
    found = named.user(act.conn, email)
    users.set_blocked(act.conn, found.id, not undo)
    act.log(None, "updated", "user", found.id, {"email": found.email, "is_blocked": not undo})


@click.group
def member() -> None:
    """Members of an organization."""


@member.command("list")
@click.argument("organization")
@output.json_option
@connected
def member_list(act: Act, organization: str, as_json: bool) -> None:
    """List an organization's members."""
    rows = [
        {"email": one.email, "name": one.name, "role": one.role.value, "since": one.created_at}
        for one in users.members(act.conn, named.organization(act.conn, organization).id)
    ]
    output.show(rows, ("email", "name", "role", "since"), as_json=as_json)


@member.command("add")
@click.argument("organization")
@click.argument("email")
@click.argument("role", type=_role)
@connected
def member_add(act: Act, organization: str, email: str, role: str) -> None:
    """Give a user a role in an organization; a member's role is changed."""
    owner, found = named.organization(act.conn, organization), named.user(act.conn, email)
    if users.role_in(act.conn, found.id, owner.id) is None:
        users.add_member(act.conn, found.id, owner.id, Role(role))
        act.log(owner.id, "created", "member", found.id, {"email": found.email, "role": role})
    else:
        users.set_role(act.conn, found.id, owner.id, Role(role))
        act.log(owner.id, "updated", "member", found.id, {"email": found.email, "role": role})


@member.command("remove")
@click.argument("organization")
@click.argument("email")
@connected
def member_remove(act: Act, organization: str, email: str) -> None:
    """End a user's membership."""
    owner, found = named.organization(act.conn, organization), named.user(act.conn, email)
    if not users.remove_member(act.conn, found.id, owner.id):
        raise Refused(550, "5.1.1", f"{found.email} is not a member.", status=404)
    act.log(owner.id, "removed", "member", found.id, {"email": found.email})
