"""Organizations, members, projects, credentials, keys, domains: made, changed, listed, removed, and written down."""

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta
from uuid import UUID, uuid4

import flask
import pytest
from api.caller import Caller, basic, by_session
from installation import eventually
from seed import PASSWORD, Tenant

from remails import submission
from remails.api.app import create_app
from remails.bus.client import Publisher
from remails.config import Bus, Dns, Mail, Settings
from remails.db import Database
from remails.dev.dns import Server, StaticZone
from remails.store import credentials, domains, messages, projects, queue, statistics, usage, users
from remails.store.ids import OrganizationId, ProjectId, UserId
from remails.store.users import Role
from remails.vault import Pepper, Vault, hash_password


def path(tenant: Tenant, rest: str = "") -> str:
    return f"/organizations/{tenant.organization_id}{rest}"


def log(caller: Caller, tenant: Tenant) -> list[tuple[str, str, str]]:
    """What was changed, newest first: action, type, who."""
    entries = caller.ok("GET", path(tenant, "/audit-log"))
    return [(entry["action"], entry["target_type"], entry["actor_type"]) for entry in entries]


def further_member(db: Database, tenant: Tenant, role: Role, email: str = "second@acme.example") -> UserId:
    with db.transaction() as conn:
        user = users.create(conn, email, "Second", hash_password(PASSWORD))
        users.add_member(conn, user.id, tenant.organization_id, role)
    return user.id


# Organizations


def test_an_organization_shows_how_much_of_its_quota_is_used(
    key: Caller, db: Database, settings: Settings, tenant: Tenant
) -> None:
    submission.submit(db, Publisher(settings.bus, ""), settings.mail, [tenant.submission(), tenant.submission()])
    answer = key.ok("GET", path(tenant))
    assert answer["used_message_quota"] == 2
    assert answer["total_message_quota"] is None
    assert answer["block_status"] == "not_blocked"
    assert datetime.fromisoformat(answer["quota_reset"]) > datetime.now(UTC)


def test_a_user_makes_an_organization_and_is_its_admin(admin: Caller) -> None:
    made = admin.ok("POST", "/organizations", {"name": "  Second  "})
    assert (made["name"], made["total_message_quota"]) == ("Second", 3_000)
    roles = {role["org_id"]: role["role"] for role in admin.ok("GET", "/whoami")["org_roles"]}
    assert roles[made["id"]] == "admin"
    assert admin.ok("PUT", f"/organizations/{made['id']}", {"name": "Third"})["name"] == "Third"
    assert admin.ok("DELETE", f"/organizations/{made['id']}") == made["id"]
    assert admin("GET", f"/organizations/{made['id']}").status_code == 404


@pytest.mark.parametrize("name", ["", "   ", "x" * 101, 5, None])
def test_a_bad_name_is_named(admin: Caller, name: object) -> None:
    answer = admin("POST", "/organizations", {"name": name}).get_json()
    assert (answer["status"], answer["field"]) == (422, "name")


def test_deleting_an_organization_is_remembered_by_the_installation(
    admin: Caller, db: Database, tenant: Tenant
) -> None:
    admin.ok("DELETE", path(tenant))
    with db.transaction() as conn:
        rows = conn.execute(
            "SELECT action, target_type, target_id FROM audit_log WHERE organization_id IS NULL AND action = 'deleted'"
        ).fetchall()
    assert rows == [("deleted", "organization", str(tenant.organization_id))]


@pytest.mark.parametrize("what", ["organization", "project"])
def test_what_has_much_mail_is_deleted_in_pieces(admin: Caller, db: Database, tenant: Tenant, what: str) -> None:
    """One long transaction would hold up whoever stores or delivers mail together with its."""
    given = [tenant.submission() for _ in range(1200)]
    submission.submit(db, Publisher(Bus(), ""), Mail(hostname="relay.example"), given)
    deleted = path(tenant, f"/projects/{tenant.project_id}" if what == "project" else "")
    with ThreadPoolExecutor(1) as pool:
        with db.transaction() as conn:
            conn.execute("SELECT FROM messages WHERE id = %s FOR UPDATE", [given[-1].id])  # it cannot come to its end
            answer = pool.submit(admin, "DELETE", deleted)
            eventually(lambda: conn.execute("SELECT count(*) FROM messages").fetchone(), lambda row: row == (1,))
        assert answer.result().status_code == 200
    with db.transaction() as conn:
        for table in ("messages", "message_bodies", "deliveries", "timeline", "projects"):
            assert conn.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,)


