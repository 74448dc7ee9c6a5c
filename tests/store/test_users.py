"""Users, memberships, sessions and failed logins."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from threading import Barrier
from uuid import uuid4

import pytest

from remails.db import Connection, Database
from remails.errors import Refused
from remails.store import organizations, users
from remails.store.ids import OrganizationId, UserId
from remails.store.users import Role, User


@pytest.fixture
def ann(conn: Connection) -> User:
    return users.create(conn, "Ann@Example.com", "Ann", "hash")


@pytest.fixture
def acme(conn: Connection) -> OrganizationId:
    return organizations.create(conn, "Acme").id


@pytest.mark.parametrize(
    ("role", "allowed"),
    [(Role.read_only, {"read_only"}), (Role.maintainer, {"read_only", "maintainer"}), (Role.admin, set(Role))],
)
def test_each_role_includes_those_below(role: Role, allowed: set[str]) -> None:
    assert {needed.value for needed in Role if role.allows(needed)} == allowed


def test_email_is_one_whatever_its_spelling(conn: Connection, ann: User) -> None:
    assert ann.email == "ann@example.com"
    assert users.by_email(conn, " ANN@example.COM ") == ann
    assert users.by_email(conn, "no address") is None
    with pytest.raises(Refused) as refusal:
        users.create(conn, "ANN@EXAMPLE.COM", "Other", None)
    assert (refusal.value.status, refusal.value.field) == (409, "email")


@pytest.mark.parametrize("email", ["", "ann", "ann@", "ann@localhost", "ann@example.com\0"])
def test_bad_email_is_refused(conn: Connection, email: str) -> None:
    with pytest.raises(Refused) as refusal:
        users.create(conn, email, "Ann", None)
    assert (refusal.value.status, refusal.value.field) == (422, "email")


def test_a_user_shows_no_hash(ann: User) -> None:
    assert ann.password_hash == "hash"
    assert "hash" not in repr(ann).replace("password_hash", "")


def test_update_changes_only_what_is_given(conn: Connection, ann: User) -> None:
    renamed = users.update(conn, ann.id, name="Ann B")
    moved = users.update(conn, ann.id, email="B@example.com")

    assert renamed is not None and (renamed.email, renamed.name) == ("ann@example.com", "Ann B")
    assert moved is not None and (moved.email, moved.name) == ("b@example.com", "Ann B")
    assert users.update(conn, UserId(uuid4()), name="x") is None


def test_update_to_a_taken_address_is_refused(conn: Connection, ann: User) -> None:
    bob = users.create(conn, "bob@example.com", "Bob", None)
    with pytest.raises(Refused) as refusal:
        users.update(conn, bob.id, email=ann.email)
    assert refusal.value.status == 409


def test_rights_and_password(conn: Connection, ann: User) -> None:
    assert users.set_admin(conn, ann.id, True)
    assert users.set_password(conn, ann.id, None)
    changed = users.get(conn, ann.id)
    assert changed is not None and changed.is_admin and changed.password_hash is None


def test_remove(conn: Connection, ann: User) -> None:
    assert users.remove(conn, ann.id)
    assert not users.remove(conn, ann.id)
    assert users.list_all(conn) == []


# Memberships


def test_members(conn: Connection, ann: User, acme: OrganizationId) -> None:
    bob = users.create(conn, "bob@example.com", "Bob", None)
    users.add_member(conn, ann.id, acme, Role.admin)
    users.add_member(conn, bob.id, acme, Role.read_only)

    assert [(m.email, m.name, m.role) for m in users.members(conn, acme)] == [
        ("ann@example.com", "Ann", Role.admin),
        ("bob@example.com", "Bob", Role.read_only),
    ]
    assert [m.organization_id for m in users.memberships_of(conn, bob.id)] == [acme]
    assert users.role_in(conn, bob.id, acme) is Role.read_only
    assert users.role_in(conn, bob.id, organizations.create(conn, "Other").id) is None


def test_membership_refusals(conn: Connection, ann: User, acme: OrganizationId) -> None:
    users.add_member(conn, ann.id, acme, Role.maintainer)
    for user_id, organization_id, status in (
        (ann.id, acme, 409),
        (UserId(uuid4()), acme, 422),
        (ann.id, OrganizationId(uuid4()), 422),
    ):
        with pytest.raises(Refused) as refusal:
            users.add_member(conn, user_id, organization_id, Role.admin)
        assert refusal.value.status == status
    assert users.role_in(conn, ann.id, acme) is Role.maintainer


def test_the_last_admin_stays(conn: Connection, ann: User, acme: OrganizationId) -> None:
    bob = users.create(conn, "bob@example.com", "Bob", None)
    users.add_member(conn, ann.id, acme, Role.admin)
    users.add_member(conn, bob.id, acme, Role.maintainer)

    for leave in (
        lambda: users.remove_member(conn, ann.id, acme),
        lambda: users.set_role(conn, ann.id, acme, Role.read_only),
    ):
        with pytest.raises(Refused) as refusal:
            leave()
        assert refusal.value.status == 409

    assert users.set_role(conn, bob.id, acme, Role.admin)
    assert users.remove_member(conn, ann.id, acme)
    assert not users.remove_member(conn, ann.id, acme)
    assert users.role_in(conn, bob.id, acme) is Role.admin


def test_two_admins_who_leave_at_once_cannot_both(db: Database) -> None:
    with db.transaction() as conn:
        acme = organizations.create(conn, "Acme").id
        both = [users.create(conn, f"{name}@example.com", name, None).id for name in ("ann", "bob")]
        for user_id in both:
            users.add_member(conn, user_id, acme, Role.admin)
    together = Barrier(2)

    def leave(user_id: UserId) -> bool:
        together.wait()
        try:
            return db.run(users.remove_member, user_id, acme)
        except Refused:
            return False

    with ThreadPoolExecutor(2) as threads:
        assert sorted(threads.map(leave, both)) == [False, True]
    assert len(db.run(users.members, acme)) == 1


# Sessions


def test_a_session_lives_until_it_is_ended(conn: Connection, ann: User) -> None:
    users.start_session(conn, ann.id, b"one", "Firefox\0" + "x" * 1000, timedelta(hours=1))
    users.start_session(conn, ann.id, b"two", "", timedelta(hours=1))

    assert users.session_user(conn, b"one") == ann
    assert users.session_user(conn, b"unknown") is None
    users.end_session(conn, b"one")
    assert users.session_user(conn, b"one") is None
    assert users.session_user(conn, b"two") == ann
    assert users.end_sessions_of(conn, ann.id) == 1
    assert users.session_user(conn, b"two") is None


def test_an_expired_session_is_none(conn: Connection, ann: User) -> None:
    users.start_session(conn, ann.id, b"old", "", timedelta(seconds=-1))
    users.start_session(conn, ann.id, b"new", "", timedelta(hours=1))

    assert users.session_user(conn, b"old") is None
    assert users.purge(conn) == 1
    assert users.session_user(conn, b"new") == ann


def test_blocking_ends_sessions_for_good(conn: Connection, ann: User) -> None:
    users.start_session(conn, ann.id, b"one", "", timedelta(hours=1))

    assert users.set_blocked(conn, ann.id, True)
    assert users.session_user(conn, b"one") is None
    assert users.set_blocked(conn, ann.id, False)
    assert users.session_user(conn, b"one") is None


def test_a_session_of_a_blocked_user_is_none(conn: Connection, ann: User) -> None:
    users.set_blocked(conn, ann.id, True)
    users.start_session(conn, ann.id, b"late", "", timedelta(hours=1))

    assert users.session_user(conn, b"late") is None


# Failed logins


def test_failures_are_counted_per_subject_and_time(conn: Connection) -> None:
    for _ in range(3):
        users.record_failure(conn, "ann@example.com")
    users.record_failure(conn, "192.0.2.1")
    conn.execute("INSERT INTO login_failures VALUES ('192.0.2.1', now() - interval '2 days')")

    assert users.recent_failures(conn, "ann@example.com", timedelta(minutes=10)) == 3
    assert users.recent_failures(conn, "192.0.2.1", timedelta(minutes=10)) == 1
    assert users.recent_failures(conn, "192.0.2.1", timedelta(days=3)) == 2
    users.clear_failures(conn, "ann@example.com")
    assert users.recent_failures(conn, "ann@example.com", timedelta(minutes=10)) == 0
    assert users.purge(conn) == 1
    assert users.recent_failures(conn, "192.0.2.1", timedelta(days=3)) == 1
