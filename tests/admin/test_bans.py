"""`remails bans`."""

from terminal import Terminal

from remails.config import Bans
from remails.db import Database
from remails.guard import Guard


def test_bans_are_listed_and_lifted(terminal: Terminal, db: Database) -> None:
    guard = Guard(Bans(), "inbound")
    for number in range(10):
        guard.failed("2001:db8:0:7::/64", "acme-app", str(number))
    guard.failed("192.0.2.7", "acme-app", "x")
    db.run(guard.sync)

    rows = terminal.json("bans", "list")
    assert [(row["kind"], row["name"], row["bans"], row["service"]) for row in rows] == [
        ("network", "2001:db8:0:7::/64", 1, "inbound"),
        ("account", "acme-app", 0, "inbound"),
        ("network", "192.0.2.7", 0, "inbound"),
    ]
    assert [row["banned_until"] is not None for row in rows] == [True, False, False]

    terminal.do("bans", "lift", "2001:db8:0:7::1")
    terminal.do("bans", "lift", "192.0.2.7")
    assert [row["name"] for row in terminal.json("bans", "list")] == ["acme-app"]
    assert "has not guessed" in terminal.refused("bans", "lift", "192.0.2.7")
    db.run(guard.sync)
    assert guard.banned("2001:db8:0:7::/64") == 0
