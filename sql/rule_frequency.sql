-- Rules that fire again, and those of kind frequency.
\set VERBOSITY terse
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS millrace;
CREATE ROLE frequency_maker LOGIN;
GRANT millrace_admin TO frequency_maker;
GRANT CREATE ON DATABASE :DBNAME TO frequency_maker;
RESET client_min_messages;
\set VERBOSITY default
\set SHOW_CONTEXT never
SET TimeZone = 'UTC';
SET ROLE frequency_maker;
CREATE SCHEMA rf;
SELECT millrace.create_stream('rf_orders');
SELECT millrace.create_staging('rf.orders', stream => 'rf_orders', key => '{"order_id": ["$.id", "bigint"]}', version => '["$.v", "integer"]', deleted => $$ op = 'D' $$, event_time => '["$.at", "timestamptz"]',
  columns => '{"op": "$.op", "customer_id": "$.customer", "total": ["$.total", "numeric(12,2)"], "ip": "$.ip", "status": "$.status"}');
CREATE FUNCTION rf.say(VARIADIC messages json[]) RETURNS bigint LANGUAGE sql AS
  $$ SELECT count(millrace.push('rf_orders', m, key => m ->> 'id')) FROM unnest(messages) WITH ORDINALITY AS u (m, n) $$;
CREATE VIEW rf.alerts AS SELECT rule, key, occurrence, details, suppressed FROM millrace.alert WHERE rule LIKE 'rf %' ORDER BY id;

SELECT millrace.create_rule('rf rapid', kind => 'frequency', source => 'rf.orders', key => '{customer_id}', count => 3, within => '5 minutes', event_time => '_event_time', max_age => NULL, details => '{order_id}');
SELECT millrace.create_rule('rf spent', kind => 'frequency', source => 'rf.orders', key => '{customer_id}', sum => 'total', at_least => 100.5, within => '5 minutes', lateness => '0', event_time => '_event_time', max_age => NULL,
  predicate => $$ status IS DISTINCT FROM 'test' $$);
SELECT millrace.create_rule('rf ips', kind => 'frequency', source => 'rf.orders', key => '{customer_id, status}', count => 2, distinct_values => 'ip', within => '5 minutes', event_time => '_event_time', max_age => NULL);
SELECT millrace.create_rule('rf open', kind => 'match', source => 'rf.orders', predicate => $$ status = 'open' $$, again => true);
SELECT messages FROM millrace.run_stream('rf_orders');
SELECT millrace.describe('rule', 'rf spent');
SELECT millrace.describe('rule', 'rf ips');

SELECT rf.say(
  '{"id": 1, "v": 1, "customer": "a", "total": 50, "ip": "x", "at": "2026-01-05 10:00", "status": "open"}',
  '{"id": 2, "v": 1, "customer": "a", "total": 50, "ip": "x", "at": "2026-01-05 10:01", "status": "test"}',
  '{"id": 3, "v": 1, "customer": "b", "total": 99, "ip": "x", "at": "2026-01-05 10:01"}',
  '{"id": 4, "v": 1, "customer": "a", "total": 50.5, "ip": "y", "at": "2026-01-05 10:04:59", "status": "open"}',
  '{"id": 5, "v": 1, "customer": "a", "total": 1, "ip": "z", "at": "2026-01-05 10:05", "status": "open"}',
  '{"id": 6, "v": 1, "total": 1000, "at": "2026-01-05 10:05"}'); -- nobody's
SELECT messages, dead_letters FROM millrace.run_stream('rf_orders');
SELECT * FROM rf.alerts;
-- a copy, a deleted one, a changed customer, one that is late, one that is too late
SELECT rf.say(
  '{"id": 3, "v": 1, "customer": "b", "total": 99, "ip": "x", "at": "2026-01-05 10:01"}',
  '{"id": 7, "v": 1, "customer": "b", "total": 99, "ip": "x", "at": "2026-01-05 10:02"}',
  '{"id": 7, "v": 2, "op": "D"}',
  '{"id": 8, "v": 1, "customer": "b", "total": 99, "ip": "x", "at": "2026-01-05 10:03"}',
  '{"id": 8, "v": 2, "customer": "c", "total": 99, "ip": "x", "at": "2026-01-05 10:03"}',
  '{"id": 9, "v": 1, "customer": "b", "total": 0, "ip": "x", "at": "2026-01-05 10:00"}');
SELECT messages, dead_letters FROM millrace.run_stream('rf_orders');
SELECT * FROM rf.alerts WHERE key ~ '[bc]';
SELECT rf.say('{"id": 10, "v": 1, "customer": "b", "total": 0, "at": "2026-01-05 09:59"}', '{"id": 11, "v": 1, "customer": "b", "total": 0, "at": "2026-01-05 09:50"}');
SELECT messages, dead_letters FROM millrace.run_stream('rf_orders');
SELECT * FROM rf.alerts WHERE key ~ '[bc]';
SELECT rule, state, late_dropped FROM millrace.rule_status WHERE rule LIKE 'rf %' ORDER BY 1;

