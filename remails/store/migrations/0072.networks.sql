-- From where a credential may be used; one without a row may be used from anywhere. A table of its own, because the version
-- before reads api_keys by `SELECT *`.

CREATE TABLE credential_networks (
    smtp_credential_id uuid REFERENCES smtp_credentials ON DELETE CASCADE,
    api_key_id uuid REFERENCES api_keys ON DELETE CASCADE,
    network cidr NOT NULL,
    CHECK (num_nonnulls(smtp_credential_id, api_key_id) = 1),
    UNIQUE (smtp_credential_id, network),
    UNIQUE (api_key_id, network)
);
