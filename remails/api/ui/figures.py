"""The figures above the list of emails: today, and the last 30 days for the bars."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta

from remails.store.statistics import Count

DAYS = 30


@dataclass(frozen=True, slots=True)
class Day:
    """A bar of the chart: all of a day (UTC), and of these what failed or was rejected."""

    day: date
    total: int
    failed: int


@dataclass(frozen=True, slots=True)
class Overview:
    """Messages taken today by what became of them, and the days up to today."""

    sent: int
    delivered: int
    waiting: int
    failed: int
    days: Sequence[Day]


def first_day(today: date) -> date:
    """The first of the days that are shown."""
    return today - timedelta(days=DAYS - 1)


def overview(counts: Sequence[Count], today: date) -> Overview | None:
    """Sum up the counts of all projects; None when nothing was sent in all these days."""
    if not counts:
        return None
    sums: Counter[tuple[date, str]] = Counter()
    for count in counts:
        sums[count.day, count.status] += count.messages
        sums[count.day, "all"] += count.messages
    days = [first_day(today) + timedelta(days=passed) for passed in range(DAYS)]
    return Overview(
        sent=sums[today, "all"],
        delivered=sums[today, "delivered"],
        waiting=sum(sums[today, status] for status in ("accepted", "reattempt", "held")),
        failed=_failed(sums, today),
        days=[Day(day, sums[day, "all"], _failed(sums, day)) for day in days],
    )


def _failed(sums: Counter[tuple[date, str]], day: date) -> int:
    return sums[day, "failed"] + sums[day, "rejected"]