-- what no sum can be made of is left out, and told
SELECT rf.say('{"id": 80, "v": 1, "customer": "n", "total": 60, "at": "2026-01-05 10:00"}', '{"id": 81, "v": 1, "customer": "n", "total": "NaN", "at": "2026-01-05 10:01"}', '{"id": 82, "v": 1, "customer": "n", "total": 60, "at": "2026-01-05 10:02"}');
SELECT messages, dead_letters FROM millrace.run_stream('rf_orders');
SELECT rule, state, reason, errors FROM millrace.rule_status WHERE rule = 'rf spent';
SELECT sqlstate, message FROM millrace.rule_error WHERE rule = 'rf spent';
SELECT rule, details ->> 'sum' AS sum, details ->> 'count' AS count FROM rf.alerts WHERE key = 'n';

-- again: each time it becomes true
SELECT rf.say('{"id": 1, "v": 2, "customer": "a", "status": "closed", "at": "2026-01-05 10:00"}');
SELECT messages, dead_letters FROM millrace.run_stream('rf_orders');
SELECT rf.say('{"id": 1, "v": 3, "customer": "a", "status": "open", "at": "2026-01-05 10:00"}');
SELECT messages, dead_letters FROM millrace.run_stream('rf_orders');
SELECT rf.say('{"id": 1, "v": 4, "customer": "b", "status": "open", "at": "2026-01-05 10:00"}');
SELECT messages, dead_letters FROM millrace.run_stream('rf_orders');
SELECT rule, key, occurrence FROM rf.alerts WHERE rule = 'rf open';

-- a wider window is filled from what is staged
SELECT millrace.create_rule('rf rapid', kind => 'frequency', source => 'rf.orders', key => '{customer_id}', count => 4, within => '1 hour', event_time => '_event_time', max_age => NULL, replace => true);
SELECT messages, dead_letters FROM millrace.run_stream('rf_orders');
SELECT rule, key, details, suppressed FROM rf.alerts WHERE rule = 'rf rapid';
SELECT rf.say('{"id": 20, "v": 1, "customer": "b", "total": 1, "at": "2026-01-05 10:30"}', '{"id": 21, "v": 1, "customer": "b", "total": 1, "at": "2026-01-05 10:31"}');
SELECT messages, dead_letters FROM millrace.run_stream('rf_orders');
SELECT rule, key, details, suppressed FROM rf.alerts WHERE rule = 'rf rapid';

-- what is refused
SELECT millrace.create_rule('x', kind => 'frequency', source => 'rf.orders', count => 3, within => '5 minutes');
SELECT millrace.create_rule('x', kind => 'frequency', source => 'rf.orders', key => '{customer_id}', count => 3);
SELECT millrace.create_rule('x', kind => 'frequency', source => 'rf.orders', key => '{customer_id}', within => '5 minutes');
SELECT millrace.create_rule('x', kind => 'frequency', source => 'rf.orders', key => '{customer_id}', within => '5 minutes', count => 0);
SELECT millrace.create_rule('x', kind => 'frequency', source => 'rf.orders', key => '{customer_id}', within => '-5 minutes', count => 1);
SELECT millrace.create_rule('x', kind => 'frequency', source => 'rf.orders', key => '{customer_id}', within => '5 minutes', sum => 'total');
SELECT millrace.create_rule('x', kind => 'frequency', source => 'rf.orders', key => '{customer_id}', within => '5 minutes', sum => 'op = ''x''', at_least => 3);
SELECT millrace.create_rule('x', kind => 'match', source => 'rf.orders', predicate => 'true', count => 3);
SELECT millrace.create_rule('x', kind => 'frequency', source => 'rf.orders', key => '{customer_id}', within => '5 minutes', count => 1, again => true);

