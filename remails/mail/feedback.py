"""How many connections a destination gets: a window that follows what it says (the idea of Postfix's queue manager).

    success             the window grows by one for each window's worth of successes, up to a ceiling
    overload            it is halved, once for all connections that were under way together
    overload at one     the destination rests: 30 s, then twice as long each time, up to 10 minutes

Overload is what `retry` calls so: no connection, 421, 4.7.x, "too many". Times are monotonic seconds, given by the caller.
"""

INITIAL = 5.0
SHORTEST_REST = 30.0
LONGEST_REST = 600.0


class Window:
    """The window of one destination.

    Args:
        ceiling: most connections, at least 1.
    """

    def __init__(self, ceiling: int) -> None:
        self._ceiling = float(ceiling)
        self._size = min(INITIAL, self._ceiling)
        self._changed_at = float("-inf")
        self._rests = 0
        self._rests_until = float("-inf")

    @property
    def limit(self) -> int:
        """Connections allowed now, at least 1."""
        return int(self._size)

    def rest(self, now: float) -> float:
        """Seconds for which it is to be left alone; 0 when it may be tried."""
        return max(0.0, self._rests_until - now)

    def succeeded(self) -> None:
        """A message got an answer that speaks of the message."""
        self._rests = 0
        self._size = min(self._ceiling, self._size + 1 / self._size)

    def overloaded(self, begun_at: float, now: float) -> None:
        """It had no room for us. `begun_at`: when that connection's message was begun."""
        if begun_at < self._changed_at:
            return  # of the same generation as the one that was heeded: the smaller window had no chance yet
        self._changed_at = now
        if self._size <= 1:
            self._rests_until = now + min(LONGEST_REST, SHORTEST_REST * 2.0 ** min(self._rests, 10))
            self._rests += 1
        self._size = max(1.0, self._size / 2)
