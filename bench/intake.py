#!/usr/bin/env python3
"""How many mails a second inbound takes on one port, with one process and with several.

    PYTHONPATH=tests python bench/intake.py [--dsn "host=/run/postgresql"] [--processes 1 2] [--seconds 8] [--sessions 16] [--once]

Each client keeps a TLS session and sends 4 kB mails one after the other; with `--once` it logs in anew for each, handshake included. The
numbers of processes take turns, three times, and what counts is how their medians compare: the clients, the processes and PostgreSQL
share this machine. Without `--dsn` a PostgreSQL of its own is started. The database is made, migrated and dropped.
"""

import argparse
import contextlib
import multiprocessing
import statistics
import tempfile
import time
import uuid
from pathlib import Path

import psycopg
import seed
from inbound.dialogue import Dialogue
from inbound.process import Process
from inbound.running import make_certificate

from remails.config import Database as DatabaseSettings
from remails.config import Inbound, Logs, Mail, Settings
from remails.db import Database
from remails.dev import postgresql
from remails.store import migrate
from remails.vault import Pepper, Vault, new_encryption_key, new_secret

MAIL = b"From: a@acme.example\r\nSubject: x\r\n\r\n" + (b"y" * 70 + b"\r\n") * 56 + b".\r\n"


def client(
    port: int, tenant: seed.Tenant, until: float, once: bool, sessions: int, taken: "multiprocessing.Queue[int]"
) -> None:
    """Send over several sessions in turn, pipelined over all of them, until the time is up."""
    sent = 0
    while time.time() < until:
        with contextlib.ExitStack() as stack:
            dialogues = [stack.enter_context(Dialogue(port, smtps=True)).log_in(tenant) for _ in range(sessions)]
            while time.time() < until:
                for dialogue in dialogues:
                    dialogue.send(b"MAIL FROM:<a@acme.example>\r\nRCPT TO:<b@example.net>\r\nDATA\r\n")
                for dialogue in dialogues:
                    assert [dialogue.reply()[:3] for _ in range(3)] == ["250", "250", "354"]
                    dialogue.send(MAIL)
                for dialogue in dialogues:
                    assert dialogue.reply().startswith("250")
                    sent += 1
                if once:
                    break
    taken.put(sent)


def measure(settings: Settings, tenant: seed.Tenant, args: argparse.Namespace, processes: int) -> float:
    """Mails a second."""
    given = Settings(
        **{
            **{name: getattr(settings, name) for name in ("host", "mail", "database", "credentials_directory")},
            "logs": Logs(level="WARNING"),  # nobody reads what it says
            "inbound": Inbound(
                processes=processes, tls_certificate=settings.inbound.tls_certificate, tls_key=settings.inbound.tls_key
            ),
        }
    )
    with tempfile.TemporaryDirectory() as directory:
        process = Process(Path(directory), given, "smtps")
        process.ready()
        taken: multiprocessing.Queue[int] = multiprocessing.Queue()
        started = time.time()
        clients = [
            multiprocessing.Process(
                target=client,
                args=(process.ports["smtps"], tenant, started + args.seconds, args.once, args.sessions // 2, taken),
            )
            for _ in range(2)
        ]
        for one in clients:
            one.start()
        total = sum(taken.get() for _ in clients)
        took = time.time() - started
        process.end()
        process.close()
    return total / took


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dsn")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--sessions", type=int, default=16)
    parser.add_argument("--once", action="store_true")
    args = parser.parse_args()
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        dsn = args.dsn or stack.enter_context(postgresql.Server(directory / "data")).dsn
        name = f"bench_{uuid.uuid4().hex[:12]}"
        with psycopg.connect(f"{dsn} dbname=postgres", autocommit=True) as conn:
            conn.execute(f'CREATE DATABASE "{name}"')
        try:
            run(f"{dsn} dbname={name}", directory, args)
        finally:
            with psycopg.connect(f"{dsn} dbname=postgres", autocommit=True) as conn:
                conn.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


def run(dsn: str, directory: Path, args: argparse.Namespace) -> None:
    """Measure in a database that is there."""
    database = DatabaseSettings(dsn=dsn)
    migrate.apply(database, None)
    (directory / "pepper").write_text(pepper := new_secret())
    certificate = make_certificate(directory)
    db = Database(database, None, "bench")
    db.open(wait=True)
    tenant = seed.tenant(db, Vault(new_encryption_key("bench")), Pepper(pepper))
    db.close()
    settings = Settings(
        host="test",
        mail=Mail(hostname="mail.relay.example"),
        database=database,
        credentials_directory=str(directory),
        inbound=Inbound(tls_certificate=certificate.certificate, tls_key=certificate.key),
    )
    found: dict[int, list[float]] = {number: [] for number in args.processes}
    for _ in range(3):
        for number, rates in found.items():
            rates.append(measure(settings, tenant, args, number))
            print(f"{number} processes: {rates[-1]:7.0f} mails/s", flush=True)
    medians = {number: statistics.median(rates) for number, rates in found.items()}
    first = medians[args.processes[0]]
    print(", ".join(f"{number}: {median:.0f} ({median / first:.2f} x)" for number, median in medians.items()))


if __name__ == "__main__":
    main()
