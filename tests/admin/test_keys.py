"""`remails keys`."""

import os
import stat
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
import zmq
from seed import Tenant
from terminal import Terminal

from remails import vault
from remails.db import Database
from remails.store import domains
from remails.store.ids import DomainId

NAMES = {"encryption_keys", "pepper", "bus_server_key", "bus_client_key"}


@pytest.fixture
def anywhere(tmp_path: Path) -> Terminal:
    """A host without settings: there are none yet when keys are made."""
    return Terminal(tmp_path / "missing.toml")


def test_fresh_set(anywhere: Terminal, tmp_path: Path) -> None:
    directory = tmp_path / "new" / "credentials"
    settings = tomllib.loads(anywhere.do("keys", "new", str(directory)))
    text = {path.name: path.read_text().strip() for path in directory.iterdir()}

    assert set(text) == NAMES
    assert {stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()} == {0o600}
    keys = vault.Vault(text["encryption_keys"])
    assert keys.open(keys.seal(b"secret", "x"), "x") == b"secret"
    vault.Pepper(text["pepper"])
    assert settings["bus"] == {
        "server_public_key": zmq.curve_public(text["bus_server_key"].encode()).decode(),
        "client_public_keys": [zmq.curve_public(text["bus_client_key"].encode()).decode()],
    }


def test_secrets_are_not_printed(anywhere: Terminal, tmp_path: Path) -> None:
    printed = anywhere.do("keys", "new", str(tmp_path / "keys"))

    assert all(path.read_text().strip() not in printed for path in (tmp_path / "keys").iterdir())


def test_two_sets_differ(anywhere: Terminal, tmp_path: Path) -> None:
    for name in ("one", "two"):
        anywhere.do("keys", "new", str(tmp_path / name))

    assert all((tmp_path / "one" / name).read_text() != (tmp_path / "two" / name).read_text() for name in NAMES)


