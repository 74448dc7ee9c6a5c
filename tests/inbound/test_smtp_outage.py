"""A database that dies under load: clients are told to come back, nothing that was accepted is lost, and it all goes on by itself.

`REMAILS_TEST_FULL=1` keeps it away for 30 seconds, with production's patience.
"""

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import psycopg
import pytest
import seed
from inbound.dialogue import Dialogue, plain
from inbound.process import Process
from inbound.running import Running

from remails.config import Database as DatabaseSettings
from remails.db import Database
from remails.dev import postgresql
from remails.inbound import lookup
from remails.store import migrate
from remails.vault import Pepper, Vault

FULL = os.environ.get("REMAILS_TEST_FULL") == "1"
AWAY, PATIENCE, CLIENTS = (30.0, 5.0, 20) if FULL else (1.5, 0.3, 8)
QUICK = 3.0 + PATIENCE * 2  # seconds in which a client has its answer, whatever the database does


class Client:
    """Sends one message after another, and keeps what it was told."""

    def __init__(self, port: int, tenant: seed.Tenant) -> None:
        self._port, self._tenant = port, tenant
        self.accepted: list[tuple[float, str]] = []
        """When, and as which id."""
        self.refusals: list[str] = []
        self.slowest = 0.0

    def run(self, stop: threading.Event) -> None:
        while not stop.is_set():
            with Dialogue(self._port, smtps=True) as session:
                session.sock.settimeout(60)
                session.reply()
                session.say("EHLO client.example")
                if self._ask(session, f"AUTH PLAIN {plain(self._tenant.smtp_username, self._tenant.smtp_password)}"):
                    while not stop.is_set() and self._send(session):
                        pass
            stop.wait(0.05)

    def _send(self, session: Dialogue) -> bool:
        """One message; false for a client that begins anew after a refusal."""
        for line in (f"MAIL FROM:<a@{self._tenant.domain}>", "RCPT TO:<b@example.net>", "DATA"):
            if not self._ask(session, line):
                return False
        return self._ask(session, f"From: a@{self._tenant.domain}\r\n\r\nhi\r\n.")

    def _ask(self, session: Dialogue, line: str) -> bool:
        started = time.monotonic()
        reply = session.say(line)
        self.slowest = max(self.slowest, time.monotonic() - started)
        if reply.startswith("250 2.6.0"):
            self.accepted.append((time.monotonic(), reply.rpartition(" ")[2]))
        if reply[0] not in "23":
            self.refusals.append(reply)
        return reply[0] in "23"


def test_the_database_dies_under_load(
    spawn: Callable[..., Process], vault: Vault, pepper: Pepper, tmp_path: Path
) -> None:
    server = postgresql.Server(tmp_path / "data")
    server.start()
    try:
        server.create_database("mail")
        database = DatabaseSettings(dsn=f"{server.dsn} dbname=mail", wait_timeout=PATIENCE)
        migrate.apply(database, None)
        db = Database(database, None, "test")
        db.open()
        tenant = seed.tenant(db, vault, pepper)
        db.close()
        process = spawn("smtps", sections={"database": database})
        process.ready()
        clients = [Client(process.ports["smtps"], tenant) for _ in range(CLIENTS)]
        stop = threading.Event()
        with ThreadPoolExecutor(CLIENTS) as pool:
            running = [pool.submit(client.run, stop) for client in clients]
            try:
                until(lambda: all(len(client.accepted) >= 3 for client in clients))
                server.kill()
                time.sleep(AWAY)
                server.start()
                back = time.monotonic()
                until(lambda: all(client.accepted[-1][0] > back for client in clients))
            finally:
                stop.set()
            for one in running:
                one.result(60)
        refusals = [refusal for client in clients for refusal in client.refusals]
        assert refusals and not [refusal for refusal in refusals if refusal[0] != "4"]
        assert max(client.slowest for client in clients) < QUICK
        assert process.child.poll() is None
        db = Database(database, None, "test")
        db.open()
        with db.transaction() as conn:
            stored = {str(id_) for (id_,) in conn.execute("SELECT message_id FROM deliveries").fetchall()}
        db.close()
        accepted = [id_ for client in clients for _, id_ in client.accepted]
        assert len(set(accepted)) == len(accepted) and set(accepted) <= stored
        status, log = process.end()
        assert status == 0 and "Traceback" not in log
    finally:
        server.stop()


def until(reached: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_table_that_is_locked(spawn: Callable[..., Process], database: DatabaseSettings, acme: seed.Tenant) -> None:
    """X15: it holds up nobody for long, 451, and others go on meanwhile."""
    process = spawn("smtps", sections={"database": msgspec.structs.replace(database, wait_timeout=0.3)})
    process.ready()
    with (
        Dialogue(process.ports["smtps"], smtps=True) as session,
        Dialogue(process.ports["smtps"], smtps=True) as other,
        psycopg.connect(database.dsn) as conn,
    ):
        other.log_in(acme)
        session.log_in(acme)
        conn.execute("LOCK TABLE messages IN ACCESS EXCLUSIVE MODE")
        started = time.monotonic()
        session.envelope(f"a@{acme.domain}")
        session.send(f"From: a@{acme.domain}\r\n\r\nhi\r\n.\r\n".encode())
        asked = time.monotonic()
        other.play([("NOOP", "250")])
        assert time.monotonic() - asked < 1
        assert session.reply().startswith("451 4.3.0")
        assert time.monotonic() - started < QUICK
        conn.rollback()
        session.envelope(f"a@{acme.domain}")
        session.send(f"From: a@{acme.domain}\r\n\r\nhi\r\n.\r\n".encode())
        assert session.reply().startswith("250 2.6.0")
    assert process.end()[0] == 0


def test_a_database_that_says_nothing(
    inbound: Running, db: Database, acme: seed.Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own limits do not help where its host hangs; a login is put off all the same."""
    monkeypatch.setattr(lookup, "_PATIENCE", 0.2)
    secret = plain(acme.smtp_username, acme.smtp_password)
    with inbound.connect("smtps") as session:
        assert session.reply().startswith("220 ")
        session.say("EHLO client.example")
        with db.transaction() as conn:
            conn.execute("LOCK TABLE smtp_credentials IN ACCESS EXCLUSIVE MODE")
            started = time.monotonic()
            assert session.say(f"AUTH PLAIN {secret}").startswith("454 4.7.0")
            assert time.monotonic() - started < 2
        monkeypatch.undo()
        assert session.say(f"AUTH PLAIN {secret}").startswith("235 2.7.0")
