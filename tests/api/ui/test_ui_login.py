"""Logging in and out, and the way between."""

import flask
import pytest
import seed
from api.ui.browser import Browser, log_in, parse, stranger

from remails.db import Database
from remails.store import users
from remails.store.ids import UserId
from remails.vault import hash_password


def test_a_stranger_is_sent_to_log_in_and_from_there_back(app: flask.Flask, tenant: seed.Tenant, home: str) -> None:
    client = stranger(app)
    away = client.get(f"{home}/domains?x=1")
    assert away.status_code == 303
    form = parse(client.get(away.location).get_data(as_text=True)).one("form")
    back = form.one("input", name="next")["value"]
    assert back == f"{home}/domains?x=1"
    response = client.post("/login", data={"email": tenant.email, "password": seed.PASSWORD, "next": back})
    assert (response.status_code, response.location) == (303, back)


@pytest.mark.parametrize("path", ["https://evil.example/", "//evil.example", "/\\evil.example", "/\t/evil.example", ""])
def test_nobody_is_sent_to_another_site_after_logging_in(app: flask.Flask, tenant: seed.Tenant, path: str) -> None:
    data = {"email": tenant.email, "password": seed.PASSWORD, "next": path}
    assert stranger(app).post("/login", data=data).location == "/"


def test_a_wrong_password_says_so_and_keeps_the_address(app: flask.Flask, tenant: seed.Tenant) -> None:
    response = stranger(app).post("/login", data={"email": tenant.email, "password": "wrong"})
    page = parse(response.get_data(as_text=True))
    assert response.status_code == 401
    assert page.one("p", role="alert").text == "There is no user with this email address and password."
    assert page.one("input", id="email")["value"] == tenant.email
    assert page.one("input", id="password")["value"] == ""
    assert "Set-Cookie" not in response.headers


def test_guessing_is_slowed_down(app: flask.Flask, tenant: seed.Tenant) -> None:
    for _ in range(5):
        stranger(app).post("/login", data={"email": tenant.email, "password": "guess"})
    right = stranger(app).post("/login", data={"email": tenant.email, "password": seed.PASSWORD})
    assert right.status_code == 401


def test_a_form_on_another_site_cannot_log_somebody_in(app: flask.Flask, tenant: seed.Tenant) -> None:
    data = {"email": tenant.email, "password": seed.PASSWORD}
    headers = {"Sec-Fetch-Site": "cross-site"}
    response = stranger(app).post("/login", data=data, headers=headers)
    assert response.status_code == 403
    assert "Set-Cookie" not in response.headers


def test_logging_out_ends_the_session_itself(boss: Browser, home: str) -> None:
    cookie = boss.client.get_cookie("remails")
    assert cookie is not None
    assert "You are logged out." in boss.do("/logout", at=f"{home}/emails").text
    boss.client.set_cookie("remails", cookie.value)
    assert boss.client.get(f"{home}/emails").status_code == 303


def test_a_link_cannot_log_somebody_out(boss: Browser, home: str) -> None:
    assert boss.client.get("/logout").status_code == 405
    assert boss.client.post("/logout").status_code == 403
    boss.get(f"{home}/emails")


def test_a_region_that_refreshes_itself_leads_to_the_log_in_page(app: flask.Flask, home: str) -> None:
    response = stranger(app).get(f"{home}/emails", headers={"HX-Request": "true", "HX-Request-Type": "partial"})
    assert response.status_code == 401
    assert response.headers["HX-Redirect"].startswith("/login?next=")


def test_the_start_leads_to_the_only_organization(boss: Browser, home: str) -> None:
    response = boss.client.get("/")
    assert (response.status_code, response.location) == (303, f"{home}/emails")


def test_a_member_of_several_organizations_chooses_and_switches(
    boss: Browser, db: Database, tenant: seed.Tenant, other: seed.Tenant, home: str
) -> None:
    with db.transaction() as conn:
        user = users.by_email(conn, tenant.email)
        assert user is not None
        users.add_member(conn, user.id, other.organization_id, users.Role.read_only)
    start = boss.get("/")
    assert [link["href"] for link in start.one("tbody").all("a")] == [
        f"{home}/emails",
        f"/{other.organization_id}/emails",
    ]
    switcher = boss.get(f"{home}/emails").one("details", class_="tenant")
    assert switcher.one("summary").text == "acme"
    assert [(link.text, link["href"]) for link in switcher.all("a")] == [("rival", f"/{other.organization_id}/emails")]


def test_a_user_without_an_organization_is_told_what_to_do(app: flask.Flask, db: Database) -> None:
    with db.transaction() as conn:
        users.create(conn, "new@acme.example", "New", hash_password(seed.PASSWORD))
    page = log_in(app, "new@acme.example").get("/")
    assert "You are not a member of any organization. Ask the admin of yours to add new@acme.example" in page.text


def test_a_blocked_user_is_out_at_once(boss: Browser, db: Database, tenant: seed.Tenant, home: str) -> None:
    with db.transaction() as conn:
        user = users.by_email(conn, tenant.email)
        assert user is not None
        users.set_blocked(conn, UserId(user.id), True)
    assert boss.client.get(f"{home}/emails").status_code == 303
    response = boss.client.post("/login", data={"email": tenant.email, "password": seed.PASSWORD})
    assert response.status_code == 403
    assert "This user is blocked. Contact the operator." in response.get_data(as_text=True)
