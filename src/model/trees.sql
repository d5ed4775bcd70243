-- Boosted trees, as XGBoost trains them.
--
-- The definition of such a model has the columns of the entity as they are, the label and the features as `real`, categories as text.  A version lies in three tables:
--     millrace_state.model_<id>_trees        its trees, the names of its features, and by category what its values are numbered by
--     millrace_state.model_<id>_importance   what each feature does
--     millrace_state.model_<id>_entity       hashes of the entities that it was trained on, ascending, in blocks; of an imported one nothing
-- and millrace_state.model_<id>_test has hashes of the entities that never train, because versions are judged by them.

-- Parameters of trees with those defaults that are not XGBoost's own, checked.
CREATE FUNCTION millrace_internal.trees_params(params json) RETURNS json
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    given jsonb := coalesce(params, '{}');
    objective text := coalesce(params ->> 'objective', 'binary:logistic');
    range record;
    value double precision;
BEGIN
    PERFORM millrace_internal.check_members('params', params, '{objective,tree_method,rounds,max_depth,learning_rate,min_child_weight,gamma,reg_lambda,reg_alpha,subsample,colsample_bytree,max_bin,max_leaves,max_delta_step,scale_pos_weight,base_score,tweedie_variance_power,seed,early_stopping_rounds,validation}');
    PERFORM millrace_internal.check_word('objective', objective,
        '{binary:logistic,binary:logitraw,reg:logistic,reg:squarederror,reg:squaredlogerror,reg:pseudohubererror,reg:absoluteerror,count:poisson,reg:gamma,reg:tweedie}');
    PERFORM millrace_internal.check_word('tree_method', coalesce(params ->> 'tree_method', 'hist'), '{hist}');
    FOR range IN SELECT * FROM (VALUES ('rounds', 1, 100000, true), ('max_depth', 0, 30, true), ('learning_rate', 0, 1, false), ('min_child_weight', 0, 1e9, false), ('gamma', 0, 1e9, false),
                     ('reg_lambda', 0, 1e9, false), ('reg_alpha', 0, 1e9, false), ('subsample', 1e-6, 1, false), ('colsample_bytree', 1e-6, 1, false), ('max_bin', 2, 65535, true), ('max_leaves', 0, 1000000, true),
                     ('max_delta_step', 0, 1e9, false), ('scale_pos_weight', 0, 1e9, false), ('base_score', -1e9, 1e9, false), ('tweedie_variance_power', 1, 2, false), ('seed', 0, 2147483647, true),
                     ('early_stopping_rounds', 1, 100000, true), ('validation', 1e-6, 0.9, false)) AS r (name, low, high, is_whole)
                 WHERE params ->> r.name IS NOT NULL LOOP
        IF json_typeof(params -> range.name) <> 'number' THEN
            RAISE EXCEPTION '% must be a number, not %', range.name, params -> range.name USING ERRCODE = 'invalid_parameter_value';
        END IF;
        value := (params ->> range.name)::double precision;
        IF NOT (value BETWEEN range.low AND range.high AND (NOT range.is_whole OR value = floor(value))) THEN
            RAISE EXCEPTION '% must be a % from % to %, not %', range.name, CASE WHEN range.is_whole THEN 'whole number' ELSE 'number' END, range.low, range.high, params ->> range.name
                USING ERRCODE = 'invalid_parameter_value';
        END IF;
    END LOOP;
    RETURN ('{"rounds": 100, "seed": 0}'::jsonb || jsonb_strip_nulls(given) || jsonb_build_object('objective', objective, 'tree_method', 'hist')
            || CASE WHEN given ? 'early_stopping_rounds' THEN jsonb_build_object('validation', coalesce(given -> 'validation', '0.1')) ELSE '{}' END)::json;
END
$$;
COMMENT ON FUNCTION millrace_internal.trees_params(json) IS 'the parameters of boosted trees';

-- The columns of a query as a model of trees takes them: those of the entity as they are, the label, the features, and at last the time, if it gives one.
CREATE FUNCTION millrace_internal.trees_columns(query text, label text, entity text[], categories json, OUT name text, OUT expression text) RETURNS SETOF record
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    col record;
    time_name text;
