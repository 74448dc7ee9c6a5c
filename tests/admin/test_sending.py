"""`remails domain`, `credential`, `key` and `message`."""

import json
from uuid import UUID

import pytest
import seed
from terminal import Terminal

from remails import submission
from remails.bus.client import Publisher
from remails.config import Bus, Mail
from remails.db import Database
from remails.dev import dns
from remails.store import audit, credentials, domains, organizations
from remails.store.ids import ApiKeyId, OrganizationId
from remails.vault import Pepper, Vault


@pytest.fixture
def acme(terminal: Terminal) -> OrganizationId:
    made = terminal.do("organization", "create", "Acme")
    terminal.do("project", "create", "Acme", "Shop")
    return OrganizationId(UUID(made))


# Domains


def test_domain_gets_a_key_that_the_vault_opens(
    terminal: Terminal, db: Database, vault: Vault, acme: OrganizationId
) -> None:
    made = terminal.do("domain", "add", "Acme", "Example.com", "--project", "Shop", "--algorithm", "ed25519")

    (domain,) = db.run(domains.list_, acme)
    assert (str(domain.id), domain.name, len(domain.project_ids)) == (made, "example.com", 1)
    assert domain.dkim_keys[0].selector == "remails"
    (signing,) = db.run(domains.signing_keys, [domain.id])
    assert vault.open(signing.sealed, f"dkim:{signing.key_id}")
    assert [row["name"] for row in terminal.json("domain", "list", "Acme")] == ["example.com"]


def test_domain_of_a_project_that_is_not_there(terminal: Terminal, acme: OrganizationId) -> None:
    assert "no project 'Blog'" in terminal.refused("domain", "add", "Acme", "example.com", "--project", "Blog")
    assert terminal.json("domain", "list", "Acme") == []


def test_international_domain_is_found_in_either_spelling(terminal: Terminal, acme: OrganizationId) -> None:
    terminal.do("domain", "add", "Acme", "bücher.example", "--algorithm", "ed25519")
    terminal.do("domain", "remove", "Acme", "BÜCHER.example.")
    assert terminal.json("domain", "list", "Acme") == []


def test_records_to_publish(terminal: Terminal, db: Database, vault: Vault, acme: OrganizationId) -> None:
    terminal.do("domain", "add", "Acme", "example.com", "--algorithm", "ed25519", "--selector", "s1")
    (domain,) = db.run(domains.list_, acme)
    db.run(domains.add_key, vault, domain.id, "s2", "ed25519")
    (domain,) = db.run(domains.list_, acme)

    found = {row["name"]: row["value"] for row in terminal.json("domain", "records", "Acme", "example.com")}

    assert domain.ownership_token in found.pop("_remails.example.com")
    assert found.pop("example.com") == "v=spf1 include:relay.example -all"
    assert found.pop("_dmarc.example.com").startswith("v=DMARC1")
    assert found == {f"{key.selector}._domainkey.example.com": key.record for key in domain.dkim_keys}
    assert "s2._domainkey.example.com" in terminal.do("domain", "records", "Acme", "example.com")


def test_check_asks_dns_and_says_whether_the_domain_may_send(
    terminal: Terminal, db: Database, acme: OrganizationId, nameserver: tuple[dns.StaticZone, int]
) -> None:
    zone, port = nameserver
    terminal.path.write_text(terminal.path.read_text() + f'[dns]\nnameservers = ["127.0.0.1:{port}"]\n')
    terminal.do("domain", "add", "Acme", "example.com", "--algorithm", "ed25519")
    wanted = terminal.json("domain", "records", "Acme", "example.com")

    before = terminal.run("domain", "check", "Acme", "example.com", "--json")
    assert before.exit_code == 1
    assert {row["record"]: row["status"] for row in json.loads(before.stdout)}["dkim"] == "Error"

    for record in wanted:
        zone[record["name"], record["type"]] = [record["value"]]
    after = {row["record"]: row["status"] for row in terminal.json("domain", "check", "Acme", "example.com")}
    assert {after[name] for name in ("ownership", "dkim", "spf", "dmarc")} == {"Success"}
    (domain,) = db.run(domains.list_, acme)
    assert domain.verified_at is not None


