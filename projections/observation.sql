-- name: parked
SELECT c.projection, (
    SELECT count(*) FROM parked_events AS p
    WHERE p.projection = c.projection AND p.generation = c.generation AND p.skipped_at IS NULL
)
FROM checkpoints AS c WHERE c.shown
