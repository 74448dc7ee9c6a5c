"""Plans: whose rate holds, and who is given which plan by the migration that made rates hold."""

from importlib import resources

import pytest

from remails.db import Connection
from remails.errors import Refused
from remails.store import organizations, plans
from remails.store.plans import PLANS
from remails.store.rates import Rate


def test_the_plans_are_those_of_the_hosted_remails() -> None:
    """Messages per month, bucket, and one token per 300, 5, 1, 0.25 and 0.1 seconds."""
    assert {name: (plan.message_quota, plan.rate) for name, plan in PLANS.items()} == {
        "unlimited": (None, None),
        "not_subscribed": (0, None),
        "free": (3_000, Rate(10, 3600 // 300)),
        "hobby": (3_000, Rate(10, 3600 // 300)),
        "tiny": (100_000, Rate(20, 3600 // 5)),
        "small": (300_000, Rate(60, 3600)),
        "medium": (700_000, Rate(150, 3600 * 4)),
        "large": (1_500_000, Rate(300, 3600 * 10)),
    }


def test_a_rate_of_its_own_goes_before_that_of_the_plan_and_an_unknown_plan_sets_none() -> None:
    assert plans.rate("small", 1, 2) == Rate(1, 2)
    assert plans.rate("small", None, None) == Rate(60, 3600)
    assert plans.rate("our own", None, None) is None


def test_a_rate_is_at_least_one(conn: Connection) -> None:
    acme = organizations.create(conn, "Acme")
    with pytest.raises(Refused, match="at least 1 message per hour"):
        plans.set_rate(conn, acme.id, Rate(1, 0))
    assert plans.own_rates(conn) == {}


def test_who_was_not_limited_before_is_not_after_the_migration(conn: Connection) -> None:
    made = [
        organizations.create(conn, "by an operator", plan="free"),
        organizations.create(conn, "by an operator, with a quota", plan="free", message_quota=50_000),
        organizations.create(conn, "by a user", plan="free", message_quota=3_000),
        organizations.create(conn, "paying", plan="large", message_quota=1_500_000),
    ]
    text = (resources.files("remails.store") / "migrations" / "0080.limits.sql").read_text()
    (update,) = [part for part in text.split(";") if part.strip().startswith("UPDATE")]
    conn.execute(update.encode())
    now = [organizations.get(conn, one.id) for one in made]
    assert [one.plan for one in now if one] == ["unlimited", "unlimited", "free", "large"]
