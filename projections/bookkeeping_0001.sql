-- The bookkeeping of one space, in its schema `cuebook_<space>`. Migrations only go forward: a change is a new file.
-- Tables of projections are never migrated: a changed table is a new version, filled from the log.

CREATE TABLE checkpoints (
    projection  text        NOT NULL,
    version     integer     NOT NULL,
    tables_in   text        NOT NULL,
    sequence    bigint      NOT NULL DEFAULT 0,
    event_id    text        NOT NULL DEFAULT '',
    shown       boolean     NOT NULL DEFAULT false,
    updated_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (projection, version)
) WITH (fillfactor = 10); -- a few rows, updated all the time: always room for the next version on the same page
COMMENT ON TABLE checkpoints IS 'How far each version of each projection has read; committed together with its rows.';
COMMENT ON COLUMN checkpoints.tables_in IS 'The schema that holds the tables of this version.';
COMMENT ON COLUMN checkpoints.sequence IS 'Stream sequence of the last event applied; 0 before the first.';
COMMENT ON COLUMN checkpoints.event_id IS 'Id of that event, empty if it has none: a log that says otherwise is another log.';
COMMENT ON COLUMN checkpoints.shown IS 'Whether the views of this schema show this version.';
CREATE UNIQUE INDEX checkpoints_shown ON checkpoints (projection) WHERE shown;

CREATE TABLE parked_events (
    projection  text        NOT NULL,
    version     integer     NOT NULL,
    sequence    bigint      NOT NULL,
    recorded_at timestamptz,
    event_id    text        NOT NULL,
    subject     text        NOT NULL,
    reason      text        NOT NULL,
    parked_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (projection, version, sequence)
);
COMMENT ON TABLE parked_events IS
    'Events that a projection could not apply and went past. They stand in the log; a corrected version reads them again.';

-- Let the views of this schema show the tables of one version of a projection: `SELECT show_version('runs', 2)`.
-- The way back is the same statement with the earlier number. Readers see either version, never a mixture.
CREATE FUNCTION show_version(name text, number integer) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    here   text := current_schema();
    source text;
    item   record;
BEGIN
    SELECT c.tables_in INTO source FROM checkpoints c WHERE c.projection = name AND c.version = number FOR UPDATE;
    IF source IS NULL THEN
        RAISE EXCEPTION 'projection % has no version %', name, number USING ERRCODE = 'no_data_found';
    END IF;
    -- What the version shown until now had and the new one has not goes too.
    FOR item IN
        SELECT DISTINCT v.viewname FROM pg_views v
        JOIN checkpoints c ON c.projection = name
        JOIN pg_class t ON t.relname = v.viewname AND t.relnamespace = to_regnamespace(quote_ident(c.tables_in))
        WHERE v.schemaname = here
    LOOP
        EXECUTE format('DROP VIEW %I.%I', here, item.viewname);
    END LOOP;
    FOR item IN
        SELECT t.oid, t.relname FROM pg_class t
        WHERE t.relnamespace = to_regnamespace(quote_ident(source)) AND t.relkind IN ('r', 'p') AND NOT t.relispartition
    LOOP
        EXECUTE format('CREATE VIEW %I.%I AS SELECT * FROM %I.%I', here, item.relname, source, item.relname);
        PERFORM copy_comments(item.oid, format('%I.%I', here, item.relname)::regclass);
    END LOOP;
    UPDATE checkpoints SET shown = false WHERE projection = name AND shown;
    UPDATE checkpoints SET shown = true WHERE projection = name AND version = number;
    PERFORM let_readers_in();
END $$;

CREATE FUNCTION copy_comments(source regclass, target regclass) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    item record;
BEGIN
    EXECUTE format('COMMENT ON VIEW %s IS %L', target, obj_description(source, 'pg_class'));
    FOR item IN
        SELECT a.attname, d.description FROM pg_description d
        JOIN pg_attribute a ON a.attrelid = d.objoid AND a.attnum = d.objsubid
        WHERE d.objoid = source AND d.classoid = 'pg_class'::regclass AND d.objsubid > 0
    LOOP
        EXECUTE format('COMMENT ON COLUMN %s.%I IS %L', target, item.attname, item.description);
    END LOOP;
END $$;

-- The projections write, everybody else reads: whoever is granted `cuebook_reader` sees this schema and no more.
-- Without the right to make roles or to grant, the administrator does it; nothing fails.
CREATE FUNCTION let_readers_in() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    BEGIN
        IF to_regrole('cuebook_reader') IS NULL THEN
            CREATE ROLE cuebook_reader NOLOGIN;
        END IF;
    EXCEPTION WHEN insufficient_privilege OR duplicate_object OR unique_violation THEN
        NULL;
    END;
    IF to_regrole('cuebook_reader') IS NOT NULL THEN
        EXECUTE format('GRANT USAGE ON SCHEMA %I TO cuebook_reader', current_schema());
        EXECUTE format('GRANT SELECT ON ALL TABLES IN SCHEMA %I TO cuebook_reader', current_schema());
    END IF;
END $$;

-- Make sure that a table partitioned by time has the partition for the month of each moment.
-- Made apart and then attached: that does not wait for people who are reading the table.
CREATE FUNCTION add_months(parent regclass, moments timestamptz[]) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    first  timestamp;
    schema text;
    name   text;
    part   text;
BEGIN
    SELECT n.nspname, c.relname INTO schema, name
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = parent;
    FOR first IN SELECT DISTINCT date_trunc('month', moment AT TIME ZONE 'UTC') FROM unnest(moments) AS moment LOOP
        part := format('%I.%I', schema, name || to_char(first, '_YYYY_MM'));
        IF to_regclass(part) IS NULL THEN
            EXECUTE format('CREATE TABLE %s (LIKE %I.%I INCLUDING ALL)', part, schema, name);
            EXECUTE format(
                'ALTER TABLE %I.%I ATTACH PARTITION %s FOR VALUES FROM (%L) TO (%L)',
                schema, name, part, first AT TIME ZONE 'UTC', (first + interval '1 month') AT TIME ZONE 'UTC'
            );
        END IF;
    END LOOP;
END $$;
