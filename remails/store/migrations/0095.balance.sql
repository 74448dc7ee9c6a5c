-- What is promised and what is there: how many deliveries a message was stored with (NULL: before this version, at least one),
-- how far the look through all messages has come, and which messages did not add up when they were looked at.

ALTER TABLE messages ADD COLUMN recipients integer;

CREATE TABLE balance_walks (
    name text PRIMARY KEY,
    -- The last message that was looked at.
    position uuid NOT NULL
);

CREATE TABLE imbalances (
    message_id uuid PRIMARY KEY,
    found_at timestamptz NOT NULL DEFAULT now(),
    problem text NOT NULL
);
