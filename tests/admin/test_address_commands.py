"""`remails address` and `remails addresses`: who holds what, and who shall."""

import pytest
from terminal import Terminal

from remails.db import Connection, Database
from remails.store import addresses, leases
from remails.store.addresses import Host

IPS = ["203.0.113.1", "203.0.113.2", "203.0.113.3"]


@pytest.fixture
def hosts(terminal: Terminal, db: Database) -> dict[str, Host]:
    """Two hosts, of which the first has the three addresses, and one that is gone."""
    terminal.do("pool", "create", "shared", "--default")
    for ip in IPS:
        terminal.do("address", "add", ip, "--pool", "shared", "--ptr-name", "mx.example", "--provider", "upcloud")

    def take(conn: Connection) -> dict[str, Host]:
        gone = addresses.register_host(conn, "gone", "upcloud", "uuid-3", "", 5, "1")
        conn.execute("UPDATE hosts SET heartbeat_at = now() - interval '1 hour'")
        first = addresses.register_host(conn, "out1", "upcloud", "uuid-1", "", 5, "1")
        for one in leases.claim(conn, first.id, 3600, 9):
            leases.set_state(conn, one.ip, one.lease_epoch, "ready")
        return {
            "out1": first,
            "out2": addresses.register_host(conn, "out2", "upcloud", "uuid-2", "", 1, "1"),
            "gone": gone,
        }

    return db.run(take)


def _next(db: Database, ip: str) -> object:
    found = db.run(addresses.get, ip)
    return found.next_host if found else None


def test_all_at_a_glance(terminal: Terminal, hosts: dict[str, Host]) -> None:
    terminal.do("organization", "create", "Acme")
    terminal.do("project", "create", "Acme", "Shop")
    terminal.do("pool", "assign", "shared", "Acme", "--project", "Shop")
    terminal.do("address", "disable", IPS[2])
    rows = terminal.json("addresses")
    assert [(row["ip"], row["state"], row["host"]) for row in rows] == [
        *((IPS[0], "ready", "out1"), (IPS[1], "ready", "out1"), (IPS[2], "ready, disabled", "out1")),
    ]
    assert rows[0]["used_by"] == ["everybody else", "Acme/Shop"]
    assert terminal.json("pool", "list")[0]["used_by"] == ["Acme/Shop"]
    assert "LAST ERROR" in terminal.do("addresses")


def test_an_address_with_its_history_and_who_refuses_it(
    terminal: Terminal, db: Database, hosts: dict[str, Host]
) -> None:
    db.run(leases.refuse, IPS[0], hosts["out2"].id, 600, "409 IP_ADDRESS_LIMIT_REACHED", is_firm=True)
    said = terminal.json("address", "show", IPS[0])
    assert (said["host"], said["epoch"], said["source"]) == ("out1", 1, IPS[0])
    assert [(event["kind"], event["host"]) for event in said["events"]] == [
        *(("ready", "out1"), ("claimed", "out1"), ("added", "")),
    ]
    assert [(one["host"], one["reason"]) for one in said["refused_by"]] == [("out2", "409 IP_ADDRESS_LIMIT_REACHED")]
    assert "IP_ADDRESS_LIMIT_REACHED" in terminal.do("address", "show", IPS[0])
    terminal.do("address", "retry", IPS[0])
    assert terminal.json("address", "show", IPS[0])["refused_by"] == []
    assert "no outbound address" in terminal.refused("address", "show", "203.0.113.9")


def test_move(terminal: Terminal, db: Database, hosts: dict[str, Host]) -> None:
    terminal.do("address", "move", IPS[0], "out2")
    assert _next(db, IPS[0]) == hosts["out2"].id
    assert terminal.json("addresses")[0]["next"] == "out2"
    assert "holds 203.0.113.2 already" in terminal.refused("address", "move", IPS[1], "out1")
    assert "has no room" in terminal.refused("address", "move", IPS[1], "out2")
    assert "does not run" in terminal.refused("address", "move", IPS[1], "gone")
    assert "no host" in terminal.refused("address", "move", IPS[1], "out9")
    terminal.do("address", "add", "203.0.113.50", "--pool", "shared", "--ptr-name", "mx.example")
    assert "is of static" in terminal.refused("address", "move", "203.0.113.50", "out2")
    terminal.do("address", "disable", IPS[2])
    assert "is disabled" in terminal.refused("address", "move", IPS[2], "out2")


def test_rebalance_first_in_words(terminal: Terminal, db: Database, hosts: dict[str, Host]) -> None:
    moves = [{"ip": IPS[0], "from": "out1", "to": "out2"}]
    assert terminal.json("address", "rebalance", "--dry-run") == moves
    assert _next(db, IPS[0]) is None
    assert terminal.json("address", "rebalance") == moves
    assert _next(db, IPS[0]) == hosts["out2"].id
    terminal.do("host", "drain", "out2")
    assert terminal.do("address", "rebalance") == "Nothing to move."
    assert terminal.json("host", "list")[2]["state"] == "drain"
    terminal.do("host", "undrain", "out2")
    assert terminal.json("host", "list")[2]["state"] == "active"


def test_rename_and_prefer(terminal: Terminal, db: Database, hosts: dict[str, Host]) -> None:
    terminal.do("address", "rename", IPS[0], "Out1.Relay.Example.")
    terminal.do("address", "prefer", IPS[0], "out2")
    said = terminal.json("address", "show", IPS[0])
    assert (said["ptr_name"], said["preferred_host"]) == ("out1.relay.example", "out2")
    terminal.do("address", "prefer", IPS[0], "none")
    assert terminal.json("address", "show", IPS[0])["preferred_host"] is None
