"""What everybody needs to use the pages, and what the browser is to forbid: asked of every page there is."""

import re
from collections.abc import Callable
from itertools import product
from pathlib import Path

import flask
import pytest
import seed
from api.ui.browser import Browser, Element, log_in, parse, stranger
from api.ui.conftest import Send, Settle

from remails.api import ui
from remails.db import Database
from remails.store import domains, suppressions, users
from remails.store.users import Role
from remails.vault import hash_password

STATIC = Path(ui.__file__).parent.parent / "static"
INKS, PAPERS = ("ink", "soft", "brand", "good", "wait", "bad"), ("paper", "shade")


@pytest.fixture
def pages(
    app: flask.Flask,
    boss: Browser,
    operator: Browser,
    member: Callable[[Role], Browser],
    db: Database,
    tenant: seed.Tenant,
    home: str,
    send: Send,
    settle: Settle,
) -> dict[str, Element]:
    """Every page, full and empty, as an admin, a reader, the operator and a stranger see it, and those that forms answer."""
    empty = [f"{home}/{name}" for name in ("emails", "suppressions", "audit")]
    seen = {f"{path} (empty)": boss.get(path) for path in empty}
    one = send("to@example.net", "b@example.net", subject="One")
    settle(one, "to@example.net", "reattempt", 451, "Later")
    with db.transaction() as conn:
        (domain,) = domains.list_(conn, tenant.organization_id)
        user = users.create(conn, "lone@acme.example", "Lone", hash_password(seed.PASSWORD))
        suppressions.add(conn, tenant.organization_id, "x@example.net", "asked")
    names = ("emails", "domains", "domains/new", "projects", "projects/new", "keys", "suppressions", "members", "audit")
    paths = [f"{home}/{name}" for name in names]
    paths += [f"{home}/emails/{one}", f"{home}/domains/{domain.id}", f"{home}/projects/{tenant.project_id}"]
    reader = member(Role.read_only)
    for path in paths:
        seen[path] = boss.get(path)
        seen[f"{path} (reader)"] = reader.get(path)
    for path in ("/admin/hosts", "/admin/organizations", "/admin/bans", f"{home}/members"):
        seen[f"{path} (operator)"] = operator.get(path)
    seen["/login"] = parse(stranger(app).get("/login").get_data(as_text=True))
    seen["/login (wrong)"] = parse(stranger(app).post("/login", data={"email": "x"}).get_data(as_text=True))
    seen["/ (nowhere)"] = log_in(app, user.email).get("/")
    seen["/nowhere"] = boss.get("/nowhere", 404)
    posts = {"keys": {"role": "read_only"}, f"projects/{tenant.project_id}/credentials": {"username": "new"}}
    posts |= {"domains/new": {"domain": "x"}, "projects/new": {}, "suppressions": {"address": "x"}, "members": {}}
    for path, data in posts.items():
        at = f"{home}/{path.removesuffix('/credentials')}"
        response = boss.post(f"{home}/{path}", data, at=at)
        seen[f"{path} (sent)"] = parse(response.get_data(as_text=True))
    return seen


def test_every_page_is_fit_for_everybody(pages: dict[str, Element]) -> None:
    assert len(pages) > 35
    for path, page in pages.items():
        wrong = [*_outline(page), *_controls(page), *_tables(page), *_references(page), *_policy(page)]
        assert wrong == [], f"{path}: {wrong}"


def _outline(page: Element) -> list[str]:
    """WCAG 1.3.1, 2.4.1, 2.4.2, 3.1.1."""
    checks = {
        "one h1": len(page.all("h1")) == 1 and page.one("h1").text != "",
        "one main": len(page.all("main")) == 1,
        "a title of its own": re.fullmatch(r".{2,} · remails", page.one("head").one("title").text) is not None,
        "a language": page.one("html")["lang"] == "en",
        "a way past the menu": not page.all("nav", id="menu") or bool(page.all("a", href="#main")),
        "menus have names": all(nav.has("aria-label") for nav in page.all("nav")),
        "images have a text": all(image.has("alt") for image in page.all("img")),
        "charts have a name": all(svg.has("aria-label") or svg["aria-hidden"] == "true" for svg in page.all("svg")),
        "states have a word": all(state.text for state in page.all("span") if state.has("data-status")),
        "times are exact": all(time.has("datetime") and time["title"].endswith(" UTC") for time in page.all("time")),
    }
    return [name for name, fulfilled in checks.items() if not fulfilled]


