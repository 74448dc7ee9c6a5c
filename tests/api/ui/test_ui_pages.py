"""Domains, projects, keys, suppressions, members, the audit log, the fleet: made, shown, changed, removed."""

import asyncio
import re
from collections.abc import Callable

import msgspec
import pytest
import seed
from api.ui.browser import Browser, Element, log_in, parse

from remails.api.app import create_app
from remails.bus.client import Publisher
from remails.config import Bans, Dns, Settings
from remails.db import Database
from remails.dev.dns import Server, StaticZone
from remails.guard import Guard
from remails.mail import address
from remails.store import addresses, audit, credentials, domains, organizations, projects, suppressions, users
from remails.store.users import Role
from remails.vault import Pepper, Vault, hash_password


def table(page: Element) -> list[list[str]]:
    """The cells of the only table."""
    return [[cell.text for cell in row.all("td")] for row in page.one("tbody").all("tr")]


def actions(db: Database, tenant: seed.Tenant) -> list[tuple[str, str]]:
    """What the audit log says, oldest first."""
    return [(entry.action, entry.target_type) for entry in reversed(db.run(audit.list_, tenant.organization_id))]


# Domains


def test_a_domain_is_added_with_the_records_to_publish(
    boss: Browser, home: str, db: Database, tenant: seed.Tenant
) -> None:
    form = boss.get(f"{home}/domains/new")
    ticks = [box["value"] for box in form.all("input", type="checkbox") if box.has("checked")]
    page = boss.do(f"{home}/domains/new", {"domain": "Shop.Example.", "project": ticks}, at=f"{home}/domains/new")
    made = db.run(domains.by_name, tenant.organization_id, "shop.example")
    assert made is not None
    assert made.project_ids == [tenant.project_id]
    assert page.one("h1").text == "shop.example"
    published = [code.text for code in page.one("table", class_="records").all("code")]
    assert published == [
        "_remails.shop.example",
        f"remails-verification={made.ownership_token}",
        "remails._domainkey.shop.example",
        made.dkim_keys[0].record,
        "shop.example",
        "v=spf1 include:relay.example -all",
        "_dmarc.shop.example",
        "v=DMARC1; p=reject",
    ]
    kinds = [row.all("td")[0].all("small")[0].text.split(" ")[:2] for row in page.one("tbody").all("tr")]
    assert kinds == [["TXT,", "required"]] * 3 + [["TXT,", "recommended"]]
    assert "Not looked up yet" in page.text
    assert page.one("button", aria_label="Copy the value of the DKIM record").has("data-copy")
    assert actions(db, tenant) == [("created", "domain")]


@pytest.mark.parametrize(
    ("name", "status", "words"),
    [
        ("acme.example", 409, "The organization has this domain already."),
        ("localhost", 422, "This is not a domain name"),
        ("<b>.example", 422, "This is not a domain name"),
        ("", 422, "This is not a domain name"),
    ],
)
def test_a_name_that_cannot_be_a_domain_says_why(boss: Browser, home: str, name: str, status: int, words: str) -> None:
    path = f"{home}/domains/new"
    response = boss.post(path, {"domain": name}, at=path)
    page = parse(response.get_data(as_text=True))
    field = page.one("input", id="domain")
    assert response.status_code == status
    assert (field["value"], field["aria-invalid"]) == (name, "true")
    assert words in page.one("p", id=field["aria-describedby"]).text


def test_what_was_seen_in_dns_is_told_in_words(boss: Browser, home: str, db: Database, tenant: seed.Tenant) -> None:
    domain = db.run(domains.list_, tenant.organization_id)[0]
    seen = {
        "ownership": {"status": "Success", "reason": "The domain is yours", "value": "x", "checked": True},
        "dkim": {"status": "Error", "reason": "The key is not ours", "value": "v=DKIM1; p=<b>", "checked": True},
        "spf": {"status": "Warning", "reason": "Could not be checked just now: time", "value": None, "checked": False},
        "dmarc": {"status": "Info", "reason": "p=none", "value": None, "checked": True},
        "timestamp": "2026-11-25T00:00:00+00:00",
    }
    db.run(domains.save_verification, domain.id, seen, verified=False)
    page = boss.get(f"{home}/domains/{domain.id}")
    assert [row.all("td")[2].text for row in page.one("tbody").all("tr")] == [
        "right The domain is yours. Current value x",
        "wrong The key is not ours. Current value v=DKIM1; p=<b>",
        "unknown Could not be checked just now: time.",
        "fine p=none.",
    ]
    assert "verified, records changed" in page.one("main").text


