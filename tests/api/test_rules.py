"""Every route states who may use it, and the list of them is under review."""

import flask
from api.routes import REVIEWED, routes

from remails.api import auth


def test_every_route_states_a_rule(app: flask.Flask) -> None:
    assert [line for line in routes(app) if line.endswith("NO RULE")] == []


def test_the_list_of_routes_is_as_reviewed(app: flask.Flask) -> None:
    assert routes(app) == REVIEWED.read_text(encoding="utf-8").splitlines(), "python tests/api/routes.py --write"


def test_whoever_asks_an_organization_for_something_is_held_against_it(app: flask.Flask) -> None:
    for rule in app.url_map.iter_rules():
        stated = auth.rule_of(app.view_functions[rule.endpoint])
        assert stated is not None
        if "organization_id" in rule.arguments:
            assert stated.role is not None or stated.installation, rule


def test_a_route_without_a_rule_fails(app: flask.Flask) -> None:
    app.add_url_rule("/api/forgotten", "forgotten", lambda: "secret")
    response = app.test_client().get("/api/forgotten")
    assert response.status_code == 500
    assert b"secret" not in response.data
