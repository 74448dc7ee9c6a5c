"""Tables for people to read."""

from collections.abc import Mapping, Sequence
from typing import Any


def table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """Columns as wide as what stands in them, headings in capitals; as the commands of `remails` show theirs."""
    lines = [[name.upper().replace("_", " ") for name in columns]]
    lines += [["-" if row[name] in (None, "") else str(row[name]) for name in columns] for row in rows]
    widths = [max(len(line[index]) for line in lines) for index in range(len(columns))]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


class FilterModule:
    """What Ansible looks for."""

    def filters(self) -> dict[str, Any]:
        """The filters by name."""
        return {"table": table}
