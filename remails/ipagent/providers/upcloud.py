"""UpCloud, API 1.3: floating addresses, moved by naming the MAC address of the interface that gets them.

Moving is one request on running servers and takes the address from whichever server had it; there is no condition that
could be put on it, which is why leases and not requests decide who may. An ordinary address has no `floating` in the list,
a detached one no `server`. The credential `provider_token` is an API token, or `user:password` of a sub-account.
"""

import base64
import ipaddress
from collections.abc import Sequence
from typing import Any, ClassVar
from urllib.parse import quote

from remails.config import Settings
from remails.errors import ConfigError
from remails.ipagent import interface
from remails.ipagent.providers.http import Client, Clock, field
from remails.store.addresses import Address

_URL = "https://api.upcloud.com/1.3"


class UpCloud:
    """The provider `upcloud`."""

    name: ClassVar[str] = "upcloud"
    is_remote: ClassVar[bool] = True
    configures_interface: ClassVar[bool] = True

    def __init__(self, settings: Settings, clock: Clock | None = None) -> None:
        mine = settings.ipagent
        if not mine.server_ref:
            raise ConfigError("ipagent.server_ref: the UUID of this server at UpCloud is needed")
        self._server = mine.server_ref
        self._mac = (mine.port_ref or interface.Interface(mine.interface).mac()).lower()
        self.client = Client(
            self.name,
            mine.provider_url or _URL,
            {"Authorization": _authorization(settings.provider_token())},
            mine,
            clock or Clock(),
        )

    def owners(self, addresses: Sequence[Address]) -> dict[str, str | None]:
        """One request for all of the account's addresses. Raises ProviderError."""
        listed = field(self.client.get("/ip_address"), "ip_addresses", "ip_address")
        wanted = {address.ip for address in addresses}
        found = {_canonical(field(one, "address")): self._owner(one) for one in listed}
        return {ip: owner for ip, owner in found.items() if ip in wanted}

    def attach(self, address: Address) -> str | None:
        """Move the address to this server's interface. Raises ProviderError."""
        answer = self.client.patch(f"/ip_address/{quote(address.ip)}", {"ip_address": {"mac": self._mac}})
        return self._owner(field(answer, "ip_address"))

    def _owner(self, one: Any) -> str | None:
        server, mac = one.get("server"), str(one.get("mac") or "").lower()
        if server == self._server and mac != self._mac:
            return f"{server} at {mac}"
        return server or None


def _authorization(credential: str) -> str:
    if ":" in credential:
        return "Basic " + base64.b64encode(credential.encode()).decode()
    return f"Bearer {credential}"


def _canonical(ip: str) -> str:
    try:
        return ipaddress.ip_address(ip).compressed
    except ValueError:
        return ip
