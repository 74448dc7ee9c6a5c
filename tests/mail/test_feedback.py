"""The window of a destination."""

from hypothesis import given
from hypothesis import strategies as st

from remails.mail.feedback import LONGEST_REST, Window


def test_it_grows_by_one_for_each_windowful_up_to_the_ceiling() -> None:
    window = Window(7)
    assert window.limit == 5
    for _ in range(6):
        window.succeeded()
    assert window.limit == 6
    for _ in range(100):
        window.succeeded()
    assert window.limit == 7


def test_a_generation_of_failures_counts_once() -> None:
    window = Window(20)
    for now in (10.0, 10.1, 10.2):  # three dialogues begun at 9
        window.overloaded(9.0, now)
    assert window.limit == 2
    window.overloaded(10.5, 11.0)
    assert window.limit == 1


def test_it_rests_at_one_and_longer_each_time() -> None:
    """Case O30."""
    window = Window(1)
    now, rests = 0.0, []
    for _ in range(7):
        window.overloaded(now, now + 1)
        rests.append(window.rest(now + 1))
        now += 1 + rests[-1]
        assert window.rest(now) == 0
    assert rests == [30, 60, 120, 240, 480, LONGEST_REST, LONGEST_REST]
    window.succeeded()
    window.overloaded(now, now + 1)
    assert window.rest(now + 1) == 30


@given(st.integers(1, 100), st.lists(st.booleans(), max_size=200))
def test_it_stays_between_one_and_its_ceiling(ceiling: int, outcomes: list[bool]) -> None:
    window = Window(ceiling)
    for number, ok in enumerate(outcomes):
        if ok:
            window.succeeded()
        else:
            window.overloaded(number, number + 0.5)
        assert 1 <= window.limit <= ceiling
        assert 0 <= window.rest(number + 0.5) <= LONGEST_REST
