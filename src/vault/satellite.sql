-- Satellites of all kinds: their tables, and the views and functions that read them.
--
-- A row asserts its content at applied_at and again at confirmed_at (C6).  What is said of a thing (its unit) is ordered by time, then by hashdiff, and the last
-- one counts.  The unit of a standard satellite is the parent; what is said of it is one row.  Sets are said of the other kinds: all rows of a unit that have
-- the same applied_at and hashdiff, which is the hash of the whole set, are one of them; members are told apart by a hash of their own.
--
--   kind          unit                                  member            rows of a set
--   standard      hash_key
--   multi_active  hash_key                              sub_key_hk        one for each sub-key, with its attributes
--     each alone  hash_key, sub_key_hk                                    (definition's "whole" is false: every object speaks for its own sub-key)
--   effectivity   driving_hk                            hash_key          one for each link that is there
--
-- A set of nothing is one row with is_deleted and the zero key as its member.

-- The technical columns of a satellite: first those of its primary key.
CREATE FUNCTION millrace_internal.satellite_technical(kind text) RETURNS text[]
LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp AS $$
    SELECT CASE kind WHEN 'standard' THEN '{hash_key,applied_at,hashdiff}'::text[] WHEN 'multi_active' THEN '{hash_key,applied_at,hashdiff,sub_key_hk}'
                     WHEN 'effectivity' THEN '{driving_hk,applied_at,hashdiff,hash_key}' END
           || '{confirmed_at,position,is_deleted,load_at,record_source}'::text[]
$$;
COMMENT ON FUNCTION millrace_internal.satellite_technical(text) IS 'the technical columns of a satellite of some kind';

-- Every column of a satellite's definition view in its order, by canonical name.
CREATE FUNCTION millrace_internal.satellite_columns(definition json) RETURNS text[]
LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp AS $$
    SELECT millrace_internal.satellite_technical(definition ->> 'kind')
        || ARRAY(SELECT 'sub_key_' || n FROM generate_series(1, coalesce(json_array_length(definition -> 'sub_key'), 0)) n)
        || ARRAY(SELECT 'attribute_' || (a ->> 'number') FROM json_array_elements(definition -> 'attributes') a ORDER BY (a ->> 'number')::integer)
$$;
COMMENT ON FUNCTION millrace_internal.satellite_columns(json) IS 'the columns of a satellite as its definition view calls them';

-- The order in which the last thing said comes first, and the condition that rows are of the unit of m.
CREATE FUNCTION millrace_internal.satellite_last(alias text, latest text, col jsonb) RETURNS text
LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp AS $$
    SELECT concat_ws(', ', alias || '.' || latest || ' DESC', alias || '.' || (col ->> 'hashdiff') || ' DESC', CASE WHEN latest <> col ->> 'applied_at' THEN alias || '.' || (col ->> 'applied_at') END)
$$;
COMMENT ON FUNCTION millrace_internal.satellite_last(text, text, jsonb) IS 'the order in which the last thing said comes first';
CREATE FUNCTION millrace_internal.satellite_same(alias text, columns text[]) RETURNS text
LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp AS $$
    SELECT string_agg(format('%1$s.%2$s = m.%2$s', alias, c), ' AND ') FROM unnest(columns) c
$$;
COMMENT ON FUNCTION millrace_internal.satellite_same(text, text[]) IS 'the condition that rows agree with m in some columns';

-- What a satellite shows of its parents: the last thing said of each unit, at a time (an expression), or of all times (NULL).  applied_at is since when it has been
-- said without another thing between, for effectivity since when the link has been there.
CREATE FUNCTION millrace_internal.satellite_query(target millrace.target, at text) RETURNS text
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    kind text := target.definition ->> 'kind';
    whole boolean := (target.definition ->> 'whole')::boolean;
    driving json := target.definition -> 'driving';
    parent millrace.target;
    key record;
    col jsonb; -- canonical name → column, quoted
    rows text; -- the table, as it was at the time
    shown text;
    unit text[]; -- its columns
    latest text; -- the column by which the last thing said is found
    other text; -- condition: o says something else than what is shown
    same text; -- condition: s says what is shown
    current text; -- FROM: parents k, and what is shown of them as m; what is said of the unit now as c
    since text;
BEGIN
    SELECT t.* INTO STRICT parent FROM millrace.target t WHERE t.id = (target.definition #>> '{parent,id}')::integer;
    key := millrace_internal.vault_key(parent, false);
    SELECT jsonb_object_agg(c, quote_ident(millrace_internal.definition_column('satellite', target.id, c))) INTO col
    FROM unnest(millrace_internal.satellite_columns(target.definition)) c;
    rows := target.relation::text;
    IF at IS NOT NULL THEN
        rows := format('(SELECT %s FROM %s AS r WHERE r.%s <= %s)',
            (SELECT string_agg(CASE WHEN c = 'confirmed_at' THEN format('CASE WHEN r.%1$s <= %3$s THEN r.%1$s ELSE r.%2$s END AS %1$s', col ->> 'confirmed_at', col ->> 'applied_at', at)
                                    ELSE 'r.' || (col ->> c) END, ', ' ORDER BY n)
             FROM unnest(millrace_internal.satellite_columns(target.definition)) WITH ORDINALITY AS u (c, n)),
            target.relation, col ->> 'applied_at', at);
    END IF;
    latest := CASE WHEN target.definition ->> 'history' = 'all' THEN col ->> 'applied_at' ELSE col ->> 'confirmed_at' END;
    same := format('s.%1$s = m.%1$s', col ->> 'hashdiff');
    other := format('o.%1$s <> m.%1$s', col ->> 'hashdiff');
    IF kind = 'standard' THEN
        unit := ARRAY[col ->> 'hash_key'];
        current := format('%s CROSS JOIN LATERAL (SELECT s.* FROM %s AS s WHERE s.%s = %s ORDER BY %s LIMIT 1) AS m',
                          key.from_clause, rows, col ->> 'hash_key', key.hash_key, millrace_internal.satellite_last('s', latest, col));
    ELSIF kind = 'multi_active' AND whole THEN
        unit := ARRAY[col ->> 'hash_key'];
        current := format('%1$s CROSS JOIN LATERAL (SELECT s.%4$s, s.%5$s FROM %2$s AS s WHERE s.%3$s = %6$s ORDER BY %7$s LIMIT 1) AS c'
                          ' JOIN %2$s AS m ON m.%3$s = %6$s AND m.%4$s = c.%4$s AND m.%5$s = c.%5$s',
                          key.from_clause, rows, col ->> 'hash_key', col ->> 'applied_at', col ->> 'hashdiff', key.hash_key, millrace_internal.satellite_last('s', latest, col));
    ELSIF kind = 'multi_active' THEN
        unit := ARRAY[col ->> 'hash_key', col ->> 'sub_key_hk'];
        current := format('%1$s CROSS JOIN LATERAL (SELECT DISTINCT ON (s.%4$s) s.* FROM %2$s AS s WHERE s.%3$s = %5$s ORDER BY s.%4$s, %6$s) AS m',
                          key.from_clause, rows, col ->> 'hash_key', col ->> 'sub_key_hk', key.hash_key, millrace_internal.satellite_last('s', latest, col));
    ELSE
        unit := ARRAY[col ->> 'driving_hk'];
        same := format('s.%1$s = m.%1$s', col ->> 'hash_key');
        other := format('NOT EXISTS (SELECT FROM %1$s AS i WHERE i.%2$s = o.%2$s AND i.%3$s = o.%3$s AND i.%4$s = o.%4$s AND i.%5$s = m.%5$s)',
                        rows, col ->> 'driving_hk', col ->> 'applied_at', col ->> 'hashdiff', col ->> 'hash_key');
        current := format('%1$s JOIN %2$s AS m ON m.%3$s = %4$s%9$s'
                          ' CROSS JOIN LATERAL (SELECT s.%6$s, s.%7$s FROM %2$s AS s WHERE s.%5$s = m.%5$s ORDER BY %8$s LIMIT 1) AS c',
                          key.from_clause, rows, col ->> 'hash_key', key.hash_key, col ->> 'driving_hk', col ->> 'applied_at', col ->> 'hashdiff', millrace_internal.satellite_last('s', latest, col),
                          -- The link knows the key of a driving hub, by which the satellite's index finds its rows.
                          CASE WHEN json_array_length(driving) = 1
                               THEN format(' AND m.%s = k.%I', col ->> 'driving_hk', millrace_internal.definition_column('link', parent.id, 'hub_' || ((driving ->> 0)::integer + 1))) ELSE '' END);
    END IF;
    since := format('(SELECT min(a.at) FROM (SELECT o.%1$s AS at, o.%2$s AS hash FROM %3$s AS o WHERE %4$s AND %5$s ORDER BY %6$s LIMIT 1) AS l'
                    ' RIGHT JOIN (%3$s AS s CROSS JOIN LATERAL (VALUES (s.%7$s), (s.%1$s)) AS a (at)) ON true WHERE %8$s AND %9$s AND (l.at IS NULL OR (a.at, s.%2$s) > (l.at, l.hash))) AS %7$s',
                    col ->> 'confirmed_at', col ->> 'hashdiff', rows, millrace_internal.satellite_same('o', unit), other, millrace_internal.satellite_last('o', latest, col), col ->> 'applied_at', millrace_internal.satellite_same('s', unit), same);
    SELECT string_agg(CASE WHEN u.removed THEN format('NULL::%s AS %s', u.type, col ->> u.c) ELSE 'm.' || (col ->> u.c) END, ', ' ORDER BY u.n) INTO shown FROM (
        SELECT n, c, NULL AS type, false AS removed FROM unnest('{confirmed_at,position,hashdiff,load_at,record_source}'::text[]) WITH ORDINALITY AS t (c, n)
        UNION ALL
        SELECT 100 + n, 'sub_key_' || n, NULL, false FROM generate_series(1, coalesce(json_array_length(target.definition -> 'sub_key'), 0)) n
        UNION ALL
        SELECT 200 + (a ->> 'number')::integer, 'attribute_' || (a ->> 'number'),
               (SELECT format_type(t.atttypid, t.atttypmod) FROM pg_attribute t WHERE t.attrelid = target.relation AND quote_ident(t.attname) = col ->> ('attribute_' || (a ->> 'number'))),
               coalesce((a ->> 'removed')::boolean, false)
        FROM json_array_elements(target.definition -> 'attributes') a) AS u;
    RETURN format('SELECT %s, %s, %s FROM %s WHERE NOT m.%s AND %s <> %L::uuid%s', key.selected, since, shown, current, col ->> 'is_deleted', key.hash_key, '00000000-0000-0000-0000-000000000000',
                  CASE WHEN kind = 'effectivity' THEN format(' AND m.%1$s = c.%1$s AND m.%2$s = c.%2$s', col ->> 'applied_at', col ->> 'hashdiff') ELSE '' END);
END
$$;
COMMENT ON FUNCTION millrace_internal.satellite_query(millrace.target, text) IS 'the query that shows what a satellite says at a time, or last';

-- The view <satellite>_current and the function <satellite>_as_of(timestamptz), which gives the same columns.
CREATE FUNCTION millrace_internal.satellite_view(target millrace.target) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    current text := target.definition ->> 'current';
    as_of text := target.definition ->> 'as_of';
BEGIN
    PERFORM millrace_internal.execute_as(target.owner, format('CREATE OR REPLACE VIEW %s AS %s', current, millrace_internal.satellite_query(target, NULL)));
    PERFORM millrace_internal.execute_as(target.owner, format('COMMENT ON VIEW %s IS %L', current, format('what is current in %s', target.relation)));
    -- The body is parsed now: renames are followed, and nobody's search_path matters.
    PERFORM millrace_internal.execute_as(target.owner, format('CREATE OR REPLACE FUNCTION %s(as_of timestamptz) RETURNS SETOF %s LANGUAGE sql STABLE PARALLEL SAFE BEGIN ATOMIC %s; END',
        as_of, current, millrace_internal.satellite_query(target, '$1')));
    PERFORM millrace_internal.execute_as(target.owner, format('COMMENT ON FUNCTION %s(timestamptz) IS %L', as_of, format('what was current in %s at a time', target.relation)));
END
$$;
COMMENT ON FUNCTION millrace_internal.satellite_view(millrace.target) IS 'makes the view and the function that read a satellite';

-- How one source speaks of the parent, sub-key and attributes: target_source.columns.
CREATE FUNCTION millrace_internal.satellite_mapping(parent millrace.target, attributes jsonb, sub_key text[], staging millrace.staging, columns json) RETURNS json
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    hubs json := CASE parent.kind WHEN 'hub' THEN json_build_array(json_build_object('id', parent.id)) ELSE parent.definition -> 'hubs' END;
    shown text[] := CASE parent.kind WHEN 'hub' THEN millrace_internal.hub_columns(parent.id) END;
    live text[] := ARRAY(SELECT a ->> 'name' FROM jsonb_array_elements(attributes) a WHERE a -> 'removed' IS NULL ORDER BY (a ->> 'number')::integer);
    key jsonb := '[]';
    item record;
BEGIN
    -- Members of columns: attributes, sub-key, and the hub's business key columns or (a link's) labels of hubs.
    PERFORM millrace_internal.check_members('columns', columns,
        live || sub_key || CASE parent.kind WHEN 'hub' THEN shown ELSE ARRAY(SELECT h ->> 'as' FROM json_array_elements(hubs) h) END);
    FOR item IN SELECT h.hub ->> 'as' AS label, t AS target FROM json_array_elements(hubs) WITH ORDINALITY AS h (hub, n) JOIN millrace.target t ON t.id = (h.hub ->> 'id')::integer ORDER BY h.n LOOP
        IF parent.kind = 'hub' THEN
            key := key || jsonb_build_array(millrace_internal.vault_key_columns(item.target, staging,
                (SELECT json_object_agg(c.key, c.value) FROM json_each(columns) c WHERE c.key = ANY (shown)), 'columns'));
        ELSIF columns -> item.label IS NULL AND EXISTS (SELECT FROM millrace.target_source s WHERE s.target_id = parent.id AND s.staging_id = staging.id) THEN
            -- As the link itself reads it.
            key := key || jsonb_build_array((SELECT s.columns #> ARRAY['key', jsonb_array_length(key)::text] FROM millrace.target_source s
                                             WHERE s.target_id = parent.id AND s.staging_id = staging.id ORDER BY s.ordinal LIMIT 1));
        ELSE
            key := key || jsonb_build_array(millrace_internal.vault_key_columns(item.target, staging, columns -> item.label, format('columns for "%s"', item.label)));
        END IF;
    END LOOP;
    RETURN json_build_object('key', key,
        -- null stands for an attribute of which the source says nothing.
        'attributes', (SELECT json_object_agg(a ->> 'number', CASE WHEN json_typeof(columns -> (a ->> 'name')) IS DISTINCT FROM 'null'
                                  THEN (millrace_internal.vault_columns(staging, ARRAY[coalesce(columns ->> (a ->> 'name'), a ->> 'name')]))[1] END ORDER BY (a ->> 'number')::integer)
                       FROM jsonb_array_elements(attributes) a WHERE a -> 'removed' IS NULL),
        'sub_key', CASE WHEN sub_key <> '{}' THEN to_json(millrace_internal.vault_columns(staging, ARRAY(SELECT coalesce(columns ->> k, k) FROM unnest(sub_key) WITH ORDINALITY AS u (k, n) ORDER BY n))) END);
END
$$;
COMMENT ON FUNCTION millrace_internal.satellite_mapping(millrace.target, jsonb, text[], millrace.staging, json) IS 'the columns of a staging table that a satellite reads';

-- Is the parent keyed by the staging's own key, so that a version tells everything about it?
CREATE FUNCTION millrace_internal.satellite_whole(staging millrace.staging, mapping json) RETURNS boolean
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp AS $$
    SELECT (SELECT array_agg(DISTINCT k ORDER BY k) FROM json_array_elements(mapping -> 'key') p, json_array_elements_text(p) k)
         = (SELECT array_agg(c ->> 'name' ORDER BY c ->> 'name') FROM json_array_elements(staging.definition -> 'columns') c WHERE (c ->> 'key')::boolean)
$$;
COMMENT ON FUNCTION millrace_internal.satellite_whole(millrace.staging, json) IS 'whether the key that a satellite reads from a staging table is the table''s own';

-- Does the parent's key hold the staging's own, so that no other object's versions tell of the parent?
CREATE FUNCTION millrace_internal.satellite_is_own(staging millrace.staging, mapping json) RETURNS boolean
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp AS $$
    SELECT (SELECT array_agg(c ->> 'name') FROM json_array_elements(staging.definition -> 'columns') c WHERE (c ->> 'key')::boolean)
        <@ (SELECT array_agg(k) FROM json_array_elements(mapping -> 'key') p, json_array_elements_text(p) k)
$$;
COMMENT ON FUNCTION millrace_internal.satellite_is_own(millrace.staging, json) IS 'whether the key that a satellite reads from a staging table holds all of the table''s own';

-- The hubs (from 0) whose business keys make the driving key.
CREATE FUNCTION millrace_internal.satellite_driving(parent millrace.target, driving_key text[]) RETURNS integer[]
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    known text[];
    wrong text;
    result integer[];
    near text;
BEGIN
    IF parent.kind <> 'link' THEN
        RAISE EXCEPTION '% is not a link', parent.relation
            USING ERRCODE = 'wrong_object_type', DETAIL = 'An effectivity satellite says which of the links of a driving key are there.';
    END IF;
    PERFORM millrace_internal.vault_check_list('driving_key', driving_key);
    SELECT array_agg(c.shown) INTO known FROM millrace_internal.link_columns(parent.definition -> 'hubs') c;
    SELECT k INTO wrong FROM unnest(driving_key) k WHERE k <> ALL (known) LIMIT 1;
    IF FOUND THEN
        near := millrace_internal.nearest(wrong, known);
        RAISE EXCEPTION 'driving key "%" is no business key column of %', wrong, parent.relation
            USING ERRCODE = 'undefined_column', HINT = CASE WHEN near IS NULL THEN format('Its hubs have: %s.', array_to_string(known, ', ')) ELSE format('Perhaps you meant "%s".', near) END;
    END IF;
    SELECT array_agg(h.hub - 1 ORDER BY h.hub) FILTER (WHERE h.all_of_it), min(h.missing) FILTER (WHERE NOT h.all_of_it AND h.some_of_it) INTO result, wrong
    FROM (SELECT c.hub, bool_and(c.shown = ANY (driving_key)) AS all_of_it, bool_or(c.shown = ANY (driving_key)) AS some_of_it, min(c.shown) FILTER (WHERE c.shown <> ALL (driving_key)) AS missing
          FROM millrace_internal.link_columns(parent.definition -> 'hubs') c GROUP BY c.hub) AS h;
    IF wrong IS NOT NULL THEN
        RAISE EXCEPTION 'driving_key has a part of a hub''s business key: "%" is missing', wrong USING ERRCODE = 'invalid_parameter_value';
    ELSIF cardinality(result) = json_array_length(parent.definition -> 'hubs') THEN
        RAISE EXCEPTION 'driving_key has the keys of all hubs of %', parent.relation
            USING ERRCODE = 'invalid_parameter_value', HINT = 'Leave out the hub whose keys come and go.';
    END IF;
    RETURN result;
END
$$;
COMMENT ON FUNCTION millrace_internal.satellite_driving(millrace.target, text[]) IS 'which hubs of a link a driving key is made of';

CREATE FUNCTION millrace_internal.create_satellite(caller regrole, name text, source regclass, parent regclass, attributes text[], history text, kind text, sub_key text[], driving_key text[], columns json,
    names json, record_source text, replace boolean) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    staging millrace.staging := millrace_internal.vault_source(caller, source);
    qualified text := millrace_internal.qualified_name(name);
    present millrace.target := millrace_internal.vault_present(caller, 'satellite', name, replace, staging);
    present_attributes jsonb := coalesce((present.definition -> 'attributes')::jsonb, '[]');
    of millrace.target;
    shown text[]; -- the parent's business key in views
    driving integer[];
    technical text[];
    numbered jsonb; -- attributes with their numbers
    called jsonb;
    definition json;
    mapping json;
    added text[];
    wrong text;
    item record;
    nkeys integer;
BEGIN
    PERFORM millrace_internal.check_word('history', history, '{changes,all}');
    PERFORM millrace_internal.check_word('kind', kind, '{standard,multi_active,effectivity}');
    attributes := coalesce(attributes, '{}');
    IF kind = 'standard' OR attributes <> '{}' THEN
        PERFORM millrace_internal.vault_check_list('attributes', attributes);
    END IF;
    IF kind = 'effectivity' AND attributes <> '{}' THEN
        RAISE EXCEPTION 'an effectivity satellite has no attributes' USING ERRCODE = 'invalid_parameter_value', HINT = 'A standard satellite of the link has them.';
    ELSIF kind <> 'multi_active' AND sub_key IS NOT NULL THEN
        RAISE EXCEPTION 'sub_key is for satellites of kind ''multi_active''' USING ERRCODE = 'invalid_parameter_value';
    ELSIF kind <> 'effectivity' AND driving_key IS NOT NULL THEN
        RAISE EXCEPTION 'driving_key is for satellites of kind ''effectivity''' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    of := millrace_internal.vault_base(caller, parent, parent::text, '{hub,link}');
    IF of.kind = 'hub' THEN
        shown := millrace_internal.hub_columns(of.id);
    ELSE
        SELECT array_agg(c.shown ORDER BY c.hub, c.n) INTO shown FROM millrace_internal.link_columns(of.definition -> 'hubs') c;
    END IF;
    IF kind = 'multi_active' THEN
        PERFORM millrace_internal.vault_check_list('sub_key', sub_key);
    ELSIF kind = 'effectivity' THEN
        driving := millrace_internal.satellite_driving(of, driving_key);
    END IF;
    sub_key := coalesce(sub_key, '{}');
    SELECT a INTO wrong FROM unnest(sub_key || attributes) a WHERE a = ANY (shown) LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'attribute "%" is part of the business key of %', wrong, parent
            USING ERRCODE = 'duplicate_column', DETAIL = 'The view of what is current shows the business key beside the attributes.';
    END IF;

    -- Numbers stay with their attributes and are never used again; one that comes back has the number that it had.
    added := ARRAY(SELECT a FROM unnest(attributes) WITH ORDINALITY AS u (a, n) WHERE NOT EXISTS (SELECT FROM jsonb_array_elements(present_attributes) p WHERE p ->> 'name' = a) ORDER BY n);
    numbered := coalesce((SELECT jsonb_agg(CASE WHEN p ->> 'name' = ANY (attributes) THEN p - 'removed' ELSE p || '{"removed": true}' END ORDER BY n)
                          FROM jsonb_array_elements(present_attributes) WITH ORDINALITY AS u (p, n)), '[]')
        || coalesce((SELECT jsonb_agg(jsonb_build_object('number', n + jsonb_array_length(present_attributes), 'name', a) ORDER BY n) FROM unnest(added) WITH ORDINALITY AS u (a, n)), '[]');
    mapping := millrace_internal.satellite_mapping(of, numbered, sub_key, staging, columns);

    technical := millrace_internal.satellite_technical(kind);
    called := millrace_internal.vault_names(names,
        (SELECT jsonb_object_agg(t, t) FROM unnest(technical) t)
        || jsonb_build_object('hash_key', coalesce(present.definition #>> '{names,hash_key}', millrace_internal.definition_column(of.kind, of.id, 'hash_key'))));
    definition := json_build_object(
        'parent', CASE of.kind WHEN 'hub' THEN jsonb_build_object('id', of.id, 'kind', of.kind) ELSE jsonb_build_object('id', of.id, 'kind', of.kind, 'hubs', of.definition -> 'hubs') END,
        'attributes', numbered, 'kind', kind, 'history', history, 'sub_key', sub_key, 'driving_key', driving_key, 'driving', driving,
        'whole', CASE kind WHEN 'multi_active' THEN millrace_internal.satellite_whole(staging, mapping) WHEN 'effectivity' THEN true END,
        'names', called, 'record_source', record_source,
        'current', coalesce(present.definition ->> 'current', millrace_internal.vault_current_name(qualified)),
        'as_of', coalesce(present.definition ->> 'as_of', format('%I.%I', (parse_ident(qualified))[1], (parse_ident(qualified))[2] || '_as_of')));

    IF present.id IS NOT NULL THEN
        PERFORM millrace_internal.vault_check_same(present, definition, '{parent,kind,history,sub_key,driving_key,whole}', 'Every row depends on it.');
        PERFORM millrace_internal.vault_check_same(present, definition, '{names}', 'The columns are in use under the names that they have; ALTER TABLE … RENAME COLUMN is followed.');
        IF millrace_internal.vault_update(present, definition, staging, mapping) AND numbered <> present_attributes THEN
            FOR item IN SELECT a ->> 'name' AS name, mapping #>> ARRAY['attributes', a ->> 'number'] AS declared FROM jsonb_array_elements(numbered) a WHERE a ->> 'name' = ANY (added) LOOP
                PERFORM millrace_internal.execute_as(present.owner, format('ALTER TABLE %s ADD COLUMN %I %s', present.relation, item.name,
                    coalesce(millrace_internal.vault_column_type(staging, item.declared), 'text')));
            END LOOP;
            PERFORM millrace_internal.vault_define(present.id, (
                SELECT string_agg(format('t.%I AS %I', coalesce(millrace_internal.definition_column('satellite', present.id, u.c),
                                                                (SELECT a ->> 'name' FROM jsonb_array_elements(numbered) a WHERE 'attribute_' || (a ->> 'number') = u.c)), u.c), ', ' ORDER BY u.n)
                FROM unnest(millrace_internal.satellite_columns(definition)) WITH ORDINALITY AS u (c, n)));
            PERFORM millrace_internal.vault_view(present.id);
        END IF;
        RETURN;
    END IF;

    IF to_regprocedure((definition ->> 'as_of') || '(timestamptz)') IS NOT NULL THEN
        RAISE EXCEPTION 'function %(timestamptz) exists already, and is the name of the one that shows % at a time', definition ->> 'as_of', qualified USING ERRCODE = 'duplicate_function';
    END IF;
    nkeys := CASE kind WHEN 'standard' THEN 3 ELSE 4 END;
    PERFORM millrace_internal.vault_zero(millrace_internal.vault_add(caller, 'satellite',
        millrace_internal.vault_table(caller, name,
            ARRAY(SELECT called ->> t FROM unnest(technical) WITH ORDINALITY AS u (t, n) ORDER BY n) || sub_key || attributes,
            millrace_internal.satellite_types(technical)
                || ARRAY(SELECT millrace_internal.vault_column_type(staging, mapping #>> ARRAY['sub_key', (n - 1)::text]) FROM generate_series(1, cardinality(sub_key)) n ORDER BY n)
                || ARRAY(SELECT coalesce(millrace_internal.vault_column_type(staging, mapping #>> ARRAY['attributes', a ->> 'number']), 'text')
                         FROM jsonb_array_elements(numbered) WITH ORDINALITY AS u (a, n) ORDER BY n),
            millrace_internal.satellite_types(technical) || array_fill(NULL::text, ARRAY[cardinality(sub_key || attributes)]),
            nkeys, sub_key || attributes,
            -- Room for confirmed_at: one user's row is confirmed by each order of theirs, and nothing is pruned that another worker's batch may see.
            CASE WHEN history = 'all' THEN '' WHEN millrace_internal.satellite_is_own(staging, mapping) THEN ' WITH (fillfactor = 90)' ELSE ' WITH (fillfactor = 50)' END,
            true),
        definition, staging, mapping,
        concat_ws(', ', millrace_internal.vault_selected(called, technical),
                  (SELECT string_agg(format('t.%I AS sub_key_%s', k, n), ', ' ORDER BY n) FROM unnest(sub_key) WITH ORDINALITY AS u (k, n)),
                  (SELECT string_agg(format('t.%I AS attribute_%s', a ->> 'name', a ->> 'number'), ', ' ORDER BY (a ->> 'number')::integer) FROM jsonb_array_elements(numbered) a))));
END
$$;
COMMENT ON FUNCTION millrace_internal.create_satellite(regrole, text, regclass, regclass, text[], text, text, text[], text[], json, json, text, boolean) IS 'the other half of millrace.create_satellite';

CREATE FUNCTION millrace_internal.satellite_types(technical text[]) RETURNS text[]
LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp AS $$
    SELECT array_agg(CASE WHEN t IN ('applied_at', 'confirmed_at', 'load_at') THEN 'timestamptz' WHEN t = 'position' THEN 'bigint' WHEN t = 'is_deleted' THEN 'boolean'
                          WHEN t = 'record_source' THEN 'text' ELSE 'uuid' END ORDER BY n)
    FROM unnest(technical) WITH ORDINALITY AS u (t, n)
$$;
COMMENT ON FUNCTION millrace_internal.satellite_types(text[]) IS 'the types of technical columns of a satellite';

CREATE FUNCTION millrace.create_satellite(name text, source regclass, parent regclass, attributes text[] DEFAULT NULL, history text DEFAULT 'changes', kind text DEFAULT 'standard', sub_key text[] DEFAULT NULL,
    driving_key text[] DEFAULT NULL, columns json DEFAULT NULL, names json DEFAULT NULL, record_source text DEFAULT NULL, replace boolean DEFAULT false) RETURNS void
LANGUAGE C AS 'MODULE_PATHNAME', 'millrace_declare';
COMMENT ON FUNCTION millrace.create_satellite(text, regclass, regclass, text[], text, text, text[], text[], json, json, text, boolean) IS
    'declares a satellite: what a staging table ever said of a hub''s or link''s key, and when';
REVOKE ALL ON FUNCTION millrace.create_satellite(text, regclass, regclass, text[], text, text, text[], text[], json, json, text, boolean) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION millrace.create_satellite(text, regclass, regclass, text[], text, text, text[], text[], json, json, text, boolean) TO millrace_admin;
