-- Rules on millrace itself: what is declared and what is refused; test/delivery/health.py has what they do.
\set VERBOSITY terse
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS millrace;
CREATE ROLE health_maker LOGIN;
GRANT millrace_admin TO health_maker;
GRANT CREATE ON DATABASE :DBNAME TO health_maker;
RESET client_min_messages;
\set VERBOSITY default
\set SHOW_CONTEXT never
SET TimeZone = 'UTC';
SET ROLE health_maker;
CREATE SCHEMA rh;
SELECT millrace.create_stream('rh_orders');
SELECT millrace.create_staging('rh.orders', stream => 'rh_orders', key => '{"id": ["$.id", "bigint"]}');
SELECT millrace.create_channel('rh ops'), millrace.create_channel('rh backup');

SELECT millrace.create_rule('rh stopped', kind => 'health', source => 'millrace.stream_status', predicate => $$ state NOT IN ('running', 'starting') $$, for_interval => '1 hour', details => '{state, last_error}', channels => '{rh ops}', send_resolved => true);
SELECT millrace.create_rule('rh lag', kind => 'health', source => 'millrace.stream_status', predicate => 'lag_seconds > 300', resolve_when => 'lag_seconds < 60', key => '{}', details => '{stream, lag_messages}');
SELECT millrace.create_rule('rh letters', kind => 'health', source => 'millrace.stream_status', predicate => 'dead_letters > 100', cooldown => '1 hour');
SELECT millrace.create_rule('rh channel', kind => 'health', source => 'millrace.channel_status', predicate => $$ state IN ('failing', 'failed', 'fenced') $$, details => '{last_error}', channels => '{rh ops, rh backup}');
SELECT millrace.create_rule('rh alive', kind => 'health', predicate => 'healthy', repeat_every => '1 minute', max_age => '1 minute', channels => '{rh backup}');
SELECT rule, kind, source, state FROM millrace.rule_status WHERE rule LIKE 'rh %' ORDER BY 1;
SELECT millrace.describe('rule', 'rh stopped');
SELECT millrace.describe('rule', 'rh lag');
SELECT millrace.describe('rule', 'rh alive');
SELECT attname, atttypid::regtype FROM pg_attribute WHERE attrelid = 'millrace.health'::regclass ORDER BY attnum;
SELECT count(*) FROM millrace.health;
-- they belong to no stream
SELECT messages FROM millrace.run_stream('rh_orders');
SELECT millrace.drop_table('rh.orders');
SELECT millrace.drop_stream('rh_orders');

-- what is refused
SELECT millrace.create_rule('x', kind => 'health');
SELECT millrace.create_rule('x', kind => 'health', source => 'millrace.alert', predicate => 'true');
SELECT millrace.create_rule('x', kind => 'health', source => 'millrace.stream_status', predicate => 'stat = 1');
SELECT millrace.create_rule('x', kind => 'health', source => 'millrace.stream_status', predicate => 'true', key => '{owner}');
SELECT millrace.create_rule('x', kind => 'health', source => 'millrace.stream_status', predicate => 'true', details => '{lags}');
SELECT millrace.create_rule('x', kind => 'health', predicate => 'streams_failing');
SELECT millrace.create_rule('x', kind => 'health', predicate => 'random() > 0.5');
SELECT millrace.create_rule('x', kind => 'health', predicate => 'true', tag => 'x');
SELECT millrace.create_rule('x', kind => 'health', predicate => 'true', within => '1 s');
SELECT millrace.create_rule('x', kind => 'health', predicate => 'true', event_time => 'now()');
SELECT millrace.create_rule('x', kind => 'health', predicate => 'true', repeat_every => '0');
SELECT * FROM millrace.test_rule('rh lag');
SELECT millrace.retry_rule('rh lag');
SELECT millrace.silence(rule => 'rh alive', until => 'infinity');

SELECT millrace.drop_rule(rule) FROM millrace.rule_status WHERE rule LIKE 'rh %' ORDER BY rule;
SELECT millrace.drop_channel('rh ops'), millrace.drop_channel('rh backup');
SELECT rule FROM millrace.rule_status WHERE rule LIKE 'rh %';
SET client_min_messages = warning;
DROP SCHEMA rh CASCADE;
RESET ROLE;
DROP OWNED BY health_maker;
DROP ROLE health_maker;
