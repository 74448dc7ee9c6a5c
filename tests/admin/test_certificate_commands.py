"""`remails certificate`, and what doctor and keys say of certificates."""

import json
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from authority import Authority, Issued
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from terminal import Terminal, settings

from remails import certificate, vault
from remails.config import Database as DatabaseSettings
from remails.db import Database
from remails.store import audit
from remails.store import certificates as store
from remails.vault import Vault

ACME = '[certificates]\ndirectory = "https://acme.example/dir"\n'


def file(directory: Path, made: Issued) -> Path:
    path = directory / "new.pem"
    path.write_bytes(made.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()) + made.pem().encode())
    return path


@pytest.fixture
def acme(terminal: Terminal, credentials: Path, database: DatabaseSettings) -> Terminal:
    """Where certificates are issued by ACME."""
    terminal.path.write_text(settings(credentials, database.dsn, ACME))
    return terminal


def test_one_from_elsewhere_is_taken(terminal: Terminal, db: Database, vault: Vault, tmp_path: Path) -> None:
    made = Authority().issue("relay.example")
    path = file(tmp_path, made)
    assert "valid until" in terminal.do("certificate", "import", str(path))
    (row,) = terminal.json("certificate", "list")
    assert (row["name"], row["names"], row["source"]) == ("relay", ["relay.example"], "import")
    assert row["serial"] == f"{made.certificate.serial_number:x}" and row["failure"] == ""
    assert db.run(store.opened, vault)["relay"].pem == certificate.read(path.read_bytes()).pem
    entry, *_ = db.run(audit.list_, None)
    assert (entry.actor_name, entry.action, entry.target_id) == ("root", "imported", "relay")
    # Another one beside it, for a name of its own.
    terminal.do("certificate", "import", str(file(tmp_path, Authority().issue("old.example"))), "--name", "old.example")
    assert [row["name"] for row in terminal.json("certificate", "list")] == ["old.example", "relay"]


def test_one_that_is_of_no_use_is_not_taken(terminal: Terminal, tmp_path: Path) -> None:
    path = file(tmp_path, Authority().issue("other.example"))
    assert "not for relay.example" in terminal.refused("certificate", "import", str(path))
    assert "is no name" in terminal.refused("certificate", "import", str(path), "--name", "../x")
    assert "Cannot read" in terminal.refused("certificate", "import", str(tmp_path / "nothing"))
    path.write_text("nothing")
    assert "no certificate" in terminal.refused("certificate", "import", str(path))
    assert terminal.json("certificate", "list") == []


def test_a_new_one_is_asked_for(acme: Terminal, db: Database, vault: Vault, tmp_path: Path) -> None:
    assert "asked for" in acme.do("certificate", "renew", "--revoke")
    (row,) = db.run(store.list_)
    assert row.wanted_at is not None and row.revoke
    entry, *_ = db.run(audit.list_, None)
    assert (entry.action, entry.details) == ("renewal_requested", {"revoke": True})

    # Whoever waits hears of the failure, or of the certificate.
    def later(change: Callable[..., None], *arguments: object) -> threading.Thread:
        """Do it once the operator has asked."""
        (before,) = db.run(store.list_)

        def wait_and_do() -> None:
            while db.run(store.list_)[0].wanted_at == before.wanted_at:
                time.sleep(0.01)
            db.run(change, *arguments)

        thread = threading.Thread(target=wait_and_do)
        thread.start()
        return thread

    thread = later(store.fail, "relay", "the authority says no", timedelta(minutes=4))
    said = acme.refused("certificate", "renew", "--wait", "20")
    thread.join()
    assert "the authority says no" in said and "4 minutes" in said
    made = certificate.read(file(tmp_path, Authority().issue("relay.example")).read_bytes())
    thread = later(store.save, vault, "relay", made, "acme")
    assert acme.do("certificate", "renew", "--wait", "20").startswith("Issued")
    thread.join()
    assert "There is one" in acme.do("certificate", "renew", "--if-missing", "--wait", "20")
    assert "does a periodic service lead?" in acme.refused("certificate", "renew", "--wait", "0.1")


def test_without_an_authority_nothing_can_be_renewed(terminal: Terminal) -> None:
    assert "certificates.directory is not set" in terminal.refused("certificate", "renew")


def _renewal(terminal: Terminal) -> list[tuple[str, str]]:
    terminal.run("doctor")
    found = terminal.run("doctor", "--service", "periodic", "--json").output
    return [(one["status"], one["text"]) for one in json.loads(found) if one["name"].startswith("renewal")]


def test_doctor_tells_how_renewal_goes(acme: Terminal, db: Database, vault: Vault, tmp_path: Path) -> None:
    ((status, text),) = _renewal(acme)
    assert status == "warn" and "no certificate" in text
    made = certificate.read(file(tmp_path, Authority().issue("relay.example")).read_bytes())
    db.run(store.save, vault, "relay", made, "acme")
    ((status, text),) = _renewal(acme)
    assert status == "ok" and made.serial in text
    db.run(store.fail, "relay", "rateLimited", timedelta(hours=1))
    ((status, text),) = _renewal(acme)
    assert status == "warn" and "rateLimited" in text
    with db.transaction() as conn:
        conn.execute("UPDATE certificates SET not_after = now() + interval '3 days'")
    ((status, text),) = _renewal(acme)
    assert status == "FAIL"


def test_keys_are_sealed_anew(terminal: Terminal, db: Database, tmp_path: Path, credentials: Path) -> None:
    """Those of certificates and of accounts with authorities too."""
    keys = credentials / "encryption_keys"
    old = keys.read_text()
    made = certificate.read(file(tmp_path, Authority().issue("relay.example")).read_bytes())
    with db.transaction() as conn:
        store.save(conn, Vault(old), "relay", made, "import")
        store.save_account(
            conn, Vault(old), "https://acme.example/dir", store.Account("https://acme.example/1", b"key")
        )
    fresh = vault.new_encryption_key("fresh")
    try:
        keys.write_text(f"{fresh}\n{old}")
        assert terminal.do("keys", "reencrypt").startswith("2 values")
        assert {row["name"]: row["sealed"] for row in terminal.json("keys", "list")} == {"fresh": 2, "test": 0}
        assert terminal.do("keys", "reencrypt").startswith("0 values")
    finally:
        keys.write_text(old)
    assert db.run(store.opened, Vault(fresh))["relay"].pem == made.pem
    account = db.run(store.account, Vault(fresh), "https://acme.example/dir")
    assert account is not None and account.key == b"key"
