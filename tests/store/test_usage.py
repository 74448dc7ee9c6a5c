"""Usage: appended, folded, and never counted twice."""

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta

import pytest
from seed import use

from remails.db import Connection, Database
from remails.store import ids, organizations, projects, usage
from remails.store.ids import OrganizationId, ProjectId

LONG_AGO = datetime(2000, 1, 1, tzinfo=UTC)


@pytest.fixture
def shop(conn: Connection) -> tuple[OrganizationId, ProjectId]:
    acme = organizations.create(conn, "Acme").id
    return acme, projects.create(conn, acme, "Shop").id


def test_counts_before_and_after_the_fold(conn: Connection, shop: tuple[OrganizationId, ProjectId]) -> None:
    use(conn, *shop, 2, 5)
    use(conn, *shop, 1, 1)
    assert usage.used_since(conn, shop[0], LONG_AGO) == 3

    assert usage.fold(conn, 10) == 2
    use(conn, *shop, 10, 10)

    assert usage.used_since(conn, shop[0], LONG_AGO) == 13
    assert usage.fold(conn, 10) == 1
    assert usage.fold(conn, 10) == 0
    assert usage.used_since(conn, shop[0], LONG_AGO) == 13


def test_fold_takes_no_more_than_the_limit(conn: Connection, shop: tuple[OrganizationId, ProjectId]) -> None:
    for _ in range(5):
        use(conn, *shop, 1, 1)

    assert [usage.fold(conn, 3), usage.fold(conn, 3)] == [3, 2]
    assert usage.used_since(conn, shop[0], LONG_AGO) == 5


def test_only_since_then(conn: Connection, shop: tuple[OrganizationId, ProjectId]) -> None:
    today = datetime.now(UTC)
    use(conn, *shop, 7, 7)
    conn.execute("UPDATE usage_log SET at = at - interval '40 days'")
    use(conn, *shop, 1, 1)

    for _ in range(2):  # before and after folding
        assert usage.used_since(conn, shop[0], today - timedelta(days=30)) == 1
        assert usage.used_since(conn, shop[0], today - timedelta(days=50)) == 8
        assert usage.used_since(conn, shop[0], today + timedelta(days=2)) == 0
        usage.fold(conn)


def test_organizations_are_apart(conn: Connection, shop: tuple[OrganizationId, ProjectId]) -> None:
    other = organizations.create(conn, "Other").id
    use(conn, *shop, 3, 3)

    assert usage.used_since(conn, other, LONG_AGO) == 0
    assert usage.days(conn, other, date(2000, 1, 1)) == []


def test_days(conn: Connection, shop: tuple[OrganizationId, ProjectId]) -> None:
    second = projects.create(conn, shop[0], "Blog").id
    use(conn, *shop, 2, 5)
    usage.fold(conn)
    use(conn, *shop, 1, 1)
    use(conn, shop[0], second, 4, 4)

    found = usage.days(conn, shop[0], date(2000, 1, 1))

    assert {(row.project_id, row.messages, row.recipients) for row in found} == {(shop[1], 3, 6), (second, 4, 4)}
    assert {row.day for row in found} <= {datetime.now(UTC).date(), datetime.now(UTC).date() - timedelta(days=1)}
    assert usage.days(conn, shop[0], date(2999, 1, 1)) == []


def test_usage_of_an_organization_that_is_gone_goes_too(conn: Connection) -> None:
    use(conn, OrganizationId(ids.new()), ProjectId(ids.new()), 1, 1)

    assert usage.fold(conn) == 1
    assert conn.execute("SELECT count(*) FROM usage").fetchone() == (0,)


def test_fold_beside_appends_loses_and_doubles_nothing(db: Database) -> None:
    acme = db.run(organizations.create, "Acme").id
    shop = db.run(projects.create, acme, "Shop").id
    done = threading.Event()

    def append(_: int) -> None:
        for _ in range(50):
            for _ in range(3):
                db.run(use, acme, shop, 1, 2)

    def fold(_: int) -> None:
        while not done.is_set():
            db.run(usage.fold, 20)

    with ThreadPoolExecutor(4) as threads:
        folding = [threads.submit(fold, number) for number in range(2)]
        try:
            list(threads.map(append, range(2)))
        finally:
            done.set()
        for future in folding:
            future.result()
    assert db.run(usage.used_since, acme, LONG_AGO) == 300
    while db.run(usage.fold):
        pass
    (day,) = db.run(usage.days, acme, date(2000, 1, 1))
    assert (day.messages, day.recipients) == (300, 600)
