"""Every library that Remails needs at run time may be distributed along with a work under the EUPL-1.2.

The list is walked as pip walks it: from our own requirements to theirs, with the extras asked for and this machine's markers.
"""

import re
from importlib import metadata

import pytest
from packaging.requirements import Requirement

ALLOWED = {
    "0BSD",
    "Apache-2.0",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "EUPL-1.2",
    "ISC",
    "LGPL-2.1-or-later",
    "LGPL-3.0-only",
    "LGPL-3.0-or-later",
    "MIT",
    "MIT-0",
    "MPL-2.0",
    "PSF-2.0",
    "Python-2.0",
    "Unlicense",
    "Zlib",
}

# How metadata older than PEP 639 spells them.
SPDX = {
    "Apache": "Apache-2.0",
    "Apache Software License": "Apache-2.0",
    "BSD License": "BSD-3-Clause",
    "BSD-like": "BSD-3-Clause",
    "ISC License (ISCL)": "ISC",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
}


def dependencies(root: str) -> dict[str, metadata.Distribution]:
    """The distributions that `root` needs, directly or not, by canonical name; `root` is among them."""
    found: dict[str, metadata.Distribution] = {}
    todo, seen = [Requirement(root)], set()
    while todo:
        wanted = todo.pop()
        name = re.sub(r"[-_.]+", "-", wanted.name).lower()
        if (name, frozenset(wanted.extras)) in seen:
            continue
        seen.add((name, frozenset(wanted.extras)))
        found[name] = metadata.distribution(name)
        for line in found[name].requires or ():
            needed = Requirement(line)
            extras = {"", *wanted.extras}
            if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in extras):
                todo.append(needed)
    return found


def licence(distribution: metadata.Distribution) -> str:
    """The licence as an SPDX expression, or in the author's own words where they are unknown to us."""
    about = distribution.metadata
    if "License-Expression" in about:
        return about["License-Expression"]
    classifiers = [value.rsplit(" :: ", 1)[-1] for value in about.get_all("Classifier") or () if "License ::" in value]
    words = [*(about.get_all("License") or ()), *classifiers]
    known = {SPDX.get(word, word) for word in words} & ALLOWED
    return " OR ".join(sorted(known)) or " / ".join(filter(None, words)) or "none stated"


def allowed(expression: str) -> bool:
    """Whether an SPDX expression (without parentheses) leaves us a choice of allowed licences."""
    return any(all(word in ALLOWED for word in choice.split(" AND ")) for choice in expression.split(" OR "))


def test_every_run_time_dependency_may_go_with_eupl() -> None:
    found = dependencies("remails")
    assert {"psycopg-binary", "markupsafe", "cffi"} <= found.keys(), "the walk misses extras or indirect dependencies"
    refused = {name: licence(one) for name, one in found.items() if not allowed(licence(one))}
    assert not refused


def test_remails_says_that_it_is_under_eupl() -> None:
    assert licence(metadata.distribution("remails")) == "EUPL-1.2"


@pytest.mark.parametrize(
    ("expression", "answer"),
    [
        ("MIT", True),
        ("Apache-2.0 OR GPL-3.0-only", True),
        ("MIT AND GPL-3.0-only", False),
        ("Proprietary", False),
        ("none stated", False),
    ],
)
def test_expression_is_allowed_when_each_part_is(expression: str, answer: bool) -> None:
    assert allowed(expression) is answer
