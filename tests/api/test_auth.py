"""Who is asking: keys, sessions, passwords, and requests that another site made a browser send."""

import uuid

import flask
import pytest
from api.caller import Caller, basic, by_key, by_session
from seed import PASSWORD, Tenant

from remails.api import auth
from remails.api.app import create_app
from remails.bus.client import Publisher
from remails.config import Api, Bans, Settings
from remails.db import Database
from remails.store import bans, credentials, organizations, users
from remails.store.ids import UserId
from remails.store.users import Role
from remails.vault import Pepper, Vault, hash_password

PROBLEM = "application/problem+json"


def path(tenant: Tenant, rest: str = "") -> str:
    return f"/organizations/{tenant.organization_id}{rest}"


def user_of(db: Database, tenant: Tenant, role: Role, email: str) -> UserId:
    """A further member of the tenant."""
    with db.transaction() as conn:
        user = users.create(conn, email, email, hash_password(PASSWORD))
        users.add_member(conn, user.id, tenant.organization_id, role)
    return user.id


# API keys


def test_a_key_sees_its_organization_and_no_other(key: Caller, tenant: Tenant, other: Tenant) -> None:
    assert [found["id"] for found in key.ok("GET", "/organizations")] == [str(tenant.organization_id)]
    assert key("GET", path(other)).status_code == 404


@pytest.mark.parametrize("change", ["secret", "id", "not a uuid", "empty"])
def test_a_wrong_key_is_nobody(nobody: Caller, tenant: Tenant, change: str) -> None:
    headers = {
        "secret": basic(tenant.api_key, tenant.api_secret + "x"),
        "id": basic(uuid.uuid4(), tenant.api_secret),
        "not a uuid": basic("admin", tenant.api_secret),
        "empty": basic(tenant.api_key, ""),
    }[change]
    response = nobody("GET", "/organizations", headers=headers)
    assert response.status_code == 401
    assert response.mimetype == PROBLEM
    assert response.headers["WWW-Authenticate"] == 'Basic realm="Remails API"'


@pytest.mark.parametrize("header", ["Basic", "Basic !!!", "Basic Og==", "Bearer x", "Digest username=x", "\xff\xfe"])
def test_nonsense_in_the_authorization_header_is_nobody(nobody: Caller, header: str) -> None:
    assert nobody("GET", "/organizations", headers={"Authorization": header}).status_code == 401


def test_a_read_only_key_changes_nothing(app: flask.Flask, db: Database, pepper: Pepper, tenant: Tenant) -> None:
    with db.transaction() as conn:
        made, secret = credentials.create_key(conn, pepper, tenant.organization_id, "reader", Role.read_only)
    reader = Caller(app.test_client(), basic(made.id, secret))
    assert reader("GET", path(tenant, "/projects")).status_code == 200
    assert reader("POST", path(tenant, "/projects"), {"name": "new"}).status_code == 403
    assert reader("DELETE", path(tenant, f"/projects/{tenant.project_id}")).status_code == 403


def test_a_deleted_key_stops_at_once(key: Caller, admin: Caller, tenant: Tenant) -> None:
    assert key("GET", "/organizations").status_code == 200
    admin.ok("DELETE", path(tenant, f"/api_keys/{tenant.api_key}"))
    assert key("GET", "/organizations").status_code == 401


def test_a_key_does_not_manage_keys_members_or_the_organization(key: Caller, tenant: Tenant) -> None:
    assert key("GET", path(tenant, "/api_keys")).status_code == 403
    assert key("POST", path(tenant, "/api_keys"), {"role": "maintainer"}).status_code == 403
    assert key("PUT", path(tenant), {"name": "mine"}).status_code == 403
    assert key("DELETE", path(tenant)).status_code == 403
    assert key("POST", "/organizations", {"name": "more"}).status_code == 403


def test_a_key_needs_no_token_and_may_come_from_any_page(key: Caller, tenant: Tenant) -> None:
    headers = {"Origin": "https://other.example", "Sec-Fetch-Site": "cross-site"}
    assert key("POST", path(tenant, "/projects"), {"name": "new"}, headers=headers).status_code == 201


# Sessions


def test_login_starts_a_session_and_logout_ends_it(app: flask.Flask, tenant: Tenant) -> None:
    client = app.test_client()
    assert Caller(client).ok("GET", "/whoami") == {"error": "Not logged in."}
    caller = by_session(client, tenant.email.upper())
    me = caller.ok("GET", "/whoami")
    assert me["email"] == tenant.email
    assert me["org_roles"] == [
        {"role": "admin", "org_id": str(tenant.organization_id), "org_block_status": "not_blocked"}
    ]
    secret = client.get_cookie("remails")
    assert secret is not None
    caller.ok("POST", "/logout")
    assert client.get_cookie("remails") is None
    client.set_cookie("remails", secret.value)  # kept by somebody
    assert caller("GET", "/organizations").status_code == 401


