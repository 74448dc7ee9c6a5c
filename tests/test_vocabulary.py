"""One word per thing: each service word is folder, command, systemd unit and, once there are roles, Ansible role."""

import ast
from pathlib import Path

import click
import pytest

from remails import cli

ROOT = Path(__file__).parents[1]
SERVICES = ("api", "inbound", "outbound", "bus", "periodic", "ipagent")


@pytest.mark.parametrize("word", SERVICES)
def test_service_word_is_a_folder(word: str) -> None:
    module = ROOT / "remails" / word / "__init__.py"
    assert ast.get_docstring(ast.parse(module.read_text(encoding="utf-8")))


@pytest.mark.parametrize("word", SERVICES)
def test_service_word_is_a_command_with_a_help_text(word: str) -> None:
    assert isinstance(cli.main, click.Group)
    command = cli.main.get_command(click.Context(cli.main), word)
    assert command is not None
    assert command.help


@pytest.mark.parametrize("word", SERVICES)
def test_service_word_is_a_unit_that_starts_the_command(word: str) -> None:
    unit = ROOT / "systemd" / f"remails-{word}.service"
    assert f"/bin/remails {word}\n" in unit.read_text(encoding="utf-8")


def test_service_words_are_roles_as_soon_as_there_are_roles() -> None:
    roles = {path.name for path in (ROOT / "roles").glob("*/")}
    assert not roles or roles >= set(SERVICES)
