"""Addresses that are on their host already, put there by whoever set up the host.

Nothing can be moved: an address is attached to this host when a socket can be bound to it (its bind address, where the
public one is translated on the way). Say `preferred_host` of each address, so that no other host takes it.
"""

from collections.abc import Sequence
from typing import ClassVar

from remails.config import Settings
from remails.ipagent import interface
from remails.ipagent.providers.protocol import ProviderError, Seen
from remails.store.addresses import Address


class Static:
    """The provider `static`."""

    name: ClassVar[str] = "static"
    is_remote: ClassVar[bool] = False
    configures_interface: ClassVar[bool] = False

    def __init__(self, settings: Settings) -> None:
        self._server = settings.ipagent.server_ref

    def look(self, addresses: Sequence[Address]) -> dict[str, Seen]:
        """This host, for each address that is on it."""
        return {address.ip: Seen(None if _trouble(address) else self._server) for address in addresses}

    def attach(self, address: Address) -> Seen:
        """There is nothing to do; raises ProviderError with the reason when the address is not here."""
        if trouble := _trouble(address):
            raise ProviderError(trouble)
        return Seen(self._server)

    def set_name(self, address: Address) -> None:
        """Nobody to tell."""


def _trouble(address: Address) -> str:
    try:
        interface.check(address.source)
    except OSError as error:
        return f"cannot bind {address.source} on this host: {error.strerror}"
    return ""
