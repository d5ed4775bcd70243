-- Online models: neighbours that are kept up to date with a staging table; src/model/online.h describes their tables.

CREATE FUNCTION millrace_internal.online_check(model integer) RETURNS regclass
LANGUAGE C STRICT STABLE AS 'MODULE_PATHNAME', 'millrace_online_check';
COMMENT ON FUNCTION millrace_internal.online_check(integer) IS 'the table that the query of an online model is over; an error when the model could not be kept up to date';

CREATE FUNCTION millrace_internal.online_estimate(model integer, owner regrole, max_history integer) RETURNS bigint
LANGUAGE C STRICT AS 'MODULE_PATHNAME', 'millrace_online_estimate';
COMMENT ON FUNCTION millrace_internal.online_estimate(integer, regrole, integer) IS 'how many pairs of items an online model will have at most for what is staged now, computed as its owner; an error when these are too many';

CREATE FUNCTION millrace_internal.online_history(history bytea, timed boolean, OUT number integer, OUT seen_at timestamptz, OUT n integer) RETURNS SETOF record
LANGUAGE C STRICT IMMUTABLE PARALLEL SAFE AS 'MODULE_PATHNAME', 'millrace_online_history';
COMMENT ON FUNCTION millrace_internal.online_history(bytea, boolean) IS 'in how many rows a user has an item, at what time, from his history in an online model';

CREATE FUNCTION millrace_internal.online_list(list bytea, OUT number integer, OUT n integer) RETURNS SETOF record
LANGUAGE C STRICT IMMUTABLE PARALLEL SAFE AS 'MODULE_PATHNAME', 'millrace_online_list';
COMMENT ON FUNCTION millrace_internal.online_list(bytea) IS 'how many users more have an item together with another, from a row of an online model';

-- Parameters of online models with their defaults, checked.
CREATE FUNCTION millrace_internal.online_params(params json, OUT similarity text, OUT shrink double precision, OUT max_history integer)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM millrace_internal.check_members('params', params, '{similarity,shrink,max_history}');
    similarity := coalesce(params ->> 'similarity', 'cosine');
    PERFORM millrace_internal.check_word('similarity', similarity, '{cosine,dice,jaccard}');
    shrink := coalesce((params ->> 'shrink')::double precision, 0);
    IF NOT shrink BETWEEN 0 AND 1e100 THEN
        RAISE EXCEPTION 'shrink must be a number from 0 on, not %', shrink USING ERRCODE = 'invalid_parameter_value';
    END IF;
    max_history := coalesce((params ->> 'max_history')::integer, 0);
    IF max_history < 0 THEN
        RAISE EXCEPTION 'max_history must be a number from 0 (all of it) on, not %', max_history USING ERRCODE = 'invalid_parameter_value';
    END IF;
END
$$;
COMMENT ON FUNCTION millrace_internal.online_params(json) IS 'the parameters of an online model';

CREATE FUNCTION millrace_internal.create_online_model(caller regrole, qualified text, query text, definition text, params json) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    settings record := millrace_internal.online_params(params);
    id integer := nextval('millrace.model_id_seq');
    target_id integer := nextval('millrace.target_id_seq');
    state text := format('millrace_state.model_%s', id);
    view text := format('millrace_def.model_%s', id);
    columns integer := CASE WHEN settings.max_history > 0 THEN 3 ELSE 2 END;
    staging millrace.staging;
    types text[];
