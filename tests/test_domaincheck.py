"""What DNS says of a sender domain, from a real DNS server to the row in the database."""

import asyncio
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import seed
from seed import Tenant

from remails import domaincheck, submission
from remails.bus.client import Publisher
from remails.config import Bus, Dns, Mail, Periodic, Settings
from remails.config import Database as DatabaseSettings
from remails.db import Database
from remails.dev.dns import Code, Server, StaticZone
from remails.periodic import domains as recheck
from remails.store import domains, holds, messages, organizations, queue
from remails.store.domains import Domain
from remails.store.ids import MessageId
from remails.store.messages import Message
from remails.vault import Pepper, Vault

INCLUDE = "spf.relay.example"


@pytest.fixture
def zone() -> StaticZone:
    """What the DNS server answers; empty."""
    return StaticZone()


@pytest.fixture
def nameserver(zone: StaticZone) -> Iterator[str]:
    """A DNS server that answers from the zone, in a thread of its own."""
    started: list[Server] = []
    ready, loop, stop = threading.Event(), asyncio.new_event_loop(), asyncio.Event()

    async def serve() -> None:
        server = Server(zone)
        await server.start()
        started.append(server)
        ready.set()
        await stop.wait()
        await server.close()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    assert ready.wait(10)
    yield f"127.0.0.1:{started[0].port}"
    loop.call_soon_threadsafe(stop.set)
    thread.join(10)
    loop.close()


@pytest.fixture
def settings(database: DatabaseSettings, credentials: Path, nameserver: str) -> Settings:
    """Settings that name the server."""
    return Settings(
        host="test",
        mail=Mail(hostname="relay.example", spf_include=INCLUDE),
        database=database,
        credentials_directory=str(credentials),
        dns=Dns(nameservers=(nameserver,), timeout=0.6),
    )


def _add(db: Database, vault: Vault, organization: str = "Example", name: str = "example.com") -> Domain:
    def add(conn: Any) -> Domain:
        owner = organizations.create(conn, organization)
        return domains.create(conn, vault, owner.id, name, selector="remails")

    return db.run(add)


@pytest.fixture
def domain(db: Database, vault: Vault) -> Domain:
    """example.com, not verified."""
    return _add(db, vault)


def _publish(zone: StaticZone, domain: Domain) -> None:
    """Everything as we suggest it, by hand: what a customer types in."""
    zone[f"_remails.{domain.name}", "TXT"] = [f"remails-verification={domain.ownership_token}"]
    zone[f"remails._domainkey.{domain.name}", "TXT"] = [domain.dkim_keys[0].record]
    zone[domain.name, "TXT"] = ["google-site-verification=x", f"v=spf1 include:{INCLUDE} -all"]
    zone[domain.name, "A"] = ["198.51.100.7"]
    zone[f"_dmarc.{domain.name}", "TXT"] = ["v=DMARC1; p=reject"]


def _stored(db: Database, domain: Domain) -> Domain:
    found = db.run(domains.get, domain.organization_id, domain.id)
    assert found is not None
    return found


def _statuses(verification: domaincheck.Verification) -> dict[str, str]:
    return {name: verdict["status"] for name, verdict in verification.items() if name != "timestamp"}


def test_a_domain_with_all_records_is_verified(
    db: Database, settings: Settings, zone: StaticZone, domain: Domain
) -> None:
    """D01: the DKIM record comes in two strings of a TXT record."""
    _publish(zone, domain)
    assert len(domain.dkim_keys[0].record) > 255
    seen = domaincheck.check_domain(db, settings, domain)
    assert _statuses(seen) == dict.fromkeys(("ownership", "dkim", "spf", "dmarc", "a", "return_path"), "Success")
    assert seen["dkim"]["value"] == domain.dkim_keys[0].record
    assert datetime.fromisoformat(seen["timestamp"]).utcoffset() == timedelta(0)
    after = _stored(db, domain)
    assert after.verified_at is not None
    assert after.verification == seen


@pytest.mark.parametrize("missing", ["_remails.example.com", "remails._domainkey.example.com"])
def test_without_ownership_or_dkim_it_is_not_verified(
    db: Database, settings: Settings, zone: StaticZone, domain: Domain, missing: str
) -> None:
    _publish(zone, domain)
    del zone[missing, "TXT"]
    domaincheck.check_domain(db, settings, domain)
    after = _stored(db, domain)
    assert (after.verified_at, after.checked_at is not None) == (None, True)