def test_the_cookie_is_kept_from_scripts_and_other_sites(nobody: Caller, tenant: Tenant) -> None:
    response = nobody("POST", "/login/password", {"email": tenant.email, "password": PASSWORD})
    (cookie,) = response.headers.getlist("Set-Cookie")
    name, *attributes = cookie.split("; ")
    assert name.startswith("remails=")
    assert {"HttpOnly", "SameSite=Lax", "Path=/", "Max-Age=604800"} <= set(attributes)
    assert "Secure" not in attributes  # reached by http in this test


def test_over_https_the_cookie_is_bound_to_the_host(
    settings: Settings, db: Database, vault: Vault, pepper: Pepper, tenant: Tenant
) -> None:
    https = Settings(host="test", mail=settings.mail, database=settings.database, api=Api(url="https://relay.example/"))
    app = create_app(https, db, Publisher(https.bus, ""), vault, pepper)
    response = Caller(app.test_client())("POST", "/login/password", {"email": tenant.email, "password": PASSWORD})
    (cookie,) = response.headers.getlist("Set-Cookie")
    assert cookie.startswith("__Host-remails=")
    assert "Secure" in cookie.split("; ")
    assert "Domain" not in cookie
    assert response.headers["Strict-Transport-Security"]


def test_the_database_holds_no_cookie(nobody: Caller, db: Database, tenant: Tenant) -> None:
    nobody.ok("POST", "/login/password", {"email": tenant.email, "password": PASSWORD})
    cookie = nobody.client.get_cookie("remails")
    assert cookie is not None
    with db.transaction() as conn:
        rows = conn.execute("SELECT s::text, digest FROM sessions s").fetchall()
    assert len(rows) == 1
    assert cookie.value not in rows[0][0]
    assert cookie.value.encode() != rows[0][1]


def test_a_second_login_of_a_browser_replaces_the_first(app: flask.Flask, db: Database, tenant: Tenant) -> None:
    client = app.test_client()
    by_session(client, tenant.email)
    by_session(client, tenant.email)
    with db.transaction() as conn:
        assert conn.execute("SELECT count(*) FROM sessions").fetchone() == (1,)


def test_an_expired_session_is_nobody(admin: Caller, db: Database) -> None:
    with db.transaction() as conn:
        conn.execute("UPDATE sessions SET expires_at = now()")
    assert admin("GET", "/organizations").status_code == 401


def test_a_blocked_user_can_do_nothing(admin: Caller, nobody: Caller, db: Database, tenant: Tenant) -> None:
    with db.transaction() as conn:
        user = users.by_email(conn, tenant.email)
        assert user is not None
        users.set_blocked(conn, user.id, True)
    assert admin("GET", "/organizations").status_code == 401
    assert nobody("POST", "/login/password", {"email": tenant.email, "password": PASSWORD}).status_code == 403
    # Whether it is blocked is told only to who knows the password.
    assert nobody("POST", "/login/password", {"email": tenant.email, "password": "wrong"}).status_code == 404


def test_a_key_goes_before_the_cookie_and_a_wrong_one_leaves_the_session(
    admin: Caller, tenant: Tenant, other: Tenant
) -> None:
    theirs = admin("GET", "/organizations", headers=basic(other.api_key, other.api_secret))
    assert [found["id"] for found in theirs.get_json()] == [str(other.organization_id)]
    mine = admin("GET", "/organizations", headers=basic(other.api_key, "wrong"))
    assert [found["id"] for found in mine.get_json()] == [str(tenant.organization_id)]
    # It is the session then, with all it needs.
    forged = Caller(admin.client)(
        "POST", path(tenant, "/projects"), {"name": "new"}, headers=basic(other.api_key, "wrong")
    )
    assert forged.status_code == 403


# Passwords


def test_a_wrong_password_and_an_unknown_address_look_the_same(nobody: Caller, tenant: Tenant) -> None:
    answers = [
        nobody("POST", "/login/password", {"email": email, "password": "wrong password"}).get_json()
        for email in (tenant.email, "nobody@acme.example")
    ]
    for answer in answers:
        assert answer.pop("reference")
        answer.pop("instance")
    assert answers[0] == answers[1]
    assert answers[0]["status"] == 404


