-- Rules of kind match, and what becomes of bad ones.
\set VERBOSITY terse
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS millrace;
CREATE ROLE rule_maker LOGIN;
GRANT millrace_admin TO rule_maker;
GRANT CREATE ON DATABASE :DBNAME TO rule_maker;
RESET client_min_messages;
\set VERBOSITY default
\set SHOW_CONTEXT never
SET TimeZone = 'UTC';
SET ROLE rule_maker;
CREATE SCHEMA ra;
SELECT millrace.create_stream('ra_orders');
SELECT millrace.create_staging('ra.orders', stream => 'ra_orders', key => '{"order_id": ["$.id", "bigint"]}', version => '["$.v", "integer"]', deleted => $$ op = 'D' $$, log => true,
  columns => '{"op": "$.op", "customer_id": "$.customer", "total": ["$.total", "numeric(12,2)"], "quantity": ["$.quantity", "integer"]}', filter => $$ op IS DISTINCT FROM 'X' $$);
SELECT millrace.create_staging('ra.lines', stream => 'ra_orders', route => $$ op = 'L' $$, for_each => '$.lines[*]', key => '{"order_id": ["$.id", "bigint"]}', version => '["$.v", "integer"]',
  columns => '{"op": "$.op", "product": "@.p", "n": ["@.n", "integer"]}');
CREATE FUNCTION ra.say(VARIADIC messages json[]) RETURNS bigint LANGUAGE sql AS
  $$ SELECT count(millrace.push('ra_orders', m, key => m ->> 'id')) FROM unnest(messages) WITH ORDINALITY AS u (m, n) $$;
CREATE VIEW ra.alerts AS SELECT rule, key, occurrence, details, suppressed FROM millrace.alert ORDER BY id;
-- what was there before
SELECT ra.say(
  '{"id": 1, "v": 1, "total": 20000, "quantity": 1, "customer": "a"}',
  '{"id": 2, "v": 1, "total": 5, "quantity": 60, "customer": "b"}');
SELECT dead_letters FROM millrace.run_stream('ra_orders');

SELECT millrace.create_rule('HIGH_VALUE', kind => 'match', source => 'ra.orders', predicate => 'total > 10000', rule_group => 'check', ordinal => 1, details => '{order_id, total}', severity => 'critical');
SELECT millrace.create_rule('QUANTITY', kind => 'match', source => 'ra.orders', predicate => 'quantity > 50', rule_group => 'check', ordinal => 2);
SELECT millrace.create_rule('CUSTOMER', kind => 'match', source => 'ra.orders', predicate => 'total < 0', key => '{customer_id}');
SELECT millrace.create_rule('LINES', kind => 'match', source => 'ra.lines', predicate => 'n > 5', details => '{product, n}');
SELECT rule, kind, source, severity, rule_group, ordinal, state FROM millrace.rule_status ORDER BY rule;
SELECT dead_letters FROM millrace.run_stream('ra_orders');
SELECT * FROM ra.alerts;
SELECT rule, state FROM millrace.rule_status ORDER BY rule;

-- once for each object, also when a version is late; the first rule of a group that is true
SELECT ra.say(
  '{"id": 1, "v": 2, "total": 30000}',
  '{"id": 3, "v": 1, "total": 1, "quantity": 1}',
  '{"id": 3, "v": 2, "total": 10001, "quantity": 100}',
  '{"id": 3, "v": 3, "total": 7}',
  '{"id": 4, "v": 5, "total": 7}',
  '{"id": 4, "v": 3, "total": 10001}', -- late
  '{"id": 5, "v": 1, "op": "X", "total": 10001}', -- filtered
  '{"id": 6, "v": 1, "quantity": null, "total": null}',
  '{"id": 7, "v": 1, "total": -1, "customer": "c"}',
  '{"id": 8, "v": 1, "total": -2, "customer": "c"}',
  '{"id": 9, "v": 1, "total": -2}',
  '{"id": 10, "v": 1, "op": "L", "lines": [{"p": "x", "n": 1}, {"p": "y", "n": 6}, {"p": "z", "n": 7}]}');
SELECT dead_letters FROM millrace.run_stream('ra_orders');
SELECT * FROM ra.alerts OFFSET 2;

