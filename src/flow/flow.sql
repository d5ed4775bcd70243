-- The life of a stream: start, stop, reset, adopt, validate.

CREATE FUNCTION millrace_internal.background() RETURNS text
LANGUAGE C STABLE AS 'MODULE_PATHNAME', 'millrace_background';
COMMENT ON FUNCTION millrace_internal.background() IS
    'why no stream runs in the background in this database: preload (the library is not preloaded), databases (not listed in millrace.databases), or NULL';

-- What keeps an enabled stream from running in the background, as message and hint; NULL when nothing does.
CREATE FUNCTION millrace_internal.background_problem(OUT message text, OUT hint text)
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp AS $$
    SELECT CASE b WHEN 'preload' THEN 'millrace is not in shared_preload_libraries'
                  WHEN 'databases' THEN format('database "%s" is not in millrace.databases', current_database()) END,
           CASE b WHEN 'preload' THEN 'Set shared_preload_libraries = ''millrace'' and restart the server, or call run_stream() yourself.'
                  WHEN 'databases' THEN 'Add it (ALTER SYSTEM SET millrace.databases = …; SELECT pg_reload_conf()), or call run_stream() yourself.' END
    FROM millrace_internal.background() b
$$;
COMMENT ON FUNCTION millrace_internal.background_problem() IS 'why no stream runs in the background here, in words';

-- What keeps a stream's owner from running it, as message and hint; NULL when nothing does.
CREATE FUNCTION millrace_internal.owner_problem(owner regrole, OUT message text, OUT hint text)
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp AS $$
    SELECT CASE WHEN r.oid IS NULL THEN 'its owner does not exist any more'
                ELSE format('its owner, role "%s", has no LOGIN', r.rolname) END,
           CASE WHEN r.oid IS NULL THEN 'Drop the stream and create it again as another role.'
                ELSE 'Before PostgreSQL 17 the owner needs it to run in the background: ALTER ROLE … LOGIN.' END
    FROM (VALUES (1)) AS one LEFT JOIN pg_roles r ON r.oid = owner::oid
    WHERE r.oid IS NULL OR (NOT r.rolcanlogin AND current_setting('server_version_num')::integer < 170000)
$$;
COMMENT ON FUNCTION millrace_internal.owner_problem(regrole) IS 'why a stream''s owner cannot run it, in words';

-- millrace.start_stream()
CREATE FUNCTION millrace_internal.start_stream(caller regrole, name text) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    started millrace.stream := millrace_internal.own_stream(caller, name);
    problem record;
BEGIN
    IF started.fence <> millrace_internal.fence() THEN
        RAISE EXCEPTION 'stream "%" belongs to another instance', started.name
            USING ERRCODE = 'object_not_in_prerequisite_state',
                  DETAIL = 'This database was restored or copied, and the original may still run the stream.',
                  HINT = 'When it does not, call millrace.adopt() here.';
    END IF;
    -- One that runs is left alone; one that waits after an error is to try again at once.
    IF NOT started.enabled OR EXISTS (SELECT FROM millrace.worker w WHERE w.stream_id = started.id AND w.state <> 'running') THEN
        UPDATE millrace.stream s SET enabled = true, stop_reason = NULL WHERE s.id = started.id;
        UPDATE millrace.worker w SET failures = 0 WHERE w.stream_id = started.id AND w.failures > 0;
        PERFORM millrace_internal.changed(started.id);
    END IF;

    SELECT * INTO problem FROM millrace_internal.background_problem() p WHERE p.message IS NOT NULL;
    IF FOUND THEN
        RAISE WARNING 'stream "%" does not run in the background: %', started.name, problem.message USING HINT = problem.hint;
    END IF;
    SELECT * INTO problem FROM millrace_internal.owner_problem(started.owner) p WHERE p.message IS NOT NULL;
    IF FOUND THEN
        RAISE WARNING 'stream "%" does not run in the background: %', started.name, problem.message USING HINT = problem.hint;
    END IF;
END
$$;
COMMENT ON FUNCTION millrace_internal.start_stream(regrole, text) IS 'the other half of millrace.start_stream()';

