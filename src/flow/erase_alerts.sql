-- Erasing a person: what rules and sinks know of his objects, and what they have told.
--
-- An alert of kind match or frequency names the objects that it tells of, and a message of a sink its row.  Groups of marts are those that the erasure touches, and those
-- that bear the values by which he is named.  What is found is noted in three tables that are gone at the end, because the outbox comes last: whoever sends waits meanwhile.

CREATE FUNCTION millrace_internal.erase_begin_alerts(owners regrole[]) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    -- Keys of rules; named: they are his alone; fired: an alert of that key goes, of windows that ended then; shared: rows that stay have it, too.
    PERFORM millrace_internal.erase_table('erase_rule_key', 'rule_id integer, key text COLLATE "C", named boolean NOT NULL DEFAULT false, fired boolean NOT NULL DEFAULT false, '
        'shared boolean NOT NULL DEFAULT false, ends bigint[], PRIMARY KEY (rule_id, key)', owners);
    -- Alerts that are gone, or tell less.
    PERFORM millrace_internal.erase_table('erase_alert', 'id bigint PRIMARY KEY', '{}');
    -- Rows of sinks of which nothing that was said is to stay.
    PERFORM millrace_internal.erase_table('erase_row', 'sink_id integer, object text COLLATE "C", PRIMARY KEY (sink_id, object)', '{}');
END
$$;
COMMENT ON FUNCTION millrace_internal.erase_begin_alerts(regrole[]) IS 'makes the tables in which an erasure notes what is to leave alerts and the outbox';

-- The values by which somebody is named, as keys of alerts show them.
CREATE FUNCTION millrace_internal.erase_texts(staging millrace.staging, wanted text[], given json) RETURNS text[]
LANGUAGE plpgsql
SET timezone = 'UTC' SET datestyle = 'ISO, YMD' SET intervalstyle = 'postgres' SET extra_float_digits = '1' SET bytea_output = 'hex'
SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM set_config('timezone', staging.timezone, true);
    RETURN millrace_internal.value_as(staging.owner, format('SELECT ARRAY[%s]', (SELECT string_agg(format(CASE WHEN c.type ~ '^numeric' THEN 'trim_scale(CAST(%L AS %s))::text' ELSE 'CAST(%L AS %s)::text' END, given ->> w, c.type), ', ' ORDER BY n)
        FROM unnest(wanted) WITH ORDINALITY AS u (w, n) JOIN millrace_internal.staging_columns(staging.definition) c ON c.name = w)), NULL::text[]);
END
$$;
COMMENT ON FUNCTION millrace_internal.erase_texts(millrace.staging, text[], json) IS 'values of columns as keys of alerts show them';

-- Objects as alerts name them; as_list: as sinks name their rows.
CREATE FUNCTION millrace_internal.erase_names(staging millrace.staging, objects regclass, as_list boolean) RETURNS text[]
LANGUAGE plpgsql
SET timezone = 'UTC' SET datestyle = 'ISO, YMD' SET intervalstyle = 'postgres' SET extra_float_digits = '1' SET bytea_output = 'hex'
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    columns text[] := ARRAY(SELECT 'k' || n FROM generate_subscripts(millrace_internal.erase_key(staging.definition), 1) n ORDER BY n);
BEGIN
    PERFORM set_config('timezone', staging.timezone, true);
    RETURN coalesce(millrace_internal.value_as(staging.owner, format(CASE WHEN as_list AND cardinality(columns) = 1 THEN 'SELECT array_agg(json_build_array(%s)::text) FROM %s AS o' ELSE 'SELECT array_agg(%s) FROM %s AS o' END,
        millrace_internal.rule_key(objects, 'o', columns), objects), NULL::text[]), '{}');
END
$$;
COMMENT ON FUNCTION millrace_internal.erase_names(millrace.staging, regclass, boolean) IS 'what objects are called in alerts or by sinks';

