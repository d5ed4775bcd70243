-- Dead letters by filter, a stream that stops itself when there are too many of them, servers that are in use.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS millrace;
CREATE SCHEMA letters;

SELECT millrace.create_stream('letters', max_dead_letter_share => 1);
SELECT millrace.create_stream('letters', letter_retention => '-1 day');
SELECT millrace.create_stream('letters', incident_retention => '0');
SELECT millrace.create_stream('letters', max_dead_letter_share => 0.05);
SELECT millrace.create_staging('letters.t', stream => 'letters', key => '{"id": ["$.id", "bigint"]}', columns => '{"n": ["$.n", "integer"]}');

-- 4 % are borne; 5.8 % are not: the batch that crosses the limit counts, and nothing more is read.
SELECT count(millrace.push('letters', json_build_object('id', i, 'n', CASE WHEN i % 25 = 0 THEN 'x' END))) FROM generate_series(1, 1000) i;
SELECT dead_letters FROM millrace.run_stream('letters');
SELECT count(millrace.push('letters', json_build_object('id', 2000 + i, 'n', '99999999999'))) FROM generate_series(1, 19) i;
SELECT dead_letters FROM millrace.run_stream('letters');
SELECT millrace.push('letters', '{"id": 3000, "n": 1}') > 0;
SELECT * FROM millrace.run_stream('letters');
SELECT state, last_error, lag_messages, dead_letters FROM millrace.stream_status WHERE stream = 'letters';
SELECT stream, kind FROM millrace.incident WHERE stream = 'letters';
SET client_min_messages = error;
BEGIN;
SELECT millrace.start_stream('letters');
SELECT millrace.stop_stream('letters');
COMMIT;
SET client_min_messages = warning;
SELECT messages, dead_letters FROM millrace.run_stream('letters');
SELECT last_error FROM millrace.stream_status WHERE stream = 'letters' AND last_error LIKE '%stopped itself%';

-- By filter: the columns are those of the view; what fails again is tried once.
SELECT * FROM millrace.retry(filter => $$ stream = 'letters' AND sqlstate = '22003' $$);
SELECT attempts, count(*) FROM millrace.dead_letter WHERE stream = 'letters' GROUP BY 1 ORDER BY 1;
SELECT millrace.create_staging('letters.t', stream => 'letters', key => '{"id": ["$.id", "bigint"]}', columns => '{"n": ["$.m", "integer"]}', replace => true);
SELECT millrace.push('letters', '{"id": 2001, "m": 7}') > 0;
SELECT messages FROM millrace.run_stream('letters');
SELECT * FROM millrace.retry(filter => $$ stream = 'letters' AND sqlstate = '22003' $$);
SELECT state, sqlstate, count(*) FROM millrace.dead_letter WHERE stream = 'letters' GROUP BY 1, 2 ORDER BY 1, 2;
SELECT id, n FROM letters.t WHERE id IN (2001, 2002) ORDER BY id;
SELECT millrace.discard(filter => $$ stream = 'letters' AND state = 'superseded' $$);
SELECT millrace.discard(filter => $$ stream = 'nobody' $$);
SELECT * FROM millrace.retry(filter => NULL);
SELECT * FROM millrace.retry(filter => 'sqlstat = 1');
SELECT * FROM millrace.retry(filter => 'true; DROP TABLE letters.t');
SELECT * FROM millrace.retry(filter => 'id = 1) OR (true');

-- Only letters of one's own streams are found.
CREATE ROLE letters_stranger;
GRANT millrace_admin TO letters_stranger;
SET ROLE letters_stranger;
SELECT * FROM millrace.retry(filter => 'true');
SELECT millrace.discard(filter => 'true');
RESET ROLE;
SELECT count(*) FROM millrace.dead_letter WHERE stream = 'letters';
DROP ROLE letters_stranger;

-- More than one portion.
SELECT count(millrace.push('letters', json_build_object('id', i, 'm', 'x'))) FROM generate_series(10001, 16000) i;
SELECT millrace.create_stream('letters', max_dead_letter_share => NULL, replace => true);
SELECT dead_letters FROM millrace.run_stream('letters');
SELECT millrace.create_staging('letters.t', stream => 'letters', key => '{"id": ["$.id", "bigint"]}', columns => '{"n": ["$.none", "integer"]}', replace => true);
SELECT * FROM millrace.retry(filter => $$ stream = 'letters' AND state = 'open' $$);
SELECT count(*) FROM letters.t WHERE id > 10000;

-- A server from which a stream reads is not dropped.
CREATE SERVER letters_broker FOREIGN DATA WRAPPER millrace_kafka OPTIONS (bootstrap_servers '127.0.0.1:1');
SET client_min_messages = error;
SELECT millrace.create_stream('k', server => 'letters_broker', options => '{"topic": "t"}');
SET client_min_messages = warning;
\set SHOW_CONTEXT never
DROP SERVER letters_broker CASCADE;
SELECT millrace.drop_stream('k');
DROP SERVER letters_broker;

SELECT millrace.drop_stream('letters', cascade => true);
DROP SCHEMA letters;
