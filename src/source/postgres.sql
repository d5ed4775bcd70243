-- Streams of changes from PostgreSQL servers: their slots, snapshots, and what is known of their tables.

CREATE TABLE millrace.replication (
    stream_id integer PRIMARY KEY REFERENCES millrace.stream ON DELETE CASCADE,
    -- Of publication and slot, where the options say no other; it stays when the database gets another name.
    name text NOT NULL,
    -- new: nothing was done at the source; making: a slot is being made; ready: it is read; finished: all was copied, and that was all.
    state text NOT NULL DEFAULT 'new' CHECK (state IN ('new', 'making', 'ready', 'finished')),
    -- Of the source's cluster.
    system text,
    made_publication boolean NOT NULL DEFAULT false,
    made_slot boolean NOT NULL DEFAULT false,
    -- The publication's tables, as far as they are known to be read or copied; used where the options name none.
    published text[] NOT NULL DEFAULT '{}',
    -- Where the slot began.
    beginning bigint NOT NULL DEFAULT 0,
    paused boolean NOT NULL DEFAULT false,
    -- What the source said last of the slot.
    checked_at timestamptz,
    wal_status text,
    retained_bytes bigint,
    confirmed_lsn pg_lsn,
    restart_lsn pg_lsn,
    current_lsn pg_lsn,
    over_budget boolean NOT NULL DEFAULT false
);
COMMENT ON TABLE millrace.replication IS 'streams of changes from PostgreSQL servers: their replication slot';

CREATE TABLE millrace.snapshot (
    stream_id integer NOT NULL REFERENCES millrace.stream ON DELETE CASCADE,
    source_table text NOT NULL,
    -- SQL of the source: these rows only.
    filter text,
    -- Afterwards, what it has not brought is removed.
    sweep boolean NOT NULL DEFAULT false,
    state text NOT NULL DEFAULT 'waiting' CHECK (state IN ('waiting', 'copying', 'sweeping', 'done')),
    started_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    finished_at timestamptz,
    -- How far it is: the partition (OID at the source), the next page of it (-1: it is done), and of all partitions.
    leaf bigint NOT NULL DEFAULT 0,
    -- The file that has these pages: VACUUM FULL and others write another one, where rows are elsewhere.
    file bigint NOT NULL DEFAULT 0,
    page bigint NOT NULL DEFAULT 0,
    pages bigint NOT NULL DEFAULT 0,
    pages_read bigint NOT NULL DEFAULT 0,
    rows bigint NOT NULL DEFAULT 0,
    first_position bigint,
    last_position bigint,
    PRIMARY KEY (stream_id, source_table)
);
COMMENT ON TABLE millrace.snapshot IS 'tables that are or were copied from a PostgreSQL server while their changes stream';

-- Which transactions a round of chunks has seen: those it has not count as no earlier (C19).
CREATE TABLE millrace.snapshot_round (
    stream_id integer NOT NULL REFERENCES millrace.stream ON DELETE CASCADE,
    position bigint NOT NULL,
    snapshot text NOT NULL,
    clock timestamptz NOT NULL,
    PRIMARY KEY (stream_id, position)
);
COMMENT ON TABLE millrace.snapshot_round IS 'rounds of snapshots that the stream has not passed yet';

-- Rows to be read again: a change of them left out what it had not changed, and that is not known here.
CREATE TABLE millrace.snapshot_key (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    stream_id integer NOT NULL REFERENCES millrace.stream ON DELETE CASCADE,
    source_table text NOT NULL,
    condition text NOT NULL
);
COMMENT ON TABLE millrace.snapshot_key IS 'rows of source tables that are to be read again, because a change of them was not whole';
CREATE INDEX ON millrace.snapshot_key (stream_id, id);

CREATE TABLE millrace.replication_table (
    stream_id integer NOT NULL REFERENCES millrace.stream ON DELETE CASCADE,
    description text NOT NULL,
    PRIMARY KEY (stream_id, description)
);
COMMENT ON TABLE millrace.replication_table IS 'how tables of the source have described themselves, as far as mirrors have followed';

SELECT pg_catalog.pg_extension_config_dump('millrace.replication', '');
SELECT pg_catalog.pg_extension_config_dump('millrace.snapshot', '');
SELECT pg_catalog.pg_extension_config_dump('millrace.snapshot_round', '');
SELECT pg_catalog.pg_extension_config_dump('millrace.snapshot_key_id_seq', '');
SELECT pg_catalog.pg_extension_config_dump('millrace.snapshot_key', '');
SELECT pg_catalog.pg_extension_config_dump('millrace.replication_table', '');

-- ---- options -----------------------------------------------------------------------------------------------

-- What a stream's options say, and what holds where they say nothing.
CREATE FUNCTION millrace_internal.postgres_options(stream_id integer, OUT tables text[], OUT publication text, OUT slot text, OUT snapshot text, OUT truncate text,
    OUT on_lost text, OUT snapshot_chunk integer, OUT snapshot_parallel integer, OUT wal_budget bigint, OUT publication_named boolean) RETURNS record
LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $$
    SELECT ARRAY(SELECT t FROM json_array_elements_text(coalesce(s.options -> 'tables', '[]')) AS t),
           coalesce(s.options ->> 'publication', r.name), coalesce(s.options ->> 'slot', r.name),
           coalesce(s.options ->> 'snapshot', 'initial'), coalesce(s.options ->> 'truncate', 'apply'), coalesce(s.options ->> 'on_lost', 'stop'),
           coalesce((s.options ->> 'snapshot_chunk')::integer, 20000), coalesce((s.options ->> 'snapshot_parallel')::integer, 1),
           coalesce(pg_size_bytes(s.options ->> 'wal_budget'), 10737418240), s.options ->> 'publication' IS NOT NULL
    FROM millrace.stream s JOIN millrace.replication r ON r.stream_id = s.id
    WHERE s.id = postgres_options.stream_id
$$;
COMMENT ON FUNCTION millrace_internal.postgres_options(integer) IS 'the options of a stream that reads from PostgreSQL, with their defaults';

-- Options of a stream that reads from PostgreSQL.
CREATE FUNCTION millrace_internal.check_postgres_options(options json) RETURNS void
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    member record;
    word text;
