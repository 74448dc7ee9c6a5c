"""SMTP credentials and API keys."""

import dataclasses

import pytest

from remails.db import Connection
from remails.errors import Refused
from remails.store import credentials, organizations, projects
from remails.store.ids import OrganizationId
from remails.store.projects import Project
from remails.store.users import Role
from remails.vault import Pepper


@pytest.fixture
def acme(conn: Connection) -> OrganizationId:
    return organizations.create(conn, "Acme").id


@pytest.fixture
def shop(conn: Connection, acme: OrganizationId) -> Project:
    return projects.create(conn, acme, "Shop")


@pytest.fixture
def other(conn: Connection) -> Project:
    return projects.create(conn, organizations.create(conn, "Other").id, "Other")


def test_smtp_username_begins_with_the_organization(conn: Connection, pepper: Pepper, shop: Project) -> None:
    made, cleartext = credentials.create_smtp(conn, pepper, shop, "mailer", " for the shop ")

    assert made.username == f"{str(shop.organization_id)[:8]}-mailer"
    assert made.description == "for the shop"
    assert len(cleartext) == 20 and cleartext.isalnum()
    assert credentials.get_smtp(conn, shop.id, made.id) == made
    assert credentials.list_smtp(conn, shop.id) == [made]


def test_two_organizations_may_choose_the_same_username(
    conn: Connection, pepper: Pepper, shop: Project, other: Project
) -> None:
    credentials.create_smtp(conn, pepper, shop, "mailer", "")
    credentials.create_smtp(conn, pepper, other, "mailer", "")

    with pytest.raises(Refused) as refusal:
        credentials.create_smtp(conn, pepper, shop, "mailer", "")
    assert (refusal.value.status, refusal.value.field) == (409, "username")


@pytest.mark.parametrize("username", ["", "x", "a b", "a.b", "a@b", "mailer\n", "mäiler", "x" * 101, "nul\0"])
def test_bad_username_is_refused(conn: Connection, pepper: Pepper, shop: Project, username: str) -> None:
    with pytest.raises(Refused) as refusal:
        credentials.create_smtp(conn, pepper, shop, username, "")
    assert (refusal.value.status, refusal.value.field) == (422, "username")


def test_longest_username_fits(conn: Connection, pepper: Pepper, shop: Project) -> None:
    made, _ = credentials.create_smtp(conn, pepper, shop, "x" * 100, "")
    assert len(made.username) == 109


def test_smtp_logins_are_looked_up_together(conn: Connection, pepper: Pepper, shop: Project, other: Project) -> None:
    mine, secret = credentials.create_smtp(conn, pepper, shop, "mailer", "")
    theirs, _ = credentials.create_smtp(conn, pepper, other, "mailer", "")
    organizations.set_block_status(conn, other.organization_id, "no_sending")

    found = {
        login.username: login
        for login in credentials.authenticate_smtp(conn, [mine.username, theirs.username, "nobody", "\0", "\ud800", ""])
    }

    assert set(found) == {mine.username, theirs.username}
    login = found[mine.username]
    assert (login.credential_id, login.project_id, login.organization_id) == (mine.id, shop.id, shop.organization_id)
    assert login.block_status == "not_blocked"
    assert found[theirs.username].block_status == "no_sending"
    assert pepper.matches(secret, login.digest)
    assert not pepper.matches(secret, found[theirs.username].digest)
    assert login.digest.hex() not in repr(login) and repr(login.digest) not in repr(login)


def test_cleartext_is_stored_nowhere(conn: Connection, pepper: Pepper, shop: Project) -> None:
    _, secret = credentials.create_smtp(conn, pepper, shop, "mailer", "")
    _, key_secret = credentials.create_key(conn, pepper, shop.organization_id, "", Role.maintainer)

    rows = str(
        conn.execute("SELECT * FROM smtp_credentials").fetchall() + conn.execute("SELECT * FROM api_keys").fetchall()
    )
    assert secret not in rows and key_secret not in rows


def test_smtp_credentials_of_another_project(conn: Connection, pepper: Pepper, shop: Project, other: Project) -> None:
    made, _ = credentials.create_smtp(conn, pepper, shop, "mailer", "")

    assert credentials.get_smtp(conn, other.id, made.id) is None
    assert credentials.update_smtp(conn, other.id, made.id, description="stolen") is None
    assert not credentials.remove_smtp(conn, other.id, made.id)
    assert credentials.list_smtp(conn, other.id) == []


def test_smtp_update_and_remove(conn: Connection, pepper: Pepper, shop: Project) -> None:
    made, _ = credentials.create_smtp(conn, pepper, shop, "mailer", "old")

    changed = credentials.update_smtp(conn, shop.id, made.id, description="new")
    assert changed is not None and changed.description == "new"
    assert credentials.remove_smtp(conn, shop.id, made.id)
    assert credentials.authenticate_smtp(conn, [made.username]) == []


def test_api_key(conn: Connection, pepper: Pepper, acme: OrganizationId) -> None:
    made, cleartext = credentials.create_key(conn, pepper, acme, "deploy", Role.maintainer)

    assert len(cleartext) == 32 and cleartext.isalnum()
    assert made.role is Role.maintainer
    found = credentials.find_key(conn, made.id)
    assert found == made and pepper.matches(cleartext, found.digest)
    assert "digest" not in repr(made)
    assert credentials.list_keys(conn, acme) == [made]


def test_api_key_is_never_admin(conn: Connection, pepper: Pepper, acme: OrganizationId) -> None:
    made, _ = credentials.create_key(conn, pepper, acme, "", Role.read_only)

    for attempt in (
        lambda: credentials.create_key(conn, pepper, acme, "", Role.admin),
        lambda: credentials.update_key(conn, acme, made.id, role=Role.admin),
    ):
        with pytest.raises(Refused) as refusal:
            attempt()
        assert (refusal.value.status, refusal.value.field) == (422, "role")


def test_api_keys_of_another_organization(
    conn: Connection, pepper: Pepper, acme: OrganizationId, other: Project
) -> None:
    made, _ = credentials.create_key(conn, pepper, acme, "", Role.read_only)

    assert credentials.get_key(conn, other.organization_id, made.id) is None
    assert credentials.update_key(conn, other.organization_id, made.id, role=Role.maintainer) is None
    assert not credentials.remove_key(conn, other.organization_id, made.id)
    assert credentials.list_keys(conn, other.organization_id) == []


def test_api_key_update_and_remove(conn: Connection, pepper: Pepper, acme: OrganizationId) -> None:
    made, _ = credentials.create_key(conn, pepper, acme, "old", Role.read_only)

    changed = credentials.update_key(conn, acme, made.id, description="new")
    assert changed == dataclasses.replace(made, description="new", updated_at=changed.updated_at if changed else None)
    promoted = credentials.update_key(conn, acme, made.id, role=Role.maintainer)
    assert promoted is not None and (promoted.description, promoted.role) == ("new", Role.maintainer)
    assert credentials.remove_key(conn, acme, made.id)
    assert credentials.find_key(conn, made.id) is None
