"""The retry policy, row by row."""

from datetime import timedelta

import pytest

from remails.mail import reply, retry
from remails.mail.reply import Phase, Reply
from remails.mail.retry import Outcome

D, T, F, A = Outcome.DELIVERED, Outcome.DEFERRED, Outcome.FAILED, Outcome.AMBIGUOUS

# phase, code (None: the connection failed), text with its enhanced code, outcome, flags: next host, throttles
ROWS = [
    # after the final dot
    (Phase.BODY, 250, "2.0.0 Ok: queued as 1", D, ""),
    (Phase.BODY, 250, "Accepted", D, ""),  # O34
    (Phase.BODY, 200, "OK", D, ""),  # O34
    (Phase.BODY, 251, "will forward", D, ""),  # O34
    (Phase.BODY, 252, "x", D, ""),  # O34
    (Phase.BODY, 250, "5.1.1 odd", D, ""),  # O32: the basic code decides
    (Phase.BODY, 354, "go on", T, ""),  # O34: 3yz is a protocol error
    (Phase.BODY, 150, "x", T, ""),
    (Phase.BODY, None, "connection lost", A, ""),  # O23
    (Phase.BODY, None, "reply with different codes", A, ""),  # O25: it may mean yes
    (Phase.BODY, 421, "4.3.2 closing", T, "t"),
    (Phase.BODY, 451, "4.3.0 no space", T, ""),
    (Phase.BODY, 451, "4.7.1 greylisted", T, ""),
    (Phase.BODY, 451, "4.7.500 Server busy", T, "t"),
    (Phase.BODY, 550, "5.1.1 no such user", F, ""),
    (Phase.BODY, 552, "5.3.4 too big", F, ""),
    (Phase.BODY, 552, "over quota", F, ""),
    (Phase.BODY, 554, "5.7.1 spam", F, ""),
    (Phase.BODY, 554, "5.6.0 malformed", F, ""),
    (Phase.BODY, 550, "5.7.26 unauthenticated", F, ""),
    (Phase.BODY, 554, "delivery error: dd This user doesn't have a yahoo.com account", F, ""),
    (Phase.BODY, 554, "Transaction failed", F, ""),
    # DATA
    (Phase.DATA, 451, "4.3.0 no", T, ""),
    (Phase.DATA, 421, "4.3.2 no", T, "nt"),
    (Phase.DATA, 554, "5.5.1 no", F, ""),
    (Phase.DATA, 250, "what", T, ""),
    (Phase.DATA, None, "lost", T, "nt"),
    # RCPT
    (Phase.RCPT, 550, "5.1.1 unknown", F, ""),  # O13
    (Phase.RCPT, 551, "5.1.6 moved", F, ""),
    (Phase.RCPT, 553, "5.1.3 syntax", F, ""),
    (Phase.RCPT, 550, "5.1.10 recipient not found", F, ""),
    (Phase.RCPT, 550, "5.1.2 bad domain", F, ""),
    (Phase.RCPT, 550, "5.2.1 disabled", F, ""),
    (Phase.RCPT, 550, "5.2.1 The user is receiving mail at a rate that prevents more", F, ""),
    (Phase.RCPT, 550, "5.4.1 Recipient address rejected: Access denied. AS(1)", F, ""),
    (Phase.RCPT, 550, "5.4.1 no route", F, ""),
    (Phase.RCPT, 550, "No such user here", F, ""),
    (Phase.RCPT, 550, "Recipient unknown", F, ""),
    (Phase.RCPT, 550, "rejected by policy", F, ""),
    (Phase.RCPT, 550, "5.7.1 blocked, unknown sender", F, ""),  # O32: a policy's refusal is not a bad address
    (Phase.RCPT, 554, "5.7.1 [host] listed", F, ""),  # O32
    (Phase.RCPT, 552, "5.2.2 full", F, ""),  # O32
    (Phase.RCPT, 550, "4.2.2 full", F, ""),  # O32: 550 is final, the enhanced code says no bad address
    (Phase.RCPT, 550, "", F, ""),  # O32
    (Phase.RCPT, 553, "5.1.8 sender's domain", F, ""),
    (Phase.RCPT, 450, "5.1.1 x", T, ""),  # O32
    (Phase.RCPT, 450, "4.1.2 domain not found", T, ""),  # O32
    (Phase.RCPT, 451, "4.1.8 domain not found", T, ""),  # O32
    (Phase.RCPT, 451, "4.7.1 Greylisted, try again later", T, ""),  # O16: does not slow others down
    (Phase.RCPT, 450, "4.2.0 Recipient address rejected: Greylisted", T, ""),  # O16
    (Phase.RCPT, 451, "4.7.1 later", T, ""),
    (Phase.RCPT, 452, "4.2.2 full", T, ""),
    (Phase.RCPT, 452, "4.5.3 too many recipients", T, ""),  # O15
    (Phase.RCPT, 450, "4.2.1 The user is receiving mail at a rate that", T, "t"),
    (Phase.RCPT, 421, "4.7.0 closing", T, "nt"),  # O30
    (Phase.RCPT, 354, "what", T, ""),
    (Phase.RCPT, None, "lost", T, "nt"),
    # MAIL
    (Phase.MAIL, 550, "5.7.1 we do not like you", F, ""),
    (Phase.MAIL, 554, "5.6.3 no 8BITMIME", F, ""),  # O27: fails, and suppresses nobody
    (Phase.MAIL, 553, "5.6.7 no SMTPUTF8", F, ""),  # O28
    (Phase.MAIL, 552, "5.3.4 larger than SIZE", F, ""),
    (Phase.MAIL, 550, "5.1.1 x", F, ""),  # it is not about the recipient
    (Phase.MAIL, 451, "4.7.1 later", T, "t"),
    (Phase.MAIL, 451, "4.3.0 later", T, ""),
    (Phase.MAIL, 421, "4.7.0 rate", T, "nt"),
    (Phase.MAIL, None, "lost", T, "nt"),
    # before the mail is spoken of
    (Phase.CONNECT, None, "timed out", T, "nt"),  # O07, O31
    (Phase.CONNECT, None, "refused", T, "nt"),  # O10
    (Phase.BANNER, 421, "4.7.0 try later", T, "nt"),  # O11
    (Phase.BANNER, 554, "5.7.1 blocked", T, "nt"),  # O11: never the recipient's fault
    (Phase.BANNER, 554, "5.1.1 x", T, "nt"),
    (Phase.BANNER, None, "timed out", T, "nt"),  # O31
    (Phase.BANNER, 354, "x", T, "nt"),
    (Phase.EHLO, 421, "your HELO does not match DNS", T, "nt"),  # O11
    (Phase.EHLO, 550, "no", T, "nt"),
    (Phase.EHLO, None, "lost", T, "nt"),
    # TLS
    (Phase.TLS, 454, "4.7.4 no encryption", T, "n"),
    (Phase.TLS, 454, "4.7.5 not the right one", T, "n"),  # O19, O21
    (Phase.TLS, None, "handshake failed", T, "n"),  # O17
    (Phase.TLS, 454, "4.7.0 not now", T, "n"),  # O17
    # DNS
    (Phase.DNS, 556, "5.1.10 null MX", F, ""),  # O01
    (Phase.DNS, 550, "5.1.2 no such domain", F, ""),  # O02
    (Phase.DNS, 550, "5.4.4 no address", F, ""),  # O05
    (Phase.DNS, 550, "5.4.6 loop", F, ""),
    (Phase.DNS, 451, "4.4.3 SERVFAIL", T, ""),  # O03
    (Phase.DNS, None, "timed out", T, ""),  # O03
    (Phase.DNS, 451, "4.4.4 only IPv6", T, ""),  # O07
    # ourselves
    (Phase.LOCAL, None, "cannot bind", T, ""),  # O09
    (Phase.LOCAL, 554, "5.6.0 content gone", F, ""),
]


