"""`remails suppression`."""

from pathlib import Path

from seed import Tenant
from terminal import Terminal

from remails.db import Database
from remails.store import audit


def test_add_list_and_remove(terminal: Terminal, db: Database, tenant: Tenant) -> None:
    terminal.do("suppression", "add", "acme", "Jan@Bücher.example", "--reason", "asked us", "--until", "2031-01-31")
    (row,) = terminal.json("suppression", "list", "acme")
    assert (row["address"], row["kind"], row["until"]) == (
        "jan@xn--bcher-kva.example",
        "manual",
        "2031-01-31T00:00:00Z",
    )
    assert "is no address" in terminal.refused("suppression", "add", "acme", "nobody")
    terminal.do("suppression", "remove", "acme", "JAN@bücher.example")
    assert "is not suppressed" in terminal.refused("suppression", "remove", "acme", "jan@bücher.example")
    assert [entry.action for entry in db.run(audit.list_, tenant.organization_id)] == ["deleted", "created"]


def test_import_and_export(terminal: Terminal, db: Database, tenant: Tenant, tmp_path: Path) -> None:
    given = tmp_path / "list.csv"
    given.write_text("email,reason\na@example.net,550 no\nnobody,\nb@example.net,\n")
    result = terminal.run("suppression", "import", "acme", str(given))
    assert result.stdout == "2 imported, 1 lines passed over.\n"
    assert result.stderr == "line 3: nobody,: nobody has no @\n"
    exported = terminal.do("suppression", "export", "acme")
    assert [line.partition(",")[0] for line in exported.splitlines()] == [
        "email_address",
        "a@example.net",
        "b@example.net",
    ]
    assert terminal.do("suppression", "import", "acme", "-", stdin=exported) == "2 imported, 0 lines passed over."
    assert "at most 100,000" in terminal.refused("suppression", "import", "acme", "-", stdin="\n" * 100_001)
    actions = [entry.action for entry in db.run(audit.list_, tenant.organization_id)]
    assert actions == ["imported", "exported", "imported"]
