"""`remails suppression`: the addresses that an organization does not send to."""

from datetime import UTC, datetime
from typing import TextIO

import click

from remails.admin import named, output
from remails.admin.operator import Act, connected
from remails.errors import Refused
from remails.mail import address, addresslist
from remails.mail.addresslist import Entry
from remails.store import suppressions


@click.group
def suppression() -> None:
    """Addresses that an organization does not send to."""


@suppression.command("list")
@click.argument("organization")
@click.option("--search", default="", help="Only those with this in the address.")
@click.option("--limit", type=click.IntRange(1, 100_000), default=1000, show_default=True)
@output.json_option
@connected
def suppression_list(act: Act, organization: str, search: str, limit: int, as_json: bool) -> None:
    """List them, by address."""
    owner = named.organization(act.conn, organization)
    rows = [
        {
            "address": one.address,
            "kind": one.kind,
            "until": one.suppressed_until,
            "since": one.updated_at,
            "reason": one.reason,
        }
        for one in suppressions.list_(act.conn, owner.id, search=search, limit=limit)
    ]
    output.show(rows, ("address", "kind", "until", "since", "reason"), as_json=as_json)


@suppression.command("add")
@click.argument("organization")
@click.argument("address_", metavar="ADDRESS")
@click.option("--reason", default="")
@click.option("--until", type=click.DateTime(["%Y-%m-%d", "%Y-%m-%dT%H:%M:%SZ"]), help="In UTC; for good without it.")
@connected
def suppression_add(act: Act, organization: str, address_: str, reason: str, until: datetime | None) -> None:
    """Suppress an address."""
    owner = named.organization(act.conn, organization)
    key, end = _key(address_), until.replace(tzinfo=UTC) if until else None
    suppressions.add_many(act.conn, owner.id, [Entry(key, reason[:500], until=end)])
    act.log(owner.id, "created", "suppression", key, {"reason": reason})


@suppression.command("remove")
@click.argument("organization")
@click.argument("address_", metavar="ADDRESS")
@connected
def suppression_remove(act: Act, organization: str, address_: str) -> None:
    """Send to an address again."""
    owner, key = named.organization(act.conn, organization), _key(address_)
    if not suppressions.remove(act.conn, owner.id, key):
        raise Refused(550, "5.1.1", f"{key} is not suppressed.", status=404)
    act.log(owner.id, "deleted", "suppression", key)


@suppression.command("import")
@click.argument("organization")
@click.argument("file", type=click.File("r", encoding="utf-8-sig"))
@connected
def suppression_import(act: Act, organization: str, file: TextIO) -> None:
    """Suppress a list from a file (- is standard input): one address to a line, or CSV.

    Lines that are no address are told and passed over.
    """
    owner = named.organization(act.conn, organization)
    try:
        found = addresslist.read(file.read(addresslist.MOST_BYTES + 1)[: addresslist.MOST_BYTES])
    except addresslist.TooLong as error:
        raise Refused(552, "5.3.4", f"{error}.", status=413) from None
    except UnicodeDecodeError:
        raise Refused(554, "5.6.0", "The file is not UTF-8.", status=400) from None
    imported = suppressions.add_many(act.conn, owner.id, found.entries)
    act.log(owner.id, "imported", "suppressions", imported, {"imported": imported, "failed": found.failed})
    for fault in found.faults:
        click.echo(f"line {fault.line}: {output.cell(fault.text)}: {fault.error}", err=True)
    click.echo(f"{imported} imported, {found.failed} lines passed over.")


@suppression.command("export")
@click.argument("organization")
@connected
def suppression_export(act: Act, organization: str) -> None:
    """Print the list as CSV, as `import` takes it."""
    owner = named.organization(act.conn, organization)
    click.echo(addresslist.write(suppressions.export(act.conn, owner.id)), nl=False)
    act.log(owner.id, "exported", "suppressions", "all")


def _key(text: str) -> str:
    try:
        return address.parse(text.strip()).key
    except address.BadAddress as error:
        raise Refused(501, "5.1.3", f"This is no address: {error}.", status=422) from None