BEGIN
    FOR col IN SELECT c.name, c.type, t.typcategory = 'S' AS is_text, array_position(entity, c.name) AS place, c.type IN ('date'::regtype, 'timestamp'::regtype, 'timestamptz'::regtype) AND c.name <> label AND categories -> c.name IS NULL AS is_time FROM millrace_internal.query_columns(query) AS c JOIN pg_type t ON t.oid = c.type
               ORDER BY place, c.name <> label, is_time, c.number LOOP
        name := col.name;
        IF col.place IS NOT NULL THEN
            expression := format('q.%I', name);
        ELSIF col.is_time THEN
            IF time_name IS NOT NULL THEN
                RAISE EXCEPTION 'query gives two times, "%" and "%"', time_name, name USING ERRCODE = 'invalid_parameter_value',
                    HINT = 'A time is no feature: leave out all but the one by which rows may be split.';
            END IF;
            time_name := name;
            expression := format('q.%I::timestamptz', name);
        ELSIF categories -> name IS NOT NULL THEN
            expression := format('q.%I::text COLLATE "C"', name);
        ELSIF col.type = 'boolean'::regtype THEN
            expression := format('q.%I::integer::real', name);
        ELSIF NOT col.is_text AND (col.type = 'real'::regtype OR EXISTS (SELECT FROM pg_cast c WHERE c.castsource = col.type AND c.casttarget = 'real'::regtype)) THEN
            expression := format('q.%I::real', name);
        ELSE
            RAISE EXCEPTION 'column "%" of type % cannot be cast to real', name, col.type USING ERRCODE = 'datatype_mismatch',
                HINT = CASE WHEN col.is_text THEN 'Name it in categories, or leave it out of the query.' ELSE 'Cast it in the query, or leave it out.' END;
        END IF;
        RETURN NEXT;
    END LOOP;
END
$$;
COMMENT ON FUNCTION millrace_internal.trees_columns(text, text, text[], json) IS 'the columns of a query as a model of trees takes them';

-- The features in the definition of a model of trees; a time is none.
CREATE FUNCTION millrace_internal.trees_features(id integer, entity text[], OUT number smallint, OUT name text) RETURNS SETOF record
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp AS $$
    SELECT a.attnum, a.attname FROM pg_attribute a
    WHERE a.attrelid = format('millrace_def.model_%s', id)::regclass AND a.attnum > cardinality(entity) + 1 AND a.atttypid IN ('real'::regtype, 'text'::regtype) ORDER BY a.attnum
$$;
COMMENT ON FUNCTION millrace_internal.trees_features(integer, text[]) IS 'the features in the definition of a model of trees';

CREATE FUNCTION millrace_internal.create_trees(caller regrole, id integer, qualified text, definition text, label text, entity text[], categories json) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    state text := format('millrace_state.model_%s', id);
    columns text[] := ARRAY(SELECT c.name FROM millrace_internal.query_columns(definition) AS c ORDER BY c.number);
    wrong text;
    selected text;
