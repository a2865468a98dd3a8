-- Hypertables of TimescaleDB. {ext} is the schema of the extension: none of our search paths has it.

-- name: state
-- That it is preloaded is seen by a setting of its loader: shared_preload_libraries may be read by few.
-- Source: src/loader/bgw_counter.c of TimescaleDB.
SELECT
    a.default_version, e.extversion, n.nspname,
    current_setting('timescaledb.max_background_workers', true) IS NOT NULL, current_setting('timescaledb.license', true)
FROM (VALUES (1)) AS one
LEFT JOIN pg_available_extensions AS a ON a.name = 'timescaledb'
LEFT JOIN pg_extension AS e ON e.extname = 'timescaledb'
LEFT JOIN pg_namespace AS n ON n.oid = e.extnamespace

-- name: one_at_a_time
-- Several spaces of a database may be set up at once.
SELECT pg_advisory_xact_lock(hashtextextended('cuebook makes the extension timescaledb', 0))

-- name: load
-- The library is loaded, and its settings are there, when something of it is first used.
SELECT {ext}.time_bucket(INTERVAL '1 hour', now())

-- name: hypertable
SELECT {ext}.create_hypertable(
    {table}::regclass, {ext}.by_range({time}, INTERVAL {chunk}), create_default_indexes => false
)

-- name: columnstore
ALTER TABLE {table} SET (
    timescaledb.enable_columnstore = true, timescaledb.segmentby = {segment_by}, timescaledb.orderby = {order_by}
)

-- name: aggregate
CREATE MATERIALIZED VIEW {name} WITH (timescaledb.continuous, timescaledb.materialized_only = false) AS {query}
WITH NO DATA

-- name: compress
CALL {ext}.add_columnstore_policy(
    {table}::regclass, after => INTERVAL {after}, if_not_exists => true, schedule_interval => INTERVAL {every},
    initial_start => now() + INTERVAL {every}
)

-- name: refresh
-- Without a beginning: rows that come late change hours long past, and only what has changed is added up again.
SELECT {ext}.add_continuous_aggregate_policy(
    {table}::regclass, start_offset => NULL, end_offset => INTERVAL {after}, schedule_interval => INTERVAL {every},
    initial_start => now() + INTERVAL {every}, if_not_exists => true
)

-- name: jobs
-- What is added up is quickest read before it is compressed.
SELECT job_id FROM timescaledb_information.jobs WHERE hypertable_schema = %s
ORDER BY proc_name LIKE '%%refresh%%' DESC, job_id

-- name: run
CALL {ext}.run_job({job})

-- name: used
-- Projections of which somebody reads or writes hypertables.
SELECT DISTINCT projection FROM checkpoints
WHERE timeseries = 'timescale' AND state = 'live' AND projection = ANY (%s) ORDER BY 1

-- name: needing
-- Generations of one version whose schema lacks a view that is to be there.
SELECT generation, tables_in, shown FROM checkpoints
WHERE projection = %s AND version = %s AND timeseries = 'native'
  AND to_regclass(format('%%I.%%I', tables_in, %s::text)) IS NULL

-- name: histories
SELECT hypertable_name, column_name FROM timescaledb_information.dimensions
WHERE hypertable_schema = %s AND dimension_number = 1 ORDER BY 1

-- name: aggregates
SELECT view_name FROM timescaledb_information.continuous_aggregates WHERE view_schema = %s ORDER BY 1

-- name: outdated
-- Chunks with rows from before a moment, and whether all their rows are.
SELECT range_start, range_end <= %(kept_from)s AS whole FROM timescaledb_information.chunks
WHERE hypertable_schema = %(schema)s AND hypertable_name = %(table)s AND range_start < %(kept_from)s
ORDER BY range_start

-- name: drop_chunks
SELECT {ext}.drop_chunks({table}::regclass, older_than => {kept_from}::timestamptz)

-- name: drop_rows
DELETE FROM {table} WHERE {time} < {kept_from}::timestamptz

-- name: add_up_again
CALL {ext}.refresh_continuous_aggregate({table}::regclass, NULL, {kept_from}::timestamptz)

-- name: tables_of
-- The tables of one generation like those of `queries.sql`; a hypertable with its compressed chunks.
SELECT
    t.relname AS name, h.hypertable_name IS NOT NULL AS partitioned,
    CASE WHEN h.hypertable_name IS NULL THEN greatest(t.reltuples, 0)::bigint
         ELSE {ext}.approximate_row_count(t.oid) END AS rows,
    CASE WHEN h.hypertable_name IS NULL THEN pg_total_relation_size(t.oid)
         ELSE coalesce({ext}.hypertable_size(t.oid), 0) END AS bytes,
    c.partitions, c.compressed
FROM pg_class AS t
LEFT JOIN timescaledb_information.hypertables AS h
    ON h.hypertable_schema = %(tables_in)s AND h.hypertable_name = t.relname
CROSS JOIN LATERAL (
    SELECT count(*) AS partitions, count(*) FILTER (WHERE is_compressed) AS compressed
    FROM timescaledb_information.chunks AS c
    WHERE c.hypertable_schema = %(tables_in)s AND c.hypertable_name = t.relname
) AS c
WHERE t.relnamespace = to_regnamespace(quote_ident(%(tables_in)s)) AND t.relkind = 'r'
ORDER BY t.relname

-- name: set_path
SELECT set_config('search_path', %s, true)
