-- Rules on groups of marts: edges, tags, and what time brings.
\set VERBOSITY terse
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS millrace;
CREATE ROLE threshold_maker LOGIN;
GRANT millrace_admin TO threshold_maker;
GRANT CREATE ON DATABASE :DBNAME TO threshold_maker;
RESET client_min_messages;
\set VERBOSITY default
\set SHOW_CONTEXT never
SET TimeZone = 'UTC';
SET ROLE threshold_maker;
CREATE SCHEMA rt;
SELECT millrace.create_stream('rt_orders');
SELECT millrace.create_staging('rt.orders', stream => 'rt_orders', key => '{"order_id": ["$.id", "bigint"]}', deleted => $$ op = 'D' $$,
  columns => '{"op": "$.op", "user_id": "$.user", "category": "$.category", "total": ["$.total", "numeric(12,2)"]}');
SELECT millrace.create_mart('rt.user_category', 'SELECT user_id, category, count(*) AS n, sum(total)::numeric(18,2) AS total FROM rt.orders GROUP BY user_id, category');
SELECT millrace.create_mart('rt.everything', 'SELECT count(*) AS n FROM rt.orders');
SELECT millrace.create_mart('rt.hidden', 'SELECT user_id, count(*) AS n FROM rt.orders GROUP BY user_id, category');
SELECT millrace.create_mart('rt.striped', 'SELECT user_id, count(*) AS n FROM rt.orders GROUP BY user_id', stripes => 2);
CREATE FUNCTION rt.say(VARIADIC messages json[]) RETURNS bigint LANGUAGE sql AS
  $$ SELECT count(millrace.push('rt_orders', m, key => m ->> 'id')) FROM unnest(messages) WITH ORDINALITY AS u (m, n) $$;
CREATE VIEW rt.alerts AS SELECT rule, key, split_part(occurrence, '@', 1) AS occurrence, details, suppressed, resolved_at IS NOT NULL AS resolved FROM millrace.alert WHERE rule LIKE 'rt %' ORDER BY id;
CREATE VIEW rt.tags AS SELECT tag, key, until IS NULL AS holds FROM millrace.tag WHERE rule LIKE 'rt %' ORDER BY key;

SELECT rt.say('{"id": 1, "user": "a", "category": "sushi", "total": 5}', '{"id": 2, "user": "a", "category": "sushi", "total": 5}', '{"id": 3, "user": "b", "category": "sushi", "total": 5}', '{"id": 4, "category": "pizza", "total": 5}');
SELECT messages, dead_letters FROM millrace.run_stream('rt_orders');
SELECT millrace.create_rule('rt sushi', kind => 'threshold', source => 'rt.user_category', predicate => $$ category = 'sushi' AND n >= 2 $$, key => '{user_id}', tag => 'loves_sushi', details => '{n}', send_resolved => true);
SELECT millrace.create_rule('rt much', kind => 'threshold', source => 'rt.user_category', predicate => 'total > 100', resolve_when => 'total < 50', details => '{total}');
SELECT millrace.create_rule('rt busy', kind => 'threshold', source => 'rt.everything', predicate => 'n > 5');
SELECT millrace.create_rule('rt divides', kind => 'threshold', source => 'rt.user_category', predicate => '100 / (total - 7) > 1000');
SELECT messages, dead_letters FROM millrace.run_stream('rt_orders');
SELECT * FROM rt.alerts;
SELECT * FROM rt.tags;
SELECT rule, state, reason FROM millrace.rule_status WHERE rule LIKE 'rt %' ORDER BY 1;

-- edges: one for a commit, whatever came and went
SELECT rt.say('{"id": 5, "user": "b", "category": "sushi", "total": 200}', '{"id": 6, "category": "pizza", "total": 200}', '{"id": 7, "user": "c", "category": "tea", "total": 7}', '{"id": 8, "user": "c", "category": "cake", "total": 1}');
SELECT messages, dead_letters FROM millrace.run_stream('rt_orders');
SELECT * FROM rt.alerts OFFSET 1;
SELECT * FROM rt.tags;
SELECT rule, state, errors FROM millrace.rule_status WHERE rule LIKE 'rt %' ORDER BY 1;
SELECT rt.say('{"id": 5, "user": "b", "category": "sushi", "total": 60}', '{"id": 2, "op": "D"}', '{"id": 6, "op": "D"}', '{"id": 4, "op": "D"}');
SELECT messages, dead_letters FROM millrace.run_stream('rt_orders');
SELECT * FROM rt.alerts;
SELECT * FROM rt.tags;
SELECT rt.say('{"id": 5, "user": "b", "category": "sushi", "total": 300}', '{"id": 9, "user": "a", "category": "sushi", "total": 1}');
SELECT messages, dead_letters FROM millrace.run_stream('rt_orders');
SELECT * FROM rt.alerts OFFSET 5;
SELECT * FROM rt.tags;

-- the mart is made anew: who is tagged stays so
SELECT rows_after FROM millrace.rebuild('rt.user_category');
SELECT messages, dead_letters FROM millrace.run_stream('rt_orders');
SELECT * FROM rt.tags;
SELECT count(*) FROM rt.alerts;
SELECT millrace.describe('rule', 'rt sushi');
SELECT millrace.describe('rule', 'rt much');

