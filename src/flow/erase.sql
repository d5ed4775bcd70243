-- Erasing a person: everything that the messages of his objects have left, as if they had never come.

CREATE FUNCTION millrace_internal.erase_staged(stream_id integer, staging_id integer, objects regclass) RETURNS bigint
LANGUAGE C STRICT AS 'MODULE_PATHNAME', 'millrace_erase_staged';
COMMENT ON FUNCTION millrace_internal.erase_staged(integer, integer, regclass) IS 'takes objects out of a staging table and the marts over it; returns how many rows these were';
CREATE FUNCTION millrace_internal.erase_reapply(stream_id integer, target_id integer, staging_id integer, versions regclass, heard boolean DEFAULT false) RETURNS void
LANGUAGE C STRICT AS 'MODULE_PATHNAME', 'millrace_erase_reapply';
COMMENT ON FUNCTION millrace_internal.erase_reapply(integer, integer, integer, regclass, boolean) IS
    'brings a target versions again that stand in a table like the log of its source; heard: notes only of which keys a rule hears by them';
CREATE FUNCTION millrace_internal.erase_messages(stream_id integer, staging_ids integer[], objects regclass[], OUT inbox bigint, OUT letters bigint)
LANGUAGE C STRICT AS 'MODULE_PATHNAME', 'millrace_erase_messages';
COMMENT ON FUNCTION millrace_internal.erase_messages(integer, integer[], regclass[]) IS
    'removes messages that speak of something erased from the inbox and the dead letters, and adds the objects that they are about to tables of objects';

-- What identifies the objects of a staging table: those of two tables with the same are the same.
CREATE FUNCTION millrace_internal.erase_identity(definition json) RETURNS text
LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp AS $$
    SELECT string_agg(concat_ws(' ', c -> 'paths', c ->> 'type', c ->> 'format'), ', ' ORDER BY n)
    FROM json_array_elements(definition -> 'columns') WITH ORDINALITY AS e (c, n) WHERE (c ->> 'key')::boolean
$$;
COMMENT ON FUNCTION millrace_internal.erase_identity(json) IS 'how a staging table finds the key of its objects in messages';

-- Columns of a staging table, given by their declared names, as they are called now: in its log, or in itself.
CREATE FUNCTION millrace_internal.erase_columns(staging millrace.staging, declared text[], in_log boolean) RETURNS text[]
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp AS $$
    SELECT array_agg(format('r.%I', CASE WHEN in_log AND EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = staging.log AND a.attname = d AND NOT a.attisdropped) THEN d
                                         ELSE millrace_internal.definition_column('staging', staging.id, d) END) ORDER BY n)
    FROM unnest(declared) WITH ORDINALITY AS u (d, n)
$$;
COMMENT ON FUNCTION millrace_internal.erase_columns(millrace.staging, text[], boolean) IS 'columns of a staging table or its log as they are called now';

-- The key columns of a staging table's objects by their declared names.
CREATE FUNCTION millrace_internal.erase_key(definition json) RETURNS text[]
LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp AS $$
    SELECT array_agg(c ->> 'name' ORDER BY n) FROM json_array_elements(definition -> 'columns') WITH ORDINALITY AS e (c, n) WHERE (c ->> 'key')::boolean
$$;
COMMENT ON FUNCTION millrace_internal.erase_key(json) IS 'the key columns of a staging table';

-- Is a row "r" of a staging table, or of its log, of an object "o"?
CREATE FUNCTION millrace_internal.erase_of(staging millrace.staging, in_log boolean) RETURNS text
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp AS $$
    SELECT string_agg(format('%s = o.k%s', c, n), ' AND ')
    FROM unnest(millrace_internal.erase_columns(staging, millrace_internal.erase_key(staging.definition), in_log)) WITH ORDINALITY AS u (c, n)
$$;
COMMENT ON FUNCTION millrace_internal.erase_of(millrace.staging, boolean) IS 'whether a row is of one of the objects that go';

-- The key that a row "r" of a source has for a hub or link, as an SQL expression.
CREATE FUNCTION millrace_internal.erase_hash(parent regclass, staging millrace.staging, columns json, in_log boolean) RETURNS text
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp AS $$
    SELECT format('millrace.hash_key(%L::regclass, %s)', parent, array_to_string(millrace_internal.erase_columns(staging,
        (SELECT array_agg(name ORDER BY h, n) FROM json_array_elements(columns -> 'key') WITH ORDINALITY AS k (part, h), json_array_elements_text(part) WITH ORDINALITY AS c (name, n)), in_log), ', '))
$$;
COMMENT ON FUNCTION millrace_internal.erase_hash(regclass, millrace.staging, json, boolean) IS 'how a row of a source is hashed for a hub or link';

-- Who has to may write a table of ours to work with, and no more: what happens when it is written is not theirs to say.
CREATE FUNCTION millrace_internal.erase_grant(work regclass, role regrole) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON %s TO %s', work, role);
END
$$;
COMMENT ON FUNCTION millrace_internal.erase_grant(regclass, regrole) IS 'lets a role write a table that an erasure works with';

-- A table of ours to work with, which is gone at the end.
CREATE FUNCTION millrace_internal.erase_table(name text, columns text, owners regrole[]) RETURNS regclass
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    work regclass;
BEGIN
    EXECUTE format('CREATE TABLE millrace_state.%I (%s)', name, columns);
    work := format('millrace_state.%I', name);
    PERFORM millrace_internal.erase_grant(work, o) FROM unnest(owners) o;
    RETURN work;
