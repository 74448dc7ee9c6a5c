"""Tenant boundaries (A12): what belongs to others is 404, by every route, however it is asked for, and is not touched."""

from dataclasses import dataclass
from uuid import uuid4

import flask
import pytest
from api.caller import Caller, by_key, by_session
from seed import Tenant
from werkzeug.test import TestResponse

from remails import submission
from remails.api.operations import Operation
from remails.api.rest import NOUNS
from remails.bus.client import Publisher
from remails.config import Settings
from remails.db import Database
from remails.store import credentials, domains, messages, projects, suppressions, users

ORGANIZATION = "/organizations/{organization_id}"
OPERATIONS = [one for noun in NOUNS for one in noun.operations if one.path.startswith(ORGANIZATION)]
INNER = [one for one in OPERATIONS if one.path.count("{") > 1]


@dataclass
class Things:
    """The ids of what a tenant has, by the names the paths give them."""

    organization_id: object
    project_id: object
    domain_id: object
    smtp_credential_id: object
    api_key_id: object
    email_id: object
    user_id: object
    email_address: str = "gone@example.net"

    def path(self, operation: Operation, **changed: object) -> str:
        """The operation's path for these things."""
        return operation.path.format(**{**vars(self), **changed})


def things(db: Database, settings: Settings, tenant: Tenant) -> Things:
    """Give the tenant one of everything."""
    given = tenant.submission("to@example.net")
    (outcome,) = submission.submit(db, Publisher(settings.bus, ""), settings.mail, [given])
    assert isinstance(outcome, submission.Accepted)
    with db.transaction() as conn:
        suppressions.add(conn, tenant.organization_id, "gone@example.net", "test")
        domain = domains.by_name(conn, tenant.organization_id, tenant.domain)
        user = users.by_email(conn, tenant.email)
        smtp = credentials.list_smtp(conn, tenant.project_id)[0]
    assert domain is not None
    assert user is not None
    return Things(tenant.organization_id, tenant.project_id, domain.id, smtp.id, tenant.api_key, given.id, user.id)


@pytest.fixture
def mine(db: Database, settings: Settings, tenant: Tenant) -> Things:
    """What the asking tenant has."""
    return things(db, settings, tenant)


@pytest.fixture
def theirs(db: Database, settings: Settings, other: Tenant) -> Things:
    """What the other tenant has."""
    return things(db, settings, other)


def body(operation: Operation, own: Things, foreign: Things) -> object:
    """Something the operation takes."""
    known: dict[str, object] = {
        "NewOrganization": {"name": "mine now"},
        "NewProject": {"name": "mine now"},
        "ProjectChange": {"name": "mine now"},
        "NewEmail": {"from": "a@acme.example", "to": "b@example.net", "subject": "s", "text_body": "t"},
        "NewDomain": {"domain": "new.example", "project_ids": []},
        "NewSmtpCredential": {"username": "more"},
        "SmtpCredentialChange": {"description": "mine now"},
        "NewApiKey": {"role": "read_only"},
        "ApiKeyChange": {"description": "mine now"},
        "NewSuppressed": {"email_address": "more@example.net"},
        "Role": "read_only",
        "str": "more@example.net",
    }
    if operation.body is None:
        return None
    if operation.name == "domains_set_projects":
        return [str(own.project_id)]
    if operation.name == "organizations_set_block_status":
        return "no_sending"
    return known[operation.body.__name__]


def ask(caller: Caller, operation: Operation, path: str, given: object) -> TestResponse:
    """Ask for an operation, with a body as it takes it."""
    if operation.body is str:
        return caller(operation.method, path, data=given, headers={"Content-Type": "text/csv"})
    return caller(operation.method, path, given)


def state_of(db: Database, things: Things) -> object:
    """Whatever of the tenant's could have been changed."""
    organization = things.organization_id
    with db.transaction() as conn:
        return (
            conn.execute("SELECT * FROM organizations WHERE id = %s", [organization]).fetchall(),
            conn.execute("SELECT * FROM projects WHERE organization_id = %s", [organization]).fetchall(),
            conn.execute("SELECT * FROM domains WHERE organization_id = %s", [organization]).fetchall(),
            conn.execute("SELECT * FROM domains_projects ORDER BY domain_id, project_id").fetchall(),
            conn.execute("SELECT * FROM smtp_credentials WHERE project_id = %s", [things.project_id]).fetchall(),
            conn.execute("SELECT * FROM api_keys WHERE organization_id = %s", [organization]).fetchall(),
            conn.execute("SELECT * FROM memberships WHERE organization_id = %s", [organization]).fetchall(),
            conn.execute("SELECT s::text FROM suppressions s WHERE organization_id = %s", [organization]).fetchall(),
            conn.execute("SELECT * FROM messages WHERE organization_id = %s", [organization]).fetchall(),
            conn.execute("SELECT * FROM deliveries WHERE organization_id = %s", [organization]).fetchall(),
            conn.execute("SELECT message_id FROM message_bodies ORDER BY 1").fetchall(),
            conn.execute("SELECT * FROM audit_log WHERE organization_id = %s", [organization]).fetchall(),
        )


