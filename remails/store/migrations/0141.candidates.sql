-- The addresses that mail of a pool may leave from, and whether some host can send from each just now.
CREATE VIEW candidates AS
SELECT pool_id, ip,
    coalesce(state = 'ready' AND ready_epoch = lease_epoch AND lease_until > clock_timestamp(), false) AS is_ready
FROM addresses WHERE is_enabled;
