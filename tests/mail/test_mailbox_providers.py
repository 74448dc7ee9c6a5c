"""Which provider an MX host belongs to."""

import pytest

from remails.mail import mailbox_providers


@pytest.mark.parametrize(
    ("host", "provider"),
    [
        ("gmail-smtp-in.l.google.com", "google"),
        ("aspmx.l.GOOGLE.com.", "google"),
        ("example-com.mail.protection.outlook.com", "microsoft"),
        ("example-com.a-v1.mx.microsoft", "microsoft"),
        ("mta5.am0.yahoodns.net", "yahoo"),
        ("mx00.t-online.de", "telekom"),
        ("google.com.evil.example", "other"),  # what a name begins with belongs to nobody
        ("notgoogle.com", "other"),
        ("", "other"),
    ],
)
def test_the_end_of_the_name_decides(host: str, provider: str) -> None:
    assert mailbox_providers.of(host) == provider


def test_there_are_few() -> None:
    """Each is a value of a metric's label."""
    assert len(mailbox_providers.NAMES) <= 20
