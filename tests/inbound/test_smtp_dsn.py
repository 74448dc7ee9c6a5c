"""What a client asks to be told (RFC 3461): taken, stored, shown; and what is wrong with it."""

from collections.abc import Callable

import pytest
from inbound.dialogue import Dialogue
from inbound.running import Stored
from seed import Tenant

from remails.db import Database
from remails.store import messages

MAIL = b"From: a@acme.example\r\n\r\nhi\r\n.\r\n"


def test_what_was_asked_for_is_kept(
    session: Dialogue, acme: Tenant, db: Database, stored: Callable[[], list[Stored]]
) -> None:
    """P12: the parameters are offered, so they are honoured."""
    session.play(
        [
            ("MAIL FROM:<a@acme.example> ret=hdrs ENVID=QQ+2B314159", "250"),
            ("RCPT TO:<b@example.net> NOTIFY=delay,SUCCESS ORCPT=rfc822;b+2Bx@example.net", "250"),
            ("RCPT TO:<c@example.net> NOTIFY=NEVER", "250"),
            ("RCPT TO:<d@example.net>", "250"),
            ("DATA", "354"),
            (MAIL, "250 2.6.0"),
            # and nothing of it in the next transaction
            ("MAIL FROM:<a@acme.example>", "250"),
            ("RCPT TO:<b@example.net>", "250"),
            ("DATA", "354"),
            (MAIL, "250 2.6.0"),
        ]
    )
    with db.transaction() as conn:
        second, first = messages.list_(conn, acme.organization_id)
        deliveries = messages.deliveries(conn, acme.organization_id, [first.id, second.id])
    assert (first.dsn_ret, first.dsn_envid) == ("HDRS", "QQ+2B314159")
    assert (second.dsn_ret, second.dsn_envid) == (None, None)
    assert [(one.recipient[0], one.dsn_notify, one.dsn_orcpt) for one in deliveries] == [
        ("b", "SUCCESS,DELAY", "rfc822;b+2Bx@example.net"),
        ("c", "NEVER", None),
        ("d", None, None),
        ("b", None, None),
    ]
    assert len(stored()) == 2


@pytest.mark.parametrize(
    "parameter",
    [
        *(
            "RET",
            "RET=",
            "RET=ALL",
            "ENVID",
            "ENVID=" + "x" * 101,
            "ENVID=a+",
            "ENVID=a+2b",
            "ENVID=a+0A",
            "ENVID=\u00e9",
        ),
        *("RET=FULL RET=HDRS",),
    ],
)
def test_bad_parameters_of_mail(session: Dialogue, parameter: str) -> None:
    session.play([(f"MAIL FROM:<a@acme.example> {parameter}", "501 5.5.4"), ("MAIL FROM:<a@acme.example>", "250")])


@pytest.mark.parametrize(
    "parameter",
    [
        *("NOTIFY", "NOTIFY=", "NOTIFY=NEVER,SUCCESS", "NOTIFY=ALWAYS", "NOTIFY=SUCCESS,", "NOTIFY=NEVER NOTIFY=NEVER"),
        *("ORCPT", "ORCPT=b@example.net", "ORCPT=;b", "ORCPT=rfc822;", "ORCPT=rfc822;a+zz", "ORCPT=rfc822;+00"),
        *("ORCPT=rfc822;" + "x" * 500, "ORCPT=r_f;b", "ORCPT=rfc822;\u00e9"),
    ],
)
def test_bad_parameters_of_rcpt(session: Dialogue, parameter: str) -> None:
    session.play(
        [
            ("MAIL FROM:<a@acme.example> ENVID=" + "x" * 100, "250"),
            (f"RCPT TO:<b@example.net> {parameter}", "501 5.5.4"),
            ("RCPT TO:<b@example.net> ORCPT=utf-8;\\x{E9}b@example.net", "250"),
            ("RCPT TO:<b@example.net> SIZE=1", "555 5.5.4"),
        ]
    )
