-- Rules: what is judged in the transaction that loads the data.
--
-- A rule is a target of the staging table that it reads (millrace.target of kind 'rule', whose relation is its definition view), so that it is
-- activated, filled with what was there before and dropped as other targets are.  Its expressions stand in millrace_def.rule_<id> under names that begin with a colon;
-- target.definition has what was declared.

CREATE TABLE millrace.rule (
    target_id integer PRIMARY KEY REFERENCES millrace.target ON DELETE CASCADE,
    name text NOT NULL UNIQUE,
    kind text NOT NULL CHECK (kind IN ('match', 'frequency', 'threshold', 'absence', 'health')),
    severity text NOT NULL CHECK (severity IN ('info', 'warning', 'critical')),
    rule_group text,
    ordinal integer,
    channels integer[] NOT NULL,
    max_age interval,
    cooldown interval,
    send_history boolean NOT NULL,
    -- Of rules on what lasts.
    repeat_every interval,
    send_resolved boolean NOT NULL,
    -- How long alerts are kept; NULL: for ever.
    retention interval,
    -- frequency: events that came too late for every window in which they would have been.
    late_dropped bigint NOT NULL DEFAULT 0,
    -- What happened before then was there before the rule was created or changed.
    since timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- What was loaded before then it had judged when it was suspended, until it has caught up; NULL: it was not, or had not judged what was there before.
    judged_until timestamptz,
    -- Why it is not judged, and since when; NULL: it is.
    suspended_at timestamptz,
    reason text,
    sqlstate text
);
COMMENT ON TABLE millrace.rule IS 'rules and how their alerts are sent; see the view millrace.rule_status';
CREATE INDEX ON millrace.rule (rule_group) WHERE rule_group IS NOT NULL;

-- What a rule knows of each key; apart from its alerts, which are kept for a time only.
CREATE TABLE millrace.rule_state (
    rule_id integer NOT NULL REFERENCES millrace.rule ON DELETE CASCADE,
    key text NOT NULL COLLATE "C",
    -- match: {"fired": version, "ended": version}
    -- threshold, health, of a group: {"occurrence": of its alert, "details": the last ones}; without occurrence: it does not hold long enough yet
    -- absence: {"occurrence": of the alert, "details": {"last": when the key was heard of last}}
    state json NOT NULL DEFAULT '{}',
    -- frequency: packed, see window.c and millrace_internal.rule_events().
    events bytea,
    -- frequency: the watermark; threshold, absence, health: when it is to be looked at again.
    at timestamptz,
    -- threshold, absence, health: the key of its alerts.
    about text COLLATE "C",
    PRIMARY KEY (rule_id, key)
) WITH (fillfactor = 80);
COMMENT ON TABLE millrace.rule_state IS 'what rules know of keys';
ALTER TABLE millrace.rule_state ALTER COLUMN events SET STORAGE EXTERNAL;
CREATE INDEX ON millrace.rule_state (rule_id, at) WHERE at IS NOT NULL;
CREATE INDEX ON millrace.rule_state (rule_id, about) WHERE about IS NOT NULL;

ALTER TABLE millrace.letter ADD FOREIGN KEY (rule_id) REFERENCES millrace.rule ON DELETE CASCADE;

CREATE FUNCTION millrace_internal.rule_events(events bytea) RETURNS TABLE ("time" timestamptz, object text, element integer, value text)
LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'millrace_rule_events';
COMMENT ON FUNCTION millrace_internal.rule_events(bytea) IS 'what stands in millrace.rule_state.events';
CREATE FUNCTION millrace_internal.events_without(events bytea, objects text[], ends bigint[] DEFAULT '{}') RETURNS bytea
LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'millrace_events_without';
COMMENT ON FUNCTION millrace_internal.events_without(bytea, text[], bigint[]) IS 'what is left of millrace.rule_state.events without the events of these objects and the windows that have fired and ended then (in microseconds since 2000)';

SELECT pg_catalog.pg_extension_config_dump('millrace.rule', '');
SELECT pg_catalog.pg_extension_config_dump('millrace.rule_state', '');

-- ---- declaring ---------------------------------------------------------------------------------------------

-- An expression for the text by which rows with these columns are told apart: the value of one column, else a JSON list.
CREATE FUNCTION millrace_internal.rule_key(relation regclass, label text, columns text[]) RETURNS text
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    texts text[];
BEGIN
    -- Numbers that are equal are one key, however many zeros they have.
    IF columns = '{}' THEN
        RETURN quote_literal('all');
    END IF;
    SELECT array_agg(format(CASE a.atttypid WHEN 'numeric'::regtype THEN 'pg_catalog.trim_scale(%I.%I)::pg_catalog.text' ELSE '%I.%I::pg_catalog.text' END, label, c) ORDER BY n) INTO texts
    FROM unnest(columns) WITH ORDINALITY AS u (c, n) JOIN pg_attribute a ON a.attrelid = relation AND a.attname = c;
    RETURN CASE WHEN cardinality(texts) = 1 THEN texts[1]
                ELSE format('pg_catalog.json_build_array(%s)::pg_catalog.text', array_to_string(texts, ', ')) END;
END
$$;
COMMENT ON FUNCTION millrace_internal.rule_key(regclass, text, text[]) IS 'an expression for the key of alerts';

-- Columns of the relation that a rule names, or an error.
CREATE FUNCTION millrace_internal.rule_columns(relation regclass, argument text, columns text[]) RETURNS void
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    missing text;
    near text;
BEGIN
    IF columns IS NULL THEN
        RETURN;
    END IF;
    PERFORM millrace_internal.vault_check_list(argument, columns);
    SELECT c INTO missing FROM unnest(columns) c
    WHERE NOT EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = relation AND a.attname = c AND a.attnum > 0 AND NOT a.attisdropped) LIMIT 1;
    IF FOUND THEN
        near := millrace_internal.nearest(missing, ARRAY(SELECT a.attname::text FROM pg_attribute a WHERE a.attrelid = relation AND a.attnum > 0 AND NOT a.attisdropped));
        IF near IS NULL THEN
            RAISE EXCEPTION '% has no column "%"', relation, missing USING ERRCODE = 'undefined_column';
        END IF;
        RAISE EXCEPTION '% has no column "%"', relation, missing USING ERRCODE = 'undefined_column', HINT = format('Perhaps you meant "%s".', near);
    END IF;
END
$$;
COMMENT ON FUNCTION millrace_internal.rule_columns(regclass, text, text[]) IS 'raises an error for columns that a relation does not have';

-- The key of a staging table's objects, as its columns are called now.
CREATE FUNCTION millrace_internal.staging_key(staging millrace.staging) RETURNS text[]
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp AS $$
    SELECT array_agg(millrace_internal.definition_column('staging', staging.id, c.name) ORDER BY n)
    FROM millrace_internal.staging_columns(staging.definition) WITH ORDINALITY AS c (name, type, in_key, technical, n) WHERE c.in_key AND NOT c.technical
$$;
COMMENT ON FUNCTION millrace_internal.staging_key(millrace.staging) IS 'the columns that identify an object of a staging table';

-- The query of a rule's definition view, as its owner means it.
CREATE FUNCTION millrace_internal.rule_query(owner regrole, source regclass, definition json, objects text[]) RETURNS text
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    label text := (SELECT c.relname FROM pg_class c WHERE c.oid = source);
    selected text;
BEGIN
    SELECT string_agg(format(E'(%s\n) AS %I', e.expression, ':' || e.name), ', ' ORDER BY e.n) INTO selected
    FROM (VALUES (1, 'key', millrace_internal.rule_key(source, label, ARRAY(SELECT json_array_elements_text(definition -> 'key')))),
                 (2, 'predicate', definition ->> 'predicate'),
                 (3, 'time', definition ->> 'event_time'),
                 (4, 'details', (SELECT 'pg_catalog.json_build_object(' || string_agg(format('%L::pg_catalog.text, %I.%I', d, label, d), ', ' ORDER BY n) || ')'
                                 FROM json_array_elements_text(definition -> 'details') WITH ORDINALITY AS u (d, n))),
                 (5, 'object', CASE WHEN definition ->> 'kind' NOT IN ('threshold', 'health') THEN millrace_internal.rule_key(source, label, objects) END),
                 (6, 'value', coalesce(definition ->> 'sum', definition ->> 'distinct_values')),
                 (7, 'resolve', definition ->> 'resolve_when'),
                 (8, 'here', CASE WHEN definition ->> 'kind' IN ('threshold', 'health') THEN 'true' END),
                 (9, 'group', CASE WHEN definition -> 'group_by' IS NOT NULL
                                   THEN millrace_internal.rule_key(source, label, ARRAY(SELECT json_array_elements_text(definition -> 'group_by'))) END)) AS e (n, name, expression)
    WHERE e.expression IS NOT NULL;
    IF definition ->> 'kind' IN ('threshold', 'health') THEN
        SELECT concat_ws(', ', selected, string_agg(format('%I.%I AS %I', label, o, ':g' || n), ', ' ORDER BY n)) INTO selected FROM unnest(objects) WITH ORDINALITY AS u (o, n);
    END IF;
    RETURN millrace_internal.qualified_query(owner, format('SELECT %s FROM %s AS %I', selected, source, label));
END
$$;
COMMENT ON FUNCTION millrace_internal.rule_query(regrole, regclass, json, text[]) IS 'the query of the definition view of a rule';

-- Makes the definition view of a rule, and checks its expressions.
CREATE FUNCTION millrace_internal.rule_define(id integer, owner regrole, query text) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    view text := format('millrace_def.rule_%s', id);
    wrong record;
BEGIN
    EXECUTE format('CREATE VIEW %s AS %s', view, query);
    SELECT substr(a.attname, 2) AS name, format_type(a.atttypid, a.atttypmod) AS type, w.type AS wanted INTO wrong
    FROM pg_attribute a JOIN (VALUES (':predicate', 'boolean'), (':resolve', 'boolean'), (':time', 'timestamp with time zone')) AS w (name, type) ON w.name = a.attname
    WHERE a.attrelid = view::regclass AND format_type(a.atttypid, a.atttypmod) <> w.type LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION '% must be %, not %', CASE wrong.name WHEN 'time' THEN 'event_time' WHEN 'resolve' THEN 'resolve_when' ELSE wrong.name END, wrong.wanted, wrong.type USING ERRCODE = 'datatype_mismatch';
    END IF;
    PERFORM millrace_internal.check_stable('rule', id);
    EXECUTE format('ALTER VIEW %s OWNER TO %s', view, owner);
END
$$;
COMMENT ON FUNCTION millrace_internal.rule_define(integer, regrole, text) IS 'makes the definition view of a rule';

CREATE FUNCTION millrace_internal.own_rule(caller regrole, name text) RETURNS millrace.rule
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    found millrace.rule;
    owner regrole;
    near text;
BEGIN
    SELECT r.* INTO found FROM millrace.rule r WHERE r.name = own_rule.name FOR NO KEY UPDATE;
    IF found.target_id IS NULL THEN
        near := millrace_internal.nearest(coalesce(own_rule.name, ''), ARRAY(
            SELECT r.name FROM millrace.rule r JOIN millrace.target t ON t.id = r.target_id WHERE pg_has_role(caller, t.owner, 'USAGE')));
        IF near IS NULL THEN
            RAISE EXCEPTION 'rule "%" does not exist', coalesce(own_rule.name, 'NULL') USING ERRCODE = 'undefined_object';
        END IF;
        RAISE EXCEPTION 'rule "%" does not exist', own_rule.name USING ERRCODE = 'undefined_object', HINT = format('Perhaps you meant "%s".', near);
    END IF;
    SELECT t.owner INTO owner FROM millrace.target t WHERE t.id = found.target_id;
    PERFORM millrace_internal.check_owner(caller, owner, format('rule "%s"', found.name));
    RETURN found;
END
$$;
COMMENT ON FUNCTION millrace_internal.own_rule(regrole, text) IS 'the rule of that name, locked, after checking that the role may change it';

-- The workers of all streams that a rule is judged in look again, or the manager.
CREATE FUNCTION millrace_internal.rule_changed(target_id integer) RETURNS void
LANGUAGE sql
SET search_path = pg_catalog, pg_temp AS $$
    SELECT millrace_internal.wake_delivery() FROM millrace.rule r WHERE r.target_id = rule_changed.target_id AND r.kind = 'health';
    SELECT millrace_internal.changed(g.stream_id)
    FROM (SELECT DISTINCT g.stream_id FROM millrace.target_source s JOIN millrace.staging g ON g.id = s.staging_id WHERE s.target_id = rule_changed.target_id) AS g
$$;
COMMENT ON FUNCTION millrace_internal.rule_changed(integer) IS 'tells the workers of a rule that it has changed';

-- Arguments that a kind of rule has not.
CREATE FUNCTION millrace_internal.rule_refuse(kind text, argument text, given boolean) RETURNS void
LANGUAGE plpgsql IMMUTABLE
SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF given THEN
        RAISE EXCEPTION 'a rule of kind % has no %', kind, argument USING ERRCODE = 'invalid_parameter_value';
    END IF;
END
$$;
COMMENT ON FUNCTION millrace_internal.rule_refuse(text, text, boolean) IS 'raises an error for an argument that a kind of rule has not';

CREATE FUNCTION millrace_internal.rule_positive(argument text, given interval) RETURNS void
LANGUAGE plpgsql IMMUTABLE
SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF given <= interval '0' THEN
        RAISE EXCEPTION '% must be positive, not %', argument, given USING ERRCODE = 'invalid_parameter_value';
    ELSIF given > interval '100 years' THEN
        RAISE EXCEPTION '% must be at most 100 years, not %', argument, given USING ERRCODE = 'invalid_parameter_value';
    END IF;
END
$$;
COMMENT ON FUNCTION millrace_internal.rule_positive(text, interval) IS 'raises an error for an interval that is none';

CREATE FUNCTION millrace_internal.create_rule(caller regrole, name text, kind text, source regclass, predicate text, key text[], details text[], channels text[], severity text,
    rule_group text, ordinal integer, again boolean, event_time text, group_by text[], count integer, distinct_values text, sum text, at_least numeric,
    within interval, lateness interval, max_ahead interval, resolve_when text, for_interval interval, tag text, forget interval, max_age interval, cooldown interval, repeat_every interval,
    send_resolved boolean, send_history boolean, retention interval, replace boolean) RETURNS void
LANGUAGE plpgsql
SET intervalstyle = 'postgres'
SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    present millrace.target;
    old millrace.rule;
    staging millrace.staging;
    owner regrole := caller;
    id integer;
    definition json;
    query text;
    channel_ids integer[] := '{}';
    mart millrace.target;
    objects text[];
    same_question boolean;
BEGIN
    IF name IS NULL OR name = '' THEN
        RAISE EXCEPTION 'a rule needs a name' USING ERRCODE = 'null_value_not_allowed';
    END IF;
    PERFORM millrace_internal.check_word('kind', kind, '{match, frequency, threshold, absence, health}');
    PERFORM millrace_internal.check_word('severity', severity, '{info, warning, critical}');
    source := coalesce(source, CASE kind WHEN 'health' THEN 'millrace.health'::regclass END);
    again := coalesce(again, false);
    send_resolved := coalesce(send_resolved, false);
    IF kind IN ('match', 'threshold', 'health') AND predicate IS NULL THEN
        RAISE EXCEPTION 'a rule of kind % needs a predicate', kind USING ERRCODE = 'null_value_not_allowed';
    END IF;
    PERFORM millrace_internal.rule_refuse(kind, a.name, a.given)
    FROM (VALUES ('resolve_when', resolve_when IS NOT NULL), ('for_interval', for_interval IS NOT NULL), ('tag', tag IS NOT NULL), ('forget', forget IS NOT NULL AND kind <> 'absence')) AS a (name, given)
    WHERE kind NOT IN ('threshold', 'health') OR a.name = 'forget' OR (kind = 'health' AND a.name = 'tag');
    PERFORM millrace_internal.rule_refuse(kind, a.name, a.given) FROM (VALUES ('repeat_every', repeat_every IS NOT NULL), ('send_resolved', send_resolved)) AS a (name, given)
    WHERE kind IN ('match', 'frequency');
    IF kind <> 'frequency' THEN
        PERFORM millrace_internal.rule_refuse(kind, a.name, a.given)
        FROM (VALUES ('count', count IS NOT NULL), ('distinct_values', distinct_values IS NOT NULL), ('sum', sum IS NOT NULL), ('at_least', at_least IS NOT NULL),
                     ('within', within IS NOT NULL AND kind <> 'absence'), ('lateness', lateness IS NOT NULL)) AS a (name, given);
    ELSE
        PERFORM millrace_internal.rule_refuse(kind, a.name, a.given) FROM (VALUES ('rule_group', rule_group IS NOT NULL), ('again', again)) AS a (name, given);
        IF key IS NULL OR within IS NULL THEN
            RAISE EXCEPTION 'a rule of kind % needs key and within', kind USING ERRCODE = 'null_value_not_allowed';
        END IF;
        IF (sum IS NULL) <> (at_least IS NULL) OR (sum IS NULL) = (count IS NULL) OR (sum IS NOT NULL AND distinct_values IS NOT NULL) OR count < 1 THEN
            RAISE EXCEPTION 'a rule of kind % needs count, from 1 on, or sum and at_least', kind USING ERRCODE = 'invalid_parameter_value',
                HINT = 'count => 5 is for five events, count => 5 with distinct_values => ''…'' for five values of an expression, sum => ''…'' with at_least => 1000 for a sum.';
        END IF;
        PERFORM millrace_internal.rule_positive('within', within);
        lateness := coalesce(lateness, within);
        IF sum IS NOT NULL THEN
            sum := format('(%s)::pg_catalog.numeric', sum);
        END IF;
    END IF;
    max_ahead := coalesce(max_ahead, interval '0');
    IF lateness NOT BETWEEN interval '0' AND interval '100 years' OR max_ahead NOT BETWEEN interval '0' AND interval '100 years' THEN
        RAISE EXCEPTION 'lateness and max_ahead must not be negative, nor more than 100 years' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF (rule_group IS NULL) <> (ordinal IS NULL) THEN
        RAISE EXCEPTION 'rule_group and ordinal belong together' USING ERRCODE = 'invalid_parameter_value',
            HINT = 'Of the rules of a group the first one that is true, in the order of ordinals, makes the alert.';
    END IF;
    IF again AND rule_group IS NOT NULL THEN
        RAISE EXCEPTION 'a rule that fires again cannot be in a group' USING ERRCODE = 'feature_not_supported';
    END IF;
    IF again AND key IS NOT NULL THEN
        RAISE EXCEPTION 'a rule that fires again is about the objects of its staging table: it has no key' USING ERRCODE = 'feature_not_supported';
    END IF;
    IF kind = 'absence' THEN
        IF within IS NULL THEN
            RAISE EXCEPTION 'a rule of kind absence needs within' USING ERRCODE = 'null_value_not_allowed', HINT = 'It says for how long nothing comes.';
        END IF;
        PERFORM millrace_internal.rule_positive('within', within);
        PERFORM millrace_internal.rule_positive('forget', forget);
    END IF;
    IF kind IN ('threshold', 'absence', 'health') THEN
        PERFORM millrace_internal.rule_refuse(kind, a.name, a.given)
        FROM (VALUES ('rule_group', rule_group IS NOT NULL), ('again', again), ('event_time', event_time IS NOT NULL AND kind <> 'absence'),
                     ('details', details IS NOT NULL AND kind = 'absence'), ('group_by', group_by IS NOT NULL AND kind = 'absence')) AS a (name, given);
        PERFORM millrace_internal.rule_positive('for_interval', for_interval);
        PERFORM millrace_internal.rule_positive('repeat_every', repeat_every);
    END IF;
    PERFORM millrace_internal.rule_positive('max_age', max_age);
    PERFORM millrace_internal.rule_positive('cooldown', cooldown);
    PERFORM millrace_internal.check_retention('retention', retention);

    SELECT r.* INTO old FROM millrace.rule r WHERE r.name = name FOR NO KEY UPDATE;
    IF FOUND THEN
        IF replace IS NOT TRUE THEN
            RAISE EXCEPTION 'rule "%" exists already', name USING ERRCODE = 'duplicate_object', HINT = 'replace => true changes it.';
        END IF;
        SELECT t.* INTO STRICT present FROM millrace.target t WHERE t.id = old.target_id FOR UPDATE;
        PERFORM millrace_internal.check_owner(caller, present.owner, format('rule "%s"', name));
        owner := present.owner;
    END IF;
    IF kind = 'threshold' THEN
        SELECT t.* INTO mart FROM millrace.target t WHERE t.relation = source AND t.kind = 'mart';
        IF mart.id IS NULL THEN
            RAISE EXCEPTION '% is not a mart', coalesce(source::text, 'NULL') USING ERRCODE = 'wrong_object_type', HINT = 'Rules of kind threshold are on groups of marts; millrace.create_mart() makes one.';
        END IF;
        PERFORM millrace_internal.check_reader(owner, source);
        IF (mart.definition ->> 'stripes')::integer > 1 THEN
            RAISE EXCEPTION 'a rule cannot be on mart %, whose groups are spread over stripes', source USING ERRCODE = 'feature_not_supported',
                DETAIL = 'Workers that change one group do not wait for each other, so that neither knows what it will be.';
        END IF;
        SELECT g.* INTO STRICT staging FROM millrace.target_source s JOIN millrace.staging g ON g.id = s.staging_id WHERE s.target_id = mart.id;
        objects := millrace_internal.mart_groups(mart.id, mart.owner);
    ELSIF kind = 'health' THEN
        objects := millrace_internal.health_key(source);
    ELSE
        staging := millrace_internal.vault_source(owner, source);
        objects := millrace_internal.staging_key(staging);
    END IF;
    key := coalesce(key, CASE WHEN kind = 'absence' THEN '{}' ELSE objects END);
    PERFORM millrace_internal.rule_columns(source, 'key', key) WHERE key <> '{}';
    IF kind IN ('threshold', 'health') AND NOT key <@ objects THEN
        RAISE EXCEPTION 'the key of a rule on % is of the columns that tell its rows apart', source USING ERRCODE = 'invalid_parameter_value', HINT = format('These are: %s.', array_to_string(objects, ', '));
    END IF;
    PERFORM millrace_internal.check_expression('resolve_when', resolve_when) WHERE resolve_when IS NOT NULL;
    PERFORM millrace_internal.rule_columns(source, 'details', details);
    PERFORM millrace_internal.rule_columns(source, 'group_by', group_by);
    PERFORM millrace_internal.check_expression('predicate', predicate) WHERE predicate IS NOT NULL;
    PERFORM millrace_internal.check_expression('sum', sum) WHERE sum IS NOT NULL;
    PERFORM millrace_internal.check_expression('distinct_values', distinct_values) WHERE distinct_values IS NOT NULL;
    PERFORM millrace_internal.check_expression('event_time', event_time) WHERE event_time IS NOT NULL;
    IF EXISTS (SELECT FROM millrace.rule r JOIN millrace.target t ON t.id = r.target_id JOIN millrace.target_source s ON s.target_id = r.target_id
               WHERE r.rule_group = rule_group AND r.target_id IS DISTINCT FROM old.target_id AND (s.staging_id <> staging.id OR t.owner <> owner OR r.ordinal = ordinal)) THEN
        RAISE EXCEPTION 'rule group "%" has another source or owner, or another rule with ordinal %', rule_group, ordinal USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF cardinality(channels) > 0 THEN
        channel_ids := millrace_internal.channel_ids(channels, owner);
    END IF;

    definition := json_strip_nulls(json_build_object('source', format('%I.%I', (SELECT n.nspname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = source),
        (SELECT c.relname FROM pg_class c WHERE c.oid = source)), 'predicate', predicate, 'key', to_json(key), 'details', to_json(details), 'group_by', to_json(group_by),
        'event_time', event_time, 'again', again, 'kind', kind, 'count', count, 'distinct_values', distinct_values, 'sum', sum, 'at_least', at_least::text,
        'within', (extract(epoch FROM within) * 1000000)::bigint, 'lateness', (extract(epoch FROM lateness) * 1000000)::bigint,
        'max_ahead', CASE WHEN kind IN ('frequency', 'absence') THEN (extract(epoch FROM max_ahead) * 1000000)::bigint END,
        'mart', mart.id, 'resolve_when', resolve_when, 'for_interval', (extract(epoch FROM for_interval) * 1000000)::bigint, 'tag', tag, 'forget', (extract(epoch FROM forget) * 1000000)::bigint,
        'of_objects', ARRAY(SELECT k FROM unnest(key) k ORDER BY k) = ARRAY(SELECT k FROM unnest(objects) k ORDER BY k)));
    query := millrace_internal.rule_query(owner, source, definition, objects);

    IF old.target_id IS NULL THEN
        id := nextval('millrace.target_id_seq');
        PERFORM millrace_internal.rule_define(id, owner, query);
        INSERT INTO millrace.target (id, kind, relation, owner, definition, horizon, state)
        VALUES (id, 'rule', to_regclass(format('millrace_def.rule_%s', id)), owner, definition, '-infinity', CASE kind WHEN 'health' THEN 'active' ELSE 'new' END);
        INSERT INTO millrace.target_source (target_id, staging_id, ordinal) SELECT id, staging.id, 1 WHERE kind <> 'health';
        INSERT INTO millrace.rule (target_id, name, kind, severity, rule_group, ordinal, channels, max_age, cooldown, repeat_every, send_resolved, send_history, retention)
        VALUES (id, name, kind, severity, rule_group, ordinal, channel_ids, max_age, cooldown, repeat_every, send_resolved, coalesce(send_history, false), retention);
        PERFORM millrace_internal.rule_changed(id);
        RETURN;
    END IF;

    id := old.target_id;
    -- What was asked; how it is told may change without asking again.
    same_question := to_regclass(format('millrace_def.rule_%s', id)) IS NOT NULL AND present.definition::text = definition::text
        AND (old.kind, old.rule_group, old.ordinal) IS NOT DISTINCT FROM (kind, rule_group, ordinal) AND old.suspended_at IS NULL;
    IF same_question AND (old.severity, old.channels, old.max_age, old.cooldown, old.repeat_every, old.send_resolved, old.send_history, old.retention)
                         IS NOT DISTINCT FROM (severity, channel_ids, max_age, cooldown, repeat_every, send_resolved, coalesce(send_history, false), retention) THEN
        RETURN;
    END IF;
    IF NOT same_question THEN
        IF old.kind <> kind OR present.definition ->> 'source' <> definition ->> 'source' OR (present.definition -> 'key')::text <> (definition -> 'key')::text
           OR kind IN ('frequency', 'absence') OR present.definition ->> 'tag' IS DISTINCT FROM tag THEN
            -- What it knows is of other keys, or is to be found again.
            DELETE FROM millrace.rule_state s WHERE s.rule_id = id;
            DELETE FROM millrace.rule_tag g WHERE g.rule_id = id;
        END IF;
        IF to_regclass(format('millrace_def.rule_%s', id)) IS NOT NULL THEN
            EXECUTE format('DROP VIEW millrace_def.rule_%s', id);
        END IF;
        PERFORM millrace_internal.rule_define(id, owner, query);
        PERFORM millrace_internal.rule_changed(id);
        DELETE FROM millrace.target_source s WHERE s.target_id = id;
        INSERT INTO millrace.target_source (target_id, staging_id, ordinal) SELECT id, staging.id, 1 WHERE kind <> 'health';
        UPDATE millrace.target t SET relation = to_regclass(format('millrace_def.rule_%s', id)), definition = definition, definition_no = t.definition_no + 1, state = CASE kind WHEN 'health' THEN 'active' ELSE 'new' END
        WHERE t.id = id;
        UPDATE millrace.rule r SET since = clock_timestamp(), judged_until = NULL, suspended_at = NULL, reason = NULL, sqlstate = NULL WHERE r.target_id = id;
    END IF;
    UPDATE millrace.rule r SET kind = kind, severity = severity, rule_group = rule_group, ordinal = ordinal, channels = channel_ids, max_age = max_age, cooldown = cooldown,
        repeat_every = repeat_every, send_resolved = send_resolved, send_history = coalesce(send_history, false), retention = retention
    WHERE r.target_id = id;
    PERFORM millrace_internal.rule_changed(id);
END
$$;
COMMENT ON FUNCTION millrace_internal.create_rule(regrole, text, text, regclass, text, text[], text[], text[], text, text, integer, boolean, text, text[], integer, text, text, numeric, interval, interval, interval, text, interval, text, interval, interval, interval, interval, boolean, boolean, interval, boolean) IS
    'the other half of millrace.create_rule()';

CREATE FUNCTION millrace.create_rule(name text, kind text, source regclass DEFAULT NULL, predicate text DEFAULT NULL, key text[] DEFAULT NULL, details text[] DEFAULT NULL,
    channels text[] DEFAULT '{}', severity text DEFAULT 'warning', rule_group text DEFAULT NULL, ordinal integer DEFAULT NULL, again boolean DEFAULT false,
    event_time text DEFAULT NULL, group_by text[] DEFAULT NULL, count integer DEFAULT NULL, distinct_values text DEFAULT NULL, sum text DEFAULT NULL, at_least numeric DEFAULT NULL,
    within interval DEFAULT NULL, lateness interval DEFAULT NULL, max_ahead interval DEFAULT '1 minute', resolve_when text DEFAULT NULL,
    for_interval interval DEFAULT NULL, tag text DEFAULT NULL, forget interval DEFAULT NULL, max_age interval DEFAULT '1 hour', cooldown interval DEFAULT NULL, repeat_every interval DEFAULT NULL,
    send_resolved boolean DEFAULT false, send_history boolean DEFAULT false,
    retention interval DEFAULT '90 days', replace boolean DEFAULT false) RETURNS void
LANGUAGE C AS 'MODULE_PATHNAME', 'millrace_declare';
COMMENT ON FUNCTION millrace.create_rule(text, text, regclass, text, text[], text[], text[], text, text, integer, boolean, text, text[], integer, text, text, numeric, interval, interval, interval, text, interval, text, interval, interval, interval, interval, boolean, boolean, interval, boolean) IS
    'declares a rule: a condition that is judged in the transaction that loads the data, and makes alerts';

CREATE FUNCTION millrace_internal.drop_target_rule(target_id integer) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    DELETE FROM millrace.target t WHERE t.id = target_id;
    IF to_regclass(format('millrace_def.rule_%s', target_id)) IS NOT NULL THEN
        EXECUTE format('DROP VIEW millrace_def.rule_%s', target_id);
    END IF;
END
$$;
COMMENT ON FUNCTION millrace_internal.drop_target_rule(integer) IS 'drops a rule with its state and its alerts';

CREATE FUNCTION millrace_internal.drop_rule(caller regrole, name text) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    dropped millrace.rule;
BEGIN
    PERFORM millrace_internal.lock_feeding(caller, ARRAY(SELECT t.relation FROM millrace.rule x JOIN millrace.target t ON t.id = x.target_id WHERE x.name = drop_rule.name));
    dropped := millrace_internal.own_rule(caller, name);
    PERFORM millrace_internal.drop_target(caller, dropped.target_id, false);
END
$$;
COMMENT ON FUNCTION millrace_internal.drop_rule(regrole, text) IS 'the other half of millrace.drop_rule()';
CREATE FUNCTION millrace.drop_rule(name text) RETURNS void
LANGUAGE C STRICT AS 'MODULE_PATHNAME', 'millrace_declare';
COMMENT ON FUNCTION millrace.drop_rule(text) IS 'drops a rule with what it knows and the alerts that it has made';

-- ---- suspension --------------------------------------------------------------------------------------------

-- Of several workers that cannot judge a rule the one whose batch was loaded first counts.
CREATE FUNCTION millrace_internal.suspend_rule(id integer, why text, sqlstate text, judged_until timestamptz) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    UPDATE millrace.rule r SET suspended_at = clock_timestamp(), reason = why, sqlstate = suspend_rule.sqlstate, judged_until = coalesce(suspend_rule.judged_until, r.judged_until)
    WHERE r.target_id = id AND r.suspended_at IS NULL;
    IF FOUND THEN
        PERFORM millrace_internal.rule_changed(id);
    ELSE
        UPDATE millrace.rule r SET judged_until = suspend_rule.judged_until WHERE r.target_id = id AND r.judged_until > suspend_rule.judged_until;
    END IF;
END
$$;
COMMENT ON FUNCTION millrace_internal.suspend_rule(integer, text, text, timestamptz) IS 'notes that a rule is not judged any more, and why';

-- What has come meanwhile is judged as if it came now, when the rule is filled again.
CREATE FUNCTION millrace_internal.retry_rule(caller regrole, name text) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    retried millrace.rule := millrace_internal.own_rule(caller, name);
BEGIN
    IF retried.suspended_at IS NULL THEN
        RAISE EXCEPTION 'rule "%" is not suspended', name USING ERRCODE = 'object_not_in_prerequisite_state';
    END IF;
    UPDATE millrace.rule r SET suspended_at = NULL, reason = NULL, sqlstate = NULL WHERE r.target_id = retried.target_id;
    UPDATE millrace.target t SET state = 'new' WHERE t.id = retried.target_id AND retried.kind <> 'health';
    PERFORM millrace_internal.rule_changed(retried.target_id);
END
$$;
COMMENT ON FUNCTION millrace_internal.retry_rule(regrole, text) IS 'the other half of millrace.retry_rule()';

CREATE FUNCTION millrace_internal.rule_filled(target_id integer) RETURNS void
LANGUAGE sql
SET search_path = pg_catalog, pg_temp AS $$
    UPDATE millrace.rule r SET judged_until = NULL WHERE r.target_id = rule_filled.target_id AND r.judged_until IS NOT NULL AND r.suspended_at IS NULL
$$;
COMMENT ON FUNCTION millrace_internal.rule_filled(integer) IS 'notes that a rule has judged what came while it was suspended';

CREATE FUNCTION millrace.retry_rule(name text) RETURNS void
LANGUAGE C STRICT AS 'MODULE_PATHNAME', 'millrace_declare';
COMMENT ON FUNCTION millrace.retry_rule(text) IS 'judges a suspended rule again, from what came when it was suspended';

REVOKE ALL ON FUNCTION millrace.create_rule(text, text, regclass, text, text[], text[], text[], text, text, integer, boolean, text, text[], integer, text, text, numeric, interval, interval, interval, text, interval, text, interval, interval, interval, interval, boolean, boolean, interval, boolean),
    millrace.drop_rule(text), millrace.retry_rule(text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION millrace.create_rule(text, text, regclass, text, text[], text[], text[], text, text, integer, boolean, text, text[], integer, text, text, numeric, interval, interval, interval, text, interval, text, interval, interval, interval, interval, boolean, boolean, interval, boolean),
    millrace.drop_rule(text), millrace.retry_rule(text) TO millrace_admin;

-- ---- seeing ------------------------------------------------------------------------------------------------

CREATE VIEW millrace.rule_status WITH (security_barrier) AS
SELECT r.name AS rule, r.kind, t.definition ->> 'source' AS source, r.severity, r.rule_group, r.ordinal,
       CASE WHEN r.suspended_at IS NOT NULL THEN 'suspended' ELSE t.state END AS state, r.reason, r.sqlstate, r.suspended_at, r.since,
       (SELECT count(*) FROM millrace.letter l WHERE l.rule_id = r.target_id AND l.state = 'open') AS errors, r.late_dropped, t.owner::text AS owner
FROM millrace.rule r JOIN millrace.target t ON t.id = r.target_id
WHERE millrace_internal.may_watch(t.owner);
COMMENT ON VIEW millrace.rule_status IS 'rules: whether they are judged, and why not';
COMMENT ON COLUMN millrace.rule_status.state IS
    'new until the first batch after the declaration, filling until what was there before has been judged, then active; suspended: see reason and retry_rule()';
COMMENT ON COLUMN millrace.rule_status.late_dropped IS 'frequency: events that came when all windows in which they would have been were over';
COMMENT ON COLUMN millrace.rule_status.errors IS 'rows that it could not judge; see rule_error';

CREATE VIEW millrace.rule_error WITH (security_barrier) AS
SELECT l.id, r.name AS rule, l.partition, l.position, nullif(l.element, 0) AS element, l.message_time, l.sqlstate, l.message, l.attempts, l.at
FROM millrace.letter l JOIN millrace.rule r ON r.target_id = l.rule_id JOIN millrace.target t ON t.id = r.target_id
WHERE l.state = 'open' AND millrace_internal.may_watch(t.owner);
COMMENT ON VIEW millrace.rule_error IS 'rows that rules could not judge, with the reason; the stream has gone on without these pairs, which are dead letters of kind rule';
GRANT SELECT ON millrace.rule_status, millrace.rule_error TO PUBLIC;