END
$$;
COMMENT ON FUNCTION millrace_internal.erase_table(text, text, regrole[]) IS 'makes a table for the time of an erasure';

-- A table like a staging table's log, with those of its versions of which a row "r" meets a condition.
CREATE FUNCTION millrace_internal.erase_versions(staging millrace.staging, condition text) RETURNS regclass
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    versions regclass := millrace_internal.erase_table('erase_versions', format('LIKE %s', staging.log), ARRAY[staging.owner]);
    identity text := array_to_string(millrace_internal.erase_columns(staging, millrace_internal.erase_key(staging.definition) || '{_partition,_position,_loaded_at}'::text[], true), ', ');
BEGIN
    PERFORM millrace_internal.execute_as(staging.owner, format('INSERT INTO %s SELECT r.* FROM %s AS r WHERE (%s) IN (SELECT %3$s FROM %2$s AS r WHERE %4$s)', versions, staging.log, identity, condition));
    RETURN versions;
END
$$;
COMMENT ON FUNCTION millrace_internal.erase_versions(millrace.staging, text) IS 'versions of a log, for the time of an erasure';

-- The staging tables of a stream in which somebody may be named by these columns.
CREATE FUNCTION millrace_internal.erase_named(feed millrace.stream, named millrace.staging, wanted text[]) RETURNS integer[]
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    ids integer[];
    computed text;
    known text[];
    near text;
BEGIN
    SELECT array_agg(g.id ORDER BY g.id) INTO ids FROM millrace.staging g
    WHERE g.stream_id = feed.id AND (named.id IS NULL OR g.id = named.id)
      AND wanted <@ ARRAY(SELECT c ->> 'name' FROM json_array_elements(g.definition -> 'columns') c);
    IF ids IS NULL THEN
        SELECT array_agg(DISTINCT c ->> 'name') INTO known FROM millrace.staging g, json_array_elements(g.definition -> 'columns') c
        WHERE g.stream_id = feed.id AND (named.id IS NULL OR g.id = named.id);
        SELECT millrace_internal.nearest(w, known) INTO near FROM unnest(wanted) w WHERE w <> ALL (coalesce(known, '{}')) ORDER BY 1 NULLS LAST LIMIT 1;
        RAISE EXCEPTION 'no staging table of % maps %', coalesce(named.relation::text, format('stream "%s"', feed.name)), (SELECT string_agg(format('"%s"', w), ', ') FROM unnest(wanted) w)
            USING ERRCODE = 'undefined_column',
                  HINT = CASE WHEN near IS NULL THEN format('Mapped columns are: %s.', array_to_string(known, ', ')) ELSE format('Perhaps you meant "%s".', near) END;
    END IF;
    SELECT c ->> 'name' INTO computed FROM millrace.staging g, json_array_elements(g.definition -> 'computed') c WHERE g.id = ANY (ids) AND c ->> 'name' = ANY (wanted);
    IF FOUND THEN
        RAISE EXCEPTION 'column "%" is computed', computed
            USING ERRCODE = 'feature_not_supported', DETAIL = 'Messages that come later are judged by what is mapped from them.',
                  HINT = 'Name the column that it is computed from.';
    END IF;
    RETURN ids;
END
$$;
COMMENT ON FUNCTION millrace_internal.erase_named(millrace.stream, millrace.staging, text[]) IS 'the staging tables in which columns name somebody';

-- Remembers the values in columns k1, k2, … of a table that an erasure works with.
CREATE FUNCTION millrace_internal.erase_remember(staging millrace.staging, columns text[], work regclass) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    EXECUTE format('INSERT INTO millrace.erasure (stream_id, staging_id, relation, columns, digest) SELECT $1, $2, $3, $4, millrace_internal.erasure_digest(%s) FROM %s AS o ON CONFLICT DO NOTHING',
        (SELECT string_agg(format('o.k%s', n), ', ' ORDER BY n) FROM generate_subscripts(columns, 1) n), work)
        USING staging.stream_id, staging.id, staging.relation::text, columns;
END
$$;
COMMENT ON FUNCTION millrace_internal.erase_remember(millrace.staging, text[], regclass) IS 'remembers values of columns of a staging table as erased';

-- The keys of a vault table that erased objects of one source have.
CREATE FUNCTION millrace_internal.erase_candidates(parent regclass, keys regclass, staging millrace.staging, columns json, objects regclass) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM millrace_internal.execute_as(staging.owner, format(
        'INSERT INTO %s SELECT DISTINCT k.key FROM (SELECT %s AS key FROM %s AS r JOIN %s AS o ON %s) AS k WHERE k.key <> %L ON CONFLICT DO NOTHING',
        keys, millrace_internal.erase_hash(parent, staging, columns, place.in_log), place.relation, objects,
        millrace_internal.erase_of(staging, place.in_log), '00000000-0000-0000-0000-000000000000'))
    FROM (VALUES (staging.relation, false), (staging.log, true)) AS place (relation, in_log) WHERE place.relation IS NOT NULL;
END
$$;
COMMENT ON FUNCTION millrace_internal.erase_candidates(regclass, regclass, millrace.staging, json, regclass) IS 'the keys of a vault table that objects have';

