"""Commands about pools of outbound addresses, and about the hosts that send."""

from typing import get_args

import click

from remails.admin import named, output
from remails.admin.operator import Act, connected
from remails.store import addresses, sources
from remails.store.addresses import HostState


@click.group
def pool() -> None:
    """Pools: outbound addresses with one reputation."""


@pool.command("list")
@output.json_option
@connected
def pool_list(act: Act, as_json: bool) -> None:
    """List all pools, how many of their addresses are ready, and to whom they are assigned."""
    found, users = addresses.list_pools(act.conn), addresses.users_of_pools(act.conn)
    inside = sources.in_pools(act.conn, [one.id for one in found])
    rows = [
        {
            "id": one.id,
            "name": one.name,
            "default": one.is_default,
            "addresses": len(inside[one.id]),
            "ready": sum(address.ready for address in inside[one.id]),
            "used_by": users.get(one.id, []),
        }
        for one in found
    ]
    output.show(rows, ("id", "name", "default", "addresses", "ready", "used_by"), as_json=as_json)


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
    _desire(act, name, state)


@host.command("drain")
@click.argument("name", metavar="HOST")
@connected
def host_drain(act: Act, name: str) -> None:
    """Let a host give its addresses back, each as soon as nothing is sent from it; others take them."""
    _desire(act, name, "drain")


@host.command("undrain")
@click.argument("name", metavar="HOST")
@connected
def host_undrain(act: Act, name: str) -> None:
    """Let a host hold addresses again. What went elsewhere stays there: see `remails address rebalance`."""
    _desire(act, name, "active")


def _desire(act: Act, name: str, state: HostState) -> None:
    found = named.host(act.conn, name)
    addresses.desire(act.conn, found.id, state)
    act.log(None, "updated", "host", found.id, {"name": name, "state": state})
