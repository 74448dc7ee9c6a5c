"""What remote replies mean, row by row."""

import pytest

from remails.mail import reply
from remails.mail.reply import Outcome, Phase, Reply

D, T, F, A = Outcome.DELIVERED, Outcome.DEFERRED, Outcome.FAILED, Outcome.AMBIGUOUS


@pytest.mark.parametrize(
    ("phase", "code", "outcome", "next_host"),
    [
        (Phase.BODY, 250, D, False),
        (Phase.BODY, 251, D, False),
        (Phase.BODY, 354, T, False),
        (Phase.BODY, 451, T, False),
        (Phase.BODY, 421, T, False),
        (Phase.BODY, 554, F, False),
        (Phase.BODY, None, A, False),  # RFC 1047, case O23
        (Phase.DATA, 451, T, False),
        (Phase.DATA, 554, F, False),
        (Phase.DATA, None, T, True),
        (Phase.RCPT, 550, F, False),
        (Phase.RCPT, 450, T, False),
        (Phase.RCPT, 421, T, True),
        (Phase.RCPT, None, T, True),
        (Phase.MAIL, 550, F, False),
        (Phase.MAIL, 451, T, False),
        (Phase.EHLO, 550, T, True),
        (Phase.EHLO, 421, T, True),
        (Phase.BANNER, 554, T, True),  # case O11: it speaks of us, not of the recipient
        (Phase.BANNER, 421, T, True),
        (Phase.BANNER, None, T, True),
        (Phase.CONNECT, None, T, True),
        (Phase.TLS, None, T, True),
        (Phase.TLS, 454, T, True),
        (Phase.DNS, 556, F, False),  # RFC 7505
        (Phase.DNS, 550, F, False),
        (Phase.DNS, 451, T, False),  # case O03
    ],
)
def test_verdict(phase: Phase, code: int | None, outcome: Outcome, next_host: bool) -> None:
    answer = Reply(phase, code, None, "text")
    assert reply.verdict(answer) is outcome
    assert reply.tries_next_host(answer) is next_host


@pytest.mark.parametrize(
    ("answer", "blames"),
    [
        (Reply(Phase.RCPT, 550, "5.1.1", "x"), True),
        (Reply(Phase.RCPT, 550, "5.2.1", "disabled"), True),
        (Reply(Phase.RCPT, 550, "5.7.1", "blocked, unknown sender"), False),
        (Reply(Phase.RCPT, 550, None, "No such user here"), True),
        (Reply(Phase.RCPT, 550, None, "rejected by policy"), False),
        (Reply(Phase.RCPT, 451, "4.1.1", "x"), False),
        (Reply(Phase.BODY, 554, "5.7.1", "spam"), False),
        (Reply(Phase.BODY, 550, "5.1.1", "no such user"), True),
        (Reply(Phase.BANNER, 554, "5.1.1", "x"), False),
        (Reply(Phase.DNS, 556, "5.1.10", "null MX"), True),
        (Reply(Phase.DNS, 550, "5.4.4", "no address"), False),
    ],
)
def test_only_a_bad_address_is_blamed(answer: Reply, blames: bool) -> None:
    assert reply.blames_address(answer) is blames


@pytest.mark.parametrize(
    ("code", "text", "expected"),
    [
        (250, "2.0.0 Ok: queued as 12345", Reply(Phase.BODY, 250, "2.0.0", "Ok: queued as 12345")),
        (250, "", Reply(Phase.BODY, 250, None, "")),
        (550, "5.7.1 line one\n5.7.1 line two", Reply(Phase.BODY, 550, "5.7.1", "line one line two")),
        (550, "5.1.1", Reply(Phase.BODY, 550, "5.1.1", "")),
        (550, "9.9.9 no code", Reply(Phase.BODY, 550, None, "9.9.9 no code")),
        (550, "Empf\udce4nger", Reply(Phase.BODY, 550, None, "Empf\ufffdnger")),  # case O25
        (550, "a\0b\x1bc", Reply(Phase.BODY, 550, None, "a b c")),
    ],
)
def test_a_reply_is_read(code: int, text: str, expected: Reply) -> None:
    assert reply.of(Phase.BODY, code, text) == expected


def test_a_long_reply_is_cut() -> None:
    assert len(reply.of(Phase.BODY, 550, "x" * 3000).text) == 1000
