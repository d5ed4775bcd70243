\echo Use "CREATE EXTENSION millrace" to load this file. \quit

-- Messages are UTF-8, and their texts are stored as they came. (In another encoding only ASCII can be read here.)
DO $$
BEGIN
    IF pg_catalog.getdatabaseencoding() <> 'UTF8' THEN
        RAISE EXCEPTION 'millrace needs a database with encoding UTF8, not %', pg_catalog.getdatabaseencoding()
            USING ERRCODE = 'feature_not_supported', HINT = 'Create one: CREATE DATABASE mydb ENCODING ''UTF8'' TEMPLATE template0. Clients may have any encoding.';
    END IF;
END
$$;

-- Schemas: what users call; state that belongs to the extension's owner; definitions kept as views (C13, C14).
CREATE SCHEMA millrace;
COMMENT ON SCHEMA millrace IS 'streams, staging, vault and marts: functions to declare them, views to watch them';
CREATE SCHEMA millrace_state;
COMMENT ON SCHEMA millrace_state IS 'state of streams, staging tables and marts; written by millrace only';
CREATE SCHEMA millrace_def;
COMMENT ON SCHEMA millrace_def IS 'every declared query and expression as a view, so that PostgreSQL follows renames and guards what they need';

-- Roles are of the whole cluster: another database may have made them already.
DO $$
DECLARE
    role text;
BEGIN
    FOREACH role IN ARRAY '{millrace_admin, millrace_monitor}'::text[] LOOP
        BEGIN
            EXECUTE pg_catalog.format('CREATE ROLE %I NOLOGIN', role);
        EXCEPTION WHEN duplicate_object OR unique_violation THEN
            -- The latter when it is making them at this moment.
            NULL;
        END;
    END LOOP;
END
$$;

GRANT USAGE ON SCHEMA millrace TO PUBLIC;
-- The names of state tables and definitions are seen by those who may read some of them.
GRANT USAGE ON SCHEMA millrace_state TO PUBLIC;
GRANT USAGE ON SCHEMA millrace_def TO PUBLIC;

-- Functions of the declaring surface are C trampolines onto their namesakes here, which run as the extension's
-- owner and are told who calls.
CREATE SCHEMA millrace_internal;
COMMENT ON SCHEMA millrace_internal IS 'the other half of the declaring functions; not for users';
