-- describe(): the SQL that declares what is there.
--
-- It begins from what was declared, and follows what users have renamed since with ALTER TABLE … RENAME COLUMN: so the
-- names that definitions know stay the same, too.

-- A text as a literal for people: in '…' when that needs no escapes, else in $$…$$ when it may stand there.
CREATE FUNCTION millrace_internal.readable_literal(value text) RETURNS text
LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp AS $fn$
    SELECT CASE WHEN value !~ '[''\\]' OR value ~ '\$\$|\$$' THEN quote_literal(value) ELSE '$$' || value || '$$' END
$fn$;
COMMENT ON FUNCTION millrace_internal.readable_literal(text) IS 'a text as an SQL literal that people can read';

-- A list of names as the literal of an array.
CREATE FUNCTION millrace_internal.readable_list(items text[]) RETURNS text
LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp AS $fn$
    SELECT millrace_internal.readable_literal('{' || string_agg(btrim(ARRAY[i]::text, '{}'), ', ' ORDER BY n) || '}')
    FROM unnest(items) WITH ORDINALITY AS u (i, n)
$fn$;
COMMENT ON FUNCTION millrace_internal.readable_list(text[]) IS 'a list of names as the literal of an array';

-- "member": value, one a line, as they stand under an argument.
CREATE FUNCTION millrace_internal.readable_members(argument text, members text[]) RETURNS text
LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp AS $fn$
    SELECT millrace_internal.readable_literal('{' || array_to_string(members, E',\n' || repeat(' ', octet_length(argument) + 8)) || '}')
    WHERE cardinality(members) > 0
$fn$;
COMMENT ON FUNCTION millrace_internal.readable_members(text, text[]) IS 'the literal of a JSON object, one member a line';

-- One call: arguments that are NULL are left out.
CREATE FUNCTION millrace_internal.readable_call(function text, name text, arguments text[]) RETURNS text
LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp AS $fn$
    SELECT format('SELECT millrace.%s(%s%s);', function, millrace_internal.readable_literal(name),
                  coalesce((SELECT string_agg(E',\n  ' || a, '' ORDER BY n) FROM unnest(arguments) WITH ORDINALITY AS u (a, n) WHERE a IS NOT NULL), ''))
$fn$;
COMMENT ON FUNCTION millrace_internal.readable_call(text, text, text[]) IS 'the text of a call of a declaring function';

-- What has been renamed since it was declared.
CREATE FUNCTION millrace_internal.readable_renames(relation regclass, before text[], after text[]) RETURNS text
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp AS $fn$
    SELECT coalesce(string_agg(format(E'\nALTER TABLE %s RENAME COLUMN %I TO %I;', relation, b, a), '' ORDER BY n), '')
    FROM unnest(before, after) WITH ORDINALITY AS u (b, a, n) WHERE b <> a
$fn$;
COMMENT ON FUNCTION millrace_internal.readable_renames(regclass, text[], text[]) IS 'the statements that rename columns as users have';

-- The name of a table, quoted, whatever the search_path.
CREATE FUNCTION millrace_internal.readable_name(relation regclass) RETURNS text
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp AS $fn$
    SELECT format('%I.%I', n.nspname, c.relname) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = relation
$fn$;
COMMENT ON FUNCTION millrace_internal.readable_name(regclass) IS 'schema and name of a table, quoted where needed';

CREATE FUNCTION millrace_internal.plain_query(role regrole, query text) RETURNS text
LANGUAGE C STRICT AS 'MODULE_PATHNAME', 'millrace_plain_query';
COMMENT ON FUNCTION millrace_internal.plain_query(regrole, text) IS
    'a SELECT as a role means it under the search_path of the calling function, with every name qualified';
CREATE FUNCTION millrace_internal.definition_expression(role regrole, query text, name text) RETURNS text
LANGUAGE C STRICT AS 'MODULE_PATHNAME', 'millrace_definition_expression';
COMMENT ON FUNCTION millrace_internal.definition_expression(regrole, text, text) IS
    'an expression of a definition view''s query, as a role means it under the search_path of the calling function, with every name qualified but those of columns';

CREATE FUNCTION millrace_internal.describe_stream(described millrace.stream) RETURNS text
LANGUAGE sql STABLE
SET intervalstyle = 'postgres'
SET search_path = pg_catalog, pg_temp AS $fn$
    SELECT millrace_internal.readable_call('create_stream', described.name, ARRAY[
               'server => ' || millrace_internal.readable_literal(described.server::text),
               'format => ' || millrace_internal.readable_literal(nullif(described.format, 'json')),
               'options => ' || millrace_internal.readable_members('options', ARRAY(
                    SELECT to_json(o.key) || ': ' || o.value FROM json_each(described.options) WITH ORDINALITY AS o (key, value, n) ORDER BY n)),
               'enrich => ' || millrace_internal.readable_members('enrich', ARRAY(
                    SELECT to_json(e.key) || ': ' || e.value FROM json_each(described.enrich) WITH ORDINALITY AS e (key, value, n) ORDER BY n)),
               'workers => ' || nullif(described.workers, 1),
               'on_error => ' || millrace_internal.readable_literal(nullif(described.on_error, 'dead_letter')),
               'max_dead_letter_share => ' || described.max_dead_letter_share,
               'letter_retention => ' || millrace_internal.readable_literal(described.letter_retention::text),
               'incident_retention => ' || millrace_internal.readable_literal(described.incident_retention::text)])
           || coalesce((SELECT string_agg(format(E'\nSELECT millrace.grant_push(%s, %s);', millrace_internal.readable_literal(described.name),
                                                 millrace_internal.readable_literal(CASE g.role::oid WHEN 0 THEN 'public' ELSE pg_get_userbyid(g.role::oid) END)),
                                          '' ORDER BY g.role::oid)
                        FROM millrace.stream_grant g WHERE g.stream_id = described.id), '')
$fn$;
COMMENT ON FUNCTION millrace_internal.describe_stream(millrace.stream) IS 'the SQL that declares a stream';

CREATE FUNCTION millrace_internal.describe_dictionary(described millrace.dictionary) RETURNS text
LANGUAGE sql STABLE
SET intervalstyle = 'postgres'
SET search_path = pg_catalog, pg_temp AS $fn$
    SELECT millrace_internal.readable_call('create_dictionary', described.name, ARRAY[
               'server => ' || millrace_internal.readable_literal(described.server::text),
               'source => ' || millrace_internal.readable_literal(millrace_internal.readable_name(described.relation)),
               'lookup => ' || millrace_internal.readable_literal(nullif(d ->> 'lookup', '<id>')),
               'type => ' || millrace_internal.readable_literal(nullif(d ->> 'type', 'get')),
               'for_each => ' || millrace_internal.readable_literal(d ->> 'for_each'),
               'entry_key => ' || millrace_internal.readable_literal(d ->> 'entry_key'),
               'ttl => ' || millrace_internal.readable_literal(nullif(make_interval(secs => (d ->> 'ttl')::double precision / 1000000),
                    CASE WHEN described.server IS NULL THEN interval '0' ELSE interval '1 minute' END)::text),
               'cache_size => ' || millrace_internal.readable_literal(nullif(pg_size_pretty((d ->> 'cache_size')::bigint), '16 MB')),
               'max_value => ' || millrace_internal.readable_literal(nullif(pg_size_pretty((d ->> 'max_value')::bigint), '1024 kB')),
               'on_down => ' || millrace_internal.readable_literal(nullif(d ->> 'on_down', 'wait'))])
    FROM (SELECT described.definition AS d) AS definition
