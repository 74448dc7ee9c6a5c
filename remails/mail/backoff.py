"""When to try again (RFC 5321 §4.5.4.1).

The first wait is short, for greylisting; each next one is twice as long, up to four hours, with a fifth of
jitter so that what failed together is not retried together.
"""

import random
from datetime import datetime, timedelta

LONGEST = timedelta(hours=4)


def next_attempt(
    attempts: int, *, now: datetime, expires_at: datetime, first: timedelta, jitter: random.Random
) -> datetime | None:
    """When to try again after `attempts` attempts, not beyond `expires_at`; None when that has come.

    Args:
        attempts: how many were made, the one just done included; at least 1.
        first: the wait after the first attempt.
    """
    if now >= expires_at:
        return None
    wait: timedelta = min(first * 2 ** min(attempts - 1, 20), LONGEST)
    return min(now + wait * jitter.uniform(0.9, 1.1), expires_at)
