"""Who looks at the pages, and the mail they look at."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import flask
import pytest
import seed
from api.ui.browser import Browser, log_in

from remails import submission
from remails.bus.client import Publisher
from remails.config import Bus, Mail
from remails.db import Database
from remails.store import messages, queue, users
from remails.store.ids import MessageId
from remails.store.users import Role
from remails.vault import hash_password

Send = Callable[..., MessageId]
Settle = Callable[..., None]


@pytest.fixture
def member(app: flask.Flask, db: Database, tenant: seed.Tenant) -> Callable[[Role], Browser]:
    """Logs in a new member of the tenant with this role."""

    def make(role: Role) -> Browser:
        email = f"{role}@acme.example"
        with db.transaction() as conn:
            user = users.create(conn, email, f"A {role}", hash_password(seed.PASSWORD))
            users.add_member(conn, user.id, tenant.organization_id, role)
        return log_in(app, email)

    return make


@pytest.fixture
def boss(app: flask.Flask, tenant: seed.Tenant) -> Browser:
    """The tenant's admin."""
    return log_in(app, tenant.email)


@pytest.fixture
def operator(app: flask.Flask, db: Database) -> Browser:
    """An admin of the installation."""
    with db.transaction() as conn:
        users.create(conn, "root@relay.example", "Root", hash_password(seed.PASSWORD), is_admin=True)
    return log_in(app, "root@relay.example")


@pytest.fixture
def home(tenant: seed.Tenant) -> str:
    """Where the tenant's pages are."""
    return f"/{tenant.organization_id}"


@pytest.fixture
def send(db: Database, tenant: seed.Tenant) -> Send:
    """Hands in a mail from the tenant; arguments as for `Tenant.submission`."""

    def hand_in(*recipients: str, **options: Any) -> MessageId:
        publisher = Publisher(Bus(), "")
        given = tenant.submission(*recipients, **options)
        (outcome,) = submission.submit(db, publisher, Mail(hostname="relay.example"), [given])
        assert isinstance(outcome, submission.Accepted), outcome
        return outcome.id

    return hand_in


@pytest.fixture
def settle(db: Database, tenant: seed.Tenant) -> Settle:
    """Records a result for a recipient of a mail, as outbound does."""

    def record(message_id: MessageId, recipient: str, status: str, code: int | None, text: str, **more: Any) -> None:
        with db.transaction() as conn:
            found = messages.deliveries(conn, tenant.organization_id, [message_id])
            delivery = next(row for row in found if row.recipient == recipient)
            again = datetime.now(UTC) + timedelta(minutes=4) if status == "reattempt" else None
            kind = {"reattempt": "deferred"}.get(status, status)
            values = {
                "enhanced": None,
                "source": tenant.sources[0],
                "mx_host": "mx.example.net",
                "mx_ip": "192.0.2.25",
                "tls": "TLSv1.3 TLS_AES_256_GCM_SHA384",
                "milliseconds": 412,
            } | more
            conn.execute(
                "UPDATE deliveries SET claimed_by = %s WHERE id = %s",  # whether it is due or not
                [tenant.host_id, delivery.id],
            )
            result = queue.Result(delivery.id, message_id, 0, status, kind, text, again, code=code, **values)
            assert queue.record_many(conn, [result]) == {delivery.id}

    return record
