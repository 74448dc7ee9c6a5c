"""The idempotency key in a message's header."""

from collections.abc import Callable

import pytest
from inbound.dialogue import Dialogue
from inbound.running import Running, Stored
from seed import Tenant


def send(session: Dialogue, key: str, body: str = "hi", field: str = "Idempotency-Key") -> str:
    session.envelope("a@acme.example")
    session.send(f"From: a@acme.example\r\n{field}: {key}\r\n\r\n{body}\r\n.\r\n".encode())
    return session.reply()


@pytest.mark.parametrize("field", ["Idempotency-Key", "x-remails-idempotency-key"])
def test_a_key_in_the_header(session: Dialogue, stored: Callable[[], list[Stored]], field: str) -> None:
    """Sent again it is answered as before; the field is ours and does not leave."""
    first = send(session, "order 1", field=field)
    assert first.startswith("250 2.6.0 Accepted as ")
    assert send(session, '"order 1"') == first
    assert send(session, "order 1", "something else").startswith("554 5.6.0 The idempotency key was used before")
    assert send(session, "\u00e9").startswith("550 5.6.0 An idempotency key has")
    session.in_step()
    (one,) = stored()
    assert b"dempotency" not in one.raw


def test_a_lost_reply_is_made_up_for(inbound: Running, acme: Tenant, stored: Callable[[], list[Stored]]) -> None:
    """What a key is for: the client does not know whether its mail was taken, and sends it again."""
    with inbound.connect() as session:
        session.log_in(acme).envelope("a@acme.example")
        session.send(b"From: a@acme.example\r\nIdempotency-Key: k\r\n\r\nhi\r\n.\r\n")
    with inbound.connect() as session:
        assert send(session.log_in(acme), "k").startswith("250 2.6.0")
    inbound.stop()
    assert len(stored()) == 1
