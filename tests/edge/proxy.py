"""The edge as a real HAProxy on loopback, from the role's own template: every host has an address of its own in 127.0.0.0/8."""

import http.client
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inbound.dialogue import Dialogue
from inbound.process import toml
from installation import eventually
from playbooks.play import PROJECT, Ansible, program
from seed import Tenant

from remails.config import Settings
from remails.db import Database

CONNECTIONS, PER_CLIENT = 1000, 100
EDGE, HOSTS = "127.0.0.41", {"app1": "127.0.0.11", "app2": "127.0.0.12"}

PLAYBOOK = f"""
- name: Render
  hosts: edge
  gather_facts: false
  roles:
    - {{role: edge, tags: [never]}}  # only its variables
  tasks:
    - name: Files
      ansible.builtin.template:
        src: "{PROJECT}/roles/edge/templates/{{{{ item }}}}.j2"
        dest: "{{{{ folder }}}}/{{{{ inventory_hostname }}}}.{{{{ item }}}}"
        mode: "0600"
      loop: [haproxy.cfg, keepalived.conf]
"""


def render(ansible: Ansible, folder: Path, more: Mapping[str, Any] | None = None, **variables: Any) -> None:
    """Write the files of both edges into a folder, as the role does; `more` goes before the role's own variables."""
    local = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
    hosts = {"edge1": EDGE, "edge2": "127.0.0.42", **HOSTS}
    inventory = {
        "all": {
            "hosts": {name: {"ansible_host": ip, **local} for name, ip in hosts.items()},
            "vars": {"remails_hostname": "relay.example", **variables},
            "children": {
                "edge": {"hosts": {"edge1": {}, "edge2": {}}},
                "api": {"hosts": dict.fromkeys(HOSTS)},
                "inbound": {"hosts": dict.fromkeys(HOSTS)},
            },
        }
    }
    (folder / "hosts.yml").write_text(json.dumps(inventory), encoding="utf-8")
    (folder / "render.yml").write_text(PLAYBOOK, encoding="utf-8")
    facts = {"ansible_facts": {"default_ipv4": {"interface": "eth0"}, "all_ipv6_addresses": []}}
    said = {"folder": str(folder), **facts, **(more or {})}
    arguments = ("--inventory", folder / "hosts.yml", folder / "render.yml", "--extra-vars", json.dumps(said))
    done = ansible("ansible-playbook", *arguments)
    assert done.returncode == 0, done.stdout


module: Any = program("library/haproxy_server.py")
"""What takes a server out of HAProxy and puts it back."""