-- ---- what does not come
SELECT millrace.create_rule('rf silent', kind => 'absence', source => 'rf.orders', key => '{customer_id}', within => '2 seconds', predicate => $$ status = 'beat' $$, send_resolved => true);
SELECT millrace.create_rule('rf gone', kind => 'absence', source => 'rf.orders', within => '1 hour');
SELECT millrace.create_rule('rf forgotten', kind => 'absence', source => 'rf.orders', key => '{customer_id}', within => '2 seconds', predicate => $$ status = 'beat' $$, forget => '1 second');
SELECT millrace.describe('rule', 'rf silent');
SELECT millrace.describe('rule', 'rf gone');
SELECT messages FROM millrace.run_stream('rf_orders');
SELECT rf.say('{"id": 50, "v": 1, "customer": "p", "status": "beat"}', '{"id": 51, "v": 1, "customer": "q", "status": "beat"}');
SELECT messages FROM millrace.run_stream('rf_orders');
SELECT count(*) FROM rf.alerts WHERE rule = 'rf silent';
SELECT pg_sleep(2.1);
SELECT rf.say('{"id": 52, "v": 1, "customer": "q", "status": "beat"}');
SELECT messages FROM millrace.run_stream('rf_orders');
SELECT messages FROM millrace.run_stream('rf_orders');
SELECT key, suppressed FROM rf.alerts WHERE rule = 'rf silent';
SELECT rf.say('{"id": 53, "v": 1, "customer": "p", "status": "beat"}');
SELECT messages FROM millrace.run_stream('rf_orders');
SELECT key, resolved_at IS NOT NULL AS resolved FROM millrace.alert WHERE rule = 'rf silent';
SELECT pg_sleep(2.1);
SELECT messages FROM millrace.run_stream('rf_orders');
SELECT key, count(*) FROM rf.alerts WHERE rule = 'rf silent' GROUP BY key ORDER BY key;
SELECT count(*) FROM rf.alerts WHERE rule = 'rf gone';
-- keys that are forgotten before that are not missed
SELECT count(*) FROM rf.alerts WHERE rule = 'rf forgotten';
SELECT millrace.create_rule('rf gone', kind => 'absence', source => 'rf.orders', within => '1 second', replace => true);
SELECT pg_sleep(1.1);
SELECT messages FROM millrace.run_stream('rf_orders');
SELECT key FROM rf.alerts WHERE rule = 'rf gone';
-- whose clock is ahead is missed all the same
SELECT millrace.create_rule('rf ahead', kind => 'absence', source => 'rf.orders', key => '{customer_id}', within => '1 second', event_time => '_event_time', max_ahead => '0', predicate => $$ status = 'ahead' $$, send_resolved => true, forget => '1 hour');
SELECT millrace.describe('rule', 'rf ahead');
SELECT messages FROM millrace.run_stream('rf_orders');
SELECT rf.say('{"id": 54, "v": 1, "customer": "p", "status": "ahead", "at": "2100-01-01"}');
SELECT messages FROM millrace.run_stream('rf_orders');
SELECT pg_sleep(1.1);
SELECT messages FROM millrace.run_stream('rf_orders');
SELECT key, resolved_at IS NOT NULL AS resolved FROM millrace.alert WHERE rule = 'rf ahead';
-- and when it is waited for no longer, that is over
RESET ROLE;
UPDATE millrace.rule_state s SET state = jsonb_set(s.state::jsonb, '{details,last}', to_jsonb(clock_timestamp() - interval '2 hours'))::json FROM millrace.rule r WHERE r.target_id = s.rule_id AND r.name = 'rf ahead';
SET ROLE frequency_maker;
SELECT messages FROM millrace.run_stream('rf_orders');
SELECT key, resolved_at IS NOT NULL AS resolved FROM millrace.alert WHERE rule = 'rf ahead';
SELECT millrace.create_rule('x', kind => 'absence', source => 'rf.orders', within => '1 s', max_ahead => '-1 s');
SELECT millrace.create_rule('x', kind => 'absence', source => 'rf.orders');
SELECT millrace.create_rule('x', kind => 'absence', source => 'rf.orders', within => '1 s', count => 3);
SELECT millrace.create_rule('x', kind => 'match', source => 'rf.orders', predicate => 'true', forget => '1 s');

-- a clock that is wrong forgets nothing: only max_ahead of it counts
SELECT rf.say('{"id": 30, "v": 1, "customer": "h", "at": "2100-01-01"}');
SELECT messages, dead_letters FROM millrace.run_stream('rf_orders');
SELECT rf.say(VARIADIC array_agg(json_build_object('id', i, 'v', 1, 'customer', 'h', 'at', now())) || '{"id": 30, "v": 2, "op": "D"}'::json) FROM generate_series(31, 34) i;
SELECT messages, dead_letters FROM millrace.run_stream('rf_orders');
SELECT rule, details ->> 'count' AS count, suppressed FROM rf.alerts WHERE key = 'h';

