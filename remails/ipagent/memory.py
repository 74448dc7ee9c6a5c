"""What the agent remembers of an address it holds, beyond what the database knows; and what follows from it.

All of it is about one question: the provider says that an address is elsewhere; is that so, and what then? Its answers may
be older than our last change, another host may have been paused in the middle of a request, and somebody may be moving
addresses by hand. So: two answers some seconds apart before anything is believed; what is as it was before our own change is
taken for old for a while, and then the change is quietly made again; and whoever moves an address five times in ten minutes
has it.
"""

from collections import deque
from dataclasses import dataclass, field
from typing import Final

DOUBT: Final = 5.0  # seconds between two answers that say the same
GRACE: Final = 20.0  # seconds for which an answer may be older than our own change
FLIPS, FLIP_WINDOW = 5, 600.0
FIRST_WAIT, LONGEST_WAIT = 1.0, 60.0


@dataclass(slots=True)
class Memory:
    """Of one lease; times are monotonic."""

    epoch: int
    since: float
    """When the lease began here."""
    is_confirmed: bool = False
    """Whether the provider was asked to attach it under this lease; before, an answer "it is here" may be from an earlier one."""
    announced: int = 0
    names_checked: tuple[str, float] = ("", float("-inf"))
    """Which name, and when."""
    draining_since: float | None = None
    _attached_at: float | None = None
    _owner_before: str | None = None
    _doubted: tuple[str | None, float] | None = None
    _flips: deque[float] = field(default_factory=deque)
    _failing_since: float | None = None
    _wait: float = 0.0
    _retry_at: float = 0.0

    @property
    def is_doubted(self) -> bool:
        """Whether the last answer was a surprise."""
        return self._doubted is not None

    def seen_here(self) -> None:
        """The provider says it is here."""
        self._doubted = None

    def is_up(self) -> None:
        """It can be used."""
        self._failing_since = None
        self._wait = self._retry_at = 0.0

    def is_certain(self, owner: str | None, now: float) -> bool:
        """The provider says it is with `owner`: whether that was said long enough to be believed."""
        if self._doubted is None or self._doubted[0] != owner:
            self._doubted = (owner, now)
            return False
        return now - self._doubted[1] >= DOUBT

    def may_be_old(self, owner: str | None, now: float) -> bool:
        """Whether that answer may be from before our own change."""
        recent = self._attached_at is not None and now - self._attached_at < GRACE
        return recent and owner == self._owner_before

    def flip(self, now: float) -> bool:
        """It was moved away from here; whether that is once too often."""
        self._flips.append(now)
        while self._flips[0] <= now - FLIP_WINDOW:
            self._flips.popleft()
        return len(self._flips) >= FLIPS

    def may_try(self, now: float) -> bool:
        """Whether it is time to try again."""
        return now >= self._retry_at

    def failed(self, now: float, least: float = FIRST_WAIT) -> None:
        """It could not be brought up: wait, longer each time, and not less than `least` seconds."""
        self._failing_since = now if self._failing_since is None else self._failing_since
        self._wait = min(max(least, self._wait * 2), LONGEST_WAIT)
        self._retry_at = now + self._wait

    def failing_for(self, now: float) -> float:
        """For how many seconds it could not be brought up."""
        return 0.0 if self._failing_since is None else now - self._failing_since

    def attached(self, owner_before: str | None, now: float) -> None:
        """The provider has confirmed our change."""
        if self._attached_at is None or now - self._attached_at >= GRACE:
            self._attached_at, self._owner_before = now, owner_before
        self.seen_here()
