"""The OpenAPI 3.1 document, made from the same declarations as the routes, so that it cannot differ from them.

Noun, Operation --> document --> /api/openapi.json
                             `-> sections --> /api/docs, a page for people
"""

import inspect
import re
import typing
from collections.abc import Iterator, Sequence
from http import HTTPStatus
from typing import Any

import msgspec

from remails import __version__
from remails.api import auth
from remails.api.operations import Noun, Operation
from remails.api.problems import Problem

REFERENCE = "#/components/schemas/"

DESCRIPTION = """Send emails and see what became of them.

Programs authenticate with an API key by HTTP Basic: the key's id is the user name, its password the password. Browsers have a
session cookie, and send with whatever changes something the token `csrf_token` of `/api/whoami` as `X-CSRF-Token`.

Bodies are JSON; a field that is not known is refused. Ids are UUIDs, moments RFC 3339 in UTC. Errors are
`application/problem+json` (RFC 9457): `field` names the field at fault, `reference` is what to quote when asking us. What
belongs to others is 404. With 503, and 429 where it has a `Retry-After`, the same request may be sent again."""


def document(nouns: Sequence[Noun], url: str, cookie: str) -> dict[str, Any]:
    """The document of these nouns, for an API reached at `url`, whose session cookie has the name `cookie`."""
    operations = [(noun, operation) for noun in nouns for operation in noun.operations]
    kinds = [kind for _, operation in operations for kind in _kinds(operation)] + [Problem]
    schemas, components = msgspec.json.schema_components(kinds, ref_template=REFERENCE + "{name}")
    schema = dict(zip(map(_key, kinds), schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for noun, operation in operations:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _operation(noun, operation, schema)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Remails", "version": __version__, "description": DESCRIPTION},
        "servers": [{"url": url.rstrip("/") + "/api"}],
        "tags": [{"name": noun.name, "description": noun.description} for noun in nouns],
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {
                "api_key": {"type": "http", "scheme": "basic", "description": "Id and password of an API key."},
                "session": {"type": "apiKey", "in": "cookie", "name": cookie, "description": "A user's session."},
            },
        },
    }


def _key(kind: Any) -> str:
    return repr(kind)


def _kinds(operation: Operation) -> Iterator[Any]:
    if operation.media == "application/json":
        yield operation.types["return"]
    if operation.body is not None:
        yield operation.body
    for _, kind, _ in _query_fields(operation):
        yield kind


def _query_fields(operation: Operation) -> Iterator[tuple[str, Any, Any]]:
    if operation.query is not None:
        types = typing.get_type_hints(operation.query, include_extras=True)
        for field in msgspec.structs.fields(operation.query):
            yield field.encode_name, types[field.name], field.default


def _operation(noun: Noun, operation: Operation, schema: dict[str, Any]) -> dict[str, Any]:
    # The first clause says it briefly.
    summary, description = re.split(r"[.;:](?:\s+|$)", inspect.cleandoc(operation.fn.__doc__ or ""), maxsplit=1)
    found: dict[str, Any] = {
        "operationId": operation.name,
        "tags": [noun.name],
        "summary": summary,
        "description": f"{description[:1].upper()}{description[1:]}\n\nFor: {operation.rule.text}.".strip(),
        "parameters": [
            *_path_parameters(operation),
            *_query_parameters(operation, schema),
            *_header_parameters(operation),
        ],
        "responses": {str(operation.status): _answer(operation, schema), **_problems(operation)},
        "security": _security(operation.rule),
    }
    if operation.body is not None:
        content = {media: {"schema": schema[_key(operation.body)]} for media in operation.takes}
        found["requestBody"] = {"required": True, "content": content}
    return found


def _path_parameters(operation: Operation) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "in": "path",
            "required": True,
            "schema": {"type": "string", "format": "uuid"} if name.endswith("_id") else {"type": "string"},
        }
        for name in re.findall(r"\{(\w+)\}", operation.path)
    ]


def _query_parameters(operation: Operation, schema: dict[str, Any]) -> list[dict[str, Any]]:
    parameters = []
    for name, kind, default in _query_fields(operation):
        shown = dict(schema[_key(kind)])
        description = shown.pop("description", None)
        if default not in (msgspec.NODEFAULT, None, "", ()):
            shown["default"] = default
        parameter = {"name": name, "in": "query", "required": False, "schema": shown}
        if description:
            parameter["description"] = description
        if "array" in (shown.get("type"), *(option.get("type") for option in shown.get("anyOf", []))):
            parameter |= {"style": "form", "explode": False}
        parameters.append(parameter)
    return parameters


def _header_parameters(operation: Operation) -> list[dict[str, Any]]:
    return [
        {"name": name, "in": "header", "required": False, "schema": {"type": "string"}, "description": description}
        for name, description in operation.headers.items()
    ]


def _answer(operation: Operation, schema: dict[str, Any]) -> dict[str, Any]:
    is_json = operation.media == "application/json"
    shown = schema[_key(operation.types["return"])] if is_json else {"type": "string", "format": "binary"}
    return {"description": HTTPStatus(operation.status).phrase, "content": {operation.media: {"schema": shown}}}


def _problems(operation: Operation) -> dict[str, Any]:
    statuses = set(operation.errors) | {503}
    if not operation.rule.public:
        statuses |= {401, 403}
    if "{" in operation.path:
        statuses.add(404)
    if operation.query is not None:
        statuses.add(422)
    if operation.body is not None:
        statuses |= {400, 413, 415, 422}
    content = {"application/problem+json": {"schema": {"$ref": REFERENCE + "Problem"}}}
    return {str(s): {"description": HTTPStatus(s).phrase, "content": content} for s in sorted(statuses)}


def _security(rule: auth.Rule) -> list[dict[str, list[str]]]:
    if rule.public:
        return [{}]
    return [{name: []} for name, allowed in (("api_key", rule.keys), ("session", rule.people)) if allowed]
