-- Why a delivery waits or ended, in words; and when its sender was told that it is late.

ALTER TABLE timeline ADD COLUMN cause text NOT NULL DEFAULT '';
ALTER TABLE deliveries ADD COLUMN delayed_at timestamptz;
