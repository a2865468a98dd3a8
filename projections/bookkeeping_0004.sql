-- As before, and of what stands in the schema only what is ours is for us to grant: an administrator may have put a view
-- of their own beside it.
CREATE OR REPLACE FUNCTION let_readers_in() RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    item record;
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
        FOR item IN
            SELECT c.oid FROM pg_class AS c
            WHERE c.relnamespace = to_regnamespace(quote_ident(current_schema())) AND c.relkind IN ('r', 'v')
              AND pg_has_role(c.relowner, 'USAGE')
        LOOP
            EXECUTE format('GRANT SELECT ON %s TO cuebook_reader', item.oid::regclass);
        END LOOP;
    END IF;
END $$;