-- A batch in progress ends first, and none is begun before this transaction ends.  The lock comes before the stream's
-- row, as it does for batches and activations; who may not change the stream does not get it.
CREATE FUNCTION millrace_internal.lock_own_stream(caller regrole, name text) RETURNS void
LANGUAGE sql
SET search_path = pg_catalog, pg_temp AS $$
    SELECT millrace_internal.lock_stream(s.id, true) FROM millrace.stream s
    WHERE s.name = lock_own_stream.name AND pg_has_role(caller, s.owner, 'USAGE')
$$;
COMMENT ON FUNCTION millrace_internal.lock_own_stream(regrole, text) IS 'takes the exclusive lock of one''s stream, if there is one of that name';

-- millrace.stop_stream()
CREATE FUNCTION millrace_internal.stop_stream(caller regrole, name text) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    stopped millrace.stream;
BEGIN
    PERFORM millrace_internal.lock_own_stream(caller, name);
    stopped := millrace_internal.own_stream(caller, name);
    IF stopped.enabled THEN
        UPDATE millrace.stream s SET enabled = false WHERE s.id = stopped.id;
        PERFORM millrace_internal.changed(stopped.id);
    END IF;
END
$$;
COMMENT ON FUNCTION millrace_internal.stop_stream(regrole, text) IS 'the other half of millrace.stop_stream()';

-- millrace.reset_stream()
CREATE FUNCTION millrace_internal.reset_stream(caller regrole, name text, start text) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    stream millrace.stream;
    beginning json;
BEGIN
    PERFORM millrace_internal.lock_own_stream(caller, name);
    stream := millrace_internal.own_stream(caller, name);
    IF start IS NOT NULL AND stream.server IS NULL THEN
        RAISE EXCEPTION 'inbox "%" has no beginning to choose', stream.name
            USING ERRCODE = 'invalid_parameter_value', HINT = 'Its messages are gone when they are consumed; push them again.';
    END IF;
    beginning := CASE WHEN start ~ '^\s*[{"]' THEN start::json ELSE to_json(start) END;
    PERFORM millrace_internal.reset_source(stream.id, beginning);
END
$$;
COMMENT ON FUNCTION millrace_internal.reset_stream(regrole, text, text) IS 'the other half of millrace.reset_stream()';

-- millrace.adopt()
CREATE FUNCTION millrace_internal.adopt(caller regrole, outbox text) RETURNS bigint
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    adopted bigint;
    others bigint;
BEGIN
    PERFORM millrace_internal.check_word('outbox', outbox, '{send, discard}');
    UPDATE millrace.stream s
    SET fence = millrace_internal.fence(), enabled = false, config_version = s.config_version + 1
    WHERE s.fence <> millrace_internal.fence() AND pg_has_role(caller, s.owner, 'USAGE');
    GET DIAGNOSTICS adopted = ROW_COUNT;
    PERFORM millrace_internal.wake(0);
    PERFORM millrace_internal.adopt_channels(caller, outbox);
    SELECT count(*) INTO others FROM millrace.stream s WHERE s.fence <> millrace_internal.fence();
    IF others > 0 THEN
        RAISE NOTICE '% streams of other owners stay fenced', others;
    END IF;
    RETURN adopted;
END
$$;
COMMENT ON FUNCTION millrace_internal.adopt(regrole, text) IS 'the other half of millrace.adopt()';

-- Columns of a table that Trino's PostgreSQL connector leaves out.
CREATE FUNCTION millrace_internal.unseen_columns(relation regclass) RETURNS TABLE (name text, type text, hint text)
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp AS $$
    SELECT a.attname::text, format_type(a.atttypid, a.atttypmod),
           CASE WHEN t.typtype = 'd' THEN 'Use the type under the domain.'
                WHEN t.typcategory = 'A' THEN 'Use one row an element, or JSON.'
                WHEN t.typtype = 'c' THEN 'Use one column a field, or JSON.'
                WHEN a.atttypid = 'numeric'::regtype THEN 'Give it a precision up to 38, such as numeric(18,2).'
                WHEN a.atttypid = 'interval'::regtype THEN 'Use a number of seconds.'
                ELSE 'Use text.' END
    FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
    WHERE a.attrelid = relation AND a.attnum > 0 AND NOT a.attisdropped AND t.typtype <> 'e'
      AND a.atttypid <> ALL ('{boolean, smallint, integer, bigint, real, double precision, text, varchar, bpchar, bytea, date,
                              time, timestamp, timestamptz, uuid, json, jsonb}'::regtype[])
      AND NOT (a.atttypid = 'numeric'::regtype AND a.atttypmod >= 4 AND ((a.atttypmod - 4) >> 16) <= 38)
    ORDER BY a.attnum