def free_port() -> int:
    """A port that nobody has on any address of loopback."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True)
class Ports:
    """Where the edge listens; inbound has the same ports on its own addresses."""

    http: int
    https: int
    smtp: list[int]
    api: int
    metrics: int
    ready: int

    @classmethod
    def free(cls) -> "Ports":
        """Ports that nobody has."""
        return cls(free_port(), free_port(), [free_port() for _ in range(3)], free_port(), free_port(), free_port())


class Edge:
    """A running HAProxy."""

    def __init__(self, ansible: Ansible, folder: Path, ports: Ports, certificate: str, **variables: Any) -> None:
        self.ports, self._folder = ports, folder
        numbers = {"http": ports.http, "https": ports.https, "smtp": ports.smtp}
        more = {
            "__edge_ports": {**numbers, "metrics": ports.metrics, "ready": ports.ready},
            "__edge_check_port": ports.smtp[1],
            "__edge_run": str(folder),
            "__edge_listen": [EDGE],
        }
        said = {
            "edge_certificate": certificate,
            "edge_connections": CONNECTIONS,
            "edge_connections_per_client": PER_CLIENT,
            "api_listen": f"0.0.0.0:{ports.api}",
        }
        render(ansible, folder, more, **said | variables)
        self.file = folder / "edge1.haproxy.cfg"
        # Who runs the tests may be nobody special, and there is no journal to write to.
        text = self.file.read_text(encoding="utf-8")
        for line in ("chroot /var/lib/haproxy", "user haproxy", "group haproxy"):
            assert f"    {line}\n" in text
            text = text.replace(f"    {line}\n", "")
        text = text.replace("log /dev/log local0", "log stdout format raw local0")
        self.file.write_text(text, encoding="utf-8")
        haproxy = shutil.which("haproxy", path="/usr/sbin:/sbin:/usr/bin")
        assert haproxy
        (folder / "servers").write_text("1\n", encoding="ascii")  # as before a start, nothing is known
        with (folder / "log").open("a", encoding="utf-8") as log:
            self.process = subprocess.Popen(
                [haproxy, "-W", "-f", self.file], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        self.socket = str(folder / "admin.sock")
        self.haproxy = module.Haproxy(self.socket)
        eventually(lambda: (folder / "admin.sock").exists() or self.process.poll() is not None, bool)
        assert self.process.poll() is None, self.said()

    def said(self) -> str:
        """Its log."""
        return (self._folder / "log").read_text(encoding="utf-8")

    def stop(self) -> None:
        """End it."""
        self.process.terminate()
        self.process.wait(30)

    def reload(self) -> None:
        """Have another process go on by the settings as they are now, as the unit does it."""
        before = self._pid()
        subprocess.run([sys.executable, PROJECT / "roles/edge/files/remember_servers.py", self._folder], check=True)
        self.process.send_signal(signal.SIGUSR2)
        eventually(self._pid, lambda pid: pid not in (0, before))

    def _pid(self) -> int:
        """Of the process that answers; 0 while none does."""
        try:
            lines = self.haproxy.say("show info").splitlines()
        except OSError:
            return 0
        return next(int(line.removeprefix("Pid: ")) for line in lines if line.startswith("Pid: "))

    def rows(self, backend: str) -> dict[str, dict[str, str]]:
        """What it knows of the servers of a backend, by name."""
        return {row["svname"]: row for row in self.haproxy.servers([backend])}

    def status(self, backend: str) -> dict[str, str]:
        """The state of each server that is checked."""
        return {name: row["status"] for name, row in self.rows(backend).items() if "." not in name}

    def wait_for(self, backend: str, **status: str) -> None:
        """Wait until servers are in a state, such as app1="UP"."""
        eventually(
            lambda: self.status(backend),
            lambda found: all(found[name].startswith(word) for name, word in status.items()),
        )


class Service:
    """One service of one host behind the edge, as a process."""

    def __init__(self, folder: Path, settings: Settings, word: str) -> None:
        name = f"{settings.host}-{word}"
        self._file, self._word = folder / f"{name}.toml", word
        self._log = folder / f"{name}.log"
        sections = ("mail", "database", "bans", "metrics", "api", "inbound")
        self._file.write_text(toml(settings, *sections), encoding="utf-8")
        self.start()

    def start(self) -> None:
        """Start it; the edge sees when it is there."""
        with self._log.open("a", encoding="utf-8") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "remails", "--config", str(self._file), self._word],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def said(self) -> str:
        """Its log."""
        return self._log.read_text(encoding="utf-8")

    def kill(self) -> None:
        """End it and its workers at once."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(30)

    def stop(self) -> None:
        """End it in the end."""
        if self.process.poll() is None:
            self.kill()


@dataclass(frozen=True)
class Answer:
    """What a client got."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def json(self) -> Any:
        """The body as values."""
        return json.loads(self.body)


@dataclass(frozen=True)
class Front:
    """The edge, what is behind it, and who uses it."""

    edge: Edge
    services: dict[str, Service]
    tenant: Tenant
    db: Database

    def whole(self) -> None:
        """Have every service run, and the edge see it."""
        for service in self.services.values():
            if service.process.poll() is not None:
                service.start()
        for backend in ("rest", "inbound"):
            for name in HOSTS:
                module.command(self.edge.haproxy, f"set server {backend}/{name} state ready")
            self.edge.wait_for(backend, app1="UP", app2="UP")

    def https(self, source: str = "127.0.0.1", timeout: float = 30) -> http.client.HTTPSConnection:
        """A client's connection, which comes from an address."""
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        return http.client.HTTPSConnection(
            EDGE, self.edge.ports.https, timeout=timeout, context=context, source_address=(source, 0)
        )

    def ask(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        source: str = "127.0.0.1",
        plain: bool = False,
    ) -> Answer:
        """One request on a connection of its own."""
        connection = http.client.HTTPConnection(EDGE, self.edge.ports.http) if plain else self.https(source)
        try:
            connection.request(method, path, body, dict(headers or {}))
            response = connection.getresponse()
            return Answer(response.status, response.headers, response.read())
        finally:
            connection.close()

    def smtp(self, source: str = "127.0.0.1", *, smtps: bool = False) -> Dialogue:
        """A client that has connected."""
        return Dialogue(self.edge.ports.smtp[0 if smtps else 1], smtps=smtps, source=source, host=EDGE)