-- Whether a key of these columns, given as an SQL expression, bears the values by which somebody is named.
CREATE FUNCTION millrace_internal.erase_bears(expression text, columns text[], as_list boolean, wanted text[], texts text[]) RETURNS text
LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp AS $$
    SELECT CASE WHEN (wanted <@ columns) IS NOT TRUE THEN 'false'
                WHEN NOT as_list THEN format('%s = %L', expression, texts[1])
                -- A key that was too long was cut.
                ELSE format('CASE WHEN left(%1$s, 1) = ''['' AND right(%1$s, 1) = '']'' THEN %2$s ELSE false END', expression,
                         (SELECT string_agg(format('%s::json ->> %s = %L', expression, array_position(columns, w) - 1, t), ' AND ') FROM unnest(wanted, texts) AS u (w, t))) END
$$;
COMMENT ON FUNCTION millrace_internal.erase_bears(text, text[], boolean, text[], text[]) IS 'an SQL condition: a key bears values of columns';

-- The key that a row "r" of a log has for a rule, or NULL: the log has not all of its columns.
CREATE FUNCTION millrace_internal.erase_logged_key(staging millrace.staging, key text[]) RETURNS text
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    columns text[] := ARRAY(SELECT a.attname::text FROM pg_attribute a WHERE a.attrelid = staging.log AND a.attnum > 0 AND NOT a.attisdropped);
BEGIN
    -- Columns that have been renamed may still be called there as they were declared.
    key := ARRAY(SELECT coalesce((SELECT c.declared FROM millrace_internal.renamed_columns(staging.id) c WHERE c.now = k AND c.declared = ANY (columns)), k)
                 FROM unnest(key) WITH ORDINALITY AS u (k, n) ORDER BY n);
    RETURN CASE WHEN key <@ columns THEN format('coalesce(%s, ''[null]'')', millrace_internal.rule_key(staging.log, 'r', key)) END;
END
$$;
COMMENT ON FUNCTION millrace_internal.erase_logged_key(millrace.staging, text[]) IS 'an expression for the key that a row of a log has for a rule';

-- Notes the keys that objects have in rules, while their rows are there, and removes what is said of rows that could not be judged.
CREATE FUNCTION millrace_internal.erase_rule_keys(staging millrace.staging, objects regclass, wanted text[], texts text[]) RETURNS void
LANGUAGE plpgsql
SET timezone = 'UTC' SET datestyle = 'ISO, YMD' SET intervalstyle = 'postgres' SET extra_float_digits = '1' SET bytea_output = 'hex'
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    names text[] := millrace_internal.erase_names(staging, objects, false);
    object_key text[] := millrace_internal.staging_key(staging);
    rule record;
    places text[];
    logged text;