$$;
COMMENT ON FUNCTION millrace_internal.unseen_columns(regclass) IS 'columns of a table that Trino leaves out, and what to do';

-- What is wrong with a table that millrace writes.
CREATE FUNCTION millrace_internal.validate_table(relation regclass, kind text, id integer, owner regrole)
    RETURNS TABLE (severity text, subject text, message text, hint text)
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    needed text := CASE WHEN kind IN ('hub', 'link') THEN '{SELECT, INSERT}' WHEN kind = 'satellite' THEN '{SELECT, INSERT, UPDATE}'
                        ELSE '{SELECT, INSERT, UPDATE, DELETE}' END;
    class pg_class;
    missing text;
BEGIN
    SELECT c.* INTO class FROM pg_class c WHERE c.oid = relation;
    subject := format('%s %s', kind, CASE WHEN class.oid IS NULL THEN id::text ELSE relation::text END);
    IF class.oid IS NULL OR to_regclass(format('millrace_def.%s_%s', kind, id)) IS NULL THEN
        RETURN QUERY SELECT 'error', validate_table.subject,
            CASE WHEN class.oid IS NULL THEN 'its table was dropped' ELSE 'its definition was dropped with what it needs' END,
            format('Call millrace.%s(%L) and declare it again.', CASE kind WHEN 'model' THEN 'drop_model' ELSE 'drop_table' END, relation);
        RETURN;
    END IF;
    IF NOT EXISTS (SELECT FROM pg_roles r WHERE r.oid = owner::oid) THEN
        RETURN QUERY SELECT 'error', validate_table.subject, 'its owner does not exist any more', 'Drop it and declare it again as another role.';
        RETURN;
    END IF;
    IF NOT has_schema_privilege(owner, class.relnamespace, 'USAGE') THEN
        RETURN QUERY SELECT 'error', validate_table.subject, format('role %s has no USAGE on schema %s', owner, class.relnamespace::regnamespace), 'GRANT it.';
    END IF;
    IF class.relkind <> 'v' THEN
        SELECT string_agg(p, ', ') INTO missing FROM unnest(needed::text[]) p WHERE NOT has_table_privilege(owner, relation, p);
        IF missing IS NOT NULL THEN
            RETURN QUERY SELECT 'error', validate_table.subject, format('role %s has no %s on it', owner, missing), 'GRANT it.';
        END IF;
    END IF;
    RETURN QUERY SELECT 'warning', validate_table.subject, format('Trino does not see column "%s" of type %s', u.name, u.type), u.hint
    FROM millrace_internal.unseen_columns(relation) u WHERE kind NOT IN ('rule', 'sink');
END
$$;
COMMENT ON FUNCTION millrace_internal.validate_table(regclass, text, integer, regrole) IS 'what is wrong with a table that millrace writes';

-- What is wrong with a stream itself.
CREATE FUNCTION millrace_internal.validate_stream(stream millrace.stream)
    RETURNS TABLE (severity text, subject text, message text, hint text)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    label text := format('stream %s', stream.name);
