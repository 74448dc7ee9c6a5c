"""Room for the messages that are being received, so that no number of clients can take more memory than there is.

    block, block ... --> Incoming --> in memory while it is small and there is room, else in a temporary file
                            |
                            `-> whole: one piece of bytes; of those that are in files, one at a time

A file has no name and is gone when it is closed. It is written and read in threads: a disk that is slow holds up nobody else.
What there is no room for is read to its end, so that the session stays in step, and refused with a temporary code.
"""

import asyncio
import contextlib
import io
import os
import tempfile
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, TypeVar

from remails.config import Inbound
from remails.errors import ConfigError, Refused
from remails.logs import Log
from remails.submission import no_room

log = Log("remails.inbound")

LARGE = 1024 * 1024
"""A message of more bytes goes to a file."""
_GATHERED = 512 * 1024  # bytes of a large message that go to its file together
_THREADS = 4

T = TypeVar("T")


class Intake:
    """The room of one process.

    Args:
        settings: how much memory and disk there is, and where.
        limit: largest message in bytes.

    Raises:
        ConfigError: there can be no files in that directory. One that is full is another matter, and has 452 for a reply.
    """

    def __init__(self, settings: Inbound, limit: int) -> None:
        if not Path(settings.receive_directory).is_dir() or not os.access(
            settings.receive_directory, os.W_OK | os.X_OK
        ):
            raise ConfigError(
                f"inbound.receive_directory: {settings.receive_directory} is no directory to write files in"
            )
        self.limit = limit
        self.memory, self.disk = settings.receive_memory, settings.receive_disk
        """Bytes that are left."""
        self.directory = settings.receive_directory
        self.turn = asyncio.Lock()
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="intake")

    async def thread(self, fn: Callable[[], T]) -> T:
        """Run what waits for the disk."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, fn)

    def close(self) -> None:
        """End the threads."""
        self._threads.shutdown(wait=False, cancel_futures=True)


class Incoming:
    """One message as it comes in; `close` it in the end, whatever became of it."""

    def __init__(self, intake: Intake) -> None:
        self._intake = intake
        # Not a list: a client chooses how many pieces there are, and each would take more room than what is in it.
        self._kept = io.BytesIO()
        self._in_memory = 0
        self._file: IO[bytes] | None = None
        self._in_file = 0
        self.size = 0
        """Bytes so far, also of a message that is refused."""
        self.refusal: Refused | None = None
        """Why it cannot be taken, as soon as that is known."""

    @property
    def is_in_file(self) -> bool:
        """Whether it is too large for memory, or came when that was scarce."""
        return self._file is not None

    async def add(self, block: bytes) -> None:
        """Keep the next piece, or nothing any more of a message that cannot be taken."""
        self.size += len(block)
        if self.refusal is None and self.size > self._intake.limit:
            self.refuse(too_large(self._intake.limit))
        if self.refusal is not None or not block:
            return
        self._in_memory += self._kept.write(block)
        self._intake.memory -= len(block)
        crowded = self._intake.memory < 0
        if crowded or self._in_memory > (_GATHERED if self._file is not None else LARGE):
            await self._to_file()

    def refuse(self, refusal: Refused) -> None:
        """Take no more of it, and forget what there is."""
        self.refusal = refusal
        self.close()

    @contextlib.asynccontextmanager
    async def whole(self) -> AsyncIterator[bytes]:
        """All of it, once its turn has come; its room is given back in the end. Raises Refused."""
        try:
            if self._file is None:
                yield self._content()
                return
            async with self._intake.turn:
                await self._to_file()
                yield self._content() if self.refusal else await self._intake.thread(self._read)
        finally:
            self.close()

    def _content(self) -> bytes:
        if self.refusal is not None:
            raise self.refusal
        return self._kept.getvalue()

    def close(self) -> None:
        """Give the room back."""
        self._forget_kept()
        if self._file is not None:
            self._file.close()
            self._file = None
        self._intake.disk += self._in_file
        self._in_file = 0

    def _forget_kept(self) -> None:
        self._intake.memory += self._in_memory
        self._kept, self._in_memory = io.BytesIO(), 0

    async def _to_file(self) -> None:
        if self._intake.disk < self._in_memory:
            log.warning("no room for a message, receive_disk is used up", size=self.size)
            self.refuse(no_room())
            return
        self._intake.disk -= self._in_memory
        self._in_file += self._in_memory
        kept = self._kept.getvalue()
        try:
            await self._intake.thread(lambda: self._write(kept))
        except OSError as error:
            log.warning("no room for a message", directory=self._intake.directory, reason=error.strerror)
            self.refuse(no_room())
        else:
            self._forget_kept()

    def _write(self, kept: bytes) -> None:
        if self._file is None:
            self._file = tempfile.TemporaryFile(dir=self._intake.directory, buffering=0)  # noqa: SIM115  # see `close`
        left = memoryview(kept)
        while left:
            left = left[self._file.write(left) :]

    def _read(self) -> bytes:
        assert self._file is not None
        self._file.seek(0)
        return self._file.read()


def too_large(limit: int) -> Refused:
    """What to say to a message of more than `limit` bytes."""
    return Refused(552, "5.3.4", f"Message larger than the limit of {limit} bytes", status=413)