BEGIN
    PERFORM set_config('timezone', staging.timezone, true);
    FOR rule IN SELECT r.target_id AS id, t.owner, ARRAY(SELECT json_array_elements_text(t.definition -> 'key')) AS key, to_regclass('millrace_def.rule_' || r.target_id) AS view
                FROM millrace.rule r JOIN millrace.target t ON t.id = r.target_id JOIN millrace.target_source s ON s.target_id = t.id
                WHERE s.staging_id = staging.id AND r.kind <> 'threshold' ORDER BY r.target_id LOOP
        EXECUTE format('INSERT INTO millrace_state.erase_rule_key (rule_id, key, named) SELECT x.rule_id, x.key, true FROM millrace.rule_state x WHERE x.rule_id = %1$s AND %2$s '
                       'UNION SELECT x.rule_id, x.key, true FROM millrace.rule_alert x WHERE x.rule_id = %1$s AND %2$s', rule.id,
            millrace_internal.erase_bears('x.key', rule.key, cardinality(rule.key) > 1, wanted, texts));
        IF rule.key <@ object_key AND rule.key <> '{}' THEN
            places := ARRAY(SELECT 'k' || array_position(object_key, k) FROM unnest(rule.key) WITH ORDINALITY AS u (k, n) ORDER BY n);
            PERFORM millrace_internal.execute_as(staging.owner, format('INSERT INTO millrace_state.erase_rule_key (rule_id, key, named) SELECT DISTINCT %s, %s, true FROM %s AS o ON CONFLICT DO NOTHING',
                rule.id, millrace_internal.rule_key(objects, 'o', places), objects));
        END IF;
        CONTINUE WHEN rule.key = '{}';
        IF rule.view IS NOT NULL THEN
            PERFORM millrace_internal.erase_grant('millrace_state.erase_rule_key', rule.owner);
            PERFORM millrace_internal.execute_as(rule.owner, format('INSERT INTO millrace_state.erase_rule_key (rule_id, key) SELECT DISTINCT %s, coalesce(v.":key", ''[null]'') FROM %s AS v '
                'WHERE v.":object" = ANY (%L::text[]) ON CONFLICT DO NOTHING', rule.id, rule.view, names));
        END IF;
        -- And those that they had.
        logged := millrace_internal.erase_logged_key(staging, rule.key);
        IF logged IS NOT NULL THEN
            PERFORM millrace_internal.execute_as(staging.owner, format('INSERT INTO millrace_state.erase_rule_key (rule_id, key) SELECT DISTINCT %s, %s FROM %s AS r JOIN %s AS o ON %s '
                'WHERE r._rows > 0 ON CONFLICT DO NOTHING', rule.id, logged, staging.log, objects, millrace_internal.erase_of(staging, true)));
        END IF;
    END LOOP;
    -- Of most keys a rule knows nothing.
    DELETE FROM millrace_state.erase_rule_key k
    WHERE NOT EXISTS (SELECT FROM millrace.rule_state s WHERE s.rule_id = k.rule_id AND s.key = k.key) AND NOT EXISTS (SELECT FROM millrace.rule_alert a WHERE a.rule_id = k.rule_id AND a.key = k.key);
    -- Letters that have a message are found by it.
    DELETE FROM millrace.letter l USING millrace.target_source s, millrace.rule r
    WHERE s.staging_id = staging.id AND l.rule_id = s.target_id AND r.target_id = l.rule_id
      AND (r.kind = 'threshold' OR coalesce(l.value, l.key) IS NULL OR EXISTS (SELECT FROM unnest(texts) t WHERE position(t IN concat_ws(' ', l.message, l.detail)) > 0));
END
$$;
COMMENT ON FUNCTION millrace_internal.erase_rule_keys(millrace.staging, regclass, text[], text[]) IS 'notes the keys that objects have in rules';

-- What a rule of kind frequency knows of the noted keys: events of erased objects are none, and windows are open again of which an alert goes.
CREATE FUNCTION millrace_internal.erase_events(id integer, names text[]) RETURNS bigint
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    changed bigint;
BEGIN
    UPDATE millrace.rule_state s SET events = x.remaining
    FROM millrace_state.erase_rule_key k JOIN millrace.rule_state b ON b.rule_id = k.rule_id AND b.key = k.key
    CROSS JOIN LATERAL millrace_internal.events_without(b.events, names, coalesce(k.ends, '{}')) AS x (remaining)
    WHERE k.rule_id = erase_events.id AND s.rule_id = k.rule_id AND s.key = k.key AND x.remaining <> b.events;
    GET DIAGNOSTICS changed = ROW_COUNT;
    RETURN changed;
END
$$;
COMMENT ON FUNCTION millrace_internal.erase_events(integer, text[]) IS 'removes the events of objects from what a rule of kind frequency knows';

