-- Filling targets that are declared over what is there already, chunk by chunk, while their streams go on (C11).

CREATE TABLE millrace.backfill (
    target_id integer PRIMARY KEY REFERENCES millrace.target ON DELETE CASCADE,
    since timestamptz NOT NULL DEFAULT clock_timestamp(),
    finished_at timestamptz,
    paused boolean NOT NULL DEFAULT false,
    chunks bigint NOT NULL DEFAULT 0,
    rows bigint NOT NULL DEFAULT 0,
    estimate bigint,
    -- In a row; after the last of them it is tried again at retry_at.
    failures integer NOT NULL DEFAULT 0,
    retry_at timestamptz,
    last_error text,
    last_error_at timestamptz,
    sqlstate text
) WITH (fillfactor = 50);
COMMENT ON TABLE millrace.backfill IS 'the filling of each target that was declared over something; see millrace.backfill_status';

CREATE TABLE millrace.backfill_part (
    target_id integer NOT NULL REFERENCES millrace.backfill ON DELETE CASCADE,
    number integer NOT NULL,
    staging_id integer NOT NULL,
    -- A staging table is walked in the order of its objects' keys, a log or its partition in the order of its pages; a point-in-time table is its own part.
    relation regclass NOT NULL,
    by_key boolean NOT NULL,
    -- The key of the last object that was read; the place of the next row of a log.
    position text[],
    -- Pages that the log had when the target was activated, and of which file: what came later came with batches.
    until bigint,
    file text,
    PRIMARY KEY (target_id, number)
) WITH (fillfactor = 50);
COMMENT ON TABLE millrace.backfill_part IS 'how far each table has been read for a target that is being filled';
SELECT pg_catalog.pg_extension_config_dump('millrace.backfill', '');
SELECT pg_catalog.pg_extension_config_dump('millrace.backfill_part', '');

-- A file with pages: another one after VACUUM FULL, CLUSTER or a restore.
CREATE FUNCTION millrace_internal.file_of(relation regclass) RETURNS text
LANGUAGE sql VOLATILE
SET search_path = pg_catalog, pg_temp AS $$
    SELECT format('%s/%s', millrace_internal.fence(), pg_relation_filenode(relation))
$$;
COMMENT ON FUNCTION millrace_internal.file_of(regclass) IS 'names the file in which a table has its pages';

-- The tables with pages of a log, or of another table: its partitions, or itself.
CREATE FUNCTION millrace_internal.log_tables(log regclass) RETURNS SETOF regclass
LANGUAGE sql STRICT STABLE
SET search_path = pg_catalog, pg_temp AS $$
    SELECT p.relid FROM pg_partition_tree(log) AS p WHERE p.isleaf
    UNION ALL
    SELECT log WHERE NOT EXISTS (SELECT FROM pg_partition_tree(log))
$$;
COMMENT ON FUNCTION millrace_internal.log_tables(regclass) IS 'the tables in which the rows of a log are';

-- About how many rows a table has.  Statistics are seldom there yet: then its first pages tell how many rows a page holds.
CREATE FUNCTION millrace_internal.estimated_rows(relation regclass) RETURNS bigint
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    sampled CONSTANT bigint := 10;
    part record;
    rows double precision;
    total double precision := 0;
BEGIN
    FOR part IN
        SELECT l AS relation, c.relowner AS owner, c.reltuples / nullif(c.relpages, 0) AS per_page, pg_relation_size(l) / current_setting('block_size')::bigint AS pages
        FROM millrace_internal.log_tables(relation) AS l JOIN pg_class c ON c.oid = l
    LOOP
        IF part.per_page > 0 THEN
            rows := part.per_page * part.pages;
        ELSE
            rows := millrace_internal.value_as(part.owner, format('SELECT count(*) FROM %s WHERE ctid < %L', part.relation, format('(%s,0)', sampled)), NULL::bigint);
            rows := rows * greatest(part.pages::double precision / sampled, 1);
        END IF;
        total := total + rows;
    END LOOP;
    RETURN total;
