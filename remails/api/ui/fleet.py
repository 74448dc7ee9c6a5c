"""For the admins of the installation: the sending hosts and who holds which address, and every organization."""

from collections import Counter
from typing import get_args

import flask
from flask import request
from werkzeug.wrappers import Response

from remails import guard
from remails.api import auth, changes
from remails.api.state import state
from remails.api.ui import answers
from remails.store import addresses, audit, bans, constraints, organizations, usage
from remails.store.ids import OrganizationId
from remails.store.organizations import BlockStatus

_MOST_GUESSERS = 200

blueprint = flask.Blueprint("fleet", __name__, url_prefix="/admin")


@blueprint.get("/hosts")
@auth.needs(auth.installation_admin)
def hosts_GET() -> Response:
    """The sending hosts, and the outbound addresses by pool with their leases."""
    with state().db.transaction() as conn:
        hosts = addresses.list_hosts(conn)
        dead = {host.id for host in addresses.dead_hosts(conn, state().settings.periodic.host_timeout)}
        pools, held = addresses.list_pools(conn), addresses.list_(conn)
    return answers.page(
        "fleet/_hosts.html" if answers.is_region() else "fleet/hosts.html",
        place="hosts",
        hosts=hosts,
        dead=dead,
        pools=[(pool, [one for one in held if one.pool_id == pool.id]) for pool in pools],
        held=Counter(one.lease_host for one in held),
        names={host.id: host.name for host in hosts},
        refresh="every 5s",
    )


@blueprint.get("/organizations")
@auth.needs(auth.installation_admin)
def organizations_GET() -> Response:
    """Every organization."""
    with state().db.transaction() as conn:
        everyone = organizations.list_all(conn)
        used = {one.id: usage.used_since(conn, one.id, one.quota_since) for one in everyone}
    return answers.page("fleet/organizations.html", place="organizations", everyone=everyone, used=used)


@blueprint.post("/organizations/<uuid:organization_id>/block")
@auth.needs(auth.installation_admin)
def block_POST(organization_id: OrganizationId) -> Response:
    """Block an organization in some degree, or not at all."""
    status: BlockStatus = _block_status()
    with state().db.transaction() as conn:
        answers.found(organizations.set_block_status(conn, organization_id, status) or None)
        changes.record(conn, "updated", "organization", organization_id, {"block_status": status})
    return answers.go(".organizations_GET", "saved")


@blueprint.get("/bans")
@auth.needs(auth.installation_admin)
def bans_GET() -> Response:
    """The networks that are banned for guessing, who guesses, and at which accounts."""
    guessers = state().db.run(bans.list_, guard.limit_of(state().settings.bans), _MOST_GUESSERS)
    return answers.page("fleet/bans.html", place="bans", guessers=guessers)


@blueprint.post("/bans/lift")
@auth.needs(auth.installation_admin)
def lift_POST() -> Response:
    """Lift a ban, and forget the network's guesses."""
    network = request.form.get("network", "").replace("\0", "")
    with state().db.transaction() as conn:
        answers.found(bans.lift(conn, network) or None)
        audit.record(conn, auth.actor().audit, None, "removed", "ban", network, {})
    return answers.go(".bans_GET", "removed")


def _block_status() -> BlockStatus:
    for status in get_args(BlockStatus):
        if status == request.form.get("block_status"):
            chosen: BlockStatus = status
            return chosen
    raise constraints.invalid("Choose a block status.", "block_status")
