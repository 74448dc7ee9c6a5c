"""Certificates of the relay's own names with their keys, their renewal, and what an ACME server asks of us (RFC 8555).

Keys lie here sealed and leave opened; who calls holds the vault.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from psycopg.rows import class_row

from remails import certificate, vault
from remails.certificate import Certificate
from remails.db import Connection
from remails.vault import Vault

RELAY = "relay"
"""The name of the certificate that is the relay's own; others are imported beside it."""

Source = Literal["acme", "import"]


@dataclass(frozen=True, slots=True)
class Row:
    """A certificate without its key, and how its renewal goes; `serial` and what follows is None until there is one."""

    name: str
    names: Sequence[str]
    chain: str | None
    serial: str | None
    not_before: datetime | None
    not_after: datetime | None
    source: Source | None
    stored_at: datetime | None
    wanted_at: datetime | None
    revoke: bool
    attempt_at: datetime
    failures: int
    failure: str
    failed_at: datetime | None


@dataclass(frozen=True, slots=True)
class Account:
    """Who we are for an ACME server."""

    url: str
    key: bytes
    """PKCS#8 DER."""


def list_(conn: Connection, name: str | None = None) -> list[Row]:
    """All of them, also those that are still to be issued, by name; or the one of that name."""
    with conn.cursor(row_factory=class_row(Row)) as cursor:
        return cursor.execute(
            """SELECT name, names, chain, serial, not_before, not_after, source, stored_at, wanted_at, revoke,
                   attempt_at, failures, failure, failed_at
               FROM certificates WHERE %(name)s::text IS NULL OR name = %(name)s ORDER BY name""",
            {"name": name},
        ).fetchall()


def opened(conn: Connection, opener: Vault) -> dict[str, Certificate]:
    """Those that there are, with their keys, by name. Raises ConfigError when the vault does not open one."""
    rows = conn.execute("SELECT name, chain, private_key FROM certificates WHERE chain IS NOT NULL ORDER BY name")
    return {name: certificate.join(chain, opener.open(sealed, _context(name))) for name, chain, sealed in rows}


def save(conn: Connection, sealer: Vault, name: str, made: Certificate, source: Source) -> None:
    """Put a new certificate in place of the old one; nothing more is wanted then, and nothing has failed."""
    conn.execute(
        """INSERT INTO certificates (name, names, chain, private_key, serial, not_before, not_after, source, stored_at)
           VALUES (%(name)s, %(names)s, %(chain)s, %(key)s, %(serial)s, %(not_before)s, %(not_after)s, %(source)s, now())
           ON CONFLICT (name) DO UPDATE SET names = excluded.names, chain = excluded.chain,
               private_key = excluded.private_key, serial = excluded.serial, not_before = excluded.not_before,
               not_after = excluded.not_after, source = excluded.source, stored_at = now(),
               wanted_at = NULL, revoke = false, attempt_at = now(), failures = 0, failure = '', failed_at = NULL""",
        {
            "name": name,
            "names": made.names,
            "chain": made.chain_pem,
            "key": sealer.seal(made.key_der, _context(name)),
            "serial": made.serial,
            "not_before": made.own.not_valid_before_utc,
            "not_after": made.own.not_valid_after_utc,
            "source": source,
        },
    )


def remove(conn: Connection, name: str) -> bool:
    """Forget a certificate; whether there was one."""
    return conn.execute("DELETE FROM certificates WHERE name = %s", [name]).rowcount == 1


def want(conn: Connection, name: str, *, revoke: bool = False) -> None:
    """Have a new one issued now, whatever failed before; and have the old one revoked then."""
    conn.execute(
        """INSERT INTO certificates (name, wanted_at, revoke) VALUES (%(name)s, now(), %(revoke)s)
           ON CONFLICT (name) DO UPDATE SET wanted_at = now(), attempt_at = now(), revoke = excluded.revoke""",
        {"name": name, "revoke": revoke},
    )


