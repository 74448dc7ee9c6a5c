"""The application on a database of its own, two tenants, and who asks for them."""

from pathlib import Path

import flask
import pytest
import seed
from api.caller import Caller, by_key, by_session

from remails.api.app import create_app
from remails.bus.client import Publisher
from remails.config import Api, Mail, Settings
from remails.config import Database as DatabaseSettings
from remails.db import Database
from remails.store import users
from remails.vault import Pepper, Vault, hash_password


@pytest.fixture
def settings(database: DatabaseSettings, credentials: Path) -> Settings:
    """As on a host that has no bus."""
    return Settings(
        host="test",
        mail=Mail(hostname="relay.example"),
        database=database,
        credentials_directory=str(credentials),
        api=Api(environment="test"),
    )


@pytest.fixture
def app(settings: Settings, db: Database, vault: Vault, pepper: Pepper) -> flask.Flask:
    """The application."""
    return create_app(settings, db, Publisher(settings.bus, ""), vault, pepper)


@pytest.fixture
def other(db: Database, vault: Vault, pepper: Pepper, tenant: seed.Tenant) -> seed.Tenant:
    """Another tenant, who is not to see anything of the first."""
    return seed.tenant(db, vault, pepper, name="rival")


@pytest.fixture
def nobody(app: flask.Flask) -> Caller:
    """Somebody without credentials."""
    return Caller(app.test_client())


@pytest.fixture
def key(app: flask.Flask, tenant: seed.Tenant) -> Caller:
    """The tenant's API key."""
    return by_key(app.test_client(), tenant)


@pytest.fixture
def admin(app: flask.Flask, tenant: seed.Tenant) -> Caller:
    """The tenant's admin, logged in."""
    return by_session(app.test_client(), tenant.email)


@pytest.fixture
def root(app: flask.Flask, db: Database) -> Caller:
    """An admin of the installation, logged in."""
    with db.transaction() as conn:
        users.create(conn, "root@relay.example", "Root", hash_password(seed.PASSWORD), is_admin=True)
    return by_session(app.test_client(), "root@relay.example")