def test_spf_dmarc_and_an_address_are_judged_but_not_needed(
    db: Database, settings: Settings, zone: StaticZone, domain: Domain
) -> None:
    _publish(zone, domain)
    del zone["example.com", "TXT"], zone["example.com", "A"], zone["_dmarc.example.com", "TXT"]
    seen = domaincheck.check_domain(db, settings, domain)
    assert _statuses(seen) == {
        "ownership": "Success",
        "dkim": "Success",
        "spf": "Error",
        "dmarc": "Info",
        "a": "Info",
        "return_path": "Warning",
    }
    assert _stored(db, domain).verified_at is not None


def test_an_outage_of_dns_says_nothing_and_the_last_good_state_stands(
    db: Database, settings: Settings, zone: StaticZone, domain: Domain
) -> None:
    """D12: SERVFAIL for DKIM, a timeout for SPF, NXDOMAIN for DMARC, of a domain that was verified."""
    _publish(zone, domain)
    before = domaincheck.check_domain(db, settings, domain)
    verified_at = _stored(db, domain).verified_at
    zone["remails._domainkey.example.com", "TXT"] = Code.SERVFAIL
    zone["example.com", "TXT"] = Code.TIMEOUT
    del zone["_dmarc.example.com", "TXT"]
    for _ in range(2):  # an outage that lasts does not wear the last good state out
        seen = domaincheck.check_domain(db, settings, _stored(db, domain))
        assert {name: seen[name]["checked"] for name in ("dkim", "spf", "dmarc")} == {
            "dkim": False,
            "spf": False,
            "dmarc": True,
        }
        for name in ("dkim", "spf"):
            assert (seen[name]["status"], seen[name]["value"]) == ("Success", before[name]["value"])
            assert seen[name]["reason"].startswith("Could not be checked just now: ")
        assert (seen["dmarc"]["status"], seen["dmarc"]["value"]) == ("Info", None)
        assert _stored(db, domain).verified_at == verified_at
    _publish(zone, domain)
    assert _statuses(domaincheck.check_domain(db, settings, _stored(db, domain)))["dkim"] == "Success"


def test_an_outage_does_not_verify(db: Database, settings: Settings, zone: StaticZone, domain: Domain) -> None:
    """D12: of a domain that never was verified."""
    _publish(zone, domain)
    zone["_remails.example.com", "TXT"] = Code.REFUSED
    seen = domaincheck.check_domain(db, settings, domain)
    assert (seen["ownership"]["status"], seen["ownership"]["checked"]) == ("Warning", False)
    assert _stored(db, domain).verified_at is None


# What is wrong holds mail, what is not known does not


@pytest.fixture
def sending(db: Database, settings: Settings, zone: StaticZone, tenant: Tenant) -> Domain:
    """The tenant's domain with all its records."""
    found = db.run(domains.by_name, tenant.organization_id, tenant.domain)
    assert found is not None
    _publish(zone, found)
    domaincheck.check_domain(db, settings, found)
    return _stored(db, found)


def _send(db: Database, tenant: Tenant, **options: Any) -> Message:
    (outcome,) = submission.submit(
        db, Publisher(Bus(), ""), Mail(hostname="relay.example"), [replace(tenant.submission(), **options)]
    )
    assert isinstance(outcome, submission.Accepted), outcome
    return _message(db, tenant, outcome.id)


def _message(db: Database, tenant: Tenant, message_id: MessageId) -> Message:
    found = db.run(messages.get, tenant.organization_id, message_id)
    assert found is not None
    return found


def _put(zone: StaticZone, name: str, answers: list[str] | Code) -> None:
    zone[name, "TXT"] = answers


WRONG: list[tuple[str, list[str], str]] = [
    ("remails._domainkey.acme.example", [], "There is no DKIM record"),
    ("remails._domainkey.acme.example", ["v=DKIM1; p=AAAA"], "not ours"),
    ("acme.example", [], "There is no SPF record"),
    ("acme.example", ["v=spf1 -all"], "does not have include:spf.relay.example"),
    ("acme.example", ["v=spf1 -all", "v=spf1 include:spf.relay.example -all"], "more than one SPF record"),  # D06
]