BEGIN
    IF label IS NULL OR coalesce(cardinality(entity), 0) = 0 THEN
        RAISE EXCEPTION 'a model of kind xgboost needs a label and an entity' USING ERRCODE = 'null_value_not_allowed';
    END IF;
    PERFORM millrace_internal.check_names('query', definition);
    PERFORM millrace_internal.check_members('categories', categories, columns);
    SELECT u.name INTO wrong FROM unnest(entity || label) AS u (name) WHERE NOT coalesce(u.name = ANY (columns), false) LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'query gives no column "%"', wrong USING ERRCODE = 'undefined_column';
    END IF;
    SELECT u.name INTO wrong FROM (SELECT unnest(entity || label) UNION ALL SELECT json_object_keys(categories)) AS u (name) GROUP BY 1 HAVING count(*) > 1 LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'column "%" can be only one of entity, label and category', wrong USING ERRCODE = 'invalid_parameter_value';
    END IF;
    SELECT e.key INTO wrong FROM json_each_text(categories) AS e WHERE NOT coalesce(e.value IN ('-1', 'missing'), false) LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'what is not known of category "%" must be -1 or "missing", not %', wrong, categories -> wrong USING ERRCODE = 'invalid_parameter_value';
    END IF;
    SELECT string_agg(format('%s AS %I', c.expression, c.name), ', ') INTO selected FROM millrace_internal.trees_columns(definition, label, entity, categories) AS c;
    EXECUTE format('CREATE VIEW millrace_def.model_%s AS SELECT %s FROM (%s) AS q', id, selected, rtrim(definition, ';'));
    IF NOT EXISTS (SELECT FROM millrace_internal.trees_features(id, entity)) THEN
        RAISE EXCEPTION 'query gives no feature beside entity and label' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    EXECUTE format('ALTER VIEW millrace_def.model_%s OWNER TO %s', id, caller);
    EXECUTE format('CREATE TABLE %s_trees (version integer PRIMARY KEY, library text NOT NULL, objective text NOT NULL, features text[] NOT NULL, codes jsonb NOT NULL, trees bytea NOT NULL, rounds integer, threads integer)', state);
    EXECUTE format('CREATE TABLE %s_importance (version integer, feature text COLLATE "C", splits bigint NOT NULL, gain double precision NOT NULL, cover double precision NOT NULL, PRIMARY KEY (version, feature))', state);
    EXECUTE format('CREATE TABLE %s_entity (version integer, block integer, entities bigint[] NOT NULL, PRIMARY KEY (version, block))', state);
    EXECUTE format('CREATE TABLE %s_test (entity bigint PRIMARY KEY)', state);
    EXECUTE format('GRANT SELECT ON %1$s_trees, %1$s_importance, %1$s_entity, %1$s_test TO %2$s', state, caller);
    PERFORM millrace_internal.run_as(caller, format('CREATE VIEW %s AS SELECT version, feature, splits, gain, cover FROM %s_importance', qualified, state));
END
$$;
COMMENT ON FUNCTION millrace_internal.create_trees(regrole, integer, text, text, text, text[], json) IS 'makes the definition and the tables of a model of trees';

-- ---- versions ----------------------------------------------------------------------------------------------

CREATE FUNCTION millrace_internal.read_trees(content bytea, OUT library text, OUT objective text, OUT names text[], OUT trees bytea, OUT splits bigint[], OUT gain double precision[], OUT cover double precision[])
LANGUAGE C STRICT AS 'MODULE_PATHNAME', 'millrace_read_trees';
COMMENT ON FUNCTION millrace_internal.read_trees(bytea) IS 'what a model says that XGBoost has saved; no names: it has none';

-- Writes what XGBoost has saved as a version; `codes` has the values of each category in the order of their numbers.
CREATE FUNCTION millrace_internal.store_trees(model millrace.model, version integer, content bytea, codes jsonb) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    state text := format('millrace_state.model_%s', model.id);
    features text[] := ARRAY(SELECT f.name FROM millrace_internal.trees_features(model.id, model.entity) AS f ORDER BY f.number);
    file record := millrace_internal.read_trees(content);
    wrong record;
BEGIN
    IF cardinality(file.splits) <> cardinality(features) THEN
        RAISE EXCEPTION 'the model was trained on % features, and % has %', cardinality(file.splits), model.relation, cardinality(features) USING ERRCODE = 'invalid_parameter_value',
            DETAIL = format('Its features are %s.', array_to_string(features, ', '));
    END IF;
    SELECT f.n, f.theirs, f.ours INTO wrong FROM unnest(file.names, features) WITH ORDINALITY AS f (theirs, ours, n)
    WHERE cardinality(file.names) > 0 AND f.theirs IS DISTINCT FROM f.ours ORDER BY f.n LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'feature % of the model is "%", and that of % is "%"', wrong.n, wrong.theirs, model.relation, wrong.ours USING ERRCODE = 'invalid_parameter_value';
    END IF;
    EXECUTE format('INSERT INTO %s_trees VALUES ($1, $2, $3, $4, $5, $6)', state) USING version, file.library, file.objective, features,
        coalesce((SELECT jsonb_object_agg(c.key, jsonb_build_object('unseen', c.value, 'values', codes -> c.key)) FROM json_each(model.categories) AS c), '{}'), file.trees;
    EXECUTE format('INSERT INTO %s_importance SELECT $1, f.* FROM unnest($2, $3, $4, $5) AS f', state) USING version, features, file.splits, file.gain, file.cover;
END
$$;
COMMENT ON FUNCTION millrace_internal.store_trees(millrace.model, integer, bytea, jsonb) IS 'writes what XGBoost has saved as a version of a model';

