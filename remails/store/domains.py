"""Sender domains, their DKIM keys, and which projects may send from them.

Any organization may add a name; it sends from it once the ownership token and the DKIM record were seen in DNS
(`save_verification`), and of all who added it only one can be verified. A project sends from the domains attached to it and from
what lies below them. Private keys leave here sealed; `signing_keys` hands them to who holds the vault.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Literal

from psycopg.rows import class_row, dict_row
from psycopg.types.json import Jsonb

from remails import db, vault
from remails.errors import Refused
from remails.mail import address, dkim
from remails.store import constraints, ids
from remails.store.ids import DkimKeyId, DomainId, OrganizationId, PoolId, ProjectId

Algorithm = Literal["rsa_sha256", "ed25519"]

_REFUSALS = {
    "domains_organization_id_name_key": constraints.conflict("The organization has this domain already.", "domain"),
    "domains_verified": constraints.conflict("Another organization has proved that this domain is theirs.", "domain"),
    "domains_organization_id_fkey": constraints.invalid("There is no such organization.", "organization_id"),
    "dkim_keys_domain_id_selector_key": constraints.conflict("The domain has a key of this selector.", "selector"),
    "dkim_keys_domain_id_fkey": constraints.invalid("There is no such domain.", "domain"),
}


@dataclass(frozen=True, slots=True)
class DkimKey:
    """A DKIM key as everybody may see it; `record` is the TXT record at `<selector>._domainkey.<domain>`."""

    id: DkimKeyId
    selector: str
    algorithm: Algorithm
    record: str
    is_active: bool
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Domain:
    """A sender domain; it may send once `verified_at` is set. `verification` is what the last check saw."""

    id: DomainId
    organization_id: OrganizationId
    name: str
    ownership_token: str
    verified_at: datetime | None
    verification: dict[str, Any]
    checked_at: datetime | None
    pool_id: PoolId | None
    created_at: datetime
    updated_at: datetime
    hold_reason: str | None
    """Why mail from it is held, as a sentence; None: it goes out."""
    project_ids: list[ProjectId]
    dkim_keys: list[DkimKey]


@dataclass(frozen=True, slots=True)
class SigningKey:
    """An active DKIM key; `sealed` opens in the context `dkim:<key_id>` to PKCS#8 DER."""

    domain_id: DomainId
    domain: str
    key_id: DkimKeyId
    selector: str
    algorithm: Algorithm
    sealed: bytes = field(repr=False)


def create(
    conn: db.Connection,
    sealer: vault.Vault,
    organization_id: OrganizationId,
    name: str,
    *,
    selector: str,
    algorithm: Algorithm = "rsa_sha256",
    also_ed25519: bool = False,
    project_ids: Sequence[ProjectId] = (),
) -> Domain:
    """Add a domain with a new DKIM key and ownership token, attached to these projects.

    With `also_ed25519` an RSA key is joined by an Ed25519 one, at `<selector>-ed25519` (RFC 8463 §3).

    Raises:
        Refused: 409 when the organization has it already, 422 for what is no domain name or no project of theirs.
    """
    try:
        name = address.normalise_domain(name)
    except address.BadAddress as error:
        raise constraints.invalid(f"This is not a domain name: {error}.", "domain") from None
    domain_id = DomainId(ids.new())
    with constraints.explained(conn, _REFUSALS):
        conn.execute(
            "INSERT INTO domains (id, organization_id, name, ownership_token) VALUES (%s, %s, %s, %s)",
            [domain_id, organization_id, name, vault.new_secret(32)],
        )
        add_key(conn, sealer, domain_id, selector, algorithm)
        if also_ed25519 and algorithm != "ed25519":
            add_key(conn, sealer, domain_id, f"{selector}-ed25519", "ed25519")
        set_projects(conn, organization_id, domain_id, project_ids)
    made = get(conn, organization_id, domain_id)
    assert made is not None
    return made


def add_key(
    conn: db.Connection,
    sealer: vault.Vault,
    domain_id: DomainId,
    selector: str,
    algorithm: Algorithm = "rsa_sha256",
    *,
    is_active: bool = True,
) -> DkimKeyId:
    """Make a DKIM key; one that is not active signs nothing yet. Raises Refused (409) when the selector is taken."""
    key_id = DkimKeyId(ids.new())
    private = dkim.generate(dkim.Algorithm(algorithm))
    with constraints.explained(conn, _REFUSALS):
        conn.execute(
            """INSERT INTO dkim_keys (id, domain_id, selector, algorithm, private_key, record, is_active)
               VALUES (%s, %s, %s, %s, %s, %s, %s)""",
            [
                key_id,
                domain_id,
                selector,
                algorithm,
                sealer.seal(private, f"dkim:{key_id}"),
                dkim.record(private),
                is_active,
            ],
        )
    return key_id


