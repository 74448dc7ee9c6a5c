"""Where mail leaves from: pools of outbound addresses, the hosts that send, and what the operator wants of both.

An operator steers by `enable`, `disable`, `desire` and `ask_for`: each is a wish that the holder of an address fulfils in its
own time. Who holds an address, and how far it is with it, is the matter of `leases`; which one a mail leaves from that of
`sources`. What happens to an address is a row in `address_events`.
"""

import ipaddress
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from psycopg.rows import class_row

from remails.db import Connection
from remails.store import constraints, ids
from remails.store.ids import DomainId, HostId, OrganizationId, PoolId, ProjectId

HostState = Literal["active", "drain", "retired"]
AddressState = Literal["free", "claimed", "attaching", "configuring", "ready", "draining", "error"]

_REFUSALS = {
    "pools_name_key": constraints.conflict("There is a pool of this name already.", "name"),
    "pools_name_check": constraints.invalid("A name has 1 to 100 characters.", "name"),
    "addresses_pkey": constraints.conflict("This address is known already.", "ip"),
    "addresses_pool_id_fkey": constraints.invalid("There is no such pool.", "pool_id"),
    "hosts_server": constraints.conflict("Another host has this server_ref; if it is gone, retire it.", "server_ref"),
    "addresses_preferred_host_fkey": constraints.invalid("There is no such host.", "preferred_host"),
}


