"""The Internet of the test network: its DNS and the mail server of every domain, as one process in the namespace "world".

`world.py DIRECTORY` answers DNS from `zone.json` in the directory, which may change at any time, and keeps what its mailbox
receives in `mails/`. A name without records of its own has the mailbox as MX. `World` is the tests' view of both.
"""

import asyncio
import collections
import ipaddress
import json
import sys
from datetime import UTC, datetime
from pathlib import Path

import hosts
import msgspec

from remails.dev import archive, dns, world

NAME = "mx.world.test"
READY = "ready"
LONG_AGO = datetime.min.replace(tzinfo=UTC)


class FileZone:
    """What `zone.json` says, read again for each question: {"example.net TXT": ["text"]}."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def answer(self, name: str, rdtype: str) -> list[str] | dns.Code:
        """See `dns.Zone`."""
        if name == NAME:
            return [hosts.MX] if rdtype == "A" else []
        records: dict[str, list[str]] = json.loads(self._path.read_bytes())
        if f"{name} {rdtype}" in records:
            return records[f"{name} {rdtype}"]
        if name.endswith(".in-addr.arpa"):
            return dns.Code.NXDOMAIN
        return [f"10 {NAME}."] if rdtype == "MX" else []


class World:
    """The world as the tests see it. It is started with the fleet and ends with it."""

    def __init__(self, fleet: hosts.Fleet) -> None:
        self.directory = fleet.directory / "world"
        self._zone = self.directory / "zone.json"
        self._mails: dict[str, archive.Record] = {}
        if not self.directory.exists():
            self.directory.mkdir()
            self._write({})
            fleet.serve("world", [sys.executable, __file__, str(self.directory)])
            hosts.until((self.directory / READY).exists, 30, "the world to begin")

    def publish(self, *records: tuple[str, str, str]) -> None:
        """Put records (name, type, text) into the DNS, in place of others of that name and type."""
        published = json.loads(self._zone.read_bytes())
        for name, rdtype, text in records:
            published[f"{name.rstrip('.').lower()} {rdtype}"] = [text]
        self._write(published)

    def publish_address(self, ip: str, name: str) -> None:
        """Give an address its name, and the name its address."""
        reverse = ipaddress.ip_address(ip).reverse_pointer
        self.publish((reverse, "PTR", f"{name}."), (name, "A", ip))

    def _write(self, records: dict[str, list[str]]) -> None:
        new = self._zone.with_suffix(".new")
        new.write_text(json.dumps(records), encoding="utf-8")
        new.replace(self._zone)

    def mails(self, subject: str = "", since: datetime = LONG_AGO) -> list[archive.Record]:
        """What the mailbox has received since then whose subject begins so, oldest first."""
        for path in sorted((self.directory / "mails").glob("*.json")):
            if path.name not in self._mails:
                self._mails[path.name] = msgspec.json.decode(path.read_bytes(), type=archive.Record)
        return [one for one in self._mails.values() if one.subject.startswith(subject) and one.received_at > since]

    def settled(self) -> bool:
        """Whether it has looked at all that it took: only then it is among its mails."""
        kept = collections.Counter(path.suffix for path in (self.directory / "mails").iterdir())
        return kept[".eml"] == kept[".json"]

    def raw(self, record: archive.Record) -> bytes:
        """The mail as received."""
        return (self.directory / "mails" / f"{record.id}.eml").read_bytes()


async def _serve(directory: Path) -> None:
    zone = FileZone(directory / "zone.json")
    async with world.running(
        zone,
        dns_address=(hosts.RESOLVER, 53),
        smtp_addresses=[(hosts.MX, 25), (hosts.MX, 587)],
        http_address=(hosts.MX, 80),
        directory=directory / "mails",
        limit=1_000_000,  # no test is to miss what another's load has pushed out
    ):
        (directory / READY).touch()
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_serve(Path(sys.argv[1])))
