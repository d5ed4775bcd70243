-- Sinks: changed rows of a staging table or mart as messages in the outbox.
\set VERBOSITY terse
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS millrace;
CREATE ROLE sink_maker LOGIN;
GRANT millrace_admin TO sink_maker;
CREATE ROLE sink_other LOGIN;
GRANT millrace_admin TO sink_other;
GRANT CREATE ON DATABASE :DBNAME TO sink_maker;
RESET client_min_messages;
\set VERBOSITY default
\set SHOW_CONTEXT never
SET TimeZone = 'UTC';
SET ROLE sink_maker;
CREATE SCHEMA sk;
SELECT millrace.create_stream('sk_orders');
SELECT millrace.create_staging('sk.orders', stream => 'sk_orders', key => '{"order_id": ["$.id", "bigint"]}', deleted => $$ op = 'D' $$,
  columns => '{"op": "$.op", "user_id": "$.user", "status": "$.status", "total": ["$.total", "numeric(12,2)"]}');
SELECT millrace.create_staging('sk.items', stream => 'sk_orders', key => '{"order_id": ["$.id", "bigint"]}', for_each => '$.items[*]', deleted => $$ op = 'D' $$,
  columns => '{"op": "$.op", "product": "@.product", "n": ["@.n", "integer"]}');
SELECT millrace.create_mart('sk.by_user', 'SELECT user_id, count(*) AS n, sum(total)::numeric(18,2) AS total FROM sk.orders GROUP BY user_id');
SELECT millrace.create_mart('sk.everything', 'SELECT count(*) AS n FROM sk.orders');
SELECT millrace.create_mart('sk.striped', 'SELECT user_id, count(*) AS n FROM sk.orders GROUP BY user_id', stripes => 2);
SELECT millrace.create_channel('sk_a', options => '{"channel": "sk_a"}');
SELECT millrace.create_channel('sk_b', options => '{"channel": "sk_b"}');
CREATE FUNCTION sk.say(VARIADIC messages json[]) RETURNS bigint LANGUAGE sql AS
  $$ SELECT count(millrace.push('sk_orders', m, key => m ->> 'id')) FROM unnest(messages) WITH ORDINALITY AS u (m, n) $$;
CREATE SEQUENCE sk.numbers;
CREATE TABLE sk.seen (id bigint);
INSERT INTO sk.seen VALUES (0);
GRANT SELECT ON sk.seen TO PUBLIC;
-- What was put into the outbox since the last time.
CREATE VIEW sk.sent AS SELECT channel, key, message FROM millrace.outbox WHERE channel LIKE 'sk\_%' AND id > (SELECT max(id) FROM sk.seen) ORDER BY channel, outbox.id;
\set sent 'SELECT * FROM sk.sent; INSERT INTO sk.seen SELECT coalesce(max(id), 0) FROM millrace.outbox;'