CREATE FUNCTION millrace_internal.import_model(caller regrole, model regclass, content bytea, codes json) RETURNS integer
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    of millrace.model := millrace_internal.own_model(caller, model);
    started timestamptz := clock_timestamp();
    category text;
    version integer;
BEGIN
    IF of.kind <> 'xgboost' THEN
        RAISE EXCEPTION 'model % is of kind %: it is trained, not imported', model, of.kind USING ERRCODE = 'wrong_object_type';
    END IF;
    IF content IS NULL THEN
        RAISE EXCEPTION 'content must not be NULL' USING ERRCODE = 'null_value_not_allowed';
    END IF;
    PERFORM millrace_internal.check_members('codes', codes, ARRAY(SELECT json_object_keys(of.categories)));
    FOR category IN SELECT json_object_keys(of.categories) LOOP
        IF jsonb_path_exists(coalesce(codes::jsonb -> category, 'null'), 'strict $ ? (@.type() != "array" || exists(@[*] ? (@.type() != "string")))', silent => true)
           OR jsonb_typeof(codes::jsonb -> category) IS DISTINCT FROM 'array' THEN
            RAISE EXCEPTION 'codes must have the values of category "%", as an array of texts in the order of their numbers', category USING ERRCODE = 'invalid_parameter_value';
        END IF;
    END LOOP;
    version := nextval(format('millrace_state.model_%s_version', of.id)::regclass);
    PERFORM millrace_internal.store_trees(of, version, content, codes::jsonb);
    INSERT INTO millrace.model_version (model_id, version, params, refit, trained_by, trained_at, seconds, compute_seconds, write_seconds, rows, rows_skipped, input_hash)
    VALUES (of.id, version, '{"imported": true}', false, caller, started, extract(epoch FROM clock_timestamp() - started), 0, 0, 0, 0, left(encode(sha256(content), 'hex'), 16));
    PERFORM millrace_internal.take_version(of, version, caller);
    RETURN version;
END
$$;
COMMENT ON FUNCTION millrace_internal.import_model(regrole, regclass, bytea, json) IS 'the other half of millrace.import_model()';
CREATE FUNCTION millrace.import_model(model regclass, content bytea, codes json DEFAULT NULL) RETURNS integer
LANGUAGE C AS 'MODULE_PATHNAME', 'millrace_declare';
COMMENT ON FUNCTION millrace.import_model(regclass, bytea, json) IS 'takes a model that XGBoost has saved, as JSON or UBJSON, as a version, and returns its number';
REVOKE ALL ON FUNCTION millrace.import_model(regclass, bytea, json) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION millrace.import_model(regclass, bytea, json) TO millrace_admin;

-- ---- training ----------------------------------------------------------------------------------------------

CREATE FUNCTION millrace_internal.can_hash(type regtype) RETURNS boolean
LANGUAGE C STRICT STABLE AS 'MODULE_PATHNAME', 'millrace_can_hash';
COMMENT ON FUNCTION millrace_internal.can_hash(regtype) IS 'whether values of a type that are equal have the same hash';

-- The hash of an entity of a row "v", as an SQL expression: equal ones have the same, as 1.0 and 1.00; where the type has no hash, those of the same text.
CREATE FUNCTION millrace_internal.trees_hash(model millrace.model, seed bigint) RETURNS text
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp AS $$
    SELECT format('pg_catalog.hash_record_extended(ROW(%s), %s)',
                  string_agg(format('v.%I::%s%s', e.name, format_type(a.atttypid, -1), CASE WHEN NOT millrace_internal.can_hash(a.atttypid) THEN '::pg_catalog.text' END), ', ' ORDER BY e.n), seed)
    FROM unnest(model.entity) WITH ORDINALITY AS e (name, n) JOIN pg_attribute a ON a.attrelid = format('millrace_def.model_%s', model.id)::regclass AND a.attname = e.name
$$;
COMMENT ON FUNCTION millrace_internal.trees_hash(millrace.model, bigint) IS 'how an entity is hashed';

