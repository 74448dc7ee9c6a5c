"""The way to the database: group commit, and outages that are always `Unavailable`."""

import asyncio
import contextlib
import importlib
import inspect
import itertools
import pkgutil
import re
import socket
import threading
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psycopg
import pytest
from msgspec import structs

from remails import db as db_module
from remails import store
from remails.config import Database as DatabaseSettings
from remails.db import Coalescer, Connection, Database, one_statement
from remails.dev.postgresql import Server
from remails.errors import ConfigError, Unavailable


def test_what_waits_during_a_batch_is_the_next_batch() -> None:
    batches: list[list[int]] = []

    async def fn(items: Sequence[int]) -> list[int]:
        batches.append(list(items))
        await asyncio.sleep(0)
        return [item * 2 for item in items]

    async def main() -> None:
        coalescer = Coalescer(fn, most=4)
        assert await asyncio.gather(*(coalescer(number) for number in range(10))) == [n * 2 for n in range(10)]

    asyncio.run(main())
    assert [len(batch) for batch in batches] == [4, 4, 2]


def test_a_batch_is_bounded_by_weight() -> None:
    sizes: list[int] = []

    async def fn(items: Sequence[int]) -> list[int]:
        sizes.append(len(items))
        return list(items)

    async def main() -> None:
        coalescer = Coalescer(fn, weight=lambda item: item, most_weight=100)
        await asyncio.gather(*(coalescer(60) for _ in range(5)))

    asyncio.run(main())
    assert sizes == [2, 2, 1]


def gathering(coalescer_options: dict[str, Any], *waves: int) -> list[tuple[float, int]]:
    """When each batch began, in seconds, and how many were in it, when so many come at once, and so many when those are done."""
    began: list[tuple[float, int]] = []

    async def fn(items: Sequence[int]) -> list[int]:
        began.append((time.monotonic(), len(items)))
        return list(items)

    async def main() -> float:
        coalescer = Coalescer(fn, pace=0.2, **coalescer_options)
        started = time.monotonic()
        for wave in waves:
            await asyncio.gather(*(coalescer(number) for number in range(wave)))
        return started

    started = asyncio.run(main())
    return [(at - started, number) for at, number in began]


def test_a_batch_waits_for_as_many_as_were_in_the_last_but_no_longer_than_its_pace() -> None:
    batches = gathering({}, 3, 1, 1, 3, 3)
    assert [number for _, number in batches] == [3, 1, 1, 3, 3]
    pauses = [later - earlier for (earlier, _), (later, _) in itertools.pairwise(batches)]
    assert pauses[0] >= 0.19, "one, where there were three"
    assert max(pauses[1:]) < 0.1


def test_who_is_patient_keeps_the_pace_unless_the_batch_is_full() -> None:
    batches = gathering({"patient": True, "most": 4}, 1, 5)
    assert [number for _, number in batches] == [1, 4, 1]
    (first, _), (full, _), (last, _) = batches
    assert first < 0.1  # nobody came before
    assert full - first < 0.1
    assert last - full >= 0.19


def test_one_bad_item_does_not_take_its_neighbours_with_it() -> None:
    async def fn(items: Sequence[int]) -> list[int]:
        if 3 in items:
            raise ValueError("three")
        return list(items)

    async def main() -> list[object]:
        coalescer = Coalescer(fn)
        return await asyncio.gather(*(coalescer(number) for number in range(5)), return_exceptions=True)

    results = asyncio.run(main())
    assert [r for r in results if not isinstance(r, Exception)] == [0, 1, 2, 4]
    assert isinstance(results[3], ValueError)


def test_an_outage_is_told_to_all_who_wait_and_not_tried_one_by_one() -> None:
    calls = 0

    async def fn(items: Sequence[int]) -> list[int]:
        nonlocal calls
        calls += 1
        raise Unavailable("down")

    async def main() -> list[object]:
        coalescer = Coalescer(fn)
        return await asyncio.gather(*(coalescer(number) for number in range(5)), return_exceptions=True)

    assert all(isinstance(r, Unavailable) for r in asyncio.run(main()))
    assert calls == 1