# Members


def test_members_change_roles_and_leave(admin: Caller, app: flask.Flask, db: Database, tenant: Tenant) -> None:
    second = further_member(db, tenant, Role.read_only)
    listed = admin.ok("GET", path(tenant, "/members"))
    assert [(one["email"], one["role"]) for one in listed] == [
        ("admin@acme.example", "admin"),
        ("second@acme.example", "read_only"),
    ]
    assert admin.ok("PUT", path(tenant, f"/members/{second}"), "maintainer")["role"] == "maintainer"
    other = by_session(app.test_client(), "second@acme.example")
    first = listed[0]["user_id"]
    assert other("DELETE", path(tenant, f"/members/{first}")).status_code == 403
    assert other("PUT", path(tenant, f"/members/{second}"), "admin").status_code == 403
    assert other.ok("DELETE", path(tenant, f"/members/{second}")) == str(second)
    assert other("GET", path(tenant)).status_code == 404
    assert log(admin, tenant)[:2] == [("removed", "member", "user"), ("updated", "member", "user")]


def test_the_last_admin_stays(admin: Caller, db: Database, tenant: Tenant) -> None:
    me = admin.ok("GET", "/whoami")["id"]
    assert admin("DELETE", path(tenant, f"/members/{me}")).status_code == 409
    assert admin("PUT", path(tenant, f"/members/{me}"), "read_only").status_code == 409
    further_member(db, tenant, Role.admin)
    admin.ok("PUT", path(tenant, f"/members/{me}"), "read_only")


def test_a_role_there_is_not_is_422(admin: Caller, db: Database, tenant: Tenant) -> None:
    second = further_member(db, tenant, Role.read_only)
    assert admin("PUT", path(tenant, f"/members/{second}"), "owner").status_code == 422
    assert admin("PUT", path(tenant, f"/members/{uuid4()}"), "admin").status_code == 404


# Projects


def test_projects(key: Caller, tenant: Tenant) -> None:
    made = key.ok("POST", path(tenant, "/projects"), {"name": "news", "retention_period_days": 3})
    assert (made["name"], made["retention_period_days"], made["plaintext_fallback"]) == ("news", 3, True)
    assert made["organization_id"] == str(tenant.organization_id)
    one = path(tenant, f"/projects/{made['id']}")
    assert key.ok("GET", one) == made
    assert made["expires_in"] == 0
    changed = key.ok("PUT", one, {"plaintext_fallback": False, "expires_in": 600})
    assert changed["expires_in"] == 600
    assert (changed["name"], changed["retention_period_days"], changed["plaintext_fallback"]) == ("news", 3, False)
    assert [found["name"] for found in key.ok("GET", path(tenant, "/projects"))] == ["acme project", "news"]
    again = key("POST", path(tenant, "/projects"), {"name": "news"}).get_json()
    assert (again["status"], again["field"]) == (409, "name")
    assert key.ok("DELETE", one) == made["id"]
    assert key("GET", one).status_code == 404
    assert key("DELETE", one).status_code == 404
    assert log(key, tenant) == [(action, "project", "api_key") for action in ("deleted", "updated", "created")]


@pytest.mark.parametrize("days", [0, 366, 2**70, "7", 1.5])
def test_a_bad_period_is_named(key: Caller, tenant: Tenant, days: object) -> None:
    answer = key("POST", path(tenant, "/projects"), {"name": "x", "retention_period_days": days}).get_json()
    assert (answer["status"], answer["field"]) == (422, "retention_period_days")


# Credentials and keys


def test_smtp_credentials(key: Caller, db: Database, pepper: Pepper, tenant: Tenant) -> None:
    base = path(tenant, f"/projects/{tenant.project_id}/smtp_credentials")
    made = key.ok("POST", base, {"username": "billing", "description": "invoices"})
    assert made["username"] == f"{tenant.organization_id.hex[:8]}-billing"
    login = db.run(credentials.authenticate_smtp, [made["username"]])[0]
    assert pepper.matches(made["cleartext_password"], login.digest)
    listed = key.ok("GET", base)
    assert {one["username"] for one in listed} == {tenant.smtp_username, made["username"]}
    assert all("cleartext_password" not in one for one in listed)
    assert key.ok("PUT", f"{base}/{made['id']}", {"description": "new"})["description"] == "new"
    assert key("POST", base, {"username": "billing"}).status_code == 409
    assert key("POST", base, {"username": "a b"}).get_json()["field"] == "username"
    assert key.ok("DELETE", f"{base}/{made['id']}") == made["id"]
    assert db.run(credentials.authenticate_smtp, [made["username"]]) == []
    assert log(key, tenant) == [(action, "smtp_credential", "api_key") for action in ("deleted", "updated", "created")]


