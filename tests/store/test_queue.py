"""The queue: claims are exclusive and end, results count only under their own claim."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import LiteralString

import pytest
from installation import eventually
from seed import Tenant

from remails import submission
from remails.bus.client import Publisher
from remails.config import Bus, Mail
from remails.db import Connection, Database
from remails.store import holds, messages, projects, queue
from remails.store.ids import DeliveryId, HostId, MessageId, OrganizationId, new
from remails.store.queue import Begun, Claim, Result

MAIL = Mail(hostname="relay.example")


def submit(db: Database, tenant: Tenant, *recipients: str) -> MessageId:
    (outcome,) = submission.submit(db, Publisher(Bus(), ""), MAIL, [tenant.submission(*recipients)])
    assert isinstance(outcome, submission.Accepted)
    return outcome.id


def claim(db: Database, tenant: Tenant, *, lease: float = 60, limit: int = 10) -> list[Claim]:
    return db.run(queue.claim_due, tenant.host_id, tenant.sources, lease=lease, limit=limit)


def result(claimed: Claim, status: str = "delivered", **fields: object) -> Result:
    kind = {"delivered": "delivered", "failed": "failed", "reattempt": "deferred"}[status]
    return Result(claimed.id, claimed.message_id, claimed.claim_epoch, status, kind, "ok", **fields)  # type: ignore[arg-type]


def deliveries(db: Database, tenant: Tenant, message_id: MessageId) -> list[messages.Delivery]:
    return db.run(messages.deliveries, tenant.organization_id, [message_id])


def test_a_claim_is_exclusive_and_carries_what_delivery_needs(db: Database, tenant: Tenant) -> None:
    message_id = submit(db, tenant, "a@example.net", "b@example.org")
    claims = claim(db, tenant)
    assert sorted((c.recipient, c.domain) for c in claims) == [
        ("a@example.net", "example.net"),
        ("b@example.org", "example.org"),
    ]
    assert {c.source for c in claims} == {"127.0.0.11"}
    assert {c.claim_epoch for c in claims} == {1}
    assert claim(db, tenant) == []
    assert db.run(queue.claim_messages, tenant.host_id, tenant.sources, [message_id], lease=60) == []
    body = db.run(queue.bodies, [message_id])[message_id]
    assert body.startswith(b"Received: from test")
    assert body.endswith(b"Subject: Hello\r\n\r\nHi\r\n")


def test_only_deliveries_of_the_asked_addresses_are_claimed(db: Database, tenant: Tenant) -> None:
    message_id = submit(db, tenant, "a@example.net")
    assert db.run(queue.claim_due, tenant.host_id, ["127.0.0.99"], lease=60, limit=10) == []
    assert db.run(queue.claim_messages, tenant.host_id, ["127.0.0.99"], [message_id], lease=60) == []
    assert len(db.run(queue.claim_messages, tenant.host_id, tenant.sources, [message_id], lease=60)) == 1


def test_many_workers_share_the_queue_without_a_double(db: Database, tenant: Tenant) -> None:
    """Case X03."""
    for _ in range(40):
        submit(db, tenant, "a@example.net")
    with ThreadPoolExecutor(4) as pool:
        taken = list(pool.map(lambda _: claim(db, tenant, limit=7), range(12)))
    ids = [c.id for claims in taken for c in claims]
    assert len(ids) == len(set(ids)) == 40


def test_an_expired_lease_comes_due_with_a_higher_epoch(db: Database, tenant: Tenant) -> None:
    submit(db, tenant, "a@example.net")
    (first,) = claim(db, tenant, lease=0)
    (second,) = claim(db, tenant)
    assert (first.claim_epoch, second.claim_epoch) == (1, 2)


def test_a_renewed_lease_does_not_come_due(db: Database, tenant: Tenant) -> None:
    submit(db, tenant, "a@example.net")
    (claimed,) = claim(db, tenant, lease=0)
    assert db.run(queue.renew, [(claimed.id, claimed.claim_epoch)], 60) == {claimed.id}
    assert claim(db, tenant) == []
    assert db.run(queue.renew, [(claimed.id, claimed.claim_epoch + 1)], 60) == set()


def test_a_message_that_is_deleted_leaves_nothing_whoever_comes_late(db: Database, tenant: Tenant) -> None:
    kept = submit(db, tenant, "a@example.org")
    gone = submit(db, tenant, "a@example.net", "b@example.net")
    claims = {c.recipient: c for c in claim(db, tenant)}
    db.run(queue.record_many, [result(claims["a@example.net"])])
    db.run(lambda conn: conn.execute("DELETE FROM messages WHERE id = %s", [gone]))
    late = [result(claims["b@example.net"]), result(claims["a@example.org"])]
    assert db.run(queue.record_many, late) == {claims["a@example.org"].id}
    assert begin(db, claims["b@example.net"]) == set()
    for table in ("message_bodies", "deliveries", "timeline"):
        assert of_messages(db, table) == {kept}
    assert db.run(projects.remove, tenant.organization_id, tenant.project_id)
    for table in ("message_bodies", "deliveries", "timeline"):
        assert of_messages(db, table) == set()


def of_messages(db: Database, table: LiteralString) -> set[MessageId]:
    return {id_ for (id_,) in db.run(lambda conn: conn.execute(f"SELECT message_id FROM {table}").fetchall())}


def test_a_late_failure_does_not_overwrite_the_later_worker(db: Database, tenant: Tenant) -> None:
    """Case X16: results out of order, a state never moves backward."""
    message_id = submit(db, tenant, "a@example.net")
    (first,) = claim(db, tenant, lease=0)
    (second,) = claim(db, tenant)
    assert db.run(queue.record_many, [result(first, "failed")]) == set()
    assert deliveries(db, tenant, message_id)[0].status == "accepted"
    assert db.run(queue.record_many, [result(second)]) == {second.id}
    assert deliveries(db, tenant, message_id)[0].status == "delivered"
    timeline = db.run(messages.timeline, tenant.organization_id, message_id)
    assert [entry.kind for entry in timeline] == ["failed", "delivered"]


def test_a_late_delivery_stands_and_fences_off_the_later_worker(db: Database, tenant: Tenant) -> None:
    message_id = submit(db, tenant, "a@example.net")
    (first,) = claim(db, tenant, lease=0)
    (second,) = claim(db, tenant)
    assert db.run(queue.record_many, [result(first)]) == {first.id}
    assert db.run(queue.record_many, [result(second, "failed")]) == set()
    assert deliveries(db, tenant, message_id)[0].status == "delivered"


def test_a_deferred_delivery_comes_due_when_its_time_has_come(db: Database, tenant: Tenant) -> None:
    message_id = submit(db, tenant, "a@example.net")
    (claimed,) = claim(db, tenant)
    later = datetime.now(UTC) + timedelta(hours=1)
    db.run(queue.record_many, [result(claimed, "reattempt", next_attempt_at=later, code=451, enhanced="4.7.1")])
    assert claim(db, tenant) == []
    (row,) = deliveries(db, tenant, message_id)
    assert (row.status, row.attempts, row.next_attempt_at) == ("reattempt", 1, later)
    assert (row.last_code, row.last_enhanced, row.last_reply) == (451, "4.7.1", "ok")
    db.run(queue.retry, tenant.organization_id, message_id)
    (again,) = claim(db, tenant)
    assert again.attempts == 1


def test_what_did_not_count_as_an_attempt_is_none(db: Database, tenant: Tenant) -> None:
    message_id = submit(db, tenant, "a@example.net")
    (claimed,) = claim(db, tenant)
    db.run(queue.record_many, [result(claimed, "reattempt", next_attempt_at=datetime.now(UTC), counts=False)])
    assert deliveries(db, tenant, message_id)[0].attempts == 0


@pytest.mark.parametrize("status", ["delivered", "failed", "reattempt"])
def test_a_result_counts_once_though_it_is_recorded_again(db: Database, tenant: Tenant, status: str) -> None:
    """As after a commit of which no answer came."""
    message_id = submit(db, tenant)
    (claimed,) = claim(db, tenant)
    later = datetime.now(UTC) + timedelta(hours=1)
    one = result(claimed, status, next_attempt_at=later if status == "reattempt" else None)
    assert db.run(queue.record_many, [one]) == {claimed.id}
    assert db.run(queue.record_many, [one]) == set()
    (row,) = deliveries(db, tenant, message_id)
    assert (row.status, row.attempts) == (status, 1)
    assert len(db.run(messages.timeline, tenant.organization_id, message_id)) == 1


def test_a_released_claim_is_due_again_and_no_attempt(db: Database, tenant: Tenant) -> None:
    submit(db, tenant, "a@example.net")
    (claimed,) = claim(db, tenant)
    db.run(queue.release, [(claimed.id, claimed.claim_epoch)])
    (again,) = claim(db, tenant)
    assert again.attempts == 0
    db.run(queue.release, [(claimed.id, claimed.claim_epoch)])  # by an old epoch: nothing
    assert claim(db, tenant) == []


def test_claims_of_a_dead_host_are_freed_at_once(db: Database, tenant: Tenant) -> None:
    submit(db, tenant, "a@example.net")
    (claimed,) = claim(db, tenant)
    assert db.run(queue.free_dead_claims, 30) == 0
    db.run(lambda conn: conn.execute("UPDATE hosts SET heartbeat_at = now() - interval '1 minute'"))
    assert db.run(queue.free_dead_claims, 30) == 1
    (again,) = claim(db, tenant)
    assert again.claim_epoch > claimed.claim_epoch
    assert db.run(queue.record_many, [result(claimed, "failed")]) == set()


def test_claims_are_freed_without_waiting_for_a_host_that_comes_late(db: Database, tenant: Tenant) -> None:
    """Its results go in by their ids, and the claims are found in another order: waiting, each would have what the other wants."""
    submit(db, tenant, "a@example.net", "b@example.net")
    late, other = claim(db, tenant)
    db.run(lambda conn: conn.execute("UPDATE hosts SET heartbeat_at = now() - interval '1 minute'"))
    with db.transaction() as conn:
        assert queue.record_many(conn, [result(late)]) == {late.id}
        assert db.run(queue.free_dead_claims, 30) == 1
    assert [one.id for one in claim(db, tenant)] == [other.id]


def test_due_names_what_nobody_took(db: Database, tenant: Tenant) -> None:
    submit(db, tenant, "a@example.net", "b@example.net")
    assert db.run(queue.due, older_than=60) == []
    assert db.run(queue.due, older_than=0) == ["127.0.0.11"]
    claim(db, tenant)
    assert db.run(queue.due, older_than=0) == []


def test_a_blocked_organization_waits_and_goes_on(db: Database, tenant: Tenant) -> None:
    message_id = submit(db, tenant, "a@example.net")
    db.run(lambda conn: conn.execute("UPDATE organizations SET block_status = 'no_sending'"))
    assert db.run(holds.settle) == holds.Settled(1, 0, 0)
    assert claim(db, tenant) == []
    held = submit(db, tenant, "b@example.net")
    assert [deliveries(db, tenant, id_)[0].status for id_ in (message_id, held)] == ["held", "held"]
    db.run(lambda conn: conn.execute("UPDATE organizations SET block_status = 'not_blocked'"))
    assert db.run(holds.settle) == holds.Settled(0, 2, 0)
    assert len(claim(db, tenant)) == 2


def test_a_deleted_body_ends_what_waits(db: Database, tenant: Tenant) -> None:
    message_id = submit(db, tenant, "a@example.net")
    assert db.run(messages.remove_body, tenant.organization_id, message_id)
    assert claim(db, tenant) == []
    message = db.run(messages.get, tenant.organization_id, message_id)
    assert message is not None
    assert (message.status, message.has_body) == ("failed", False)
    assert db.run(queue.retry, tenant.organization_id, message_id) == []


@pytest.mark.parametrize(
    ("statuses", "expected"),
    [
        (["delivered", "delivered"], "delivered"),
        (["delivered", "failed"], "failed"),
        (["delivered", "suppressed"], "failed"),
        (["suppressed", "suppressed"], "rejected"),
        (["delivered", "reattempt"], "reattempt"),
        (["accepted", "delivered"], "accepted"),
        (["accepted", "reattempt"], "reattempt"),
        (["held", "delivered"], "held"),
    ],
)
def test_a_messages_status_follows_from_its_deliveries(
    db: Database, tenant: Tenant, statuses: list[str], expected: str
) -> None:
    message_id = submit(db, tenant, *(f"r{number}@example.net" for number in range(len(statuses))))
    for row, status in zip(deliveries(db, tenant, message_id), statuses, strict=True):
        db.run(_set_status, row.id, status)
    message = db.run(messages.get, tenant.organization_id, message_id)
    assert message is not None
    assert message.status == expected
    assert [m.id for m in db.run(messages.list_, tenant.organization_id, statuses=[expected])] == [message_id]


def _set_status(conn: object, delivery_id: DeliveryId, status: str) -> None:
    conn.execute("UPDATE deliveries SET status = %s WHERE id = %s", [status, delivery_id])  # type: ignore[attr-defined]


def test_another_organization_sees_and_touches_nothing(db: Database, tenant: Tenant) -> None:
    message_id = submit(db, tenant, "a@example.net")
    other = OrganizationId(new())
    assert db.run(messages.get, other, message_id) is None
    assert db.run(messages.list_, other) == []
    assert db.run(messages.deliveries, other, [message_id]) == []
    assert db.run(messages.timeline, other, message_id) == []
    assert db.run(messages.body, other, message_id) is None
    assert not db.run(messages.remove_body, other, message_id)
    assert db.run(queue.retry, other, message_id) == []
    assert len(claim(db, tenant)) == 1


def test_lists_page_by_id_and_search_recipients_and_subjects(db: Database, tenant: Tenant) -> None:
    ids = [submit(db, tenant, f"r{number}@example.net", "50%off@example.net") for number in range(5)]
    page = db.run(messages.list_, tenant.organization_id, limit=2)
    assert [m.id for m in page] == [ids[4], ids[3]]
    page = db.run(messages.list_, tenant.organization_id, limit=2, before=page[-1].id)
    assert [m.id for m in page] == [ids[2], ids[1]]
    assert [m.id for m in db.run(messages.list_, tenant.organization_id, search="R3@")] == [ids[3]]
    assert len(db.run(messages.list_, tenant.organization_id, search="0%o")) == 5
    assert db.run(messages.list_, tenant.organization_id, search="%zz%") == []
    assert len(db.run(messages.list_, tenant.organization_id, search="hello")) == 5


def test_an_unknown_host_claims_like_any(db: Database, tenant: Tenant) -> None:
    """The host id is only noted; what it may claim is decided by the addresses it passes."""
    submit(db, tenant, "a@example.net")
    assert len(db.run(queue.claim_due, HostId(new()), tenant.sources, lease=60, limit=1)) == 1


def begin(db: Database, *claims: Claim) -> set[DeliveryId]:
    return db.run(queue.begin, [queue.Begun(c.id, c.claim_epoch, "mx.example.net", "127.0.0.21") for c in claims])


def test_batches_in_opposite_order_do_not_deadlock(db: Database, tenant: Tenant) -> None:
    """As they meet in one process: an envelope's note comes late, results come in any order, and leases are renewed meanwhile."""
    for _ in range(6):
        submit(db, tenant, *(f"r{number}@example.net" for number in range(50)))
    claims = claim(db, tenant, limit=300)
    held = [(one.id, one.claim_epoch) for one in claims]
    deferred = [result(one, "reattempt") for one in claims]
    together = threading.Barrier(3)

    def work(write: Callable[[], object]) -> None:
        together.wait()
        for _ in range(15):
            write()

    with ThreadPoolExecutor(3) as threads:
        list(
            threads.map(
                work,
                (
                    lambda: db.run(queue.record_many, deferred[::-1]),
                    lambda: db.run(queue.renew, held, 60),
                    lambda: begin(db, *claims[150:], *claims[:150]),
                ),
            )
        )


