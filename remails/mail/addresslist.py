"""Lists of addresses to suppress, as text: one to a line, or CSV as other services export it, and ours.

    text --> read --> entries, and the lines that are none, each with its number and what is wrong
    rows --> write --> CSV, which `read` understands

A first line with a column for the address (`email_address`, `email`, `address`, `recipient`) names the columns; others that are known:
`reason`, `kind`, and `retry_after` (RFC 3339) for the end. Without it the first column is the address and the second the reason.
"""

import csv
import io
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal, get_args

from remails.mail import address
from remails.mail.reply import printable

MOST_LINES = 100_000
MOST_BYTES = 8_000_000
MOST_FAULTS = 100
_LONGEST_REASON = 500

COLUMNS = ("email_address", "kind", "reason", "retry_after", "created_at")
Kind = Literal["bounce", "complaint", "manual"]
KINDS: dict[str, Kind] = {kind: kind for kind in get_args(Kind)}
_ADDRESS = ("email_address", "emailaddress", "email", "e-mail", "address", "recipient")
_REASON = ("reason", "suppressionreason", "error", "description")
_UNTIL = ("retry_after", "expires_at", "until")
_FORMULA = ("=", "+", "-", "@")


@dataclass(frozen=True, slots=True)
class Entry:
    """An address to suppress, by its key; `until` is None for good."""

    address: str
    reason: str = ""
    kind: Kind = "manual"
    until: datetime | None = None


@dataclass(frozen=True, slots=True)
class Fault:
    """A line that is none; `line` counts from 1."""

    line: int
    text: str
    error: str


@dataclass(frozen=True, slots=True)
class List:
    """What was read. Of very many faults only the first `MOST_FAULTS` are told; `failed` counts them all."""

    entries: list[Entry]
    faults: list[Fault]
    failed: int


class TooLong(ValueError):
    """The list is longer than we take at once. Says so in a sentence."""


def read(text: str) -> List:
    """Read a list; blank lines and those that begin with # are passed over.

    Raises:
        TooLong: it has more than `MOST_LINES` lines.
    """
    lines = text.removeprefix("\ufeff").splitlines()
    if len(lines) > MOST_LINES:
        raise TooLong(f"The list has {len(lines):,} lines; at most {MOST_LINES:,} are taken at once")
    columns: dict[str, int] = {"address": 0, "reason": 1}
    found, is_first, failed = List([], [], 0), True, 0
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        try:
            cells = _cells(line)
            named = _named(cells) if is_first else None
            is_first = False
            if named is not None:
                columns = named
            else:
                found.entries.append(_entry(cells, columns))
        except ValueError as error:
            failed += 1
            if failed <= MOST_FAULTS:
                found.faults.append(Fault(number, printable(line)[:200], str(error)))
    return List(found.entries, found.faults, failed)


def _cells(line: str) -> list[str]:
    """One line of CSV; a semicolon or tab divides it where there is no comma outside of quotes."""
    delimiter = next((one for one in (",", ";", "\t") if one in line), ",")
    try:
        cells = next(csv.reader([line], delimiter=delimiter, strict=True))
    except (csv.Error, StopIteration) as error:
        raise ValueError(f"this is no line of CSV: {error}") from None
    return [cell.strip() for cell in cells]


def _named(cells: list[str]) -> dict[str, int] | None:
    """Which column is what, when these cells are a heading."""
    names = [cell.lower() for cell in cells]
    if not set(names) & set(_ADDRESS):
        return None
    known = {"address": _ADDRESS, "reason": _REASON, "kind": ("kind",), "until": _UNTIL}
    return {column: index for column, words in known.items() for index, name in enumerate(names) if name in words}


def _entry(cells: list[str], columns: dict[str, int]) -> Entry:
    """Raises ValueError."""
    given = {column: cells[index] if index < len(cells) else "" for column, index in columns.items()}
    text = given["address"]
    if text.startswith("<") and text.endswith(">"):
        text = text[1:-1]
    if text[:1] == "'" and text[1:2] in _FORMULA:
        text = text[1:]  # as `write` has it
    kind = given.get("kind", "").lower() or "manual"
    if kind not in KINDS:
        raise ValueError(f"the kind is one of {', '.join(KINDS)}")
    return Entry(
        address.parse(text).key,
        printable(given.get("reason", ""))[:_LONGEST_REASON],
        KINDS[kind],
        _until(given.get("until", "")),
    )


def _until(text: str) -> datetime | None:
    if not text:
        return None
    try:
        until = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"{address.shown(text)} is no date as in 2027-01-31 or 2027-01-31T12:00:00Z") from None
    return until if until.tzinfo else until.replace(tzinfo=UTC)


def write(rows: Iterable[tuple[str, str, str, datetime | None, datetime]]) -> str:
    """CSV of rows as in `COLUMNS`. What a spreadsheet would take for a formula has a ' before it."""
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(COLUMNS)
    for name, kind, reason, until, created_at in rows:
        cells = (name, kind, printable(reason), until.isoformat() if until else "", created_at.isoformat())
        writer.writerow([f"'{cell}" if cell.startswith(_FORMULA) else cell for cell in cells])
    return out.getvalue()
