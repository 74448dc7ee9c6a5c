"""Plans: what an organization may do, by name; the names and numbers are those of the hosted Remails.

`unlimited` is what an operator's own organizations have. A rate of its own (`set_rate`) goes before that of the plan.
"""

from dataclasses import dataclass

from remails import db
from remails.store import constraints
from remails.store.ids import OrganizationId
from remails.store.rates import Rate

_REFUSALS = {
    "rates_burst_check": constraints.invalid("A burst is at least 1 message.", "burst"),
    "rates_per_hour_check": constraints.invalid("A rate is at least 1 message per hour.", "per_hour"),
}


@dataclass(frozen=True, slots=True)
class Plan:
    """`message_quota` is messages per month; None is without limit."""

    message_quota: int | None
    rate: Rate | None


PLANS = {
    "unlimited": Plan(None, None),
    "not_subscribed": Plan(0, None),
    "free": Plan(3_000, Rate(10, 12)),
    "hobby": Plan(3_000, Rate(10, 12)),
    "tiny": Plan(100_000, Rate(20, 720)),
    "small": Plan(300_000, Rate(60, 3_600)),
    "medium": Plan(700_000, Rate(150, 14_400)),
    "large": Plan(1_500_000, Rate(300, 36_000)),
}


def rate(plan: str, burst: int | None, per_hour: int | None) -> Rate | None:
    """The rate that holds for an organization: its own, else its plan's. A plan we do not know sets no limit."""
    if burst is not None and per_hour is not None:
        return Rate(burst, per_hour)
    return PLANS[plan].rate if plan in PLANS else None


def set_plan(conn: db.Connection, organization_id: OrganizationId, plan: str) -> bool:
    """Give an organization a plan and the plan's quota; false when there is no such organization."""
    done = conn.execute(
        "UPDATE organizations SET plan = %s, message_quota = %s, updated_at = now() WHERE id = %s",
        [plan, PLANS[plan].message_quota, organization_id],
    )
    return done.rowcount == 1


def set_rate(conn: db.Connection, organization_id: OrganizationId, own: Rate | None) -> None:
    """Give an organization a rate of its own; with None its plan's holds again. Raises Refused (422) for less than 1."""
    if own is None:
        conn.execute("DELETE FROM rates WHERE organization_id = %s", [organization_id])
        return
    with constraints.explained(conn, _REFUSALS):
        conn.execute(
            """INSERT INTO rates (organization_id, burst, per_hour) VALUES (%(id)s, %(burst)s, %(per_hour)s)
               ON CONFLICT (organization_id) DO UPDATE SET burst = excluded.burst, per_hour = excluded.per_hour""",
            {"id": organization_id, "burst": own.burst, "per_hour": own.per_hour},
        )


def own_rates(conn: db.Connection) -> dict[OrganizationId, Rate]:
    """The organizations that have a rate of their own."""
    rows = conn.execute("SELECT organization_id, burst, per_hour FROM rates")
    return {id_: Rate(burst, per_hour) for id_, burst, per_hour in rows}