-- A statement that gives two hashes of the entity, label and features (and the time, if `what` is 'time'): of the model's query, of its evaluation set (what is 'test' and no query is given), or of a query of the caller's.
CREATE FUNCTION millrace_internal.trees_query(caller regrole, model millrace.model, what text, query text, seed bigint) RETURNS text
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    features text[] := ARRAY(SELECT f.name FROM millrace_internal.trees_features(model.id, model.entity) AS f ORDER BY f.number);
    columns text[] := model.entity || model.label || features;
    source text := format('millrace_def.model_%s', model.id);
    hashes text[] := ARRAY[millrace_internal.trees_hash(model, 0), millrace_internal.trees_hash(model, seed)];
    name text;
    given text;
BEGIN
    IF query IS NOT NULL THEN
        PERFORM millrace_internal.check_query(what, query);
        query := rtrim(millrace_internal.qualified_query(caller, query, is_kept => false), ';');
        PERFORM millrace_internal.check_names(what, query);
        SELECT c INTO name FROM unnest(columns) AS c WHERE c NOT IN (SELECT g.name FROM millrace_internal.query_columns(query) AS g) LIMIT 1;
        IF FOUND THEN
            RAISE EXCEPTION 'the query % gives no column "%"', what, name USING ERRCODE = 'undefined_column';
        END IF;
        SELECT string_agg(format('q.%I', c), ', ') INTO given FROM unnest(columns) AS c;
        source := (SELECT format('(SELECT %s FROM (%s) AS q)', string_agg(format('%s AS %I', c.expression, c.name), ', '), query)
                   FROM millrace_internal.trees_columns(format('SELECT %s FROM (%s) AS q', given, query), model.label, model.entity, model.categories) AS c);
    END IF;
    RETURN (SELECT format('SELECT %s, %s%s FROM %s AS v%s ORDER BY %s', array_to_string(hashes, ', '), string_agg(format('v.%I', c.name), ', ' ORDER BY c.n) FILTER (WHERE c.n > cardinality(model.entity)),
                          CASE WHEN what = 'time' THEN format(', v.%I', millrace_internal.model_time(model)) END,
                          source, CASE WHEN what = 'test' AND query IS NULL THEN format(' WHERE %s IN (SELECT t.entity FROM millrace_state.model_%s_test AS t)', hashes[1], model.id) END,
                          string_agg(format('v.%I', c.name) || CASE WHEN t.typcollation <> 0 THEN ' COLLATE "C"' ELSE '' END, ', ' ORDER BY c.n))
            FROM unnest(columns) WITH ORDINALITY AS c (name, n) JOIN pg_attribute a ON a.attrelid = format('millrace_def.model_%s', model.id)::regclass AND a.attname = c.name JOIN pg_type t ON t.oid = a.atttypid);
END
$$;
COMMENT ON FUNCTION millrace_internal.trees_query(regrole, millrace.model, text, text, bigint) IS 'a statement that gives the rows that trees are trained on or judged by';

-- Parameters by trial; no share and no test: nothing is split.  The values of metrics are by trial and metric.
CREATE FUNCTION millrace_internal.trees_train(model_id integer, version integer, owner regrole, relation regclass, nentity integer, categories jsonb, params jsonb, query text, train_query text, test_query text, share double precision,
    is_by_time boolean, since timestamptz, refit boolean, metrics text[], halving boolean, OUT rows bigint, OUT skipped bigint, OUT input_hash text, OUT content bytea, OUT codes jsonb, OUT rounds integer, OUT threads integer,
    OUT compute_seconds double precision, OUT best integer, OUT test_rows bigint, OUT baseline double precision[], OUT metric_values double precision[], OUT trial_rungs double precision[],
    OUT trial_seconds double precision[])
LANGUAGE C AS 'MODULE_PATHNAME', 'millrace_trees_train';
COMMENT ON FUNCTION millrace_internal.trees_train(integer, integer, regrole, regclass, integer, jsonb, jsonb, text, text, text, double precision, boolean, timestamptz, boolean, text[], boolean) IS
    'reads the query of a model as its owner, has XGBoost train trees on its rows and judges them';

CREATE FUNCTION millrace_internal.trees_evaluate(model_id integer, nentity integer, versions integer[], owner regrole, test_query text, metrics text[],
    OUT metric_values double precision[], OUT popularity double precision[], OUT pairs bigint, OUT skipped bigint)
LANGUAGE C AS 'MODULE_PATHNAME', 'millrace_trees_evaluate';
COMMENT ON FUNCTION millrace_internal.trees_evaluate(integer, integer, integer[], regrole, text, text[]) IS 'metrics of stored versions, all by the rows of one query';

