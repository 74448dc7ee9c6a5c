"""Addresses that are on their host already, put there by whoever set up the host.

Nothing can be moved: an address is attached to this host when a socket can be bound to it (its bind address, where the
public one is translated on the way). Say `preferred_host` of each address, so that no other host takes it.
"""

from collections.abc import Sequence
from typing import ClassVar

from remails.config import Settings
from remails.ipagent import interface
from remails.ipagent.providers.protocol import ProviderError
from remails.store.addresses import Address


class Static:
    """The provider `static`."""

    name: ClassVar[str] = "static"
    is_remote: ClassVar[bool] = False
    configures_interface: ClassVar[bool] = False

    def __init__(self, settings: Settings) -> None:
        self._server_ref = settings.ipagent.server_ref

    def owners(self, addresses: Sequence[Address]) -> dict[str, str | None]:
        """This host, for each address that is on it."""
        return {address.ip: self._owner(address) for address in addresses}

    def _owner(self, address: Address) -> str | None:
        try:
            interface.check(address.source)
        except OSError:
            return None
        return self._server_ref

    def attach(self, address: Address) -> str:
        """Raise ProviderError with the reason when the address is not here; there is nothing else to do."""
        try:
            interface.check(address.source)
        except OSError as error:
            raise ProviderError(f"cannot bind {address.source} on this host: {error.strerror}") from None
        return self._server_ref
