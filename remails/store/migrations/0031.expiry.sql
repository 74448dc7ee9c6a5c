-- How long a project's mail is tried, in seconds; 0: as long as any.

ALTER TABLE projects ADD COLUMN expires_in integer NOT NULL DEFAULT 0
    CONSTRAINT projects_expires_in_check CHECK (expires_in >= 0);
