"""Sender domains, DKIM keys and who may send."""

import base64
from datetime import timedelta
from uuid import uuid4

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_der_private_key, load_der_public_key

from remails.db import Connection
from remails.errors import ConfigError, Refused
from remails.store import domains, organizations, projects
from remails.store.domains import Domain
from remails.store.ids import OrganizationId, ProjectId
from remails.vault import Vault


@pytest.fixture
def acme(conn: Connection) -> OrganizationId:
    return organizations.create(conn, "Acme").id


@pytest.fixture
def shop(conn: Connection, acme: OrganizationId) -> ProjectId:
    return projects.create(conn, acme, "Shop").id


def _add(conn: Connection, vault: Vault, owner: OrganizationId, name: str, *project_ids: ProjectId) -> Domain:
    return domains.create(conn, vault, owner, name, selector="remails", algorithm="ed25519", project_ids=project_ids)


def test_create(conn: Connection, vault: Vault, acme: OrganizationId, shop: ProjectId) -> None:
    made = _add(conn, vault, acme, "Example.COM.", shop)

    assert (made.name, made.verified_at, made.verification, made.project_ids) == ("example.com", None, {}, [shop])
    assert len(made.ownership_token) == 32
    assert domains.get(conn, acme, made.id) == made
    assert domains.by_name(conn, acme, "example.com") == made
    assert domains.list_(conn, acme) == [made]


def test_international_name_is_kept_in_a_labels(conn: Connection, vault: Vault, acme: OrganizationId) -> None:
    assert _add(conn, vault, acme, "Bücher.example").name == "xn--bcher-kva.example"


@pytest.mark.parametrize(
    "name", ["", "com", "exa mple.com", "192.0.2.1", "[192.0.2.1]", "a..b", "nul\0.example", "x" * 64 + ".com"]
)
def test_bad_name_is_refused(conn: Connection, vault: Vault, acme: OrganizationId, name: str) -> None:
    with pytest.raises(Refused) as refusal:
        _add(conn, vault, acme, name)
    assert (refusal.value.status, refusal.value.field) == (422, "domain")


def test_ed25519_record_holds_the_bare_key(conn: Connection, vault: Vault, acme: OrganizationId) -> None:
    """RFC 8463 §4.1: 32 bytes, not a SubjectPublicKeyInfo."""
    made = _add(conn, vault, acme, "example.com")
    (signing,) = domains.signing_keys(conn, [made.id])
    private = load_der_private_key(vault.open(signing.sealed, f"dkim:{signing.key_id}"), None)

    assert isinstance(private, Ed25519PrivateKey)
    public = base64.b64encode(private.public_key().public_bytes_raw()).decode()
    assert made.dkim_keys[0].record == f"v=DKIM1; k=ed25519; p={public}"


def test_rsa_record_belongs_to_the_private_key(conn: Connection, vault: Vault, acme: OrganizationId) -> None:
    made = domains.create(conn, vault, acme, "example.com", selector="s1", algorithm="rsa_sha256", project_ids=[])
    (signing,) = domains.signing_keys(conn, [made.id])
    private = load_der_private_key(vault.open(signing.sealed, f"dkim:{signing.key_id}"), None)
    public = load_der_public_key(base64.b64decode(made.dkim_keys[0].record.removeprefix("v=DKIM1; k=rsa; p=")))

    assert isinstance(private, RSAPrivateKey) and isinstance(public, RSAPublicKey)
    assert private.key_size == 2048
    assert private.public_key() == public
    assert (signing.domain, signing.selector, signing.algorithm) == ("example.com", "s1", "rsa_sha256")


def test_a_sealed_key_opens_only_in_its_own_row(conn: Connection, vault: Vault, acme: OrganizationId) -> None:
    one, two = _add(conn, vault, acme, "one.example"), _add(conn, vault, acme, "two.example")
    keys = domains.signing_keys(conn, [one.id, two.id])

    with pytest.raises(ConfigError):
        vault.open(keys[0].sealed, f"dkim:{keys[1].key_id}")


def test_keys_of_a_rotation(conn: Connection, vault: Vault, acme: OrganizationId) -> None:
    made = _add(conn, vault, acme, "example.com")
    domains.add_key(conn, vault, made.id, "second", "ed25519")

    assert [key.selector for key in domains.signing_keys(conn, [made.id])] == ["remails", "second"]
    with pytest.raises(Refused) as refusal:
        domains.add_key(conn, vault, made.id, "second", "ed25519")
    assert refusal.value.status == 409
    conn.execute("UPDATE dkim_keys SET is_active = false WHERE selector = 'remails'")
    assert [key.selector for key in domains.signing_keys(conn, [made.id])] == ["second"]
    changed = domains.get(conn, acme, made.id)
    assert changed is not None and [key.is_active for key in changed.dkim_keys] == [False, True]


def test_organizations_are_apart(conn: Connection, vault: Vault, acme: OrganizationId) -> None:
    other = organizations.create(conn, "Other").id
    made = _add(conn, vault, acme, "example.com")

    assert domains.get(conn, other, made.id) is None
    assert domains.by_name(conn, other, "example.com") is None
    assert domains.list_(conn, other) == []
    assert not domains.set_projects(conn, other, made.id, [])
    assert not domains.remove(conn, other, made.id)
    assert domains.get(conn, acme, made.id) == made


