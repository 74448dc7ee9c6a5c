"""The database: a pool, a transaction, and the way from an event loop into a thread.

Store functions are plain and synchronous and take the connection first; the caller opens the transaction with
`Database.transaction()`. Async services say `await db.call(queue.claim_due, ...)`: it runs in one of as many
threads as there are connections, which is also the back-pressure. What is done for every mail runs `beside` the loop
instead, without a thread: `await db.visit(...)`. A `Coalescer` gathers what arrives while a batch is being committed into the
next batch: group commit, one fsync for many messages.

Every outage of PostgreSQL, whatever its face, becomes `Unavailable` here, so that no layer above knows psycopg.
"""

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar, Concatenate, Generic, ParamSpec, TypeVar

import psycopg
import psycopg.conninfo
from psycopg.abc import PQGen
from psycopg.rows import TupleRow
from psycopg_pool import ConnectionPool, PoolClosed, PoolTimeout, TooManyRequests

from remails import beside, metrics
from remails.config import Database as DatabaseSettings
from remails.errors import ConfigError, Full, Unavailable
from remails.logs import Log

P = ParamSpec("P")
T = TypeVar("T")
R = TypeVar("R")

Connection = psycopg.Connection[TupleRow]

log = Log("remails.db")

# A server that was demoted or is shutting down: the connection is useless, the request is not (cases X04, X05).
_OUTAGES = (psycopg.OperationalError, psycopg.InterfaceError, psycopg.errors.ReadOnlySqlTransaction)


_AT_ONCE = 0.001
"""Seconds to wait for a connection where one must not wait. With less, psycopg_pool is late before it has looked."""

_ONE_STATEMENT = "is_one_statement"


def one_statement(fn: Callable[P, R]) -> Callable[P, R]:
    """Mark a store function that executes one statement, never more: that is a transaction by itself.

    `run` and `call` leave out BEGIN and COMMIT for it.
    """
    setattr(fn, _ONE_STATEMENT, True)
    return fn