def test_an_account_that_is_guessed_at_hides_whether_a_guess_was_right(
    nobody: Caller, admin: Caller, tenant: Tenant
) -> None:
    for _ in range(auth.ACCOUNT_FAILURES):
        nobody("POST", "/login/password", {"email": tenant.email, "password": "wrong"})
    assert nobody("POST", "/login/password", {"email": tenant.email, "password": PASSWORD}).status_code == 404
    # A third party cannot throw out who is in.
    assert admin("GET", "/organizations").status_code == 200


def test_an_account_opens_again(nobody: Caller, db: Database, tenant: Tenant) -> None:
    for _ in range(auth.ACCOUNT_FAILURES):
        nobody("POST", "/login/password", {"email": tenant.email, "password": "wrong"})
    with db.transaction() as conn:
        conn.execute("UPDATE login_failures SET at = at - %s", [auth.ACCOUNT_WINDOW])
    nobody.ok("POST", "/login/password", {"email": tenant.email, "password": PASSWORD})


def test_a_network_that_guesses_is_told_to_wait_at_every_door(
    nobody: Caller, admin: Caller, app: flask.Flask, tenant: Tenant, other: Tenant
) -> None:
    there = {"REMOTE_ADDR": "192.0.2.7"}
    right = {"email": tenant.email, "password": PASSWORD}
    for number in range(5):
        wrong = {"email": f"nobody{number}@acme.example", "password": "wrong"}
        assert nobody("POST", "/login/password", wrong, environ_base=there).status_code == 404
        key = basic(other.api_key, f"guess {number}")
        assert nobody("GET", "/organizations", headers=key, environ_base=there).status_code == 401
        if number == 4:
            break
        # The right one in between forgives nothing.
        assert by_key(app.test_client(), tenant)("GET", "/organizations", environ_base=there).status_code == 200
    for response in (
        nobody("POST", "/login/password", right, environ_base=there),
        by_key(app.test_client(), tenant)("GET", "/organizations", environ_base=there),
    ):
        assert response.status_code == 429
        assert 800 < int(response.headers["Retry-After"]) <= 900
        assert "in 15 minutes" in response.get_json()["detail"]
    assert admin("GET", "/organizations", environ_base=there).status_code == 200  # who is in stays in
    nobody.ok("POST", "/login/password", right, environ_base={"REMOTE_ADDR": "192.0.2.8"})


def test_the_client_behind_our_proxy_is_who_it_says(
    settings: Settings, db: Database, vault: Vault, pepper: Pepper, tenant: Tenant
) -> None:
    proxied = Settings(host="test", mail=settings.mail, database=settings.database, api=Api(trusted_proxies=1))
    app = create_app(proxied, db, Publisher(proxied.bus, ""), vault, pepper)
    # The client can write what it likes before what the proxy adds.
    _guess_until_banned(app, db, {"X-Forwarded-For": "10.9.9.9, 192.0.2.7"}, "192.0.2.7")


def test_who_is_none_of_our_proxies_speaks_for_nobody(
    settings: Settings, db: Database, vault: Vault, pepper: Pepper
) -> None:
    api = Api(trusted_proxies=1, proxy_trusted=("10.0.0.0/8",))
    proxied = Settings(host="test", mail=settings.mail, database=settings.database, bans=Bans(allow=()), api=api)
    app = create_app(proxied, db, Publisher(proxied.bus, ""), vault, pepper)
    _guess_until_banned(app, db, {"X-Forwarded-For": "192.0.2.7"}, "127.0.0.1")


def test_without_a_proxy_of_ours_nobody_chooses_their_address(
    settings: Settings, db: Database, vault: Vault, pepper: Pepper
) -> None:
    direct = Settings(host="test", mail=settings.mail, database=settings.database, bans=Bans(allow=()))
    app = create_app(direct, db, Publisher(direct.bus, ""), vault, pepper)
    _guess_until_banned(app, db, {"X-Forwarded-For": "192.0.2.7"}, "127.0.0.1")


def _guess_until_banned(app: flask.Flask, db: Database, headers: dict[str, str], network: str) -> None:
    nobody = Caller(app.test_client())
    codes = [
        nobody("GET", "/organizations", headers={**headers, **basic(network, str(number))}).status_code
        for number in range(11)
    ]
    assert codes == [401] * 10 + [429]
    with db.transaction() as conn:
        app.extensions["remails"].guard.sync(conn)
        assert list(bans.active(conn)) == [network]


# Forged requests (A12)


