"""UpCloud, API 1.3: floating addresses, moved by naming the MAC address of the interface that gets them.

Moving is one request on running servers and takes the address from whichever server had it; there is no condition that
could be put on it, which is why leases and not requests decide who may. An ordinary address (an IPv6 one always is) has no
`floating` in the list and stays at its server, a detached one has no `server`. The credential `provider_token` is an API
token, or `user:password` of a sub-account.
"""

import base64
import ipaddress
from collections.abc import Sequence
from typing import Any, ClassVar
from urllib.parse import quote

from remails.config import Settings
from remails.errors import ConfigError
from remails.ipagent import interface
from remails.ipagent.providers.http import Client, Clock, field, rows
from remails.ipagent.providers.protocol import ProviderError, Seen
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
        self._server, self._port = mine.server_ref, mine.port_ref.lower()
        self._interface = interface.Interface(mine.interface)
        authorization = {"Authorization": _authorization(settings.provider_token())}
        self.client = Client(self.name, mine.provider_url or _URL, authorization, mine, clock or Clock())

    def look(self, addresses: Sequence[Address]) -> dict[str, Seen]:
        """One request for all of the account's addresses."""
        mac, wanted = self._mac(), {address.ip for address in addresses}
        listed = rows(self.client.get("/ip_address"), "ip_addresses", "ip_address")
        found = {_canonical(field(one, "address")): self._seen(one, mac) for one in listed}
        return {ip: seen for ip, seen in found.items() if ip in wanted}

    def attach(self, address: Address) -> Seen:
        """Move the address to this server's interface."""
        mac = self._mac()
        answer = self.client.patch(f"/ip_address/{quote(address.ip)}", {"ip_address": {"mac": mac}})
        return self._seen(field(answer, "ip_address"), mac)

    def set_name(self, address: Address) -> None:
        """The reverse name belongs to the address and goes with it."""
        self.client.patch(f"/ip_address/{quote(address.ip)}", {"ip_address": {"ptr_record": address.ptr_name}})

    def _mac(self) -> str:
        """Read each time: a server that was given another interface has another one."""
        try:
            return self._port or self._interface.mac().lower()
        except OSError as error:
            raise ProviderError(f"this server's interface: {error.strerror}", "unavailable") from None

    def _seen(self, one: Any, mac: str) -> Seen:
        server, at, floats = one.get("server") or None, str(one.get("mac") or "").lower(), one.get("floating") == "yes"
        if server == self._server and floats and at != mac:
            server = f"{server} at {at}"
        is_lost_with_server = floats and one.get("release_policy") == "release"
        return Seen(
            owner=server,
            is_movable=floats,
            ptr_name=one.get("ptr_record"),
            warning="its release_policy is release: UpCloud destroys it with its server" if is_lost_with_server else "",
        )


def _authorization(credential: str) -> str:
    if ":" in credential:
        return "Basic " + base64.b64encode(credential.encode()).decode()
    return f"Bearer {credential}"


def _canonical(ip: str) -> str:
    try:
        return ipaddress.ip_address(ip).compressed
    except ValueError:
        return ip
