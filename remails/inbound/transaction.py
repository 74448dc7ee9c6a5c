"""What a session knows: who the client is, and what it wants to send."""

import asyncio

from aiosmtpd import smtp

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
