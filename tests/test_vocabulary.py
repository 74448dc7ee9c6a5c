"""One word per thing: each service word is folder, command, systemd unit and, once there are roles, Ansible role."""

import ast
import re
import shlex
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


def _commands() -> list[tuple[str, str]]:
    """Where the pages have a command of ours, and the command."""
    found = []
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        text = path.read_text(encoding="utf-8")
        blocks = re.findall(r"^ {4,}(remails [a-z].*)$", text, re.MULTILINE)
        spans = re.findall(r"`(remails [a-z][^`]*)`", text)
        found += [(path.relative_to(ROOT).as_posix(), re.sub(r"\s*#.*|\[|\]", "", one)) for one in blocks + spans]
    return found


@pytest.mark.parametrize(("page", "command"), sorted({*_commands()}))
def test_a_command_of_the_pages_is_one(page: str, command: str) -> None:
    """At three in the morning it is copied from there. One without a word behind it only names the command."""
    found: click.Command = cli.main
    _, *words = shlex.split(command)
    while isinstance(found, click.Group) and words and words != ["--help"]:
        names = words.pop(0).split("|")
        commands = [found.get_command(click.Context(found), name) for name in names]
        assert all(commands), f"{page}: {command}"
        found = commands[0] or found
    if not words or {"...", "…", "--help"} & {*words}:
        return
    options = {name: one for one in found.params if isinstance(one, click.Option) for name in one.opts}
    given = 0
    while words:
        word = words.pop(0)
        if word.startswith("-"):
            assert word in options, f"{page}: {command}"
            words = words if options[word].is_flag else words[1:]
        else:
            given += 1
    wanted = [one for one in found.params if isinstance(one, click.Argument)]
    if given or not wanted or options:
        least = sum(one.required for one in wanted)
        most = len(wanted) if all(one.nargs == 1 for one in wanted) else given
        assert least <= given <= most, f"{page}: {command}"
