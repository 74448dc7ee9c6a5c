-- What became of messages that are forgotten by now, as far as they were not delivered; the rest follows from `usage`.

CREATE TABLE outcomes (
    organization_id uuid NOT NULL REFERENCES organizations ON DELETE CASCADE,
    project_id uuid NOT NULL,
    day date NOT NULL,
    status text NOT NULL,
    messages bigint NOT NULL,
    PRIMARY KEY (organization_id, project_id, day, status)
);