class Database:
    """A pool of connections to PostgreSQL; made after fork, closed at the end of the service.

    Args:
        settings: the section `database`.
        password: the credential, or None where the server asks for none.
        name: `application_name`, the service's word.
        lock_timeout: longest wait for a lock in seconds, where somebody waits for the answer; None: as for a statement.
    """

    def __init__(
        self, settings: DatabaseSettings, password: str | None, name: str, *, lock_timeout: float | None = None
    ) -> None:
        self._settings = settings
        self._conninfo = conninfo(settings, password, name, lock_timeout=lock_timeout)
        self._executor = ThreadPoolExecutor(settings.connections, thread_name_prefix="db")
        self._checking = threading.Lock()
        self._pool: ConnectionPool[Connection] = ConnectionPool(
            self._conninfo,
            connection_class=_Connection,
            kwargs={"autocommit": True},  # a transaction begins where one is asked for
            min_size=1,
            max_size=settings.connections,
            timeout=settings.wait_timeout,
            max_waiting=settings.connections * 16,
            max_lifetime=3600,
            # Its pauses between attempts double, so that it would look up long after a new primary is there; after this it asks
            # whenever somebody wants a connection.
            reconnect_timeout=2,
            open=False,
            name=name,
        )

    def open(self, *, wait: bool = False) -> None:
        """Start connecting. With `wait`, raise ConfigError when no connection comes about in time."""
        if wait:
            self._probe()
        self._pool.open()

    def _probe(self) -> None:
        try:
            connect(self._conninfo).close()
        except psycopg.Error as error:
            raise ConfigError(f"database: cannot connect with database.dsn: {_first_line(error)}") from None

    def close(self) -> None:
        """Give the connections back; waits for calls that are running."""
        self._executor.shutdown(wait=True)
        self._pool.close()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Connection]:
        """A connection inside a transaction, committed at the end.

        Raises:
            Unavailable: PostgreSQL cannot be reached, went away, or has no connection to spare. Nothing is
                known to be committed then.
            Full: its disk is full (SQLSTATE 53100), and nothing was committed.
        """
        with self.statements() as conn, conn.transaction():
            yield conn

    @contextlib.contextmanager
    def statements(self) -> Iterator[Connection]:
        """A connection whose every statement is a transaction by itself, for what writes but once: BEGIN and COMMIT are round
        trips too. What belongs together goes into a `conn.transaction()`. Raises as `transaction` does."""
        conn: Connection | None = None
        try:
            asked = time.monotonic()
            conn = self._taken()
            metrics.DATABASE_WAIT.observe(time.monotonic() - asked)
            yield conn
        except (PoolTimeout, PoolClosed, TooManyRequests) as error:
            metrics.DATABASE_UNAVAILABLE.add()
            raise Unavailable(f"database: {error}") from error
        except (
            psycopg.errors.DiskFull
        ) as error:  # the connection is good, what is there can be read, and much be written
            metrics.DATABASE_UNAVAILABLE.add()
            raise Full(f"database: {_first_line(error)}") from error
        except _OUTAGES as error:
            metrics.DATABASE_UNAVAILABLE.add()
            self._reap()
            raise Unavailable(f"database: {_first_line(error)}") from error
        finally:
            if conn is not None:
                self._pool.putconn(conn)

    def _taken(self) -> Connection:
        """A connection; where one must not block the one that is free now, or a thread waits for one."""
        if not beside.is_here():
            return self._pool.getconn()
        try:
            return self._pool.getconn(_AT_ONCE)
        except PoolTimeout:
            return beside.result(asyncio.get_running_loop().run_in_executor(self._executor, self._pool.getconn))

    def _reap(self) -> None:
        """After an outage the pool's other connections are dead or on a demoted server too: drop them, unasked."""
        if self._checking.acquire(blocking=False):
            threading.Thread(target=self._check, name="db-check", daemon=True).start()

    def _check(self) -> None:
        try:
            with contextlib.suppress(psycopg.Error, PoolClosed, PoolTimeout):
                self._pool.drain()
        finally:
            self._checking.release()

    def run(self, fn: Callable[Concatenate[Connection, P], R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call a store function in a transaction of its own."""
        with self.statements() if hasattr(fn, _ONE_STATEMENT) else self.transaction() as conn:
            return fn(conn, *args, **kwargs)

    async def call(self, fn: Callable[Concatenate[Connection, P], R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call a store function in a transaction of its own, in a thread."""
        return await self.thread(self.run, fn, *args, **kwargs)

    async def thread(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run a function that opens its own transactions in one of the database threads."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, lambda: fn(*args, **kwargs))

    async def visit(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run a short function that opens its own transactions beside the loop, without a thread."""
        return await beside.start(lambda: fn(*args, **kwargs))

    async def finish(self) -> None:
        """Wait for the visits that are under way; before `close`."""
        await beside.finished()


class Pace:
    """So many seconds from the beginning of one batch to the next: under load a larger batch saves more than it costs in time.

    Whoever comes after a longer pause does not wait.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds, self._next = seconds, float("-inf")
        self._gate: asyncio.Future[None] | None = None

    async def step(self, *, at_once: bool = False) -> None:
        """Wait until the next batch may begin, or somebody calls `open`, and begin it."""
        if not at_once and (early := self._next - time.monotonic()) > 0:
            loop = asyncio.get_running_loop()
            self._gate = loop.create_future()
            timer = loop.call_later(early, self.open)
            try:
                await self._gate
            finally:
                timer.cancel()
        self._next = time.monotonic() + self._seconds

    def open(self) -> None:
        """Who waits need not wait any longer."""
        if self._gate is not None and not self._gate.done():
            self._gate.set_result(None)


class Coalescer(Generic[T, R]):
    """Gathers single items into batches for `fn`, one batch under way at a time.

    The first item is a batch at once. What comes while one is under way, or before it is time, is the next. It is time when as many
    have come as were in the last one, for they may well be all there are. Should a batch fail for another reason than an outage,
    its items are tried one by one, so that one bad item cannot take its neighbours with it.

    Args:
        fn: takes a non-empty list, returns a result for each item in order.
        most: largest number of items in a batch.
        weight: size of an item; a batch stops growing beyond `most_weight`.
        pace: seconds from the start of one batch to the next, at most (see `Pace`).
        patient: whether the next one waits so long unless it is full: nobody is kept waiting by it.
    """

    def __init__(
        self,
        fn: Callable[[Sequence[T]], Awaitable[Sequence[R]]],
        *,
        most: int = 256,
        weight: Callable[[T], int] = lambda _: 0,
        most_weight: int = 2 * 1024 * 1024,
        pace: float = 0.0,
        patient: bool = False,
    ) -> None:
        self._fn, self._most, self._weight, self._most_weight = fn, most, weight, most_weight
        self._pace, self._patient = Pace(pace), patient
        self._expected = most if patient else 1
        self._waiting: deque[tuple[T, asyncio.Future[R]]] = deque()
        self._task: asyncio.Task[None] | None = None

    def __call__(self, item: T) -> "asyncio.Future[R]":
        """Hand in one item; the future has its result."""
        future: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._drain())
        elif len(self._waiting) >= self._expected:
            self._pace.open()
        return future

    async def flush(self) -> None:
        """Wait until nothing is waiting any more."""
        while self._task is not None and not self._task.done():
            await asyncio.wait([self._task])

    async def _drain(self) -> None:
        while self._waiting:
            await self._pace.step(at_once=len(self._waiting) >= self._expected)
            batch = self._take()
            if not self._patient:
                self._expected = len(batch)
            await self._settle(batch)

    def _take(self) -> list[tuple[T, asyncio.Future[R]]]:
        batch: list[tuple[T, asyncio.Future[R]]] = []
        weight = 0
        while self._waiting and len(batch) < self._most and weight < self._most_weight:
            batch.append(self._waiting.popleft())
            weight += self._weight(batch[-1][0])
        return batch

    async def _settle(self, batch: Sequence[tuple[T, asyncio.Future[R]]]) -> None:
        try:
            results = await self._fn([item for item, _ in batch])
        except Exception as error:  # noqa: BLE001  # every failure belongs to the callers who wait
            if len(batch) > 1 and not isinstance(error, Unavailable):
                for one in batch:
                    await self._settle([one])
                return
            for _, future in batch:
                if not future.done():
                    future.set_exception(error)
            return
        for (_, future), result in zip(batch, results, strict=True):
            if not future.done():
                future.set_result(result)


class _Connection(psycopg.Connection[TupleRow]):
    """A connection to the one of several servers that writes, by whichever of two passwords it takes."""

    _wrote: ClassVar[dict[str, str]] = {}
    """The host that wrote last, by the hosts of the connection string."""

    def wait(self, gen: PQGen[T], *args: Any, **kwargs: Any) -> T:
        """Wait for the server as psycopg does, or let the loop go on that this runs beside."""
        if not beside.is_here():
            return super().wait(gen, *args, **kwargs)
        try:
            wanted = next(gen)
            while True:
                wanted = gen.send(beside.wait(self.pgconn.socket, wanted))
        except StopIteration as end:
            value: T = end.value
            return value

    @classmethod
    def connect(cls, conninfo: str = "", **kwargs: Any) -> "_Connection":
        """Connect. While the role's password is being changed the credential has two lines, the new one first."""
        given = psycopg.conninfo.conninfo_to_dict(conninfo)
        hosts = str(given.get("host", ""))
        kwargs = {**kwargs, **cls._begin_with(cls._wrote.get(hosts), given)}
        first, *others = str(given.get("password", "")).split("\n")
        try:
            conn = super().connect(conninfo, **({**kwargs, "password": first} if others else kwargs))
        except psycopg.OperationalError:
            # It is the last host's, which may be dead while another one has refused the password.
            if not others:
                raise
            conn = super().connect(conninfo, **{**kwargs, "password": others[0]})
        cls._wrote[hosts] = conn.info.host
        return conn

    @staticmethod
    def _begin_with(host: str | None, given: dict[str, Any]) -> dict[str, str]:
        """The hosts of a connection string, this one first: each that is switched off costs `connect_timeout`."""
        hosts = str(given.get("host", "")).split(",")
        ports = str(given.get("port", "")).split(",")
        if host not in hosts or "hostaddr" in given or len(hosts) == 1:
            return {}
        places = [(one, ports[min(number, len(ports) - 1)]) for number, one in enumerate(hosts)]
        places.sort(key=lambda place: place[0] != host)
        return {"host": ",".join(one for one, _ in places), "port": ",".join(port for _, port in places)}


def connect(conninfo: str, *, autocommit: bool = False) -> Connection:
    """A connection of its own, outside any pool. Raises psycopg.OperationalError."""
    return _Connection.connect(conninfo, autocommit=autocommit)


def conninfo(settings: DatabaseSettings, password: str | None, name: str, *, lock_timeout: float | None = None) -> str:
    """The libpq connection string with what we always want in it.

    Raises:
        ConfigError: `database.dsn` is not a connection string.
    """
    timeout = int(settings.statement_timeout * 1000)
    lock = int((lock_timeout or settings.statement_timeout) * 1000)
    extra: dict[str, Any] = {
        "application_name": f"remails-{name}",
        "connect_timeout": settings.connect_timeout,
        # A server that vanished, without a word, is given up within 10 seconds: before another leads (`ttl` of Patroni: 20).
        "keepalives_idle": 5,
        "keepalives_interval": 3,
        "keepalives_count": 2,
        "tcp_user_timeout": 10000,
        # The first promise: a 250 means committed (synchronously, whatever the server's default is).
        # A host that dies within a transaction keeps its locks, and others waiting, until the server ends the session.
        "options": f"-c synchronous_commit=on -c statement_timeout={timeout} -c idle_in_transaction_session_timeout=10000"
        f" -c lock_timeout={lock} -c timezone=UTC",
    }
    if password is not None:
        extra["password"] = password
    try:
        given = psycopg.conninfo.conninfo_to_dict(settings.dsn)
    except psycopg.ProgrammingError as error:
        raise ConfigError(f"database.dsn: {_first_line(error)}") from None
    if "," in str(given.get("host", "")):
        extra["target_session_attrs"] = "read-write"
    return psycopg.conninfo.make_conninfo(settings.dsn, **{k: v for k, v in extra.items() if k not in given})


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]