-- what cannot be declared
SELECT millrace.create_sink('sk x', source => 'sk.orders', channel => 'sk_a', message => 'to_jsonb(orders');
SELECT millrace.create_sink('sk x', source => 'sk.orders', channel => 'sk_a', message => 'jsonb_build_object(''a'', nothing)');
SELECT millrace.create_sink('sk x', source => 'sk.orders', channel => 'sk_a', message => 'status');
SELECT millrace.create_sink('sk x', source => 'sk.orders', channel => 'sk_a', message => 'to_jsonb(random())');
SELECT millrace.create_sink('sk x', source => 'sk.orders', channel => 'sk_a', message => '(SELECT to_jsonb(nextval(''sk.numbers'')))');
SELECT millrace.create_sink('sk x', source => 'sk.orders', channel => 'sk_a', message => 'to_jsonb(1)', filter => 'random() > 0.5');
SELECT millrace.create_sink('sk x', source => 'sk.orders', channel => 'sk_a', message => 'to_jsonb(count(*))');
SELECT millrace.create_sink('sk x', source => 'sk.orders', channel => 'sk_a', message => '(SELECT to_jsonb(s.id) FROM sk.seen s FOR UPDATE)');
SELECT millrace.create_sink('sk x', source => 'sk.orders', channel => 'sk_a', message => 'to_jsonb(1)', filter => 'status');
SELECT millrace.create_sink('sk x', source => 'sk.orders', channel => 'sk_a', message => 'to_jsonb(1)', message_key => 'user_id');
SELECT millrace.create_sink('sk x', source => 'sk.orders', channel => 'sk_a', message => 'to_jsonb(1)', message_key => '(SELECT order_id)');
SELECT millrace.create_sink('sk x', source => 'sk.orders', channel => 'sk_c', message => 'to_jsonb(1)');
SELECT millrace.create_sink('sk x', source => 'sk.orders', message => 'to_jsonb(1)');
SELECT millrace.create_sink('sk x', source => 'sk.orders', channel => 'sk_a');
SELECT millrace.create_sink('sk x', source => 'sk.seen', channel => 'sk_a', message => 'to_jsonb(1)');
SELECT millrace.create_sink('sk x', source => 'sk.striped', channel => 'sk_a', message => 'to_jsonb(1)');
SELECT millrace.create_sink('sk x', source => 'sk.orders', channel => 'sk_a', message => 'to_jsonb(1)', at_most_every => '-1 s');
SELECT millrace.drop_sink('sk x');

-- what is there already is not sent, unless it is asked for
SELECT sk.say('{"id": 1, "user": "a", "status": "new", "total": 5, "items": [{"product": "tea", "n": 1}, {"product": "cake", "n": 2}]}', '{"id": 2, "user": "a", "status": "new", "total": 6}');
SELECT messages, dead_letters FROM millrace.run_stream('sk_orders');
SELECT millrace.create_sink('sk orders', source => 'sk.orders', channel => 'sk_a', message_key => $$ 'order ' || order_id $$,
  message => $$ jsonb_build_object('id', order_id, 'status', status, 'items', (SELECT jsonb_agg(i.product ORDER BY i._element) FROM sk.items i WHERE i.order_id = orders.order_id)) $$);
SELECT millrace.create_sink('sk orders', source => 'sk.orders', channel => 'sk_a', message => 'to_jsonb(1)');
SELECT millrace.create_sink('sk initial', source => 'sk.orders', channels => '{sk_b}', message => $$ json_build_object('total', total) $$, initial => true);
SELECT millrace.create_sink('sk users', source => 'sk.by_user', channel => 'sk_b', message => $$ to_jsonb(by_user) $$);
SELECT sink, source, channels, state, waiting, errors FROM millrace.sink_status ORDER BY sink;
-- nor by a sink that was replaced before it has looked, which was asked for it first
SELECT millrace.create_sink('sk replaced', source => 'sk.items', channel => 'sk_b', message => $$ to_jsonb(n) $$, initial => true);
SELECT millrace.create_sink('sk replaced', source => 'sk.items', channel => 'sk_b', message => $$ to_jsonb(n) $$, replace => true);
SELECT messages, dead_letters FROM millrace.run_stream('sk_orders');
:sent
SELECT millrace.drop_sink('sk replaced');
SELECT sink, source, channels, state, waiting, errors FROM millrace.sink_status ORDER BY sink;

-- changes, one of them made twice in a batch; deletes; what does not change what the source has
SELECT sk.say('{"id": 1, "user": "b", "status": "paid", "total": 5, "items": [{"product": "tea", "n": 1}]}', '{"id": 3, "user": "a", "status": "new", "total": 7}', '{"id": 3, "user": "a", "status": "paid", "total": 7}', '{"id": 2, "op": "D"}', '{"id": 4, "user": "c", "status": "new", "total": 1}', '{"id": 4, "op": "D"}');
SELECT messages, dead_letters FROM millrace.run_stream('sk_orders');
:sent
SELECT sk.say('{"id": 1, "user": "b", "status": "paid", "total": 5, "items": [{"product": "tea", "n": 1}]}');
SELECT messages, dead_letters FROM millrace.run_stream('sk_orders');
:sent
-- of sinks over one channel each has its own deletions
SELECT relation, after ->> 'channel' AS channel, after ->> 'key' AS key, after ->> 'message' AS message FROM millrace.preview('sk_orders', payload => '{"id": 1, "op": "D"}'::json) WHERE layer = 'sink' ORDER BY 1;
SELECT sk.say('{"id": 1, "op": "D"}', '{"id": 3, "user": "b", "status": "paid", "total": 8}');
SELECT messages, dead_letters FROM millrace.run_stream('sk_orders');
:sent

