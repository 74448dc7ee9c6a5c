"""Destinations: how many connections each may have, who is next, and which open connections are kept.

A destination is a set of MX hosts as seen from one source address, so the thousands of domains that one provider hosts share one, and a
trouble there takes no slot from any other. Each has

    a window      of connections, which follows its answers (`mail.feedback`)
    a line        for each organization that waits for it, served in turn
    kept sessions, used again by the next message; the reaper closes them after `keep_connection` seconds

What would wait for long, or finds the destination at rest, is told when to come back (`Busy`) and gives its claims back: work for a
slow destination does not pile up in a process that could do other work.
"""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine

from remails.config import Outbound
from remails.mail.feedback import Window
from remails.mail.reply import Reply
from remails.outbound import transport
from remails.outbound.transport import Envelope, Gone, Place, Session
from remails.store.ids import OrganizationId

Key = tuple[str, tuple[str, ...]]
"""The source address and the names of the MX hosts."""

_LINE = 4  # may always wait for each connection of the window
_PATIENCE = 2.0  # seconds; who would wait longer is sent away
_LONGEST_WAIT = 600.0
_UNKNOWN_PACE = 0.1  # seconds for a message, until one has been seen
_FORGET = 900.0  # seconds without use, longer than any rest


class Busy(Exception):
    """Not now: the destination rests or its line is full. `delay`: seconds until it is worth another look."""

    def __init__(self, why: str, delay: float) -> None:
        super().__init__(why)
        self.delay = delay


class Destination:
    """One destination."""

    def __init__(self, settings: Outbound, leave: Callable[[Coroutine[None, None, None]], None]) -> None:
        self._settings, self._leave = settings, leave
        self.window = Window(settings.connections_per_destination)
        self.used_at = time.monotonic()
        self._active = 0
        self._pace = _UNKNOWN_PACE
        self._is_known = False
        self._sent_away = 0
        self._lines: dict[OrganizationId, deque[asyncio.Future[None]]] = {}
        self._kept: list[Session] = []
        self._last = ""
        self._stopping = False

    @property
    def is_idle(self) -> bool:
        """Whether nobody uses it or waits for it."""
        return not (self._active or self._lines or self._kept)

    @contextlib.asynccontextmanager
    async def slot(self, organization_id: OrganizationId) -> AsyncIterator[None]:
        """The right to one connection; organizations that wait get theirs in turn.

        Raises:
            Busy: come back later.
        """
        self.used_at = time.monotonic()
        self._refuse_when_busy()
        if self._active < self.window.limit and not self._lines:
            self._active += 1
        else:
            await self._stand_in_line(organization_id)
        begun_at = time.monotonic()
        try:
            self._refuse_when_resting()
            yield
            self._is_known = True
            self._pace += 0.2 * (time.monotonic() - begun_at - self._pace)
        finally:
            self._sent_away = max(0, self._sent_away - 1)
            self._active -= 1
            self._serve()

    def stop(self) -> None:
        """Send away who waits and who comes: what was not begun is given back."""
        self._stopping = True
        for line in self._lines.values():
            for turn in line:
                if not turn.done():
                    turn.set_exception(Busy("the service stops", 0))
        self._lines.clear()

    def _refuse_when_busy(self) -> None:
        if self._stopping:
            raise Busy("the service stops", 0)
        self._refuse_when_resting()
        waiting = sum(len(line) for line in self._lines.values())
        # Those sent away stand in the line too, as far as it matters: each is told to come when its turn would be.
        wait = (waiting + self._sent_away) * self._pace / self.window.limit
        if waiting >= _LINE * self.window.limit and (not self._is_known or wait > _PATIENCE):
            self._sent_away += 1
            raise Busy("the destination is slow, others wait for it too", min(wait, _LONGEST_WAIT))

    def _refuse_when_resting(self) -> None:
        if (rest := self.window.rest(time.monotonic())) > 0:
            raise Busy(f"not tried now, the destination did not take more: {self._last}", rest)

    async def _stand_in_line(self, organization_id: OrganizationId) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._lines.setdefault(organization_id, deque()).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # it was our turn already
                self._active -= 1
                self._serve()
            raise

    def _serve(self) -> None:
        """Give free slots to those who wait: the organization that was served goes to the end."""
        while self._lines and self._active < self.window.limit:
            organization_id, line = next(iter(self._lines.items()))
            del self._lines[organization_id]
            turn = line.popleft()
            if line:
                self._lines[organization_id] = line
            if not turn.done():
                self._active += 1
                turn.set_result(None)

    def heed(self, answer: Reply, begun_at: float, *, throttles: bool) -> None:
        """Let the window follow what came of a message. `begun_at`: monotonic time."""
        if throttles:
            self._last = answer.line
            self.window.overloaded(begun_at, time.monotonic())
        elif answer.code is not None:
            self.window.succeeded()

    async def send(self, place: Place, envelope: Envelope) -> tuple[dict[str, Reply], Session | None]:
        """Offer a message over a kept session, or else a new one; needs a `slot`.

        Returns:
            The replies, and the session they came over (None when there was none).

        Raises:
            transport.SourceMissing: the source cannot be bound.
        """
        while session := self._take(place):
            with contextlib.suppress(Gone):
                return await self._offer(session, envelope)
        self._make_room()
        try:
            session = await transport.connect(self._settings, place)
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
            self._leave(session.close())
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
            self._leave(self._kept.pop(0).close())

    def reap(self, before: float) -> None:
        """Close what was kept since before then (monotonic)."""
        old = [session for session in self._kept if session.idle_since <= before]
        self._kept = [session for session in self._kept if session.idle_since > before]
        for session in old:
            self._leave(session.close())


class Destinations:
    """All destinations of this process."""

    def __init__(self, settings: Outbound) -> None:
        self._settings = settings
        self._by_key: dict[Key, Destination] = {}
        self._leaving: set[asyncio.Task[None]] = set()
        self._stopping = False

    def get(self, key: Key) -> Destination:
        """The destination of that key."""
        if key not in self._by_key:
            self._by_key[key] = Destination(self._settings, self._leave)
            if self._stopping:
                self._by_key[key].stop()
        return self._by_key[key]

    def stop(self) -> None:
        """Begin nothing new."""
        self._stopping = True
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

    def _leave(self, goodbye: Coroutine[None, None, None]) -> None:
        """Say QUIT without holding anyone up."""
        task = asyncio.create_task(goodbye)
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)
