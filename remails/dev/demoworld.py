"""The demo world as a process: `python -m remails.dev.demoworld DIRECTORY BASE`.

Its DNS answers for every name, so that whatever is added in the pages can be verified and whoever is written to gets the mail:
each domain in the database has the records it should publish, every domain's MX is the development mailbox, and our
outbound addresses have their reverse names. Other answers may be put into `zone.json` beside the settings, at any time:
{"example.org MX": ["10 mx.example.org."], "mx.example.org A": ["127.0.0.5"]}.
"""

import asyncio
import contextlib
import ipaddress
import sys
from pathlib import Path

import msgspec

from remails import config, service
from remails.db import Database
from remails.dev import world
from remails.dev.dns import Code
from remails.dev.home import Home, Ports
from remails.errors import ConfigError, Unavailable
from remails.mail import records
from remails.store import addresses, domains

MAILBOX = "mailbox.demo.example"


class DemoZone:
    """A zone in which everything is as it should be."""

    def __init__(self, settings: config.Settings, database: Database, extra: Path) -> None:
        self._settings, self._database, self._extra = settings, database, extra

    def answer(self, name: str, rdtype: str) -> list[str] | Code:
        """See `dns.Zone`."""
        given = self._given()
        if f"{name} {rdtype}" in given:
            return given[f"{name} {rdtype}"]
        try:
            match rdtype:
                case "MX":
                    return [f"10 {MAILBOX}."]
                case "A":
                    return self._addresses(name)
                case "TXT":
                    return self._texts(name)
                case "PTR":
                    return self._reverse(name)
        except Unavailable:
            return Code.SERVFAIL
        return []

    def _given(self) -> dict[str, list[str]]:
        try:
            return msgspec.json.decode(self._extra.read_bytes(), type=dict[str, list[str]])
        except (OSError, msgspec.DecodeError):
            return {}

    def _addresses(self, name: str) -> list[str]:
        if name == MAILBOX:  # the world's own, whatever becomes of our database
            return ["127.0.0.1"]
        sources = {row.ptr_name: row.ip for row in self._database.run(addresses.list_)}
        return [sources.get(name, "127.0.0.1")]

    def _reverse(self, name: str) -> list[str] | Code:
        octets = name.removesuffix(".in-addr.arpa").split(".")[::-1]
        with contextlib.suppress(ValueError):
            found = self._database.run(addresses.get, str(ipaddress.IPv4Address(".".join(octets))))
            if found is not None:
                return [f"{found.ptr_name}."]
        return Code.NXDOMAIN

    def _texts(self, name: str) -> list[str]:
        """Just the records that the pages ask to publish."""
        with self._database.transaction() as conn:
            return [
                record.value
                for domain, token, keys in domains.all_names_with_records(conn)
                for selector, key in keys
                for record in records.suggested(domain, selector, key, self._settings.spf_include, token)
                if record.name == name
            ][:1]


def main(directory: Path, base: int) -> None:
    """Run the demo world until SIGTERM."""
    home = Home(directory, Ports.from_base(base))
    settings = config.load(str(home.settings_path))

    async def serve(stop: asyncio.Event) -> None:
        database = Database(settings.database, None, "demoworld")
        database.open()
        try:
            async with world.running(
                DemoZone(settings, database, home.directory / "zone.json"),
                dns_address=("127.0.0.1", home.ports.dns),
                smtp_addresses=[("127.0.0.1", home.ports.mailbox)],
                http_address=("127.0.0.1", home.ports.mailbox_page),
                directory=home.directory / "mailbox",
            ):
                service.notify("READY=1")
                await stop.wait()
        except OSError as error:
            raise ConfigError(f"a port is taken: {error.strerror}; choose others with --port-base") from None
        finally:
            database.close()

    service.run("demoworld", settings, serve)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