def test_networks_from_which_a_credential_may_be_used(admin: Caller, tenant: Tenant) -> None:
    base = path(tenant, f"/projects/{tenant.project_id}/smtp_credentials")
    made = admin.ok("POST", base, {"username": "billing", "networks": ["198.51.100.0/24", "2001:DB8::1"]})
    assert made["networks"] == ["198.51.100.0/24", "2001:db8::1/128"]
    assert admin.ok("PUT", f"{base}/{made['id']}", {"description": "x"})["networks"] == made["networks"]
    assert admin.ok("PUT", f"{base}/{made['id']}", {"networks": []})["networks"] == []
    for bad in (["198.51.100.1/24"], ["x"], ["\u00e9"], [f"192.0.2.{n}" for n in range(51)]):
        answer = admin("POST", base, {"username": "other", "networks": bad})
        assert (answer.status_code, answer.get_json()["field"].partition("[")[0]) == (422, "networks")


def test_a_key_is_turned_away_from_elsewhere(admin: Caller, app: flask.Flask, tenant: Tenant) -> None:
    base = path(tenant, "/api_keys")
    made = admin.ok("POST", base, {"role": "read_only", "networks": ["198.51.100.0/24"]})
    caller = Caller(app.test_client(), basic(made["id"], made["password"]))
    assert caller("GET", path(tenant), environ_base={"REMOTE_ADDR": "198.51.100.7"}).status_code == 200
    refused = caller("GET", path(tenant), environ_base={"REMOTE_ADDR": "192.0.2.1"})
    assert refused.status_code == 403 and "192.0.2.1" in refused.get_json()["detail"]
    assert admin.ok("PUT", f"{base}/{made['id']}", {"networks": ["192.0.2.0/28"]})["networks"] == ["192.0.2.0/28"]
    assert caller("GET", path(tenant), environ_base={"REMOTE_ADDR": "192.0.2.1"}).status_code == 200
    assert admin("GET", base).get_json()[-1]["networks"] == ["192.0.2.0/28"]


def test_api_keys(admin: Caller, app: flask.Flask, tenant: Tenant) -> None:
    base = path(tenant, "/api_keys")
    made = admin.ok("POST", base, {"description": "shop", "role": "read_only"})
    caller = Caller(app.test_client(), basic(made["id"], made["password"]))
    assert caller("GET", path(tenant)).status_code == 200
    assert caller("POST", path(tenant, "/projects"), {"name": "x"}).status_code == 403
    admin.ok("PUT", f"{base}/{made['id']}", {"role": "maintainer"})
    assert caller("POST", path(tenant, "/projects"), {"name": "x"}).status_code == 201
    assert all("password" not in one for one in admin.ok("GET", base))
    assert admin("POST", base, {"role": "admin"}).get_json()["field"] == "role"
    assert admin("PUT", f"{base}/{made['id']}", {"role": "admin"}).status_code == 422
    assert admin.ok("DELETE", f"{base}/{made['id']}") == made["id"]
    assert caller("GET", path(tenant)).status_code == 401


def test_no_secret_is_in_the_audit_log(admin: Caller, tenant: Tenant) -> None:
    made = admin.ok("POST", path(tenant, "/api_keys"), {"role": "read_only"})
    smtp = admin.ok("POST", path(tenant, f"/projects/{tenant.project_id}/smtp_credentials"), {"username": "x1"})
    text = admin("GET", path(tenant, "/audit-log")).get_data(as_text=True)
    assert "api_key" in text
    assert made["password"] not in text
    assert smtp["cleartext_password"] not in text