BEGIN
    PERFORM millrace_internal.check_members('options', options, '{tables, publication, slot, snapshot, truncate, on_lost, snapshot_chunk, snapshot_parallel, wal_budget}');
    IF options -> 'tables' IS NULL AND options -> 'publication' IS NULL THEN
        RAISE EXCEPTION 'option "tables" is missing' USING ERRCODE = 'invalid_parameter_value',
            HINT = 'It lists the tables to read, such as ["public.orders"]; without it, "publication" names one that is there.';
    END IF;
    IF options -> 'tables' IS NOT NULL THEN
        PERFORM millrace_internal.check_option_type('tables', options -> 'tables', '{array}');
        IF json_array_length(options -> 'tables') = 0 THEN
            RAISE EXCEPTION 'option "tables" names no table' USING ERRCODE = 'invalid_parameter_value';
        END IF;
        FOR member IN SELECT value, count(*) OVER (PARTITION BY value #>> '{}') AS n FROM json_array_elements(options -> 'tables') LOOP
            PERFORM millrace_internal.check_option_type('tables', member.value, '{string}');
            IF member.value #>> '{}' !~ '^[^.]+\..+$' THEN
                RAISE EXCEPTION 'table % has no schema', member.value USING ERRCODE = 'invalid_parameter_value',
                    HINT = 'Tables are written schema.table, as the source calls them, without quotes.';
            END IF;
            IF member.n > 1 THEN
                RAISE EXCEPTION 'table % is named twice', member.value USING ERRCODE = 'invalid_parameter_value';
            END IF;
        END LOOP;
    END IF;
    FOREACH word IN ARRAY '{publication, slot, snapshot, truncate, on_lost, wal_budget}'::text[] LOOP
        IF options -> word IS NOT NULL THEN
            PERFORM millrace_internal.check_option_type(word, options -> word, '{string}');
        END IF;
    END LOOP;
    IF options ->> 'slot' !~ '^[a-z0-9_]{1,63}$' THEN
        RAISE EXCEPTION 'invalid name "%" for option "slot"', options ->> 'slot' USING ERRCODE = 'invalid_parameter_value',
            HINT = 'A replication slot''s name consists of lower case letters, digits and underscores.';
    END IF;
    IF options ->> 'publication' IN ('') OR octet_length(options ->> 'publication') > 63 THEN
        RAISE EXCEPTION 'invalid name "%" for option "publication"', options ->> 'publication' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    PERFORM millrace_internal.check_word('snapshot', coalesce(options ->> 'snapshot', 'initial'), '{initial, never, only}');
    PERFORM millrace_internal.check_word('truncate', coalesce(options ->> 'truncate', 'apply'), '{apply, ignore, stop}');
    PERFORM millrace_internal.check_word('on_lost', coalesce(options ->> 'on_lost', 'stop'), '{stop, resnapshot}');
    IF coalesce(options ->> 'snapshot_chunk', '1') !~ '^[1-9][0-9]{0,6}$' THEN
        RAISE EXCEPTION 'invalid value % for option "snapshot_chunk"', options -> 'snapshot_chunk' USING ERRCODE = 'invalid_parameter_value', HINT = 'It is a number of rows.';
    END IF;
    IF coalesce(options ->> 'snapshot_parallel', '1') !~ '^([1-9]|[12][0-9]|3[0-2])$' THEN
        RAISE EXCEPTION 'invalid value % for option "snapshot_parallel"', options -> 'snapshot_parallel' USING ERRCODE = 'invalid_parameter_value', HINT = 'It must be between 1 and 32.';
    END IF;
    PERFORM pg_size_bytes(options ->> 'wal_budget');
END
$$;
COMMENT ON FUNCTION millrace_internal.check_postgres_options(json) IS 'raises an error for options that a stream of a PostgreSQL server does not have';

-- Is the server this very database?
CREATE FUNCTION millrace_internal.is_own_database(server text) RETURNS boolean
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp AS $$
    SELECT EXISTS (SELECT FROM pg_foreign_server f
                   WHERE f.srvname = server AND (SELECT option_value FROM pg_options_to_table(f.srvoptions) WHERE option_name = 'dbname') = current_database()
                     AND coalesce((SELECT option_value FROM pg_options_to_table(f.srvoptions) WHERE option_name = 'port'), '5432') = current_setting('port'))
$$;
COMMENT ON FUNCTION millrace_internal.is_own_database(text) IS 'whether a server''s options name this very database';

-- What millrace writes must not be what it reads.
CREATE FUNCTION millrace_internal.check_own_tables(server text, options json) RETURNS void
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    named text;
BEGIN
    IF NOT millrace_internal.is_own_database(server) THEN
        RETURN;
    END IF;
    IF options -> 'tables' IS NULL THEN
        RAISE EXCEPTION 'a stream of this very database must name its tables' USING ERRCODE = 'invalid_parameter_value',
            HINT = 'A publication of all tables has those that millrace writes, too: give "tables".';
    END IF;
    SELECT t INTO named FROM json_array_elements_text(coalesce(options -> 'tables', '[]')) AS t
    WHERE EXISTS (SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
                  WHERE n.nspname || '.' || c.relname = t
                    AND (n.nspname IN ('millrace', 'millrace_state', 'millrace_def')
                         OR EXISTS (SELECT FROM millrace.staging s WHERE c.oid IN (s.relation, s.log)) OR EXISTS (SELECT FROM millrace.target g WHERE g.relation = c.oid)))
    LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'table % is written by millrace itself', named USING ERRCODE = 'invalid_parameter_value',
            HINT = 'What a stream writes cannot be what it reads, in the same database.';
    END IF;
END
$$;
COMMENT ON FUNCTION millrace_internal.check_own_tables(text, json) IS 'raises an error when a stream would read what millrace writes';

-- The same for what is declared after the stream: trigger of tables that list what millrace writes.
CREATE FUNCTION millrace_internal.guard_source_tables() RETURNS trigger
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    reader record;
BEGIN
    SELECT s.name, n.nspname || '.' || c.relname AS written INTO reader
    FROM millrace.stream s JOIN millrace.replication r ON r.stream_id = s.id, pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    -- A staging table has a log perhaps.
    WHERE c.oid IN (NEW.relation, (row_to_json(NEW) ->> 'log')::regclass)
      AND n.nspname || '.' || c.relname IN (SELECT json_array_elements_text(s.options -> 'tables')) AND millrace_internal.is_own_database(s.server::text) LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'stream "%" reads table %, which would be written by millrace itself', reader.name, reader.written USING ERRCODE = 'invalid_parameter_value',
            HINT = 'What a stream writes cannot be what it reads, in the same database.';
    END IF;
    RETURN NEW;
END
$$;
COMMENT ON FUNCTION millrace_internal.guard_source_tables() IS 'trigger: refuses to write a table that a stream of this database reads';

-- A stream of changes was declared, or anew with other options.
CREATE FUNCTION millrace_internal.declare_replication(stream_id integer) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    left_out record;
BEGIN
    -- Names that differ may be alike as names of slots.
    INSERT INTO millrace.replication (stream_id, name)
    SELECT s.id, CASE WHEN EXISTS (SELECT FROM millrace.replication r WHERE r.name = n.name) THEN left(n.name, 52) || '_' || s.id ELSE n.name END
    FROM millrace.stream s, LATERAL (SELECT left('millrace_' || regexp_replace(lower(current_database() || '_' || s.name), '[^a-z0-9_]', '_', 'g'), 63)) AS n (name)
    WHERE s.id = declare_replication.stream_id ON CONFLICT DO NOTHING;
    IF FOUND THEN
        RETURN;
    END IF;
    -- What was to be copied only is to be followed now.
    IF (SELECT o.snapshot FROM millrace_internal.postgres_options(declare_replication.stream_id) o) <> 'only'
       AND EXISTS (SELECT FROM millrace.replication r WHERE r.stream_id = declare_replication.stream_id AND r.state = 'finished') THEN
        PERFORM millrace_internal.reset_source(declare_replication.stream_id);
    END IF;
    FOR left_out IN
        SELECT g.relation, g.definition ->> 'source_table' AS source_table FROM millrace.staging g, millrace_internal.postgres_options(declare_replication.stream_id) o
        WHERE g.stream_id = declare_replication.stream_id AND o.tables <> '{}' AND g.definition ->> 'source_table' <> ALL (o.tables) ORDER BY g.id
    LOOP
        RAISE NOTICE 'table % is not read any more: % stays as it is', left_out.source_table, left_out.relation
            USING HINT = 'When "tables" names it again, it is copied again.';
    END LOOP;
    -- What changes in a table while it is left out is not read: it is copied when it comes back.
    DELETE FROM millrace.snapshot s USING millrace_internal.postgres_options(declare_replication.stream_id) o
    WHERE s.stream_id = declare_replication.stream_id AND o.tables <> '{}' AND s.source_table <> ALL (o.tables);
    DELETE FROM millrace.snapshot_key k USING millrace_internal.postgres_options(declare_replication.stream_id) o
    WHERE k.stream_id = declare_replication.stream_id AND o.tables <> '{}' AND k.source_table <> ALL (o.tables);
    -- Tables that were added are copied, too.
    IF (SELECT o.snapshot FROM millrace_internal.postgres_options(declare_replication.stream_id) o) <> 'never'
       AND EXISTS (SELECT FROM millrace.replication r WHERE r.stream_id = declare_replication.stream_id AND r.state = 'ready') THEN
        PERFORM millrace_internal.begin_snapshot(declare_replication.stream_id);
    END IF;
END
$$;
COMMENT ON FUNCTION millrace_internal.declare_replication(integer) IS 'remembers that a stream has a replication slot, or will have one';

-- Tables that were never copied are to be.
CREATE FUNCTION millrace_internal.begin_snapshot(stream_id integer, published text[] DEFAULT '{}') RETURNS void
LANGUAGE sql
SET search_path = pg_catalog, pg_temp AS $$
    INSERT INTO millrace.snapshot (stream_id, source_table, sweep)
    -- What is staged may have been deleted at the source before a reset, or while the table was left out.
    SELECT s.id, t, (s.epoch > 1 AND o.tables = '{}') OR EXISTS (SELECT FROM millrace.replication_table d WHERE d.stream_id = s.id AND starts_with(d.description, t || ', '))
    FROM millrace.stream s, LATERAL millrace_internal.postgres_options(s.id) o, unnest(coalesce(nullif(o.tables, '{}'), published)) AS t
    WHERE s.id = begin_snapshot.stream_id
    ON CONFLICT DO NOTHING
$$;
COMMENT ON FUNCTION millrace_internal.begin_snapshot(integer, text[]) IS 'lists the tables of a stream that are to be copied: those of its options, or of its publication';

-- A staging table is declared on a stream that has begun: what it lacks comes when somebody asks for it.
CREATE FUNCTION millrace_internal.tell_begun(stream millrace.stream, relation regclass, source_table text) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    tables text[] := (SELECT o.tables FROM millrace_internal.postgres_options(stream.id) o);
    state text := (SELECT r.state FROM millrace.replication r WHERE r.stream_id = stream.id);
BEGIN
    IF tables <> '{}' AND source_table <> ALL (tables) THEN
        RAISE WARNING 'stream "%" does not read table %', stream.name, source_table
            USING HINT = format('%s stays empty until it does: name the table in the stream''s option "tables".', relation);
    ELSIF state IN ('ready', 'finished')
          -- A copy that has not begun brings all.
          AND EXISTS (SELECT FROM (SELECT unnest(tables) UNION SELECT s.source_table FROM millrace.snapshot s WHERE s.stream_id = stream.id UNION SELECT tell_begun.source_table) AS t (name)
                      WHERE t.name = coalesce(tell_begun.source_table, t.name)
                        AND NOT EXISTS (SELECT FROM millrace.snapshot s WHERE s.stream_id = stream.id AND s.source_table = t.name AND s.state = 'waiting')) THEN
        RAISE NOTICE '% begins with what changes from now on', relation
            USING HINT = CASE state
                             WHEN 'finished' THEN format('The stream has copied its tables, and that was all: SELECT millrace.reset_stream(%L) lets it copy them again.', stream.name)
                             ELSE format('What was there before comes after: SELECT millrace.resnapshot(%L, %s).', stream.name, coalesce(quote_literal(source_table), 'the table'))
                         END;
    END IF;
END
$$;
COMMENT ON FUNCTION millrace_internal.tell_begun(millrace.stream, regclass, text) IS 'tells what a staging table lacks that is declared on a stream of changes which has begun';

-- Tables of a stream are not in its publication: they are new, or they were dropped or exchanged for others, or taken out; or they are not sent as a whole (reason).
CREATE FUNCTION millrace_internal.add_tables(stream_id integer, tables text[], reason text) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    copied boolean := (SELECT o.snapshot FROM millrace_internal.postgres_options(add_tables.stream_id) o) <> 'never';
    added text;
BEGIN
    FOREACH added IN ARRAY tables LOOP
        INSERT INTO millrace.stream_incident (stream_id, kind, detail)
        SELECT add_tables.stream_id, CASE WHEN reason IS NULL THEN 'table_replaced' ELSE 'publication_changed' END,
               CASE WHEN reason IS NULL THEN format('table %s was not in the publication any more: it was dropped, exchanged for another one, or taken out; ', added)
                    ELSE format('changes of table %s are missing: %s; ', added, reason) END
               || CASE WHEN copied THEN 'it is copied again' ELSE 'its changes meanwhile are missing' END
        WHERE EXISTS (SELECT FROM millrace.replication_table t WHERE t.stream_id = add_tables.stream_id AND starts_with(t.description, added || ', '))
          AND NOT EXISTS (SELECT FROM millrace.snapshot s WHERE s.stream_id = add_tables.stream_id AND s.source_table = added AND s.state <> 'done');
        IF copied THEN
            DELETE FROM millrace.snapshot_key k WHERE k.stream_id = add_tables.stream_id AND k.source_table = added;
            PERFORM millrace_internal.copy_again(add_tables.stream_id, added, NULL, true);
        END IF;
    END LOOP;
END
$$;
COMMENT ON FUNCTION millrace_internal.add_tables(integer, text[], text) IS 'lets tables be copied that are going to be added to a stream''s publication';

-- A publication that says what is read has other tables than before.
CREATE FUNCTION millrace_internal.note_published(stream_id integer, tables text[]) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    before text[] := (SELECT r.published FROM millrace.replication r WHERE r.stream_id = note_published.stream_id);
BEGIN
    INSERT INTO millrace.stream_incident (stream_id, kind, detail)
    SELECT note_published.stream_id, 'publication_changed', format('table %s is not in the publication any more: its changes are not read', t)
    FROM unnest(before) AS t WHERE t <> ALL (tables);
    DELETE FROM millrace.snapshot s WHERE s.stream_id = note_published.stream_id AND s.source_table <> ALL (tables);
    DELETE FROM millrace.snapshot_key k WHERE k.stream_id = note_published.stream_id AND k.source_table <> ALL (tables);
    IF (SELECT o.snapshot FROM millrace_internal.postgres_options(note_published.stream_id) o) <> 'never' THEN
        PERFORM millrace_internal.copy_again(note_published.stream_id, t, NULL, true) FROM unnest(tables) AS t WHERE t <> ALL (before);
    END IF;
    UPDATE millrace.replication r SET published = tables WHERE r.stream_id = note_published.stream_id;
END
$$;
COMMENT ON FUNCTION millrace_internal.note_published(integer, text[]) IS 'lets tables be copied that a publication has got, and tells of those that it has lost';

-- All tables are to be copied anew, and what they do not have any more removed.
CREATE FUNCTION millrace_internal.begin_anew(stream_id integer) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
BEGIN
    UPDATE millrace.replication r SET state = 'making', beginning = 0 WHERE r.stream_id = begin_anew.stream_id AND r.state <> 'new';
    DELETE FROM millrace.snapshot_round r WHERE r.stream_id = begin_anew.stream_id;
    DELETE FROM millrace.snapshot_key k WHERE k.stream_id = begin_anew.stream_id;
    DELETE FROM millrace.snapshot s WHERE s.stream_id = begin_anew.stream_id;
    DELETE FROM millrace.replication_table t WHERE t.stream_id = begin_anew.stream_id;
    IF (SELECT o.snapshot FROM millrace_internal.postgres_options(begin_anew.stream_id) o) <> 'never' THEN
        INSERT INTO millrace.snapshot (stream_id, source_table, sweep)
        SELECT begin_anew.stream_id, t, true FROM millrace_internal.postgres_options(begin_anew.stream_id) o, unnest(o.tables) AS t;
    END IF;
END
$$;
COMMENT ON FUNCTION millrace_internal.begin_anew(integer) IS 'lets a stream of changes make a slot again and copy its tables again';

-- ---- what the worker finds -----------------------------------------------------------------------------------

-- The slot is not what was read.
CREATE FUNCTION millrace_internal.replication_lost(stream_id integer, detail text, anew boolean) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    INSERT INTO millrace.stream_incident (stream_id, kind, detail)
    SELECT replication_lost.stream_id, 'slot_lost', replication_lost.detail || CASE WHEN anew THEN '; the tables are copied again' ELSE '; reading has stopped' END
    WHERE NOT EXISTS (SELECT FROM millrace.stream_incident i WHERE i.stream_id = replication_lost.stream_id AND i.kind = 'slot_lost'
                      AND starts_with(i.detail, replication_lost.detail) AND i.at > clock_timestamp() - interval '1 hour');
    IF anew THEN
        PERFORM millrace_internal.reset_source(stream_id);
    END IF;
END
$$;
COMMENT ON FUNCTION millrace_internal.replication_lost(integer, text, boolean) IS 'notes that a replication slot is gone or another one, and begins anew';

CREATE FUNCTION millrace_internal.finish_snapshot(stream_id integer) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    UPDATE millrace.replication r SET state = 'finished', made_slot = false WHERE r.stream_id = finish_snapshot.stream_id;
    UPDATE millrace.stream s SET enabled = false WHERE s.id = finish_snapshot.stream_id;
    PERFORM millrace_internal.changed(stream_id);
END
$$;
COMMENT ON FUNCTION millrace_internal.finish_snapshot(integer) IS 'stops a stream that was to copy its tables and no more';

CREATE FUNCTION millrace_internal.note_replication(stream_id integer, wal_status text, retained bigint, confirmed pg_lsn, restart pg_lsn, current pg_lsn, budget bigint) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    before millrace.replication;
    over boolean := budget > 0 AND retained > budget;
BEGIN
    SELECT r.* INTO before FROM millrace.replication r WHERE r.stream_id = note_replication.stream_id;
    -- In this same server a row of ours would be what the next one is about.
    IF (before.wal_status, before.over_budget) = (note_replication.wal_status, over) AND abs(before.retained_bytes - retained) < 16777216
       AND before.checked_at > clock_timestamp() - interval '10 minutes' THEN
        RETURN;
    END IF;
    UPDATE millrace.replication r SET checked_at = clock_timestamp(), wal_status = note_replication.wal_status, retained_bytes = retained, confirmed_lsn = confirmed,
           restart_lsn = restart, current_lsn = current, over_budget = over
    WHERE r.stream_id = note_replication.stream_id;
    IF over AND NOT before.over_budget THEN
        INSERT INTO millrace.stream_incident (stream_id, kind, detail)
        VALUES (note_replication.stream_id, 'wal_retained', format('the source keeps %s of log for the slot, more than wal_budget (%s)', pg_size_pretty(retained), pg_size_pretty(budget)));
        RAISE LOG 'stream %: the source keeps % of log for its slot, more than wal_budget', note_replication.stream_id, pg_size_pretty(retained);
    END IF;
END
$$;
COMMENT ON FUNCTION millrace_internal.note_replication(integer, text, bigint, pg_lsn, pg_lsn, pg_lsn, bigint) IS 'stores what the source said of a slot, and tells when it keeps more log than the budget';

-- Slots that streams have made are not left behind.
CREATE FUNCTION millrace_internal.guard_slots() RETURNS event_trigger
LANGUAGE C AS 'MODULE_PATHNAME', 'millrace_guard_slots';
COMMENT ON FUNCTION millrace_internal.guard_slots() IS 'event trigger: refuses to drop the extension while a stream owns a replication slot';
CREATE EVENT TRIGGER millrace_guard_slots ON ddl_command_start
    WHEN TAG IN ('DROP EXTENSION')
    EXECUTE FUNCTION millrace_internal.guard_slots();
COMMENT ON EVENT TRIGGER millrace_guard_slots IS 'refuses to drop millrace while a stream of it owns a replication slot';

-- ---- mirrors -------------------------------------------------------------------------------------------------

CREATE FUNCTION millrace_internal.source_columns(stream_id integer, source_table text, OUT name text, OUT type text, OUT key boolean) RETURNS SETOF record
LANGUAGE C STRICT AS 'MODULE_PATHNAME', 'millrace_source_columns';
COMMENT ON FUNCTION millrace_internal.source_columns(integer, text) IS 'connects, and tells the columns of a table of a stream''s source: their types as they are called there, and which columns identify a row';

-- The mapping of a mirror: key and columns as the source has them.
CREATE FUNCTION millrace_internal.mirror_mapping(columns json, of_key boolean) RETURNS json
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp AS $$
    SELECT json_object_agg(c ->> 'name', json_build_array('$.' || to_json(c ->> 'name'),
        -- A type that is not here arrives as text.
        CASE WHEN to_regtype(c ->> 'type') IS NULL THEN 'text' ELSE c ->> 'type' END) ORDER BY n)
    FROM json_array_elements(columns) WITH ORDINALITY AS e (c, n) WHERE (c ->> 'key')::boolean = of_key
$$;
COMMENT ON FUNCTION millrace_internal.mirror_mapping(json, boolean) IS 'the key, or the other columns, of a mirror as create_staging() takes them';

-- Of a table's columns those that a mirror has.
CREATE FUNCTION millrace_internal.mirrored_columns(columns json, payload text) RETURNS json
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp AS $$
    SELECT json_agg(c ORDER BY n) FROM json_array_elements(columns) WITH ORDINALITY AS e (c, n)
    -- With such a key there is no mirror.
    WHERE c ->> 'name' <> ALL (millrace_internal.reserved_columns(payload)) OR (c ->> 'key')::boolean
$$;
COMMENT ON FUNCTION millrace_internal.mirrored_columns(json, text) IS 'the columns of a source table that a mirror has: those whose names are free';

-- Is every value of the one type one of the other, with the same text?
CREATE FUNCTION millrace_internal.widens(old text, new text) RETURNS boolean
LANGUAGE plpgsql IMMUTABLE
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    o text[];
    n text[];
BEGIN
    IF array_position('{smallint, integer, bigint}'::text[], old) < array_position('{smallint, integer, bigint}'::text[], new)
       OR (old = 'real' AND new = 'double precision')
       OR (old ~ '^(character varying|text)' AND new IN ('text', 'character varying')) OR (old IN ('smallint', 'integer', 'bigint') AND new = 'numeric')
       OR (old ~ '^numeric\(' AND new = 'numeric') THEN
        RETURN true;
    END IF;
    o := regexp_match(old, '^character varying\((\d+)\)$');
    n := regexp_match(new, '^character varying\((\d+)\)$');
    IF o IS NOT NULL AND n IS NOT NULL THEN
        RETURN n[1]::integer >= o[1]::integer;
    END IF;
    o := regexp_match(old, '^numeric\((\d+),(-?\d+)\)$');
    n := regexp_match(new, '^numeric\((\d+),(-?\d+)\)$');
    -- More digits before the point; another scale would change what is there.
    RETURN coalesce(o[2] = n[2] AND n[1]::integer >= o[1]::integer, false);
END
$$;
COMMENT ON FUNCTION millrace_internal.widens(text, text) IS 'whether a column of a mirror can become another type by itself';

-- A table of the source has described itself: mirrors follow what is safe, else the stream stops with what is to be done.
CREATE FUNCTION millrace_internal.follow_source(stream_id integer, source_table text, described json, fingerprint text) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET client_min_messages = warning AS $$
DECLARE
    mirror millrace.staging;
    statement text;
    old record;
    definition json;
    added text[];
    widened record;
    columns json;
BEGIN
    -- A type that is not here arrives as text.
    SELECT json_agg(json_build_object('name', d -> 'name', 'type', millrace_internal.type_name(CASE WHEN to_regtype(d ->> 'type') IS NULL THEN 'text' ELSE d ->> 'type' END), 'key', d -> 'key') ORDER BY n)
    INTO columns FROM json_array_elements(described) WITH ORDINALITY AS e (d, n);
    FOR mirror IN SELECT s.* FROM millrace.staging s
                  WHERE s.stream_id = follow_source.stream_id AND s.definition ->> 'source_table' = follow_source.source_table AND (s.definition ->> 'mirror')::boolean
                  ORDER BY s.id LOOP
        described := millrace_internal.mirrored_columns(columns, mirror.definition ->> 'payload');
        INSERT INTO millrace.stream_incident (stream_id, kind, detail)
        SELECT mirror.stream_id, 'column_left_out', told.detail
        FROM json_array_elements(columns) c, LATERAL format('column "%s" of table %s is not in its mirror %s, because its name is taken by millrace itself', c ->> 'name', source_table, mirror.relation) AS told (detail)
        WHERE c ->> 'name' <> ALL (ARRAY(SELECT d ->> 'name' FROM json_array_elements(described) d))
          -- It was there when the mirror was declared, or was told of.
          AND EXISTS (SELECT FROM millrace.replication_table t WHERE t.stream_id = follow_source.stream_id AND starts_with(t.description, source_table || ', '))
          AND NOT EXISTS (SELECT FROM millrace.stream_incident i WHERE i.stream_id = mirror.stream_id AND i.kind = 'column_left_out' AND i.detail = told.detail);
        statement := regexp_replace(millrace_internal.describe_staging(mirror), '\);.*$', E',\n  replace => true)');
        SELECT c ->> 'name' AS name INTO old FROM json_array_elements(mirror.definition -> 'columns') c
        WHERE NOT EXISTS (SELECT FROM json_array_elements(described) d WHERE d ->> 'name' = substr(c #>> '{paths,0}', 3) OR to_json(d ->> 'name')::text = substr(c #>> '{paths,0}', 3)) LIMIT 1;
        IF FOUND THEN
            RAISE EXCEPTION 'column "%" of table % was dropped or renamed at the source, and % is a mirror of it', old.name, source_table, mirror.relation
                USING ERRCODE = 'undefined_column', HINT = format('The mirror goes on without the column after: %s. It keeps what is in it.', statement);
        END IF;
        SELECT c ->> 'name' AS name, c ->> 'type' AS was, d ->> 'type' AS is INTO old
        FROM json_array_elements(mirror.definition -> 'columns') c JOIN json_array_elements(described) d ON to_json(d ->> 'name')::text = substr(c #>> '{paths,0}', 3)
        WHERE c ->> 'type' <> d ->> 'type' AND NOT millrace_internal.widens(c ->> 'type', d ->> 'type')
          -- What the column was widened to before may come once more from older log.
          AND NOT millrace_internal.widens(d ->> 'type', c ->> 'type') LIMIT 1;
        IF FOUND THEN
            RAISE EXCEPTION 'column "%" of table % is % at the source now, and % in its mirror %', old.name, source_table, old.is, old.was, mirror.relation
                USING ERRCODE = 'datatype_mismatch', HINT = format('Drop the mirror with millrace.drop_table(%L, cascade => true), create it again, and call millrace.resnapshot().', mirror.relation);
        END IF;
        -- Without its key a deleted row would not be found. A table whose identity is the whole row, or nothing, names no key.
        SELECT c ->> 'name' AS name INTO old
        FROM json_array_elements(mirror.definition -> 'columns') c JOIN json_array_elements(described) d ON to_json(d ->> 'name')::text = substr(c #>> '{paths,0}', 3)
        WHERE (c ->> 'key')::boolean AND NOT (d ->> 'key')::boolean AND EXISTS (SELECT FROM json_array_elements(described) k WHERE (k ->> 'key')::boolean) LIMIT 1;
        IF FOUND THEN
            RAISE EXCEPTION 'column "%" of table % is not of its replica identity any more, and of the key of its mirror %', old.name, source_table, mirror.relation
                USING ERRCODE = 'invalid_table_definition',
                      HINT = format('Drop the mirror with millrace.drop_table(%L, cascade => true), create it again, and call millrace.resnapshot(); or give the table its key back.', mirror.relation);
        END IF;
        FOR widened IN
            SELECT c ->> 'name' AS name, d ->> 'type' AS type
            FROM json_array_elements(mirror.definition -> 'columns') c JOIN json_array_elements(described) d ON to_json(d ->> 'name')::text = substr(c #>> '{paths,0}', 3)
            WHERE millrace_internal.widens(c ->> 'type', d ->> 'type') AND c ->> 'type' <> d ->> 'type'
        LOOP
            PERFORM millrace_internal.widen_column(mirror.id, widened.name, widened.type);
        END LOOP;
        SELECT array_agg(d ->> 'name' ORDER BY n) INTO added FROM json_array_elements(described) WITH ORDINALITY AS e (d, n)
        WHERE NOT EXISTS (SELECT FROM json_array_elements(mirror.definition -> 'columns') c WHERE to_json(d ->> 'name')::text = substr(c #>> '{paths,0}', 3));
        IF added IS NOT NULL THEN
            SELECT s.* INTO mirror FROM millrace.staging s WHERE s.id = mirror.id;
            SELECT json_object_agg(m.key, CASE m.key WHEN 'columns' THEN (
                       SELECT json_agg(c ORDER BY n) FROM (
                           SELECT c, n FROM json_array_elements(m.value) WITH ORDINALITY AS e (c, n)
                           UNION ALL
                           SELECT json_build_object('name', d ->> 'name', 'paths', json_build_array('$.' || to_json(d ->> 'name')), 'type', d ->> 'type', 'format', NULL, 'key', false), 1000000 + n
                           FROM json_array_elements(described) WITH ORDINALITY AS e (d, n) WHERE d ->> 'name' = ANY (added)) AS u (c, n))
                       ELSE m.value END ORDER BY m.n) INTO definition
            FROM json_each(mirror.definition) WITH ORDINALITY AS m (key, value, n);
            PERFORM millrace_internal.replace_staging(mirror.owner, mirror, definition, mirror.log IS NOT NULL, mirror.log_partition, mirror.log_retention, mirror.timezone);
            -- What the source has in old rows is not sent.
            IF EXISTS (SELECT FROM millrace.replication_table t WHERE t.stream_id = follow_source.stream_id AND starts_with(t.description, source_table || ', ')) THEN
                PERFORM millrace_internal.copy_again(follow_source.stream_id, source_table, NULL, false);
            END IF;
        END IF;
    END LOOP;
    INSERT INTO millrace.replication_table (stream_id, description) VALUES (follow_source.stream_id, fingerprint) ON CONFLICT DO NOTHING;
END
$$;
COMMENT ON FUNCTION millrace_internal.follow_source(integer, text, json, text) IS 'lets the mirrors of a source table follow its columns';

CREATE FUNCTION millrace_internal.widen_column(staging_id integer, name text, type text) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    mirror millrace.staging;
    present text := millrace_internal.definition_column('staging', staging_id, name);
    -- Among the columns of the key.
    ordinal bigint;
    reader millrace.target;
    why text;
BEGIN
    SELECT s.* INTO STRICT mirror FROM millrace.staging s WHERE s.id = staging_id;
    -- A computed column stands in its place.
    IF EXISTS (SELECT FROM json_array_elements(mirror.definition -> 'computed') c WHERE c ->> 'name' = widen_column.name) THEN
        present := NULL;
    END IF;
    SELECT t.* INTO reader FROM millrace.target t WHERE millrace_internal.query_reads(t.id, mirror.relation, present) ORDER BY t.id DESC LIMIT 1;
    IF FOUND THEN
        -- Its own columns may get other types by it.
        RAISE EXCEPTION 'column "%" of table % is % at the source now, and its mirror % cannot follow because % % reads it',
            name, mirror.definition ->> 'source_table', type, mirror.relation, reader.kind, millrace_internal.target_name(reader)
            USING ERRCODE = 'datatype_mismatch',
                  HINT = format('Run SELECT millrace.drop_%s(%L); when the stream runs again: %s', CASE WHEN reader.kind IN ('rule', 'sink', 'model') THEN reader.kind ELSE 'table' END,
                                millrace_internal.target_name(reader), millrace_internal.describe_target(reader));
    END IF;
    SELECT k.n INTO ordinal FROM millrace_internal.staging_columns(mirror.definition) WITH ORDINALITY AS k (name, type, in_key, technical, n)
    WHERE k.in_key AND k.name = widen_column.name;
    EXECUTE format('DROP VIEW millrace_def.staging_%s', staging_id);
    IF present IS NOT NULL THEN
        BEGIN
            PERFORM millrace_internal.execute_as(mirror.owner, format('ALTER TABLE %s ALTER COLUMN %I TYPE %s', mirror.relation, present, type));
            IF mirror.log IS NOT NULL THEN
                PERFORM millrace_internal.execute_as(mirror.owner, format('ALTER TABLE %s ALTER COLUMN %I TYPE %s', mirror.log, present, type));
            END IF;
            IF ordinal IS NOT NULL THEN
                EXECUTE format('ALTER TABLE millrace_state.object_%s ALTER COLUMN k%s TYPE %s', staging_id, ordinal, type);
            END IF;
        EXCEPTION WHEN feature_not_supported OR dependent_objects_still_exist THEN
            GET STACKED DIAGNOSTICS why = PG_EXCEPTION_DETAIL;
            RAISE EXCEPTION 'column "%" of table % is % at the source now, and its mirror % cannot follow: %', name, mirror.definition ->> 'source_table', type, mirror.relation, sqlerrm
                USING ERRCODE = 'datatype_mismatch', DETAIL = why, HINT = 'Drop what reads the column, and make it again when the stream runs again.';
        END;
    END IF;
    UPDATE millrace.staging s SET definition = (
        SELECT json_object_agg(m.key, CASE m.key WHEN 'columns' THEN (
                   SELECT json_agg(CASE WHEN c ->> 'name' = widen_column.name
                                        THEN json_build_object('name', c ->> 'name', 'paths', c -> 'paths', 'type', widen_column.type, 'format', c ->> 'format', 'key', (c ->> 'key')::boolean)
                                        ELSE c END ORDER BY n)
                   FROM json_array_elements(m.value) WITH ORDINALITY AS e (c, n))
                   ELSE m.value END ORDER BY m.n)
        FROM json_each(s.definition) WITH ORDINALITY AS m (key, value, n))
    WHERE s.id = staging_id;
    PERFORM millrace_internal.define_staging(staging_id);
    PERFORM millrace_internal.changed(mirror.stream_id);
END
$$;
COMMENT ON FUNCTION millrace_internal.widen_column(integer, text, text) IS 'gives a column of a mirror a wider type';

-- ---- snapshots -----------------------------------------------------------------------------------------------

CREATE FUNCTION millrace_internal.copy_again(stream_id integer, source_table text, filter text, sweep boolean) RETURNS void
LANGUAGE sql
SET search_path = pg_catalog, pg_temp AS $$
    INSERT INTO millrace.snapshot AS s (stream_id, source_table, filter, sweep) VALUES ($1, $2, $3, $4)
    ON CONFLICT (stream_id, source_table) DO UPDATE
    -- What has not been copied yet is copied, too.
    SET filter = CASE WHEN s.state = 'done' THEN EXCLUDED.filter WHEN s.filter IS NOT NULL AND EXCLUDED.filter IS NOT NULL THEN format('(%s) OR (%s)', s.filter, EXCLUDED.filter) END,
        sweep = EXCLUDED.sweep OR (s.sweep AND s.state <> 'done'), state = 'waiting', started_at = EXCLUDED.started_at, finished_at = NULL,
        leaf = 0, file = 0, page = 0, pages = 0, pages_read = 0, rows = 0, first_position = NULL, last_position = NULL
$$;
COMMENT ON FUNCTION millrace_internal.copy_again(integer, text, text, boolean) IS 'lets a table be copied from its beginning';

-- A stream of changes by name, for one who may change it.
CREATE FUNCTION millrace_internal.own_replication(caller regrole, name text) RETURNS millrace.stream
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    stream millrace.stream := millrace_internal.own_stream(caller, name);
BEGIN
    IF NOT EXISTS (SELECT FROM millrace.replication r WHERE r.stream_id = stream.id) THEN
        RAISE EXCEPTION 'stream "%" does not read from a PostgreSQL server', name USING ERRCODE = 'wrong_object_type';
    END IF;
    RETURN stream;
END
$$;
COMMENT ON FUNCTION millrace_internal.own_replication(regrole, text) IS 'the stream of that name, locked, after checking that it reads changes and that the role may change it';

-- millrace.resnapshot()
CREATE FUNCTION millrace_internal.resnapshot(caller regrole, stream text, source_table text, filter text) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    feed millrace.stream := millrace_internal.own_replication(caller, stream);
    tables text[] := (SELECT o.tables FROM millrace_internal.postgres_options(feed.id) o);
    near text;
BEGIN
    IF source_table IS NULL THEN
        RAISE EXCEPTION 'the table to copy must not be null' USING ERRCODE = 'null_value_not_allowed';
    END IF;
    IF tables <> '{}' AND source_table <> ALL (tables) THEN
        near := millrace_internal.nearest(source_table, tables);
        RAISE EXCEPTION 'stream "%" does not read table "%"', stream, source_table USING ERRCODE = 'undefined_table',
            HINT = CASE WHEN near IS NULL THEN format('It reads: %s.', array_to_string(tables, ', ')) ELSE format('Perhaps you meant "%s".', near) END;
    END IF;
    IF filter IS NOT NULL THEN
        PERFORM millrace_internal.check_expression('filter', filter);
    END IF;
    IF EXISTS (SELECT FROM millrace.replication r WHERE r.stream_id = feed.id AND r.state = 'finished') THEN
        RAISE EXCEPTION 'stream "%" has copied its tables, and that was all', stream
            USING ERRCODE = 'object_not_in_prerequisite_state', HINT = 'After millrace.reset_stream() it copies them again.';
    END IF;
    -- What a filter leaves out is not gone.
    PERFORM millrace_internal.copy_again(feed.id, source_table, filter, filter IS NULL);
    PERFORM millrace_internal.changed(feed.id);
END
$$;
COMMENT ON FUNCTION millrace_internal.resnapshot(regrole, text, text, text) IS 'the other half of millrace.resnapshot()';

CREATE FUNCTION millrace_internal.set_paused(caller regrole, stream text, paused boolean) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    feed millrace.stream := millrace_internal.own_replication(caller, stream);
BEGIN
    UPDATE millrace.replication r SET paused = set_paused.paused WHERE r.stream_id = feed.id AND r.paused <> set_paused.paused;
    IF FOUND THEN
        PERFORM millrace_internal.changed(feed.id);
    END IF;
END
$$;
COMMENT ON FUNCTION millrace_internal.set_paused(regrole, text, boolean) IS 'lets copying pause or go on';
CREATE FUNCTION millrace_internal.pause_snapshot(caller regrole, stream text) RETURNS void
LANGUAGE sql AS 'SELECT millrace_internal.set_paused($1, $2, true)';
COMMENT ON FUNCTION millrace_internal.pause_snapshot(regrole, text) IS 'the other half of millrace.pause_snapshot()';
CREATE FUNCTION millrace_internal.resume_snapshot(caller regrole, stream text) RETURNS void
LANGUAGE sql AS 'SELECT millrace_internal.set_paused($1, $2, false)';
COMMENT ON FUNCTION millrace_internal.resume_snapshot(regrole, text) IS 'the other half of millrace.resume_snapshot()';

CREATE FUNCTION millrace.resnapshot(stream text, source_table text, filter text DEFAULT NULL) RETURNS void
LANGUAGE C AS 'MODULE_PATHNAME', 'millrace_declare';
COMMENT ON FUNCTION millrace.resnapshot(text, text, text) IS
    'copies a table of a PostgreSQL source again while its changes stream; rows that it does not have any more are removed, unless a filter (SQL of the source) selects only some';
CREATE FUNCTION millrace.pause_snapshot(stream text) RETURNS void
LANGUAGE C AS 'MODULE_PATHNAME', 'millrace_declare';
COMMENT ON FUNCTION millrace.pause_snapshot(text) IS 'lets the copying of tables pause; changes go on streaming';
CREATE FUNCTION millrace.resume_snapshot(stream text) RETURNS void
LANGUAGE C AS 'MODULE_PATHNAME', 'millrace_declare';
COMMENT ON FUNCTION millrace.resume_snapshot(text) IS 'lets the copying of tables go on';
REVOKE ALL ON FUNCTION millrace.resnapshot(text, text, text), millrace.pause_snapshot(text), millrace.resume_snapshot(text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION millrace.resnapshot(text, text, text), millrace.pause_snapshot(text), millrace.resume_snapshot(text) TO millrace_admin;

-- ---- watching ------------------------------------------------------------------------------------------------

CREATE VIEW millrace.snapshot_status WITH (security_barrier) AS
SELECT s.name AS stream, t.source_table, CASE WHEN r.paused AND t.state <> 'done' THEN 'paused' ELSE t.state END AS state, t.filter, t.rows,
       CASE WHEN t.state IN ('sweeping', 'done') THEN 1 WHEN t.pages = 0 THEN 0 ELSE least(t.pages_read::double precision / t.pages, 1) END AS share_done,
       CASE WHEN t.state IN ('sweeping', 'done') THEN t.rows WHEN t.pages_read > 0 THEN (t.rows::double precision * t.pages / t.pages_read)::bigint END AS estimated_rows,
       t.started_at, t.finished_at
FROM millrace.snapshot t JOIN millrace.stream s ON s.id = t.stream_id JOIN millrace.replication r ON r.stream_id = t.stream_id
WHERE millrace_internal.may_watch(s.owner);
COMMENT ON VIEW millrace.snapshot_status IS 'tables that are or were copied from PostgreSQL servers, and how far that is';

CREATE VIEW millrace.replication_status WITH (security_barrier) AS
SELECT s.name AS stream, o.slot, o.publication, r.state, r.wal_status, r.retained_bytes, r.over_budget,
       ('0/0'::pg_catalog.pg_lsn + p.position)::text AS position_lsn, r.confirmed_lsn::text AS confirmed_lsn, r.restart_lsn::text AS restart_lsn, r.current_lsn::text AS current_lsn,
       greatest(r.current_lsn - ('0/0'::pg_catalog.pg_lsn + p.position), 0)::bigint AS lag_bytes,
       CASE WHEN r.current_lsn > '0/0'::pg_catalog.pg_lsn + p.position THEN extract(epoch FROM clock_timestamp() - p.last_time)::double precision ELSE 0 END AS lag_seconds, r.checked_at
FROM millrace.replication r JOIN millrace.stream s ON s.id = r.stream_id
LEFT JOIN millrace.stream_position p ON p.stream_id = s.id
CROSS JOIN LATERAL millrace_internal.postgres_options(s.id) o
WHERE millrace_internal.may_watch(s.owner);
COMMENT ON VIEW millrace.replication_status IS 'replication slots of streams: what their sources keep for them, and how far the streams lie behind';
GRANT SELECT ON millrace.snapshot_status, millrace.replication_status TO PUBLIC;
