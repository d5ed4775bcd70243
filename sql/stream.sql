-- Streams: their declaration, endpoints, and who may push.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS millrace;
SET client_min_messages = notice;
\set VERBOSITY default
\set SHOW_CONTEXT never
SET timezone = 'UTC';
SET datestyle = 'ISO';

-- ---- inboxes -------------------------------------------------------------------------------------------------
SELECT millrace.create_stream('s_inbox');
SELECT millrace.create_stream('s_inbox');
SELECT config_version AS before FROM millrace.stream WHERE name = 's_inbox' \gset
SELECT millrace.create_stream('s_inbox', replace => true);
SELECT config_version = :before AS unchanged FROM millrace.stream WHERE name = 's_inbox';
SELECT millrace.create_stream('s_inbox', workers => 2, on_error => 'skip', replace => true);
SELECT workers, on_error, enabled, config_version > :before AS changed FROM millrace.stream WHERE name = 's_inbox';
SELECT millrace.create_stream('');
SELECT millrace.create_stream(NULL);
SELECT millrace.create_stream(repeat('x', 64));
SELECT millrace.create_stream('s_bad', workers => 0);
SELECT millrace.create_stream('s_bad', on_error => 'skipp');
SELECT millrace.create_stream('s_bad', format => 'jason');
SELECT millrace.create_stream('s_bad', options => '{"topic": "x"}');
SELECT millrace.create_stream('s_bad', options => '[]');
SELECT millrace.create_stream('s_bad', enrich => '{"user": ["users", "$.id"]}');
SELECT millrace.create_stream('s_bad', server => 'nowhere');
SELECT millrace.create_stream('s_bad', on_eror => 'skip');
BEGIN;
SELECT millrace.create_stream('s_gone');
ROLLBACK;
SELECT count(*) FROM millrace.stream WHERE name IN ('s_gone', 's_bad');

-- Every kind of payload; the text of a JSON value is what a message holds.
SELECT millrace.push('s_inbox', '{"a": 1}') > 0 AS pushed;
SELECT millrace.push('s_inbox', '{"a":  2}'::json, key => 'k', headers => '{"h": "x"}', message_time => '2026-01-05 12:00+00') > 0 AS pushed;
SELECT millrace.push('s_inbox', '{"a":  3}'::jsonb, 'k') > 0 AS pushed;
SELECT millrace.push('s_inbox', '\x7b00ff'::bytea, 'k') > 0 AS pushed;
SELECT millrace.push('s_inbox', NULL, 'k') > 0 AS pushed;
SELECT convert_from(i.key, 'UTF8') AS key, i.value, i.headers, i.message_time = '2026-01-05 12:00+00' AS given_time
FROM millrace.inbox i JOIN millrace.stream s ON s.id = i.stream_id WHERE s.name = 's_inbox' ORDER BY i.push_no;
SELECT millrace.push('s_inbox', '{}', headers => '[1]');
SELECT millrace.push('s_inbx', '{}');
SELECT millrace.push(NULL, '{}');
SELECT stream, topic, partition, lag_messages FROM millrace.stream_partition WHERE stream = 's_inbox';

-- A transaction that is rolled back has pushed nothing, one that is read-only cannot.
BEGIN;
SELECT count(millrace.push('s_inbox', '{}')) FROM generate_series(1, 100);
ROLLBACK;
BEGIN READ ONLY;
SELECT millrace.push('s_inbox', '{}');
ROLLBACK;
SELECT count(*) FROM millrace.inbox i JOIN millrace.stream s ON s.id = i.stream_id WHERE s.name = 's_inbox';

-- ---- who may push --------------------------------------------------------------------------------------------
CREATE ROLE s_reader;
CREATE ROLE s_writer;
CREATE ROLE s_member IN ROLE s_writer;
SET ROLE s_member;
SELECT millrace.push('s_inbox', '{}');
SELECT millrace.create_stream('s_mine');
RESET ROLE;
SELECT millrace.grant_push('s_inbox', 's_writr');
SELECT millrace.grant_push('s_inbox', 's_writer');
SELECT millrace.grant_push('s_inbox', 's_writer');
SET ROLE s_member;
SELECT millrace.push('s_inbox', '{}') > 0 AS pushed;
SELECT count(*) FROM millrace.stream_partition;
SELECT * FROM millrace.inbox;
SET ROLE s_reader;
SELECT millrace.push('s_inbox', '{}') > 0 AS pushed;
RESET ROLE;
SELECT millrace.revoke_push('s_inbox', 's_writer');
SET ROLE s_member;
SELECT millrace.push('s_inbox', '{}') > 0 AS pushed;
RESET ROLE;
SELECT millrace.grant_push('s_inbox', 'public');
SET ROLE s_reader;
SELECT millrace.push('s_inbox', '{}') > 0 AS pushed;
RESET ROLE;

-- Somebody else's stream.
GRANT millrace_admin TO s_writer;
SET ROLE s_writer;
SELECT millrace.drop_stream('s_inbox');
SELECT millrace.create_stream('s_inbox', replace => true);
SELECT millrace.grant_push('s_inbox', 's_writer');
-- Before PostgreSQL 17 there is a warning: the role cannot log in.
SET client_min_messages = error;
SELECT millrace.create_stream('s_mine');
RESET client_min_messages;
RESET ROLE;
SELECT name, owner = current_user::regrole AS mine, enabled FROM millrace.stream WHERE name LIKE 's\_%' ORDER BY name;

