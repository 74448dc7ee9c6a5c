"""The process: how it starts, what it says when it cannot, how many it serves, and how it ends."""

import contextlib
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import msgspec
import pytest
from inbound.dialogue import Dialogue, plain
from inbound.process import Process
from inbound.running import Certificate, Running, Stored, make_certificate
from seed import Tenant

from remails.config import Settings

MESSAGE = b"From: a@acme.example\r\n\r\nhi\r\n"
Read = Callable[[], list[Stored]]


def test_connection_limit(run: Callable[..., Running]) -> None:
    inbound = run(inbound={"max_connections": 2})
    with inbound.connect() as first, inbound.connect("smtps") as second:
        assert first.reply().startswith("220 ")
        assert second.reply().startswith("220 ")
        for name in ("submission", "smtps"):
            with inbound.connect(name) as third:
                assert third.reply().startswith("421 4.3.2")
                assert third.closed()
        assert first.say("QUIT").startswith("221")
        assert first.closed()
        deadline = time.monotonic() + 10
        while True:
            with inbound.connect() as third:
                if third.reply().startswith("220 "):
                    break
            assert time.monotonic() < deadline


def test_who_is_silent_before_tls_takes_no_room_of_others(run: Callable[..., Running]) -> None:
    inbound = run(inbound={"max_connections": 12, "max_connections_per_client": 5})
    address = ("127.0.0.1", inbound.port("smtps"))
    with ExitStack() as stack:
        silent = [stack.enter_context(socket.create_connection(address, 10, ("127.0.0.77", 0))) for _ in range(12)]
        for one in silent[5:]:
            assert one.recv(1) == b""
        for name in ("submission", "smtps"):
            with inbound.connect(name) as other:
                assert other.reply().startswith("220 ")
        for one in silent:
            one.close()
        # Their room is free again.
        deadline = time.monotonic() + 10
        while True:
            with ExitStack() as more, contextlib.suppress(OSError):
                five = [
                    more.enter_context(Dialogue(inbound.port("smtps"), smtps=True, source="127.0.0.77"))
                    for _ in range(5)
                ]
                if all(one.reply().startswith("220 ") for one in five):
                    break
            assert time.monotonic() < deadline


def test_client_that_does_not_read_is_thrown_out(run: Callable[..., Running]) -> None:
    """It costs a bounded amount of memory, and its place is free after the time limit."""
    inbound = run(inbound={"max_connections": 1, "timeout": 1.0})
    with inbound.connect() as deaf:
        assert deaf.reply().startswith("220 ")
        deaf.sock.settimeout(0.5)
        with pytest.raises((TimeoutError, ConnectionError)):
            for _ in range(1000):
                deaf.send(b"NOOP\r\n" * 10_000)
        deadline = time.monotonic() + 20
        while True:
            with inbound.connect() as other:
                if other.reply().startswith("220 "):
                    break
            time.sleep(0.1)
            assert time.monotonic() < deadline


def test_idle_sessions_are_told_to_leave(inbound: Running, acme: Tenant) -> None:
    with inbound.connect() as logged_in, inbound.connect() as silent, inbound.connect("smtps") as speaking:
        logged_in.log_in(acme)
        silent.reply()
        speaking.reply()
        inbound.begin_stop()
        assert logged_in.reply().startswith("421 4.3.2")
        assert silent.reply().startswith("421 4.3.2")
        assert logged_in.closed() and silent.closed()
    inbound.join()
    with pytest.raises(ConnectionRefusedError):
        inbound.connect()


def test_transaction_under_way_is_finished(inbound: Running, acme: Tenant, stored: Read) -> None:
    with inbound.connect() as data, inbound.connect() as envelope, inbound.connect() as idle:
        data.log_in(acme).envelope("a@acme.example")
        data.send(MESSAGE[:20])
        envelope.log_in(acme).play([("MAIL FROM:<a@acme.example>", "250")])
        idle.log_in(acme)
        inbound.begin_stop()
        assert idle.reply().startswith("421 4.3.2")
        data.send(MESSAGE[20:] + b".\r\nMAIL FROM:<a@acme.example>\r\n")
        assert data.reply().startswith("250 2.6.0")
        assert data.reply().startswith("421 4.3.2")
        envelope.play([("RCPT TO:<b@example.net>", "250"), ("DATA", "354"), (MESSAGE + b".\r\n", "250 2.6.0")])
        assert envelope.reply().startswith("421 4.3.2")
    inbound.join()
    assert len(stored()) == 2


def test_drain_timeout(run: Callable[..., Running], acme: Tenant, stored: Read) -> None:
    inbound = run(inbound={"drain_timeout": 1.5})
    with inbound.connect() as session:
        session.log_in(acme).envelope("a@acme.example")
        session.send(MESSAGE)
        inbound.begin_stop()
        assert session.reply().startswith("421 4.3.2")
        assert session.closed()
    inbound.join()
    assert stored() == []


