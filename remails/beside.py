"""Plain, synchronous functions beside an event loop, without a thread.

Whatever is handed to a thread costs switches between the two, and they fight for Python's lock; for a function that does little but
wait for a socket that is most of its price. Here such a function runs on the loop's own thread, in a greenlet: where it would
wait, the loop goes on, and comes back when the socket is ready.

    await beside.start(fn)          # on the loop; fn runs at once, until it waits for the first time
    beside.wait(fd, EVENT_READ)     # within fn: let the loop go on until the file descriptor is ready
    beside.result(future)           # within fn: the same, until a future is done

Such a function must not hold a lock while it waits, nor reckon for long: the loop stands still meanwhile.
"""

import asyncio
from collections.abc import Callable
from selectors import EVENT_READ, EVENT_WRITE
from typing import TypeVar

from greenlet import getcurrent, greenlet

T = TypeVar("T")


class _Visit(greenlet):
    """A function that runs beside a loop."""

    def __init__(self, body: Callable[[], None], loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(body)
        self.loop = loop
        self.ended: asyncio.Future[None] = loop.create_future()

    def let_the_loop_go_on(self) -> object:
        """Until somebody switches here; what they bring."""
        assert self.parent is not None
        return self.parent.switch()


_under_way: set[_Visit] = set()


def start(fn: Callable[[], T]) -> "asyncio.Future[T]":
    """Run a function beside the running loop; the future has its result or error. It goes on though nobody awaits it any more."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def body() -> None:
        try:
            value = fn()
        except BaseException as error:  # noqa: BLE001  # it belongs to who awaits, as that of a thread does
            if not future.done():
                future.set_exception(error)
        else:
            if not future.done():
                future.set_result(value)
        finally:
            _under_way.discard(visit)
            visit.ended.set_result(None)

    visit = _Visit(body, loop)
    _under_way.add(visit)
    visit.switch()
    return future


async def finished() -> None:
    """Wait until nothing is under way beside the running loop."""
    loop = asyncio.get_running_loop()
    while visits := [visit.ended for visit in _under_way if visit.loop is loop]:
        await asyncio.wait(visits)


def is_here() -> bool:
    """Whether the caller runs beside a loop, and so must not block."""
    return isinstance(getcurrent(), _Visit)


def wait(fd: int, events: int) -> int:
    """Let the loop go on until one of the events (EVENT_READ, EVENT_WRITE, or both) has come; returns the one."""
    visit = _here()
    if events & EVENT_READ:
        visit.loop.add_reader(fd, visit.switch, EVENT_READ)
    if events & EVENT_WRITE:
        visit.loop.add_writer(fd, visit.switch, EVENT_WRITE)
    try:
        come = visit.let_the_loop_go_on()
    finally:
        if events & EVENT_READ:
            visit.loop.remove_reader(fd)
        if events & EVENT_WRITE:
            visit.loop.remove_writer(fd)
    assert isinstance(come, int)
    return come


def result(future: "asyncio.Future[T]") -> T:
    """Let the loop go on until the future is done."""
    visit = _here()
    future.add_done_callback(visit.switch)
    visit.let_the_loop_go_on()
    return future.result()


def _here() -> _Visit:
    visit = getcurrent()
    assert isinstance(visit, _Visit), "not beside a loop"
    return visit
