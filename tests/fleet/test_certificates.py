"""The relay's certificate on hosts: issued by an authority of the world through the edges, and renewed while clients greet every door."""

import itertools
import re
import socket
import ssl
import sys
import threading
import time

import pytest
from cryptography import x509
from deployment import FRONT, GROUPS, NAME, Customer, Deployment, check, load
from hosts import Fleet, Host, until

pytestmark = [pytest.mark.fleet, pytest.mark.long, pytest.mark.timeout(1800), pytest.mark.usefixtures("whole")]

HTTPS, SMTPS, SUBMISSION = 443, 465, 587
RATE = 10  # mails in a second by either door, beside the greetings
PAUSE = 0.1  # seconds between two greetings of one door
FILE = "/etc/remails/tls/relay.pem"


class Greetings:
    """Clients that shake hands at every door again and again, believe only the authority, and wait for an answer.

    Only what is read after the handshake says that it was whole: in TLS 1.3 a client is done before the server is.

    Attributes:
        seen: the serial of each greeting that went well, by address and port, in order.
        failed: what was wrong with the others.
    """

    def __init__(self, fleet: Fleet, root: str) -> None:
        self._fleet = fleet
        self._context = ssl.create_default_context(cadata=root)
        doors = itertools.product(FRONT, (HTTPS, SMTPS, SUBMISSION))
        self.seen: dict[tuple[str, int], list[int]] = {door: [] for door in doors}
        self.failed: list[str] = []
        self._stop = threading.Event()
        self._workers = [threading.Thread(target=self._work, args=door, daemon=True) for door in self.seen]

    def __enter__(self) -> "Greetings":
        for worker in self._workers:
            worker.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for worker in self._workers:
            worker.join()

    def show(self, serial: int, limit: float) -> None:
        """Wait until each door has shown this certificate, and it alone, the last twenty times, or a greeting has failed."""
        until(
            lambda: self.failed or all(seen[-20:] == [serial] * 20 for seen in self.seen.values()),
            limit,
            f"the certificate {serial:x} at every door",
        )

    def _work(self, address: str, port: int) -> None:
        with self._fleet.network("world"):
            while not self._stop.wait(PAUSE):
                try:
                    self.seen[address, port].append(self._greet(address, port))
                except (OSError, ValueError) as error:
                    self.failed.append(f"{time.strftime('%T')} {address}:{port}: {type(error).__name__} {error}")

    def _greet(self, address: str, port: int) -> int:
        with socket.create_connection((address, port), 20) as plain:
            if port == SUBMISSION:
                _expect(plain, b"220")
                _expect(plain, b"250", b"EHLO client.test\r\n")
                _expect(plain, b"220", b"STARTTLS\r\n")
            with self._context.wrap_socket(plain, server_hostname=NAME) as sock:
                if port == HTTPS:
                    _expect(sock, b"HTTP/1.1 200", f"GET /api/healthy HTTP/1.1\r\nHost: {NAME}\r\n\r\n".encode())
                elif port == SMTPS:
                    _expect(sock, b"220")
                else:
                    _expect(sock, b"250", b"EHLO client.test\r\n")
                if port != HTTPS:
                    _expect(sock, b"221", b"QUIT\r\n")
                shown = sock.getpeercert(binary_form=True)
        return x509.load_der_x509_certificate(shown or b"").serial_number


def _expect(sock: socket.socket, code: bytes, said: bytes = b"") -> None:
    """Say something and read the answer, up to the last line of SMTP's or the first of HTTP's. Raises OSError, ValueError."""
    sock.sendall(said)
    answer = b""
    while not re.search(rb"^(HTTP|\d{3} ).*\n", answer, re.MULTILINE):
        more = sock.recv(65536)
        if not more:
            raise ValueError(f"the connection ended after {answer!r}")
        answer += more
    if not answer.startswith(code):
        raise ValueError(f"{answer!r} instead of {code!r}")


def serial(host: Host) -> int:
    """That of the certificate in the file which the host shows."""
    return int(host.run(f"openssl x509 -in {FILE} -noout -serial").strip().removeprefix("serial="), 16)


def shown(deployment: Deployment, *, but: str = "") -> int:
    """The serial of the one certificate of all hosts that show one, but for this one."""
    names = {*GROUPS["inbound"], *GROUPS["edge"]} - {but}
    (found,) = {serial(deployment.fleet.hosts[name]) for name in names}
    return found


def test_a_certificate_is_renewed_under_load(deployment: Deployment, customers: dict[str, Customer]) -> None:
    """No handshake fails, and soon the new one is seen at every door of each edge; what the playbooks then find is as it should be."""
    before = shown(deployment)
    with (
        load(deployment, customers["other"], "inbound", "renewal smtp", rate=RATE) as smtp,
        load(deployment, customers["acme"], "api", "renewal rest", rate=RATE) as rest,
        Greetings(deployment.fleet, deployment.issuer.root()) as greetings,
    ):
        greetings.show(before, 90)
        deployment.controller.playbook("playbooks/certificates.yml", "-e", "certificates_renew=true").ok()
        after = shown(deployment)
        greetings.show(after, 60)
    print(f"renewal: {sum(map(len, greetings.seen.values()))} handshakes", file=sys.__stderr__)
    assert greetings.failed == []
    assert after != before
    for stream in (smtp, rest):
        assert dict(stream.reasons()) == {}
        check(deployment, stream, 120)
    assert deployment.site().ok().changed == dict.fromkeys(deployment.hosts, 0)


def test_a_certificate_is_renewed_while_an_edge_is_dead(deployment: Deployment) -> None:
    """The authority finds the proof where the virtual address has gone to, and the edge shows the new one soon after it is back."""
    before, name = shown(deployment), GROUPS["edge"][0]
    edge = deployment.fleet.hosts[name]
    until(lambda: has_relay(edge), 30, "the relay's address to be where it belongs")
    edge.kill()
    arguments = ["--limit", f"!{name}", "-e", "certificates_renew=true"]
    deployment.controller.playbook("playbooks/certificates.yml", *arguments).ok()
    after = shown(deployment, but=name)
    assert after != before
    greet(deployment, after)
    edge.start()
    edge.wait()
    until(lambda: has_relay(edge) and serial(edge) == after, 60, "the edge to have its address and the certificate")
    greet(deployment, after)


def has_relay(edge: Host) -> bool:
    """Whether the address that the relay's name leads to is on this edge."""
    return f" {FRONT[0]}/" in edge.run("ip -4 addr")


def greet(deployment: Deployment, serial: int) -> None:
    """Every door of both addresses shows this certificate."""
    with Greetings(deployment.fleet, deployment.issuer.root()) as greetings:
        greetings.show(serial, 60)
    assert greetings.failed == []
