"""Who holds which outbound address, and until when.

`claim` gives a free or expired address to a host and counts `lease_epoch` up; everything the host then does (`set_state`,
`release`) names that epoch and does nothing under another, so a host that was paused cannot disturb its successor. All times
are the database's clock; hosts compare durations only.

    free --claim--> claimed --> attaching --> configuring --> ready --> draining --release--> free
                       any of these --> error --> ready

`held_by` is the one rule by which `outbound` may send. Each change but a renewal is a row in `address_events`: from `claimed`
to `released`, `expired` or `taken over` an epoch's lease, from `ready` to any other word of that epoch its use.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from psycopg.rows import class_row

from remails.db import Connection
from remails.store import addresses
from remails.store.addresses import Address, AddressState
from remails.store.ids import HostId, PoolId


@dataclass(frozen=True, slots=True)
class Held:
    """An address that this host may send from, for `seconds_left` more seconds."""

    ip: str
    bind_ip: str | None
    ptr_name: str
    epoch: int
    seconds_left: float
    pool_id: PoolId


def claim(conn: Connection, host_id: HostId, lease: float, limit: int) -> list[Address]:
    """Take up to `limit` addresses of the host's provider and zone that nobody holds, for `lease` seconds.

    A host takes up to its share of all addresses at once; beyond it one at a time, and only what nobody took for a third of a
    lease, so that the first to wake does not take what the others could; never more than its `max_addresses`. An address goes to its preferred host as long as that
    one lives (its last heartbeat is younger than a lease), has room and does not refuse it; what an operator asked for goes
    before that. A holder that stays in `error` for the length of a lease loses the address to a host that does not refuse
    it. Addresses that are one thing at the provider (one `provider_ref`) go to one host, the first of them first.
    """
    rows = conn.execute(
        """
        WITH me AS (
            SELECT id, provider, zone, max_addresses FROM hosts
            WHERE id = %(host)s AND desired_state = 'active' FOR NO KEY UPDATE
        ), alive AS (
            SELECT h.id, h.max_addresses > (SELECT count(*) FROM addresses held
                WHERE held.lease_host = h.id AND held.lease_until > clock_timestamp()) AS has_room
            FROM hosts h JOIN me USING (provider, zone)
            WHERE h.desired_state = 'active'
                AND h.heartbeat_at > clock_timestamp() - make_interval(secs => %(lease)s)
        ), refusals AS (
            SELECT ip, host_id, is_firm FROM address_refusals WHERE until > clock_timestamp()
        ), counted AS (
            SELECT count(*) FILTER (WHERE a.lease_host = me.id AND a.lease_until > clock_timestamp()) AS mine,
                ceil(count(*)::float / (SELECT greatest(1, count(*)) FROM alive)) AS share
            FROM addresses a JOIN me USING (provider, zone) WHERE a.is_enabled
        ), picked AS (
            SELECT a.ip, a.lease_epoch, a.lease_host, a.lease_until
            FROM addresses a JOIN me USING (provider, zone) CROSS JOIN counted
            WHERE a.is_enabled AND a.no_claim_before <= clock_timestamp()
                AND (mine < share OR clock_timestamp() - make_interval(secs => %(lease)s / 3)
                    >= CASE WHEN a.lease_until <= clock_timestamp() THEN a.lease_until ELSE a.updated_at END)
                AND CASE
                    WHEN a.lease_host IS NULL OR a.lease_until <= clock_timestamp() THEN NOT EXISTS (
                        SELECT FROM refusals r WHERE r.ip = a.ip AND r.host_id = me.id AND r.is_firm)
                    ELSE a.state = 'error' AND a.lease_host <> me.id
                        AND a.updated_at <= clock_timestamp() - make_interval(secs => %(lease)s)
                        AND NOT EXISTS (SELECT FROM refusals r WHERE r.ip = a.ip AND r.host_id = me.id)
                    END
                AND coalesce(a.next_host, a.preferred_host, me.id) IN (
                    SELECT me.id
                    UNION ALL
                    SELECT other.id FROM hosts other
                    WHERE other.id NOT IN (SELECT id FROM alive WHERE has_room)
                        OR other.id IN (SELECT r.host_id FROM refusals r WHERE r.ip = a.ip))
                AND NOT EXISTS (
                    SELECT FROM addresses s
                    WHERE a.provider_ref <> '' AND s.provider = a.provider AND s.provider_ref = a.provider_ref
                        AND CASE WHEN s.lease_until > clock_timestamp() THEN s.lease_host <> me.id
                            ELSE s.is_enabled AND s.ip < a.ip END)
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
        INSERT INTO address_events (ip, epoch, host_id, kind, detail)
        SELECT ip, lease_epoch, lease_host,
            CASE WHEN lease_until > clock_timestamp() THEN 'taken over' ELSE 'expired' END,
            jsonb_build_object('until', lease_until)
        FROM picked WHERE lease_host IS NOT NULL
        UNION ALL
        SELECT ip, lease_epoch, lease_host, 'claimed', '{}' FROM claimed
        RETURNING host(ip)
        """,
        {"host": host_id, "lease": lease, "limit": limit},
    ).fetchall()
    return addresses.these(conn, {ip for (ip,) in rows})


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
    return addresses.these(conn, {ip for (ip,) in rows})


def set_state(conn: Connection, ip: str, epoch: int, state: AddressState, error: str = "") -> bool:
    """Say how far an address is, under the lease `epoch`; false, and nothing done, when that lease is over.

    `updated_at` is since when it is in that state, whatever the error.
    """
    return bool(
        conn.execute(
            """
            WITH changed AS (
                UPDATE addresses SET state = %(state)s::address_state, last_error = %(error)s,
                    ready_epoch = CASE WHEN %(state)s::address_state = 'ready' THEN lease_epoch END,
                    updated_at = CASE WHEN state = %(state)s::address_state THEN updated_at ELSE clock_timestamp() END
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


def bind(conn: Connection, ip: str, epoch: int, source: str) -> None:
    """Say what is bound for an address whose provider translates it, under the lease `epoch`."""
    conn.execute(
        """
        UPDATE addresses SET bind_ip = %s
        WHERE ip = %s::inet AND lease_epoch = %s AND lease_until > clock_timestamp()
        """,
        [source, ip, epoch],
    )


def lock(conn: Connection, ip: str, epoch: int, seconds: float) -> bool:
    """Be the only one to change who has the address, until the transaction ends.

    False when somebody else does just now, or the lease `epoch` does not run for so many seconds more: what is begun
    under it might be done after its end.
    """
    # Of a host that freezes now the lock ends with its session.
    conn.execute("SELECT set_config('idle_in_transaction_session_timeout', %s, true)", [str(int(seconds * 2000))])
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


def refuse(conn: Connection, ip: str, host_id: HostId, seconds: float, reason: str, *, is_firm: bool) -> None:
    """Let this host leave an address to others for so long; unless it is firm, only as long as there is another one."""
    conn.execute(
        """
        INSERT INTO address_refusals (ip, host_id, until, is_firm, reason)
        VALUES (%s, %s, clock_timestamp() + make_interval(secs => %s), %s, %s)
        ON CONFLICT (ip, host_id) DO UPDATE
            SET until = EXCLUDED.until, is_firm = EXCLUDED.is_firm, reason = EXCLUDED.reason
        """,
        [ip, host_id, seconds, is_firm, reason],
    )


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
