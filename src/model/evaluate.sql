-- Judging versions: splits, metrics.

CREATE TABLE millrace.model_metric (
    model_id integer NOT NULL,
    version integer NOT NULL,
    metric text NOT NULL COLLATE "C",
    -- NULL: there was nothing to judge by.
    value double precision,
    popularity double precision,
    pairs bigint NOT NULL,
    PRIMARY KEY (model_id, version, metric),
    FOREIGN KEY (model_id, version) REFERENCES millrace.model_version ON DELETE CASCADE
);
COMMENT ON TABLE millrace.model_metric IS 'how well versions of models did when they were trained; see the view millrace.model_version_metric';
SELECT pg_catalog.pg_extension_config_dump('millrace.model_metric', '');

CREATE FUNCTION millrace_internal.default_metrics(model millrace.model) RETURNS text[]
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp AS $$
    SELECT CASE WHEN model.kind = 'item_knn' THEN '{precision@10,recall@10,map@10,ndcg@10,hit_rate@10,mrr,user_coverage,item_coverage,coverage,catalog_coverage@10}'
                WHEN coalesce(model.params ->> 'objective', 'binary:logistic') IN ('binary:logistic', 'reg:logistic') THEN '{logloss,error,auc}'
                WHEN model.params ->> 'objective' = 'binary:logitraw' THEN '{auc}'
                ELSE '{rmse,mae}' END::text[]
$$;
COMMENT ON FUNCTION millrace_internal.default_metrics(millrace.model) IS 'the metrics of a model unless others are asked for';

CREATE FUNCTION millrace_internal.check_metrics(metrics text[]) RETURNS void
LANGUAGE C STRICT IMMUTABLE AS 'MODULE_PATHNAME', 'millrace_check_metrics';
COMMENT ON FUNCTION millrace_internal.check_metrics(text[]) IS 'raises an error for a metric that is not known';

-- A query that the caller gives as a set of pairs of a model, as a statement with the model's types.
CREATE FUNCTION millrace_internal.pairs_query(caller regrole, model millrace.model, what text, query text, columns text[]) RETURNS text
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
BEGIN
    PERFORM millrace_internal.check_query(what, query);
    RETURN (SELECT format('SELECT %s FROM (%s) AS q (%s)', string_agg(format('q.%I::%s', a.attname, format_type(a.atttypid, a.atttypmod)), ', ' ORDER BY a.attnum),
                          rtrim(millrace_internal.qualified_query(caller, query, is_kept => false), ';'), string_agg(a.attname, ', ' ORDER BY a.attnum))
            FROM pg_attribute a WHERE a.attrelid = format('millrace_def.model_%s', model.id)::regclass AND a.attname = ANY (columns));
END
$$;
COMMENT ON FUNCTION millrace_internal.pairs_query(regrole, millrace.model, text, text, text[]) IS 'a statement that gives the columns of a model''s query by another query';

CREATE FUNCTION millrace_internal.model_time(model millrace.model) RETURNS text
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp AS $$
    SELECT a.attname::text FROM pg_attribute a
    WHERE a.attrelid = format('millrace_def.model_%s', model.id)::regclass AND a.attnum > coalesce(cardinality(model.entity), 1) + 1 AND a.atttypid = 'timestamptz'::regtype
$$;
COMMENT ON FUNCTION millrace_internal.model_time(millrace.model) IS 'the column in the definition of a model that says when a row is from; NULL: none';

CREATE FUNCTION millrace_internal.check_split(caller regrole, model millrace.model, split json,
    OUT kind text, OUT share double precision, OUT seed bigint, OUT since timestamptz, OUT train_query text, OUT test_query text)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    known text[];