# --- as a process


def test_process_takes_mail_and_ends_with_0(spawn: Callable[..., Process], acme: Tenant, stored: Read) -> None:
    process = spawn("submission", "smtps", "alternate")
    process.ready()
    for name, port in process.ports.items():
        with Dialogue(port, smtps=name == "smtps") as session:
            session.log_in(acme).envelope("a@acme.example")
            session.send(MESSAGE + b".\r\n")
            assert session.reply().startswith("250 2.6.0")
    with Dialogue(process.ports["submission"]) as session:
        session.log_in(acme).envelope("a@acme.example")
        session.send(MESSAGE)
        process.child.send_signal(signal.SIGTERM)
        process.child.send_signal(signal.SIGTERM)
        with pytest.raises(subprocess.TimeoutExpired):
            process.child.wait(0.5)
        session.send(b".\r\n")
        assert session.reply().startswith("250 2.6.0")
        assert session.reply().startswith("421 4.3.2")
    status, log = process.wait()
    assert status == 0, log
    assert len(stored()) == 4
    assert (
        len(re.findall(r" accepted message=\S+ client=127\.0\.0\.1 user=\S+ size=28 recipients=1 milliseconds=", log))
        == 4
    )
    assert "ERROR" not in log and "Traceback" not in log
    assert acme.smtp_password not in log


def test_process_on_its_own_ports(spawn: Callable[..., Process]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    process = spawn(submission_port=port)
    process.ready()
    with Dialogue(port) as dialogue:
        assert dialogue.reply() == "220 mail.relay.example ESMTP"
    assert process.end()[0] == 0


def test_process_starts_without_a_database(
    spawn: Callable[..., Process], settings: Settings, acme: Tenant, tmp_path: Path
) -> None:
    dead = msgspec.structs.replace(settings.database, dsn=f"host={tmp_path} dbname=x", wait_timeout=0.5)
    process = spawn("smtps", sections={"database": dead})
    assert b"STATUS=not ready" in process.notify.recv(4096)
    with Dialogue(process.ports["smtps"], smtps=True) as dialogue:
        dialogue.reply()
        login = f"AUTH PLAIN {plain(acme.smtp_username, acme.smtp_password)}"
        dialogue.play([("EHLO x", "250"), (login, "454 4.7.0"), ("NOOP", "250")])
    status, log = process.end()
    assert status == 0
    assert "Traceback" not in log


def test_taken_port(spawn: Callable[..., Process]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert_refuses(
            spawn(alternate_port=port),
            rf"inbound\.alternate_port: cannot listen on 127\.0\.0\.1 port {port}: .* in use",
        )


def test_address_of_another_host(spawn: Callable[..., Process]) -> None:
    assert_refuses(spawn(host="192.0.2.1", submission_port=2525), r"inbound\.submission_port: .*set inbound\.host")


def test_nothing_to_listen_on(spawn: Callable[..., Process]) -> None:
    assert_refuses(spawn(), "inbound: nothing to listen on, set smtps_port")


def test_unknown_socket(spawn: Callable[..., Process]) -> None:
    assert_refuses(spawn("http"), "socket 'http': FileDescriptorName= must be smtps, submission or alternate")


def test_missing_certificate(spawn: Callable[..., Process]) -> None:
    assert_refuses(
        spawn("smtps", tls_certificate="/nowhere/x.pem"), r"inbound\.tls_certificate: cannot read /nowhere/x\.pem"
    )


def test_no_directory_to_receive_in(spawn: Callable[..., Process]) -> None:
    """Or every large message would be told to come back, for ever."""
    assert_refuses(
        spawn("smtps", receive_directory="/nowhere"),
        r"inbound\.receive_directory: /nowhere is no directory to write files in",
    )


def test_key_of_another_certificate(spawn: Callable[..., Process], tmp_path: Path) -> None:
    other = make_certificate(tmp_path)
    assert_refuses(spawn("smtps", tls_key=other.key), r"inbound\.tls_key: .* is not the key of the certificate in ")


def test_key_in_place_of_the_certificate(spawn: Callable[..., Process], certificate: Certificate) -> None:
    assert_refuses(spawn("smtps", tls_certificate=certificate.key), r"inbound\.tls_certificate: .* certificate in PEM")


def test_certificate_in_place_of_the_key(spawn: Callable[..., Process], certificate: Certificate) -> None:
    assert_refuses(spawn("smtps", tls_key=certificate.certificate), r"inbound\.tls_key: .* private key in PEM")


def assert_refuses(process: Process, sentence: str) -> None:
    """Status 78 and one sentence, without traceback."""
    status, log = process.wait()
    assert status == 78, log
    assert "Traceback" not in log
    assert re.fullmatch(f"remails inbound: {sentence}.*", log.splitlines()[-1])
