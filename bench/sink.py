"""A bare SMTP server that accepts everything and keeps counts and times, in a process of its own.

It answers as fast as Python can, or `delay` seconds later for each write of the client, which stands for a round trip. With
`limit` it lets in only so many connections at a time and sends the others away with 421, as large providers do.
"""

import asyncio
import multiprocessing
import re
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any, cast

import uvloop

_OFFERS = b"250-sink\r\n250-8BITMIME\r\n250-SIZE 50000000\r\n250 PIPELINING\r\n"
_SAMPLES = 5
_ID = re.compile(rb"(?im)^Subject: (\S+)")


class _Client(asyncio.Protocol):
    def __init__(self, sink: "_Sink") -> None:
        self._sink, self._buffer, self._in_data, self._recipients = sink, b"", False, 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance
        self._sink.connections += 1
        self._sink.open += 1
        if self._sink.limit() and self._sink.open > self._sink.limit():
            self._sink.refused += 1
            self._later(b"421 4.7.0 too many connections\r\n", close=True)
        else:
            self._later(b"220 sink ESMTP\r\n")

    def connection_lost(self, error: Exception | None) -> None:
        self._sink.open -= 1

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        replies = b""
        while True:
            if self._in_data:
                body, found, rest = self._buffer.partition(b"\r\n.\r\n")
                if not found:
                    break
                self._buffer, self._in_data = rest, False
                self._sink.take(body, self._recipients)
                replies += b"250 2.0.0 Ok\r\n"
                continue
            line, found, rest = self._buffer.partition(b"\r\n")
            if not found:
                break
            self._buffer = rest
            replies += self._answer(line[:4].upper())
        if replies:
            self._later(replies)

    def _answer(self, verb: bytes) -> bytes:
        if verb == b"EHLO":
            return _OFFERS
        if verb == b"DATA":
            self._in_data = True
            return b"354 go on\r\n"
        if verb == b"MAIL":
            self._recipients = 0
        if verb == b"RCPT":
            self._recipients += 1
        return b"221 2.0.0 Bye\r\n" if verb == b"QUIT" else b"250 2.0.0 Ok\r\n"

    def _later(self, data: bytes, *, close: bool = False) -> None:
        def send() -> None:
            self._transport.write(data)
            if close:
                self._transport.close()

        if self._sink.delay:
            asyncio.get_running_loop().call_later(self._sink.delay, send)
        else:
            send()


class _Sink:
    def __init__(self, delay: float, limits: list[tuple[float, int]]) -> None:
        self.delay, self._limits = delay, limits
        self.connections = self.refused = self.open = 0
        self.mails: Counter[str] = Counter()
        self.times: dict[str, float] = {}
        self.unsigned = 0
        self.samples: list[bytes] = []
        self.started = 0.0

    def take(self, body: bytes, recipients: int) -> None:
        """Note a mail that came."""
        header = body[: body.find(b"\r\n\r\n")]
        subject = _ID.search(header)
        name = subject[1].decode() if subject else "?"
        self.mails[name] += recipients
        self.times[name] = time.monotonic()
        self.unsigned += b"\nDKIM-Signature:" not in b"\n" + header
        if len(self.samples) < _SAMPLES:
            self.samples.append(body.replace(b"\r\n..", b"\r\n.") + b"\r\n")

    def limit(self) -> int:
        """The limit that holds now: the last one whose time has come."""
        passed = asyncio.get_running_loop().time() - self.started
        return next((limit for at, limit in reversed(self._limits) if at <= passed), 0)

    async def serve(self, ips: list[str], port: int, pipe: Connection) -> None:
        loop = asyncio.get_running_loop()
        self.started = loop.time()
        server = await loop.create_server(lambda: _Client(self), ips, port, backlog=1000)
        pipe.send("ready")
        while True:
            await loop.run_in_executor(None, pipe.poll, None)
            match pipe.recv():
                case "end":
                    break
                case "begin":
                    self.started = loop.time()
                    continue
                case "forget":
                    self.connections = self.refused = self.unsigned = 0
                    self.mails, self.times, self.samples = Counter(), {}, []
                    continue
                case "total":
                    pipe.send(sum(self.mails.values()))
                    continue
            counted = ("connections", "refused", "open", "mails", "times", "unsigned", "samples")
            pipe.send({name: getattr(self, name) for name in counted} | {"cpu": time.process_time()})
        server.close()


def _main(ips: list[str], port: int, delay: float, limits: list[tuple[float, int]], pipe: Connection) -> None:
    uvloop.run(_Sink(delay, limits).serve(ips, port, pipe))


class Sink:
    """The handle of a sink that runs."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe

    def forget(self) -> None:
        """Count from nothing again."""
        self._pipe.send("forget")

    def total(self) -> int:
        """How many have come, for each recipient."""
        self._pipe.send("total")
        total: int = self._pipe.recv()
        return total

    def begin(self) -> None:
        """Let the time of its limits begin now."""
        self._pipe.send("begin")

    def counts(self) -> dict[str, Any]:
        """`connections`, `refused`, `open`; `mails`: how many copies of each subject came, `times`: when the last did (monotonic
        clock); `unsigned`: how many had no DKIM signature, `samples`: the first few; `cpu`: seconds that the sink itself took."""
        self._pipe.send("counts")
        counts: dict[str, Any] = self._pipe.recv()
        return counts


@contextmanager
def running(
    ip: str | list[str], port: int, *, delay: float = 0.0, limits: list[tuple[float, int]] | None = None
) -> Iterator[Sink]:
    """A sink on one address or several, until the block ends. `limits`: from so many seconds on, so many connections at a time (0: any)."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(
        target=_main, args=([ip] if isinstance(ip, str) else ip, port, delay, limits or [], theirs)
    )
    process.start()
    ours.recv()
    try:
        yield Sink(ours)
    finally:
        ours.send("end")
        process.join(10)
        process.kill()
