"""Projects of an organization."""

from uuid import uuid4

import pytest

from remails.db import Connection
from remails.errors import Refused
from remails.store import organizations, projects
from remails.store.ids import OrganizationId, ProjectId


@pytest.fixture
def acme(conn: Connection) -> OrganizationId:
    return organizations.create(conn, "Acme").id


@pytest.fixture
def other(conn: Connection) -> OrganizationId:
    return organizations.create(conn, "Other").id


def test_create_and_find(conn: Connection, acme: OrganizationId) -> None:
    made = projects.create(conn, acme, " Shop ")

    assert (made.name, made.retention_period_days, made.plaintext_fallback, made.pool_id) == ("Shop", 7, True, None)
    assert projects.get(conn, acme, made.id) == made
    assert projects.by_name(conn, acme, "Shop") == made
    assert projects.list_(conn, acme) == [made]


def test_another_organization_sees_and_changes_nothing(
    conn: Connection, acme: OrganizationId, other: OrganizationId
) -> None:
    made = projects.create(conn, acme, "Shop")

    assert projects.get(conn, other, made.id) is None
    assert projects.by_name(conn, other, "Shop") is None
    assert projects.list_(conn, other) == []
    assert projects.update(conn, other, made.id, name="Stolen") is None
    assert not projects.remove(conn, other, made.id)
    assert projects.get(conn, acme, made.id) == made


def test_name_is_unique_within_the_organization_only(
    conn: Connection, acme: OrganizationId, other: OrganizationId
) -> None:
    projects.create(conn, acme, "Shop")
    projects.create(conn, other, "Shop")

    with pytest.raises(Refused) as refusal:
        projects.create(conn, acme, "Shop")
    assert (refusal.value.status, refusal.value.field) == (409, "name")


@pytest.mark.parametrize(
    ("name", "days", "field"),
    [
        ("", 7, "name"),
        ("x" * 101, 7, "name"),
        ("Shop", 0, "retention_period_days"),
        ("Shop", 366, "retention_period_days"),
    ],
)
def test_bad_values_are_refused(conn: Connection, acme: OrganizationId, name: str, days: int, field: str) -> None:
    with pytest.raises(Refused) as refusal:
        projects.create(conn, acme, name, retention_period_days=days)
    assert (refusal.value.status, refusal.value.field) == (422, field)


def test_no_such_organization(conn: Connection) -> None:
    with pytest.raises(Refused) as refusal:
        projects.create(conn, OrganizationId(uuid4()), "Shop")
    assert refusal.value.status == 422


def test_update_changes_only_what_is_given(conn: Connection, acme: OrganizationId) -> None:
    made = projects.create(conn, acme, "Shop", retention_period_days=30)

    changed = projects.update(conn, acme, made.id, plaintext_fallback=False)

    assert changed is not None
    assert (changed.name, changed.retention_period_days, changed.plaintext_fallback) == ("Shop", 30, False)
    assert projects.update(conn, acme, ProjectId(uuid4()), name="x") is None


def test_update_to_a_taken_name_is_refused(conn: Connection, acme: OrganizationId) -> None:
    projects.create(conn, acme, "Shop")
    second = projects.create(conn, acme, "Blog")

    with pytest.raises(Refused) as refusal:
        projects.update(conn, acme, second.id, name="Shop")
    assert refusal.value.status == 409
    assert projects.get(conn, acme, second.id) == second


def test_remove(conn: Connection, acme: OrganizationId) -> None:
    made = projects.create(conn, acme, "Shop")

    assert projects.remove(conn, acme, made.id)
    assert not projects.remove(conn, acme, made.id)