@pytest.mark.parametrize(("phase", "code", "text", "outcome", "flags"), ROWS)
def test_row(phase: Phase, code: int | None, text: str, outcome: Outcome, flags: str) -> None:
    answer = reply.lost(phase, text) if code is None else reply.of(phase, code, text)
    decision = retry.decide(answer)
    found = "".join(flag for flag, is_set in zip("nt", (decision.next_host, decision.throttles), strict=True) if is_set)
    assert (decision.outcome, found) == (outcome, flags)
    assert decision.cause.endswith(".")


@pytest.mark.parametrize("phase", Phase)
@pytest.mark.parametrize("code", [None, *range(0, 1000, 7), 250, 354, 421, 450, 550])
def test_every_reply_has_a_row_and_only_a_2yz_at_the_dot_is_delivered(phase: Phase, code: int | None) -> None:
    decision = retry.decide(Reply(phase, code, None, "text"))
    assert (decision.outcome is D) == (phase is Phase.BODY and code is not None and 200 <= code <= 299)
    if code is not None and 400 <= code <= 499:
        assert decision.outcome is T


def test_every_row_of_the_table_is_reached() -> None:
    """No row is hidden by one above it."""
    reached = set()
    for phase, code, text, _, _ in ROWS:
        answer = reply.lost(phase, text) if code is None else reply.of(phase, code, text)
        reached.add(next(number for number, rule in enumerate(retry.TABLE) if rule.fits(answer)))
    missing = {number for number in range(len(retry.TABLE)) if number not in reached}
    assert {retry.TABLE[number].cause for number in missing} == set()


@pytest.mark.parametrize(
    ("code", "text", "seconds"),
    [
        (451, "4.7.1 Greylisted, please try again in 300 seconds", 300),
        (450, "4.2.0 Recipient address rejected: Greylisted for 5 minutes", 300),
        (450, "4.7.1 try again later in 5 min", 300),
        (451, "please retry in 1 hour", 3600),
        (451, "Try again after 90s", 90),
        (451, "4.7.1 try again later", None),
        (451, "4.7.1 id 300 seconds of fame", None),
        (550, "try again in 300 seconds", None),
        (250, "Greylisted for 5 minutes", None),
        (451, "try again in 5 \u017f", None),  # a letter that is an s to those who know no ASCII
    ],
)
def test_what_the_remote_server_asks_for_is_read(code: int, text: str, seconds: int | None) -> None:
    """Case O16."""
    expected = None if seconds is None else timedelta(seconds=seconds)
    assert retry.wait_asked(reply.of(Phase.RCPT, code, text)) == expected
