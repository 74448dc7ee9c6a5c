"""Organizations as their store functions show them."""

from datetime import UTC, datetime
from uuid import uuid4

import pytest

from remails.db import Connection
from remails.errors import Refused
from remails.store import organizations, projects, users
from remails.store.ids import OrganizationId


def test_create_and_find(conn: Connection) -> None:
    made = organizations.create(conn, "  Acme  ", plan="large", message_quota=1000)

    assert (made.name, made.plan, made.message_quota, made.block_status) == ("Acme", "large", 1000, "not_blocked")
    assert organizations.get(conn, made.id) == made
    assert organizations.by_name(conn, "Acme") == [made]
    assert organizations.get(conn, OrganizationId(uuid4())) is None


def test_month_of_quota_is_the_calendar_month(conn: Connection) -> None:
    made = organizations.create(conn, "Acme")

    assert made.quota_since == made.created_at.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    assert made.quota_since < made.created_at < made.quota_reset


def test_names_need_not_be_unique(conn: Connection) -> None:
    first, second = organizations.create(conn, "Acme"), organizations.create(conn, "Acme")

    assert {one.id for one in organizations.by_name(conn, "Acme")} == {first.id, second.id}


def test_ids_made_in_a_row_begin_differently(conn: Connection) -> None:
    """The first digits stand in front of SMTP user names, so they must not be a clock."""
    prefixes = {organizations.create(conn, f"Acme {number}").id.hex[:8] for number in range(20)}

    assert len(prefixes) == 20


@pytest.mark.parametrize("name", ["", "   ", "x" * 101, "nul\0", "half \ud800"])
def test_bad_name_is_refused_and_the_transaction_lives_on(conn: Connection, name: str) -> None:
    with pytest.raises(Refused) as refusal:
        organizations.create(conn, name)

    assert refusal.value.status == 422
    assert organizations.list_all(conn) == []


def test_list_for_user_holds_only_the_users_own(conn: Connection) -> None:
    mine, other = organizations.create(conn, "Mine"), organizations.create(conn, "Other")
    user = users.create(conn, "ann@example.com", "Ann", None)
    users.add_member(conn, user.id, mine.id, users.Role.read_only)

    assert organizations.list_for_user(conn, user.id) == [mine]
    assert organizations.list_all(conn) == [mine, other]


def test_changes(conn: Connection) -> None:
    made = organizations.create(conn, "Acme")

    assert organizations.rename(conn, made.id, "Apex")
    assert organizations.set_block_status(conn, made.id, "full_freeze")
    assert organizations.set_quota(conn, made.id, 0)

    changed = organizations.get(conn, made.id)
    assert changed is not None
    assert (changed.name, changed.block_status, changed.message_quota) == ("Apex", "full_freeze", 0)


def test_negative_quota_is_refused(conn: Connection) -> None:
    made = organizations.create(conn, "Acme")

    with pytest.raises(Refused, match="not negative"):
        organizations.set_quota(conn, made.id, -1)


def test_change_of_nothing(conn: Connection) -> None:
    nobody = OrganizationId(uuid4())

    assert not organizations.rename(conn, nobody, "x")
    assert not organizations.set_block_status(conn, nobody, "no_sending")
    assert not organizations.set_quota(conn, nobody, None)
    assert not organizations.remove(conn, nobody)


@pytest.mark.parametrize("reset", ["2020-01-01", "2024-02-29", "2023-10-31"])
def test_renewed_quota_ends_within_a_month(conn: Connection, reset: str) -> None:
    made, running = organizations.create(conn, "Acme"), organizations.create(conn, "Running")
    conn.execute("UPDATE organizations SET quota_reset = %s WHERE id = %s", [reset + " 00:00+00", made.id])

    assert organizations.renew_quotas(conn) == 1

    renewed = organizations.get(conn, made.id)
    assert renewed is not None
    assert renewed.quota_since <= datetime.now(UTC) < renewed.quota_reset
    assert organizations.get(conn, running.id) == running
    assert organizations.renew_quotas(conn) == 0


def test_remove_takes_everything_along(conn: Connection) -> None:
    made = organizations.create(conn, "Acme")
    project = projects.create(conn, made.id, "Shop")

    assert organizations.remove(conn, made.id)
    assert projects.get(conn, made.id, project.id) is None