def test_a_domain_whose_mail_is_held_says_why(boss: Browser, home: str, db: Database, tenant: seed.Tenant) -> None:
    (domain,) = db.run(domains.list_, tenant.organization_id)
    why = "The DNS of acme.example is wrong. There is no DKIM record."
    db.run(lambda conn: domains.save_verification(conn, domain.id, {}, verified=True, hold_reason=why))
    assert table(boss.get(f"{home}/domains"))[0][1] == "mail is held"
    notice = boss.get(f"{home}/domains/{domain.id}").one("p", role="note")
    assert notice.text.startswith(f"Mail from this domain is held. {why}")


def test_check_now_looks_the_records_up(
    settings: Settings, db: Database, vault: Vault, pepper: Pepper, tenant: seed.Tenant, home: str
) -> None:
    domain = db.run(domains.list_, tenant.organization_id)[0]
    path = f"{home}/domains/{domain.id}"

    async def check() -> Element:
        zone = StaticZone({("_remails.acme.example", "TXT"): [f"remails-verification={domain.ownership_token}"]})
        server = Server(zone)
        await server.start()
        try:
            dns = Dns(nameservers=(f"127.0.0.1:{server.port}",), timeout=2)
            known = msgspec.structs.replace(settings, dns=dns)
            app = create_app(known, db, Publisher(settings.bus, ""), vault, pepper)
            return await asyncio.to_thread(lambda: log_in(app, tenant.email).do(f"{path}/check", at=path))
        finally:
            await server.close()

    page = asyncio.run(check())
    assert "The DNS records were looked up just now." in page.text
    verdicts = [row.all("td")[2].text for row in page.one("tbody").all("tr")]
    assert verdicts[0].startswith("right The domain is yours.")
    assert verdicts[1].startswith("wrong There is no DKIM record.")
    assert verdicts[3].startswith("fine There is no DMARC record.")


def test_the_projects_of_a_domain_are_ticked_and_saved(
    boss: Browser, home: str, db: Database, tenant: seed.Tenant
) -> None:
    domain = db.run(domains.list_, tenant.organization_id)[0]
    path = f"{home}/domains/{domain.id}"
    (box,) = boss.get(path).all("input", type="checkbox")
    assert (box["value"], box.has("checked")) == (str(tenant.project_id), True)
    page = boss.do(f"{path}/projects", {}, at=path)
    assert not page.one("input", type="checkbox").has("checked")
    page = boss.do(f"{path}/projects", {"project": str(tenant.project_id)}, at=path)
    assert page.one("input", type="checkbox").has("checked")


def test_a_deleted_domain_is_gone(boss: Browser, home: str, db: Database, tenant: seed.Tenant) -> None:
    domain = db.run(domains.list_, tenant.organization_id)[0]
    path = f"{home}/domains/{domain.id}"
    dialog = boss.get(path).one("dialog", id="delete-domain")
    assert dialog.one("h2").text == "Delete acme.example?"
    page = boss.do(dialog.one("form")["action"], at=path)
    assert "There is no domain yet." in page.text
    assert db.run(domains.list_, tenant.organization_id) == []


# Projects and SMTP credentials


def test_a_project_is_made_and_changed(boss: Browser, home: str, db: Database, tenant: seed.Tenant) -> None:
    path = f"{home}/projects/new"
    page = boss.do(path, {"name": "Second <b>", "retention": "30", "minutes": "10"}, at=path)
    assert page.one("h1").text == "Second <b>"
    made = db.run(projects.by_name, tenant.organization_id, "Second <b>")
    assert made is not None
    assert (made.retention_period_days, made.plaintext_fallback, made.expires_in) == (30, False, 600)
    here = f"{home}/projects/{made.id}"
    assert boss.get(here).one("input", id="minutes")["value"] == "10"
    page = boss.do(here, {"name": "Third", "retention": "1", "fallback": "on", "minutes": "0.12"}, at=here)
    assert page.one("input", id="minutes")["value"] == "0.12"
    assert (page.one("h1").text, page.one("input", id="retention")["value"]) == ("Third", "1")
    assert page.one("input", name="fallback").has("checked")
    assert actions(db, tenant) == [("created", "project"), ("updated", "project")]


