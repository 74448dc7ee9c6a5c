"""`remails keys new`."""

import stat
import tomllib
from pathlib import Path

import pytest
import zmq
from terminal import Terminal

from remails import vault

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