-- a replaced sink: the next batch is sent in the new form; what has been sent is not sent again
SELECT millrace.create_sink('sk orders', source => 'sk.orders', channels => '{sk_a}', message => $$ jsonb_build_object('order', order_id) $$, filter => $$ status <> 'secret' $$, replace => true);
SELECT millrace.drop_sink('sk initial');
SELECT millrace.drop_sink('sk users');
SELECT sk.say('{"id": 5, "user": "d", "status": "new", "total": 1}', '{"id": 6, "user": "d", "status": "secret", "total": 1}', '{"id": 7, "user": "d", "status": "new", "total": 1}');
SELECT messages, dead_letters FROM millrace.run_stream('sk_orders');
:sent
-- the filter: a row that leaves it is nobody's business any more, also when it goes
SELECT sk.say('{"id": 5, "user": "d", "status": "secret", "total": 1}', '{"id": 6, "op": "D"}', '{"id": 7, "op": "D"}');
SELECT messages, dead_letters FROM millrace.run_stream('sk_orders');
:sent
SELECT sk.say('{"id": 5, "op": "D"}');
SELECT messages, dead_letters FROM millrace.run_stream('sk_orders');
:sent
SELECT millrace.describe('sink', 'sk orders');

-- rows of one object: those that differ; a mart without groups; NULL as a group; a message that is NULL
SELECT millrace.create_sink('sk orders', source => 'sk.orders', channel => 'sk_a', message => $$ CASE WHEN total > 2 THEN to_jsonb(total) END $$, replace => true);
SELECT millrace.create_sink('sk items', source => 'sk.items', channel => 'sk_a', message => $$ to_jsonb(n) $$);
SELECT millrace.create_sink('sk all', source => 'sk.everything', channel => 'sk_b', message => $$ to_jsonb(n) $$);
SELECT millrace.create_sink('sk users', source => 'sk.by_user', channel => 'sk_b', message => $$ to_jsonb(n) $$, message_key => $$ coalesce(user_id, 'nobody') $$);
SELECT sk.say('{"id": 8, "total": 1, "items": [{"product": "tea", "n": 1}, {"product": "cake", "n": 2}]}', '{"id": 9, "total": 9}');
SELECT messages, dead_letters FROM millrace.run_stream('sk_orders');
:sent
SELECT sk.say('{"id": 8, "total": 3, "items": [{"product": "tea", "n": 1}, {"product": "cake", "n": 3}, {"product": "pie", "n": 1}]}', '{"id": 9, "op": "D"}');
SELECT messages, dead_letters FROM millrace.run_stream('sk_orders');
:sent
SELECT sk.say('{"id": 8, "op": "D"}');
SELECT messages, dead_letters FROM millrace.run_stream('sk_orders');
:sent

-- one row has an error: it is recorded, the others are sent, the stream goes on
SELECT millrace.create_sink('sk orders', source => 'sk.orders', channel => 'sk_a', message => $$ to_jsonb(100 / total) $$, message_key => $$ substr('k' || order_id, 1, (CASE order_id WHEN 13 THEN -1 ELSE 9 END)::integer) $$, replace => true);
SELECT sk.say('{"id": 10, "total": 1}', '{"id": 11, "total": 0}', '{"id": 12, "total": 4}', '{"id": 13, "total": 4}');
SELECT messages, dead_letters FROM millrace.run_stream('sk_orders');
:sent
SELECT sink, object, sqlstate, message FROM millrace.sink_error ORDER BY object;
SELECT sink, state, errors FROM millrace.sink_status WHERE sink = 'sk orders';
SELECT sk.say('{"id": 11, "total": 5}');
SELECT messages, dead_letters FROM millrace.run_stream('sk_orders');
:sent
SELECT sink, object, sqlstate, message FROM millrace.sink_error ORDER BY object;

