-- Data Vault: hubs, links, satellites.
--
-- What a target's row says, for those who read it:
--   hub        {"business_key": [name, …], "names": {technical column: name, …}, "record_source": text or null}
--   link       {"hubs": [{"id": target, "as": label, "role": role or null}, …], "names": …, "record_source": …}
--   satellite  {"parent": {"id": target, "kind": "hub" or "link", "hubs": the link's}, "attributes": [{"number": n, "name": name}, …],
--               "kind": …, "history": …, "sub_key": [name, …], "driving_key": [name, …], "names": …, "record_source": …}
--              ("removed" is true for an attribute that was taken away; "driving" are the places of the driving key's hubs in the link; see satellite.sql for "whole")
-- and target_source.columns, in declared names of the staging table's columns:
--   {"key": [[columns of the first hub's business key], …], "attributes": {number: column}, "sub_key": [column, …], "record_source": the source's own, or not there}
-- The definition view calls the columns hash_key, key_1 … (hubs), hub_1 … (links), sub_key_1 …, attribute_<number> (satellites) and the technical ones by
-- their default names.

-- Rows that a hub, link or satellite left out because their business key is NULL.  Several rows for each target, so that workers
-- seldom wait for each other.
CREATE TABLE millrace.target_counter (
    target_id integer NOT NULL REFERENCES millrace.target ON DELETE CASCADE,
    stripe integer NOT NULL,
    skipped bigint NOT NULL,
    PRIMARY KEY (target_id, stripe)
);
COMMENT ON TABLE millrace.target_counter IS 'how many rows a hub or link skipped for a NULL key: the sum over its stripes';
SELECT pg_catalog.pg_extension_config_dump('millrace.target_counter', '');

CREATE FUNCTION millrace.hash_key(hub regclass, VARIADIC "any") RETURNS uuid
LANGUAGE C IMMUTABLE PARALLEL SAFE AS 'MODULE_PATHNAME', 'millrace_hash_key';
COMMENT ON FUNCTION millrace.hash_key(regclass, "any") IS
    'the hash key that a hub has for a business key, or a link for those of its hubs in order; values are cast to the hub''s types; the zero key for NULL';

CREATE FUNCTION millrace.hashdiff(numbers integer[], VARIADIC "any") RETURNS uuid
LANGUAGE C IMMUTABLE PARALLEL SAFE AS 'MODULE_PATHNAME', 'millrace_hashdiff';
COMMENT ON FUNCTION millrace.hashdiff(integer[], "any") IS
    'the hashdiff that a satellite has for values of its attributes, each with the attribute''s number; without numbers the hash of a sub-key';
CREATE FUNCTION millrace.hash_set(members uuid[], contents uuid[]) RETURNS uuid
LANGUAGE C STRICT IMMUTABLE PARALLEL SAFE AS 'MODULE_PATHNAME', 'millrace_hash_set';
COMMENT ON FUNCTION millrace.hash_set(uuid[], uuid[]) IS
    'the hashdiff that a multi-active or effectivity satellite has for a set: its members'' hashes, sorted, and those of their contents';

CREATE FUNCTION millrace_internal.definition_column(kind text, id integer, declared text) RETURNS text
LANGUAGE C STRICT STABLE AS 'MODULE_PATHNAME', 'millrace_definition_column';
COMMENT ON FUNCTION millrace_internal.definition_column(text, integer, text) IS
    'the current name of the column that a definition knows under a declared name, or NULL';
CREATE FUNCTION millrace_internal.declared_column(kind text, id integer, name text) RETURNS text
LANGUAGE C STRICT STABLE AS 'MODULE_PATHNAME', 'millrace_declared_column';
COMMENT ON FUNCTION millrace_internal.declared_column(text, integer, text) IS
    'the declared name under which a definition knows the column that is now called so, or NULL';

-- ---- what the declaring functions share --------------------------------------------------------------------

CREATE FUNCTION millrace_internal.vault_source(caller regrole, source regclass) RETURNS millrace.staging
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    found millrace.staging;
BEGIN
    IF source IS NULL THEN
        RAISE EXCEPTION 'source must not be null' USING ERRCODE = 'null_value_not_allowed';
    END IF;
    SELECT s.* INTO found FROM millrace.staging s WHERE s.relation = source;
    IF found.id IS NULL THEN
        RAISE EXCEPTION '% is not a staging table', source
            USING ERRCODE = 'wrong_object_type', HINT = 'millrace.create_staging() makes one.';
    END IF;
    PERFORM millrace_internal.check_reader(caller, source);
    RETURN found;
END
$$;
COMMENT ON FUNCTION millrace_internal.vault_source(regrole, regclass) IS 'the staging table that the caller may read from, or an error';

-- Columns of a staging table under their declared names.
CREATE FUNCTION millrace_internal.vault_columns(staging millrace.staging, names text[]) RETURNS text[]
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    name text;
    declared text;
    result text[] := '{}';
    near text;
BEGIN
    FOREACH name IN ARRAY names LOOP
        -- A column that was renamed answers to the name under which it was declared, too.
        declared := coalesce(millrace_internal.declared_column('staging', staging.id, name),
                             CASE WHEN millrace_internal.definition_column('staging', staging.id, name) IS NOT NULL THEN name END);
        IF declared IS NULL THEN
            near := millrace_internal.nearest(coalesce(name, ''), ARRAY(SELECT a.attname::text FROM pg_attribute a WHERE a.attrelid = staging.relation AND a.attnum > 0 AND NOT a.attisdropped));
            RAISE EXCEPTION 'staging table % has no column "%"', staging.relation, coalesce(name, 'NULL')
                USING ERRCODE = 'undefined_column',
                      HINT = CASE WHEN near IS NULL THEN 'Columns that are read from a source have to be columns that its staging declares.' ELSE format('Perhaps you meant "%s".', near) END;
        END IF;
        result := result || declared;
    END LOOP;
    RETURN result;
END
$$;
COMMENT ON FUNCTION millrace_internal.vault_columns(millrace.staging, text[]) IS 'declared names of columns of a staging table, or an error that names the missing one';

-- The type of a column that is named by its declared name.
CREATE FUNCTION millrace_internal.vault_column_type(staging millrace.staging, declared text) RETURNS text
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp AS $$
    SELECT format_type(a.atttypid, a.atttypmod) FROM pg_attribute a
    WHERE a.attrelid = staging.relation AND a.attname = millrace_internal.definition_column('staging', staging.id, declared)
$$;
COMMENT ON FUNCTION millrace_internal.vault_column_type(millrace.staging, text) IS 'the type of a column of a staging table';

-- A list of column names must have something in it, no NULL and nothing twice.
CREATE FUNCTION millrace_internal.vault_check_list(argument text, list text[]) RETURNS void
LANGUAGE plpgsql IMMUTABLE
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    twice text;
BEGIN
    IF coalesce(cardinality(list), 0) = 0 OR array_position(list, NULL) IS NOT NULL THEN
        RAISE EXCEPTION '% must name at least one column, and none of them may be null', argument USING ERRCODE = 'invalid_parameter_value';
    END IF;
    SELECT e INTO twice FROM unnest(list) e GROUP BY e HAVING count(*) > 1;
    IF FOUND THEN
        RAISE EXCEPTION '"%" stands twice in %', twice, argument USING ERRCODE = 'invalid_parameter_value';
    END IF;
END
$$;
COMMENT ON FUNCTION millrace_internal.vault_check_list(text, text[]) IS 'raises an error unless a list of names is usable';

-- What the user calls the technical columns: defaults, and over them what `names` says.
CREATE FUNCTION millrace_internal.vault_names(names json, defaults jsonb) RETURNS jsonb
LANGUAGE plpgsql IMMUTABLE
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    result jsonb := defaults;
    member record;
BEGIN
    PERFORM millrace_internal.check_members('names', names, ARRAY(SELECT k FROM jsonb_object_keys(defaults) k ORDER BY k));
    FOR member IN SELECT key, json_typeof(value) AS type, names ->> key AS name FROM json_each(names) LOOP
        IF member.type <> 'string' OR member.name = '' THEN
            RAISE EXCEPTION 'the name for "%" in names must be a string', member.key USING ERRCODE = 'invalid_parameter_value';
        END IF;
        result := result || jsonb_build_object(member.key, member.name);
    END LOOP;
    RETURN result;
END
$$;
COMMENT ON FUNCTION millrace_internal.vault_names(json, jsonb) IS 'the names of technical columns';

-- The table: made as the caller, or adopted when it fits.  The first `nkeys` columns are its key; those in `nullable` are filled with NULL at
-- times.  A type of NULL means that any will do.  One that has attributes keeps the usual statistics, which queries of them need.
CREATE FUNCTION millrace_internal.vault_table(caller regrole, name text, columns text[], types text[], adopted_types text[], nkeys integer, nullable text[], storage text, has_attributes boolean)
RETURNS regclass
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    qualified text := millrace_internal.qualified_name(name);
    present regclass := millrace_internal.relation(name);
    wrong record;
    twice text;
    keys text[] := columns[:nkeys];
BEGIN
    IF octet_length((parse_ident(qualified))[2]) > 55 THEN
        RAISE EXCEPTION 'the name % is too long: names made from it would be cut', qualified USING ERRCODE = 'name_too_long';
    END IF;
    SELECT c INTO twice FROM unnest(columns) c GROUP BY c HAVING count(*) > 1;
    IF FOUND THEN
        RAISE EXCEPTION 'table % would have two columns "%"', qualified, twice
            USING ERRCODE = 'duplicate_column', HINT = 'names => ''{…}'' renames technical columns.';
    END IF;
    IF to_regclass(qualified || '_current') IS NOT NULL OR to_regclass(millrace_internal.vault_current_name(qualified)) IS NOT NULL THEN
        RAISE EXCEPTION '% exists already, and is the name of the view that shows what is current in %', millrace_internal.vault_current_name(qualified), qualified
            USING ERRCODE = 'duplicate_table';
    END IF;

    IF present IS NULL THEN
        PERFORM millrace_internal.execute_as(caller, format('CREATE TABLE %s (%s, PRIMARY KEY (%s))%s', qualified,
            (SELECT string_agg(format('%I %s%s', c, t, CASE WHEN c = ANY (nullable) THEN '' ELSE ' NOT NULL' END), ', ' ORDER BY n) FROM unnest(columns, types) WITH ORDINALITY AS u (c, t, n)),
            (SELECT string_agg(format('%I', k), ', ' ORDER BY n) FROM unnest(keys) WITH ORDINALITY AS u (k, n)), storage));
        IF NOT has_attributes THEN
            PERFORM millrace_internal.execute_as(caller, millrace_internal.fewer_statistics(qualified::regclass));
        END IF;
        RETURN qualified::regclass;
    END IF;

    IF EXISTS (SELECT FROM millrace.staging s WHERE s.relation = present) OR EXISTS (SELECT FROM millrace.target t WHERE t.relation = present) THEN
        RAISE EXCEPTION '% is already kept by millrace', present USING ERRCODE = 'duplicate_table';
    END IF;
    IF (SELECT c.relkind NOT IN ('r', 'p') FROM pg_class c WHERE c.oid = present) THEN
        RAISE EXCEPTION '% is not a table', present USING ERRCODE = 'wrong_object_type';
    END IF;
    IF NOT pg_has_role(caller, (SELECT c.relowner FROM pg_class c WHERE c.oid = present), 'USAGE') THEN
        RAISE EXCEPTION 'must be owner of table %', present USING ERRCODE = 'insufficient_privilege';
    END IF;
    FOR wrong IN
        SELECT u.c, u.t, a.attname, format_type(a.atttypid, a.atttypmod) AS is_type, a.attnotnull, a.attgenerated, a.attidentity
        FROM unnest(columns, adopted_types) WITH ORDINALITY AS u (c, t, n)
        LEFT JOIN pg_attribute a ON a.attrelid = present AND a.attname = u.c AND a.attnum > 0 AND NOT a.attisdropped ORDER BY u.n
    LOOP
        IF wrong.attname IS NULL THEN
            RAISE EXCEPTION 'table % cannot be adopted: it has no column "%"', present, wrong.c
                USING ERRCODE = 'invalid_table_definition', HINT = 'names => ''{…}'' says what technical columns are called.';
        ELSIF wrong.t IS NOT NULL AND wrong.is_type <> format_type(wrong.t::regtype, NULL) THEN
            RAISE EXCEPTION 'table % cannot be adopted: column "%" is %, not %', present, wrong.c, wrong.is_type, format_type(wrong.t::regtype, NULL) USING ERRCODE = 'invalid_table_definition';
        ELSIF wrong.attgenerated <> '' OR wrong.attidentity = 'a' THEN
            RAISE EXCEPTION 'table % cannot be adopted: column "%" is generated', present, wrong.c USING ERRCODE = 'invalid_table_definition';
        ELSIF wrong.attnotnull AND wrong.c = ANY (nullable) THEN
            RAISE EXCEPTION 'table % cannot be adopted: column "%" is NOT NULL, but some rows have nothing there', present, wrong.c
                USING ERRCODE = 'invalid_table_definition', DETAIL = 'A zero key or ghost record has no business key and no attributes; a deleted row has no attributes.',
                      HINT = format('ALTER TABLE %s ALTER COLUMN %I DROP NOT NULL', present, wrong.c);
        END IF;
    END LOOP;
    SELECT a.attname INTO wrong FROM pg_attribute a
    WHERE a.attrelid = present AND a.attnum > 0 AND NOT a.attisdropped AND a.attnotnull AND NOT a.atthasdef AND a.attidentity = '' AND a.attname <> ALL (columns) LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'table % cannot be adopted: nothing would fill column "%", which is NOT NULL and has no default', present, wrong.attname USING ERRCODE = 'invalid_table_definition';
    END IF;
    IF NOT EXISTS (
        SELECT FROM pg_index i
        WHERE i.indrelid = present AND i.indisunique AND i.indpred IS NULL AND i.indexprs IS NULL AND i.indimmediate AND i.indisvalid
          AND (SELECT array_agg(a.attname::text ORDER BY k.n) FROM unnest(i.indkey::int[]) WITH ORDINALITY AS k (attnum, n)
               JOIN pg_attribute a ON a.attrelid = present AND a.attnum = k.attnum WHERE k.n <= i.indnkeyatts) = keys) THEN
        RAISE EXCEPTION 'table % cannot be adopted: it has no unique index on (%)', present, array_to_string(keys, ', ') USING ERRCODE = 'invalid_table_definition';
    END IF;
    RETURN present;
END
$$;
COMMENT ON FUNCTION millrace_internal.vault_table(regrole, text, text[], text[], text[], integer, text[], text, boolean) IS 'makes or adopts the table of a hub, link or satellite';

CREATE FUNCTION millrace_internal.vault_current_name(qualified text) RETURNS text
LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp AS $$
    SELECT format('%I.%I', (parse_ident(qualified))[1], (parse_ident(qualified))[2] || '_current')
$$;
COMMENT ON FUNCTION millrace_internal.vault_current_name(text) IS 'the name of the view that shows what is current in a table';

-- From when on a target is complete, with this source, too.  What the source has in its log, or to a hub or link has staged, is read before the next batch (C11).
CREATE FUNCTION millrace_internal.vault_horizon(target_id integer, relation regclass, staging millrace.staging) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    consumed boolean := EXISTS (SELECT FROM millrace.stream_position p WHERE p.stream_id = staging.stream_id);
    has_rows boolean;
    since timestamptz;
BEGIN
    has_rows := millrace_internal.value_as(staging.owner, format('SELECT EXISTS (SELECT FROM %s)', staging.relation), NULL::boolean);
    since := CASE WHEN staging.log IS NOT NULL THEN staging.log_since WHEN consumed OR has_rows THEN clock_timestamp() ELSE '-infinity' END;
    IF since > '-infinity' AND staging.log IS NULL THEN
        RAISE NOTICE '% is complete from now on: % keeps no log of the versions that came before', relation, staging.relation
            USING HINT = 'millrace.reset_stream() reads again what the source still has; log => true at the staging table keeps every version.';
    ELSIF since > '-infinity' THEN
        RAISE NOTICE '% is complete from the beginning of % on, which does not have the versions that came before', relation, staging.log
            USING HINT = 'millrace.reset_stream() reads again what the source still has.';
    END IF;
    UPDATE millrace.target t
    SET state = CASE WHEN staging.log IS NOT NULL OR t.kind <> 'satellite' THEN 'new' ELSE t.state END, horizon = greatest(t.horizon, since)
    WHERE t.id = target_id;
    -- Of what is not filled versions come from now on, which a log that is declared later does not have.
    UPDATE millrace.target_source s SET since = '-infinity' WHERE s.target_id = vault_horizon.target_id AND s.since IS NULL
       AND EXISTS (SELECT FROM millrace.target t WHERE t.id = s.target_id AND t.state <> 'new');
END
$$;
COMMENT ON FUNCTION millrace_internal.vault_horizon(integer, regclass, millrace.staging) IS 'notes from when on a target is complete, with one more source';

-- Configuration of a new target, its definition view, and its view of what is current.
CREATE FUNCTION millrace_internal.vault_add(caller regrole, kind text, relation regclass, definition json, staging millrace.staging, columns json, selected text) RETURNS integer
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    target_id integer;
BEGIN
    INSERT INTO millrace.target (kind, relation, owner, definition, horizon) VALUES (kind, relation, caller, definition, '-infinity') RETURNING id INTO target_id;
    INSERT INTO millrace.target_source (target_id, staging_id, ordinal, columns) VALUES (target_id, staging.id, 1, columns);
    PERFORM millrace_internal.vault_horizon(target_id, relation, staging);
    PERFORM millrace_internal.vault_define(target_id, selected);
    PERFORM millrace_internal.vault_view(target_id);
    PERFORM millrace_internal.changed(staging.stream_id);
    RETURN target_id;
END
$$;
COMMENT ON FUNCTION millrace_internal.vault_add(regrole, text, regclass, json, millrace.staging, json, text) IS 'writes the configuration of a hub, link or satellite';

CREATE FUNCTION millrace_internal.vault_define(target_id integer, selected text) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    target millrace.target;
BEGIN
    SELECT t.* INTO STRICT target FROM millrace.target t WHERE t.id = target_id;
    EXECUTE format('CREATE OR REPLACE VIEW millrace_def.%s_%s AS SELECT %s FROM %s AS t', target.kind, target.id, selected, target.relation);
    EXECUTE format('ALTER VIEW millrace_def.%s_%s OWNER TO %s', target.kind, target.id, target.owner);
END
$$;
COMMENT ON FUNCTION millrace_internal.vault_define(integer, text) IS 'makes the definition view of a hub, link or satellite';

-- "t.column AS canonical name, …" for technical columns.
CREATE FUNCTION millrace_internal.vault_selected(names jsonb, canonical text[]) RETURNS text
LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp AS $$
    SELECT string_agg(format('t.%I AS %I', names ->> c, c), ', ' ORDER BY n) FROM unnest(canonical) WITH ORDINALITY AS u (c, n)
$$;
COMMENT ON FUNCTION millrace_internal.vault_selected(jsonb, text[]) IS 'technical columns as a definition view selects them';

-- The business key columns of a hub, as they are called now.
CREATE FUNCTION millrace_internal.hub_columns(hub_id integer) RETURNS text[]
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp AS $$
    SELECT array_agg(millrace_internal.definition_column('hub', hub_id, 'key_' || n) ORDER BY n)
    FROM millrace.target t, generate_series(1, json_array_length(t.definition -> 'business_key')) n WHERE t.id = hub_id
$$;
COMMENT ON FUNCTION millrace_internal.hub_columns(integer) IS 'the business key columns of a hub';

-- The business keys of a link's hubs, as its views show them: under the hub's column names, with the role or, where two hubs have a name in common, the
-- hub before it.
CREATE FUNCTION millrace_internal.link_columns(hubs json) RETURNS TABLE (hub integer, n integer, name text, shown text)
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp AS $$
    WITH key AS (
        SELECT h.ordinality::integer AS hub, k.ordinality::integer AS n, k.name, h.value ->> 'as' AS label, h.value ->> 'role' AS role
        FROM json_array_elements(hubs) WITH ORDINALITY AS h,
             LATERAL unnest(millrace_internal.hub_columns((h.value ->> 'id')::integer)) WITH ORDINALITY AS k (name))
    SELECT hub, n, name,
           CASE WHEN role IS NOT NULL THEN role || '_' || name
                WHEN (SELECT count(*) FROM key o WHERE o.name = key.name AND o.role IS NULL) > 1 THEN label || '_' || name
                ELSE name END
    FROM key ORDER BY hub, n
$$;
COMMENT ON FUNCTION millrace_internal.link_columns(json) IS 'the business keys of a link''s hubs';

-- The parent of rows: where its key comes from, and what a view shows of it.
CREATE FUNCTION millrace_internal.vault_key(target millrace.target, with_hubs boolean, OUT from_clause text, OUT selected text, OUT hash_key text)
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    hash_key := format('k.%I', millrace_internal.definition_column(target.kind, target.id, 'hash_key'));
    IF target.kind = 'hub' THEN
        from_clause := format('%s AS k', target.relation);
        SELECT concat_ws(', ', hash_key, string_agg(format('k.%I', c), ', ' ORDER BY n)) INTO selected
        FROM unnest(millrace_internal.hub_columns(target.id)) WITH ORDINALITY AS u (c, n);
    ELSE
        SELECT format('%s AS k', target.relation) || string_agg(format(' LEFT JOIN %s AS k%s ON k%s.%I = k.%I', t.relation, h.n, h.n,
                   millrace_internal.definition_column('hub', t.id, 'hash_key'), millrace_internal.definition_column('link', target.id, 'hub_' || h.n)), '' ORDER BY h.n),
               CASE WHEN with_hubs THEN string_agg(format('k.%I', millrace_internal.definition_column('link', target.id, 'hub_' || h.n)), ', ' ORDER BY h.n) END
        INTO from_clause, selected
        FROM json_array_elements(target.definition -> 'hubs') WITH ORDINALITY AS h (hub, n) JOIN millrace.target t ON t.id = (h.hub ->> 'id')::integer;
        SELECT concat_ws(', ', hash_key, selected, string_agg(format('k%s.%I AS %I', c.hub, c.name, c.shown), ', ' ORDER BY c.hub, c.n)) INTO selected
        FROM millrace_internal.link_columns(target.definition -> 'hubs') c;
    END IF;
END
$$;
COMMENT ON FUNCTION millrace_internal.vault_key(millrace.target, boolean) IS 'how views read the key of a hub or link';

-- The view <table>_current of a hub or link: hash key, the keys of hubs, business key, technical columns; without the zero key.
CREATE FUNCTION millrace_internal.vault_view(target_id integer) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    target millrace.target;
    key record;
BEGIN
    SELECT t.* INTO STRICT target FROM millrace.target t WHERE t.id = target_id;
    IF target.kind = 'satellite' THEN
        PERFORM millrace_internal.satellite_view(target);
        RETURN;
    END IF;
    key := millrace_internal.vault_key(target, true);
    PERFORM millrace_internal.execute_as(target.owner, format('CREATE OR REPLACE VIEW %s AS SELECT %s, k.%I, k.%I FROM %s WHERE %s <> %L::uuid', target.definition ->> 'current', key.selected,
        millrace_internal.definition_column(target.kind, target.id, 'load_at'), millrace_internal.definition_column(target.kind, target.id, 'record_source'),
        key.from_clause, key.hash_key, '00000000-0000-0000-0000-000000000000'));
    PERFORM millrace_internal.execute_as(target.owner, format('COMMENT ON VIEW %s IS %L', target.definition ->> 'current', format('what is current in %s', target.relation)));
END
$$;
COMMENT ON FUNCTION millrace_internal.vault_view(integer) IS 'makes the view <table>_current';

-- A row with the zero key: NULL in a hub's business key, or (a satellite's ghost record) in all attributes.
CREATE FUNCTION millrace_internal.vault_zero(target_id integer) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    target millrace.target;
    names json;
    zero constant text := '00000000-0000-0000-0000-000000000000';
    columns text;
    ghost text;
BEGIN
    SELECT t.* INTO STRICT target FROM millrace.target t WHERE t.id = target_id;
    names := target.definition -> 'names';
    IF target.kind = 'hub' THEN
        PERFORM millrace_internal.execute_as(target.owner, format('INSERT INTO %s (%I, %I, %I) VALUES (%L, now(), %L) ON CONFLICT (%I) DO NOTHING', target.relation,
            names ->> 'hash_key', names ->> 'load_at', names ->> 'record_source', zero, 'millrace', names ->> 'hash_key'));
    ELSIF target.kind = 'satellite' THEN
        SELECT string_agg(quote_ident(names ->> c), ', ' ORDER BY n),
               string_agg(CASE WHEN c IN ('applied_at', 'confirmed_at') THEN quote_literal('1900-01-01 00:00:00+00') WHEN c = 'position' THEN '0' WHEN c = 'is_deleted' THEN 'false'
                               WHEN c = 'load_at' THEN 'now()' WHEN c = 'record_source' THEN quote_literal('millrace') ELSE quote_literal(zero) END, ', ' ORDER BY n)
        INTO columns, ghost FROM unnest(millrace_internal.satellite_technical(target.definition ->> 'kind')) WITH ORDINALITY AS u (c, n);
        PERFORM millrace_internal.execute_as(target.owner, format('INSERT INTO %s (%s) VALUES (%s) ON CONFLICT DO NOTHING', target.relation, columns, ghost));
    END IF;
END
$$;
COMMENT ON FUNCTION millrace_internal.vault_zero(integer) IS 'puts the zero key into a hub, the ghost record into a satellite';

-- What is there under that name, when it is to be replaced; an error when it cannot be.
CREATE FUNCTION millrace_internal.vault_present(caller regrole, kind text, name text, replace boolean, staging millrace.staging) RETURNS millrace.target
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    present millrace.target;
BEGIN
    SELECT t.* INTO present FROM millrace.target t WHERE t.relation = millrace_internal.relation(name);
    IF present.id IS NULL THEN
        RETURN NULL;
    END IF;
    PERFORM millrace_internal.check_owner(caller, present.owner, format('%s %s', present.kind, present.relation));
    IF present.kind <> kind THEN
        RAISE EXCEPTION '% is a %, not a %', present.relation, present.kind, kind USING ERRCODE = 'wrong_object_type';
    END IF;
    IF replace IS NOT TRUE THEN
        RAISE EXCEPTION '% % exists already', kind, present.relation USING ERRCODE = 'duplicate_table', HINT = 'replace => true changes its definition.';
    END IF;
    IF NOT EXISTS (SELECT FROM millrace.target_source s WHERE s.target_id = present.id AND s.staging_id = staging.id) THEN
        RAISE EXCEPTION '% % is fed by %, not by %', kind, present.relation,
            (SELECT string_agg(g.relation::text, ', ') FROM millrace.target_source s JOIN millrace.staging g ON g.id = s.staging_id WHERE s.target_id = present.id), staging.relation
            USING ERRCODE = 'feature_not_supported', DETAIL = 'What came from the other source would stay without being maintained.';
    END IF;
    RETURN present;
END
$$;
COMMENT ON FUNCTION millrace_internal.vault_present(regrole, text, text, boolean, millrace.staging) IS 'the target of that name that may be replaced';

-- Refuses to alter members of a definition on which every row depends.
CREATE FUNCTION millrace_internal.vault_check_same(present millrace.target, definition json, members text[], why text) RETURNS void
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    member text;
BEGIN
    FOREACH member IN ARRAY members LOOP
        IF (present.definition -> member)::jsonb IS DISTINCT FROM (definition -> member)::jsonb THEN
            RAISE EXCEPTION '% of % % cannot change', replace(member, '_', ' '), present.kind, present.relation
                USING ERRCODE = 'feature_not_supported', DETAIL = why, HINT = 'Drop it with millrace.drop_table() and create it again.';
        END IF;
    END LOOP;
END
$$;
COMMENT ON FUNCTION millrace_internal.vault_check_same(millrace.target, json, text[], text) IS 'raises an error when something changed that cannot be altered';

-- The streams that feed a hub, link or satellite, and point-in-time tables on it, stand still from here on.  Batches and chunks hold them, and then come to
-- the target's row: so does whoever changes it.
CREATE FUNCTION millrace_internal.vault_lock(target_id integer) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    feeding integer[] := '{}';
    locked integer[];
BEGIN
    -- While one waits, another stream may come to it.
    LOOP
        locked := feeding;
        feeding := ARRAY(SELECT DISTINCT g.stream_id FROM millrace.target t JOIN millrace.target_source s ON s.target_id = t.id JOIN millrace.staging g ON g.id = s.staging_id
                         WHERE t.id = target_id OR (t.kind = 'pit' AND EXISTS (SELECT FROM json_array_elements_text(t.definition -> 'satellites') e WHERE e::integer = target_id)) ORDER BY 1);
        EXIT WHEN feeding <@ locked;
        PERFORM millrace_internal.lock_stream(l, true) FROM unnest(feeding) AS l WHERE l <> ALL (locked);
    END LOOP;
END
$$;
COMMENT ON FUNCTION millrace_internal.vault_lock(integer) IS 'takes the exclusive locks of the streams that feed a target';

-- May a target have rows?  One that is new again after it had been activated has.
CREATE FUNCTION millrace_internal.vault_has_rows(target_id integer) RETURNS boolean
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp AS $$
    SELECT EXISTS (SELECT FROM millrace.target t WHERE t.id = vault_has_rows.target_id AND t.state <> 'new') OR EXISTS (SELECT FROM millrace.backfill b WHERE b.target_id = vault_has_rows.target_id)
$$;
COMMENT ON FUNCTION millrace_internal.vault_has_rows(integer) IS 'whether a target has been activated';

-- Rows of a hub, link or satellite are made by another definition from now on.  The caller has its streams' locks: it is between two batches, so that it is
-- known which rows are.
CREATE FUNCTION millrace_internal.vault_redefined(target_id integer) RETURNS void
LANGUAGE sql
SET search_path = pg_catalog, pg_temp AS $$
    UPDATE millrace.target t SET redefined_at = clock_timestamp() WHERE t.id = vault_redefined.target_id AND millrace_internal.vault_has_rows(t.id)
$$;
COMMENT ON FUNCTION millrace_internal.vault_redefined(integer) IS 'notes that the rows of a hub, link or satellite that are there were made by another definition';

-- Tells the user which history a new definition covers.
CREATE FUNCTION millrace_internal.vault_say_history(target millrace.target) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF NOT millrace_internal.vault_has_rows(target.id) THEN
        RAISE NOTICE 'the new definition of % is for all that it will be filled with', target.relation;
    ELSE
        RAISE NOTICE 'the new definition of % is for versions that come from now on', target.relation
            USING HINT = 'millrace.rebuild() makes it anew from the logs of its sources. Without them, millrace.reset_stream() reads what came before again; rows of the old definition that are not deleted first stand beside the new ones.';
    END IF;
END
$$;
COMMENT ON FUNCTION millrace_internal.vault_say_history(millrace.target) IS 'a notice of the history that a new definition of a hub, link or satellite covers';

-- Stores what may change: where values come from, which attributes there are, and what is written as record_source.
CREATE FUNCTION millrace_internal.vault_update(present millrace.target, definition json, staging millrace.staging, columns json) RETURNS boolean
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    source millrace.target_source;
    redefined boolean;
BEGIN
    SELECT s.* INTO source FROM millrace.target_source s WHERE s.target_id = present.id AND s.staging_id = staging.id ORDER BY s.ordinal LIMIT 1;
    IF present.definition::jsonb = definition::jsonb AND jsonb_strip_nulls(source.columns::jsonb) = jsonb_strip_nulls(columns::jsonb) THEN
        RETURN false;
    END IF;
    -- Another record source is no other content.
    redefined := present.definition::jsonb - 'record_source' <> definition::jsonb - 'record_source'
        OR jsonb_strip_nulls(source.columns::jsonb - 'record_source') <> jsonb_strip_nulls(columns::jsonb - 'record_source');
    PERFORM millrace_internal.vault_lock(present.id);
    PERFORM FROM millrace.target t JOIN millrace.target_source s ON s.target_id = t.id
    WHERE t.id = present.id AND t.definition_no = present.definition_no AND s.ordinal = source.ordinal AND s.columns::text IS NOT DISTINCT FROM source.columns::text FOR UPDATE OF t;
    IF NOT FOUND THEN
        RAISE EXCEPTION '% % has been changed by somebody else meanwhile', present.kind, present.relation USING ERRCODE = 'serialization_failure', HINT = 'Try again.';
    END IF;
    IF redefined THEN
        PERFORM millrace_internal.vault_redefined(present.id);
    END IF;
    UPDATE millrace.target t SET definition = vault_update.definition, definition_no = t.definition_no + 1 WHERE t.id = present.id;
    UPDATE millrace.target_source s SET columns = vault_update.columns WHERE s.target_id = present.id AND s.ordinal = source.ordinal;
    PERFORM millrace_internal.vault_changed(present.id);
    IF NOT redefined THEN
        RAISE NOTICE 'the new record source of % is for rows from now on', present.relation;
        RETURN true;
    END IF;
    PERFORM millrace_internal.pit_renew(present.id);
    PERFORM millrace_internal.vault_say_history(present);
    RETURN true;
END
$$;
COMMENT ON FUNCTION millrace_internal.vault_update(millrace.target, json, millrace.staging, json) IS 'stores a changed definition; false when nothing changed';

-- From which columns of a source a hub's key is read: given ones, else those that feed the hub itself from there, else columns of the same names.
CREATE FUNCTION millrace_internal.vault_key_columns(hub millrace.target, staging millrace.staging, given json, what text) RETURNS json
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    keys text[] := millrace_internal.hub_columns(hub.id);
    own text[];
    name text;
    declared text;
    result text[] := '{}';
BEGIN
    PERFORM millrace_internal.check_members(what, given, keys);
    SELECT ARRAY(SELECT json_array_elements_text(s.columns #> '{key,0}')) INTO own FROM millrace.target_source s WHERE s.target_id = hub.id AND s.staging_id = staging.id ORDER BY s.ordinal LIMIT 1;
    FOR i IN 1 .. cardinality(keys) LOOP
        IF given ->> keys[i] IS NOT NULL THEN
            result := result || millrace_internal.vault_columns(staging, ARRAY[given ->> keys[i]]);
        ELSIF own IS NOT NULL THEN
            result := result || own[i];
        ELSE
            FOREACH name IN ARRAY ARRAY[keys[i], hub.definition #>> ARRAY['business_key', (i - 1)::text]] LOOP
                declared := coalesce(millrace_internal.declared_column('staging', staging.id, name),
                                     CASE WHEN millrace_internal.definition_column('staging', staging.id, name) IS NOT NULL THEN name END);
                EXIT WHEN declared IS NOT NULL;
            END LOOP;
            IF declared IS NULL THEN
                RAISE EXCEPTION 'staging table % has no column "%", which is the business key of %', staging.relation, keys[i], hub.relation
                    USING ERRCODE = 'undefined_column', HINT = 'columns => ''{…}'' says from which column it is read.';
            END IF;
            result := result || declared;
        END IF;
    END LOOP;
    RETURN to_json(result);
END
$$;
COMMENT ON FUNCTION millrace_internal.vault_key_columns(millrace.target, millrace.staging, json, text) IS 'the columns of a staging table that hold a hub''s business key';

-- A hub or link that the caller may build on.
CREATE FUNCTION millrace_internal.vault_base(caller regrole, relation regclass, name text, kinds text[]) RETURNS millrace.target
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    found millrace.target;
BEGIN
    SELECT t.* INTO found FROM millrace.target t WHERE t.relation = vault_base.relation AND t.kind = ANY (kinds);
    IF found.id IS NULL THEN
        RAISE EXCEPTION '% is not a %', coalesce(relation::text, name, 'NULL'), array_to_string(kinds, ' or ')
            USING ERRCODE = CASE WHEN relation IS NULL THEN 'undefined_table' ELSE 'wrong_object_type' END;
    END IF;
    PERFORM millrace_internal.check_reader(caller, relation);
    RETURN found;
END
$$;
COMMENT ON FUNCTION millrace_internal.vault_base(regrole, regclass, text, text[]) IS 'the hub or link of that name, or an error';

-- ---- hubs --------------------------------------------------------------------------------------------------

-- Does a business key, as it is declared now, speak of the same columns as when the hub was made?  Its columns and those of the
-- source may have been renamed since, and answer to either name.
CREATE FUNCTION millrace_internal.hub_has_key(hub millrace.target, staging millrace.staging, business_key text[]) RETURNS boolean
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp AS $$
    SELECT cardinality(business_key) = json_array_length(hub.definition -> 'business_key') AND bool_and(
               CASE WHEN c.declared IS NOT NULL THEN c.declared = s.columns #>> ARRAY['key', '0', (k.n - 1)::text]
                    ELSE k.name IN (hub.definition #>> ARRAY['business_key', (k.n - 1)::text], millrace_internal.definition_column('hub', hub.id, 'key_' || k.n)) END)
    FROM unnest(business_key) WITH ORDINALITY AS k (name, n)
    CROSS JOIN LATERAL (SELECT x.columns FROM millrace.target_source x WHERE x.target_id = hub.id AND x.staging_id = staging.id ORDER BY x.ordinal LIMIT 1) AS s
    CROSS JOIN LATERAL (SELECT coalesce(millrace_internal.declared_column('staging', staging.id, k.name),
                                        CASE WHEN millrace_internal.definition_column('staging', staging.id, k.name) IS NOT NULL THEN k.name END) AS declared) AS c
$$;
COMMENT ON FUNCTION millrace_internal.hub_has_key(millrace.target, millrace.staging, text[]) IS 'whether a business key speaks of the columns that a hub has';

CREATE FUNCTION millrace_internal.create_hub(caller regrole, name text, source regclass, business_key text[], hash_key text, names json, record_source text, replace boolean) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    staging millrace.staging := millrace_internal.vault_source(caller, source);
    qualified text := millrace_internal.qualified_name(name);
    short text := (parse_ident(qualified))[2];
    present millrace.target := millrace_internal.vault_present(caller, 'hub', name, replace, staging);
    called jsonb;
    declared text[];
    definition json;
    columns json;
    nkeys integer := cardinality(business_key);
    target_id integer;
BEGIN
    PERFORM millrace_internal.vault_check_list('business_key', business_key);
    called := millrace_internal.vault_names(names, jsonb_build_object('hash_key', coalesce(hash_key, present.definition #>> '{names,hash_key}', short || '_hk'), 'load_at', 'load_at', 'record_source', 'record_source'));
    IF present.id IS NOT NULL AND millrace_internal.hub_has_key(present, staging, business_key) THEN
        business_key := ARRAY(SELECT json_array_elements_text(present.definition -> 'business_key'));
        SELECT ARRAY(SELECT json_array_elements_text(x.columns #> '{key,0}')) INTO declared FROM millrace.target_source x
        WHERE x.target_id = present.id AND x.staging_id = staging.id ORDER BY x.ordinal LIMIT 1;
    ELSE
        declared := millrace_internal.vault_columns(staging, business_key);
    END IF;
    columns := json_build_object('key', json_build_array(to_json(declared)));
    definition := json_build_object('business_key', business_key, 'names', called, 'record_source', record_source,
        'current', coalesce(present.definition ->> 'current', millrace_internal.vault_current_name(qualified)));

    IF present.id IS NOT NULL THEN
        PERFORM millrace_internal.vault_check_same(present, definition, '{business_key}', 'The hash key of every row, also in links and satellites, is made from it.');
        PERFORM millrace_internal.vault_check_same(present, definition, '{names}', 'The columns are in use under the names that they have; ALTER TABLE … RENAME COLUMN is followed.');
        PERFORM millrace_internal.vault_update(present, definition, staging, columns);
        RETURN;
    END IF;

    target_id := millrace_internal.vault_add(caller, 'hub',
        millrace_internal.vault_table(caller, name,
            ARRAY[called ->> 'hash_key'] || business_key || ARRAY[called ->> 'load_at', called ->> 'record_source'],
            ARRAY['uuid'] || ARRAY(SELECT millrace_internal.vault_column_type(staging, d) FROM unnest(declared) WITH ORDINALITY AS u (d, n) ORDER BY n) || ARRAY['timestamptz', 'text'],
            ARRAY['uuid'] || array_fill(NULL::text, ARRAY[nkeys]) || ARRAY['timestamptz', 'text'],
            1, business_key, '', false),
        definition, staging, columns,
        concat_ws(', ', millrace_internal.vault_selected(called, '{hash_key}'),
                  (SELECT string_agg(format('t.%I AS key_%s', k, n), ', ' ORDER BY n) FROM unnest(business_key) WITH ORDINALITY AS u (k, n)),
                  millrace_internal.vault_selected(called, '{load_at,record_source}')));
    PERFORM millrace_internal.vault_zero(target_id);
END
$$;
COMMENT ON FUNCTION millrace_internal.create_hub(regrole, text, regclass, text[], text, json, text, boolean) IS 'the other half of millrace.create_hub';

CREATE FUNCTION millrace.create_hub(name text, source regclass, business_key text[], hash_key text DEFAULT NULL, names json DEFAULT NULL, record_source text DEFAULT NULL,
    replace boolean DEFAULT false) RETURNS void
LANGUAGE C AS 'MODULE_PATHNAME', 'millrace_declare';
COMMENT ON FUNCTION millrace.create_hub(text, regclass, text[], text, json, text, boolean) IS
    'declares a hub: one row for each business key that ever came to a staging table';
REVOKE ALL ON FUNCTION millrace.create_hub(text, regclass, text[], text, json, text, boolean) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION millrace.create_hub(text, regclass, text[], text, json, text, boolean) TO millrace_admin;

-- ---- links -------------------------------------------------------------------------------------------------

CREATE FUNCTION millrace_internal.create_link(caller regrole, name text, source regclass, hubs text[], columns json, hash_key text, names json, record_source text, replace boolean) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    staging millrace.staging := millrace_internal.vault_source(caller, source);
    qualified text := millrace_internal.qualified_name(name);
    short text := (parse_ident(qualified))[2];
    present millrace.target := millrace_internal.vault_present(caller, 'link', name, replace, staging);
    item text;
    role text;
    label text;
    labels text[] := '{}';
    hub millrace.target;
    found millrace.target[] := '{}';
    members jsonb := '[]';
    references_to text[] := '{}'; -- the columns that hold the hubs' keys
    key jsonb := '[]';
    part jsonb;
    called jsonb;
    definition json;
BEGIN
    IF coalesce(cardinality(hubs), 0) < 2 OR array_position(hubs, NULL) IS NOT NULL THEN
        RAISE EXCEPTION 'hubs must name at least two hubs, and none of them may be null' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    FOREACH item IN ARRAY hubs LOOP
        role := CASE WHEN item LIKE '%=%' THEN btrim(split_part(item, '=', 1)) END;
        item := btrim(CASE WHEN role IS NULL THEN item ELSE substr(item, strpos(item, '=') + 1) END);
        hub := millrace_internal.vault_base(caller, millrace_internal.relation(item), item, '{hub}');
        label := coalesce(role, (SELECT c.relname FROM pg_class c WHERE c.oid = hub.relation));
        IF label = ANY (labels) OR label = '' THEN
            RAISE EXCEPTION '"%" stands twice in hubs', label
                USING ERRCODE = 'invalid_parameter_value', HINT = 'A role tells them apart: ''role=schema.hub''.';
        END IF;
        labels := labels || label;
        found := found || hub;
        members := members || jsonb_build_object('id', hub.id, 'as', label, 'role', role);
        references_to := references_to || CASE WHEN role IS NULL THEN millrace_internal.definition_column('hub', hub.id, 'hash_key') ELSE role || '_hk' END;
    END LOOP;
    PERFORM millrace_internal.check_members('columns', columns, labels);
    FOR i IN 1 .. cardinality(labels) LOOP
        part := millrace_internal.vault_key_columns(found[i], staging, columns -> labels[i], format('columns for "%s"', labels[i]))::jsonb;
        FOR j IN 1 .. i - 1 LOOP
            IF found[j].id = found[i].id AND key -> (j - 1) = part THEN
                RAISE EXCEPTION '"%" and "%" would be the same key of %', labels[j], labels[i], found[i].relation
                    USING ERRCODE = 'invalid_parameter_value', HINT = 'columns => ''{"role": {"business key column": "column of the source"}}'' tells them apart.';
            END IF;
        END LOOP;
        key := key || jsonb_build_array(part);
    END LOOP;
    called := millrace_internal.vault_names(names,
        jsonb_build_object('hash_key', coalesce(hash_key, present.definition #>> '{names,hash_key}', short || '_hk'), 'load_at', 'load_at', 'record_source', 'record_source')
        || (SELECT jsonb_object_agg(r, r) FROM unnest(references_to) r));
    -- The same hubs, whatever they and their columns are called by now.
    IF (SELECT jsonb_agg(m - 'as' ORDER BY n) FROM jsonb_array_elements(members) WITH ORDINALITY AS u (m, n))
       = (SELECT jsonb_agg(m::jsonb - 'as' ORDER BY n) FROM json_array_elements(present.definition -> 'hubs') WITH ORDINALITY AS u (m, n)) THEN
        members := present.definition -> 'hubs';
        called := CASE WHEN names IS NULL THEN (present.definition -> 'names')::jsonb ELSE called END;
    END IF;
    definition := json_build_object('hubs', members, 'names', called, 'record_source', record_source,
        'current', coalesce(present.definition ->> 'current', millrace_internal.vault_current_name(qualified)));

    IF present.id IS NOT NULL THEN
        PERFORM millrace_internal.vault_check_same(present, definition, '{hubs}', 'The hash key of every row is made from them.');
        PERFORM millrace_internal.vault_check_same(present, definition, '{names}', 'The columns are in use under the names that they have; ALTER TABLE … RENAME COLUMN is followed.');
        PERFORM millrace_internal.vault_update(present, definition, staging, json_build_object('key', key));
        RETURN;
    END IF;

    PERFORM millrace_internal.vault_add(caller, 'link',
        millrace_internal.vault_table(caller, name,
            ARRAY[called ->> 'hash_key'] || ARRAY(SELECT called ->> r FROM unnest(references_to) WITH ORDINALITY AS u (r, n) ORDER BY n) || ARRAY[called ->> 'load_at', called ->> 'record_source'],
            ARRAY['uuid'] || array_fill('uuid'::text, ARRAY[cardinality(labels)]) || ARRAY['timestamptz', 'text'],
            ARRAY['uuid'] || array_fill('uuid'::text, ARRAY[cardinality(labels)]) || ARRAY['timestamptz', 'text'],
            1, '{}', '', false),
        definition, staging, json_build_object('key', key),
        concat_ws(', ', millrace_internal.vault_selected(called, '{hash_key}'),
                  (SELECT string_agg(format('t.%I AS hub_%s', called ->> r, n), ', ' ORDER BY n) FROM unnest(references_to) WITH ORDINALITY AS u (r, n)),
                  millrace_internal.vault_selected(called, '{load_at,record_source}')));
END
$$;
COMMENT ON FUNCTION millrace_internal.create_link(regrole, text, regclass, text[], json, text, json, text, boolean) IS 'the other half of millrace.create_link';

CREATE FUNCTION millrace.create_link(name text, source regclass, hubs text[], columns json DEFAULT NULL, hash_key text DEFAULT NULL, names json DEFAULT NULL, record_source text DEFAULT NULL,
    replace boolean DEFAULT false) RETURNS void
LANGUAGE C AS 'MODULE_PATHNAME', 'millrace_declare';
COMMENT ON FUNCTION millrace.create_link(text, regclass, text[], json, text, json, text, boolean) IS
    'declares a link: one row for each combination of hubs'' keys that ever stood in one row of a staging table';
REVOKE ALL ON FUNCTION millrace.create_link(text, regclass, text[], json, text, json, text, boolean) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION millrace.create_link(text, regclass, text[], json, text, json, text, boolean) TO millrace_admin;

-- ---- dropping ----------------------------------------------------------------------------------------------

-- What stands on a hub, link or satellite.
CREATE FUNCTION millrace_internal.vault_dependents(target_id integer) RETURNS SETOF millrace.target
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp AS $$
    SELECT t.* FROM millrace.target t
    WHERE (t.kind = 'link' AND EXISTS (SELECT FROM json_array_elements(t.definition -> 'hubs') h WHERE (h ->> 'id')::integer = vault_dependents.target_id))
       OR (t.kind = 'satellite' AND ((t.definition #>> '{parent,id}')::integer = vault_dependents.target_id
           OR EXISTS (SELECT FROM json_array_elements(t.definition #> '{parent,hubs}') h WHERE (h ->> 'id')::integer = vault_dependents.target_id)))
       OR (t.kind = 'pit' AND ((t.definition #>> '{parent,id}')::integer = vault_dependents.target_id
           OR EXISTS (SELECT FROM json_array_elements_text(t.definition -> 'satellites') e WHERE e::integer = vault_dependents.target_id)))
       OR (t.kind = 'mart' AND EXISTS (SELECT FROM pg_depend d JOIN pg_rewrite r ON r.oid = d.objid
                                       WHERE d.classid = 'pg_rewrite'::regclass AND d.refclassid = 'pg_class'::regclass
                                         AND d.refobjid = (SELECT to_regclass(p.definition ->> 'current') FROM millrace.target p WHERE p.id = vault_dependents.target_id)
                                         AND r.ev_class = to_regclass(format('millrace_def.mart_%s', t.id))))
$$;
COMMENT ON FUNCTION millrace_internal.vault_dependents(integer) IS 'what stands on a hub, link or satellite';

-- One hub, link, satellite or point-in-time table; with cascade also what stands on it.  Called by drop_target, which tells the streams.
CREATE FUNCTION millrace_internal.drop_target_vault(caller regrole, target_id integer, cascade boolean) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    target millrace.target;
    current_view regclass;
    dependent record;
BEGIN
    SELECT t.* INTO STRICT target FROM millrace.target t WHERE t.id = target_id;
    current_view := to_regclass(target.definition ->> 'current');
    FOR dependent IN SELECT d.id, d.kind, d.relation FROM millrace_internal.vault_dependents(target_id) d ORDER BY d.id DESC
    LOOP
        IF NOT cascade THEN
            RAISE EXCEPTION '% % stands on %', dependent.kind, dependent.relation, target.relation
                USING ERRCODE = 'dependent_objects_still_exist', HINT = 'millrace.drop_table(…, cascade => true) drops what stands on it, too.';
        END IF;
        IF EXISTS (SELECT FROM millrace.target t WHERE t.id = dependent.id) THEN
            PERFORM millrace_internal.drop_target(caller, dependent.id, true);
        END IF;
    END LOOP;
    EXECUTE format('DROP VIEW IF EXISTS millrace_def.%s_%s', target.kind, target.id);
    DELETE FROM millrace.target t WHERE t.id = target_id;
    IF target.kind = 'pit' THEN
        IF EXISTS (SELECT FROM pg_class c WHERE c.oid = target.relation) THEN
            PERFORM millrace_internal.execute_as(caller, format('DROP VIEW %s%s', target.relation, CASE WHEN cascade THEN ' CASCADE' ELSE '' END));
        END IF;
        EXECUTE format('DROP TABLE millrace_state.pit_%s', target.id);
        RETURN;
    END IF;
    IF current_view IS NOT NULL THEN
        IF to_regprocedure((target.definition ->> 'as_of') || '(timestamptz)') IS NOT NULL THEN
            PERFORM millrace_internal.execute_as(caller, format('DROP FUNCTION %s(timestamptz)%s', target.definition ->> 'as_of', CASE WHEN cascade THEN ' CASCADE' ELSE '' END));
        END IF;
        PERFORM millrace_internal.execute_as(caller, format('DROP VIEW %s%s', current_view, CASE WHEN cascade THEN ' CASCADE' ELSE '' END));
    END IF;
    IF EXISTS (SELECT FROM pg_class c WHERE c.oid = target.relation) THEN
        PERFORM millrace_internal.execute_as(caller, format('DROP TABLE %s%s', target.relation, CASE WHEN cascade THEN ' CASCADE' ELSE '' END));
    END IF;
END
$$;
COMMENT ON FUNCTION millrace_internal.drop_target_vault(regrole, integer, boolean) IS 'drops a hub, link, satellite or point-in-time table';
