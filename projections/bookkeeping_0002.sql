-- A version of a projection may stand in the database several times: each filling of its tables is a generation, numbered
-- per projection. One is shown, one may be built beside it, and the one shown before is kept for the way back.

ALTER TABLE checkpoints
    ADD COLUMN generation integer,
    ADD COLUMN state      text NOT NULL DEFAULT 'live' CHECK (state IN ('live', 'building', 'previous')),
    ADD COLUMN kept_from  timestamptz,
    ADD COLUMN made_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    ADD COLUMN hidden_at  timestamptz;
UPDATE checkpoints SET generation = version, made_at = updated_at;
ALTER TABLE checkpoints ALTER COLUMN generation SET NOT NULL;
ALTER TABLE checkpoints ALTER COLUMN state DROP DEFAULT;
ALTER TABLE checkpoints DROP CONSTRAINT checkpoints_pkey;
ALTER TABLE checkpoints ADD PRIMARY KEY (projection, generation);
CREATE UNIQUE INDEX checkpoints_live ON checkpoints (projection, version) WHERE state = 'live';
COMMENT ON TABLE checkpoints IS 'How far each generation of each projection has read; committed together with its rows.';
COMMENT ON COLUMN checkpoints.generation IS 'Counts the fillings of a projection''s tables, whatever their version.';
COMMENT ON COLUMN checkpoints.state IS
    'live: the service that has this version writes it. building: a rebuild does. previous: nobody, until a rollback.';
COMMENT ON COLUMN checkpoints.kept_from IS
    'Tables partitioned by time hold nothing recorded before; NULL: they hold everything.';
COMMENT ON COLUMN checkpoints.hidden_at IS 'Since when the views show another generation; NULL: they show it, or never did.';
COMMENT ON COLUMN checkpoints.shown IS 'Whether the views of this schema show this generation.';
COMMENT ON COLUMN checkpoints.tables_in IS 'The schema that holds the tables of this generation.';

ALTER TABLE parked_events
    ADD COLUMN generation integer,
    ADD COLUMN skipped_at timestamptz,
    ADD COLUMN skipped_by text;
UPDATE parked_events SET generation = version;
ALTER TABLE parked_events ALTER COLUMN generation SET NOT NULL;
ALTER TABLE parked_events DROP CONSTRAINT parked_events_pkey;
ALTER TABLE parked_events ADD PRIMARY KEY (projection, generation, sequence);
COMMENT ON TABLE parked_events IS
    'Events that a projection could not apply and went past. They stand in the log; `cuebook projection retry` applies one.';
COMMENT ON COLUMN parked_events.skipped_at IS 'When somebody decided that it stays out; NULL: to be decided.';

CREATE TABLE retention (
    projection  text        PRIMARY KEY,
    keep_months integer     NOT NULL CHECK (keep_months > 0),
    set_at      timestamptz NOT NULL DEFAULT clock_timestamp(),
    set_by      text        NOT NULL
);
COMMENT ON TABLE retention IS 'How many months the tables partitioned by time keep; no row: all.';
COMMENT ON COLUMN retention.keep_months IS 'Whole months before the present one.';

-- Which schemas are ours to drop; and a health history indexed like the audit log.
DO $$
DECLARE
    item record;
BEGIN
    FOR item IN SELECT tables_in AS name FROM checkpoints LOOP
        EXECUTE format('COMMENT ON SCHEMA %I IS %L', item.name, 'cuebook');
    END LOOP;
    FOR item IN SELECT tables_in AS name FROM checkpoints WHERE projection = 'agents' AND version = 1 LOOP
        EXECUTE format('DROP INDEX IF EXISTS %I.agent_health_recorded_at', item.name);
        EXECUTE format(
            'CREATE INDEX agent_health_recorded_at ON %I.agent_health USING brin (recorded_at) WITH (autosummarize = on)',
            item.name
        );
    END LOOP;
END $$;

-- The key of the advisory lock that the writer of a generation holds. The schema of the space is last in every path of ours.
CREATE FUNCTION claim_key(name text, number integer) RETURNS bigint LANGUAGE sql STABLE AS $$
    SELECT hashtextextended((current_schemas(false))[cardinality(current_schemas(false))] || ' ' || name || ' ' || number, 1)
$$;

-- Whether somebody writes a generation now.
CREATE FUNCTION is_claimed(name text, number integer) RETURNS boolean LANGUAGE sql STABLE AS $$
    SELECT EXISTS (
        SELECT FROM pg_locks
        WHERE locktype = 'advisory' AND objsubid = 1 AND granted
          AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
          AND (classid::bigint << 32) | objid::bigint = claim_key(name, number)
    )
