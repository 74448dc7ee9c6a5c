"""A client of the API: by key, by session, or nobody."""

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from flask.testing import FlaskClient
from seed import PASSWORD, Tenant
from werkzeug.test import TestResponse


@dataclass
class Caller:
    """Sends requests with the headers of one who is known; paths are below `/api`."""

    client: FlaskClient
    headers: Mapping[str, str] = field(default_factory=dict)

    def __call__(self, method: str, path: str, json: Any = None, **options: Any) -> TestResponse:
        """Send a request."""
        headers = {**self.headers, **options.pop("headers", {})}
        if json is not None:
            options["json"] = json
        return self.client.open("/api" + path, method=method, headers=headers, **options)

    def ok(self, method: str, path: str, json: Any = None, **options: Any) -> Any:
        """Send a request that works; returns what the answer says."""
        response = self(method, path, json, **options)
        assert response.status_code in (200, 201), response.get_data(as_text=True)
        return response.get_json()


def basic(name: object, secret: str) -> dict[str, str]:
    """HTTP Basic."""
    return {"Authorization": "Basic " + base64.b64encode(f"{name}:{secret}".encode()).decode()}


def by_key(client: FlaskClient, tenant: Tenant) -> Caller:
    """The tenant's API key, a maintainer."""
    return Caller(client, basic(tenant.api_key, tenant.api_secret))


def by_session(client: FlaskClient, email: str, password: str = PASSWORD) -> Caller:
    """A user who logs in."""
    answer = Caller(client).ok("POST", "/login/password", {"email": email, "password": password})
    return Caller(client, {"X-CSRF-Token": answer["csrf_token"]})
