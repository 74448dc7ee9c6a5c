"""`remails certificate`: the relay's certificates as all hosts have them: what there is, a new one now, one from elsewhere."""

import re
import time
from datetime import UTC, datetime
from pathlib import Path

import click

from remails import certificate as pem
from remails.admin import operator, output
from remails.admin.operator import Act, connected
from remails.config import Settings
from remails.db import Database
from remails.errors import ConfigError, Refused
from remails.store import certificates as store
from remails.store.certificates import RELAY
from remails.vault import Vault

_COLUMNS = (
    "name",
    "names",
    "serial",
    "not_after",
    "source",
    "stored_at",
    "wanted",
    "failures",
    "failure",
    "attempt_at",
)
_LOOK_AGAIN = 0.5  # seconds


@click.group
def certificate() -> None:
    """Certificates of the relay: those that lie in the database for all hosts."""


@certificate.command("list")
@output.json_option
@connected
def certificate_list(act: Act, as_json: bool) -> None:
    """List the certificates, and how their renewal goes.

    Certificates that the inventory gives to the hosts are files only, and not here; `remails doctor` looks at those.
    """
    rows = [
        {
            "name": row.name,
            "names": row.names,
            "serial": row.serial,
            "not_after": row.not_after,
            "source": row.source,
            "stored_at": row.stored_at,
            "wanted": row.wanted_at is not None,
            "failures": row.failures,
            "failure": row.failure,
            "attempt_at": row.attempt_at if row.failures else None,
        }
        for row in store.list_(act.conn)
    ]
    output.show(rows, _COLUMNS, as_json=as_json)


@certificate.command("renew")
@click.option("--revoke", is_flag=True, help="Have the old one revoked then: somebody else may have its key.")
@click.option("--if-missing", is_flag=True, help="Only if there is none yet.")
@click.option("--wait", type=click.FloatRange(min=0), default=0.0, help="Wait so many seconds for the outcome.")
def certificate_renew(revoke: bool, if_missing: bool, wait: float) -> None:
    """Have the relay's certificate issued anew, with a new key. The leading periodic service does it.

    With --wait, exit status 1 means that it failed or took too long.
    """
    settings = operator.settings()
    if not settings.certificates.directory:
        raise Refused(
            554, "5.3.0", "certificates.directory is not set, so nobody issues certificates here.", status=409
        )
    with operator.migrated(settings) as opened:
        before = _relay(opened)
        if if_missing and before is not None and before.serial:
            click.echo(f"There is one, valid until {output.cell(before.not_after)}.")
            return
        with opened.transaction() as conn:
            store.want(conn, RELAY, revoke=revoke)
            Act(settings, conn).log(None, "renewal_requested", "certificate", RELAY, {"revoke": revoke})
        if not wait:
            click.echo("A new certificate is asked for. See: remails certificate list")
            return
        _await(opened, before, wait)


def _relay(opened: Database) -> store.Row | None:
    return next(iter(opened.run(store.list_, RELAY)), None)


def _await(opened: Database, before: store.Row | None, seconds: float) -> None:
    asked, deadline = datetime.now(UTC), time.monotonic() + seconds
    failed_before = before.failures if before else 0
    while time.monotonic() < deadline:
        row = _relay(opened)
        if row is not None and row.serial and row.serial != (before.serial if before else None):
            click.echo(f"Issued: for {', '.join(row.names)}, valid until {output.cell(row.not_after)}.")
            return
        if row is not None and row.failures > failed_before:
            again = max(0, round((row.attempt_at - asked).total_seconds() / 60))
            text = f"Not issued: {row.failure}. The next attempt is in {again} minutes, or with `remails certificate renew`."
            raise Refused(554, "5.3.0", text, status=502)
        time.sleep(_LOOK_AGAIN)
    raise Refused(554, "5.3.0", f"Not issued within {seconds:.0f} s; does a periodic service lead?", status=504)


@certificate.command("import")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option(
    "--name", default=RELAY, show_default=True, help="Which certificate it is; also the name of the hosts' file."
)
@connected
def certificate_import(act: Act, file: Path, name: str) -> None:
    """Take a certificate from elsewhere, for all hosts: FILE has its chain and its key, in PEM, without a passphrase.

    It is renewed as any other if certificates.directory is set and NAME is relay.
    """
    if not re.fullmatch(r"[a-z0-9][a-z0-9.-]{0,99}", name):
        raise Refused(554, "5.3.0", f"{name!r} is no name: small letters, digits, dots and dashes.", status=422)
    made = _read(file, act.settings, name)
    store.save(act.conn, Vault(act.settings.credential("encryption_keys")), name, made, "import")
    act.log(None, "imported", "certificate", name, {"serial": made.serial, "names": made.names})
    until = output.cell(made.own.not_valid_after_utc)
    click.echo(f"{name}: for {', '.join(made.names)}, valid until {until}. Hosts fetch it within five minutes.")


def _read(file: Path, settings: Settings, name: str) -> pem.Certificate:
    try:
        made = pem.read(file.read_bytes())
    except OSError as error:
        raise Refused(554, "5.3.0", f"Cannot read {file}: {error.strerror}.", status=422) from None
    except ConfigError as error:
        raise Refused(554, "5.3.0", f"{file}: {error}.", status=422) from None
    if reason := pem.trouble(made, settings.certificate_names if name == RELAY else ()):
        raise Refused(554, "5.3.0", f"{file}: {reason}.", status=422)
    return made