def activate_key(conn: db.Connection, key_id: DkimKeyId) -> None:
    """Sign with a key from now on; every sending host does within a minute."""
    conn.execute("UPDATE dkim_keys SET is_active = true WHERE id = %s", [key_id])


def remove_key(conn: db.Connection, domain_id: DomainId, key_id: DkimKeyId) -> None:
    """Forget a key for good. Raises Refused (409) when it is the last one that signs."""
    keys = conn.execute(
        "SELECT id FROM dkim_keys WHERE domain_id = %s AND is_active FOR UPDATE", [domain_id]
    ).fetchall()
    if keys == [(key_id,)]:
        raise constraints.conflict("It is the only key that signs: activate another one first.", "selector")
    conn.execute("DELETE FROM dkim_keys WHERE domain_id = %s AND id = %s", [domain_id, key_id])


def sealed_by(conn: db.Connection) -> dict[str, int]:
    """How many private keys each key of the vault has sealed, by its name."""
    return dict(
        conn.execute(
            r"""SELECT convert_from(substr(private_key, 1, position('\x3a'::bytea IN private_key) - 1), 'UTF8'), count(*)
                FROM dkim_keys GROUP BY 1 ORDER BY 1"""
        ).fetchall()
    )


def reseal(conn: db.Connection, sealer: vault.Vault, limit: int) -> int:
    """Seal up to `limit` private keys anew that another key than the first of the vault has sealed; returns how many.

    Raises:
        ConfigError: the vault has not the key that opens one.
    """
    rows = conn.execute(
        r"""SELECT id, private_key FROM dkim_keys
            WHERE substr(private_key, 1, position('\x3a'::bytea IN private_key) - 1) <> convert_to(%s, 'UTF8')
            ORDER BY id LIMIT %s FOR UPDATE""",
        [sealer.names[0], limit],
    ).fetchall()
    for key_id, sealed in rows:
        context = f"dkim:{key_id}"
        conn.execute(
            "UPDATE dkim_keys SET private_key = %s WHERE id = %s",
            [sealer.seal(sealer.open(sealed, context), context), key_id],
        )
    return len(rows)


def get(conn: db.Connection, organization_id: OrganizationId, domain_id: DomainId) -> Domain | None:
    """The domain of this id, if it is the organization's."""
    return next(iter(_select(conn, organization_id=organization_id, id=domain_id)), None)


def by_name(conn: db.Connection, organization_id: OrganizationId, name: str) -> Domain | None:
    """The organization's domain of this name."""
    return next(iter(_select(conn, organization_id=organization_id, name=name)), None)


def list_(conn: db.Connection, organization_id: OrganizationId) -> list[Domain]:
    """The organization's domains, by name."""
    return _select(conn, organization_id=organization_id)


def due_for_check(
    conn: db.Connection, older_than: timedelta, limit: int, *, new_older_than: timedelta | None = None
) -> list[Domain]:
    """Domains whose DNS was not looked at for so long, the longest first, of every organization.

    Those that wait for their records to appear, on their first day, and those whose mail is held are due after
    `new_older_than` already.
    """
    due = conn.execute(
        """SELECT id FROM domains
           WHERE checked_at IS NULL OR checked_at < now() - %(older_than)s
               OR (checked_at < now() - %(new)s AND (hold_reason IS NOT NULL
                   OR (verified_at IS NULL AND created_at > now() - interval '1 day')))
           ORDER BY checked_at NULLS FIRST LIMIT %(limit)s""",
        {"older_than": older_than, "new": new_older_than or older_than, "limit": limit},
    ).fetchall()
    found = {domain.id: domain for domain in _select(conn, ids=[domain_id for (domain_id,) in due])}
    return [found[domain_id] for (domain_id,) in due]


def _select(
    conn: db.Connection,
    *,
    organization_id: OrganizationId | None = None,
    id: DomainId | None = None,  # noqa: A002  # the column's name
    ids: Sequence[DomainId] | None = None,
    name: str | None = None,
) -> list[Domain]:
    with conn.cursor(row_factory=dict_row) as cur:
        rows = cur.execute(
            # By name, so that a column more does not disturb a version that does not know it.
            """SELECT d.id, d.organization_id, d.name, d.ownership_token, d.verified_at, d.verification, d.checked_at,
                   d.pool_id, d.created_at, d.updated_at, d.hold_reason,
                   ARRAY(SELECT project_id FROM domains_projects WHERE domain_id = d.id ORDER BY 1) AS project_ids
               FROM domains d
               WHERE (%(organization_id)s::uuid IS NULL OR d.organization_id = %(organization_id)s)
                 AND (%(id)s::uuid IS NULL OR d.id = %(id)s)
                 AND (%(ids)s::uuid[] IS NULL OR d.id = ANY(%(ids)s))
                 AND (%(name)s::text IS NULL OR d.name = %(name)s)
               ORDER BY d.name, d.id""",
            {"organization_id": organization_id, "id": id, "ids": ids, "name": name},
        ).fetchall()
    keys = _keys(conn, [row["id"] for row in rows])
    return [Domain(**row, dkim_keys=keys.get(row["id"], [])) for row in rows]


