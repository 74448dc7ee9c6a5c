#!/usr/bin/env python3
"""Hands in mail over authenticated TLS sessions as fast as it is taken, or at a rate, and says when each was taken.

    python bench/generator.py <order.json >result.json

It is a process of its own, so that it takes no turns from anybody. `Order` and `Result` are what goes in and out. A session sends
one command at a time, as most programs do, and has one mail under way. With a rate the times at which mails are handed in are drawn
beforehand (a Poisson process) and a mail's time counts from then on, whether or not a session was free.
"""

import asyncio
import itertools
import random
import ssl
import sys
import time
from base64 import b64encode
from collections import deque
from typing import cast

import msgspec
import uvloop

_PATIENCE = 60.0  # seconds for the sessions to end after the time is up


class Login(msgspec.Struct, frozen=True):
    """As whom, and from which address."""

    username: str
    password: str
    mail_from: str


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What to do."""

    port: int
    """On 127.0.0.1, TLS from the first octet."""
    logins: list[Login]
    """Sessions take them in turn."""
    domain: str = "example.net"
    """Of the recipients; with `domains` above 1 it is `d<number>.<domain>`, in turn."""
    domains: int = 1
    prefix: str
    """The subject of mail number n is `<prefix><n>`."""
    size: int
    sessions: int
    seconds: float
    rate: float = 0.0
    """Mails a second; 0: as fast as they are taken."""
    once: bool = False
    """Whether each mail gets a connection of its own, with handshake and login."""


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """What came of it; times are those of the monotonic clock."""

    begun: list[float]
    """When each mail was handed in."""
    taken: list[float]
    """When it was taken by a 250; 0: never."""
    refused: list[str]
    """The replies that were not as they should be."""
    cpu: float
    """Seconds of processor time that the generator took while it sent."""


class _Session(asyncio.Protocol):
    """One client: reads replies, and gives each to whoever waits for it."""

    def __init__(self, login: Login) -> None:
        self.login = login
        self._buffer = b""
        self._reply: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if not data.endswith(b"\n"):
            return
        last = self._buffer[self._buffer.rfind(b"\n", 0, -1) + 1 :]
        if last[3:4] != b"-" and not self._reply.done():
            self._reply.set_result(self._buffer)
            self._buffer = b""

    def connection_lost(self, error: Exception | None) -> None:
        if not self._reply.done():
            self._reply.set_exception(ConnectionError("connection lost"))
            self._reply.exception()  # nobody need be waiting for it

    async def reply(self, expected: bytes) -> None:
        """The next reply. Raises ValueError if it is another one."""
        reply = await self._reply
        self._reply = asyncio.get_running_loop().create_future()
        if not reply.startswith(expected):
            raise ValueError(reply.decode("ascii", "replace").strip())

    async def command(self, line: bytes, expected: bytes = b"250") -> None:
        """Send this and wait for the reply."""
        self.transport.write(line)
        await self.reply(expected)


class Generator:
    """Carries out one order."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._context.check_hostname, self._context.verify_mode = False, ssl.CERT_NONE
        self._logins = itertools.cycle(order.logins)
        self._begun: list[float] = []
        self._taken: list[float] = []
        self._refused: list[str] = []
        self._due: deque[float] = deque()
        self._waiting = asyncio.Semaphore(0)
        self._until = 0.0
        self._rest = self._text()

    def _text(self) -> bytes:
        """All but the subject: words that no compression takes for one byte."""
        order, words = self._order, random.Random(1)
        header = (
            f"\r\nTo: Customer <customer@{order.domain}>\r\n"
            "Date: Wed, 25 Nov 2026 12:00:00 +0000\r\nMIME-Version: 1.0\r\n"
            "Content-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 7bit\r\n\r\n"
        ).encode()
        lines: list[bytes] = []
        while sum(map(len, lines)) < order.size - len(header) - 120:
            lines.append(b" ".join(b"%08x" % words.getrandbits(32) for _ in range(8)) + b"\r\n")
        return header + b"".join(lines) + b".\r\n"

    async def run(self) -> Result:
        """Send until the time is up."""
        order = self._order
        try:
            sessions = [None if order.once else await self._open() for _ in range(order.sessions)]
        except (OSError, ValueError) as error:
            return Result(begun=[], taken=[], refused=[str(error)], cpu=0.0)
        started, cpu = time.monotonic(), time.process_time()
        self._until = started + order.seconds
        tasks = [asyncio.create_task(self._work(session)) for session in sessions]
        if order.rate:
            await self._schedule(started)
        _, late = await asyncio.wait(tasks, timeout=order.seconds + _PATIENCE)
        for task in late:
            self._refused.append("no answer in time")
            task.cancel()
        return Result(begun=self._begun, taken=self._taken, refused=self._refused, cpu=time.process_time() - cpu)

    async def _schedule(self, started: float) -> None:
        draw, at = random.Random(2), started
        while (at := at + draw.expovariate(self._order.rate)) < self._until:
            if (wait := at - time.monotonic()) > 0.0005:
                await asyncio.sleep(wait)
            self._due.append(at)
            self._waiting.release()
        for _ in range(self._order.sessions):
            self._waiting.release()  # with nothing due: the end

    async def _next(self) -> float | None:
        """When the next mail is to be handed in, once that time has come; None: no more."""
        if not self._order.rate:
            now = time.monotonic()
            return now if now < self._until else None
        await self._waiting.acquire()
        return self._due.popleft() if self._due else None

    async def _work(self, session: "_Session | None") -> None:
        while (begun := await self._next()) is not None:
            number = len(self._begun)
            self._begun.append(begun)
            self._taken.append(0.0)
            try:
                used = session or await self._open()
                await self._send(used, number)
                self._taken[number] = time.monotonic()
                if session is None:
                    await used.command(b"QUIT\r\n", b"221")
                    used.transport.close()
            except (OSError, ValueError) as error:
                self._refused.append(str(error))
                return
        if session is not None:
            session.transport.close()

    async def _open(self) -> _Session:
        order = self._order
        login = next(self._logins)
        loop = asyncio.get_running_loop()
        _, session = await loop.create_connection(lambda: _Session(login), "127.0.0.1", order.port, ssl=self._context)
        await session.reply(b"220")
        await session.command(b"EHLO client.example\r\n")
        token = b64encode(f"\0{login.username}\0{login.password}".encode())
        await session.command(b"AUTH PLAIN " + token + b"\r\n", b"235")
        return session

    async def _send(self, session: _Session, number: int) -> None:
        order = self._order
        domain = order.domain if order.domains == 1 else f"d{number % order.domains}.{order.domain}"
        await session.command(f"MAIL FROM:<{session.login.mail_from}>\r\n".encode())
        await session.command(f"RCPT TO:<r{number}@{domain}>\r\n".encode())
        await session.command(b"DATA\r\n", b"354")
        name = f"{order.prefix}{number}"
        first = f"Subject: {name}\r\nMessage-ID: <{name}@client.example>\r\nFrom: Shop <{session.login.mail_from}>"
        await session.command(first.encode() + self._rest)


def main() -> None:
    """Read an order, carry it out, write the result."""
    order = msgspec.json.decode(sys.stdin.buffer.read(), type=Order)

    async def run() -> Result:
        return await Generator(order).run()

    sys.stdout.buffer.write(msgspec.json.encode(uvloop.run(run())))


if __name__ == "__main__":
    main()