@pytest.mark.parametrize(
    ("name", "retention", "field", "words"),
    [
        ("x", "7", "minutes", "Give a number of minutes, or nothing."),
        ("acme project", "7", "name", "The organization has a project of this name already."),
        ("", "7", "name", "A name has 1 to 100 characters."),
        ("x", "0", "retention", "Messages are kept for 1 to 365 days."),
        ("x", "a week", "retention", "Give a number of days, 1 to 365."),
        ("x", "٣", "retention", "Give a number of days, 1 to 365."),
    ],
)
def test_a_setting_that_cannot_be_says_why_at_its_field(
    boss: Browser, home: str, name: str, retention: str, field: str, words: str
) -> None:
    path = f"{home}/projects/new"
    response = boss.post(
        path, {"name": name, "retention": retention, "minutes": "soon" if field == "minutes" else ""}, at=path
    )
    page = parse(response.get_data(as_text=True))
    assert response.status_code in (409, 422)
    control = page.one("input", id=field)
    assert control["aria-invalid"] == "true"
    assert page.one("p", id=control["aria-describedby"]).text == words
    assert page.one("input", id="name")["value"] == name


def test_an_smtp_password_is_shown_once(
    boss: Browser, home: str, db: Database, tenant: seed.Tenant, pepper: Pepper
) -> None:
    path = f"{home}/projects/{tenant.project_id}"
    response = boss.post(f"{path}/credentials", {"username": "shop", "description": "the shop"}, at=path)
    page = parse(response.get_data(as_text=True))
    assert (response.status_code, response.headers["Cache-Control"]) == (201, "no-store")
    username, password = (page.all("div", class_="paste")[place].one("code").text for place in (0, 1))
    assert username == f"{tenant.organization_id.hex[:8]}-shop"
    (login,) = db.run(credentials.authenticate_smtp, [username])
    assert pepper.matches(password, login.digest)
    assert page.one("pre").text == (
        f"swaks --server relay.example:587 --tls --auth-user {username} --auth-password {password} \\ "
        "--from hello@acme.example --to you@example.org --header 'Subject: Hello'"
    )
    for where in (path, f"{home}/audit", f"{home}/emails"):
        assert password not in boss.get(where).source
    assert username in boss.get(path).one("tbody").text
    assert actions(db, tenant) == [("created", "smtp_credential")]


def test_a_refused_credential_leaves_the_rest_of_the_page_as_it_is(
    boss: Browser, home: str, tenant: seed.Tenant
) -> None:
    path = f"{home}/projects/{tenant.project_id}"
    response = boss.post(f"{path}/credentials", {"username": "no blanks", "description": "d"}, at=path)
    page = parse(response.get_data(as_text=True))
    assert response.status_code == 422
    assert (
        page.one("p", id="username-hint").text == "A user name has 2 to 100 letters, digits, underscores and hyphens."
    )
    values = {name: page.one("input", id=name)["value"] for name in ("username", "description", "name", "retention")}
    assert values == {"username": "no blanks", "description": "d", "name": "acme project", "retention": "7"}
    assert page.one("input", name="fallback").has("checked")


def test_a_deleted_credential_and_project_are_gone(boss: Browser, home: str, db: Database, tenant: seed.Tenant) -> None:
    path = f"{home}/projects/{tenant.project_id}"
    (login,) = db.run(credentials.list_smtp, tenant.project_id)
    page = boss.do(f"{path}/credentials/{login.id}/delete", at=path)
    assert login.username not in page.text
    assert "There is no project yet." in boss.do(f"{path}/delete", at=path).text
    assert db.run(projects.list_, tenant.organization_id) == []


# API keys


