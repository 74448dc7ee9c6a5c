"""The wire: aiosmtplib's protocol, with replies read strictly and as many outstanding as were asked for.

aiosmtplib takes the last line's code of a reply whose lines disagree (O25) and drops replies that come before they are waited
for, so it cannot pipeline. Here a reply with two codes is an error, replies are kept in order, and what comes unasked
marks the connection as `stale`: a server that is about to close an idle connection says so with 421 first.
"""

import asyncio
import re
import ssl
import time
from collections import deque
from dataclasses import dataclass

from aiosmtplib import SMTPException, SMTPReadTimeoutError, SMTPResponse, SMTPResponseException, SMTPServerDisconnected
from aiosmtplib.protocol import MAX_RESPONSE_LENGTH, SMTPProtocol

_LONGEST_SHOWN = 2000  # characters of one reply that are kept
_LINE = re.compile(rb"([2-5]\d\d)(?:([ -])([^\n]*))?\r?\n")


@dataclass(frozen=True, slots=True)
class Exchange:
    """A step of a dialogue: the command, its reply word for word, and how long that took since the step before."""

    command: str
    reply: str
    milliseconds: int


class Protocol(SMTPProtocol):
    """One connection. A reply that breaks the rules raises SMTPResponseException with the code -1."""

    def __init__(self) -> None:
        super().__init__()
        self.dialogue: list[Exchange] = []
        """What was said since somebody cleared it."""
        self._asked: deque[str] = deque(["(banner)"])
        self._since = time.monotonic()
        self._awaited = 1
        """Replies asked for and not read yet: the banner, at first."""
        self._is_reading = False
        self.stale = False
        self.ended = asyncio.Event()
        """Set once the connection is closed, on whichever side."""

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.ended.set()

    def data_received(self, data: bytes) -> None:
        if self._awaited == 0:
            self.stale = True
            return
        self._buffer.extend(data)
        waiter = self._response_waiter
        if self._is_reading and waiter is not None and not waiter.done():
            try:
                reply = self._read_response_from_buffer()
            except SMTPResponseException as error:
                self._set_response_exception(waiter, error)
            else:
                if reply is not None:
                    waiter.set_result(reply)

    def _read_response_from_buffer(self) -> SMTPResponse | None:
        """The first whole reply in the buffer (RFC 5321 §4.2.1)."""
        codes, texts, offset = set(), [], 0
        while line_end := self._buffer.find(b"\n", offset) + 1:
            line = _LINE.fullmatch(self._buffer, offset, line_end)
            if line is None:
                shown = bytes(self._buffer[offset : min(line_end, offset + 100)]).decode("ascii", "replace").strip()
                raise SMTPResponseException(-1, f"this is no SMTP reply: {shown}")
            offset = line_end
            codes.add(int(line[1]))
            texts.append((line[3] or b"").strip().decode("utf-8", "surrogateescape"))
            if line[2] != b"-":
                break
        else:
            if len(self._buffer) > MAX_RESPONSE_LENGTH:
                raise SMTPResponseException(-1, "the reply is too long")
            return None
        del self._buffer[:offset]
        if len(codes) > 1:
            listed = ", ".join(str(code) for code in sorted(codes))
            raise SMTPResponseException(
                -1, f"the lines of the reply have different codes ({listed}): {' '.join(texts)}"
            )
        return SMTPResponse(codes.pop(), "\n".join(texts))

    def heard(self, command: str, reply: str) -> None:
        """Note a step of the dialogue that ends now."""
        now = time.monotonic()
        if not (reply.isascii() and reply.isprintable()):
            clean = reply.encode("utf-8", "surrogateescape").decode("utf-8", "replace")  # O25
            reply = "".join(c if c.isprintable() or c == "\n" else " " for c in clean)
        took = round((now - self._since) * 1000)
        self.dialogue.append(Exchange(command[:_LONGEST_SHOWN], reply[:_LONGEST_SHOWN], took))
        self._since = now

    async def execute_command(self, *args: bytes, timeout: float | None = None) -> SMTPResponse:  # noqa: ASYNC109  # aiosmtplib's signature
        """Send a command and read its reply."""
        self._begin(b" ".join(args))
        return await super().execute_command(*args, timeout=timeout)

    async def start_tls(
        self,
        tls_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109  # aiosmtplib's signature
    ) -> SMTPResponse:
        """Put the connection under TLS."""
        self._begin(b"STARTTLS")
        response = await super().start_tls(tls_context, server_hostname, timeout)
        self.heard("(TLS handshake)", "")
        return response

    def _begin(self, *commands: bytes) -> None:
        if not self._asked:
            self._since = time.monotonic()
        self._asked.extend(command.decode("utf-8", "replace") for command in commands)

    def ask(self, data: bytes, replies: int) -> None:
        """Send commands whose replies, so many, are read one by one. Raises SMTPServerDisconnected."""
        self._begin(*(data.splitlines() or [b"(message)"]))
        self._awaited += replies
        self.write(data)

    async def read_response(self, timeout: float | None = None) -> SMTPResponse:  # noqa: ASYNC109  # aiosmtplib's signature
        """The next reply, in the order of the commands."""
        self._awaited = max(self._awaited, 1)
        command = self._asked.popleft() if self._asked else ""
        try:
            # What came early is read even when the connection has been closed behind it.
            reply = self._read_response_from_buffer()
            if reply is None:
                self._is_reading = True
                reply = await self._arrived(timeout)
            self.heard(command, f"{reply.code} {reply.message}".strip())
            return reply
        except SMTPException as error:
            self.heard(command, error.message)
            self.stale = True
            raise
        finally:
            self._is_reading = False
            self._awaited -= 1

    async def _arrived(self, timeout: float | None) -> SMTPResponse:  # noqa: ASYNC109  # as above
        """The reply, once all of it is there: what aiosmtplib does, by a timer and without a second future."""
        waiter = self._response_waiter
        if waiter is None:
            raise SMTPServerDisconnected("Connection lost")
        self._response_pending = True
        timer = self._loop.call_later(timeout, self._too_late, waiter) if timeout is not None else None
        try:
            return await waiter
        finally:
            if timer is not None:
                timer.cancel()
            self._response_pending = False
            self._response_waiter = self._loop.create_future() if self.transport is not None else None

    def _too_late(self, waiter: "asyncio.Future[SMTPResponse]") -> None:
        if not waiter.done():
            waiter.set_exception(SMTPReadTimeoutError("Timed out waiting for server response"))

    async def drain(self) -> None:
        """Wait until the transport takes more. Raises ConnectionError."""
        await self._drain_helper()

    def eof_received(self) -> bool:
        self.stale = True
        return super().eof_received()
