-- Sinks: changed rows of a staging table or mart as messages, which are put into the outbox in the transaction that changes them.
--
-- A sink is a target of the staging table from which its rows come (millrace.target of kind 'sink', whose relation is its definition view).  The view
-- millrace_def.sink_<id> has the columns of the source's key as ":k1", ":k2", …, the key of the message as ":key" and the message, NULL of a row that
-- the filter leaves out, as ":message"; target.definition has what was declared.

CREATE TABLE millrace.sink (
    target_id integer PRIMARY KEY REFERENCES millrace.target ON DELETE CASCADE,
    name text NOT NULL UNIQUE,
    channels integer[] NOT NULL,
    -- Rows that were there when the sink was made are sent, too.
    initial boolean NOT NULL,
    -- A row's messages are at least so far apart; NULL: each change is sent.
    at_most_every interval,
    -- A version of an object changes several rows: those are sent that differ.
    several boolean NOT NULL,
    -- It knows all rows of its source: what differs from what it knows is to be sent.
    complete boolean NOT NULL DEFAULT false,
    -- Why it sends nothing, and since when; NULL: it does.
    suspended_at timestamptz,
    reason text,
    sqlstate text
);
COMMENT ON TABLE millrace.sink IS 'sinks and how their messages are sent; see the view millrace.sink_status';

-- The rows that a sink knows.  Whoever changes the row itself holds the lock of its object or group.
CREATE TABLE millrace.sink_row (
    -- Not a foreign key: it would be checked for each row of each batch.
    sink_id integer NOT NULL,
    -- The values of the source's key as a JSON list of texts.
    object text NOT NULL COLLATE "C",
    -- Of its messages.
    key text NOT NULL COLLATE "C",
    -- Of the last message; NULL: none, or one that says that the row was deleted.
    digest bytea,
    -- With at_most_every: when it was sent last, and when the change that waits is to be sent.
    sent_at timestamptz,
    due_at timestamptz,
    PRIMARY KEY (sink_id, object)
) WITH (fillfactor = 80);
COMMENT ON TABLE millrace.sink_row IS 'the rows that sinks have sent';
CREATE INDEX ON millrace.sink_row (sink_id, due_at) WHERE due_at IS NOT NULL;
CREATE INDEX ON millrace.sink_row (sink_id, sent_at) WHERE digest IS NULL AND due_at IS NULL;

-- Rows of which no message could be made.
CREATE TABLE millrace.sink_failure (
    sink_id integer NOT NULL REFERENCES millrace.sink ON DELETE CASCADE,
    object text NOT NULL COLLATE "C",
    sqlstate text NOT NULL,
    message text NOT NULL,
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (sink_id, object)
);
COMMENT ON TABLE millrace.sink_failure IS 'rows of which sinks could not make a message; see the view millrace.sink_error';

SELECT pg_catalog.pg_extension_config_dump('millrace.sink', '');
SELECT pg_catalog.pg_extension_config_dump('millrace.sink_row', '');
SELECT pg_catalog.pg_extension_config_dump('millrace.sink_failure', '');

-- ---- declaring ---------------------------------------------------------------------------------------------

CREATE FUNCTION millrace_internal.check_sink(id integer) RETURNS void
LANGUAGE C STRICT STABLE AS 'MODULE_PATHNAME', 'millrace_check_sink';
COMMENT ON FUNCTION millrace_internal.check_sink(integer) IS 'raises an error when an expression of a sink calls what it may not, or its key is not one of the row''s key';

-- The query of a sink's definition view, as its owner means it.
CREATE FUNCTION millrace_internal.sink_query(owner regrole, source regclass, definition json, keys text[]) RETURNS text
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    label text := (SELECT c.relname FROM pg_class c WHERE c.oid = source);
    message text := format(E'(%s\n)', definition ->> 'message');
BEGIN
    IF definition ->> 'filter' IS NOT NULL THEN
        message := format(E'CASE WHEN (%s\n) THEN %s END', definition ->> 'filter', message);
    END IF;
    RETURN millrace_internal.qualified_query(owner, format(E'SELECT %s(%s\n)::pg_catalog.text AS ":key", %s AS ":message", true AS ":here" FROM %s AS %I',
        (SELECT string_agg(format('%I.%I AS ":k%s", ', label, k, n), '' ORDER BY n) FROM unnest(keys) WITH ORDINALITY AS u (k, n)),
        coalesce(definition ->> 'message_key', format('coalesce(%s, ''[null]'')', millrace_internal.rule_key(source, label, keys))), message, source, label));
END
$$;
COMMENT ON FUNCTION millrace_internal.sink_query(regrole, regclass, json, text[]) IS 'the query of the definition view of a sink';

-- Makes the definition view of a sink, and checks its expressions.
CREATE FUNCTION millrace_internal.sink_define(id integer, owner regrole, query text) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    view text := format('millrace_def.sink_%s', id);
    type regtype;
BEGIN
    IF to_regclass(view) IS NOT NULL THEN
        EXECUTE format('DROP VIEW %s', view);
    END IF;
    EXECUTE format('CREATE VIEW %s AS %s', view, query);
    SELECT a.atttypid INTO STRICT type FROM pg_attribute a WHERE a.attrelid = view::regclass AND a.attname = ':message';
    IF type NOT IN ('json', 'jsonb') THEN
        RAISE EXCEPTION 'message must be json or jsonb, not %', type USING ERRCODE = 'datatype_mismatch', HINT = 'jsonb_build_object() and to_jsonb() make such values.';
    END IF;
    PERFORM millrace_internal.check_sink(id);
    EXECUTE format('ALTER VIEW %s OWNER TO %s', view, owner);
END
$$;
COMMENT ON FUNCTION millrace_internal.sink_define(integer, regrole, text) IS 'makes the definition view of a sink';

-- The columns that tell the rows of a mart apart, and of a staging table.
CREATE FUNCTION millrace_internal.sink_keys(mart millrace.target, staging millrace.staging) RETURNS text[]
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp AS $$
    SELECT CASE WHEN mart.id IS NOT NULL THEN millrace_internal.mart_groups(mart.id, mart.owner)
                ELSE (SELECT array_agg(millrace_internal.definition_column('staging', staging.id, c.name) ORDER BY n)
                      FROM millrace_internal.staging_columns(staging.definition) WITH ORDINALITY AS c (name, type, in_key, technical, n) WHERE c.in_key) END
$$;
COMMENT ON FUNCTION millrace_internal.sink_keys(millrace.target, millrace.staging) IS 'the columns that tell the rows of a sink''s source apart';

CREATE FUNCTION millrace_internal.own_sink(caller regrole, name text) RETURNS millrace.sink
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    found millrace.sink;
    near text;
BEGIN
    SELECT s.* INTO found FROM millrace.sink s WHERE s.name = own_sink.name FOR NO KEY UPDATE;
    IF found.target_id IS NULL THEN
        near := millrace_internal.nearest(coalesce(own_sink.name, ''), ARRAY(
            SELECT s.name FROM millrace.sink s JOIN millrace.target t ON t.id = s.target_id WHERE pg_has_role(caller, t.owner, 'USAGE')));
        IF near IS NULL THEN
            RAISE EXCEPTION 'sink "%" does not exist', coalesce(own_sink.name, 'NULL') USING ERRCODE = 'undefined_object';
        END IF;
        RAISE EXCEPTION 'sink "%" does not exist', own_sink.name USING ERRCODE = 'undefined_object', HINT = format('Perhaps you meant "%s".', near);
    END IF;
    PERFORM millrace_internal.check_owner(caller, t.owner, format('sink "%s"', found.name)) FROM millrace.target t WHERE t.id = found.target_id;
    RETURN found;
END
$$;
COMMENT ON FUNCTION millrace_internal.own_sink(regrole, text) IS 'the sink of that name, locked, after checking that the role may change it';

CREATE FUNCTION millrace_internal.create_sink(caller regrole, name text, source regclass, channel text, message text, message_key text, filter text, initial boolean,
    at_most_every interval, channels text[], replace boolean) RETURNS void
LANGUAGE plpgsql
SET intervalstyle = 'postgres'
SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    old millrace.sink;
    present millrace.target;
    staging millrace.staging;
    mart millrace.target;
    owner regrole := caller;
    id integer;
    definition json;
    query text;
    channel_ids integer[];
    several boolean;
