-- Which message was stored under a key of the sender's, so that the same request made twice is one message.

CREATE TABLE idempotency_keys (
    project_id uuid NOT NULL REFERENCES projects ON DELETE CASCADE,
    key text NOT NULL,
    -- No foreign key: the answer stays the same when the message is forgotten.
    message_id uuid NOT NULL,
    -- Of what was sent, to tell a repetition from another message.
    fingerprint bytea NOT NULL,
    message_id_header text NOT NULL,
    created_at timestamptz NOT NULL,
    PRIMARY KEY (project_id, key)
);
CREATE INDEX idempotency_keys_created ON idempotency_keys (created_at);
