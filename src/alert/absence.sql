-- Rules on what does not come.

-- Notes when keys were heard of last; what was said of their absence is over, and messages that say so are returned.  An erasure asks only which of its keys were.
CREATE FUNCTION millrace_internal.heard(id integer, keys text[], times timestamptz[], erasing boolean)
    RETURNS TABLE (channel_id integer, key text, group_by text, alert_id bigint, message text, not_after timestamptz)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    within interval;
    -- A time that is further ahead would keep the key from ever being missed.
    latest timestamptz;
    back text[];
BEGIN
    IF erasing THEN
        UPDATE millrace_state.erase_rule_key k SET shared = true WHERE k.rule_id = heard.id AND k.key = ANY (keys);
        RETURN;
    END IF;
    SELECT (t.definition ->> 'within')::bigint * interval '1 microsecond', clock_timestamp() + (t.definition ->> 'max_ahead')::bigint * interval '1 microsecond' INTO within, latest
    FROM millrace.target t WHERE t.id = heard.id;
    times := ARRAY(SELECT least(u.seen, latest) FROM unnest(times) WITH ORDINALITY AS u (seen, n) ORDER BY u.n);
    SELECT array_agg(b.key) INTO back
    FROM (SELECT s.key FROM unnest(keys, times) AS u (key, seen) JOIN millrace.rule_state s ON s.rule_id = heard.id AND s.key = u.key
          WHERE u.seen > (s.state #>> '{details,last}')::timestamptz AND s.state ->> 'occurrence' IS NOT NULL ORDER BY s.key FOR NO KEY UPDATE OF s) AS b;
    IF back IS NOT NULL THEN
        RETURN QUERY SELECT * FROM millrace_internal.resolve(heard.id, back, clock_timestamp());
    END IF;
    INSERT INTO millrace.rule_state AS s (rule_id, key, about, state, at)
    SELECT heard.id, u.key, u.key, json_build_object('details', json_build_object('last', u.seen)), u.seen + within FROM unnest(keys, times) AS u (key, seen) ORDER BY u.key COLLATE "C"
    ON CONFLICT (rule_id, key) DO UPDATE SET state = EXCLUDED.state, at = EXCLUDED.at WHERE s.state ->> 'occurrence' IS NULL AND EXCLUDED.at > s.at;
END
$$;
COMMENT ON FUNCTION millrace_internal.heard(integer, text[], timestamptz[], boolean) IS 'notes when a rule has heard of keys last';

-- What time has brought until then (all that came before has been heard of): keys of which nothing was heard for too long, and those that are to be forgotten.
CREATE FUNCTION millrace_internal.absence_tick(id integer, now timestamptz)
    RETURNS TABLE (channel_id integer, key text, group_by text, alert_id bigint, message text, not_after timestamptz)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    rule millrace.rule;
    definition json;
    due record;
    forgotten text[];
BEGIN
    SELECT r.* INTO STRICT rule FROM millrace.rule r WHERE r.target_id = absence_tick.id;
    SELECT t.definition INTO STRICT definition FROM millrace.target t WHERE t.id = absence_tick.id;
    -- Of a source as a whole nothing may ever have been heard.
    IF definition ->> 'key' = '[]' THEN
        INSERT INTO millrace.rule_state (rule_id, key, about, state, at)
        VALUES (absence_tick.id, 'all', 'all', json_build_object('details', json_build_object('last', rule.since)), rule.since + (definition ->> 'within')::bigint * interval '1 microsecond')
        ON CONFLICT DO NOTHING;
    END IF;
    -- Nobody will tell that the absence of these is over.
    SELECT array_agg(f.key) INTO forgotten
    FROM (SELECT s.key FROM millrace.rule_state s
          WHERE s.rule_id = absence_tick.id AND (s.state #>> '{details,last}')::timestamptz < now - (definition ->> 'forget')::bigint * interval '1 microsecond'
          ORDER BY s.key FOR NO KEY UPDATE SKIP LOCKED) AS f;
    RETURN QUERY SELECT * FROM millrace_internal.resolve(absence_tick.id, forgotten, now) WHERE forgotten IS NOT NULL;
    FOR due IN
        SELECT d.history, array_agg(d.key ORDER BY d.key) AS keys, array_agg(d.key || '@' || (d.state #>> '{details,last}') ORDER BY d.key) AS occurrences,
               array_agg((d.state -> 'details')::text ORDER BY d.key) AS details
        FROM (SELECT s.*, s.at < rule.since AS history FROM millrace.rule_state s
              WHERE s.rule_id = absence_tick.id AND s.at <= now AND s.state ->> 'occurrence' IS NULL ORDER BY s.key FOR NO KEY UPDATE SKIP LOCKED) AS d
        GROUP BY d.history
    LOOP
        RETURN QUERY SELECT * FROM millrace_internal.rise(absence_tick.id, due.keys, due.keys, due.occurrences, due.details, array_fill(NULL::text, ARRAY[cardinality(due.keys)]), due.history, now);
    END LOOP;
    RETURN QUERY SELECT * FROM millrace_internal.still_held(absence_tick.id, now);
END
$$;
COMMENT ON FUNCTION millrace_internal.absence_tick(integer, timestamptz) IS 'what time brings to a rule on what does not come: returns what is to be sent';
