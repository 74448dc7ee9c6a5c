"""A real ACME server (Pebble, of Let's Encrypt's authors) on loopback, and the DNS that it asks."""

import json
import ssl
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from authority import Authority, Issued
from scraping import free_port

# It looks at once, and takes 30 of a hundred good nonces for bad.
ENVIRONMENT = ("PEBBLE_VA_NOSLEEP=1", "PEBBLE_WFE_NONCEREJECT=30")


@dataclass(frozen=True)
class Pebble:
    """A running server.

    Args:
        ca_file: who signed the certificate of the server itself.
        web_port: where it looks for answers to HTTP-01.
    """

    port: int
    management: int
    ca_file: str
    web_port: int
    log: Path

    @property
    def directory(self) -> str:
        """The URL that a client is given."""
        return f"https://localhost:{self.port}/dir"

    def root(self) -> str:
        """Who signs what it issues, in PEM."""
        return root(f"https://localhost:{self.management}/roots/0", ssl.create_default_context(cafile=self.ca_file))


def root(url: str, context: ssl.SSLContext) -> str:
    """Who signs what the server issues, in PEM. Raises OSError."""
    with urllib.request.urlopen(url, context=context, timeout=5) as answer:
        return str(answer.read().decode("ascii"))


def configure(
    directory: Path,
    own: Issued,
    host: str,
    port: int,
    management: int,
    *,
    web_port: int,
    external: dict[str, str] | None = None,
) -> Path:
    """Write its settings. `own` is its own certificate; `external` are accounts one has to have, with their keys."""
    certificate, key = own.files(directory)
    settings = {
        "listenAddress": f"{host}:{port}",
        "managementListenAddress": f"{host}:{management}",
        "certificate": certificate,
        "privateKey": key,
        "httpPort": web_port,
        "tlsPort": 1,
        "externalAccountBindingRequired": external is not None,
        "externalAccountMACKeys": external or {},
    }
    file = directory / "pebble.json"
    file.write_text(json.dumps({"pebble": settings}))
    return file


def command(file: Path, dns_server: str) -> list[str]:
    """How it is started, in ENVIRONMENT."""
    return ["pebble", "-config", str(file), "-dnsserver", dns_server]


@contextmanager
def running(directory: Path, dns_server: str, *, external: dict[str, str] | None = None) -> Iterator[Pebble]:
    """Start it; `external` are accounts one has to have, with their keys."""
    authority = Authority("Pebble's own")
    ca_file = directory / "ca.pem"
    ca_file.write_text(authority.root.pem())
    port, management, web_port = free_port(0), free_port(0), free_port(0)
    own = authority.issue("localhost")
    file = configure(directory, own, "127.0.0.1", port, management, web_port=web_port, external=external)
    log = directory / "pebble.log"
    with log.open("w") as said:
        words = ["env", *ENVIRONMENT, *command(file, dns_server)]
        child = subprocess.Popen(words, stdout=said, stderr=said)
    made = Pebble(port, management, str(ca_file), web_port, log)
    try:
        _await(made, child)
        yield made
    finally:
        child.kill()
        child.wait()


def _await(pebble: Pebble, child: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 30
    while True:
        assert child.poll() is None, pebble.log.read_text()
        try:
            pebble.root()
        except OSError:
            assert time.monotonic() < deadline, pebble.log.read_text()
            time.sleep(0.02)
        else:
            return