$fn$;
COMMENT ON FUNCTION millrace_internal.describe_dictionary(millrace.dictionary) IS 'the SQL that declares a dictionary';

CREATE FUNCTION millrace_internal.describe_channel(described millrace.channel) RETURNS text
LANGUAGE sql STABLE
SET intervalstyle = 'postgres'
SET search_path = pg_catalog, pg_temp AS $fn$
    SELECT millrace_internal.readable_call('create_channel', described.name, ARRAY[
               'server => ' || millrace_internal.readable_literal(described.server::text),
               'options => ' || millrace_internal.readable_members('options', ARRAY(
                    SELECT to_json(o.key) || ': ' || o.value FROM json_each(described.options) WITH ORDINALITY AS o (key, value, n) ORDER BY n)),
               'message => ' || millrace_internal.readable_literal(described.message),
               'give_up => ' || millrace_internal.readable_literal(nullif(described.give_up, '24 hours')::text),
               'digest_above => ' || nullif(described.digest_above, 20),
               'on_promote => ' || millrace_internal.readable_literal(nullif(described.on_promote, 'send')),
               CASE WHEN described.retention IS DISTINCT FROM interval '7 days'
                    THEN 'retention => ' || coalesce(millrace_internal.readable_literal(described.retention::text), 'NULL') END])
$fn$;
COMMENT ON FUNCTION millrace_internal.describe_channel(millrace.channel) IS 'the SQL that declares a channel';

-- How many tables stand before a stream, each of which enriches the next one's messages.
CREATE FUNCTION millrace_internal.stream_level(stream_id integer, depth integer DEFAULT 0) RETURNS integer
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp AS $fn$
BEGIN
    RETURN CASE WHEN depth < 20 THEN coalesce((
        SELECT max(1 + millrace_internal.stream_level(t.stream_id, depth + 1))
        FROM millrace.stream s, millrace_internal.enriching(s.enrich) e
        JOIN millrace.dictionary d ON d.name = e.dictionary JOIN millrace.staging t ON t.relation = d.relation
        WHERE s.id = stream_level.stream_id), 0) ELSE 0 END;
END
$fn$;
COMMENT ON FUNCTION millrace_internal.stream_level(integer, integer) IS 'how many streams have to be declared before this one';

-- A mapping as short as it can be said: path, [path, type] or [path, type, format].
CREATE FUNCTION millrace_internal.readable_mapping(spec json, default_type text) RETURNS text
LANGUAGE sql STRICT STABLE
SET search_path = pg_catalog, pg_temp AS $fn$
    SELECT CASE WHEN spec ->> 'format' IS NOT NULL THEN format('[%s, %s, %s]', path, type, spec -> 'format')
                WHEN spec ->> 'type' <> default_type THEN format('[%s, %s]', path, type)
                WHEN json_array_length(spec -> 'paths') = 1 THEN path
                ELSE format('[%s]', path) END
    FROM (SELECT CASE json_array_length(spec -> 'paths') WHEN 1 THEN (spec -> 'paths' -> 0)::text
                      ELSE (SELECT '[' || string_agg(p::text, ', ' ORDER BY n) || ']' FROM json_array_elements(spec -> 'paths') WITH ORDINALITY AS u (p, n)) END AS path,
                 -- The name that people use.
                 to_json(CASE spec ->> 'type' WHEN 'timestamp with time zone' THEN 'timestamptz' ELSE spec ->> 'type' END)::text AS type) AS s
$fn$;
COMMENT ON FUNCTION millrace_internal.readable_mapping(json, text) IS 'one mapping as a user would write it';

-- One expression: the user's own text as long as it says the same without any search_path; else as PostgreSQL prints it in the definition view (viewed), which has
-- followed renames.  Either is over columns as they were declared, which the table has in source.
CREATE FUNCTION millrace_internal.readable_expression(described millrace.staging, viewed text, source text, name text, expression text) RETURNS text
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp AS $fn$
DECLARE
    printed text := millrace_internal.definition_expression(described.owner, viewed, name);
    alone jsonb := described.definition::jsonb - '{route,deleted,filter,expect}'::text[];
    said text;
BEGIN
    -- Others may mean nothing.
    alone := jsonb_set(alone, '{computed}', (SELECT coalesce(jsonb_agg(CASE WHEN ':computed ' || (c ->> 'name') = name THEN c ELSE c || '{"expression": "NULL"}' END ORDER BY n), '[]')
                                             FROM jsonb_array_elements(alone -> 'computed') WITH ORDINALITY AS u (c, n)));
    IF name LIKE ':expect %' THEN
        alone := alone || jsonb_build_object('expect', jsonb_build_array(jsonb_build_object('name', substr(name, 9), 'expression', expression)));
    ELSIF name NOT LIKE ':computed %' THEN
        alone := alone || jsonb_build_object(substr(name, 2), expression);
    END IF;
    described.definition := alone;
    BEGIN
        said := millrace_internal.definition_expression(described.owner, millrace_internal.plain_query(described.owner, millrace_internal.staging_query(described, source)), name);
    EXCEPTION WHEN OTHERS THEN
        NULL; -- names mean nothing without the search_path of whoever declared it, or have changed
    END;
    RETURN CASE WHEN said = printed THEN expression ELSE printed END;
END
$fn$;
COMMENT ON FUNCTION millrace_internal.readable_expression(millrace.staging, text, text, text, text) IS 'an expression of a staging table as it means the same now, whatever the search_path';

-- The definition of a staging table with types and expressions as one says them now.
CREATE FUNCTION millrace_internal.readable_definition(described millrace.staging) RETURNS json
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp AS $fn$
DECLARE
    definition jsonb := described.definition::jsonb;
    viewed text := rtrim(pg_get_viewdef(format('millrace_def.staging_%s', described.id)::regclass), ';');
    source text := (SELECT format('(SELECT %s FROM %s AS t)', string_agg(format('t.%I AS %I', millrace_internal.definition_column('staging', described.id, c.name), c.name), ', '), described.relation)
                    FROM millrace_internal.staging_columns(described.definition) c);
