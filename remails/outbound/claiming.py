"""Claiming: what one process takes in hand next.

Two loops. One claims the messages that were noted on the bus, the other whatever is due, so that fresh mail waits neither behind a
storm of retries nor until that has been read. A noted message for which there is no room is put off: it is asked for again, ahead
of the rest, as soon as there is.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from itertools import islice
from typing import Concatenate, ParamSpec

from remails import service
from remails.config import Outbound
from remails.db import Connection, Database, Pace
from remails.errors import Unavailable
from remails.logs import Log
from remails.outbound.destinations import Destinations
from remails.outbound.holdings import Holdings
from remails.outbound.room import Room
from remails.store import queue
from remails.store.ids import HostId, MessageId
from remails.store.queue import Claim

log = Log("remails.outbound")

P = ParamSpec("P")

PACE = 0.01
"""Seconds from one batch to the next: what mails share, statements and commits, costs more than what each brings."""
_DUE = 0.05
"""The same for what is due: as much as a process delivers, and no burst that fresh mail would have to wait for."""
_MOST_NOTED = 10_000  # beyond that the poll finds them
_MOST_ASKED = 4  # noted messages asked for at once, for each that may be claimed: some may be of a closed destination
_PUT_OFF = 10.0  # seconds for which a noted message goes first when there is room again
_IN_VAIN = 4  # times what it took to read all that is due for little: so long it is not read again


class Claiming:
    """The two loops, and what they know of what there is to claim.

    Args:
        start: is given claims, and the bodies of small messages among them.
    """

    def __init__(
        self,
        settings: Outbound,
        db: Database,
        holdings: Holdings,
        room: Room,
        destinations: Destinations,
        start: Callable[[Sequence[Claim], Mapping[MessageId, bytes]], None],
    ) -> None:
        self._settings, self._db, self._holdings, self._room = settings, db, holdings, room
        self._destinations, self._start = destinations, start
        self.host_id: HostId | None = None
        """As which host; None before it is registered."""
        self.looked_at = float("-inf")
        """When it last got to ask what is due (monotonic)."""
        self._noted: dict[MessageId, float] = {}
        """What is to be claimed next, and since when we know."""
        self._put_off: dict[MessageId, float] = {}
        """The same for what found no room where it goes."""
        self._backlog = True
        self._times_of_room = 0
        self._news, self._due = asyncio.Event(), asyncio.Event()

    def note(self, message_ids: Iterable[MessageId]) -> None:
        """These are ready to leave from here."""
        if len(self._noted) + len(self._put_off) < _MOST_NOTED:
            self._noted.update(dict.fromkeys(message_ids, time.monotonic()))
            self._news.set()
        else:
            self.look()

    def put_off(self, message_ids: Iterable[MessageId]) -> None:
        """These were given back, due as they are, for want of room where they go."""
        self._put_off.update(dict.fromkeys(message_ids, time.monotonic()))

    def look(self) -> None:
        """Something may be due that was not noted."""
        self._backlog = True
        self.wake()

    def on_room(self, *, noted: bool) -> None:
        """There is room: ask for what was put off, and unless there is only room for what was `noted`, for all that is due."""
        self._noted, self._put_off = self._put_off | self._noted, {}
        self._times_of_room += 1
        self._news.set()
        if not noted:
            self.look()

    def wake(self) -> None:
        """There may be room for more, or it is time to stop."""
        self._news.set()
        self._due.set()

    async def claim_noted(self, stop: asyncio.Event) -> None:
        """Claim what is noted until `stop`, which needs a last `wake`."""
        await self._forever(stop, self._news, Pace(PACE), self._claim_noted)

    async def claim_due(self, stop: asyncio.Event) -> None:
        """The same for what is due, noted or not."""
        await self._forever(stop, self._due, Pace(_DUE), self._claim_due)

    async def _forever(
        self, stop: asyncio.Event, wake: asyncio.Event, pace: Pace, claim: Callable[[], Coroutine[None, None, float]]
    ) -> None:
        """Claim when woken; `claim` returns for how many seconds to rest after it."""
        while not stop.is_set():
            await wake.wait()
            await pace.step()
            if stop.is_set():
                break
            wake.clear()
            try:
                rest = await claim()
            except Unavailable as error:
                log.warning("cannot claim", reason=error)
                self._backlog = True  # the poll wakes us again
                continue
            if rest:
                await service.pause(stop, rest)

    async def _claim_noted(self) -> float:
        """One batch, as far as there is room."""
        began_at = time.monotonic()
        asked = dict(islice(self._noted.items(), _MOST_ASKED * self._room.next))
        if not asked or not self._holdings.usable():
            return 0
        for id_ in asked:
            del self._noted[id_]
        limit, but, before = self._room.next, self._room.but(self._destinations.closed(noted=True)), self._times_of_room
        try:
            claims = await self._claim(
                queue.claim_messages, list(asked), lease=self._settings.lease, limit=limit, but=but
            )
        except Unavailable:
            self._put_off |= asked  # the poll asks again
            raise
        if len(claims) == limit:  # there may be more
            self._noted = self._not_in_hand(asked) | self._noted
        elif but.any:
            oldest = began_at - _PUT_OFF
            self._put_off.update({id_: at for id_, at in self._not_in_hand(asked).items() if at > oldest})
            if self._times_of_room != before:  # it came while we asked
                self.on_room(noted=True)
        if self._noted:
            self._news.set()
        return 0

    async def _claim_due(self) -> float:
        """One batch, as far as there is room."""
        began_at, limit = time.monotonic(), self._room.next
        if not self._backlog or limit <= 0 or not self._holdings.usable():
            self.looked_at = began_at
            return 0
        self._backlog = False
        but = self._room.but(self._destinations.closed(noted=False))
        claims = await self._claim(queue.claim_due, lease=self._settings.lease, limit=limit, but=but)
        self.looked_at = time.monotonic()
        if len(claims) == limit:
            self.look()
        elif but.any:  # all that is due was read, and much of it may be what was left out
            return min(_IN_VAIN * (self.looked_at - began_at), self._settings.poll_interval)
        return 0

    def _not_in_hand(self, asked: Mapping[MessageId, float]) -> dict[MessageId, float]:
        """Those that were not claimed for all recipients: among all that is due they would stand behind a storm of retries."""
        in_hand = self._room.in_hand
        return {id_: at for id_, at in asked.items() if id_ not in in_hand}

    async def _claim(
        self,
        claim: Callable[Concatenate[Connection, HostId, Sequence[str], P], list[Claim]],
        *args: P.args,
        **options: P.kwargs,
    ) -> list[Claim]:
        """Claim for this host and the addresses it has, and begin with what was claimed."""
        assert self.host_id is not None  # who has addresses is registered
        held = self.host_id, self._holdings.usable()
        claims, bodies = await self._db.visit(self._with_bodies, lambda: self._db.run(claim, *held, *args, **options))
        self._start(claims, bodies)
        return claims

    def _with_bodies(self, claim: Callable[[], list[Claim]]) -> tuple[list[Claim], dict[MessageId, bytes]]:
        """What is claimed, with the small ones' bodies."""
        claims = claim()
        small = {claim.message_id for claim in claims if claim.raw is None and claim.size <= queue.SMALL}
        bodies = {claim.message_id: claim.raw for claim in claims if claim.raw is not None}
        try:
            return claims, bodies | (self._db.run(queue.bodies, list(small)) if small else {})
        except Unavailable:
            return claims, bodies  # they are ours, and each will ask for itself
