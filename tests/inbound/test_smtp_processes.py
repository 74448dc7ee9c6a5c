"""Several processes on the same sockets: they share the work, one that dies or hangs is replaced, and a restart refuses nobody."""

import os
import re
import signal
import socket
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from inbound.dialogue import Dialogue
from inbound.process import Process
from inbound.running import Stored
from installation import eventually
from scraping import free_port, scrape
from seed import Tenant

from remails import metrics
from remails.config import Metrics

MESSAGE = b"From: a@acme.example\r\n\r\nhi\r\n.\r\n"
Read = Callable[[], list[Stored]]

pytestmark = pytest.mark.needs("ps", "ss")


class Remembering(Dialogue):
    """A client that knows what it was told."""

    def __init__(self, port: int) -> None:
        self.replies: list[str] = []
        super().__init__(port)

    def reply(self) -> str:
        self.replies.append(super().reply())
        return self.replies[-1]


def workers(process: Process) -> set[int]:
    """The processes that the first one has forked."""
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.child.pid)], capture_output=True, text=True)
    return {int(pid) for pid in listed.stdout.split()}


def greeting(port: int) -> str:
    with Dialogue(port) as dialogue:
        return dialogue.reply()[:3]


def test_all_take_mail_and_one_that_dies_is_replaced(spawn: Callable[..., Process], acme: Tenant, stored: Read) -> None:
    process = spawn("submission", "smtps", processes=2)
    process.ready()
    first, second = workers(process)
    dialogues: list[Dialogue] = []

    def owners() -> set[int]:
        """Who has the clients, of which there is one more each time: who comes alone is taken by whoever is faster."""
        dialogues.append(Dialogue(process.ports["submission"]).log_in(acme))
        port = f":{process.ports['submission']}"
        listed = subprocess.run(["ss", "-Htnp", "sport", "=", port], capture_output=True, text=True)
        return {int(pid) for pid in re.findall(r"pid=(\d+)", listed.stdout)}

    eventually(owners, lambda found: found >= {first, second})
    for dialogue in dialogues:
        dialogue.envelope("a@acme.example")
        dialogue.send(MESSAGE)
        assert dialogue.reply().startswith("250 2.6.0 ")
        dialogue.sock.close()
    assert len(stored()) == len(dialogues)

    os.kill(first, signal.SIGKILL)
    assert greeting(process.ports["submission"]) == "220"
    replaced = eventually(lambda: workers(process), lambda found: len(found) == 2 and first not in found)
    assert second in replaced
    status, log = process.end()
    assert status == 0, log
    assert "worker ended, starting it again service=inbound" in log and "status=-9" in log
    assert "Traceback" not in log


def test_a_process_that_hangs_is_replaced(spawn: Callable[..., Process]) -> None:
    process = spawn("submission", processes=2, environment={"WATCHDOG_USEC": "1000000"})
    process.ready()
    hanging, other = workers(process)
    os.kill(hanging, signal.SIGSTOP)
    found = eventually(lambda: workers(process), lambda found: len(found) == 2 and hanging not in found)
    assert other in found
    status, log = process.end()
    assert (status, "worker hangs, ending it" in log) == (0, True)


def test_without_the_first_process_the_others_end(spawn: Callable[..., Process]) -> None:
    process = spawn("submission", processes=2)
    process.ready()
    left = workers(process)
    process.child.kill()
    process.child.communicate()
    for pid in left:
        eventually(lambda pid=pid: Path(f"/proc/{pid}").exists(), lambda exists: not exists)


def test_what_is_wrong_is_said_in_one_sentence_and_all_end(spawn: Callable[..., Process]) -> None:
    status, log = spawn("smtps", processes=3, tls_certificate="/nowhere/x.pem").wait()
    assert status == 78, log
    assert "remails inbound: inbound.tls_certificate: cannot read /nowhere/x.pem" in log
    assert "Traceback" not in log


def test_several_processes_on_ports_of_their_own(spawn: Callable[..., Process]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    process = spawn(submission_port=port, processes=2)
    process.ready()
    assert greeting(port) == "220"
    assert process.end()[0] == 0


def test_a_restart_under_load_refuses_nobody_and_loses_nothing(
    spawn: Callable[..., Process], acme: Tenant, stored: Read
) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=200) as listening:  # what systemd holds
        process = spawn(sockets={"submission": listening}, processes=2)
        process.ready()
        stop = threading.Event()
        accepted: list[str] = []
        failed: list[str] = []

        def send() -> None:
            while not stop.is_set():
                replies: list[str] = []
                try:
                    with Remembering(listening.getsockname()[1]) as dialogue:
                        replies = dialogue.replies
                        dialogue.log_in(acme)
                        for _ in range(3):
                            if dialogue.say("MAIL FROM:<a@acme.example>").startswith("421"):
                                break
                            dialogue.play([("RCPT TO:<b@example.net>", "250 "), ("DATA", "354 ")])
                            dialogue.send(MESSAGE)
                            accepted.append(dialogue.reply().removeprefix("250 2.6.0 Accepted as "))
                except Exception as error:  # noqa: BLE001  # whatever a client sees
                    failed.append(f"{error!r} after {replies[-1:]}")

        clients = [threading.Thread(target=send) for _ in range(8)]
        for client in clients:
            client.start()
        for mails in (20, 40):
            eventually(lambda: len(accepted), lambda number, mails=mails: number > mails)
            assert process.end()[0] == 0
            process = spawn(sockets={"submission": listening}, processes=2)
            process.ready()
        eventually(lambda: len(accepted), lambda number: number > 60)
        stop.set()
        for client in clients:
            client.join()
        assert process.end()[0] == 0
    # Who has no transaction under way as the service ends hears 421 in place of a reply, and comes again; nobody is refused.
    assert [error for error in failed if "after ['421 4.3.2" not in error] == []
    assert sorted(accepted) == sorted(message.id for message in stored())


def test_the_numbers_of_all_processes_are_one(spawn: Callable[..., Process], acme: Tenant) -> None:
    base = free_port(metrics.PORTS["inbound"])
    process = spawn("submission", processes=2, sections={"metrics": Metrics(host="127.0.0.1", port=base)})
    process.ready()
    dialogues = [Dialogue(process.ports["submission"]).log_in(acme) for _ in range(12)]
    for dialogue in dialogues:
        dialogue.envelope("a@acme.example")
        dialogue.send(MESSAGE)
        assert dialogue.reply().startswith("250 2.6.0 ")
    dialogues[0].say("EXPN list")
    for _ in range(4):  # whichever process answers
        shown = scrape(base + metrics.PORTS["inbound"])
        assert shown["remails_messages_accepted_total door=smtp"] == 12
        assert shown["remails_smtp_sessions"] == 12
        assert shown["remails_logins_total door=smtp outcome=succeeded"] == 12
        assert shown["remails_smtp_connections_total outcome=served"] == 12
        assert shown["remails_smtp_refusals_total code=502 5.5.1 command=EXPN"] == 1
        assert 1 <= shown["remails_submit_seconds_count"] <= 12
    for dialogue in dialogues:
        dialogue.sock.close()
    for pid in workers(process):
        os.kill(pid, signal.SIGKILL)

    def shown_again() -> dict[str, float]:
        try:
            return scrape(base + metrics.PORTS["inbound"])
        except OSError:
            return {}

    shown = eventually(shown_again, lambda shown: shown.get("remails_workers_restarted_total") == 2)
    assert shown["remails_messages_accepted_total door=smtp"] == 12  # what was counted stays
    assert shown.get("remails_smtp_sessions", 0) == 0
    assert process.end()[0] == 0