BEGIN
    IF name IS NULL OR name = '' THEN
        RAISE EXCEPTION 'a sink needs a name' USING ERRCODE = 'null_value_not_allowed';
    END IF;
    IF message IS NULL THEN
        RAISE EXCEPTION 'a sink needs a message' USING ERRCODE = 'null_value_not_allowed', HINT = 'It is an SQL expression over the columns of the source, such as jsonb_build_object(''id'', id).';
    END IF;
    initial := coalesce(initial, false);
    PERFORM millrace_internal.rule_positive('at_most_every', at_most_every);
    SELECT s.* INTO old FROM millrace.sink s WHERE s.name = name FOR NO KEY UPDATE;
    IF FOUND THEN
        IF replace IS NOT TRUE THEN
            RAISE EXCEPTION 'sink "%" exists already', name USING ERRCODE = 'duplicate_object', HINT = 'replace => true changes it.';
        END IF;
        SELECT t.* INTO STRICT present FROM millrace.target t WHERE t.id = old.target_id FOR UPDATE;
        PERFORM millrace_internal.check_owner(caller, present.owner, format('sink "%s"', name));
        owner := present.owner;
    END IF;
    SELECT t.* INTO mart FROM millrace.target t WHERE t.relation = source AND t.kind = 'mart';
    IF mart.id IS NULL THEN
        IF source IS NOT NULL AND NOT EXISTS (SELECT FROM millrace.staging s WHERE s.relation = source) THEN
            RAISE EXCEPTION '% is neither a staging table nor a mart', source USING ERRCODE = 'wrong_object_type', HINT = 'Sinks send rows of what create_staging() and create_mart() have made.';
        END IF;
        staging := millrace_internal.vault_source(owner, source);
    ELSE
        PERFORM millrace_internal.check_reader(owner, source);
        IF (mart.definition ->> 'stripes')::integer > 1 THEN
            RAISE EXCEPTION 'a sink cannot be on mart %, whose groups are spread over stripes', source USING ERRCODE = 'feature_not_supported',
                DETAIL = 'Workers that change one group do not wait for each other, so that neither knows what it will be.';
        END IF;
        SELECT g.* INTO STRICT staging FROM millrace.target_source s JOIN millrace.staging g ON g.id = s.staging_id WHERE s.target_id = mart.id;
    END IF;
    PERFORM millrace_internal.check_expression('message', message);
    PERFORM millrace_internal.check_expression('message_key', message_key) WHERE message_key IS NOT NULL;
    PERFORM millrace_internal.check_expression('filter', filter) WHERE filter IS NOT NULL;
    channel_ids := millrace_internal.channel_ids(array_remove(channel || coalesce(channels, '{}'), NULL), owner);
    IF channel_ids = '{}' THEN
        RAISE EXCEPTION 'a sink needs a channel' USING ERRCODE = 'null_value_not_allowed', HINT = 'millrace.create_channel() makes one.';
    END IF;

    definition := json_strip_nulls(json_build_object('source', format('%I.%I', (SELECT n.nspname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = source),
        (SELECT c.relname FROM pg_class c WHERE c.oid = source)), 'message', message, 'message_key', message_key, 'filter', filter, 'mart', mart.id));
    query := millrace_internal.sink_query(owner, source, definition, millrace_internal.sink_keys(mart, staging));
    several := mart.id IS NULL AND staging.definition ->> 'for_each' IS NOT NULL;
    IF old.target_id IS NULL THEN
        id := nextval('millrace.target_id_seq');
        PERFORM millrace_internal.sink_define(id, owner, query);
        INSERT INTO millrace.target (id, kind, relation, owner, definition, horizon)
        VALUES (id, 'sink', to_regclass(format('millrace_def.sink_%s', id)), owner, definition, '-infinity');
        INSERT INTO millrace.target_source (target_id, staging_id, ordinal) VALUES (id, staging.id, 1);
        INSERT INTO millrace.sink (target_id, name, channels, initial, at_most_every, several) VALUES (id, name, channel_ids, initial, at_most_every, several);
        PERFORM millrace_internal.rule_changed(id);
        RETURN;
    END IF;

    id := old.target_id;
    IF present.definition::text = definition::text AND old.suspended_at IS NULL AND to_regclass(format('millrace_def.sink_%s', id)) IS NOT NULL
       AND (old.channels, old.initial, old.at_most_every) IS NOT DISTINCT FROM (channel_ids, initial, at_most_every) THEN
        RETURN;
    END IF;
    IF present.definition ->> 'source' <> definition ->> 'source' THEN
        -- What it knows is of other rows.
        DELETE FROM millrace.sink_row r WHERE r.sink_id = id;
    END IF;
    DELETE FROM millrace.sink_failure f WHERE f.sink_id = id;
    PERFORM millrace_internal.sink_define(id, owner, query);
    -- Also those of the source that it had.
    PERFORM millrace_internal.rule_changed(id);
    DELETE FROM millrace.target_source s WHERE s.target_id = id;
    INSERT INTO millrace.target_source (target_id, staging_id, ordinal) VALUES (id, staging.id, 1);
    UPDATE millrace.target t SET relation = to_regclass(format('millrace_def.sink_%s', id)), definition = definition, definition_no = t.definition_no + 1, state = 'new' WHERE t.id = id;
    -- What was not sent while it was suspended differs from what it knows.
    UPDATE millrace.sink s SET channels = channel_ids, initial = initial, at_most_every = at_most_every, several = several, complete = s.complete AND s.suspended_at IS NOT NULL,
        suspended_at = NULL, reason = NULL, sqlstate = NULL
    WHERE s.target_id = id;
    PERFORM millrace_internal.rule_changed(id);