BEGIN
    RETURN QUERY SELECT 'error', label, 'it belongs to another instance: this database was restored or copied', 'When the original does not run any more, call millrace.adopt().'
    WHERE stream.fence <> millrace_internal.fence();
    RETURN QUERY SELECT 'error', label, p.message, p.hint FROM millrace_internal.owner_problem(stream.owner) p WHERE p.message IS NOT NULL;
    RETURN QUERY SELECT 'warning', label, 'it does not run in the background: ' || p.message, p.hint
    FROM millrace_internal.background_problem() p WHERE p.message IS NOT NULL;
    RETURN QUERY SELECT 'info', label, 'it is stopped', format('Start it with millrace.start_stream(%L).', stream.name) WHERE NOT stream.enabled;
    RETURN QUERY SELECT CASE w.state WHEN 'failed' THEN 'error' ELSE 'warning' END, format('%s, worker %s', label, w.worker),
                        format('%s: %s', w.state, w.last_error), w.hint
    FROM millrace.worker w
    WHERE w.stream_id = stream.id AND w.state IN ('failed', 'waiting') AND stream.enabled AND w.last_error IS NOT NULL ORDER BY w.worker;
    RETURN QUERY SELECT 'warning', label, 'no staging table is kept from it', 'Declare one with millrace.create_staging().'
    WHERE NOT EXISTS (SELECT FROM millrace.staging t WHERE t.stream_id = stream.id);
    BEGIN
        RETURN QUERY SELECT v.severity, v.subject, v.message, v.hint FROM millrace_internal.validate_source(stream.id) v;
    EXCEPTION WHEN OTHERS THEN
        RETURN QUERY SELECT 'error', label, sqlerrm, NULL::text;
    END;
END
$$;
COMMENT ON FUNCTION millrace_internal.validate_stream(millrace.stream) IS 'what is wrong with a stream and its endpoint';

