"""When a delivery is tried again."""

import random
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remails.mail import backoff

NOW = datetime(2026, 11, 25, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


def wait(attempts: int, *, life: timedelta = timedelta(days=4), seed: int = 1) -> timedelta | None:
    again = backoff.next_attempt(attempts, now=NOW, expires_at=NOW + life, first=MINUTE, jitter=random.Random(seed))
    return None if again is None else again - NOW


def test_waits_double_up_to_four_hours() -> None:
    expected = [1, 2, 4, 8, 16, 32, 64, 128, 240, 240, 240]
    for attempts, minutes in enumerate(expected, 1):
        found = wait(attempts)
        assert found is not None
        assert 0.9 * minutes <= found / MINUTE <= 1.1 * minutes


def test_what_failed_together_is_not_tried_together() -> None:
    assert len({wait(3, seed=seed) for seed in range(50)}) > 40


def test_the_last_try_is_at_the_end_of_its_life_and_none_is_later() -> None:
    assert wait(5, life=timedelta(minutes=3)) == timedelta(minutes=3)
    assert wait(1, life=timedelta(0)) is None
    assert wait(1, life=timedelta(seconds=-1)) is None


@given(st.integers(1, 10_000), st.integers(1, 400_000))
def test_it_is_always_in_the_future_and_in_time(attempts: int, life: int) -> None:
    found = wait(attempts, life=timedelta(seconds=life))
    assert found is not None
    assert timedelta(0) < found <= timedelta(seconds=life)


@pytest.mark.parametrize(
    ("attempts", "asked", "least", "most"),
    [
        (1, 5, 5, 5.5),  # a greylisting server says when it will be ready
        (1, 0.5, 0.5, 0.55),
        (1, 0, 1 / 12, 0.1),  # not at once
        (9, 1, 216, 264),  # after many attempts a short wait is no longer believed
        (9, 239, 216, 264),
        (3, 60, 60, 66),
        (1, 10_000, 240, 264),  # nor is a very long one
    ],
)
def test_what_the_remote_server_asks_for_is_honoured(attempts: int, asked: float, least: float, most: float) -> None:
    """Case O16; minutes."""
    found = backoff.next_attempt(
        attempts,
        now=NOW,
        expires_at=NOW + timedelta(days=4),
        first=MINUTE,
        jitter=random.Random(1),
        asked=asked * MINUTE,
    )
    assert found is not None
    assert least <= (found - NOW) / MINUTE <= most
