"""Commands about outbound addresses: who holds which, why, and who shall."""

from datetime import UTC, datetime

import click

from remails.admin import named, output
from remails.admin.operator import Act, connected
from remails.errors import Refused
from remails.ipagent import placement
from remails.store import addresses as store
from remails.store.addresses import Address, Host
from remails.store.ids import HostId


@click.command
@output.json_option
@connected
def addresses(act: Act, as_json: bool) -> None:
    """All outbound addresses at a glance: pool, who sends from it, state, holder, for how long the lease runs yet."""
    pools = {one.id: one.name for one in store.list_pools(act.conn)}
    default = store.default_pool(act.conn)
    users, hosts = store.users_of_pools(act.conn), _names(act)
    now = datetime.now(UTC)
    rows = [
        {
            "pool": pools[one.pool_id],
            "used_by": [
                *(["everybody else"] if default and default.id == one.pool_id else []),
                *users.get(one.pool_id, []),
            ],
            "ip": one.ip,
            "ptr_name": one.ptr_name,
            "state": one.state if one.is_enabled else f"{one.state}, disabled",
            "host": hosts.get(one.lease_host),
            "lease": f"{(one.lease_until - now).total_seconds():.0f} s" if one.lease_until else None,
            "next": hosts.get(one.next_host),
            "last_error": one.last_error,
        }
        for one in sorted(store.list_(act.conn), key=lambda one: pools[one.pool_id])
    ]
    columns = ("pool", "used_by", "ip", "ptr_name", "state", "host", "lease", "next", "last_error")
    output.show(rows, columns, as_json=as_json)


@click.group
def address() -> None:
    """Outbound addresses."""


def _names(act: Act) -> dict[HostId | None, str]:
    return {one.id: one.name for one in store.list_hosts(act.conn)}


@address.command("list")
@output.json_option
@connected
def address_list(act: Act, as_json: bool) -> None:
    """List all outbound addresses and who holds them."""
    pools = {one.id: one.name for one in store.list_pools(act.conn)}
    hosts = _names(act)
    rows = [_row(one, pools[one.pool_id], hosts) for one in store.list_(act.conn)]
    columns = (
        *("ip", "pool", "enabled", "state", "host", "lease_until"),
        *("ptr_name", "provider", "zone", "last_error"),
    )
    output.show(rows, columns, as_json=as_json)


def _row(one: Address, pool: str, hosts: dict[HostId | None, str]) -> dict[str, object]:
    return {
        "ip": one.ip,
        "pool": pool,
        "enabled": one.is_enabled,
        "state": one.state,
        "host": hosts.get(one.lease_host),
        "lease_until": one.lease_until,
        "ptr_name": one.ptr_name,
        "provider": one.provider,
        "zone": one.zone,
        "last_error": one.last_error,
    }


@address.command("show")
@click.argument("ip")
@click.option("--limit", type=click.IntRange(1, 10000), default=20, show_default=True, help="How many events.")
@output.json_option
@connected
def address_show(act: Act, ip: str, limit: int, as_json: bool) -> None:
    """Show an address, which hosts refuse it and why, and what happened to it, the latest first."""
    one, hosts = named.address(act.conn, ip), _names(act)
    pools = {pool.id: pool.name for pool in store.list_pools(act.conn)}
    about = _row(one, pools[one.pool_id], hosts) | {
        "epoch": one.lease_epoch,
        "since": one.updated_at,
        "source": one.source,
        "provider_ref": one.provider_ref,
        "preferred_host": hosts.get(one.preferred_host),
        "next_host": hosts.get(one.next_host),
        "not_before": one.no_claim_before,
    }
    refused = [
        {"host": refusal.host, "until": refusal.until, "firm": refusal.is_firm, "reason": refusal.reason}
        for refusal in store.refusals(act.conn)
        if refusal.ip == one.ip
    ]
    events = [
        {"at": event.at, "epoch": event.epoch, "host": event.host, "kind": event.kind, "detail": event.detail}
        for event in store.events(act.conn, ip, limit)
    ]
    if as_json:
        output.pairs(about | {"refused_by": refused, "events": events}, as_json=True)
        return
    output.pairs(about, as_json=False)
    for rows in (refused, events):
        if rows:
            click.echo("\n" + output.table(rows, tuple(rows[0])))


@address.command("add")
@click.argument("ip")
@click.option("--pool", "pool_name", required=True)
@click.option("--ptr-name", required=True, help="Its reverse name, which is also what it says in EHLO.")
@click.option("--provider", default="static", show_default=True)
@click.option("--zone", default="")
@click.option("--provider-ref", default="", help="The provider's id of the address.")
@click.option("--bind-ip", help="What a socket is bound to, if not the address itself (NAT).")
@click.option("--preferred-host", help="The host that holds it while it lives.")
@connected
def address_add(
    act: Act,
    ip: str,
    pool_name: str,
    ptr_name: str,
    provider: str,
    zone: str,
    provider_ref: str,
    bind_ip: str | None,
    preferred_host: str | None,
) -> None:
    """Add an outbound address to a pool."""
    try:
        made = store.add(
            act.conn,
            ip,
            named.pool(act.conn, pool_name).id,
            provider,
            ptr_name,
            bind_ip=bind_ip,
            zone=zone,
            provider_ref=provider_ref,
            preferred_host=named.host(act.conn, preferred_host).id if preferred_host else None,
        )
    except ValueError as error:
        raise Refused(554, "5.3.0", f"This is not an IP address: {error}.", status=422, field="ip") from None
    act.log(None, "created", "address", made.ip, {"pool": pool_name, "ptr_name": made.ptr_name})


