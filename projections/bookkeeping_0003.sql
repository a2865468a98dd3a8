-- Histories lie in native partitions or in hypertables of TimescaleDB: each generation notes which, and why. What is added
-- up from them is a view beside the tables, and shown like them.

ALTER TABLE checkpoints
    ADD COLUMN timeseries     text CHECK (timeseries IN ('native', 'timescale')),
    ADD COLUMN timeseries_why text;
UPDATE checkpoints SET timeseries = 'native', timeseries_why = 'as ever before' WHERE projection IN ('audit', 'agents');
COMMENT ON COLUMN checkpoints.timeseries IS
    'What its tables that grow with time are made of: native partitions or hypertables; NULL: it has no such tables.';
COMMENT ON COLUMN checkpoints.timeseries_why IS 'Why, as it was decided when the generation was made.';

-- As before, and views of a generation are shown too.
CREATE OR REPLACE FUNCTION show_generation(name text, number integer) RETURNS void LANGUAGE plpgsql AS $$
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
          AND t.relkind IN ('r', 'p', 'v') AND NOT t.relispartition
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

-- As before, and for a history that is not partitioned natively it says only from when on rows belong into it.
CREATE OR REPLACE FUNCTION add_months(parent regclass, moments timestamptz[]) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    first   timestamp;
    schema  text;
    name    text;
    kind    "char";
    part    text;
    horizon timestamptz;
BEGIN
    SELECT n.nspname, c.relname, c.relkind INTO schema, name, kind
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = parent;
    SELECT c.kept_from INTO horizon FROM checkpoints c WHERE c.tables_in = schema;
    IF kind = 'p' THEN
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
    END IF;
    RETURN (extract(epoch FROM horizon) * 1000000)::bigint;
END $$;
