-- name: lock
SELECT generation, version, tables_in, sequence FROM checkpoints WHERE projection = %s AND shown FOR UPDATE

-- name: events
SELECT sequence, event_id FROM parked_events WHERE projection = %s AND generation = %s

-- name: done
DELETE FROM parked_events WHERE projection = %s AND generation = %s AND sequence = %s

-- name: failed
UPDATE parked_events SET reason = %s, parked_at = clock_timestamp()
WHERE projection = %s AND generation = %s AND sequence = %s

-- name: skip
UPDATE parked_events AS p SET skipped_at = clock_timestamp(), skipped_by = %s
FROM checkpoints AS c
WHERE c.projection = p.projection AND c.generation = p.generation AND c.shown AND p.projection = %s AND p.sequence = %s
RETURNING p.reason
