-- Why an address is suppressed, and why a delivery waits, was not sent or ended, in words.

ALTER TABLE suppressions ADD COLUMN kind text NOT NULL DEFAULT 'bounce'
    CHECK (kind IN ('bounce', 'complaint', 'manual'));
UPDATE suppressions SET kind = 'manual' WHERE suppressed_until = 'infinity';

ALTER TABLE deliveries ADD COLUMN cause text NOT NULL DEFAULT '';
-- Of a held one, what it is held for: block (its organization may not send; also where this is NULL), domain (its
-- sender's DNS is wrong), operator (until somebody releases it).
ALTER TABLE deliveries ADD COLUMN held_for text CHECK (held_for IN ('block', 'domain', 'operator'));
