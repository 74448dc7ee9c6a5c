"""Every variable that a role uses is in an argument spec, every spec is used, and docs/variables.md tells of all."""

import re
from typing import Any

import pytest
import variables
import yaml
from play import PROJECT

ROLES = sorted(path.name for path in (PROJECT / "roles").iterdir())
WORD = re.compile(rf"\b(?:{'|'.join(ROLES)})_\w+")


def specified(role: str) -> dict[str, Any]:
    """The options of all entry points of a role."""
    return {name: option for entry in variables.specs(role).values() for name, option in entry["options"].items()}


def used(role: str) -> set[str]:
    """The variables with a role's word in front that its files name; not its own, which begin with `__`, and metrics."""
    texts = [
        path.read_text(encoding="utf-8")
        for folder in ("tasks", "templates", "handlers", "vars", "defaults")
        for path in (PROJECT / "roles" / role / folder).glob("*")
    ]
    code = "\n".join(re.sub(r"(?m)^ *#.*$|^ *- name:.*$", "", text) for text in texts)
    return set(WORD.findall(re.sub(r"/[\w./{}-]+|__\w+|\w+\.\w+_\w+|remails_\w+_timestamp_seconds", " ", code)))


def test_every_role_is_in_the_document() -> None:
    assert sorted(variables.ORDER) == ROLES


@pytest.mark.parametrize("role", ROLES)
def test_every_variable_that_a_role_uses_is_specified(role: str) -> None:
    everything = {name for other in ROLES for name in specified(other)}
    assert used(role) - everything == set()


@pytest.mark.parametrize("role", ROLES)
def test_every_variable_of_a_role_begins_with_its_word(role: str) -> None:
    assert [name for name in specified(role) if not name.startswith(f"{role}_")] == []


def test_every_variable_that_is_specified_is_used() -> None:
    plugins = "\n".join(path.read_text(encoding="utf-8") for path in (PROJECT / "filter_plugins").glob("*.py"))
    named = {name for role in ROLES for name in used(role)} | set(WORD.findall(plugins))
    credentials = {f"remails_{name}" for name in re.findall(r"LoadCredential=(\w+)", _units())}
    assert {name for role in ROLES for name in specified(role)} - named - credentials == set()


def _units() -> str:
    return "\n".join(path.read_text(encoding="utf-8") for path in (PROJECT / "systemd").glob("*.service"))


@pytest.mark.parametrize("role", ROLES)
def test_default_is_the_specified_one(role: str) -> None:
    """One that is worked out stands only in the role."""
    file = PROJECT / "roles" / role / "defaults/main.yml"
    given = yaml.safe_load(file.read_text(encoding="utf-8")) if file.exists() else {}
    fixed = {name: value for name, value in given.items() if "{{" not in str(value)}
    said = {
        name: option["default"]
        for name, option in variables.specs(role)["main"]["options"].items()
        if "default" in option
    }
    assert fixed == said
    assert set(given) <= set(specified(role))


@pytest.mark.parametrize("role", ROLES)
def test_secret_is_marked(role: str) -> None:
    for name, option in specified(role).items():
        words = r"_(?:password|cipher_pass|s3_credentials|pepper|token|encryption_keys|secret|(?:\w*_)?key)$"
        secret = re.search(words, name) and "public" not in name
        assert bool(option.get("no_log")) == bool(secret), name


def test_document_is_current() -> None:
    said = variables.DOCUMENT.read_text(encoding="utf-8")
    assert said == variables.document(), "run: python tests/playbooks/variables.py --write"
