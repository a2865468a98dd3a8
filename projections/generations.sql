-- The generations of projections: which there are, making one, showing one, dropping one.

-- name: all
SELECT
    projection, generation AS number, version, tables_in, sequence, event_id, shown, state, kept_from, made_at, hidden_at,
    timeseries, timeseries_why, updated_at, is_claimed(projection, generation) AS claimed
FROM checkpoints
WHERE projection = %s
ORDER BY generation

-- name: next_number
SELECT coalesce(max(generation), 0) + 1 FROM checkpoints WHERE projection = %s

-- name: schema_comment
SELECT obj_description(oid, 'pg_namespace') FROM pg_namespace WHERE nspname = %s

-- name: set_path
SELECT set_config('search_path', %s, true)

-- name: register
INSERT INTO checkpoints (projection, version, generation, tables_in, state, kept_from, timeseries, timeseries_why)
VALUES (%s, %s, %s, %s, %s, %s, %s, %s)

-- name: space_only
-- The schema of the space is last in every path of ours.
SELECT set_config('search_path', quote_ident((current_schemas(false))[cardinality(current_schemas(false))]), true)

-- name: show
SELECT show_generation(%s, %s)

-- name: lock_shown
SELECT sequence, event_id FROM checkpoints WHERE projection = %s AND shown FOR UPDATE

-- name: carry_decisions
-- What somebody decided to leave out stays left out; another log may have another event in its place.
UPDATE parked_events AS p SET skipped_at = before.skipped_at, skipped_by = before.skipped_by
FROM parked_events AS before
WHERE before.projection = %(projection)s AND before.generation = %(before)s AND before.skipped_at IS NOT NULL
  AND p.projection = before.projection AND p.generation = %(after)s AND p.sequence = before.sequence
  AND p.event_id = before.event_id AND p.recorded_at IS NOT DISTINCT FROM before.recorded_at

-- name: count_parked
SELECT count(*) FROM parked_events WHERE projection = %s AND generation = %s

-- name: forget_parked
DELETE FROM parked_events WHERE projection = %s AND generation = %s

-- name: unregister
DELETE FROM checkpoints WHERE projection = %s AND generation = %s AND NOT shown

-- name: claim
SELECT pg_advisory_xact_lock(claim_key(%s, %s::integer))