-- until it is deleted; a delete that is late, or comes again, changes nothing
SELECT ra.say(
  '{"id": 3, "v": 4, "op": "D"}',
  '{"id": 3, "v": 5, "total": 10001}',
  '{"id": 3, "v": 6, "total": 10002}');
SELECT dead_letters FROM millrace.run_stream('ra_orders');
SELECT * FROM ra.alerts WHERE key = '3';
SELECT ra.say(
  '{"id": 3, "v": 4, "op": "D"}',
  '{"id": 3, "v": 2, "total": 10001}',
  '{"id": 3, "v": 7, "total": 10001}');
SELECT dead_letters FROM millrace.run_stream('ra_orders');
SELECT count(*) FROM ra.alerts WHERE key = '3';

-- describe, replace
SELECT millrace.describe('rule', 'HIGH_VALUE');
SELECT millrace.describe('rule', 'CUSTOMER');
SELECT millrace.create_rule('HIGH_VALUE', kind => 'match', source => 'ra.orders', predicate => 'total > 10000', rule_group => 'check', ordinal => 1, details => '{order_id, total}', severity => 'critical');
SELECT millrace.create_rule('HIGH_VALUE', kind => 'match', source => 'ra.orders', predicate => 'total > 10000', rule_group => 'check', ordinal => 1, details => '{order_id, total}', severity => 'critical', replace => true);
SELECT state FROM millrace.rule_status WHERE rule = 'HIGH_VALUE';
SELECT millrace.create_rule('HIGH_VALUE', kind => 'match', source => 'ra.orders', predicate => 'total > 3', rule_group => 'check', ordinal => 1, details => '{order_id, total}', replace => true);
SELECT state FROM millrace.rule_status WHERE rule = 'HIGH_VALUE';
SELECT dead_letters FROM millrace.run_stream('ra_orders');
SELECT * FROM ra.alerts WHERE rule = 'HIGH_VALUE';

-- a dry run over the log
SELECT * FROM (SELECT key, occurrence, details FROM millrace.test_rule('HIGH_VALUE')) AS t;
SELECT count(*) FROM millrace.test_rule('HIGH_VALUE', until => '2020-01-01');
SELECT key FROM millrace.test_rule('LINES');
SELECT count(*) FROM ra.alerts WHERE rule = 'HIGH_VALUE';

-- what is refused
SELECT millrace.create_rule('x', kind => 'mach', source => 'ra.orders', predicate => 'total > 3');
SELECT millrace.create_rule('x', kind => 'match', source => 'ra.orders', predicate => 'total >');
SELECT millrace.create_rule('x', kind => 'match', source => 'ra.orders', predicate => 'totl > 3');
SELECT millrace.create_rule('x', kind => 'match', source => 'ra.orders', predicate => 'total');
SELECT millrace.create_rule('x', kind => 'match', source => 'ra.orders', predicate => 'random() > 0.5');
SELECT millrace.create_rule('x', kind => 'match', source => 'ra.orders', predicate => 'now() > _event_time');
SELECT millrace.create_rule('x', kind => 'match', source => 'ra.orders', predicate => 'EXISTS (SELECT FROM pg_class)');
CREATE TEMP TABLE passing ();
SELECT millrace.create_rule('x', kind => 'match', source => 'ra.orders', predicate => 'EXISTS (SELECT FROM passing)');
SELECT millrace.create_rule('x', kind => 'match', source => 'ra.orders', predicate => 'true); DROP TABLE ra.orders; --');
SELECT millrace.create_rule('x', kind => 'match', source => 'ra.orders', predicate => 'total > 3', key => '{customer}');
SELECT millrace.create_rule('x', kind => 'match', source => 'ra.orders', predicate => 'total > 3', rule_group => 'check');
SELECT millrace.create_rule('x', kind => 'match', source => 'ra.orders', predicate => 'total > 3', rule_group => 'check', ordinal => 2);
SELECT millrace.create_rule('x', kind => 'match', source => 'ra.orders', predicate => 'total > 3', event_time => 'total');
SELECT millrace.create_rule('x', kind => 'match', source => 'pg_class', predicate => 'true');
SELECT millrace.create_rule('x', kind => 'match', source => 'ra.orders', predicate => 'total > 3', channels => '{nowhere}');
SELECT millrace.drop_rule('HIGH_VALU');
SELECT millrace.drop_table('ra.lines');

