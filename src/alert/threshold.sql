-- Rules on groups of marts: edges, tags, and what is done on a tick.

-- Whom a rule has tagged, since when and until when; "groups" of the mart hold for the key now.
CREATE TABLE millrace.rule_tag (
    rule_id integer NOT NULL REFERENCES millrace.rule ON DELETE CASCADE,
    key text NOT NULL COLLATE "C",
    since timestamptz NOT NULL,
    until timestamptz,
    groups bigint NOT NULL,
    PRIMARY KEY (rule_id, key)
) WITH (fillfactor = 80);
COMMENT ON TABLE millrace.rule_tag IS 'keys that rules have tagged; see the view millrace.tag';
SELECT pg_catalog.pg_extension_config_dump('millrace.rule_tag', '');

CREATE VIEW millrace.tag WITH (security_barrier) AS
SELECT t.definition ->> 'tag' AS tag, g.key, g.since, g.until, r.name AS rule, t.owner::text AS owner
FROM millrace.rule_tag g JOIN millrace.rule r ON r.target_id = g.rule_id JOIN millrace.target t ON t.id = r.target_id
WHERE millrace_internal.may_watch(t.owner);
COMMENT ON VIEW millrace.tag IS 'tags that rules keep: who has one, since when, and until when he had it';
COMMENT ON COLUMN millrace.tag.until IS 'NULL: the tag holds';
GRANT SELECT ON millrace.tag TO PUBLIC;

-- The statements that judge groups: those that are given, one array for each column (of groups without NULL, and of others), and all.
CREATE FUNCTION millrace_internal.threshold_statements(id integer, OUT chosen text, OUT chosen_null text, OUT whole text, OUT types oid[])
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    view text := format('millrace_def.rule_%s', id);
    names text[];
    selected text;
    given text;
    n integer;
BEGIN
    IF millrace_internal.mart_groups(m.id, m.owner) IS DISTINCT FROM ARRAY(
           SELECT millrace_internal.definition_column('rule', threshold_statements.id, a.attname) FROM pg_attribute a WHERE a.attrelid = view::regclass AND a.attname ~ '^:g[0-9]+$' ORDER BY a.attnum)
       FROM millrace.target m, millrace.target t WHERE t.id = threshold_statements.id AND m.id = (t.definition ->> 'mart')::integer THEN
        RAISE EXCEPTION 'the mart groups by other columns than before' USING ERRCODE = 'invalid_table_definition', HINT = 'create_rule(…, replace => true) takes them.';
    END IF;
    SELECT array_agg(g.type ORDER BY g.n), count(*) INTO types, n
    FROM (SELECT a.atttypid AS type, substr(a.attname, 3)::integer AS n FROM pg_attribute a WHERE a.attrelid = view::regclass AND a.attname ~ '^:g[0-9]+$') AS g;
    SELECT string_agg(CASE WHEN EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = view::regclass AND a.attname = u.c) THEN format('r.%I', u.c) ELSE 'NULL::text' END, ', ' ORDER BY u.n)
    INTO selected FROM unnest('{:here, :predicate, :key, :resolve, :details, :group}'::text[]) WITH ORDINALITY AS u (c, n);
    IF n = 0 THEN
        -- One group, which has no name.
        whole := format('SELECT %L, %s FROM %s AS r', 'all', selected, view);
        RETURN;
    END IF;
    -- A group is named by its values as JSON; numbers that are equal are one name, however many zeros they have.
    names := ARRAY(SELECT CASE types[g] WHEN 'numeric'::regtype THEN 'trim_scale(%s)' ELSE '%s' END FROM generate_series(1, n) AS g ORDER BY g);
    SELECT format('SELECT json_build_array(%s)::text, %s FROM unnest(%s) AS u (%s) LEFT JOIN %s AS r ON ', string_agg(format(names[g], format('u.g%s', g)), ', ' ORDER BY g), selected,
                  string_agg(format('$%s::%s[]', g, types[g]::regtype), ', ' ORDER BY g), string_agg(format('g%s', g), ', ' ORDER BY g), view)
    INTO given FROM generate_series(1, n) AS g;
    SELECT given || string_agg(format('r.":g%1$s" = u.g%1$s', g), ' AND ' ORDER BY g), given || string_agg(format('r.":g%1$s" IS NOT DISTINCT FROM u.g%1$s', g), ' AND ' ORDER BY g),
           format('SELECT json_build_array(%s)::text, %s FROM %s AS r', string_agg(format(names[g], format('r.":g%s"', g)), ', ' ORDER BY g), selected, view)
    INTO chosen, chosen_null, whole FROM generate_series(1, n) AS g;
END
$$;
COMMENT ON FUNCTION millrace_internal.threshold_statements(integer) IS 'the statements by which the groups of a mart are judged';

-- Counts anew how many groups hold for keys, and says who is tagged.  The keys' rows are locked first, and the groups counted afterwards: another worker
-- may have changed other groups of the same key (C4).
CREATE FUNCTION millrace_internal.tag_keys(id integer, keys text[], now timestamptz) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
BEGIN
    INSERT INTO millrace.rule_tag (rule_id, key, since, until, groups) SELECT DISTINCT tag_keys.id, k, now, now, 0 FROM unnest(keys) k ORDER BY k
    ON CONFLICT (rule_id, key) DO UPDATE SET groups = rule_tag.groups;
    UPDATE millrace.rule_tag g
    SET groups = n.groups, since = CASE WHEN n.groups > 0 AND g.until IS NOT NULL THEN now ELSE g.since END,
        until = CASE WHEN n.groups > 0 THEN NULL ELSE coalesce(g.until, now) END
    FROM (SELECT k.key, count(s.key) AS groups FROM (SELECT DISTINCT u AS key FROM unnest(keys) u) AS k
          LEFT JOIN millrace.rule_state s ON s.rule_id = tag_keys.id AND s.about = k.key AND s.state ->> 'occurrence' IS NOT NULL GROUP BY k.key) AS n
    WHERE g.rule_id = tag_keys.id AND g.key = n.key;
END
$$;
COMMENT ON FUNCTION millrace_internal.tag_keys(integer, text[], timestamptz) IS 'brings the tags of keys up to date with the groups that hold for them';

-- The message of an alert that goes on, or is over.
CREATE FUNCTION millrace_internal.rule_message(rule millrace.rule, alert millrace.rule_alert, state text, details json) RETURNS text
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp AS $$
    SELECT json_build_object('rule', rule.name, 'kind', rule.kind, 'severity', rule.severity, 'state', state, 'key', alert.key, 'occurrence', alert.occurrence,
        'event_time', alert.event_time, 'details', details, 'suppressed', millrace_internal.suppressed_since(alert.rule_id, alert.key, alert.id))::text
$$;
COMMENT ON FUNCTION millrace_internal.rule_message(millrace.rule, millrace.rule_alert, text, json) IS 'the message of an alert that goes on or is over';

-- Ends what holds for groups, and returns the messages that say so.
CREATE FUNCTION millrace_internal.resolve(id integer, groups text[], now timestamptz)
    RETURNS TABLE (channel_id integer, key text, group_by text, alert_id bigint, message text, not_after timestamptz)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    rule millrace.rule;
BEGIN
    SELECT r.* INTO STRICT rule FROM millrace.rule r WHERE r.target_id = resolve.id;
    RETURN QUERY
    WITH ended AS (
        DELETE FROM millrace.rule_state s WHERE s.rule_id = resolve.id AND s.key = ANY (groups) RETURNING s.key, s.state
    ), resolved AS (
        UPDATE millrace.rule_alert a SET resolved_at = now FROM ended e WHERE a.rule_id = resolve.id AND a.occurrence = e.state ->> 'occurrence' RETURNING a, e.state -> 'details' AS details
    )
    SELECT c.channel_id, (r.a).key, NULL::text, (r.a).id, millrace_internal.rule_message(rule, r.a, 'resolved', r.details), coalesce(now + rule.max_age, 'infinity')
    FROM resolved r CROSS JOIN LATERAL unnest(rule.channels) AS c (channel_id) JOIN millrace.channel x ON x.id = c.channel_id
    -- Who has not heard of it need not hear that it is over.
    WHERE rule.send_resolved AND (r.a).suppressed IS NULL;
END
$$;
COMMENT ON FUNCTION millrace_internal.resolve(integer, text[], timestamptz) IS 'ends what a rule has found of groups';

-- Follows the groups that a batch has touched: each element of the arrays is one of them as it is now, `there` false when it is gone.  With `whole` they are all that there are;
-- `history`: what holds of them did so before.  Returns messages.
CREATE FUNCTION millrace_internal.follow_groups(id integer, groups text[], there boolean[], truths boolean[], keys text[], resolves boolean[], details text[], group_bys text[], whole boolean, history boolean)
    RETURNS TABLE (channel_id integer, key text, group_by text, alert_id bigint, message text, not_after timestamptz)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    rule millrace.rule;
    definition json;
    now timestamptz := clock_timestamp();
    g record;
    rises text[] := '{}';
    rise_keys text[] := '{}';
    rise_details text[] := '{}';
    rise_groups text[] := '{}';
    occurrences text[] := '{}';
    ends text[] := '{}';
    pending json;
    touched text[] := '{}';
BEGIN
    SELECT r.* INTO STRICT rule FROM millrace.rule r WHERE r.target_id = follow_groups.id;
    SELECT t.definition INTO STRICT definition FROM millrace.target t WHERE t.id = follow_groups.id;
    FOR g IN
        SELECT coalesce(u.name, s.key) AS name, coalesce(u.there, false) AS there, coalesce(u.truth, false) AS truth, coalesce(u.key, '[null]') AS key, u.resolve, u.details, u.group_by, s.key IS NOT NULL AS known,
               s.state ->> 'occurrence' AS occurrence, s.about, s.state ->> 'details' AS old_details, s.state
        FROM unnest(groups, there, truths, keys, resolves, details, group_bys) AS u (name, there, truth, key, resolve, details, group_by)
        FULL JOIN (SELECT * FROM millrace.rule_state x WHERE x.rule_id = follow_groups.id AND (whole OR x.key = ANY (groups))) AS s ON s.key = u.name
        WHERE coalesce(u.truth, false) OR s.key IS NOT NULL ORDER BY 1
    LOOP
        IF g.occurrence IS NOT NULL THEN
            IF NOT g.there OR (CASE WHEN definition ->> 'resolve_when' IS NULL THEN NOT g.truth ELSE coalesce(g.resolve, false) END) THEN
                ends := ends || g.name;
                touched := touched || g.about;
            ELSIF g.details IS DISTINCT FROM g.old_details THEN
                UPDATE millrace.rule_state s SET state = json_build_object('occurrence', g.occurrence, 'details', g.details::json) WHERE s.rule_id = follow_groups.id AND s.key = g.name;
            END IF;
        ELSIF NOT g.truth THEN
            DELETE FROM millrace.rule_state s WHERE s.rule_id = follow_groups.id AND s.key = g.name;
        ELSIF definition ->> 'for_interval' IS NOT NULL AND NOT history THEN
            -- Not before it has held for so long; see rule_tick.
            pending := json_build_object('details', g.details::json, 'group_by', g.group_by);
            IF pending::text IS DISTINCT FROM g.state::text THEN
                INSERT INTO millrace.rule_state AS s (rule_id, key, about, state, at)
                VALUES (follow_groups.id, g.name, g.key, pending, now + (definition ->> 'for_interval')::bigint * interval '1 microsecond')
                ON CONFLICT (rule_id, key) DO UPDATE SET state = EXCLUDED.state;
            END IF;
        ELSE
            rises := rises || g.name;
            rise_keys := rise_keys || g.key;
            rise_details := rise_details || g.details;
            rise_groups := rise_groups || g.group_by;
            occurrences := occurrences || (g.name || '@' || now);
            touched := touched || g.key;
        END IF;
    END LOOP;
    RETURN QUERY SELECT * FROM millrace_internal.resolve(follow_groups.id, ends, now) WHERE ends <> '{}';
    RETURN QUERY SELECT * FROM millrace_internal.rise(follow_groups.id, rises, rise_keys, occurrences, rise_details, rise_groups, history, now) WHERE rises <> '{}';
    IF definition ->> 'tag' IS NOT NULL AND touched <> '{}' THEN
        PERFORM millrace_internal.tag_keys(follow_groups.id, touched, now);
    END IF;
END
$$;
COMMENT ON FUNCTION millrace_internal.follow_groups(integer, text[], boolean[], boolean[], text[], boolean[], text[], text[], boolean, boolean) IS
    'finds the edges of a rule among groups, writes alerts, states and tags, and returns what is to be sent';

-- Groups begin to hold.
CREATE FUNCTION millrace_internal.rise(id integer, groups text[], keys text[], occurrences text[], details text[], group_bys text[], history boolean, now timestamptz)
    RETURNS TABLE (channel_id integer, key text, group_by text, alert_id bigint, message text, not_after timestamptz)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
BEGIN
    INSERT INTO millrace.rule_state AS s (rule_id, key, about, state, at)
    SELECT rise.id, u.name, u.key, json_build_object('occurrence', u.occurrence, 'details', u.details::json), now + r.repeat_every
    FROM unnest(groups, keys, occurrences, details) AS u (name, key, occurrence, details), millrace.rule r WHERE r.target_id = rise.id ORDER BY u.name
    ON CONFLICT (rule_id, key) DO UPDATE SET about = EXCLUDED.about, state = EXCLUDED.state, at = EXCLUDED.at;
    RETURN QUERY SELECT * FROM millrace_internal.fire(rise.id, keys, occurrences, array_fill(now, ARRAY[cardinality(keys)]), details, group_bys, array_fill(history, ARRAY[cardinality(keys)]), NULL);
END
$$;
COMMENT ON FUNCTION millrace_internal.rise(integer, text[], text[], text[], text[], text[], boolean, timestamptz) IS 'notes that groups begin to hold, and writes their alerts';

-- Alerts of what still holds that are to be sent again, or for the first time because a silence or the cooldown of their key is over.
CREATE FUNCTION millrace_internal.still_held(id integer, now timestamptz)
    RETURNS TABLE (channel_id integer, key text, group_by text, alert_id bigint, message text, not_after timestamptz)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    rule millrace.rule;
    owner regrole;
BEGIN
    SELECT r.* INTO STRICT rule FROM millrace.rule r WHERE r.target_id = still_held.id;
    SELECT t.owner INTO STRICT owner FROM millrace.target t WHERE t.id = still_held.id;
    RETURN QUERY
    WITH held AS (
        SELECT s.key, s.at, s.state, a FROM millrace.rule_state s JOIN millrace.rule_alert a ON a.rule_id = s.rule_id AND a.occurrence = s.state ->> 'occurrence'
        WHERE s.rule_id = still_held.id AND (s.at <= now OR a.suppressed IN ('silence', 'cooldown'))
          AND a.acknowledged_at IS NULL AND a.suppressed IS DISTINCT FROM 'history'
          AND NOT millrace_internal.silenced(rule, owner, a.key, now)
          AND NOT (a.suppressed = 'cooldown' AND EXISTS (SELECT FROM millrace.rule_alert l WHERE l.rule_id = a.rule_id AND l.key = a.key AND l.told_at > now - rule.cooldown))
        ORDER BY s.key FOR NO KEY UPDATE OF s SKIP LOCKED
    ), due AS MATERIALIZED (
        -- The first of what a cooldown has kept back of a key begins the next one.
        SELECT h.key, h.state, h.a FROM (SELECT k.*, row_number() OVER (PARTITION BY (k.a).key ORDER BY (k.a).suppressed IS NOT DISTINCT FROM 'cooldown', (k.a).id) AS n FROM held k) AS h
        WHERE h.n = 1 OR (h.a).suppressed IS DISTINCT FROM 'cooldown'
    ), told AS (
        UPDATE millrace.rule_alert o SET suppressed = NULL, told_at = now FROM due h WHERE o.id = (h.a).id
    ), again AS (
        UPDATE millrace.rule_state s SET at = now + rule.repeat_every FROM due h WHERE s.rule_id = still_held.id AND s.key = h.key AND rule.repeat_every IS NOT NULL
    )
    SELECT c.channel_id, (h.a).key, NULL::text, (h.a).id, millrace_internal.rule_message(rule, h.a, 'firing', h.state -> 'details'), coalesce(now + rule.max_age, 'infinity')
    FROM due h CROSS JOIN LATERAL unnest(rule.channels) AS c (channel_id) JOIN millrace.channel x ON x.id = c.channel_id;
END
$$;
COMMENT ON FUNCTION millrace_internal.still_held(integer, timestamptz) IS 'the messages of a rule about what lasts';

-- What time brings: groups that have held long enough, and what still holds.
CREATE FUNCTION millrace_internal.threshold_tick(id integer)
    RETURNS TABLE (channel_id integer, key text, group_by text, alert_id bigint, message text, not_after timestamptz)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    now timestamptz := clock_timestamp();
    due record;
BEGIN
    -- Rows that a batch holds are the next tick's.
    SELECT array_agg(d.key ORDER BY d.key) AS groups, array_agg(d.about ORDER BY d.key) AS keys, array_agg(d.key || '@' || now ORDER BY d.key) AS occurrences,
           array_agg((d.state -> 'details')::text ORDER BY d.key) AS details, array_agg(d.state ->> 'group_by' ORDER BY d.key) AS group_bys
    INTO due FROM (SELECT s.* FROM millrace.rule_state s WHERE s.rule_id = threshold_tick.id AND s.at <= now AND s.state ->> 'occurrence' IS NULL ORDER BY s.key FOR NO KEY UPDATE SKIP LOCKED) AS d;
    IF due.groups IS NOT NULL THEN
        RETURN QUERY SELECT * FROM millrace_internal.rise(threshold_tick.id, due.groups, due.keys, due.occurrences, due.details, due.group_bys, false, now);
        IF EXISTS (SELECT FROM millrace.target t WHERE t.id = threshold_tick.id AND t.definition ->> 'tag' IS NOT NULL) THEN
            PERFORM millrace_internal.tag_keys(threshold_tick.id, due.keys, now);
        END IF;
    END IF;
    RETURN QUERY SELECT * FROM millrace_internal.still_held(threshold_tick.id, now);
END
$$;
COMMENT ON FUNCTION millrace_internal.threshold_tick(integer) IS 'what time brings to a rule on groups: returns what is to be sent';

-- A mart that has been filled or rebuilt is looked at as a whole, by sinks too.
CREATE FUNCTION millrace_internal.rules_renew(mart_id integer) RETURNS void
LANGUAGE sql
SET search_path = pg_catalog, pg_temp AS $$
    UPDATE millrace.target t SET state = 'new' WHERE t.kind IN ('rule', 'sink') AND (t.definition ->> 'mart')::integer = rules_renew.mart_id
$$;
COMMENT ON FUNCTION millrace_internal.rules_renew(integer) IS 'lets the rules and sinks on a mart look at all of its groups before the next batch';

-- A mart that goes takes the rules and sinks on it along, or stays.
CREATE FUNCTION millrace_internal.drop_rules_on(caller regrole, mart millrace.target, cascade boolean) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    on_it millrace.target;
BEGIN
    FOR on_it IN SELECT t.* FROM millrace.target t WHERE t.kind IN ('rule', 'sink') AND (t.definition ->> 'mart')::integer = mart.id ORDER BY t.id LOOP
        IF NOT cascade THEN
            RAISE EXCEPTION '% "%" is on mart %', on_it.kind, millrace_internal.target_name(on_it), mart.relation
                USING ERRCODE = 'dependent_objects_still_exist', HINT = 'millrace.drop_table(…, cascade => true) drops it, too.';
        END IF;
        PERFORM millrace_internal.drop_target(caller, on_it.id, true);
    END LOOP;
END
$$;
COMMENT ON FUNCTION millrace_internal.drop_rules_on(regrole, millrace.target, boolean) IS 'drops the rules and sinks on a mart, or refuses to';
