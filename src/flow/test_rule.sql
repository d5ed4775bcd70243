-- test_rule(): what a rule would have found.

-- The rule forgets what it knows, judges what there is, and all of that is rolled back.
CREATE FUNCTION millrace_internal.test_rule(caller regrole, name text, since timestamptz, until timestamptz)
    RETURNS TABLE (key text, occurrence text, event_time timestamptz, details json)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    rule millrace.rule := millrace_internal.own_rule(caller, name);
    definition json := (SELECT t.definition FROM millrace.target t WHERE t.id = rule.target_id);
    log record;
    found json;
BEGIN
    SELECT g.log, g.log_since, g.relation INTO log FROM millrace.target_source s JOIN millrace.staging g ON g.id = s.staging_id WHERE s.target_id = rule.target_id;
    IF rule.kind = 'health' THEN
        RAISE EXCEPTION 'a rule of kind health is about now' USING ERRCODE = 'feature_not_supported', HINT = format('SELECT * FROM %s WHERE %s tells what it would find.', definition ->> 'source', definition ->> 'predicate');
    ELSIF rule.kind = 'threshold' THEN
        RAISE NOTICE 'groups are judged as they are now';
    ELSIF rule.kind = 'frequency' OR definition ->> 'again' = 'true' OR log.log IS NULL THEN
        RAISE NOTICE 'only the newest version of each object of % is seen', log.relation;
    ELSIF log.log_since > coalesce(since, '-infinity') THEN
        RAISE NOTICE 'the log of % has every version since %', log.relation, log.log_since;
    END IF;
    BEGIN
        DELETE FROM millrace.rule_alert a WHERE a.rule_id = rule.target_id;
        -- Nothing is sent of what is history.
        UPDATE millrace.rule r SET since = 'infinity', send_history = false, suspended_at = NULL WHERE r.target_id = rule.target_id;
        PERFORM millrace_internal.rebuild_target(rule.target_id, NULL);
        SELECT json_agg(json_build_object('key', a.key, 'occurrence', a.occurrence, 'event_time', a.event_time, 'details', a.details) ORDER BY a.event_time, a.id) INTO found
        FROM millrace.rule_alert a
        WHERE a.rule_id = rule.target_id AND (rule.kind = 'threshold' OR (a.event_time >= since OR since IS NULL) AND (a.event_time < until OR until IS NULL));
        SELECT r.* INTO rule FROM millrace.rule r WHERE r.target_id = rule.target_id;
        RAISE EXCEPTION 'rolled back' USING ERRCODE = 'MR000';
    EXCEPTION WHEN SQLSTATE 'MR000' THEN
        NULL;
    END;
    IF rule.reason IS NOT NULL AND rule.suspended_at IS NOT NULL THEN
        RAISE WARNING 'the rule cannot be judged: %', rule.reason;
    END IF;
    RETURN QUERY SELECT f.* FROM json_to_recordset(coalesce(found, '[]')) AS f (key text, occurrence text, event_time timestamptz, details json);
END
$$;
COMMENT ON FUNCTION millrace_internal.test_rule(regrole, text, timestamptz, timestamptz) IS 'the other half of millrace.test_rule()';

CREATE FUNCTION millrace.test_rule(name text, since timestamptz DEFAULT NULL, until timestamptz DEFAULT NULL)
    RETURNS TABLE (key text, occurrence text, event_time timestamptz, details json)
LANGUAGE C AS 'MODULE_PATHNAME', 'millrace_declare';
COMMENT ON FUNCTION millrace.test_rule(text, timestamptz, timestamptz) IS
    'the alerts that a rule finds in what its source keeps, of events between two times; nothing is written and nothing sent';
REVOKE ALL ON FUNCTION millrace.test_rule(text, timestamptz, timestamptz) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION millrace.test_rule(text, timestamptz, timestamptz) TO millrace_admin;