def test_nothing_of_another_organization_answers(
    app: flask.Flask, db: Database, tenant: Tenant, mine: Things, theirs: Things
) -> None:
    callers = [by_key(app.test_client(), tenant), by_session(app.test_client(), tenant.email)]
    before = state_of(db, theirs)
    for operation in OPERATIONS:
        for caller in callers:
            response = ask(caller, operation, theirs.path(operation), body(operation, mine, theirs))
            assert response.status_code == 404, f"{operation.method} {operation.path}: {response.status_code}"
    assert state_of(db, theirs) == before


def test_a_foreign_thing_under_the_own_organization_does_not_exist(
    app: flask.Flask, db: Database, tenant: Tenant, mine: Things, theirs: Things
) -> None:
    callers = [by_key(app.test_client(), tenant), by_session(app.test_client(), tenant.email)]
    before = state_of(db, theirs)
    asked = 0
    for operation in INNER:
        for name in ("project_id", "domain_id", "smtp_credential_id", "api_key_id", "email_id"):
            if f"{{{name}}}" not in operation.path:
                continue
            path = mine.path(operation, **{name: getattr(theirs, name)})
            for caller in callers:
                response = ask(caller, operation, path, body(operation, mine, theirs))
                allowed = operation.rule.keys if "Authorization" in caller.headers else operation.rule.people
                assert response.status_code == (404 if allowed else 403), f"{operation.method} {path}"
                asked += 1
    assert asked > 40
    assert state_of(db, theirs) == before


def test_a_member_of_another_organization_is_not_a_member(admin: Caller, mine: Things, theirs: Things) -> None:
    path = f"/organizations/{mine.organization_id}/members/{theirs.user_id}"
    assert admin("PUT", path, "read_only").status_code == 404
    assert admin("DELETE", path).status_code == 404


def test_a_foreign_suppression_stays(key: Caller, db: Database, tenant: Tenant, other: Tenant) -> None:
    db.run(suppressions.add, other.organization_id, "only-theirs@example.net", "test")
    path = f"/organizations/{tenant.organization_id}/emails/suppressed/only-theirs@example.net"
    assert key("DELETE", path).status_code == 404
    assert db.run(suppressions.active_among, [(other.organization_id, "only-theirs@example.net")])


def test_lists_hold_only_what_is_ones_own(key: Caller, admin: Caller, mine: Things, theirs: Things) -> None:
    base = f"/organizations/{mine.organization_id}"
    for path in ("/projects", "/domains", "/emails", "/emails/suppressed", "/members", "/audit-log", "/statistics"):
        for foreign in (theirs.organization_id, theirs.project_id, theirs.email_id, theirs.user_id):
            assert str(foreign) not in key("GET", base + path).get_data(as_text=True), path
    assert str(theirs.api_key_id) not in admin("GET", base + "/api_keys").get_data(as_text=True)


def test_a_filter_by_a_foreign_project_finds_nothing(key: Caller, mine: Things, theirs: Things) -> None:
    assert key.ok("GET", f"/organizations/{mine.organization_id}/emails?project={theirs.project_id}") == []


def test_a_key_cannot_send_for_a_foreign_project(
    key: Caller, db: Database, mine: Things, theirs: Things, other: Tenant
) -> None:
    # The original's defect: the key's organization in the path, the project of another.
    mail = {"from": f"a@{other.domain}", "to": "b@example.net", "subject": "s", "text_body": "t"}
    path = f"/organizations/{mine.organization_id}/projects/{theirs.project_id}/emails"
    assert key("POST", path, mail).status_code == 404
    with db.transaction() as conn:
        assert len(messages.list_(conn, other.organization_id)) == 1


def test_a_key_cannot_send_from_a_foreign_domain(key: Caller, mine: Things, other: Tenant) -> None:
    mail = {"from": f"a@{other.domain}", "to": "b@example.net", "subject": "s", "text_body": "t"}
    response = key("POST", f"/organizations/{mine.organization_id}/projects/{mine.project_id}/emails", mail)
    assert response.status_code == 422
    assert response.get_json()["field"] == "from"


def test_a_domain_is_not_attached_to_a_foreign_project(key: Caller, mine: Things, theirs: Things) -> None:
    path = f"/organizations/{mine.organization_id}/domains"
    response = key("PUT", f"{path}/{mine.domain_id}", [str(theirs.project_id)])
    assert response.status_code == 422
    assert key.ok("GET", f"{path}/{mine.domain_id}")["project_ids"] == [str(mine.project_id)]
    made = key("POST", path, {"domain": "new.example", "project_ids": [str(theirs.project_id)]})
    assert made.status_code == 422
    assert [found["domain"] for found in key.ok("GET", path)] == ["acme.example"]


def test_an_email_is_found_only_under_its_own_project(key: Caller, db: Database, tenant: Tenant, mine: Things) -> None:
    second = db.run(projects.create, tenant.organization_id, "second")
    base = f"/organizations/{mine.organization_id}/projects"
    assert key("GET", f"{base}/{mine.project_id}/emails/{mine.email_id}").status_code == 200
    assert key("GET", f"{base}/{second.id}/emails/{mine.email_id}").status_code == 404
    assert key("GET", f"{base}/{uuid4()}/emails/{mine.email_id}").status_code == 404
