#!/usr/bin/env python3
"""How many mails a second one outbound process delivers to a bare server: claim, sign (RSA-2048), send, record.

    PYTHONPATH=tests python bench/delivery.py --dsn "host=/run/postgresql" [--mails 2000] [--delay 0.02] [--size 4000]

`--delay` is the server's answer time for each write and stands for a round trip. The database is made, migrated and dropped.
"""

import argparse
import asyncio
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import seed
import sink as sinks
import uvloop
from workbench import Bench

from remails import submission
from remails.bus.client import Publisher
from remails.config import Bus, Mail
from remails.config import Database as DatabaseSettings
from remails.db import Database
from remails.store import migrate
from remails.vault import Pepper, Vault, new_encryption_key, new_secret


def fill(bench: Bench, mails: int, size: int) -> None:
    """Hand in so many mails."""
    text = b"From: sender@acme.example\r\nSubject: mail%d\r\n\r\n" + b"x" * 70 + b"\r\n"
    batch = []
    for number in range(mails):
        raw = text % number + (b"y" * 70 + b"\r\n") * ((size - 150) // 72)
        batch.append(bench.tenant.submission(f"r{number}@example.net", raw=raw))
        if len(batch) == 200 or number == mails - 1:
            outcomes = submission.submit(bench.db, Publisher(Bus(), ""), Mail(hostname="relay.example"), batch)
            assert all(isinstance(outcome, submission.Accepted) for outcome in outcomes)
            batch = []


async def measure(bench: Bench, sink: sinks.Sink, mails: int) -> float:
    """Seconds until the last of them is recorded as delivered."""
    async with bench.dns():
        started, cpu = time.monotonic(), time.process_time()
        async with bench.work():
            while (left := bench.db.run(_left)) > 0:
                await asyncio.sleep(0.05 if left < mails / 2 else 0.2)
            took = time.monotonic() - started
        counts = sink.counts()
        delivered = sum(counts["mails"].values())
        print(
            f"{mails / took:8.0f} mails/s  {(time.process_time() - cpu) / mails * 1000:6.2f} ms CPU each"
            f"  {counts['connections']:5} connections  {delivered} arrived, {len(counts['mails'])} different"
        )
        return took


def _left(conn: psycopg.Connection) -> int:
    row = conn.execute("SELECT count(*) FROM deliveries WHERE status <> 'delivered'").fetchone()
    assert row is not None
    return int(row[0])


def main() -> None:
    """Run the measurement."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dsn", required=True)
    parser.add_argument("--mails", type=int, default=2000)
    parser.add_argument("--delay", type=float, default=0.0)
    parser.add_argument("--size", type=int, default=4000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory, prepared(options.dsn, Path(directory)) as bench:
        fill(bench, options.mails, options.size)
        with sinks.running("127.0.0.21", bench.port, delay=options.delay) as sink:
            uvloop.run(measure(bench, sink, options.mails))


@contextmanager
def prepared(dsn: str, directory: Path) -> Iterator[Bench]:
    """A bench with a database of its own."""
    name = f"bench_{uuid.uuid4().hex}"
    with psycopg.connect(f"{dsn} dbname=postgres", autocommit=True) as admin:
        admin.execute(f'CREATE DATABASE "{name}"')
        try:
            settings = DatabaseSettings(dsn=f"{dsn} dbname={name}")
            migrate.apply(settings, None)
            db = Database(settings, None, "bench")
            db.open()
            vault, pepper = Vault(new_encryption_key("bench")), Pepper(new_secret(40))
            yield Bench(settings, db, vault, seed.tenant(db, vault, pepper), directory, ttl=300)
            db.close()
        finally:
            admin.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


if __name__ == "__main__":
    main()
