"""A small network in namespaces of our own: hosts and a router on one switch. Needs root."""

import contextlib
import ctypes
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

CLONE_NEWNET = 0x40000000
ADDRESSES = {"a": "198.51.100.11", "b": "198.51.100.12", "r": "198.51.100.1"}


def ip(*words: str) -> str:
    """What ip(8) says. Raises CalledProcessError."""
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout


@contextlib.contextmanager
def inside(namespace: str) -> Iterator[None]:
    """Let this thread, and what it starts, be in that network; sockets made there stay there."""
    libc = ctypes.CDLL(None, use_errno=True)
    with (
        Path(f"/proc/self/task/{threading.get_native_id()}/ns/net").open("rb") as here,
        Path("/run/netns", namespace).open("rb") as there,
    ):
        assert libc.setns(there.fileno(), CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
        try:
            yield
        finally:
            assert libc.setns(here.fileno(), CLONE_NEWNET) == 0


@contextlib.contextmanager
def running() -> Iterator[str]:
    """Hosts a and b and a router r, all of 198.51.100.0/24, which has 203.0.113.0/24 on the same link; gives their common prefix."""
    name = f"nic{os.getpid()}"
    switch = ("-n", f"{name}-s", "link")
    try:
        for end in ("s", *ADDRESSES):
            ip("netns", "add", f"{name}-{end}")
        ip(*switch, "add", "br0", "type", "bridge")
        ip(*switch, "set", "br0", "up")
        for end, address in ADDRESSES.items():
            here = ("-n", f"{name}-{end}")
            cable = ("type", "veth", "peer", "name", "eth0", "netns", f"{name}-{end}")
            ip(*switch, "add", f"p-{end}", *cable)
            ip(*switch, "set", f"p-{end}", "master", "br0", "up")
            ip(*here, "link", "set", "lo", "up")
            ip(*here, "addr", "add", f"{address}/24", "dev", "eth0")
            ip(*here, "link", "set", "eth0", "up")
            if end != "r":
                ip(*here, "route", "add", "default", "via", ADDRESSES["r"])
        ip("-n", f"{name}-r", "route", "add", "203.0.113.0/24", "dev", "eth0")
        yield name
    finally:
        for end in ("s", *ADDRESSES):
            subprocess.run(["ip", "netns", "del", f"{name}-{end}"], check=False, capture_output=True)
