#!/usr/bin/python3
"""Has HAProxy show the certificates of this host that it does not show yet.

It is told by its runtime API (management.txt, 9.3), so nothing is reloaded and no connection ends. Only what it does not know, as a
file that is new, or does not take, is left to a reload. If it does not run it will read them when it starts: "load_certificates.py
start" is said before that, so that they are not loaded a second time.
"""

import hashlib
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

CERTIFICATES = Path("/etc/remails/tls")
SOCKET = "/run/haproxy/admin.sock"
LAST = Path("/run/haproxy-certificates")  # the digest of each file that it shows
TIMEOUT = 10  # seconds for an answer of HAProxy


class Untold(Exception):
    """HAProxy has not taken a certificate up, and shows what it did before."""


def main(words: list) -> None:
    """Do it, if there is anything new."""
    now = {str(file): hashlib.sha256(file.read_bytes()).hexdigest() for file in CERTIFICATES.glob("*.pem")}
    try:
        last = json.loads(LAST.read_bytes())
    except (OSError, ValueError):
        last = {}
    new = sorted({file for file, _ in now.items() ^ last.items()})
    if new and words != ["start"]:
        try:
            tell(SOCKET, [Path(file) for file in new])
        except (OSError, Untold) as error:
            sys.stderr.write(f"HAProxy is reloaded: {error}\n")
            subprocess.run(["systemctl", "try-reload-or-restart", "haproxy.service"], check=True)
    LAST.write_text(json.dumps(now), encoding="utf-8")


def tell(path: str, files: list) -> None:
    """Have the HAProxy of this socket show these files from the next handshake on. Raises Untold, OSError."""
    known = {os.path.normpath(line): line for line in say(path, "show ssl cert").splitlines() if line.startswith("/")}
    for file in files:
        if str(file) not in known:
            raise Untold(f"it knows no {file}")
        name = known[str(file)]
        # An empty line would end what is said.
        pem = "\n".join(filter(None, file.read_text(encoding="ascii").splitlines()))
        for command in (f"set ssl cert {name} <<\n{pem}\n", f"commit ssl cert {name}"):
            said = say(path, command)
        if "Success" not in said:
            say(path, f"abort ssl cert {name}")
            raise Untold(f"it does not take {file}: {said.strip()}")


def say(path: str, command: str) -> str:
    """What it answers to one command. Raises OSError."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(TIMEOUT)
        connection.connect(path)
        connection.sendall(f"{command}\n".encode())
        with connection.makefile("r", encoding="utf-8") as answer:
            return answer.read()


if __name__ == "__main__":
    main(sys.argv[1:])
