-- What rules put into the outbox.
\set VERBOSITY terse
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS millrace;
CREATE ROLE message_maker LOGIN;
GRANT millrace_admin TO message_maker;
GRANT CREATE ON DATABASE :DBNAME TO message_maker;
RESET client_min_messages;
\set VERBOSITY default
\set SHOW_CONTEXT never
SET TimeZone = 'UTC';
SET ROLE message_maker;
CREATE SCHEMA rm;
SELECT millrace.create_channel('rm ops', options => '{"channel": "rm"}');
SELECT millrace.create_channel('rm more', options => '{"channel": "rm"}');
SELECT millrace.create_stream('rm_orders');
SELECT millrace.create_staging('rm.orders', stream => 'rm_orders', key => '{"order_id": ["$.id", "bigint"]}', version => '["$.v", "integer"]', deleted => $$ op = 'D' $$,
  columns => '{"op": "$.op", "city": "$.city", "total": ["$.total", "numeric(12,2)"]}');
SELECT millrace.create_mart('rm.cities', 'SELECT city, count(*) AS n FROM rm.orders GROUP BY city');
SELECT millrace.create_rule('rm high', kind => 'match', source => 'rm.orders', predicate => 'total > 100', details => '{total, city}', channels => '{rm ops, rm more}', group_by => '{city}', severity => 'critical', cooldown => '1 hour');
SELECT millrace.create_rule('rm cities', kind => 'threshold', source => 'rm.cities', predicate => 'n > 1', details => '{n}', channels => '{rm ops}', send_resolved => true, repeat_every => '1 hour', max_age => NULL);
SELECT millrace.describe('rule', 'rm high');
SELECT messages FROM millrace.run_stream('rm_orders');
CREATE FUNCTION rm.say(VARIADIC messages json[]) RETURNS bigint LANGUAGE sql AS
  $$ SELECT count(millrace.push('rm_orders', m, key => m ->> 'id')) FROM unnest(messages) WITH ORDINALITY AS u (m, n) $$;
RESET ROLE;
CREATE FUNCTION rm.hours_pass() RETURNS void LANGUAGE sql SECURITY DEFINER AS $$ UPDATE millrace.rule_alert SET at = at - interval '2 hours', told_at = told_at - interval '2 hours'; UPDATE millrace.rule_state SET at = at - interval '2 hours' $$;
CREATE VIEW rm.sent AS SELECT c.name AS channel, m.key, m.group_by, m.alert_id IS NOT NULL AS of_alert, m.message ->> 'rule' AS rule, m.message ->> 'severity' AS severity, m.message ->> 'state' AS state,
    m.message ->> 'key' AS about, m.message -> 'details' AS details, m.message ->> 'suppressed' AS suppressed, m.not_after - (m.message ->> 'event_time')::timestamptz AS lasts
  FROM millrace.outbox_message m JOIN millrace.channel c ON c.id = m.channel_id WHERE c.name LIKE 'rm %' ORDER BY m.id;
GRANT SELECT ON rm.sent TO message_maker;
SET ROLE message_maker;
SELECT rm.say('{"id": 1, "v": 1, "total": 500, "city": "Riga"}', '{"id": 2, "v": 1, "total": 5, "city": "Riga"}', '{"id": 3, "v": 1, "total": 50, "city": "Oslo"}');
SELECT messages FROM millrace.run_stream('rm_orders');
SELECT * FROM rm.sent;
-- suppressed, and counted in the next one
SELECT rm.say('{"id": 1, "v": 2, "op": "D"}', '{"id": 1, "v": 3, "total": 501, "city": "Oslo"}');
SELECT messages FROM millrace.run_stream('rm_orders');
SELECT rm.hours_pass();
SELECT rm.say('{"id": 1, "v": 4, "op": "D"}', '{"id": 1, "v": 5, "total": 502, "city": "Oslo"}');
SELECT messages FROM millrace.run_stream('rm_orders');
SELECT channel, key, rule, state, details, suppressed FROM rm.sent OFFSET 3;
-- again while it lasts, not when somebody has acknowledged it; the end; a channel that is gone
SELECT rm.hours_pass();
SELECT messages FROM millrace.run_stream('rm_orders');
SELECT millrace.acknowledge(id) FROM millrace.alert WHERE rule = 'rm cities' AND key = 'Oslo';
SELECT rm.hours_pass();
SELECT messages FROM millrace.run_stream('rm_orders');
SELECT key, state, count(*) > 1 AS again FROM rm.sent WHERE rule = 'rm cities' GROUP BY key, state ORDER BY key;
SELECT millrace.drop_channel('rm more');
SELECT rm.say('{"id": 3, "v": 2, "op": "D"}', '{"id": 4, "v": 1, "total": 101}');
SELECT messages FROM millrace.run_stream('rm_orders');
SELECT channel, key, rule, state, details FROM rm.sent WHERE state = 'resolved' OR key = '4';
-- nothing of a rolled back batch
BEGIN;
SELECT rm.say('{"id": 5, "v": 1, "total": 101}');
SELECT messages FROM millrace.run_stream('rm_orders');
SELECT count(*) FROM rm.sent WHERE key = '5';
ROLLBACK;
SELECT count(*) FROM rm.sent WHERE key = '5';
-- when a silence is over, what still holds is sent, and what has passed is counted in the next message
SELECT millrace.create_rule('rm often', kind => 'frequency', source => 'rm.orders', key => '{city}', count => 2, within => '1 minute', event_time => $$ '2026-01-01 00:00+00'::timestamptz + total * interval '1 minute' $$,
  channels => '{rm ops}', max_age => NULL);
