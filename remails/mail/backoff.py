"""When to try again (RFC 5321 §4.5.4.1).

The first wait is short, for greylisting; each next one is twice as long, up to four hours, with a fifth of
jitter so that what failed together is not retried together. A remote server's "try again in 5 minutes" is honoured: never
earlier than it says, and, while the waits are short, not later either.
"""

import random
from datetime import datetime, timedelta

LONGEST = timedelta(hours=4)
_SHORTEST_ASKED = timedelta(seconds=5)
_PATIENT = 3  # attempts after which a remote server's short wait no longer shortens ours


def next_attempt(
    attempts: int,
    *,
    now: datetime,
    expires_at: datetime,
    first: timedelta,
    jitter: random.Random,
    asked: timedelta | None = None,
) -> datetime | None:
    """When to try again after `attempts` attempts, not beyond `expires_at`; None when that has come.

    Args:
        attempts: how many were made, the one just done included; at least 1.
        first: the wait after the first attempt.
        asked: how long the remote server asked us to wait; at most `LONGEST` of it is believed.
    """
    if now >= expires_at:
        return None
    wait: timedelta = min(first * 2 ** min(attempts - 1, 20), LONGEST)
    if asked is not None and (asked > wait or attempts <= _PATIENT):
        return min(now + max(_SHORTEST_ASKED, min(asked, LONGEST)) * jitter.uniform(1.0, 1.1), expires_at)
    return min(now + wait * jitter.uniform(0.9, 1.1), expires_at)
