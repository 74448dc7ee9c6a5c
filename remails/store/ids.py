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
    """A new UUIDv7: 48 bits of Unix time in milliseconds, 12 of the fraction of one (RFC 9562 §6.2, method 3), 62 random ones.

    So what one process stores sorts in its order, also within a millisecond.
    """
    milliseconds, rest = divmod(time.time_ns(), 1_000_000)
    fraction = (rest << 12) // 1_000_000
    value = (milliseconds << 80) | (0x7 << 76) | (fraction << 64) | int.from_bytes(os.urandom(8), "big")
    return UUID(int=(value & ~(0x3 << 62)) | (0x2 << 62))
