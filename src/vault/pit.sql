-- Point-in-time tables: for each key of a hub or link, and the end of each period, the rows of its satellites that were valid then.
--
-- What is kept (millrace_state.pit_<id>) are spans: from the end of one period (from_at) up to that of another (until_at, not included) the same rows are
-- valid.  So a key has rows for periods in which something changed, and none for those in which nothing did; the view that users see has one for
-- each period.  A row with from_at = -infinity holds for nothing: it is what workers lock who compute the spans of a key.
--   pit   {"parent": as of a satellite, "satellites": [target, …], "every": …, "timezone": …, "labels": [name before _hk, _applied_at, _hashdiff, …]}
-- millrace_def.pit_<id> is the plain query that the view equals.

-- Hours and minutes are equally long whatever clocks do, and begin as they did in 2020.  (The origin lies before all times, since date_bin() of some versions
-- is wrong for those before it.)  Days and longer periods begin at local times; one that comes twice is meant when it comes for the second time.
CREATE FUNCTION millrace_internal.pit_begin(every text, timezone text, at text) RETURNS text
LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp AS $$
    SELECT CASE WHEN every IN ('minute', 'hour')
                THEN format('date_bin(interval ''1 %s'', %s, timestamp ''2020-01-01'' AT TIME ZONE %L - interval ''50000000 hours'')', every, at, timezone)
                ELSE format('date_trunc(%L, %s AT TIME ZONE %L)', every, at, timezone) END
$$;
COMMENT ON FUNCTION millrace_internal.pit_begin(text, text, text) IS 'an expression for the beginning of the period in which a time lies, as it is counted on from';

CREATE FUNCTION millrace_internal.pit_length(every text) RETURNS text
LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp AS $$
    SELECT format('interval %L', CASE every WHEN 'quarter' THEN '3 months' ELSE '1 ' || every END)
$$;
COMMENT ON FUNCTION millrace_internal.pit_length(text) IS 'how long a period is';

-- The last moment of the period in which a time lies.  A local time at which it should have begun, and that is still to come, comes twice: then it is the end.
CREATE FUNCTION millrace_internal.pit_end(every text, timezone text, at text) RETURNS text
LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp AS $$
    SELECT CASE WHEN every IN ('minute', 'hour') THEN format('(%s + %s - interval ''1 microsecond'')', b.begin, b.length)
                ELSE format('((CASE WHEN %1$s AT TIME ZONE %2$L > %3$s THEN %1$s ELSE %1$s + %4$s END) AT TIME ZONE %2$L - interval ''1 microsecond'')', b.begin, timezone, at, b.length) END
    FROM (VALUES (millrace_internal.pit_begin(every, timezone, at), millrace_internal.pit_length(every))) AS b (begin, length)
$$;
COMMENT ON FUNCTION millrace_internal.pit_end(text, text, text) IS 'an expression for the end of the period in which a time lies';

-- "(SELECT …)" of the row of a satellite that is valid for a key at a time, and whether there is any row; both are expressions.
CREATE FUNCTION millrace_internal.pit_valid(satellite millrace.target, key text, at text) RETURNS text
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp AS $$
    SELECT format('(SELECT v.%1$s AS hash_key, v.%2$s AS applied_at, v.%3$s AS hashdiff, v.%5$s AS is_deleted FROM %6$s AS v WHERE v.%1$s = %7$s AND v.%2$s <= %8$s'
                  ' ORDER BY CASE WHEN v.%4$s <= %8$s THEN v.%4$s ELSE v.%2$s END DESC, v.%3$s DESC, v.%2$s LIMIT 1)',
                  c.hash_key, c.applied_at, c.hashdiff, c.confirmed_at, c.is_deleted, satellite.relation, key, at)
    FROM (SELECT quote_ident(millrace_internal.definition_column('satellite', satellite.id, 'hash_key')) AS hash_key,
                 quote_ident(millrace_internal.definition_column('satellite', satellite.id, 'applied_at')) AS applied_at,
                 quote_ident(millrace_internal.definition_column('satellite', satellite.id, 'hashdiff')) AS hashdiff,
                 quote_ident(millrace_internal.definition_column('satellite', satellite.id, 'confirmed_at')) AS confirmed_at,
                 quote_ident(millrace_internal.definition_column('satellite', satellite.id, 'is_deleted')) AS is_deleted) AS c