def test_the_audit_log_pages(admin: Caller, tenant: Tenant) -> None:
    for number in range(5):
        admin.ok("POST", path(tenant, "/projects"), {"name": f"p{number}"})
    response = admin("GET", path(tenant, "/audit-log?limit=2"))
    names = [entry["details"]["name"] for entry in response.get_json()]
    link = response.headers["Link"]
    assert link.endswith('; rel="next"')
    following = admin.ok("GET", link[1 : link.index(">")].removeprefix("/api"))
    assert names + [entry["details"]["name"] for entry in following] == ["p4", "p3", "p2", "p1"]
    assert admin("GET", path(tenant, f"/audit-log?before={2**63}")).status_code == 422


# Domains


@pytest.fixture
def zone() -> StaticZone:
    """What DNS answers; empty."""
    return StaticZone()


@pytest.fixture
def nameserver(zone: StaticZone) -> Iterator[str]:
    """A DNS server that answers from the zone."""
    loop, stop, started = asyncio.new_event_loop(), asyncio.Event(), threading.Event()
    port: list[int] = []

    async def serve() -> None:
        server = Server(zone)
        await server.start()
        port.append(server.port)
        started.set()
        await stop.wait()
        await server.close()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    assert started.wait(10)
    yield f"127.0.0.1:{port[0]}"
    loop.call_soon_threadsafe(stop.set)
    thread.join(10)
    loop.close()


def test_a_domain_is_added_published_and_verified(
    settings: Settings, db: Database, vault: Vault, pepper: Pepper, tenant: Tenant, zone: StaticZone, nameserver: str
) -> None:
    asking = Settings(host="test", mail=settings.mail, database=settings.database, dns=Dns(nameservers=(nameserver,)))
    app = create_app(asking, db, Publisher(asking.bus, ""), vault, pepper)
    key = Caller(app.test_client(), basic(tenant.api_key, tenant.api_secret))
    made = key.ok("POST", path(tenant, "/domains"), {"domain": "News.Example", "project_ids": [str(tenant.project_id)]})
    assert (made["domain"], made["dkim_key_type"], made["verified_at"]) == ("news.example", "rsa_sha256", None)
    assert made["project_ids"] == [str(tenant.project_id)]
    assert made["verification_status"]["dkim"] is None
    one = path(tenant, f"/domains/{made['id']}")

    mail = {"from": "a@news.example", "to": "b@example.net", "subject": "s", "text_body": "t"}
    send = path(tenant, f"/projects/{tenant.project_id}/emails")
    assert key("POST", send, mail).status_code == 422
    assert key.ok("GET", one + "/verify")["dkim"]["status"] == "Error"

    for record in made["dns_records"]:
        zone[record["name"], record["type"]] = [record["value"]]
    seen = key.ok("GET", one + "/verify")
    assert {name: seen[name]["status"] for name in ("ownership", "dkim", "spf", "dmarc")} == dict.fromkeys(
        ("ownership", "dkim", "spf", "dmarc"), "Success"
    )
    shown = key.ok("GET", one)
    assert shown["verified_at"] is not None
    assert shown["verification_status"] == seen
    assert any(shown["dkim_public_key"] in record["value"] for record in made["dns_records"])
    assert key("POST", send, mail).status_code == 201

    assert key.ok("PUT", one, [])["project_ids"] == []
    assert key("POST", send, mail).status_code == 422
    assert key.ok("DELETE", one) == made["id"]
    assert key("GET", one).status_code == 404
    assert log(key, tenant) == [(action, "domain", "api_key") for action in ("deleted", "updated", "created")]


def test_a_domain_with_an_ed25519_key(key: Caller, tenant: Tenant) -> None:
    made = key.ok("POST", path(tenant, "/domains"), {"domain": "small.example", "dkim_key_type": "ed25519"})
    assert made["dkim_key_type"] == "ed25519"
    assert len(made["dkim_public_key"]) == 44  # RFC 8463: 32 bytes in base64


@pytest.mark.parametrize(
    ("body", "status", "field"),
    [
        ({"domain": "acme.example"}, 409, "domain"),
        ({"domain": "no domain"}, 422, "domain"),
        ({"domain": "localhost"}, 422, "domain"),
        ({"domain": "127.0.0.1"}, 422, "domain"),
        ({"domain": "a" * 254}, 422, "domain"),
        ({"domain": "x.example", "dkim_key_type": "md5"}, 422, "dkim_key_type"),
        ({"domain": "x.example", "project_ids": ["x"]}, 422, "project_ids[0]"),
        ({"domain": "x.example", "project_ids": [str(uuid4())]}, 422, "project_ids"),
    ],
)
def test_a_domain_that_does_not_fit_is_named(
    key: Caller, tenant: Tenant, body: dict[str, object], status: int, field: str
) -> None:
    answer = key("POST", path(tenant, "/domains"), body).get_json()
    assert (answer["status"], answer["field"]) == (status, field)


