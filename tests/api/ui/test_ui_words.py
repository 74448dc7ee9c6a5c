"""Values in words."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from remails.api.ui import words
from remails.store.ids import DeliveryId, MessageId, OrganizationId, ProjectId
from remails.store.messages import Delivery, Message

NOW = datetime(2026, 11, 25, 12, 0, tzinfo=UTC)
ID = UUID(int=7)


def message(status: str, **changed: Any) -> Message:
    made = Message(
        id=MessageId(ID),
        organization_id=OrganizationId(ID),
        project_id=ProjectId(ID),
        smtp_credential_id=None,
        api_key_id=None,
        created_at=NOW - timedelta(minutes=1),
        expires_at=NOW + timedelta(days=4),
        mail_from="a@acme.example",
        header_from="a@acme.example",
        subject="Hello",
        message_id_header="<1@acme.example>",
        label=None,
        size=512,
        status=status,
        recipients=["to@example.net"],
        attempts=0,
        retry_after=None,
        updated_at=NOW,
        last_reply=None,
        cause=None,
        has_body=True,
    )
    return replace(made, **changed)


def delivery(status: str, **changed: Any) -> Delivery:
    made = Delivery(
        id=DeliveryId(1),
        message_id=MessageId(ID),
        recipient="to@example.net",
        status=status,
        source="198.51.100.7",
        attempts=1,
        next_attempt_at=None,
        is_claimed=False,
        last_code=None,
        last_enhanced=None,
        last_reply=None,
        cause="",
        mx_host=None,
        mx_ip=None,
        tls=None,
        finished_at=None,
    )
    return replace(made, **changed)


DELIVERED = delivery("delivered", finished_at=NOW - timedelta(seconds=59.2))
FAILED = delivery("failed", last_code=550, last_enhanced="5.1.1", last_reply="No such user.", mx_host="mx.example.net")
WAITING = delivery(
    "reattempt",
    last_code=451,
    last_enhanced="4.7.1",
    last_reply="Greylisted",
    mx_host="mx.example.net",
    next_attempt_at=NOW + timedelta(minutes=4),
)


@pytest.mark.parametrize(
    ("status", "deliveries", "words_"),
    [
        ("delivered", [DELIVERED], "Delivered to to@example.net in 0.8 s."),
        ("delivered", [DELIVERED] * 3, "Delivered to all 3 recipients in 0.8 s."),
        ("failed", [FAILED], "Failed: mx.example.net said 550 5.1.1 No such user."),
        (
            "failed",
            [replace(FAILED, last_code=451, last_reply="time is up; last: 451 4.7.1 Greylisted")],
            "Failed: time is up; last: 451 4.7.1 Greylisted.",
        ),
        (
            "failed",
            [DELIVERED, DELIVERED, FAILED],
            "Delivered to 2 of 3 recipients. Failed for 1: mx.example.net said 550 5.1.1 No such user.",
        ),
        (
            "reattempt",
            [WAITING],
            "Waiting: mx.example.net said 451 4.7.1 Greylisted; next attempt in 4 min, attempt 2.",
        ),
        (
            "reattempt",
            [replace(WAITING, last_code=None, last_enhanced=None, last_reply="connection lost", next_attempt_at=NOW)],
            "Waiting: connection lost; next attempt now, attempt 2.",
        ),
        (
            "reattempt",
            [DELIVERED, WAITING],
            "Delivered to 1 of 2 recipients. "
            "Waiting: mx.example.net said 451 4.7.1 Greylisted; next attempt in 4 min, attempt 2.",
        ),
        ("accepted", [delivery("accepted", attempts=0)], "On its way."),
        ("accepted", [delivery("accepted", attempts=0, is_claimed=True)], "Being delivered now."),
        (
            "accepted",
            [delivery("accepted", attempts=0, source=None)],
            "Waiting: there is no outbound address to send it from.",
        ),
        (
            "held",
            [delivery("held", attempts=0, cause="The organization may not send at present.")],
            "Held: the organization may not send at present.",
        ),
        ("rejected", [delivery("suppressed")], "Not sent: the recipient is suppressed."),
        ("rejected", [delivery("suppressed")] * 2, "Not sent: all 2 recipients are suppressed."),
        ("failed", [DELIVERED, delivery("suppressed")], "Delivered to 1 of 2 recipients. Not sent to 1, suppressed."),
    ],
)
def test_a_message_is_summed_up_in_words(status: str, deliveries: list[Delivery], words_: str) -> None:
    assert words.summary(message(status), deliveries, NOW) == words_


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        *[(0, "0.0 s"), (0.84, "0.8 s"), (9.94, "9.9 s"), (9.96, "10 s"), (59.4, "59 s"), (59.6, "1 min")],
        *[(3569, "59 min"), (3590, "1 h"), (86399, "1 d"), (90000, "1 d"), (40 * 86400.0, "40 d")],
    ],
)
def test_a_span_is_told_in_its_largest_unit(seconds: float, text: str) -> None:
    assert words.span(seconds) == text


@pytest.mark.parametrize(
    ("before", "text"),
    [
        (timedelta(seconds=0.4), "now"),
        (timedelta(seconds=3), "3 s ago"),
        (timedelta(minutes=1), "1 min ago"),
        (timedelta(days=29), "29 d ago"),
        (timedelta(days=31), "2026-10-25"),
        (timedelta(seconds=-228), "in 4 min"),
    ],
)
def test_a_moment_is_told_from_now(before: timedelta, text: str) -> None:
    assert words.moment(NOW - before, NOW) == text


@pytest.mark.parametrize(
    ("octets", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (1449, "1.4 kB"), (99_600, "100 kB"), (41_943_040, "41.9 MB")],
)
def test_a_size_is_told_in_decimal_units(octets: int, text: str) -> None:
    assert words.size(octets) == text


def test_a_reply_has_its_codes_once() -> None:
    assert words.reply(250, "2.0.0", "Ok") == "250 2.0.0 Ok"
    assert words.reply(550, None, "no") == "550 no"
    assert words.reply(451, "4.7.1", "time is up; last: 451 4.7.1 wait") == "time is up; last: 451 4.7.1 wait"
    assert words.reply(None, None, None) == ""


def test_a_page_refreshes_itself_while_something_is_not_final() -> None:
    assert words.refresh([message("delivered"), message("failed"), message("rejected")], NOW) is None
    assert words.refresh([message("delivered"), message("accepted", retry_after=NOW)], NOW) == "every 2s"
    assert words.refresh([message("reattempt", retry_after=NOW + timedelta(hours=1))], NOW) == "every 10s"


def test_an_international_domain_is_shown_both_ways() -> None:
    assert words.domain("acme.example") == "acme.example"
    assert words.domain("xn--bcher-kva.example") == "bücher.example (xn--bcher-kva.example)"
    assert words.domain("xn--0.example") == "xn--0.example"
