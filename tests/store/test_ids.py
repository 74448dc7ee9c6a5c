"""Ids sort by time, and say so."""

import time

from remails.store import ids


def test_ids_sort_in_the_order_they_were_made() -> None:
    """Also within a millisecond, for who stores faster than that."""
    made = []
    for _ in range(200):
        made.append(ids.new())
        begun = time.time_ns()
        while time.time_ns() - begun < 1_000:  # four times what an id tells apart
            pass
    assert made == sorted(made)
    assert len({one.int >> 80 for one in made}) < len(made)


def test_an_id_is_a_uuid_of_version_7_with_the_time() -> None:
    before = time.time_ns() // 1_000_000
    one = ids.new()
    assert (one.version, one.variant) == (7, "specified in RFC 4122")
    assert before <= one.int >> 80 <= time.time_ns() // 1_000_000