def test_a_dkim_key_is_changed_without_a_gap(
    terminal: Terminal, db: Database, acme: OrganizationId, nameserver: tuple[dns.StaticZone, int]
) -> None:
    """The new one signs only once its record is there; the old one goes, but never the last."""
    zone, port = nameserver
    terminal.path.write_text(terminal.path.read_text() + f'[dns]\nnameservers = ["127.0.0.1:{port}"]\n')
    terminal.do("domain", "add", "Acme", "example.com", "--algorithm", "ed25519", "--selector", "old")
    (domain,) = db.run(domains.list_, acme)

    def signing() -> list[str]:
        return sorted(key.selector for key in db.run(domains.signing_keys, [domain.id]))

    (record,) = terminal.json("domain", "add-key", "Acme", "example.com", "new", "--algorithm", "ed25519")
    assert (record["name"], record["value"][:20]) == ("new._domainkey.example.com", "v=DKIM1; k=ed25519; ")
    assert signing() == ["old"]
    assert "new._domainkey.example.com" in terminal.refused("domain", "activate-key", "Acme", "example.com", "new")
    zone[record["name"], "TXT"] = [record["value"]]
    terminal.do("domain", "activate-key", "Acme", "example.com", "new")
    assert signing() == ["new", "old"]
    terminal.do("domain", "remove-key", "Acme", "example.com", "old")
    assert signing() == ["new"]
    assert "only key" in terminal.refused("domain", "remove-key", "Acme", "example.com", "new")
    assert "no DKIM key" in terminal.refused("domain", "activate-key", "Acme", "example.com", "old")
    assert "selector" in terminal.refused("domain", "add-key", "Acme", "example.com", "new")
    trail = [
        (one.action, one.details["selector"]) for one in db.run(audit.list_, acme) if one.target_type == "dkim key"
    ]
    assert sorted(trail) == [("created", "new"), ("deleted", "old"), ("updated", "new")]


def test_an_installation_may_give_every_domain_both_kinds_of_key(
    terminal: Terminal, db: Database, acme: OrganizationId
) -> None:
    terminal.path.write_text(terminal.path.read_text().replace("[mail]", "[mail]\ndkim_ed25519 = true"))
    terminal.do("domain", "add", "Acme", "example.com")
    terminal.do("domain", "add", "Acme", "small.example", "--algorithm", "ed25519")
    both, one = db.run(domains.list_, acme)
    assert [(key.selector, key.algorithm, key.is_active) for key in both.dkim_keys] == [
        ("remails", "rsa_sha256", True),
        ("remails-ed25519", "ed25519", True),
    ]
    assert [(key.selector, key.algorithm) for key in one.dkim_keys] == [("remails", "ed25519")]
    names = {row["name"] for row in terminal.json("domain", "records", "Acme", "example.com")}
    assert {"remails._domainkey.example.com", "remails-ed25519._domainkey.example.com"} <= names


# Credentials


def test_smtp_credential(terminal: Terminal, db: Database, pepper: Pepper, acme: OrganizationId) -> None:
    lines = terminal.do("credential", "create", "Acme", "Shop", "mailer", "--description", "the shop").splitlines()
    shown = dict(line.split(None, 1) for line in lines)

    assert shown["username"] == f"{acme.hex[:8]}-mailer"
    (login,) = db.run(credentials.authenticate_smtp, [shown["username"]])
    assert pepper.matches(shown["password"], login.digest)
    (row,) = terminal.json("credential", "list", "Acme", "Shop")
    assert set(row) == {"id", "username", "description", "networks", "created_at"} and row["description"] == "the shop"
    terminal.do("credential", "remove", "Acme", "Shop", "mailer")
    assert db.run(credentials.authenticate_smtp, [shown["username"]]) == []


def test_api_key(terminal: Terminal, db: Database, pepper: Pepper, acme: OrganizationId) -> None:
    made = terminal.json("key", "create", "Acme", "--role", "read_only")

    key = db.run(credentials.find_key, ApiKeyId(UUID(made["id"])))
    assert key is not None and pepper.matches(made["password"], key.digest) and key.role == "read_only"
    (row,) = terminal.json("key", "list", "Acme")
    assert set(row) == {"id", "role", "description", "networks", "created_at"}
    terminal.do("key", "remove", "Acme", made["id"])
    assert "no API key" in terminal.refused("key", "remove", "Acme", made["id"])


