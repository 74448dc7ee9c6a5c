"""Destinations: how many connections each may have, who is next, and which open connections are kept.

A destination is a set of MX hosts as seen from one source address, so the thousands of domains that one provider hosts share one, and a
trouble there takes no slot from any other. Each has

    a window      of connections, which follows its answers (`mail.feedback`)
    lines         for each organization that waits for it, one of fresh mail and one of what was tried before, served in turn
    kept sessions, used again by the next message; the reaper closes them after `keep_connection` seconds

What is in hand for a destination is bounded: a few deliveries for each connection of its window, and never more than what the process
has left for all others, so that any number of slow destinations leave room (the rule of shared memory in switches: dynamic
thresholds). Of that, an organization may have as much as it leaves to the others. Who has half of his part is `crowded`, and
`closed` names the mail that must not be claimed for him: it stays in the database, due, until `Room.on_room` says that there is room
again. The other half is for what was noted, which need not wait for a storm of retries. One more batch of each may have been claimed
before that was known; what comes beyond it, for domains not known to lead here, is sent away.

A destination that has not answered yet, or not the last time, is called by one connection until it does, beside those that still hang.
Where it has several servers, one that does not answer is tried after its fellows for a while. When all keep silent (servers that do not
exist any more do, for all of `connect_timeout`), who stands in line is sent away, and nothing is claimed until that call is over. An
organization has at most as many such calls as there is room left in the process, twice as many for mail that was never tried, so that
there is room for who answers; then nothing more is claimed for what it would have to call.
"""

import asyncio
import contextlib
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Coroutine, Iterator, Sequence, Set

from remails.config import Outbound
from remails.mail.feedback import Window
from remails.mail.reply import Reply
from remails.outbound import transport
from remails.outbound.calls import Calls
from remails.outbound.room import Room
from remails.outbound.transport import Envelope, Gone, Place, Session
from remails.store.ids import OrganizationId
from remails.store.queue import But, Claim, Closed

Key = tuple[str, tuple[str, ...]]
"""The source address and the names of the MX hosts."""
_SILENT = "the destination does not answer"
_Line = tuple[OrganizationId, bool]
"""Whose, and whether it was tried before."""

_FOR_EACH_CONNECTION = 16  # deliveries in hand, so that a connection need not wait for the database
_REMEMBERED = 1000  # domains and organizations of one destination
_FORGET = 900.0  # seconds without use, longer than any rest


class Busy(Exception):
    """Not now: the destination rests or there is no room for more. `delay`: seconds until it is worth another look."""

    def __init__(self, why: str, delay: float) -> None:
        super().__init__(why)
        self.delay = delay


