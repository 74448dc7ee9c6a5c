"""How remote replies are read."""

import pytest

from remails.mail import reply
from remails.mail.reply import Phase, Reply


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
