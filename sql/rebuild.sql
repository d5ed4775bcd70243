-- What rebuild() refuses because it could not be made again: rows that are older than the log.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS millrace;
SET TimeZone = 'UTC';
\set SHOW_CONTEXT never
CREATE SCHEMA rs;
CREATE SCHEMA rd;
SELECT millrace.create_stream('remade');
SELECT millrace.create_staging('rs.orders', stream => 'remade', key => '{"order_id": ["$.id", "bigint"]}', version => '["$.v", "bigint"]', columns => '{"status": "$.status"}');
SELECT millrace.create_hub('rd.h_order', source => 'rs.orders', business_key => '{order_id}');
SELECT millrace.create_hub('rd.h_status', source => 'rs.orders', business_key => '{status}');
SELECT millrace.create_link('rd.l_order', source => 'rs.orders', hubs => '{rd.h_order, rd.h_status}');
SELECT millrace.create_satellite('rd.s_order', source => 'rs.orders', parent => 'rd.h_order', attributes => '{status}');
SELECT millrace.create_mart('rd.by_status', 'SELECT status, count(*) AS n FROM rs.orders GROUP BY status');
CREATE FUNCTION rs.say(id bigint, version bigint, status text) RETURNS void LANGUAGE sql AS
  $$ SELECT millrace.push('remade', json_build_object('id', id, 'v', version, 'status', status), key => id::text) $$;
SELECT rs.say(1, 1, 'OPEN'), rs.say(2, 1, 'NEW'), rs.say(1, 2, 'PAID');
SELECT messages FROM millrace.run_stream('remade');

-- without a log
SELECT * FROM millrace.rebuild('rs.orders');
SELECT * FROM millrace.rebuild('rd.h_order');

-- with one that began later; when that was is no matter of this test
\set VERBOSITY terse
SELECT millrace.create_staging('rs.orders', stream => 'remade', key => '{"order_id": ["$.id", "bigint"]}', version => '["$.v", "bigint"]', columns => '{"status": "$.status"}', log => true, replace => true);
SELECT rs.say(2, 2, 'LOST'), rs.say(3, 1, 'OPEN');
SELECT messages FROM millrace.run_stream('remade');
CREATE TEMP TABLE before AS SELECT 'h' AS what, to_jsonb(h) AS row FROM rd.h_status h UNION ALL SELECT 'l', to_jsonb(l) FROM rd.l_order l UNION ALL SELECT 's', to_jsonb(s) FROM rd.s_order s UNION ALL SELECT 'o', to_jsonb(o) FROM rs.orders o;
SELECT * FROM millrace.rebuild('rs.orders');
SELECT * FROM millrace.rebuild('rs.orders', filter => 'order_id = 1');
SELECT * FROM millrace.rebuild('rd.h_status');
SELECT * FROM millrace.rebuild('rd.l_order');
SELECT * FROM millrace.rebuild('rd.s_order');
SELECT * FROM millrace.rebuild('rd.h_status', filter => $$ status IN ('NEW', 'PAID') $$);
SELECT * FROM millrace.rebuild('rd.s_order', filter => $$ status = 'OPEN' $$);
SELECT count(*) AS changed FROM (TABLE before EXCEPT ALL (SELECT 'h', to_jsonb(h) FROM rd.h_status h UNION ALL SELECT 'l', to_jsonb(l) FROM rd.l_order l UNION ALL SELECT 's', to_jsonb(s) FROM rd.s_order s UNION ALL SELECT 'o', to_jsonb(o) FROM rs.orders o)) AS x;

-- What came since can be made again, and keys that are staged; marts stand on what is staged.
SELECT * FROM millrace.rebuild('rd.h_status', filter => $$ status = 'LOST' $$);
SELECT * FROM millrace.rebuild('rd.h_order');
SELECT * FROM millrace.rebuild('rd.s_order', filter => $$ status = 'LOST' $$);
SELECT * FROM millrace.rebuild('rd.by_status');
SELECT order_id, status FROM rd.s_order_current ORDER BY 1;
SELECT relation, missing, unexpected FROM unnest('{rd.h_order,rd.h_status,rd.l_order,rd.s_order,rd.by_status}'::regclass[]) AS r, millrace.verify(r);

