-- Checking derived tables: each kind has a function verify_<kind>(id) that returns (missing, unexpected, example), in one statement under
-- one snapshot.  Nobody waits for it: it takes no lock but those of reading.

CREATE FUNCTION millrace_internal.compare(role regrole, timezone text, sources text, missing text, unexpected text,
    OUT missing_rows bigint, OUT unexpected_rows bigint, OUT example text)
LANGUAGE C STRICT AS 'MODULE_PATHNAME', 'millrace_compare';
COMMENT ON FUNCTION millrace_internal.compare(regrole, text, text, text, text) IS
    'counts what two queries over common table expressions find, in one statement, as a role, under the settings of expressions';

CREATE FUNCTION millrace_internal.comparable(expression text, type oid) RETURNS text
LANGUAGE C STRICT STABLE AS 'MODULE_PATHNAME', 'millrace_comparable';
COMMENT ON FUNCTION millrace_internal.comparable(text, oid) IS 'an expression as it is compared: by value, or as text when its type has no equality';

-- What millrace keeps under that name: its kind and id.
CREATE FUNCTION millrace_internal.kept_table(name regclass, OUT kind text, OUT id integer, OUT owner regrole)
LANGUAGE plpgsql STRICT STABLE
SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    SELECT t.kind, t.id, t.owner INTO kind, id, owner FROM millrace.target t WHERE t.relation = name
    UNION ALL
    SELECT 'staging', s.id, s.owner FROM millrace.staging s WHERE s.relation = name;
    IF kind IS NULL THEN
        RAISE EXCEPTION '% is not kept by millrace', name
            USING ERRCODE = 'wrong_object_type', HINT = 'Name a staging table, a hub, a link, a satellite, a point-in-time table, a mart or a model over one staging table.';
    END IF;
END
$$;
COMMENT ON FUNCTION millrace_internal.kept_table(regclass) IS 'kind and id of a table that millrace keeps';

-- A target that is not complete yet cannot be judged, or computed anew in part.
CREATE FUNCTION millrace_internal.check_filled(target_id integer) RETURNS void
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    target millrace.target;
    stream text;
BEGIN
    SELECT t.* INTO STRICT target FROM millrace.target t WHERE t.id = target_id;
    IF target.state = 'active' THEN
        RETURN;
    END IF;
    SELECT r.name INTO stream FROM millrace.target_source s JOIN millrace.staging g ON g.id = s.staging_id JOIN millrace.stream r ON r.id = g.stream_id
    WHERE s.target_id = target.id ORDER BY s.ordinal LIMIT 1;
    IF target.state = 'new' THEN
        RAISE EXCEPTION '% % has not been filled yet', target.kind, target.relation
            USING ERRCODE = 'object_not_in_prerequisite_state',
                  HINT = format('The first batch of its stream does that: start_stream(%L) or run_stream(%L).', stream, stream);
    END IF;
    RAISE EXCEPTION '% % is being filled', target.kind, target.relation
        USING ERRCODE = 'object_not_in_prerequisite_state', HINT = 'millrace.backfill_status shows how far it is.';
END
$$;
COMMENT ON FUNCTION millrace_internal.check_filled(integer) IS 'raises an error unless a target has been filled';

-- ---- marts -------------------------------------------------------------------------------------------------

CREATE FUNCTION millrace_internal.mart_sides(target_id integer, OUT name text, OUT wanted text, OUT found text) RETURNS SETOF record
LANGUAGE C STRICT AS 'MODULE_PATHNAME', 'millrace_mart_sides';
COMMENT ON FUNCTION millrace_internal.mart_sides(integer) IS 'the side tables of a mart: what each should have, and what it has, as queries';

CREATE FUNCTION millrace_internal.verify_mart(target_id integer, OUT missing bigint, OUT unexpected bigint, OUT example text)
LANGUAGE plpgsql STRICT
SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    mart record;
    definition regclass := to_regclass('millrace_def.mart_' || target_id);
    wanted text;
    found text;
    side record;
    wrong record;
BEGIN
    SELECT t.relation, t.owner, g.timezone INTO STRICT mart
    FROM millrace.target t
    JOIN millrace.target_source s ON s.target_id = t.id
    JOIN millrace.staging g ON g.id = s.staging_id
    WHERE t.id = target_id;
    IF definition IS NULL THEN
        RAISE EXCEPTION 'the definition of mart % is gone', mart.relation
            USING ERRCODE = 'undefined_object', HINT = 'Create the mart again with replace => true.';
    END IF;
    SELECT string_agg(format('%s AS %I', millrace_internal.comparable(format('%I', a.attname), a.atttypid), a.attname), ', ' ORDER BY a.attnum) INTO wanted
    FROM pg_attribute a WHERE a.attrelid = definition AND a.attnum > 0;
    SELECT string_agg(format('%s AS %I', millrace_internal.comparable(format('%I', a.attname), a.atttypid), a.attname), ', ' ORDER BY a.attnum) INTO found
    FROM pg_attribute a WHERE a.attrelid = mart.relation AND a.attnum > 0;
    SELECT c.* INTO missing, unexpected, example
    FROM millrace_internal.compare(mart.owner, mart.timezone,
        format('wanted AS MATERIALIZED (SELECT %s FROM %s), found AS MATERIALIZED (SELECT %s FROM %s)', wanted, definition, found, mart.relation),
        'SELECT * FROM wanted EXCEPT ALL SELECT * FROM found', 'SELECT * FROM found EXCEPT ALL SELECT * FROM wanted') AS c;
    FOR side IN SELECT s.* FROM millrace_internal.mart_sides(target_id) AS s LOOP
        SELECT c.* INTO wrong
        FROM millrace_internal.compare(mart.owner, mart.timezone, format('wanted AS MATERIALIZED (%s), found AS MATERIALIZED (%s)', side.wanted, side.found),
            'SELECT * FROM wanted EXCEPT ALL SELECT * FROM found', 'SELECT * FROM found EXCEPT ALL SELECT * FROM wanted') AS c;
        missing := missing + wrong.missing_rows;
        unexpected := unexpected + wrong.unexpected_rows;
        example := coalesce(example, 'in ' || side.name || ': ' || wrong.example);
    END LOOP;
END
$$;
COMMENT ON FUNCTION millrace_internal.verify_mart(integer) IS 'compares a mart with its query over what is staged';

-- What the users of a model have; and of an online one, of what counts of it, how many have each item, alone and with each other one.
CREATE FUNCTION millrace_internal.verify_model(target_id integer, OUT missing bigint, OUT unexpected bigint, OUT example text)
LANGUAGE plpgsql STRICT
SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    model millrace.model;
    timezone text;
    detail text;
    view regclass;
    tables text;
    wanted text;
    found text;
BEGIN
    SELECT m.* INTO STRICT model FROM millrace.model m WHERE m.target_id = target_id;
    -- As it is kept.
    SELECT CASE WHEN model.is_online THEN g.timezone ELSE 'UTC' END INTO STRICT timezone FROM millrace.target_source s JOIN millrace.staging g ON g.id = s.staging_id WHERE s.target_id = target_id;
    detail := CASE millrace_internal.history_detail(model) WHEN 'time' THEN 'seen_at' WHEN 'weight' THEN 'weight' END;
    view := format('millrace_def.model_%s', model.id)::regclass;
    tables := millrace_internal.history_tables(model);
    wanted := format(
        'had AS MATERIALIZED (SELECT d.user_id, d.item%s AS item, %s AS detail, count(*) AS n FROM %s AS d WHERE %s GROUP BY 1, 2, 3)',
        (SELECT CASE WHEN a.attcollation <> 0 THEN ' COLLATE "C"' END FROM pg_attribute a WHERE a.attrelid = (tables || '_item')::regclass AND a.attname = 'item'),
        coalesce('d.' || detail, 'NULL::integer'), view, (SELECT string_agg(format('d.%I IS NOT NULL', a.attname), ' AND ') FROM pg_attribute a WHERE a.attrelid = view AND a.attnum > 0));
    found := format('SELECT json_build_array(u.user_id, i.item, %s, h.n)::text AS said FROM %s_user AS u CROSS JOIN LATERAL millrace_state.online_history(u.history, %L) AS h JOIN %2$s_item AS i ON i.version = 1 AND i.number = h.number',
        coalesce('h.' || detail, 'NULL::integer'), tables, millrace_internal.history_detail(model));
    IF model.is_online THEN
        wanted := wanted || format(', '
            'counts AS MATERIALIZED (SELECT l.user_id, l.item FROM (SELECT h.user_id, h.item, row_number() OVER (PARTITION BY h.user_id ORDER BY max(h.detail) DESC, h.item) AS place FROM had AS h GROUP BY 1, 2) AS l WHERE l.place <= %2$s), '
            'counted AS MATERIALIZED (SELECT p.item, l.number, sum(l.n) AS n FROM %1$s_pair AS p CROSS JOIN LATERAL millrace_state.online_list(p.list) AS l GROUP BY 1, 2 HAVING sum(l.n) <> 0)',
            tables, coalesce(nullif(model.params ->> 'max_history', '0')::integer, 2147483647));
        found := found || format(
            ' UNION ALL SELECT json_build_array(i.item, c.n)::text FROM counted AS c JOIN %1$s_item AS i ON i.version = 1 AND i.number = c.number WHERE c.item = 0 '
            'UNION ALL SELECT json_build_array(i.item, o.item, c.n)::text FROM counted AS c JOIN %1$s_item AS i ON i.version = 1 AND i.number = c.item JOIN %1$s_item AS o ON o.version = 1 AND o.number = c.number', tables);
    END IF;
    wanted := wanted || ', wanted AS MATERIALIZED (SELECT json_build_array(h.user_id, h.item, h.detail, h.n)::text AS said FROM had AS h' || CASE WHEN model.is_online THEN
        ' UNION ALL SELECT json_build_array(c.item, count(*))::text FROM counts AS c GROUP BY c.item '
        'UNION ALL SELECT json_build_array(a.item, b.item, count(*))::text FROM counts AS a JOIN counts AS b ON b.user_id = a.user_id AND b.item <> a.item GROUP BY a.item, b.item' ELSE '' END || ')';
    SELECT c.* INTO missing, unexpected, example
    FROM millrace_internal.compare(model.owner, timezone, format('%s, found AS MATERIALIZED (%s)', wanted, found),
        'SELECT * FROM wanted EXCEPT ALL SELECT * FROM found', 'SELECT * FROM found EXCEPT ALL SELECT * FROM wanted') AS c;
END
$$;
COMMENT ON FUNCTION millrace_internal.verify_model(integer) IS 'compares what a model keeps with its query over what is staged';

-- ---- vault -------------------------------------------------------------------------------------------------

-- The column of the log that has the values of a declared column, or of the staging table when it has no log.
CREATE FUNCTION millrace_internal.version_column(staging millrace.staging, declared text) RETURNS text
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp AS $$
    SELECT CASE WHEN staging.log IS NOT NULL AND EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = staging.log AND a.attname = declared AND a.attnum > 0 AND NOT a.attisdropped)
                THEN declared ELSE millrace_internal.definition_column('staging', staging.id, declared) END
$$;
COMMENT ON FUNCTION millrace_internal.version_column(millrace.staging, text) IS 'where the values of a declared column of every version are';

