"""How the tests of the playbooks call Ansible, and what it calls."""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).parents[2]

Ansible = Callable[..., "subprocess.CompletedProcess[str]"]
"""A program, its arguments, and more variables of its environment."""


def ansible_in(home: Path) -> Ansible:
    """Run one of Ansible's programs in the project's folder; what it said, both streams together."""

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


def program(path: str) -> Any:
    """A plugin or program of the project that is no part of a package, as a module."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, PROJECT / path)
    assert spec is not None and spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded
