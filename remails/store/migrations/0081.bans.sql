-- Who guesses at passwords: client networks, which are banned for it, and the accounts they guess at. Processes count in
-- memory and add to these rows now and then.
CREATE TABLE bans (
    kind text NOT NULL CHECK (kind IN ('network', 'account')),
    name text NOT NULL,
    -- As of `counted_at`; guesses leak away with time.
    guesses double precision NOT NULL,
    counted_at timestamptz NOT NULL DEFAULT now(),
    service text NOT NULL,
    -- How many bans there were; each is twice as long as the one before.
    bans integer NOT NULL DEFAULT 0,
    banned_until timestamptz,
    PRIMARY KEY (kind, name)
);
CREATE INDEX bans_banned ON bans (banned_until) WHERE banned_until IS NOT NULL;
CREATE INDEX bans_counted ON bans (counted_at);
