-- What the sender asked to be told (RFC 3461), as it was given.

ALTER TABLE messages ADD COLUMN dsn_ret text, ADD COLUMN dsn_envid text;
ALTER TABLE deliveries ADD COLUMN dsn_notify text, ADD COLUMN dsn_orcpt text;
