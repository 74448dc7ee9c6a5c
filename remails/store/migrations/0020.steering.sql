-- The operator's wish, for once: who is to hold an address next. Its holder gives it back for that; a claim fulfils it.

ALTER TABLE addresses ADD COLUMN next_host uuid REFERENCES hosts ON DELETE SET NULL;
