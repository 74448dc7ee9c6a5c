-- The mail: messages apart from their bodies, one delivery per recipient (the queue), and what happened to each.

CREATE TABLE messages (
    -- UUIDv7: ordered by time, so lists page by id.
    id uuid PRIMARY KEY,
    organization_id uuid NOT NULL REFERENCES organizations ON DELETE CASCADE,
    project_id uuid NOT NULL REFERENCES projects ON DELETE CASCADE,
    -- What was used to send it. No foreign keys: it stays a fact when they are removed, and removing need not look here.
    domain_id uuid NOT NULL,
    smtp_credential_id uuid,
    api_key_id uuid,
    -- The pool chosen at submission; no delivery ever leaves from another one.
    pool_id uuid NOT NULL REFERENCES pools,
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz NOT NULL,
    mail_from text NOT NULL,
    header_from text NOT NULL,
    subject text NOT NULL,
    message_id_header text NOT NULL,
    label text,
    size integer NOT NULL,
    -- Whether the bytes need 8BITMIME or SMTPUTF8 on their way.
    eight_bit boolean NOT NULL,
    smtputf8 boolean NOT NULL
);
CREATE INDEX messages_organization ON messages (organization_id, id DESC);
CREATE INDEX messages_project ON messages (project_id, id DESC);
CREATE INDEX messages_label ON messages (organization_id, label, id DESC) WHERE label IS NOT NULL;

-- Raw bytes as they leave, without our signature. Never read by a list; gone when retention says so.
CREATE TABLE message_bodies (
    message_id uuid PRIMARY KEY REFERENCES messages ON DELETE CASCADE,
    raw bytea NOT NULL
);
-- lz4 where this PostgreSQL has it; never the default pglz, which costs more than all else at 50 kB.
DO $$
BEGIN
    ALTER TABLE message_bodies ALTER COLUMN raw SET COMPRESSION lz4;
EXCEPTION WHEN feature_not_supported THEN
    ALTER TABLE message_bodies ALTER COLUMN raw SET STORAGE EXTERNAL;
END $$;

CREATE TYPE delivery_status AS ENUM ('accepted', 'reattempt', 'held', 'delivered', 'failed', 'suppressed');

CREATE TABLE deliveries (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    message_id uuid NOT NULL REFERENCES messages ON DELETE CASCADE,
    organization_id uuid NOT NULL,
    recipient text NOT NULL,
    -- The recipient's domain, lower-case A-labels: what is looked up.
    domain text NOT NULL,
    status delivery_status NOT NULL,
    -- The outbound address it leaves from; NULL while its pool has none.
    source inet,
    attempts integer NOT NULL DEFAULT 0,
    -- Due from then on. A claim moves it to the end of its lease, so a claim that is never recorded comes due again.
    next_attempt_at timestamptz NOT NULL,
    claimed_by uuid,
    -- Counts up with each claim: a result is recorded only under the claim it belongs to.
    claim_epoch integer NOT NULL DEFAULT 0,
    last_code smallint,
    last_enhanced text,
    last_reply text,
    mx_host text,
    mx_ip inet,
    tls text,
    finished_at timestamptz
) WITH (fillfactor = 80);
CREATE INDEX deliveries_message ON deliveries (message_id);
CREATE INDEX deliveries_due ON deliveries (source, next_attempt_at) WHERE status IN ('accepted', 'reattempt');
CREATE INDEX deliveries_claimed ON deliveries (claimed_by) WHERE claimed_by IS NOT NULL;
-- For lists of the statuses that are rare: ids of messages are in order of time.
CREATE INDEX deliveries_not_delivered ON deliveries (organization_id, message_id DESC, status)
    WHERE status IN ('accepted', 'reattempt', 'held', 'failed', 'suppressed');
ALTER TABLE deliveries SET (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 1);

-- What happened, one row each, appended and never changed.
CREATE TABLE timeline (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    message_id uuid NOT NULL REFERENCES messages ON DELETE CASCADE,
    delivery_id bigint,
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- accepted, attempted, delivered, deferred, failed, ambiguous, suppressed, held, expired, retried, moved
    kind text NOT NULL,
    text text NOT NULL DEFAULT '',
    code smallint,
    enhanced text,
    source inet,
    mx_host text,
    mx_ip inet,
    tls text,
    milliseconds integer
);
CREATE INDEX timeline_message ON timeline (message_id, id);

-- What was used: appended with each batch, folded into `usage` by periodic. Neither is a row per organization.
CREATE TABLE usage_log (
    organization_id uuid NOT NULL,
    project_id uuid NOT NULL,
    at timestamptz NOT NULL DEFAULT now(),
    messages integer NOT NULL,
    recipients integer NOT NULL
);
CREATE INDEX usage_log_organization ON usage_log (organization_id);

CREATE TABLE usage (
    organization_id uuid NOT NULL REFERENCES organizations ON DELETE CASCADE,
    project_id uuid NOT NULL,
    day date NOT NULL,
    messages bigint NOT NULL,
    recipients bigint NOT NULL,
    PRIMARY KEY (organization_id, project_id, day)
);