def test_a_cancelled_waiter_does_not_disturb_the_batch() -> None:
    async def fn(items: Sequence[int]) -> list[int]:
        await asyncio.sleep(0.05)
        return list(items)

    async def main() -> int:
        coalescer = Coalescer(fn)
        gone = coalescer(1)
        stays = coalescer(2)
        await asyncio.sleep(0)
        gone.cancel()
        return await stays

    assert asyncio.run(main()) == 2


def test_a_commit_is_synchronous_whatever_the_servers_default(db: Database) -> None:
    def settings(conn: Connection) -> list[str]:
        names = ("synchronous_commit", "statement_timeout", "application_name", "timezone")
        return [str((conn.execute("SELECT current_setting(%s)", [n]).fetchone() or [""])[0]) for n in names]

    assert db.run(settings) == ["on", "30s", "remails-test", "UTC"]


def test_an_error_rolls_back(db: Database) -> None:
    with pytest.raises(ZeroDivisionError), db.transaction() as conn:
        conn.execute("INSERT INTO pools (id, name) VALUES (gen_random_uuid(), 'x')")
        _ = 1 / 0
    assert db.run(lambda conn: conn.execute("SELECT count(*) FROM pools").fetchone()) == (0,)


def test_a_server_that_is_killed_is_unavailable_and_comes_back(tmp_path: Path) -> None:
    server = Server(tmp_path / "data", durable=False)
    server.start()
    settings = DatabaseSettings(dsn=f"{server.dsn} dbname=postgres", wait_timeout=0.5, connect_timeout=1)
    database = Database(settings, None, "test")
    database.open(wait=True)
    assert database.run(_one) == 1
    server.kill()
    for _ in range(3):
        with pytest.raises(Unavailable):
            database.run(_one)
    server.start()

    async def back() -> int:
        async with asyncio.timeout(20):
            while True:
                try:
                    return await database.call(_one)
                except Unavailable:
                    await asyncio.sleep(0.1)

    assert asyncio.run(back()) == 1
    database.close()
    server.stop()


def test_a_read_only_server_is_an_outage(db: Database) -> None:
    def write(conn: Connection) -> None:
        conn.execute("SET TRANSACTION READ ONLY")
        conn.execute("DELETE FROM pools")

    with pytest.raises(Unavailable):
        db.run(write)


def test_connections_to_a_demoted_server_are_dropped(db: Database) -> None:
    """X05: one refusal to write, and all of the pool is made anew; nobody has to restart anything."""

    def write(conn: Connection) -> None:
        conn.execute("DELETE FROM pools")

    with contextlib.ExitStack() as stack:
        for conn in [stack.enter_context(db.transaction()) for _ in range(3)]:
            conn.execute("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY")
    with pytest.raises(Unavailable, match="read-only"):
        for _ in range(20):  # the pool may have others
            db.run(write)
    until = time.monotonic() + 20
    in_a_row = 0
    while in_a_row < 10:
        try:
            db.run(write)
        except Unavailable:
            assert time.monotonic() < until
            in_a_row = 0
        else:
            in_a_row += 1


def test_a_full_disk_is_an_outage(db: Database) -> None:
    """X08: SQLSTATE 53100, as PostgreSQL says it; what comes after is not disturbed."""

    def write(conn: Connection) -> None:
        conn.execute("DO $$ BEGIN RAISE EXCEPTION 'could not extend file' USING ERRCODE = '53100'; END $$")

    with pytest.raises(Unavailable, match="could not extend file"):
        db.run(write)
    assert db.run(_one) == 1


def _one(conn: Connection) -> int:
    row = conn.execute("SELECT 1").fetchone()
    assert row is not None
    return int(row[0])


