"""Problems, headers, health: what every answer has in common."""

import logging
from uuid import UUID

import flask
import pytest
from api.caller import Caller, basic
from seed import PASSWORD, Tenant

from remails.api import auth, problems
from remails.api.app import create_app
from remails.bus.client import Publisher
from remails.config import Api, Settings
from remails.config import Database as DatabaseSettings
from remails.db import Database
from remails.vault import Pepper, Vault


@pytest.fixture
def dead(settings: Settings, vault: Vault, pepper: Pepper) -> flask.Flask:
    """The application without a database."""
    gone = DatabaseSettings(dsn="host=127.0.0.1 port=1 user=x dbname=x", wait_timeout=0.2)
    db = Database(gone, None, "test")
    return create_app(settings, db, Publisher(settings.bus, ""), vault, pepper)


# Problems


def test_a_problem_has_the_members_of_the_rfc_and_of_the_original(
    nobody: Caller, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    response = nobody("GET", "/organizations")
    assert response.mimetype == "application/problem+json"
    answer = response.get_json()
    assert (answer["title"], answer["status"]) == ("Unauthorized", 401)
    assert answer["detail"] == answer["description"] != ""
    assert UUID(answer["reference"])
    assert answer["instance"] == f"urn:uuid:{answer['reference']}"
    assert any(getattr(record, "fields", {}).get("reference") == answer["reference"] for record in caplog.records)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing/here", 404),
        ("DELETE", "/config", 405),
        ("PATCH", "/organizations", 405),
        ("POST", "/login/password", 415),
        ("GET", "/config/", 404),
        ("GET", "/organizations/../../etc/passwd", 404),
    ],
)
def test_what_is_not_there_is_a_problem_too(nobody: Caller, method: str, path: str, status: int) -> None:
    response = nobody(method, path)
    assert response.status_code == status
    assert response.mimetype == "application/problem+json"
    if status == 405:
        assert response.headers["Allow"]


def test_an_accident_tells_a_reference_and_the_log_the_rest(
    app: flask.Flask, nobody: Caller, caplog: pytest.LogCaptureFixture
) -> None:
    @app.get("/api/broken")
    @auth.needs(auth.public)
    def broken() -> str:
        raise KeyError("something private")

    response = nobody("GET", "/broken")
    assert response.status_code == 500
    assert "private" not in response.get_data(as_text=True)
    record = next(record for record in caplog.records if record.exc_info)
    assert record.fields["reference"] == response.get_json()["reference"]  # type: ignore[attr-defined]  # logs.py's


def test_a_browser_gets_a_page_or_the_way_to_the_login(nobody: Caller) -> None:
    html = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
    page = nobody.client.get("/nothing/here", headers=html)
    assert (page.status_code, page.mimetype) == (404, "text/html")
    away = nobody.client.get("/00000000-0000-0000-0000-000000000000/emails?status=held", headers=html)
    assert away.status_code == 303
    assert away.headers["Location"] == "/login?next=%2F00000000-0000-0000-0000-000000000000%2Femails%3Fstatus%3Dheld"


def test_a_problem_is_not_a_place_for_script(nobody: Caller) -> None:
    page = nobody.client.get("/<script>alert(1)</script>", headers={"Accept": "text/html"})
    assert b"<script>alert" not in page.data


# Headers


def test_every_answer_has_the_headers_that_protect_it(nobody: Caller, key: Caller) -> None:
    for response in (nobody("GET", "/nothing"), nobody("GET", "/config"), key("GET", "/organizations")):
        assert response.headers["X-App-Version"]
        policy = response.headers["Content-Security-Policy"]
        assert "default-src 'self'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert response.headers["Referrer-Policy"] == "same-origin"
        assert response.headers["Cache-Control"] == "no-store"
        assert response.headers["X-Robots-Tag"] == "noindex, nofollow"


def test_production_may_be_found(settings: Settings, db: Database, vault: Vault, pepper: Pepper) -> None:
    production = Settings(
        host="test", mail=settings.mail, database=settings.database, api=Api(environment="production")
    )
    app = create_app(production, db, Publisher(production.bus, ""), vault, pepper)
    assert "X-Robots-Tag" not in app.test_client().get("/api/config").headers


def test_the_log_has_a_line_for_a_request_and_no_secret(
    key: Caller, tenant: Tenant, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    key.ok("GET", f"/organizations/{tenant.organization_id}/emails?search=private-thing")
    key("POST", "/login/password", {"email": tenant.email, "password": PASSWORD})
    lines = [record.fields for record in caplog.records if record.getMessage() == "request"]  # type: ignore[attr-defined]
    assert lines[0]["method"] == "GET"
    assert lines[0]["route"] == "/api/organizations/<uuid:organization_id>/emails"
    assert lines[0]["status"] == 200
    assert lines[0]["actor"] == tenant.api_key
    assert lines[0]["ms"] >= 0
    everything = caplog.text + str([vars(record) for record in caplog.records])
    cookie = key.client.get_cookie("remails")
    assert cookie is not None
    for secret in (tenant.api_secret, PASSWORD, "private-thing", cookie.value):
        assert secret not in everything


# Health and outages


def test_health_is_really_looked_at(nobody: Caller, db: Database) -> None:
    assert nobody.ok("GET", "/healthy") == {"healthy": True, "status": "OK"}
    with db.transaction() as conn:
        conn.execute("DELETE FROM _yoyo_migration WHERE migration_id LIKE '0003%'")
    response = nobody("GET", "/healthy")
    assert response.status_code == 503
    assert response.get_json()["healthy"] is False
    assert "0003" in response.get_json()["status"]


def test_without_the_database_everything_is_503_and_says_when_to_come_back(dead: flask.Flask, tenant: Tenant) -> None:
    nobody = Caller(dead.test_client())
    login = {"email": tenant.email, "password": PASSWORD}
    for response in (
        nobody("GET", "/healthy"),
        nobody("POST", "/login/password", login),
        nobody("GET", "/organizations", headers=basic(tenant.api_key, tenant.api_secret)),
        nobody("GET", "/whoami", headers={"Cookie": "remails=x"}),
    ):
        assert response.status_code == 503
        assert response.headers["Retry-After"] == problems.RETRY_AFTER
    assert nobody("GET", "/config").status_code == 200
    assert nobody("GET", "/openapi.json").status_code == 200


def test_config_says_what_a_client_needs(nobody: Caller) -> None:
    assert nobody.ok("GET", "/config") == {
        "version": nobody("GET", "/config").headers["X-App-Version"],
        "environment": "test",
        "api_server_name": "127.0.0.1:8000",
        "smtp_domain_name": "relay.example",
        "smtp_ports": [465, 587, 2525],
        "spf_include": "include:relay.example",
        "dkim_selector": "remails",
    }