SELECT key, split_part(occurrence, '@', 1) AS occurrence, details FROM millrace.test_rule('rt sushi') ORDER BY key;
SELECT * FROM rt.tags;

-- for so long; silences; acknowledged ones
SELECT millrace.create_rule('rt lasting', kind => 'threshold', source => 'rt.user_category', predicate => 'n > 3', for_interval => '2 seconds');
SELECT messages, dead_letters FROM millrace.run_stream('rt_orders');
SELECT rt.say('{"id": 20, "user": "d", "category": "x"}', '{"id": 21, "user": "d", "category": "x"}', '{"id": 22, "user": "d", "category": "x"}', '{"id": 23, "user": "d", "category": "x"}');
SELECT messages, dead_letters FROM millrace.run_stream('rt_orders');
SELECT count(*) FROM rt.alerts WHERE rule = 'rt lasting';
SELECT millrace.silence(clock_timestamp() + interval '1 hour', rule => 'rt lasting') > 0 AS silenced;
SELECT pg_sleep(2.1);
SELECT messages, dead_letters FROM millrace.run_stream('rt_orders');
SELECT key, suppressed FROM rt.alerts WHERE rule = 'rt lasting';
SELECT millrace.unsilence(id) FROM millrace.alert_silence WHERE rule = 'rt lasting';
SELECT messages, dead_letters FROM millrace.run_stream('rt_orders');
SELECT key, suppressed FROM rt.alerts WHERE rule = 'rt lasting';

-- what a silence suppressed is counted in what comes after it
SELECT millrace.create_channel('rt_channel', options => '{"channel": "rt"}');
SELECT millrace.create_rule('rt counted', kind => 'threshold', source => 'rt.user_category', predicate => 'total > 1000', channels => '{rt_channel}', send_resolved => true);
SELECT millrace.silence(clock_timestamp() + interval '1 hour', rule => 'rt counted') > 0 AS silenced;
SELECT rt.say('{"id": 30, "user": "e", "category": "x", "total": 2000}');
SELECT messages, dead_letters FROM millrace.run_stream('rt_orders');
SELECT rt.say('{"id": 30, "user": "e", "category": "x", "total": 1}');
SELECT messages, dead_letters FROM millrace.run_stream('rt_orders');
SELECT rt.say('{"id": 30, "user": "e", "category": "x", "total": 3000}');
SELECT messages, dead_letters FROM millrace.run_stream('rt_orders');
SELECT count(*) FROM millrace.outbox WHERE channel = 'rt_channel';
SELECT millrace.unsilence(id) FROM millrace.alert_silence WHERE rule = 'rt counted';
SELECT messages, dead_letters FROM millrace.run_stream('rt_orders');
SELECT rt.say('{"id": 30, "op": "D"}');
SELECT messages, dead_letters FROM millrace.run_stream('rt_orders');
SELECT message::json ->> 'state' AS state, message::json ->> 'suppressed' AS suppressed FROM millrace.outbox WHERE channel = 'rt_channel' ORDER BY id;

-- what a cooldown kept back, and still holds when it is over, is sent
SELECT millrace.create_channel('rt_cool', options => '{"channel": "rt"}');
SELECT millrace.create_rule('rt cool', kind => 'threshold', source => 'rt.user_category', predicate => 'total > 1000', channels => '{rt_cool}', send_resolved => true, cooldown => '1 hour');
SELECT messages, dead_letters FROM millrace.run_stream('rt_orders');
CREATE FUNCTION rt.spend(total integer) RETURNS TABLE (state text, suppressed text) LANGUAGE plpgsql AS $$ BEGIN
  PERFORM rt.say(json_build_object('id', 31, 'user', 'f', 'category', 'x', 'total', total));
  PERFORM millrace.run_stream('rt_orders');
  RETURN QUERY SELECT message::json ->> 'state', message::json ->> 'suppressed' FROM millrace.outbox WHERE channel = 'rt_cool' ORDER BY id;
