-- Limits of organizations: plans, rates as token buckets.

-- Nothing slowed anybody down before; the plan `free` does now. It stays with those who made their organization themselves
-- (they were given its 3000 messages a month); what an operator made is not limited.
ALTER TABLE organizations ALTER COLUMN plan SET DEFAULT 'unlimited';
UPDATE organizations SET plan = 'unlimited' WHERE plan = 'free' AND message_quota IS DISTINCT FROM 3000;

-- A rate of its own instead of the plan's.
CREATE TABLE rates (
    organization_id uuid PRIMARY KEY REFERENCES organizations ON DELETE CASCADE,
    burst integer NOT NULL CHECK (burst >= 1),
    per_hour integer NOT NULL CHECK (per_hour >= 1)
);

-- Tokens that nobody has taken, as of `at`. A new bucket is full: more than `burst` is never believed.
CREATE TABLE rate_buckets (
    organization_id uuid PRIMARY KEY REFERENCES organizations ON DELETE CASCADE,
    tokens double precision NOT NULL DEFAULT 'Infinity',
    at timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 50);

-- Tokens that a process has taken and may use until then.
CREATE TABLE rate_leases (
    id uuid PRIMARY KEY,
    organization_id uuid NOT NULL REFERENCES organizations ON DELETE CASCADE,
    tokens integer NOT NULL,
    until timestamptz NOT NULL
);
CREATE INDEX rate_leases_organization ON rate_leases (organization_id);
