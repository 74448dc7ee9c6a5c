"""Where mail leaves from: pools of outbound addresses, the hosts that send, and who holds which address.

An address is held by lease. `claim` gives a free or expired one to a host and counts `lease_epoch` up; everything the
host then does (`set_state`, `release`) names that epoch and does nothing under another, so a host that was paused
cannot disturb its successor. All times are the database's clock; hosts compare durations only.

    free --claim--> claimed --> attaching --> configuring --> ready --> draining --release--> free
                       any of these --> error --> ready

An operator steers by `enable`, `disable`, `desire` and `ask_for`: each is a wish that the holder fulfils in its own time.

`held_by` is the one rule by which `outbound` may send. `in_pools` and `choose` pick the address of a new message, and
`orphaned` and `move` that of mail whose address went away for good, always inside the pool the message was given.
Each change but a renewal is a row in `address_events`.
"""

import hashlib
import ipaddress
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from psycopg.rows import class_row

from remails.db import Connection
from remails.store import constraints, ids
from remails.store.ids import DeliveryId, DomainId, HostId, MessageId, OrganizationId, PoolId, ProjectId

HostState = Literal["active", "drain", "retired"]
AddressState = Literal["free", "claimed", "attaching", "configuring", "ready", "draining", "error"]

_REFUSALS = {
    "pools_name_key": constraints.conflict("There is a pool of this name already.", "name"),
    "pools_name_check": constraints.invalid("A name has 1 to 100 characters.", "name"),
    "addresses_pkey": constraints.conflict("This address is known already.", "ip"),
    "addresses_pool_id_fkey": constraints.invalid("There is no such pool.", "pool_id"),
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
class Held:
    """An address that this host may send from, for `seconds_left` more seconds."""

    ip: str
    bind_ip: str | None
    ptr_name: str
    epoch: int
    seconds_left: float
    pool_id: PoolId


@dataclass(frozen=True, slots=True)
class Candidate:
    """An enabled address of a pool, and whether some host can send from it just now."""

    ip: str
    ready: bool


@dataclass(frozen=True, slots=True)
class Orphan:
    """A pending delivery whose source is not (or no longer) an enabled address of its message's pool."""

    delivery_id: DeliveryId
    message_id: MessageId
    project_id: ProjectId
    pool_id: PoolId
    domain: str
    source: str | None


@dataclass(frozen=True, slots=True)
class Moved:
    """A delivery that has a new source."""

    delivery_id: DeliveryId
    message_id: MessageId
    source: str | None


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


# Hosts


def register_host(
    conn: Connection, name: str, provider: str, server_ref: str, zone: str, max_addresses: int, version: str
) -> Host:
    """Add the host or bring its row up to date, by name; counts as a heartbeat. Its desired state stays."""
    with conn.cursor(row_factory=class_row(Host)) as cursor:
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
    return _select(conn, [ip])[0]


def _canonical(ip: str, field: str) -> str:
    try:
        return ipaddress.ip_address(ip).compressed
    except ValueError:
        raise constraints.invalid("This is not an IP address.", field) from None


def get(conn: Connection, ip: str) -> Address | None:
    """One address. Raises Refused (422) for what is none."""
    return next(iter(_select(conn, [_canonical(ip, "ip")])), None)


def list_(conn: Connection) -> list[Address]:
    """All addresses in order."""
    return _select(conn, None)


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
    """Ask that this host hold the address next: whoever has it gives it back, and while that host lives nobody else
    takes it. What kept it from being claimed is over."""
    conn.execute(
        """
        WITH asked AS (
            UPDATE addresses SET next_host = %(host)s, no_claim_before = '-infinity'
            WHERE ip = %(ip)s::inet
            RETURNING ip, lease_epoch
        )
        INSERT INTO address_events (ip, epoch, host_id, kind)
        SELECT ip, lease_epoch, %(host)s, 'asked for' FROM asked
        """,
        {"ip": _canonical(ip, "ip"), "host": host_id},
    )


def retry(conn: Connection, ip: str) -> None:
    """End a quarantine: it may be claimed, and its holder tries again."""
    conn.execute("UPDATE addresses SET no_claim_before = '-infinity' WHERE ip = %s::inet", [_canonical(ip, "ip")])


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


def _select(conn: Connection, ips: Sequence[str] | None) -> list[Address]:
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


# Leases


def claim(
    conn: Connection, host_id: HostId, lease: float, limit: int, *, refused: Collection[str] = ()
) -> list[Address]:
    """Take up to `limit` addresses of the host's provider and zone that nobody holds, for `lease` seconds.

    A host takes up to its share of all addresses at once and one at a time beyond it, so that the first to wake does
    not take what the others could; never more than its `max_addresses`. An address goes to its preferred host while that
    one lives, which is as long as its last heartbeat is younger than a lease; what an operator asked for goes before
    that. A holder that stays in `error` for the length of a lease loses the address: another host may be able to use it.
    Those in `refused` are left to others.
    """
    rows = conn.execute(
        """
        WITH me AS (
            SELECT id, provider, zone, max_addresses FROM hosts
            WHERE id = %(host)s AND desired_state = 'active' FOR UPDATE
        ), alive AS (
            SELECT h.id FROM hosts h JOIN me USING (provider, zone)
            WHERE h.desired_state = 'active'
                AND h.heartbeat_at > clock_timestamp() - make_interval(secs => %(lease)s)
        ), counted AS (
            SELECT count(*) FILTER (WHERE a.lease_host = me.id AND a.lease_until > clock_timestamp()) AS mine,
                ceil(count(*)::float / (SELECT greatest(1, count(*)) FROM alive)) AS share
            FROM addresses a JOIN me USING (provider, zone) WHERE a.is_enabled
        ), picked AS (
            SELECT a.ip FROM addresses a JOIN me USING (provider, zone)
            WHERE a.is_enabled AND a.no_claim_before <= clock_timestamp()
                AND (a.lease_host IS NULL OR a.lease_until <= clock_timestamp()
                    OR (a.state = 'error' AND a.lease_host <> me.id
                        AND a.updated_at <= clock_timestamp() - make_interval(secs => %(lease)s)))
                AND (a.next_host IS NULL OR a.next_host = me.id OR a.next_host NOT IN (SELECT id FROM alive))
                AND (a.next_host = me.id OR a.preferred_host IS NULL OR a.preferred_host = me.id
                    OR a.preferred_host NOT IN (SELECT id FROM alive))
                AND a.ip <> ALL(%(refused)s::inet[])
            ORDER BY a.next_host = me.id DESC NULLS LAST, a.preferred_host = me.id DESC NULLS LAST, a.ip
            LIMIT (SELECT greatest(0, least(%(limit)s, max_addresses - mine, greatest(1, share - mine)))
                   FROM me, counted)
            FOR UPDATE OF a SKIP LOCKED
        ), claimed AS (
            UPDATE addresses a SET lease_host = %(host)s, lease_epoch = a.lease_epoch + 1,
                lease_until = clock_timestamp() + make_interval(secs => %(lease)s),
                next_host = NULL, state = 'claimed', ready_epoch = NULL, last_error = '',
                updated_at = clock_timestamp()
            FROM picked WHERE a.ip = picked.ip
            RETURNING a.ip, a.lease_epoch, a.lease_host
        )
        INSERT INTO address_events (ip, epoch, host_id, kind)
        SELECT ip, lease_epoch, lease_host, 'claimed' FROM claimed
        RETURNING host(ip)
        """,
        {"host": host_id, "lease": lease, "limit": limit, "refused": list(refused)},
    ).fetchall()
    return _select(conn, [ip for (ip,) in rows])


def renew(conn: Connection, host_id: HostId, lease: float) -> list[Address]:
    """Prolong every lease of the host that has not expired, whatever its state; returns what it holds."""
    rows = conn.execute(
        """
        UPDATE addresses SET lease_until = clock_timestamp() + make_interval(secs => %(lease)s)
        WHERE lease_host = %(host)s AND lease_until > clock_timestamp()
        RETURNING host(ip)
        """,
        {"host": host_id, "lease": lease},
    ).fetchall()
    return _select(conn, [ip for (ip,) in rows])


def set_state(conn: Connection, ip: str, epoch: int, state: AddressState, error: str = "") -> bool:
    """Say how far an address is, under the lease `epoch`; false, and nothing done, when that lease is over."""
    return bool(
        conn.execute(
            """
            WITH changed AS (
                UPDATE addresses SET state = %(state)s::address_state, last_error = %(error)s,
                    ready_epoch = CASE WHEN %(state)s::address_state = 'ready' THEN lease_epoch END,
                    updated_at = clock_timestamp()
                WHERE ip = %(ip)s::inet AND lease_epoch = %(epoch)s AND lease_until > clock_timestamp()
                RETURNING ip, lease_epoch, lease_host, state, last_error
            )
            INSERT INTO address_events (ip, epoch, host_id, kind, detail)
            SELECT ip, lease_epoch, lease_host, state,
                CASE WHEN last_error = '' THEN '{}' ELSE jsonb_build_object('error', last_error) END
            FROM changed
            """,
            {"ip": ip, "epoch": epoch, "state": state, "error": error},
        ).rowcount
    )


def note(conn: Connection, ip: str, epoch: int, host_id: HostId, kind: str, detail: Mapping[str, str]) -> None:
    """Write down what happened to an address without a change of its state."""
    conn.execute(
        "INSERT INTO address_events (ip, epoch, host_id, kind, detail) VALUES (%s, %s, %s, %s, %s::jsonb)",
        [ip, epoch, host_id, kind, json.dumps(dict(detail))],
    )


def lock(conn: Connection, ip: str, epoch: int, seconds: float) -> bool:
    """Be the only one to change who has the address, until the transaction ends.

    False when somebody else does just now, or the lease `epoch` does not run for so many seconds more: what is begun
    under it might be done after its end.
    """
    return conn.execute(
        """
        SELECT pg_try_advisory_xact_lock(hashtextextended('address:' || %(ip)s, 0))
        FROM addresses WHERE ip = %(ip)s::inet AND lease_epoch = %(epoch)s
            AND lease_until > clock_timestamp() + make_interval(secs => %(seconds)s)
        """,
        {"ip": ip, "epoch": epoch, "seconds": seconds},
    ).fetchone() == (True,)


def quarantine(conn: Connection, ip: str, epoch: int, seconds: float, error: str) -> bool:
    """Put an address into `error` and let nobody try again for so long; false when the lease `epoch` is over."""
    if not set_state(conn, ip, epoch, "error", error):
        return False
    conn.execute(
        """
        UPDATE addresses SET no_claim_before = clock_timestamp() + make_interval(secs => %s) WHERE ip = %s::inet
        """,
        [seconds, ip],
    )
    return True


def release(conn: Connection, ip: str, epoch: int, error: str = "") -> bool:
    """Give an address back, with the reason; false, and nothing done, when the lease `epoch` is over."""
    return bool(
        conn.execute(
            """
            WITH held AS (
                SELECT ip, lease_epoch, lease_host FROM addresses
                WHERE ip = %(ip)s::inet AND lease_epoch = %(epoch)s AND lease_host IS NOT NULL FOR UPDATE
            ), released AS (
                UPDATE addresses a SET lease_host = NULL, lease_until = NULL, state = 'free', ready_epoch = NULL,
                    last_error = %(error)s, updated_at = clock_timestamp()
                FROM held WHERE a.ip = held.ip
            )
            INSERT INTO address_events (ip, epoch, host_id, kind, detail)
            SELECT ip, lease_epoch, lease_host, 'released',
                CASE WHEN %(error)s = '' THEN '{}' ELSE jsonb_build_object('error', %(error)s::text) END
            FROM held
            """,
            {"ip": ip, "epoch": epoch, "error": error},
        ).rowcount
    )


def held_by(conn: Connection, host_id: HostId) -> list[Held]:
    """What the host may send from: enabled, published under the running lease, and that for 5 seconds more at least."""
    with conn.cursor(row_factory=class_row(Held)) as cursor:
        return cursor.execute(
            """
            SELECT host(ip) AS ip, host(bind_ip) AS bind_ip, ptr_name, lease_epoch AS epoch, pool_id,
                extract(epoch FROM lease_until - clock_timestamp())::float AS seconds_left
            FROM addresses
            WHERE state = 'ready' AND ready_epoch = lease_epoch AND is_enabled
                AND lease_host = %s AND lease_until > clock_timestamp() + interval '5 s'
            ORDER BY addresses.ip
            """,
            [host_id],
        ).fetchall()


def in_use(conn: Connection, ips: Sequence[str]) -> set[str]:
    """Those of the addresses from which somebody is sending just now."""
    rows = conn.execute(
        """
        SELECT DISTINCT host(source) FROM deliveries
        WHERE source = ANY(%s::inet[]) AND claimed_by IS NOT NULL AND next_attempt_at > clock_timestamp()
            AND status IN ('accepted', 'reattempt')
        """,
        [list(ips)],
    )
    return {ip for (ip,) in rows}


# The choice


def in_pools(conn: Connection, pool_ids: Sequence[PoolId]) -> dict[PoolId, list[Candidate]]:
    """The enabled addresses of each of the pools."""
    found: dict[PoolId, list[Candidate]] = {pool_id: [] for pool_id in pool_ids}
    rows = conn.execute(
        """
        SELECT pool_id, host(ip),
            coalesce(state = 'ready' AND ready_epoch = lease_epoch AND lease_until > clock_timestamp(), false)
        FROM addresses WHERE is_enabled AND pool_id = ANY(%s) ORDER BY ip
        """,
        [list(found)],
    )
    for pool_id, ip, ready in rows:
        found[pool_id].append(Candidate(ip, ready))
    return found


def key(project_id: ProjectId, domain: str) -> bytes:
    """What sticks to an address: a project's mail to one recipient domain."""
    return project_id.bytes + domain.encode()


def choose(candidates: Sequence[Candidate], key: bytes) -> str | None:
    """The address for `key`: among the ready ones, else among all; None when there is none.

    Rendezvous hashing: the same key stays with its address while that one is there, and when one comes or goes only the
    keys it gains or had are moved.
    """
    chosen = [candidate.ip for candidate in candidates if candidate.ready] or [candidate.ip for candidate in candidates]
    return max(chosen, key=lambda ip: hashlib.blake2b(key + b"\0" + ip.encode(), digest_size=8).digest(), default=None)


def orphaned(conn: Connection, limit: int) -> list[Orphan]:
    """Up to `limit` pending deliveries that nobody is at, with a source that is not an enabled address of their pool.

    The first `limit` of each source are looked at, by index: nobody claims an orphan, so it comes to the front. One
    that has no source is left out while its pool has no address.
    """
    with conn.cursor(row_factory=class_row(Orphan)) as cursor:
        return cursor.execute(
            """
            WITH RECURSIVE sources (source) AS (
                SELECT '0.0.0.0/0'::inet
                UNION ALL
                SELECT (SELECT d.source FROM deliveries d
                        WHERE d.status IN ('accepted', 'reattempt') AND d.source > s.source
                        ORDER BY d.source LIMIT 1)
                FROM sources s WHERE s.source IS NOT NULL
            ), pending AS (
                SELECT d.* FROM sources s CROSS JOIN LATERAL (
                    SELECT id, message_id, source, domain, claimed_by, next_attempt_at FROM deliveries
                    WHERE status IN ('accepted', 'reattempt') AND source = s.source
                    ORDER BY next_attempt_at LIMIT %(limit)s) d
                UNION ALL
                (SELECT id, message_id, source, domain, claimed_by, next_attempt_at FROM deliveries
                 WHERE status IN ('accepted', 'reattempt') AND source IS NULL
                 ORDER BY next_attempt_at LIMIT %(limit)s)
            )
            SELECT d.id AS delivery_id, d.message_id, m.project_id, m.pool_id, d.domain, host(d.source) AS source
            FROM pending d JOIN messages m ON m.id = d.message_id
            WHERE (d.claimed_by IS NULL OR d.next_attempt_at <= clock_timestamp())
                AND NOT EXISTS (SELECT FROM addresses a
                                WHERE a.ip = d.source AND a.pool_id = m.pool_id AND a.is_enabled)
                AND (d.source IS NOT NULL
                    OR EXISTS (SELECT FROM addresses a WHERE a.pool_id = m.pool_id AND a.is_enabled))
            ORDER BY d.next_attempt_at LIMIT %(limit)s
            """,
            {"limit": limit},
        ).fetchall()


def move(conn: Connection, choices: Sequence[tuple[DeliveryId, str | None]]) -> list[Moved]:
    """Give pending deliveries another source; each becomes a row `moved` in the timeline.

    Left alone, and not in the result: what is no longer pending, is claimed just now, or would leave its pool.
    """
    with conn.cursor(row_factory=class_row(Moved)) as cursor:
        return cursor.execute(
            """
            WITH chosen AS (
                SELECT * FROM unnest(%(ids)s::bigint[], %(sources)s::inet[]) AS c (id, source)
            ), moved AS (
                UPDATE deliveries d SET source = chosen.source
                FROM chosen, messages m
                WHERE d.id = chosen.id AND m.id = d.message_id AND d.status IN ('accepted', 'reattempt')
                    AND d.source IS DISTINCT FROM chosen.source
                    AND (d.claimed_by IS NULL OR d.next_attempt_at <= clock_timestamp())
                    AND (chosen.source IS NULL OR EXISTS (
                        SELECT FROM addresses a WHERE a.ip = chosen.source AND a.pool_id = m.pool_id))
                RETURNING d.id, d.message_id, d.source
            )
            INSERT INTO timeline (message_id, delivery_id, kind, source, text)
            SELECT message_id, id, 'moved', source,
                CASE WHEN source IS NULL THEN 'Its pool has no address now' ELSE 'To another address of its pool' END
            FROM moved
            RETURNING delivery_id, message_id, host(source) AS source
            """,
            {"ids": [delivery_id for delivery_id, _ in choices], "sources": [source for _, source in choices]},
        ).fetchall()


def remove_old_events(conn: Connection, days: int, limit: int) -> int:
    """Forget what happened to addresses more than so many days ago; returns how many rows."""
    return conn.execute(
        """
        DELETE FROM address_events WHERE id IN (
            SELECT id FROM address_events WHERE at < now() - make_interval(days => %s) ORDER BY id LIMIT %s)
        """,
        [days, limit],
    ).rowcount