-- ---- bad rules: the stream goes on
CREATE FUNCTION ra.writes(n integer) RETURNS boolean LANGUAGE plpgsql IMMUTABLE AS $$ BEGIN CREATE TABLE ra.written (a integer); RETURN true; END $$;
CREATE FUNCTION ra.climbs(n integer) RETURNS boolean LANGUAGE plpgsql IMMUTABLE AS $$ BEGIN SET ROLE postgres; RETURN true; END $$;
CREATE FUNCTION ra.runs(n integer) RETURNS boolean LANGUAGE plpgsql IMMUTABLE AS $$ BEGIN WHILE n = 1000 LOOP NULL; END LOOP; RETURN false; END $$;
CREATE FUNCTION ra.forbidden(n integer) RETURNS boolean LANGUAGE sql IMMUTABLE AS $$ SELECT pg_read_file('/etc/passwd') IS NOT NULL $$;
CREATE FUNCTION ra.recurses(n integer) RETURNS boolean LANGUAGE plpgsql IMMUTABLE AS $$ BEGIN RETURN CASE WHEN n = 100 THEN ra.recurses(n) ELSE false END; END $$;
SELECT millrace.create_rule('divides', kind => 'match', source => 'ra.orders', predicate => '100 / quantity > 10');
SELECT millrace.create_rule('writes', kind => 'match', source => 'ra.orders', predicate => 'ra.writes(quantity)');
SELECT millrace.create_rule('climbs', kind => 'match', source => 'ra.orders', predicate => 'ra.climbs(quantity)');
SELECT millrace.create_rule('forbidden', kind => 'match', source => 'ra.orders', predicate => 'ra.forbidden(quantity)');
SELECT millrace.create_rule('runs', kind => 'match', source => 'ra.orders', predicate => 'ra.runs(quantity)');
SELECT millrace.create_rule('recurses', kind => 'match', source => 'ra.orders', predicate => 'ra.recurses(quantity)');
SELECT millrace.create_rule('good', kind => 'match', source => 'ra.orders', predicate => 'quantity >= 0', severity => 'info');
SELECT dead_letters FROM millrace.run_stream('ra_orders');
SELECT ra.say(
  '{"id": 21, "v": 1, "quantity": 5}',
  '{"id": 22, "v": 1, "quantity": 0}', -- divides by zero
  '{"id": 23, "v": 1, "quantity": 6}',
  '{"id": 24, "v": 1, "quantity": 100}', -- recurses
  '{"id": 25, "v": 1, "quantity": 1000}', -- runs for ever
  '{"id": 26, "v": 1, "quantity": 7}');
SELECT messages, dead_letters FROM millrace.run_stream('ra_orders');
SELECT rule, state, reason, sqlstate, errors FROM millrace.rule_status ORDER BY rule;
SELECT rule, position IS NOT NULL AS has_position, sqlstate, left(message, 40) AS message FROM millrace.rule_error ORDER BY rule, position;
SELECT rule, key, suppressed FROM ra.alerts WHERE rule IN ('divides', 'good') AND suppressed IS NULL ORDER BY rule, key;
SELECT to_regclass('ra.written');
-- mended, it judges what has come meanwhile
CREATE OR REPLACE FUNCTION ra.writes(n integer) RETURNS boolean LANGUAGE sql IMMUTABLE AS $$ SELECT n = 8 $$;
SELECT ra.say('{"id": 27, "v": 1, "quantity": 8}');
SELECT messages, dead_letters FROM millrace.run_stream('ra_orders');
SELECT millrace.retry_rule('writes');
SELECT millrace.retry_rule('good');
SELECT messages, dead_letters FROM millrace.run_stream('ra_orders');
SELECT rule, key, suppressed FROM ra.alerts WHERE rule = 'writes';