-- What somebody should see to: nothing is wrong with the stream because of it.
CREATE FUNCTION millrace_internal.validate_state(stream millrace.stream)
    RETURNS TABLE (severity text, subject text, message text, hint text)
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
    SELECT 'error', 'stream ' || stream.name, 'it has stopped itself: ' || stream.stop_reason, 'See millrace.dead_letter; start it again with millrace.start_stream() when the reason is gone.'
    WHERE stream.stop_reason IS NOT NULL
    UNION ALL
    SELECT 'warning', 'stream ' || stream.name, format('%s dead letter%s open, of %s', count(*), CASE count(*) WHEN 1 THEN ' is' ELSE 's are' END,
                  coalesce(string_agg(DISTINCT coalesce('rule ' || r.name, g.relation::text), ', '), 'the stream itself')),
           'See millrace.dead_letter, and millrace.retry() or millrace.discard().'
    FROM millrace.letter l LEFT JOIN millrace.staging g ON g.id = l.staging_id LEFT JOIN millrace.rule r ON r.target_id = l.rule_id WHERE l.stream_id = stream.id AND l.state = 'open' HAVING count(*) > 0
    UNION ALL
    SELECT 'warning', 'stream ' || stream.name, format('%s incident%s in the last day, the last one: %s', count(*), CASE count(*) WHEN 1 THEN '' ELSE 's' END,
                  (array_agg(i.detail ORDER BY i.at DESC, i.id DESC))[1]), 'See millrace.incident.'
    FROM millrace.stream_incident i WHERE i.stream_id = stream.id AND i.at > clock_timestamp() - interval '1 day' HAVING count(*) > 0
    UNION ALL
    SELECT 'warning', 'stream ' || stream.name, format('streams of this database have %s workers, and max_worker_processes is %s', sum(s.workers), current_setting('max_worker_processes')),
           'It must hold the launcher, a manager for each database, all workers, and those of parallel queries: ALTER SYSTEM SET max_worker_processes = …, then restart.'
    FROM millrace.stream s WHERE s.enabled HAVING bool_or(s.id = stream.id) AND sum(s.workers) + 2 > current_setting('max_worker_processes')::integer
    UNION ALL
    (SELECT 'info', format('staging %s', t.relation), 'it declares no version: of two messages about an object in different partitions the later one counts by its time, which producers set',
            'version => says from the message which state of an object is newer.'
     FROM millrace.staging t
     WHERE t.stream_id = stream.id AND stream.server IS NOT NULL AND t.definition #>> '{version,type}' IS NULL
       AND (SELECT count(*) FROM millrace.stream_position p WHERE p.stream_id = stream.id) > 1 ORDER BY t.id)
    UNION ALL
    (SELECT 'error', format('rule %s', r.name), 'it is suspended: ' || r.reason, format('When it is mended, call millrace.retry_rule(%L).', r.name)
     FROM millrace.rule r
     WHERE r.suspended_at IS NOT NULL AND EXISTS (SELECT FROM millrace.target_source x JOIN millrace.staging g ON g.id = x.staging_id WHERE x.target_id = r.target_id AND g.stream_id = stream.id) ORDER BY r.name)
    UNION ALL
    (SELECT 'error', format('sink %s', k.name), 'it is suspended: ' || k.reason, format('When it is mended, call millrace.retry_sink(%L).', k.name)
     FROM millrace.sink k
     WHERE k.suspended_at IS NOT NULL AND EXISTS (SELECT FROM millrace.target_source x JOIN millrace.staging g ON g.id = x.staging_id WHERE x.target_id = k.target_id AND g.stream_id = stream.id) ORDER BY k.name)
    UNION ALL
    (SELECT CASE WHEN b.last_error IS NOT NULL AND t.state <> 'active' THEN 'error' ELSE 'info' END, format('%s %s', t.kind, t.relation),
            CASE WHEN t.state = 'new' THEN 'it waits for the next batch of its stream' WHEN b.last_error IS NULL THEN 'it is being filled' ELSE 'it cannot be filled: ' || b.last_error END,
            'See millrace.backfill_status.'
     FROM millrace.target t LEFT JOIN millrace.backfill b ON b.target_id = t.id
     WHERE t.state <> 'active' AND EXISTS (SELECT FROM millrace.target_source x JOIN millrace.staging g ON g.id = x.staging_id WHERE x.target_id = t.id AND g.stream_id = stream.id) ORDER BY t.id)
    UNION ALL
    (SELECT 'info', format('%s %s', k.kind, k.relation), format('batches write it by SQL statements, which takes longer: it %s', k.why), 'That is right, only slower.'
     FROM (SELECT o.kind, o.relation, o.id,
                  CASE WHEN c.relkind = 'p' THEN 'is partitioned' WHEN c.relrowsecurity THEN 'has row security'
                       WHEN EXISTS (SELECT FROM pg_trigger r WHERE r.tgrelid = c.oid AND NOT r.tgisinternal) THEN 'has triggers'
                       WHEN EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attgenerated <> '') THEN 'has generated columns' END AS why
           FROM (SELECT 'staging' AS kind, t.relation, t.id FROM millrace.staging t WHERE t.stream_id = stream.id
                 UNION ALL
                 SELECT t.kind, t.relation, 1000000 + t.id FROM millrace.target t
                 WHERE EXISTS (SELECT FROM millrace.target_source x JOIN millrace.staging g ON g.id = x.staging_id WHERE x.target_id = t.id AND g.stream_id = stream.id)) AS o
           JOIN pg_class c ON c.oid = o.relation) AS k WHERE k.why IS NOT NULL ORDER BY k.id);
END
$$;
COMMENT ON FUNCTION millrace_internal.validate_state(millrace.stream) IS 'what of a stream somebody should see to';

-- millrace.validate()
CREATE FUNCTION millrace_internal.validate(caller regrole, name text, send boolean)
    RETURNS TABLE (severity text, subject text, message text, hint text)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    stream millrace.stream;
    channel millrace.channel;
