"""Suppressions: no such mailbox, or five doubtful failures in a row; thirty days; one more attempt."""

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest

from remails.db import Connection, Database
from remails.mail import address
from remails.mail.addresslist import Entry
from remails.store import organizations, suppressions
from remails.store.ids import OrganizationId


@pytest.fixture
def acme(conn: Connection) -> OrganizationId:
    return organizations.create(conn, "Acme").id


def fail(conn: Connection, pairs: list[suppressions.Pair], *, is_sure: bool = False) -> set[suppressions.Pair]:
    """A refusal of each address."""
    return suppressions.record_bounces(conn, [suppressions.Bounced(*pair, is_sure, "550 no") for pair in pairs])


def active(conn: Connection, pairs: list[suppressions.Pair]) -> set[suppressions.Pair]:
    """Those that are suppressed now."""
    return set(suppressions.active_among(conn, pairs))


def test_fifth_failure_in_a_row_suppresses(conn: Connection, acme: OrganizationId) -> None:
    pair = (acme, "gone@example.net")

    for _ in range(4):
        assert fail(conn, [pair]) == set()
    assert active(conn, [pair]) == set()
    assert fail(conn, [pair]) == {pair}
    assert active(conn, [pair]) == {pair}

    (row,) = suppressions.list_(conn, acme)
    assert (row.address, row.failures) == ("gone@example.net", 5)
    assert row.suppressed_until is not None and (row.suppressed_until - row.updated_at).days == 30
    assert (row.kind, row.reason) == ("bounce", "550 no")


def test_failures_of_one_batch_count_each(conn: Connection, acme: OrganizationId) -> None:
    pair, neighbour = (acme, "gone@example.net"), (acme, "near@example.net")

    assert fail(conn, [pair, neighbour, pair, pair, pair, pair]) == {pair}


def test_a_delivery_forgets_the_failures(conn: Connection, acme: OrganizationId) -> None:
    pair = (acme, "back@example.net")
    fail(conn, [pair] * 4)

    suppressions.record_successes(conn, [pair, (acme, "unknown@example.net")])

    assert fail(conn, [pair]) == set()


def test_after_thirty_days_one_attempt_and_its_failure_suppresses_again(conn: Connection, acme: OrganizationId) -> None:
    pair = (acme, "gone@example.net")
    fail(conn, [pair] * 5)
    conn.execute("UPDATE suppressions SET suppressed_until = now() - interval '1 s'")

    assert active(conn, [pair]) == set()
    assert suppressions.list_(conn, acme) == []
    assert fail(conn, [pair]) == {pair}


def test_what_a_person_suppressed_stays(conn: Connection, acme: OrganizationId) -> None:
    pair = (acme, "never@example.net")
    suppressions.add(conn, acme, pair[1], "asked not to be written to")

    suppressions.record_successes(conn, [pair])
    fail(conn, [pair])

    (row,) = suppressions.list_(conn, acme)
    assert (row.suppressed_until, row.reason) == (None, "asked not to be written to")
    assert active(conn, [pair]) == {pair}
    assert suppressions.purge(conn) == 0


def test_added_by_hand_over_counted_failures(conn: Connection, acme: OrganizationId) -> None:
    fail(conn, [(acme, "a@example.net")])
    suppressions.add(conn, acme, "a@example.net", "by hand")

    (row,) = suppressions.list_(conn, acme)
    assert (row.suppressed_until, row.reason) == (None, "by hand")


def test_remove(conn: Connection, acme: OrganizationId) -> None:
    suppressions.add(conn, acme, "a@example.net", "")

    assert suppressions.remove(conn, acme, "a@example.net")
    assert not suppressions.remove(conn, acme, "a@example.net")
    assert active(conn, [(acme, "a@example.net")]) == set()


