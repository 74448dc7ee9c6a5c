"""Asking the database on behalf of many sessions.

Questions that come while a query is under way wait and go into the next one together (`db.Coalescer`). An answer is
remembered for a moment, a refusal never: what somebody has just put right works at once, and what was taken away stops
working after that moment. Nothing is decided here for good; `submission.submit` looks again before it stores.
"""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Generic, TypeVar

from remails.db import Coalescer, Connection, Database
from remails.errors import Refused, Unavailable

K = TypeVar("K")
V = TypeVar("V")

REMEMBERED = 2.0  # seconds
_MOST = 10_000
_PATIENCE = 15.0
"""Seconds; longer than the database's own limits, which do not help where its host hangs and says nothing."""


class Lookup(Generic[K, V]):
    """Answers one question about a key at a time, with as few queries as possible.

    Args:
        fetch: a store function: takes keys, returns an answer or a refusal for each.
    """

    def __init__(self, db: Database, fetch: Callable[[Connection, Sequence[K]], Mapping[K, V | Refused]]) -> None:
        self._db, self._fetch = db, fetch
        self._ask: Coalescer[K, V | Refused] = Coalescer(self._query)
        self._known: dict[K, tuple[float, V]] = {}

    async def __call__(self, key: K) -> V:
        """The answer for `key`.

        Raises:
            Refused: that is the answer.
            Unavailable: the database cannot be reached, or does not answer.
        """
        until, value = self._known.get(key, (0.0, None))
        if value is not None and time.monotonic() < until:
            return value
        try:
            async with asyncio.timeout(_PATIENCE):
                answer = await self._ask(key)
        except TimeoutError:
            raise Unavailable("database: no answer in time") from None
        if isinstance(answer, Refused):
            self._known.pop(key, None)
            raise answer
        self._remember(key, answer)
        return answer

    def _remember(self, key: K, answer: V) -> None:
        if len(self._known) >= _MOST:
            self._known.clear()
        self._known[key] = (time.monotonic() + REMEMBERED, answer)

    async def _query(self, keys: Sequence[K]) -> list[V | Refused]:
        answers = await self._db.visit(self._db.run, self._fetch, list(dict.fromkeys(keys)))
        return [answers[key] for key in keys]
