-- Declaring a model again: create_model(…, replace => true).

-- Does a definition view say what `definition` says, with these names of columns ('': its own)?  No view: no.
CREATE FUNCTION millrace_internal.is_same_query(view regclass, definition text, names text) RETURNS boolean
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    other text := view || '_new';
    same boolean;
BEGIN
    IF (SELECT count(*) FROM millrace_internal.query_columns(definition)) IS DISTINCT FROM (SELECT nullif(count(*), 0) FROM pg_attribute a WHERE a.attrelid = view AND a.attnum > 0) THEN
        RETURN false;
    END IF;
    EXECUTE format('CREATE VIEW %s %s AS %s', other, names, definition);
    same := pg_get_viewdef(other::regclass) = pg_get_viewdef(view);
    EXECUTE format('DROP VIEW %s', other);
    RETURN same;
END
$$;
COMMENT ON FUNCTION millrace_internal.is_same_query(regclass, text, text) IS 'whether a definition view is of this query';

CREATE FUNCTION millrace_internal.model_changed(model regclass) RETURNS void
LANGUAGE C STRICT AS 'MODULE_PATHNAME', 'millrace_model_changed';
COMMENT ON FUNCTION millrace_internal.model_changed(regclass) IS 'lets sessions read again what they know of a model, once the transaction has committed';

-- Lets a model be trained on another query with the same columns.  What users have now is counted anew.
CREATE FUNCTION millrace_internal.change_model_query(model millrace.model, query text, definition text) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    state text := format('millrace_state.model_%s', model.id);
    view regclass := format('millrace_def.model_%s', model.id)::regclass;
    columns text[] := ARRAY(SELECT format('%I %s', a.attname, format_type(a.atttypid, NULL)) FROM pg_attribute a WHERE a.attrelid = view AND a.attnum > 0 ORDER BY a.attnum);
    around text := millrace_internal.around_model_query(model, view);
    staging millrace.staging;
    types text[];
BEGIN
    IF model.kind = 'item_knn' AND (SELECT count(*) FROM millrace_internal.query_columns(definition)) <> cardinality(columns)
       OR ARRAY(SELECT format('%I %s', c.name, c.type) FROM millrace_internal.query_columns(format(around, definition)) AS c ORDER BY c.number) <> columns THEN
        RAISE EXCEPTION 'columns of the query of model % cannot change', model.relation USING ERRCODE = 'feature_not_supported',
            DETAIL = format('They are %s.', array_to_string(columns, ', ')), HINT = 'Create another model, or drop this one and create it again.';
    END IF;
    PERFORM millrace_internal.lock_model_target(model.target_id);
    EXECUTE format('CREATE OR REPLACE VIEW %s AS %s', view, format(around, definition));
    UPDATE millrace.model m SET query = query, target_id = NULL WHERE m.id = model.id;
    IF model.target_id IS NOT NULL THEN
        PERFORM millrace_internal.changed(g.stream_id) FROM millrace.target_source s JOIN millrace.staging g ON g.id = s.staging_id WHERE s.target_id = model.target_id;
        DELETE FROM millrace.target t WHERE t.id = model.target_id;
        EXECUTE format('DROP TABLE %1$s_current_item, %1$s_current_user', state);
    END IF;
    IF model.kind = 'item_knn' THEN
        staging := millrace_internal.model_staging(model.owner, model.id);
    END IF;
    IF staging.id IS NOT NULL THEN
        SELECT array_agg(format_type(a.atttypid, a.atttypmod) || CASE WHEN a.attcollation <> 0 THEN ' COLLATE "C"' ELSE '' END ORDER BY a.attnum) INTO types FROM pg_attribute a WHERE a.attrelid = view AND a.attnum IN (1, 2);
        PERFORM millrace_internal.create_histories(model.owner, state || '_current', types);
        UPDATE millrace.model m SET target_id = millrace_internal.create_model_target(model.owner, model.id, model.relation, staging) WHERE m.id = model.id;
    END IF;
END
$$;
COMMENT ON FUNCTION millrace_internal.change_model_query(millrace.model, text, text) IS 'lets a model be trained on another query';

-- What is asked of a model, and how it is trained from now on, can change; what versions are made of stays, and what is counted of an online model.
CREATE FUNCTION millrace_internal.replace_model(caller regrole, existing regclass, kind text, query text, params json, catalogue text, keep integer, label text, entity text[], categories json, online boolean, popular text, replace boolean) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    old millrace.model;
    definition text;
    view regclass;
    names text;
    fixed text;
    is_same boolean;
