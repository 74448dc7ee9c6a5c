"""`remails migrate`, on a database that is still empty."""

import uuid
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from terminal import Terminal, settings


@pytest.fixture
def empty(postgresql: str, credentials: Path, settings_file: Path) -> Iterator[None]:
    """Let the settings name an empty database."""
    name = f"empty_{uuid.uuid4().hex}"
    with psycopg.connect(f"{postgresql} dbname=postgres", autocommit=True) as conn:
        conn.execute(f'CREATE DATABASE "{name}"')
        settings_file.write_text(settings(credentials, f"{postgresql} dbname={name}"))
        yield
        conn.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


@pytest.mark.usefixtures("empty")
def test_migrate(terminal: Terminal) -> None:
    check = terminal.run("migrate", "--check")
    assert check.exit_code == 1
    missing = [line.removeprefix("missing ") for line in check.stdout.splitlines()]
    assert missing == sorted(missing) and len(missing) >= 3
    assert terminal.run("migrate", "--check").exit_code == 1, "a check changes nothing"

    assert terminal.do("migrate").splitlines() == [f"applied {name}" for name in missing]
    assert terminal.do("migrate") == "nothing to do"
    assert terminal.do("migrate", "--check") == "nothing to do"


@pytest.mark.usefixtures("empty")
def test_a_command_before_migrate_says_so(terminal: Terminal) -> None:
    result = terminal.run("organization", "list")

    assert result.exit_code == 78
    assert "run `remails migrate`" in result.stderr