SELECT millrace.create_rule('rm quiet', kind => 'absence', source => 'rm.orders', key => '{city}', within => '2 seconds', predicate => $$ city = 'Bern' $$, channels => '{rm ops}');
SELECT messages FROM millrace.run_stream('rm_orders');
SELECT rm.say('{"id": 11, "v": 1, "total": 200, "city": "Bern"}', '{"id": 12, "v": 1, "total": 200, "city": "Bern"}');
SELECT messages FROM millrace.run_stream('rm_orders');
SELECT millrace.silence(now() + interval '1 hour') > 0 AS silenced;
SELECT rm.say('{"id": 13, "v": 1, "total": 210, "city": "Bern"}', '{"id": 14, "v": 1, "total": 210, "city": "Bern"}', '{"id": 15, "v": 1, "total": 1, "city": "Lima"}', '{"id": 16, "v": 1, "total": 2, "city": "Lima"}');
SELECT messages FROM millrace.run_stream('rm_orders');
SELECT pg_sleep(2.1);
SELECT messages FROM millrace.run_stream('rm_orders');
SELECT rule, key FROM millrace.alert WHERE suppressed = 'silence' ORDER BY id;
SELECT count(*) AS sent FROM rm.sent \gset
SELECT millrace.unsilence(id) FROM millrace.alert_silence WHERE in_force;
SELECT messages FROM millrace.run_stream('rm_orders');
SELECT rule, key, state FROM rm.sent OFFSET :sent;
SELECT rm.say('{"id": 17, "v": 1, "total": 220, "city": "Bern"}', '{"id": 18, "v": 1, "total": 220, "city": "Bern"}');
SELECT messages FROM millrace.run_stream('rm_orders');
SELECT details ->> 'count' AS count, suppressed FROM rm.sent WHERE rule = 'rm often' ORDER BY suppressed;
SELECT millrace.drop_rule('rm often'), millrace.drop_rule('rm quiet');
-- one key is silent
SELECT millrace.silence(now() + interval '1 hour', rule => 'rm high', key => '19') > 0 AS silenced;
SELECT rm.say('{"id": 19, "v": 1, "total": 300}', '{"id": 20, "v": 1, "total": 300}');
SELECT messages FROM millrace.run_stream('rm_orders');
SELECT key, suppressed FROM millrace.alert WHERE rule = 'rm high' AND key IN ('19', '20') ORDER BY key;
-- history is sent when a rule says so
SELECT millrace.create_rule('rm history', kind => 'match', source => 'rm.orders', predicate => 'total = 300', channels => '{rm ops}', send_history => true);
SELECT messages FROM millrace.run_stream('rm_orders');
SELECT key, state FROM rm.sent WHERE rule = 'rm history' ORDER BY key;
SELECT millrace.drop_rule('rm history');
-- alerts that are removed are not made again
RESET ROLE;
UPDATE millrace.rule_alert SET at = at - interval '91 days' WHERE key IN ('19', '20');
SET ROLE message_maker;
SELECT subject, rows FROM millrace.maintain() WHERE subject = 'alerts';
SELECT rm.say('{"id": 19, "v": 2, "total": 301}');
SELECT messages FROM millrace.run_stream('rm_orders');
SELECT count(*) FROM millrace.alert WHERE key IN ('19', '20');
-- a group may be that of NULL
SELECT rule, key, details FROM millrace.alert WHERE rule = 'rm cities' AND resolved_at IS NULL ORDER BY key;
-- what would be alerted
SELECT layer, relation, change, after ->> 'key' AS key, after -> 'details' AS details FROM millrace.preview('rm_orders', '{"id": 6, "v": 1, "total": 102, "city": "Riga"}'::json, key => '6') WHERE layer = 'rule';
SELECT count(*) FROM millrace.alert WHERE rule = 'rm high' AND key = '6';

SELECT millrace.drop_table('rm.orders', cascade => true);
SELECT millrace.drop_stream('rm_orders');
SELECT millrace.drop_channel('rm ops');
RESET ROLE;
SET client_min_messages = warning;
DROP SCHEMA rm CASCADE;
DROP OWNED BY message_maker;
DROP ROLE message_maker;