def test_networks_of_credentials_and_keys(terminal: Terminal, db: Database, acme: OrganizationId) -> None:
    networks = ("--network", "198.51.100.0/24", "--network", "2001:db8::1")
    terminal.do("credential", "create", "Acme", "Shop", "mailer", *networks)
    key = terminal.json("key", "create", "Acme", *networks)["id"]
    for listed in (("credential", "list", "Acme", "Shop"), ("key", "list", "Acme")):
        assert terminal.json(*listed)[0]["networks"] == ["198.51.100.0/24", "2001:db8::1/128"]
    terminal.do("credential", "restrict", "Acme", "Shop", "mailer", "--network", "192.0.2.1")
    terminal.do("key", "restrict", "Acme", key)
    assert terminal.json("credential", "list", "Acme", "Shop")[0]["networks"] == ["192.0.2.1/32"]
    assert terminal.json("key", "list", "Acme")[0]["networks"] == []
    assert "198.51.100.0/24" in terminal.refused("key", "restrict", "Acme", key, "--network", "198.51.100.1/24")
    assert "192.0.2.1/32" in str(db.run(audit.list_, acme))


def test_api_key_is_never_admin(terminal: Terminal, acme: OrganizationId) -> None:
    assert terminal.run("key", "create", "Acme", "--role", "admin").exit_code == 2


def test_secrets_are_not_in_the_audit_log(terminal: Terminal, db: Database, acme: OrganizationId) -> None:
    key = terminal.json("key", "create", "Acme")
    smtp = terminal.json("credential", "create", "Acme", "Shop", "mailer")

    written = str(db.run(audit.list_, acme))
    assert key["id"] in written and smtp["username"] in written
    assert key["password"] not in written and smtp["password"] not in written


def test_a_key_of_another_organization_is_not_there(terminal: Terminal, acme: OrganizationId) -> None:
    made = terminal.json("key", "create", "Acme")
    terminal.do("organization", "create", "Other")

    assert "no API key" in terminal.refused("key", "remove", "Other", made["id"])


# Messages


@pytest.fixture
def message_id(db: Database, tenant: seed.Tenant) -> str:
    (accepted,) = submission.submit(
        db, Publisher(Bus(), ""), Mail(hostname="relay.example"), [tenant.submission("a@one.example", "b@two.example")]
    )
    assert isinstance(accepted, submission.Accepted)
    return str(accepted.id)


def test_message(terminal: Terminal, tenant: seed.Tenant, message_id: str) -> None:
    (row,) = terminal.json("message", "list", "acme", "--search", "one.example")
    assert (row["id"], row["status"], row["recipients"]) == (message_id, "accepted", ["a@one.example", "b@two.example"])
    assert terminal.json("message", "list", "acme", "--status", "failed") == []

    shown = terminal.json("message", "show", "acme", message_id)
    assert [one["recipient"] for one in shown["deliveries"]] == ["a@one.example", "b@two.example"]
    text = terminal.do("message", "show", "acme", message_id)
    assert "a@one.example" in text and tenant.sources[0] in text


def test_message_retry(terminal: Terminal, db: Database, message_id: str) -> None:
    with db.transaction() as conn:
        conn.execute("UPDATE deliveries SET status = 'failed', attempts = 3, finished_at = now()")

    terminal.do("message", "retry", "acme", message_id)

    assert terminal.json("message", "show", "acme", message_id)["status"] == "reattempt"
    (entry, *_) = db.run(audit.list_, db.run(organizations.list_all)[0].id)
    assert (entry.action, entry.target_id) == ("retried", message_id)


def test_message_of_which_nothing_is_left_to_retry(terminal: Terminal, db: Database, message_id: str) -> None:
    with db.transaction() as conn:
        conn.execute("UPDATE deliveries SET status = 'delivered', finished_at = now()")

    assert "Nothing to retry" in terminal.refused("message", "retry", "acme", message_id)


def test_message_of_another_organization(terminal: Terminal, message_id: str) -> None:
    terminal.do("organization", "create", "Other")
    assert "no message" in terminal.refused("message", "show", "Other", message_id)
    assert "no message" in terminal.refused("message", "retry", "Other", message_id)
