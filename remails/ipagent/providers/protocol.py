"""What the agent asks of a provider.

A provider is made for one server, this one; it is plain and synchronous, and the agent calls it in a thread. Where packets for
an address go is the provider's to say, so its answer, not what was asked of it, decides whether an address is ready.

No provider has a way to detach or to delete an address: the next holder's attaching takes it away, and a late detaching
could take it from the next holder.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

from remails.store.addresses import Address

Kind = Literal["denied", "forbidden", "not_found", "conflict", "limited", "unavailable", "refused"]
"""Why a provider did not do it, as far as it makes a difference to the agent:

denied       our token is not accepted (401)
forbidden    it is not enough for this (403)
not_found    it knows no such address (404)
conflict     not on this server or not now, another server may be luckier (409)
limited      not now, and nothing was done: too many requests (429, or by our own count)
unavailable  not answered, so nobody knows whether it was done (5xx, time-outs, damaged answers)
refused      anything else; asking again changes nothing
"""


class ProviderError(Exception):
    """The provider cannot, will not or does not answer. The text is for the operator: what is wrong and with what."""

    def __init__(self, text: str, kind: Kind = "refused") -> None:
        super().__init__(text)
        self.kind: Kind = kind


@dataclass(frozen=True, slots=True)
class Seen:
    """What a provider says of an address.

    owner       `server_ref` of the server that has it; None: none has
    is_movable  whether it can be attached to another server
    ptr_name    its reverse name, where that is the provider's to say
    source      what to bind for it, where the provider translates it to an address of the server
    warning     what an operator should know
    """

    owner: str | None
    is_movable: bool = True
    ptr_name: str | None = None
    source: str | None = None
    warning: str = ""


class Provider(Protocol):
    """Attaches outbound addresses to this server. Each method raises ProviderError."""

    name: ClassVar[str]
    """As in the setting `ipagent.provider` and the column `provider` of addresses and hosts."""

    is_remote: ClassVar[bool]
    """Whether it is asked over a network: asking costs something, and its answers may be old."""

    configures_interface: ClassVar[bool]
    """Whether an address, once attached, has to be put on the network interface."""

    def look(self, addresses: Sequence[Address]) -> dict[str, Seen]:
        """How things are now, by `ip`. An address that is not in the answer is none of the provider's."""
        ...

    def attach(self, address: Address) -> Seen:
        """Attach the address to this server, wherever it was; returns how it is then, as the provider confirmed it.

        Safe to repeat. After `unavailable` nobody knows whether it was done.
        """
        ...

    def set_name(self, address: Address) -> None:
        """Publish `ptr_name` as the reverse name; only for an address with a `ptr_name` in what was seen."""
        ...
