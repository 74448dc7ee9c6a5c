-- How much room the disk of the database has left, as its own host sees it and says every few seconds (roles/postgresql);
-- nothing where nobody does. One row.

CREATE TABLE storage (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    free_bytes bigint NOT NULL,
    reserve_bytes bigint NOT NULL,
    -- Whether mail is refused for it.
    is_short boolean NOT NULL,
    seen_at timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 20);

-- Short below the reserve, and until there is a fifth more than it, so that it does not go to and fro.
CREATE FUNCTION storage_seen(free bigint, reserve bigint) RETURNS boolean LANGUAGE sql AS $$
    INSERT INTO storage (free_bytes, reserve_bytes, is_short) VALUES (free, reserve, free < reserve)
    ON CONFLICT (one) DO UPDATE SET free_bytes = free, reserve_bytes = reserve, seen_at = now(),
        is_short = free < CASE WHEN storage.is_short THEN reserve + reserve / 5 ELSE reserve END
    RETURNING is_short
$$;
