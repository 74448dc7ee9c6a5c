"""`remails queue`: what waits to leave, and for how long."""

from dataclasses import asdict

import click

from remails.admin import output
from remails.admin.operator import Act, connected
from remails.store import queue as deliveries


@click.command
@output.json_option
@connected
def queue(act: Act, as_json: bool) -> None:
    """Show what waits to leave, by pool and address.

    `due` should be under way by now and is not, `overdue` is for how many seconds; more than a few mean that nobody sends
    from that address, see `remails address list`.
    """
    rows = [asdict(row) | {"overdue": round(row.overdue)} for row in deliveries.waiting(act.conn)]
    output.show(rows, ("pool", "source", "waiting", "due", "in_hand", "overdue"), as_json=as_json)
