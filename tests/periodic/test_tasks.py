"""The repeating tasks, each on a real database."""

import asyncio
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any

import pytest
import seed

from remails import submission
from remails.bus.client import Publisher
from remails.config import Bus, Mail
from remails.db import Connection, Database
from remails.periodic import claims, holds, orphans, retention, usage
from remails.store import addresses, idempotency, messages, organizations, projects, queue
from remails.store.ids import MessageId
from remails.submission import Accepted
from remails.vault import Pepper, Vault

SILENT = Publisher(Bus(), "")
MAIL = Mail(hostname="relay.example")


def _run(task: Coroutine[Any, Any, None]) -> None:
    asyncio.run(task)


def _send(db: Database, tenant: seed.Tenant, *recipients: str) -> MessageId:
    """A mail of the tenant on its way."""
    [accepted] = submission.submit(db, SILENT, MAIL, [tenant.submission(*recipients)])
    assert isinstance(accepted, Accepted)
    return accepted.id


def _deliveries(db: Database, tenant: seed.Tenant, message_id: MessageId) -> list[messages.Delivery]:
    return db.run(messages.deliveries, tenant.organization_id, [message_id])


def _age(db: Database, message_id: MessageId, days: int) -> None:
    db.run(
        lambda conn: conn.execute(
            "UPDATE messages SET created_at = now() - make_interval(days => %s) WHERE id = %s", [days, message_id]
        )
    )


def _finish(db: Database, message_id: MessageId) -> None:
    db.run(
        lambda conn: conn.execute(
            "UPDATE deliveries SET status = 'delivered', finished_at = now() WHERE message_id = %s", [message_id]
        )
    )


def _count(conn: Connection, table: str) -> int:
    row = conn.execute(f"SELECT count(*) FROM {table}").fetchone()
    assert row is not None
    return int(row[0])


# claims


def test_the_claims_of_a_dead_host_end_and_those_of_a_living_one_stay(db: Database, tenant: seed.Tenant) -> None:
    dead, alive = _send(db, tenant), _send(db, tenant)
    other = db.run(addresses.register_host, "alive", "static", "", "", 5, "1")
    assert db.run(queue.claim_messages, tenant.host_id, tenant.sources, [dead], lease=600)
    assert db.run(queue.claim_messages, other.id, tenant.sources, [alive], lease=600)
    db.run(lambda conn: conn.execute("UPDATE hosts SET heartbeat_at = now() - interval '31 s' WHERE name = 'test'"))
    _run(claims.run(db, SILENT, 30))
    claimed = {
        delivery.message_id: delivery.is_claimed for id_ in (dead, alive) for delivery in _deliveries(db, tenant, id_)
    }
    assert claimed == {dead: False, alive: True}
    assert [claim.message_id for claim in db.run(queue.claim_due, other.id, tenant.sources, lease=60, limit=9)] == [
        dead
    ]


# orphans


def test_mail_of_an_address_that_went_away_moves_within_its_pool(db: Database, vault: Vault, pepper: Pepper) -> None:
    tenant = seed.tenant(db, vault, pepper, sources=("127.0.0.11", "127.0.0.12"))
    outside = db.run(addresses.create_pool, "dedicated")
    db.run(addresses.add, "127.0.0.99", outside.id, "static", "mx.example.com")
    sent = [_send(db, tenant, *[f"to@{name}.example" for name in "abcdefgh"]) for _ in range(2)]
    before = [delivery for message_id in sent for delivery in _deliveries(db, tenant, message_id)]
    assert {delivery.source for delivery in before} == {"127.0.0.11", "127.0.0.12"}
    db.run(addresses.disable, "127.0.0.11")
    _run(orphans.run(db, SILENT))
    after = [delivery for message_id in sent for delivery in _deliveries(db, tenant, message_id)]
    assert {delivery.source for delivery in after} == {"127.0.0.12"}
    moved = {delivery.id for delivery in before if delivery.source == "127.0.0.11"}
    entries = [entry for id_ in sent for entry in db.run(messages.timeline, tenant.organization_id, id_)]
    assert {entry.delivery_id for entry in entries if entry.kind == "moved"} == moved


def test_mail_waits_while_its_pool_is_empty_and_goes_where_submission_would_send_it(
    db: Database, tenant: seed.Tenant
) -> None:
    message_id = _send(db, tenant)
    [source] = tenant.sources
    db.run(addresses.disable, source)
    _run(orphans.run(db, SILENT))
    assert [delivery.source for delivery in _deliveries(db, tenant, message_id)] == [None]
    for ip in ("127.0.0.21", "127.0.0.22", "127.0.0.23"):
        db.run(addresses.add, ip, tenant.pool_id, "static", "mx.example.com")
    _run(orphans.run(db, SILENT))
    [later] = _deliveries(db, tenant, _send(db, tenant))
    assert [delivery.source for delivery in _deliveries(db, tenant, message_id)] == [later.source]


# holds


def test_mail_of_a_blocked_organization_is_held_and_let_go(db: Database, tenant: seed.Tenant) -> None:
    message_id = _send(db, tenant)
    db.run(organizations.set_block_status, tenant.organization_id, "no_sending")
    _run(holds.run(db))
    assert [delivery.status for delivery in _deliveries(db, tenant, message_id)] == ["held"]
    db.run(organizations.set_block_status, tenant.organization_id, "not_blocked")
    _run(holds.run(db))
    assert [delivery.status for delivery in _deliveries(db, tenant, message_id)] == ["accepted"]


