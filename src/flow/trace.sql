-- What a row was made of.

CREATE FUNCTION millrace_internal.mart_trace(target_id integer, OUT names text[], OUT expressions text[], OUT types text[], OUT condition text)
LANGUAGE C STRICT STABLE AS 'MODULE_PATHNAME', 'millrace_mart_trace';
COMMENT ON FUNCTION millrace_internal.mart_trace(integer) IS 'the columns of a mart that are values of its groups, over the rows r of its staging table, and which rows it counts';
CREATE FUNCTION millrace_internal.rows_as(role regrole, timezone text, query text) RETURNS SETOF record
LANGUAGE C STRICT AS 'MODULE_PATHNAME', 'millrace_rows_as';
COMMENT ON FUNCTION millrace_internal.rows_as(regrole, text, text) IS 'the rows of a query as a role sees them, under the settings that expressions have';

-- "name is this value", for each member of the key, or an error that names what was meant.
CREATE FUNCTION millrace_internal.trace_condition(what text, key json, names text[], expressions text[], types text[]) RETURNS text
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    member record;
    near text;
    condition text;
BEGIN
    PERFORM millrace_internal.check_members('key', key, NULL);
    FOR member IN SELECT k AS name FROM json_object_keys(key) k LOOP
        IF member.name <> ALL (names) THEN
            near := millrace_internal.nearest(member.name, names);
            RAISE EXCEPTION '"%" is no key column of %', member.name, what
                USING ERRCODE = 'undefined_column',
                      HINT = CASE WHEN near IS NOT NULL THEN format('Perhaps you meant "%s".', near) WHEN names = '{}' THEN 'It has one row: give ''{}''.'
                                  ELSE format('Its rows are found by: %s.', array_to_string(names, ', ')) END;
        END IF;
        condition := concat_ws(' AND ', condition, (SELECT format('(%s) IS NOT DISTINCT FROM CAST(%L AS %s)', u.e, key ->> member.name, u.t)
                                                    FROM unnest(names, expressions, types) AS u (n, e, t) WHERE u.n = member.name LIMIT 1));
    END LOOP;
    IF condition IS NULL AND names <> '{}' THEN
        RAISE EXCEPTION 'key must give a value to at least one column' USING ERRCODE = 'invalid_parameter_value', HINT = format('Rows of %s are found by: %s.', what, array_to_string(names, ', '));
    END IF;
    RETURN coalesce(condition, 'true');
END
$$;
COMMENT ON FUNCTION millrace_internal.trace_condition(text, json, text[], text[], text[]) IS 'the condition that a key means';

-- Rows of a staging table, or of its log, that fulfil a condition over "r".
CREATE FUNCTION millrace_internal.trace_rows(caller regrole, staging millrace.staging, in_log boolean, role regrole, condition text, since timestamptz)
    RETURNS TABLE (relation text, object json, element integer, version text, event_time timestamptz, message_partition integer, message_position bigint, message_time timestamptz,
                   loaded_at timestamptz, deleted boolean, content json, horizon timestamptz)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    place regclass := CASE WHEN in_log THEN staging.log ELSE staging.relation END;
    keys text[] := millrace_internal.erase_key(staging.definition);
    technical text[] := millrace_internal.erase_columns(staging, '{_version,_event_time,_partition,_position,_loaded_at}', in_log);
BEGIN
    PERFORM millrace_internal.check_reader(caller, place);
    RETURN QUERY SELECT place::text, t.object, t.element, t.version, t.event_time, t.message_partition, t.message_position, t.message_time, t.loaded_at, t.deleted, t.content, since
    FROM millrace_internal.rows_as(role, staging.timezone, format(
        'SELECT json_build_object(%s), %s, %s::text, %s, %s, %s, %s, %s, %s, row_to_json(r.*) FROM %s AS r WHERE %s ORDER BY %s, %s, %s',
        (SELECT string_agg(format('%L, %s', k, c), ', ' ORDER BY n) FROM unnest(keys, millrace_internal.erase_columns(staging, keys, in_log)) WITH ORDINALITY AS u (k, c, n)),
        CASE WHEN staging.definition ->> 'for_each' IS NULL THEN 'NULL::integer' ELSE (millrace_internal.erase_columns(staging, '{_element}', in_log))[1] END,
        technical[1], technical[2], technical[3], technical[4], CASE WHEN in_log THEN 'r._message_time' ELSE 'NULL::timestamptz' END, technical[5],
        CASE WHEN in_log THEN 'r._deleted' ELSE 'false' END, place, condition, technical[5], technical[3], technical[4]))
        AS t (object json, element integer, version text, event_time timestamptz, message_partition integer, message_position bigint, message_time timestamptz, loaded_at timestamptz,
              deleted boolean, content json);
    IF NOT in_log AND since > '-infinity' THEN
        RAISE NOTICE '% keeps no log of all versions: what came of earlier ones is not known', staging.relation;
    ELSIF in_log AND since > '-infinity' THEN
        RAISE NOTICE '% knows versions since %', place, since;
    END IF;
END
$$;
COMMENT ON FUNCTION millrace_internal.trace_rows(regrole, millrace.staging, boolean, regrole, text, timestamptz) IS 'rows of a staging table or its log as trace() shows them';

