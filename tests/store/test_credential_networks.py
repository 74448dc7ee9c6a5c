"""Networks of credentials: how they are read, and whom they admit."""

import pytest

from remails.errors import Refused
from remails.store import networks


@pytest.mark.parametrize(
    ("text", "client"),
    [
        ("192.0.2.0/24", "192.0.2.7"),
        (" 192.0.2.7 ", "::ffff:192.0.2.7"),
        ("::ffff:192.0.2.0/120", "192.0.2.7"),
        ("::ffff:192.0.2.7", "::ffff:192.0.2.7"),
        ("2001:db8::/32", "2001:DB8:0::1"),
        ("fe80::/10", "fe80::1%eth0"),
    ],
)
def test_who_is_admitted(text: str, client: str) -> None:
    assert networks.admit(networks.read([text]), client)
    assert not networks.admit(networks.read([text]), "198.51.100.1")
    assert not networks.admit(networks.read([text]), "2001:db9::1")


@pytest.mark.parametrize(
    "text", ["", "x", "192.0.2.1/24", "192.0.2.0/33", "fe80::1%eth0", "fe80::%1/64", "192.0.2.0/24%1"]
)
def test_what_is_no_network_is_refused(text: str) -> None:
    with pytest.raises(Refused, match="A network is written like") as refusal:
        networks.read([text])
    assert refusal.value.status == 422


def test_the_same_network_in_two_ways_is_one() -> None:
    assert networks.read(["192.0.2.0/24", "::ffff:192.0.2.0/120"]) == ["192.0.2.0/24"]
