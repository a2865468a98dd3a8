-- name: wait_for_claim
SELECT set_config('lock_timeout', %s, false)

-- name: claim
SELECT pg_advisory_lock(claim_key(%s, %s::integer))

-- name: read
SELECT sequence, event_id, state FROM checkpoints WHERE projection = %s AND generation = %s

-- name: advance
-- No row: another process has moved it, or it is another's turn. The row stays locked until the commit, so two writers
-- never mix.
UPDATE checkpoints
SET sequence = %s, event_id = %s, updated_at = clock_timestamp()
WHERE projection = %s AND generation = %s AND sequence = %s AND event_id = %s AND state = %s

-- name: park
INSERT INTO parked_events (projection, version, generation, sequence, recorded_at, event_id, subject, reason)
VALUES (%s, %s, %s, %s, %s, %s, %s, %s)