BEGIN
    -- Made twice: the columns are known when it is there.
    EXECUTE format('CREATE VIEW %s AS %s', view, definition);
    SELECT array_agg(format_type(a.atttypid, a.atttypmod) ORDER BY a.attnum) INTO types FROM pg_attribute a WHERE a.attrelid = view::regclass AND a.attnum > 0;
    IF coalesce(cardinality(types), 0) <> columns THEN
        RAISE EXCEPTION 'the query of an online model % must give % columns: user, item%', CASE columns WHEN 3 THEN 'with max_history' ELSE 'without max_history' END, columns, CASE columns WHEN 3 THEN ', time' ELSE '' END
            USING ERRCODE = 'invalid_parameter_value', DETAIL = format('It gives %s.', coalesce(cardinality(types), 0));
    END IF;
    IF types[3] <> 'timestamp with time zone' THEN
        RAISE EXCEPTION 'the third column of the query must be a timestamp with time zone, not %', types[3] USING ERRCODE = 'datatype_mismatch';
    END IF;
    EXECUTE format('DROP VIEW %s', view);
    EXECUTE format('CREATE VIEW %s (%s) AS %s', view, CASE columns WHEN 3 THEN 'user_id, item, seen_at' ELSE 'user_id, item' END, definition);
    EXECUTE format('ALTER VIEW %s OWNER TO %s', view, caller);
    SELECT g.* INTO staging FROM millrace.staging g WHERE g.relation = millrace_internal.online_check(id);
    IF NOT FOUND THEN
        RAISE EXCEPTION 'the query of an online model must be over a staging table' USING ERRCODE = 'wrong_object_type', HINT = 'What reads other tables is trained: leave online away.';
    END IF;
    PERFORM millrace_internal.online_estimate(id, caller, settings.max_history);

    SELECT array_agg(format_type(a.atttypid, a.atttypmod) || CASE WHEN t.typcollation <> 0 THEN ' COLLATE "C"' ELSE '' END ORDER BY a.attnum) INTO types
    FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid WHERE a.attrelid = view::regclass AND a.attnum IN (1, 2);
    EXECUTE format('CREATE TABLE %s_item (number integer GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY, item %s NOT NULL)', state, types[2]);
    EXECUTE format('CREATE UNIQUE INDEX model_%s_item_item ON %s_item (item)', id, state);
    -- Histories grow.
    EXECUTE format('CREATE TABLE %s_user (user_id %s PRIMARY KEY, history bytea NOT NULL) WITH (fillfactor = 80)', state, types[1]);
    EXECUTE format('CREATE TABLE %s_pair (item integer NOT NULL, list bytea NOT NULL, is_folded boolean NOT NULL) WITH (fillfactor = 50)', state);
    EXECUTE format('ALTER TABLE %s_pair ALTER list SET STORAGE EXTERNAL', state);
    EXECUTE format('CREATE INDEX model_%s_pair_item ON %s_pair (item)', id, state);
    EXECUTE format($view$
        CREATE VIEW %1$s_neighbour AS
        WITH counted AS (
            SELECT p.item, l.number, sum(l.n)::integer AS n FROM %1$s_pair AS p CROSS JOIN LATERAL millrace_internal.online_list(p.list) AS l
            GROUP BY p.item, l.number HAVING sum(l.n) <> 0),
        scored AS (
            SELECT i.item, o.item AS neighbour, %2$s AS score
            FROM counted AS c
            JOIN counted AS a ON a.item = 0 AND a.number = c.item
            JOIN counted AS b ON b.item = 0 AND b.number = c.number
            JOIN %1$s_item AS i ON i.number = c.item
            JOIN %1$s_item AS o ON o.number = c.number
            WHERE c.item <> 0)
        SELECT 1 AS version, s.item, row_number() OVER (PARTITION BY s.item ORDER BY s.score DESC, s.neighbour)::integer AS rank, s.neighbour, s.score::real AS score
        FROM scored AS s$view$, state,
        format(CASE settings.similarity
               WHEN 'dice' THEN '2 * c.n::double precision / (a.n::double precision + b.n + %L::double precision + 1e-6::double precision)'
               WHEN 'jaccard' THEN 'c.n::double precision / (a.n::double precision + b.n - c.n + %L::double precision + 1e-6::double precision)'
               ELSE 'c.n::double precision / (sqrt(a.n::double precision) * sqrt(b.n::double precision) + %L::double precision + 1e-6::double precision)' END, settings.shrink));
    EXECUTE format('GRANT SELECT ON %1$s_item, %1$s_user, %1$s_pair, %1$s_neighbour TO %2$s', state, caller);
    PERFORM millrace_internal.run_as(caller, format('CREATE VIEW %s AS SELECT n.version, n.item, n.rank, n.neighbour, n.score FROM %s_neighbour AS n', qualified, state));

    INSERT INTO millrace.target (id, kind, relation, owner, definition, horizon) VALUES (target_id, 'model', qualified::regclass, caller, json_build_object('model', id), '-infinity');
    INSERT INTO millrace.target_source (target_id, staging_id, ordinal) VALUES (target_id, staging.id, 1);
    params := json_build_object('similarity', settings.similarity, 'shrink', settings.shrink, 'max_history', settings.max_history);
    INSERT INTO millrace.model (id, relation, kind, owner, query, params, target_id) VALUES (id, qualified::regclass, 'item_knn', caller, query, params, target_id);
    INSERT INTO millrace.model_version (model_id, version, params, refit, trained_by, trained_at) VALUES (id, 1, params, false, caller, clock_timestamp());
    INSERT INTO millrace.model_alias (model_id, alias, version) VALUES (id, 'production', 1);
    INSERT INTO millrace.model_promotion (model_id, alias, to_version, is_rollback, promoted_by, reason) VALUES (id, 'production', 1, false, caller, 'online');
    PERFORM millrace_internal.changed(staging.stream_id);
END
$$;
COMMENT ON FUNCTION millrace_internal.create_online_model(regrole, text, text, text, json) IS 'declares a model that is kept up to date with a staging table';

CREATE FUNCTION millrace_internal.drop_target_model(target_id integer, cascade boolean) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    dropped millrace.model;
    name text;
BEGIN
    SELECT m.* INTO STRICT dropped FROM millrace.model m WHERE m.target_id = target_id;
    SELECT format('%I.%I', n.nspname, c.relname) INTO name FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = dropped.relation;
    DELETE FROM millrace.model_alias a WHERE a.model_id = dropped.id;
    DELETE FROM millrace.model m WHERE m.id = dropped.id;
    DELETE FROM millrace.target t WHERE t.id = target_id;
    IF name IS NOT NULL THEN
        EXECUTE format('DROP VIEW %s%s', name, CASE WHEN cascade THEN ' CASCADE' ELSE '' END);
    END IF;
    EXECUTE format('DROP VIEW IF EXISTS millrace_state.model_%s_neighbour', dropped.id);
    EXECUTE format('DROP TABLE millrace_state.model_%1$s_item, millrace_state.model_%1$s_user, millrace_state.model_%1$s_pair', dropped.id);
    EXECUTE format('DROP VIEW IF EXISTS millrace_def.model_%s', dropped.id);
END
$$;
COMMENT ON FUNCTION millrace_internal.drop_target_model(integer, boolean) IS 'drops an online model: its view, definition, state and configuration';