-- Hubs whose business key in a source is just what names him, and his key there.
CREATE FUNCTION millrace_internal.erase_hubs(matched integer[], wanted text[], given json) RETURNS TABLE (hub integer, hash_key uuid)
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    source record;
BEGIN
    FOR source IN SELECT t.id, t.relation, ARRAY(SELECT json_array_elements_text(s.columns #> '{key,0}')) AS columns, g AS staging
                  FROM millrace.target t JOIN millrace.target_source s ON s.target_id = t.id JOIN millrace.staging g ON g.id = s.staging_id
                  WHERE t.kind = 'hub' AND g.id = ANY (matched) LOOP
        IF source.columns @> wanted AND source.columns <@ wanted THEN
            hub := source.id;
            hash_key := millrace_internal.value_as((source.staging).owner, format('SELECT millrace.hash_key(%L::regclass, %s)', source.relation,
                (SELECT string_agg(format('CAST(%L AS %s)', given ->> d, c.type), ', ' ORDER BY n)
                 FROM unnest(source.columns) WITH ORDINALITY AS u (d, n) JOIN millrace_internal.staging_columns((source.staging).definition) c ON c.name = d)), NULL::uuid);
            RETURN NEXT;
        END IF;
    END LOOP;
END
$$;
COMMENT ON FUNCTION millrace_internal.erase_hubs(integer[], text[], json) IS 'the hubs of which what is given is the business key';

-- Adds what hangs on such a hub's key to the keys of a vault table that may go.
CREATE FUNCTION millrace_internal.erase_hanging(target millrace.target, keys regclass, named integer, named_key uuid) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    link millrace.target;
    part bigint;
BEGIN
    SELECT t.* INTO link FROM millrace.target t WHERE t.id = CASE target.kind WHEN 'satellite' THEN (target.definition #>> '{parent,id}')::integer ELSE target.id END;
    IF link.id = named THEN
        EXECUTE format('INSERT INTO %s VALUES (%L) ON CONFLICT DO NOTHING', keys, named_key);
    ELSIF link.kind = 'link' THEN
        FOR part IN SELECT h.n FROM json_array_elements(link.definition -> 'hubs') WITH ORDINALITY AS h (hub, n) WHERE (h.hub ->> 'id')::integer = named LOOP
            PERFORM millrace_internal.erase_grant(keys, link.owner);
            PERFORM millrace_internal.execute_as(link.owner, format('INSERT INTO %s SELECT l.%I FROM %s AS l WHERE l.%I = %L ON CONFLICT DO NOTHING',
                keys, millrace_internal.definition_column('link', link.id, 'hash_key'), link.relation, millrace_internal.definition_column('link', link.id, 'hub_' || part), named_key));
        END LOOP;
    END IF;
END
$$;
COMMENT ON FUNCTION millrace_internal.erase_hanging(millrace.target, regclass, integer, uuid) IS 'adds the keys of a vault table that hang on a hub''s key';

-- Takes those keys off the list that rows which stay still have; returns whether the logs tell all of it.
CREATE FUNCTION millrace_internal.erase_evidence(target millrace.target, parent regclass, keys regclass) RETURNS boolean
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    source record;
    complete boolean := true;
BEGIN
    FOR source IN SELECT g AS staging, s.columns FROM millrace.target_source s JOIN millrace.staging g ON g.id = s.staging_id WHERE s.target_id = target.id ORDER BY s.ordinal LOOP
        PERFORM millrace_internal.erase_grant(keys, (source.staging).owner);
        IF (source.staging).log IS NOT NULL THEN
            PERFORM millrace_internal.execute_as((source.staging).owner, format('DELETE FROM %s AS k WHERE k.key IN (SELECT %s FROM %s AS r WHERE r._rows > 0)',
                keys, millrace_internal.erase_hash(parent, source.staging, source.columns, true), (source.staging).log));
        END IF;
        IF (source.staging).log IS NULL OR (source.staging).log_since > '-infinity' THEN
            complete := false;
            PERFORM millrace_internal.execute_as((source.staging).owner, format('DELETE FROM %s AS k WHERE k.key IN (SELECT %s FROM %s AS r)',
                keys, millrace_internal.erase_hash(parent, source.staging, source.columns, false), (source.staging).relation));
        END IF;
    END LOOP;
    RETURN complete;
END
$$;
COMMENT ON FUNCTION millrace_internal.erase_evidence(millrace.target, regclass, regclass) IS 'which keys of a vault table are still in what its sources keep';

-- A hub or link: keys that nothing speaks of any more.
CREATE FUNCTION millrace_internal.erase_keys(target millrace.target, keys regclass) RETURNS bigint
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    link record;
BEGIN
    IF NOT millrace_internal.erase_evidence(target, target.relation, keys) AND target.kind = 'hub' THEN
        -- What no log tells any more a link may.
        FOR link IN SELECT t.id, t.relation, t.owner, h.n FROM millrace.target t, json_array_elements(t.definition -> 'hubs') WITH ORDINALITY AS h (hub, n)
                    WHERE t.kind = 'link' AND (h.hub ->> 'id')::integer = target.id LOOP
            PERFORM millrace_internal.erase_grant(keys, link.owner);
            PERFORM millrace_internal.execute_as(link.owner, format('DELETE FROM %s AS k WHERE k.key IN (SELECT l.%I FROM %s AS l)',
                keys, millrace_internal.definition_column('link', link.id, 'hub_' || link.n), link.relation));
        END LOOP;
    END IF;
    RETURN millrace_internal.execute_as(target.owner, format('DELETE FROM %s AS t USING %s AS k WHERE t.%I = k.key',
        target.relation, keys, millrace_internal.definition_column(target.kind, target.id, 'hash_key')));
END
$$;
COMMENT ON FUNCTION millrace_internal.erase_keys(millrace.target, regclass) IS 'removes keys of a hub or link that nothing speaks of any more';

-- A satellite: what was said of those keys goes, and what others have said of them is said again, if the logs know it.
CREATE FUNCTION millrace_internal.erase_assertions(target millrace.target, keys regclass, units regclass, complete boolean) RETURNS bigint
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    parent regclass := (SELECT t.relation FROM millrace.target t WHERE t.id = (target.definition #>> '{parent,id}')::integer);
    hash_key text := millrace_internal.definition_column('satellite', target.id, 'hash_key');
    source record;
    versions regclass;
    unit text;
    deleted bigint := 0;
BEGIN
    IF NOT complete THEN
        PERFORM millrace_internal.erase_evidence(target, parent, keys);
    END IF;
    IF units IS NOT NULL THEN
        -- What a version said of one link of a driving key it said of all of them.
        unit := millrace_internal.definition_column('satellite', target.id, 'driving_hk');
        IF complete THEN
            PERFORM millrace_internal.execute_as(target.owner, format('INSERT INTO %s SELECT DISTINCT t.%I FROM %s AS t JOIN %s AS k ON t.%I = k.key ON CONFLICT DO NOTHING',
                units, unit, target.relation, keys, hash_key));
            PERFORM millrace_internal.execute_as(target.owner, format('INSERT INTO %s SELECT DISTINCT t.%I FROM %s AS t JOIN %s AS u ON t.%I = u.key ON CONFLICT DO NOTHING',
                keys, hash_key, target.relation, units, unit));
        ELSE
            PERFORM millrace_internal.execute_as(h.owner, format('DELETE FROM %s AS u USING %s AS h WHERE h.%I = u.key', units, h.relation, millrace_internal.definition_column('hub', h.id, 'hash_key')))
            FROM millrace.target h WHERE h.id = (target.definition #>> ARRAY['parent', 'hubs', target.definition #>> '{driving,0}', 'id'])::integer;
        END IF;
        deleted := millrace_internal.execute_as(target.owner, format('DELETE FROM %s AS t USING %s AS u WHERE t.%I = u.key', target.relation, units, unit));
    END IF;
    deleted := deleted + millrace_internal.execute_as(target.owner, format('DELETE FROM %s AS t USING %s AS k WHERE t.%I = k.key AND k.key <> %L', target.relation, keys, hash_key,
        '00000000-0000-0000-0000-000000000000'));
    IF NOT complete THEN
        RETURN deleted;
    END IF;
    FOR source IN SELECT g AS staging, s.columns FROM millrace.target_source s JOIN millrace.staging g ON g.id = s.staging_id WHERE s.target_id = target.id ORDER BY s.ordinal LOOP
        PERFORM millrace_internal.erase_grant(keys, (source.staging).owner);
        versions := millrace_internal.erase_versions(source.staging, format('%s IN (SELECT k.key FROM %s AS k)', millrace_internal.erase_hash(parent, source.staging, source.columns, true), keys));
        PERFORM millrace_internal.erase_reapply((source.staging).stream_id, target.id, (source.staging).id, versions);
        EXECUTE format('DROP TABLE %s', versions);
    END LOOP;
    RETURN deleted - millrace_internal.execute_as(target.owner, format('SELECT FROM %s AS t JOIN %s AS k ON t.%I = k.key', target.relation, keys, hash_key));
END
$$;
COMMENT ON FUNCTION millrace_internal.erase_assertions(millrace.target, regclass, regclass, boolean) IS 'removes what erased objects have said from a satellite';

-- A point-in-time table: the spans of keys of which something has gone are computed anew.
CREATE FUNCTION millrace_internal.erase_spans(target millrace.target, lists text[]) RETURNS bigint
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    statements record := millrace_internal.pit_statements(target.id);
    list text;
    keys uuid[];
    deleted bigint := 0;
    left_over bigint;
BEGIN
    FOREACH list IN ARRAY lists LOOP
        EXECUTE format('WITH gone AS (DELETE FROM millrace_state.pit_%s AS s USING %s AS k WHERE s.hash_key = k.key RETURNING s.hash_key) SELECT array_agg(DISTINCT hash_key), count(*) FROM gone', target.id, list)
            INTO keys, left_over;
        deleted := deleted + left_over;
        CONTINUE WHEN keys IS NULL;
        EXECUTE statements.compute USING keys, array_fill('4000-01-01 00:00:00+00 BC'::timestamptz, ARRAY[cardinality(keys)]);
        EXECUTE format('SELECT count(*) FROM millrace_state.pit_%s AS s WHERE s.hash_key = ANY ($1)', target.id) INTO left_over USING keys;
        deleted := deleted - left_over;
    END LOOP;
    RETURN deleted;
END
$$;
COMMENT ON FUNCTION millrace_internal.erase_spans(millrace.target, text[]) IS 'computes a point-in-time table anew for the keys in lists';

CREATE FUNCTION millrace_internal.erase_models(stream_id integer) RETURNS SETOF millrace.model
LANGUAGE sql
SET search_path = pg_catalog, pg_temp AS $$
    SELECT m.* FROM millrace.model m WHERE NOT m.is_online AND EXISTS (SELECT FROM millrace_internal.model_sources(m.id) g WHERE g.stream_id = erase_models.stream_id)
$$;
COMMENT ON FUNCTION millrace_internal.erase_models(integer) IS 'the models that are trained on what a stream has brought';

-- What versions of a model and its evaluation set remember of users or entities that its query gives no more.  Hashes are those of a training.
CREATE FUNCTION millrace_internal.erase_model(model millrace.model) RETURNS bigint
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp SET timezone = 'UTC' SET datestyle = 'ISO, YMD' SET intervalstyle = 'postgres' SET extra_float_digits = 1 SET bytea_output = 'hex' AS $$
DECLARE
    state text := format('millrace_state.model_%s', model.id);
    present regclass;
    deleted bigint;
    more bigint := 0;
BEGIN
    -- One that was declared meanwhile.
    PERFORM FROM millrace.model m WHERE m.id = model.id FOR UPDATE;
    present := millrace_internal.erase_table('erase_present_' || model.id,
        (SELECT format('id %s%s PRIMARY KEY', format_type(a.atttypid, a.atttypmod), CASE WHEN a.attcollation <> 0 THEN ' COLLATE "C"' END)
         FROM pg_attribute a WHERE a.attrelid = (state || '_test')::regclass AND a.attnum = 1), ARRAY[model.owner]);
    PERFORM millrace_internal.execute_as(model.owner, format('INSERT INTO %s SELECT DISTINCT p.id FROM (SELECT %s AS id FROM millrace_def.model_%s AS v) AS p WHERE p.id IS NOT NULL',
        present, CASE model.kind WHEN 'item_knn' THEN 'v.user_id' ELSE millrace_internal.trees_hash(model, 0) END, model.id));
    EXECUTE format('DELETE FROM %s_test AS t WHERE NOT EXISTS (SELECT FROM %s AS p WHERE p.id = t.%s)', state, present, CASE model.kind WHEN 'item_knn' THEN 'user_id' ELSE 'entity' END);
    GET DIAGNOSTICS deleted = ROW_COUNT;
    IF model.kind = 'item_knn' THEN
        EXECUTE format('WITH gone AS (DELETE FROM %s_user AS u WHERE NOT EXISTS (SELECT FROM %s AS p WHERE p.id = u.user_id) RETURNING u.version, u.user_id, cardinality(u.items) AS n), '
                       'less AS (UPDATE millrace.model_version AS v SET users = v.users - g.users, pairs = v.pairs - g.pairs '
                       'FROM (SELECT l.version, count(DISTINCT l.user_id) AS users, sum(l.n) AS pairs FROM gone AS l GROUP BY l.version) AS g WHERE v.model_id = $1 AND v.version = g.version) '
                       'SELECT count(*) FROM gone', state, present) INTO more USING model.id;
    ELSE
        EXECUTE format('WITH kept AS (SELECT e.version, e.block, ARRAY(SELECT h FROM unnest(e.entities) AS h WHERE h IN (SELECT p.id FROM %2$s AS p) ORDER BY h) AS entities FROM %1$s_entity AS e), '
                       'less AS (UPDATE %1$s_entity AS e SET entities = k.entities FROM kept AS k WHERE (k.version, k.block) = (e.version, e.block) AND k.entities <> e.entities RETURNING cardinality(k.entities) AS n, e.version, e.block) '
                       'SELECT coalesce(sum(cardinality(o.entities) - l.n), 0) FROM less AS l JOIN %1$s_entity AS o USING (version, block)', state, present) INTO more;
    END IF;
    EXECUTE format('DROP TABLE %s', present);
    RETURN deleted + more;
END
$$;
COMMENT ON FUNCTION millrace_internal.erase_model(millrace.model) IS 'takes those out of what versions of a model remember whom its query gives no more';

-- millrace.erase()
CREATE FUNCTION millrace_internal.erase(caller regrole, name text, key json) RETURNS TABLE (relation text, rows bigint)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    feed millrace.stream;
    named millrace.staging;
    wanted text[];
    matched integer[];
    locked integer[];
    owners regrole[];
    staging millrace.staging;
    target millrace.target;
    model millrace.model;
    source record;
    parent regclass;
    objects jsonb := '{}'; -- by identity, the table of the objects that go
    keys jsonb := '{}'; -- by target, the table of the keys that may go
    identity text;
    condition text;
    columns text;
    complete boolean;
    earlier record;
    messages record;
    more record;
    ids integer[];
    tables regclass[];
    given regclass;
    staged bigint;
    texts text[];
    last bigint;
    alerts boolean;
    known bigint := 0;
    called record;
    bearing bigint[] := '{}';
    quoted text[];
BEGIN
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'erase() needs isolation level READ COMMITTED'
            USING ERRCODE = 'active_sql_transaction', HINT = 'Begin the transaction with BEGIN ISOLATION LEVEL READ COMMITTED.';
    END IF;
    SELECT s.* INTO feed FROM millrace.stream s WHERE s.name = erase.name;
    IF feed.id IS NULL THEN
        SELECT g.* INTO named FROM millrace.staging g WHERE g.relation = millrace_internal.relation(erase.name);
        SELECT s.* INTO feed FROM millrace.stream s WHERE s.id = named.stream_id;
    END IF;
    -- Trainings that have read him end first, and none begins; streams need not wait for that.
    IF pg_has_role(caller, feed.owner, 'MEMBER') THEN
        PERFORM FROM millrace.model m WHERE m.id IN (SELECT e.id FROM millrace_internal.erase_models(feed.id) e) ORDER BY m.id FOR UPDATE;
    END IF;
    -- Everybody who writes what is fed by this stream waits; in one order, as activations do, and before its row is locked, which workers change.
    IF pg_has_role(caller, feed.owner, 'MEMBER') THEN
        SELECT array_agg(DISTINCT o.stream_id ORDER BY o.stream_id) INTO locked
        FROM millrace.staging g JOIN millrace.target_source s ON s.staging_id = g.id JOIN millrace.target_source os ON os.target_id = s.target_id JOIN millrace.staging o ON o.id = os.staging_id
        WHERE g.stream_id = feed.id;
        locked := ARRAY(SELECT DISTINCT l FROM unnest(locked || feed.id) l ORDER BY l);
        PERFORM millrace_internal.lock_stream(l, true) FROM unnest(locked) l;
    END IF;
    feed := millrace_internal.own_stream(caller, coalesce(feed.name, erase.name));
    PERFORM millrace_internal.check_members('key', key, NULL);
    wanted := ARRAY(SELECT k FROM json_object_keys(key) k);
    IF coalesce(cardinality(wanted), 0) = 0 OR EXISTS (SELECT FROM json_each(key) e WHERE json_typeof(e.value) NOT IN ('string', 'number', 'boolean')) THEN
        RAISE EXCEPTION 'key must give a value to at least one column: %', coalesce(key::text, 'NULL')
            USING ERRCODE = 'invalid_parameter_value', HINT = 'For example ''{"user_id": "u1"}''.';
    END IF;
    matched := millrace_internal.erase_named(feed, named, wanted);
    owners := ARRAY(SELECT DISTINCT g.owner FROM millrace.staging g WHERE g.stream_id = feed.id);

    alerts := EXISTS (SELECT FROM millrace.target t JOIN millrace.target_source s ON s.target_id = t.id JOIN millrace.staging g ON g.id = s.staging_id
                      WHERE t.kind IN ('rule', 'sink') AND g.stream_id = feed.id);

    -- What waits here and speaks of something erased before never came: it must not say whose an object is, whenever it would have been read.
    earlier := millrace_internal.erase_messages(feed.id, '{}', '{}');

    -- The objects, by what identifies them, and what is remembered of them.
    FOR staging IN SELECT g.* FROM millrace.staging g WHERE g.id = ANY (matched) ORDER BY g.id LOOP
        identity := millrace_internal.erase_identity(staging.definition);
        IF objects ->> identity IS NULL THEN
            SELECT string_agg(format('k%s %s', n, c.type), ', ' ORDER BY n), string_agg(format('k%s', n), ', ' ORDER BY n) INTO condition, columns
            FROM millrace_internal.staging_columns(staging.definition) WITH ORDINALITY AS c (name, type, in_key, technical, n) WHERE c.in_key AND NOT c.technical;
            objects := objects || jsonb_build_object(identity, millrace_internal.erase_table('erase_objects_' || staging.id, format('%s, PRIMARY KEY (%s)', condition, columns), owners)::text);
        END IF;
        FOR source IN SELECT p.relation, p.in_log FROM (VALUES (staging.relation, false), (staging.log, true)) AS p (relation, in_log) WHERE p.relation IS NOT NULL LOOP
            SELECT string_agg(format('%s = CAST(%L AS %s)', (millrace_internal.erase_columns(staging, ARRAY[w], source.in_log))[1], key ->> w, c.type), ' AND ') INTO condition
            FROM unnest(wanted) w JOIN millrace_internal.staging_columns(staging.definition) c ON c.name = w;
            columns := array_to_string(millrace_internal.erase_columns(staging, millrace_internal.erase_key(staging.definition), source.in_log), ', ');
            PERFORM millrace_internal.execute_as(staging.owner, format('INSERT INTO %s SELECT DISTINCT %s FROM %s AS r WHERE %s ON CONFLICT DO NOTHING',
                objects ->> identity, columns, source.relation, condition));
        END LOOP;
        SELECT millrace_internal.erase_table('erase_given_' || staging.id, string_agg(format('k%s %s', n, c.type), ', ' ORDER BY n), ARRAY[staging.owner]), string_agg(format('CAST(%L AS %s)', key ->> w, c.type), ', ' ORDER BY n)
            INTO given, condition
            FROM unnest(wanted) WITH ORDINALITY AS u (w, n) JOIN millrace_internal.staging_columns(staging.definition) c ON c.name = w;
        PERFORM millrace_internal.execute_as(staging.owner, format('INSERT INTO %s VALUES (%s)', given, condition));
        PERFORM millrace_internal.erase_remember(staging, wanted, given);
        EXECUTE format('DROP TABLE %s', given);
    END LOOP;
    -- What nobody has read yet, or could; some of what it is about may be staged all the same, where its error did not matter.
    SELECT array_agg(g.id), array_agg((objects ->> millrace_internal.erase_identity(g.definition))::regclass) INTO ids, tables FROM millrace.staging g WHERE g.id = ANY (matched);
    messages := millrace_internal.erase_messages(feed.id, ids, tables);
    FOR staging IN SELECT g.* FROM millrace.staging g WHERE g.stream_id = feed.id AND objects ? millrace_internal.erase_identity(g.definition) ORDER BY g.id LOOP
        PERFORM millrace_internal.erase_remember(staging, millrace_internal.erase_key(staging.definition), (objects ->> millrace_internal.erase_identity(staging.definition))::regclass);
    END LOOP;
    FOR staging IN SELECT g.* FROM millrace.staging g WHERE g.stream_id = feed.id AND NOT objects ? millrace_internal.erase_identity(g.definition) ORDER BY g.id LOOP
        RAISE NOTICE '% keeps what it has: it maps neither % nor the key by which the others know their objects', staging.relation, (SELECT string_agg(format('"%s"', w), ', ') FROM unnest(wanted) w);
    END LOOP;

    FOR condition IN SELECT o.value FROM jsonb_each_text(objects) o LOOP
        EXECUTE format('ANALYZE %s', condition);
    END LOOP;

    -- The keys that these objects have in the vault: found while their rows are there.
    FOR target IN
        SELECT t.* FROM millrace.target t
        WHERE t.kind IN ('hub', 'link', 'satellite')
          AND EXISTS (SELECT FROM millrace.target_source s JOIN millrace.staging g ON g.id = s.staging_id
                      WHERE s.target_id = t.id AND g.stream_id = feed.id AND objects ? millrace_internal.erase_identity(g.definition))
        ORDER BY t.id
    LOOP
        parent := CASE target.kind WHEN 'satellite' THEN (SELECT t.relation FROM millrace.target t WHERE t.id = (target.definition #>> '{parent,id}')::integer) ELSE target.relation END;
        keys := keys || jsonb_build_object(target.id, millrace_internal.erase_table('erase_keys_' || target.id, 'key uuid PRIMARY KEY', owners || target.owner)::text);
        FOR source IN SELECT g AS staging, s.columns FROM millrace.target_source s JOIN millrace.staging g ON g.id = s.staging_id
                      WHERE s.target_id = target.id AND g.stream_id = feed.id AND objects ? millrace_internal.erase_identity(g.definition) LOOP
            PERFORM millrace_internal.erase_candidates(parent, (keys ->> target.id::text)::regclass, source.staging, source.columns,
                (objects ->> millrace_internal.erase_identity((source.staging).definition))::regclass);
        END LOOP;
        -- A hub's key may be what names him: whatever hangs on that key is his, also where no log tells of which object it came.
        FOR source IN SELECT h.hub, h.hash_key FROM millrace_internal.erase_hubs(matched, wanted, key) h LOOP
            PERFORM millrace_internal.erase_hanging(target, (keys ->> target.id::text)::regclass, source.hub, source.hash_key);
        END LOOP;
        CONTINUE WHEN target.definition ->> 'kind' IS DISTINCT FROM 'effectivity';
        keys := keys || jsonb_build_object('units ' || target.id, millrace_internal.erase_table('erase_units_' || target.id, 'key uuid PRIMARY KEY', owners || ARRAY(SELECT DISTINCT t.owner FROM millrace.target t))::text);
        FOR source IN SELECT g AS staging, json_build_object('key', json_build_array(s.columns #> ARRAY['key', target.definition #>> '{driving,0}'])) AS columns,
                             (SELECT t.relation FROM millrace.target t WHERE t.id = (target.definition #>> ARRAY['parent', 'hubs', target.definition #>> '{driving,0}', 'id'])::integer) AS hub
                      FROM millrace.target_source s JOIN millrace.staging g ON g.id = s.staging_id
                      WHERE json_array_length(target.definition -> 'driving') = 1
                        AND s.target_id = target.id AND g.stream_id = feed.id AND objects ? millrace_internal.erase_identity(g.definition) LOOP
            PERFORM millrace_internal.erase_candidates(source.hub, (keys ->> ('units ' || target.id))::regclass, source.staging, source.columns,
                (objects ->> millrace_internal.erase_identity((source.staging).definition))::regclass);
        END LOOP;
    END LOOP;

    -- Messages about these objects that do not name anybody, as tombstones.
    more := millrace_internal.erase_messages(feed.id, ids, tables);
    IF feed.server IS NULL THEN
        relation := 'inbox';
        rows := earlier.inbox + messages.inbox + more.inbox;
        RETURN NEXT;
    END IF;
    relation := 'dead letters';
    rows := earlier.letters + messages.letters + more.letters;
    -- What cannot be decoded is looked at as text.
    DELETE FROM millrace.letter l
    WHERE l.stream_id = feed.id AND l.kind = 'message' AND l.value IS NOT NULL
      AND (SELECT bool_and(CASE json_typeof(e.value) WHEN 'string' THEN position(convert_to(e.value::text, 'UTF8') IN l.value) > 0
                                ELSE encode(l.value, 'escape') ~ ('(^|[^0-9A-Za-z.+-])' || regexp_replace(e.value::text, '([.+])', '\\\1', 'g') || '($|[^0-9A-Za-z.+-])') END)
           FROM json_each(erase.key) e);
    GET DIAGNOSTICS staged = ROW_COUNT;
    rows := rows + staged;
    RETURN NEXT;

    -- Rules find the keys of these objects in their rows.
    IF alerts THEN
        PERFORM millrace_internal.erase_begin_alerts(owners);
        last := nextval('millrace.outbox_message_id_seq');
        quoted := ARRAY(SELECT e.value::text FROM json_each(key) e WHERE json_typeof(e.value) = 'string');
        texts := millrace_internal.erase_texts(g, wanted, key) FROM millrace.staging g WHERE g.id = matched[1];
        PERFORM millrace_internal.erase_rule_keys(g, (objects ->> millrace_internal.erase_identity(g.definition))::regclass, wanted, texts)
        FROM millrace.staging g WHERE g.stream_id = feed.id AND objects ? millrace_internal.erase_identity(g.definition);
    END IF;

    -- Staging tables, their marts, their logs, their tables of objects.
    FOR staging IN SELECT g.* FROM millrace.staging g WHERE g.stream_id = feed.id AND objects ? millrace_internal.erase_identity(g.definition) ORDER BY g.id LOOP
        identity := millrace_internal.erase_identity(staging.definition);
        staged := millrace_internal.erase_staged(feed.id, staging.id, (objects ->> identity)::regclass);
        relation := staging.relation::text;
        rows := staged;
        RETURN NEXT;
        SELECT string_agg(format('t.k%s = o.k%s', n, n), ' AND ') INTO condition FROM generate_subscripts(millrace_internal.erase_key(staging.definition), 1) n;
        EXECUTE format('DELETE FROM millrace_state.object_%s AS t USING %s AS o WHERE %s', staging.id, objects ->> identity, condition);
        IF staging.log IS NOT NULL THEN
            relation := staging.log::text;
            rows := millrace_internal.execute_as(staging.owner, format('DELETE FROM %s AS r USING %s AS o WHERE %s', staging.log, objects ->> identity,
                millrace_internal.erase_of(staging, true)));
            RETURN NEXT;
        END IF;
        FOR target IN SELECT t.* FROM millrace.target t JOIN millrace.target_source s ON s.target_id = t.id WHERE s.staging_id = staging.id AND t.kind IN ('mart', 'model')
                        AND NOT EXISTS (SELECT FROM millrace.model m WHERE m.target_id = t.id AND NOT m.is_online) ORDER BY t.id LOOP
            IF target.kind = 'mart' THEN
                PERFORM millrace_internal.mart_sweep(target.id, target.owner);
            END IF;
            relation := target.relation::text;
            rows := staged;
            RETURN NEXT;
        END LOOP;
    END LOOP;

    FOR condition IN SELECT o.value FROM jsonb_each_text(keys) o LOOP
        EXECUTE format('ANALYZE %s', condition);
    END LOOP;
    -- The vault: links before the hubs that they speak of, satellites when it is known what is left.
    FOR target IN SELECT t.* FROM millrace.target t WHERE keys ? t.id::text
                  ORDER BY array_position('{link, hub, satellite}'::text[], t.kind), t.id LOOP
        relation := target.relation::text;
        IF target.kind = 'satellite' THEN
            SELECT bool_and(g.log IS NOT NULL AND g.log_since = '-infinity') INTO complete
            FROM millrace.target_source s JOIN millrace.staging g ON g.id = s.staging_id WHERE s.target_id = target.id;
            rows := millrace_internal.erase_assertions(target, (keys ->> target.id::text)::regclass, (keys ->> ('units ' || target.id))::regclass, complete);
            IF NOT complete THEN
                RAISE NOTICE '% keeps what was said of keys that are still in use: its sources have no log of all versions', target.relation;
            END IF;
        ELSE
            rows := millrace_internal.erase_keys(target, (keys ->> target.id::text)::regclass);
        END IF;
        RETURN NEXT;
    END LOOP;

    -- Point-in-time tables say which of these rows were valid when.
    FOR target IN SELECT t.* FROM millrace.target t WHERE t.kind = 'pit' AND t.state <> 'new'
                    AND EXISTS (SELECT FROM json_array_elements_text(t.definition -> 'satellites') s WHERE keys ? s) ORDER BY t.id LOOP
        relation := target.relation::text;
        rows := millrace_internal.erase_spans(target, ARRAY(SELECT keys ->> s FROM json_array_elements_text(target.definition -> 'satellites') s WHERE keys ? s));
        RETURN NEXT;
    END LOOP;

    -- What was learnt from all of it.
    FOR model IN SELECT m.* FROM millrace_internal.erase_models(feed.id) m ORDER BY m.id LOOP
        relation := model.relation::text;
        rows := millrace_internal.erase_model(model);
        RETURN NEXT;
    END LOOP;

    IF alerts THEN
        FOR staging IN SELECT g.* FROM millrace.staging g WHERE g.stream_id = feed.id AND objects ? millrace_internal.erase_identity(g.definition) ORDER BY g.id LOOP
            identity := millrace_internal.erase_identity(staging.definition);
            called := millrace_internal.erase_called(staging, (objects ->> identity)::regclass, wanted, texts, quoted);
            known := known + called.states + millrace_internal.erase_rules(staging, (objects ->> identity)::regclass);
            bearing := bearing || called.messages;
        END LOOP;
        relation := 'rules';
        rows := known;
        RETURN NEXT;
        relation := 'alerts';
        SELECT count(*) INTO rows FROM millrace_state.erase_alert e WHERE NOT EXISTS (SELECT FROM millrace.rule_alert a WHERE a.id = e.id);
        RETURN NEXT;
        relation := 'outbox';
        rows := millrace_internal.erase_outbox(last, bearing);
        RETURN NEXT;
    END IF;

    -- Errors quote what they are about.
    UPDATE millrace.worker w SET last_error = NULL, detail = NULL, context = NULL WHERE w.stream_id = feed.id;
    UPDATE millrace.backfill b SET last_error = NULL
    WHERE EXISTS (SELECT FROM millrace.target_source s JOIN millrace.staging g ON g.id = s.staging_id WHERE s.target_id = b.target_id AND g.stream_id = feed.id);
    PERFORM millrace_internal.changed(l) FROM unnest(locked) l;
    FOR condition IN SELECT o.value FROM jsonb_each_text(objects || keys) o LOOP
        EXECUTE format('DROP TABLE %s', condition);
    END LOOP;
END
$$;
COMMENT ON FUNCTION millrace_internal.erase(regrole, text, json) IS 'the other half of millrace.erase()';

CREATE FUNCTION millrace.erase(name text, key json) RETURNS TABLE (relation text, rows bigint)
LANGUAGE C AS 'MODULE_PATHNAME', 'millrace_declare';
COMMENT ON FUNCTION millrace.erase(text, json) IS
    'erases the objects in which columns of a stream''s staging tables ever had these values, and all that came of their messages; they do not come back; returns rows by table';
REVOKE ALL ON FUNCTION millrace.erase(text, json) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION millrace.erase(text, json) TO millrace_admin;