-- an object with a long name that has got another customer is an event of that one only
SELECT millrace.create_staging('rf.long', stream => 'rf_orders', key => '{"id": ["$.long", "text"]}', version => '["$.v", "integer"]', columns => '{"customer_id": "$.customer", "long": "$.long"}', route => 'long IS NOT NULL');
SELECT millrace.create_rule('rf long', kind => 'frequency', source => 'rf.long', key => '{customer_id}', count => 2, within => '1 hour');
SELECT rf.say(json_build_object('id', 90, 'long', repeat('k', 600), 'v', 1, 'customer', 'la'));
SELECT messages, dead_letters FROM millrace.run_stream('rf_orders');
SELECT rf.say(json_build_object('id', 90, 'long', repeat('k', 600), 'v', 2, 'customer', 'lb'));
SELECT messages, dead_letters FROM millrace.run_stream('rf_orders');
SELECT rf.say(json_build_object('id', 91, 'long', 'short', 'v', 1, 'customer', 'la'));
SELECT messages, dead_letters FROM millrace.run_stream('rf_orders');
SELECT count(*) FROM rf.alerts WHERE rule = 'rf long';
SELECT millrace.drop_table('rf.long', cascade => true);

-- ---- what a snapshot has read is there, and nobody knows since when
SELECT millrace.create_stream('rf_copied', format => 'debezium');
SELECT millrace.create_staging('rf.copied', stream => 'rf_copied', key => '{"id": ["$.id", "bigint"]}', version => '["$source.lsn", "bigint"]', tombstone => 'ignore', columns => '{"customer": "$.customer", "at": ["$.at", "timestamptz"]}');
-- Rows of some customer that are read (r), or change (c, u).
CREATE FUNCTION rf.change(op text, lsn bigint, first integer, last integer, customer text) RETURNS bigint LANGUAGE sql AS $$
  SELECT count(millrace.push('rf_copied', json_build_object('op', op, 'before', NULL, 'after', json_build_object('id', i, 'customer', customer, 'at', CASE WHEN customer = 'dated' THEN now() END),
    'source', json_build_object('lsn', lsn)), key => json_build_object('id', i)::text)) FROM generate_series(first, last) i $$;
SELECT millrace.create_rule('rf copied', kind => 'frequency', source => 'rf.copied', key => '{customer}', count => 3, within => '1 hour');
SELECT millrace.create_rule('rf copied dated', kind => 'frequency', source => 'rf.copied', key => '{customer}', count => 3, within => '1 hour', event_time => 'at');
SELECT messages FROM millrace.run_stream('rf_copied');
SELECT rf.change('r', 1, 1, 9, 'a'), rf.change('r', 1, 11, 13, 'dated');
SELECT messages, dead_letters FROM millrace.run_stream('rf_copied');
SELECT rule, key, details ->> 'count' AS count, suppressed FROM rf.alerts WHERE rule LIKE 'rf copied%' ORDER BY 1, 2;
-- a row that changes is an event, and stays one when it is read again, in the same batch or later
SELECT rf.change('u', 2, 1, 1, 'a');
SELECT messages, dead_letters FROM millrace.run_stream('rf_copied');
SELECT rf.change('u', 3, 2, 2, 'a'), rf.change('r', 4, 1, 9, 'a');
SELECT messages, dead_letters FROM millrace.run_stream('rf_copied');
SELECT rf.change('u', 5, 3, 3, 'a');
SELECT messages, dead_letters FROM millrace.run_stream('rf_copied');
SELECT rule, key, details ->> 'count' AS count, suppressed FROM rf.alerts WHERE rule LIKE 'rf copied%' AND key = 'a' ORDER BY 1, 2;
-- it is none any more when what is read says something else
SELECT rf.change('c', 6, 21, 22, 'b');
SELECT messages, dead_letters FROM millrace.run_stream('rf_copied');
SELECT rf.change('r', 7, 21, 21, 'c'), rf.change('c', 8, 23, 23, 'b');
SELECT messages, dead_letters FROM millrace.run_stream('rf_copied');
SELECT rf.change('c', 9, 24, 24, 'b');
SELECT rule, key FROM rf.alerts WHERE rule = 'rf copied' AND key <> 'a';
SELECT messages, dead_letters FROM millrace.run_stream('rf_copied');
SELECT rule, key, details ->> 'count' AS count, suppressed FROM rf.alerts WHERE rule = 'rf copied' AND key <> 'a';
-- a rule that is made later is filled with events only
SELECT millrace.create_rule('rf copied later', kind => 'frequency', source => 'rf.copied', key => '{customer}', count => 2, within => '1 hour');
SELECT messages FROM millrace.run_stream('rf_copied');
SELECT rule, key, details ->> 'count' AS count, suppressed FROM rf.alerts WHERE rule = 'rf copied later';
SELECT millrace.drop_table('rf.copied', cascade => true);
SELECT millrace.drop_stream('rf_copied');

SELECT millrace.drop_table('rf.orders', cascade => true);
SELECT millrace.drop_stream('rf_orders');
RESET ROLE;
SET client_min_messages = warning;
DROP SCHEMA rf CASCADE;
DROP OWNED BY frequency_maker;
DROP ROLE frequency_maker;