BEGIN
    definition := definition || jsonb_build_object(
        'columns', (SELECT jsonb_agg(CASE WHEN EXISTS (SELECT FROM jsonb_array_elements(definition -> 'computed') o WHERE o -> 'name' = c -> 'name') THEN c
                                          ELSE c || jsonb_build_object('type', millrace_internal.vault_column_type(described, c ->> 'name')) END ORDER BY n)
                    FROM jsonb_array_elements(definition -> 'columns') WITH ORDINALITY AS u (c, n)),
        'computed', (SELECT coalesce(jsonb_agg(c || jsonb_build_object('type', millrace_internal.vault_column_type(described, c ->> 'name')) ORDER BY n), '[]')
                     FROM jsonb_array_elements(definition -> 'computed') WITH ORDINALITY AS u (c, n)));
    described.definition := definition;
    RETURN definition
        || (SELECT coalesce(jsonb_object_agg(m, millrace_internal.readable_expression(described, viewed, source, ':' || m, definition ->> m)), '{}')
            FROM unnest('{route,deleted,filter}'::text[]) m WHERE definition ->> m IS NOT NULL)
        || jsonb_build_object(
               'computed', (SELECT coalesce(jsonb_agg(c || jsonb_build_object('expression', millrace_internal.readable_expression(described, viewed, source, ':computed ' || (c ->> 'name'), c ->> 'expression')) ORDER BY n), '[]')
                            FROM jsonb_array_elements(definition -> 'computed') WITH ORDINALITY AS u (c, n)),
               'expect', (SELECT coalesce(jsonb_agg(c || jsonb_build_object('expression', millrace_internal.readable_expression(described, viewed, source, ':expect ' || (c ->> 'name'), c ->> 'expression')) ORDER BY n), '[]')
                          FROM jsonb_array_elements(definition -> 'expect') WITH ORDINALITY AS u (c, n)));
END
$fn$;
COMMENT ON FUNCTION millrace_internal.readable_definition(millrace.staging) IS 'the definition of a staging table with types and expressions as they are called now';

CREATE FUNCTION millrace_internal.describe_staging(described millrace.staging) RETURNS text
LANGUAGE sql STABLE
SET intervalstyle = 'postgres'
SET search_path = pg_catalog, pg_temp AS $fn$
    SELECT millrace_internal.readable_call('create_staging', millrace_internal.readable_name(described.relation), ARRAY[
               'stream => ' || (SELECT millrace_internal.readable_literal(s.name) FROM millrace.stream s WHERE s.id = described.stream_id),
               'for_each => ' || millrace_internal.readable_literal(d ->> 'for_each'),
               'source_table => ' || millrace_internal.readable_literal(d ->> 'source_table'),
               'key => ' || millrace_internal.readable_members('key', ARRAY(
                    -- A mirror takes them from the source.
                    SELECT (c -> 'name') || ': ' || millrace_internal.readable_mapping(c, 'text')
                    FROM json_array_elements(d -> 'columns') WITH ORDINALITY AS u (c, n) WHERE (c ->> 'key')::boolean AND d ->> 'mirror' IS NULL ORDER BY n)),
               'version => ' || millrace_internal.readable_literal(
                    millrace_internal.readable_mapping(nullif((d -> 'version')::text, 'null')::json, 'bigint')),
               'event_time => ' || millrace_internal.readable_literal(
                    millrace_internal.readable_mapping(nullif((d -> 'event_time')::text, 'null')::json, 'timestamp with time zone')),
               'columns => ' || millrace_internal.readable_members('columns', ARRAY(
                    SELECT (c -> 'name') || ': ' || millrace_internal.readable_mapping(c, 'text')
                    FROM json_array_elements(d -> 'columns') WITH ORDINALITY AS u (c, n) WHERE NOT (c ->> 'key')::boolean AND d ->> 'mirror' IS NULL ORDER BY n)),
               'route => ' || millrace_internal.readable_literal(d ->> 'route'),
               'deleted => ' || millrace_internal.readable_literal(d ->> 'deleted'),
               'computed => ' || millrace_internal.readable_members('computed', ARRAY(
                    SELECT format('%s: [%s, %s]', c -> 'name', c -> 'expression', c -> 'type')
                    FROM json_array_elements(d -> 'computed') WITH ORDINALITY AS u (c, n) ORDER BY n)),
               'filter => ' || millrace_internal.readable_literal(d ->> 'filter'),
               'expect => ' || millrace_internal.readable_members('expect', ARRAY(
                    SELECT format('%s: %s', c -> 'name', c -> 'expression')
                    FROM json_array_elements(d -> 'expect') WITH ORDINALITY AS u (c, n) ORDER BY n)),
               'payload => ' || millrace_internal.readable_literal(nullif(d ->> 'payload', CASE WHEN d ->> 'for_each' IS NULL AND d ->> 'mirror' IS NULL THEN 'json' ELSE 'none' END)),
               'max_ahead => ' || millrace_internal.readable_literal(nullif((d ->> 'max_ahead')::interval, '1 day')::text),
               'tombstone => ' || millrace_internal.readable_literal(nullif(d ->> 'tombstone', 'timestamp')),
               CASE WHEN described.log IS NOT NULL THEN 'log => true' END,
               'log_partition => ' || millrace_internal.readable_literal(nullif(described.log_partition, 'none')),
               'log_retention => ' || millrace_internal.readable_literal(described.log_retention::text),
               'timezone => ' || millrace_internal.readable_literal(nullif(described.timezone, 'UTC'))])
           || millrace_internal.readable_renames(described.relation, r.before, r.after)
           || coalesce(millrace_internal.readable_renames(described.log, l.before, l.after), '')
    FROM (SELECT millrace_internal.readable_definition(described) AS d) AS definition,
         LATERAL (SELECT array_agg(c.name ORDER BY c.name) AS before, array_agg(millrace_internal.definition_column('staging', described.id, c.name) ORDER BY c.name) AS after
                  FROM millrace_internal.staging_columns(d) c) AS r,
         -- Columns of the log are found under either name.
         LATERAL (SELECT array_agg(u.before ORDER BY u.before) AS before, array_agg(u.after ORDER BY u.before) AS after FROM unnest(r.before, r.after) AS u (before, after)
                  WHERE u.before <> u.after AND EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = described.log AND a.attname = u.after)
                    AND NOT EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = described.log AND a.attname = u.before)) AS l
$fn$;
COMMENT ON FUNCTION millrace_internal.describe_staging(millrace.staging) IS 'the SQL that declares a staging table';

-- ---- hubs, links, satellites -------------------------------------------------------------------------------

-- The staging column that is declared so, as one says it now.
CREATE FUNCTION millrace_internal.readable_column(staging_id integer, declared text) RETURNS text
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp AS $fn$
    SELECT coalesce(millrace_internal.definition_column('staging', staging_id, declared), declared)
$fn$;
COMMENT ON FUNCTION millrace_internal.readable_column(integer, text) IS 'the present name of a column that a staging table declares';

-- Would the name, said now, be taken for the column that is declared so?
CREATE FUNCTION millrace_internal.speaks_of(staging_id integer, name text, declared text) RETURNS boolean
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp AS $fn$
    SELECT coalesce(millrace_internal.declared_column('staging', staging_id, name), name) = declared