-- Notes which of a rule's keys others have, too, in what is staged or in the log; what its predicate is not true of does not count, if the rule can be judged.  Returns whether
-- the log tells all of it.
CREATE FUNCTION millrace_internal.erase_shared(staging millrace.staging, target millrace.target) RETURNS boolean
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    share text := format('UPDATE millrace_state.erase_rule_key AS k SET shared = true WHERE k.rule_id = %s AND NOT k.shared AND k.key IN ', target.id);
    view regclass := to_regclass('millrace_def.rule_' || target.id);
    logged text := millrace_internal.erase_logged_key(staging, ARRAY(SELECT json_array_elements_text(target.definition -> 'key')));
    complete boolean := logged IS NOT NULL AND staging.log_since = '-infinity';
    versions regclass;
BEGIN
    IF NOT EXISTS (SELECT FROM millrace_state.erase_rule_key k WHERE k.rule_id = target.id AND NOT k.shared) THEN
        RETURN complete;
    END IF;
    PERFORM millrace_internal.erase_grant('millrace_state.erase_rule_key', r) FROM unnest(ARRAY[target.owner, staging.owner]) r;
    IF view IS NOT NULL AND NOT complete THEN
        PERFORM millrace_internal.execute_as(target.owner, format('%s (SELECT coalesce(v.":key", ''[null]'') FROM %s AS v)', share, view));
    END IF;
    IF logged IS NOT NULL AND target.definition -> 'predicate' IS NOT NULL AND target.state <> 'new'
       AND EXISTS (SELECT FROM millrace.rule r WHERE r.target_id = target.id AND r.suspended_at IS NULL) THEN
        versions := millrace_internal.erase_versions(staging, format('%s IN (SELECT k.key FROM millrace_state.erase_rule_key k WHERE k.rule_id = %s AND NOT k.shared)', logged, target.id));
        PERFORM millrace_internal.erase_reapply(staging.stream_id, target.id, staging.id, versions, true);
        EXECUTE format('DROP TABLE %s', versions);
    ELSIF logged IS NOT NULL THEN
        PERFORM millrace_internal.execute_as(staging.owner, format('%s (SELECT %s FROM %s AS r WHERE r._rows > 0)', share, logged, staging.log));
    END IF;
    RETURN complete;
END
$$;
COMMENT ON FUNCTION millrace_internal.erase_shared(millrace.staging, millrace.target) IS 'which of the noted keys of a rule others have, too';

-- Removes what rules over a staging table have told and know of objects that are not there any more; what others have said of the same keys is judged again from the log.
CREATE FUNCTION millrace_internal.erase_rules(staging millrace.staging, objects regclass) RETURNS bigint
LANGUAGE plpgsql
SET timezone = 'UTC' SET datestyle = 'ISO, YMD' SET intervalstyle = 'postgres' SET extra_float_digits = '1' SET bytea_output = 'hex'
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    names text[] := millrace_internal.erase_names(staging, objects, false);
    rule record;
    states bigint := 0;
    n bigint;
    versions regclass;
    identity text[];
    complete boolean;
