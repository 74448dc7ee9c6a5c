-- What is held is looked at every few seconds, whoever it belongs to.
-- transactional: false
CREATE INDEX CONCURRENTLY IF NOT EXISTS deliveries_held ON deliveries (organization_id) WHERE status = 'held';
