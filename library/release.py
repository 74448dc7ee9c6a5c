#!/usr/bin/python
"""One archive that holds a whole release: our wheel, every library's wheel, and the unit files.

`setup.cfg` says what Remails needs. The module builds our wheel from a copy of the sources, gets the libraries' wheels for every
Python that a host may have, and packs both with `systemd/`. A release is named by its version and a digest of its content, so the
same sources give the same release, and another content never hides under a known name. What was built or fetched once is kept,
so a second run asks no package index and changes nothing.
"""

import configparser
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: release
short_description: Build the archive of a release on the controller
description:
  - Builds our wheel, gets those of the libraries for all hosts, and packs them with the unit files into one archive.
  - In it are C(wheels/), C(systemd/) and, last, the file C(RELEASE) with the name.
options:
  source:
    description: Folder of the sources.
    type: path
    required: true
  build:
    description: Folder for the archives, and for wheels that are kept.
    type: path
    required: true
  targets:
    description: Pythons and machines of the hosts, such as C(cp311-x86_64) for Debian 12.
    type: list
    elements: str
    default: [cp311-x86_64, cp313-x86_64]
author: Remails
"""

RETURN = r"""
name:
  description: The release's name, such as C(0.1.0+3f2a91c4d0), and that of its folder on the hosts.
  type: str
version:
  description: The version of Remails.
  type: str
archive:
  description: Path of the archive.
  type: str
"""

SOURCES = ("setup.cfg", "pyproject.toml", "README.md", "LICENSE", "remails")
UNITS = "systemd"
MARKER = "RELEASE"
ONLY_AS_SOURCE = ("dkimpy",)
"""Libraries without a wheel at the index. They are pure Python, so one built here fits every host."""
# Debian 12 has glibc 2.36. pip takes no older tag for a newer one, so each is named.
GLIBC = (
    "_2_5",
    "_2_12",
    "_2_17",
    "_2_24",
    "_2_26",
    "_2_27",
    "_2_28",
    "_2_31",
    "_2_34",
    "_2_35",
    "_2_36",
    "1",
    "2010",
    "2014",
)
EPOCH = 946684800  # 2000-01-01: every file is as old, so that the same content makes the same archive


class Failed(Exception):
    """A step did not work; the text says which and why."""


def build(source: Path, folder: Path, targets: list[str]) -> dict[str, object]:
    """Make the archive if it is not there. Raises Failed."""
    folder.mkdir(parents=True, exist_ok=True)
    version = _version(source)
    wheels = libraries(source, folder, targets)
    units = _files(source, [UNITS])
    total = digest({**_files(source, SOURCES), **units, **{f"wheels/{wheel.name}": wheel for wheel in wheels}})
    name = f"{version}+{total[:10]}"
    archive = folder / f"remails-{name}.tar"
    changed = not archive.exists()
    if changed:
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            ours = our_wheel(source, Path(scratch))
            pack(archive, name, {f"wheels/{wheel.name}": wheel for wheel in [ours, *wheels]} | units)
    return {"changed": changed, "name": name, "version": version, "archive": str(archive)}


def our_wheel(source: Path, scratch: Path) -> Path:
    """Build our wheel in a copy, so that nothing old lies about in it. Raises Failed."""
    copy, made = scratch / "source", scratch / "wheel"
    for name, file in _files(source, SOURCES).items():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy / name)
    wheel_of(str(copy), made)
    (wheel,) = made.iterdir()
    return wheel


def wheel_of(what: str, folder: Path) -> None:
    """Build the wheel of a folder or a requirement into `folder`. Raises Failed."""
    # Debian's pip would run a setup.py by itself, and fail where there is no package "wheel" beside it.
    _pip("wheel", "--use-pep517", "--no-deps", "--wheel-dir", str(folder), what)


def libraries(source: Path, folder: Path, targets: Iterable[str]) -> list[Path]:
    """The libraries' wheels for all targets, got once for each list of them. Raises Failed."""
    needed = _requirements(source)
    found = {}
    for target in targets:
        options = tags(target)
        kept = folder / "libraries" / f"{hashlib.sha256(repr(needed).encode()).hexdigest()[:16]}-{target}"
        if not kept.is_dir():
            with _new(kept) as new, tempfile.TemporaryDirectory(dir=folder) as built:
                for name in [one for one in needed if re.split(r"[^\w.-]", one)[0] in ONLY_AS_SOURCE]:
                    wheel_of(name, Path(built))
                _pip("download", "--dest", str(new), "--find-links", built, *options, *needed)
        found.update({wheel.name: wheel for wheel in kept.iterdir()})
    return [found[name] for name in sorted(found)]