def test_two_organizations_may_add_a_name_and_one_proves_it(
    key: Caller, db: Database, tenant: Tenant, other: Tenant
) -> None:
    made = key.ok("POST", path(tenant, "/domains"), {"domain": other.domain})
    assert made["verified_at"] is None
    theirs = db.run(domains.by_name, other.organization_id, other.domain)
    assert theirs is not None
    assert theirs.ownership_token not in str(made)


# Statistics


def test_statistics_count_each_day_and_month_by_status(
    key: Caller, db: Database, settings: Settings, tenant: Tenant
) -> None:
    given = [tenant.submission(f"u{n}@example.net") for n in range(4)]
    submission.submit(db, Publisher(settings.bus, ""), settings.mail, given)
    with db.transaction() as conn:
        claims = queue.claim_messages(conn, tenant.host_id, tenant.sources, [one.id for one in given[:3]], lease=60)
        words = dict(zip((one.id for one in given), ("delivered", "failed", "reattempt"), strict=False))
        later = datetime.now(UTC) + timedelta(hours=1)
        queue.record_many(
            conn,
            [
                queue.Result(
                    claim.id, claim.message_id, claim.claim_epoch, words[claim.message_id], "failed", "x", later
                )
                for claim in claims
            ],
        )
        usage.fold(conn)
    answer = key.ok("GET", path(tenant, "/statistics"))
    today = datetime.now(UTC).date()
    expected = {
        "organization_id": str(tenant.organization_id),
        "project_id": str(tenant.project_id),
        "statistics": {"accepted": 1, "delivered": 1, "failed": 1, "reattempt": 1},
    }
    assert answer["daily"] == [{**expected, "date": today.isoformat()}]
    assert answer["monthly"] == [{**expected, "date": today.replace(day=1).isoformat()}]


def test_statistics_of_days_gone_by(db: Database, tenant: Tenant) -> None:
    with db.transaction() as conn:
        conn.execute(
            "INSERT INTO usage VALUES (%s, %s, '2026-03-31', 7, 9), (%s, %s, '2026-04-01', 2, 2)",
            [tenant.organization_id, tenant.project_id] * 2,
        )
        days = statistics.by_day(conn, tenant.organization_id, date(2026, 4, 1))
        elsewhere = statistics.by_day(conn, OrganizationId(UUID(int=1)), date(2026, 1, 1))
    assert days == [statistics.Count(ProjectId(tenant.project_id), date(2026, 4, 1), "delivered", 2)]
    assert elsewhere == []


@pytest.mark.parametrize("by", ["retention", "project"])
def test_statistics_outlive_the_messages(
    key: Caller, db: Database, settings: Settings, tenant: Tenant, by: str
) -> None:
    """What failed does not become delivered when the message, or its whole project, is deleted."""
    given = [tenant.submission(f"u{n}@example.net", "v@example.net") for n in range(4)]
    submission.submit(db, Publisher(settings.bus, ""), settings.mail, given)
    with db.transaction() as conn:
        usage.fold(conn)
        for one, first, second in zip(
            given,
            ("delivered", "failed", "suppressed", "suppressed"),
            ("delivered", "delivered", "suppressed", "delivered"),
            strict=True,
        ):
            conn.execute(
                "UPDATE deliveries SET status = CASE WHEN recipient LIKE 'u%%' THEN %s ELSE %s END::delivery_status"
                " WHERE message_id = %s",
                [first, second, one.id],
            )
    before = key.ok("GET", path(tenant, "/statistics"))["daily"]
    assert before[0]["statistics"] == {"delivered": 1, "failed": 2, "rejected": 1}
    with db.transaction() as conn:
        if by == "project":
            projects.remove(conn, tenant.organization_id, tenant.project_id)
        else:
            assert messages.remove_old(conn, 0, 3) == 3
            assert messages.remove_old(conn, 0, 3) == 1
        assert messages.list_(conn, tenant.organization_id) == []
    assert key.ok("GET", path(tenant, "/statistics"))["daily"] == before