$$;
COMMENT ON FUNCTION millrace_internal.pit_valid(millrace.target, text, text) IS 'a sub-select of the row of a satellite that is valid at a time';

-- The key of the valid row in alias v<n>, or that of the ghost record.
CREATE FUNCTION millrace_internal.pit_key(n bigint) RETURNS text
LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp AS $$
    SELECT format('CASE WHEN NOT v%1$s.is_deleted THEN v%1$s.hash_key ELSE ''00000000-0000-0000-0000-000000000000''::uuid END AS s%1$s_hash_key, '
                  'CASE WHEN NOT v%1$s.is_deleted THEN v%1$s.applied_at ELSE ''1900-01-01 00:00:00+00''::timestamptz END AS s%1$s_applied_at, '
                  'CASE WHEN NOT v%1$s.is_deleted THEN v%1$s.hashdiff ELSE ''00000000-0000-0000-0000-000000000000''::uuid END AS s%1$s_hashdiff', n)
$$;
COMMENT ON FUNCTION millrace_internal.pit_key(bigint) IS 'the columns of a point-in-time table that refer to one satellite';

-- The columns that the table has for its satellites, under what prefix and in the view.
CREATE FUNCTION millrace_internal.pit_columns(labels json, prefix text, shown boolean) RETURNS text
LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp AS $$
    SELECT string_agg(format(CASE WHEN shown THEN '%1$ss%2$s_hash_key AS %3$I, %1$ss%2$s_applied_at AS %4$I, %1$ss%2$s_hashdiff AS %5$I' ELSE '%1$ss%2$s_hash_key, %1$ss%2$s_applied_at, %1$ss%2$s_hashdiff' END,
                             prefix, n, l || '_hk', l || '_applied_at', l || '_hashdiff'), ', ' ORDER BY n)
    FROM json_array_elements_text(labels) WITH ORDINALITY AS u (l, n)
$$;
COMMENT ON FUNCTION millrace_internal.pit_columns(json, text, boolean) IS 'the columns of a point-in-time table that refer to its satellites';

-- What the worker runs, on names as they are now: locking the keys $1; computing the spans of the keys $1 that something was said of at the times $2 or later (or since when what was confirmed then has been said); finding
-- the $2 keys after $1 of which something is said, or of which there are spans.  And parts of that: all keys of which something is said; "spans" as common table
-- expressions over "begun", which has keys k, since when they change (at), and the span of that time or NULL.
CREATE FUNCTION millrace_internal.pit_statements(target_id integer, OUT insert_keys text, OUT lock_keys text, OUT compute text, OUT next_keys text, OUT all_keys text, OUT spans text)
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    target millrace.target;
    state text := format('millrace_state.pit_%s', target_id);
    labels json;
    zeros text;
    assertions text;
    confirmed text;
    valid text;
    keys text;
    differ text;
