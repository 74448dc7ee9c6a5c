"""What a session knows: who the client is, and what it wants to send."""

import asyncio

from aiosmtpd import smtp

from remails.inbound.data import Text
from remails.inbound.intake import Incoming
from remails.mail import dsn
from remails.mail.address import Address
from remails.submission import Sender


class Client(smtp.Session):
    """The client; `host_name` is what it said in EHLO, `ssl` the `version` and `cipher` of TLS, or None."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self.address = "unknown"
        self.sender: Sender | None = None
        self.username: str | None = None
        self.failed_logins = 0


class Envelope(smtp.Envelope):
    """A mail transaction (RFC 5321 §3.3); it has begun when there is a reverse-path."""

    def __init__(self) -> None:
        super().__init__()
        self.reverse_path: Address | None = None
        self.forward_paths: list[Address] = []
        self.suppresses = False
        """Whether the sender's organization suppresses any recipient."""
        self.asked = dsn.NOTHING
        self.asked_of: dict[Address, dsn.AskedOf] = {}
        self.incoming: Incoming | None = None
        """The message, while it comes in."""
        self.chunks: Text | None = None
        """What makes a message out of chunks; there have been some when it is there."""
        self.is_spoilt = False
        """Whether a chunk was refused, so that the others are too (RFC 3030 §2)."""
