"""Where mail and questions may go."""

import pytest

from remails import resolver


@pytest.mark.parametrize(
    ("ip", "public"),
    [
        ("9.9.9.9", True),
        ("10.0.0.1", False),
        ("127.0.0.1", False),
        ("169.254.169.254", False),  # where clouds tell secrets to their guests
        ("2a00:1450::1", True),
        ("fe80::1", False),
        ("fd00::1", False),
        ("::1", False),
        ("::ffff:10.0.0.1", False),
        ("::ffff:9.9.9.9", True),
        ("64:ff9b::909:909", True),
        ("64:ff9b::a00:1", False),
        ("64:ff9b::a9fe:a9fe", False),
        ("2002:909:909::1", True),
        ("2002:a00:1::1", False),
    ],
)
def test_private_addresses_are_told_apart_behind_translators_too(ip: str, public: bool) -> None:
    assert resolver.is_public(ip) is public
