"""How the tests of the playbooks call Ansible."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

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
