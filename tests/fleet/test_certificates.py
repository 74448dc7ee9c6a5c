"""The relay's certificate on hosts: issued by an authority of the world through an edge, and renewed while clients greet every door."""

import re
import socket
import ssl
import sys
import threading
import time
from collections.abc import Iterator

import pytest
from click.testing import CliRunner
from controller import Controller, Run
from cryptography import x509
from deployment import SERVICES, UNSIGNED, Deployment, check
from hosts import CONTROL, RESOLVER, Fleet, until
from issuer import Issuer
from load import Load
from world import World

from remails import cli

pytestmark = [pytest.mark.fleet, pytest.mark.long, pytest.mark.timeout(1800)]

NAME, BACK, FRONT = "relay.fronted.test", "back", "front"
HTTPS, SMTPS, SUBMISSION = 443, 465, 587
RATE = 10  # mails in a second by either door, beside the greetings
PAUSE = 0.1  # seconds between two greetings of one door
FILE = "/etc/remails/tls/relay.pem"


class Fronted(Deployment):
    """A whole relay on one host, and an edge in front of it."""

    def __init__(self, fleet: Fleet, world: World) -> None:
        self.fleet, self.world, self.issuer = fleet, world, Issuer(fleet, world)
        ip, self.ip = (fleet.hosts[name].ip for name in (BACK, FRONT))
        world.publish((NAME, "A", self.ip))
        world.publish_address(ip, f"out.{NAME}")
        said = {
            "firewall_control": [CONTROL],
            "resolver_forward": [RESOLVER],
            "resolver_unsigned": UNSIGNED,
            "remails_hostname": NAME,
            "postgresql_memory": 1024,
            "certificates_authorities": self.issuer.authorities(),
            "remails_settings": {"api": {"url": f"https://{NAME}"}, **self.issuer.settings()},
            "ipagent_pools": [{"name": "shared", "default": True}],
            "ipagent_addresses": [{"ip": ip, "pool": "shared", "ptr_name": f"out.{NAME}"}],
        }
        groups = {group: [BACK] for group in (*SERVICES, "database")} | {"edge": [FRONT]}
        self.controller = Controller(fleet, groups, said, "fronted")
        self._secrets = self.controller.directory / "vault.yml"
        CliRunner().invoke(cli.main, ["keys", "vault", str(self._secrets)], catch_exceptions=False)

    def playbook(self, name: str, *arguments: str) -> Run:
        """Run one to its end."""
        return self.controller.playbook(f"playbooks/{name}.yml", "--extra-vars", f"@{self._secrets}", *arguments)

    def site(self) -> Run:
        """Everything, by `playbooks/site.yml`."""
        return self.playbook("site")

    def remails(self, *words: str, host: str = BACK) -> str:
        """Run an operator's command. Raises RuntimeError."""
        return super().remails(*words, host=host)

    def leader(self, limit: float = 60) -> str:
        """The only host of the database."""
        return BACK

    def serials(self) -> set[int]:
        """Of the certificates in the files of the hosts that show it."""
        ask = f"openssl x509 -in {FILE} -noout -serial"
        said = [self.fleet.hosts[name].run(ask) for name in (BACK, FRONT)]
        return {int(text.strip().removeprefix("serial="), 16) for text in said}


@pytest.fixture
def fronted(ground: Fleet, world: World) -> Iterator[Fronted]:
    """Two hosts of its own, which are gone afterwards."""
    with ground.lending(**{BACK: "bookworm", FRONT: "trixie"}):
        yield Fronted(ground, world)


class Greetings:
    """Clients that shake hands at every door again and again, believe only the authority, and wait for an answer.

    Only what is read after the handshake says that it was whole: in TLS 1.3 a client is done before the server is.

    Attributes:
        seen: the serial of each greeting that went well, by port, in order.
        failed: what was wrong with the others.
    """

    def __init__(self, fleet: Fleet, address: str, root: str) -> None:
        self._fleet, self._address = fleet, address
        self._context = ssl.create_default_context(cadata=root)
        self.seen: dict[int, list[int]] = {port: [] for port in (HTTPS, SMTPS, SUBMISSION)}
        self.failed: list[str] = []
        self._stop = threading.Event()
        self._workers = [threading.Thread(target=self._work, args=(port,), daemon=True) for port in self.seen]

    def __enter__(self) -> "Greetings":
        for worker in self._workers:
            worker.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for worker in self._workers:
            worker.join()

    def everywhere(self, serial: int) -> bool:
        """Whether each door has shown this certificate, and it alone, the last twenty times."""
        return all(seen[-20:] == [serial] * 20 for seen in self.seen.values())

    def _work(self, port: int) -> None:
        with self._fleet.network("world"):
            while not self._stop.wait(PAUSE):
                try:
                    self.seen[port].append(self._greet(port))
                except (OSError, ValueError) as error:
                    self.failed.append(f"{time.strftime('%T')} port {port}: {type(error).__name__} {error}")

    def _greet(self, port: int) -> int:
        with socket.create_connection((self._address, port), 20) as plain:
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


def test_a_certificate_is_renewed_under_load(fronted: Fronted) -> None:
    """No handshake fails, and soon the new one is seen at every door; what the playbooks then find is as it should be."""
    fronted.site().ok()
    fronted.ready()
    customer = fronted.customer("Fronted")
    (before,) = fronted.serials()
    with (
        Load(fronted.fleet, "renewal smtp", customer.smtp, [fronted.ip], rate=RATE) as smtp,
        Load(fronted.fleet, "renewal rest", customer.rest, [fronted.ip], rate=RATE) as rest,
        Greetings(fronted.fleet, fronted.ip, fronted.issuer.root()) as greetings,
    ):
        until(lambda: greetings.failed or greetings.everywhere(before), 90, "the first certificate at every door")
        fronted.playbook("certificates", "-e", "certificates_renew=true").ok()
        (after,) = fronted.serials()
        until(lambda: greetings.failed or greetings.everywhere(after), 60, "the new certificate at every door")
    print(f"renewal: {sum(map(len, greetings.seen.values()))} handshakes", file=sys.__stderr__)
    assert greetings.failed == []
    assert after != before
    # The reload that took up the certificate carried over what the edge knew of the host behind it.
    assert f" {BACK} " in fronted.fleet.hosts[FRONT].run("cat /run/haproxy/servers")
    for stream in (smtp, rest):
        assert dict(stream.reasons()) == {}
        check(fronted, stream, 120)
    assert fronted.site().ok().changed == {BACK: 0, FRONT: 0}
