"""Who leads: one session at a time, and the next one when that ends, whatever ended it."""

from collections.abc import Iterator
from contextlib import ExitStack, closing

import pytest

from remails.config import Database as DatabaseSettings
from remails.db import Database
from remails.errors import Unavailable
from remails.store.leadership import Leadership


@pytest.fixture
def bids(database: DatabaseSettings) -> Iterator[list[Leadership]]:
    """Two processes' bids."""
    with ExitStack() as stack:
        yield [stack.enter_context(closing(Leadership(database, None, "periodic"))) for _ in range(2)]


def _kill_leader(db: Database) -> None:
    """End the session that holds the lock, as a cut connection would."""
    with db.transaction() as conn:
        killed = conn.execute(
            """
            SELECT pg_terminate_backend(pid, 5000) FROM pg_locks
            WHERE locktype = 'advisory' AND granted
                AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
            """
        ).fetchall()
    assert killed == [(True,)]


def test_only_one_leads(bids: list[Leadership]) -> None:
    first, second = bids
    assert first.take()
    assert not second.take()
    first.keep()


def test_who_stops_leaves_the_lead_to_the_next(bids: list[Leadership]) -> None:
    first, second = bids
    assert first.take()
    first.close()
    assert second.take()
    assert not first.take()


def test_a_leader_whose_backend_is_killed_is_told_and_the_other_leads(bids: list[Leadership], db: Database) -> None:
    first, second = bids
    assert first.take()
    assert not second.take()
    _kill_leader(db)
    with pytest.raises(Unavailable):
        first.keep()
    assert second.take()
    second.keep()
    assert not first.take(), "it asks again on a new connection, and another one leads"


def test_who_leads_no_longer_does_not_keep_it_by_reconnecting(bids: list[Leadership], db: Database) -> None:
    first, _ = bids
    assert first.take()
    _kill_leader(db)
    for _ in range(2):
        with pytest.raises(Unavailable):
            first.keep()


def test_a_database_that_cannot_be_reached_is_unavailable() -> None:
    nowhere = Leadership(DatabaseSettings(dsn="host=/nonexistent dbname=nowhere"), None, "periodic")
    with pytest.raises(Unavailable, match="database: "):
        nowhere.take()