-- what could not be judged is a dead letter, which the rule as it is now judges again
CREATE FUNCTION ra.inverse(n integer) RETURNS integer LANGUAGE sql IMMUTABLE AS $$ SELECT 100 / n $$;
SELECT millrace.create_rule('inverse', kind => 'match', source => 'ra.orders', predicate => 'ra.inverse(quantity) > 10');
SELECT millrace.create_rule('inverses', kind => 'frequency', source => 'ra.orders', key => '{op}', count => 3, within => '1 hour', predicate => 'ra.inverse(quantity) > 10');
SELECT messages, dead_letters FROM millrace.run_stream('ra_orders');
SELECT millrace.discard(filter => $$ kind = 'rule' AND rule LIKE 'inverse%' $$);
SELECT ra.say('{"id": 61, "v": 1, "op": "z", "quantity": 0}', '{"id": 62, "v": 1, "op": "z", "quantity": 0}', '{"id": 63, "v": 1, "op": "z", "quantity": 0}', '{"id": 64, "v": 1, "op": "z", "quantity": 0}');
SELECT ra.say('{"id": 62, "v": 2, "op": "z", "quantity": 50}', '{"id": 65, "v": 1, "op": "z", "quantity": 5}');
SELECT messages, dead_letters FROM millrace.run_stream('ra_orders');
SELECT rule, message, attempts, count(*) FROM millrace.rule_error WHERE rule LIKE 'inverse%' GROUP BY 1, 2, 3 ORDER BY 1;
SELECT stream, staging, kind, state, rule, convert_from(value, 'UTF8') AS value FROM millrace.dead_letter WHERE rule = 'inverse' ORDER BY id;
SELECT dead_letters FROM millrace.stream_status WHERE stream = 'ra_orders';
SELECT * FROM millrace.retry(filter => $$ rule LIKE 'inverse%' $$);
SELECT rule, attempts, count(*) FROM millrace.rule_error WHERE rule LIKE 'inverse%' GROUP BY 1, 2 ORDER BY 1;
CREATE OR REPLACE FUNCTION ra.inverse(n integer) RETURNS integer LANGUAGE sql IMMUTABLE AS $$ SELECT CASE WHEN n = 0 THEN 100 ELSE 100 / n END $$;
SELECT r.* FROM millrace.rule_error e, millrace.retry(e.id) r WHERE e.rule = 'inverse' AND e.id = (SELECT min(id) FROM millrace.rule_error WHERE rule = 'inverse');
SELECT * FROM millrace.retry(filter => $$ kind = 'rule' AND rule LIKE 'inverse%' $$);
SELECT rule, key, details ->> 'count' AS count FROM ra.alerts WHERE rule LIKE 'inverse%' AND suppressed IS NULL ORDER BY rule, key;
SELECT count(*) FROM millrace.rule_error WHERE rule LIKE 'inverse%';
SELECT rule, state FROM millrace.dead_letter WHERE rule LIKE 'inverse%';
-- rows that were there before the rule came without their messages: they stay until the rule is filled again
SELECT millrace.create_rule('by', kind => 'match', source => 'ra.orders', predicate => '1 / quantity > 1');
SELECT messages, dead_letters FROM millrace.run_stream('ra_orders');
SELECT * FROM millrace.retry(filter => $$ rule = 'by' $$);
RESET ROLE;
UPDATE millrace.letter SET at = at - interval '89 days' WHERE kind = 'rule';
UPDATE millrace.letter SET at = at - interval '2 days' WHERE id = (SELECT min(id) FROM millrace.rule_error WHERE rule = 'by');
SET ROLE rule_maker;
SELECT subject, rows FROM millrace.maintain() WHERE subject = 'rule errors';
SELECT count(*) FROM millrace.rule_error WHERE rule = 'by';
SELECT millrace.drop_rule('by'), millrace.drop_rule('inverse'), millrace.drop_rule('inverses');
SELECT count(*) FROM millrace.dead_letter WHERE rule IN ('by', 'inverse', 'inverses') OR rule IS NULL AND kind = 'rule';

