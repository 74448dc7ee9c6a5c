"""Commands about where mail leaves from: pools, outbound addresses and the hosts that send."""

from typing import get_args

import click

from remails.admin import named, output
from remails.admin.operator import Act, connected
from remails.errors import Refused
from remails.store import addresses, sources
from remails.store.addresses import HostState


@click.group
def pool() -> None:
    """Pools: outbound addresses with one reputation."""


@pool.command("list")
@output.json_option
@connected
def pool_list(act: Act, as_json: bool) -> None:
    """List all pools and how many of their addresses are ready."""
    found = addresses.list_pools(act.conn)
    inside = sources.in_pools(act.conn, [one.id for one in found])
    rows = [
        {
            "id": one.id,
            "name": one.name,
            "default": one.is_default,
            "addresses": len(inside[one.id]),
            "ready": sum(address.ready for address in inside[one.id]),
        }
        for one in found
    ]
    output.show(rows, ("id", "name", "default", "addresses", "ready"), as_json=as_json)


@pool.command("create")
@click.argument("name")
@click.option("--default", "is_default", is_flag=True, help="Mail leaves from it where no other pool is assigned.")
@connected
def pool_create(act: Act, name: str, is_default: bool) -> None:
    """Make a pool and print its id."""
    made = addresses.create_pool(act.conn, name, is_default=is_default)
    act.log(None, "created", "pool", made.id, {"name": name, "is_default": is_default})
    click.echo(str(made.id))


@pool.command("default")
@click.argument("name")
@connected
def pool_default(act: Act, name: str) -> None:
    """Let mail leave from this pool where no other is assigned; messages that were taken before stay in theirs."""
    chosen = named.pool(act.conn, name)
    addresses.set_default_pool(act.conn, chosen.id)
    act.log(None, "updated", "pool", chosen.id, {"is_default": True})
    click.echo(f"{name} is the default now.")


@pool.command("assign")
@click.argument("name", metavar="POOL|none")
@click.argument("organization")
@click.option("--project", help="Only for this project.")
@click.option("--domain", help="Only for mail from this domain.")
@connected
def pool_assign(act: Act, name: str, organization: str, project: str | None, domain: str | None) -> None:
    """Let an organization, or one of its projects or domains, send from a pool.

    The pool of the domain goes first, then that of the project, of the organization, and the default. Messages that were
    taken before stay in the pool they were given.
    """
    owner = named.organization(act.conn, organization)
    chosen = None if name == "none" else named.pool(act.conn, name).id
    details = {"pool": name}
    if project is not None:
        target = named.project(act.conn, owner.id, project).id
        addresses.assign_pool(act.conn, chosen, project_id=target)
        act.log(owner.id, "updated", "project", target, details)
    if domain is not None:
        found = named.domain(act.conn, owner.id, domain).id
        addresses.assign_pool(act.conn, chosen, domain_id=found)
        act.log(owner.id, "updated", "domain", found, details)
    if project is None and domain is None:
        addresses.assign_pool(act.conn, chosen, organization_id=owner.id)
        act.log(owner.id, "updated", "organization", owner.id, details)


@click.group
def address() -> None:
    """Outbound addresses."""


@address.command("list")
@output.json_option
@connected
def address_list(act: Act, as_json: bool) -> None:
    """List all outbound addresses and who holds them."""
    pools = {one.id: one.name for one in addresses.list_pools(act.conn)}
    hosts = {one.id: one.name for one in addresses.list_hosts(act.conn)}
    rows = [
        {
            "ip": one.ip,
            "pool": pools[one.pool_id],
            "enabled": one.is_enabled,
            "state": one.state,
            "host": hosts.get(one.lease_host) if one.lease_host else None,
            "lease_until": one.lease_until,
            "ptr_name": one.ptr_name,
            "provider": one.provider,
            "zone": one.zone,
            "last_error": one.last_error,
        }
        for one in addresses.list_(act.conn)
    ]
    columns = (
        *("ip", "pool", "enabled", "state", "host", "lease_until"),
        *("ptr_name", "provider", "zone", "last_error"),
    )
    output.show(rows, columns, as_json=as_json)


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
        made = addresses.add(
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
    if ip not in {one.ip for one in addresses.list_(act.conn)}:
        raise Refused(550, "5.1.1", f"There is no outbound address {ip!r}.", status=404)
    if addresses.enable(act.conn, ip) if on else addresses.disable(act.conn, ip):
        act.log(None, "updated", "address", ip, {"is_enabled": on})


@click.group
def host() -> None:
    """Hosts that send."""


@host.command("list")
@output.json_option
@connected
def host_list(act: Act, as_json: bool) -> None:
    """List all sending hosts."""
    held = [one.lease_host for one in addresses.list_(act.conn)]
    rows = [
        {
            "name": one.name,
            "state": one.desired_state,
            "addresses": held.count(one.id),
            "max": one.max_addresses,
            "provider": one.provider,
            "zone": one.zone,
            "version": one.agent_version,
            "heartbeat_at": one.heartbeat_at,
        }
        for one in addresses.list_hosts(act.conn)
    ]
    columns = ("name", "state", "addresses", "max", "provider", "zone", "version", "heartbeat_at")
    output.show(rows, columns, as_json=as_json)


@host.command("set")
@click.argument("name", metavar="HOST")
@click.argument("state", type=click.Choice(get_args(HostState)))
@connected
def host_set(act: Act, name: str, state: HostState) -> None:
    """Say what a host shall do: hold addresses, or give them all back (for a while, or for good)."""
    found = named.host(act.conn, name)
    addresses.desire(act.conn, found.id, state)
    act.log(None, "updated", "host", found.id, {"name": name, "state": state})
