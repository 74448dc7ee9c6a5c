"""The OpenAPI document says what the service does, and people can read it."""

import re
from html.parser import HTMLParser
from typing import Any

import flask
import pytest
from api.caller import Caller

from remails.api.rest import NOUNS


@pytest.fixture
def document(nobody: Caller) -> dict[str, Any]:
    """The document as it is served."""
    found: dict[str, Any] = nobody.ok("GET", "/openapi.json")
    return found


def operations(document: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    return [(method, path, one) for path, item in document["paths"].items() for method, one in item.items()]


def references(value: object) -> set[str]:
    if isinstance(value, dict):
        own = {value["$ref"]} if isinstance(value.get("$ref"), str) else set()
        return own.union(*map(references, value.values()))
    return set().union(*map(references, value)) if isinstance(value, list) else set()


def test_every_route_of_the_api_is_documented_and_the_other_way_round(
    app: flask.Flask, document: dict[str, Any]
) -> None:
    served = {
        (method.lower(), re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule.removeprefix("/api")))
        for rule in app.url_map.iter_rules()
        if rule.rule.startswith("/api/") and rule.endpoint not in ("openapi", "docs")
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    }
    assert {(method, path) for method, path, _ in operations(document)} == served


def test_the_document_hangs_together(document: dict[str, Any]) -> None:
    assert document["openapi"] == "3.1.0"
    names = [one["operationId"] for _, _, one in operations(document)]
    assert len(names) == len(set(names))
    schemas = document["components"]["schemas"]
    assert references(document) == {f"#/components/schemas/{name}" for name in schemas}
    tags = {tag["name"] for tag in document["tags"]}
    for method, path, one in operations(document):
        assert set(one["tags"]) <= tags
        assert 5 < len(one["summary"]) < 60, path
        in_path = {parameter["name"] for parameter in one["parameters"] if parameter["in"] == "path"}
        assert in_path == set(re.findall(r"{(\w+)}", path))
        assert ("requestBody" in one) <= (method in ("post", "put"))
        assert set(one["security"][0]) <= {"api_key", "session"}


def test_constraints_reach_the_document(document: dict[str, Any]) -> None:
    email = document["components"]["schemas"]["NewEmail"]
    assert email["required"] == ["from", "to", "subject"]
    assert email["additionalProperties"] is False
    many = next(one for one in email["properties"]["to"]["anyOf"] if one.get("type") == "array")
    assert (many["minItems"], many["maxItems"]) == (1, 10)
    query = document["paths"]["/organizations/{organization_id}/emails"]["get"]["parameters"]
    limit = next(one for one in query if one["name"] == "limit")
    assert limit["schema"] == {"type": "integer", "minimum": 1, "maximum": 100, "default": 10}
    send = document["paths"]["/organizations/{organization_id}/projects/{project_id}/emails"]["post"]
    assert set(send["responses"]) == {"201", "400", "401", "403", "404", "413", "415", "422", "429", "503"}
    assert send["security"] == [{"api_key": []}]


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.tags: set[str] = set()
        self.attributes: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags.add(tag)
        self.attributes |= set(given)
        if given.get("id"):
            self.ids.append(str(given["id"]))
        if given.get("href"):
            self.links.append(str(given["href"]))


def test_the_reader_shows_every_operation_and_type(nobody: Caller, document: dict[str, Any]) -> None:
    response = nobody("GET", "/docs")
    assert response.status_code == 200
    page = _Page()
    page.feed(response.get_data(as_text=True))
    assert len(page.ids) == len(set(page.ids))
    wanted = {one["operationId"] for _, _, one in operations(document)} | set(document["components"]["schemas"])
    assert wanted <= set(page.ids)
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)
    # All is our own, as the content security policy wants it.
    assert not page.tags & {"script", "style", "iframe"}
    assert not {name for name in page.attributes if name == "style" or name.startswith("on")}
    assert all(link.startswith(("#", "/")) for link in page.links)
    for link in page.links:
        if link.startswith("/static/"):
            with nobody.client.get(link) as file:
                assert file.status_code == 200


def test_every_operation_has_a_docstring_and_a_rule() -> None:
    for noun in NOUNS:
        for operation in noun.operations:
            assert operation.fn.__doc__, operation.name
            assert operation.rule.text
