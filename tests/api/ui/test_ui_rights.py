"""Who sees and does what: tenants apart, roles in order, forms from our own pages only."""

from collections.abc import Callable
from uuid import uuid4

import flask
import pytest
import seed
from api.ui.browser import Browser, Element, log_in
from api.ui.conftest import Send

from remails.api import auth
from remails.db import Database
from remails.store import credentials, domains, messages, organizations, projects, suppressions, users
from remails.store.users import Role

PAGES = ("emails", "domains", "domains/new", "projects", "projects/new", "keys", "suppressions", "members", "audit")


def urls(app: flask.Flask, method: str, **ids: object) -> list[str]:
    """The addresses of all pages of an organization, with these ids in them."""
    values = {name: str(value) for name, value in ids.items()}
    with app.test_request_context():
        return [
            app.url_map.bind("").build(rule.endpoint, {name: values[name] for name in rule.arguments}, method=method)
            for rule in app.url_map.iter_rules()
            if rule.endpoint.startswith("ui.")
            and method in (rule.methods or ())
            and "organization_id" in rule.arguments
        ]


@pytest.fixture
def ids(db: Database, tenant: seed.Tenant, send: Send) -> dict[str, object]:
    """An id of each thing the tenant has."""
    message_id = send(subject="Private")
    with db.transaction() as conn:
        user = users.by_email(conn, tenant.email)
        assert user is not None
        return {
            "message_id": message_id,
            "project_id": tenant.project_id,
            "domain_id": domains.list_(conn, tenant.organization_id)[0].id,
            "credential_id": credentials.list_smtp(conn, tenant.project_id)[0].id,
            "key_id": tenant.api_key,
            "user_id": user.id,
        }


def state_of(db: Database, tenant: seed.Tenant) -> tuple[object, ...]:
    """Everything the tenant has that a page could change."""
    id_ = tenant.organization_id
    with db.transaction() as conn:
        return (
            organizations.get(conn, id_),
            projects.list_(conn, id_),
            domains.list_(conn, id_),
            credentials.list_smtp(conn, tenant.project_id),
            credentials.list_keys(conn, id_),
            suppressions.list_(conn, id_),
            users.members(conn, id_),
            messages.list_(conn, id_),
        )


def test_a_stranger_to_the_organization_sees_nothing_of_it(
    app: flask.Flask, boss: Browser, other: seed.Tenant, ids: dict[str, object]
) -> None:
    paths = urls(app, "GET", organization_id=other.organization_id, **ids)
    assert len(paths) > 10
    for path in paths:
        page = boss.get(path, 404)
        assert "rival" not in page.text
        assert "Private" not in page.text


def test_a_things_id_opens_nothing_under_another_organization(
    app: flask.Flask, db: Database, other: seed.Tenant, ids: dict[str, object]
) -> None:
    """The rival's admin names the tenant's things in an address of their own."""
    rival = log_in(app, other.email)
    for path in urls(app, "GET", organization_id=other.organization_id, **ids):
        if any(str(id_) in path for id_ in ids.values()):
            assert "Private" not in rival.get(path, 404).text


def test_no_form_reaches_into_another_organization(
    app: flask.Flask, db: Database, tenant: seed.Tenant, other: seed.Tenant, ids: dict[str, object]
) -> None:
    rival = log_in(app, other.email)
    before = state_of(db, tenant)
    at = f"/{other.organization_id}/emails"
    for organization_id in (tenant.organization_id, other.organization_id):
        for path in urls(app, "POST", organization_id=organization_id, **ids):
            if organization_id == tenant.organization_id or any(str(id_) in path for id_ in ids.values()):
                assert rival.post(path, {"role": "admin", "project": str(tenant.project_id)}, at=at).status_code == 404
    assert state_of(db, tenant) == before


def test_no_form_works_without_its_token(
    app: flask.Flask, boss: Browser, db: Database, tenant: seed.Tenant, ids: dict[str, object]
) -> None:
    before = state_of(db, tenant)
    paths = urls(app, "POST", organization_id=tenant.organization_id, **ids)
    assert len(paths) > 12
    for path in paths:
        for token in ({}, {"csrf_token": ""}, {"csrf_token": "0" * 64}):
            assert boss.client.post(path, data=token).status_code == 403, path
    assert state_of(db, tenant) == before


def test_a_token_of_another_session_is_none(boss: Browser, member: Callable[[Role], Browser], home: str) -> None:
    token = member(Role.maintainer).get(f"{home}/emails").all("input", name="csrf_token")[0]["value"]
    data = {"csrf_token": token, "address": "x@example.net"}
    assert boss.client.post(f"{home}/suppressions", data=data).status_code == 403