def test_mail_is_deleted_in_the_order_in_which_results_are_recorded(db: Database, tenant: Tenant) -> None:
    for _ in range(2):
        submit(db, tenant)
    first, second = sorted(claim(db, tenant), key=lambda one: one.id)
    begin(db, first)  # its row stands behind the other one from now on
    with ThreadPoolExecutor(1) as threads:
        with db.transaction() as conn:
            queue.record_many(conn, [result(first)])
            deleted = threads.submit(db.run, messages.remove_some, tenant.organization_id, 10)
            waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted"
            eventually(lambda: conn.execute(waiting).fetchone(), lambda row: row == (1,))
            queue.record_many(conn, [result(second)])
        assert deleted.result() == 2


def test_only_a_claim_that_is_still_ours_may_be_sent(db: Database, tenant: Tenant) -> None:
    submit(db, tenant, "a@example.net", "b@example.net")
    late, _ = claim(db, tenant, lease=0)
    (again,) = [one for one in claim(db, tenant) if one.id == late.id]
    assert begin(db, late) == set()
    assert begin(db, again) == {again.id}
    db.run(queue.record_many, [result(again)])
    assert begin(db, again) == set()


def test_who_died_while_sending_leaves_an_ambiguous_attempt(db: Database, tenant: Tenant) -> None:
    """And who died before leaves none, nor who has recorded a result."""
    message_id = submit(db, tenant, "begun@example.net", "waiting@example.net", "answered@example.net")
    claims = {one.recipient.partition("@")[0]: one for one in claim(db, tenant, lease=0)}
    begin(db, claims["begun"], claims["answered"])
    db.run(queue.record_many, [result(claims["answered"], "reattempt", next_attempt_at=datetime.now(UTC))])
    again = {one.recipient.partition("@")[0]: one.attempts for one in claim(db, tenant, lease=0)}
    assert again == {"begun": 1, "waiting": 0, "answered": 1}
    (entry,) = [one for one in db.run(messages.timeline, tenant.organization_id, message_id) if one.kind == "ambiguous"]
    assert (entry.delivery_id, entry.mx_host, entry.mx_ip) == (claims["begun"].id, "mx.example.net", "127.0.0.21")
    assert "may have arrived" in entry.cause
    assert {one.attempts for one in claim(db, tenant)} == {0, 1}  # said once


