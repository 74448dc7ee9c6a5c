"""Commands about clients that guess at passwords."""

import click

from remails import guard
from remails.admin import output
from remails.admin.operator import Act, connected
from remails.errors import Refused
from remails.store import bans as store


@click.group
def bans() -> None:
    """Bans: client networks that guess at passwords."""


@bans.command("list")
@click.option("--limit", type=click.IntRange(min=1), default=100, show_default=True, help="Most rows.")
@output.json_option
@connected
def bans_list(act: Act, limit: int, as_json: bool) -> None:
    """List the networks that are banned, then who guesses and which accounts are guessed at.

    GUESSES is what has not leaked away yet, BANS how often a network was banned lately. An account is never banned, its guessers are.
    """
    rows = [
        {
            "kind": one.kind,
            "name": one.name,
            "banned_until": one.banned_until,
            "guesses": round(one.guesses, 1),
            "bans": one.bans,
            "service": one.service,
            "last_seen": one.counted_at,
        }
        for one in store.list_(act.conn, guard.limit_of(act.settings.bans), limit)
    ]
    output.show(rows, ("kind", "name", "banned_until", "guesses", "bans", "service", "last_seen"), as_json=as_json)


@bans.command("lift")
@click.argument("address")
@connected
def bans_lift(act: Act, address: str) -> None:
    """Lift the ban of a client's address, and forget its guesses. Services hear of it within seconds."""
    network = guard.network_of(address.partition("/")[0])
    if not store.lift(act.conn, network):
        raise Refused(550, "5.1.1", f"{network} is not banned and has not guessed.", status=404)
    act.log(None, "removed", "ban", network)
