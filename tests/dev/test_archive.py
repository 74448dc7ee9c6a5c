"""What the mailbox keeps on disk."""

import datetime
from pathlib import Path

import pytest

from remails.dev.archive import Archive, Record, Signature, Tls


def record(mail_id: str) -> Record:
    return Record(
        id=mail_id,
        received_at=datetime.datetime(2026, 11, 25, 3, 30, 0, 5, tzinfo=datetime.UTC),
        peer_ip="127.0.0.5",
        peer_port=4711,
        local_ip="127.0.0.1",
        helo="client.example",
        tls=Tls("TLSv1.3", "TLS_AES_256_GCM_SHA384"),
        mail_from="",
        rcpt_tos=["bü@example.net"],
        options=["SMTPUTF8"],
        reply="250 2.0.0 Ok",
        size=3,
        subject="é",
        header_from="",
        header_to="",
        message_id="",
        dkim=[Signature("example.com", "s1", "rsa-sha256", ok=False, reason="body hash differs")],
    )


def opened(directory: Path, limit: int = 10) -> Archive:
    archive = Archive(directory, limit)
    archive.open()
    return archive


def test_records_and_bytes_survive(tmp_path: Path) -> None:
    archive = opened(tmp_path)
    mail_id = archive.keep(b"a\0\xff")
    assert archive.records == []
    archive.add(record(mail_id))
    again = opened(tmp_path)
    assert again.records == [record(mail_id)] == archive.records
    assert again.get(mail_id) == record(mail_id)
    assert again.raw(mail_id) == b"a\0\xff"
    assert again.get("other") is None


def test_ids_are_unique_and_in_order(tmp_path: Path) -> None:
    archive = opened(tmp_path)
    ids = [archive.keep(b"") for _ in range(100)]
    assert ids == sorted(set(ids))


def test_since(tmp_path: Path) -> None:
    archive = opened(tmp_path)
    ids = [archive.keep(b"") for _ in range(3)]
    for mail_id in ids:
        archive.add(record(mail_id))
    assert [r.id for r in archive.since(ids[0])] == ids[1:]
    assert archive.since(ids[2]) == []
    assert [r.id for r in archive.since("gone")] == ids


def test_the_oldest_go(tmp_path: Path) -> None:
    archive = opened(tmp_path)
    ids = [archive.keep(b"") for _ in range(4)]
    for mail_id in ids:
        archive.add(record(mail_id))
    smaller = opened(tmp_path, limit=2)
    assert [r.id for r in smaller.records] == ids[2:]
    assert sorted(path.stem for path in tmp_path.glob("*.eml")) == ids[2:]
    with pytest.raises(FileNotFoundError):
        smaller.raw(ids[0])


def test_remains_of_a_crash_are_cleared_away(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    archive = opened(tmp_path)
    kept = archive.keep(b"x")
    archive.add(record(kept))
    archive.keep(b"never shown")
    (tmp_path / "half.eml.new").write_bytes(b"ha")
    (tmp_path / "strange.json").write_bytes(b"{}")
    assert [r.id for r in opened(tmp_path).records] == [kept]
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{kept}.eml", f"{kept}.json", "strange.json"]
    assert "strange.json is not a record" in caplog.text