-- How every row of every version names a key: the key's hash, those of its hubs, the columns from which it is read.
-- Is a staged row "l" one that hubs, links and satellites have seen?  Those that lack what a dictionary does not know are not.
CREATE FUNCTION millrace_internal.complete_condition(staging millrace.staging) RETURNS text
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp AS $$
    SELECT coalesce((
        SELECT format('NOT EXISTS (SELECT FROM millrace_state.object_%s AS o WHERE %s AND o.flags & 2 <> 0)', staging.id,
                      string_agg(format('o.k%s = l.%I', n, millrace_internal.definition_column('staging', staging.id, c.name)), ' AND ' ORDER BY n))
        FROM millrace_internal.staging_columns(staging.definition) WITH ORDINALITY AS c (name, type, in_key, technical, n)
        WHERE c.in_key AND NOT c.technical AND EXISTS (SELECT FROM millrace.stream s WHERE s.id = staging.stream_id AND s.enrich IS NOT NULL)
        HAVING count(*) > 0), 'true')
$$;
COMMENT ON FUNCTION millrace_internal.complete_condition(millrace.staging) IS 'which rows of a staging table are complete, so that the vault has seen them';

CREATE FUNCTION millrace_internal.version_keys(source millrace.target_source, staging millrace.staging, parent millrace.target, OUT from_clause text, OUT condition text,
    OUT key_hash text, OUT part_hashes text[], OUT columns text[], OUT recent text)
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    part record;
    own text[];
BEGIN
    from_clause := format('%s AS l', coalesce(staging.log, staging.relation));
    -- Has the version come since the present definition is in force?
    recent := (SELECT CASE WHEN t.redefined_at IS NULL THEN 'true' ELSE format('l._loaded_at >= %L', t.redefined_at) END FROM millrace.target t WHERE t.id = source.target_id);
    condition := CASE WHEN staging.log IS NULL THEN millrace_internal.complete_condition(staging) ELSE 'l._rows > 0' END;
    columns := '{}';
    part_hashes := '{}';
    FOR part IN
        SELECT p.value AS names, CASE parent.kind WHEN 'hub' THEN parent.relation
                                      ELSE (SELECT t.relation FROM millrace.target t WHERE t.id = (parent.definition #>> ARRAY['hubs', (p.ordinality - 1)::text, 'id'])::integer) END AS hub
        FROM json_array_elements(source.columns -> 'key') WITH ORDINALITY AS p ORDER BY p.ordinality
    LOOP
        own := ARRAY(SELECT format('l.%I', millrace_internal.version_column(staging, n.value)) FROM json_array_elements_text(part.names) WITH ORDINALITY AS n ORDER BY n.ordinality);
        columns := columns || own;
        part_hashes := part_hashes || format('millrace.hash_key(%L::pg_catalog.regclass, %s)', part.hub::oid, array_to_string(own, ', '));
    END LOOP;
    key_hash := format('millrace.hash_key(%L::pg_catalog.regclass, %s)', parent.relation::oid, array_to_string(columns, ', '));
END
$$;
COMMENT ON FUNCTION millrace_internal.version_keys(millrace.target_source, millrace.staging, millrace.target) IS 'how the key of a hub or link is read from every version';

-- From when on the sources of a target have every version: NULL when one of them has no log.
CREATE FUNCTION millrace_internal.log_horizon(target_id integer) RETURNS timestamptz
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp AS $$
    SELECT CASE WHEN bool_and(g.log IS NOT NULL) THEN max(g.log_since) END
    FROM millrace.target_source s JOIN millrace.staging g ON g.id = s.staging_id WHERE s.target_id = log_horizon.target_id
$$;
COMMENT ON FUNCTION millrace_internal.log_horizon(integer) IS 'from when on the logs of a target''s sources have every version; NULL: one of them has no log';

-- From when on the rows of a hub, link or satellite must come from versions that its sources have, as it is defined now.  While the logs do not have all
-- of them, that is not known of rows that it was filled or rebuilt with.
CREATE FUNCTION millrace_internal.judged_since(target millrace.target) RETURNS timestamptz
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp AS $$
    SELECT CASE WHEN h.horizon IS NULL THEN 'infinity'
                ELSE greatest(h.horizon, target.redefined_at, CASE WHEN h.horizon > '-infinity' THEN (SELECT b.finished_at FROM millrace.backfill b WHERE b.target_id = target.id) END) END
    FROM millrace_internal.log_horizon(target.id) AS h (horizon)
$$;
COMMENT ON FUNCTION millrace_internal.judged_since(millrace.target) IS 'from when on rows of a vault table can be judged; infinity: none of them can';

-- The rows of a vault table that can be judged.
CREATE FUNCTION millrace_internal.judged_rows(target millrace.target, prefix text) RETURNS text
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp AS $$
    SELECT CASE WHEN j.since = '-infinity' THEN 'true' WHEN j.since = 'infinity' THEN 'false'
                ELSE format('%s%I >= %L', prefix, millrace_internal.definition_column(target.kind, target.id, 'load_at'), j.since) END
    FROM millrace_internal.judged_since(target) AS j (since)
$$;
COMMENT ON FUNCTION millrace_internal.judged_rows(millrace.target, text) IS 'the condition under which a row of a vault table must come from a version that is still there';

-- The columns of a hub or link between its hash key and load_at.
CREATE FUNCTION millrace_internal.key_columns(target millrace.target) RETURNS TABLE (name text, type oid, declared text, n integer)
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp AS $$
    SELECT a.attname::text, a.atttypid, format_type(a.atttypid, a.atttypmod), c.n
    FROM generate_series(1, json_array_length(target.definition -> CASE target.kind WHEN 'hub' THEN 'business_key' ELSE 'hubs' END)) AS c (n)
    JOIN pg_attribute a ON a.attrelid = target.relation
     AND a.attname = millrace_internal.definition_column(target.kind, target.id, CASE target.kind WHEN 'hub' THEN 'key_' ELSE 'hub_' END || c.n)
    ORDER BY c.n
$$;
COMMENT ON FUNCTION millrace_internal.key_columns(millrace.target) IS 'the columns of a hub or link that say what its key is made of';

-- Every key that sources of a hub or link name, as a query: its hash, the columns above, and whether it came since the present definition is in force.  Each combination
-- of values is hashed once.
CREATE FUNCTION millrace_internal.said_keys(target millrace.target) RETURNS text
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    source record;
    key record;
    said text[] := '{}';
BEGIN
    FOR source IN
        SELECT s, v.g FROM millrace.target_source s JOIN millrace.staging g ON g.id = s.staging_id,
            -- A log that does not have all versions may lack those that are staged.
            LATERAL (VALUES (g), (CASE WHEN g.log_since > '-infinity' THEN jsonb_populate_record(g, '{"log": null}') END)) AS v (g)
        WHERE s.target_id = target.id AND (v.g).id IS NOT NULL ORDER BY s.ordinal
    LOOP
        key := millrace_internal.version_keys(source.s, source.g, target);
        said := said || format('SELECT %s, %s, l.":recent" FROM (SELECT DISTINCT %s, %s AS ":recent" FROM %s WHERE %s) AS l', key.key_hash,
            CASE target.kind WHEN 'hub' THEN (SELECT string_agg(format('CAST(%s AS %s)', u.c, k.declared), ', ' ORDER BY k.n)
                                              FROM millrace_internal.key_columns(target) k JOIN unnest(key.columns) WITH ORDINALITY AS u (c, n) ON u.n = k.n)
                             ELSE array_to_string(key.part_hashes, ', ') END,
            array_to_string(ARRAY(SELECT DISTINCT c FROM unnest(key.columns) c), ', '), key.recent, key.from_clause, key.condition);
    END LOOP;
    RETURN array_to_string(said, ' UNION ALL ');
END
$$;
COMMENT ON FUNCTION millrace_internal.said_keys(millrace.target) IS 'the keys of a hub or link that its sources name, as a query';

-- Hubs and links: their keys as every row of every version names them.  The key of a hub also has to fit its hash.
CREATE FUNCTION millrace_internal.verify_keys(target millrace.target, OUT missing bigint, OUT unexpected bigint, OUT example text)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    zero CONSTANT text := quote_literal('00000000-0000-0000-0000-000000000000') || '::uuid';
    hash_key text := quote_ident(millrace_internal.definition_column(target.kind, target.id, 'hash_key'));
    names text;
    shown text;
    plain text;
    unfit text := 'false';
BEGIN
    SELECT string_agg(quote_ident(k.name), ', ' ORDER BY k.n), string_agg(format('%s AS %I', millrace_internal.comparable(format('f.%I', k.name), k.type), k.name), ', ' ORDER BY k.n),
           string_agg(format('f.%I', k.name), ', ' ORDER BY k.n)
    INTO names, shown, plain FROM millrace_internal.key_columns(target) k;
    IF target.kind = 'hub' THEN
        unfit := format('f.%s <> millrace.hash_key(%L::pg_catalog.regclass, %s)', hash_key, target.relation::oid, plain);
    END IF;
    SELECT c.* INTO missing, unexpected, example FROM millrace_internal.compare(target.owner, 'UTC',
        format('said (%s, %s, ":recent") AS MATERIALIZED (%s), wanted AS (SELECT f.%s, %s, f.":recent" FROM said AS f WHERE f.%s <> %s), '
               'found AS MATERIALIZED (SELECT f.%s, %s, %s AS judged FROM %s AS f WHERE f.%s <> %s)',
               hash_key, names, millrace_internal.said_keys(target),
               hash_key, shown, hash_key, zero,
               hash_key, shown, format('(%s OR %s)', millrace_internal.judged_rows(target, 'f.'), unfit), target.relation, hash_key, zero),
        format('SELECT f.%1$s, %2$s FROM wanted AS f WHERE f.":recent" EXCEPT SELECT f.%1$s, %2$s FROM found AS f', hash_key, plain),
        format('SELECT f.%1$s, %2$s FROM found AS f WHERE f.judged EXCEPT SELECT f.%1$s, %2$s FROM wanted AS f', hash_key, plain)) AS c;
END
$$;
COMMENT ON FUNCTION millrace_internal.verify_keys(millrace.target) IS 'compares a hub or link with the keys of every version of its sources';

CREATE FUNCTION millrace_internal.verify_hub(target_id integer, OUT missing bigint, OUT unexpected bigint, OUT example text)
LANGUAGE sql STRICT
SET search_path = pg_catalog, pg_temp AS $$
    SELECT v.* FROM millrace.target t, millrace_internal.verify_keys(t) v WHERE t.id = target_id
$$;
COMMENT ON FUNCTION millrace_internal.verify_hub(integer) IS 'compares a hub with the business keys of every version of its sources';
CREATE FUNCTION millrace_internal.verify_link(target_id integer, OUT missing bigint, OUT unexpected bigint, OUT example text)
LANGUAGE sql STRICT
SET search_path = pg_catalog, pg_temp AS $$
    SELECT v.* FROM millrace.target t, millrace_internal.verify_keys(t) v WHERE t.id = target_id
$$;
COMMENT ON FUNCTION millrace_internal.verify_link(integer) IS 'compares a link with the combinations of keys of every version of its sources';

-- Satellites.  A row stands for what was said at applied_at and again at confirmed_at (C6): all that was ever said has to lie within a row
-- of its content, and both ends of each row have to have been said.  Of sets (satellite.sql) that is asked of each member; a set was said
-- last when one of its rows says so.

-- What one source says, as queries over its versions: unit, member (of a standard satellite: none), applied_at, hashdiff, is_deleted, the columns that are
-- asked for, and whether it came since the present definition is in force.
CREATE FUNCTION millrace_internal.satellite_said(target millrace.target, source millrace.target_source, staging millrace.staging, columns text[], types text[]) RETURNS text[]
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    zero CONSTANT text := quote_literal('00000000-0000-0000-0000-000000000000') || '::uuid';
    deleted_hash CONSTANT text := quote_literal('ffffffff-ffff-ffff-ffff-ffffffffffff') || '::uuid';
    kind CONSTANT text := target.definition ->> 'kind';
    whole CONSTANT boolean := coalesce((target.definition ->> 'whole')::boolean, false);
    nsub CONSTANT integer := coalesce(json_array_length(target.definition -> 'sub_key'), 0);
    at CONSTANT text := CASE WHEN staging.definition #>> '{version,type}' = 'timestamp with time zone' THEN 'coalesce(l._version, l._message_time)' ELSE 'l._message_time' END;
    object CONSTANT text[] := ARRAY(SELECT format('l.%I', millrace_internal.version_column(staging, m ->> 'name')) FROM json_array_elements(staging.definition -> 'columns') m WHERE (m ->> 'key')::boolean ORDER BY 1);
    version CONSTANT text := array_to_string('{l._partition,l._position,l._loaded_at,l._version}' || object, ', ');
    parent millrace.target;
    key record;
    read text[]; -- the source's columns for those asked for, or NULL
    given text[]; -- their values
    unit text;
    named text[]; -- the columns that name what a delete ends
    member text;
    content text := zero;
    rows text;
    said text[];
BEGIN
    SELECT t.* INTO STRICT parent FROM millrace.target t WHERE t.id = (target.definition #>> '{parent,id}')::integer;
    key := millrace_internal.version_keys(source, staging, parent);
    unit := key.key_hash;
    named := key.columns;
    SELECT array_agg(CASE WHEN u.name IS NOT NULL THEN format('l.%I', millrace_internal.version_column(staging, u.name)) END ORDER BY u.n) INTO read
    FROM (SELECT n, source.columns #>> CASE WHEN c ~ '^sub_key_' THEN ARRAY['sub_key', (n - 1)::text] ELSE ARRAY['attributes', substr(c, 11)] END AS name FROM unnest(columns) WITH ORDINALITY AS t (c, n)) AS u;
    SELECT array_agg(format('CAST(%s AS %s)', coalesce(u.r, 'NULL'), u.type) ORDER BY u.n) INTO given FROM unnest(read, types) WITH ORDINALITY AS u (r, type, n);
    IF cardinality(columns) > nsub THEN
        content := format('millrace.hashdiff(%L::pg_catalog.int4[], %s)', ARRAY(SELECT substr(c, 11)::integer FROM unnest(columns[nsub + 1:]) c), array_to_string(given[nsub + 1:], ', '));
    ELSIF kind = 'multi_active' THEN
        content := 'millrace.hashdiff(''{0}''::pg_catalog.int4[], NULL::pg_catalog.text)';
    END IF;
    IF kind = 'multi_active' THEN
        member := format('millrace.hashdiff(%L::pg_catalog.int4[], %s)', array_fill(NULL::integer, ARRAY[nsub]), array_to_string(given[:nsub], ', '));
        IF NOT whole THEN
            named := named || read[:nsub];
        END IF;
    ELSIF kind = 'effectivity' THEN
        member := key.key_hash;
        -- Hashed as the hubs of the driving key do; one with NULL in it drives nothing.
        SELECT array_agg(format('l.%I', d.name) ORDER BY d.hub, d.n),
               format('CASE WHEN num_nulls(%s) = 0 THEN millrace.hashdiff(%L::pg_catalog.int4[], %s) ELSE %s END', string_agg(format('l.%I', d.name), ', '), array_agg(NULL::integer),
                      string_agg(format('CAST(l.%I AS %s)', d.name, d.type), ', ' ORDER BY d.hub, d.n), zero)
        INTO named, unit
        FROM (SELECT h.hub, c.n, millrace_internal.version_column(staging, c.name) AS name, format_type(a.atttypid, a.atttypmod) AS type
              FROM json_array_elements_text(target.definition -> 'driving') AS h (hub)
              CROSS JOIN LATERAL json_array_elements_text(source.columns #> ARRAY['key', h.hub]) WITH ORDINALITY AS c (name, n)
              JOIN millrace.target t ON t.id = (parent.definition #>> ARRAY['hubs', h.hub, 'id'])::integer
              JOIN pg_attribute a ON a.attrelid = t.relation AND a.attname = millrace_internal.definition_column('hub', t.id, 'key_' || c.n)) AS d;
    END IF;

    rows := format('(SELECT l.*, %s AS ":unit", %s AS ":member", %s AS ":content" FROM %s WHERE %s) AS l', unit, coalesce(member, 'NULL'), content, key.from_clause, key.condition);
    IF member IS NOT NULL THEN
        -- Of rows with one member the last content counts.
        rows := format('(SELECT DISTINCT ON (%1$s, l.":unit", l.":member") l.* FROM %2$s ORDER BY %1$s, l.":unit", l.":member", l.":content" DESC) AS l', version, rows);
    END IF;
    said := ARRAY[concat('SELECT ', concat_ws(', ', 'l.":unit"', CASE WHEN member IS NOT NULL THEN 'l.":member"' END, at,
                                              CASE WHEN whole THEN 'millrace.hash_set(array_agg(l.":member") OVER w, array_agg(l.":content") OVER w)' ELSE 'l.":content"' END, 'false', array_to_string(given, ', '), key.recent),
                         ' FROM ', rows,
                         CASE WHEN whole THEN format(' WINDOW w AS (PARTITION BY %s, l.":unit" ORDER BY l.":member" ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING)', version) END)];
    -- What ends something is named by the object's own key: deletes, and where a version tells all members, those without any.
    IF ARRAY(SELECT x FROM unnest(named) x ORDER BY 1) = object THEN
        said := said || concat('SELECT ', concat_ws(', ', unit, CASE WHEN whole THEN zero ELSE member END, at, deleted_hash, 'true',
                                                    (SELECT string_agg(CASE WHEN n <= nsub AND NOT whole THEN given[n] ELSE 'NULL::' || types[n] END, ', ' ORDER BY n) FROM generate_subscripts(types, 1) n), key.recent),
                               ' FROM ', key.from_clause, ' WHERE ', CASE WHEN whole AND staging.definition ->> 'for_each' IS NOT NULL THEN 'l._rows = 0' ELSE 'l._deleted' END);
    END IF;
    RETURN said;
END
$$;
COMMENT ON FUNCTION millrace_internal.satellite_said(millrace.target, millrace.target_source, millrace.staging, text[], text[]) IS 'what every version of a source says to a satellite, as queries';

-- The table of a satellite as a FROM clause reads it.  Rows that were made with attributes which have been removed since say what is left of them, so that versions may
-- have confirmed them that have other hashes.
CREATE FUNCTION millrace_internal.satellite_held(target millrace.target, named jsonb, unit text, member text) RETURNS text
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    content text;
BEGIN
    IF NOT EXISTS (SELECT FROM json_array_elements(target.definition -> 'attributes') a WHERE (a ->> 'removed')::boolean) THEN
        RETURN target.relation;
    END IF;
    -- NULL says nothing: it stands there for when nothing is left.
    SELECT format('millrace.hashdiff(%L::pg_catalog.int4[], NULL::pg_catalog.text%s)', 0 || array_agg((a ->> 'number')::integer ORDER BY n), string_agg(', h.' || (named ->> ('attribute_' || (a ->> 'number'))), '' ORDER BY n))
    INTO content FROM json_array_elements(target.definition -> 'attributes') WITH ORDINALITY AS u (a, n) WHERE a -> 'removed' IS NULL;
    IF (target.definition ->> 'whole')::boolean THEN
        content := format('millrace.hash_set(array_agg(h.%1$s) OVER w, array_agg(%2$s) OVER w)', member, content);
    END IF;
    RETURN format('(SELECT %1$s, CASE WHEN h.%2$s OR %3$s THEN h.%4$s ELSE %5$s END AS %4$s FROM %6$s AS h WINDOW w AS (PARTITION BY h.%7$s, h.%8$s, h.%4$s ORDER BY h.%9$s ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING))',
        (SELECT string_agg('h.' || (named ->> c), ', ') FROM unnest(millrace_internal.satellite_columns(target.definition)) c WHERE c <> 'hashdiff'), named ->> 'is_deleted', millrace_internal.judged_rows(target, 'h.'),
        named ->> 'hashdiff', content, target.relation, unit, named ->> 'applied_at', coalesce(member, unit));
END
$$;
COMMENT ON FUNCTION millrace_internal.satellite_held(millrace.target, jsonb, text, text) IS 'the rows of a satellite, with the hashes that they would have by its present definition';

CREATE FUNCTION millrace_internal.verify_satellite(target_id integer, OUT missing bigint, OUT unexpected bigint, OUT example text)
LANGUAGE plpgsql STRICT
SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    target millrace.target;
    further text[]; -- the columns after the technical ones
    types text[] := '{}';
    shown text := ''; -- as they are compared
    said text[] := '{}';
    named jsonb; -- canonical name → column, quoted
    unit text;
    member text;
    compared text[];
    same text; -- condition: s and f are of one unit, member and content
    held text; -- the table, with hashes as they would be made now
    one record;
BEGIN
    SELECT t.* INTO STRICT target FROM millrace.target t WHERE t.id = target_id;
    IF millrace_internal.log_horizon(target_id) IS NULL THEN
        RAISE EXCEPTION 'satellite % cannot be verified: its source keeps no log of the versions that came', target.relation
            USING ERRCODE = 'object_not_in_prerequisite_state', HINT = 'create_staging(…, log => true, replace => true) keeps every version from then on.';
    END IF;
    SELECT jsonb_object_agg(n, quote_ident(millrace_internal.definition_column('satellite', target_id, n))) INTO named FROM unnest(millrace_internal.satellite_columns(target.definition)) n;
    further := (millrace_internal.satellite_columns(target.definition))[cardinality(millrace_internal.satellite_technical(target.definition ->> 'kind')) + 1:];
    FOR one IN SELECT named ->> u.name AS name, a.atttypid AS type, format_type(a.atttypid, a.atttypmod) AS declared FROM unnest(further) WITH ORDINALITY AS u (name, n)
               JOIN pg_attribute a ON a.attrelid = target.relation AND quote_ident(a.attname) = named ->> u.name ORDER BY u.n LOOP
        types := types || one.declared;
        shown := shown || format(', %s AS %s', millrace_internal.comparable('f.' || one.name, one.type), one.name);
    END LOOP;
    FOR one IN SELECT s, g FROM millrace.target_source s JOIN millrace.staging g ON g.id = s.staging_id WHERE s.target_id = target_id ORDER BY s.ordinal LOOP
        said := said || millrace_internal.satellite_said(target, one.s, one.g, further, types);
    END LOOP;

    unit := coalesce(named ->> 'driving_hk', named ->> 'hash_key');
    member := CASE WHEN target.definition ->> 'kind' = 'effectivity' THEN named ->> 'hash_key' ELSE named ->> 'sub_key_hk' END;
    compared := array_remove(ARRAY[unit, member, named ->> 'applied_at', named ->> 'hashdiff', named ->> 'is_deleted'], NULL);
    same := (SELECT string_agg(format('f.%1$s = s.%1$s', k), ' AND ') FROM unnest(array_remove(ARRAY[unit, member, named ->> 'hashdiff'], NULL)) k);
    shown := 'f.' || array_to_string(compared, ', f.') || shown;
    compared := compared || ARRAY(SELECT named ->> f FROM unnest(further) WITH ORDINALITY AS u (f, n) ORDER BY n);
    held := millrace_internal.satellite_held(target, named, unit, member);
    SELECT x.* INTO missing, unexpected, example FROM millrace_internal.compare(target.owner, 'UTC',
        format('versions (%1$s, ":recent") AS (%2$s), said AS MATERIALIZED (SELECT DISTINCT %3$s, f.":recent" FROM versions AS f WHERE f.%4$s <> %5$L), '
               'found AS MATERIALIZED (SELECT %3$s, f.%6$s AS "until", %7$s AS "last", %8$s AS judged FROM %9$s AS f WHERE f.%4$s <> %5$L)',
               array_to_string(compared, ', '), array_to_string(said, ' UNION ALL '), shown, unit, '00000000-0000-0000-0000-000000000000', named ->> 'confirmed_at',
               CASE WHEN (target.definition ->> 'whole')::boolean THEN format('max(f.%s) OVER (PARTITION BY f.%s, f.%s, f.%s)', named ->> 'confirmed_at', unit, named ->> 'applied_at', named ->> 'hashdiff')
                    ELSE 'f.' || (named ->> 'confirmed_at') END,
               millrace_internal.judged_rows(target, 'f.'), held),
        format('SELECT s.%s FROM said AS s WHERE s.":recent" AND NOT EXISTS (SELECT FROM found AS f WHERE %s AND s.%3$s BETWEEN f.%3$s AND f."last")', array_to_string(compared, ', s.'), same, named ->> 'applied_at')
            -- A set that others say as well must have all of its members all the same.
            || CASE WHEN (target.definition ->> 'whole')::boolean THEN
                format(' UNION SELECT %1$s FROM (SELECT DISTINCT f.%2$s, f.%3$s, f.%4$s FROM found AS f WHERE f.judged) AS f JOIN (SELECT DISTINCT s.%5$s FROM said AS s) AS s ON s.%2$s = f.%2$s AND s.%4$s = f.%4$s '
                       'WHERE NOT EXISTS (SELECT FROM found AS g WHERE g.%2$s = f.%2$s AND g.%3$s = f.%3$s AND g.%4$s = f.%4$s AND g.%6$s = s.%6$s)',
                       (SELECT string_agg(CASE WHEN c = named ->> 'applied_at' THEN 'f.' ELSE 's.' END || c, ', ' ORDER BY n) FROM unnest(compared) WITH ORDINALITY AS u (c, n)),
                       unit, named ->> 'applied_at', named ->> 'hashdiff', array_to_string(array_remove(compared, named ->> 'applied_at'), ', s.'), member)
               ELSE '' END,
        format('(SELECT %1$s FROM found AS f WHERE f.judged EXCEPT SELECT %1$s FROM said AS f) UNION ALL '
               'SELECT %1$s FROM found AS f WHERE f.judged AND f."until" <> f.%2$s AND NOT EXISTS (SELECT FROM said AS s WHERE %3$s AND s.%2$s = f."until")',
               'f.' || array_to_string(compared, ', f.'), named ->> 'applied_at', same)) AS x;
END
$$;
COMMENT ON FUNCTION millrace_internal.verify_satellite(integer) IS 'compares a satellite with what every version of its sources says';

-- ---- staging -----------------------------------------------------------------------------------------------

-- The rows that a staging table should have, from its log, as the query of a common table expression "wanted", and those that it has, "found".  Which version
-- of an object is the newest says the table of objects.  Where several of the same version differ, the log does not tell which came out on top:
-- then the one that is staged is taken, or one without rows when none is.  What is not complete yet is not in the log either.
CREATE FUNCTION millrace_internal.staging_rows(staging_id integer, OUT sources text, OUT names text, OUT keys text[])
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    staging millrace.staging;
    own_order boolean;
    key_join text;
    log_keys text;
    same_object text;
    logged text;
    shown text;
    plain text;
BEGIN
    SELECT s.* INTO STRICT staging FROM millrace.staging s WHERE s.id = staging_id;
    IF staging.log IS NULL THEN
        RAISE EXCEPTION 'staging table % keeps no log', staging.relation
            USING ERRCODE = 'object_not_in_prerequisite_state', HINT = 'create_staging(…, log => true, replace => true) keeps every version from then on.';
    END IF;
    own_order := staging.definition #>> '{version,type}' IS NULL;
    SELECT string_agg(format('o.k%s = l.%I', n, millrace_internal.version_column(staging, c.name)), ' AND ' ORDER BY n),
           string_agg(format('l.%I', millrace_internal.version_column(staging, c.name)), ', ' ORDER BY n),
           string_agg(format('t.%I = l.%I', millrace_internal.definition_column('staging', staging.id, c.name), millrace_internal.version_column(staging, c.name)), ' AND ' ORDER BY n),
           array_agg(millrace_internal.definition_column('staging', staging.id, c.name) ORDER BY n)
    INTO key_join, log_keys, same_object, keys
    FROM millrace_internal.staging_columns(staging.definition) WITH ORDINALITY AS c (name, type, in_key, technical, n) WHERE c.in_key AND NOT c.technical;
    SELECT string_agg(format('%s AS %I', millrace_internal.comparable(format('l.%I', millrace_internal.version_column(staging, c.name)), a.atttypid), a.attname), ', ' ORDER BY n),
           string_agg(format('%s AS %I', millrace_internal.comparable(format('t.%I', a.attname), a.atttypid), a.attname), ', ' ORDER BY n),
           string_agg(format('l.%I', millrace_internal.version_column(staging, c.name)), ', ' ORDER BY n),
           string_agg(quote_ident(a.attname), ', ' ORDER BY n)
    INTO logged, shown, plain, names
    FROM millrace_internal.staging_columns(staging.definition) WITH ORDINALITY AS c (name, type, in_key, technical, n)
    JOIN pg_attribute a ON a.attrelid = staging.relation AND a.attname = millrace_internal.definition_column('staging', staging.id, c.name);
    sources := format(
        'ranked AS MATERIALIZED (SELECT l.*, dense_rank() OVER (PARTITION BY %1$s ORDER BY '
        '(EXISTS (SELECT FROM %2$s AS t WHERE %3$s AND t._partition = l._partition AND t._position = l._position AND t._loaded_at = l._loaded_at)) DESC, l._rows = 0 DESC, '
        'l._loaded_at DESC, l._partition DESC, l._position DESC) AS ":rank" '
        'FROM %4$s AS l JOIN millrace_state.object_%5$s AS o ON %6$s WHERE o.flags & 3 = 0 AND NOT l._deleted AND %7$s), '
        'newest AS (SELECT %8$s FROM ranked AS l WHERE l.":rank" = 1 AND l._rows > 0%9$s), '
        'wanted AS MATERIALIZED (SELECT %10$s FROM newest AS l), '
        'found AS MATERIALIZED (SELECT %11$s FROM %2$s AS t WHERE %12$s AND NOT EXISTS (SELECT FROM millrace_state.object_%5$s AS l WHERE %13$s AND (l.definition = 0 OR l.flags & 2 <> 0)))',
        log_keys, staging.relation, same_object, staging.log, staging.id, key_join,
        CASE WHEN own_order THEN 'l._partition = o.partition AND l._position = o.version' ELSE 'l._version IS NOT DISTINCT FROM o.version' END,
        plain,
        -- A version that is newer than the newest known object should have been staged.
        CASE WHEN own_order THEN '' ELSE format(' UNION ALL SELECT %s FROM %s AS l JOIN millrace_state.object_%s AS o ON %s WHERE l._rows > 0 AND l._version > o.version', plain, staging.log, staging.id, key_join) END,
        logged, shown,
        CASE WHEN staging.log_since = '-infinity' THEN 'true' ELSE format('t._loaded_at >= %L', staging.log_since) END,
        (SELECT string_agg(format('l.k%s = t.%I', n, k), ' AND ' ORDER BY n) FROM unnest(keys) WITH ORDINALITY AS u (k, n)));
END
$$;
COMMENT ON FUNCTION millrace_internal.staging_rows(integer) IS 'the rows that a staging table should have by its log, and those that it has';

CREATE FUNCTION millrace_internal.verify_staging(staging_id integer, OUT missing bigint, OUT unexpected bigint, OUT example text)
LANGUAGE plpgsql STRICT
SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    rows record := millrace_internal.staging_rows(staging_id);
    role regrole := (SELECT s.owner FROM millrace.staging s WHERE s.id = staging_id);
BEGIN
    SELECT c.* INTO missing, unexpected, example
    FROM millrace_internal.compare(role, 'UTC', rows.sources, 'SELECT * FROM wanted EXCEPT ALL SELECT * FROM found', 'SELECT * FROM found EXCEPT ALL SELECT * FROM wanted') AS c;
END
$$;
COMMENT ON FUNCTION millrace_internal.verify_staging(integer) IS 'compares a staging table with the newest version of each object in its log';

-- ---- what users call ---------------------------------------------------------------------------------------

CREATE FUNCTION millrace_internal.verify(caller regrole, name regclass)
RETURNS TABLE (relation text, missing bigint, unexpected bigint, example text, compared_with text, horizon timestamptz)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    kept record := millrace_internal.kept_table(name);
BEGIN
    PERFORM millrace_internal.check_reader(caller, name);
    IF to_regprocedure(format('millrace_internal.verify_%s(integer)', kept.kind)) IS NULL THEN
        RAISE EXCEPTION '% % cannot be verified', kept.kind, name USING ERRCODE = 'feature_not_supported';
    END IF;
    relation := name::text;
    IF kept.kind = 'staging' THEN
        SELECT s.log::text, s.log_since INTO compared_with, horizon FROM millrace.staging s WHERE s.id = kept.id;
    ELSE
        PERFORM millrace_internal.check_filled(kept.id);
        SELECT string_agg(concat_ws(', ', CASE WHEN kept.kind NOT IN ('mart', 'model') THEN g.log END,
                                    CASE WHEN kept.kind IN ('mart', 'model') OR g.log IS NULL OR (kept.kind IN ('hub', 'link') AND g.log_since > '-infinity') THEN g.relation END), ', ' ORDER BY s.ordinal),
               CASE WHEN kept.kind IN ('mart', 'model', 'pit') THEN '-infinity' ELSE (SELECT millrace_internal.judged_since(t) FROM millrace.target t WHERE t.id = kept.id) END
        INTO compared_with, horizon
        FROM millrace.target_source s JOIN millrace.staging g ON g.id = s.staging_id WHERE s.target_id = kept.id;
        IF kept.kind = 'pit' THEN
            SELECT string_agg(t.relation::text, ', ' ORDER BY e.n) INTO compared_with
            FROM millrace.target p, json_array_elements_text(p.definition -> 'satellites') WITH ORDINALITY AS e (id, n), millrace.target t WHERE p.id = kept.id AND t.id = e.id::integer;
        END IF;
    END IF;
    EXECUTE format('SELECT missing, unexpected, example FROM millrace_internal.verify_%s($1)', kept.kind)
        INTO missing, unexpected, example USING kept.id;
    RETURN NEXT;
END
$$;
COMMENT ON FUNCTION millrace_internal.verify(regrole, regclass) IS 'the other half of millrace.verify()';

CREATE FUNCTION millrace.verify(name regclass)
RETURNS TABLE (relation text, missing bigint, unexpected bigint, example text, compared_with text, horizon timestamptz)
LANGUAGE C STRICT AS 'MODULE_PATHNAME', 'millrace_declare';
COMMENT ON FUNCTION millrace.verify(regclass) IS
    'compares a table that millrace keeps with what it is computed from: rows that are missing, rows that should not be there, among those that came since horizon';
REVOKE ALL ON FUNCTION millrace.verify(regclass) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION millrace.verify(regclass) TO millrace_admin;