def test_an_api_secret_is_shown_once(
    boss: Browser, home: str, db: Database, tenant: seed.Tenant, pepper: Pepper
) -> None:
    path = f"{home}/keys"
    response = boss.post(path, {"description": "orders", "role": "maintainer"}, at=path)
    page = parse(response.get_data(as_text=True))
    assert response.status_code == 201
    id_, secret = (page.all("div", class_="paste")[place].one("code").text for place in (0, 1))
    made = next(key for key in db.run(credentials.list_keys, tenant.organization_id) if str(key.id) == id_)
    assert (made.description, made.role) == ("orders", Role.maintainer)
    assert pepper.matches(secret, made.digest)
    assert page.one("pre").text.startswith(f"curl --user {id_}:{secret} http://127.0.0.1:8000/api/organizations/")
    for where in (path, f"{home}/audit"):
        assert secret not in boss.get(where).source
    page = boss.do(f"{path}/{id_}/delete", at=path)
    assert id_ not in page.one("main").text
    assert actions(db, tenant) == [("created", "api_key"), ("deleted", "api_key")]


def test_a_key_and_a_credential_for_certain_networks(boss: Browser, home: str, tenant: seed.Tenant) -> None:
    keys, project = f"{home}/keys", f"{home}/projects/{tenant.project_id}"
    form = {"description": "shop", "role": "read_only", "networks": "198.51.100.0/24, 2001:db8::1"}
    assert boss.post(keys, form, at=keys).status_code == 201
    assert "198.51.100.0/24, 2001:db8::1/128" in boss.get(keys).one("main").text
    form = {"username": "shop", "networks": "198.51.100.0/24"}
    assert boss.post(f"{project}/credentials", form, at=project).status_code == 201
    assert "198.51.100.0/24" in boss.get(project).one("main").text
    for path, at in ((keys, keys), (f"{project}/credentials", project)):
        refused = boss.post(path, {"username": "other", "role": "read_only", "networks": "198.51.100.1/24"}, at=at)
        assert refused.status_code == 422
        page = parse(refused.get_data(as_text=True))
        assert page.one("input", name="networks")["aria-invalid"] == "true"
        assert "198.51.100.0/24" in page.one("p", class_="wrong").text


def test_a_key_is_never_an_admin(boss: Browser, home: str, db: Database, tenant: seed.Tenant) -> None:
    response = boss.post(f"{home}/keys", {"description": "x", "role": "admin"}, at=f"{home}/keys")
    assert response.status_code == 422
    assert len(db.run(credentials.list_keys, tenant.organization_id)) == 1


# Suppressions


def test_an_address_is_suppressed_and_let_go(boss: Browser, home: str, db: Database, tenant: seed.Tenant) -> None:
    path = f"{home}/suppressions"
    page = boss.do(path, {"address": " Jan@BÜCHER.example ", "reason": "asked <b>"}, at=path)
    assert table(page)[0][:3] == ["jan@xn--bcher-kva.example", "by hand", "asked <b>"]
    key = address.parse("jan@bücher.example").key
    assert db.run(suppressions.active_among, [(tenant.organization_id, key)])
    assert "Nothing is suppressed." in boss.do(f"{path}/remove", {"address": key}, at=path).text
    assert actions(db, tenant) == [("created", "suppression"), ("deleted", "suppression")]


def test_what_is_no_address_is_not_suppressed(boss: Browser, home: str) -> None:
    path = f"{home}/suppressions"
    page = parse(boss.post(path, {"address": "nobody"}, at=path).get_data(as_text=True))
    assert page.one("p", id="address-hint").text == "This is not an address: nobody has no @."
    assert page.one("input", id="address")["value"] == "nobody"


def test_a_suppression_ends_on_a_day(boss: Browser, home: str, db: Database, tenant: seed.Tenant) -> None:
    path = f"{home}/suppressions"
    boss.do(path, {"address": "a@example.net", "until": "2031-01-31"}, at=path)
    (row,) = db.run(suppressions.list_, tenant.organization_id)
    assert row.suppressed_until is not None and f"{row.suppressed_until:%F %T %Z}" == "2031-01-31 00:00:00 UTC"
    assert table(boss.get(path))[0][1] == "by hand"
    page = parse(boss.post(path, {"address": "b@example.net", "until": "soon"}, at=path).get_data(as_text=True))
    assert page.one("p", id="until-hint").text == "This is not a day."


