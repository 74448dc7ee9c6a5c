"""The ids of stored things: a type each, so that a swap does not pass the type checker.

New ids are UUIDv7 (RFC 9562 §5.7): they sort by time, so an index grows at its end and a list pages by id.
"""

import os
import time
from typing import NewType
from uuid import UUID

OrganizationId = NewType("OrganizationId", UUID)
UserId = NewType("UserId", UUID)
ProjectId = NewType("ProjectId", UUID)
DomainId = NewType("DomainId", UUID)
DkimKeyId = NewType("DkimKeyId", UUID)
SmtpCredentialId = NewType("SmtpCredentialId", UUID)
ApiKeyId = NewType("ApiKeyId", UUID)
MessageId = NewType("MessageId", UUID)
DeliveryId = NewType("DeliveryId", int)
PoolId = NewType("PoolId", UUID)
HostId = NewType("HostId", UUID)


def new() -> UUID:
    """A new UUIDv7: 48 bits of Unix time in milliseconds, then random bits."""
    milliseconds = time.time_ns() // 1_000_000
    value = (milliseconds << 80) | int.from_bytes(os.urandom(10), "big")
    value = (value & ~(0xF << 76)) | (0x7 << 76)
    return UUID(int=(value & ~(0x3 << 62)) | (0x2 << 62))