-- lost privileges
RESET ROLE;
CREATE ROLE rule_guest;
GRANT millrace_admin TO rule_guest;
GRANT USAGE ON SCHEMA ra TO rule_guest;
GRANT SELECT ON ra.orders TO rule_guest;
SET ROLE rule_guest;
SELECT millrace.create_rule('guest', kind => 'match', source => 'ra.orders', predicate => 'quantity = 9');
SELECT millrace.create_rule('guest', kind => 'match', source => 'ra.lines', predicate => 'n = 9', replace => true);
SELECT millrace.drop_rule('good');
SET ROLE rule_maker;
SELECT ra.say('{"id": 28, "v": 1, "quantity": 9}');
SELECT messages, dead_letters FROM millrace.run_stream('ra_orders');
SELECT ra.say('{"id": 29, "v": 1, "quantity": 9}');
REVOKE SELECT ON ra.orders FROM rule_guest;
SELECT messages, dead_letters FROM millrace.run_stream('ra_orders');
SELECT rule, key FROM millrace.alert WHERE rule = 'guest';
SELECT rule, state, reason, sqlstate FROM millrace.rule_status WHERE rule = 'guest';
RESET ROLE;
DROP OWNED BY rule_guest;
DROP ROLE rule_guest;
SET ROLE rule_maker;
SELECT ra.say('{"id": 30, "v": 1, "quantity": 9}');
SELECT messages, dead_letters FROM millrace.run_stream('ra_orders');

-- silences, cooldown
SELECT millrace.create_rule('cool', kind => 'match', source => 'ra.orders', predicate => 'quantity = 11', cooldown => '1 hour');
SELECT millrace.create_rule('quiet', kind => 'match', source => 'ra.orders', predicate => 'quantity = 12', severity => 'critical');
SELECT messages, dead_letters FROM millrace.run_stream('ra_orders');
SELECT millrace.silence(now() + interval '1 hour', severity => 'critical', comment => 'we know') > 0 AS silenced;
SELECT ra.say('{"id": 31, "v": 1, "quantity": 12}', '{"id": 32, "v": 1, "quantity": 11}', '{"id": 32, "v": 2, "op": "D"}', '{"id": 32, "v": 3, "quantity": 11}');
SELECT count(millrace.push('ra_orders', '{"id": 33, "v": 1, "quantity": 11}', key => '33', message_time => now() - interval '2 hours'));
SELECT messages, dead_letters FROM millrace.run_stream('ra_orders');
SELECT rule, key, occurrence, suppressed FROM ra.alerts WHERE rule IN ('cool', 'quiet');
SELECT millrace.unsilence(id), rule, severity, key, in_force, comment FROM millrace.alert_silence;
SELECT millrace.unsilence(0);
SELECT ra.say('{"id": 34, "v": 1, "quantity": 12}');
SELECT messages, dead_letters FROM millrace.run_stream('ra_orders');
SELECT rule, key, occurrence, suppressed FROM ra.alerts WHERE rule = 'quiet';
SELECT millrace.acknowledge(id, 'seen') FROM millrace.alert WHERE key = '34';
SELECT key, acknowledged_by, comment FROM millrace.alert WHERE key = '34';

-- a key that is too long for an index is cut; a time that is none does no harm
SELECT millrace.create_rule('long', kind => 'match', source => 'ra.orders', predicate => 'quantity = 13', key => '{customer_id}', event_time => $$ CASE WHEN total > 0 THEN '294276-12-30'::timestamptz ELSE '-infinity' END $$);
SELECT ra.say(json_build_object('id', 40, 'v', 1, 'quantity', 13, 'total', 1, 'customer', repeat('ab', 5000)), json_build_object('id', 41, 'v', 1, 'quantity', 13, 'customer', repeat('ab', 5000) || 'c'));
SELECT messages, dead_letters FROM millrace.run_stream('ra_orders');
SELECT octet_length(key), left(key, 4) AS key, event_time > '2020-01-01' AS finite FROM millrace.alert WHERE rule = 'long' ORDER BY id;
SELECT state FROM millrace.rule_status WHERE rule = 'long';

-- what goes with what
SELECT millrace.drop_table('ra.lines', cascade => true);
SELECT millrace.drop_rule('good');
SELECT relation FROM millrace.target_status WHERE kind = 'rule' AND owner = 'rule_maker' ORDER BY 1;
SELECT millrace.drop_table('ra.orders', cascade => true);
SELECT count(*) FROM millrace.rule_status;
SELECT millrace.drop_stream('ra_orders');
RESET ROLE;
SET client_min_messages = warning;
DROP SCHEMA ra CASCADE;
DROP OWNED BY rule_maker;
DROP ROLE rule_maker;