def test_the_same_domain_twice_is_refused_within_an_organization(
    conn: Connection, vault: Vault, acme: OrganizationId
) -> None:
    _add(conn, vault, acme, "example.com")

    with pytest.raises(Refused) as refusal:
        _add(conn, vault, acme, "EXAMPLE.com")
    assert refusal.value.status == 409


def test_projects_have_to_be_the_organizations_own(
    conn: Connection, vault: Vault, acme: OrganizationId, shop: ProjectId
) -> None:
    foreign = projects.create(conn, organizations.create(conn, "Other").id, "Foreign").id
    made = _add(conn, vault, acme, "example.com", shop)

    for wrong in ([foreign], [shop, foreign], [ProjectId(uuid4())]):
        with pytest.raises(Refused) as refusal, conn.transaction():
            domains.set_projects(conn, acme, made.id, wrong)
        assert (refusal.value.status, refusal.value.field) == (422, "project_ids")
    assert domains.get(conn, acme, made.id) == made
    with pytest.raises(Refused):
        _add(conn, vault, acme, "second.example", foreign)
    assert domains.list_(conn, acme) == [made]


def test_set_projects_replaces(conn: Connection, vault: Vault, acme: OrganizationId, shop: ProjectId) -> None:
    blog = projects.create(conn, acme, "Blog").id
    made = _add(conn, vault, acme, "example.com", shop)

    assert domains.set_projects(conn, acme, made.id, [blog, blog])
    changed = domains.get(conn, acme, made.id)
    assert changed is not None and changed.project_ids == [blog]


# Verification


def test_verified_once_is_verified_for_good(conn: Connection, vault: Vault, acme: OrganizationId) -> None:
    made = _add(conn, vault, acme, "example.com")

    domains.save_verification(conn, made.id, {"dkim": "missing"}, verified=False)
    first = domains.get(conn, acme, made.id)
    assert first is not None
    assert (first.verified_at, first.verification) == (None, {"dkim": "missing"}) and first.checked_at is not None

    domains.save_verification(conn, made.id, {"dkim": "ok"}, verified=True)
    second = domains.get(conn, acme, made.id)
    assert second is not None and second.verified_at is not None

    conn.execute("UPDATE domains SET verified_at = verified_at - interval '1 day'")
    domains.save_verification(conn, made.id, {"dkim": "broken"}, verified=False)
    domains.save_verification(conn, made.id, {"dkim": "ok"}, verified=True)
    third = domains.get(conn, acme, made.id)
    assert third is not None and third.verified_at == second.verified_at - timedelta(days=1)


def test_only_one_organization_can_prove_a_domain(conn: Connection, vault: Vault, acme: OrganizationId) -> None:
    other = organizations.create(conn, "Other").id
    theirs, ours = _add(conn, vault, other, "example.com"), _add(conn, vault, acme, "example.com")
    domains.save_verification(conn, ours.id, {}, verified=True)

    with pytest.raises(Refused) as refusal:
        domains.save_verification(conn, theirs.id, {"dkim": "ok"}, verified=True)

    assert refusal.value.status == 409
    kept = domains.get(conn, other, theirs.id)
    assert kept is not None and (kept.verified_at, kept.verification) == (None, {"dkim": "ok"})
    assert kept.checked_at is not None, "or it would be the first to be checked for ever"


def test_due_for_check(conn: Connection, vault: Vault, acme: OrganizationId) -> None:
    never, old, fresh = (_add(conn, vault, acme, f"{name}.example") for name in ("never", "old", "fresh"))
    domains.save_verification(conn, fresh.id, {}, verified=False)
    domains.save_verification(conn, old.id, {}, verified=False)
    conn.execute("UPDATE domains SET checked_at = now() - interval '2 days' WHERE id = %s", [old.id])

    due = domains.due_for_check(conn, timedelta(days=1), 10)
    assert [one.id for one in due] == [never.id, old.id]
    assert due[0].dkim_keys == never.dkim_keys
    assert [one.id for one in domains.due_for_check(conn, timedelta(days=1), 1)] == [never.id]

    conn.execute("UPDATE domains SET checked_at = now() - interval '10 minutes'")
    domains.save_verification(conn, old.id, {}, verified=True)
    conn.execute("UPDATE domains SET checked_at = now() - interval '10 minutes' WHERE id = %s", [old.id])
    conn.execute("UPDATE domains SET created_at = now() - interval '2 days' WHERE id = %s", [never.id])
    due = domains.due_for_check(conn, timedelta(days=1), 10, new_older_than=timedelta(minutes=5))
    assert [one.id for one in due] == [fresh.id], "only what is new and waits for its records"


def test_all_names_with_records(conn: Connection, vault: Vault, acme: OrganizationId) -> None:
    made = _add(conn, vault, acme, "example.com")

    assert list(domains.all_names_with_records(conn)) == [
        ("example.com", made.ownership_token, [("remails", made.dkim_keys[0].record)])
    ]


def test_remove(conn: Connection, vault: Vault, acme: OrganizationId) -> None:
    made = _add(conn, vault, acme, "example.com")

    assert domains.remove(conn, acme, made.id)
    assert not domains.remove(conn, acme, made.id)
    assert domains.signing_keys(conn, [made.id]) == []