@pytest.mark.parametrize("token", [None, "", "0" * 64, "ü"])
def test_a_session_changes_nothing_without_its_token(admin: Caller, tenant: Tenant, token: str | None) -> None:
    headers = {} if token is None else {"X-CSRF-Token": token}
    bare = Caller(admin.client, headers)
    assert bare("POST", path(tenant, "/projects"), {"name": "new"}).status_code == 403
    assert bare("GET", path(tenant, "/projects")).status_code == 200


def test_the_token_of_another_session_does_not_fit(app: flask.Flask, admin: Caller, tenant: Tenant) -> None:
    stranger = by_session(app.test_client(), tenant.email)
    mixed = Caller(admin.client, stranger.headers)
    assert mixed("POST", path(tenant, "/projects"), {"name": "new"}).status_code == 403


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Sec-Fetch-Site": "same-origin"}, 201),
        ({"Sec-Fetch-Site": "none"}, 201),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Origin": "http://localhost"}, 201),
        ({"Origin": "https://localhost"}, 403),
        ({"Origin": "http://localhost.evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://["}, 403),
    ],
)
def test_a_page_of_another_site_cannot_use_a_session(
    admin: Caller, tenant: Tenant, headers: dict[str, str], status: int
) -> None:
    assert admin("POST", path(tenant, "/projects"), {"name": "new"}, headers=headers).status_code == status


def test_a_page_of_another_site_cannot_log_somebody_in(nobody: Caller, tenant: Tenant) -> None:
    mine = {"email": tenant.email, "password": PASSWORD}
    assert nobody("POST", "/login/password", mine, headers={"Origin": "https://evil.example"}).status_code == 403


# Organizations


def test_roles_allow_what_they_say(app: flask.Flask, db: Database, tenant: Tenant) -> None:
    user_of(db, tenant, Role.read_only, "reader@acme.example")
    user_of(db, tenant, Role.maintainer, "keeper@acme.example")
    reader = by_session(app.test_client(), "reader@acme.example")
    keeper = by_session(app.test_client(), "keeper@acme.example")
    assert reader("GET", path(tenant, "/projects")).status_code == 200
    assert reader("POST", path(tenant, "/projects"), {"name": "r"}).status_code == 403
    assert keeper("POST", path(tenant, "/projects"), {"name": "k"}).status_code == 201
    assert keeper("PUT", path(tenant), {"name": "k"}).status_code == 403
    assert keeper("PUT", path(tenant, "/admin"), "no_sending").status_code == 404


def test_a_stranger_does_not_learn_that_an_organization_exists(admin: Caller, other: Tenant) -> None:
    there = admin("GET", path(other)).get_json()
    nowhere = admin("GET", f"/organizations/{uuid.uuid4()}").get_json()
    assert there["status"] == nowhere["status"] == 404
    assert there["detail"] == nowhere["detail"]


def test_an_admin_of_the_installation_may_everything(root: Caller, tenant: Tenant, other: Tenant) -> None:
    ids = {found["id"] for found in root.ok("GET", "/organizations")}
    assert ids == {str(tenant.organization_id), str(other.organization_id)}
    assert root.ok("PUT", path(other, "/admin"), "no_sending")["block_status"] == "no_sending"


def test_a_frozen_organization_can_only_be_looked_at(
    key: Caller, admin: Caller, root: Caller, db: Database, tenant: Tenant
) -> None:
    db.run(organizations.set_block_status, tenant.organization_id, "full_freeze")
    for caller in (key, admin):
        assert caller("GET", path(tenant, "/projects")).status_code == 200
        assert caller("POST", path(tenant, "/projects"), {"name": "new"}).status_code == 403
    me = admin.ok("GET", "/whoami")["id"]
    assert admin("DELETE", path(tenant, f"/members/{me}")).status_code == 403
    root.ok("PUT", path(tenant, "/admin"), "not_blocked")
    assert key("POST", path(tenant, "/projects"), {"name": "new"}).status_code == 201


def test_who_is_asking_by_key(key: Caller, tenant: Tenant) -> None:
    me = key.ok("GET", "/whoami")
    assert (me["kind"], me["id"]) == ("api_key", str(tenant.api_key))
    assert me["org_roles"][0]["role"] == "maintainer"
    assert "csrf_token" not in me


def test_a_secret_in_the_query_is_none(nobody: Caller, tenant: Tenant) -> None:
    query = f"?username={tenant.api_key}&password={tenant.api_secret}"
    assert nobody("GET", "/organizations" + query).status_code == 401
