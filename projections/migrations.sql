-- name: lock
SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))

-- name: encoding
SELECT current_setting('server_encoding')

-- name: schema_exists
SELECT 1 FROM pg_namespace WHERE nspname = %s

-- name: set_path
SELECT set_config('search_path', %s, true)

-- name: table
CREATE TABLE IF NOT EXISTS migrations (
    name   text        PRIMARY KEY,
    ran_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON TABLE migrations IS 'Which migrations of the bookkeeping have run.'

-- name: done
SELECT name FROM migrations

-- name: record
INSERT INTO migrations (name) VALUES (%s)

-- name: versions
SELECT version, shown FROM checkpoints WHERE projection = %s

-- name: register
INSERT INTO checkpoints (projection, version, tables_in) VALUES (%s, %s, %s)

-- name: show
SELECT show_version(%s, %s)

-- name: let_readers_in
SELECT let_readers_in()