def _controls(page: Element) -> list[str]:
    """WCAG 3.3.2, 4.1.2: each control has a name, each link and button says where it leads."""
    labelled = {label["for"] for label in page.all("label")}
    controls = [one for one in page.all("input", "select", "textarea") if one["type"] != "hidden"]
    nameless = [
        one for one in controls if not (one["id"] in labelled or one.has("aria-label") or one.is_within("label"))
    ]
    mute = [one for one in page.all("a", "button", "summary") if not (one.text or one["aria-label"])]
    groups = [one for one in page.all("fieldset") if not one.all("legend")]
    return [f"no name: <{one.tag} {one.attributes}>" for one in nameless + mute + groups]


def _tables(page: Element) -> list[str]:
    """WCAG 1.3.1; on a phone each cell but the first says what column it is of."""
    wrong = [f"no scope: {cell.text}" for cell in page.all("th") if cell["scope"] not in ("col", "row")]
    for table in page.all("table"):
        columns = len(table.one("thead").all("th"))
        wrong += [row.text for row in table.one("tbody").all("tr") if len(row.all("td")) != columns]
    return wrong


def _references(page: Element) -> list[str]:
    ids = [element["id"] for element in page.all() if element.has("id")]
    wrong = [f"twice: {one}" for one in set(ids) if ids.count(one) > 1]
    for name in ("aria-describedby", "aria-labelledby", "popovertarget", "for"):
        wrong += [f"{name} {one[name]}" for one in page.all() if one.has(name) and one[name] not in ids]
    return wrong


def _policy(page: Element) -> list[str]:
    """What the Content-Security-Policy forbids is not there to begin with; each form that changes something has a token."""
    wrong = [f"{element.tag} {name}" for element in page.all() for name in element.attributes if _is_code(name)]
    wrong += ["inline script" for script in page.all("script") if not script["src"] or script.text]
    wrong += ["inline style" for _ in page.all("style")]
    forms = [form for form in page.all("form", method="post") if form["action"]]
    return wrong + [f"no token: {form['action']}" for form in forms if not form.all("input", name="csrf_token")]


def _is_code(name: str) -> bool:
    return name == "style" or name.startswith(("on", "hx-on"))


def test_the_policy_allows_our_own_files_and_nothing_else(app: flask.Flask) -> None:
    policy = stranger(app).get("/login").headers["Content-Security-Policy"]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'self'"
    assert "unsafe" not in policy
    assert not set(rules) & {"script-src", "style-src", "img-src", "connect-src"}, "each of these would be laxer"


# Contrast


def colours() -> dict[str, tuple[str, str]]:
    """The colours of the stylesheet by name, for light and dark."""
    found = re.findall(r"--(\w+): light-dark\((#\w{6}), (#\w{6})\);", (STATIC / "remails.css").read_text())
    return {name: (light, dark) for name, light, dark in found}


def luminance(colour: str) -> float:
    """WCAG 2.2, relative luminance."""
    channels = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    """WCAG 2.2, contrast ratio."""
    darker, lighter = sorted((luminance(one), luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


def test_contrast_is_reckoned_right() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#767676", "#ffffff") == pytest.approx(4.54, abs=0.01)


@pytest.mark.parametrize(("ink", "paper", "scheme"), [*product(INKS, PAPERS, (0, 1))])
def test_every_ink_is_readable_on_every_paper(ink: str, paper: str, scheme: int) -> None:
    """WCAG 1.4.3."""
    assert contrast(colours()[ink][scheme], colours()[paper][scheme]) >= 4.5


@pytest.mark.parametrize(("paper", "scheme"), [*product(PAPERS, (0, 1))])
def test_the_edge_of_a_control_is_seen(paper: str, scheme: int) -> None:
    """WCAG 1.4.11."""
    assert contrast(colours()["edge"][scheme], colours()[paper][scheme]) >= 3


def test_no_colour_stands_outside_the_palette() -> None:
    """So that what is reckoned above is all there is; shadows apart."""
    css = re.sub(r"/\*.*?\*/", "", (STATIC / "remails.css").read_text(), flags=re.S)
    rules = css.split("@layer reset {")[1]
    assert set(re.findall(r"#\w{3,8}\b(?!-)", rules)) - {"#progress"} <= {"#0001", "#0004", "#0006"}
    assert set(colours()) == {*INKS, *PAPERS, "line", "edge"}


def test_vendored_files_say_what_they_are() -> None:
    assert (STATIC / "htmx.min.js").read_text().startswith("/* htmx.org 4.0.1, https://htmx.org,")
    for name in ("htmx.LICENSE", "inter.LICENSE"):
        assert len((STATIC / name).read_text()) > 500
    assert (STATIC / "inter.woff2").read_bytes().startswith(b"wOF2")