-- the sink itself is wrong: it is suspended, the stream goes on; afterwards what differs is sent
RESET ROLE;
CREATE TABLE sk.prices (id bigint, price numeric);
INSERT INTO sk.prices VALUES (10, 1), (14, 2);
GRANT SELECT ON sk.prices TO sink_maker;
SET ROLE sink_maker;
SELECT millrace.create_sink('sk orders', source => 'sk.orders', channel => 'sk_a', message => $$ to_jsonb((SELECT p.price FROM sk.prices p WHERE p.id = orders.order_id)) $$, replace => true);
SELECT sk.say('{"id": 10, "total": 2}');
SELECT messages, dead_letters FROM millrace.run_stream('sk_orders');
:sent
RESET ROLE;
REVOKE SELECT ON sk.prices FROM sink_maker;
SET ROLE sink_maker;
SELECT sk.say('{"id": 14, "total": 2}', '{"id": 10, "op": "D"}');
SELECT messages, dead_letters FROM millrace.run_stream('sk_orders');
:sent
SELECT sink, state, reason, sqlstate FROM millrace.sink_status WHERE sink = 'sk orders';
SELECT severity, subject, message, hint FROM millrace.validate('sk_orders') WHERE subject LIKE 'sink%';
SELECT millrace.retry_sink('sk order');
SELECT sk.say('{"id": 15, "total": 2}');
SELECT messages, dead_letters FROM millrace.run_stream('sk_orders');
RESET ROLE;
GRANT SELECT ON sk.prices TO sink_maker;
SET ROLE sink_maker;
SELECT millrace.retry_sink('sk orders');
SELECT messages, dead_letters FROM millrace.run_stream('sk_orders');
:sent
SELECT sink, state, reason FROM millrace.sink_status WHERE sink = 'sk orders';

-- a rebuild sends what differs
SELECT millrace.drop_sink('sk items');
SELECT millrace.drop_sink('sk all');
SELECT sk.say('{"id": 20, "user": "r", "total": 1}', '{"id": 21, "user": "s", "total": 1}', '{"id": 22, "user": "t", "total": 1}');
SELECT messages, dead_letters FROM millrace.run_stream('sk_orders');
INSERT INTO sk.seen SELECT coalesce(max(id), 0) FROM millrace.outbox;
UPDATE sk.orders SET user_id = 's' WHERE order_id = 20;
SELECT millrace.rebuild('sk.by_user');
SELECT messages, dead_letters FROM millrace.run_stream('sk_orders');
:sent
SELECT millrace.create_staging('sk.logged', stream => 'sk_orders', key => '{"order_id": ["$.id", "bigint"]}', columns => '{"total": ["$.total", "numeric(12,2)"]}',
  computed => '{"twice": ["2 * total", "numeric"]}', log => true);
SELECT millrace.create_sink('sk logged', source => 'sk.logged', channel => 'sk_b', message => $$ jsonb_build_object('twice', twice) $$);
SELECT sk.say('{"id": 30, "total": 1}', '{"id": 31, "total": 0}');
SELECT messages, dead_letters FROM millrace.run_stream('sk_orders');
INSERT INTO sk.seen SELECT coalesce(max(id), 0) FROM millrace.outbox;
UPDATE sk.logged_log SET twice = 7 WHERE order_id = 30;
DELETE FROM sk.logged_log WHERE order_id = 31;
SELECT millrace.rebuild('sk.logged');
SELECT messages, dead_letters FROM millrace.run_stream('sk_orders');
:sent

