"""Has the relay's own certificate issued, and renewed well before it ends (RFC 8555).

It lies in the database, with its key sealed; every host that shows it fetches it from api. So it does not matter which host leads
when it is time, and a host that dies takes nothing with it. A failure leaves the old certificate where it is, is told by
metrics, and makes the next attempt wait.
"""

import asyncio
import zlib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta

from remails import certificate, metrics
from remails.config import Settings
from remails.db import Connection, Database
from remails.errors import ConfigError
from remails.logs import Log
from remails.store import audit
from remails.store import certificates as store
from remails.store.certificates import RELAY, Row
from remails.vault import Vault

log = Log("remails.periodic")

FIRST_PATIENCE, LONGEST_PATIENCE = timedelta(minutes=2), timedelta(hours=6)


async def run(db: Database, settings: Settings) -> None:
    """Renew what is due, and show how things are."""
    rows = await db.call(store.list_)
    _show(rows)
    if not settings.certificates.directory:
        return
    row = next((row for row in rows if row.name == RELAY), None)
    if reason := due(row, settings.certificate_names, datetime.now(UTC)):
        # The attempt is taken before it begins: one that kills its process does not come again at once.
        patience = patience_after(row.failures if row else 0)
        if await db.call(store.begin, RELAY, patience):
            await asyncio.to_thread(_renew, db, settings, row, reason)
            _show(await db.call(store.list_))


def due(row: Row | None, names: Sequence[str], now: datetime) -> str | None:
    """Why a certificate is to be issued now; None while there is no reason, or it is not yet time to try again."""
    if row is None or row.not_after is None or row.not_before is None:
        reason = "there is none"
    elif row.wanted_at is not None:
        reason = "an operator wants it"
    elif row.source == "acme" and {name.lower() for name in names} != set(row.names):
        reason = "it is for other names"
    elif now >= renewal_time(row.not_before, row.not_after, row.serial or ""):
        reason = f"it ends at {row.not_after:%Y-%m-%d %H:%M} UTC"
    else:
        return None
    return None if row is not None and row.attempt_at > now else reason


def renewal_time(not_before: datetime, not_after: datetime, serial: str) -> datetime:
    """When a third of its lifetime is left, or a little earlier: not all that was issued on one day comes on one day again."""
    lifetime = not_after - not_before
    jitter = zlib.crc32(serial.encode()) / 2**32
    return not_after - lifetime / 3 - lifetime / 30 * jitter


def patience_after(failures: int) -> timedelta:
    """How long to wait after so many failures and one more. Authorities allow about five in an hour."""
    return min(timedelta(seconds=FIRST_PATIENCE.total_seconds() * 2.0 ** min(failures, 20)), LONGEST_PATIENCE)


def _renew(db: Database, settings: Settings, row: Row | None, reason: str) -> None:
    # Only who renews needs the library, which is large.
    from remails.periodic import acme, challenges

    directory, names = settings.certificates.directory, settings.certificate_names
    log.info("certificate is being issued", names=", ".join(names), directory=directory, reason=reason)
    try:
        vault = Vault(settings.credential("encryption_keys"))
        authority = acme.Authority(settings.certificates, db.run(store.account, vault, directory))
        if authority.account is None:
            bound = settings.acme_eab_key() if settings.certificates.external_account else None
            db.run(store.save_account, vault, directory, authority.register(bound))
        made = authority.issue(names, challenges.solver(settings, db))
    except (acme.Failure, ConfigError) as error:
        patience = patience_after(row.failures if row else 0)
        if isinstance(error, acme.Failure) and error.patience is not None:
            patience = max(patience, error.patience)
        if isinstance(error, acme.AccountGone):
            db.run(store.remove_account, directory)
        db.run(store.fail, RELAY, str(error), patience)
        log.error(
            "certificate could not be issued, the old one stays", reason=error, again_in=round(patience.total_seconds())
        )
        return
    db.run(_save, vault, made, reason)
    log.info("certificate issued", serial=made.serial, until=made.own.not_valid_after_utc)
    if row is not None and row.revoke and row.chain is not None and row.source == "acme":
        try:
            authority.revoke(row.chain)
        except acme.Failure as error:
            log.error("old certificate could not be revoked", serial=row.serial, reason=error)
        else:
            db.run(_note, "revoked", {"serial": row.serial})
            log.info("old certificate revoked", serial=row.serial)


def _save(conn: Connection, vault: Vault, made: certificate.Certificate, reason: str) -> None:
    store.save(conn, vault, RELAY, made, "acme")
    details = {
        "serial": made.serial,
        "names": made.names,
        "until": made.own.not_valid_after_utc.isoformat(),
        "reason": reason,
    }
    _note(conn, "issued", details)


def _note(conn: Connection, action: str, details: Mapping[str, object]) -> None:
    audit.record(conn, audit.Actor("system", name="periodic"), None, action, "certificate", RELAY, details)


def _show(rows: Sequence[Row]) -> None:
    metrics.CERTIFICATE_NOT_AFTER.clear()
    metrics.CERTIFICATE_RENEWAL_FAILED.clear()
    for row in rows:
        metrics.CERTIFICATE_RENEWAL_FAILED.set(int(row.failures > 0), name=row.name)
        if row.not_after is not None:
            metrics.CERTIFICATE_NOT_AFTER.set(row.not_after.timestamp(), name=row.name)
