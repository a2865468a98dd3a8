-- name: wait_for_claim
SELECT set_config('lock_timeout', %s, false)

-- name: claim
SELECT pg_advisory_lock(hashtextextended(current_schemas(false)::text || %s || %s::integer, 1))

-- name: read
SELECT sequence, event_id FROM checkpoints WHERE projection = %s AND version = %s

-- name: advance
-- No row: another process has moved it. The row stays locked until the commit, so two writers never mix.
UPDATE checkpoints
SET sequence = %s, event_id = %s, updated_at = clock_timestamp()
WHERE projection = %s AND version = %s AND sequence = %s AND event_id = %s

-- name: park
INSERT INTO parked_events (projection, version, sequence, recorded_at, event_id, subject, reason)
VALUES (%s, %s, %s, %s, %s, %s, %s)
