"""The notes, and how each one's topic lets ZeroMQ's prefix filter answer "is it mine?".

A topic ends in `/`, so that `ready/198.51.100.7/` is not a prefix of `ready/198.51.100.70/`. Notes carry ids only; what
they mean is looked up in the database.
"""

from typing import ClassVar
from uuid import UUID

import msgspec
from msgspec import Struct


class Ready(Struct, frozen=True, array_like=True):
    """Mail waits to leave from the outbound address `source`."""

    word: ClassVar[str] = "ready"

    source: str
    message_ids: list[UUID]
    """What has just come; none: something is due that was noted before, or never."""

    @property
    def topic(self) -> str:
        """What the sending host that holds this address subscribes to."""
        return f"ready/{self.source}/"


class Attempt(Struct, frozen=True, array_like=True):
    """A delivery was attempted and has this status now."""

    message_id: UUID
    delivery_id: int
    status: str


class Attempted(Struct, frozen=True, array_like=True):
    """Deliveries of an organization were attempted: all whose results were recorded together."""

    word: ClassVar[str] = "attempted"

    organization_id: UUID
    attempts: list[Attempt]

    @property
    def topic(self) -> str:
        """Whoever follows an organization."""
        return f"attempted/{self.organization_id}/"


class AddressesChanged(Struct, frozen=True, array_like=True):
    """A sending host gained or lost outbound addresses."""

    word: ClassVar[str] = "addresses"

    host: str

    @property
    def topic(self) -> str:
        """The host's own outbound service listens."""
        return f"addresses/{self.host}/"


class Gap(Struct, frozen=True):
    """Not a note: says that at least one note under `topic` was lost, so the database must be asked."""

    topic: str


Event = Ready | Attempted | AddressesChanged

_TYPES: dict[str, type[Event]] = {kind.word: kind for kind in (Ready, Attempted, AddressesChanged)}


def encode(event: Event) -> bytes:
    """The payload of a note."""
    return msgspec.msgpack.encode(event)


def decode(topic: str, payload: bytes) -> Event:
    """The note that was said under `topic`. Raises ValueError for what is not one of ours."""
    kind = _TYPES.get(topic.partition("/")[0])
    if kind is None:
        raise ValueError(f"unknown topic {topic!r}")
    return msgspec.msgpack.decode(payload, type=kind)