BEGIN
    SELECT t.* INTO STRICT target FROM millrace.target t WHERE t.id = target_id;
    labels := target.definition -> 'labels';
    SELECT string_agg(format('%L, ''-infinity'', %L', '00000000-0000-0000-0000-000000000000', '00000000-0000-0000-0000-000000000000'), ', ') INTO zeros FROM json_array_elements(labels);
    insert_keys := format('INSERT INTO %s (hash_key, from_at, until_at, %s) SELECT u.k, ''-infinity'', ''-infinity'', %s FROM unnest($1) AS u (k) ON CONFLICT DO NOTHING',
                          state, millrace_internal.pit_columns(labels, '', false), zeros);
    lock_keys := format('SELECT FROM unnest($1) WITH ORDINALITY AS u (k, n) JOIN %s AS s ON s.hash_key = u.k AND s.from_at = ''-infinity'' ORDER BY u.n FOR NO KEY UPDATE OF s', state);

    SELECT string_agg(format('SELECT a.at FROM %1$s AS r CROSS JOIN LATERAL (VALUES (r.%2$I), (r.%3$I)) AS a (at) WHERE r.%4$I = b.k', s.relation,
                             millrace_internal.definition_column('satellite', s.id, 'applied_at'), millrace_internal.definition_column('satellite', s.id, 'confirmed_at'),
                             millrace_internal.definition_column('satellite', s.id, 'hash_key')), ' UNION ALL ' ORDER BY e.n),
           -- A row that has been confirmed says no more when it was before, which may have been after another row.
           string_agg(format('SELECT r.%2$I FROM %1$s AS r WHERE r.%4$I = u.k AND r.%2$I <= u.at AND r.%3$I >= u.at AND EXISTS (SELECT FROM %1$s AS o WHERE o.%4$I = u.k AND (o.%2$I, o.%5$I) <> (r.%2$I, r.%5$I) '
                             'AND (o.%2$I BETWEEN r.%2$I AND r.%3$I OR o.%3$I BETWEEN r.%2$I AND r.%3$I))', s.relation,
                             millrace_internal.definition_column('satellite', s.id, 'applied_at'), millrace_internal.definition_column('satellite', s.id, 'confirmed_at'),
                             millrace_internal.definition_column('satellite', s.id, 'hash_key'), millrace_internal.definition_column('satellite', s.id, 'hashdiff')), ' UNION ALL ' ORDER BY e.n),
           string_agg(format(' LEFT JOIN LATERAL %s AS v%s ON true', millrace_internal.pit_valid(s, 'p.k', 'p.at'), e.n), '' ORDER BY e.n),
           string_agg(millrace_internal.pit_key(e.n), ', ' ORDER BY e.n),
           string_agg(format('(SELECT DISTINCT r.%1$I FROM %2$s AS r WHERE r.%1$I > $1 ORDER BY 1 LIMIT $2)', millrace_internal.definition_column('satellite', s.id, 'hash_key'), s.relation), ' UNION ' ORDER BY e.n),
           string_agg(format('SELECT r.%1$I AS k FROM %2$s AS r WHERE r.%1$I <> %3$L', millrace_internal.definition_column('satellite', s.id, 'hash_key'), s.relation,
                             '00000000-0000-0000-0000-000000000000'), ' UNION ' ORDER BY e.n)
    INTO assertions, confirmed, valid, keys, next_keys, all_keys
    FROM json_array_elements_text(target.definition -> 'satellites') WITH ORDINALITY AS e (id, n) JOIN millrace.target s ON s.id = e.id::integer;
    SELECT string_agg(format('(c.s%1$s_hash_key, c.s%1$s_applied_at, c.s%1$s_hashdiff) IS DISTINCT FROM '
                             '(lag(c.s%1$s_hash_key) OVER w, lag(c.s%1$s_applied_at) OVER w, lag(c.s%1$s_hashdiff) OVER w)', n), ' OR ' ORDER BY n) INTO differ
    FROM json_array_elements(labels) WITH ORDINALITY AS u (l, n);

    next_keys := next_keys || format(' UNION (SELECT DISTINCT r.hash_key FROM %s AS r WHERE r.hash_key > $1 ORDER BY 1 LIMIT $2) ORDER BY 1 LIMIT $2', state);

    -- From the span on in which the first change falls: it ends elsewhere now.  It may have become part of the one before, so that spans never touch one that says the same.
    spans := format($sql$
points AS (SELECT b.k, e.at FROM begun AS b CROSS JOIN LATERAL (SELECT DISTINCT %1$s AS at FROM (%2$s) AS x (at)) AS e WHERE e.at >= coalesce(b.span, b.at)
           UNION SELECT b.k, b.span FROM begun AS b WHERE b.span IS NOT NULL),
computed AS (SELECT p.k, p.at, %3$s FROM points AS p%4$s
             UNION ALL SELECT b.k, o.* FROM begun AS b CROSS JOIN LATERAL (SELECT s.from_at, %6$s FROM %7$s AS s WHERE s.hash_key = b.k AND s.from_at < b.span AND s.from_at > '-infinity' ORDER BY s.from_at DESC LIMIT 1) AS o),
changed AS (SELECT c.*, row_number() OVER w = 1 OR %5$s AS is_new FROM computed AS c WINDOW w AS (PARTITION BY c.k ORDER BY c.at)),
spans AS MATERIALIZED (SELECT c.*, lead(c.at, 1, 'infinity') OVER (PARTITION BY c.k ORDER BY c.at) AS until_at FROM changed AS c WHERE c.is_new)$sql$,
        millrace_internal.pit_end(target.definition ->> 'every', target.definition ->> 'timezone', 'x.at'), assertions, keys, valid, differ,
        millrace_internal.pit_columns(labels, 's.', false), state);
    compute := format($sql$
WITH touched AS MATERIALIZED (SELECT u.k, %1$s AS at FROM unnest($1, $2) AS u (k, at) CROSS JOIN LATERAL (SELECT min(x.at) AS at FROM (%8$s) AS x (at)) AS c),
begun AS MATERIALIZED (SELECT t.k, t.at, (SELECT max(s.from_at) FROM %2$s AS s WHERE s.hash_key = t.k AND s.from_at <= t.at AND s.from_at > '-infinity') AS span FROM touched AS t),%3$s,
gone AS (DELETE FROM %2$s AS s USING begun AS b WHERE s.hash_key = b.k AND s.from_at >= coalesce(b.span, b.at) AND s.from_at > '-infinity' AND NOT EXISTS (SELECT FROM spans AS n WHERE n.k = s.hash_key AND n.at = s.from_at))
INSERT INTO %2$s AS s (hash_key, from_at, until_at, %4$s) SELECT n.k, n.at, n.until_at, %5$s FROM spans AS n
ON CONFLICT (hash_key, from_at) DO UPDATE SET (until_at, %4$s) = ROW(excluded.until_at, %6$s)
WHERE (s.until_at, %7$s) IS DISTINCT FROM (excluded.until_at, %6$s)$sql$,
        millrace_internal.pit_end(target.definition ->> 'every', target.definition ->> 'timezone', 'least(u.at, c.at)'), state, spans,
        millrace_internal.pit_columns(labels, '', false), millrace_internal.pit_columns(labels, 'n.', false), millrace_internal.pit_columns(labels, 'excluded.', false),
        millrace_internal.pit_columns(labels, 's.', false), confirmed);
