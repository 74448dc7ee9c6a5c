"""Operations of the REST API: declared once, as functions; the routes and the document both follow from that.

    @noun.operation("POST", "/organizations/{organization_id}/projects/{project_id}/emails", rule, status=201)
    def send(project_id: ProjectId, *, body: NewEmail) -> Email:
        "Send an email."

The organization of the path has been held against the actor when the function runs, and is `auth.organization()`; the
path's other parameters come as arguments. `body`, `query` and what is returned are msgspec structs. What does not fit is
refused with the path of the field, before the function runs; what it returns becomes JSON. The docstring is the
documentation. `openapi` reads the same declarations.
"""

import inspect
import re
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeVar
from urllib.parse import urlencode

import flask
import msgspec
from flask import request
from werkzeug.datastructures import MultiDict
from werkzeug.exceptions import BadRequest, RequestEntityTooLarge, UnsupportedMediaType
from werkzeug.wrappers import Response

from remails.api import auth
from remails.api.problems import Invalid
from remails.mail import address

SMALL = 12_000
"""Bytes of most bodies."""

F = TypeVar("F", bound=Callable[..., object])


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation: what it is called by, who may, what goes in and out."""

    method: str
    path: str
    rule: auth.Rule
    status: int
    errors: Sequence[int]
    limit: int
    media: str
    headers: Mapping[str, str]
    """Header fields a request may have, and what they mean."""
    fn: Callable[..., object]
    types: dict[str, Any]
    """Its parameters' types, and `return`."""

    @property
    def body(self) -> Any:
        """Type of the request's body, None for an operation without."""
        return self.types.get("body")

    @property
    def takes(self) -> tuple[str, ...]:
        """Media types of the request's body: JSON, or text as it is."""
        return ("text/csv", "text/plain") if self.body is str else ("application/json",)

    @property
    def query(self) -> Any:
        """Struct of the query parameters, None for an operation without."""
        return self.types.get("query")

    @property
    def name(self) -> str:
        """A name of its own, for Flask and the document."""
        name = f"{self.fn.__module__.rpartition('.')[2]}_{self.fn.__name__.strip('_')}"
        project = inspect.signature(self.fn).parameters.get("project_id")
        # A function that serves both an organization and one project of it.
        both = project is not None and project.default is None
        return f"{name}_in_project" if both and "{project_id}" in self.path else name

    @property
    def rule_path(self) -> str:
        """The path as Flask writes it."""
        path = re.sub(r"\{(\w+_id)\}", r"<uuid:\1>", self.path)
        return "/api" + re.sub(r"\{(\w+)\}", r"<path:\1>", path)

    def serve(self, **path: object) -> Response:
        """Answer a request."""
        given = {name: value for name, value in path.items() if name != "organization_id"}
        if self.query is not None:
            given["query"] = read_query(request.args, self.query)
        if self.body is not None:
            given["body"] = _read_text(self) if self.body is str else _read_body(self.body, self.limit)
        result = self.fn(**given)
        if isinstance(result, Response):
            return result
        return flask.Response(encode(result), self.status, mimetype="application/json")


class Noun:
    """A group of operations: a heading in the document."""

    def __init__(self, name: str, description: str) -> None:
        self.name, self.description = name, description
        self.operations: list[Operation] = []

    def operation(
        self,
        method: str,
        path: str,
        rule: auth.Rule,
        *,
        status: int = 200,
        errors: Sequence[int] = (),
        limit: int = SMALL,
        media: str = "application/json",
        headers: Mapping[str, str] = MappingProxyType({}),
    ) -> Callable[[F], F]:
        """Declare an operation. `errors` are those beside what every operation may answer (401, 403, 404, 422, 503)."""

        def declare(fn: F) -> F:
            types = typing.get_type_hints(fn, include_extras=True)
            self.operations.append(Operation(method, path, rule, status, errors, limit, media, headers, fn, types))
            return fn

        return declare


def add_routes(app: flask.Flask, nouns: Sequence[Noun]) -> None:
    """Serve the operations of these nouns."""
    for noun in nouns:
        for operation in noun.operations:
            app.add_url_rule(operation.rule_path, operation.name, _view(operation), methods=[operation.method])