class Destination:
    """One destination."""

    def __init__(self, everywhere: "Destinations", settings: Outbound, source: str, room: Room) -> None:
        self._everywhere, self._settings, self._source, self._room = everywhere, settings, source, room
        self.window = Window(settings.connections_per_destination)
        self.used_at = time.monotonic()
        self.calls = Calls(settings, self._heed_call)
        self._was_silent = False
        self._active = self._last_call = 0
        self._in_hand: Counter[OrganizationId] = Counter()
        self._senders: dict[tuple[str, OrganizationId], None] = {}
        """Domains it stands for, and who sends there; of late."""
        self._left_out: dict[bool, set[OrganizationId]] = {True: set(), False: set()}
        """Who was said to be without room, for what was noted and for what is due."""
        self._lines: dict[_Line, deque[asyncio.Future[int]]] = {}
        self._kept: list[Session] = []
        self._last = ""

    @property
    def is_idle(self) -> bool:
        """Whether nobody uses it or waits for it."""
        return not (self._in_hand or self._kept)

    @contextlib.contextmanager
    def admitted(self, claims: Sequence[Claim], servers: Set[str]) -> Iterator[None]:
        """Have these, of one organization to one domain, in hand. `servers`: their IPs.

        Raises:
            Busy: come back later.
        """
        self.used_at = time.monotonic()
        self.calls.servers = servers
        self._room.placed(claims)
        deliveries, organization_id = len(claims), claims[0].organization_id
        sender = claims[0].domain, organization_id
        self._senders.pop(sender, None)
        self._senders[sender] = None
        if len(self._senders) > _REMEMBERED:
            del self._senders[next(iter(self._senders))]
        self._refuse_in_vain()
        if self._in_hand[organization_id] >= self._most(organization_id) + 2 * self._room.batch:
            self._everywhere.crowded(self)
            self._left_out[True].add(organization_id)
            raise Busy("others wait for the same destination", self._delay(claims[0]))
        self._in_hand[organization_id] += deliveries
        if self._has_no_room(organization_id, noted=False):
            self._everywhere.crowded(self)
        try:
            yield
        finally:
            self._in_hand[organization_id] -= deliveries
            if not self._in_hand[organization_id]:
                del self._in_hand[organization_id]
            for noted, left_out in self._left_out.items():
                if organization_id in left_out and not self._has_no_room(organization_id, noted):
                    left_out.discard(organization_id)
                    self._room.on_room(noted=noted)

    @contextlib.asynccontextmanager
    async def slot(self, claim: Claim) -> AsyncIterator[None]:
        """The right to one connection; the lines that wait get theirs in turn.

        Raises:
            Busy: it was told to rest meanwhile, or the service stops.
        """
        if self._everywhere.is_stopping:
            raise Busy("the service stops", 0)
        if not self.calls.answers and claim.organization_id in self._everywhere.callers(noted=not claim.attempts):
            self._everywhere.crowded(self)
            raise Busy("many destinations do not answer", self._settings.poll_interval)
        if self._has_slot and not self._lines:
            call = self._grant(claim.organization_id)
        else:
            call = await self._stand_in_line((claim.organization_id, claim.attempts > 0))
        try:
            self._refuse_in_vain()
            yield
        finally:
            self._leave(call)

    def closed(self, callers: Set[OrganizationId], *, noted: bool) -> list[Closed]:
        """What is not to be claimed now: of what was noted, or of all that is due, for which there is less room.

        `callers` are not to call one more destination that has not answered.
        """
        is_closed = self.calls.is_silent or self.window.rest(time.monotonic()) > 0
        without = {one for one in self._in_hand if self._has_no_room(one, noted)}
        self._left_out[noted] |= without
        if not self.calls.answers and not self._everywhere.is_called(self):
            without |= callers
        return [
            Closed(self._source, domain, organization_id)
            for domain, organization_id in self._senders
            if is_closed or organization_id in without
        ]

    def stop(self) -> None:
        """Send away who waits: what was not begun is given back."""
        self._dismiss("the service stops", 0)

    def _most(self, organization_id: OrganizationId) -> int:
        """How much that organization may have in hand here: as much as it leaves to others, of what the destination may have."""
        most = min(_FOR_EACH_CONNECTION * self.window.limit, self._room.free)
        return max(1, (most - self._in_hand.total() + self._in_hand[organization_id]) // 2)

    def _has_no_room(self, organization_id: OrganizationId, noted: bool) -> bool:
        most, in_hand = self._most(organization_id), self._in_hand[organization_id]
        return in_hand >= most if noted else 2 * in_hand > most

    def _delay(self, claim: Claim) -> float:
        """Until what found no room is due again; what was never tried is asked for as soon as there is some (`Claiming.put_off`)."""
        return self._settings.poll_interval if claim.attempts else 0

    def _refuse_in_vain(self) -> None:
        if (rest := self.window.rest(time.monotonic())) > 0:
            self._everywhere.crowded(self)
            raise Busy(f"not tried now, the destination did not take more: {self._last}", rest)
        if self.calls.is_silent:
            self._everywhere.crowded(self)
            raise Busy(_SILENT, self._settings.poll_interval)

    @property
    def _has_slot(self) -> bool:
        """Whether one is free: while it does not answer one is for a call, and what still hangs in the others is no call."""
        return self._active < self.window.limit and (self.calls.answers or not self._everywhere.is_called(self))

    def _grant(self, organization_id: OrganizationId) -> int:
        """Take a slot; the number of the call that it is for, to who has not answered, or 0."""
        self._active += 1
        if self.calls.answers:
            return 0
        self._last_call += 1
        self._everywhere.calls(self, organization_id)
        return self._last_call

    def _leave(self, call: int) -> None:
        """Give it back; what it was for is over, where no other call has begun since."""
        self._active -= 1
        if call == self._last_call:
            self._everywhere.called(self)
        self._go_on()

    def _dismiss(self, why: str, delay: float) -> None:
        for line in self._lines.values():
            for turn in line:
                if not turn.done():
                    turn.set_exception(Busy(why, delay))
        self._lines.clear()

    async def _stand_in_line(self, line: _Line) -> int:
        turn: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._lines.setdefault(line, deque()).append(turn)
        try:
            return await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.exception() is None:  # it was our turn already
                self._leave(turn.result())
            raise

    def _serve(self) -> None:
        """Give free slots to those who wait: the line that was served goes to the end."""
        while self._lines and self._has_slot:
            line, waiting = next(iter(self._lines.items()))
            del self._lines[line]
            turn = waiting.popleft()
            if waiting:
                self._lines[line] = waiting
            if not turn.done():
                turn.set_result(self._grant(line[0]))

    def heed(self, answer: Reply, begun_at: float, *, throttles: bool) -> None:
        """Let the window follow what came of a message. `begun_at`: monotonic time."""
        if throttles:
            self._last = answer.line
            self.window.overloaded(begun_at, time.monotonic())
        elif answer.code is not None:
            self.window.succeeded()
        self.calls.heed(answer)

    def _heed_call(self) -> None:
        """Send away who waits when it begins to keep silent; or else have the next one call, or all go on when it answers."""
        if self.calls.is_silent:
            self._was_silent = True
            self._everywhere.crowded(self)
            self._dismiss(_SILENT, self._settings.poll_interval)
        else:
            self._everywhere.called(self)
            self._go_on()

    def _go_on(self) -> None:
        """Serve who waits, and say that there is room again after a silence."""
        if self._was_silent and not self.calls.is_silent:
            self._was_silent = False
            self._room.on_room(noted=False)
        self._serve()

    async def send(self, place: Place, envelope: Envelope) -> tuple[dict[str, Reply], Session | None]:
        """Offer a message over a kept session, or else a new one; needs a `slot`.

        Returns:
            The replies, and the session they came over (None when there was none).

        Raises:
            transport.SourceMissing: the source cannot be bound.
        """
        while session := self._take(place):
            # Who has one calls nobody, and may be answered late: it is the next one's turn to call.
            self._everywhere.called(self)
            self._go_on()
            with contextlib.suppress(Gone):
                return await self._offer(session, envelope)
        self._make_room()
        try:
            session = await self.calls.call(place)
        except transport.Broken as broken:
            return dict.fromkeys(envelope.recipients, broken.reply), None
        return await self._offer(session, envelope)

    async def _offer(self, session: Session, envelope: Envelope) -> tuple[dict[str, Reply], Session]:
        try:
            replies = await session.offer(envelope)
        except BaseException:
            session.abort()
            raise
        if session.usable:
            session.idle_since = time.monotonic()
            self._kept.append(session)
        else:
            self._everywhere.leave(session.close())
        return replies, session

    def _take(self, place: Place) -> Session | None:
        for number in reversed(range(len(self._kept))):  # the one used last is the one most surely alive
            session = self._kept[number]
            if not session.usable:
                self._kept.pop(number).abort()
            elif session.place == place:
                return self._kept.pop(number)
        return None

    def _make_room(self) -> None:
        while self._kept and self._active + len(self._kept) > self.window.limit:
            self._everywhere.leave(self._kept.pop(0).close())

    def reap(self, before: float) -> None:
        """Close what was kept since before then (monotonic), and forget servers of which long nothing was heard."""
        old = [session for session in self._kept if session.idle_since <= before]
        self._kept = [session for session in self._kept if session.idle_since > before]
        self.calls.forget()
        for session in old:
            self._everywhere.leave(session.close())


class Destinations:
    """All destinations of this process."""

    def __init__(self, settings: Outbound, room: Room) -> None:
        self._settings, self._room = settings, room
        self._by_key: dict[Key, Destination] = {}
        self._crowded: dict[Destination, None] = {}
        self._called: dict[Destination, OrganizationId] = {}
        """Those that have not answered yet and are called, and for whom."""
        self._left_out: set[OrganizationId] = set()
        """Who was said to call enough."""
        self._leaving: set[asyncio.Task[None]] = set()
        self.is_stopping = False

    def get(self, key: Key) -> Destination:
        """The destination of that key."""
        if key not in self._by_key:
            self._by_key[key] = Destination(self, self._settings, key[0], self._room)
        return self._by_key[key]

    def callers(self, *, noted: bool) -> set[OrganizationId]:
        """Who calls more destinations that have not answered yet than there is room left, or twice as many for what was noted."""
        calls = Counter(self._called.values())
        callers = {one for one, number in calls.items() if number > (1 + noted) * self._room.free}
        self._left_out |= callers
        return callers

    def is_called(self, destination: Destination) -> bool:
        """Whether somebody calls this one, which has not answered yet."""
        return destination in self._called

    def calls(self, destination: Destination, organization_id: OrganizationId) -> None:
        """It calls this one, which has not answered yet."""
        self._called[destination] = organization_id

    def called(self, destination: Destination) -> None:
        """It answered, or will not."""
        organization_id = self._called.pop(destination, None)
        if organization_id in self._left_out and organization_id not in self.callers(noted=False):
            self._left_out.discard(organization_id)
            self._room.on_room(noted=False)

    def crowded(self, destination: Destination) -> None:
        """This one has no room for somebody, or rests."""
        self._crowded[destination] = None
        if len(self._crowded) > _REMEMBERED:
            del self._crowded[next(iter(self._crowded))]

    def closed(self, *, noted: bool) -> But:
        """What is not to be claimed now: of what was noted, or of all that is due, for which there is less room."""
        closed, callers = [], self.callers(noted=noted)
        for destination in list(self._crowded):
            found = destination.closed(callers, noted=noted)
            closed += found
            if not found and not noted:
                del self._crowded[destination]
        # They may be more than can be named.
        return But(closed, list(callers) if len(self._crowded) == _REMEMBERED else [])

    def stop(self) -> None:
        """Begin nothing new."""
        self.is_stopping = True
        for destination in self._by_key.values():
            destination.stop()

    async def reap(self) -> None:
        """Close connections without work, and forget destinations long unused."""
        now = time.monotonic()
        for key, destination in list(self._by_key.items()):
            destination.reap(now - self._settings.keep_connection)
            if destination.is_idle and destination.used_at < now - _FORGET:
                del self._by_key[key]

    async def close(self) -> None:
        """Say goodbye on every kept connection."""
        for destination in self._by_key.values():
            destination.reap(float("inf"))
        if self._leaving:
            await asyncio.wait(self._leaving)

    def leave(self, goodbye: Coroutine[None, None, None]) -> None:
        """Say QUIT without holding anyone up."""
        task = asyncio.create_task(goodbye)
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)