BEGIN
    PERFORM millrace_internal.check_members('split', split, '{by,test,seed,since,train}');
    kind := CASE WHEN split IS NULL THEN 'none' ELSE split ->> 'by' END;
    share := 0.2;
    seed := 0;
    IF split IS NULL THEN
        RETURN;
    END IF;
    PERFORM millrace_internal.check_word('by of split', kind, CASE model.kind WHEN 'item_knn' THEN '{customer_rows,customers,time,leave_one_out,tables}' ELSE '{rows,time,tables}' END::text[]);
    known := CASE kind WHEN 'time' THEN '{by,test,since}' WHEN 'leave_one_out' THEN '{by,seed}' WHEN 'tables' THEN '{by,test,train}' ELSE '{by,test,seed}' END;
    PERFORM millrace_internal.check_members(format('a split by %s', kind), split, known);
    IF kind = 'time' AND millrace_internal.model_time(model) IS NULL THEN
        RAISE EXCEPTION 'a split by time needs a query that gives times' USING ERRCODE = 'object_not_in_prerequisite_state',
            HINT = CASE model.kind WHEN 'item_knn' THEN 'Create the model with a query that gives user, item and time.' ELSE 'Create the model with a query that gives a time beside the features.' END;
    END IF;
    IF kind = 'tables' THEN
        IF split ->> 'test' IS NULL THEN
            RAISE EXCEPTION 'a split by tables needs a query "test"' USING ERRCODE = 'invalid_parameter_value';
        END IF;
        IF model.kind = 'xgboost' THEN
            test_query := millrace_internal.trees_query(caller, model, 'test', split ->> 'test', 0);
            train_query := CASE WHEN split ->> 'train' IS NOT NULL THEN millrace_internal.trees_query(caller, model, 'train', split ->> 'train', 0) END;
            RETURN;
        END IF;
        test_query := millrace_internal.pairs_query(caller, model, 'test', split ->> 'test', '{user_id,item}');
        train_query := CASE WHEN split ->> 'train' IS NOT NULL THEN millrace_internal.pairs_query(caller, model, 'train', split ->> 'train', '{user_id,item,weight}') END;
        RETURN;
    END IF;
    share := coalesce((split ->> 'test')::double precision, share);
    seed := coalesce((split ->> 'seed')::bigint, seed);
    since := (split ->> 'since')::timestamptz;
    IF NOT (share > 0 AND share < 1) THEN
        RAISE EXCEPTION 'test of a split must be a share between 0 and 1, not %', share USING ERRCODE = 'invalid_parameter_value';
    END IF;
END
$$;
COMMENT ON FUNCTION millrace_internal.check_split(regrole, millrace.model, json) IS 'what a split says, with its defaults, checked';

