-- Computing derived tables anew, whole or what a filter selects.

CREATE FUNCTION millrace_internal.rebuild_target(target integer, filter text, OUT rows_before bigint, OUT rows_after bigint)
LANGUAGE C CALLED ON NULL INPUT AS 'MODULE_PATHNAME', 'millrace_rebuild_target';
COMMENT ON FUNCTION millrace_internal.rebuild_target(integer, text) IS
    'removes what a filter selects of a target, or everything, and makes it again, under the exclusive lock of its streams';

-- What is removed from a vault table has to be in the logs of its sources, keys of a hub or link there or in what is staged, or it would be lost.
CREATE FUNCTION millrace_internal.check_remade(target millrace.target, filter text) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    horizon timestamptz := millrace_internal.log_horizon(target.id);
    key text := coalesce(millrace_internal.definition_column(target.kind, target.id, 'driving_hk'), millrace_internal.definition_column(target.kind, target.id, 'hash_key'));
    made timestamptz;
    lost bigint;
    sources text := (SELECT string_agg(g.relation::text, ', ' ORDER BY s.ordinal) FROM millrace.target_source s JOIN millrace.staging g ON g.id = s.staging_id
                     WHERE s.target_id = target.id);
BEGIN
    IF horizon IS NULL THEN
        RAISE EXCEPTION '% % cannot be rebuilt: % keeps no log of the versions that came', target.kind, target.relation, sources
            USING ERRCODE = 'object_not_in_prerequisite_state', HINT = 'create_staging(…, log => true, replace => true) keeps every version from then on.';
    END IF;
    IF target.kind = 'satellite' THEN
        -- As long as the logs have what it was made from, nothing can be lost.
        SELECT max(g.log_since) INTO horizon FROM millrace.target_source s JOIN millrace.staging g ON g.id = s.staging_id
        WHERE s.target_id = target.id AND g.log_since > coalesce(s.since, '-infinity');
    END IF;
    IF coalesce(horizon, '-infinity') = '-infinity' THEN
        RETURN;
    END IF;
    -- Rows that came before the log began, or were filled in or rebuilt from what may no longer be in it.
    made := greatest(horizon, (SELECT coalesce(b.finished_at, 'infinity') FROM millrace.backfill b WHERE b.target_id = target.id));
    -- The filter is the owner's.
    SELECT c.missing_rows INTO lost FROM millrace_internal.compare(target.owner, 'UTC',
        format(E'said (":key") AS MATERIALIZED (%s), lost AS (SELECT FROM %s AS %I WHERE %I < %L AND %I <> %L AND %I NOT IN (SELECT ":key" FROM said) AND (%s\n))',
            CASE WHEN target.kind = 'satellite' THEN 'SELECT NULL::pg_catalog.uuid WHERE false' ELSE millrace_internal.said_keys(target) END, target.relation,
            (SELECT c.relname FROM pg_class c WHERE c.oid = target.relation),
            millrace_internal.definition_column(target.kind, target.id, 'load_at'), made, key, '00000000-0000-0000-0000-000000000000', key, coalesce(filter, 'true')),
        'SELECT 1 FROM lost', 'SELECT WHERE false') AS c;
    IF lost > 0 THEN
        RAISE EXCEPTION '% % cannot be rebuilt: % of its rows came before the log of % began', target.kind, target.relation, lost, sources
            USING ERRCODE = 'object_not_in_prerequisite_state',
                  DETAIL = format('The log has every version since %s; rows that were filled in or rebuilt before %s may be made from older ones.', horizon, made), HINT = 'Without the versions that they are made from they would be lost.';
    END IF;
END
$$;
COMMENT ON FUNCTION millrace_internal.check_remade(millrace.target, text) IS 'raises an error when rows of a vault table could not be made again';

-- After a whole rebuild nothing is left to be filled.
CREATE FUNCTION millrace_internal.rebuilt(target_id integer) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
BEGIN
    INSERT INTO millrace.backfill (target_id) VALUES (target_id) ON CONFLICT DO NOTHING;
    DELETE FROM millrace.backfill_part p WHERE p.target_id = target_id;
    -- Also what workers remember of it is out of date.
    PERFORM millrace_internal.backfill_complete(target_id);
END
$$;
COMMENT ON FUNCTION millrace_internal.rebuilt(integer) IS 'notes that a target is complete';

-- A staging table from its log, and after it the marts and models that count its rows.
CREATE FUNCTION millrace_internal.rebuild_staging(staging_id integer, filter text, OUT rows_before bigint, OUT rows_after bigint)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    staging millrace.staging;
    rows record;
    short text;
    selected text;
    mart record;
