-- name: settings
-- Whole tables are compared here, not a few rows found by key as in a batch.
SELECT set_config('enable_hashjoin', 'on', true), set_config('enable_mergejoin', 'on', true),
       set_config('enable_partitionwise_join', 'on', true), set_config('work_mem', '64MB', true)

-- name: tables
SELECT t.relname, t.relkind = 'p'
FROM pg_class AS t
WHERE t.relnamespace = to_regnamespace(quote_ident(%s)) AND t.relkind IN ('r', 'p') AND NOT t.relispartition
ORDER BY t.relname

-- name: columns
-- With the place in the primary key, or 0.
SELECT a.attname, format_type(a.atttypid, a.atttypmod), coalesce(array_position(i.indkey::smallint[], a.attnum), -1) + 1
FROM pg_class AS t
JOIN pg_attribute AS a ON a.attrelid = t.oid AND a.attnum > 0 AND NOT a.attisdropped
LEFT JOIN pg_index AS i ON i.indrelid = t.oid AND i.indisprimary
WHERE t.relnamespace = to_regnamespace(quote_ident(%s)) AND t.relname = %s
ORDER BY a.attnum

-- name: count
-- `*<>` looks at the stored bytes: 1.0 and 1.00 differ, and NULL equals NULL.
SELECT
    count(*) FILTER (WHERE rebuilt.key IS NULL), count(*) FILTER (WHERE live.key IS NULL),
    count(*) FILTER (WHERE live.content *<> rebuilt.content), count(*)
FROM {live} AS live FULL JOIN {rebuilt} AS rebuilt USING ({keys})

-- name: sample
SELECT
    jsonb_build_object({key_pairs}), to_jsonb(live.content), to_jsonb(rebuilt.content)
FROM {live} AS live FULL JOIN {rebuilt} AS rebuilt USING ({keys})
WHERE rebuilt.key IS NULL OR live.key IS NULL OR live.content *<> rebuilt.content
ORDER BY {keys}
LIMIT {limit}