END
$$;
COMMENT ON FUNCTION millrace_internal.pit_statements(integer) IS 'the statements that keep a point-in-time table';

-- The ends of all periods that have passed, as "at": from that of the first one that something is known of.
CREATE FUNCTION millrace_internal.pit_calendar(definition json, beginning text) RETURNS text
LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp AS $$
    SELECT format('(SELECT e.at FROM (%1$s) AS b (at), generate_series(%2$s, %3$s, %4$s) AS g (at), LATERAL (SELECT g.at%5$s - interval ''1 microsecond'') AS e (at) WHERE e.at >= b.at AND e.at < now())',
                  beginning, millrace_internal.pit_begin(p.every, p.timezone, 'b.at'), millrace_internal.pit_begin(p.every, p.timezone, 'now()'), millrace_internal.pit_length(p.every),
                  CASE WHEN p.every NOT IN ('minute', 'hour') THEN format(' AT TIME ZONE %L', p.timezone) ELSE '' END)
    FROM (VALUES (definition ->> 'every', definition ->> 'timezone')) AS p (every, timezone)
$$;
COMMENT ON FUNCTION millrace_internal.pit_calendar(json, text) IS 'a sub-select of the ends of periods';

-- The sources of a point-in-time table are those of its satellites, and so is its horizon.
CREATE FUNCTION millrace_internal.pit_sources(target_id integer) RETURNS void
LANGUAGE sql
SET search_path = pg_catalog, pg_temp AS $$
    DELETE FROM millrace.target_source s WHERE s.target_id = pit_sources.target_id;
    INSERT INTO millrace.target_source (target_id, staging_id, ordinal, columns)
    SELECT t.id, s.staging_id, row_number() OVER (ORDER BY s.staging_id, s.key), json_build_object('key', s.key)
    FROM millrace.target t, LATERAL (SELECT DISTINCT o.staging_id, (o.columns -> 'key')::jsonb AS key FROM millrace.target_source o
                                     WHERE o.target_id IN (SELECT e::integer FROM json_array_elements_text(t.definition -> 'satellites') e)) AS s
    WHERE t.id = pit_sources.target_id;
    UPDATE millrace.target t SET horizon = (SELECT max(greatest(s.horizon, s.redefined_at)) FROM millrace.target s WHERE s.id IN (SELECT e::integer FROM json_array_elements_text(t.definition -> 'satellites') e))
    WHERE t.id = pit_sources.target_id
$$;
COMMENT ON FUNCTION millrace_internal.pit_sources(integer) IS 'notes which staging tables feed a point-in-time table, and from when on it is complete';

