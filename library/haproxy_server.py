#!/usr/bin/python
"""A host behind HAProxy: let its sessions come to an end and send it no more, or send it clients again.

It speaks with the HAProxy of the host that it runs on, by the socket of its runtime API (management.txt, 9.3). HAProxy goes on
checking a server that is drained, so what it thinks of its health is known when its turn comes again.
"""

import csv
import socket
import time

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: haproxy_server
short_description: Take a server out of HAProxy's backends, or put it back
options:
  name:
    description: The server's name in all of the backends.
    type: str
    required: true
  backends:
    description: The backends; servers of the others follow those of the first (C(track)).
    type: list
    elements: str
    required: true
  state:
    description:
      - C(drained) sends it nobody more, and waits for the end of its sessions. The only server that is well stays as it is.
      - C(ready) sends it clients again, and waits until it is well.
    type: str
    choices: [drained, ready]
    required: true
  patience:
    description: How many seconds are waited at most. Sessions that last longer are left to the server.
    type: int
    default: 30
  socket:
    description: The socket of the runtime API, as a server with C(level admin).
    type: path
    default: /run/haproxy/admin.sock
author: Remails
"""

RETURN = r"""
text:
  description: What became of it, in a sentence.
  type: str
sessions:
  description: How many sessions it has still.
  type: int
"""

PAUSE = 0.1  # seconds between two looks
TIMEOUT = 10  # seconds for an answer of HAProxy


class Haproxy:
    """The HAProxy of this host."""

    def __init__(self, path):
        self._path = path

    def say(self, command):
        """What it answers to one command. Raises OSError."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(TIMEOUT)
            connection.connect(self._path)
            connection.sendall(f"{command}\n".encode())
            with connection.makefile("r", encoding="utf-8") as answer:
                return answer.read()

    def servers(self, backends):
        """The rows of these backends' servers in `show stat`. Raises OSError."""
        lines = self.say("show stat").removeprefix("# ").splitlines()
        return [
            row
            for row in csv.DictReader(lines)
            if row["pxname"] in backends and row["svname"] not in ("FRONTEND", "BACKEND")
        ]


def drain(haproxy, name, backends, patience):
    """Take it out; whether that changed something, and what became of it."""
    rows = haproxy.servers(backends)
    own = [row for row in rows if row["svname"] == name]
    if not own:
        return False, f"it knows no {name}", 0
    # A spare is not checked, and has no word about its health.
    others = [
        row for row in rows if row["pxname"] == backends[0] and row["svname"] != name and row["status"].startswith("UP")
    ]
    if not others:
        return False, f"{name} stays, for no other host is well", _sessions(own)
    changed = any(not row["status"].startswith(("DRAIN", "DOWN")) for row in own)
    command(haproxy, f"set server {backends[0]}/{name} state drain")
    end = time.monotonic() + patience
    while (
        left := _sessions([row for row in haproxy.servers(backends) if row["svname"] == name])
    ) and time.monotonic() < end:
        time.sleep(PAUSE)
    return changed, f"{name} has {left or 'no'} sessions", left


def ready(haproxy, name, backends, patience):
    """Put it back; whether that changed something, and what became of it. Raises TimeoutError."""
    if not any(row["svname"] == name for row in haproxy.servers(backends)):
        return False, f"it knows no {name}", 0
    drained = own(haproxy, name, backends)["status"].startswith("DRAIN")
    if drained:
        # The checks of before say nothing about what runs now.
        command(haproxy, f"set server {backends[0]}/{name} health down")
    command(haproxy, f"set server {backends[0]}/{name} state ready")
    end = time.monotonic() + patience
    while not (now := own(haproxy, name, backends))["status"].startswith("UP"):
        if time.monotonic() > end:
            said = " ".join(filter(None, (now["check_status"], now["check_code"], now.get("last_chk"))))
            raise TimeoutError(f"{name} is not well in the eyes of the edge: {now['status']}, {said}")
        time.sleep(PAUSE)
    return drained, f"{name} is well", int(now["scur"])


def own(haproxy, name, backends):
    """The row of the server that is checked. Raises OSError."""
    return next(row for row in haproxy.servers(backends[:1]) if row["svname"] == name)


def _sessions(rows):
    return sum(int(row["scur"]) for row in rows)


def command(haproxy, text):
    """Have it done. Raises OSError with what it says against it."""
    if answer := haproxy.say(text).strip():
        raise OSError(f"{text}: {answer}")


def main():
    """Run as a module of Ansible."""
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "backends": {"type": "list", "elements": "str", "required": True},
            "state": {"type": "str", "choices": ["drained", "ready"], "required": True},
            "patience": {"type": "int", "default": 30},
            "socket": {"type": "path", "default": "/run/haproxy/admin.sock"},
        }
    )
    told = module.params
    try:
        act = drain if told["state"] == "drained" else ready
        changed, text, sessions = act(Haproxy(told["socket"]), told["name"], told["backends"], told["patience"])
    except (FileNotFoundError, ConnectionRefusedError):
        module.exit_json(changed=False, text="no HAProxy runs here", sessions=0)
    except (OSError, ValueError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=changed, text=text, sessions=sessions)


if __name__ == "__main__":
    main()