$fn$;
COMMENT ON FUNCTION millrace_internal.speaks_of(integer, text, text) IS 'whether a name stands for a column that a staging table declares';

-- The members of columns => that say from where a hub's key is read; NULL when that need not be said.
CREATE FUNCTION millrace_internal.readable_key(hub_id integer, staging_id integer, declared json) RETURNS text[]
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp AS $fn$
DECLARE
    hub millrace.target;
    staging millrace.staging;
BEGIN
    SELECT t.* INTO STRICT hub FROM millrace.target t WHERE t.id = hub_id;
    SELECT s.* INTO STRICT staging FROM millrace.staging s WHERE s.id = staging_id;
    BEGIN
        IF millrace_internal.vault_key_columns(hub, staging, NULL, '')::jsonb = declared::jsonb THEN
            RETURN NULL;
        END IF;
    EXCEPTION WHEN undefined_column THEN
        NULL; -- the hub's names say nothing there
    END;
    RETURN ARRAY(SELECT format('%s: %s', to_json(k.name), to_json(millrace_internal.readable_column(staging_id, declared ->> (k.n - 1)::integer)))
                 FROM unnest(millrace_internal.hub_columns(hub_id)) WITH ORDINALITY AS k (name, n) ORDER BY k.n);
END
$fn$;
COMMENT ON FUNCTION millrace_internal.readable_key(integer, integer, json) IS 'from which columns of a staging table a hub''s key is read, as members of JSON, or NULL for those that are taken anyway';

-- The arguments hash_key and names, where they say something that is not so anyway.
CREATE FUNCTION millrace_internal.readable_names(names json, defaults json) RETURNS text
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp AS $fn$
    SELECT 'names => ' || millrace_internal.readable_literal('{' || string_agg(format('%s: %s', to_json(n.key), to_json(n.value)), ', ' ORDER BY n.key) || '}')
    FROM json_each_text(names) n WHERE n.value <> coalesce(defaults ->> n.key, n.key)
$fn$;
COMMENT ON FUNCTION millrace_internal.readable_names(json, json) IS 'the argument names of a vault table, or NULL';

CREATE FUNCTION millrace_internal.describe_hub(described millrace.target) RETURNS text
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp AS $fn$
DECLARE
    source record;
    names json := described.definition -> 'names';
    -- The hub's columns are made under the names that stand in business_key.
    keys text[];
BEGIN
    SELECT s.staging_id, g.relation, s.columns #> '{key,0}' AS key INTO source
    FROM millrace.target_source s JOIN millrace.staging g ON g.id = s.staging_id WHERE s.target_id = described.id ORDER BY s.ordinal LIMIT 1;
    SELECT array_agg(CASE WHEN millrace_internal.speaks_of(source.staging_id, k.name, source.key ->> (k.n - 1)::integer) THEN k.name
                          ELSE millrace_internal.readable_column(source.staging_id, source.key ->> (k.n - 1)::integer) END ORDER BY k.n) INTO keys
    FROM json_array_elements_text(described.definition -> 'business_key') WITH ORDINALITY AS k (name, n);
    RETURN millrace_internal.readable_call('create_hub', millrace_internal.readable_name(described.relation), ARRAY[
               'source => ' || millrace_internal.readable_literal(millrace_internal.readable_name(source.relation)),
               'business_key => ' || millrace_internal.readable_list(keys),
               millrace_internal.readable_names(names, json_build_object('hash_key', (SELECT c.relname FROM pg_class c WHERE c.oid = described.relation) || '_hk')),
               'record_source => ' || millrace_internal.readable_literal(described.definition ->> 'record_source')])
           || (SELECT millrace_internal.readable_renames(described.relation, keys || array_agg(n.value ORDER BY n.key),
                          millrace_internal.hub_columns(described.id) || array_agg(millrace_internal.definition_column('hub', described.id, n.key) ORDER BY n.key))
               FROM json_each_text(names) n);
END
$fn$;
COMMENT ON FUNCTION millrace_internal.describe_hub(millrace.target) IS 'the SQL that declares a hub';

CREATE FUNCTION millrace_internal.describe_link(described millrace.target) RETURNS text
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp AS $fn$
DECLARE
    source record;
    names json := described.definition -> 'names';
    hub record;
    hubs text[] := '{}';
    members text[] := '{}';
    key text[];
    made text[] := '{}'; -- columns as the call makes them
    now text[] := '{}';
BEGIN
    SELECT s.staging_id, g.relation, s.columns -> 'key' AS key INTO source
    FROM millrace.target_source s JOIN millrace.staging g ON g.id = s.staging_id WHERE s.target_id = described.id ORDER BY s.ordinal LIMIT 1;
    FOR hub IN SELECT t.id, t.relation, c.relname, h.member ->> 'role' AS role, h.n
               FROM json_array_elements(described.definition -> 'hubs') WITH ORDINALITY AS h (member, n)
               JOIN millrace.target t ON t.id = (h.member ->> 'id')::integer JOIN pg_class c ON c.oid = t.relation ORDER BY h.n LOOP
        hubs := hubs || concat_ws('=', hub.role, millrace_internal.readable_name(hub.relation));
        key := millrace_internal.readable_key(hub.id, source.staging_id, source.key -> (hub.n - 1)::integer);
        IF key IS NOT NULL THEN
            members := members || format('%s: {%s}', to_json(coalesce(hub.role, hub.relname)), array_to_string(key, ', '));
        END IF;
        made := made || coalesce(hub.role || '_hk', millrace_internal.definition_column('hub', hub.id, 'hash_key'));
        now := now || millrace_internal.definition_column('link', described.id, 'hub_' || hub.n);
    END LOOP;
    RETURN millrace_internal.readable_call('create_link', millrace_internal.readable_name(described.relation), ARRAY[
               'source => ' || millrace_internal.readable_literal(millrace_internal.readable_name(source.relation)),
               'hubs => ' || millrace_internal.readable_list(hubs),
               'columns => ' || millrace_internal.readable_members('columns', members),
               millrace_internal.readable_names(names, json_build_object('hash_key', (SELECT c.relname FROM pg_class c WHERE c.oid = described.relation) || '_hk')),
               'record_source => ' || millrace_internal.readable_literal(described.definition ->> 'record_source')])
           || (SELECT millrace_internal.readable_renames(described.relation, made || array_agg(n.value ORDER BY n.key),
                          now || array_agg(millrace_internal.definition_column('link', described.id, n.key) ORDER BY n.key))
               FROM json_each_text(names) n);
END
$fn$;
COMMENT ON FUNCTION millrace_internal.describe_link(millrace.target) IS 'the SQL that declares a link';

-- The members of columns => of a satellite, for one of its sources.
CREATE FUNCTION millrace_internal.satellite_members(described millrace.target, parent millrace.target, staging_id integer, source json) RETURNS text[]
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp AS $fn$
DECLARE
    hub record;
    key text[];
    members text[] := '{}';
    own json;