-- So that it means the same whoever reads it later.
CREATE FUNCTION millrace_internal.qualified_split(caller regrole, split json, is_kept boolean) RETURNS json
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp AS $$
    SELECT json_object_agg(e.key, CASE WHEN split ->> 'by' = 'tables' AND e.key <> 'by' THEN to_json(millrace_internal.qualified_query(caller, e.value #>> '{}', is_kept))
                                       WHEN e.key = 'since' THEN to_json((e.value #>> '{}')::timestamptz) ELSE e.value END)
    FROM json_each(split) AS e
$$;
COMMENT ON FUNCTION millrace_internal.qualified_split(regrole, json, boolean) IS 'a split with every name of its queries qualified, and its time with a zone';

-- Parameters of a trial: those of `base`, but for what is searched, each by a hash of its name and the trial's number.
CREATE FUNCTION millrace_internal.draw_params(base json, search json, trial integer, seed bigint) RETURNS json
LANGUAGE plpgsql IMMUTABLE
SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    drawn jsonb := '{}';
    range record;
    share double precision;
    scale text;
    low double precision;
    high double precision;
    chosen jsonb;
BEGIN
    IF search IS NULL THEN
        RETURN base;
    END IF;
    PERFORM millrace_internal.check_members('search', search, NULL);
    FOR range IN SELECT e.key AS name, e.value::jsonb AS value FROM json_each(search) AS e LOOP
        -- From 0 on, less than 1, with the 53 bits that a double has.
        share := (hashtextextended(format('%s %s', range.name, trial), seed) & 9007199254740991) / 9007199254740992.0;
        IF jsonb_typeof(range.value) = 'array' AND jsonb_array_length(range.value) > 0 THEN
            chosen := range.value -> floor(share * jsonb_array_length(range.value))::integer;
        ELSE
            PERFORM millrace_internal.check_members(format('search of %s', range.name), range.value::json, '{uniform,log}');
            SELECT e.key, (e.value ->> 0)::double precision, (e.value ->> 1)::double precision INTO scale, low, high FROM jsonb_each(range.value) AS e;
            IF (low <= high AND (scale = 'uniform' OR low > 0)) IS NOT TRUE THEN
                RAISE EXCEPTION 'search of % must be a list of values, or an object such as {"uniform": [1, 2]} or {"log": [0.1, 10]}', range.name USING ERRCODE = 'invalid_parameter_value';
            END IF;
            chosen := to_jsonb(CASE scale WHEN 'log' THEN low * (high / low) ^ share ELSE low + (high - low) * share END);
            IF (range.value -> scale)::text !~ '[.eE]' THEN
                chosen := to_jsonb(round(chosen::numeric));
            END IF;
        END IF;
        drawn := drawn || jsonb_build_object(range.name, chosen);
    END LOOP;
    RETURN (coalesce(base, '{}')::jsonb || drawn)::json;
END
$$;
COMMENT ON FUNCTION millrace_internal.draw_params(json, json, integer, bigint) IS 'the parameters of a trial of a search';

CREATE FUNCTION millrace_internal.model_evaluate(model_id integer, versions integer[], owner regrole, test_query text, metrics text[],
    OUT metric_values double precision[], OUT popularity double precision[], OUT pairs bigint, OUT skipped bigint)
LANGUAGE C AS 'MODULE_PATHNAME', 'millrace_model_evaluate';
COMMENT ON FUNCTION millrace_internal.model_evaluate(integer, integer[], regrole, text, text[]) IS 'metrics of stored versions, all by the same pairs: of a query, or of the evaluation set';

-- Of what a query of the caller's gives, or of the evaluation set.
CREATE FUNCTION millrace_internal.judge_versions(caller regrole, model millrace.model, versions integer[], test text, names text[], OUT metric_values double precision[], OUT popularity double precision[], OUT pairs bigint, OUT skipped bigint)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    result record;
BEGIN
    PERFORM millrace_internal.check_model_query(model);
    IF model.kind = 'xgboost' THEN
        result := millrace_internal.trees_evaluate(model.id, cardinality(model.entity), versions, model.owner, millrace_internal.trees_query(caller, model, 'test', test, 0), names);
    ELSE
        result := millrace_internal.model_evaluate(model.id, versions, model.owner, CASE WHEN test IS NOT NULL THEN millrace_internal.pairs_query(caller, model, 'test', test, '{user_id,item}') END, names);
    END IF;
    metric_values := result.metric_values;
    popularity := result.popularity;
    pairs := result.pairs;
    skipped := result.skipped;
END
$$;
COMMENT ON FUNCTION millrace_internal.judge_versions(regrole, millrace.model, integer[], text, text[]) IS 'metrics of stored versions, all by the same';

CREATE FUNCTION millrace_internal.has_evaluation_set(model_id integer) RETURNS boolean
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    found boolean;
BEGIN
    EXECUTE format('SELECT EXISTS (SELECT FROM millrace_state.model_%s_test)', model_id) INTO found;
    RETURN found;
END
$$;
COMMENT ON FUNCTION millrace_internal.has_evaluation_set(integer) IS 'whether something was set aside for good by which versions of a model are judged';

-- What two versions were judged to be when they were trained, which can be compared when the same split set aside by what.
CREATE FUNCTION millrace_internal.noted_metrics(model millrace.model, version integer, old_version integer, names text[]) RETURNS double precision[]
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    metric_values double precision[];
BEGIN
    SELECT array_agg(coalesce(x.value, 'NaN') ORDER BY v.version = old_version, n.n) INTO metric_values
    FROM millrace.model_version v CROSS JOIN unnest(names) WITH ORDINALITY AS n (name, n) JOIN millrace.model_metric x ON x.model_id = v.model_id AND x.version = v.version AND x.metric = n.name
    WHERE v.model_id = model.id AND v.version IN (version, old_version)
    AND v.split::jsonb = (SELECT o.split::jsonb FROM millrace.model_version o WHERE o.model_id = model.id AND o.version = old_version);
    IF cardinality(metric_values) IS DISTINCT FROM 2 * cardinality(names) THEN
        RAISE EXCEPTION 'versions % and % of model % have no metrics of one split by which to compare them, and there is no evaluation set', version, old_version, model.relation
            USING ERRCODE = 'object_not_in_prerequisite_state', DETAIL = format('The gate speaks of %s.', array_to_string(names, ', ')),
            HINT = 'Train both with the same split and these metrics, or one with refit => false, which keeps an evaluation set; or give a test.';
    END IF;
    RETURN metric_values;
END
$$;
COMMENT ON FUNCTION millrace_internal.noted_metrics(millrace.model, integer, integer, text[]) IS 'the metrics of two versions by what the same split set aside when they were trained';

CREATE FUNCTION millrace_internal.evaluate(caller regrole, model regclass, version integer, test text, metrics text[]) RETURNS TABLE (metric text, value double precision, popularity double precision, pairs bigint, skipped bigint)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    of millrace.model := millrace_internal.own_model(caller, model);
    names text[] := coalesce(metrics, millrace_internal.default_metrics(of));
    result record;
BEGIN
    IF of.is_online AND test IS NULL THEN
        RAISE EXCEPTION 'online model % has no evaluation set', model USING ERRCODE = 'object_not_in_prerequisite_state', HINT = 'Give a test.';
    END IF;
    PERFORM millrace_internal.check_model_version(of, version);
    result := millrace_internal.judge_versions(caller, of, ARRAY[version], test, names);
    RETURN QUERY SELECT m.metric, nullif(m.value, 'NaN'), nullif(m.popularity, 'NaN'), result.pairs, result.skipped
                 FROM unnest(names, result.metric_values, result.popularity) WITH ORDINALITY AS m (metric, value, popularity, n) ORDER BY m.n;
END
$$;
COMMENT ON FUNCTION millrace_internal.evaluate(regrole, regclass, integer, text, text[]) IS 'the other half of millrace.evaluate()';
CREATE FUNCTION millrace.evaluate(model regclass, version integer, test text DEFAULT NULL, metrics text[] DEFAULT NULL)
RETURNS TABLE (metric text, value double precision, popularity double precision, pairs bigint, skipped bigint)
LANGUAGE C AS 'MODULE_PATHNAME', 'millrace_declare';
COMMENT ON FUNCTION millrace.evaluate(regclass, integer, text, text[]) IS 'metrics of a version by the pairs of user and item that a query gives, or by the model''s evaluation set';
REVOKE ALL ON FUNCTION millrace.evaluate(regclass, integer, text, text[]) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION millrace.evaluate(regclass, integer, text, text[]) TO millrace_admin;

CREATE VIEW millrace.model_version_metric WITH (security_barrier) AS
SELECT m.relation::text AS model, v.version, x.metric, x.value, x.popularity, x.pairs
FROM millrace.model_metric x JOIN millrace.model_version v ON v.model_id = x.model_id AND v.version = x.version JOIN millrace.model m ON m.id = v.model_id
WHERE millrace_internal.may_watch(m.owner);
COMMENT ON VIEW millrace.model_version_metric IS 'how well versions of models did when they were trained';
COMMENT ON COLUMN millrace.model_version_metric.popularity IS 'the same of recommending what most users have; of predicting the mean label';
COMMENT ON COLUMN millrace.model_version_metric.pairs IS 'of users and items that were to be found; rows that were predicted';
GRANT SELECT ON millrace.model_version_metric TO PUBLIC;

CREATE VIEW millrace.model_version_trial WITH (security_barrier) AS
SELECT m.relation::text AS model, t.version, t.trial, t.params::text AS params, v.metrics[1] AS metric, (t.metrics ->> v.metrics[1])::double precision AS value, t.metrics::text AS metrics,
       t.params::jsonb = v.params::jsonb AS chosen, t.rung, t.seconds
FROM millrace.model_trial t JOIN millrace.model_version v ON v.model_id = t.model_id AND v.version = t.version JOIN millrace.model m ON m.id = v.model_id
WHERE millrace_internal.may_watch(m.owner);
COMMENT ON VIEW millrace.model_version_trial IS 'parameters that were tried for versions of models';
COMMENT ON COLUMN millrace.model_version_trial.rung IS 'how far it came with halving; metrics are those of that rung';
COMMENT ON COLUMN millrace.model_version_trial.value IS 'of the first metric, which decides';

-- ---- in the background -------------------------------------------------------------------------------------

-- Trainings that were running when their process ended without a word, and the next that waits: its id, or NULL.
CREATE FUNCTION millrace_internal.claim_training() RETURNS bigint
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    claimed bigint;
BEGIN
    -- One process trains at a time, and it is this one.
    UPDATE millrace.model_training t SET state = 'failed', ended_at = clock_timestamp(), sqlstate = '57P02', error = format('process %s ended before the training did', t.pid), pid = NULL
    WHERE t.state = 'running';
    UPDATE millrace.model_training t SET state = 'running', started_at = clock_timestamp(), pid = pg_backend_pid()
    WHERE t.id = (SELECT w.id FROM millrace.model_training w WHERE w.state = 'waiting' ORDER BY w.id LIMIT 1 FOR UPDATE SKIP LOCKED)
    RETURNING t.id INTO claimed;
    RETURN claimed;
END
$$;
COMMENT ON FUNCTION millrace_internal.claim_training() IS 'the next training that is done in the background';

CREATE FUNCTION millrace_internal.run_training(id bigint) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    asked millrace.model_training;
BEGIN
    SELECT t.* INTO asked FROM millrace.model_training t WHERE t.id = id;
    IF FOUND THEN
        PERFORM millrace_internal.train_version(millrace_internal.own_model(asked.requested_by, m.relation), asked) FROM millrace.model m WHERE m.id = asked.model_id;
        UPDATE millrace.model_training t SET state = 'done', ended_at = clock_timestamp(), pid = NULL WHERE t.id = id;
    END IF;
END
$$;
COMMENT ON FUNCTION millrace_internal.run_training(bigint) IS 'trains what was asked for';

CREATE VIEW millrace.training WITH (security_barrier) AS
SELECT m.relation::text AS model, t.version, t.state, t.requested_at, t.requested_by::text AS requested_by, t.started_at, t.ended_at, t.pid, t.error, t.sqlstate
FROM millrace.model_training t JOIN millrace.model m ON m.id = t.model_id
WHERE millrace_internal.may_watch(m.owner);
COMMENT ON VIEW millrace.training IS 'trainings in the background: those that wait, the one that runs, how others ended';
COMMENT ON COLUMN millrace.training.version IS 'the number that its version has when it is done';
GRANT SELECT ON millrace.model_version_trial, millrace.training TO PUBLIC;
