"""The service as a process of its own, started as systemd starts it."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import msgspec

from remails.config import Settings

MAIN = "from remails.cli import main; main()"


class Process:
    """`remails inbound`, as systemd starts it: sockets passed by name, readiness told on a socket."""

    def __init__(
        self,
        directory: Path,
        settings: Settings,
        *names: str,
        sockets: Mapping[str, socket.socket] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        config = directory / "remails.toml"
        config.write_text(toml(settings, "mail", "database", "inbound", "metrics", "logs"))
        self._heard = directory / "notify"
        self._heard.unlink(missing_ok=True)
        self.notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.notify.bind(str(self._heard))
        self.notify.settimeout(30)
        made = {} if sockets else {name: socket.create_server(("127.0.0.1", 0)) for name in names}
        passed = dict(sockets or made)
        self.ports = {name: sock.getsockname()[1] for name, sock in passed.items()}
        # sd_listen_fds(3): descriptors from 3 on, and LISTEN_PID is the process itself.
        moves = " ".join(f"{3 + number}<&{sock.fileno()}" for number, sock in enumerate(passed.values()))
        prefix = f"LISTEN_PID=$$ LISTEN_FDS={len(passed)} LISTEN_FDNAMES={':'.join(passed)}" if passed else ""
        script = f'{prefix} exec "$0" -c "{MAIN}" --config "$1" inbound {moves}'
        self.child = subprocess.Popen(
            ["bash", "-c", script, sys.executable, str(config)],
            env={**os.environ, **(environment or {}), "NOTIFY_SOCKET": str(self._heard)},
            pass_fds=[sock.fileno() for sock in passed.values()],
            stderr=subprocess.PIPE,
            text=True,
        )
        for sock in made.values():
            sock.close()

    def ready(self) -> None:
        while b"READY=1" not in self.notify.recv(4096):
            pass

    def end(self) -> tuple[int, str]:
        """SIGTERM; exit status and log."""
        self.child.send_signal(signal.SIGTERM)
        return self.wait()

    def wait(self) -> tuple[int, str]:
        try:
            _, log = self.child.communicate(timeout=30)
        except subprocess.TimeoutExpired as late:
            raise AssertionError((late.stderr or b"").decode()) from None
        return self.child.returncode, log

    def close(self) -> None:
        if self.child.poll() is None:
            self.child.kill()
            self.child.communicate()
        self.notify.close()


def toml(settings: Settings, *sections: str) -> str:
    """The settings as a file, with those sections that are named."""
    lines = [f'host = "{settings.host}"', f'credentials_directory = "{settings.credentials_directory}"']
    for section in sections:
        values = msgspec.to_builtins(getattr(settings, section)).items()
        lines += [f"[{section}]", *(f"{key} = {msgspec.json.encode(value).decode()}" for key, value in values)]
    return "\n".join(lines)
