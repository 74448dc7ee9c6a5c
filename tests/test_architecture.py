"""What the code promises its reader: docstrings, plain module names, layers, a current RFC index."""

import ast
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import rfc_index

ROOT = Path(__file__).parents[1]
MODULES = sorted((ROOT / "remails").rglob("*.py"))
STRAY = {"base", "common", "core", "helper", "helpers", "manager", "managers", "misc", "util", "utils"}


def name(path: Path) -> str:
    """The path from the root of the project, for test ids."""
    return path.relative_to(ROOT).as_posix()


def public(tree: ast.Module) -> list[ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]:
    """The functions and classes that a module shows to others."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return [node for node in tree.body if isinstance(node, kinds) and not node.name.startswith("_")]


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_module_and_what_it_shows_have_docstrings(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree), "the module has no docstring"
    assert [node.name for node in public(tree) if not ast.get_docstring(node)] == []


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_module_name_says_what_is_inside(path: Path) -> None:
    words = {word for part in path.relative_to(ROOT).with_suffix("").parts for word in part.strip("_").split("_")}
    assert not words & STRAY


def test_layers_hold() -> None:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_test_file_has_a_name_of_its_own() -> None:
    """pytest imports them by their bare names, and so do they each other."""
    names = Counter(path.name for path in Path(__file__).parent.rglob("*.py") if "node_modules" not in path.parts)
    del names["conftest.py"]
    assert [name for name, number in names.items() if number > 1] == []


def test_rfc_index_is_current() -> None:
    document = rfc_index.DOCUMENT.read_text(encoding="utf-8")
    expected = rfc_index.index(rfc_index.citations())
    assert rfc_index.written(document) == expected, "python tests/rfc_index.py --write"


def test_rfc_index_reads_comments_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "mail").mkdir()
    (tmp_path / "mail" / "reply.py").write_text(
        '"""RFC 1 §1 in a docstring."""\n'
        "a = 1  # RFC 5321 §4.10, §4.9.1 and RFC 3463 §2\n"
        "b = 'RFC 2 §2'\n"
        "# RFC 5321 §4.9.1: again; RFC 6376 §A.1; RFC 7505 has no section\n"
    )
    assert rfc_index.index(rfc_index.citations(tmp_path)).splitlines()[2:] == [
        f"- RFC 3463 §2: {tmp_path.name}/mail/reply.py",
        f"- RFC 5321 §4.9.1: {tmp_path.name}/mail/reply.py",
        f"- RFC 5321 §4.10: {tmp_path.name}/mail/reply.py",
        f"- RFC 6376 §A.1: {tmp_path.name}/mail/reply.py",
    ]


def test_rfc_index_is_put_into_its_own_section() -> None:
    before = "# A\n\n## RFC index\n\n- old\n\n## Decisions\n\nText.\n"
    after = rfc_index.rewrite(before, "## RFC index\n\n- new\n")
    assert after == "# A\n\n## RFC index\n\n- new\n\n## Decisions\n\nText.\n"
    assert rfc_index.written(after) == "## RFC index\n\n- new\n"
    assert rfc_index.rewrite("# A\n", "## RFC index\n") == "# A\n\n## RFC index\n"
