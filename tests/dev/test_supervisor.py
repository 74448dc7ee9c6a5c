"""`remails dev` as a process: what a newcomer's machine does to it."""

import contextlib
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from installation import eventually, free_base

pytestmark = pytest.mark.timeout(240)


@contextlib.contextmanager
def dev(directory: Path, base: int) -> Iterator[subprocess.Popen[str]]:
    """Start it; what it says goes to a file beside its directory."""
    command = [sys.executable, "-m", "remails", "dev", "--directory", str(directory), "--port-base", str(base)]
    with directory.with_name("log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, text=True)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
        process.wait(60)


def said(directory: Path) -> str:
    """What it said until now."""
    return directory.with_name("log").read_text()


def left(directory: Path) -> list[str]:
    """Command lines of processes that name the directory."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            found.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode())
    return [command for command in found if str(directory) in command]


def healthy(base: int) -> int:
    """The status of the API's own check; 0 while nobody answers."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{base + 80}/api/healthy", timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code
    except OSError:
        return 0


def test_any_directory_will_do_and_a_killed_postgresql_comes_back(tmp_path: Path) -> None:
    directory, base = tmp_path / 'it\'s "my" \\ mail', free_base()
    with dev(directory, base) as process:
        eventually(lambda: said(directory), lambda text: "Remails is running" in text or process.poll() is not None, 90)
        assert healthy(base) == 200, said(directory)
        postmaster = directory / "postgresql" / "postmaster.pid"
        before = int(postmaster.read_text().splitlines()[0])
        os.kill(before, signal.SIGKILL)
        eventually(lambda: "postgres | ended, starting again" in said(directory), bool)
        eventually(lambda: healthy(base), lambda status: status == 200, 60)
        assert int(postmaster.read_text().splitlines()[0]) != before
        process.send_signal(signal.SIGHUP)  # as when the terminal is closed
        assert process.wait(60) == 0
    assert left(directory) == []
    assert "Traceback" not in said(directory)


def test_a_directory_that_cannot_be_made_is_said_in_words(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    directory = tmp_path / "file" / "dev"
    command = [sys.executable, "-m", "remails", "dev", "--directory", str(directory), "--port-base", str(free_base())]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    words = f"remails dev: cannot write to {directory} (Not a directory); --directory chooses another place\n"
    assert (done.returncode, done.stdout, done.stderr) == (78, "", words)


def test_an_interrupt_while_it_starts_leaves_nothing_behind(tmp_path: Path) -> None:
    directory = tmp_path / "dev"
    with dev(directory, free_base()) as process:
        eventually(lambda: (directory / "postgresql" / "PG_VERSION").exists(), bool, 60)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    assert left(directory) == []
    assert "Remails is running" not in said(directory)
    assert "Traceback" not in said(directory)
