-- name: lock
SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))

-- name: encoding
SELECT current_setting('server_encoding')

-- name: other_owner
SELECT quote_ident(pg_get_userbyid(nspowner)) FROM pg_namespace
WHERE nspname = %s AND pg_get_userbyid(nspowner) <> current_user

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

-- name: foreign_tables
-- What stands in the schema of a space where our table of migrations does not.
SELECT string_agg(c.relname, ', ' ORDER BY c.relname)
FROM pg_class c
WHERE c.relnamespace = to_regnamespace(quote_ident(%s)) AND c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S')
HAVING count(*) FILTER (
    WHERE c.relname = 'migrations' AND obj_description(c.oid, 'pg_class') LIKE 'Which migrations%%'
) = 0

-- name: wait_for_views
SELECT set_config('lock_timeout', %s, true)

-- name: let_readers_in
SELECT let_readers_in()