BEGIN
    IF EXISTS (SELECT FROM millrace.channel c WHERE c.name = validate.name) THEN
        channel := millrace_internal.own_channel(caller, validate.name);
        RETURN QUERY SELECT v.* FROM millrace_internal.validate_channel(channel, coalesce(send, false)) v;
        IF NOT EXISTS (SELECT FROM millrace.stream s WHERE s.name = validate.name) THEN
            RETURN;
        END IF;
    ELSIF send THEN
        channel := millrace_internal.own_channel(caller, validate.name);
    END IF;
    IF name IS NOT NULL THEN
        PERFORM millrace_internal.own_stream(caller, name);
    END IF;
    FOR channel IN SELECT c.* FROM millrace.channel c WHERE validate.name IS NULL AND pg_has_role(caller, c.owner, 'USAGE') ORDER BY c.name LOOP
        RETURN QUERY SELECT v.* FROM millrace_internal.validate_channel(channel, false) v;
    END LOOP;
    FOR stream IN SELECT s.* FROM millrace.stream s
                  WHERE (s.name = validate.name OR validate.name IS NULL) AND pg_has_role(caller, s.owner, 'USAGE') ORDER BY s.name LOOP
        RETURN QUERY SELECT v.* FROM millrace_internal.validate_stream(stream) v;
        RETURN QUERY SELECT v.* FROM millrace_internal.validate_dictionaries(stream) v;
        RETURN QUERY SELECT v.* FROM millrace_internal.validate_state(stream) v;
        RETURN QUERY SELECT v.* FROM millrace.staging t, millrace_internal.validate_table(t.relation, 'staging', t.id, t.owner) v
        WHERE t.stream_id = stream.id ORDER BY t.id;
        RETURN QUERY SELECT v.* FROM millrace.target t LEFT JOIN millrace.model m ON m.target_id = t.id, millrace_internal.validate_table(t.relation, t.kind, coalesce(m.id, t.id), t.owner) v
        WHERE t.id IN (SELECT x.target_id FROM millrace.target_source x JOIN millrace.staging g ON g.id = x.staging_id WHERE g.stream_id = stream.id)
        ORDER BY t.id;
    END LOOP;
    RETURN QUERY SELECT v.* FROM millrace.model m, millrace_internal.validate_table(m.relation, 'model', m.id, m.owner) v
    WHERE m.target_id IS NULL AND validate.name IS NULL AND pg_has_role(caller, m.owner, 'USAGE') ORDER BY m.id;
END
$$;
COMMENT ON FUNCTION millrace_internal.validate(regrole, text, boolean) IS 'the other half of millrace.validate()';

-- What users call.
CREATE FUNCTION millrace.start_stream(name text) RETURNS void
LANGUAGE C STRICT AS 'MODULE_PATHNAME', 'millrace_declare';
COMMENT ON FUNCTION millrace.start_stream(text) IS 'lets a stream run in the background from the commit of this transaction on';

CREATE FUNCTION millrace.stop_stream(name text) RETURNS void
LANGUAGE C STRICT AS 'MODULE_PATHNAME', 'millrace_declare';
COMMENT ON FUNCTION millrace.stop_stream(text) IS
    'stops a stream: waits for a batch in progress, after which none is begun; positions stay, and pushed messages are kept';

CREATE FUNCTION millrace.reset_stream(name text, start text DEFAULT NULL) RETURNS void
LANGUAGE C AS 'MODULE_PATHNAME', 'millrace_declare';
COMMENT ON FUNCTION millrace.reset_stream(text, text) IS
    'makes a stream begin again in a new epoch: at earliest, latest, a time, offsets as JSON by partition, or as its options say';

CREATE FUNCTION millrace.adopt(outbox text DEFAULT 'send') RETURNS bigint
LANGUAGE C STRICT AS 'MODULE_PATHNAME', 'millrace_declare';
COMMENT ON FUNCTION millrace.adopt(text) IS
    'makes this instance the one that runs one''s streams after a restore or a copy; they stay stopped; returns how many';

CREATE FUNCTION millrace.validate(name text DEFAULT NULL, send boolean DEFAULT false) RETURNS TABLE (severity text, subject text, message text, hint text)
LANGUAGE C AS 'MODULE_PATHNAME', 'millrace_declare';
COMMENT ON FUNCTION millrace.validate(text, boolean) IS
    'connects to the endpoint of a stream (NULL: of all of one''s streams, and of one''s channels and models) and says what is wrong with it and its tables, or with a channel: error, warning or info; with send => true one message is sent over the channel';

REVOKE ALL ON FUNCTION millrace.start_stream(text), millrace.stop_stream(text), millrace.reset_stream(text, text),
    millrace.adopt(text), millrace.validate(text, boolean) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION millrace.start_stream(text), millrace.stop_stream(text), millrace.reset_stream(text, text),
    millrace.adopt(text), millrace.validate(text, boolean) TO millrace_admin;