BEGIN
    IF NOT EXISTS (SELECT FROM millrace.model m WHERE m.relation = existing) THEN
        RAISE EXCEPTION 'relation % already exists', existing USING ERRCODE = 'duplicate_table';
    END IF;
    IF NOT replace THEN
        RAISE EXCEPTION 'model % already exists', existing USING ERRCODE = 'duplicate_table', HINT = 'Use replace => true to change it.';
    END IF;
    -- Nobody else changes it.
    PERFORM pg_advisory_xact_lock(hashtextextended(format('millrace.model.%s', existing::oid), 0));
    -- Trainings that go on read the query: they end before it changes, and before batches wait for that.
    IF EXISTS (SELECT FROM millrace.model m WHERE m.relation = existing AND m.query <> query) THEN
        PERFORM FROM millrace.model m WHERE m.relation = existing FOR UPDATE;
    ELSE
        PERFORM FROM millrace.model m WHERE m.relation = existing FOR NO KEY UPDATE;
    END IF;
    old := millrace_internal.own_model(caller, existing);
    PERFORM millrace_internal.check_model_query(old);

    view := format('millrace_def.model_%s', old.id)::regclass;
    PERFORM millrace_internal.check_query('query', query);
    definition := rtrim(millrace_internal.qualified_query(old.owner, query), ';');
    fixed := CASE WHEN old.kind <> kind THEN 'kind' WHEN old.is_online <> online THEN 'online' WHEN old.label IS DISTINCT FROM label THEN 'label' WHEN old.entity IS DISTINCT FROM entity THEN 'entity'
                  WHEN coalesce(old.categories, '{}')::jsonb <> categories::jsonb THEN 'categories'
                  WHEN online AND to_jsonb(millrace_internal.online_params(old.params)) <> to_jsonb(millrace_internal.online_params(params)) THEN 'params' END;
    old.query := definition;
    -- As describe() prints one whose columns were renamed, it has what stands around it.
    names := (SELECT format('(%s)', string_agg(quote_ident(a.attname), ', ' ORDER BY a.attnum)) FROM pg_attribute a WHERE a.attrelid = view AND a.attnum > 0);
    is_same := millrace_internal.is_same_query(view, definition, names) OR fixed IS NULL AND millrace_internal.is_same_query(view, format(millrace_internal.around_model_query(old, view), definition), names);
    IF online AND NOT is_same THEN
        fixed := coalesce(fixed, 'query');
    END IF;
    IF fixed IS NOT NULL THEN
        RAISE EXCEPTION '% of model % cannot change', fixed, existing USING ERRCODE = 'feature_not_supported', HINT = 'Create another model, or drop this one and create it again.';
    END IF;

    PERFORM millrace_internal.change_model_query(old, query, definition) WHERE NOT is_same;
    view := to_regclass('millrace_def.model_catalogue_' || old.id);
    IF (CASE WHEN catalogue IS NULL THEN old.catalogue IS NOT NULL ELSE NOT millrace_internal.is_same_query(view, rtrim(millrace_internal.qualified_query(old.owner, catalogue), ';'), '') END) THEN
        IF view IS NOT NULL THEN
            EXECUTE format('DROP VIEW %s', view);
        END IF;
        PERFORM millrace_internal.create_catalogue(old.owner, old.id, catalogue);
    END IF;
    view := to_regclass('millrace_def.model_popular_' || old.id);
    IF popular IS DISTINCT FROM old.popular OR popular IS NOT NULL AND view IS NULL THEN
        IF view IS NOT NULL THEN
            EXECUTE format('DROP VIEW %s', view);
        END IF;
        PERFORM millrace_internal.create_popular(old.owner, old.id, popular);
    END IF;
    IF online THEN
        params := old.params;
    ELSIF NOT is_same OR old.params::jsonb <> params::jsonb THEN
        RAISE NOTICE 'the new definition of model % is for versions that are trained from now on', existing;
    END IF;
    UPDATE millrace.model m SET params = params, catalogue = catalogue, popular = popular, keep = keep
    WHERE m.id = old.id AND (m.params::jsonb <> params::jsonb OR m.catalogue IS DISTINCT FROM catalogue OR m.popular IS DISTINCT FROM popular OR m.keep IS DISTINCT FROM keep);
    PERFORM millrace_internal.model_changed(existing) WHERE FOUND OR NOT is_same;
END
$$;
COMMENT ON FUNCTION millrace_internal.replace_model(regrole, regclass, text, text, json, text, integer, text, text[], json, boolean, text, boolean) IS 'changes a model that is declared again';
