"""Groups of processes, and what they take of the machine: each is a control group (cgroup2), which forgets no child."""

import contextlib
import os
import re
import select
import signal
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

_NAME = f"remails-bench-{os.getpid()}"
_CHUNK = bytes(1 << 20)


def _root(kind: str = "cgroup2", option: str = "") -> Path | None:
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, place, found, options, *_ = line.split()
        if found == kind and (not option or option in options.split(",")) and os.access(place, os.W_OK):
            return Path(place)
    return None


def stop_when_told() -> None:
    """Let SIGTERM end the program as Ctrl-C does: by an exception, so that what was started is stopped."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


class Group:
    """The processes started within `adopting`, and all that they start.

    Args:
        name: of its own.
        memory: the octets that they and the files they use may have of it; 0 for what there is.

    Raises:
        SystemExit: there can be none.
    """

    def __init__(self, name: str, memory: int = 0) -> None:
        root = _root()
        if root is None:
            raise SystemExit("processor time is counted by control groups (cgroup2), which only root may make")
        self.name = name
        self._path = root / _NAME / name
        self._path.mkdir(parents=True)
        self._places = {self._path: root / _own_group("")}
        if memory:
            self._limit(root, memory)

    def _limit(self, root: Path, memory: int) -> None:
        """Of memory either this hierarchy knows, or one of the first kind that is beside it."""
        if "memory" in (root / "cgroup.controllers").read_text().split():
            for path in (root, self._path.parent):
                (path / "cgroup.subtree_control").write_text("+memory")
            (self._path / "memory.max").write_text(str(memory))
        elif beside := _root("cgroup", "memory"):
            path = beside / _NAME / self.name
            path.mkdir(parents=True)
            (path / "memory.limit_in_bytes").write_text(str(memory))
            self._places[path] = beside / _own_group("memory")

    @contextlib.contextmanager
    def adopting(self) -> Iterator[None]:
        """What is started meanwhile belongs to the group."""
        self._move(self._places.keys())
        try:
            yield
        finally:
            self._move(self._places.values())

    def _move(self, places: Iterable[Path]) -> None:
        for place in places:
            (place / "cgroup.procs").write_text(str(os.getpid()))

    def fill(self, path: Path, size: int) -> None:
        """Have so many octets of its memory hold a file, as a server's does that has run for a while."""
        with self.adopting(), path.open("wb", buffering=0) as file:
            for _ in range(size // len(_CHUNK)):
                file.write(_CHUNK)
            os.fsync(file.fileno())

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
        (self._path / "cgroup.kill").write_text("1")
        self._wait_for_the_end(10)
        for path in self._places:
            with contextlib.suppress(OSError):  # somebody would not die
                path.rmdir()
            with contextlib.suppress(OSError):  # others are still there
                path.parent.rmdir()

    def _wait_for_the_end(self, seconds: float) -> None:
        """Of all its processes: the kernel says so by the file `cgroup.events` (Control Group v2, "[Un]populated Notification")."""
        deadline, changes = time.monotonic() + seconds, select.poll()
        with (self._path / "cgroup.events").open() as events:
            changes.register(events, select.POLLPRI)
            while "populated 1" in events.read() and (left := deadline - time.monotonic()) > 0:
                changes.poll(1000 * left)
                events.seek(0)


def _own_group(controller: str) -> str:
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == controller:
            return path.removeprefix("/")
    return ""


def _kilobytes(pid: int, file: str, name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB", Path(f"/proc/{pid}/{file}").read_text(), re.MULTILINE)
    return int(found[1]) if found else 0
