-- Which messages a row was made of.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS millrace;
\set VERBOSITY default
\set SHOW_CONTEXT never
CREATE SCHEMA trace;
SELECT millrace.create_stream('trace');
SELECT millrace.create_staging('trace.o', stream => 'trace', key => '{"order_id": [["$.id", "$key"], "bigint"]}', version => '["$.v", "bigint"]',
  columns => '{"user_id": "$.user.id", "user_name": "$.user.name"}', log => true, log_partition => 'day');
SELECT millrace.create_staging('trace.i', stream => 'trace', for_each => '$.items[*]', key => '{"order_id": [["$.id", "$key"], "bigint"]}', version => '["$.v", "bigint"]',
  columns => '{"product": "@.p", "q": ["@.q", "integer"]}');
SELECT millrace.create_hub('trace.h_order', source => 'trace.o', business_key => '{order_id}');
SELECT millrace.create_hub('trace.h_user', source => 'trace.o', business_key => '{user_id}');
SELECT millrace.create_link('trace.l_user', source => 'trace.o', hubs => '{trace.h_order, trace.h_user}');
SELECT millrace.create_satellite('trace.s_user', source => 'trace.o', parent => 'trace.h_user', attributes => '{user_name}');
SELECT millrace.create_mart('trace.m', 'SELECT product, upper(product) AS up, count(DISTINCT order_id) AS orders, sum(q) AS q FROM trace.i WHERE q > 0 GROUP BY product');
SELECT millrace.create_mart('trace.g', 'SELECT count(*) AS n FROM trace.i');
SELECT count(millrace.push('trace', m)) FROM unnest(ARRAY[
  '{"id": 1, "v": 1, "user": {"id": "u1", "name": "Ann"}, "items": [{"p": "a", "q": 1}, {"p": "b", "q": 2}]}',
  '{"id": 2, "v": 1, "user": {"id": "u2", "name": "Bob"}, "items": [{"p": "a", "q": 5}]}',
  '{"id": 1, "v": 2, "user": {"id": "u1", "name": "Anna"}, "items": [{"p": "a", "q": 1}, {"p": "b", "q": 0}]}']) m;
SELECT millrace.push('trace', NULL::text, key => '2') IS NOT NULL AS pushed;
SELECT messages, dead_letters FROM millrace.run_stream('trace');
ALTER TABLE trace.o RENAME user_id TO customer;

SET client_min_messages = notice;
-- Marts: the staged rows that are counted.
SELECT relation, object, element, version, content ->> 'q' AS q, horizon FROM millrace.trace('trace.m', '{"product": "a"}');
SELECT count(*) FROM millrace.trace('trace.m', '{"up": "B"}');
SELECT count(*), max(element) FROM millrace.trace('trace.g', '{}');
-- The vault: versions from the log, by business key or hash key.
SELECT relation, object, version, deleted, content ->> 'user_name' AS name, message_position - min(message_position) OVER () AS after, message_time IS NOT NULL AS has_time, horizon
  FROM millrace.trace('trace.h_user', '{"user_id": "u1"}');
SELECT object, version FROM millrace.trace('trace.s_user', '{"user_id": "u1"}');
SELECT object, version, deleted FROM millrace.trace('trace.h_order', '{"order_id": 2}');
SELECT object, version FROM millrace.trace('trace.l_user', '{"user_id": "u1"}');
SELECT object, version FROM millrace.trace('trace.l_user', (SELECT json_build_object('h_order_hk', h_order_hk) FROM trace.h_order WHERE order_id = 1));
-- Staging tables: the log where there is one, and what is known without.
SELECT object, version, deleted FROM millrace.trace('trace.o', '{"order_id": 2}');
SELECT object, element, version, horizon FROM millrace.trace('trace.i', '{"order_id": 1}');
SELECT count(*) FROM millrace.trace('trace.o', '{"order_id": null}');

SELECT * FROM millrace.trace('trace.m', '{"prodct": "a"}');
SELECT * FROM millrace.trace('trace.m', '{"orders": 1}');
SELECT * FROM millrace.trace('trace.m', '{}');
SELECT * FROM millrace.trace('trace.g', '{"n": 1}');
SELECT * FROM millrace.trace('trace.h_user', '{"usr_id": "u1"}');
SELECT * FROM millrace.trace('trace.o', '{"order": 1}');
SELECT * FROM millrace.trace('trace.m', '["a"]');
SELECT * FROM millrace.trace('pg_class', '{}');
SELECT millrace.create_pit('trace.pit_user', hub => 'trace.h_user', satellites => '{trace.s_user}');
SELECT * FROM millrace.trace('trace.pit_user', '{"user_id": "u1"}');

-- Who may not read the sources does not see them.
CREATE ROLE trace_reader IN ROLE millrace_admin;
GRANT USAGE ON SCHEMA trace TO trace_reader;
GRANT SELECT ON trace.m TO trace_reader;
SET ROLE trace_reader;
SELECT * FROM millrace.trace('trace.m', '{"product": "a"}');
SELECT * FROM millrace.trace('trace.o', '{"order_id": 1}');
RESET ROLE;
DROP OWNED BY trace_reader;
DROP ROLE trace_reader;
SET client_min_messages = warning;
SELECT millrace.drop_stream('trace', cascade => true);
DROP SCHEMA trace;
