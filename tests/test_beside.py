"""Synchronous functions beside a loop: the loop goes on, nothing is lost with who asked, and connections stay what they were."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from selectors import EVENT_READ, EVENT_WRITE

import psycopg
import pytest
import uvloop

from remails import beside
from remails.config import Database as DatabaseSettings
from remails.db import Connection, Database
from remails.errors import Unavailable

LOOPS = pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])


@pytest.fixture
def few(database: DatabaseSettings) -> Iterator[Database]:
    """Of two connections."""
    settings = DatabaseSettings(dsn=database.dsn, connections=2, wait_timeout=0.3)
    opened = Database(settings, None, "test")
    opened.open(wait=True)
    yield opened
    opened.close()


@LOOPS
def test_the_loop_goes_on_while_a_function_waits_for_a_socket(loop: asyncio.AbstractEventLoop) -> None:
    near, far = socket.socketpair()

    def fn() -> bytes:
        assert beside.is_here()
        assert beside.wait(near.fileno(), EVENT_READ | EVENT_WRITE) == EVENT_WRITE
        near.send(b"question")
        assert beside.wait(near.fileno(), EVENT_READ) == EVENT_READ
        return near.recv(100)

    async def main() -> bytes:
        answer = beside.start(fn)
        assert await asyncio.get_running_loop().sock_recv(far, 100) == b"question"
        assert not answer.done()
        far.send(b"answer")
        return await answer

    near.setblocking(False), far.setblocking(False)
    with asyncio.Runner(loop_factory=loop) as runner:
        assert runner.run(main()) == b"answer"
    assert not beside.is_here()
    near.close(), far.close()


@LOOPS
def test_many_statements_wait_at_the_same_time_on_one_thread(loop: asyncio.AbstractEventLoop, db: Database) -> None:
    def fn() -> int:
        with db.transaction() as conn:
            conn.execute("SELECT pg_sleep(0.3)")
        return threading.get_ident()

    async def main() -> set[int]:
        started = asyncio.get_running_loop().time()
        threads = await asyncio.gather(*(db.visit(fn) for _ in range(4)))
        assert asyncio.get_running_loop().time() - started < 1.0
        return set(threads)

    with asyncio.Runner(loop_factory=loop) as runner:
        assert runner.run(main()) == {threading.get_ident()}


def test_what_goes_wrong_comes_to_who_waits(db: Database) -> None:
    def fn() -> None:
        with db.transaction() as conn:
            conn.execute("INSERT INTO pools (id, name) VALUES (gen_random_uuid(), 'x')")
            conn.execute("SELECT 1 / 0")

    async def main() -> None:
        with pytest.raises(psycopg.errors.DivisionByZero):
            await db.visit(fn)

    asyncio.run(main())
    assert db.run(_pools) == 0


def test_what_was_begun_is_finished_although_nobody_waits_any_more(db: Database) -> None:
    def fn() -> None:
        with db.transaction() as conn:
            conn.execute("SELECT pg_sleep(0.1)")
            conn.execute("INSERT INTO pools (id, name) VALUES (gen_random_uuid(), 'x')")

    async def main() -> None:
        assert beside.start(fn).cancel()
        await db.finish()

    asyncio.run(main())
    assert db.run(_pools) == 1


def test_one_more_than_there_are_connections_waits_for_its_turn_and_is_put_off_in_time(few: Database) -> None:
    def sleep(seconds: float) -> float:
        with few.transaction() as conn:
            conn.execute("SELECT pg_sleep(%s)", [seconds])
        return seconds

    async def main() -> None:
        visits = [asyncio.create_task(few.visit(sleep, 0.1)) for _ in range(3)]
        for _ in range(10):
            await asyncio.to_thread(int)
        assert not any(visit.done() for visit in visits)  # who waits for a connection holds up nobody
        assert await asyncio.gather(*visits) == [0.1] * 3
        results = await asyncio.gather(*(few.visit(sleep, 0.8) for _ in range(3)), return_exceptions=True)
        assert [type(result) for result in results].count(Unavailable) == 1

    asyncio.run(main())


def test_a_connection_that_was_left_in_the_middle_is_not_given_to_others(few: Database) -> None:
    """Without its transactions it would commit what belongs to one that is rolled back."""

    def leave(conn: Connection) -> None:
        conn.execute("BEGIN")
        raise KeyError

    with pytest.raises(KeyError), few.statements() as conn:
        leave(conn)
    _check_transactions(few)


def test_a_statement_that_fails_leaves_the_connection_as_it_was(few: Database) -> None:
    with pytest.raises(psycopg.errors.DivisionByZero), few.statements() as conn:
        conn.execute("SELECT 1 / 0")
    _check_transactions(few)


def _check_transactions(few: Database) -> None:
    """What goes wrong in one is not kept, whichever connection it gets."""
    for _ in range(4):
        with pytest.raises(ZeroDivisionError), few.transaction() as conn:
            conn.execute("INSERT INTO pools (id, name) VALUES (gen_random_uuid(), 'x')")
            _ = 1 / 0
    assert few.run(_pools) == 0


def _pools(conn: Connection) -> int:
    row = conn.execute("SELECT count(*) FROM pools WHERE name = 'x'").fetchone()
    assert row is not None
    return int(row[0])