def test_other_organizations_are_not_touched(conn: Connection, acme: OrganizationId) -> None:
    other = organizations.create(conn, "Other").id
    suppressions.add(conn, acme, "a@example.net", "")

    assert active(conn, [(other, "a@example.net"), (acme, "a@example.net")]) == {(acme, "a@example.net")}
    assert suppressions.list_(conn, other) == []
    assert not suppressions.remove(conn, other, "a@example.net")


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("user+tag@xn--bcher-kva.example", True),
        ("USER+TAG@BÜCHER.example", True),
        ('"user+tag"@bücher.example', True),
        ("user@bücher.example", False),
    ],
)
def test_spellings_of_one_mailbox(conn: Connection, acme: OrganizationId, text: str, same: bool) -> None:
    """A11."""
    suppressions.add(conn, acme, address.parse("User+tag@Bücher.example").key, "")

    assert bool(active(conn, [(acme, address.parse(text).key)])) is same


def test_pages(conn: Connection, acme: OrganizationId) -> None:
    for name in "cab":
        suppressions.add(conn, acme, f"{name}@example.net", "")

    first = suppressions.list_(conn, acme, limit=2)
    rest = suppressions.list_(conn, acme, after=first[-1].address, limit=2)

    assert [row.address for row in first + rest] == ["a@example.net", "b@example.net", "c@example.net"]


def test_purge_forgets_old_counts(conn: Connection, acme: OrganizationId) -> None:
    fail(conn, [(acme, "old@example.net")] * 5)
    fail(conn, [(acme, "older@example.net")])
    conn.execute(
        "UPDATE suppressions SET updated_at = now() - interval '91 days', suppressed_until = now() - interval '61 days'"
    )
    fail(conn, [(acme, "new@example.net")])

    assert suppressions.purge(conn) == 2


def test_failures_of_an_organization_that_is_gone_are_dropped(conn: Connection, acme: OrganizationId) -> None:
    organizations.remove(conn, acme)

    assert fail(conn, [(acme, "a@example.net")]) == set()


def test_batches_in_opposite_order_do_not_deadlock(db: Database) -> None:
    acme = db.run(organizations.create, "Acme").id
    pairs = [(acme, f"{number:03}@example.net") for number in range(200)]
    together = threading.Barrier(4)

    def work(number: int) -> None:
        together.wait()
        for _ in range(5):
            batch = pairs if number % 2 else pairs[::-1]
            db.run(fail if number < 3 else suppressions.record_successes, batch)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(work, range(4)))


def test_no_such_mailbox_suppresses_at_once(conn: Connection, acme: OrganizationId) -> None:
    pair = (acme, "gone@example.net")
    assert fail(conn, [pair], is_sure=True) == {pair}
    assert suppressions.active_among(conn, [pair]) == {pair: "550 no"}
    conn.execute("UPDATE suppressions SET suppressed_until = now() - interval '1 s'")
    assert active(conn, [pair]) == set()
    assert fail(conn, [pair]) == set(), "a doubtful failure after it is the second, not the fifth"
    assert fail(conn, [pair], is_sure=True) == {pair}
    suppressions.record_successes(conn, [pair])
    assert active(conn, [pair]) == set()


def test_what_a_complaint_suppressed_stays_until_its_end(conn: Connection, acme: OrganizationId) -> None:
    pair, until = (acme, "a@example.net"), datetime.now(UTC) + timedelta(days=400)
    suppressions.add_many(conn, acme, [Entry(pair[1], "spam", "complaint", until)])

    suppressions.record_successes(conn, [pair])
    assert fail(conn, [pair], is_sure=True) == set()

    (row,) = suppressions.list_(conn, acme)
    assert (row.kind, row.reason, row.suppressed_until) == ("complaint", "spam", until)
    conn.execute("UPDATE suppressions SET suppressed_until = now() - interval '1 s'")
    assert fail(conn, [pair], is_sure=True) == {pair}
    (row,) = suppressions.list_(conn, acme)
    assert row.kind == "bounce"


def test_many_are_added_at_once_and_the_last_of_an_address_counts(conn: Connection, acme: OrganizationId) -> None:
    new = [Entry(f"{n % 3}@example.net", str(n)) for n in range(7)]
    assert suppressions.add_many(conn, acme, new) == 3
    assert [row.reason for row in suppressions.list_(conn, acme)] == ["6", "4", "5"]
    assert suppressions.add_many(conn, acme, []) == 0
    assert [row.address for row in suppressions.list_(conn, acme, search="2@EX")] == ["2@example.net"]
