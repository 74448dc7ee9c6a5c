"""The mails the development mailbox has kept: `<id>.eml`, the bytes as received, and beside it `<id>.json`, the record.

`keep` writes the mail before the sender is answered; `add` writes the record when the signatures have been checked,
and from then on it is in `records`. Both files come by rename, so that a reader never sees half of one. `open` takes up
what an earlier run has left; a mail without a record is one that was never shown, and goes. Beyond `limit` mails the
oldest go too.
"""

import contextlib
import logging
import secrets
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import msgspec

log = logging.getLogger(__name__)


class Tls(msgspec.Struct, frozen=True):
    """What STARTTLS came to."""

    version: str
    cipher: str


class Signature(msgspec.Struct, frozen=True):
    """What became of one DKIM-Signature field."""

    domain: str
    selector: str
    algorithm: str
    ok: bool
    reason: str


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """One mail, without its bytes."""

    id: str
    received_at: datetime
    peer_ip: str  # the source address we saw
    peer_port: int
    local_ip: str  # the address of ours it was sent to
    helo: str
    tls: Tls | None
    mail_from: str  # "" for the null sender
    rcpt_tos: list[str]
    options: list[str]  # the parameters of MAIL, in upper case: "BODY=8BITMIME"
    reply: str  # to the final dot; "" if the sender was left without one
    size: int  # octets
    subject: str  # these four for reading: decoded and shortened
    header_from: str
    header_to: str
    message_id: str
    dkim: list[Signature] = []


class Archive:
    """A directory of at most `limit` mails, oldest first. Not for several processes at a time."""

    def __init__(self, directory: Path, limit: int = 10_000) -> None:
        self._directory = directory
        self._limit = limit
        self._records: dict[str, Record] = {}

    def open(self) -> None:
        """Make the directory, or read what is in it. Raises OSError."""
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._records = {record.id: record for record in self._read_records()}
        for path in [*self._directory.glob("*.eml"), *self._directory.glob("*.new")]:
            if path.suffix == ".new" or not path.with_suffix(".json").exists():
                path.unlink()
        self._evict()

    @property
    def records(self) -> list[Record]:
        """All records, in the order in which they were added."""
        return list(self._records.values())

    def since(self, mail_id: str) -> list[Record]:
        """What was added after that mail; everything if there is no such mail (any more)."""
        ids = list(self._records)
        return self.records[ids.index(mail_id) + 1 :] if mail_id in self._records else self.records

    def get(self, mail_id: str) -> Record | None:
        """The record of that id."""
        return self._records.get(mail_id)

    def raw(self, mail_id: str) -> bytes:
        """The mail as received, dots un-stuffed. Raises FileNotFoundError."""
        return self._path(mail_id, "eml").read_bytes()

    def keep(self, raw: bytes) -> str:
        """Write a mail; the answer is its new id. Raises OSError. May be called in a thread."""
        mail_id = f"{datetime.now(UTC):%Y%m%dT%H%M%S%f}-{secrets.token_hex(3)}"
        _replace(self._path(mail_id, "eml"), raw)
        return mail_id

    def add(self, record: Record) -> None:
        """Write the record of a kept mail and show it. Raises OSError."""
        _replace(self._path(record.id, "json"), msgspec.json.encode(record))
        self._records[record.id] = record
        self._evict()

    def _path(self, mail_id: str, suffix: str) -> Path:
        return self._directory / f"{mail_id}.{suffix}"

    def _read_records(self) -> Iterator[Record]:
        for path in sorted(self._directory.glob("*.json")):
            try:
                record = msgspec.json.decode(path.read_bytes(), type=Record)
            except msgspec.DecodeError as error:
                log.warning("%s is not a record: %s", path, error)
                continue
            if record.id == path.stem and self._path(record.id, "eml").exists():
                yield record

    def _evict(self) -> None:
        while len(self._records) > self._limit:
            mail_id = next(iter(self._records))
            del self._records[mail_id]
            for suffix in ("json", "eml"):
                with contextlib.suppress(FileNotFoundError):
                    self._path(mail_id, suffix).unlink()


def _replace(path: Path, content: bytes) -> None:
    new = path.with_suffix(path.suffix + ".new")
    new.write_bytes(content)
    new.replace(path)
