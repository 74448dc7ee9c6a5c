-- Why a domain's mail is held, from the last look at its DNS; NULL: it goes out.

ALTER TABLE domains ADD COLUMN hold_reason text;
CREATE INDEX domains_held ON domains (id) WHERE hold_reason IS NOT NULL;
