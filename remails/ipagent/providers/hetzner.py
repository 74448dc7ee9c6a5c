"""Hetzner Cloud, API v1: floating addresses, assigned to a server by an action that takes a moment.

`provider_ref` of an address is the id of its floating IP; several IPv6 addresses of one floating /64 share it, and each is
put on the interface by itself. The credential `provider_token` is an API token of the project.
"""

from collections.abc import Sequence
from typing import Any, ClassVar
from urllib.parse import quote

from remails.config import Settings
from remails.errors import ConfigError
from remails.ipagent.providers.http import Client, Clock, field
from remails.ipagent.providers.protocol import ProviderError
from remails.store.addresses import Address

_URL = "https://api.hetzner.cloud/v1"
_PAGE = 50  # the most that is given at once
_MOST_PAGES = 100
_LOOKS, _PAUSE = 5, 1.0  # at an action that is running


class Hetzner:
    """The provider `hetzner`."""

    name: ClassVar[str] = "hetzner"
    is_remote: ClassVar[bool] = True
    configures_interface: ClassVar[bool] = True

    def __init__(self, settings: Settings, clock: Clock | None = None) -> None:
        mine = settings.ipagent
        if not mine.server_ref.isdecimal():
            raise ConfigError("ipagent.server_ref: the number of this server at Hetzner is needed")
        self._server = mine.server_ref
        headers = {"Authorization": f"Bearer {settings.provider_token()}"}
        self.client = Client(self.name, mine.provider_url or _URL, headers, mine, clock or Clock())

    def owners(self, addresses: Sequence[Address]) -> dict[str, str | None]:
        """One request for every fifty floating addresses of the project. Raises ProviderError."""
        found = {str(field(one, "id")): one.get("server") for one in self._floating()}
        return {
            address.ip: _text(found[address.provider_ref]) for address in addresses if address.provider_ref in found
        }

    def _floating(self) -> list[Any]:
        found: list[Any] = []
        for page in range(1, _MOST_PAGES):
            answer = self.client.get(f"/floating_ips?page={page}&per_page={_PAGE}")
            found += field(answer, "floating_ips")
            if not ((answer.get("meta") or {}).get("pagination") or {}).get("next_page"):
                break
        return found

    def attach(self, address: Address) -> str | None:
        """Assign the floating address to this server, and wait until that is done. Raises ProviderError."""
        path = f"/floating_ips/{quote(address.provider_ref, safe='')}"
        action = field(self.client.post(f"{path}/actions/assign", {"server": int(self._server)}), "action")
        for _ in range(_LOOKS):
            if field(action, "status") != "running":
                break
            self.client.wait(_PAUSE)
            action = field(self.client.get(f"/actions/{field(action, 'id')}"), "action")
        match field(action, "status"):
            case "success":
                return _text(field(self.client.get(path), "floating_ip").get("server"))
            case "error":
                said = (action.get("error") or {}).get("message", "without a reason")
                raise ProviderError(f"hetzner could not assign {address.ip}: {said}", "conflict")
        raise ProviderError(f"hetzner is still assigning {address.ip}", "unavailable")


def _text(server: int | None) -> str | None:
    return None if server is None else str(server)
