"""The archive of a release: built once for real, looked into, and installed as on a host, without an index."""

import hashlib
import io
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from email.parser import HeaderParser
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name, parse_wheel_filename
from playbooks.play import PROJECT, program

import remails

TARGETS = ["cp311-x86_64", "cp313-x86_64"]
PYTHONS = {"cp311": "3.11", "cp313": "3.13"}

release = program("library/release.py")


@dataclass(frozen=True)
class Built:
    """The sources it was built from, the folder it was built in, and what the module said of it."""

    source: Path
    folder: Path
    name: str
    archive: Path


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """A release, built by a real run of pip."""
    source, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("build")
    for name in (*release.SOURCES, release.UNITS):
        copy = shutil.copytree if (PROJECT / name).is_dir() else shutil.copy
        copy(PROJECT / name, source / name)
    said = release.build(source, folder, TARGETS)
    assert said["changed"] and said["version"] == remails.__version__
    return Built(source, folder, said["name"], Path(said["archive"]))


def wheels(archive: Path) -> Iterator[tuple[str, bytes]]:
    """The wheels in an archive."""
    with tarfile.open(archive) as tar:
        for member in tar:
            if member.name.startswith("wheels/"):
                file = tar.extractfile(member)
                assert file is not None
                yield member.name.removeprefix("wheels/"), file.read()


def requirements(wheel: bytes) -> list[str]:
    """What a wheel says it needs."""
    with zipfile.ZipFile(io.BytesIO(wheel)) as opened:
        (metadata,) = (name for name in opened.namelist() if name.endswith(".dist-info/METADATA"))
        return HeaderParser().parsestr(opened.read(metadata).decode()).get_all("Requires-Dist") or []


def test_it_holds_our_wheel_every_unit_and_last_its_name(built: Built) -> None:
    with tarfile.open(built.archive) as tar:
        members = tar.getnames()
        marker = tar.extractfile("RELEASE")
        assert marker is not None and marker.read().decode().strip() == built.name
    units = {str(path.relative_to(PROJECT)) for path in (PROJECT / "systemd").rglob("*") if path.is_file()}
    assert members[-1] == "RELEASE"
    assert {name for name in members if name.startswith("systemd/")} == units
    assert f"wheels/remails-{remails.__version__}-py3-none-any.whl" in members


@pytest.mark.parametrize("target", TARGETS)
def test_it_holds_all_that_a_host_of_each_debian_needs(built: Built, target: str) -> None:
    python = target.partition("-")[0]
    found = {}
    for name, content in wheels(built.archive):
        project, version, _, tags = parse_wheel_filename(name)
        if any(tag.interpreter in (python, "py3", "py2") or tag.abi == "abi3" for tag in tags):
            found[project] = version, content
    environment = {"python_version": PYTHONS[python], "python_full_version": f"{PYTHONS[python]}.2"}
    todo, seen = [Requirement("remails")], set()
    while todo:
        needed = todo.pop()
        if str(needed) in seen:
            continue
        seen.add(str(needed))
        version, content = found[canonicalize_name(needed.name)]
        assert needed.specifier.contains(version), needed
        for line in map(Requirement, requirements(content)):
            extras = [{"extra": extra} for extra in ("", *needed.extras)]
            if line.marker is None or any(line.marker.evaluate(environment | extra) for extra in extras):
                todo.append(line)
    assert len(seen) > 30


def test_it_installs_without_an_index(built: Built, tmp_path: Path) -> None:
    subprocess.run(["tar", "--extract", "--file", built.archive, "--directory", tmp_path], check=True)
    options = ["--isolated", "--no-index", "--no-deps", "--find-links", str(tmp_path / "wheels")]
    target = ["--target", str(tmp_path / "there"), "--no-compile", "remails", "dkimpy"]
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", *options, *target], check=True)
    assert (tmp_path / "there/remails/store/migrations/0001.organizations.sql").exists()
    assert (tmp_path / "there/remails/api/templates/layout.html").exists()
    assert (tmp_path / "there/bin/remails").exists()


def test_a_second_run_changes_nothing(built: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(release, "_pip", lambda *arguments: pytest.fail(f"pip {arguments}"))
    said = release.build(built.source, built.folder, TARGETS)
    assert (said["changed"], said["name"], said["archive"]) == (False, built.name, str(built.archive))


def test_the_same_sources_make_the_same_archive_anywhere(built: Built, tmp_path: Path) -> None:
    shutil.copytree(built.folder / "libraries", tmp_path / "libraries")
    again = Path(release.build(built.source, tmp_path, TARGETS)["archive"])
    assert again.name == built.archive.name
    assert hashlib.sha256(again.read_bytes()).digest() == hashlib.sha256(built.archive.read_bytes()).digest()


@pytest.mark.parametrize("file", ["remails/cli.py", "systemd/remails-bus.service"])
def test_another_content_is_another_release(
    built: Built, tmp_path: Path, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(release, "our_wheel", lambda source, scratch: source / "LICENSE")
    shutil.copytree(built.source, tmp_path / "source")
    with (tmp_path / "source" / file).open("a", encoding="utf-8") as changed:
        changed.write("# one more line\n")
    said = release.build(tmp_path / "source", built.folder, TARGETS)
    assert said["changed"] and said["name"] != built.name


def test_a_target_that_is_none_is_refused(built: Built) -> None:
    with pytest.raises(release.Failed, match="expected a Python and a machine such as cp311-x86_64, got 'bookworm'"):
        release.build(built.source, built.folder, ["bookworm"])


def test_pip_s_complaint_is_told(built: Built, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(built.source, source)
    text = (source / "setup.cfg").read_text(encoding="utf-8").replace("click==", "click==0.0.0+")
    (source / "setup.cfg").write_text(text, encoding="utf-8")
    with pytest.raises(release.Failed, match=r"pip download: .*click"):
        release.build(source, tmp_path / "build", TARGETS)
    assert not list((tmp_path / "build").glob("*.tar"))


def test_a_library_of_old_make_becomes_a_wheel_with_nothing_beside_pip(tmp_path: Path) -> None:
    """As dkimpy: it has a setup.py, and nothing says what builds it. Not even its cache helps pip with a folder."""
    (tmp_path / "old").mkdir()
    (tmp_path / "old/setup.py").write_text(
        "from setuptools import setup\nsetup(name='old', version='1')\n", encoding="utf-8"
    )
    release.wheel_of(str(tmp_path / "old"), tmp_path)
    assert (tmp_path / "old-1-py3-none-any.whl").exists()


def test_what_failed_in_a_build_is_told(tmp_path: Path) -> None:
    (tmp_path / "setup.py").write_text("raise SystemExit('error: no compiler here')\n", encoding="utf-8")
    with pytest.raises(release.Failed, match="no compiler here"):
        release.wheel_of(str(tmp_path), tmp_path)