def test_no_page_of_another_site_can_send_a_form(boss: Browser, home: str) -> None:
    token = boss.get(f"{home}/suppressions").all("input", name="csrf_token")[0]["value"]
    data = {"csrf_token": token, "address": "x@example.net"}
    for headers in ({"Sec-Fetch-Site": "cross-site"}, {"Origin": "https://evil.example"}):
        assert boss.client.post(f"{home}/suppressions", data=data, headers=headers).status_code == 403


def test_reading_changes_nothing(
    app: flask.Flask, boss: Browser, db: Database, tenant: seed.Tenant, ids: dict[str, object]
) -> None:
    before = state_of(db, tenant)
    for path in urls(app, "GET", organization_id=tenant.organization_id, **ids):
        boss.client.get(path)
    assert state_of(db, tenant) == before


@pytest.mark.parametrize("role", [Role.read_only, Role.maintainer])
def test_what_a_role_may_not_do_is_refused(
    app: flask.Flask,
    member: Callable[[Role], Browser],
    db: Database,
    tenant: seed.Tenant,
    ids: dict[str, object],
    role: Role,
) -> None:
    browser = member(role)
    before = state_of(db, tenant)
    at = f"/{tenant.organization_id}/emails"
    refused = 0
    for rule in app.url_map.iter_rules():
        stated = auth.rule_of(app.view_functions[rule.endpoint])
        if stated is None or stated.role is None or not rule.endpoint.startswith("ui.") or role.allows(stated.role):
            continue
        for path in urls(app, "POST", organization_id=tenant.organization_id, **ids):
            if app.url_map.bind("").match(path, method="POST")[0] == rule.endpoint:
                assert browser.post(path, {"role": "admin"}, at=at).status_code == 403, path
                refused += 1
    assert refused >= 3
    assert state_of(db, tenant) == before


@pytest.mark.parametrize("page", PAGES)
def test_what_a_role_may_not_do_is_off_and_says_why(member: Callable[[Role], Browser], home: str, page: str) -> None:
    seen = member(Role.read_only).get(f"{home}/{page}")
    main = seen.one("main")
    assert not [form for form in main.all("form", method="post") if _works(form)] or page == "members"
    for button in main.all("button"):
        if button.has("disabled"):
            assert "takes the role" in button["title"]
    if page not in ("emails", "audit"):
        assert "yours is read_only." in main.text


def _works(form: Element) -> bool:
    return any(not button.has("disabled") for button in form.all("button"))


def test_a_reader_may_leave(member: Callable[[Role], Browser], home: str, db: Database, tenant: seed.Tenant) -> None:
    browser = member(Role.read_only)
    assert "You are no longer a member." in browser.do(f"{home}/members/leave", at=f"{home}/members").text
    assert [one.email for one in db.run(users.members, tenant.organization_id)] == [tenant.email]


def test_an_api_key_opens_no_page(app: flask.Flask, tenant: seed.Tenant, home: str) -> None:
    response = app.test_client().get(f"{home}/emails", auth=(str(tenant.api_key), tenant.api_secret))
    assert response.status_code == 403


def test_the_installation_is_for_its_admins(boss: Browser, operator: Browser, tenant: seed.Tenant) -> None:
    for path in ("/admin/hosts", "/admin/organizations", "/admin/bans"):
        boss.get(path, 404)
        operator.get(path)
    block = f"/admin/organizations/{tenant.organization_id}/block"
    assert boss.post(block, {"block_status": "not_blocked"}, at=f"/{tenant.organization_id}/emails").status_code == 404
    assert not boss.get(f"/{tenant.organization_id}/emails").all("a", href="/admin/hosts")


def test_a_frozen_organization_is_read_and_not_changed(
    boss: Browser, home: str, db: Database, tenant: seed.Tenant
) -> None:
    with db.transaction() as conn:
        organizations.set_block_status(conn, tenant.organization_id, "full_freeze")
    page = boss.get(f"{home}/suppressions")
    assert "This organization is blocked by the operator" in page.one("main").text
    assert page.one("main").all("button")[0]["title"].startswith("The organization is frozen")
    response = boss.post(f"{home}/suppressions", {"address": "x@example.net"}, at=f"{home}/suppressions")
    assert response.status_code == 403


def test_what_is_not_there_is_a_page_that_says_so(boss: Browser, home: str) -> None:
    for path in ("/nowhere", f"/{uuid4()}/emails", f"{home}/emails/{uuid4()}", f"{home}/projects/{uuid4()}"):
        page = boss.get(path, 404)
        assert page.one("h1").text == "Not Found"
        assert "There is no such page, or it is not yours to see." in page.text
