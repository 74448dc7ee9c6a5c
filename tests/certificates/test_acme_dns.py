"""Proof in the DNS: by dynamic updates to a real name server, and by a program of the operator's."""

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import dns.message
import dns.query
import msgspec
import pytest
from certificates import pebble
from certificates.test_acme import changed, turn
from scraping import free_port

from remails.config import Dns, Settings
from remails.db import Database
from remails.store import certificates as store

pytestmark = pytest.mark.needs("pebble", "knotd")

KEY = "6XLYHn0ErOhxhqsC2eZC8pgOrLrzRc3H1wYG9kVgwS4="
ZONES = {
    "relay.example": "@ A 127.0.0.1\n",
    "more.example": "@ A 127.0.0.1\n_acme-challenge CNAME proof\n",
    "frozen.example": "@ A 127.0.0.1\n",
}
SOA = "@ 0 SOA ns hostmaster 1 3600 600 86400 0\n@ 0 NS ns\nns 0 A 127.0.0.1\n$TTL 0\n"


@pytest.fixture(scope="module")
def knot(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Port of a name server that lets `relay-key` change its zones; all but frozen.example."""
    directory, port = tmp_path_factory.mktemp("knot"), free_port(0)
    zones = ""
    for origin, records in ZONES.items():
        (directory / f"{origin}.zone").write_text(f"$ORIGIN {origin}.\n{SOA}{records}")
        zones += f'  - domain: "{origin}."\n' + ("" if origin == "frozen.example" else "    acl: ours\n")
    (directory / "knot.conf").write_text(f"""
server:
    rundir: "{directory}"
    listen: 127.0.0.1@{port}
database:
    storage: "{directory}"
key:
  - id: relay-key.
    algorithm: hmac-sha256
    secret: {KEY}
acl:
  - id: ours
    key: relay-key.
    action: update
    update-type: TXT
template:
  - id: default
    storage: "{directory}"
    file: "%s.zone"
    zonefile-sync: -1
zone:
{zones}""")
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(["knotd", "-c", str(directory / "knot.conf")], stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 20
        while not texts(port, "relay.example", "A"):
            assert time.monotonic() < deadline, (directory / "log").read_text()
            time.sleep(0.02)
        yield port
    finally:
        process.terminate()
        process.wait()


def texts(port: int, name: str, rdtype: str) -> list[str]:
    try:
        answer = dns.query.udp(dns.message.make_query(name, rdtype), "127.0.0.1", 0.5, port)
    except (OSError, dns.exception.Timeout):
        return []
    return [record.to_text() for found in answer.answer for record in found]


@pytest.fixture
def acme(tmp_path: Path, knot: int) -> Iterator[pebble.Pebble]:
    """An ACME server that asks this name server."""
    with pebble.running(tmp_path, f"127.0.0.1:{knot}") as running:
        yield running


def test_dynamic_updates(settings: Settings, db: Database, knot: int, credentials: Path) -> None:
    ours = changed(
        settings,
        names=("relay.example", "*.relay.example", "more.example"),
        challenge="dns-01",
        dns_server=f"127.0.0.1:{knot}",
        dns_key_name="relay-key",
        dns_wait=0.0,
    )
    ours = msgspec.structs.replace(ours, dns=Dns(nameservers=(f"127.0.0.1:{knot}",)))
    row = turn(db, ours)
    assert row is not None and "acme_dns_key" in row.failure
    try:
        (credentials / "acme_dns_key").write_text(KEY[::-1].replace("=", "A") + "=")
        db.run(store.want, "relay")
        row = turn(db, ours)
        assert row is not None and f"127.0.0.1:{knot}" in row.failure and row.serial is None
        (credentials / "acme_dns_key").write_text(KEY)
        db.run(store.want, "relay")
        row = turn(db, ours)
    finally:
        (credentials / "acme_dns_key").unlink()
    assert row is not None and row.failure == ""
    assert set(row.names) == {"relay.example", "*.relay.example", "more.example"}
    for name in ("_acme-challenge.relay.example", "proof.more.example"):
        assert texts(knot, name, "TXT") == []  # nothing is left behind


HOOK = """#!/bin/sh
echo "$@" >> {log}
[ "$2" = _acme-challenge.relay.example ] || {{ echo "not my zone" >&2; exit 3; }}
case "$1" in add) change="update add $2. 30 TXT $3" ;; remove) change="update delete $2. TXT $3" ;; esac
{python} {change} "$1" "$2" "$3"
"""
CHANGE = f"""
import sys, dns.update, dns.query, dns.tsigkeyring
ring = dns.tsigkeyring.from_text({{"relay-key": ("hmac-sha256.", "{KEY}")}})
change = dns.update.UpdateMessage("relay.example", keyring=ring)
getattr(change, {{"add": "add", "remove": "delete"}}[sys.argv[1]])(
    sys.argv[2] + ".", *([30] if sys.argv[1] == "add" else []), "TXT", sys.argv[3])
sys.exit(dns.query.tcp(change, "127.0.0.1", 5, PORT).rcode())
"""


def test_a_program_of_the_operators(settings: Settings, db: Database, knot: int, tmp_path: Path) -> None:
    import sys

    (tmp_path / "change.py").write_text(CHANGE.replace("PORT", str(knot)))
    hook = tmp_path / "hook"
    hook.write_text(HOOK.format(log=tmp_path / "said", python=sys.executable, change=tmp_path / "change.py"))
    hook.chmod(0o755)
    ours = changed(settings, challenge="dns-01", dns_hook=str(hook), dns_wait=0.0)
    ours = msgspec.structs.replace(ours, dns=Dns(nameservers=(f"127.0.0.1:{knot}",)))
    row = turn(db, ours)
    assert row is not None and row.failure == "" and list(row.names) == ["relay.example"]
    said = (tmp_path / "said").read_text().splitlines()
    assert [line.split()[:2] for line in said] == [
        [what, "_acme-challenge.relay.example"] for what in ("add", "remove")
    ]

    row = turn(db, changed(ours, names=("frozen.example",)))
    assert row is not None and row.failures == 1 and row.serial
    assert "exit status 3: not my zone" in row.failure
