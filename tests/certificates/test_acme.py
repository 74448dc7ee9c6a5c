"""The relay's certificate is issued and renewed by a real ACME server; what fails leaves the old one and is told."""

import asyncio
import http.server
import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from certificates import pebble
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from remails import metrics
from remails.config import Settings
from remails.db import Database
from remails.dev import dns
from remails.periodic import certificates
from remails.store import audit
from remails.store import certificates as store
from remails.store.certificates import RELAY, Row
from remails.vault import Vault

pytestmark = pytest.mark.needs("pebble")


def turn(db: Database, settings: Settings) -> Row | None:
    """One turn of the periodic task; the certificate after it."""
    asyncio.run(certificates.run(db, settings))
    found = db.run(store.list_, RELAY)
    return found[0] if found else None


def again(db: Database, settings: Settings) -> Row:
    """The same, as soon as an operator asks for it."""
    db.run(store.want, RELAY)
    row = turn(db, settings)
    assert row is not None
    return row


def changed(settings: Settings, **values: Any) -> Settings:
    return msgspec.structs.replace(settings, certificates=msgspec.structs.replace(settings.certificates, **values))


def shown(name: str) -> float:
    ((value,),) = [[s.value for s in m.samples] for m in _gauge(name)]
    return float(value)


def _gauge(name: str) -> list[Any]:
    metric = {
        "not_after": metrics.CERTIFICATE_NOT_AFTER,
        "failed": metrics.CERTIFICATE_RENEWAL_FAILED,
    }[name]
    return list(metric._made.collect())


def test_a_certificate_is_issued_where_any_api_host_answers_the_challenge(
    settings: Settings, api: str, acme: pebble.Pebble, db: Database, vault: Vault
) -> None:
    row = turn(db, settings)
    assert row is not None and row.failure == ""
    assert (row.source, list(row.names), row.failures) == ("acme", ["relay.example"], 0)
    made = db.run(store.opened, vault)[RELAY]
    assert isinstance(made.key, ec.EllipticCurvePrivateKey) and made.key.curve.name == "secp256r1"
    assert len(made.chain) == 2  # with the issuer's, which its own root has signed
    root = x509.load_pem_x509_certificate(acme.root().encode())
    made.chain[1].verify_directly_issued_by(root)
    assert shown("not_after") == row.not_after.timestamp() if row.not_after else False
    assert shown("failed") == 0
    entry, *_ = db.run(audit.list_, None)
    assert (entry.action, entry.target_type, entry.details["serial"]) == ("issued", "certificate", made.serial)
    # Nothing of it lies open in the database, and no challenge is left.
    with db.transaction() as conn:
        assert conn.execute("SELECT count(*) FROM acme_challenges").fetchone() == (0,)
        (sealed,) = conn.execute("SELECT private_key FROM certificates").fetchone() or (b"",)
        assert made.key_der not in sealed

    # It is not renewed before it is time; then by the same account, with another key.
    assert turn(db, settings) == row
    with db.transaction() as conn:
        account = conn.execute("SELECT url FROM acme_accounts").fetchall()
        conn.execute(
            "UPDATE certificates SET not_before = now() - interval '65 days', not_after = now() + interval '25 days'"
        )
    renewed = turn(db, settings)
    assert renewed is not None and renewed.serial != made.serial
    assert db.run(store.opened, vault)[RELAY].key_der != made.key_der
    with db.transaction() as conn:
        assert conn.execute("SELECT url FROM acme_accounts").fetchall() == account

    # Other names in the settings are another certificate; here one by RSA.
    several = changed(settings, names=("relay.example", "More.example"), key_type="rsa")
    row = turn(db, several)
    assert row is not None and set(row.names) == {"relay.example", "more.example"}
    key = db.run(store.opened, vault)[RELAY].key
    assert isinstance(key, rsa.RSAPrivateKey) and key.key_size == 2048

    # An operator's wish: a new one at once, and the old one revoked.
    with db.transaction() as conn:
        store.want(conn, RELAY, revoke=True)
    assert (after := turn(db, several)) is not None and after.serial != row.serial and after.wanted_at is None
    entries = [entry for entry in db.run(audit.list_, None) if entry.action == "revoked"]
    assert [entry.details for entry in entries] == [{"serial": row.serial}]


def test_a_name_that_leads_elsewhere_gets_none_and_the_old_one_stays(
    settings: Settings, api: str, db: Database, zone: dns.StaticZone, vault: Vault
) -> None:
    first = turn(db, settings)
    assert first is not None and first.serial
    elsewhere = changed(settings, names=("relay.example", "elsewhere.example"))
    zone["elsewhere.example", "A"] = ["127.0.0.99"]
    row = turn(db, elsewhere)
    assert row is not None and (row.serial, row.failures) == (first.serial, 1)
    assert "elsewhere.example" in row.failure and "could not see that the name is ours" in row.failure
    assert shown("failed") == 1
    assert db.run(store.opened, vault)[RELAY].serial == first.serial
    # The next attempt is not at once, and each waits longer.
    assert timedelta(minutes=1) < row.attempt_at - datetime.now(UTC) <= timedelta(minutes=2)
    assert turn(db, elsewhere) == row
    second = again(db, elsewhere)
    assert second.failures == 2 and second.attempt_at - datetime.now(UTC) > timedelta(minutes=3)
    # Put right, it is as if nothing had been.
    zone["elsewhere.example", "A"] = ["127.0.0.1"]
    mended = again(db, elsewhere)
    assert (mended.failures, mended.failure) == (0, "") and mended.serial != first.serial
    assert shown("failed") == 0


