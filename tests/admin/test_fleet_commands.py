"""`remails pool`, `address` and `host`."""

from terminal import Terminal

from remails.db import Database
from remails.store import addresses, audit


def _address(terminal: Terminal, ip: str, *more: str) -> None:
    terminal.do("address", "add", ip, "--pool", "shared", "--ptr-name", "Out1.relay.example.", *more)


def test_pools_and_addresses(terminal: Terminal) -> None:
    terminal.do("pool", "create", "shared", "--default")
    _address(terminal, "192.0.2.1", "--provider", "upcloud", "--zone", "nl-ams1", "--provider-ref", "ref")
    _address(terminal, "2001:db8::1")

    (pool,) = terminal.json("pool", "list")
    assert (pool["name"], pool["default"], pool["addresses"], pool["ready"]) == ("shared", True, 2, 0)
    first, second = terminal.json("address", "list")
    assert (first["ip"], first["ptr_name"], first["state"], first["host"]) == (
        *("192.0.2.1", "out1.relay.example", "free", None),
    )
    assert (first["provider"], first["zone"], second["ip"]) == ("upcloud", "nl-ams1", "2001:db8::1")


def test_another_pool_becomes_the_default(terminal: Terminal) -> None:
    terminal.do("pool", "create", "first", "--default")
    terminal.do("pool", "create", "second")
    terminal.do("pool", "default", "second")
    assert {pool["name"]: pool["default"] for pool in terminal.json("pool", "list")} == {"first": False, "second": True}
    assert "no pool" in terminal.refused("pool", "default", "third")


def test_address_refusals(terminal: Terminal) -> None:
    assert "no pool" in terminal.refused("address", "add", "192.0.2.1", "--pool", "shared", "--ptr-name", "x.example")
    terminal.do("pool", "create", "shared")
    _address(terminal, "192.0.2.1")
    for ip in ("192.0.2.1", "192.0.2.300", "192.0.2.0/24"):
        terminal.refused("address", "add", ip, "--pool", "shared", "--ptr-name", "x.example")
    assert len(terminal.json("address", "list")) == 1


def test_disable_and_enable(terminal: Terminal, db: Database) -> None:
    terminal.do("pool", "create", "shared")
    _address(terminal, "192.0.2.1")

    terminal.do("address", "disable", "192.0.2.1")
    terminal.do("address", "disable", "192.0.2.1")
    assert terminal.json("address", "list")[0]["enabled"] is False
    terminal.do("address", "enable", "192.0.2.1")
    assert terminal.json("address", "list")[0]["enabled"] is True
    assert "no outbound address" in terminal.refused("address", "enable", "192.0.2.2")
    changes = [entry.details for entry in db.run(audit.list_, None) if entry.action == "updated"]
    assert changes == [{"is_enabled": True}, {"is_enabled": False}]


def test_assign_a_pool(terminal: Terminal, db: Database) -> None:
    terminal.do("pool", "create", "shared", "--default")
    own = terminal.do("pool", "create", "own")
    terminal.do("organization", "create", "Acme")
    terminal.do("project", "create", "Acme", "Shop")

    def assigned(table: str) -> str:
        with db.transaction() as conn:
            return str(conn.execute(f"SELECT pool_id FROM {table}").fetchall()[0][0])

    terminal.do("pool", "assign", "own", "Acme", "--project", "Shop")
    assert (assigned("organizations"), assigned("projects")) == ("None", own)
    terminal.do("pool", "assign", "own", "Acme")
    terminal.do("pool", "assign", "none", "Acme", "--project", "Shop")
    assert (assigned("organizations"), assigned("projects")) == (own, "None")
    assert "no pool" in terminal.refused("pool", "assign", "other", "Acme")


def test_hosts(terminal: Terminal, db: Database) -> None:
    db.run(addresses.register_host, "out1", "static", "", "", 5, "1.0")
    terminal.do("pool", "create", "shared")
    _address(terminal, "192.0.2.1", "--preferred-host", "out1")

    terminal.do("host", "set", "out1", "drain")

    (row,) = terminal.json("host", "list")
    assert (row["name"], row["state"], row["addresses"], row["max"]) == ("out1", "drain", 0, 5)
    assert row["heartbeat_at"].endswith("Z")
    assert "no host" in terminal.refused("host", "set", "out2", "drain")
