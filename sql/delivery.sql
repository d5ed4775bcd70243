-- Channels: what is declared, what is refused, and NOTIFY, which needs no endpoint.
SET client_min_messages = warning;
SET intervalstyle = 'postgres';
CREATE EXTENSION IF NOT EXISTS millrace;
\set VERBOSITY default
\set SHOW_CONTEXT never
CREATE SERVER hook FOREIGN DATA WRAPPER millrace_http OPTIONS (url 'https://hooks.example.com/');
CREATE SERVER bot FOREIGN DATA WRAPPER millrace_http OPTIONS (kind 'telegram');
CREATE SERVER broker FOREIGN DATA WRAPPER millrace_kafka OPTIONS (bootstrap_servers 'localhost:1');
CREATE SERVER cache FOREIGN DATA WRAPPER millrace_redis OPTIONS (host 'localhost');
CREATE SERVER source FOREIGN DATA WRAPPER millrace_postgres OPTIONS (dbname 'x');

-- Servers.
CREATE SERVER bad FOREIGN DATA WRAPPER millrace_http;
CREATE SERVER bad FOREIGN DATA WRAPPER millrace_http OPTIONS (url 'ftp://host');
CREATE SERVER bad FOREIGN DATA WRAPPER millrace_http OPTIONS (url 'http://user:secret@host');
CREATE SERVER bad FOREIGN DATA WRAPPER millrace_http OPTIONS (url 'http://host', kind 'telegramm');
CREATE SERVER bad FOREIGN DATA WRAPPER millrace_http OPTIONS (urll 'http://host');
CREATE USER MAPPING FOR CURRENT_USER SERVER hook OPTIONS (token 'a', token_file 'b');
CREATE USER MAPPING FOR CURRENT_USER SERVER hook OPTIONS (token_file '../b');

-- Channels.
SELECT millrace.create_channel('hook', server => 'hook', options => '{"path": "/a", "headers": {"X-A": "b"}, "connections": 32}', message => $$ message -> 'text' $$,
    give_up => '1 hour', digest_above => 5, on_promote => 'fence', retention => NULL);
SELECT millrace.create_channel('ops', server => 'bot', options => '{"chat_id": -100123}');
SELECT millrace.create_channel('topic', server => 'broker', options => '{"topic": "out"}');
SELECT millrace.create_channel('board', server => 'cache', options => '{"set": {"latest": 300}, "publish": "updates"}');
SELECT millrace.create_channel('told');
SELECT millrace.describe('channel', name) FROM unnest('{hook, ops, topic, board, told}'::text[]) name;
SELECT channel, kind, server, waiting, sending, sent, failures, last_error, dead_letters FROM millrace.channel_status ORDER BY channel;

-- Nothing happens when nothing differs; what differs is changed.
SELECT millrace.create_channel('told', replace => true);
SELECT config_version FROM millrace.channel WHERE name = 'told';
SELECT millrace.create_channel('told', options => '{"channel": "news"}', replace => true);
SELECT config_version FROM millrace.channel WHERE name = 'told';

-- What is refused.
SELECT millrace.create_channel('told');
SELECT millrace.create_channel('');
SELECT millrace.create_channel('x', server => 'nowhere');
SELECT millrace.create_channel('x', server => 'source');
SELECT millrace.create_channel('x', server => 'hook', options => '{"pth": "/a"}');
SELECT millrace.create_channel('x', server => 'hook', options => '{"path": "a"}');
SELECT millrace.create_channel('x', server => 'hook', options => '{"connections": 1000}');
SELECT millrace.create_channel('x', server => 'hook', options => '{"headers": {"Host": "b"}}');
SELECT millrace.create_channel('x', server => 'hook', options => '{"headers": {"A": "b\nc"}}');
SELECT millrace.create_channel('x', server => 'bot');
SELECT millrace.create_channel('x', server => 'bot', options => '{"chat_id": "ops"}');
SELECT millrace.create_channel('x', server => 'broker');
SELECT millrace.create_channel('x', server => 'broker', options => '{"topic": "a b"}');
SELECT millrace.create_channel('x', server => 'cache');
SELECT millrace.create_channel('x', server => 'cache', options => '{"set": {"a": "1"}}');
SELECT millrace.create_channel('x', message => 'nothing + 1');
SELECT millrace.create_channel('x', message => '1); DROP TABLE x; SELECT (1');
SELECT millrace.create_channel('x', give_up => '0');
SELECT millrace.create_channel('x', digest_above => 0);
SELECT millrace.create_channel('x', on_promote => 'fense');
SELECT millrace.create_channel('x', retention => '-1 day');
SELECT millrace.create_channel('ops', server => 'hook', replace => true);
SELECT millrace.describe('channel', 'tld');
SELECT millrace.drop_channel('tld');
SELECT millrace_internal.channel_ids('{told, hook, told}', CURRENT_USER::regrole) = ARRAY(SELECT id FROM millrace.channel WHERE name IN ('told', 'hook') ORDER BY name DESC);
SELECT millrace_internal.channel_ids('{told, hok}', CURRENT_USER::regrole);
DROP SERVER hook CASCADE;

