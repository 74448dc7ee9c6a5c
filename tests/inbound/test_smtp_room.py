"""Room for messages: memory and files have bounds, whatever clients send, and a large message is stored as a small one is."""

import os
import resource
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest
from inbound.dialogue import Dialogue
from inbound.process import Process
from inbound.running import Running, Stored
from seed import Tenant

from remails.config import Settings

HEADER = b"From: a@acme.example\r\nDate: Mon, 01 Jan 2024 00:00:00 +0000\r\nMessage-ID: <t1@acme.example>\r\n\r\n"
LINE = b"." + b"x" * 75 + b"\r\n"
Read = Callable[[], list[Stored]]


def send(session: Dialogue, body: bytes) -> str:
    session.envelope("a@acme.example")
    session.send((HEADER + body).replace(b"\r\n.", b"\r\n..") + b".\r\n")
    return session.reply()


@pytest.mark.parametrize("memory", [1, 1_000_000, 64_000_000])
def test_large_messages_come_through_as_they_are(
    run: Callable[..., Running], acme: Tenant, stored: Read, tmp_path: Path, memory: int
) -> None:
    """By DATA and by BDAT, through a file and without; afterwards no file is left open."""
    room = {"receive_memory": memory, "receive_directory": str(tmp_path)}
    bodies = [bytes(b"%d" % size) + LINE * size for size in (1, 1000, 20_000, 60_000)]
    with run(inbound=room, mail={"max_size": 10_000_000}).connect() as session:
        session.log_in(acme)
        for body in bodies:
            assert send(session, body).startswith("250 2.6.0")
            session.play([("MAIL FROM:<a@acme.example>", "250"), ("RCPT TO:<b@example.net>", "250")])
            content = HEADER + body
            session.send(b"BDAT %d\r\n%s" % (len(content) // 2, content[: len(content) // 2]))
            assert session.reply().startswith("250 2.0.0")
            rest = content[len(content) // 2 :]
            session.send(b"BDAT %d LAST\r\n%s" % (len(rest), rest))
            assert session.reply().startswith("250 2.6.0")
    assert [one.body for one in stored()] == [body for body in bodies for _ in range(2)]
    assert list(tmp_path.iterdir()) == []
    held = [os.path.realpath(entry) for entry in Path("/proc/self/fd").iterdir()]
    assert not [name for name in held if name.startswith(str(tmp_path))]


def test_many_large_messages_at_once(run: Callable[..., Running], acme: Tenant, stored: Read, tmp_path: Path) -> None:
    running = run(inbound={"receive_memory": 200_000, "receive_directory": str(tmp_path)}, mail={"max_size": 5_000_000})

    def client(number: int) -> None:
        with running.connect() as session:
            session.log_in(acme)
            for size in (1, 2000, 20_000):
                assert send(session, b"%d-" % number + LINE * size).startswith("250 2.6.0")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(client, range(8)))
    wanted = sorted(b"%d-" % number + LINE * size for number in range(8) for size in (1, 2000, 20_000))
    assert sorted(one.body for one in stored()) == wanted


def test_no_room_on_disk(run: Callable[..., Running], acme: Tenant, stored: Read, tmp_path: Path) -> None:
    """Refused for now and not for good, in step, and the room comes back."""
    room = {"receive_disk": 1_500_000, "receive_directory": str(tmp_path)}
    with run(inbound=room, mail={"max_size": 5_000_000}).connect() as session:
        session.log_in(acme)
        for _ in range(3):
            assert send(session, LINE * 30_000).startswith("452 4.3.1")
            assert send(session, LINE * 15_000).startswith("250 2.6.0")
        session.play([("MAIL FROM:<a@acme.example>", "250"), ("RCPT TO:<b@example.net>", "250")])
        session.send(b"BDAT 1200000\r\n" + HEADER + bytes(1_200_000 - len(HEADER)))
        session.play([(b"", "250 2.0.0"), ("RSET", "250")])
        assert send(session, LINE * 15_000).startswith("250 2.6.0")
    assert len(stored()) == 4


def test_full_disk(
    spawn: Callable[..., Process], settings: Settings, acme: Tenant, stored: Read, tmp_path: Path
) -> None:
    """X08, in a process of its own, for which every further byte of a file is one too many, as on a disk that is full."""
    mail = msgspec.structs.replace(settings.mail, max_size=5_000_000)
    process = spawn("smtps", sections={"mail": mail}, receive_directory=str(tmp_path))
    process.ready()
    resource.prlimit(process.child.pid, resource.RLIMIT_FSIZE, (0, 0))
    with Dialogue(process.ports["smtps"], smtps=True) as session:
        session.log_in(acme)
        assert send(session, LINE * 30_000).startswith("452 4.3.1")
        assert send(session, LINE * 1_000).startswith("250 2.6.0")
    assert len(stored()) == 1
    assert process.end()[0] == 0


def test_a_directory_that_is_there_no_more(run: Callable[..., Running], acme: Tenant, tmp_path: Path) -> None:
    (tmp_path / "room").mkdir()
    running = run(inbound={"receive_directory": str(tmp_path / "room")}, mail={"max_size": 5_000_000})
    with running.connect() as session:
        session.log_in(acme)
        (tmp_path / "room").rmdir()
        assert send(session, LINE * 30_000).startswith("452 4.3.1")


def test_lost_connections_give_their_room_back(
    run: Callable[..., Running], acme: Tenant, stored: Read, tmp_path: Path
) -> None:
    """P30."""
    room = {"receive_memory": 100_000, "receive_disk": 3_000_000, "receive_directory": str(tmp_path)}
    running = run(inbound=room, mail={"max_size": 5_000_000})
    for _ in range(3):
        with running.connect() as session:
            session.log_in(acme).envelope("a@acme.example")
            session.send(HEADER + LINE * 30_000)
    with running.connect() as session:
        session.log_in(acme)
        while not send(session, LINE * 30_000).startswith("250 2.6.0"):
            pass
    (one,) = stored()
    assert one.body == LINE * 30_000