@pytest.mark.parametrize(("name", "answers", "reason"), WRONG)
def test_a_definite_mismatch_holds_mail_until_it_is_mended(
    db: Database,
    settings: Settings,
    zone: StaticZone,
    tenant: Tenant,
    sending: Domain,
    name: str,
    answers: list[str],
    reason: str,
) -> None:
    waiting = _send(db, tenant)
    assert waiting.status == "accepted"
    right = zone.answer(name, "TXT")
    zone[name, "TXT"] = answers
    domaincheck.check_domain(db, settings, sending)
    stored = _stored(db, sending)
    assert stored.verified_at is not None, "it is still theirs"
    assert stored.hold_reason is not None and reason in stored.hold_reason
    later = _send(db, tenant)
    for one in (_message(db, tenant, waiting.id), later):
        assert (one.status, one.cause) == ("held", stored.hold_reason)
        (entry,) = db.run(messages.timeline, tenant.organization_id, one.id)
        assert (entry.kind, entry.cause) == ("held", stored.hold_reason)
    assert db.run(holds.settle) == holds.Settled(0, 0, 0), "it stays held"

    _put(zone, name, right)
    domaincheck.check_domain(db, settings, stored)
    assert _stored(db, sending).hold_reason is None
    assert [_message(db, tenant, one.id).status for one in (waiting, later)] == ["accepted", "accepted"]
    assert len(db.run(queue.claim_due, tenant.host_id, tenant.sources, lease=60, limit=9)) == 2
    assert [one.kind for one in db.run(messages.timeline, tenant.organization_id, later.id)] == ["held", "released"]


@pytest.mark.parametrize("answer", [Code.SERVFAIL, Code.REFUSED, Code.TIMEOUT])
@pytest.mark.parametrize("name", ["remails._domainkey.acme.example", "acme.example"])
def test_an_answer_that_is_none_changes_nothing(
    db: Database, settings: Settings, zone: StaticZone, tenant: Tenant, sending: Domain, name: str, answer: Code
) -> None:
    """D12: neither does it hold mail, nor does it let go what is held."""
    right = zone.answer(name, "TXT")
    zone[name, "TXT"] = answer
    domaincheck.check_domain(db, settings, sending)
    assert _stored(db, sending).hold_reason is None
    assert _send(db, tenant).status == "accepted"

    zone[name, "TXT"] = []
    domaincheck.check_domain(db, settings, _stored(db, sending))
    wrong = _stored(db, sending)
    assert wrong.hold_reason is not None
    zone[name, "TXT"] = answer
    domaincheck.check_domain(db, settings, wrong)
    assert _stored(db, sending).hold_reason == wrong.hold_reason
    assert _send(db, tenant).status == "held"
    _put(zone, name, right)
    domaincheck.check_domain(db, settings, _stored(db, sending))
    assert _stored(db, sending).hold_reason is None


def test_periodic_looks_soon_again_at_a_domain_whose_mail_is_held(
    db: Database, settings: Settings, zone: StaticZone, tenant: Tenant, sending: Domain
) -> None:
    right = zone.answer("acme.example", "TXT")
    zone["acme.example", "TXT"] = []
    domaincheck.check_domain(db, settings, sending)
    held = _send(db, tenant)
    _put(zone, "acme.example", right)
    asyncio.run(recheck.run(db, settings))
    assert _message(db, tenant, held.id).status == "held", "it was looked at just now"
    _age(db, sending, checked="10 min", created="9 days")
    asyncio.run(recheck.run(db, settings))
    assert _message(db, tenant, held.id).status == "accepted"


def test_what_is_held_for_longer_than_it_has_time_fails(
    db: Database, settings: Settings, zone: StaticZone, tenant: Tenant, sending: Domain
) -> None:
    zone["acme.example", "TXT"] = []
    domaincheck.check_domain(db, settings, sending)
    short, long = _send(db, tenant, expires_in=0.001), _send(db, tenant)
    assert db.run(holds.settle) == holds.Settled(0, 0, 1)
    assert (_message(db, tenant, short.id).status, _message(db, tenant, long.id).status) == ("failed", "held")
    held, expired = db.run(messages.timeline, tenant.organization_id, short.id)
    assert expired.kind == "expired" and held.cause in expired.cause


def test_other_domains_and_other_organizations_are_not_held(
    db: Database, settings: Settings, zone: StaticZone, vault: Vault, pepper: Pepper, tenant: Tenant, sending: Domain
) -> None:
    other = seed.tenant(db, vault, pepper, name="other")
    theirs = _send(db, other)
    zone["acme.example", "TXT"] = []
    domaincheck.check_domain(db, settings, sending)
    assert _message(db, other, theirs.id).status == "accepted"
    db.run(lambda conn: conn.execute("UPDATE organizations SET block_status = 'no_sending' WHERE name = 'acme'"))
    held = _send(db, tenant)
    assert held.cause == holds.BLOCKED
    db.run(lambda conn: conn.execute("UPDATE domains SET hold_reason = NULL"))
    db.run(holds.settle)
    assert _message(db, tenant, held.id).status == "held", "its organization may not send yet"


