"""The one door for mail: what passes is stored and said, what does not leaves nothing behind."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime, timedelta, tzinfo

import pytest
import seed
from seed import Tenant

from remails import submission
from remails.bus import events
from remails.bus.client import Publisher
from remails.config import Bus, Mail
from remails.db import Connection, Database
from remails.errors import Refused
from remails.mail import address
from remails.store import addresses, domains, messages, organizations, plans, projects, suppressions, usage
from remails.store.ids import MessageId, OrganizationId, ProjectId, new
from remails.store.rates import Rate
from remails.submission import Accepted, Submission
from remails.throttle import Throttle
from remails.vault import Pepper, Vault

MAIL = Mail(hostname="relay.example")


class Listening(Publisher):
    """A publisher that keeps what it would say."""

    def __init__(self) -> None:
        super().__init__(Bus(), "")
        self.said: list[events.Event] = []

    def publish(self, event: events.Event) -> None:
        self.said.append(event)


def submit(db: Database, *given: Submission, mail: Mail = MAIL) -> list[Accepted | Refused]:
    return submission.submit(db, Listening(), mail, given)


def refused(outcome: Accepted | Refused) -> tuple[int, str, int]:
    assert isinstance(outcome, Refused)
    return outcome.code, outcome.enhanced, outcome.status


def count(db: Database) -> tuple[int, ...]:
    """Rows in everything a submission could leave behind."""

    def counts(conn: Connection) -> tuple[int, ...]:
        row = conn.execute(
            """SELECT (SELECT count(*) FROM messages), (SELECT count(*) FROM message_bodies),
                (SELECT count(*) FROM deliveries), (SELECT count(*) FROM usage_log)"""
        ).fetchone()
        assert row is not None
        return tuple(row)

    return db.run(counts)


def test_what_is_accepted_is_stored_and_said_after_the_commit(db: Database, tenant: Tenant) -> None:
    publisher = Listening()
    given = tenant.submission("a@example.net", "b@example.org")
    (outcome,) = submission.submit(db, publisher, MAIL, [given])
    assert isinstance(outcome, Accepted)
    assert outcome.id == given.id
    assert outcome.message_id_header == f"<{given.id}@acme.example>"
    assert publisher.said == [events.Ready("127.0.0.11", [given.id])]
    stored = db.run(messages.get, tenant.organization_id, given.id)
    assert stored is not None
    assert (stored.status, stored.recipients) == ("accepted", ["a@example.net", "b@example.org"])
    assert (stored.mail_from, stored.subject) == ("sender@acme.example", "Hello")
    assert stored.expires_at - stored.created_at == timedelta(days=4)
    assert count(db) == (1, 1, 2, 1)


def test_a_recipient_named_twice_gets_one_copy(db: Database, tenant: Tenant) -> None:
    given = tenant.submission("a@example.net", "a@example.net")
    submit(db, given)
    assert [d.recipient for d in db.run(messages.deliveries, tenant.organization_id, [given.id])] == ["a@example.net"]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda t: replace(t.submission(), recipients=()), (554, "5.5.1", 422)),
        (lambda t: t.submission(mail_from="x@other.example"), (550, "5.7.1", 422)),
        (lambda t: t.submission(mail_from="x@evilacme.example"), (550, "5.7.1", 422)),  # the label boundary
        (
            lambda t: t.submission(raw=b"From: x@evilacme.example\r\nSubject: x\r\n\r\nx\r\n"),
            (550, "5.7.1", 422),
        ),
        (
            lambda t: t.submission(raw=b"From: x@acme.example, y@victim.example\r\nSubject: x\r\n\r\nx\r\n"),
            (550, "5.7.1", 422),
        ),
        (lambda t: t.submission(raw=b"Subject: no From\r\n\r\nx\r\n"), (550, "5.6.0", 422)),
        (lambda t: t.submission(raw=b"From: x@acme.example\r\n\r\nbare\nLF\r\n"), (550, "5.6.11", 422)),
        (
            lambda t: replace(t.submission(), sender=replace(t.sender, project_id=ProjectId(new()))),
            (550, "5.7.1", 404),
        ),
        (
            lambda t: replace(t.submission(), sender=replace(t.sender, organization_id=OrganizationId(new()))),
            (550, "5.7.1", 404),
        ),
    ],
)
def test_what_is_refused_leaves_nothing_and_its_neighbours_alone(
    db: Database, tenant: Tenant, change: Callable[[Tenant], Submission], expected: tuple[int, str, int]
) -> None:
    first, second, third = submit(db, tenant.submission(), change(tenant), tenant.submission())
    assert refused(second) == expected
    assert isinstance(first, Accepted)
    assert isinstance(third, Accepted)
    assert count(db)[:3] == (2, 2, 2)


def test_limits(db: Database, tenant: Tenant) -> None:
    small = Mail(hostname="relay.example", max_size=50, max_recipients=2)
    many = tenant.submission(*(f"r{number}@example.net" for number in range(3)))
    large, crowded = submit(db, tenant.submission(), many, mail=small)
    assert refused(large) == (552, "5.3.4", 413)
    assert refused(crowded) == (552, "5.5.3", 422)
    assert count(db) == (0, 0, 0, 0)


def test_a_subdomain_may_be_used_and_the_closest_domain_signs(db: Database, tenant: Tenant, vault: Vault) -> None:
    def add(conn: Connection) -> domains.Domain:
        made = domains.create(
            conn, vault, tenant.organization_id, "news.acme.example", selector="s", project_ids=[tenant.project_id]
        )
        domains.save_verification(conn, made.id, {}, verified=True)
        return made

    closest = db.run(add)
    db.run(
        lambda conn: domains.create(
            conn, vault, tenant.organization_id, "a.news.acme.example", selector="s", project_ids=[tenant.project_id]
        )
    )  # closer, but not verified
    given = tenant.submission(mail_from="x@a.news.acme.example")
    (outcome,) = submit(db, given)
    assert isinstance(outcome, Accepted)
    row = db.run(lambda conn: conn.execute("SELECT domain_id FROM messages").fetchone())
    assert row == (closest.id,)


def test_a_domain_has_to_be_verified_and_attached(db: Database, tenant: Tenant, vault: Vault) -> None:
    db.run(lambda conn: conn.execute("UPDATE domains SET verified_at = NULL"))
    (outcome,) = submit(db, tenant.submission())
    assert isinstance(outcome, Refused)
    assert "not verified yet" in outcome.text
    with pytest.raises(Refused, match="not verified"):
        db.run(submission.check_sender, tenant.sender, "acme.example")
    db.run(lambda conn: conn.execute("UPDATE domains SET verified_at = now()"))
    db.run(submission.check_sender, tenant.sender, "sub.acme.example")
    db.run(lambda conn: conn.execute("DELETE FROM domains_projects"))
    with pytest.raises(Refused, match="not set up for this project"):
        db.run(submission.check_sender, tenant.sender, "acme.example")


def test_another_tenants_domain_is_not_ones_own(db: Database, tenant: Tenant, vault: Vault, pepper: Pepper) -> None:
    other = seed.tenant(db, vault, pepper, name="other")
    (outcome,) = submit(db, other.submission(mail_from="x@acme.example"))
    assert refused(outcome) == (550, "5.7.1", 422)


@pytest.mark.parametrize(
    ("block", "outcome"),
    [
        ("no_sending", "held"),
        ("no_sending_or_receiving", None),
        ("full_freeze", None),
    ],
)
def test_blocked_organizations(
    db: Database, tenant: Tenant, block: organizations.BlockStatus, outcome: str | None
) -> None:
    db.run(organizations.set_block_status, tenant.organization_id, block)
    publisher = Listening()
    given = tenant.submission()
    (result,) = submission.submit(db, publisher, MAIL, [given])
    assert publisher.said == []
    if outcome is None:
        assert refused(result) == (550, "5.7.1", 403)
        with pytest.raises(Refused):
            db.run(submission.check_sender, tenant.sender, "acme.example")
    else:
        stored = db.run(messages.get, tenant.organization_id, given.id)
        assert stored is not None
        assert stored.status == outcome


def test_a_suppressed_recipient_is_kept_out_and_said_so(db: Database, tenant: Tenant) -> None:
    db.run(suppressions.add, tenant.organization_id, "gone@example.net", "complaint")
    given = tenant.submission("Gone@example.net", "b@example.net")
    submit(db, given)
    statuses = {d.recipient: d.status for d in db.run(messages.deliveries, tenant.organization_id, [given.id])}
    assert statuses == {"Gone@example.net": "suppressed", "b@example.net": "accepted"}


def test_the_quota_is_exact_under_concurrency(db: Database, vault: Vault, pepper: Pepper) -> None:
    tenant = seed.tenant(db, vault, pepper, message_quota=10)
    with ThreadPoolExecutor(4) as pool:
        batches = list(pool.map(lambda _: submit(db, *(tenant.submission() for _ in range(3))), range(8)))
    outcomes = [outcome for batch in batches for outcome in batch]
    assert sum(isinstance(outcome, Accepted) for outcome in outcomes) == 10
    assert {refused(outcome) for outcome in outcomes if isinstance(outcome, Refused)} == {(452, "4.7.1", 429)}
    db.run(usage.fold)
    (late,) = submit(db, tenant.submission())
    assert refused(late) == (452, "4.7.1", 429)


def test_a_project_and_an_organization_may_have_a_pool_of_their_own(db: Database, tenant: Tenant) -> None:
    def dedicated(conn: Connection) -> None:
        pool = addresses.create_pool(conn, "dedicated")
        addresses.add(conn, "192.0.2.77", pool.id, "static", "vip.relay.example")
        addresses.assign_pool(conn, pool.id, organization_id=tenant.organization_id)

    db.run(dedicated)
    given = tenant.submission()
    publisher = Listening()
    submission.submit(db, publisher, MAIL, [given])
    assert publisher.said == [events.Ready("192.0.2.77", [given.id])]


def test_without_an_address_mail_is_taken_all_the_same(db: Database, tenant: Tenant) -> None:
    db.run(lambda conn: conn.execute("UPDATE addresses SET is_enabled = false"))
    given = tenant.submission()
    (outcome,) = submit(db, given)
    assert isinstance(outcome, Accepted)
    (row,) = db.run(messages.deliveries, tenant.organization_id, [given.id])
    assert (row.status, row.source) == ("accepted", None)


def test_one_project_reaches_one_domain_from_one_address(db: Database, vault: Vault, pepper: Pepper) -> None:
    sources = tuple(f"127.0.0.{number}" for number in range(31, 39))
    tenant = seed.tenant(db, vault, pepper, sources=sources)
    given = [tenant.submission(*(f"{n}@d{d}.example.net" for d in range(20))) for n in range(3)]
    submit(db, *given)
    rows = db.run(messages.deliveries, tenant.organization_id, [g.id for g in given])
    by_domain: dict[str, set[str | None]] = {}
    for row in rows:
        by_domain.setdefault(row.recipient.partition("@")[2], set()).add(row.source)
    assert all(len(found) == 1 for found in by_domain.values())
    assert len(set.union(*by_domain.values())) > 4


def test_an_address_in_utf8_survives(db: Database, tenant: Tenant) -> None:
    given = replace(tenant.submission(), recipients=(address.parse("bü@bücher.example"),))
    submit(db, given)
    (row,) = db.run(messages.deliveries, tenant.organization_id, [given.id])
    assert row.recipient == "bü@xn--bcher-kva.example"


def test_a_project_of_another_organization_is_none(db: Database, tenant: Tenant, vault: Vault, pepper: Pepper) -> None:
    other = seed.tenant(db, vault, pepper, name="other")
    given = replace(tenant.submission(), sender=replace(tenant.sender, project_id=other.project_id))
    assert refused(submit(db, given)[0]) == (550, "5.7.1", 404)
    assert db.run(projects.get, tenant.organization_id, other.project_id) is None


def test_an_organization_that_is_too_fast_is_told_when_to_come_back(db: Database, tenant: Tenant) -> None:
    db.run(plans.set_plan, tenant.organization_id, "tiny")
    throttle = Throttle()
    batches = [
        submission.submit(db, Listening(), MAIL, [tenant.submission() for _ in range(9)], throttle) for _ in range(3)
    ]
    assert [[isinstance(outcome, Accepted) for outcome in batch] for batch in batches] == [
        [True] * 9,
        [True] * 9,
        [True] * 2 + [False] * 7,
    ]
    outcome = batches[2][-1]
    assert refused(outcome) == (451, "4.7.1", 429)
    assert isinstance(outcome, Refused)
    assert outcome.retry_after in (3, 4, 5)
    text = "This organization may send 720 messages per hour, 20 at once; try again in"
    assert outcome.text == f"{text} {outcome.retry_after} seconds"
    (again,) = submission.submit(db, Listening(), MAIL, [tenant.submission()], throttle)
    assert isinstance(again, Refused)
    assert again.retry_after in (3, 4, 5)  # also where the bucket is not asked again
    with pytest.raises(Refused, match="720 messages per hour"):
        db.run(submission.check_sender, tenant.sender, "acme.example", throttle)
    assert count(db)[0] == 20


def test_a_rate_counts_messages_and_an_organization_may_have_its_own(db: Database, tenant: Tenant) -> None:
    db.run(plans.set_plan, tenant.organization_id, "large")
    db.run(plans.set_rate, tenant.organization_id, Rate(1, 60))
    crowd = tenant.submission(*(f"r{number}@example.net" for number in range(30)))
    first, second = submit(db, crowd, tenant.submission())
    assert isinstance(first, Accepted)
    assert refused(second) == (451, "4.7.1", 429)
    db.run(plans.set_rate, tenant.organization_id, None)
    db.run(lambda conn: conn.execute("UPDATE rate_buckets SET at = at - interval '1 hour'"))
    assert isinstance(submit(db, tenant.submission())[0], Accepted)


def test_what_is_refused_for_another_reason_draws_no_token(db: Database, tenant: Tenant) -> None:
    db.run(plans.set_rate, tenant.organization_id, Rate(1, 60))
    first, second = submit(db, tenant.submission(mail_from="x@other.example"), tenant.submission())
    assert refused(first) == (550, "5.7.1", 422)
    assert isinstance(second, Accepted)


def test_a_used_up_quota_is_refused_at_mail_from(db: Database, tenant: Tenant) -> None:
    db.run(organizations.set_quota, tenant.organization_id, 0)
    with pytest.raises(Refused, match="monthly quota of 0"):
        db.run(submission.check_sender, tenant.sender, "acme.example")


def keyed(tenant: Tenant, key: str, subject: str = "Hello") -> Submission:
    return replace(tenant.submission(subject=subject), idempotency_key=key)


def test_the_same_mail_under_the_same_key_is_stored_once(db: Database, tenant: Tenant) -> None:
    """Also when it comes twice in one batch; nothing more is counted or said."""
    (first,) = submit(db, keyed(tenant, "k1"))
    assert isinstance(first, Accepted) and not first.is_repeated
    bus = Listening()
    again = submission.submit(db, bus, MAIL, [keyed(tenant, key) for key in ("k1", "k2", "k2", "k1")])
    ids = [one.id for one in again if isinstance(one, Accepted)]
    assert ids == [first.id, ids[1], ids[1], first.id] and ids[1] != first.id
    assert [one.is_repeated for one in again if isinstance(one, Accepted)] == [True, False, True, True]
    assert count(db)[:3] == (2, 2, 2)
    assert db.run(usage.used_since, tenant.organization_id, first.created_at) == 2
    assert len(bus.said) == 1


def test_another_mail_under_a_key_that_was_used_is_refused(db: Database, tenant: Tenant) -> None:
    outcomes = submit(db, keyed(tenant, "k"), keyed(tenant, "k", "Other"))
    assert isinstance(outcomes[0], Accepted)
    assert refused(outcomes[1]) == (554, "5.6.0", 422)
    (later,) = submit(db, keyed(tenant, "k", "Other"))
    assert refused(later) == (554, "5.6.0", 422)
    assert count(db)[0] == 1


def test_a_refused_mail_does_not_use_its_key(db: Database, tenant: Tenant) -> None:
    foreign = replace(keyed(tenant, "k"), mail_from=address.parse("a@other.example"))
    outcomes = submit(db, foreign, keyed(tenant, "k"))
    assert refused(outcomes[0])[1] == "5.7.1"
    assert isinstance(outcomes[1], Accepted) and not outcomes[1].is_repeated


def test_keys_are_a_projects_own(db: Database, vault: Vault, pepper: Pepper, tenant: Tenant) -> None:
    other = seed.tenant(db, vault, pepper, name="globex")
    one, two = submit(db, keyed(tenant, "k"), keyed(other, "k"))
    assert isinstance(one, Accepted) and isinstance(two, Accepted)
    assert one.id != two.id and count(db)[0] == 2


def test_the_same_mail_at_the_same_time_is_stored_once(db: Database, tenant: Tenant) -> None:
    """Many batches at once, with the keys in many orders."""

    def batch(number: int) -> list[Accepted | Refused]:
        keys = [f"k{(number + step) % 7}" for step in range(7)]
        return submit(db, *(keyed(tenant, key, subject=key) for key in keys))

    with ThreadPoolExecutor(4) as pool:
        outcomes = [outcome for batch_ in pool.map(batch, range(20)) for outcome in batch_]
    accepted = [outcome for outcome in outcomes if isinstance(outcome, Accepted)]
    assert len(accepted) == 140
    assert len({one.id for one in accepted}) == 7
    assert sum(not one.is_repeated for one in accepted) == 7
    assert count(db)[0] == 7


def test_a_key_that_cannot_be_kept(db: Database, tenant: Tenant) -> None:
    (outcome,) = submit(db, keyed(tenant, "k" * 256))
    assert isinstance(outcome, Refused) and outcome.field == "Idempotency-Key"


@pytest.mark.parametrize("hours", [-3, 3])
def test_mail_has_its_time_by_the_databases_clock(
    db: Database, tenant: Tenant, monkeypatch: pytest.MonkeyPatch, hours: int
) -> None:
    """Case X09: a code that is good for ten minutes is so at a door whose clock is wrong, too."""

    class Wrong(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> "Wrong":
            return cls.fromtimestamp(time.time() + 3600 * hours, tz)

    monkeypatch.setattr(submission, "datetime", Wrong)
    given = replace(tenant.submission(), expires_in=600, idempotency_key="once")
    outcome, twin = submit(db, given, replace(given, id=MessageId(new())))
    (again,) = submit(db, replace(given, id=MessageId(new())))
    assert isinstance(outcome, Accepted)
    assert isinstance(twin, Accepted)
    assert isinstance(again, Accepted)
    row = db.run(lambda conn: conn.execute("SELECT now(), created_at, expires_at FROM messages").fetchone())
    assert row is not None
    now, created_at, expires_at = row
    assert timedelta() <= now - created_at < timedelta(minutes=1)
    assert expires_at - created_at == timedelta(minutes=10)
    assert outcome.expires_at == expires_at
    assert outcome.created_at == twin.created_at == again.created_at == created_at
