"""How answers look: an aligned table for people, `--json` for programs; the same columns in both."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import click
import msgspec

Row = Mapping[str, Any]

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def show(rows: Iterable[Row], columns: Sequence[str], *, as_json: bool) -> None:
    """Print rows of the same columns."""
    found = list(rows)
    click.echo(_json([{name: row[name] for name in columns} for row in found]) if as_json else table(found, columns))


def table(rows: Sequence[Row], columns: Sequence[str]) -> str:
    """Columns as wide as what stands in them; headings in capitals."""
    lines = [[name.upper().replace("_", " ") for name in columns]]
    lines += [[cell(row[name]) for name in columns] for row in rows]
    widths = [max(len(line[index]) for line in lines) for index in range(len(columns))]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def pairs(row: Row, *, as_json: bool) -> None:
    """Print one thing, a line for each of its properties."""
    if as_json:
        click.echo(_json(dict(row)))
        return
    width = max(map(len, row))
    for name, value in row.items():
        click.echo(f"{name.replace('_', ' '):{width}}  {cell(value)}")


def cell(value: object) -> str:
    """One value in words. A customer's text cannot send control sequences to the operator's terminal."""
    match value:
        case None | "":
            return "-"
        case bool():
            return "yes" if value else "no"
        case datetime():
            return value.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        case list() | tuple():
            return ", ".join(map(cell, value)) or "-"
        case _:
            return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(value))


def _json(value: object) -> str:
    return msgspec.json.format(msgspec.json.encode(value), indent=2).decode()
