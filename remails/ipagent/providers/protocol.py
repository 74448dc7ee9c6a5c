"""What the agent asks of a provider.

A provider is made for one server, this one; it is plain and synchronous, and the agent calls it in a thread. Where packets for an address go is the
provider's to say, so its answer, not what was asked of it, decides whether an address is ready.
"""

from typing import ClassVar, Protocol

from remails.store.addresses import Address


class ProviderError(Exception):
    """The provider cannot, will not or does not answer. The text is for the operator: what is wrong and with what."""


class Provider(Protocol):
    """Attaches outbound addresses to this server."""

    name: ClassVar[str]
    """As in the setting `ipagent.provider` and the column `provider` of addresses and hosts."""

    def owner(self, address: Address) -> str | None:
        """The `server_ref` of the server the address is attached to now; None when it is detached.

        Raises:
            ProviderError: the provider did not say.
        """
        ...

    def attach(self, address: Address) -> None:
        """Attach the address to this server, wherever it was; returns when the provider has confirmed it.

        Safe to repeat. There is no `detach`: the next holder's attaching takes an address away, and a late detaching
        could take it from the next holder.

        Raises:
            ProviderError: it is not attached, or nobody knows.
        """
        ...
