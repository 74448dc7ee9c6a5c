"""How the tests of the playbooks call Ansible."""

import subprocess
from collections.abc import Callable
from pathlib import Path

PROJECT = Path(__file__).parents[2]

Ansible = Callable[..., "subprocess.CompletedProcess[str]"]
"""A program, its arguments, and more variables of its environment."""
