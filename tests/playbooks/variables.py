"""docs/variables.md, made from the roles' argument specs: `python tests/playbooks/variables.py --write`."""

import sys
from pathlib import Path
from typing import Any

import yaml

PROJECT = Path(__file__).parents[2]
DOCUMENT = PROJECT / "docs/variables.md"
ORDER = (
    "base",
    "firewall",
    "postgresql",
    "backups",
    "resolver",
    "remails",
    "certificates",
    "bus",
    "api",
    "inbound",
    "edge",
    "outbound",
    "periodic",
    "ipagent",
    "exporters",
    "monitoring",
)
HEAD = """\
# Variables

What an inventory says, by the role that reads it. Made from `roles/*/meta/argument_specs.yml`, which Ansible itself checks; a name
that is none of these ends `playbooks/site.yml` before it touches anything.

A value in `group_vars/all` is for all hosts, one in `host_vars/NAME` for one. Secrets belong into `vault.yml`, encrypted by
ansible-vault. What the services themselves can be told stands in [remails/config.py](../remails/config.py) and goes into
`remails_settings`, with the sections and words of that file.

Groups say who does what: `api inbound outbound ipagent bus periodic`, `edge` for hosts in front of `api` and `inbound`,
`database` for a PostgreSQL of ours, `backups` for the host that keeps its backups, and `monitoring` for hosts that watch.
"""


def specs(role: str) -> dict[str, Any]:
    """The entry points of a role, by the name of their task file."""
    text = (PROJECT / "roles" / role / "meta/argument_specs.yml").read_text(encoding="utf-8")
    entries: dict[str, Any] = yaml.safe_load(text)["argument_specs"]
    return entries


def document() -> str:
    """The whole page."""
    return "\n".join([HEAD, *(_role(role) for role in ORDER)])


def _role(role: str) -> str:
    main = specs(role)["main"]
    lines = [f"## {role}: {main['short_description'][0].lower()}{main['short_description'][1:]}", "", _text(main), ""]
    for name, option in main["options"].items():
        lines += [f"- `{name}` ({_kind(option)}): {_text(option)}"]
        lines += [f"  - `{inner}` ({_kind(its)}): {_text(its)}" for inner, its in option.get("options", {}).items()]
    return "\n".join(lines).rstrip() + "\n"


def _text(described: dict[str, Any]) -> str:
    said = described["description"]
    text = " ".join(said if isinstance(said, list) else [said])
    return (
        " ".join(text.replace("C(", "`").replace(")", "`", text.count("C(")).split()) if "C(" in text else text.strip()
    )


def _kind(option: dict[str, Any]) -> str:
    words = ["secret" if option.get("no_log") else "", option["type"]]
    if "elements" in option:
        words[1] = f"list of {option['elements']}"
    if "choices" in option:
        words[1] = " or ".join(option["choices"])
    if option.get("required"):
        words.append("required")
    if option.get("default") not in (None, "", [], {}):
        default = option["default"]
        words.append(f"default {str(default).lower() if isinstance(default, bool) else default}")
    return ", ".join(word for word in words if word)


if __name__ == "__main__":
    if sys.argv[1:] == ["--write"]:
        DOCUMENT.write_text(document(), encoding="utf-8")
    else:
        sys.stdout.write(document())
