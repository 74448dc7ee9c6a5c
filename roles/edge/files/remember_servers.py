#!/usr/bin/python3
"""Writes down what HAProxy knows of the servers behind it, for the process that a reload begins.

So a server that was drained stays drained, and one that is dead is not tried until its first check.
"""

import socket
import sys
from pathlib import Path

TIMEOUT = 10  # seconds for an answer of HAProxy
NOTHING = "1\n"  # the version of the format, and no server


def main(folder: Path) -> None:
    """Write `servers` of the folder in which the socket is. Raises OSError, and then it says nothing rather than what is old."""
    file, new = folder / "servers", folder / "servers.new"
    file.write_text(NOTHING, encoding="ascii")
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(TIMEOUT)
        connection.connect(str(folder / "admin.sock"))
        connection.sendall(b"show servers state\n")
        with connection.makefile("r", encoding="utf-8") as answer:
            new.write_text(answer.read(), encoding="utf-8")
    new.replace(file)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
