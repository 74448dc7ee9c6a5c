"""The files of a monitoring host, as the role writes them."""

import json
import sys
from pathlib import Path
from typing import Any

from playbooks.play import PROJECT, ansible_in

PLAYBOOK = f"""
- name: Render
  hosts: all
  gather_facts: false
  roles:
    - {{role: monitoring, tags: [never]}}  # only its variables
  tasks:
    - name: File
      ansible.builtin.template:
        src: "{PROJECT}/roles/monitoring/templates/{{{{ file }}}}.j2"
        dest: "{{{{ folder }}}}/{{{{ file }}}}"
        mode: "0600"
"""


def render(folder: Path, file: str, **variables: Any) -> Path:
    """Write one of them into a folder."""
    (folder / "render.yml").write_text(PLAYBOOK, encoding="utf-8")
    said = {
        "ansible_connection": "local",
        "ansible_python_interpreter": sys.executable,
        "folder": str(folder),
        "file": file,
        "remails_hostname": "relay.example",
        **variables,
    }
    arguments = ("--inventory", "watch1,", folder / "render.yml", "--extra-vars", json.dumps(said))
    done = ansible_in(folder / "ansible")("ansible-playbook", *arguments)
    assert done.returncode == 0, done.stdout
    return folder / file
