"""Ansible as an operator runs it, but on no host: for what can be known before one is touched."""

from pathlib import Path

import pytest
from click.testing import CliRunner
from play import Ansible, ansible_in

from remails import cli


@pytest.fixture(scope="session")
def ansible(tmp_path_factory: pytest.TempPathFactory) -> Ansible:
    """Run one of Ansible's programs."""
    return ansible_in(tmp_path_factory.mktemp("ansible"))


@pytest.fixture(scope="session")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with a fresh set of secrets, not encrypted, and what only others can give."""
    file = tmp_path_factory.mktemp("vault") / "vault.yml"
    CliRunner().invoke(cli.main, ["keys", "vault", str(file)], catch_exceptions=False)
    with file.open("a", encoding="utf-8") as opened:
        opened.write(
            'remails_provider_token: "token"\nbackups_independent_ssh_key: "key"\nmonitoring_mail_password: "word"\n'
        )
    return file
