"""Accepted = final + waiting: what does not add up is found, by messages and not by sums, and what does is not."""

import asyncio
from datetime import timedelta
from uuid import UUID

import pytest
import seed
from prometheus_client import REGISTRY

from remails import submission
from remails.bus.client import Publisher
from remails.config import Bus, Mail
from remails.db import Database
from remails.periodic import balance as task
from remails.periodic import watch
from remails.store import balance, ids
from remails.store.ids import MessageId
from remails.submission import Accepted

SILENT = Publisher(Bus(), "")


@pytest.fixture(autouse=True)
def _settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was just committed is old enough to be looked at."""
    monkeypatch.setattr(balance, "SETTLED", timedelta(seconds=-60))


def send(db: Database, tenant: seed.Tenant, *recipients: str) -> MessageId:
    """A mail of the tenant on its way."""
    [accepted] = submission.submit(
        db, SILENT, Mail(hostname="relay.example"), [tenant.submission(*recipients or ("a@b.example", "c@d.example"))]
    )
    assert isinstance(accepted, Accepted)
    return accepted.id


def execute(db: Database, statement: str, *arguments: object) -> None:
    """Some SQL in a transaction."""
    db.run(lambda conn: conn.execute(statement, arguments))  # type: ignore[arg-type]  # of this test


def turn(db: Database) -> dict[str, float]:
    """The numbers after a turn of the task."""
    asyncio.run(task.run(db))
    asyncio.run(watch.run(db, 30))
    names = ("missing", "unfinished", "behind_seconds")
    return {name: REGISTRY.get_sample_value(f"remails_balance_{name}") or 0 for name in names}


def test_what_adds_up_is_silent(db: Database, tenant: seed.Tenant) -> None:
    send(db, tenant)
    execute(db, "UPDATE deliveries SET status = 'delivered', finished_at = now() WHERE recipient = 'a@b.example'")
    old = send(db, tenant)  # of the version before, which did not say how many
    execute(db, "UPDATE messages SET recipients = NULL WHERE id = %s", old)
    finished = send(db, tenant)  # its content is forgotten before the rest of it
    execute(db, "UPDATE deliveries SET status = 'failed', finished_at = now() WHERE message_id = %s", finished)
    execute(db, "DELETE FROM message_bodies WHERE message_id = %s", finished)
    assert turn(db) == {"missing": 0, "unfinished": 0, "behind_seconds": 0}


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        ("DELETE FROM deliveries WHERE message_id = %s AND recipient = 'a@b.example'", "1 deliveries of 2"),
        ("DELETE FROM deliveries WHERE message_id = %s", "0 deliveries of 2"),
        ("DELETE FROM message_bodies WHERE message_id = %s", "waits without its content"),
    ],
)
def test_a_lost_row_is_found(db: Database, tenant: seed.Tenant, damage: str, problem: str) -> None:
    send(db, tenant)
    lost = send(db, tenant)
    execute(db, damage, lost)
    assert turn(db)["missing"] == 1
    assert db.run(balance.list_) == [balance.Imbalance(lost, problem)]


def test_what_is_lost_later_is_found_by_looking_again(db: Database, tenant: seed.Tenant) -> None:
    lost = send(db, tenant)
    assert turn(db)["missing"] == 0
    execute(db, "DELETE FROM deliveries WHERE message_id = %s", lost)
    assert turn(db)["missing"] == 1


def test_a_lost_row_of_an_old_message_without_a_number_is_found_if_none_is_left(
    db: Database, tenant: seed.Tenant
) -> None:
    lost = send(db, tenant)
    execute(db, "UPDATE messages SET recipients = NULL")
    execute(db, "DELETE FROM deliveries WHERE message_id = %s", lost)
    assert turn(db)["missing"] == 1


def test_it_stays_until_it_is_mended_or_forgotten(db: Database, tenant: seed.Tenant) -> None:
    lost, forgotten = send(db, tenant, "a@b.example"), send(db, tenant, "a@b.example")
    execute(db, "DELETE FROM deliveries")
    assert [turn(db)["missing"], turn(db)["missing"]] == [2, 2]
    execute(db, "UPDATE messages SET recipients = 0 WHERE id = %s", lost)
    execute(db, "DELETE FROM messages WHERE id = %s", forgotten)
    assert turn(db)["missing"] == 0


def test_steps_go_on_where_the_last_one_ended_and_come_round(db: Database, tenant: seed.Tenant) -> None:
    for _ in range(5):
        send(db, tenant)
    assert [db.run(balance.walk, "new", 2).messages for _ in range(4)] == [2, 2, 1, 0]
    assert [db.run(balance.walk, "again", 2).messages for _ in range(4)] == [2, 2, 1, 2]


def test_what_was_never_looked_at_has_an_age(db: Database, tenant: seed.Tenant) -> None:
    send(db, tenant)
    assert db.run(balance.walk, "new", 1).messages == 1
    send(db, tenant)
    execute(db, "UPDATE messages SET created_at = now() - interval '1000 s'")
    assert db.run(balance.state).behind == pytest.approx(1000, abs=5)


def test_a_delivery_has_to_be_final_in_time(db: Database, tenant: seed.Tenant, monkeypatch: pytest.MonkeyPatch) -> None:
    new = ids.new
    monkeypatch.setattr(ids, "new", lambda: UUID(int=new().int - (62 * 60_000 << 80)))  # 62 minutes ago
    late, held = send(db, tenant), send(db, tenant, "a@b.example")
    execute(db, "UPDATE messages SET expires_at = now() - interval '61 minutes'")
    execute(db, "UPDATE deliveries SET status = 'held', held_for = 'operator' WHERE message_id = %s", held)
    assert turn(db)["unfinished"] == 2
    execute(db, "UPDATE messages SET expires_at = now() - interval '59 minutes' WHERE id = %s", late)
    assert turn(db)["unfinished"] == 0


def test_an_id_is_compared_by_the_moment_it_was_made(db: Database, tenant: seed.Tenant) -> None:
    made = send(db, tenant)
    [(bound,)] = db.run(lambda conn: conn.execute(f"SELECT {balance._ID_AT.format('now()')}").fetchall())
    assert abs((UUID(str(bound)).int >> 80) - (UUID(str(made)).int >> 80)) < 60_000
