"""A DNS server with fixed answers, in a process of its own."""

import asyncio
import multiprocessing
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.connection import Connection

import uvloop

from remails.dev.dns import Server, StaticZone

TTL = 300  # seconds, as is usual for an MX


async def _serve(port: int, exchanges: Mapping[str, str], pipe: Connection) -> None:
    records: dict[tuple[str, str], list[str]] = {}
    for number, (domain, ip) in enumerate(exchanges.items()):
        records[domain, "MX"] = [f"10 mx{number}.exchange.example."]
        records[f"mx{number}.exchange.example", "A"] = [ip]
    server = Server(StaticZone(records), port=port, ttl=TTL)
    await server.start()
    pipe.send("ready")
    await asyncio.get_running_loop().run_in_executor(None, pipe.recv)
    await server.close()


def _main(port: int, exchanges: Mapping[str, str], pipe: Connection) -> None:
    uvloop.run(_serve(port, exchanges, pipe))


@contextmanager
def running(port: int, exchanges: Mapping[str, str]) -> Iterator[None]:
    """The server, until the block ends. `exchanges`: domain (or `*.domain`) to the address of its one MX host."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_main, args=(port, exchanges, theirs))
    process.start()
    ours.recv()
    try:
        yield
    finally:
        ours.send("end")
        process.join(10)
        process.kill()
