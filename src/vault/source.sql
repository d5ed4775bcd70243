-- Further sources of hubs, links and satellites.

-- How a source is read, as target_source.columns says it.
CREATE FUNCTION millrace_internal.vault_mapping(target millrace.target, staging millrace.staging, columns json) RETURNS json
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    key jsonb := '[]';
    item record;
BEGIN
    IF target.kind = 'hub' THEN
        RETURN json_build_object('key', json_build_array(millrace_internal.vault_key_columns(target, staging, columns, 'columns')));
    ELSIF target.kind = 'satellite' THEN
        RETURN millrace_internal.satellite_mapping((SELECT t FROM millrace.target t WHERE t.id = (target.definition #>> '{parent,id}')::integer), (target.definition -> 'attributes')::jsonb,
            ARRAY(SELECT json_array_elements_text(target.definition -> 'sub_key')), staging, columns);
    END IF;
    PERFORM millrace_internal.check_members('columns', columns, ARRAY(SELECT h ->> 'as' FROM json_array_elements(target.definition -> 'hubs') h));
    FOR item IN SELECT h.hub ->> 'as' AS label, t AS target FROM json_array_elements(target.definition -> 'hubs') WITH ORDINALITY AS h (hub, n)
                JOIN millrace.target t ON t.id = (h.hub ->> 'id')::integer ORDER BY h.n LOOP
        key := key || jsonb_build_array(millrace_internal.vault_key_columns(item.target, staging, columns -> item.label, format('columns for "%s"', item.label)));
    END LOOP;
    RETURN json_build_object('key', key);
END
$$;
COMMENT ON FUNCTION millrace_internal.vault_mapping(millrace.target, millrace.staging, json) IS 'the columns of a staging table that feed a hub, link or satellite';

-- The hub, link or satellite whose sources the caller may change; its streams stand still.
CREATE FUNCTION millrace_internal.vault_own(caller regrole, name regclass) RETURNS millrace.target
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    target millrace.target;
BEGIN
    IF name IS NULL THEN
        RAISE EXCEPTION 'name must not be null' USING ERRCODE = 'null_value_not_allowed';
    END IF;
    PERFORM millrace_internal.vault_lock(t.id) FROM millrace.target t WHERE t.relation = name AND t.kind IN ('hub', 'link', 'satellite') AND pg_has_role(caller, t.owner, 'USAGE');
    SELECT t.* INTO target FROM millrace.target t WHERE t.relation = name AND t.kind IN ('hub', 'link', 'satellite') FOR UPDATE;
    IF target.id IS NULL THEN
        RAISE EXCEPTION '% is not a hub, link or satellite', name USING ERRCODE = 'wrong_object_type';
    END IF;
    PERFORM millrace_internal.check_owner(caller, target.owner, format('%s %s', target.kind, target.relation));
    RETURN target;
END
$$;
COMMENT ON FUNCTION millrace_internal.vault_own(regrole, regclass) IS 'the hub, link or satellite of that name, or an error';

-- Tells all streams that feed a target.
CREATE FUNCTION millrace_internal.vault_changed(target_id integer) RETURNS void
LANGUAGE sql
SET search_path = pg_catalog, pg_temp AS $$
    SELECT millrace_internal.changed(f.stream_id)
    FROM (SELECT DISTINCT g.stream_id FROM millrace.target_source s JOIN millrace.staging g ON g.id = s.staging_id WHERE s.target_id = vault_changed.target_id ORDER BY 1) AS f
$$;
COMMENT ON FUNCTION millrace_internal.vault_changed(integer) IS 'lets the streams that feed a target read their configuration again';

CREATE FUNCTION millrace_internal.add_source(caller regrole, name regclass, source regclass, columns json, record_source text, replace boolean) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    target millrace.target := millrace_internal.vault_own(caller, name);
    staging millrace.staging := millrace_internal.vault_source(caller, source);
    mapping json := millrace_internal.vault_mapping(target, staging, columns);
    given jsonb;
BEGIN
    IF (target.definition ->> 'kind') = 'multi_active' AND millrace_internal.satellite_whole(staging, mapping) <> (target.definition ->> 'whole')::boolean THEN
        RAISE EXCEPTION '% speaks of % in another way than the first source', staging.relation, target.relation
            USING ERRCODE = 'invalid_parameter_value',
                  DETAIL = CASE WHEN (target.definition ->> 'whole')::boolean THEN 'There the parent''s key is the staging table''s own, and a version tells all sub-keys; here it does not.'
                                ELSE 'There a version tells single sub-keys; here the parent''s key is the staging table''s own, and a version tells all of them.' END;
    END IF;
    given := jsonb_strip_nulls(mapping::jsonb || jsonb_build_object('record_source', record_source));
    IF EXISTS (SELECT FROM millrace.target_source s WHERE s.target_id = target.id AND s.staging_id = staging.id AND jsonb_strip_nulls(s.columns::jsonb) = given) THEN
        RETURN;
    END IF;
    IF replace AND EXISTS (SELECT FROM millrace.target_source s WHERE s.target_id = target.id AND s.staging_id = staging.id) THEN
        PERFORM millrace_internal.vault_redefined(target.id);
        UPDATE millrace.target_source s SET columns = given::json
        WHERE s.target_id = target.id AND s.ordinal = (SELECT min(o.ordinal) FROM millrace.target_source o WHERE o.target_id = target.id AND o.staging_id = staging.id);
        PERFORM millrace_internal.vault_say_history(target);
    ELSE
        INSERT INTO millrace.target_source (target_id, staging_id, ordinal, columns)
        SELECT target.id, staging.id, max(s.ordinal) + 1, given::json FROM millrace.target_source s WHERE s.target_id = target.id;
        PERFORM millrace_internal.vault_horizon(target.id, target.relation, staging);
    END IF;
    PERFORM millrace_internal.vault_changed(target.id);
    PERFORM millrace_internal.pit_renew(target.id);
END
$$;
COMMENT ON FUNCTION millrace_internal.add_source(regrole, regclass, regclass, json, text, boolean) IS 'the other half of millrace.add_source';

CREATE FUNCTION millrace.add_source(name regclass, source regclass, columns json DEFAULT NULL, record_source text DEFAULT NULL, replace boolean DEFAULT false) RETURNS void
LANGUAGE C AS 'MODULE_PATHNAME', 'millrace_declare';
COMMENT ON FUNCTION millrace.add_source(regclass, regclass, json, text, boolean) IS
    'lets one more staging table feed a hub, link or satellite, also one of another stream; its columns are cast to the types that are there';

-- One of several sources feeds a hub, link, satellite or point-in-time table no longer.
CREATE FUNCTION millrace_internal.vault_lose_source(target_id integer, staging_id integer) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
BEGIN
    IF EXISTS (SELECT FROM millrace.target t WHERE t.id = target_id AND t.kind <> 'pit') THEN
        PERFORM millrace_internal.vault_redefined(target_id);
    END IF;
    PERFORM millrace_internal.vault_changed(target_id);
    DELETE FROM millrace.target_source s WHERE s.target_id = target_id AND s.staging_id = staging_id;
    PERFORM millrace_internal.pit_renew(target_id);
    -- One that is being filled begins again, without it.
    UPDATE millrace.target t SET state = 'new' WHERE t.id = target_id AND t.state = 'filling';
END
$$;
COMMENT ON FUNCTION millrace_internal.vault_lose_source(integer, integer) IS 'takes one of its sources from a target';

CREATE FUNCTION millrace_internal.drop_source(caller regrole, name regclass, source regclass) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    target millrace.target := millrace_internal.vault_own(caller, name);
    staging_id integer := (SELECT g.id FROM millrace.staging g WHERE g.relation = source);
BEGIN
    IF NOT EXISTS (SELECT FROM millrace.target_source s WHERE s.target_id = target.id AND s.staging_id = staging_id) THEN
        RAISE EXCEPTION '% does not feed %', coalesce(source::text, 'NULL'), target.relation USING ERRCODE = 'undefined_object';
    ELSIF NOT EXISTS (SELECT FROM millrace.target_source s WHERE s.target_id = target.id AND s.staging_id <> staging_id) THEN
        RAISE EXCEPTION '% is the only source of %', source, target.relation
            USING ERRCODE = 'object_not_in_prerequisite_state', HINT = 'millrace.drop_table() drops the table itself.';
    END IF;
    PERFORM millrace_internal.vault_lose_source(target.id, staging_id);
END
$$;
COMMENT ON FUNCTION millrace_internal.drop_source(regrole, regclass, regclass) IS 'the other half of millrace.drop_source';

CREATE FUNCTION millrace.drop_source(name regclass, source regclass) RETURNS void
LANGUAGE C AS 'MODULE_PATHNAME', 'millrace_declare';
COMMENT ON FUNCTION millrace.drop_source(regclass, regclass) IS 'a staging table feeds a hub, link or satellite no longer; the rows that came from it stay';

REVOKE ALL ON FUNCTION millrace.add_source(regclass, regclass, json, text, boolean), millrace.drop_source(regclass, regclass) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION millrace.add_source(regclass, regclass, json, text, boolean), millrace.drop_source(regclass, regclass) TO millrace_admin;