BEGIN
    SELECT s.columns -> 'key' INTO own FROM millrace.target_source s
    WHERE s.target_id = parent.id AND s.staging_id = satellite_members.staging_id ORDER BY s.ordinal LIMIT 1;
    FOR hub IN SELECT t.id, coalesce(h.member ->> 'role', c.relname) AS label, (h.n - 1)::integer AS n
               FROM json_array_elements(CASE parent.kind WHEN 'hub' THEN json_build_array(json_build_object('id', parent.id)) ELSE parent.definition -> 'hubs' END)
                    WITH ORDINALITY AS h (member, n)
               JOIN millrace.target t ON t.id = (h.member ->> 'id')::integer JOIN pg_class c ON c.oid = t.relation ORDER BY h.n LOOP
        -- A link's source says where its keys are.
        CONTINUE WHEN parent.kind = 'link' AND (own -> hub.n)::jsonb = (source -> 'key' -> hub.n)::jsonb;
        key := millrace_internal.readable_key(hub.id, staging_id, source -> 'key' -> hub.n);
        CONTINUE WHEN key IS NULL AND (parent.kind = 'hub' OR own IS NULL);
        IF parent.kind = 'hub' THEN
            members := members || key;
        ELSE
            members := members || format('%s: {%s}', to_json(hub.label), array_to_string(coalesce(key,
                ARRAY(SELECT format('%s: %s', to_json(k.name), to_json(millrace_internal.readable_column(staging_id, source #>> ARRAY['key', hub.n::text, (k.n - 1)::text])))
                      FROM unnest(millrace_internal.hub_columns(hub.id)) WITH ORDINALITY AS k (name, n) ORDER BY k.n)), ', '));
        END IF;
    END LOOP;
    RETURN members || ARRAY(
        SELECT format('%s: %s', to_json(a.name), coalesce(to_json(millrace_internal.readable_column(staging_id, a.declared))::text, 'null'))
        FROM (SELECT 1 AS block, k.n, k.name, source #>> ARRAY['sub_key', (k.n - 1)::text] AS declared
              FROM json_array_elements_text(described.definition -> 'sub_key') WITH ORDINALITY AS k (name, n)
              UNION ALL
              SELECT 2, u.n, u.a ->> 'name', source #>> ARRAY['attributes', u.a ->> 'number']
              FROM json_array_elements(described.definition -> 'attributes') WITH ORDINALITY AS u (a, n)) AS a
        WHERE a.declared IS NULL OR NOT millrace_internal.speaks_of(staging_id, a.name, a.declared) ORDER BY a.block, a.n);
END
$fn$;
COMMENT ON FUNCTION millrace_internal.satellite_members(millrace.target, millrace.target, integer, json) IS 'from where a satellite reads, as members of JSON';

CREATE FUNCTION millrace_internal.describe_satellite(described millrace.target) RETURNS text
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp AS $fn$
DECLARE
    d json := described.definition;
    names json := d -> 'names';
    source record;
    parent millrace.target;
    arguments text[];
    attributes text[] := ARRAY(SELECT a ->> 'name' FROM json_array_elements(d -> 'attributes') a ORDER BY (a ->> 'number')::integer);
    kept text[] := ARRAY(SELECT a ->> 'name' FROM json_array_elements(d -> 'attributes') a WHERE a ->> 'removed' IS NULL ORDER BY (a ->> 'number')::integer);
    sub_key text[] := ARRAY(SELECT json_array_elements_text(d -> 'sub_key'));
BEGIN
    SELECT s.staging_id, g.relation, s.columns INTO source
    FROM millrace.target_source s JOIN millrace.staging g ON g.id = s.staging_id WHERE s.target_id = described.id ORDER BY s.ordinal LIMIT 1;
    SELECT t.* INTO STRICT parent FROM millrace.target t WHERE t.id = (d #>> '{parent,id}')::integer;
    arguments := ARRAY[
        'source => ' || millrace_internal.readable_literal(millrace_internal.readable_name(source.relation)),
        'parent => ' || millrace_internal.readable_literal(millrace_internal.readable_name(parent.relation)),
        'attributes => ' || millrace_internal.readable_list(attributes),
        'history => ' || millrace_internal.readable_literal(nullif(d ->> 'history', 'changes')),
        'kind => ' || millrace_internal.readable_literal(nullif(d ->> 'kind', 'standard')),
        'sub_key => ' || millrace_internal.readable_list(sub_key),
        'driving_key => ' || millrace_internal.readable_list(ARRAY(SELECT json_array_elements_text(nullif((d -> 'driving_key')::text, 'null')::json))),
        'columns => ' || millrace_internal.readable_members('columns', millrace_internal.satellite_members(described, parent, source.staging_id, source.columns)),
        millrace_internal.readable_names(names, json_build_object('hash_key', millrace_internal.definition_column(parent.kind, parent.id, 'hash_key'))),
        'record_source => ' || millrace_internal.readable_literal(d ->> 'record_source')];
    RETURN millrace_internal.readable_call('create_satellite', millrace_internal.readable_name(described.relation), arguments)
           -- Numbers of attributes that were taken away stay taken.
           || CASE WHEN kept = attributes THEN ''
                   ELSE E'\n' || millrace_internal.readable_call('create_satellite', millrace_internal.readable_name(described.relation),
                       arguments[1:2] || ('attributes => ' || millrace_internal.readable_list(kept)) || arguments[4:7]
                       || ('columns => ' || millrace_internal.readable_members('columns', ARRAY(
                               SELECT m FROM unnest(millrace_internal.satellite_members(described, parent, source.staging_id, source.columns)) m
                               WHERE NOT EXISTS (SELECT FROM unnest(attributes) a WHERE a <> ALL (kept) AND starts_with(m, to_json(a) || ':')))))
                       || arguments[9:10] || 'replace => true'::text) END
           || (SELECT millrace_internal.readable_renames(described.relation, sub_key || attributes || array_agg(n.value ORDER BY n.key),
                          ARRAY(SELECT millrace_internal.definition_column('satellite', described.id, 'sub_key_' || n) FROM generate_series(1, cardinality(sub_key)) n ORDER BY n)
                          || ARRAY(SELECT millrace_internal.definition_column('satellite', described.id, 'attribute_' || (a ->> 'number'))
                                   FROM json_array_elements(d -> 'attributes') a ORDER BY (a ->> 'number')::integer)
                          || array_agg(millrace_internal.definition_column('satellite', described.id, n.key) ORDER BY n.key))
               FROM json_each_text(names) n);
END
$fn$;
COMMENT ON FUNCTION millrace_internal.describe_satellite(millrace.target) IS 'the SQL that declares a satellite';

-- Sources that were added; the first one stands in the declaration itself.
CREATE FUNCTION millrace_internal.describe_sources(described millrace.target) RETURNS text
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp AS $fn$
DECLARE
    source record;
    hub record;
    members text[];
    key text[];
    result text := '';
BEGIN
    FOR source IN SELECT s.staging_id, g.relation, s.columns,
                         EXISTS (SELECT FROM millrace.target_source o WHERE o.target_id = s.target_id AND o.staging_id = s.staging_id AND o.ordinal < s.ordinal) AS again
                  FROM millrace.target_source s JOIN millrace.staging g ON g.id = s.staging_id
                  WHERE s.target_id = described.id ORDER BY s.ordinal OFFSET 1 LOOP
        members := '{}';
        IF described.kind = 'hub' THEN
            SELECT array_agg(format('%s: %s', to_json(k.name), to_json(millrace_internal.readable_column(source.staging_id, source.columns #>> ARRAY['key', '0', (k.n - 1)::text]))) ORDER BY k.n)
            INTO members
            FROM unnest(millrace_internal.hub_columns(described.id)) WITH ORDINALITY AS k (name, n)
            WHERE source.again OR NOT millrace_internal.speaks_of(source.staging_id, k.name, source.columns #>> ARRAY['key', '0', (k.n - 1)::text]);
        ELSIF described.kind = 'link' THEN
            FOR hub IN SELECT t.id, coalesce(h.member ->> 'role', c.relname) AS label, (h.n - 1)::integer AS n
                       FROM json_array_elements(described.definition -> 'hubs') WITH ORDINALITY AS h (member, n)
                       JOIN millrace.target t ON t.id = (h.member ->> 'id')::integer JOIN pg_class c ON c.oid = t.relation ORDER BY h.n LOOP
                key := millrace_internal.readable_key(hub.id, source.staging_id, source.columns -> 'key' -> hub.n);
                CONTINUE WHEN key IS NULL;
                members := members || format('%s: {%s}', to_json(hub.label), array_to_string(key, ', '));
            END LOOP;
        ELSE
            members := millrace_internal.satellite_members(described, (SELECT t FROM millrace.target t WHERE t.id = (described.definition #>> '{parent,id}')::integer),
                                                           source.staging_id, source.columns);
        END IF;
        result := result || E'\n' || millrace_internal.readable_call('add_source', millrace_internal.readable_name(described.relation), ARRAY[
            'source => ' || millrace_internal.readable_literal(millrace_internal.readable_name(source.relation)),
            'columns => ' || millrace_internal.readable_members('columns', members),
            'record_source => ' || millrace_internal.readable_literal(source.columns ->> 'record_source')]);
    END LOOP;
    RETURN result;
END
$fn$;
COMMENT ON FUNCTION millrace_internal.describe_sources(millrace.target) IS 'the SQL that adds the further sources of a hub, link or satellite';

-- ---- marts -------------------------------------------------------------------------------------------------

-- The user's own text as long as it says the same as the definition without any search_path, in which it may stand within something; else the
-- definition as PostgreSQL prints it, which has followed renames.
CREATE FUNCTION millrace_internal.readable_query(what text, view regclass, owner regrole, query text, around text DEFAULT '%s') RETURNS text
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp AS $fn$
DECLARE
    said text;
    printed text;
BEGIN
    IF view IS NULL THEN
        RAISE EXCEPTION 'the definition of % is gone', what
            USING ERRCODE = 'undefined_object', DETAIL = 'It was dropped with what it reads.';
    END IF;
    BEGIN
        said := millrace_internal.plain_query(owner, format(around, rtrim(query, E'; \n')));
    EXCEPTION WHEN OTHERS THEN
        NULL; -- names mean nothing without the search_path of whoever declared it, or have changed
    END;
    printed := millrace_internal.plain_query(owner, rtrim(pg_get_viewdef(view), ';'));
    IF said IS DISTINCT FROM printed THEN
        query := E'\n' || printed || ' ';
    END IF;
    RETURN CASE WHEN query ~ '\$\$|\$$' THEN quote_literal(query) ELSE '$$' || query || '$$' END;
END
$fn$;
COMMENT ON FUNCTION millrace_internal.readable_query(text, regclass, regrole, text, text) IS 'the query of a definition view as a literal, as it was typed where that means the same';

CREATE FUNCTION millrace_internal.describe_mart(described millrace.target) RETURNS text
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp AS $fn$
    SELECT format('SELECT millrace.create_mart(%s, %s%s%s);', millrace_internal.readable_literal(millrace_internal.readable_name(described.relation)),
                  millrace_internal.readable_query('mart ' || described.relation, to_regclass('millrace_def.mart_' || described.id), described.owner, described.definition ->> 'query'),
                  coalesce(E',\n  stripes => ' || nullif((described.definition ->> 'stripes')::integer, 1), ''),
                  coalesce(E',\n  order_by => ' || millrace_internal.readable_literal(described.definition ->> 'order_by'), ''))
$fn$;
COMMENT ON FUNCTION millrace_internal.describe_mart(millrace.target) IS 'the SQL that declares a mart';

-- ---- models ------------------------------------------------------------------------------------------------

-- What stands around the query in the definition of a model.
CREATE FUNCTION millrace_internal.around_model_query(described millrace.model, view regclass) RETURNS text
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp AS $fn$
BEGIN
    IF described.kind = 'xgboost' THEN
        RETURN (SELECT format('SELECT %s FROM (%%s) AS q', replace(string_agg(format('%s AS %I', c.expression, c.name), ', '), '%', '%%'))
                FROM millrace_internal.trees_columns(millrace_internal.plain_query(described.owner, rtrim(described.query, E'; \n')), described.label, described.entity, described.categories) AS c);
    END IF;
    IF described.is_online THEN
        RETURN '%s';
    END IF;
    RETURN (SELECT format('SELECT %s FROM (%%s) AS q (%s)', string_agg('q.' || a.attname || CASE a.attname WHEN 'weight' THEN '::double precision AS weight' WHEN 'at' THEN '::timestamptz AS at' ELSE '' END, ', ' ORDER BY a.attnum),
                          string_agg(a.attname, ', ' ORDER BY a.attnum))
            FROM pg_attribute a WHERE a.attrelid = view AND a.attnum > 0);
EXCEPTION WHEN OTHERS THEN
    RETURN '%s'; -- as in readable_query
END
$fn$;
COMMENT ON FUNCTION millrace_internal.around_model_query(millrace.model, regclass) IS 'what stands around the query in the definition of a model, as a format';

CREATE FUNCTION millrace_internal.describe_model(described millrace.model) RETURNS text
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp AS $fn$
    SELECT millrace_internal.readable_call('create_model', millrace_internal.readable_name(described.relation), ARRAY[
               'kind => ' || millrace_internal.readable_literal(described.kind),
               'query => ' || millrace_internal.readable_query('model ' || described.relation, view, described.owner, described.query,
                    millrace_internal.around_model_query(described, view)),
               'params => ' || millrace_internal.readable_members('params', ARRAY(
                    SELECT to_json(p.key) || ': ' || p.value FROM json_each(described.params) WITH ORDINALITY AS p (key, value, n) ORDER BY n)),
               CASE WHEN described.catalogue IS NOT NULL THEN 'catalogue => ' ||
                    millrace_internal.readable_query('the catalogue of model ' || described.relation, to_regclass('millrace_def.model_catalogue_' || described.id),
                                                     described.owner, described.catalogue) END,
               CASE WHEN described.popular IS NOT NULL THEN 'popular => ' ||
                    millrace_internal.readable_query('what is popular for model ' || described.relation, to_regclass('millrace_def.model_popular_' || described.id), described.owner, described.popular,
                        millrace_internal.around_popular_query((SELECT count(*)::integer FROM pg_attribute a WHERE a.attrelid = to_regclass('millrace_def.model_popular_' || described.id) AND a.attnum > 0))) END,
               'keep => ' || described.keep,
               'label => ' || millrace_internal.readable_literal(described.label),
               'entity => ' || millrace_internal.readable_literal(described.entity::text),
               'categories => ' || millrace_internal.readable_literal(nullif(described.categories::text, '{}')),
               CASE WHEN described.is_online THEN 'online => true' END])
    FROM to_regclass('millrace_def.model_' || described.id) AS view
$fn$;
COMMENT ON FUNCTION millrace_internal.describe_model(millrace.model) IS 'the SQL that declares a model';

-- ---- rules -------------------------------------------------------------------------------------------------

CREATE FUNCTION millrace_internal.describe_rule(described millrace.target) RETURNS text
LANGUAGE sql STABLE
SET intervalstyle = 'postgres'
SET search_path = pg_catalog, pg_temp AS $fn$
    SELECT millrace_internal.readable_call('create_rule', r.name, ARRAY[
               'kind => ' || millrace_internal.readable_literal(r.kind),
               'source => ' || millrace_internal.readable_literal(d ->> 'source'),
               'predicate => ' || millrace_internal.readable_literal(d ->> 'predicate'),
               CASE WHEN d ->> 'of_objects' = 'false' AND d ->> 'key' = '[]' AND r.kind <> 'absence' THEN 'key => ''{}'''
                    WHEN (d ->> 'of_objects' = 'false' OR r.kind IN ('frequency', 'absence')) AND d ->> 'key' <> '[]' THEN 'key => ' || millrace_internal.readable_list(ARRAY(SELECT json_array_elements_text(d -> 'key'))) END,
               'details => ' || millrace_internal.readable_list(ARRAY(SELECT json_array_elements_text(d -> 'details'))),
               'channels => ' || millrace_internal.readable_list(ARRAY(SELECT c.name FROM unnest(r.channels) WITH ORDINALITY AS u (id, n) JOIN millrace.channel c ON c.id = u.id ORDER BY n)),
               'severity => ' || millrace_internal.readable_literal(nullif(r.severity, 'warning')),
               'rule_group => ' || millrace_internal.readable_literal(r.rule_group),
               'ordinal => ' || r.ordinal,
               CASE WHEN d ->> 'again' = 'true' THEN 'again => true' END,
               'event_time => ' || millrace_internal.readable_literal(d ->> 'event_time'),
               'group_by => ' || millrace_internal.readable_list(ARRAY(SELECT json_array_elements_text(d -> 'group_by'))),
               'count => ' || (d ->> 'count'),
               'distinct_values => ' || millrace_internal.readable_literal(d ->> 'distinct_values'),
               'sum => ' || millrace_internal.readable_literal((regexp_match(d ->> 'sum', '^\((.*)\)::pg_catalog.numeric$'))[1]),
               'at_least => ' || (d ->> 'at_least'),
               'within => ' || millrace_internal.readable_literal(make_interval(secs => (d ->> 'within')::double precision / 1000000)::text),
               'lateness => ' || millrace_internal.readable_literal(make_interval(secs => nullif(d ->> 'lateness', d ->> 'within')::double precision / 1000000)::text),
               'max_ahead => ' || millrace_internal.readable_literal(nullif(make_interval(secs => (d ->> 'max_ahead')::double precision / 1000000), '1 minute')::text),
               'resolve_when => ' || millrace_internal.readable_literal(d ->> 'resolve_when'),
               'for_interval => ' || millrace_internal.readable_literal(make_interval(secs => (d ->> 'for_interval')::double precision / 1000000)::text),
               'forget => ' || millrace_internal.readable_literal(make_interval(secs => (d ->> 'forget')::double precision / 1000000)::text),
               'tag => ' || millrace_internal.readable_literal(d ->> 'tag'),
               CASE WHEN r.max_age IS NULL THEN 'max_age => NULL' ELSE 'max_age => ' || millrace_internal.readable_literal(nullif(r.max_age, '1 hour')::text) END,
               'cooldown => ' || millrace_internal.readable_literal(r.cooldown::text),
               'repeat_every => ' || millrace_internal.readable_literal(r.repeat_every::text),
               CASE WHEN r.send_resolved THEN 'send_resolved => true' END,
               CASE WHEN r.send_history THEN 'send_history => true' END,
               CASE WHEN r.retention IS NULL THEN 'retention => NULL' ELSE 'retention => ' || millrace_internal.readable_literal(nullif(r.retention, '90 days')::text) END])
    FROM millrace.rule r, (SELECT described.definition AS d) AS definition WHERE r.target_id = described.id
$fn$;
COMMENT ON FUNCTION millrace_internal.describe_rule(millrace.target) IS 'the SQL that declares a rule';

-- ---- sinks -------------------------------------------------------------------------------------------------

CREATE FUNCTION millrace_internal.describe_sink(described millrace.target) RETURNS text
LANGUAGE sql STABLE
SET intervalstyle = 'postgres'
SET search_path = pg_catalog, pg_temp AS $fn$
    SELECT millrace_internal.readable_call('create_sink', s.name, ARRAY[
               'source => ' || millrace_internal.readable_literal(d ->> 'source'),
               CASE WHEN cardinality(s.channels) = 1 THEN 'channel => ' || millrace_internal.readable_literal((SELECT c.name FROM millrace.channel c WHERE c.id = s.channels[1])) END,
               CASE WHEN cardinality(s.channels) > 1 THEN
                   'channels => ' || millrace_internal.readable_list(ARRAY(SELECT c.name FROM unnest(s.channels) WITH ORDINALITY AS u (id, n) JOIN millrace.channel c ON c.id = u.id ORDER BY n)) END,
               'message => ' || millrace_internal.readable_literal(d ->> 'message'),
               'message_key => ' || millrace_internal.readable_literal(d ->> 'message_key'),
               'filter => ' || millrace_internal.readable_literal(d ->> 'filter'),
               CASE WHEN s.initial THEN 'initial => true' END,
               'at_most_every => ' || millrace_internal.readable_literal(s.at_most_every::text)])
    FROM millrace.sink s, (SELECT described.definition AS d) AS definition WHERE s.target_id = described.id
$fn$;
COMMENT ON FUNCTION millrace_internal.describe_sink(millrace.target) IS 'the SQL that declares a sink';

-- ---- describe ----------------------------------------------------------------------------------------------

CREATE FUNCTION millrace_internal.describe_target(described millrace.target) RETURNS text
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp AS $fn$
DECLARE
    text text;
BEGIN
    IF described.kind = 'model' THEN
        RETURN (SELECT millrace_internal.describe_model(m) FROM millrace.model m WHERE m.target_id = described.id);
    END IF;
    EXECUTE format('SELECT millrace_internal.describe_%s($1)', described.kind) INTO text USING described;
    RETURN text || CASE WHEN described.kind IN ('hub', 'link', 'satellite') THEN millrace_internal.describe_sources(described) ELSE '' END;
END
$fn$;
COMMENT ON FUNCTION millrace_internal.describe_target(millrace.target) IS 'the SQL that declares a target';

-- Who may see how something is declared: its owner, and who watches.
CREATE FUNCTION millrace_internal.may_read(caller regrole, owner regrole) RETURNS boolean
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp AS $fn$
    SELECT pg_has_role(caller, owner, 'USAGE') OR pg_has_role(caller, 'millrace_monitor', 'USAGE') OR pg_has_role(caller, 'millrace_admin', 'USAGE')
$fn$;
COMMENT ON FUNCTION millrace_internal.may_read(regrole, regrole) IS 'whether a role may see what another one has declared';

CREATE FUNCTION millrace_internal.describe(caller regrole, kind text, name text) RETURNS text
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp AS $fn$
#variable_conflict use_variable
DECLARE
    stream millrace.stream;
    staging millrace.staging;
    target millrace.target;
    dictionary millrace.dictionary;
    channel millrace.channel;
    model millrace.model;
    relation regclass;
    owner regrole;
    other text;
    known text[] := '{stream,staging}' || ARRAY(SELECT substr(p.proname, 10) FROM pg_proc p
        WHERE p.pronamespace = 'millrace_internal'::regnamespace AND p.proname LIKE 'describe\_%'
          AND p.proname NOT IN ('describe_stream', 'describe_staging', 'describe_target', 'describe_sources') ORDER BY 1);
BEGIN
    IF kind IS NULL AND name IS NULL THEN
        RETURN (SELECT string_agg(d.text, E'\n\n' ORDER BY d.step, d.id) FROM (
                    -- Tables that enrich come before the streams that they enrich.
                    SELECT 3 * coalesce(1 + (SELECT millrace_internal.stream_level(t.stream_id) FROM millrace.staging t WHERE t.relation = d.relation), 0) AS step,
                           d.id, millrace_internal.describe_dictionary(d) AS text FROM millrace.dictionary d WHERE millrace_internal.may_read(caller, d.owner)
                    UNION ALL
                    SELECT 3 * millrace_internal.stream_level(s.id) + 1, s.id, millrace_internal.describe_stream(s) FROM millrace.stream s WHERE millrace_internal.may_read(caller, s.owner)
                    UNION ALL
                    SELECT 3 * millrace_internal.stream_level(s.stream_id) + 2, s.id, millrace_internal.describe_staging(s) FROM millrace.staging s WHERE millrace_internal.may_read(caller, s.owner)
                    UNION ALL
                    SELECT 900, c.id, millrace_internal.describe_channel(c) FROM millrace.channel c WHERE millrace_internal.may_read(caller, c.owner)
                    UNION ALL
                    -- What was replaced may stand on something newer than it is.
                    SELECT 1000 + array_position('{hub,link,satellite,pit,mart,rule,sink}'::text[], t.kind), t.id, millrace_internal.describe_target(t) FROM millrace.target t WHERE t.kind <> 'model' AND millrace_internal.may_read(caller, t.owner)
                    UNION ALL
                    SELECT 2000, m.id, millrace_internal.describe_model(m) FROM millrace.model m WHERE millrace_internal.may_read(caller, m.owner)) AS d);
    END IF;
    PERFORM millrace_internal.check_word('kind', kind, known);
    IF kind = 'stream' THEN
        SELECT s.* INTO stream FROM millrace.stream s WHERE s.name = name;
        owner := stream.owner;
    ELSIF kind = 'dictionary' THEN
        SELECT d.* INTO dictionary FROM millrace.dictionary d WHERE d.name = name;
        owner := dictionary.owner;
    ELSIF kind = 'channel' THEN
        SELECT c.* INTO channel FROM millrace.channel c WHERE c.name = name;
        owner := channel.owner;
    ELSIF kind = 'rule' THEN
        SELECT t.* INTO target FROM millrace.rule r JOIN millrace.target t ON t.id = r.target_id WHERE r.name = name;
        owner := target.owner;
    ELSIF kind = 'sink' THEN
        SELECT t.* INTO target FROM millrace.sink s JOIN millrace.target t ON t.id = s.target_id WHERE s.name = name;
        owner := target.owner;
    ELSE
        relation := millrace_internal.relation(name);
        SELECT s.* INTO staging FROM millrace.staging s WHERE s.relation = relation AND kind = 'staging';
        SELECT t.* INTO target FROM millrace.target t WHERE t.relation = relation AND t.kind = kind;
        SELECT m.* INTO model FROM millrace.model m WHERE m.relation = relation AND kind = 'model';
        owner := coalesce(staging.owner, target.owner, model.owner);
    END IF;
    IF owner IS NULL THEN
        SELECT k.kind INTO other FROM (SELECT 'staging' AS kind, s.relation FROM millrace.staging s UNION ALL SELECT t.kind, t.relation FROM millrace.target t UNION ALL SELECT 'model', m.relation FROM millrace.model m) AS k
        WHERE k.relation = relation;
        RAISE EXCEPTION '% "%" does not exist', kind, coalesce(name, 'NULL')
            USING ERRCODE = 'undefined_object', HINT = coalesce('It is of kind ' || other || '.', 'describe() without arguments shows what there is.');
    END IF;
    IF NOT millrace_internal.may_read(caller, owner) THEN
        RAISE EXCEPTION 'must be owner of % "%"', kind, name USING ERRCODE = 'insufficient_privilege';
    END IF;
    RETURN CASE kind WHEN 'stream' THEN millrace_internal.describe_stream(stream) WHEN 'dictionary' THEN millrace_internal.describe_dictionary(dictionary) WHEN 'channel' THEN millrace_internal.describe_channel(channel)
                WHEN 'staging' THEN millrace_internal.describe_staging(staging) WHEN 'model' THEN millrace_internal.describe_model(model)
                ELSE millrace_internal.describe_target(target) END;
END
$fn$;
COMMENT ON FUNCTION millrace_internal.describe(regrole, text, text) IS 'the other half of millrace.describe()';

CREATE FUNCTION millrace.describe(kind text DEFAULT NULL, name text DEFAULT NULL) RETURNS text
LANGUAGE C STABLE AS 'MODULE_PATHNAME', 'millrace_declare';
COMMENT ON FUNCTION millrace.describe(text, text) IS
    'the SQL that declares a stream, dictionary, channel, staging table, hub, link, satellite, point-in-time table, mart, rule, sink or model as it is now; without arguments, everything in an order that runs';
REVOKE ALL ON FUNCTION millrace.describe(text, text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION millrace.describe(text, text) TO millrace_admin, millrace_monitor;
