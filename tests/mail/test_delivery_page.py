"""docs/delivery.md says what the tables say."""

import re
from pathlib import Path

import pytest

from remails.mail.bounce import Blame, Kind
from remails.store import backlog

PAGE = (Path(__file__).parents[2] / "docs" / "delivery.md").read_text()
WORDS = {Blame.SURELY: "at once", Blame.PERHAPS: "the fifth in a row", Blame.NONE: "never"}


@pytest.mark.parametrize("kind", Kind)
def test_every_cause_of_a_refusal_stands_there_with_what_it_does(kind: Kind) -> None:
    assert f"| {kind.cause} | {WORDS[kind.blame]} |" in PAGE


def test_every_reason_to_wait_stands_there() -> None:
    rows = re.findall(r"^\| `([a-z ]+)` \|", PAGE, re.M)
    assert {state.replace("_", " ") for state in backlog.STATES} <= set(rows)
    assert {"accepted", "reattempt", "held", "delivered", "failed", "suppressed"} <= set(rows)