-- The satellite's sources have changed, or it has been filled: what stands on it is to be computed anew before the next batch.
CREATE FUNCTION millrace_internal.pit_renew(satellite_id integer) RETURNS void
LANGUAGE sql
SET search_path = pg_catalog, pg_temp AS $$
    SELECT millrace_internal.pit_sources(t.id), millrace_internal.vault_changed(t.id)
    FROM millrace.target t WHERE t.kind = 'pit' AND t.id <> pit_renew.satellite_id AND EXISTS (SELECT FROM json_array_elements_text(t.definition -> 'satellites') e WHERE e::integer = pit_renew.satellite_id);
    UPDATE millrace.target t SET state = 'new'
    WHERE t.kind = 'pit' AND EXISTS (SELECT FROM json_array_elements_text(t.definition -> 'satellites') e WHERE e::integer = pit_renew.satellite_id)
$$;
COMMENT ON FUNCTION millrace_internal.pit_renew(integer) IS 'lets point-in-time tables on a satellite be computed anew';

CREATE FUNCTION millrace_internal.create_pit(caller regrole, name text, hub regclass, satellites regclass[], every text, timezone text, replace boolean) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    qualified text := millrace_internal.qualified_name(name);
    existing regclass := millrace_internal.relation(name);
    present millrace.target;
    parent millrace.target := millrace_internal.vault_base(caller, hub, hub::text, '{hub,link}');
    satellite millrace.target;
    one regclass;
    ids integer[] := '{}';
    labels text[] := '{}';
    label text;
    definition json;
    id integer;
    hash_key text;
    calendar text;
    valid text;
    keys text;
    beginnings text;
    all_keys text;
    any_row text;