@address.command("enable")
@click.argument("ip")
@connected
def address_enable(act: Act, ip: str) -> None:
    """Let an address be used again."""
    _switch(act, ip, on=True)


@address.command("disable")
@click.argument("ip")
@connected
def address_disable(act: Act, ip: str) -> None:
    """Take an address out of use: no new mail, and its host gives it back. Waiting mail moves within its pool."""
    _switch(act, ip, on=False)


def _switch(act: Act, ip: str, *, on: bool) -> None:
    named.address(act.conn, ip)
    if store.enable(act.conn, ip) if on else store.disable(act.conn, ip):
        act.log(None, "updated", "address", ip, {"is_enabled": on})


@address.command("rename")
@click.argument("ip")
@click.argument("ptr_name", metavar="NAME")
@connected
def address_rename(act: Act, ip: str, ptr_name: str) -> None:
    """Give an address another reverse and EHLO name; its holder publishes it where the provider has that in its API."""
    one = named.address(act.conn, ip)
    if store.rename(act.conn, ip, ptr_name):
        act.log(None, "updated", "address", one.ip, {"ptr_name": ptr_name})


@address.command("prefer")
@click.argument("ip")
@click.argument("name", metavar="HOST|none")
@connected
def address_prefer(act: Act, ip: str, name: str) -> None:
    """Say which host holds an address while it lives; the next time it is free, or with `rebalance`."""
    one = named.address(act.conn, ip)
    store.prefer(act.conn, ip, None if name == "none" else named.host(act.conn, name).id)
    act.log(None, "updated", "address", one.ip, {"preferred_host": name})


@address.command("retry")
@click.argument("ip")
@connected
def address_retry(act: Act, ip: str) -> None:
    """Forget what kept hosts from an address, after the cause was mended: it is tried again within a minute."""
    one = named.address(act.conn, ip)
    store.retry(act.conn, ip)
    act.log(None, "updated", "address", one.ip, {"retry": True})


@address.command("move")
@click.argument("ip")
@click.argument("name", metavar="HOST")
@connected
def address_move(act: Act, ip: str, name: str) -> None:
    """Move an address to a host: its holder gives it back as soon as nothing is sent from it."""
    one, target = named.address(act.conn, ip), named.host(act.conn, name)
    if reason := _obstacle(act, one, target):
        raise Refused(554, "5.3.0", reason, status=409)
    store.ask_for(act.conn, ip, target.id)
    act.log(None, "updated", "address", one.ip, {"host": name})


def _obstacle(act: Act, one: Address, target: Host) -> str:
    """Why a host cannot have an address; empty when it can."""
    if not one.is_enabled:
        return f"{one.ip} is disabled."
    if one.lease_host == target.id:
        return f"{target.name} holds {one.ip} already."
    if (one.provider, one.zone) != (target.provider, target.zone):
        return f"{one.ip} is of {one.provider} {one.zone}, but {target.name} is at {target.provider} {target.zone}."
    if target not in _alive(act):
        return f"{target.name} does not run, or is to hold no addresses."
    held = sum(target.id in (other.lease_host, other.next_host) for other in store.list_(act.conn))
    if held >= target.max_addresses:
        return f"{target.name} has no room: it holds {held} addresses, of {target.max_addresses} at most."
    return ""


def _alive(act: Act) -> list[Host]:
    dead = {one.id for one in store.dead_hosts(act.conn, act.settings.periodic.host_timeout)}
    return [
        one
        for one in store.list_hosts(act.conn)
        if one.desired_state == "active" and one.heartbeat_at is not None and one.id not in dead
    ]


@address.command("rebalance")
@click.option("--dry-run", is_flag=True, help="Print the moves, and make none.")
@output.json_option
@connected
def address_rebalance(act: Act, dry_run: bool, as_json: bool) -> None:
    """Bring addresses to their preferred hosts, and even out how many each host holds, with the fewest moves."""
    moves = placement.plan(_alive(act), [one for one in store.list_(act.conn) if one.is_enabled])
    for move in moves if not dry_run else []:
        store.ask_for(act.conn, move.ip, move.target.id)
        act.log(None, "updated", "address", move.ip, {"host": move.target.name})
    rows = [{"ip": move.ip, "from": move.source.name, "to": move.target.name} for move in moves]
    if rows or as_json:
        output.show(rows, ("ip", "from", "to"), as_json=as_json)
    else:
        click.echo("Nothing to move.")
