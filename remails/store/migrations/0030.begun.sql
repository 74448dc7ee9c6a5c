-- Since when a message may be on its way to a server that has not answered yet: noted before the first octet, gone with the
-- result. Whoever claims such a delivery again knows that it may have arrived. Not indexed, so that noting it stays cheap.

ALTER TABLE deliveries ADD COLUMN begun_at timestamptz;