def test_a_list_of_suppressions_is_imported_searched_and_exported(
    boss: Browser, home: str, db: Database, tenant: seed.Tenant
) -> None:
    path = f"{home}/suppressions"
    text = "a@example.net\r\n<i>nobody\r\nb@example.net,550 <i>no</i>"
    page = parse(boss.post(f"{path}/import", {"list": text}, at=path).get_data(as_text=True))
    assert page.one("div", role="alert").text == (
        "2 addresses imported, 1 lines passed over: Line 2, <i>nobody : <i>nobody has no @"
    )
    assert [row[0] for row in table(page)] == ["a@example.net", "b@example.net"]
    assert [row[0] for row in table(boss.get(f"{path}?search=B@"))] == ["b@example.net"]
    assert boss.client.get(f"{path}/export").text.count("@example.net") == 2
    assert "Added." in boss.do(f"{path}/import", {"list": "c@example.net"}, at=path).text
    assert [action for action, _ in actions(db, tenant)] == ["imported", "exported", "imported"]


def test_many_suppressions_come_in_pages(boss: Browser, home: str, db: Database, tenant: seed.Tenant) -> None:
    with db.transaction() as conn:
        for number in range(103):
            suppressions.add(conn, tenant.organization_id, f"r{number:03}@example.net", "")
    first = boss.get(f"{home}/suppressions")
    assert len(table(first)) == 100
    rest = boss.get(first.one("a", rel="next")["href"])
    assert [row[0] for row in table(rest)] == ["r100@example.net", "r101@example.net", "r102@example.net"]


# Members


def test_a_member_is_added_changed_and_removed(boss: Browser, home: str, db: Database, tenant: seed.Tenant) -> None:
    with db.transaction() as conn:
        new = users.create(conn, "new@acme.example", "New", hash_password(seed.PASSWORD))
    path = f"{home}/members"
    boss.do(path, {"email": "New@Acme.example", "role": "read_only"}, at=path)
    boss.do(f"{path}/{new.id}", {"role": "maintainer"}, at=path)
    assert db.run(users.role_in, new.id, tenant.organization_id) == Role.maintainer
    page = boss.do(f"{path}/{new.id}/remove", at=path)
    assert "new@acme.example" not in page.text
    assert db.run(users.role_in, new.id, tenant.organization_id) is None
    assert actions(db, tenant) == [("created", "member"), ("updated", "member"), ("removed", "member")]


def test_the_last_admin_stays(boss: Browser, home: str, db: Database, tenant: seed.Tenant) -> None:
    path = f"{home}/members"
    response = boss.post(f"{path}/leave", at=path)
    assert response.status_code == 409
    page = parse(response.get_data(as_text=True))
    assert page.one("p", role="alert").text == "The last admin of an organization cannot leave or step down."
    assert len(db.run(users.members, tenant.organization_id)) == 1


def test_somebody_without_a_user_cannot_be_added(boss: Browser, home: str) -> None:
    path = f"{home}/members"
    response = boss.post(path, {"email": "unknown@acme.example", "role": "read_only"}, at=path)
    page = parse(response.get_data(as_text=True))
    assert response.status_code == 422
    assert "There is no user with this email address" in page.one("p", id="email-hint").text


# The audit log


def test_the_audit_log_tells_who_did_what(
    boss: Browser, home: str, db: Database, tenant: seed.Tenant, member: Callable[[Role], Browser]
) -> None:
    path = f"{home}/suppressions"
    member(Role.maintainer).do(path, {"address": "x@example.net", "reason": "<i>why</i>"}, at=path)
    (row,) = table(boss.get(f"{home}/audit"))
    assert row[:3] == ["Created suppression x@example.net", "reason: <i>why</i>", "A maintainer"]