BEGIN
    PERFORM set_config('timezone', staging.timezone, true);
    FOR rule IN SELECT t AS target, t.id, r.kind, r.late_dropped
                FROM millrace.rule r JOIN millrace.target t ON t.id = r.target_id JOIN millrace.target_source s ON s.target_id = t.id
                WHERE s.staging_id = staging.id AND r.kind <> 'threshold' ORDER BY r.target_id LOOP
        complete := millrace_internal.erase_shared(staging, rule.target);
        WITH gone AS (
            DELETE FROM millrace.rule_alert a
            WHERE a.rule_id = rule.id
              AND (EXISTS (SELECT FROM json_array_elements_text(a.objects) o WHERE o = ANY (names))
                   OR a.key IN (SELECT k.key FROM millrace_state.erase_rule_key k WHERE k.rule_id = rule.id AND NOT k.shared AND (k.named OR rule.kind = 'absence')))
            RETURNING a.id, a.key, (extract(epoch FROM a.event_time - '2000-01-01 00:00:00+00'::timestamptz) * 1000000)::bigint AS ending
        ), noted AS (
            INSERT INTO millrace_state.erase_alert SELECT g.id FROM gone g
        ), fired AS (
            INSERT INTO millrace_state.erase_rule_key AS k (rule_id, key, fired, ends) SELECT rule.id, g.key, true, array_agg(g.ending) FROM gone g GROUP BY g.key
            ON CONFLICT (rule_id, key) DO UPDATE SET fired = true, ends = EXCLUDED.ends
        )
        SELECT count(*) INTO n FROM gone;
        IF n > 0 THEN
            PERFORM millrace_internal.erase_shared(staging, rule.target);
        END IF;
        DELETE FROM millrace.rule_state s USING millrace_state.erase_rule_key k
        WHERE s.rule_id = rule.id AND k.rule_id = s.rule_id AND k.key = s.key
          AND CASE rule.kind WHEN 'match' THEN k.fired OR (NOT k.shared AND (k.named OR complete)) ELSE NOT k.shared END;
        GET DIAGNOSTICS n = ROW_COUNT;
        states := states + n;
        IF rule.kind = 'frequency' THEN
            states := states + millrace_internal.erase_events(rule.id, names);
        END IF;
        CONTINUE WHEN rule.kind = 'absence' OR staging.log IS NULL OR NOT EXISTS (SELECT FROM millrace_state.erase_rule_key k WHERE k.rule_id = rule.id AND k.fired AND k.shared);
        -- Only of these keys, if they can be told in the log.
        versions := millrace_internal.erase_versions(staging, coalesce(
            millrace_internal.erase_logged_key(staging, ARRAY(SELECT json_array_elements_text((rule.target).definition -> 'key')))
            || format(' IN (SELECT k.key FROM millrace_state.erase_rule_key k WHERE k.rule_id = %s AND k.fired AND k.shared)', rule.id), 'true'));
        IF rule.kind = 'frequency' THEN
            -- A newer version has taken the place of the others.
            identity := millrace_internal.erase_key(staging.definition) || '{_partition,_position,_loaded_at}'::text[];
            PERFORM millrace_internal.execute_as(staging.owner, format('DELETE FROM %s AS r WHERE (%s) NOT IN (SELECT %s FROM %s AS r)', versions,
                array_to_string(millrace_internal.erase_columns(staging, identity, true), ', '), array_to_string(millrace_internal.erase_columns(staging, identity, false), ', '), staging.relation));
        END IF;
        PERFORM millrace_internal.erase_reapply(staging.stream_id, rule.id, staging.id, versions);
        EXECUTE format('DROP TABLE %s', versions);
        UPDATE millrace.rule r SET late_dropped = rule.late_dropped WHERE r.target_id = rule.id AND r.late_dropped <> rule.late_dropped;
    END LOOP;
    RETURN states;
END
$$;
COMMENT ON FUNCTION millrace_internal.erase_rules(millrace.staging, regclass) IS 'removes what rules have told and know of objects';

-- Called with the groups of a rule that the erasure has touched, before they are followed: what was said of those that are gone goes, of the others the details that were true of all.
CREATE FUNCTION millrace_internal.erase_groups(id integer, groups text[], there boolean[]) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    gone text[] := ARRAY(SELECT u.name FROM unnest(groups, there) AS u (name, here) WHERE u.here IS NOT TRUE);
    keys text[];
    told text[];