END
$$;
COMMENT ON FUNCTION millrace_internal.create_sink(regrole, text, regclass, text, text, text, text, boolean, interval, text[], boolean) IS 'the other half of millrace.create_sink()';

CREATE FUNCTION millrace.create_sink(name text, source regclass, channel text DEFAULT NULL, message text DEFAULT NULL, message_key text DEFAULT NULL, filter text DEFAULT NULL,
    initial boolean DEFAULT false, at_most_every interval DEFAULT NULL, channels text[] DEFAULT '{}', replace boolean DEFAULT false) RETURNS void
LANGUAGE C AS 'MODULE_PATHNAME', 'millrace_declare';
COMMENT ON FUNCTION millrace.create_sink(text, regclass, text, text, text, text, boolean, interval, text[], boolean) IS
    'declares a sink: changed rows of a staging table or mart are sent over channels as messages that an SQL expression makes';

CREATE FUNCTION millrace_internal.drop_target_sink(target_id integer) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    -- Also what a batch has written that was in progress when another one was dropped.
    DELETE FROM millrace.sink_row r WHERE r.sink_id = target_id OR NOT EXISTS (SELECT FROM millrace.sink s WHERE s.target_id = r.sink_id);
    DELETE FROM millrace.target t WHERE t.id = target_id;
    IF to_regclass(format('millrace_def.sink_%s', target_id)) IS NOT NULL THEN
        EXECUTE format('DROP VIEW millrace_def.sink_%s', target_id);
    END IF;
END
$$;
COMMENT ON FUNCTION millrace_internal.drop_target_sink(integer) IS 'drops a sink with what it knows; what waits in the outbox is sent';

CREATE FUNCTION millrace_internal.drop_sink(caller regrole, name text) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    dropped millrace.sink;
BEGIN
    PERFORM millrace_internal.lock_feeding(caller, ARRAY(SELECT t.relation FROM millrace.sink x JOIN millrace.target t ON t.id = x.target_id WHERE x.name = drop_sink.name));
    dropped := millrace_internal.own_sink(caller, name);
    PERFORM millrace_internal.drop_target(caller, dropped.target_id, false);
END
$$;
COMMENT ON FUNCTION millrace_internal.drop_sink(regrole, text) IS 'the other half of millrace.drop_sink()';
CREATE FUNCTION millrace.drop_sink(name text) RETURNS void
LANGUAGE C STRICT AS 'MODULE_PATHNAME', 'millrace_declare';
COMMENT ON FUNCTION millrace.drop_sink(text) IS 'drops a sink; what it has put into the outbox is still sent';

CREATE FUNCTION millrace_internal.retry_sink(caller regrole, name text) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    retried millrace.sink := millrace_internal.own_sink(caller, name);
BEGIN
    UPDATE millrace.sink s SET suspended_at = NULL, reason = NULL, sqlstate = NULL WHERE s.target_id = retried.target_id;
    UPDATE millrace.target t SET state = 'new' WHERE t.id = retried.target_id;
    PERFORM millrace_internal.rule_changed(retried.target_id);
END
$$;
COMMENT ON FUNCTION millrace_internal.retry_sink(regrole, text) IS 'the other half of millrace.retry_sink()';
CREATE FUNCTION millrace.retry_sink(name text) RETURNS void
LANGUAGE C STRICT AS 'MODULE_PATHNAME', 'millrace_declare';
COMMENT ON FUNCTION millrace.retry_sink(text) IS 'lets a sink look at all rows of its source, and sends those that differ from what it has sent: after it was suspended, or when rows had errors';