def test_a_key_behind_cnames_counts(db: Database, settings: Settings, zone: StaticZone, domain: Domain) -> None:
    """D03."""
    _publish(zone, domain)
    del zone["remails._domainkey.example.com", "TXT"]
    zone["remails._domainkey.example.com", "CNAME"] = ["example-com.dkim.esp.example."]
    zone["example-com.dkim.esp.example", "CNAME"] = ["keys.esp.example."]
    zone["keys.esp.example", "TXT"] = [domain.dkim_keys[0].record]
    assert domaincheck.check_domain(db, settings, domain)["dkim"]["status"] == "Success"


def test_our_include_is_found_behind_that_of_another(
    db: Database, settings: Settings, zone: StaticZone, domain: Domain
) -> None:
    """D08."""
    _publish(zone, domain)
    zone["example.com", "TXT"] = ["v=spf1 include:_spf.example.net -all"]
    zone["_spf.example.net", "TXT"] = [f"v=spf1 include:{INCLUDE} ~all"]
    assert domaincheck.check_domain(db, settings, domain)["spf"]["status"] == "Info"
    zone["_spf.example.net", "TXT"] = Code.SERVFAIL
    assert domaincheck.check_domain(db, settings, domain)["spf"]["checked"] is False


@pytest.mark.parametrize(
    ("record", "status", "reason"),
    [
        (f"v=spf1 include:{INCLUDE} -all", "Success", "right"),
        ("v=spf1 ip4:198.51.100.0/24 ip6:2001:db8:1::/48 -all", "Info", "by their addresses"),
        ("v=spf1 ip4:198.51.100.0/24 -all", "Error", "does not have"),
        (f"v=spf1 -ip4:198.51.0.0/16 include:{INCLUDE} -all", "Error", "it says fail"),
        ("v=spf1 " + "a:x.example.com " * 2 + f"a:y.example.com include:{INCLUDE} -all", "Error", "find nothing"),
    ],
)
def test_spf_is_evaluated_as_receivers_do(
    db: Database, settings: Settings, zone: StaticZone, domain: Domain, record: str, status: str, reason: str
) -> None:
    """D08: for the addresses that our own record lists."""
    _publish(zone, domain)
    zone[INCLUDE, "TXT"] = ["v=spf1 ip4:198.51.100.0/24 ip6:2001:db8:1::/48 -all"]
    zone["example.com", "TXT"] = [record]
    seen = domaincheck.check_domain(db, settings, domain)["spf"]
    assert seen["status"] == status and reason in seen["reason"]


@pytest.mark.parametrize("ours", [Code.SERVFAIL, Code.NXDOMAIN, ["v=spf1 ip4:nonsense -all"]])
def test_a_fault_in_our_own_spf_record_is_not_the_domains(
    db: Database, settings: Settings, zone: StaticZone, domain: Domain, ours: list[str] | Code
) -> None:
    _publish(zone, domain)
    zone[INCLUDE, "TXT"] = ours
    assert domaincheck.check_domain(db, settings, domain)["spf"]["status"] == "Success"


def test_the_dmarc_policy_above_counts_and_reports_go_where_they_are_wanted(
    db: Database, settings: Settings, zone: StaticZone, vault: Vault
) -> None:
    """D11, D14."""
    below = _add(db, vault, name="mail.example.org")
    zone["_dmarc.example.org", "TXT"] = ["v=DMARC1; p=reject"]
    seen = domaincheck.check_domain(db, settings, below)["dmarc"]
    assert (seen["status"], seen["reason"]) == ("Success", "The DMARC record of example.org counts: reject")
    zone["_dmarc.mail.example.org", "TXT"] = ["v=DMARC1; p=reject; rua=mailto:d@reports.relay.example"]
    assert "No reports will come" in domaincheck.check_domain(db, settings, below)["dmarc"]["reason"]
    zone["mail.example.org._report._dmarc.reports.relay.example", "TXT"] = ["v=DMARC1"]
    assert domaincheck.check_domain(db, settings, below)["dmarc"]["status"] == "Success"


def test_a_record_at_the_doubled_name_is_pointed_out(
    db: Database, settings: Settings, zone: StaticZone, domain: Domain
) -> None:
    """D13: the provider adds the domain to what was typed in with the domain."""
    for name, text in {
        "_remails.example.com": f"remails-verification={domain.ownership_token}",
        "remails._domainkey.example.com": domain.dkim_keys[0].record,
        "_dmarc.example.com": "v=DMARC1; p=reject",
    }.items():
        zone[f"{name}.example.com", "TXT"] = [text]
    seen = domaincheck.check_domain(db, settings, domain)
    for name in ("ownership", "dkim", "dmarc"):
        assert "ends in the domain twice" in seen[name]["reason"]


