"""Changes that people and keys make through this service, as the audit log keeps them."""

from collections.abc import Mapping
from typing import Any

import msgspec

from remails.api import auth
from remails.db import Connection
from remails.store import audit


def record(
    conn: Connection,
    action: str,
    target_type: str,
    target_id: object,
    details: msgspec.Struct | Mapping[str, Any] | None = None,
) -> None:
    """Note a change in the organization that the path names, in the transaction that makes it.

    `details` are what was asked for; whoever passes a struct makes sure that there is no secret in it.
    """
    asked = msgspec.to_builtins(details) if details is not None else None
    audit.record(conn, auth.actor().audit, auth.organization().id, action, target_type, target_id, asked)