END $$;
SELECT * FROM rt.spend(2000);
SELECT * FROM rt.spend(1);
SELECT * FROM rt.spend(3000);
SELECT messages, dead_letters FROM millrace.run_stream('rt_orders');
SELECT key, suppressed, resolved FROM rt.alerts WHERE rule = 'rt cool';
RESET ROLE;
UPDATE millrace.rule_alert a SET at = a.at - interval '2 hours', told_at = a.told_at - interval '2 hours' FROM millrace.rule r WHERE r.target_id = a.rule_id AND r.name = 'rt cool';
SET ROLE threshold_maker;
SELECT messages, dead_letters FROM millrace.run_stream('rt_orders');
SELECT * FROM rt.spend(3001);
SELECT key, suppressed, resolved FROM rt.alerts WHERE rule = 'rt cool';
SELECT * FROM rt.spend(1);
-- and begins the next one
SELECT * FROM rt.spend(4000);
SELECT key, suppressed, resolved FROM rt.alerts WHERE rule = 'rt cool';
-- which lets one message of a key pass
SELECT millrace.create_rule('rt cooler', kind => 'threshold', source => 'rt.user_category', predicate => 'total > 5000', key => '{user_id}', channels => '{rt_cool}', cooldown => '1 hour');
SELECT rt.say('{"id": 41, "user": "g", "category": "x", "total": 6000}', '{"id": 42, "user": "g", "category": "y", "total": 6000}', '{"id": 43, "user": "g", "category": "z", "total": 6000}');
SELECT messages, dead_letters FROM millrace.run_stream('rt_orders');
RESET ROLE;
UPDATE millrace.rule_alert a SET at = a.at - interval '2 hours', told_at = a.told_at - interval '2 hours' FROM millrace.rule r WHERE r.target_id = a.rule_id AND r.name = 'rt cooler';
SET ROLE threshold_maker;
SELECT messages, dead_letters FROM millrace.run_stream('rt_orders');
SELECT key, suppressed, count(*) FROM rt.alerts WHERE rule = 'rt cooler' GROUP BY key, suppressed ORDER BY suppressed;

-- a group is the same however its values are written, and whoever keeps the mart says when it is gone
SELECT millrace.create_staging('rt.things', stream => 'rt_orders', key => '{"id": ["$.value", "bigint"]}', deleted => $$ op = 'D' $$, route => 'value IS NOT NULL',
  columns => '{"op": "$.op", "value": "$.value", "number": ["$.number", "numeric"], "span": ["$.span", "interval"], "price": ["$.price", "money"]}');
SELECT millrace.create_mart('rt.numbers', 'SELECT number, count(*) AS n FROM rt.things WHERE number IS NOT NULL GROUP BY number');
SELECT millrace.create_mart('rt.spans', 'SELECT span, count(*) AS n FROM rt.things WHERE span IS NOT NULL GROUP BY span');
SELECT millrace.create_mart('rt.prices', 'SELECT price, count(*) AS n FROM rt.things WHERE price IS NOT NULL GROUP BY price');
SELECT millrace.create_rule('rt numbers', kind => 'threshold', source => 'rt.numbers', predicate => 'n > 0');
SELECT millrace.create_rule('rt spans', kind => 'threshold', source => 'rt.spans', predicate => 'n > 0');
SELECT millrace.create_rule('rt prices', kind => 'threshold', source => 'rt.prices', predicate => 'n > 0');
SELECT messages, dead_letters FROM millrace.run_stream('rt_orders');
SELECT rt.say('{"id": 40, "value": 1, "number": 1.0, "span": "1 day", "price": 5}', '{"id": 41, "value": 2, "number": 7, "span": "1 week", "price": 6}');
SELECT messages, dead_letters FROM millrace.run_stream('rt_orders');
SELECT rt.say('{"id": 42, "value": 3, "number": 1.00, "span": "24:00:00", "price": 5}');
SELECT messages, dead_letters FROM millrace.run_stream('rt_orders');
SELECT rule, occurrence, resolved FROM rt.alerts WHERE rule IN ('rt numbers', 'rt spans', 'rt prices');
SELECT rt.say('{"id": 40, "value": 1, "op": "D"}');
SELECT messages, dead_letters FROM millrace.run_stream('rt_orders');
SELECT rt.say('{"id": 42, "value": 3, "op": "D"}');
SELECT messages, dead_letters FROM millrace.run_stream('rt_orders');
SELECT rule, occurrence, resolved FROM rt.alerts WHERE rule IN ('rt numbers', 'rt spans', 'rt prices');
SELECT millrace.drop_table('rt.things', cascade => true);

-- what is refused
SELECT millrace.create_rule('x', kind => 'threshold', source => 'rt.orders', predicate => 'true');
SELECT millrace.create_rule('x', kind => 'threshold', source => 'rt.hidden', predicate => 'n > 1');
SELECT millrace.create_rule('x', kind => 'threshold', source => 'rt.striped', predicate => 'n > 1');
SELECT millrace.create_rule('x', kind => 'threshold', source => 'rt.user_category', predicate => 'n > 1', key => '{n}');
SELECT millrace.create_rule('x', kind => 'threshold', source => 'rt.user_category', predicate => 'n > 1', resolve_when => 'n');
SELECT millrace.create_rule('x', kind => 'match', source => 'rt.orders', predicate => 'true', tag => 'y');
SELECT millrace.drop_table('rt.user_category');

-- the owner loses the right to read it
REVOKE SELECT ON rt.everything FROM threshold_maker;
SELECT rt.say('{"id": 30, "user": "e"}');
SELECT messages, dead_letters FROM millrace.run_stream('rt_orders');
SELECT rule, state, reason, sqlstate FROM millrace.rule_status WHERE rule = 'rt busy';

SELECT millrace.drop_table('rt.orders', cascade => true);
SELECT count(*) FROM millrace.tag;
SELECT millrace.drop_stream('rt_orders');
RESET ROLE;
SET client_min_messages = warning;
DROP SCHEMA rt CASCADE;
DROP OWNED BY threshold_maker;
DROP ROLE threshold_maker;
