"""Groups of processes, and what they take of the machine: each is a control group (cgroup2), which forgets no child."""

import contextlib
import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

_NAME = f"remails-bench-{os.getpid()}"


def _root() -> Path | None:
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, place, kind, *_ = line.split()
        if kind == "cgroup2" and os.access(place, os.W_OK):
            return Path(place)
    return None


def stop_when_told() -> None:
    """Let SIGTERM end the program as Ctrl-C does: by an exception, so that what was started is stopped."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


class Group:
    """The processes started within `adopting`, and all that they start. Raises SystemExit where there can be none."""

    def __init__(self, name: str) -> None:
        root = _root()
        if root is None:
            raise SystemExit("processor time is counted by control groups (cgroup2), which only root may make")
        self.name = name
        self._own = root / _own_group()
        self._path = root / _NAME / name
        self._path.mkdir(parents=True)

    @contextlib.contextmanager
    def adopting(self) -> Iterator[None]:
        """What is started meanwhile belongs to the group."""
        (self._path / "cgroup.procs").write_text(str(os.getpid()))
        try:
            yield
        finally:
            (self._own / "cgroup.procs").write_text(str(os.getpid()))

    def cpu(self) -> float:
        """Seconds of processor time so far, those of processes that have ended included."""
        found = re.search(r"^usage_usec (\d+)", (self._path / "cpu.stat").read_text(), re.MULTILINE)
        assert found is not None
        return int(found[1]) / 1e6

    def pids(self) -> list[int]:
        """Its processes."""
        return [int(pid) for pid in (self._path / "cgroup.procs").read_text().split()]

    def memory(self) -> dict[str, float]:
        """MB: `total`, in which what processes share counts once (PSS), and `largest`, the most one process ever had (RSS)."""
        total = largest = 0
        for pid in self.pids():
            with contextlib.suppress(OSError):
                total += _kilobytes(pid, "smaps_rollup", "Pss")
                largest = max(largest, _kilobytes(pid, "status", "VmHWM"))
        return {"total": total / 1000, "largest": largest / 1000}

    def remove(self) -> None:
        """End what is left of it."""
        deadline = time.monotonic() + 10
        (self._path / "cgroup.kill").write_text("1")
        while self._path.exists() and time.monotonic() < deadline:
            with contextlib.suppress(OSError):  # it is not empty yet
                self._path.rmdir()
            time.sleep(0.02)
        with contextlib.suppress(OSError):  # others are still there
            self._path.parent.rmdir()


def _own_group() -> str:
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        if line.startswith("0::/"):
            return line[4:]
    return ""


def _kilobytes(pid: int, file: str, name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB", Path(f"/proc/{pid}/{file}").read_text(), re.MULTILINE)
    return int(found[1]) if found else 0
