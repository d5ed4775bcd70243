-- Marts: aggregates over one staging table, kept by the difference of old and new rows (C8).

-- ---- aggregates whose result depends on no order --------------------------------------------------

CREATE FUNCTION millrace_internal.latest_next(internal, anyelement, anycompatible) RETURNS internal
LANGUAGE C IMMUTABLE PARALLEL SAFE AS 'MODULE_PATHNAME', 'millrace_latest_next';
COMMENT ON FUNCTION millrace_internal.latest_next(internal, anyelement, anycompatible) IS 'the next row of millrace.latest()';
CREATE FUNCTION millrace_internal.latest_result(internal, anyelement, anycompatible) RETURNS anyelement
LANGUAGE C IMMUTABLE PARALLEL SAFE AS 'MODULE_PATHNAME', 'millrace_latest_result';
COMMENT ON FUNCTION millrace_internal.latest_result(internal, anyelement, anycompatible) IS 'the result of millrace.latest()';
CREATE AGGREGATE millrace.latest(value anyelement, at anycompatible) (
    SFUNC = millrace_internal.latest_next, STYPE = internal,
    FINALFUNC = millrace_internal.latest_result, FINALFUNC_EXTRA, PARALLEL = SAFE);
COMMENT ON AGGREGATE millrace.latest(anyelement, anycompatible) IS
    'the value of the row with the greatest time; of several at that time the greatest value, any value before NULL; rows without a time do not count';

CREATE FUNCTION millrace.exact_numeric(number double precision) RETURNS numeric
LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'millrace_exact_numeric';
COMMENT ON FUNCTION millrace.exact_numeric(double precision) IS 'the number that a floating point number stands for, with all of its digits';
CREATE FUNCTION millrace.exact_numeric(number real) RETURNS numeric
LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'millrace_exact_numeric';
COMMENT ON FUNCTION millrace.exact_numeric(real) IS 'the number that a floating point number stands for, with all of its digits';

CREATE FUNCTION millrace_internal.exact_next(internal, double precision) RETURNS internal
LANGUAGE C IMMUTABLE PARALLEL SAFE AS 'MODULE_PATHNAME', 'millrace_exact_next';
COMMENT ON FUNCTION millrace_internal.exact_next(internal, double precision) IS 'the next row of millrace.exact_sum() and exact_avg()';
CREATE FUNCTION millrace_internal.exact_next(internal, real) RETURNS internal
LANGUAGE C IMMUTABLE PARALLEL SAFE AS 'MODULE_PATHNAME', 'millrace_exact_next';
COMMENT ON FUNCTION millrace_internal.exact_next(internal, real) IS 'the next row of millrace.exact_sum() and exact_avg()';
CREATE FUNCTION millrace_internal.exact_sum_result(internal, double precision) RETURNS double precision
LANGUAGE C IMMUTABLE PARALLEL SAFE AS 'MODULE_PATHNAME', 'millrace_exact_sum_result';
COMMENT ON FUNCTION millrace_internal.exact_sum_result(internal, double precision) IS 'the result of millrace.exact_sum()';
CREATE FUNCTION millrace_internal.exact_sum_result(internal, real) RETURNS real
LANGUAGE C IMMUTABLE PARALLEL SAFE AS 'MODULE_PATHNAME', 'millrace_exact_sum_result';
COMMENT ON FUNCTION millrace_internal.exact_sum_result(internal, real) IS 'the result of millrace.exact_sum()';
CREATE FUNCTION millrace_internal.exact_avg_result(internal) RETURNS double precision
LANGUAGE C IMMUTABLE PARALLEL SAFE AS 'MODULE_PATHNAME', 'millrace_exact_avg_result';
COMMENT ON FUNCTION millrace_internal.exact_avg_result(internal) IS 'the result of millrace.exact_avg()';

CREATE AGGREGATE millrace.exact_sum(number double precision) (
    SFUNC = millrace_internal.exact_next, STYPE = internal,
    FINALFUNC = millrace_internal.exact_sum_result, FINALFUNC_EXTRA, PARALLEL = SAFE);