def tags(target: str) -> list[str]:
    """pip's options for one target, e.g. cp311-x86_64. Raises Failed."""
    match = re.fullmatch(r"cp3(\d+)-(\w+)", target)
    if not match:
        raise Failed(f"targets: expected a Python and a machine such as cp311-x86_64, got {target!r}")
    minor, machine = match.groups()
    return [
        *("--only-binary=:all:", "--implementation=cp", f"--python-version=3.{minor}"),
        *(f"--abi={abi}" for abi in (f"cp3{minor}", "abi3", "none")),
        *(f"--platform=manylinux{version}_{machine}" for version in GLIBC),
    ]


def digest(content: dict[str, Path]) -> str:
    """SHA-256 over names and contents, in hexadecimal."""
    total = hashlib.sha256()
    for name, file in sorted(content.items()):
        total.update(f"{name}\0{hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    return total.hexdigest()


def pack(archive: Path, name: str, content: dict[str, Path]) -> None:
    """Write the archive. The marker comes last: where it was unpacked, everything was."""
    with tempfile.TemporaryDirectory(dir=archive.parent) as scratch:
        marker, unfinished = Path(scratch, MARKER), Path(scratch, "archive")
        marker.write_text(f"{name}\n", encoding="ascii")
        with tarfile.open(unfinished, "w", format=tarfile.PAX_FORMAT) as tar:
            for member, file in [*sorted(content.items()), (MARKER, marker)]:
                tar.add(file, member, filter=_plain)
        unfinished.replace(archive)


def _plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = "root"
    member.mode, member.mtime = 0o644, EPOCH
    return member


def _version(source: Path) -> str:
    found = re.search(r'^__version__ = "([\w.]+)"$', (source / "remails/__init__.py").read_text(encoding="utf-8"), re.M)
    if found is None:
        raise Failed("remails/__init__.py: no __version__ in it")
    return found[1]


def _requirements(source: Path) -> list[str]:
    parser = configparser.ConfigParser()
    parser.read(source / "setup.cfg", encoding="utf-8")
    return [line for line in parser["options"]["install_requires"].splitlines() if line]


def _files(source: Path, names: Iterable[str]) -> dict[str, Path]:
    """The files of these names and below them, by their path in the sources."""
    found = {}
    for name in names:
        for path in [source / name, *sorted((source / name).rglob("*"))]:
            if path.is_file() and "__pycache__" not in path.parts:
                found[str(path.relative_to(source))] = path
    return found


@contextmanager
def _new(path: Path) -> Iterator[Path]:
    """A folder that becomes `path` when the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        new = Path(scratch, "new")
        new.mkdir()
        yield new
        new.rename(path)


def _pip(*arguments: str) -> None:
    """Run pip of the Python that runs this module. Raises Failed."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", *arguments]
    environment = os.environ | {"SOURCE_DATE_EPOCH": str(EPOCH)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)  # noqa: S603  # ours
    if done.returncode:
        lines = [line.strip() for line in done.stderr.splitlines()]
        said = [line for line in lines if line.lower().startswith("error:")] or lines
        raise Failed(f"pip {arguments[0]}: {' '.join(said)}")


def main() -> None:
    """Ansible's entry."""
    module = AnsibleModule(
        argument_spec={
            "source": {"type": "path", "required": True},
            "build": {"type": "path", "required": True},
            "targets": {"type": "list", "elements": "str", "default": ["cp311-x86_64", "cp313-x86_64"]},
        }
    )
    try:
        result = build(Path(module.params["source"]), Path(module.params["build"]), module.params["targets"])
    except (Failed, OSError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
