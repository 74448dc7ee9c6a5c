"""Ansible as an operator runs it, but on no host: for what can be known before one is touched."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from play import PROJECT, Ansible

from remails import cli


@pytest.fixture(scope="session")
def ansible(tmp_path_factory: pytest.TempPathFactory) -> Ansible:
    """Run one of Ansible's programs in the project's folder; what it said, both streams together."""
    home = tmp_path_factory.mktemp("ansible")

    def run(program: str, *arguments: object, **variables: str) -> "subprocess.CompletedProcess[str]":
        environment = {key: value for key, value in os.environ.items() if not key.startswith("ANSIBLE_")} | {
            "ANSIBLE_HOME": str(home),
            "ANSIBLE_NOCOLOR": "1",
            "LC_ALL": "C.UTF-8",
            "NO_COLOR": "1",
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }
        return subprocess.run(
            [program, *map(str, arguments)],
            cwd=PROJECT,
            env=environment | variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )

    return run


@pytest.fixture(scope="session")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with a fresh set of secrets, not encrypted, and a provider's token."""
    file = tmp_path_factory.mktemp("vault") / "vault.yml"
    CliRunner().invoke(cli.main, ["keys", "vault", str(file)], catch_exceptions=False)
    with file.open("a", encoding="utf-8") as opened:
        opened.write('remails_provider_token: "token"\nbackups_independent_ssh_key: "key"\n')
    return file