COMMENT ON AGGREGATE millrace.exact_sum(double precision) IS 'the sum of floating point numbers, rounded once: it depends on no order';
CREATE AGGREGATE millrace.exact_sum(number real) (
    SFUNC = millrace_internal.exact_next, STYPE = internal,
    FINALFUNC = millrace_internal.exact_sum_result, FINALFUNC_EXTRA, PARALLEL = SAFE);
COMMENT ON AGGREGATE millrace.exact_sum(real) IS 'the sum of floating point numbers, rounded once: it depends on no order';
CREATE AGGREGATE millrace.exact_avg(number double precision) (
    SFUNC = millrace_internal.exact_next, STYPE = internal, FINALFUNC = millrace_internal.exact_avg_result, PARALLEL = SAFE);
COMMENT ON AGGREGATE millrace.exact_avg(double precision) IS 'the mean of floating point numbers from their exact sum: it depends on no order';
CREATE AGGREGATE millrace.exact_avg(number real) (
    SFUNC = millrace_internal.exact_next, STYPE = internal, FINALFUNC = millrace_internal.exact_avg_result, PARALLEL = SAFE);
COMMENT ON AGGREGATE millrace.exact_avg(real) IS 'the mean of floating point numbers from their exact sum: it depends on no order';

-- ---- making and keeping marts ---------------------------------------------------------------------

CREATE FUNCTION millrace_internal.run_as(role regrole, statement text) RETURNS void
LANGUAGE C STRICT AS 'MODULE_PATHNAME', 'millrace_run_as';
COMMENT ON FUNCTION millrace_internal.run_as(regrole, text) IS
    'runs one statement with the privileges of a role, under the search_path that is in force';

CREATE FUNCTION millrace_internal.mart_query(author regrole, query text, OUT staging_id integer, OUT definition text)
LANGUAGE C STRICT AS 'MODULE_PATHNAME', 'millrace_mart_query';
COMMENT ON FUNCTION millrace_internal.mart_query(regrole, text) IS
    'parses the query of a mart as its author, refuses what cannot be maintained, and returns it with every name qualified';

CREATE FUNCTION millrace_internal.mart_layout(definition regclass, base text, stripes integer, order_by text, OUT ddl text[], OUT view text)
LANGUAGE C CALLED ON NULL INPUT AS 'MODULE_PATHNAME', 'millrace_mart_layout';
COMMENT ON FUNCTION millrace_internal.mart_layout(regclass, text, integer, text) IS
    'the statements that make the state of a mart, and the query of the view over it';

CREATE FUNCTION millrace_internal.mart_rebuild(target integer, OUT rows_before bigint, OUT rows_after bigint)
LANGUAGE C STRICT AS 'MODULE_PATHNAME', 'millrace_mart_rebuild';
COMMENT ON FUNCTION millrace_internal.mart_rebuild(integer) IS
    'empties the state of a mart and fills it from what is staged, under the exclusive lock of the stream';

CREATE FUNCTION millrace_internal.mart_groups(target integer, owner regrole) RETURNS text[]
LANGUAGE C STRICT AS 'MODULE_PATHNAME', 'millrace_mart_groups';
COMMENT ON FUNCTION millrace_internal.mart_groups(integer, regrole) IS
    'the columns of a mart that are its groups; none of a mart without GROUP BY';

-- A …_current view of the vault by its keys: each a list of columns of which one row at most has the values.
-- NULL when it is no such view.  The view begins with the hash key; a link's goes on with those of its hubs; then
-- come the business keys.
CREATE FUNCTION millrace_internal.current_keys(view oid) RETURNS json
LANGUAGE plpgsql STRICT STABLE
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    target record;
    parent record;
    nhubs integer := 0;
    nkeys integer;