@pytest.mark.parametrize(
    ("dsn", "words"), [("host=/nowhere dbname=x", "cannot connect"), ("nonsense", "database.dsn: missing")]
)
def test_a_database_that_cannot_be_reached_at_start_is_one_sentence(dsn: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        Database(DatabaseSettings(dsn=dsn), None, "test").open(wait=True)
    assert "\n" not in str(caught.value)


def test_several_hosts_mean_the_one_that_can_be_written_to() -> None:
    settings = DatabaseSettings(dsn="host=a,b dbname=remails")
    assert "target_session_attrs=read-write" in db_module.conninfo(settings, None, "test")
    assert "target_session_attrs" not in db_module.conninfo(DatabaseSettings(dsn="host=a"), None, "test")


def test_the_host_that_wrote_last_is_asked_first(database: DatabaseSettings) -> None:
    """A host that is switched off costs each connection the whole of `connect_timeout`, but only until another one writes."""
    parts = psycopg.conninfo.conninfo_to_dict(database.dsn)
    with socket.create_server(("127.0.0.1", 0)) as dead:
        asked = 0

        def hang_up() -> None:
            nonlocal asked
            with contextlib.suppress(OSError):
                while True:
                    dead.accept()[0].close()
                    asked += 1

        thread = threading.Thread(target=hang_up)
        thread.start()
        parts |= {"host": f"127.0.0.1,{parts['host']}", "port": f"{dead.getsockname()[1]},{parts.get('port', 5432)}"}
        parts["target_session_attrs"] = "read-write"
        several = psycopg.conninfo.make_conninfo("", **parts)
        for _ in range(3):
            with db_module.connect(several) as conn:
                assert conn.execute("SELECT 1").fetchone() == (1,)
        dead.shutdown(socket.SHUT_RDWR)
        thread.join()
    assert asked == 1


def test_the_password_stands_in_no_setting_of_ours(database: DatabaseSettings) -> None:
    assert "password=" not in db_module.conninfo(database, None, "test")
    assert "password='p q'" in db_module.conninfo(database, "p q", "test")


def test_while_the_password_is_changed_both_are_tried(tmp_path: Path) -> None:
    with Server(tmp_path / "data", durable=False) as server:
        with psycopg.connect(f"{server.dsn} dbname=postgres", autocommit=True) as conn:
            conn.execute("CREATE ROLE remails LOGIN PASSWORD 'old'")
        server.stop()
        hba = tmp_path / "data/pg_hba.conf"
        hba.write_text(f"local all remails scram-sha-256\n{hba.read_text()}")
        server.start()
        with psycopg.connect(f"{server.dsn} dbname=postgres", autocommit=True) as conn:
            settings = DatabaseSettings(dsn=f"{server.dsn} user=remails dbname=postgres", wait_timeout=5)
            hosts = f"{psycopg.conninfo.conninfo_to_dict(server.dsn)['host']},/nowhere"
            beside_a_dead_one = structs.replace(settings, dsn=psycopg.conninfo.make_conninfo(settings.dsn, host=hosts))

            def works(password: str, settings: DatabaseSettings = settings) -> bool:
                with contextlib.suppress(ConfigError):
                    opened = Database(settings, password, "test")
                    opened.open(wait=True)
                    try:
                        return opened.run(lambda conn: conn.execute("SELECT current_user").fetchone()) == ("remails",)
                    finally:
                        opened.close()
                return False

            assert works("old") and not works("new")
            assert works("new\nold") and works("old\nnew")
            assert works("new\nold", beside_a_dead_one)
            conn.execute("ALTER ROLE remails PASSWORD 'new'")
            assert works("new\nold") and works("new")
            assert not works("neither\nold")


@one_statement
def _count(conn: Connection, number: int, *, divisor: int = 1) -> str:
    conn.execute(
        "INSERT INTO usage_log SELECT %s, %s, now(), %s, 1 / %s", [uuid.uuid4(), uuid.uuid4(), number, divisor]
    )
    return conn.info.transaction_status.name


def test_one_statement_is_a_transaction_by_itself(db: Database) -> None:
    assert db.run(_count, 3) == "IDLE"
    with pytest.raises(psycopg.errors.DivisionByZero):
        db.run(_count, 4, divisor=0)
    with db.transaction() as conn:  # the same connection, in a transaction again
        assert conn.execute("SELECT messages FROM usage_log").fetchall() == [(3,)]
        assert conn.info.transaction_status.name == "INTRANS"


def test_what_is_marked_as_one_statement_executes_one() -> None:
    marked = [
        fn
        for module in pkgutil.iter_modules(store.__path__, "remails.store.")
        for fn in vars(importlib.import_module(module.name)).values()
        if hasattr(fn, "is_one_statement")
    ]
    assert len(marked) > 5
    for fn in marked:
        source = inspect.getsource(fn)
        assert source.count("execute(") + source.count("_claim(conn") == 1, fn.__qualname__
        assert not re.search(r"^ +(for|while) .*:$", source, re.MULTILINE), fn.__qualname__