def test_every_active_key_must_be_right(
    db: Database, settings: Settings, vault: Vault, zone: StaticZone, domain: Domain
) -> None:
    _publish(zone, domain)
    db.run(domains.add_key, vault, domain.id, "second", "ed25519")
    two = _stored(db, domain)
    assert domaincheck.check_domain(db, settings, two)["dkim"]["status"] == "Error"
    [second] = [key for key in two.dkim_keys if key.selector == "second"]
    zone["second._domainkey.example.com", "TXT"] = [second.record]
    assert domaincheck.check_domain(db, settings, two)["dkim"]["status"] == "Success"


def test_a_domain_that_is_anothers_is_not_verified_and_says_so(
    db: Database, settings: Settings, vault: Vault, zone: StaticZone, domain: Domain
) -> None:
    _publish(zone, domain)
    domaincheck.check_domain(db, settings, domain)
    rival = _add(db, vault, "Rival")
    _publish(zone, rival)
    seen = domaincheck.check_domain(db, settings, rival)
    assert (seen["ownership"]["status"], seen["dkim"]["status"]) == ("Error", "Success")
    assert "Another organization" in seen["ownership"]["reason"]
    after = _stored(db, rival)
    assert (after.verified_at, after.verification) == (None, seen)


# The repeating task


def _age(db: Database, domain: Domain, *, checked: str | None, created: str = "0 s") -> None:
    db.run(
        lambda conn: conn.execute(
            """
            UPDATE domains SET checked_at = now() - %s::interval, created_at = now() - %s::interval WHERE id = %s
            """,
            [checked, created, domain.id],
        )
    )


@pytest.mark.parametrize(
    ("verified", "checked", "created", "is_due"),
    [
        (False, None, "0 s", True),
        (False, "4 minutes", "1 hour", True),
        (False, "1 minute", "1 hour", False),
        (False, "4 minutes", "25 hours", False),
        (False, "21 hours", "25 hours", True),
        (True, "4 minutes", "1 hour", False),
        (True, "19 hours", "30 days", False),
        (True, "21 hours", "30 days", True),
    ],
)
def test_which_domains_are_checked_again(
    db: Database, settings: Settings, domain: Domain, verified: bool, checked: str | None, created: str, is_due: bool
) -> None:
    db.run(domains.save_verification, domain.id, {}, verified=verified)
    _age(db, domain, checked=checked, created=created)
    before = _stored(db, domain)
    asyncio.run(recheck.run(db, settings))
    assert (_stored(db, domain).checked_at != before.checked_at) == is_due


def test_many_domains_are_checked_side_by_side_and_the_slow_one_holds_nobody_up(
    db: Database, settings: Settings, vault: Vault, zone: StaticZone
) -> None:
    some = [_add(db, vault, f"Organization {n}", f"d{n}.example") for n in range(12)]
    for one in some:
        _publish(zone, one)
    zone["d3.example", "TXT"] = Code.TIMEOUT
    asyncio.run(recheck.run(db, settings))
    after = [_stored(db, one) for one in some]
    assert all(one.verified_at for one in after)
    assert [one.name for one in after if not one.verification["spf"]["checked"]] == ["d3.example"]
    asyncio.run(recheck.run(db, settings))
    assert [_stored(db, one).checked_at for one in some] == [one.checked_at for one in after]


def test_a_verified_domain_that_breaks_is_a_warning_in_the_log_and_an_outage_is_not(
    db: Database, settings: Settings, zone: StaticZone, domain: Domain, caplog: pytest.LogCaptureFixture
) -> None:
    """D12: no alarm for what could not be checked."""
    _publish(zone, domain)
    domaincheck.check_domain(db, settings, domain)
    often = Settings(
        host=settings.host,
        mail=settings.mail,
        database=settings.database,
        dns=settings.dns,
        periodic=Periodic(domains_older_than=1e-6),
    )
    zone["remails._domainkey.example.com", "TXT"] = Code.SERVFAIL
    asyncio.run(recheck.run(db, often))
    assert "domain is not as it was" not in caplog.messages
    del zone["remails._domainkey.example.com", "TXT"]
    asyncio.run(recheck.run(db, often))
    assert caplog.messages.count("domain is not as it was") == 1