BEGIN
    PERFORM millrace_internal.check_word('every', every, '{minute,hour,day,week,month,quarter,year}');
    IF NOT EXISTS (SELECT FROM pg_timezone_names z WHERE z.name = timezone) THEN
        RAISE EXCEPTION 'time zone "%" not recognized', coalesce(timezone, 'NULL') USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF coalesce(cardinality(satellites), 0) = 0 OR array_position(satellites, NULL) IS NOT NULL THEN
        RAISE EXCEPTION 'satellites must name at least one satellite, and none of them may be null' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    FOREACH one IN ARRAY satellites LOOP
        satellite := millrace_internal.vault_base(caller, one, one::text, '{satellite}');
        IF (satellite.definition #>> '{parent,id}')::integer <> parent.id THEN
            RAISE EXCEPTION 'satellite % does not belong to %', one, parent.relation USING ERRCODE = 'invalid_parameter_value';
        ELSIF satellite.definition ->> 'kind' = 'effectivity' OR satellite.definition ->> 'whole' = 'false' THEN
            RAISE EXCEPTION 'satellite % cannot be in a point-in-time table', one
                USING ERRCODE = 'feature_not_supported',
                      DETAIL = CASE WHEN satellite.definition ->> 'kind' = 'effectivity' THEN 'Its rows belong to the driving key.' ELSE 'Each of its sub-keys has rows of its own.' END,
                      HINT = format('Use %s().', satellite.definition ->> 'as_of');
        ELSIF satellite.id = ANY (ids) THEN
            RAISE EXCEPTION '% stands twice in satellites', one USING ERRCODE = 'invalid_parameter_value';
        END IF;
        label := (SELECT c.relname FROM pg_class c WHERE c.oid = one);
        IF label = ANY (labels) OR octet_length(label) > 52 THEN
            RAISE EXCEPTION 'satellites "%" would have the same columns', label USING ERRCODE = 'duplicate_column', HINT = 'Satellites of a point-in-time table need different names, of at most 52 bytes.';
        END IF;
        ids := ids || satellite.id;
        labels := labels || label;
    END LOOP;
    definition := json_build_object('parent', CASE parent.kind WHEN 'hub' THEN jsonb_build_object('id', parent.id, 'kind', parent.kind)
                                               ELSE jsonb_build_object('id', parent.id, 'kind', parent.kind, 'hubs', parent.definition -> 'hubs') END, 'satellites', ids, 'every', every, 'timezone', timezone, 'labels', labels);

    IF existing IS NOT NULL THEN
        SELECT t.* INTO present FROM millrace.target t WHERE t.relation = existing;
        IF present.kind IS DISTINCT FROM 'pit' THEN
            RAISE EXCEPTION '% exists already', existing USING ERRCODE = 'duplicate_table';
        END IF;
        PERFORM millrace_internal.check_owner(caller, present.owner, format('point-in-time table %s', existing));
        IF replace IS NOT TRUE THEN
            RAISE EXCEPTION 'point-in-time table % exists already', existing USING ERRCODE = 'duplicate_table', HINT = 'replace => true changes its definition.';
        ELSIF (present.definition::jsonb - 'labels') = (definition::jsonb - 'labels') THEN
            RETURN;
        END IF;
        -- Computed from satellites alone, it can be made again; views on it stand in the way.
        PERFORM millrace_internal.lock_feeding(caller, ARRAY[existing]);
        PERFORM millrace_internal.drop_target(caller, present.id, false);
        caller := present.owner;
    END IF;

    hash_key := millrace_internal.definition_column(parent.kind, parent.id, 'hash_key');
    id := nextval('millrace.target_id_seq');
    EXECUTE format('CREATE TABLE millrace_state.pit_%s (hash_key uuid NOT NULL, from_at timestamptz NOT NULL, until_at timestamptz NOT NULL, %s, PRIMARY KEY (hash_key, from_at)) WITH (fillfactor = 90)', id,
        (SELECT string_agg(format('s%1$s_hash_key uuid NOT NULL, s%1$s_applied_at timestamptz NOT NULL, s%1$s_hashdiff uuid NOT NULL', n), ', ' ORDER BY n) FROM generate_series(1, cardinality(ids)) n));
    EXECUTE format('CREATE INDEX pit_%1$s_from_at ON millrace_state.pit_%1$s (from_at)', id);
    EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON millrace_state.pit_%s TO %s', id, caller);

    calendar := millrace_internal.pit_calendar(definition, format('SELECT min(b.from_at) FROM millrace_state.pit_%s AS b WHERE b.from_at > ''-infinity''', id));
    PERFORM millrace_internal.execute_as(caller, format('CREATE VIEW %s AS SELECT s.hash_key AS %I, c.at AS snapshot_at, %s FROM %s AS c JOIN millrace_state.pit_%s AS s ON s.from_at <= c.at AND c.at < s.until_at',
        qualified, hash_key, millrace_internal.pit_columns(definition -> 'labels', 's.', true), calendar, id));
    PERFORM millrace_internal.execute_as(caller, format('COMMENT ON VIEW %s IS %L', qualified, format('which rows of satellites of %s were valid at the end of each %s', parent.relation, every)));
    INSERT INTO millrace.target (id, kind, relation, owner, definition) VALUES (id, 'pit', qualified::regclass, caller, definition);

    SELECT string_agg(format(' LEFT JOIN LATERAL %s AS v%s ON true', millrace_internal.pit_valid(s, 'p.k', 'c.at'), e.n), '' ORDER BY e.n),
           string_agg(millrace_internal.pit_key(e.n), ', ' ORDER BY e.n),
           string_agg(format('SELECT min(b.%I) FROM %s AS b WHERE b.%I <> %L', millrace_internal.definition_column('satellite', s.id, 'applied_at'), s.relation,
                             millrace_internal.definition_column('satellite', s.id, 'hash_key'), '00000000-0000-0000-0000-000000000000'), ' UNION ALL ' ORDER BY e.n),
           string_agg(format('SELECT DISTINCT b.%1$I AS k FROM %2$s AS b WHERE b.%1$I <> %3$L', millrace_internal.definition_column('satellite', s.id, 'hash_key'), s.relation, '00000000-0000-0000-0000-000000000000'), ' UNION ' ORDER BY e.n),
           string_agg(format('v%s.hash_key IS NOT NULL', e.n), ' OR ' ORDER BY e.n)
    INTO valid, keys, beginnings, all_keys, any_row
    FROM unnest(ids) WITH ORDINALITY AS e (id, n) JOIN millrace.target s ON s.id = e.id;
    EXECUTE format('CREATE VIEW millrace_def.pit_%s AS SELECT p.k AS %I, c.at AS snapshot_at, %s FROM %s AS c CROSS JOIN (%s) AS p%s WHERE %s', id, hash_key,
        -- The names of the view that users see.
        (SELECT string_agg(regexp_replace(regexp_replace(regexp_replace(millrace_internal.pit_key(n), 'AS s\d+_hash_key', format('AS %I', l || '_hk')),
                                                        'AS s\d+_applied_at', format('AS %I', l || '_applied_at')), 'AS s\d+_hashdiff', format('AS %I', l || '_hashdiff')), ', ' ORDER BY n)
         FROM unnest(labels) WITH ORDINALITY AS u (l, n)),
        millrace_internal.pit_calendar(definition, format('SELECT min(m.at) FROM (%s) AS m (at)', beginnings)), all_keys, valid, any_row);
    EXECUTE format('ALTER VIEW millrace_def.pit_%s OWNER TO %s', id, caller);
    PERFORM millrace_internal.pit_sources(id);
    PERFORM millrace_internal.vault_changed(id);
    IF existing IS NOT NULL THEN
        RAISE NOTICE 'the new definition of % is for all that its satellites say', qualified;
    END IF;
END
$$;
COMMENT ON FUNCTION millrace_internal.create_pit(regrole, text, regclass, regclass[], text, text, boolean) IS 'the other half of millrace.create_pit';

CREATE FUNCTION millrace.create_pit(name text, hub regclass, satellites regclass[], every text DEFAULT 'day', timezone text DEFAULT 'UTC', replace boolean DEFAULT false) RETURNS void
LANGUAGE C AS 'MODULE_PATHNAME', 'millrace_declare';
COMMENT ON FUNCTION millrace.create_pit(text, regclass, regclass[], text, text, boolean) IS
    'declares a point-in-time table: for each key of a hub or link and the end of each period, the keys of the satellites'' rows that were valid then';
REVOKE ALL ON FUNCTION millrace.create_pit(text, regclass, regclass[], text, text, boolean) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION millrace.create_pit(text, regclass, regclass[], text, text, boolean) TO millrace_admin;

-- ---- verify ------------------------------------------------------------------------------------------------

-- Its spans, as its satellites say they are: the snapshots of periods in which nothing happens are not looked at one by one.
CREATE FUNCTION millrace_internal.verify_pit(target_id integer, OUT missing bigint, OUT unexpected bigint, OUT example text)
LANGUAGE sql STRICT
SET search_path = pg_catalog, pg_temp AS $$
    SELECT c.* FROM millrace.target t, millrace_internal.pit_statements(t.id) p,
        LATERAL (SELECT millrace_internal.pit_columns(t.definition -> 'labels', 's.', true)) AS shown (columns),
        LATERAL millrace_internal.compare(t.owner, 'UTC',
            format('begun AS MATERIALIZED (SELECT a.k, ''-infinity''::timestamptz AS at, NULL::timestamptz AS span FROM (%1$s) AS a), %2$s, wanted AS MATERIALIZED (SELECT s.k AS hash_key, s.at AS from_at, s.until_at, %3$s FROM spans AS s), '
                   'found AS MATERIALIZED (SELECT s.hash_key, s.from_at, s.until_at, %3$s FROM millrace_state.pit_%4$s AS s WHERE s.from_at > ''-infinity'')',
                   p.all_keys, p.spans, shown.columns, t.id),
            'SELECT * FROM wanted EXCEPT ALL SELECT * FROM found', 'SELECT * FROM found EXCEPT ALL SELECT * FROM wanted') AS c
    WHERE t.id = target_id
$$;
COMMENT ON FUNCTION millrace_internal.verify_pit(integer) IS 'compares a point-in-time table with its satellites';

-- ---- describe ----------------------------------------------------------------------------------------------

CREATE FUNCTION millrace_internal.describe_pit(described millrace.target) RETURNS text
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp AS $$
    SELECT millrace_internal.readable_call('create_pit', millrace_internal.readable_name(described.relation), ARRAY[
        'hub => ' || millrace_internal.readable_literal(millrace_internal.readable_name((SELECT t.relation FROM millrace.target t WHERE t.id = (described.definition #>> '{parent,id}')::integer))),
        'satellites => ' || millrace_internal.readable_list(ARRAY(SELECT millrace_internal.readable_name(t.relation) FROM json_array_elements_text(described.definition -> 'satellites') WITH ORDINALITY AS e (id, n)
                                                                  JOIN millrace.target t ON t.id = e.id::integer ORDER BY e.n)),
        'every => ' || millrace_internal.readable_literal(described.definition ->> 'every'),
        'timezone => ' || millrace_internal.readable_literal(nullif(described.definition ->> 'timezone', 'UTC'))])
$$;
COMMENT ON FUNCTION millrace_internal.describe_pit(millrace.target) IS 'the SQL that declares a point-in-time table';
