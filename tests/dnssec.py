"""DNS as it really is: Knot signs and serves zones, unbound validates them, both on loopback ports of their own."""

import contextlib
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import dns.exception
import dns.message
import dns.query
import dns.rdatatype
import dns.rrset
from workbench import free_port

_SOA = "@ 0 SOA ns hostmaster 1 3600 600 86400 0\n@ 0 NS ns\nns 0 A 127.0.0.1\n"


@dataclass(frozen=True)
class Dnssec:
    """The validating resolver, and the server behind it."""

    resolver: int
    """Port of unbound on 127.0.0.1."""
    server: int
    """Port of Knot on 127.0.0.1."""


@contextlib.contextmanager
def serve(
    directory: Path,
    zones: Mapping[str, str],
    *,
    unsigned: frozenset[str] = frozenset(),
    bogus: frozenset[str] = frozenset(),
) -> Iterator[Dnssec]:
    """Serve zones: origin without final dot ("" is the root), and its records in the form of a zone file, without SOA and NS.

    All but the `unsigned` ones are signed; of the `bogus` ones the resolver believes another key than that they are signed with.
    """
    ports = Dnssec(free_port(), free_port())
    (directory / "knot").mkdir()
    for origin, records in zones.items():
        (directory / f"{origin}.zone").write_text(f"$ORIGIN {origin}.\n{_SOA}{records}")
    (directory / "knot.conf").write_text(_knot(directory, zones, unsigned, ports))
    with _running(["knotd", "-c", str(directory / "knot.conf")], directory / "knot.log"):
        keys = {origin: _key(origin, ports.server) for origin in zones if origin not in unsigned}
        anchors = [f"{origin}. 0 IN DNSKEY {key}" for origin, key in keys.items() if origin not in bogus]
        other = next(iter(keys.values()))
        anchors += [f"{origin}. 0 IN DNSKEY {other}" for origin in bogus]
        (directory / "anchors").write_text("\n".join(anchors) + "\n")
        (directory / "unbound.conf").write_text(_unbound(directory, zones, ports))
        with _running(["unbound", "-d", "-c", str(directory / "unbound.conf")], directory / "unbound.log"):
            _ask(next(iter(zones)), "SOA", ports.resolver)
            yield ports


def _knot(directory: Path, zones: Mapping[str, str], unsigned: frozenset[str], ports: Dnssec) -> str:
    signed = "    dnssec-signing: on\n    dnssec-policy: one\n"
    listed = "".join(
        f'  - domain: "{origin}."\n    file: "{origin}.zone"\n{"" if origin in unsigned else signed}'
        for origin in zones
    )
    return f"""
server:
    rundir: "{directory}"
    listen: 127.0.0.1@{ports.server}
database:
    storage: "{directory}/knot"
log:
  - target: stderr
    any: info
policy:
  - id: one
    single-type-signing: on
    algorithm: ecdsap256sha256
template:
  - id: default
    storage: "{directory}"
    zonefile-sync: -1
zone:
{listed}"""


def _unbound(directory: Path, zones: Mapping[str, str], ports: Dnssec) -> str:
    stubs = "".join(f'stub-zone:\n  name: "{origin}."\n  stub-addr: 127.0.0.1@{ports.server}\n' for origin in zones)
    kinds = {"": "static"} | dict.fromkeys(zones, "transparent")  # there is no world beyond
    ours = "".join(f'  local-zone: "{origin}." {kind}\n' for origin, kind in kinds.items())
    return f"""
server:
  interface: 127.0.0.1
  port: {ports.resolver}
  directory: "{directory}"
  chroot: ""
  username: ""
  pidfile: ""
  use-syslog: no
  do-not-query-localhost: no
  module-config: "validator iterator"
  trust-anchor-file: "{directory}/anchors"
{ours}
{stubs}
remote-control:
  control-enable: no
"""


@contextlib.contextmanager
def _running(command: list[str], log: Path) -> Iterator[None]:
    """A process, until the block ends; its output is shown when that is by an error."""
    with log.open("wb") as output, subprocess.Popen(command, stdout=output, stderr=output) as process:
        try:
            yield
        except TimeoutError as error:
            raise RuntimeError(log.read_text()) from error
        finally:
            process.terminate()


def _ask(name: str, kind: str, port: int) -> dns.rrset.RRset:
    """The records of one name, as soon as there is an answer."""
    query = dns.message.make_query(name, kind)
    deadline = time.monotonic() + 15
    while True:
        with contextlib.suppress(dns.exception.DNSException, OSError):
            answer = dns.query.udp(query, "127.0.0.1", timeout=0.2, port=port)
            if answer.answer:
                return answer.answer[0]
        if time.monotonic() > deadline:
            raise TimeoutError(f"no answer for {name} {kind}")
        time.sleep(0.02)


def _key(origin: str, port: int) -> str:
    return _ask(origin, "DNSKEY", port)[0].to_text()
