-- name: list
SELECT projection, keep_months FROM retention

-- name: set
INSERT INTO retention (projection, keep_months, set_by) VALUES (%s, %s, %s)
ON CONFLICT (projection) DO UPDATE SET keep_months = excluded.keep_months, set_by = excluded.set_by, set_at = clock_timestamp()

-- name: unset
DELETE FROM retention WHERE projection = %s

-- name: horizon
-- The beginning of the oldest month to be kept; the clock is the database's.
SELECT (date_trunc('month', clock_timestamp() AT TIME ZONE 'UTC') - make_interval(months => keep_months)) AT TIME ZONE 'UTC'
FROM retention WHERE projection = %s

-- name: advance
-- From now on nothing older is written. Batches hold this row, so none is half through it.
UPDATE checkpoints SET kept_from = %s
WHERE projection = %s AND generation = %s AND (kept_from IS NULL OR kept_from < %s)

-- name: outdated
-- Partitions that end at or before the moment from which a generation keeps rows.
SELECT n.nspname, p.relname AS parent, c.relname AS partition, i.inhdetachpending
FROM pg_inherits AS i
JOIN pg_class AS c ON c.oid = i.inhrelid
JOIN pg_class AS p ON p.oid = i.inhparent
JOIN pg_namespace AS n ON n.oid = p.relnamespace
WHERE n.nspname = %s AND p.relkind = 'p' AND c.relkind = 'r'
  AND substring(pg_get_expr(c.relpartbound, c.oid) FROM $$TO \('([^']+)'\)$$)::timestamptz <= %s
ORDER BY 3

-- name: left_behind
-- Partitions that were detached, and whose dropping was interrupted.
SELECT c.relname FROM pg_class AS c
JOIN pg_class AS p ON p.relnamespace = c.relnamespace AND p.relkind = 'p' AND c.relname ~ ('^' || p.relname || '_\d{4,}_\d\d$')
WHERE c.relnamespace = to_regnamespace(quote_ident(%s)) AND c.relkind = 'r' AND NOT c.relispartition
