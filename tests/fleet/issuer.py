"""The world's certificate authority: Pebble, an ACME server, which looks at names by the world's DNS and at their port 80."""

import ssl
from typing import Any

from authority import Authority
from certificates import pebble
from hosts import CLOUD, RESOLVER, Fleet, until
from world import World

NAME, PORT, MANAGEMENT = "acme.test", 14000, 15000


class Issuer:
    """The authority as the tests see it. It is started with the fleet and ends with it; what it issued it then forgets."""

    def __init__(self, fleet: Fleet, world: World) -> None:
        self._fleet = fleet
        directory = fleet.directory / "acme"
        self._ca = directory / "ca.pem"
        world.publish((NAME, "A", CLOUD))
        if directory.exists():
            return
        directory.mkdir()
        authority = Authority("ACME")
        self._ca.write_text(authority.root.pem(), encoding="ascii")
        file = pebble.configure(directory, authority.issue(NAME), CLOUD, PORT, MANAGEMENT, web_port=80)
        fleet.serve("world", ["env", *pebble.ENVIRONMENT, *pebble.command(file, f"{RESOLVER}:53")])
        until(self.root, 30, "the authority to begin")

    def root(self) -> str:
        """Who signs what it issues, in PEM; nothing while it cannot be asked."""
        url = f"https://{CLOUD}:{MANAGEMENT}/roots/0"
        with self._fleet.network("world"):
            try:
                return pebble.root(url, context=self._context())
            except OSError:
                return ""

    def _context(self) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(self._ca))
        context.check_hostname = False  # the test has no resolver of the world
        return context

    def settings(self) -> dict[str, Any]:
        """What `remails_settings` of an inventory says of it."""
        return {"certificates": {"directory": f"https://{NAME}:{PORT}/dir", "contact": "ops@relay.test"}}

    def authorities(self) -> str:
        """For `certificates_authorities`."""
        return self._ca.read_text(encoding="ascii")