END
$$;
COMMENT ON FUNCTION millrace_internal.estimated_rows(regclass) IS 'about how many rows a table has';

-- Notes what a target is to be filled from; false when there is nothing.  One that fills itself is done by the stream of the staging table by_itself (else 0).
CREATE FUNCTION millrace_internal.backfill_begin(target_id integer, by_rows boolean, from_staged boolean, by_itself integer) RETURNS boolean
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    source record;
    part regclass;
    parts integer := 0;
    pages bigint;
    expected bigint := 0;
    has_rows boolean;
BEGIN
    INSERT INTO millrace.backfill AS b (target_id) VALUES (target_id)
    ON CONFLICT ON CONSTRAINT backfill_pkey DO UPDATE
    SET since = clock_timestamp(), finished_at = NULL, chunks = 0, rows = 0, estimate = NULL, failures = 0, retry_at = NULL,
        last_error = NULL, last_error_at = NULL, sqlstate = NULL;
    DELETE FROM millrace.backfill_part p WHERE p.target_id = target_id;
    UPDATE millrace.target_source s SET since = coalesce(g.log_since, '-infinity') FROM millrace.staging g WHERE s.target_id = target_id AND g.id = s.staging_id AND s.since IS NULL;
    IF by_itself <> 0 THEN
        parts := 1;
        SELECT millrace_internal.estimated_rows(p.relation) INTO expected
        FROM millrace.target t JOIN millrace.target p ON p.id = (t.definition #>> '{parent,id}')::integer WHERE t.id = target_id;
        INSERT INTO millrace.backfill_part (target_id, number, staging_id, relation, by_key) SELECT target_id, parts, by_itself, t.relation, true FROM millrace.target t WHERE t.id = target_id;
    END IF;
    FOR source IN
        SELECT DISTINCT g.id, g.owner, g.relation, g.log, g.log_since FROM millrace.target_source s JOIN millrace.staging g ON g.id = s.staging_id
        WHERE s.target_id = target_id AND by_itself = 0 ORDER BY g.id
    LOOP
        -- A log that does not have all versions may lack those that are staged.
        IF by_rows OR (from_staged AND source.log_since IS DISTINCT FROM '-infinity') THEN
            has_rows := millrace_internal.value_as(source.owner, format('SELECT EXISTS (SELECT FROM %s)', source.relation), NULL::boolean);
            IF has_rows THEN
                parts := parts + 1;
                expected := expected + millrace_internal.estimated_rows(source.relation);
                INSERT INTO millrace.backfill_part (target_id, number, staging_id, relation, by_key)
                VALUES (target_id, parts, source.id, source.relation, true);
            END IF;
        END IF;
        IF NOT by_rows AND source.log IS NOT NULL THEN
            FOR part IN SELECT l FROM millrace_internal.log_tables(source.log) AS l ORDER BY l::oid LOOP
                pages := pg_relation_size(part) / current_setting('block_size')::bigint;
                CONTINUE WHEN pages = 0;
                parts := parts + 1;
                expected := expected + millrace_internal.estimated_rows(part);
                INSERT INTO millrace.backfill_part (target_id, number, staging_id, relation, by_key, until, file)
                VALUES (target_id, parts, source.id, part, false, pages, millrace_internal.file_of(part));
            END LOOP;
        END IF;
    END LOOP;
    UPDATE millrace.backfill b
    SET estimate = nullif(expected, 0), finished_at = CASE WHEN parts = 0 THEN clock_timestamp() END, paused = b.paused AND parts > 0
    WHERE b.target_id = target_id;
    RETURN parts > 0;
END
$$;
COMMENT ON FUNCTION millrace_internal.backfill_begin(integer, boolean, boolean, integer) IS 'notes what a target is to be filled from';

-- The table that a stream's worker has to read next for a target; none while the filling is paused, and whoever pauses it waits for the end of this transaction.
CREATE FUNCTION millrace_internal.backfill_next_part(target_id integer, stream_id integer) RETURNS millrace.backfill_part
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    part millrace.backfill_part;
BEGIN
    PERFORM FROM millrace.backfill b WHERE b.target_id = target_id AND NOT b.paused FOR NO KEY UPDATE SKIP LOCKED;
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    SELECT p.* INTO part FROM millrace.backfill_part p JOIN millrace.staging g ON g.id = p.staging_id
    WHERE p.target_id = target_id AND g.stream_id = stream_id ORDER BY p.number LIMIT 1;
    IF part.number IS NULL OR part.by_key THEN
        RETURN part;
    END IF;
    IF NOT EXISTS (SELECT FROM pg_class c WHERE c.oid = part.relation) THEN
        -- A partition that was dropped: there is nothing left to read.
        part.until := 0;
    ELSIF part.file <> millrace_internal.file_of(part.relation) THEN
        part.position := NULL;
        part.until := pg_relation_size(part.relation) / current_setting('block_size')::bigint;
        UPDATE millrace.backfill_part p SET position = NULL, until = part.until, file = millrace_internal.file_of(part.relation)
        WHERE p.target_id = target_id AND p.number = part.number;
    END IF;
    RETURN part;
END
$$;
COMMENT ON FUNCTION millrace_internal.backfill_next_part(integer, integer) IS 'the table that is to be read next for a target';

-- A target that has all is like any other from the next batch on.
CREATE FUNCTION millrace_internal.backfill_complete(target_id integer) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
BEGIN
    UPDATE millrace.backfill b SET finished_at = clock_timestamp(), paused = false WHERE b.target_id = target_id;
    UPDATE millrace.target t SET state = 'active' WHERE t.id = target_id;
    PERFORM millrace_internal.pit_renew(target_id);
    PERFORM millrace_internal.rules_renew(target_id);
    PERFORM millrace_internal.rule_filled(target_id);
    PERFORM millrace_internal.changed(g.stream_id)
    FROM (SELECT DISTINCT g.stream_id FROM millrace.target_source s JOIN millrace.staging g ON g.id = s.staging_id
          WHERE s.target_id = target_id ORDER BY 1) AS g;
END
$$;
COMMENT ON FUNCTION millrace_internal.backfill_complete(integer) IS 'makes a target that has all an active one';

-- All has been read, unless the target has been declared anew meanwhile.
CREATE FUNCTION millrace_internal.backfill_end(target_id integer) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
BEGIN
    PERFORM FROM millrace.target t WHERE t.id = target_id AND t.state = 'filling' FOR NO KEY UPDATE;
    IF FOUND THEN
        PERFORM millrace_internal.backfill_complete(target_id);
    END IF;
END
$$;
COMMENT ON FUNCTION millrace_internal.backfill_end(integer) IS 'notes that all has been read that a target is filled from';

CREATE VIEW millrace.backfill_status WITH (security_barrier) AS
SELECT coalesce((SELECT r.name FROM millrace.rule r WHERE r.target_id = t.id), (SELECT k.name FROM millrace.sink k WHERE k.target_id = t.id), t.relation::text) AS relation, t.kind,
       CASE WHEN t.state = 'active' THEN 'done' WHEN b.paused THEN 'paused' WHEN t.state = 'new' THEN 'waiting'
            WHEN b.failures > 0 THEN 'failed' ELSE 'filling' END AS state,
       coalesce(b.chunks, 0) AS chunks, coalesce(b.rows, 0) AS rows_done, b.estimate AS rows_estimate, b.since, b.finished_at,
       coalesce(b.paused, false) AS paused, b.last_error, b.last_error_at, b.sqlstate, greatest(t.horizon, t.redefined_at) AS horizon, t.owner::text AS owner
FROM millrace.target t LEFT JOIN millrace.backfill b ON b.target_id = t.id
WHERE (b.target_id IS NOT NULL OR t.state <> 'active') AND millrace_internal.may_watch(t.owner);
COMMENT ON VIEW millrace.backfill_status IS 'how far targets are filled that were declared over what is there already; they are not complete before';
COMMENT ON COLUMN millrace.backfill_status.state IS
    'waiting (for the first batch after the declaration), filling, paused, failed (it is tried again), done';
COMMENT ON COLUMN millrace.backfill_status.rows_estimate IS 'about how many rows there were to read; NULL: none, or that has not been looked at yet';
COMMENT ON COLUMN millrace.backfill_status.horizon IS 'from when on it will have what its sources say, as it is defined now; -infinity: from their beginning';
GRANT SELECT ON millrace.backfill_status TO PUBLIC;

-- millrace.pause_backfill(), millrace.resume_backfill()
CREATE FUNCTION millrace_internal.set_backfill_paused(caller regrole, name regclass, paused boolean) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    target millrace.target;
BEGIN
    SELECT t.* INTO target FROM millrace.target t WHERE t.relation = name;
    IF target.id IS NULL THEN
        RAISE EXCEPTION '% is not a hub, link, satellite, point-in-time table or mart', name USING ERRCODE = 'wrong_object_type';
    END IF;
    PERFORM millrace_internal.check_owner(caller, target.owner, format('%s %s', target.kind, name));
    -- One that waits for its activation is paused before its first chunk.  A chunk in progress ends first; it may be the last one.
    INSERT INTO millrace.backfill AS b (target_id, paused) VALUES (target.id, paused)
    ON CONFLICT (target_id) DO UPDATE SET paused = excluded.paused, retry_at = NULL;
    IF EXISTS (SELECT FROM millrace.target t WHERE t.id = target.id AND t.state = 'active') THEN
        RAISE EXCEPTION '% % is not being filled', target.kind, name
            USING ERRCODE = 'object_not_in_prerequisite_state', HINT = 'millrace.backfill_status shows what is.';
    END IF;
    PERFORM millrace_internal.wake(g.stream_id)
    FROM (SELECT DISTINCT g.stream_id FROM millrace.target_source s JOIN millrace.staging g ON g.id = s.staging_id
          WHERE s.target_id = target.id) AS g;
END
$$;
COMMENT ON FUNCTION millrace_internal.set_backfill_paused(regrole, regclass, boolean) IS 'pauses or resumes the filling of a target';

CREATE FUNCTION millrace_internal.pause_backfill(caller regrole, name regclass) RETURNS void
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS 'SELECT millrace_internal.set_backfill_paused(caller, name, true)';
COMMENT ON FUNCTION millrace_internal.pause_backfill(regrole, regclass) IS 'the other half of millrace.pause_backfill()';
CREATE FUNCTION millrace_internal.resume_backfill(caller regrole, name regclass) RETURNS void
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS 'SELECT millrace_internal.set_backfill_paused(caller, name, false)';
COMMENT ON FUNCTION millrace_internal.resume_backfill(regrole, regclass) IS 'the other half of millrace.resume_backfill()';

CREATE FUNCTION millrace.pause_backfill(name regclass) RETURNS void
LANGUAGE C STRICT AS 'MODULE_PATHNAME', 'millrace_declare';
COMMENT ON FUNCTION millrace.pause_backfill(regclass) IS
    'leaves off filling a hub, link, satellite, point-in-time table or mart after the chunk in progress; what it has is kept up to date';
CREATE FUNCTION millrace.resume_backfill(name regclass) RETURNS void
LANGUAGE C STRICT AS 'MODULE_PATHNAME', 'millrace_declare';
COMMENT ON FUNCTION millrace.resume_backfill(regclass) IS 'goes on filling where it was left off, or after an error at once';
REVOKE ALL ON FUNCTION millrace.pause_backfill(regclass), millrace.resume_backfill(regclass) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION millrace.pause_backfill(regclass), millrace.resume_backfill(regclass) TO millrace_admin;
