-- How the connection of an attempt was secured, and what mail servers of a domain are its own.

ALTER TABLE timeline ADD COLUMN tls_policy text;
ALTER TABLE timeline ADD COLUMN tls_verified boolean;
ALTER TABLE timeline ADD COLUMN tls_note text NOT NULL DEFAULT '';

-- Policies of recipients' domains (MTA-STS, RFC 8461), known to every host until they end.
CREATE TABLE sts_policies (
    -- Lower-case A-labels.
    domain text PRIMARY KEY,
    -- The id that its TXT record had when it was fetched.
    record_id text NOT NULL,
    mode text NOT NULL,
    patterns text[] NOT NULL,
    max_age integer NOT NULL,
    fetched_at timestamptz NOT NULL,
    expires_at timestamptz NOT NULL,
    -- When to fetch it again, though nobody asks.
    refresh_at timestamptz NOT NULL
);
CREATE INDEX sts_policies_refresh ON sts_policies (refresh_at);