-- A log that is shortened: of what was filled in or rebuilt, how old the versions are is not known any more.
SELECT millrace.create_stream('short');
SELECT millrace.create_staging('rs.a', stream => 'short', route => 'a IS NOT NULL', log => true, payload => 'none', key => '{"a": ["$.a", "bigint"]}', columns => '{"status": "$.status"}');
SELECT millrace.create_hub('rd.h_a', source => 'rs.a', business_key => '{a}');
SELECT millrace.create_satellite('rd.s_a', source => 'rs.a', parent => 'rd.h_a', attributes => '{status}');
SELECT millrace.create_satellite('rd.s_two', source => 'rs.a', parent => 'rd.h_a', attributes => '{status}');
SELECT millrace.create_satellite('rd.s_kept', source => 'rs.a', parent => 'rd.h_a', attributes => '{status}');
CREATE FUNCTION rs.say(what text, id bigint, status text) RETURNS void LANGUAGE sql AS $$ SELECT millrace.push('short', json_build_object(what, id, 'status', status), key => id::text) $$;
-- As if rows had come 40 days ago.
CREATE FUNCTION rs.past(VARIADIC names text[]) RETURNS void LANGUAGE plpgsql AS $$
DECLARE n text;
BEGIN
  FOREACH n IN ARRAY names LOOP EXECUTE format('UPDATE %1$s SET %2$s = %2$s - interval ''40 days''', n, CASE WHEN n LIKE '%log' THEN '_loaded_at' ELSE 'load_at' END); END LOOP;
END $$;
SELECT rs.say('a', 1, 'OPEN'), rs.say('a', 2, 'OPEN'), rs.say('a', 1, 'PAID');
SELECT messages FROM millrace.run_stream('short');
SELECT rs.past('rs.a_log', 'rd.s_a', 'rd.s_two', 'rd.s_kept');
SELECT * FROM millrace.rebuild('rd.s_a');
-- one that is made before the stream has come to it
SELECT millrace.create_satellite('rd.s_early', source => 'rs.a', parent => 'rd.h_a', attributes => '{status}');
SELECT * FROM millrace.rebuild('rd.s_early');
-- a second source, whose log has not all that came: of the first one nothing is lost by that
SELECT millrace.create_staging('rs.b', stream => 'short', route => 'b IS NOT NULL', payload => 'none', key => '{"b": ["$.b", "bigint"]}', columns => '{"status": "$.status"}');
SELECT rs.say('b', 1, 'NEW');
SELECT messages FROM millrace.run_stream('short');
SELECT millrace.create_staging('rs.b', stream => 'short', route => 'b IS NOT NULL', log => true, replace => true, payload => 'none', key => '{"b": ["$.b", "bigint"]}', columns => '{"status": "$.status"}');
SELECT millrace.add_source('rd.s_two', source => 'rs.b', columns => '{"a": "b"}');
SELECT rs.say('b', 1, 'LATE');
SELECT messages FROM millrace.run_stream('short');
SELECT * FROM millrace.rebuild('rd.s_two');
SELECT rs.past('rd.s_two');
-- the log of the first one is shortened
SELECT millrace.create_staging('rs.a', stream => 'short', route => 'a IS NOT NULL', log => true, log_retention => '30 days', replace => true, payload => 'none', key => '{"a": ["$.a", "bigint"]}', columns => '{"status": "$.status"}');
SELECT subject, action, rows FROM millrace.maintain('short');
SELECT rs.say('a', 2, 'PAID');
SELECT messages FROM millrace.run_stream('short');
SELECT * FROM millrace.rebuild('rd.s_a');
SELECT * FROM millrace.rebuild('rd.s_two');
SELECT * FROM millrace.rebuild('rd.s_kept');
SELECT * FROM millrace.rebuild('rd.s_early');
SELECT a, status FROM rd.s_a_current ORDER BY a;
-- what came since can be made again; after that it is not known any more that it is so young
SELECT * FROM millrace.rebuild('rd.s_kept', filter => $$ load_at > now() - interval '1 day' $$);
SELECT * FROM millrace.rebuild('rd.s_kept', filter => $$ load_at > now() - interval '1 day' $$);
-- one that was declared over the shortened log has never had more
SELECT millrace.create_satellite('rd.s_late', source => 'rs.a', parent => 'rd.h_a', attributes => '{status}');
SELECT messages FROM millrace.run_stream('short');
SELECT * FROM millrace.rebuild('rd.s_late');

SELECT millrace.drop_stream('short', cascade => true);
SELECT millrace.drop_stream('remade', cascade => true);
DROP SCHEMA rs, rd CASCADE;
