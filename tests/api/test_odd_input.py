"""No input, however odd, is an accident of ours: every operation, with every field and parameter bent in every way."""

from typing import Any
from urllib.parse import quote
from uuid import uuid4

import msgspec
import pytest
from api.caller import Caller
from seed import Tenant

from remails.api.operations import Operation
from remails.api.rest import NOUNS

ODD: list[Any] = [
    None,
    True,
    0,
    -1,
    2**31,
    2**63,
    2**200,
    1e308,
    0.5,
    "",
    " ",
    "\0",
    "a\0b",
    "\u202eabc",
    "x" * 11_000,
    "😀" * 40,
    "'; DROP TABLE users; --",
    "%s%n{0}",
    "../../etc/passwd",
    [],
    [[]],
    {},
    {"": ""},
    [None],
    ["x"] * 1001,
]
ODD_TEXT = [str(value) for value in ODD if value is not None] + ["%", "%zz", "\ufffd", "1e5", "0x10", "null", "NaN"]
GOOD: dict[str, Any] = {
    "name": "good",
    "email": "a@b.example",
    "password": "good password",
    "role": "read_only",
    "domain": "good.example",
    "username": "good",
    "description": "good",
    "email_address": "good@example.net",
    "from": "a@acme.example",
    "to": "b@example.net",
    "subject": "good",
    "text_body": "good",
}
OPERATIONS = [operation for noun in NOUNS for operation in noun.operations]


def path(operation: Operation, tenant: Tenant) -> str:
    """A path that leads to the operation: its organization and project exist, other things do not."""
    known = {"organization_id": tenant.organization_id, "project_id": tenant.project_id, "email_address": "a@b.example"}
    names = [part.split("}")[0] for part in operation.path.split("{")[1:]]
    return operation.path.format(**{name: known.get(name, uuid4()) for name in names})


def bodies(operation: Operation) -> list[Any]:
    """Odd values in the place of the body, and of each field of a good one."""
    if not (isinstance(operation.body, type) and issubclass(operation.body, msgspec.Struct)):
        return ODD
    names = [field.encode_name for field in msgspec.structs.fields(operation.body)]
    good = {name: GOOD[name] for name in names if name in GOOD}
    return ODD + [{**good, name: odd} for name in [*names, "unknown"] for odd in ODD]


@pytest.mark.parametrize(
    "operation", [one for one in OPERATIONS if one.body is not None], ids=lambda operation: operation.name
)
def test_odd_bodies(operation: Operation, key: Caller, admin: Caller, tenant: Tenant) -> None:
    caller = key if operation.rule.keys and not operation.rule.public else admin
    for body in bodies(operation):
        data = msgspec.json.encode(body)
        response = caller(operation.method, path(operation, tenant), data=data, content_type="application/json")
        assert response.status_code < 500, (body, response.get_json())
        if response.status_code >= 400:
            assert response.get_json()["detail"], body


@pytest.mark.parametrize(
    "operation", [one for one in OPERATIONS if one.query is not None], ids=lambda operation: operation.name
)
def test_odd_queries(operation: Operation, key: Caller, tenant: Tenant) -> None:
    for field in msgspec.structs.fields(operation.query):
        for odd in ODD_TEXT:
            response = key("GET", f"{path(operation, tenant)}?{field.encode_name}={quote(odd)[:4000]}")
            assert response.status_code in (200, 400, 422), (field.name, odd, response.get_json())


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
def test_odd_paths(operation: Operation, key: Caller, tenant: Tenant) -> None:
    names = [part.split("}")[0] for part in operation.path.split("{")[1:]]
    known: dict[str, object] = {"organization_id": tenant.organization_id, "project_id": tenant.project_id}
    for name in names:
        for odd in ODD_TEXT:
            values = {other: known.get(other, uuid4()) for other in names} | {name: quote(odd, safe="")[:4000]}
            response = key(operation.method, operation.path.format(**values))
            assert response.status_code < 500, (name, odd)