@dataclass(frozen=True, slots=True)
class Pool:
    """A set of outbound addresses with one reputation."""

    id: PoolId
    name: str
    is_default: bool
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Host:
    """A host that sends."""

    id: HostId
    name: str
    provider: str
    server_ref: str
    zone: str
    desired_state: HostState
    max_addresses: int
    agent_version: str
    heartbeat_at: datetime | None
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Address:
    """An outbound address.

    `no_claim_before` is None when there is no such time, and `is_quarantined` while it is to come: until then nobody may
    claim the address, and its holder leaves it alone. `next_host` is to hold it next, if an operator said so.
    """

    ip: str
    pool_id: PoolId
    provider: str
    zone: str
    provider_ref: str
    bind_ip: str | None
    ptr_name: str
    is_enabled: bool
    preferred_host: HostId | None
    next_host: HostId | None
    lease_host: HostId | None
    lease_epoch: int
    lease_until: datetime | None
    no_claim_before: datetime | None
    is_quarantined: bool
    state: AddressState
    ready_epoch: int | None
    last_error: str
    updated_at: datetime

    @property
    def source(self) -> str:
        """What a socket is bound to."""
        return self.bind_ip or self.ip


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to an address."""

    at: datetime
    epoch: int
    host: str
    kind: str
    detail: str


@dataclass(frozen=True, slots=True)
class Refusal:
    """A host that leaves an address to others, and why."""

    ip: str
    host: str
    until: datetime
    is_firm: bool
    reason: str


# Pools


def create_pool(conn: Connection, name: str, *, is_default: bool = False) -> Pool:
    """Add a pool; as the default it takes that role from the one which had it.

    Raises:
        Refused: 409 when there is a pool of that name, 422 for what is no name.
    """
    with constraints.explained(conn, _REFUSALS), conn.cursor(row_factory=class_row(Pool)) as cursor:
        if is_default:
            _no_default(conn)
        pool = cursor.execute(
            """
            INSERT INTO pools (id, name, is_default) VALUES (%s, %s, %s)
            RETURNING id, name, is_default, created_at
            """,
            [ids.new(), name, is_default],
        ).fetchone()
    assert pool is not None
    return pool


def set_default_pool(conn: Connection, pool_id: PoolId) -> None:
    """Let this pool be the one of those who were given no other."""
    _no_default(conn)
    conn.execute("UPDATE pools SET is_default = true WHERE id = %s", [pool_id])


def _no_default(conn: Connection) -> None:
    conn.execute("UPDATE pools SET is_default = false WHERE is_default")


def list_pools(conn: Connection) -> list[Pool]:
    """All pools by name."""
    with conn.cursor(row_factory=class_row(Pool)) as cursor:
        return cursor.execute("SELECT id, name, is_default, created_at FROM pools ORDER BY name").fetchall()


def default_pool(conn: Connection) -> Pool | None:
    """The pool of those who were given no other."""
    return next((pool for pool in list_pools(conn) if pool.is_default), None)


def assign_pool(
    conn: Connection,
    pool_id: PoolId | None,
    *,
    organization_id: OrganizationId | None = None,
    project_id: ProjectId | None = None,
    domain_id: DomainId | None = None,
) -> bool:
    """Give a pool (None: no own one) to an organization, project or sender domain; an operator's act, of no tenant.

    Returns whether what was named exists.
    """
    changed = 0
    if organization_id is not None:
        statement = "UPDATE organizations SET pool_id = %s, updated_at = now() WHERE id = %s"
        changed += conn.execute(statement, [pool_id, organization_id]).rowcount
    if project_id is not None:
        statement = "UPDATE projects SET pool_id = %s, updated_at = now() WHERE id = %s"
        changed += conn.execute(statement, [pool_id, project_id]).rowcount
    if domain_id is not None:
        statement = "UPDATE domains SET pool_id = %s, updated_at = now() WHERE id = %s"
        changed += conn.execute(statement, [pool_id, domain_id]).rowcount
    return changed > 0


def users_of_pools(conn: Connection) -> dict[PoolId, list[str]]:
    """To which organizations, projects (`organization/project`) and sender domains each pool is assigned, by name."""
    found: dict[PoolId, list[str]] = {}
    rows = conn.execute(
        """
        SELECT pool_id, name FROM organizations WHERE pool_id IS NOT NULL
        UNION ALL
        SELECT p.pool_id, o.name || '/' || p.name FROM projects p JOIN organizations o ON o.id = p.organization_id
        WHERE p.pool_id IS NOT NULL
        UNION ALL
        SELECT pool_id, name FROM domains WHERE pool_id IS NOT NULL
        ORDER BY 2
        """
    )
    for pool_id, name in rows:
        found.setdefault(pool_id, []).append(name)
    return found


# Hosts


def register_host(
    conn: Connection, name: str, provider: str, server_ref: str, zone: str, max_addresses: int, version: str
) -> Host:
    """Add the host or bring its row up to date, by name; counts as a heartbeat. Its desired state stays.

    Raises:
        Refused: 409 when another host has that server at the provider.
    """
    with constraints.explained(conn, _REFUSALS), conn.cursor(row_factory=class_row(Host)) as cursor:
        host = cursor.execute(
            """
            INSERT INTO hosts (id, name, provider, server_ref, zone, max_addresses, agent_version, heartbeat_at)
            VALUES (%(id)s, %(name)s, %(provider)s, %(server_ref)s, %(zone)s, %(max)s, %(version)s, clock_timestamp())
            ON CONFLICT (name) DO UPDATE SET
                provider = EXCLUDED.provider, server_ref = EXCLUDED.server_ref, zone = EXCLUDED.zone,
                max_addresses = EXCLUDED.max_addresses, agent_version = EXCLUDED.agent_version,
                heartbeat_at = EXCLUDED.heartbeat_at
            RETURNING id, name, provider, server_ref, zone, desired_state, max_addresses, agent_version,
                heartbeat_at, created_at
            """,
            {
                "id": ids.new(),
                "name": name,
                "provider": provider,
                "server_ref": server_ref,
                "zone": zone,
                "max": max_addresses,
                "version": version,
            },
        ).fetchone()
    assert host is not None
    return host


def heartbeat(conn: Connection, host_id: HostId) -> None:
    """Say that the host lives."""
    conn.execute("UPDATE hosts SET heartbeat_at = clock_timestamp() WHERE id = %s", [host_id])


def desire(conn: Connection, host_id: HostId, state: HostState) -> None:
    """What the operator wants of a host: `active`, `drain` (give all addresses back) or `retired` (the same, for good)."""
    conn.execute("UPDATE hosts SET desired_state = %s WHERE id = %s", [state, host_id])


def list_hosts(conn: Connection, *, name: str | None = None, silent_for: float | None = None) -> list[Host]:
    """Hosts by name; with `silent_for` those that are not retired and gave no heartbeat for so many seconds."""
    with conn.cursor(row_factory=class_row(Host)) as cursor:
        return cursor.execute(
            """
            SELECT id, name, provider, server_ref, zone, desired_state, max_addresses, agent_version,
                heartbeat_at, created_at
            FROM hosts
            WHERE (%(name)s::text IS NULL OR name = %(name)s)
                AND (%(silent_for)s::float IS NULL OR (desired_state <> 'retired'
                    AND heartbeat_at < clock_timestamp() - make_interval(secs => %(silent_for)s)))
            ORDER BY name
            """,
            {"name": name, "silent_for": silent_for},
        ).fetchall()


def host_by_name(conn: Connection, name: str) -> Host | None:
    """The host of that name."""
    return next(iter(list_hosts(conn, name=name)), None)


def dead_hosts(conn: Connection, older_than: float) -> list[Host]:
    """Hosts that should live and gave no heartbeat for `older_than` seconds."""
    return list_hosts(conn, silent_for=older_than)


# Addresses


def add(
    conn: Connection,
    ip: str,
    pool_id: PoolId,
    provider: str,
    ptr_name: str,
    *,
    bind_ip: str | None = None,
    zone: str = "",
    provider_ref: str = "",
    preferred_host: HostId | None = None,
) -> Address:
    """Add an outbound address to a pool.

    Raises:
        Refused: 409 when it is known already, 422 for what is no address, pool or host.
    """
    ip, ptr_name = _canonical(ip, "ip"), ptr_name.lower().rstrip(".")
    bind_ip = None if bind_ip is None else _canonical(bind_ip, "bind_ip")
    with constraints.explained(conn, _REFUSALS):
        conn.execute(
            """
            INSERT INTO addresses (ip, pool_id, provider, zone, provider_ref, bind_ip, ptr_name, preferred_host)
            VALUES (%s, %s, %s, %s, %s, %s, %s, %s)
            """,
            [ip, pool_id, provider, zone, provider_ref, bind_ip, ptr_name, preferred_host],
        )
    conn.execute("INSERT INTO address_events (ip, epoch, kind) VALUES (%s, 0, 'added')", [ip])
    return these(conn, [ip])[0]


def _canonical(ip: str, field: str) -> str:
    try:
        return ipaddress.ip_address(ip).compressed
    except ValueError:
        raise constraints.invalid("This is not an IP address.", field) from None


def get(conn: Connection, ip: str) -> Address | None:
    """One address. Raises Refused (422) for what is none."""
    return next(iter(these(conn, [_canonical(ip, "ip")])), None)


def list_(conn: Connection) -> list[Address]:
    """All addresses in order."""
    return these(conn, None)


def enable(conn: Connection, ip: str) -> bool:
    """Let an address be used; false when there is none or it is enabled."""
    return _switch(conn, ip, on=True)


def disable(conn: Connection, ip: str) -> bool:
    """Take an address out of use: no new mail, no sending; its holder gives it back. False when nothing changed."""
    return _switch(conn, ip, on=False)


def _switch(conn: Connection, ip: str, *, on: bool) -> bool:
    return bool(
        conn.execute(
            """
            WITH changed AS (
                UPDATE addresses SET is_enabled = %(on)s, updated_at = clock_timestamp()
                WHERE ip = %(ip)s::inet AND is_enabled <> %(on)s
                RETURNING ip, lease_epoch, lease_host
            )
            INSERT INTO address_events (ip, epoch, host_id, kind)
            SELECT ip, lease_epoch, lease_host, %(kind)s FROM changed
            """,
            {"ip": _canonical(ip, "ip"), "on": on, "kind": "enabled" if on else "disabled"},
        ).rowcount
    )


def ask_for(conn: Connection, ip: str, host_id: HostId) -> None:
    """Ask that this host hold the address next, with all that is one thing with it at the provider.

    Whoever has it gives it back, and while that host lives, has room and does not refuse it nobody else takes it. What kept
    it from being claimed is over.
    """
    conn.execute(
        """
        WITH asked AS (
            UPDATE addresses SET next_host = %(host)s, no_claim_before = '-infinity'
            WHERE ip = %(ip)s::inet OR (provider_ref <> '' AND (provider, provider_ref) IN (
                SELECT provider, provider_ref FROM addresses WHERE ip = %(ip)s::inet))
            RETURNING ip, lease_epoch
        ), forgotten AS (
            DELETE FROM address_refusals WHERE ip IN (SELECT ip FROM asked)
        )
        INSERT INTO address_events (ip, epoch, host_id, kind)
        SELECT ip, lease_epoch, %(host)s, 'asked for' FROM asked
        """,
        {"ip": _canonical(ip, "ip"), "host": host_id},
    )


def retry(conn: Connection, ip: str) -> None:
    """Forget what kept hosts from an address: it may be claimed by any, and its holder tries again."""
    conn.execute(
        """
        WITH forgotten AS (
            DELETE FROM address_refusals WHERE ip = %(ip)s::inet
        ), changed AS (
            UPDATE addresses SET no_claim_before = '-infinity' WHERE ip = %(ip)s::inet
            RETURNING ip, lease_epoch, lease_host
        )
        INSERT INTO address_events (ip, epoch, host_id, kind) SELECT ip, lease_epoch, lease_host, 'retry' FROM changed
        """,
        {"ip": _canonical(ip, "ip")},
    )


def rename(conn: Connection, ip: str, ptr_name: str) -> bool:
    """Give an address another reverse and EHLO name; false when there is none, or it is its name."""
    ptr_name = ptr_name.lower().rstrip(".")
    return bool(
        conn.execute(
            """
            WITH changed AS (
                UPDATE addresses SET ptr_name = %(name)s, updated_at = clock_timestamp()
                WHERE ip = %(ip)s::inet AND ptr_name <> %(name)s
                RETURNING ip, lease_epoch, lease_host
            )
            INSERT INTO address_events (ip, epoch, host_id, kind, detail)
            SELECT ip, lease_epoch, lease_host, 'renamed', jsonb_build_object('to', %(name)s::text) FROM changed
            """,
            {"ip": _canonical(ip, "ip"), "name": ptr_name},
        ).rowcount
    )


def prefer(conn: Connection, ip: str, host_id: HostId | None) -> None:
    """Say which host holds an address while it lives; no live lease is moved for that."""
    conn.execute("UPDATE addresses SET preferred_host = %s WHERE ip = %s::inet", [host_id, _canonical(ip, "ip")])


def refusals(conn: Connection) -> list[Refusal]:
    """Which hosts leave which addresses to others just now."""
    with conn.cursor(row_factory=class_row(Refusal)) as cursor:
        return cursor.execute(
            """
            SELECT host(r.ip) AS ip, h.name AS host, r.until, r.is_firm, r.reason
            FROM address_refusals r JOIN hosts h ON h.id = r.host_id
            WHERE r.until > clock_timestamp() ORDER BY r.ip, h.name
            """
        ).fetchall()


def events(conn: Connection, ip: str, limit: int) -> list[Event]:
    """The last `limit` things that happened to an address, the latest first."""
    with conn.cursor(row_factory=class_row(Event)) as cursor:
        return cursor.execute(
            """
            SELECT e.at, e.epoch, coalesce(h.name, '') AS host, e.kind,
                coalesce((SELECT string_agg(d.key || ': ' || d.value, ', ') FROM jsonb_each_text(e.detail) d), '')
                    AS detail
            FROM address_events e LEFT JOIN hosts h ON h.id = e.host_id
            WHERE e.ip = %s::inet ORDER BY e.id DESC LIMIT %s
            """,
            [_canonical(ip, "ip"), limit],
        ).fetchall()


def these(conn: Connection, ips: Collection[str] | None) -> list[Address]:
    """The addresses among these (None: all there are), in order."""
    with conn.cursor(row_factory=class_row(Address)) as cursor:
        return cursor.execute(
            """
            SELECT host(ip) AS ip, pool_id, provider, zone, provider_ref, host(bind_ip) AS bind_ip, ptr_name,
                is_enabled, preferred_host, next_host, lease_host, lease_epoch, lease_until,
                NULLIF(no_claim_before, '-infinity') AS no_claim_before,
                no_claim_before > clock_timestamp() AS is_quarantined, state, ready_epoch, last_error, updated_at
            FROM addresses
            WHERE %(ips)s::inet[] IS NULL OR addresses.ip = ANY(%(ips)s::inet[])
            ORDER BY addresses.ip
            """,
            {"ips": None if ips is None else list(ips)},
        ).fetchall()


def note(conn: Connection, ip: str, epoch: int, host_id: HostId, kind: str, detail: Mapping[str, str]) -> None:
    """Write down what happened to an address without a change of its state."""
    conn.execute(
        "INSERT INTO address_events (ip, epoch, host_id, kind, detail) VALUES (%s, %s, %s, %s, %s::jsonb)",
        [ip, epoch, host_id, kind, json.dumps(dict(detail))],
    )


def remove_old_events(conn: Connection, days: int, limit: int) -> int:
    """Forget what happened to addresses more than so many days ago; returns how many rows."""
    return conn.execute(
        """
        DELETE FROM address_events WHERE id IN (
            SELECT id FROM address_events WHERE at < now() - make_interval(days => %s) ORDER BY id LIMIT %s)
        """,
        [days, limit],
    ).rowcount
