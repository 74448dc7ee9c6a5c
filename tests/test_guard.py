"""Who guesses is slowed and banned, wherever; who does not is left alone."""

import time

import pytest

from remails import guard
from remails.config import Bans
from remails.db import Database
from remails.errors import Unavailable
from remails.guard import Guard
from remails.store import bans

BAD, GOOD = "192.0.2.66", "198.51.100.7"


@pytest.fixture
def one() -> Guard:
    """A process."""
    return Guard(Bans(), "inbound")


@pytest.fixture
def other() -> Guard:
    """Another one, elsewhere."""
    return Guard(Bans(), "api")


def guess(process: Guard, times: int, network: str = BAD, account: str = "acme-app", start: int = 0) -> list[float]:
    return [process.failed(network, account, f"guess {number}") for number in range(start, start + times)]


def sync(db: Database, *processes: Guard) -> None:
    for process in (*processes, *processes):
        db.run(process.sync)


@pytest.mark.parametrize(
    ("client", "network"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("2001:db8:0:1::1", "2001:db8:0:1::/64"),
        ("2001:db8:0:1:ffff::ffff", "2001:db8:0:1::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("unknown", "unknown"),
    ],
)
def test_a_client_is_an_address_or_a_64_network(client: str, network: str) -> None:
    assert guard.network_of(client) == network


def test_answers_come_ever_later_and_then_there_is_a_ban(one: Guard) -> None:
    waits = guess(one, 10)
    assert [round(wait, 1) for wait in waits] == [0.5, 1, 2, 4, 8, 8, 8, 8, 8, 8]
    assert 899 < one.banned(BAD) <= 900
    assert one.banned(GOOD) == 0


def test_guesses_are_added_up_over_processes_and_a_ban_is_known_to_all(db: Database, one: Guard, other: Guard) -> None:
    guess(one, 6)
    guess(other, 6, start=100)
    assert one.banned(BAD) == other.banned(BAD) == 0
    sync(db, one, other)
    assert one.banned(BAD) > 800 and other.banned(BAD) > 800
    assert one.banned(GOOD) == 0


def test_the_second_ban_is_twice_as_long_and_a_lifted_one_is_forgotten(db: Database, one: Guard) -> None:
    for minutes in (15, 30, 60):
        guess(one, 10)
        sync(db, one)
        assert one.banned(BAD) == pytest.approx(minutes * 60, abs=10)
        db.run(lambda conn: conn.execute("UPDATE bans SET banned_until = now()"))
        sync(db, one)
        assert one.banned(BAD) == 0
        one._networks.clear()
    assert db.run(bans.lift, BAD)
    assert not db.run(bans.lift, BAD)


def test_the_same_wrong_password_again_and_again_is_a_program_that_was_forgotten(one: Guard) -> None:
    for _ in range(100):
        assert one.failed(BAD, "acme-app", "old") <= guard.LONGEST_DELAY
    assert one.banned(BAD) == 0
    for _ in range(100):  # 200 within a moment is hammering
        one.failed(BAD, "acme-app", "old")
    assert one.banned(BAD) > 0


def test_guesses_leak_away(one: Guard) -> None:
    guess(one, 9)
    one._networks[BAD].at -= 300  # five minutes: half the limit
    guess(one, 5, start=50)
    assert one.banned(BAD) == 0
    guess(one, 1, start=60)
    assert one.banned(BAD) > 0


def test_at_an_account_that_many_guess_at_a_network_has_fewer_guesses(db: Database, one: Guard) -> None:
    for number in range(60):
        guess(one, 1, network=f"203.0.113.{number}", start=number)
    sync(db, one)
    guess(one, 2, network=BAD)
    assert one.banned(BAD) > 0
    guess(one, 2, network=GOOD, account="other-app")
    assert one.banned(GOOD) == 0
    (attacked,) = [row for row in db.run(bans.list_, guard.limit_of(Bans()), 1000) if row.kind == "account"]
    assert (attacked.name, attacked.banned_until) == ("acme-app", None)
    assert attacked.guesses == pytest.approx(60, abs=1)


@pytest.mark.parametrize("network", ["127.0.0.1", "10.1.2.3", "2001:db8:0:1::/64", "unknown"])
def test_networks_that_are_allowed_are_left_alone(network: str) -> None:
    lenient = Guard(Bans(), "inbound", ["10.0.0.0/8", "2001:db8::/32"])
    assert guess(lenient, 100, network) == [0.0] * 100
    assert lenient.banned(network) == 0


def test_a_flood_of_guesses_is_one_statement_with_few_rows_and_memory_is_bounded(db: Database, one: Guard) -> None:
    for number in range(20_000):
        one.failed(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}", f"name{number}", "x")
    assert len(one._networks) == 10_000
    assert len(one._accounts) <= 10_000
    db.run(one.sync)
    assert len(db.run(bans.list_, guard.limit_of(Bans()), 100_000)) == 2000


def test_an_outage_loses_no_count(db: Database, one: Guard) -> None:
    guess(one, 5)
    with pytest.raises(ZeroDivisionError), db.transaction() as conn:
        one.sync(conn)
        raise ZeroDivisionError  # not committed; what follows is counted all the same
    guess(one, 4, start=10)
    with pytest.raises(Unavailable), db.transaction() as conn:
        conn.close()
        one.sync(conn)
    guess(one, 1, start=20)
    assert one.banned(BAD) > 0  # in this process, whatever the database says


def test_where_nothing_repeats_it_a_sync_is_made_when_it_is_due(db: Database, one: Guard, other: Guard) -> None:
    other.sync_if_due(db)
    guess(one, 10)
    sync(db, one)
    other.sync_if_due(db)
    assert other.banned(BAD) == 0
    other._synced = time.monotonic() - 3
    other.sync_if_due(db)
    assert other.banned(BAD) > 0