def test_what_is_not_due_is_not_read(db: Database, tenant: Tenant) -> None:
    """Millions may wait for their next attempt, and the queue is asked for what is due every second."""
    submit(db, tenant, "later@example.net")
    with db.transaction() as conn:
        conn.execute(
            """
            INSERT INTO deliveries (message_id, organization_id, recipient, domain, status, source, next_attempt_at)
            SELECT message_id, organization_id, recipient, domain, status, source, now() + interval '1 h'
            FROM deliveries, generate_series(1, 20000)
            """
        )
        conn.execute("UPDATE deliveries SET next_attempt_at = now() + interval '1 h'")
    submit(db, tenant, "due@example.net")
    with db.transaction() as conn:
        conn.execute("ANALYZE deliveries")
        before = _read(conn)
        (claimed,) = queue.claim_due(conn, tenant.host_id, tenant.sources, lease=-60, limit=10)
        assert claimed.recipient == "due@example.net"
        assert queue.due(conn, older_than=30) == ["127.0.0.11"]
        assert _read(conn) - before < 100


def test_what_is_named_is_looked_up_though_much_has_come_since_the_statistics(db: Database, tenant: Tenant) -> None:
    """They are taken when the queue happens to be empty, and minutes later a large receiver takes nothing."""
    message_id = submit(db, tenant, "named@example.net")
    crowd = """
        INSERT INTO deliveries (message_id, organization_id, recipient, domain, status, source, next_attempt_at, claimed_by)
        SELECT %s, organization_id, recipient, domain, %s, source, now() + interval '1 h', %s
        FROM deliveries, generate_series(1, 20000) WHERE message_id = %s
        """
    with db.transaction() as conn:
        conn.execute(crowd, [new(), "delivered", None, message_id])
        conn.execute("ANALYZE deliveries")
        conn.execute(crowd, [new(), "reattempt", tenant.host_id, message_id])

        before = _read(conn)
        (claimed,) = queue.claim_messages(conn, tenant.host_id, tenant.sources, [message_id], lease=60)
        ours = claimed.id, claimed.claim_epoch
        assert queue.renew(conn, [ours], 60) == {claimed.id}
        assert queue.begin(conn, [Begun(*ours, "mx.example.net", "127.0.0.21")]) == {claimed.id}
        assert queue.record_many(conn, [result(claimed, "reattempt")]) == {claimed.id}
        queue.release(conn, [ours])
        assert _read(conn) - before < 100


def _read(conn: Connection) -> int:
    """Rows of the queue that this transaction has read."""
    row = conn.execute(
        "SELECT seq_tup_read + idx_tup_fetch FROM pg_stat_xact_user_tables WHERE relname = 'deliveries'"
    ).fetchone()
    assert row is not None
    return int(row[0])
