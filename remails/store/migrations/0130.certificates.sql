-- Certificates of the relay's own names, each with its key, for every host that shows them.
CREATE TABLE certificates (
    -- Also the name of the file on the hosts; `relay` is that of the relay itself.
    name text PRIMARY KEY,
    -- The host names it is for; what follows is NULL until there is one.
    names text[] NOT NULL DEFAULT '{}',
    -- PEM, its own certificate first.
    chain text,
    -- PKCS#8 DER, sealed in the context `certificate:<name>`.
    private_key bytea,
    serial text,
    not_before timestamptz,
    not_after timestamptz,
    source text CHECK (source IN ('acme', 'import')),
    stored_at timestamptz,
    -- An operator wants a new one, whatever the old one's age is, and the old one revoked.
    wanted_at timestamptz,
    revoke boolean NOT NULL DEFAULT false,
    -- No attempt to get a new one before this; an attempt moves it before it begins.
    attempt_at timestamptz NOT NULL DEFAULT now(),
    -- Attempts that failed since the last one that did not, and what the last one said.
    failures integer NOT NULL DEFAULT 0,
    failure text NOT NULL DEFAULT '',
    failed_at timestamptz
);

-- Who we are for an ACME server (RFC 8555 §7.3).
CREATE TABLE acme_accounts (
    directory text PRIMARY KEY,
    url text NOT NULL,
    -- PKCS#8 DER, sealed in the context `acme:<directory>`.
    private_key bytea NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);

-- What any api host answers an ACME server that looks whether a name is ours (RFC 8555 §8.3).
CREATE TABLE acme_challenges (
    token text PRIMARY KEY,
    key_authorization text NOT NULL,
    expires_at timestamptz NOT NULL
);
