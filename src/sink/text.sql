-- What people read, made of the JSON of messages.  In PL/pgSQL, which keeps its plans: this is done for each message.

-- A message: its "text" when it has one, else a line for each member; of "details" a line for each of its members.
CREATE FUNCTION millrace_internal.message_text(message json) RETURNS text
LANGUAGE plpgsql IMMUTABLE
SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN CASE WHEN message IS NULL THEN NULL
                WHEN json_typeof(message) <> 'object' THEN coalesce(message #>> '{}', 'null')
                WHEN json_typeof(message -> 'text') = 'string' THEN message ->> 'text'
                ELSE (SELECT coalesce(string_agg(format('%s: %s', m.key, m.value #>> '{}'), E'\n' ORDER BY m.n, m.k), '')
                      FROM (SELECT t.n, 0 AS k, t.key, t.value FROM json_each(message) WITH ORDINALITY AS t (key, value, n)
                            WHERE NOT (t.key = 'details' AND json_typeof(t.value) = 'object')
                            UNION ALL
                            SELECT t.n, d.k, d.key, d.value FROM json_each(message) WITH ORDINALITY AS t (key, value, n),
                                   json_each(CASE WHEN json_typeof(t.value) = 'object' THEN t.value ELSE '{}' END) WITH ORDINALITY AS d (key, value, k)
                            WHERE t.key = 'details') AS m
                      WHERE json_typeof(m.value) <> 'null') END;
END
$$;
COMMENT ON FUNCTION millrace_internal.message_text(json) IS 'a message as people read it';

-- Several messages as one text; `messages` are the first of `count`.
CREATE FUNCTION millrace_internal.messages_text(key text, messages json[], count bigint) RETURNS text
LANGUAGE plpgsql IMMUTABLE
SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN CASE WHEN count > cardinality(messages) THEN format(E'%s messages, of which these are the first %s:\n\n', count, cardinality(messages)) ELSE '' END
           || (SELECT string_agg(coalesce(millrace_internal.message_text(u.message), 'deleted: ' || key), E'\n\n' ORDER BY u.n)
               FROM unnest(messages) WITH ORDINALITY AS u (message, n));
END
$$;
COMMENT ON FUNCTION millrace_internal.messages_text(text, json[], bigint) IS 'messages that are sent as one, as people read them';

-- The body of a delivery over a channel that has no expression of its own; NULL: what the key names was deleted.
CREATE FUNCTION millrace_internal.delivery_body(kind text, alert boolean, key text, messages json[], count bigint) RETURNS text
LANGUAGE plpgsql IMMUTABLE
SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN CASE WHEN kind = 'telegram' THEN millrace_internal.messages_text(key, messages, count)
                WHEN kind = 'webhook' AND (alert OR count > 1) THEN json_build_object('text', millrace_internal.messages_text(key, messages, count))::text
                WHEN messages[1] IS NULL AND kind IN ('webhook', 'notify') THEN json_build_object('deleted', key)::text
                ELSE messages[1]::text END;
END
$$;
COMMENT ON FUNCTION millrace_internal.delivery_body(text, boolean, text, json[], bigint) IS 'what is sent when a channel has no message expression';