BEGIN
    SELECT s.* INTO STRICT staging FROM millrace.staging s WHERE s.id = staging_id;
    PERFORM millrace_internal.lock_stream(staging.stream_id, true);
    -- From here on nothing is removed from its log, either.
    SELECT s.* INTO STRICT staging FROM millrace.staging s WHERE s.id = staging_id FOR NO KEY UPDATE;
    rows := millrace_internal.staging_rows(staging_id);
    IF staging.log_since > '-infinity' THEN
        -- Adopted rows stay as they are.
        rows_before := millrace_internal.value_as(staging.owner, format('SELECT count(*) FROM %s AS t WHERE t._loaded_at < %L AND NOT EXISTS (SELECT FROM millrace_state.object_%s AS o WHERE %s AND o.definition = 0)',
            staging.relation, staging.log_since, staging_id, (SELECT string_agg(format('o.k%s = t.%I', n, k), ' AND ' ORDER BY n) FROM unnest(rows.keys) WITH ORDINALITY AS u (k, n))), NULL::bigint);
        IF rows_before > 0 THEN
            RAISE EXCEPTION 'staging table % cannot be rebuilt: % of its rows came before its log began', staging.relation, rows_before
                USING ERRCODE = 'object_not_in_prerequisite_state', DETAIL = format('The log has every version since %s.', staging.log_since);
        END IF;
    END IF;
    short := quote_ident((SELECT c.relname FROM pg_class c WHERE c.oid = staging.relation));
    selected := CASE WHEN filter IS NULL THEN 'true' ELSE format(E'(%s\n)', filter) END;
    rows_before := millrace_internal.value_as(staging.owner, format('SELECT count(*) FROM %s', staging.relation), NULL::bigint);
    -- Whole objects of which the filter selects a row, as it is or as it should be.
    PERFORM millrace_internal.rebuild_rows(staging.owner, 'UTC', rows.sources, rows.names,
        (SELECT string_agg(quote_ident(k), ', ' ORDER BY n) FROM unnest(rows.keys) WITH ORDINALITY AS u (k, n)), staging.relation, short, selected);
    rows_after := millrace_internal.value_as(staging.owner, format('SELECT count(*) FROM %s', staging.relation), NULL::bigint);
    FOR mart IN
        SELECT t.id FROM millrace.target t JOIN millrace.target_source s ON s.target_id = t.id
        WHERE s.staging_id = staging.id AND t.kind IN ('mart', 'model') AND t.state <> 'new' ORDER BY t.id
    LOOP
        PERFORM millrace_internal.rebuild_target(mart.id, NULL);
        PERFORM millrace_internal.rebuilt(mart.id);
    END LOOP;
    PERFORM millrace_internal.sinks_renew(staging.id);
END
$$;
COMMENT ON FUNCTION millrace_internal.rebuild_staging(integer, text) IS 'makes rows of a staging table anew from its log, and the marts over it';

CREATE FUNCTION millrace_internal.rebuild_rows(role regrole, timezone text, sources text, names text, keys text, relation regclass, short text, selected text) RETURNS void
LANGUAGE C STRICT AS 'MODULE_PATHNAME', 'millrace_rebuild_rows';
COMMENT ON FUNCTION millrace_internal.rebuild_rows(regrole, text, text, text, text, regclass, text, text) IS
    'puts the rows that a table should have into the place of those that it has, for the objects that a condition selects';

CREATE FUNCTION millrace_internal.rebuild(caller regrole, name regclass, filter text)
RETURNS TABLE (relation text, rows_before bigint, rows_after bigint)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    kept record := millrace_internal.kept_table(name);
    target millrace.target;
BEGIN
    IF kept.kind IS NULL THEN
        RETURN;
    END IF;
    IF NOT pg_has_role(caller, kept.owner, 'MEMBER') THEN
        RAISE EXCEPTION 'must be owner of %', name USING ERRCODE = 'insufficient_privilege';
    END IF;
    IF filter IS NOT NULL THEN
        PERFORM millrace_internal.check_expression('filter', filter);
    END IF;
    relation := name::text;
    IF kept.kind = 'staging' THEN
        SELECT r.rows_before, r.rows_after INTO rows_before, rows_after FROM millrace_internal.rebuild_staging(kept.id, filter) AS r;
        RETURN NEXT;
        RETURN;
    END IF;
    IF filter IS NOT NULL THEN
        PERFORM millrace_internal.check_filled(kept.id);
    END IF;
    SELECT t.* INTO STRICT target FROM millrace.target t WHERE t.id = kept.id;
    IF target.kind IN ('hub', 'link', 'satellite') THEN
        -- From here on nothing is removed from the logs.
        PERFORM millrace_internal.vault_lock(target.id);
        PERFORM FROM millrace.staging g WHERE g.id IN (SELECT s.staging_id FROM millrace.target_source s WHERE s.target_id = target.id) ORDER BY g.id FOR NO KEY UPDATE;
        PERFORM millrace_internal.check_remade(target, filter);
    END IF;
    SELECT r.rows_before, r.rows_after INTO rows_before, rows_after FROM millrace_internal.rebuild_target(kept.id, filter) AS r;
    IF filter IS NULL THEN
        UPDATE millrace.target t SET redefined_at = NULL WHERE t.id = kept.id;
        UPDATE millrace.target_source s SET since = coalesce(g.log_since, '-infinity') FROM millrace.staging g WHERE s.target_id = kept.id AND g.id = s.staging_id;
    END IF;
    PERFORM millrace_internal.rebuilt(kept.id);
    RETURN NEXT;
END
$$;
COMMENT ON FUNCTION millrace_internal.rebuild(regrole, regclass, text) IS 'the other half of millrace.rebuild()';

CREATE FUNCTION millrace.rebuild(name regclass, filter text DEFAULT NULL)
RETURNS TABLE (relation text, rows_before bigint, rows_after bigint)
LANGUAGE C CALLED ON NULL INPUT AS 'MODULE_PATHNAME', 'millrace_declare';
COMMENT ON FUNCTION millrace.rebuild(regclass, text) IS
    'computes a table that millrace keeps anew from what it is computed from, or the rows that a filter over its columns selects, while its stream waits';
REVOKE ALL ON FUNCTION millrace.rebuild(regclass, text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION millrace.rebuild(regclass, text) TO millrace_admin;
