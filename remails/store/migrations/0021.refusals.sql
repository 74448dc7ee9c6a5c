-- A host that could not use an address leaves it to others for a while. It is firm when the host was told that it cannot have
-- the address; otherwise the host takes it all the same when nobody else holds it.
CREATE TABLE address_refusals (
    ip inet NOT NULL REFERENCES addresses ON DELETE CASCADE,
    host_id uuid NOT NULL REFERENCES hosts ON DELETE CASCADE,
    until timestamptz NOT NULL,
    is_firm boolean NOT NULL,
    reason text NOT NULL,
    PRIMARY KEY (ip, host_id)
);

-- Two hosts with one server's id would both think that an address is attached to them.
CREATE UNIQUE INDEX hosts_server ON hosts (provider, server_ref) WHERE server_ref <> '' AND desired_state <> 'retired';