REVOKE ALL ON FUNCTION millrace.create_sink(text, regclass, text, text, text, text, boolean, interval, text[], boolean), millrace.drop_sink(text), millrace.retry_sink(text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION millrace.create_sink(text, regclass, text, text, text, text, boolean, interval, text[], boolean), millrace.drop_sink(text), millrace.retry_sink(text) TO millrace_admin;

-- ---- sending -----------------------------------------------------------------------------------------------

-- What a sink runs as its owner.  Rows are named by their objects and keys ($1, $2): build makes their messages, gone finds those that are not there any more; those
-- with a NULL in the object have statements of their own.  first and next list the source's rows: a staging table's by $2, in the order of their keys after $1, a mart's all.
CREATE FUNCTION millrace_internal.sink_statements(id integer, OUT source oid, OUT types oid[], OUT build text, OUT build_null text, OUT gone text, OUT gone_null text, OUT first text, OUT next text)
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    view text := format('millrace_def.sink_%s', id);
    mart millrace.target;
    names text[];
    n integer;
    given text;
    columns text;
    equal text;
    same text;
BEGIN
    SELECT m.* INTO mart FROM millrace.target t JOIN millrace.target m ON m.id = (t.definition ->> 'mart')::integer WHERE t.id = sink_statements.id;
    SELECT coalesce(mart.relation, g.relation) INTO STRICT source FROM millrace.target_source s JOIN millrace.staging g ON g.id = s.staging_id WHERE s.target_id = sink_statements.id;
    SELECT coalesce(array_agg(k.atttypid ORDER BY k.n), '{}'), coalesce(array_agg(format_type(k.atttypid, k.atttypmod) ORDER BY k.n), '{}'), count(*) INTO types, names, n
    FROM (SELECT a.atttypid, a.atttypmod, substr(a.attname, 3)::integer AS n FROM pg_attribute a WHERE a.attrelid = view::regclass AND a.attname ~ '^:k[0-9]+$') AS k;
    IF mart.id IS NOT NULL AND millrace_internal.mart_groups(mart.id, mart.owner) IS DISTINCT FROM ARRAY(
           SELECT millrace_internal.definition_column('sink', sink_statements.id, ':k' || k) FROM generate_series(1, n) k ORDER BY k) THEN
        RAISE EXCEPTION 'the mart groups by other columns than before' USING ERRCODE = 'invalid_table_definition', HINT = 'create_sink(…, replace => true) takes them.';
    END IF;
    SELECT format('(SELECT x.object, x.key%s FROM unnest($1::text[], $2::text[]) AS x (object, key)) AS u', string_agg(format(', (x.object::json ->> %s)::%s AS k%s', k - 1, names[k], k), '' ORDER BY k)),
           string_agg(format('r.":k%s"', k), ', ' ORDER BY k), string_agg(format('r.":k%1$s" = u.k%1$s', k), ' AND ' ORDER BY k),
           string_agg(format('r.":k%1$s" IS NOT DISTINCT FROM u.k%1$s', k), ' AND ' ORDER BY k)
    INTO given, columns, equal, same FROM generate_series(1, n) k;
    -- By the index, however many rows the source has.
    build := format('SELECT u.object, u.key, r.":here" IS NOT NULL, r.":message"::text FROM %s LEFT JOIN LATERAL (SELECT * FROM %s AS r WHERE %s OFFSET 0) AS r ON true', given, view, coalesce(equal, 'true'));
    build_null := format('SELECT u.object, u.key, r.":here" IS NOT NULL, r.":message"::text FROM %s LEFT JOIN %s AS r ON %s', given, view, coalesce(same, 'true'));
    gone := format('SELECT u.object, u.key FROM %s WHERE NOT EXISTS (SELECT FROM %s AS r WHERE %s OFFSET 0)', given, view, coalesce(equal, 'true'));
    gone_null := format('SELECT u.object, u.key FROM %s WHERE NOT EXISTS (SELECT FROM %s AS r WHERE %s)', given, view, coalesce(same, 'true'));
    IF mart.id IS NOT NULL THEN
        first := format('SELECT %s FROM %s AS r', columns, view);
        RETURN;
    END IF;
    first := format('SELECT %1$s FROM %2$s AS r WHERE $1::text IS NULL ORDER BY %1$s LIMIT $2', columns, view);
    SELECT format('SELECT %1$s FROM %2$s AS r WHERE (%1$s) > (%3$s) ORDER BY %1$s LIMIT $2', columns, view, string_agg(format('($1::json ->> %s)::%s', k - 1, names[k]), ', ' ORDER BY k))
    INTO next FROM generate_series(1, n) k;
END
$$;
COMMENT ON FUNCTION millrace_internal.sink_statements(integer) IS 'the statements by which a sink makes messages of rows';

-- Without a search_path of its own it becomes part of the statements that call it.
CREATE FUNCTION millrace_internal.sink_digest(message text) RETURNS bytea
LANGUAGE sql STRICT STABLE AS $$
    SELECT pg_catalog.substr(pg_catalog.sha256(pg_catalog.convert_to(message, 'UTF8')), 1, 16)
$$;
COMMENT ON FUNCTION millrace_internal.sink_digest(text) IS 'by what a sink tells messages apart';

-- Takes rows as they are now (`there` false: deleted; without a message: not to be sent), and returns what is to be sent of them.  `changed`: each of them was changed, and is sent;
-- else those are that differ from what was sent before.
CREATE FUNCTION millrace_internal.sink_take(id integer, objects text[], keys text[], there boolean[], messages text[], changed boolean)
    RETURNS TABLE (channel_id integer, key text, group_by text, alert_id bigint, message text, not_after timestamptz, sink_id integer, object text)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    sink millrace.sink;
    now timestamptz := clock_timestamp();
    filtered boolean;
    silent boolean;
BEGIN
    SELECT s.* INTO STRICT sink FROM millrace.sink s WHERE s.target_id = sink_take.id;
    SELECT t.definition ->> 'filter' IS NOT NULL INTO STRICT filtered FROM millrace.target t WHERE t.id = sink_take.id;
    silent := NOT changed AND NOT sink.complete AND NOT sink.initial;
    IF EXISTS (SELECT FROM millrace.sink_failure f WHERE f.sink_id = sink_take.id) THEN
        DELETE FROM millrace.sink_failure f WHERE f.sink_id = sink_take.id AND f.object = ANY (objects);
    END IF;
    RETURN QUERY
    WITH given AS (
        SELECT u.object, u.key, u.there, u.message, millrace_internal.sink_digest(u.message) AS digest, r.digest AS before, r.due_at, r.object IS NOT NULL AS known
        FROM unnest(objects, keys, there, messages) AS u (object, key, there, message)
        -- By the index, however many rows the sink knows.
        LEFT JOIN LATERAL (SELECT * FROM millrace.sink_row k WHERE k.sink_id = sink_take.id AND k.object = u.object OFFSET 0) AS r ON true
    ), judged AS (
        SELECT g.*, CASE WHEN g.message IS NOT NULL THEN (changed AND NOT sink.several) OR (g.digest IS DISTINCT FROM g.before AND (NOT silent OR g.due_at IS NOT NULL))
                         -- Nobody has heard of what the filter has left out.
                         WHEN NOT g.there THEN g.before IS NOT NULL OR (NOT filtered AND (changed OR g.due_at IS NOT NULL))
                         ELSE false END AS sent
        FROM given g
    ), kept AS (
        INSERT INTO millrace.sink_row AS r (sink_id, object, key, digest, sent_at)
        SELECT sink_take.id, j.object, j.key, j.digest, CASE WHEN j.sent AND sink.at_most_every IS NOT NULL THEN now END
        FROM judged j WHERE j.message IS NOT NULL ORDER BY j.object COLLATE "C"
        ON CONFLICT (sink_id, object) DO UPDATE SET key = EXCLUDED.key, digest = EXCLUDED.digest, sent_at = coalesce(EXCLUDED.sent_at, r.sent_at), due_at = NULL
    ), forgotten AS (
        DELETE FROM millrace.sink_row r
        WHERE r.sink_id = sink_take.id AND sink.at_most_every IS NULL AND r.object = ANY (ARRAY(SELECT j.object FROM judged j WHERE j.known AND j.message IS NULL))
    ), over AS (
        -- Its time counts for a row that comes back.
        UPDATE millrace.sink_row r SET digest = NULL, due_at = NULL, sent_at = now
        WHERE r.sink_id = sink_take.id AND sink.at_most_every IS NOT NULL AND r.object = ANY (ARRAY(SELECT j.object FROM judged j WHERE j.known AND j.message IS NULL))
    )
    SELECT c.channel_id, j.key, NULL::text, NULL::bigint, j.message, 'infinity'::timestamptz, sink_take.id, j.object
    FROM judged j CROSS JOIN LATERAL unnest(sink.channels) AS c (channel_id) JOIN millrace.channel x ON x.id = c.channel_id
    WHERE j.sent;
END
$$;
COMMENT ON FUNCTION millrace_internal.sink_take(integer, text[], text[], boolean[], text[], boolean) IS 'notes rows of a sink as they are now, and returns what is to be sent of them';

-- With at_most_every: notes that rows were changed, to be sent when it is time.
CREATE FUNCTION millrace_internal.sink_wait(id integer, objects text[], keys text[]) RETURNS void
LANGUAGE sql
SET search_path = pg_catalog, pg_temp AS $$
    INSERT INTO millrace.sink_row AS r (sink_id, object, key, due_at)
    SELECT sink_wait.id, u.object, u.key, clock_timestamp() FROM unnest(objects, keys) AS u (object, key) ORDER BY u.object COLLATE "C"
    ON CONFLICT (sink_id, object) DO UPDATE
    SET due_at = coalesce(r.due_at, greatest(EXCLUDED.due_at, r.sent_at + (SELECT s.at_most_every FROM millrace.sink s WHERE s.target_id = sink_wait.id)))
$$;
COMMENT ON FUNCTION millrace_internal.sink_wait(integer, text[], text[]) IS 'notes that rows of a sink were changed that are sent later';

-- With at_most_every: of rows as they are now, those that differ from what was sent are to be sent when it is time.
CREATE FUNCTION millrace_internal.sink_compare(id integer, objects text[], keys text[], there boolean[], messages text[]) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    sends boolean := (SELECT s.complete OR s.initial FROM millrace.sink s WHERE s.target_id = sink_compare.id);
    later_objects text[];
    later_keys text[];
BEGIN
    SELECT array_agg(u.object), array_agg(u.key) INTO later_objects, later_keys
    FROM unnest(objects, keys, there, messages) AS u (object, key, there, message)
    LEFT JOIN LATERAL (SELECT * FROM millrace.sink_row k WHERE k.sink_id = sink_compare.id AND k.object = u.object OFFSET 0) AS r ON true
    WHERE millrace_internal.sink_digest(u.message) IS DISTINCT FROM r.digest AND (NOT u.there OR (sends AND u.message IS NOT NULL));
    PERFORM millrace_internal.sink_wait(sink_compare.id, later_objects, later_keys) WHERE later_objects IS NOT NULL;
    IF NOT sends THEN
        INSERT INTO millrace.sink_row AS r (sink_id, object, key, digest)
        SELECT sink_compare.id, u.object, u.key, millrace_internal.sink_digest(u.message) FROM unnest(objects, keys, messages) AS u (object, key, message)
        WHERE u.message IS NOT NULL ORDER BY u.object COLLATE "C"
        ON CONFLICT (sink_id, object) DO UPDATE SET key = EXCLUDED.key, digest = EXCLUDED.digest WHERE r.due_at IS NULL;
    END IF;
END
$$;
COMMENT ON FUNCTION millrace_internal.sink_compare(integer, text[], text[], boolean[], text[]) IS 'finds rows that a sink has not sent as they are, to be sent when it is time';

-- Rows for which it is time, locked so that what changes them meanwhile comes after.  Those that a batch holds are the next tick's.
CREATE FUNCTION millrace_internal.sink_due(id integer, at_most integer) RETURNS TABLE (object text, key text)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    now timestamptz := clock_timestamp();
BEGIN
    -- Of deleted rows only the time had to be kept.
    DELETE FROM millrace.sink_row d
    WHERE d.sink_id = sink_due.id AND d.object = ANY (ARRAY(
        SELECT r.object FROM millrace.sink_row r
        WHERE r.sink_id = sink_due.id AND r.digest IS NULL AND r.due_at IS NULL AND r.sent_at < now - (SELECT s.at_most_every FROM millrace.sink s WHERE s.target_id = sink_due.id)
        LIMIT at_most FOR UPDATE SKIP LOCKED));
    RETURN QUERY SELECT r.object, r.key FROM millrace.sink_row r WHERE r.sink_id = sink_due.id AND r.due_at <= now ORDER BY r.due_at LIMIT at_most FOR NO KEY UPDATE SKIP LOCKED;
END
$$;
COMMENT ON FUNCTION millrace_internal.sink_due(integer, integer) IS 'rows of a sink that are to be sent now';

-- What could not be made of rows is made when they change again.
CREATE FUNCTION millrace_internal.sink_fail(id integer, objects text[], states text[], errors text[]) RETURNS void
LANGUAGE sql
SET search_path = pg_catalog, pg_temp AS $$
    INSERT INTO millrace.sink_failure AS f (sink_id, object, sqlstate, message)
    SELECT DISTINCT ON (u.object COLLATE "C") sink_fail.id, u.object, u.state, u.error FROM unnest(objects, states, errors) AS u (object, state, error) ORDER BY u.object COLLATE "C"
    ON CONFLICT (sink_id, object) DO UPDATE SET sqlstate = EXCLUDED.sqlstate, message = EXCLUDED.message, at = EXCLUDED.at;
    UPDATE millrace.sink_row r SET due_at = NULL WHERE r.sink_id = sink_fail.id AND r.object = ANY (objects) AND r.due_at IS NOT NULL
$$;
COMMENT ON FUNCTION millrace_internal.sink_fail(integer, text[], text[], text[]) IS 'notes of which rows a sink could not make a message';

CREATE FUNCTION millrace_internal.suspend_sink(id integer, why text, sqlstate text) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    UPDATE millrace.sink s SET suspended_at = clock_timestamp(), reason = why, sqlstate = suspend_sink.sqlstate WHERE s.target_id = id AND s.suspended_at IS NULL;
    IF FOUND THEN
        PERFORM millrace_internal.rule_changed(id);
    END IF;
END
$$;
COMMENT ON FUNCTION millrace_internal.suspend_sink(integer, text, text) IS 'notes that a sink sends nothing any more, and why';

-- Rows of a staging table were put in the place of others: its sinks look which of them differ.
CREATE FUNCTION millrace_internal.sinks_renew(staging_id integer) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    sink integer;
BEGIN
    FOR sink IN
        UPDATE millrace.target t SET state = 'new' FROM millrace.target_source s
        WHERE t.kind = 'sink' AND s.target_id = t.id AND s.staging_id = sinks_renew.staging_id AND t.definition ->> 'mart' IS NULL RETURNING t.id
    LOOP
        PERFORM millrace_internal.rule_changed(sink);
    END LOOP;
END
$$;
COMMENT ON FUNCTION millrace_internal.sinks_renew(integer) IS 'lets the sinks of a staging table look at all of its rows before the next batch';

-- ---- seeing ------------------------------------------------------------------------------------------------

-- How users call a target.
CREATE FUNCTION millrace_internal.target_name(target millrace.target) RETURNS text
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp AS $$
    SELECT CASE target.kind WHEN 'rule' THEN (SELECT r.name FROM millrace.rule r WHERE r.target_id = target.id) WHEN 'sink' THEN (SELECT s.name FROM millrace.sink s WHERE s.target_id = target.id)
                ELSE target.relation::text END
$$;
COMMENT ON FUNCTION millrace_internal.target_name(millrace.target) IS 'the name of a rule or sink, or the table of another target';

CREATE VIEW millrace.sink_status WITH (security_barrier) AS
SELECT s.name AS sink, t.definition ->> 'source' AS source,
       (SELECT string_agg(c.name, ', ' ORDER BY u.n) FROM unnest(s.channels) WITH ORDINALITY AS u (id, n) JOIN millrace.channel c ON c.id = u.id) AS channels,
       CASE WHEN s.suspended_at IS NOT NULL THEN 'suspended' ELSE t.state END AS state, s.reason, s.sqlstate, s.suspended_at,
       extract(epoch FROM s.at_most_every)::double precision AS at_most_every,
       (SELECT count(*) FROM millrace.sink_row r WHERE r.sink_id = s.target_id AND r.due_at IS NOT NULL) AS waiting,
       (SELECT min(r.due_at) FROM millrace.sink_row r WHERE r.sink_id = s.target_id AND r.due_at IS NOT NULL) AS next_at,
       (SELECT count(*) FROM millrace.sink_failure f WHERE f.sink_id = s.target_id) AS errors, t.owner::text AS owner
FROM millrace.sink s JOIN millrace.target t ON t.id = s.target_id
WHERE millrace_internal.may_watch(t.owner);
COMMENT ON VIEW millrace.sink_status IS 'sinks: whether they send, and why not; what they have sent is in the outbox and in channel_status';
COMMENT ON COLUMN millrace.sink_status.state IS
    'new until the first batch after the declaration, filling until it has looked at the rows that were there before, then active; suspended: see reason and retry_sink()';
COMMENT ON COLUMN millrace.sink_status.at_most_every IS 'in seconds';
COMMENT ON COLUMN millrace.sink_status.waiting IS 'with at_most_every: changed rows that are sent later, the first one at next_at';
COMMENT ON COLUMN millrace.sink_status.errors IS 'rows of which it could not make a message; see sink_error';

CREATE VIEW millrace.sink_error WITH (security_barrier) AS
SELECT s.name AS sink, f.object, f.sqlstate, f.message, f.at
FROM millrace.sink_failure f JOIN millrace.sink s ON s.target_id = f.sink_id JOIN millrace.target t ON t.id = f.sink_id
WHERE pg_catalog.pg_has_role(t.owner, 'USAGE') OR pg_catalog.pg_has_role('millrace_admin', 'USAGE');
COMMENT ON VIEW millrace.sink_error IS 'rows of which sinks could not make a message, until one can be made; the stream has gone on';
COMMENT ON COLUMN millrace.sink_error.object IS 'the row''s key as a JSON list';
GRANT SELECT ON millrace.sink_status, millrace.sink_error TO PUBLIC;
