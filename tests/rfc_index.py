#!/usr/bin/env python3
"""The RFC index of ARCHITECTURE.md, made from the comments in remails/ that cite a section.

    python tests/rfc_index.py            print the section as it should be
    python tests/rfc_index.py --write    put it into ARCHITECTURE.md

A comment `# RFC 5321 §4.5.4.1` stands at the line that implements the section; `# RFC 5321 §4.2, §4.5.3` cites two.
"""

import re
import sys
import tokenize
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCUMENT = ROOT / "ARCHITECTURE.md"
HEADING = "## RFC index"
CITATION = re.compile(r"RFC (\d+),? (§[\w.]*\w(?:(?:, | and |, and )§[\w.]*\w)*)")
SECTION = re.compile(r"§([\w.]*\w)")

Section = tuple[int, str]


def sections(comment: str) -> list[Section]:
    """The sections that one comment cites, such as (5321, "4.5.4.1")."""
    return [(int(number), name) for number, names in CITATION.findall(comment) for name in SECTION.findall(names)]


def citations(package: Path = ROOT / "remails") -> dict[Section, set[str]]:
    """The files of a package by the section that their comments cite."""
    found = defaultdict(set)
    for path in package.rglob("*.py"):
        with tokenize.open(path) as source:
            for token in tokenize.generate_tokens(source.readline):
                if token.type == tokenize.COMMENT:
                    for section in sections(token.string):
                        found[section].add(path.relative_to(package.parent).as_posix())
    return found


def _order(section: Section) -> tuple[int, list[tuple[int, str]]]:
    """Sort §4.10 after §4.9, and a lettered appendix after the numbered sections."""
    number, name = section
    return number, [(int(part), "") if part.isdigit() else (sys.maxsize, part) for part in name.split(".")]


def index(found: dict[Section, set[str]]) -> str:
    """The whole section of the document."""
    lines = [f"- RFC {s[0]} §{s[1]}: {', '.join(sorted(found[s]))}" for s in sorted(found, key=_order)]
    return "\n".join([HEADING, "", *lines]) + "\n"


def written(document: str) -> str:
    """The section as the document has it now; empty where it has none."""
    found = re.search(rf"^{HEADING}\n.*?(?=^## |\Z)", document, re.MULTILINE | re.DOTALL)
    return found[0].rstrip("\n") + "\n" if found else ""


def rewrite(document: str, section: str) -> str:
    """The document with its section replaced, or added at the end."""
    old = written(document)
    return document.replace(old, section, 1) if old else document.rstrip("\n") + "\n\n" + section


if __name__ == "__main__":
    section = index(citations())
    if sys.argv[1:] == ["--write"]:
        DOCUMENT.write_text(rewrite(DOCUMENT.read_text(encoding="utf-8"), section), encoding="utf-8")
    else:
        sys.stdout.write(section)