-- Rolled back, nothing is left.
BEGIN;
SELECT millrace.create_channel('gone', message => 'key');
ROLLBACK;
SELECT count(*) FROM millrace.channel WHERE name = 'gone';
SELECT count(*) FROM pg_proc WHERE pronamespace = 'millrace_def'::regnamespace;

-- Privileges.
CREATE ROLE regress_channel_owner LOGIN IN ROLE millrace_admin;
CREATE ROLE regress_channel_other LOGIN IN ROLE millrace_admin;
SET ROLE regress_channel_owner;
SELECT millrace.create_channel('mine');
SELECT millrace.create_channel('x', server => 'hook');
SET ROLE regress_channel_other;
SELECT millrace.create_channel('mine', options => '{"channel": "x"}', replace => true);
SELECT millrace.drop_channel('mine');
SELECT * FROM millrace.validate('mine');
RESET ROLE;
SELECT millrace.drop_channel('mine');
DROP ROLE regress_channel_owner, regress_channel_other;

-- How messages read.
SELECT millrace_internal.message_text(m) FROM (VALUES
    ('{"text": "plain"}'::json), ('"just text"'), ('{"rule": "HIGH", "none": null, "details": {"total": 1.50, "who": "Ann"}, "list": [1, 2]}'), ('[1]')) AS v (m);
SELECT millrace_internal.messages_text('k', ARRAY['{"text": "a"}', NULL]::json[], 5);
SELECT millrace_internal.delivery_body(kind, alert, 'k', ARRAY[message]::json[], 1)
FROM unnest('{webhook, telegram, kafka, redis, notify}'::text[]) kind, unnest('{true, false}'::boolean[]) alert, (VALUES ('{"text": "a"}'::json), (NULL)) AS v (message);

-- NOTIFY, through a worker.
CREATE FUNCTION add(key text, message json, not_after timestamptz DEFAULT NULL) RETURNS void LANGUAGE sql AS $$
    INSERT INTO millrace.outbox_message (channel_id, key, message, created_at, not_after) SELECT c.id, $1, $2, clock_timestamp(), $3 FROM millrace.channel c WHERE c.name = 'told';
    SELECT millrace_internal.wake_delivery() $$;
CREATE PROCEDURE settle() LANGUAGE plpgsql AS $$
DECLARE
    deadline timestamptz := clock_timestamp() + interval '1 minute';
BEGIN
    COMMIT;
    WHILE (SELECT waiting + sending FROM millrace.channel_status WHERE channel = 'told') > 0 AND clock_timestamp() < deadline LOOP
        PERFORM pg_sleep(0.01);
        COMMIT;
    END LOOP;
END $$;
SELECT add('a', '{"n": 1}'), add('b', NULL), add('a', '{"n": 2}'), add('a', '{"n": 3}', '2000-01-01');
SELECT add('a', to_json(repeat('x', 8000)));
CALL settle();
SELECT key, message::text, state, attempts FROM (SELECT id, key, left(message::text, 20) AS message, state, attempts FROM millrace.outbox WHERE channel = 'told' ORDER BY id) AS o;
SELECT key, part, parts, attempt, outcome, error FROM millrace.delivery_attempt WHERE channel = 'told' ORDER BY delivery_id;
SELECT kind, stream, channel, convert_from(key, 'UTF8') AS key, sqlstate, message, attempts, state FROM millrace.dead_letter;
SELECT severity, message FROM millrace.validate('told');
SELECT severity, message FROM millrace.validate('told', send => true) WHERE severity = 'info';
SELECT severity, message FROM millrace.validate('ops');
SET client_min_messages = notice;
SELECT * FROM millrace.retry($$ channel = 'told' $$);
RESET client_min_messages;
CALL settle();
SELECT attempt, outcome FROM millrace.delivery_attempt WHERE delivery_id = (SELECT position FROM millrace.dead_letter) ORDER BY attempt;
SELECT millrace.discard($$ channel = 'told' $$);

-- What is kept for a time.
UPDATE millrace.delivery SET done_at = done_at - interval '8 days';
UPDATE millrace.outbox_message SET created_at = created_at - interval '8 days';
SELECT * FROM millrace.maintain();
SELECT count(*) FROM millrace.outbox;

SELECT millrace.drop_channel(channel) FROM millrace.channel_status;
SELECT (SELECT count(*) FROM millrace.outbox_message) + (SELECT count(*) FROM millrace.delivery) + (SELECT count(*) FROM millrace.attempt);
DROP FUNCTION add(text, json, timestamptz);
DROP PROCEDURE settle();
DROP SERVER hook, bot, broker, cache, source CASCADE;
