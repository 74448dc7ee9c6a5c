-- Where mail leaves from: the sending hosts and the outbound addresses they hold by lease.

CREATE TYPE host_state AS ENUM ('active', 'drain', 'retired');

CREATE TABLE hosts (
    id uuid PRIMARY KEY,
    name text NOT NULL UNIQUE,
    provider text NOT NULL,
    server_ref text NOT NULL DEFAULT '',
    zone text NOT NULL DEFAULT '',
    desired_state host_state NOT NULL DEFAULT 'active',
    max_addresses integer NOT NULL DEFAULT 5 CHECK (max_addresses >= 0),
    agent_version text NOT NULL DEFAULT '',
    heartbeat_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now()
);

CREATE TYPE address_state AS ENUM ('free', 'claimed', 'attaching', 'configuring', 'ready', 'draining', 'error');

CREATE TABLE addresses (
    ip inet PRIMARY KEY CHECK (masklen(ip) = CASE family(ip) WHEN 4 THEN 32 ELSE 128 END),
    pool_id uuid NOT NULL REFERENCES pools,
    provider text NOT NULL,
    zone text NOT NULL DEFAULT '',
    provider_ref text NOT NULL DEFAULT '',
    -- What a socket is bound to, where that is not the public address itself (NAT).
    bind_ip inet,
    -- Reverse name; also what we say in EHLO from this address.
    ptr_name text NOT NULL,
    is_enabled boolean NOT NULL DEFAULT true,
    preferred_host uuid REFERENCES hosts ON DELETE SET NULL,
    lease_host uuid REFERENCES hosts,
    -- Counts up with each lease: the fencing token of everything done under it.
    lease_epoch bigint NOT NULL DEFAULT 0,
    lease_until timestamptz,
    no_claim_before timestamptz NOT NULL DEFAULT '-infinity',
    state address_state NOT NULL DEFAULT 'free',
    ready_epoch bigint,
    last_error text NOT NULL DEFAULT '',
    updated_at timestamptz NOT NULL DEFAULT now(),
    CHECK ((lease_host IS NULL) = (lease_until IS NULL)),
    CHECK (state <> 'ready' OR (lease_host IS NOT NULL AND ready_epoch = lease_epoch))
);
CREATE INDEX addresses_pool ON addresses (pool_id);
CREATE INDEX addresses_lease_host ON addresses (lease_host);

CREATE TABLE address_events (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    ip inet NOT NULL,
    epoch bigint NOT NULL,
    host_id uuid,
    kind text NOT NULL,
    detail jsonb NOT NULL DEFAULT '{}'
);
CREATE INDEX address_events_ip ON address_events (ip, id DESC);
