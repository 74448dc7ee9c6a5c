"""Ansible as an operator runs it, from the namespace "control": the project's own playbooks with a generated inventory.

Ansible itself runs on the machine, since it builds the release there, and only its ssh is in the namespace. Everything that it
starts is a member of the fleet's cgroup, connections that outlive a run too.
"""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hosts
import image

PROJECT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Run:
    """How a playbook ended."""

    status: int
    output: str

    @property
    def recap(self) -> dict[str, dict[str, int]]:
        """The counters of each host: ok, changed, unreachable, failed, skipped, rescued, ignored."""
        lines = re.findall(r"^(\S+)\s+: (ok=.*)$", self.output.rpartition("PLAY RECAP")[2], re.MULTILINE)
        return {host: {key: int(value) for key, value in re.findall(r"(\w+)=(\d+)", counts)} for host, counts in lines}

    @property
    def changed(self) -> dict[str, int]:
        """How many tasks changed something, by host."""
        return {host: counts["changed"] for host, counts in self.recap.items()}

    def ok(self) -> "Run":
        """Itself, if all went well. Raises AssertionError with the end of the output."""
        assert self.status == 0, self.output[-6000:]
        return self


class Controller:
    """The machine that Ansible runs on, for one inventory: groups of the fleet's hosts, and variables for all."""

    def __init__(
        self,
        fleet: hosts.Fleet,
        groups: Mapping[str, list[str]],
        variables: Mapping[str, Any],
        name: str = "controller",
    ) -> None:
        self._fleet = fleet
        self.project = PROJECT
        """The checkout whose playbooks are run."""
        self.directory = fleet.directory / name
        self.inventory = self.directory / "inventory"
        self.inventory.mkdir(parents=True, exist_ok=True)
        self.learn_keys()
        self.write(groups, variables)

    def write(self, groups: Mapping[str, list[str]], variables: Mapping[str, Any]) -> None:
        """Write the inventory, in place of an earlier one."""
        members = {name for names in groups.values() for name in names}
        known = {name: {"ansible_host": host.ip} for name, host in self._fleet.hosts.items() if name in members}
        access = {
            "ansible_user": "root",
            "ansible_ssh_private_key_file": str(image.key()),
            "ansible_ssh_executable": str(self.directory / "ssh"),
            "ansible_ssh_transfer_method": "piped",
            "ansible_ssh_common_args": f"-o UserKnownHostsFile={self.directory}/known_hosts -o StrictHostKeyChecking=yes",
        }
        children = {group: {"hosts": dict.fromkeys(names)} for group, names in groups.items()}
        inventory = {"all": {"hosts": known, "vars": access | dict(variables), "children": children}}
        # Every JSON text is YAML too.
        (self.inventory / "hosts.yml").write_text(json.dumps(inventory, indent=1), encoding="utf-8")

    def learn_keys(self) -> None:
        """Trust the hosts that are on as they are now: each makes itself keys when it first boots."""
        program = self.directory / "ssh"
        program.write_text(f'#!/bin/sh\nexec {shlex.join(self._fleet.inside("control"))} ssh "$@"\n', encoding="utf-8")
        program.chmod(0o755)
        on = [host for host in self._fleet.hosts.values() if host.leader()]
        keys = {host.ip: host.run("cat /etc/ssh/ssh_host_ed25519_key.pub") for host in on}
        (self.directory / "known_hosts").write_text(
            "".join(f"{ip} {key}" for ip, key in keys.items()), encoding="utf-8"
        )

    def playbook(self, playbook: Path | str, *arguments: str, timeout: float = 1200) -> Run:
        """Run a playbook, named as an operator does, to its end."""
        return self.finish(self.start(playbook, *arguments), timeout)

    def start(self, playbook: Path | str, *arguments: str) -> "subprocess.Popen[str]":
        """Begin a playbook, to `finish` later."""
        command = ["ansible-playbook", "--inventory", str(self.inventory), str(playbook), *arguments]
        join = ["sh", "-c", 'echo $$ >"$0" && exec "$@"', str(self._fleet.cgroup / "at-control/cgroup.procs")]
        return subprocess.Popen(
            [*join, *command],
            cwd=self.project,
            env=self._environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def finish(self, playbook: "subprocess.Popen[str]", timeout: float = 1200) -> Run:
        """Wait for the end of a playbook; what it said is also in `log`."""
        output, _ = playbook.communicate(timeout=timeout)
        with (self.directory / "log").open("a", encoding="utf-8") as log:
            log.write(f"$ {shlex.join(playbook.args[4:])}\n{output}\n")  # type: ignore[index]  # the list of `start`
        return Run(playbook.returncode, output)

    def _environment(self) -> dict[str, str]:
        return {key: value for key, value in os.environ.items() if not key.startswith("ANSIBLE_")} | {
            "ANSIBLE_FORCE_COLOR": "0",
            "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_HOME": str(self.directory / "home"),
            "ANSIBLE_SSH_CONTROL_PATH_DIR": str(self.directory / "cp"),
            "LC_ALL": "C.UTF-8",
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }
