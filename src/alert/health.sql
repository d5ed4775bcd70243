-- Rules on millrace itself: their groups are the rows of views, which the manager looks at about once a second.

-- The columns that tell the rows of a view apart on which there may be rules, or an error.
CREATE FUNCTION millrace_internal.health_key(source regclass) RETURNS text[]
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    key text[];
BEGIN
    SELECT v.key INTO key
    FROM (VALUES ('millrace.health', '{}'), ('millrace.stream_status', '{stream}'), ('millrace.worker_status', '{stream, worker}'), ('millrace.replication_status', '{stream}'),
                 ('millrace.channel_status', '{channel}'), ('millrace.rule_status', '{rule}'), ('millrace.sink_status', '{sink}'), ('millrace.dictionary_status', '{dictionary}')) AS v (name, key)
    WHERE to_regclass(v.name) = source;
    IF NOT FOUND THEN
        RAISE EXCEPTION '% is not a view of what millrace does', source USING ERRCODE = 'wrong_object_type',
            HINT = 'Rules of kind health are on millrace.health, stream_status, worker_status, replication_status, channel_status, rule_status, sink_status or dictionary_status.';
    END IF;
    RETURN key;
END
$$;
COMMENT ON FUNCTION millrace_internal.health_key(regclass) IS 'the columns that tell the rows of a view of what millrace does apart';

-- What a look at a view brings: edges, and what time brings.  Of a channel nothing is said over itself.
CREATE FUNCTION millrace_internal.follow_health(id integer, groups text[], there boolean[], truths boolean[], keys text[], resolves boolean[], details text[], group_bys text[])
    RETURNS TABLE (channel_id integer, key text, group_by text, alert_id bigint, message text, not_after timestamptz)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    on_channels boolean := (SELECT t.definition ->> 'source' = 'millrace.channel_status' FROM millrace.target t WHERE t.id = follow_health.id);
BEGIN
    RETURN QUERY SELECT m.* FROM millrace_internal.follow_groups(follow_health.id, groups, there, truths, keys, resolves, details, group_bys, true, false) m
                 JOIN millrace.channel c ON c.id = m.channel_id WHERE NOT (on_channels AND c.name = m.key);
    RETURN QUERY SELECT m.* FROM millrace_internal.threshold_tick(follow_health.id) m
                 JOIN millrace.channel c ON c.id = m.channel_id WHERE NOT (on_channels AND c.name = m.key);
END
$$;
COMMENT ON FUNCTION millrace_internal.follow_health(integer, text[], boolean[], boolean[], text[], boolean[], text[], text[]) IS
    'finds the edges of a rule on millrace itself, and returns what is to be sent';

-- Which rules the manager is to judge now: where nothing may be sent, as on a copy of the database, they are not judged.
CREATE FUNCTION millrace_internal.health_rules() RETURNS SETOF integer
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp AS $$
    SELECT r.target_id FROM millrace.rule r
    WHERE r.kind = 'health' AND (r.suspended_at IS NULL OR r.suspended_at < clock_timestamp() - interval '1 minute')
      AND (r.channels = '{}' OR EXISTS (SELECT FROM millrace.channel c WHERE c.id = ANY (r.channels) AND millrace_internal.may_send(c)))
    ORDER BY 1
$$;
COMMENT ON FUNCTION millrace_internal.health_rules() IS 'the rules on millrace itself that are to be judged now';

-- The manager does not wait long for who changes a rule.
CREATE FUNCTION millrace_internal.health_tick(id integer) RETURNS void
LANGUAGE C STRICT AS 'MODULE_PATHNAME', 'millrace_health_tick'
SET lock_timeout = '1s';
COMMENT ON FUNCTION millrace_internal.health_tick(integer) IS 'judges a rule on millrace itself';
