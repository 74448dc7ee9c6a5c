-- Who sends: organizations, the people and keys that act for them, their projects and domains.

CREATE TYPE role AS ENUM ('read_only', 'maintainer', 'admin');
CREATE TYPE block_status AS ENUM ('not_blocked', 'no_sending', 'no_sending_or_receiving', 'full_freeze');

-- A set of outbound addresses with one reputation. Without another choice, mail leaves from the default pool.
CREATE TABLE pools (
    id uuid PRIMARY KEY,
    name text NOT NULL UNIQUE CHECK (length(name) BETWEEN 1 AND 100),
    is_default boolean NOT NULL DEFAULT false,
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE UNIQUE INDEX pools_one_default ON pools (is_default) WHERE is_default;

CREATE TABLE organizations (
    id uuid PRIMARY KEY,
    name text NOT NULL CHECK (length(name) BETWEEN 1 AND 100),
    plan text NOT NULL DEFAULT 'free',
    -- Messages per month; NULL is without limit. What was used stands in `usage`, never in this row.
    message_quota bigint CHECK (message_quota >= 0),
    quota_reset timestamptz NOT NULL DEFAULT date_trunc('month', now()) + interval '1 month',
    block_status block_status NOT NULL DEFAULT 'not_blocked',
    pool_id uuid REFERENCES pools ON DELETE SET NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE users (
    id uuid PRIMARY KEY,
    email text NOT NULL CHECK (email = lower(email)) UNIQUE,
    name text NOT NULL CHECK (length(name) BETWEEN 1 AND 256),
    password_hash text,
    is_admin boolean NOT NULL DEFAULT false,
    is_blocked boolean NOT NULL DEFAULT false,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE memberships (
    user_id uuid NOT NULL REFERENCES users ON DELETE CASCADE,
    organization_id uuid NOT NULL REFERENCES organizations ON DELETE CASCADE,
    role role NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (user_id, organization_id)
);
CREATE INDEX memberships_organization ON memberships (organization_id);

-- Server-side, so that they can be ended. The cookie holds the secret, the row its digest.
CREATE TABLE sessions (
    digest bytea PRIMARY KEY,
    user_id uuid NOT NULL REFERENCES users ON DELETE CASCADE,
    user_agent text NOT NULL DEFAULT '',
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz NOT NULL
);
CREATE INDEX sessions_user ON sessions (user_id);

-- Failed logins, to slow down guessing by account and by address.
CREATE TABLE login_failures (
    subject text NOT NULL,
    at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX login_failures_subject ON login_failures (subject, at);

CREATE TABLE projects (
    id uuid PRIMARY KEY,
    organization_id uuid NOT NULL REFERENCES organizations ON DELETE CASCADE,
    name text NOT NULL CHECK (length(name) BETWEEN 1 AND 100),
    retention_period_days integer NOT NULL DEFAULT 7 CHECK (retention_period_days BETWEEN 1 AND 365),
    plaintext_fallback boolean NOT NULL DEFAULT true,
    pool_id uuid REFERENCES pools ON DELETE SET NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (organization_id, name)
);

CREATE TABLE domains (
    id uuid PRIMARY KEY,
    organization_id uuid NOT NULL REFERENCES organizations ON DELETE CASCADE,
    -- Lower-case A-labels, no trailing dot.
    name text NOT NULL CHECK (name = lower(name) AND length(name) BETWEEN 3 AND 253),
    -- To be published at _remails.<name>; proves whose the domain is.
    ownership_token text NOT NULL,
    -- Set once ownership and DKIM were seen in DNS; from then on the domain may send and nobody else may claim it.
    verified_at timestamptz,
    verification jsonb NOT NULL DEFAULT '{}',
    checked_at timestamptz,
    pool_id uuid REFERENCES pools ON DELETE SET NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (organization_id, name)
);
-- Anyone may add a name, only one can prove it: nobody can squat on a domain by being first.
CREATE UNIQUE INDEX domains_verified ON domains (name) WHERE verified_at IS NOT NULL;
CREATE INDEX domains_name ON domains (name);
CREATE INDEX domains_checked ON domains (checked_at NULLS FIRST);

CREATE TYPE dkim_algorithm AS ENUM ('rsa_sha256', 'ed25519');

CREATE TABLE dkim_keys (
    id uuid PRIMARY KEY,
    domain_id uuid NOT NULL REFERENCES domains ON DELETE CASCADE,
    selector text NOT NULL,
    algorithm dkim_algorithm NOT NULL,
    -- PKCS#8 DER, sealed (remails.vault) in the context `dkim:<id>`.
    private_key bytea NOT NULL,
    -- The TXT record that belongs to it.
    record text NOT NULL,
    is_active boolean NOT NULL DEFAULT true,
    created_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (domain_id, selector)
);

CREATE TABLE domains_projects (
    domain_id uuid NOT NULL REFERENCES domains ON DELETE CASCADE,
    project_id uuid NOT NULL REFERENCES projects ON DELETE CASCADE,
    PRIMARY KEY (domain_id, project_id)
);
CREATE INDEX domains_projects_project ON domains_projects (project_id);

CREATE TABLE smtp_credentials (
    id uuid PRIMARY KEY,
    project_id uuid NOT NULL REFERENCES projects ON DELETE CASCADE,
    username text NOT NULL UNIQUE CHECK (username ~ '^[a-zA-Z0-9_-]{2,128}$'),
    description text NOT NULL DEFAULT '',
    digest bytea NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX smtp_credentials_project ON smtp_credentials (project_id);

CREATE TABLE api_keys (
    id uuid PRIMARY KEY,
    organization_id uuid NOT NULL REFERENCES organizations ON DELETE CASCADE,
    description text NOT NULL DEFAULT '',
    role role NOT NULL CHECK (role <> 'admin'),
    digest bytea NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX api_keys_organization ON api_keys (organization_id);

CREATE TABLE suppressions (
    organization_id uuid NOT NULL REFERENCES organizations ON DELETE CASCADE,
    -- Lower-cased; the form of mail.address.Address.key.
    address text NOT NULL,
    reason text NOT NULL DEFAULT '',
    -- Permanent failures in a row; the address is suppressed while `suppressed_until` lies ahead.
    failures integer NOT NULL DEFAULT 0,
    suppressed_until timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (organization_id, address)
);

CREATE TABLE audit_log (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at timestamptz NOT NULL DEFAULT now(),
    organization_id uuid REFERENCES organizations ON DELETE CASCADE,
    -- user, api_key, operator (the command line) or system
    actor_type text NOT NULL,
    actor_id uuid,
    actor_name text NOT NULL DEFAULT '',
    action text NOT NULL,
    target_type text NOT NULL,
    target_id text NOT NULL,
    details jsonb NOT NULL DEFAULT '{}'
);
CREATE INDEX audit_log_organization ON audit_log (organization_id, id DESC);