-- Trains what was asked for, with the parameters of each trial, as a version of that number.
CREATE FUNCTION millrace_internal.train_trees(model millrace.model, asked millrace.model_training, drawn json[], positions json, expected_hash text) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    started timestamptz := clock_timestamp();
    split record := millrace_internal.check_split(asked.requested_by, model, asked.split);
    params json[] := ARRAY(SELECT millrace_internal.trees_params(d.params) FROM unnest(drawn) WITH ORDINALITY AS d (params, n) ORDER BY d.n);
    computed timestamptz;
    result record;
BEGIN
    result := millrace_internal.trees_train(model.id, asked.version, model.owner, model.relation, cardinality(model.entity), model.categories::jsonb, to_jsonb(params),
        millrace_internal.trees_query(asked.requested_by, model, CASE split.kind WHEN 'time' THEN 'time' ELSE 'query' END, NULL, split.seed), split.train_query, split.test_query,
        CASE WHEN split.kind IN ('rows', 'time') THEN split.share END, split.kind = 'time', split.since, asked.refit, asked.metrics, asked.halving);
    computed := clock_timestamp();
    PERFORM millrace_internal.store_trees(model, asked.version, result.content, result.codes);
    EXECUTE format('UPDATE millrace_state.model_%s_trees SET rounds = $2, threads = $3 WHERE version = $1', model.id) USING asked.version, result.rounds, result.threads;
    INSERT INTO millrace.model_version (model_id, version, params, split, refit, metrics, trained_by, trained_at, seconds, compute_seconds, write_seconds, rows, rows_skipped, input_hash, source_positions)
    VALUES (model.id, asked.version, params[result.best], asked.split, asked.refit, asked.metrics, asked.requested_by, started, extract(epoch FROM clock_timestamp() - started), result.compute_seconds,
            extract(epoch FROM clock_timestamp() - computed), result.rows, result.skipped, result.input_hash, positions);
    INSERT INTO millrace.model_metric (model_id, version, metric, value, popularity, pairs)
    SELECT model.id, asked.version, m.metric, nullif(result.metric_values[(result.best - 1) * cardinality(asked.metrics) + m.n], 'NaN'), nullif(m.baseline, 'NaN'), result.test_rows
    FROM unnest(asked.metrics, result.baseline) WITH ORDINALITY AS m (metric, baseline, n);
    IF asked.search IS NOT NULL THEN
        INSERT INTO millrace.model_trial (model_id, version, trial, params, rung, metrics, seconds)
        SELECT model.id, asked.version, t, params[t], result.trial_rungs[t],
               (SELECT json_object_agg(m.metric, nullif(result.metric_values[(t - 1) * cardinality(asked.metrics) + m.n], 'NaN') ORDER BY m.n) FROM unnest(asked.metrics) WITH ORDINALITY AS m (metric, n)),
               result.trial_seconds[t]
        FROM generate_subscripts(params, 1) AS t;
    END IF;
    IF result.input_hash <> expected_hash THEN
        RAISE WARNING 'what model % is trained on differs from what version % was', model.relation, asked.like_version;
    END IF;
    PERFORM millrace_internal.take_version(model, asked.version, asked.requested_by);
END
$$;
COMMENT ON FUNCTION millrace_internal.train_trees(millrace.model, millrace.model_training, json[], json, text) IS 'trains a version of trees';

-- ---- answers -----------------------------------------------------------------------------------------------

CREATE FUNCTION millrace.predict(model regclass, features "any", output_margin boolean DEFAULT false) RETURNS real
LANGUAGE C STABLE PARALLEL SAFE AS 'MODULE_PATHNAME', 'millrace_predict';
COMMENT ON FUNCTION millrace.predict(regclass, "any", boolean) IS 'what the served version of a model predicts from features: a row, JSON, or an array of real in their order';

CREATE FUNCTION millrace.predict_for(model regclass, entity json) RETURNS real
LANGUAGE C STABLE PARALLEL SAFE AS 'MODULE_PATHNAME', 'millrace_predict_for';
COMMENT ON FUNCTION millrace.predict_for(regclass, json) IS 'what the served version of a model predicts for an entity, from what its query gives of it; NULL: it gives none';
