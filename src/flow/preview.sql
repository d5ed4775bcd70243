-- preview(): what messages would become.

-- Where a message that is given to preview() stands: behind all others.
CREATE FUNCTION millrace_internal.preview_place(stream_id integer, headers json, OUT topic text, OUT partition integer, OUT next_position bigint, OUT op text)
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp AS $fn$
DECLARE
    stream millrace.stream;
    tables text[];
BEGIN
    SELECT s.* INTO STRICT stream FROM millrace.stream s WHERE s.id = stream_id;
    IF stream.server IS NULL THEN
        SELECT 0, q.last_value + 1 INTO partition, next_position FROM millrace.inbox_push_no_seq q;
        RETURN;
    END IF;
    SELECT p.topic, p.partition, greatest(p.position, p.high_watermark) INTO topic, partition, next_position
    FROM millrace.stream_position p WHERE p.stream_id = stream.id ORDER BY p.topic, p.partition LIMIT 1;
    topic := coalesce(topic, stream.options #>> '{topic,0}', stream.options ->> 'topic');
    IF EXISTS (SELECT FROM millrace.replication r WHERE r.stream_id = stream.id) THEN
        SELECT coalesce(nullif(o.tables, '{}'), ARRAY(SELECT DISTINCT t.definition ->> 'source_table' FROM millrace.staging t WHERE t.stream_id = stream.id AND t.definition ->> 'source_table' IS NOT NULL))
        INTO tables FROM millrace_internal.postgres_options(stream.id) o;
        topic := coalesce(headers ->> 'table', CASE WHEN cardinality(tables) = 1 THEN tables[1] END);
        op := coalesce(headers ->> 'op', 'I');
        IF topic IS NULL OR (cardinality(tables) > 0 AND topic <> ALL (tables)) THEN
            RAISE EXCEPTION 'stream "%" reads no table "%"', stream.name, coalesce(topic, 'NULL') USING ERRCODE = 'undefined_table',
                HINT = format('headers => ''{"table": …}'' says of which table the row is: %s.', array_to_string(tables, ', '));
        END IF;
        IF op NOT IN ('I', 'U', 'D', 'R') THEN
            RAISE EXCEPTION 'invalid op "%"', op USING ERRCODE = 'invalid_parameter_value', HINT = 'A change is I, U, D or R.';
        END IF;
    END IF;
    partition := coalesce(partition, 0);
    next_position := coalesce(next_position, 0);
END
$fn$;
COMMENT ON FUNCTION millrace_internal.preview_place(integer, json) IS 'topic, partition and position of a message that comes after all others of a stream; of a change also what it does';

-- The columns by which the state of a mart tells groups apart.
CREATE FUNCTION millrace_internal.preview_groups(state text) RETURNS SETOF text
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp AS $fn$
    SELECT a.attname::text FROM pg_attribute a WHERE a.attrelid = state::regclass AND a.attname ~ '^g\d+$' AND NOT a.attisdropped
$fn$;
COMMENT ON FUNCTION millrace_internal.preview_groups(text) IS 'the columns by which the state of a mart tells groups apart';

-- A group that is spread over stripes is touched as a whole, also when rows of it have come in one stripe only.
CREATE FUNCTION millrace_internal.preview_touched(target_id integer, id_column text) RETURNS text
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp AS $fn$
    SELECT format('SELECT DISTINCT pg_catalog.to_jsonb(ROW(%s))::text FROM millrace_state.mart_%s AS x WHERE x.%s = ANY ($1)',
        (SELECT string_agg('x.' || g, ', ' ORDER BY g) FROM millrace_internal.preview_groups(a.attrelid::regclass::text) g), target_id, id_column)
    FROM pg_attribute a WHERE a.attrelid = to_regclass(format('millrace_state.mart_%s', target_id)) AND a.attname = 'stripe'
$fn$;
COMMENT ON FUNCTION millrace_internal.preview_touched(integer, text) IS
    'the query for the groups of which transactions ($1) have made (xmin) or replaced (xmax) a row in the state of a mart with stripes; NULL for anything else';

-- How the rows that a target keeps are shown.
CREATE FUNCTION millrace_internal.preview_query(target_id integer, id_column text) RETURNS text
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp AS $fn$
DECLARE
    target millrace.target;
    state text;
    pattern text;
    body text;
    alias text;
    -- A row that is there still has been locked, not replaced: it is the same before and after.
    own CONSTANT text := CASE id_column WHEN 'xmin' THEN '(%1$s.xmin = ANY ($1) OR %1$s.xmax = ANY ($1))' ELSE '%s.xmax = ANY ($1)' END;
BEGIN
    SELECT t.* INTO STRICT target FROM millrace.target t WHERE t.id = target_id;
    IF target.kind = 'rule' THEN
        RETURN format('SELECT a.occurrence, pg_catalog.json_build_object(%s)::text FROM millrace.rule_alert AS a WHERE a.rule_id = %s AND a.%s = ANY ($1) ORDER BY a.id',
            '''key'', a.key, ''occurrence'', a.occurrence, ''severity'', a.severity, ''event_time'', a.event_time, ''details'', a.details, ''suppressed'', a.suppressed', target.id, id_column);
    ELSIF target.kind = 'sink' THEN
        RETURN format('SELECT m.key, pg_catalog.json_build_object(%s)::text FROM millrace.outbox_message AS m JOIN millrace.channel AS c ON c.id = m.channel_id WHERE m.sink_id = %s AND m.%s = ANY ($1) ORDER BY m.id',
            '''channel'', c.name, ''key'', m.key, ''message'', m.message', target.id, id_column);
    ELSIF target.kind = 'pit' THEN
        -- Spans, for they stand for any number of snapshots; under the names that the view has, which shows snapshot_at in the place of both times.
        RETURN format('SELECT pg_catalog.row_to_json(ROW(s.hash_key, s.from_at))::text, (SELECT pg_catalog.row_to_json(r.*) FROM (SELECT %s) AS r)::text '
                      'FROM millrace_state.pit_%s AS s WHERE %s AND s.from_at > ''-infinity'' ORDER BY 1',
            (SELECT string_agg(format('s.%I AS %I', s.attname, coalesce(v.attname, s.attname)), ', ' ORDER BY s.attnum)
             FROM pg_attribute s LEFT JOIN pg_attribute v ON v.attrelid = target.relation AND v.attnum = CASE WHEN s.attnum > 3 THEN s.attnum - 1 WHEN s.attnum = 1 THEN 1 END
             WHERE s.attrelid = format('millrace_state.pit_%s', target.id)::regclass AND s.attnum > 0), target.id, format(own, 's'));
    ELSIF target.kind = 'model' THEN
        -- What users have; pairs follow from it.
        RETURN (SELECT format('SELECT pg_catalog.to_json(u.user_id)::text, pg_catalog.json_build_object(''user_id'', u.user_id, ''items'', '
                              '(SELECT pg_catalog.json_agg(DISTINCT i.item ORDER BY i.item) FROM millrace_state.online_history(u.history, %L) AS h JOIN %2$s_item AS i ON i.version = 1 AND i.number = h.number))::text '
                              'FROM %2$s_user AS u WHERE %3$s ORDER BY 1', millrace_internal.history_detail(m), millrace_internal.history_tables(m), format(own, 'u'))
                FROM millrace.model m WHERE m.target_id = target.id);
    ELSIF target.kind <> 'mart' THEN
        RETURN format('SELECT (SELECT pg_catalog.row_to_json(k.*) FROM (SELECT %s) AS k)::text, pg_catalog.row_to_json(t.*)::text FROM %s AS t WHERE %s ORDER BY 1',
            (SELECT string_agg(format('t.%I', a.attname), ', ' ORDER BY a.attnum) FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = ANY (i.indkey)
             WHERE i.indrelid = target.relation AND i.indexrelid = (
                 SELECT o.indexrelid FROM pg_index o WHERE o.indrelid = target.relation AND o.indisunique ORDER BY o.indisprimary DESC, o.indexrelid LIMIT 1)),
            target.relation, format(own, 't'));
    END IF;

    -- The mart's view over the groups that were touched, beside what tells one group from another.
    state := format('millrace_state.mart_%s', target.id);
    pattern := replace(state, '.', '\.') || '\M(?!_)';
    body := rtrim(pg_get_viewdef(target.relation), ';');
    IF millrace_internal.preview_touched(target.id, id_column) IS NOT NULL THEN
        alias := (regexp_match(regexp_replace(body, '^.*' || pattern, ''), '\) ("(?:[^"]|"")+"|[a-z_][a-z0-9_$]*)'))[1];
        body := regexp_replace(body, pattern, format('(SELECT s.* FROM %s AS s WHERE pg_catalog.to_jsonb(ROW(%s)) = ANY ($2::pg_catalog.jsonb[])) AS mart_%s', state,
            (SELECT string_agg('s.' || g, ', ' ORDER BY g) FROM millrace_internal.preview_groups(state) g), target.id));
    ELSE
        alias := (regexp_match(body, pattern || ' ("(?:[^"]|"")+"|[a-z_][a-z0-9_$]*)'))[1];
        body := regexp_replace(body, pattern, format('(SELECT o.* FROM %s AS o WHERE %s)', state, format(own, 'o')));
    END IF;
    body := regexp_replace(body, '^\s*SELECT', format('SELECT pg_catalog.row_to_json(ROW(%s))::text AS ":group",',
        (SELECT string_agg(format('%s.%s', alias, g), ', ' ORDER BY g) FROM millrace_internal.preview_groups(state) g)));
    RETURN format('SELECT v.":group", (SELECT pg_catalog.row_to_json(r.*) FROM (SELECT %s) AS r)::text FROM (%s) AS v ORDER BY 1',
        (SELECT string_agg(format('v.%I', a.attname), ', ' ORDER BY a.attnum) FROM pg_attribute a WHERE a.attrelid = target.relation AND a.attnum > 0), body);
END
$fn$;
COMMENT ON FUNCTION millrace_internal.preview_query(integer, text) IS
    'the query that shows what transactions ($1) have made (xmin) or replaced (xmax) in what a target keeps, or of a mart with stripes the groups $2: a key, and the row as JSON';

CREATE FUNCTION millrace.preview(stream text, max_messages integer DEFAULT 10)
    RETURNS TABLE (message integer, layer text, relation text, change text, before json, after json, reason text)
LANGUAGE C AS 'MODULE_PATHNAME', 'millrace_preview';
COMMENT ON FUNCTION millrace.preview(text, integer) IS
    'what the next messages of a stream would become in every layer; nothing is kept, no position moves';
CREATE FUNCTION millrace.preview(stream text, payload text, key text DEFAULT NULL, headers json DEFAULT NULL, message_time timestamptz DEFAULT NULL)
    RETURNS TABLE (message integer, layer text, relation text, change text, before json, after json, reason text)
LANGUAGE C AS 'MODULE_PATHNAME', 'millrace_preview_text';
COMMENT ON FUNCTION millrace.preview(text, text, text, json, timestamptz) IS 'what a message would become in every layer; nothing is kept';
CREATE FUNCTION millrace.preview(stream text, payload json, key text DEFAULT NULL, headers json DEFAULT NULL, message_time timestamptz DEFAULT NULL)
    RETURNS TABLE (message integer, layer text, relation text, change text, before json, after json, reason text)
LANGUAGE C AS 'MODULE_PATHNAME', 'millrace_preview_text';
COMMENT ON FUNCTION millrace.preview(text, json, text, json, timestamptz) IS 'what a message would become in every layer; nothing is kept';
CREATE FUNCTION millrace.preview(stream text, payload jsonb, key text DEFAULT NULL, headers json DEFAULT NULL, message_time timestamptz DEFAULT NULL)
    RETURNS TABLE (message integer, layer text, relation text, change text, before json, after json, reason text)
LANGUAGE C AS 'MODULE_PATHNAME', 'millrace_preview_jsonb';
COMMENT ON FUNCTION millrace.preview(text, jsonb, text, json, timestamptz) IS 'what a message would become in every layer; nothing is kept';
REVOKE ALL ON FUNCTION millrace.preview(text, integer), millrace.preview(text, text, text, json, timestamptz), millrace.preview(text, json, text, json, timestamptz),
    millrace.preview(text, jsonb, text, json, timestamptz) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION millrace.preview(text, integer), millrace.preview(text, text, text, json, timestamptz), millrace.preview(text, json, text, json, timestamptz),
    millrace.preview(text, jsonb, text, json, timestamptz) TO millrace_admin;