SELECT millrace.drop_sink('sk logged');
SELECT millrace.drop_sink('sk users');

-- at most every hour: the row as it is when it is time
SELECT millrace.create_sink('sk hourly', source => 'sk.orders', channel => 'sk_b', message => $$ to_jsonb(orders.total) $$, at_most_every => '1 hour');
SELECT sk.say('{"id": 40, "total": 1}', '{"id": 41, "total": 1}', '{"id": 42, "total": 1}', '{"id": 43, "total": 1}');
SELECT messages, dead_letters FROM millrace.run_stream('sk_orders');
:sent
SELECT sk.say('{"id": 40, "total": 2}', '{"id": 41, "op": "D"}', '{"id": 42, "op": "D"}');
SELECT messages, dead_letters FROM millrace.run_stream('sk_orders');
SELECT sk.say('{"id": 40, "total": 3}', '{"id": 42, "total": 5}');
SELECT messages, dead_letters FROM millrace.run_stream('sk_orders');
:sent
SELECT sink, state, at_most_every, waiting, next_at > now() + interval '50 minutes' AS later FROM millrace.sink_status WHERE sink = 'sk hourly';
RESET ROLE;
UPDATE millrace.sink_row SET due_at = now(), sent_at = sent_at - interval '1 hour' WHERE due_at IS NOT NULL;
SET ROLE sink_maker;
SELECT messages, dead_letters FROM millrace.run_stream('sk_orders');
:sent
SELECT sink, state, waiting FROM millrace.sink_status WHERE sink = 'sk hourly';
SELECT millrace.describe('sink', 'sk hourly');

-- other roles
GRANT USAGE ON SCHEMA sk TO sink_other;
SET ROLE sink_other;
SELECT millrace.drop_sink('sk hourly');
SELECT millrace.create_sink('sk hourly', source => 'sk.orders', channel => 'sk_b', message => 'to_jsonb(1)', replace => true);
SELECT millrace.create_sink('sk mine', source => 'sk.orders', channel => 'sk_b', message => 'to_jsonb(1)');
SELECT millrace.create_sink('sk mine', source => 'sk.by_user', channel => 'sk_b', message => 'to_jsonb(1)');
SET ROLE sink_maker;

-- what a sink stands on, and its end
SELECT millrace.create_sink('sk users', source => 'sk.by_user', channel => 'sk_b', message => $$ to_jsonb(by_user) $$);
SELECT millrace.drop_table('sk.by_user');
SELECT millrace.drop_table('sk.orders');
\set VERBOSITY terse
ALTER TABLE sk.orders DROP COLUMN total;
\set VERBOSITY default
SELECT relation, kind, state FROM millrace.target_status WHERE kind = 'sink' ORDER BY relation;
SELECT relation, change, before, after FROM millrace.preview('sk_orders', payload => '{"id": 15, "user": "p", "total": 3}'::json) WHERE layer = 'sink';
SELECT millrace.drop_table('sk.by_user', cascade => true);
-- It is gone when it has been sent.
BEGIN;
SELECT millrace.erase('sk_orders', '{"order_id": 15}');
SELECT * FROM sk.sent WHERE key = '15';
COMMIT;
SELECT millrace.drop_sink('sk hourly');
SELECT sk.say('{"id": 50, "total": 3}');
SELECT messages, dead_letters FROM millrace.run_stream('sk_orders');
SELECT millrace.drop_channel('sk_a');
SELECT sink, channels FROM millrace.sink_status;
SELECT millrace.drop_sink('sk orders');
SELECT sink FROM millrace.sink_status;
SELECT count(*) FROM pg_class WHERE relname ~ '^sink_[0-9]' AND relnamespace = 'millrace_def'::regnamespace;
SET client_min_messages = warning;
SELECT millrace.drop_channel('sk_b');
SELECT millrace.drop_stream('sk_orders', cascade => true);
RESET ROLE;
DROP SCHEMA sk CASCADE;
DROP OWNED BY sink_maker, sink_other;
DROP ROLE sink_maker, sink_other;