def test_the_audit_log_comes_in_pages(boss: Browser, home: str, db: Database, tenant: seed.Tenant) -> None:
    with db.transaction() as conn:
        for number in range(53):
            audit.record(conn, audit.Actor("system"), tenant.organization_id, "created", "thing", number)
    first = boss.get(f"{home}/audit")
    assert (len(table(first)), table(first)[0][0]) == (50, "Created thing 52")
    rest = boss.get(first.one("a", rel="next")["href"])
    assert [row[0] for row in table(rest)] == ["Created thing 2", "Created thing 1", "Created thing 0"]
    assert len(table(boss.get(f"{home}/audit?before=nonsense"))) == 50


# The installation


def test_the_fleet_page_tells_who_holds_which_address(operator: Browser, db: Database, tenant: seed.Tenant) -> None:
    with db.transaction() as conn:
        pool = addresses.create_pool(conn, "rival's")
        addresses.add(conn, "198.51.100.9", pool.id, "static", "mail.rival.example", bind_ip="10.0.0.9")
        conn.execute("UPDATE hosts SET heartbeat_at = now() - interval '5 min'")
    page = operator.get("/admin/hosts")
    (hosts, *pools) = page.all("tbody")
    assert [cell.text for cell in hosts.all("td")] == [
        "test",
        "silent",
        "5 min ago",
        "1 of at most 50",
        "static",
        "test",
    ]
    cells = [[cell.text for cell in pool.all("td")] for pool in pools]
    assert cells[1][:4] == ["127.0.0.11", "ready", "test", "1"]
    assert cells[1][4].startswith("ends in ")
    assert cells[0] == ["198.51.100.9 bound to 10.0.0.9", "free", "", "0", "", "mail.rival.example"]


def test_an_organization_is_blocked_by_the_operator(
    operator: Browser, boss: Browser, db: Database, tenant: seed.Tenant, home: str
) -> None:
    path = "/admin/organizations"
    page = operator.do(f"{path}/{tenant.organization_id}/block", {"block_status": "no_sending"}, at=path)
    chosen = next(option for option in page.one("tbody").all("option") if option.has("selected"))
    assert chosen["value"] == "no_sending"
    found = db.run(organizations.get, tenant.organization_id)
    assert found is not None
    assert found.block_status == "no_sending"
    assert "blocked by the operator: takes mail, does not send it." in boss.get(f"{home}/emails").text
    assert actions(db, tenant) == [("updated", "organization")]
    response = operator.post(f"{path}/{tenant.organization_id}/block", {"block_status": "nonsense"}, at=path)
    assert response.status_code == 422


def test_a_ban_is_shown_and_lifted(operator: Browser, db: Database) -> None:
    assert operator.get("/admin/bans").one("p", class_="empty").text == "Nobody guesses."
    known = Guard(Bans(), "inbound")
    for number in range(10):
        known.failed("203.0.113.9", "acme-app", str(number))
    db.run(known.sync)
    page = operator.get("/admin/bans")
    assert [row.all("td")[0].text for row in page.one("tbody").all("tr")] == ["203.0.113.9", "acme-app guessed at"]
    assert page.one("tbody").all("tr")[0].all("td")[1].text.startswith("until in ")
    page = operator.do("/admin/bans/lift", {"network": "203.0.113.9"}, at="/admin/bans")
    assert [row.all("td")[0].text for row in page.one("tbody").all("tr")] == ["acme-app guessed at"]
    assert operator.post("/admin/bans/lift", {"network": "203.0.113.9"}, at="/admin/bans").status_code == 404


def test_a_notice_says_only_what_we_wrote(boss: Browser, home: str) -> None:
    assert boss.get(f"{home}/emails?done=saved").one("p", class_="notice").text == "Saved."
    assert not boss.get(f"{home}/emails?done=%3Cb%3EPay+us").all("p", class_="notice")


def test_pages_are_not_kept_and_files_have_a_version(boss: Browser, home: str) -> None:
    page = boss.get(f"{home}/emails")
    assert boss.client.get(f"{home}/emails").headers["Cache-Control"] == "no-store"
    for element in page.all("script", "link"):
        source = element["src"] or element["href"]
        assert re.fullmatch(r"/static/[\w.]+\?v=[\w.]+", source), source
        with boss.client.get(source) as response:
            assert response.status_code == 200