# usage


def test_usage_is_folded_and_the_sum_stays(db: Database, tenant: seed.Tenant) -> None:
    for _ in range(3):
        _send(db, tenant, "a@example.net", "b@example.net")
    assert db.run(_count, "usage_log") == 3
    _run(usage.run(db))
    assert db.run(_count, "usage_log") == 0
    assert db.run(lambda conn: conn.execute("SELECT messages, recipients FROM usage").fetchall()) == [(3, 6)]


def test_a_quota_whose_month_is_over_starts_its_next_one(db: Database, tenant: seed.Tenant) -> None:
    db.run(lambda conn: conn.execute("UPDATE organizations SET quota_reset = now() - interval '1 hour'"))
    before = db.run(organizations.get, tenant.organization_id)
    _run(usage.run(db))
    after = db.run(organizations.get, tenant.organization_id)
    assert before is not None and after is not None
    assert 27 < (after.quota_reset - before.quota_reset).days < 32
    _run(usage.run(db))
    assert db.run(organizations.get, tenant.organization_id) == after


# retention


def test_bodies_go_when_their_project_says_so_and_what_waits_keeps_its_own(db: Database, tenant: seed.Tenant) -> None:
    young, old, waiting = (_send(db, tenant) for _ in range(3))
    project = db.run(projects.get, tenant.organization_id, tenant.project_id)
    assert project is not None
    _age(db, young, project.retention_period_days - 1)
    for message_id in (old, waiting):
        _age(db, message_id, project.retention_period_days + 1)
    for message_id in (young, old):
        _finish(db, message_id)
    _run(retention.run(db, 86400))
    kept = {id_: db.run(messages.body, tenant.organization_id, id_) is not None for id_ in (young, old, waiting)}
    assert kept == {young: True, old: False, waiting: True}
    assert db.run(messages.get, tenant.organization_id, old) is not None, "what happened to it is kept longer"


def test_bodies_that_are_kept_for_long_hide_none_behind_them(
    db: Database, tenant: seed.Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More than a batch of them, older than what is to go; and nothing that is too young for all is looked at."""
    monkeypatch.setattr(retention, "_BATCH", 3)
    for _ in range(7):
        _age(db, _send(db, tenant), 60)  # waiting, as if for a project that keeps them
    old = [_send(db, tenant) for _ in range(5)]
    for message_id in old:
        _age(db, message_id, 50)
        _finish(db, message_id)
    young = [_send(db, tenant) for _ in range(20)]
    looked = []
    remove = messages.remove_old_bodies
    monkeypatch.setattr(messages, "remove_old_bodies", lambda *args: (looked.append(args), remove(*args))[1])
    _run(retention.run(db, 86400))
    assert [db.run(messages.body, tenant.organization_id, id_) for id_ in old] == [None] * 5
    assert all(db.run(messages.body, tenant.organization_id, id_) for id_ in young)
    assert len(looked) == 5  # of three, and 12 are old


def test_finished_messages_go_after_ninety_days(db: Database, tenant: seed.Tenant) -> None:
    young, old, waiting = (_send(db, tenant) for _ in range(3))
    for message_id, days in ((young, 89), (old, 91), (waiting, 91)):
        _age(db, message_id, days)
    for message_id in (young, old):
        _finish(db, message_id)
    _run(retention.run(db, 86400))
    there = {id_: db.run(messages.get, tenant.organization_id, id_) is not None for id_ in (young, old, waiting)}
    assert there == {young: True, old: False, waiting: True}


def test_more_than_a_batch_goes_in_one_turn(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "_BATCH", 2)
    db.run(
        lambda conn: conn.execute(
            """
            INSERT INTO address_events (ip, epoch, kind, at)
            SELECT '198.51.100.1', n, 'ready', now() - n * interval '1 day' FROM generate_series(85, 95) n
            """
        )
    )
    _run(retention.run(db, 86400))
    assert db.run(_count, "address_events") == 5


def test_expired_sessions_and_old_failed_logins_go(db: Database, tenant: seed.Tenant) -> None:
    db.run(
        lambda conn: conn.execute(
            """
            WITH failures AS (
                INSERT INTO login_failures (subject, at) VALUES ('new', now()), ('old', now() - interval '2 days'))
            INSERT INTO sessions (digest, user_id, expires_at)
            SELECT digest::bytea, id, now() + shift FROM users,
                (VALUES ('live', interval '1 hour'), ('over', interval '-1 hour')) AS v (digest, shift)
            """
        )
    )
    _run(retention.run(db, 86400))
    assert (db.run(_count, "sessions"), db.run(_count, "login_failures")) == (1, 1)


def test_old_idempotency_keys_are_forgotten(db: Database, tenant: seed.Tenant) -> None:
    given = [replace(tenant.submission(), idempotency_key=key) for key in ("old", "new")]
    submission.submit(db, SILENT, MAIL, given)
    db.run(
        lambda conn: conn.execute(
            "UPDATE idempotency_keys SET created_at = now() - interval '25 hours' WHERE key = 'old'"
        )
    )
    _run(retention.run(db, 86400))
    places = [(tenant.project_id, "old"), (tenant.project_id, "new")]
    assert set(db.run(idempotency.find, places)) == {(tenant.project_id, "new")}
