"""The token bucket: never more than `burst + elapsed * rate`, whoever asks and whoever dies."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from remails.db import Connection, Database
from remails.store import organizations, rates
from remails.store.ids import OrganizationId
from remails.store.rates import Ask, Grant, Rate
from remails.throttle import Throttle

SLOW = Rate(10, 12)
FAST = Rate(300, 36_000)


@pytest.fixture
def acme(db: Database) -> OrganizationId:
    return db.run(organizations.create, "Acme").id


def take(db: Database, id_: OrganizationId, rate: Rate, wanted: int, *returned: tuple[Grant, int]) -> Grant:
    given = tuple((grant.lease, unused) for grant, unused in returned)
    return db.run(rates.take, [Ask(id_, rate, wanted, given)])[id_]


def pass_by(db: Database, seconds: float) -> None:
    """As if so much time had passed."""

    def shift(conn: Connection) -> None:
        conn.execute("UPDATE rate_buckets SET at = at - make_interval(secs => %s)", [seconds])
        conn.execute("UPDATE rate_leases SET until = until - make_interval(secs => %s)", [seconds])

    db.run(shift)


def test_a_new_bucket_is_full_and_an_empty_one_says_when_to_come_back(db: Database, acme: OrganizationId) -> None:
    assert db.run(rates.wait, acme, SLOW) == 0
    assert [take(db, acme, SLOW, 4).tokens for _ in range(3)] == [4, 4, 2]
    none = take(db, acme, SLOW, 1)
    assert (none.tokens, none.kept) == (0, 0)
    assert 280 < none.retry_after <= 300
    assert 280 < db.run(rates.wait, acme, SLOW) <= 300


def test_tokens_come_back_with_time_and_not_beyond_the_burst(db: Database, acme: OrganizationId) -> None:
    take(db, acme, SLOW, 10)
    pass_by(db, 301)
    assert [take(db, acme, SLOW, 1).tokens for _ in range(2)] == [1, 0]
    pass_by(db, 1_000_000)
    assert take(db, acme, SLOW, 100).tokens == 10


def test_a_block_is_given_while_there_is_plenty_and_returned(db: Database, acme: OrganizationId) -> None:
    started = time.monotonic()
    first = take(db, acme, FAST, 1)
    assert (first.tokens, first.kept) == (1, 10)
    rest = take(db, acme, FAST, 300, (first, 4))
    # 300, less 1 and 6 that were used, and what came back meanwhile.
    assert 293 <= rest.tokens <= 293 + (time.monotonic() - started) * FAST.per_second
    assert rest.kept == 0


def test_blocks_out_on_lease_count_until_their_end(db: Database, acme: OrganizationId) -> None:
    assert take(db, acme, FAST, 1).kept == 10
    pass_by(db, rates.LEASE - 1)  # the bucket would be full again
    assert take(db, acme, FAST, 300).tokens == 290
    pass_by(db, 3600)
    assert take(db, acme, FAST, 301).tokens == 300


def test_a_block_returned_too_late_counts_no_more(db: Database, acme: OrganizationId) -> None:
    started = time.monotonic()
    late = take(db, acme, FAST, 1)
    take(db, acme, FAST, 289)
    pass_by(db, rates.LEASE + 0.1)
    came_back = take(db, acme, FAST, 300, (late, 10)).tokens
    assert 101 <= came_back <= 101 + (time.monotonic() - started) * FAST.per_second


def test_a_smaller_rate_holds_at_once(db: Database, acme: OrganizationId) -> None:
    take(db, acme, FAST, 1)
    assert take(db, acme, SLOW, 300).tokens == 0  # a block of 10 is out
    pass_by(db, 3600)
    assert take(db, acme, SLOW, 300).tokens == 10


def test_what_is_rolled_back_was_not_taken(db: Database, acme: OrganizationId) -> None:
    throttle = Throttle()
    with pytest.raises(ZeroDivisionError), db.transaction() as conn:
        throttle.draw(conn, {acme: (SLOW, 10)})
        raise ZeroDivisionError
    with db.transaction() as conn:
        assert throttle.draw(conn, {acme: (SLOW, 10)}).tokens == {acme: 10}


def test_a_process_asks_once_for_a_block_and_once_a_second_while_empty(db: Database, acme: OrganizationId) -> None:
    throttle = Throttle()

    def draw(rate: Rate, number: int) -> tuple[int, bool]:
        with db.transaction() as conn:
            drawn = throttle.draw(conn, {acme: (rate, number)})
        throttle.keep(drawn)
        return drawn.tokens[acme], bool(drawn.granted)

    assert [draw(FAST, 1) for _ in range(12)] == [(1, True)] + [(1, False)] * 10 + [(1, True)]
    assert db.run(lambda conn: throttle.wait(conn, acme, FAST)) == 0
    while draw(FAST, 50)[0] == 50:
        pass
    assert draw(FAST, 1) == (0, False)
    assert db.run(lambda conn: throttle.wait(conn, acme, FAST)) > 0


def test_processes_together_pass_exactly_the_burst(db: Database, acme: OrganizationId) -> None:
    """Four processes of two threads each, all at once, until nobody gets any more."""
    throttles = [Throttle() for _ in range(4)]
    barrier = threading.Barrier(8)
    started = time.monotonic()

    def send(number: int) -> int:
        throttle, passed = throttles[number % 4], 0
        barrier.wait()
        while True:
            with db.transaction() as conn:
                drawn = throttle.draw(conn, {acme: (FAST, 3)})
            throttle.keep(drawn)
            passed += drawn.tokens[acme]
            if drawn.tokens[acme] < 3:
                return passed

    with ThreadPoolExecutor(8) as pool:
        passed = sum(pool.map(send, range(8)))
    held = sum(lease.tokens for throttle in throttles for leases in throttle._held.values() for lease in leases)
    assert held == 0
    assert FAST.burst <= passed <= FAST.burst + (time.monotonic() - started) * FAST.per_second


def test_an_organization_that_is_gone_gets_nothing(db: Database, acme: OrganizationId) -> None:
    db.run(organizations.remove, acme)
    with db.transaction() as conn:
        assert Throttle().draw(conn, {acme: (SLOW, 1)}).tokens == {acme: 0}