def begin(conn: Connection, name: str, patience: timedelta) -> bool:
    """Take the attempt that is due now, so that nobody else does; false where none is.

    Args:
        patience: if the attempt ends without `save` and without `fail`, the next one is not before that.
    """
    conn.execute("INSERT INTO certificates (name) VALUES (%s) ON CONFLICT DO NOTHING", [name])
    return (
        conn.execute(
            "UPDATE certificates SET attempt_at = now() + %s WHERE name = %s AND attempt_at <= now()", [patience, name]
        ).rowcount
        == 1
    )


def fail(conn: Connection, name: str, reason: str, patience: timedelta) -> None:
    """Record that an attempt failed; the next one is not before `patience`."""
    conn.execute(
        """UPDATE certificates SET failures = failures + 1, failure = %s, failed_at = now(), attempt_at = now() + %s
           WHERE name = %s""",
        [reason, patience, name],
    )


# ACME


def account(conn: Connection, opener: Vault, directory: str) -> Account | None:
    """Our account at a server. Raises ConfigError when the vault does not open its key."""
    row = conn.execute("SELECT url, private_key FROM acme_accounts WHERE directory = %s", [directory]).fetchone()
    return Account(row[0], opener.open(row[1], _account_context(directory))) if row else None


def save_account(conn: Connection, sealer: Vault, directory: str, made: Account) -> None:
    """Keep an account."""
    conn.execute(
        """INSERT INTO acme_accounts (directory, url, private_key) VALUES (%s, %s, %s)
           ON CONFLICT (directory) DO UPDATE SET url = excluded.url, private_key = excluded.private_key""",
        [directory, made.url, sealer.seal(made.key, _account_context(directory))],
    )


def remove_account(conn: Connection, directory: str) -> None:
    """Forget an account that the server does not know any more."""
    conn.execute("DELETE FROM acme_accounts WHERE directory = %s", [directory])


def challenge(conn: Connection, token: str) -> str | None:
    """What to answer an ACME server that asks for a token."""
    row = conn.execute(
        "SELECT key_authorization FROM acme_challenges WHERE token = %s AND expires_at > now()", [token]
    ).fetchone()
    return row[0] if row else None


def add_challenge(conn: Connection, token: str, key_authorization: str, lifetime: timedelta) -> None:
    """From now on answer for a token. What has ended is forgotten."""
    conn.execute("DELETE FROM acme_challenges WHERE expires_at <= now()")
    conn.execute(
        """INSERT INTO acme_challenges (token, key_authorization, expires_at) VALUES (%s, %s, now() + %s)
           ON CONFLICT (token) DO UPDATE SET key_authorization = excluded.key_authorization,
               expires_at = excluded.expires_at""",
        [token, key_authorization, lifetime],
    )


def remove_challenge(conn: Connection, token: str) -> None:
    """Answer no longer."""
    conn.execute("DELETE FROM acme_challenges WHERE token = %s", [token])


# Keys of the vault


def sealed_by(conn: Connection) -> dict[str, int]:
    """How many private keys each key of the vault has sealed, by its name."""
    return Counter(vault.sealer_of(sealed) for _, _, sealed in _sealed(conn))


def reseal(conn: Connection, sealer: Vault) -> int:
    """Seal anew what another key than the first of the vault has sealed; returns how many. There are few.

    Raises:
        ConfigError: the vault has not the key that opens one.
    """
    old = [row for row in _sealed(conn) if vault.sealer_of(row[2]) != sealer.names[0]]
    for kind, name, sealed in old:
        if kind == "certificate":
            context, statement = _context(name), "UPDATE certificates SET private_key = %s WHERE name = %s"
        else:
            context = _account_context(name)
            statement = "UPDATE acme_accounts SET private_key = %s WHERE directory = %s"
        conn.execute(statement, [sealer.seal(sealer.open(sealed, context), context), name])
    return len(old)


def _sealed(conn: Connection) -> list[tuple[str, str, bytes]]:
    """What has a private key, its name, and the key as it lies here; locked."""
    certificates = conn.execute(
        "SELECT 'certificate', name, private_key FROM certificates WHERE private_key IS NOT NULL FOR UPDATE"
    ).fetchall()
    return (
        certificates + conn.execute("SELECT 'account', directory, private_key FROM acme_accounts FOR UPDATE").fetchall()
    )


def _context(name: str) -> str:
    return f"certificate:{name}"


def _account_context(directory: str) -> str:
    return f"acme:{directory}"
