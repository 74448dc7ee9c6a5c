"""Tables for people to read."""

from collections.abc import Mapping, Sequence
from typing import Any


def table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """Columns as wide as what stands in them, headings in capitals; as the commands of `remails` show theirs."""
    lines = [[name.upper().replace("_", " ") for name in columns]]
    lines += [["-" if row[name] in (None, "") else str(row[name]) for name in columns] for row in rows]
    widths = [max(len(line[index]) for line in lines) for index in range(len(columns))]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def members_table(members: Sequence[Mapping[str, Any]], hosts: Sequence[str]) -> str:
    """The members of a database cluster as `patronictl list` gives them, and the hosts that should be members and are none."""
    known = {str(member["Member"]): member for member in members}
    rows = [
        {"database": host, "role": "none", "state": "GONE", "timeline": "", "lag_mb": ""}
        if host not in known
        else {
            "database": host,
            "role": known[host]["Role"].lower(),
            "state": known[host]["State"],
            "timeline": known[host].get("TL"),
            "lag_mb": known[host].get("Lag in MB"),
        }
        for host in hosts
    ]
    return table(rows, ["database", "role", "state", "timeline", "lag_mb"])


class FilterModule:
    """What Ansible looks for."""

    def filters(self) -> dict[str, Any]:
        """The filters by name."""
        return {"members_table": members_table, "table": table}