-- ---- endpoints -----------------------------------------------------------------------------------------------
CREATE SERVER s_kafka FOREIGN DATA WRAPPER millrace_kafka;
CREATE SERVER s_kafka FOREIGN DATA WRAPPER millrace_kafka OPTIONS (bootstrap_server 'localhost:1');
CREATE SERVER s_kafka FOREIGN DATA WRAPPER millrace_kafka OPTIONS (bootstrap_servers 'localhost:1', sasl_username 'x');
CREATE SERVER s_kafka FOREIGN DATA WRAPPER millrace_kafka OPTIONS (bootstrap_servers 'localhost:1', security_protocol 'SASL_TLS');
CREATE SERVER s_kafka FOREIGN DATA WRAPPER millrace_kafka OPTIONS (bootstrap_servers 'localhost:1', ssl_ca_location '../ca.pem');
CREATE SERVER s_kafka FOREIGN DATA WRAPPER millrace_kafka OPTIONS (bootstrap_servers 'localhost:1', ssl_ca_location '/etc/passwd');
CREATE SERVER s_kafka FOREIGN DATA WRAPPER millrace_kafka OPTIONS (bootstrap_servers '127.0.0.1:1', ssl_ca_location 'ca.pem');
ALTER SERVER s_kafka OPTIONS (DROP ssl_ca_location);
CREATE USER MAPPING FOR CURRENT_USER SERVER s_kafka OPTIONS (sasl_user 'x');
CREATE USER MAPPING FOR CURRENT_USER SERVER s_kafka OPTIONS (sasl_password 'secret', sasl_password_file 'secret');
CREATE USER MAPPING FOR CURRENT_USER SERVER s_kafka OPTIONS (sasl_password_file 'a/../../b');
CREATE USER MAPPING FOR CURRENT_USER SERVER s_kafka OPTIONS (sasl_username 'x', sasl_password 'secret');
SET ROLE s_reader;
CREATE SERVER s_other FOREIGN DATA WRAPPER millrace_kafka OPTIONS (bootstrap_servers 'localhost:1');
RESET ROLE;

-- ---- options of Kafka ------------------------------------------------------------------------------------------
SELECT millrace.create_stream('s_bad', server => 's_kafka');
SELECT millrace.create_stream('s_bad', server => 's_kafka', options => '{"topics": "x"}');
SELECT millrace.create_stream('s_bad', server => 's_kafka', options => '{"topic": "x", "topic": "y"}');
SELECT millrace.create_stream('s_bad', server => 's_kafka', options => '{"topic": []}');
SELECT millrace.create_stream('s_bad', server => 's_kafka', options => '{"topic": ["a", "a"]}');
SELECT millrace.create_stream('s_bad', server => 's_kafka', options => '{"topic": "no spaces"}');
SELECT millrace.create_stream('s_bad', server => 's_kafka', options => '{"topic": "x", "partitions": [0, -1]}');
SELECT millrace.create_stream('s_bad', server => 's_kafka', options => '{"topic": "x", "start": "earlyest"}');
SELECT millrace.create_stream('s_bad', server => 's_kafka', options => '{"topic": "x", "start": {"0": 1.5}}');
SELECT millrace.create_stream('s_bad', server => 's_kafka', options => '{"topic": "x", "start": 5}');
SELECT millrace.create_stream('s_bad', server => 's_kafka', options => '{"topic": "x", "on_lost": "last"}');
SELECT millrace.create_stream('s_bad', server => 's_kafka', options => '{"topic": "x", "refresh": "1 ms"}');
SELECT millrace.create_stream('s_bad', server => 's_kafka', options => '{"topic": "x", "properties": {"plugin.library.paths": "x"}}');
SELECT millrace.create_stream('s_bad', server => 's_kafka', options => '{"topic": "x", "properties": {"fetch.min.byte": 1}}');
SELECT millrace.create_stream('s_bad', server => 's_kafka', options => '{"topic": "x", "properties": {"fetch.min.bytes": [1]}}');
SELECT millrace.create_stream('s_inbox', server => 's_kafka', options => '{"topic": "x"}', replace => true);
SET ROLE s_writer;
SELECT millrace.create_stream('s_bad', server => 's_kafka', options => '{"topic": "x"}');
RESET ROLE;

-- A broker that does not answer is no reason to refuse a declaration; what it said differs by library.
SET client_min_messages = error;
SELECT millrace.create_stream('s_topic', server => 's_kafka', options => '{"topic": ["x", "y"], "start": "2026-01-05 12:00"}');
SET client_min_messages = notice;
SELECT DISTINCT severity, subject, message ~ 'broker' AS said FROM millrace.validate('s_topic') WHERE severity = 'error';
SELECT millrace.push('s_topic', '{}');
SELECT millrace.grant_push('s_topic', 'public');

-- ---- dropping --------------------------------------------------------------------------------------------------
SELECT millrace.create_staging('s_staging', stream => 's_inbox', key => '{"id": ["$key", "bigint"]}');
SELECT millrace.drop_stream('s_inbox');
SELECT millrace.drop_stream('s_inbx');
SET client_min_messages = warning;
SELECT millrace.drop_stream('s_inbox', cascade => true);
SELECT count(*) FROM millrace.inbox i WHERE NOT EXISTS (SELECT FROM millrace.stream s WHERE s.id = i.stream_id);
SELECT to_regclass('s_staging');
SELECT millrace.drop_stream('s_mine');
SELECT millrace.drop_stream('s_topic');
DROP SERVER s_kafka CASCADE;
DROP OWNED BY s_writer;
DROP ROLE s_member, s_writer, s_reader;
