-- What is kept for a time only: dead letters, incidents, logs.

-- A log has lost what came before a time; what is being filled from it may not have read that yet.
CREATE FUNCTION millrace_internal.shorten_log(staging_id integer, since timestamptz) RETURNS void
LANGUAGE sql
SET search_path = pg_catalog, pg_temp AS $$
    UPDATE millrace.staging s SET log_since = greatest(s.log_since, since) WHERE s.id = shorten_log.staging_id;
    UPDATE millrace.target t SET horizon = greatest(t.horizon, since)
    WHERE t.state <> 'active' AND t.kind IN ('hub', 'link', 'satellite') AND EXISTS (SELECT FROM millrace.target_source s WHERE s.target_id = t.id AND s.staging_id = shorten_log.staging_id);
$$;
COMMENT ON FUNCTION millrace_internal.shorten_log(integer, timestamptz) IS 'notes from when on a log has every version';

-- The log of one staging table.  Rows are deleted beside those who write; days are dropped, which waits a moment for them at most.
CREATE FUNCTION millrace_internal.maintain_log(staging millrace.staging, OUT action text, OUT rows bigint) RETURNS SETOF record
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET timezone = 'UTC'
SET lock_timeout = '1s' AS $$
DECLARE
    cutoff timestamptz := clock_timestamp() - staging.log_retention;
    day record;
BEGIN
    IF staging.log_partition = 'none' THEN
        BEGIN
            rows := millrace_internal.execute_as(staging.owner, format('DELETE FROM %s WHERE _loaded_at < %L', staging.log, cutoff));
            IF rows > 0 THEN
                PERFORM millrace_internal.shorten_log(staging.id, cutoff);
                action := 'deleted';
                RETURN NEXT;
            END IF;
        EXCEPTION WHEN lock_not_available THEN
            rows := NULL;
            action := 'left for later: the log is being read by rebuild()';
            RETURN NEXT;
        END;
        RETURN;
    END IF;
    FOR day IN SELECT p.part::text, p.until FROM millrace_internal.log_parts(staging.log) p WHERE p.until <= cutoff ORDER BY p.until LOOP
        BEGIN
            rows := NULL;
            PERFORM millrace_internal.execute_as(staging.owner, format('DROP TABLE %s', day.part));
            PERFORM millrace_internal.shorten_log(staging.id, day.until);
            action := format('dropped partition %s', day.part);
        EXCEPTION
            WHEN lock_not_available THEN
                action := format('left partition %s for later: the log is in use', day.part);
                RETURN NEXT;
                RETURN;
            WHEN dependent_objects_still_exist OR insufficient_privilege THEN
                action := format('cannot drop partition %s: %s', day.part, sqlerrm);
        END;
        RETURN NEXT;
    END LOOP;
END
$$;
COMMENT ON FUNCTION millrace_internal.maintain_log(millrace.staging) IS 'removes what is too old from the log of a staging table';

-- millrace.maintain()
CREATE FUNCTION millrace_internal.maintain(caller regrole, name text) RETURNS TABLE (stream text, subject text, action text, rows bigint)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    kept millrace.stream;
    staging millrace.staging;
    channel millrace.channel;
    portion bigint;
    now timestamptz := clock_timestamp();
BEGIN
    IF maintain.name IS NOT NULL THEN
        PERFORM millrace_internal.own_stream(caller, maintain.name);
    END IF;
    -- Rows first: the locks that dropping a day takes are held for as short as can be.
    FOR kept IN SELECT s.* FROM millrace.stream s
                WHERE (s.name = maintain.name OR maintain.name IS NULL) AND pg_has_role(caller, s.owner, 'USAGE') ORDER BY s.name LOOP
        stream := kept.name;
        action := 'deleted';
        subject := 'dead letters';
        DELETE FROM millrace.letter l WHERE l.stream_id = kept.id AND l.state <> 'waiting' AND l.at < now - kept.letter_retention;
        GET DIAGNOSTICS rows = ROW_COUNT;
        IF rows > 0 THEN
            RETURN NEXT;
        END IF;
        subject := 'incidents';
        DELETE FROM millrace.stream_incident i WHERE i.stream_id = kept.id AND i.at < now - kept.incident_retention;
        GET DIAGNOSTICS rows = ROW_COUNT;
        IF rows > 0 THEN
            RETURN NEXT;
        END IF;
    END LOOP;
    IF maintain.name IS NULL THEN
        FOR subject, rows IN SELECT m.subject, m.rows FROM millrace_internal.maintain_rules(caller) m LOOP
            stream := NULL;
            action := 'deleted';
            RETURN NEXT;
        END LOOP;
    END IF;
    -- Delivery workers do the same, a little at a time.
    FOR channel IN SELECT c.* FROM millrace.channel c
                   WHERE maintain.name IS NULL AND pg_has_role(caller, c.owner, 'USAGE') ORDER BY c.name LOOP
        stream := NULL;
        subject := 'channel ' || channel.name;
        action := 'deleted';
        rows := 0;
        LOOP
            portion := millrace_internal.trim_outbox(channel, 50000);
            rows := rows + portion;
            EXIT WHEN portion < 50000;
        END LOOP;
        IF rows > 0 THEN
            RETURN NEXT;
        END IF;
    END LOOP;
    FOR staging IN SELECT g.* FROM millrace.staging g JOIN millrace.stream s ON s.id = g.stream_id
                   WHERE (s.name = maintain.name OR maintain.name IS NULL) AND pg_has_role(caller, s.owner, 'USAGE')
                     AND g.log_retention IS NOT NULL AND EXISTS (SELECT FROM pg_class c WHERE c.oid = g.log)
                   ORDER BY g.log_partition = 'day', s.name, g.id LOOP
        SELECT s.name INTO stream FROM millrace.stream s WHERE s.id = staging.stream_id;
        subject := staging.log::text;
        FOR action, rows IN SELECT m.action, m.rows FROM millrace_internal.maintain_log(staging) m LOOP
            RETURN NEXT;
        END LOOP;
    END LOOP;
END
$$;
COMMENT ON FUNCTION millrace_internal.maintain(regrole, text) IS 'the other half of millrace.maintain()';

CREATE FUNCTION millrace.maintain(name text DEFAULT NULL) RETURNS TABLE (stream text, subject text, action text, rows bigint)
LANGUAGE C AS 'MODULE_PATHNAME', 'millrace_declare';
COMMENT ON FUNCTION millrace.maintain(text) IS
    'removes dead letters, incidents and logs that are older than their retention, of one stream or of all of one''s streams, then also alerts, errors and windows of rules and what channels have sent; returns what it did';
REVOKE ALL ON FUNCTION millrace.maintain(text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION millrace.maintain(text) TO millrace_admin;
