"""The document of the API, and a page that shows it to people. Both are made once, when the application is."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

import flask
from markupsafe import Markup, escape
from werkzeug.wrappers import Response

from remails.api import auth, openapi
from remails.api.operations import Noun
from remails.api.state import state

METHODS = ("get", "post", "put", "delete")


def add_routes(app: flask.Flask, nouns: Sequence[Noun]) -> None:
    """Serve `/api/openapi.json` and `/api/docs`."""
    with app.app_context():
        document = openapi.document(nouns, state().settings.api.url, auth.cookie_name())
    text = json.dumps(document)

    app.add_template_filter(_marked, "marked")

    @app.get("/api/openapi.json", endpoint="openapi")
    @auth.needs(auth.public)
    def show_document() -> Response:
        return flask.Response(text, mimetype="application/json", headers={"Access-Control-Allow-Origin": "*"})

    @app.get("/api/docs", endpoint="docs")
    @auth.needs(auth.public)
    def show_page() -> str:
        return flask.render_template("reference.html", document=document, sections=list(_sections(document)))


def _marked(text: str) -> Markup:
    """Text with what stands between backquotes as code."""
    return Markup("").join(
        Markup("<code>{}</code>").format(part) if number % 2 else escape(part)
        for number, part in enumerate(text.split("`"))
    )


def _sections(document: dict[str, Any]) -> Iterator[tuple[dict[str, str], list[tuple[str, str, dict[str, Any]]]]]:
    """For each noun: its tag, and its operations as method, path and operation."""
    for tag in document["tags"]:
        yield (
            tag,
            [
                (method.upper(), path, item[method])
                for path, item in document["paths"].items()
                for method in METHODS
                if method in item and tag["name"] in item[method]["tags"]
            ],
        )