@pytest.mark.parametrize("name", sorted(NAMES))
def test_nothing_is_overwritten(anywhere: Terminal, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("precious")

    assert f"{tmp_path / name} exists already" in anywhere.refused("keys", "new", str(tmp_path))
    assert {path.name for path in tmp_path.iterdir()} == {name}
    assert (tmp_path / name).read_text() == "precious"


def test_directory_that_cannot_be_made(anywhere: Terminal, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "Cannot write" in anywhere.refused("keys", "new", str(tmp_path / "file" / "keys"))


# For Ansible


@pytest.fixture
def secrets(anywhere: Terminal, tmp_path: Path) -> Path:
    """A file as `keys vault` writes it, and a line of somebody else's."""
    file = tmp_path / "secrets.yml"
    anywhere.do("keys", "vault", str(file))
    with file.open("a") as opened:
        opened.write('remails_provider_token: "mine"\n')
    return file


def _values(file: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(file.read_text())
    return loaded


def test_a_file_for_ansible_vault(anywhere: Terminal, tmp_path: Path) -> None:
    file = tmp_path / "secrets.yml"
    printed = anywhere.do("keys", "vault", str(file))
    values = _values(file)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert f"ansible-vault encrypt {file}" in printed
    assert not any(str(value) in printed for value in values.values())
    vault.Vault(values["remails_encryption_keys"])
    vault.Pepper(values["remails_pepper"])
    for name, public in (
        ("server", values["remails_bus_server_public_key"]),
        ("client", values["remails_bus_client_public_keys"][0]),
    ):
        assert zmq.curve_public(values[f"remails_bus_{name}_key"].encode()).decode() == public
    assert "exists" in anywhere.refused("keys", "vault", str(file))


def test_a_new_encryption_key_seals_and_the_old_one_opens(anywhere: Terminal, secrets: Path) -> None:
    before = _values(secrets)
    sealed = vault.Vault(before["remails_encryption_keys"]).seal(b"secret", "x")
    anywhere.do("keys", "rotate", "encryption", str(secrets))
    anywhere.do("keys", "rotate", "encryption", str(secrets))
    after = _values(secrets)
    both = vault.Vault(after["remails_encryption_keys"])
    assert both.names == ["3", "2", "1"]
    assert both.open(sealed, "x") == b"secret"
    assert {name for name in after if after[name] != before[name]} == {"remails_encryption_keys"}
    anywhere.do("keys", "rotate", "forget", str(secrets))
    assert vault.Vault(_values(secrets)["remails_encryption_keys"]).names == ["3"]


def test_the_old_key_of_a_client_is_let_in_until_it_is_forgotten(anywhere: Terminal, secrets: Path) -> None:
    (old,) = _values(secrets)["remails_bus_client_public_keys"]
    anywhere.do("keys", "rotate", "bus", str(secrets))
    values = _values(secrets)
    new = zmq.curve_public(values["remails_bus_client_key"].encode()).decode()
    assert values["remails_bus_client_public_keys"] == [new, old]
    assert (
        zmq.curve_public(values["remails_bus_server_key"].encode()).decode() == values["remails_bus_server_public_key"]
    )
    anywhere.do("keys", "rotate", "forget", str(secrets))
    assert _values(secrets)["remails_bus_client_public_keys"] == [new]


def test_a_new_password_of_the_database_is_all_that_changes(anywhere: Terminal, secrets: Path) -> None:
    before = secrets.read_text().splitlines()
    anywhere.do("keys", "rotate", "database", str(secrets))
    after = secrets.read_text().splitlines()
    (index,) = [number for number, line in enumerate(before) if line != after[number]]
    assert len(before) == len(after)
    (old,) = yaml.safe_load(before[index]).values()
    new, kept = yaml.safe_load(after[index])["remails_database_password"].split("\n")
    assert kept == old != new
    anywhere.do("keys", "rotate", "forget", str(secrets))
    assert _values(secrets)["remails_database_password"] == new


def test_it_is_an_editor_for_ansible_vault(secrets: Path, tmp_path: Path) -> None:
    password = tmp_path / "password"
    password.write_text("a password\n")
    before = _values(secrets)
    programs = Path(sys.executable).parent
    environment = {**os.environ, "EDITOR": f"{programs}/remails keys rotate database"}
    for word in ("encrypt", "edit", "decrypt"):
        command = [programs / "ansible-vault", word, secrets, "--vault-password-file", password]
        subprocess.run(command, env=environment, check=True, capture_output=True)
    changed = _values(secrets)
    assert {name for name in changed if changed[name] != before[name]} == {"remails_database_password"}


@pytest.mark.parametrize(
    "text", ["remails_pepper: x\n", "$ANSIBLE_VAULT;1.1;AES256\n6131\n", "remails_encryption_keys: |\n  1:x\n"]
)
def test_what_is_no_such_file_is_left_as_it_is(anywhere: Terminal, tmp_path: Path, text: str) -> None:
    file = tmp_path / "secrets.yml"
    file.write_text(text)
    assert "nothing was changed" in anywhere.refused("keys", "rotate", "encryption", str(file))
    assert file.read_text() == text


# What is stored


def test_stored_keys_are_sealed_anew(terminal: Terminal, tenant: Tenant, db: Database, vault_lines: Path) -> None:
    old = vault_lines.read_text().strip()
    name = old.partition(":")[0]
    before = db.run(domains.signing_keys, [_domain(db)])
    vault_lines.write_text(f"{vault.new_encryption_key('new')}\n{old}\n")
    assert terminal.json("keys", "list") == [
        {"name": "new", "here": True, "seals": True, "sealed": 0},
        {"name": name, "here": True, "seals": False, "sealed": 1},
    ]
    assert terminal.do("keys", "reencrypt") == "1 values are sealed anew, all are by key new now."
    assert terminal.do("keys", "reencrypt") == "0 values are sealed anew, all are by key new now."
    assert {row["name"]: row["sealed"] for row in terminal.json("keys", "list")} == {"new": 1, name: 0}

    (after,) = db.run(domains.signing_keys, [_domain(db)])
    newest = vault.Vault(vault_lines.read_text().split()[0])
    opened = vault.Vault(old).open(before[0].sealed, f"dkim:{before[0].key_id}")
    assert newest.open(after.sealed, f"dkim:{after.key_id}") == opened


def test_what_no_key_opens_is_named_and_nothing_changes(
    terminal: Terminal, tenant: Tenant, db: Database, vault_lines: Path
) -> None:
    before = db.run(domains.sealed_by)
    vault_lines.write_text(vault.new_encryption_key("new") + "\n")
    result = terminal.run("keys", "reencrypt")
    assert result.exit_code == 78
    assert "no key" in result.stderr
    assert db.run(domains.sealed_by) == before
    assert [row["here"] for row in terminal.json("keys", "list")] == [True, False]


@pytest.fixture
def vault_lines(credentials: Path) -> Iterator[Path]:
    """The credential encryption_keys, put back afterwards."""
    path = credentials / "encryption_keys"
    before = path.read_text()
    yield path
    path.write_text(before)


def _domain(db: Database) -> DomainId:
    ((found,),) = db.run(lambda conn: conn.execute("SELECT id FROM domains").fetchall())
    return DomainId(found)