-- millrace.trace()
CREATE FUNCTION millrace_internal.trace(caller regrole, name regclass, key json)
    RETURNS TABLE (relation text, object json, element integer, version text, event_time timestamptz, message_partition integer, message_position bigint, message_time timestamptz,
                   loaded_at timestamptz, deleted boolean, content json, horizon timestamptz)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    kept record := millrace_internal.kept_table(name);
    staging millrace.staging;
    target millrace.target;
    parent millrace.target;
    mart record;
    source record;
    condition text;
    names text[];
    types text[];
    hashes uuid[];
    view regclass;
BEGIN
    PERFORM millrace_internal.check_reader(caller, name);
    IF kept.kind = 'staging' THEN
        SELECT g.* INTO STRICT staging FROM millrace.staging g WHERE g.id = kept.id;
        SELECT array_agg(c.name), array_agg(c.type) INTO names, types FROM millrace_internal.staging_columns(staging.definition) c WHERE c.in_key;
        condition := millrace_internal.trace_condition(name::text, key, names, millrace_internal.erase_columns(staging, names, staging.log IS NOT NULL), types);
        RETURN QUERY SELECT * FROM millrace_internal.trace_rows(caller, staging, staging.log IS NOT NULL, staging.owner, condition,
            CASE WHEN staging.log IS NULL THEN 'infinity' ELSE staging.log_since END);
        RETURN;
    END IF;

    SELECT t.* INTO STRICT target FROM millrace.target t WHERE t.id = kept.id;
    IF kept.kind = 'pit' THEN
        RAISE EXCEPTION 'point-in-time table % cannot be traced', name
            USING ERRCODE = 'wrong_object_type', DETAIL = 'It refers to rows of satellites, which are made of messages.',
                  HINT = format('Trace a satellite: %s.', (SELECT string_agg(t.relation::text, ', ' ORDER BY e.n)
                      FROM json_array_elements_text(target.definition -> 'satellites') WITH ORDINALITY AS e (id, n) JOIN millrace.target t ON t.id = e.id::integer));
    ELSIF kept.kind = 'model' THEN
        RAISE EXCEPTION 'model % cannot be traced', name
            USING ERRCODE = 'wrong_object_type', DETAIL = 'A similarity is made of all users who have one of two items.';
    ELSIF kept.kind = 'mart' THEN
        SELECT g.* INTO STRICT staging FROM millrace.target_source s JOIN millrace.staging g ON g.id = s.staging_id WHERE s.target_id = target.id;
        mart := millrace_internal.mart_trace(target.id);
        condition := millrace_internal.trace_condition(name::text, key, mart.names, mart.expressions, mart.types);
        RETURN QUERY SELECT * FROM millrace_internal.trace_rows(caller, staging, false, target.owner, format('(%s) AND (%s)', mart.condition, condition), target.horizon);
        RETURN;
    END IF;

    -- The key is looked up where the vault shows it; the sources are searched by its hash.
    SELECT t.* INTO STRICT parent FROM millrace.target t WHERE t.id = CASE kept.kind WHEN 'satellite' THEN (target.definition #>> '{parent,id}')::integer ELSE target.id END;
    view := (parent.definition ->> 'current')::regclass;
    SELECT array_agg(a.attname ORDER BY a.attnum), array_agg(format_type(a.atttypid, a.atttypmod) ORDER BY a.attnum) INTO names, types
    FROM pg_attribute a
    WHERE a.attrelid = view AND a.attname IN (SELECT json_array_elements_text(k) FROM json_array_elements(millrace_internal.current_keys(view)) k);
    condition := millrace_internal.trace_condition(name::text, key, names, ARRAY(SELECT format('%I', n) FROM unnest(names) WITH ORDINALITY AS u (n, o) ORDER BY o), types);
    hashes := ARRAY(SELECT h.hash FROM millrace_internal.rows_as(parent.owner, 'UTC', format('SELECT %I FROM %s WHERE %s', names[1], view, condition)) AS h (hash uuid));
    FOR source IN SELECT g AS staging, s.columns FROM millrace.target_source s JOIN millrace.staging g ON g.id = s.staging_id WHERE s.target_id = target.id ORDER BY s.ordinal LOOP
        staging := source.staging;
        RETURN QUERY SELECT * FROM millrace_internal.trace_rows(caller, staging, staging.log IS NOT NULL, staging.owner,
            format('%s = ANY (%L)', millrace_internal.erase_hash(parent.relation, staging, source.columns, staging.log IS NOT NULL), hashes),
            CASE WHEN staging.log IS NULL THEN 'infinity' ELSE staging.log_since END);
    END LOOP;
END
$$;
COMMENT ON FUNCTION millrace_internal.trace(regrole, regclass, json) IS 'the other half of millrace.trace()';

CREATE FUNCTION millrace.trace(name regclass, key json)
    RETURNS TABLE (relation text, object json, element integer, version text, event_time timestamptz, message_partition integer, message_position bigint, message_time timestamptz,
                   loaded_at timestamptz, deleted boolean, content json, horizon timestamptz)
LANGUAGE C STRICT AS 'MODULE_PATHNAME', 'millrace_declare';
COMMENT ON FUNCTION millrace.trace(regclass, json) IS
    'the staged rows, or from a log the versions, that rows of a mart, hub, link, satellite or staging table were made of, and the messages that they came with';
REVOKE ALL ON FUNCTION millrace.trace(regclass, json) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION millrace.trace(regclass, json) TO millrace_admin;