def test_an_authority_that_is_down_or_not_believed_is_told(settings: Settings, db: Database) -> None:
    row = turn(db, changed(settings, directory="https://127.0.0.1:9/dir"))
    assert row is not None and row.serial is None and "cannot be reached" in row.failure and "refused" in row.failure
    row = again(db, changed(settings, ca_file=""))
    assert "own certificate is not accepted" in row.failure and row.failures == 2
    row = again(db, changed(settings, directory=settings.certificates.directory.replace("/dir", "/nothing")))
    assert row.failures == 3 and row.failure


class _Limited(http.server.BaseHTTPRequestHandler):
    """An ACME server that has enough of us."""

    def do_GET(self) -> None:
        base = f"http://{self.headers['Host']}"
        words = {name: f"{base}/{name}" for name in ("newNonce", "newAccount", "newOrder", "revokeCert", "keyChange")}
        self._answer(200, "application/json", words)

    def do_HEAD(self) -> None:
        self._answer(200, "application/json", None)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        problem = {"type": "urn:ietf:params:acme:error:rateLimited", "detail": "too many new orders", "status": 429}
        self._answer(429, "application/problem+json", problem, ("Retry-After", "40000"))

    def _answer(self, status: int, kind: str, body: object, *more: tuple[str, str]) -> None:
        self.send_response(status)
        content = json.dumps(body).encode() if body is not None else b""
        for name, value in (
            ("Replay-Nonce", "bm9uY2U"),
            ("Content-Type", kind),
            ("Content-Length", str(len(content))),
            *more,
        ):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def limited() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Limited)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_rate_limit_is_kept_to(settings: Settings, db: Database, limited: str) -> None:
    row = turn(db, changed(settings, directory=limited))
    assert row is not None and "rateLimited" in row.failure and "too many new orders" in row.failure
    assert timedelta(seconds=39_000) < row.attempt_at - datetime.now(UTC) <= timedelta(seconds=40_000)


def test_an_account_that_the_authority_forgot_is_made_anew(
    settings: Settings, api: str, db: Database, vault: Vault
) -> None:
    with db.transaction() as conn:
        key = certificates_key()
        store.save_account(
            conn,
            vault,
            settings.certificates.directory,
            store.Account(settings.certificates.directory.replace("/dir", "/my-account/fedcba"), key),
        )
    row = turn(db, settings)
    assert row is not None and row.serial is None and row.failures == 1
    assert again(db, settings).serial


def certificates_key() -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    key = ec.generate_private_key(ec.SECP256R1())
    return key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())


def test_an_account_that_one_has_to_have(
    tmp_path: Path, settings: Settings, db: Database, name_server: str, credentials: Path
) -> None:
    """RFC 8555 §7.3.4. The names need not be proved for that."""
    secret = "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W"
    with pebble.running(tmp_path, name_server, external={"kid-1": secret}) as acme:
        there = changed(settings, directory=acme.directory, ca_file=acme.ca_file)
        row = turn(db, there)
        assert row is not None and "externalAccountRequired" in row.failure
        bound = changed(there, external_account="kid-1")
        assert "acme_eab_key" in again(db, bound).failure
        (credentials / "acme_eab_key").write_text(secret)
        try:
            row = again(db, bound)
        finally:
            (credentials / "acme_eab_key").unlink()
        with db.transaction() as conn:
            assert conn.execute("SELECT count(*) FROM acme_accounts").fetchone() == (1,), row.failure


@pytest.mark.parametrize(
    ("days", "failures", "attempt_in", "is_due"),
    [(89, 0, 0, False), (34, 0, 0, False), (26, 0, 0, True), (26, 3, 60, False), (-1, 3, -1, True)],
)
def test_it_is_renewed_when_a_third_of_its_lifetime_is_left(
    days: int, failures: int, attempt_in: int, is_due: bool
) -> None:
    now = datetime(2026, 3, 1, tzinfo=UTC)
    end = now + timedelta(days=days)
    row = Row(
        name=RELAY,
        names=["relay.example"],
        chain="",
        serial="1f",
        not_before=end - timedelta(days=90),
        not_after=end,
        source="acme",
        stored_at=now,
        wanted_at=None,
        revoke=False,
        attempt_at=now + timedelta(seconds=attempt_in),
        failures=failures,
        failure="",
        failed_at=None,
    )
    assert bool(certificates.due(row, ["relay.example"], now)) is is_due


def test_attempts_become_rare() -> None:
    waits = [certificates.patience_after(failures).total_seconds() / 60 for failures in (0, 1, 2, 3, 4, 10, 1000)]
    assert waits == [2, 4, 8, 16, 32, 360, 360]
    assert sum(wait <= 60 for wait in [sum(waits[:n]) for n in range(7)]) == 5  # in an hour
