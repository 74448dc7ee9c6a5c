"""Limits of an organization and of a guessing client, as the client sees them."""

from inbound.dialogue import Dialogue
from inbound.running import Running
from seed import Tenant

from remails.db import Database
from remails.store import plans
from remails.store.rates import Rate

MAIL = b"From: a@acme.example\r\n\r\nhi\r\n.\r\n"


def test_who_is_too_fast_is_told_at_the_end_of_the_mail_and_then_at_mail_from(
    session: Dialogue, acme: Tenant, db: Database
) -> None:
    db.run(plans.set_rate, acme.organization_id, Rate(1, 60))
    session.envelope("a@acme.example")
    session.send(MAIL)
    assert session.reply().startswith("250 2.6.0 ")
    session.envelope("a@acme.example")  # the answer at MAIL is remembered for a moment
    session.send(MAIL)
    text = "451 4.7.1 This organization may send 60 messages per hour, 1 at once; try again in "
    assert session.reply().startswith(text)
    assert session.say("MAIL FROM:<a@sub.acme.example>").startswith(text)
    session.in_step()


def test_a_used_up_quota_is_told_at_mail_from(inbound: Running, acme: Tenant, db: Database) -> None:
    db.run(plans.set_plan, acme.organization_id, "not_subscribed")
    with inbound.connect() as dialogue:
        dialogue.log_in(acme)
        assert dialogue.say("MAIL FROM:<a@acme.example>").startswith(
            "452 4.7.1 The monthly quota of 0 messages is used up"
        )
