"""Hetzner Cloud, API v1: floating addresses, assigned to a server by an action that takes a moment.

`provider_ref` of an address is the id of its floating IP; several IPv6 addresses of one floating /64 share it, and each is
put on the interface by itself. The credential `provider_token` is an API token of the project.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar
from urllib.parse import quote

from remails.config import Settings
from remails.errors import ConfigError
from remails.ipagent.providers.http import Client, Clock, field, rows
from remails.ipagent.providers.protocol import Kind, ProviderError, Seen
from remails.store.addresses import Address

_URL = "https://api.hetzner.cloud/v1"
_PAGE = 50  # the most that is given at once
_MOST_PAGES = 100
_PAUSE = 1.0  # seconds between looks at an action that is running
_KINDS: Mapping[int, Kind] = {409: "unavailable", 423: "unavailable"}  # it was being changed by somebody, ask again


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
        authorization = {"Authorization": f"Bearer {settings.provider_token()}"}
        self._patience = mine.provider_timeout
        self.client = Client(self.name, mine.provider_url or _URL, authorization, mine, clock or Clock(), _KINDS)

    def look(self, addresses: Sequence[Address]) -> dict[str, Seen]:
        """One request for every fifty floating addresses of the project."""
        found = {str(field(one, "id")): one for one in self._floating()}
        return {
            address.ip: _seen(found[address.provider_ref], address)
            for address in addresses
            if address.provider_ref in found
        }

    def _floating(self) -> list[Any]:
        found: list[Any] = []
        for page in range(1, _MOST_PAGES):
            answer = self.client.get(f"/floating_ips?page={page}&per_page={_PAGE}")
            found += rows(answer, "floating_ips")
            if not ((answer.get("meta") or {}).get("pagination") or {}).get("next_page"):
                break
        return found

    def attach(self, address: Address) -> Seen:
        """Assign the floating address to this server, and wait until that is done."""
        path = _path(address)
        action = field(self.client.post(f"{path}/actions/assign", {"server": int(self._server)}), "action")
        waited = 0.0
        while field(action, "status") == "running" and waited < self._patience:
            self.client.wait(_PAUSE)
            waited += _PAUSE
            action = field(self.client.get(f"/actions/{field(action, 'id')}"), "action")
        match field(action, "status"):
            case "success":
                return _seen(field(self.client.get(path), "floating_ip"), address)
            case "error":
                said = (action.get("error") or {}).get("message", "without a reason")
                raise ProviderError(f"hetzner could not assign {address.ip}: {said}", "conflict")
        raise ProviderError(f"hetzner is still assigning {address.ip}", "unavailable")

    def set_name(self, address: Address) -> None:
        """Each address of an IPv6 network has a name of its own."""
        body = {"ip": address.ip, "dns_ptr": address.ptr_name}
        self.client.post(f"{_path(address)}/actions/change_dns_ptr", body)


def _path(address: Address) -> str:
    return f"/floating_ips/{quote(address.provider_ref, safe='')}"


def _seen(one: Any, address: Address) -> Seen:
    server = one.get("server")
    names = {named.get("ip"): str(named.get("dns_ptr")) for named in one.get("dns_ptr") or ()}
    blocked = "Hetzner has blocked it" if one.get("blocked") else ""
    return Seen(None if server is None else str(server), ptr_name=names.get(address.ip, ""), warning=blocked)
