"""An operator at the command line, on a database of its own."""

from pathlib import Path

import pytest
from terminal import Terminal, settings

from remails.config import Database as DatabaseSettings


@pytest.fixture
def settings_file(tmp_path: Path, database: DatabaseSettings, credentials: Path) -> Path:
    """The settings of a host with little in them."""
    path = tmp_path / "remails.toml"
    path.write_text(settings(credentials, database.dsn))
    return path


@pytest.fixture
def terminal(settings_file: Path, monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """An operator called root, with nothing about Remails in the environment."""
    for name in ("REMAILS_CONFIG", "CREDENTIALS_DIRECTORY", "SUDO_USER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LOGNAME", "root")
    return Terminal(settings_file)