BEGIN
    SELECT t.kind, t.definition, CASE t.kind WHEN 'satellite' THEN (t.definition #>> '{parent,id}')::integer ELSE t.id END AS parent_id INTO target
    FROM millrace.target t
    WHERE t.kind IN ('hub', 'link', 'satellite') AND to_regclass(t.definition ->> 'current') = view
      -- A multi-active one has several rows for a key.
      AND t.definition ->> 'kind' IS DISTINCT FROM 'multi_active';
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    SELECT t.kind, t.definition INTO STRICT parent FROM millrace.target t WHERE t.id = target.parent_id;
    IF parent.kind = 'hub' THEN
        nkeys := json_array_length(parent.definition -> 'business_key');
    ELSE
        SELECT sum(json_array_length(t.definition -> 'business_key')), count(*) INTO nkeys, nhubs
        FROM json_array_elements(parent.definition -> 'hubs') AS h JOIN millrace.target t ON t.id = (h ->> 'id')::integer;
        nhubs := CASE WHEN target.kind = 'link' THEN nhubs ELSE 0 END;
    END IF;
    RETURN (SELECT json_agg(k) FROM (
                SELECT json_agg(a.attname ORDER BY a.attnum) AS k
                FROM (VALUES (1, 1), (2, nhubs + 1), (nhubs + 2, nhubs + 1 + nkeys)) AS r (first, last)
                JOIN pg_attribute a ON a.attrelid = view AND a.attnum BETWEEN r.first AND r.last
                GROUP BY r.first ORDER BY r.first) AS keys);
END
$$;
COMMENT ON FUNCTION millrace_internal.current_keys(oid) IS
    'the keys by which a …_current view of the vault gives one row at most, or NULL when the relation is no such view';

-- The tables of a mart's state.
CREATE FUNCTION millrace_internal.mart_tables(base text) RETURNS SETOF pg_catalog.pg_class
LANGUAGE sql STRICT STABLE
SET search_path = pg_catalog, pg_temp AS $$
    SELECT * FROM pg_class
    WHERE relnamespace = 'millrace_state'::regnamespace AND relkind IN ('r', 'p')
      AND relname ~ ('^' || base || '(_values_[0-9]+)?$')
$$;
COMMENT ON FUNCTION millrace_internal.mart_tables(text) IS 'the tables of a mart''s state, whose names start with base';

-- Lets those read the state, and nobody else: who declared the mart, and whom its view belongs to, whose rights the
-- view has.  Its readers need none.
CREATE FUNCTION millrace_internal.mart_grant(base text, owners regrole[]) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    state record;
    other oid;
BEGIN
    FOR state IN SELECT t.relname, t.relowner, t.relacl FROM millrace_internal.mart_tables(base) AS t LOOP
        FOR other IN SELECT DISTINCT a.grantee FROM aclexplode(state.relacl) AS a
                     WHERE a.grantee <> state.relowner AND a.grantee <> 0 AND a.grantee <> ALL (owners::oid[]) LOOP
            EXECUTE format('REVOKE ALL ON millrace_state.%I FROM %s', state.relname, other::regrole);
        END LOOP;
        FOR other IN SELECT DISTINCT o FROM unnest(owners) AS o LOOP
            EXECUTE format('GRANT SELECT ON millrace_state.%I TO %s', state.relname, other::regrole);
        END LOOP;
    END LOOP;
END
$$;
COMMENT ON FUNCTION millrace_internal.mart_grant(text, regrole[]) IS 'lets the owners of a mart read its state, and nobody else';

-- Makes the definition and the state of a mart under a base name, and returns the query of its view.
CREATE FUNCTION millrace_internal.mart_build(owner regrole, base text, definition text, stripes integer, order_by text) RETURNS text
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    layout record;
    statement text;
    state name;
BEGIN
    EXECUTE format('CREATE VIEW millrace_def.%I AS %s', base, definition);
    EXECUTE format('ALTER VIEW millrace_def.%I OWNER TO %s', base, owner);
    layout := millrace_internal.mart_layout(format('millrace_def.%I', base)::regclass, base, stripes, order_by);
    FOREACH statement IN ARRAY layout.ddl LOOP
        EXECUTE statement;
    END LOOP;
    PERFORM millrace_internal.mart_grant(base, ARRAY[owner]);
    RETURN layout.view;
END
$$;
COMMENT ON FUNCTION millrace_internal.mart_build(regrole, text, text, integer, text) IS
    'makes the definition and the empty state of a mart, and returns the query of its view';

-- Drops what mart_build made.
CREATE FUNCTION millrace_internal.mart_unbuild(base text) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    state name;
BEGIN
    FOR state IN SELECT relname FROM millrace_internal.mart_tables(base) LOOP
        EXECUTE format('DROP TABLE millrace_state.%I', state);
    END LOOP;
    EXECUTE format('DROP VIEW IF EXISTS millrace_def.%I', base);
END
$$;
COMMENT ON FUNCTION millrace_internal.mart_unbuild(text) IS 'drops the definition and the state of a mart';

-- Gives a mart's view another query: in place when columns are only added at the end, else anew, with its
-- grants and comments.
CREATE FUNCTION millrace_internal.mart_replace_view(view regclass, owner regrole, definition regclass, query text) RETURNS regclass
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    name text := format('%I.%I', n.nspname, c.relname) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = view;
    in_place boolean;
    dependents text;
    redo text[];
    statement text;
BEGIN
    SELECT coalesce(bool_and((o.attname, o.atttypid, o.atttypmod, o.attcollation)
                             IS NOT DISTINCT FROM (d.attname, d.atttypid, d.atttypmod, d.attcollation)), true)
    INTO in_place
    FROM pg_attribute o
    LEFT JOIN pg_attribute d ON d.attrelid = definition AND d.attnum = o.attnum
    WHERE o.attrelid = view AND o.attnum > 0;
    IF in_place THEN
        PERFORM millrace_internal.run_as(owner, format('CREATE OR REPLACE VIEW %s AS %s', name, query));
        RETURN view;
    END IF;

    SELECT string_agg(DISTINCT r.ev_class::regclass::text, ', ') INTO dependents
    FROM pg_depend d
    JOIN pg_rewrite r ON r.oid = d.objid
    WHERE d.classid = 'pg_rewrite'::regclass AND d.refclassid = 'pg_class'::regclass AND d.refobjid = view
      AND r.ev_class <> view;
    IF dependents IS NOT NULL THEN
        RAISE EXCEPTION 'cannot replace mart % because other objects depend on its columns', name
            USING ERRCODE = 'dependent_objects_still_exist', DETAIL = format('These are: %s.', dependents),
                  HINT = 'Columns may be added at the end. Otherwise drop what depends on the mart first.';
    END IF;

    SELECT array_agg(s ORDER BY ordinal) INTO redo FROM (
        SELECT 1 AS ordinal, format('GRANT %s ON %s TO %s%s', a.privilege_type, name,
                       CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE a.grantee::regrole::text END,
                       CASE WHEN a.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END) AS s
        FROM pg_class c, aclexplode(c.relacl) a
        WHERE c.oid = view AND a.grantee <> c.relowner
        UNION ALL
        SELECT 2, format('GRANT %s (%I) ON %s TO %s%s', a.privilege_type, o.attname, name,
                      CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE a.grantee::regrole::text END,
                      CASE WHEN a.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END)
        FROM pg_attribute o, aclexplode(o.attacl) a
        WHERE o.attrelid = view AND EXISTS (SELECT FROM pg_attribute d WHERE d.attrelid = definition AND d.attname = o.attname)
        UNION ALL
        SELECT 3, format('COMMENT ON VIEW %s IS %L', name, obj_description(view, 'pg_class'))
        WHERE obj_description(view, 'pg_class') IS NOT NULL
        UNION ALL
        SELECT 4, format('COMMENT ON COLUMN %s.%I IS %L', name, o.attname, col_description(view, o.attnum))
        FROM pg_attribute o
        WHERE o.attrelid = view AND col_description(view, o.attnum) IS NOT NULL
          AND EXISTS (SELECT FROM pg_attribute d WHERE d.attrelid = definition AND d.attname = o.attname)) AS x;
    EXECUTE format('DROP VIEW %s', name);
    PERFORM millrace_internal.run_as(owner, format('CREATE VIEW %s AS %s', name, query));
    FOREACH statement IN ARRAY coalesce(redo, '{}') LOOP
        EXECUTE statement;
    END LOOP;
    RETURN name::regclass;
END
$$;
COMMENT ON FUNCTION millrace_internal.mart_replace_view(regclass, regrole, regclass, text) IS
    'gives a mart''s view another query, in place or anew with its grants and comments';

CREATE FUNCTION millrace_internal.mart_sweep(target_id integer, owner regrole) RETURNS void
LANGUAGE C STRICT
SET search_path = pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'millrace_mart_sweep';
COMMENT ON FUNCTION millrace_internal.mart_sweep(integer, regrole) IS 'removes groups of a striped mart whose stripes add up to no rows';

CREATE FUNCTION millrace_internal.create_mart(caller regrole, name text, query text, stripes integer, order_by text, replace boolean)
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    qualified text;
    existing regclass;
    old record;
    parsed record;
    id integer;
    base text;
    view_query text;
    settings json;
    state name;
BEGIN
    IF name IS NULL OR query IS NULL THEN
        RAISE EXCEPTION '% must not be NULL', CASE WHEN name IS NULL THEN 'name' ELSE 'query' END
            USING ERRCODE = 'null_value_not_allowed';
    END IF;
    IF stripes IS NULL OR stripes NOT BETWEEN 1 AND 64 THEN
        RAISE EXCEPTION 'stripes must be a number from 1 to 64, not %', coalesce(stripes::text, 'NULL')
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF stripes > 1 AND order_by IS NOT NULL THEN
        RAISE EXCEPTION 'a mart has stripes or order_by, not both'
            USING ERRCODE = 'feature_not_supported',
                  DETAIL = 'A group that is spread over several rows has no place in an index.';
    END IF;

    existing := millrace_internal.relation(name);
    IF existing IS NOT NULL THEN
        SELECT t.*, s.staging_id, g.stream_id INTO old
        FROM millrace.target t
        JOIN millrace.target_source s ON s.target_id = t.id
        JOIN millrace.staging g ON g.id = s.staging_id
        WHERE t.relation = existing AND t.kind = 'mart';
        IF NOT FOUND THEN
            RAISE EXCEPTION 'relation % already exists and is not a mart', existing USING ERRCODE = 'duplicate_table';
        END IF;
        IF NOT coalesce(replace, false) THEN
            RAISE EXCEPTION 'mart % already exists', existing
                USING ERRCODE = 'duplicate_table', HINT = 'Use replace => true to change it.';
        END IF;
        IF NOT pg_has_role(caller, old.owner, 'MEMBER') THEN
            RAISE EXCEPTION 'must be owner of mart %', existing USING ERRCODE = 'insufficient_privilege';
        END IF;
    END IF;

    settings := json_build_object('query', query, 'stripes', stripes, 'order_by', order_by);
    IF existing IS NULL THEN
        qualified := millrace_internal.qualified_name(name);
        parsed := millrace_internal.mart_query(caller, query);
        id := nextval('millrace.target_id_seq');
        base := 'mart_' || id;
        view_query := millrace_internal.mart_build(caller, base, parsed.definition, stripes, order_by);
        PERFORM millrace_internal.run_as(caller, format('CREATE VIEW %s AS %s', qualified, view_query));
        INSERT INTO millrace.target (id, kind, relation, owner, definition, horizon)
        VALUES (id, 'mart', qualified::regclass, caller, settings, '-infinity');
        INSERT INTO millrace.target_source (target_id, staging_id, ordinal) VALUES (id, parsed.staging_id, 1);
        PERFORM millrace_internal.changed(s.stream_id) FROM millrace.staging s WHERE s.id = parsed.staging_id;
        RETURN;
    END IF;

    id := old.id;
    base := 'mart_' || id;
    parsed := millrace_internal.mart_query(old.owner, query);
    view_query := millrace_internal.mart_build(old.owner, base || '_new', parsed.definition, stripes, order_by);
    IF pg_get_viewdef(to_regclass('millrace_def.' || base)) = pg_get_viewdef(to_regclass('millrace_def.' || base || '_new'))
       AND order_by IS NOT DISTINCT FROM old.definition ->> 'order_by'
       AND stripes = (old.definition ->> 'stripes')::integer THEN
        PERFORM millrace_internal.mart_unbuild(base || '_new');
        RETURN;
    END IF;
    -- The new state takes the place of the old one in this transaction, filled: nobody sees it empty.
    PERFORM millrace_internal.lock_stream(s.stream_id, true)
    FROM (SELECT DISTINCT g.stream_id FROM millrace.staging g
          WHERE g.id IN (old.staging_id, parsed.staging_id) ORDER BY 1) AS s;
    existing := millrace_internal.mart_replace_view(existing, old.owner, format('millrace_def.%I', base || '_new')::regclass, view_query);
    PERFORM millrace_internal.mart_unbuild(base);
    FOR state IN
        SELECT i.relname FROM millrace_internal.mart_tables(base || '_new') AS t
        JOIN pg_index x ON x.indrelid = t.oid JOIN pg_class i ON i.oid = x.indexrelid
    LOOP
        EXECUTE format('ALTER INDEX millrace_state.%I RENAME TO %I', state, pg_catalog.replace(state, base || '_new', base));
    END LOOP;
    FOR state IN SELECT relname FROM millrace_internal.mart_tables(base || '_new') LOOP
        EXECUTE format('ALTER TABLE millrace_state.%I RENAME TO %I', state, pg_catalog.replace(state, base || '_new', base));
    END LOOP;
    EXECUTE format('ALTER VIEW millrace_def.%I RENAME TO %I', base || '_new', base);
    UPDATE millrace.target t SET relation = existing, definition = settings, definition_no = t.definition_no + 1
    WHERE t.id = old.id;
    UPDATE millrace.target_source s SET staging_id = parsed.staging_id WHERE s.target_id = old.id;
    -- One that was still being filled begins anew.
    UPDATE millrace.target t SET state = 'new' WHERE t.id = old.id AND t.state = 'filling';
    IF (SELECT t.state FROM millrace.target t WHERE t.id = old.id) = 'active' THEN
        PERFORM millrace_internal.mart_rebuild(old.id);
        PERFORM millrace_internal.rules_renew(old.id);
    END IF;
    PERFORM millrace_internal.changed(s.stream_id)
    FROM (SELECT DISTINCT g.stream_id FROM millrace.staging g WHERE g.id IN (old.staging_id, parsed.staging_id)) AS s;
    RAISE NOTICE 'the new definition of % is for all that is staged', existing;
END
$$;
COMMENT ON FUNCTION millrace_internal.create_mart(regrole, text, text, integer, text, boolean) IS
    'the other half of millrace.create_mart()';

CREATE FUNCTION millrace.create_mart(name text, query text, stripes integer DEFAULT 1, order_by text DEFAULT NULL,
    replace boolean DEFAULT false) RETURNS void
LANGUAGE C AS 'MODULE_PATHNAME', 'millrace_declare';
COMMENT ON FUNCTION millrace.create_mart(text, text, integer, text, boolean) IS
    'declares a mart: SELECT … FROM staging [JOIN …_current] [WHERE] GROUP BY …, kept up to date with its staging table';

-- Drops a mart with everything that belongs to it.
CREATE FUNCTION millrace_internal.drop_target_mart(caller regrole, target_id integer, cascade boolean) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    view text := (SELECT format('%I.%I', n.nspname, c.relname)
                  FROM millrace.target t JOIN pg_class c ON c.oid = t.relation JOIN pg_namespace n ON n.oid = c.relnamespace
                  WHERE t.id = target_id);
BEGIN
    PERFORM millrace_internal.drop_rules_on(caller, t, cascade) FROM millrace.target t WHERE t.id = target_id;
    DELETE FROM millrace.target t WHERE t.id = target_id;
    IF view IS NOT NULL THEN
        EXECUTE format('DROP VIEW %s%s', view, CASE WHEN cascade THEN ' CASCADE' ELSE '' END);
    END IF;
    PERFORM millrace_internal.mart_unbuild('mart_' || target_id);
END
$$;
COMMENT ON FUNCTION millrace_internal.drop_target_mart(regrole, integer, boolean) IS 'drops a mart: its view, definition, state and configuration';

REVOKE ALL ON FUNCTION millrace.create_mart(text, text, integer, text, boolean) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION millrace.create_mart(text, text, integer, text, boolean) TO millrace_admin;