def _view(operation: Operation) -> Callable[..., Response]:
    def view(**path: object) -> Response:
        return operation.serve(**path)

    return auth.needs(operation.rule)(view)


def add_header(name: str, value: str) -> None:
    """Give the answer to this request one more header."""

    def add(response: flask.Response) -> flask.Response:
        response.headers.add(name, value)
        return response

    flask.after_this_request(add)


def answer_with(status: int) -> None:
    """Give the answer to this request another status."""

    def change(response: flask.Response) -> flask.Response:
        response.status_code = status
        return response

    flask.after_this_request(change)


def link_next(**changes: object) -> None:
    """Say where the next page is (RFC 8288): this request's query with these parameters changed."""
    query = MultiDict(request.args)
    for name, value in changes.items():
        query[name] = str(value)
    add_header("Link", f'<{request.path}?{urlencode(list(query.items(multi=True)))}>; rel="next"')


def encode(value: object) -> bytes:
    """JSON of what an operation returns."""
    return msgspec.json.encode(value)


# What comes in


def _read_text(operation: Operation) -> str:
    try:
        return _read_bytes(operation.takes, operation.limit).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise BadRequest("The body is not UTF-8.") from None


def _read_bytes(media: Sequence[str], limit: int) -> bytes:
    # One more than the limit: of a chunked body that is too long, werkzeug gives what fits and says nothing.
    request.max_content_length = limit + 1
    if request.mimetype not in media:
        raise UnsupportedMediaType(f"Send the body as {' or '.join(media)}.")
    data = request.get_data()
    if len(data) > limit:
        raise RequestEntityTooLarge(f"The body is larger than {limit:,} bytes.")
    return data


def _read_body(kind: Any, limit: int) -> Any:
    data = _read_bytes(("application/json",), limit)
    try:
        value = msgspec.json.decode(data, type=kind)
    except msgspec.ValidationError as error:
        raise _invalid(error) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise BadRequest(f"The body is not JSON: {reason}") from None
    if b"\\u0000" in data:
        for field in _with_nul(value, ""):
            raise Invalid(field, f"{field or 'the body'}: contains the character NUL, which cannot be stored")
    return value


def read_query(args: "MultiDict[str, str]", kind: type) -> Any:
    """The query parameters as a struct; a field that is a tuple takes values separated by commas."""
    fields = {field.encode_name: field for field in msgspec.structs.fields(kind)}
    given: dict[str, object] = {}
    for name, values in args.lists():
        field = fields.get(name)
        if field is not None and _is_list(field.type):
            given[name] = [part for value in values for part in value.split(",") if part]
        elif len(values) > 1:
            raise Invalid(name, f"{name}: given more than once")
        else:
            given[name] = values[0]
    try:
        return msgspec.convert(given, kind, strict=False)
    except msgspec.ValidationError as error:
        raise _invalid(error) from None


def _is_list(kind: Any) -> bool:
    if typing.get_origin(kind) is typing.Annotated:
        kind = typing.get_args(kind)[0]
    return typing.get_origin(kind) is tuple


def _invalid(error: msgspec.ValidationError) -> Invalid:
    """msgspec's "Text - at `$.a[0].b`" as "a[0].b: text"."""
    text, _, place = str(error).partition(" - at ")
    field = place.strip("`").removeprefix("$").removeprefix(".")
    named = re.fullmatch(r"Object (contains unknown|missing required) field `(.*)`", text, re.DOTALL)
    if named:
        field = f"{field}.{named[2]}" if field else named[2]
        text = "unknown field" if named[1] == "contains unknown" else "missing"
    text = text[:1].lower() + text[1:]
    return Invalid(field or None, f"{field}: {text}" if field else text)


def _with_nul(value: object, field: str) -> Iterator[str]:
    """The fields whose text contains NUL."""
    if isinstance(value, str):
        if "\0" in value:
            yield field
    elif isinstance(value, msgspec.Struct):
        for known in msgspec.structs.fields(value):
            yield from _with_nul(getattr(value, known.name), f"{field}.{known.encode_name}".lstrip("."))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _with_nul(item, f"{field}[{index}]")


def read_address(text: str, field: str) -> address.Address:
    """An address that stands in `field`; raises Invalid."""
    try:
        return address.parse(text)
    except address.BadAddress as error:
        raise Invalid(field, f"{field}: {error}") from None