def _keys(conn: db.Connection, domain_ids: Sequence[DomainId]) -> dict[DomainId, list[DkimKey]]:
    found: dict[DomainId, list[DkimKey]] = {}
    with conn.cursor(row_factory=dict_row) as cur:
        for row in cur.execute(
            """SELECT domain_id, id, selector, algorithm, record, is_active, created_at
               FROM dkim_keys WHERE domain_id = ANY(%s) ORDER BY id""",
            [list(domain_ids)],
        ):
            found.setdefault(row.pop("domain_id"), []).append(DkimKey(**row))
    return found


def set_projects(
    conn: db.Connection, organization_id: OrganizationId, domain_id: DomainId, project_ids: Sequence[ProjectId]
) -> bool:
    """Attach the domain to exactly these projects; false when the organization has no such domain.

    Raises:
        Refused: 422 when one is not a project of the organization.
    """
    known = conn.execute(
        "SELECT FROM domains WHERE id = %s AND organization_id = %s FOR UPDATE", [domain_id, organization_id]
    )
    if known.rowcount == 0:
        return False
    conn.execute("DELETE FROM domains_projects WHERE domain_id = %s", [domain_id])
    attached = conn.execute(
        """INSERT INTO domains_projects (domain_id, project_id)
           SELECT %s, id FROM projects WHERE organization_id = %s AND id = ANY(%s)""",
        [domain_id, organization_id, list(project_ids)],
    )
    if attached.rowcount != len(set(project_ids)):
        raise constraints.invalid("One of these is not a project of the organization.", "project_ids")
    return True


def save_verification(
    conn: db.Connection,
    domain_id: DomainId,
    verification: Mapping[str, Any],
    *,
    verified: bool,
    hold_reason: str | None = None,
) -> None:
    """Keep what a check of the domain's DNS saw. The first one with `verified` makes the domain the organization's.

    Once verified it stays so: DNS that breaks later may hold its mail (`hold_reason`), but the domain is not refused.

    Raises:
        Refused: 409 when another organization was verified before. What was seen is written all the same, so a caller
            who catches this inside the transaction keeps it.
    """
    try:
        with constraints.explained(conn, _REFUSALS):
            _save(conn, domain_id, verification, verified, hold_reason)
    except Refused:
        _save(conn, domain_id, verification, False, hold_reason)
        raise


def _save(
    conn: db.Connection, domain_id: DomainId, verification: Mapping[str, Any], verified: bool, hold_reason: str | None
) -> None:
    conn.execute(
        """UPDATE domains SET verification = %(verification)s, checked_at = now(), hold_reason = %(hold_reason)s,
               verified_at = CASE WHEN %(verified)s THEN coalesce(verified_at, now()) ELSE verified_at END
           WHERE id = %(id)s""",
        {"id": domain_id, "verification": Jsonb(verification), "verified": verified, "hold_reason": hold_reason},
    )


def remove(conn: db.Connection, organization_id: OrganizationId, domain_id: DomainId) -> bool:
    """Delete the domain with its keys; false when the organization has no such domain."""
    done = conn.execute("DELETE FROM domains WHERE organization_id = %s AND id = %s", [organization_id, domain_id])
    return done.rowcount == 1


def signing_keys(conn: db.Connection, domain_ids: Sequence[DomainId]) -> list[SigningKey]:
    """The active DKIM keys of these domains."""
    with conn.cursor(row_factory=class_row(SigningKey)) as cur:
        return cur.execute(
            """SELECT d.id AS domain_id, d.name AS domain, k.id AS key_id, k.selector, k.algorithm,
                   k.private_key AS sealed
               FROM dkim_keys k JOIN domains d ON d.id = k.domain_id
               WHERE d.id = ANY(%s) AND k.is_active ORDER BY k.id""",
            [list(domain_ids)],
        ).fetchall()


def all_names_with_records(conn: db.Connection) -> Iterator[tuple[str, str, list[tuple[str, str]]]]:
    """Name, ownership token and (selector, record) of every domain: what a demo's DNS has to answer."""
    for domain in _select(conn):
        yield domain.name, domain.ownership_token, [(key.selector, key.record) for key in domain.dkim_keys]