$$;

-- Let the views of this schema show one generation: `SELECT show_generation('runs', 2)`. The way back is the same statement
-- with the earlier number. Readers see either generation, never a mixture. Views whose columns stay the same are replaced
-- in place, with whatever was granted on them or built on them.
CREATE FUNCTION show_generation(name text, number integer) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    here   text := current_schema();
    target checkpoints;
    item   record;
BEGIN
    -- Whoever switches holds the shown one first, then the other, and then what migrations hold.
    PERFORM FROM checkpoints c WHERE c.projection = name AND c.shown FOR UPDATE;
    SELECT * INTO target FROM checkpoints c WHERE c.projection = name AND c.generation = number FOR UPDATE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'projection % has no generation %', name, number USING ERRCODE = 'no_data_found';
    END IF;
    PERFORM pg_advisory_xact_lock(hashtextextended(here, 0));
    -- What the generation shown until now had and the new one has not, or has otherwise, goes first.
    FOR item IN
        SELECT DISTINCT v.oid, v.relname FROM checkpoints c
        JOIN pg_class t ON t.relnamespace = to_regnamespace(quote_ident(c.tables_in))
        JOIN pg_class v ON v.relname = t.relname AND v.relkind = 'v' AND v.relnamespace = to_regnamespace(quote_ident(here))
        WHERE c.projection = name
    LOOP
        IF columns_of(item.oid) IS DISTINCT FROM
           columns_of(to_regclass(format('%I.%I', target.tables_in, item.relname))) THEN
            EXECUTE format('DROP VIEW %I.%I', here, item.relname);
        END IF;
    END LOOP;
    FOR item IN
        SELECT t.oid, t.relname FROM pg_class t
        WHERE t.relnamespace = to_regnamespace(quote_ident(target.tables_in))
          AND t.relkind IN ('r', 'p') AND NOT t.relispartition
    LOOP
        EXECUTE format(
            'CREATE OR REPLACE VIEW %I.%I AS SELECT * FROM %I.%I', here, item.relname, target.tables_in, item.relname
        );
        PERFORM copy_comments(item.oid, format('%I.%I', here, item.relname)::regclass);
    END LOOP;
    UPDATE checkpoints SET state = 'previous'
    WHERE projection = name AND version = target.version AND state = 'live' AND generation <> number;
    UPDATE checkpoints SET shown = false, hidden_at = clock_timestamp()
    WHERE projection = name AND shown AND generation <> number;
    UPDATE checkpoints SET shown = true, state = 'live', hidden_at = NULL
    WHERE projection = name AND generation = number;
    PERFORM let_readers_in();
    PERFORM pg_notify('cuebook', here);
END $$;

CREATE FUNCTION columns_of(relation oid) RETURNS text[] LANGUAGE sql STABLE AS $$
    SELECT array_agg(attname || ' ' || format_type(atttypid, atttypmod) ORDER BY attnum)
    FROM pg_attribute WHERE attrelid = relation AND attnum > 0 AND NOT attisdropped
$$;
DROP FUNCTION show_version(text, integer);

-- Make sure that a table partitioned by time has the partition for the month of each moment, and say from when on rows
-- belong into it, in microseconds since 1970; NULL: always. A month that was dropped does not come back.
-- Made apart and then attached: that does not wait for people who are reading the table.
DROP FUNCTION add_months(regclass, timestamptz[]);
CREATE FUNCTION add_months(parent regclass, moments timestamptz[]) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    first   timestamp;
    schema  text;
    name    text;
    part    text;
    horizon timestamptz;
BEGIN
    SELECT n.nspname, c.relname INTO schema, name
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = parent;
    SELECT c.kept_from INTO horizon FROM checkpoints c WHERE c.tables_in = schema;
    FOR first IN SELECT DISTINCT date_trunc('month', moment AT TIME ZONE 'UTC') FROM unnest(moments) AS moment LOOP
        part := format('%I.%I', schema, name || to_char(first, '_YYYY_MM'));
        IF to_regclass(part) IS NULL AND (horizon IS NULL OR first AT TIME ZONE 'UTC' >= horizon) THEN
            EXECUTE format('CREATE TABLE %s (LIKE %I.%I INCLUDING ALL)', part, schema, name);
            EXECUTE format(
                'ALTER TABLE %I.%I ATTACH PARTITION %s FOR VALUES FROM (%L) TO (%L)',
                schema, name, part, first AT TIME ZONE 'UTC', (first + interval '1 month') AT TIME ZONE 'UTC'
            );
        END IF;
    END LOOP;
    RETURN (extract(epoch FROM horizon) * 1000000)::bigint;
END $$;