BEGIN
    WITH deleted AS (DELETE FROM millrace.rule_state s WHERE s.rule_id = erase_groups.id AND s.key = ANY (gone) RETURNING s.about)
    SELECT array_agg(DISTINCT d.about) INTO keys FROM deleted d;
    WITH deleted AS (
        DELETE FROM millrace.rule_alert a WHERE a.rule_id = erase_groups.id AND substring(a.occurrence FROM '^(.*)@[^@]*$') = ANY (gone) RETURNING a.id, a.key
    ), emptied AS (
        UPDATE millrace.rule_alert a SET details = NULL WHERE a.rule_id = erase_groups.id AND substring(a.occurrence FROM '^(.*)@[^@]*$') = ANY (groups)
          AND substring(a.occurrence FROM '^(.*)@[^@]*$') <> ALL (gone) RETURNING a.id
    ), noted AS (
        INSERT INTO millrace_state.erase_alert SELECT d.id FROM deleted d UNION SELECT e.id FROM emptied e ON CONFLICT DO NOTHING
    )
    SELECT array_agg(DISTINCT d.key) INTO told FROM deleted d;
    UPDATE millrace.rule_state s SET state = json_build_object('occurrence', s.state ->> 'occurrence', 'details', NULL)
    WHERE s.rule_id = erase_groups.id AND s.key = ANY (groups) AND s.state ->> 'occurrence' IS NOT NULL;
    IF keys || told IS NOT NULL AND EXISTS (SELECT FROM millrace.target t WHERE t.id = erase_groups.id AND t.definition ->> 'tag' IS NOT NULL) THEN
        PERFORM millrace_internal.tag_keys(erase_groups.id, keys || told, clock_timestamp());
        DELETE FROM millrace.rule_tag g WHERE g.rule_id = erase_groups.id AND g.key = ANY (keys || told) AND g.groups = 0;
    END IF;
END
$$;
COMMENT ON FUNCTION millrace_internal.erase_groups(integer, text[], boolean[]) IS 'removes what a rule has said of groups as they were';

-- Called with rows of a sink that the erasure has touched, before it sends what they are now.
CREATE FUNCTION millrace_internal.erase_rows(id integer, objects text[]) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    INSERT INTO millrace_state.erase_row SELECT erase_rows.id, o FROM unnest(objects) o ON CONFLICT DO NOTHING;
END
$$;
COMMENT ON FUNCTION millrace_internal.erase_rows(integer, text[]) IS 'notes rows of a sink of which nothing that was said is to stay';

-- Groups of marts, and rows of sinks, which are known by what they are called; `quoted` are words that name somebody as they stand in JSON.  Returns messages, too, that bear them.
CREATE FUNCTION millrace_internal.erase_called(staging millrace.staging, objects regclass, wanted text[], texts text[], quoted text[], OUT states bigint, OUT messages bigint[])
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    target record;
    lists text[] := millrace_internal.erase_names(staging, objects, true);
    of_group text;
    of_key text;
    condition text;
    n bigint;
BEGIN
    states := 0;
    messages := '{}';
    FOR target IN SELECT t.id, t.kind, t.definition -> 'mart' IS NOT NULL AS of_mart, ARRAY(SELECT json_array_elements_text(t.definition -> 'key')) AS key,
                         ARRAY(SELECT millrace_internal.definition_column(t.kind, t.id, a.attname::text) FROM pg_attribute a
                               WHERE a.attrelid = to_regclass(format('millrace_def.%s_%s', t.kind, t.id)) AND a.attname ~ '^:[gk][0-9]+$' ORDER BY a.attnum) AS groups
                  FROM millrace.target t JOIN millrace.target_source s ON s.target_id = t.id
                  WHERE s.staging_id = staging.id AND (t.kind = 'sink' OR t.kind = 'rule' AND t.definition ->> 'kind' = 'threshold') ORDER BY t.id LOOP
        IF target.kind = 'rule' THEN
            of_key := millrace_internal.erase_bears('x.key', target.key, cardinality(target.key) > 1, wanted, texts);
            of_group := millrace_internal.erase_bears('substring(x.occurrence FROM ''^(.*)@[^@]*$'')', target.groups, true, wanted, texts);
            EXECUTE format('WITH gone AS (DELETE FROM millrace.rule_alert x WHERE x.rule_id = %s AND (%s OR %s) RETURNING x.id) '
                           'INSERT INTO millrace_state.erase_alert SELECT g.id FROM gone g ON CONFLICT DO NOTHING', target.id, of_key, of_group);
            EXECUTE format('DELETE FROM millrace.rule_tag x WHERE x.rule_id = %s AND %s', target.id, of_key);
            EXECUTE format('DELETE FROM millrace.rule_state x WHERE x.rule_id = %s AND %s', target.id, millrace_internal.erase_bears('x.key', target.groups, true, wanted, texts));
            GET DIAGNOSTICS n = ROW_COUNT;
            states := states + n;
            -- Of a group that he has left before only the words tell.
            WITH emptied AS (UPDATE millrace.rule_alert a SET details = NULL WHERE a.rule_id = target.id AND EXISTS (SELECT FROM unnest(quoted) q WHERE position(q IN a.details::text) > 0) RETURNING a.id)
            INSERT INTO millrace_state.erase_alert SELECT e.id FROM emptied e ON CONFLICT DO NOTHING;
            CONTINUE;
        END IF;
        IF target.of_mart THEN
            messages := messages || ARRAY(SELECT m.id FROM millrace.outbox_message m WHERE m.sink_id = target.id AND EXISTS (SELECT FROM unnest(quoted) q WHERE position(q IN m.message::text) > 0));
        END IF;
        condition := CASE WHEN target.of_mart THEN millrace_internal.erase_bears('x.object', target.groups, true, wanted, texts)
                          ELSE format(CASE WHEN staging.definition ->> 'for_each' IS NULL THEN 'x.object = ANY (%L::text[])' ELSE 'regexp_replace(x.object, '', "-?[0-9]+"\]$'', '']'') = ANY (%L::text[])' END, lists) END;
        EXECUTE format('INSERT INTO millrace_state.erase_row SELECT %s, x.object FROM (SELECT m.object FROM millrace.outbox_message m WHERE m.sink_id = %1$s UNION '
                       'SELECT r.object FROM millrace.sink_row r WHERE r.sink_id = %1$s UNION SELECT f.object FROM millrace.sink_failure f WHERE f.sink_id = %1$s) AS x '
                       'WHERE %s ON CONFLICT DO NOTHING', target.id, condition);
        -- What had gone before, and was to be said later; or the sink sends nothing.
        EXECUTE format('WITH known AS (DELETE FROM millrace.sink_row x WHERE x.sink_id = %s AND %s RETURNING x.object, x.key, x.digest) '
                       'INSERT INTO millrace.outbox_message (channel_id, key, sink_id, object, erased, created_at) SELECT h.id, k.key, s.target_id, k.object, true, clock_timestamp() '
                       'FROM known k, millrace.sink s, millrace.channel h WHERE k.digest IS NOT NULL AND s.target_id = %1$s AND h.id = ANY (s.channels)', target.id, condition);
    END LOOP;
END
$$;
COMMENT ON FUNCTION millrace_internal.erase_called(millrace.staging, regclass, text[], text[], text[]) IS 'removes what rules and sinks know of groups and rows by what these are called';

-- The outbox: what was noted leaves it, and what was made of that.  Messages after the number `last` are those of the erasure itself.
CREATE FUNCTION millrace_internal.erase_outbox(last bigint, bearing bigint[]) RETURNS bigint
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    gone bigint[] := ARRAY(SELECT m.id FROM millrace.outbox_message m
                           -- What says that he was erased is still to be sent.
                           WHERE m.id <= last AND NOT m.erased AND (m.id = ANY (bearing) OR m.alert_id IN (SELECT a.id FROM millrace_state.erase_alert a)
                                                   OR (m.sink_id, m.object) IN (SELECT r.sink_id, r.object FROM millrace_state.erase_row r)));
    open bigint[];
    ended bigint[];
    errors text[];
    channels integer[] := ARRAY(SELECT DISTINCT m.channel_id FROM millrace.outbox_message m WHERE m.id = ANY (gone));
    removed bigint;
BEGIN
    -- What an alert tells that stays is what is so now.
    UPDATE millrace.rule_alert a SET details = s.state -> 'details'
    FROM millrace_state.erase_alert e, millrace.rule_state s WHERE a.id = e.id AND s.rule_id = a.rule_id AND s.state ->> 'occurrence' = a.occurrence;
    PERFORM millrace_internal.lock_channels(channels);
    -- What has not arrived is taken apart: the others in it wait to be sent again.  A worker that sends it just now finds that it is not his any more.
    open := ARRAY(SELECT d.id FROM millrace.delivery d
                  WHERE d.id IN (SELECT m.delivery_id FROM millrace.outbox_message m WHERE m.id = ANY (gone)) AND d.state IN ('claimed', 'ready', 'dead') ORDER BY d.id FOR UPDATE);
    DELETE FROM millrace.letter l USING millrace.delivery d WHERE d.id = ANY (open) AND l.channel_id = d.channel_id AND l.kind = 'delivery' AND l.position = d.id;
    UPDATE millrace.outbox_message m SET state = 'waiting', delivery_id = NULL WHERE m.delivery_id = ANY (open);
    WITH renewed AS (
        UPDATE millrace.outbox_message m SET message = millrace_internal.rule_message(r, a, m.message ->> 'state', a.details)::json
        FROM millrace.rule_alert a, millrace.rule r WHERE m.id = ANY (gone) AND m.state = 'waiting' AND a.id = m.alert_id AND r.target_id = a.rule_id RETURNING m.id
    ), deleted AS (
        DELETE FROM millrace.outbox_message m WHERE m.id = ANY (gone) AND (m.state <> 'waiting' OR NOT EXISTS (SELECT FROM millrace.rule_alert a WHERE a.id = m.alert_id)) RETURNING m.delivery_id
    )
    SELECT array_agg(DISTINCT d.delivery_id), count(*) INTO ended, removed FROM deleted d;
    -- Of what was sent no text stays.
    UPDATE millrace.delivery d SET payloads = array_fill(''::text, ARRAY[cardinality(d.payloads)]), key = m.key, messages = m.n
    FROM (SELECT o.delivery_id, (array_agg(o.key ORDER BY o.id))[1] AS key, count(*) AS n FROM millrace.outbox_message o WHERE o.delivery_id = ANY (ended) GROUP BY o.delivery_id) AS m
    WHERE d.id = m.delivery_id;
    WITH deleted AS (DELETE FROM millrace.delivery d WHERE d.id = ANY (open) OR (d.id = ANY (ended) AND NOT EXISTS (SELECT FROM millrace.outbox_message m WHERE m.delivery_id = d.id)) RETURNING d.id),
         attempts AS (DELETE FROM millrace.attempt a USING deleted d WHERE a.delivery_id = d.id RETURNING a.error)
    SELECT array_agg(DISTINCT a.error) INTO errors FROM attempts a WHERE a.error IS NOT NULL;
    UPDATE millrace.attempt a SET error = NULL WHERE a.delivery_id = ANY (ended);
    -- An endpoint may repeat what it was told.
    UPDATE millrace.channel_state s SET last_error = NULL WHERE s.channel_id = ANY (channels) AND s.last_error = ANY (errors);
    UPDATE millrace.outbox_message m SET erased = true FROM millrace_state.erase_row r WHERE m.id > last AND m.sink_id = r.sink_id AND m.object = r.object AND m.message IS NULL;
    DELETE FROM millrace.sink_failure f USING millrace_state.erase_row r WHERE f.sink_id = r.sink_id AND f.object = r.object;
    -- With at_most_every the time of what was deleted is kept for a while.
    DELETE FROM millrace.sink_row k USING millrace_state.erase_row r WHERE k.sink_id = r.sink_id AND k.object = r.object AND k.digest IS NULL;
    PERFORM millrace_internal.wake_delivery();
    DROP TABLE millrace_state.erase_rule_key, millrace_state.erase_alert, millrace_state.erase_row;
    RETURN removed;
END
$$;
COMMENT ON FUNCTION millrace_internal.erase_outbox(bigint, bigint[]) IS 'removes what an erasure has noted from the outbox, deliveries and dead letters of channels';
