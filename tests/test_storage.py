"""The disk of the database fills up: mail is put off while delivery goes on, and a server that stopped for it comes back with all it had."""

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import jinja2
import pytest
import seed
import yaml
from seed import Tenant

from remails import submission
from remails.bus.client import Publisher
from remails.config import Bus, Mail
from remails.config import Database as DatabaseSettings
from remails.db import Connection, Database
from remails.dev import postgresql
from remails.errors import Full, Refused, Unavailable
from remails.store import migrate, queue
from remails.submission import Accepted, Submission
from remails.vault import Pepper, Vault

MAIL = Mail(hostname="relay.example")
MEBIBYTE = 1024 * 1024


def submit(db: Database, *given: Submission) -> list[Accepted | Refused]:
    return submission.submit(db, Publisher(Bus(), ""), MAIL, given)


def seen(db: Database, free: int, reserve: int = 1000) -> bool:
    """What the host of the database says every few seconds; whether it is short now."""

    def see(conn: Connection) -> bool:
        row = conn.execute("SELECT storage_seen(%s, %s)", [free, reserve]).fetchone()
        assert row is not None
        return bool(row[0])

    return db.run(see)


def test_what_a_host_says_by_default_is_taken(db: Database) -> None:
    """The statement of the job, with the reserve that nobody has changed."""
    role = Path(__file__).parents[1] / "roles/postgresql"
    defaults = yaml.safe_load((role / "defaults/main.yml").read_text(encoding="utf-8"))
    script = jinja2.Template((role / "templates/postgresql-storage.j2").read_text(encoding="utf-8")).render(defaults)
    (statement,) = re.findall(r"SELECT storage_seen\(.*\)", script)

    def see(conn: Connection) -> object:
        conn.execute(statement.replace("$free", str(300 * MEBIBYTE * 1024)))
        return conn.execute("SELECT reserve_bytes, is_short FROM storage").fetchone()

    assert db.run(see) == (defaults["postgresql_reserve"] * MEBIBYTE, False)


def test_below_the_reserve_mail_is_put_off_and_what_waits_is_delivered(db: Database, tenant: Tenant) -> None:
    (before,) = submit(db, tenant.submission())
    assert isinstance(before, Accepted)
    seen(db, 999)
    (during,) = submit(db, tenant.submission())
    assert isinstance(during, Refused)
    assert (during.code, during.enhanced, during.status, during.retry_after) == (452, "4.3.1", 503, 60)
    with pytest.raises(Refused, match="no room"), db.transaction() as conn:  # already at MAIL
        submission.check_sender(conn, tenant.sender, tenant.domain)
    due = db.run(queue.claim_due, tenant.host_id, list(tenant.sources), lease=60, limit=10)
    assert [delivery.message_id for delivery in due] == [before.id]
    seen(db, 1200)
    (after,) = submit(db, tenant.submission())
    assert isinstance(after, Accepted)


def test_it_does_not_go_to_and_fro_at_the_limit(db: Database) -> None:
    assert [seen(db, free) for free in (1000, 999, 1000, 1199, 1200, 1000, 999)] == [
        *(False, True, True, True),
        *(False, False, True),
    ]


def test_what_was_seen_long_ago_does_not_count(db: Database, tenant: Tenant) -> None:
    """The host of the database says no more: it may have been mended, and nobody would ever hear of it."""
    seen(db, 0)
    db.run(lambda conn: conn.execute("UPDATE storage SET seen_at = now() - interval '3 minutes'"))
    (outcome,) = submit(db, tenant.submission())
    assert isinstance(outcome, Accepted)


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own, with room for little."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=160m", "tmpfs", disk]).returncode:
        pytest.skip("only root can mount a small disk")
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


def fill(disk: Path, name: str, *, leave: int = 0) -> Path:
    """Take up all room but some."""
    path = disk / name
    room = os.statvfs(disk)
    with path.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(room.f_bavail * room.f_frsize - leave, 1))
    return path


@pytest.mark.needs("mount", "unshare")
def test_a_disk_that_is_really_full(small: Path, vault: Vault, pepper: Pepper) -> None:
    """Mail after mail until there is no room for any; what was accepted is there when there is room again."""
    with postgresql.Server(small / "data") as server:
        server.create_database("remails")
        settings = DatabaseSettings(dsn=f"{server.dsn} dbname=remails", wait_timeout=1)
        migrate.apply(settings, None)
        db = Database(settings, None, "test")
        db.open()
        try:
            tenant = seed.tenant(db, vault, pepper)
            ballast = fill(small, "ballast", leave=8 * MEBIBYTE)
            accepted, troubles = _until_full(db, tenant)
            assert accepted
            assert isinstance(troubles[0], Full), troubles
            if server.has_died:
                server.stop()
            ballast.unlink()
            if server.has_died or not _answers(db):
                server.start()
            assert db.run(_ids) == accepted
            (again,) = submit(db, tenant.submission())
            assert isinstance(again, Accepted)
        finally:
            db.close()


def _until_full(db: Database, tenant: Tenant) -> tuple[set[str], list[Unavailable]]:
    accepted: set[str] = set()
    troubles: list[Unavailable] = []
    text = os.urandom(200_000).hex()
    body = "\r\n".join(text[at : at + 70] for at in range(0, len(text), 70))
    raw = f"From: a@{tenant.domain}\r\nSubject: large\r\n\r\n{body}\r\n".encode()
    while len(troubles) < 3:
        try:
            (outcome,) = submit(db, tenant.submission(raw=raw))
        except Unavailable as trouble:
            troubles.append(trouble)
        else:
            assert isinstance(outcome, Accepted)
            accepted.add(str(outcome.id))
    return accepted, troubles


def _answers(db: Database) -> bool:
    try:
        return bool(db.run(_ids))
    except Unavailable:
        return False


def _ids(conn: Connection) -> set[str]:
    return {str(id_) for (id_,) in conn.execute("SELECT id FROM messages").fetchall()}
