-- preview(): what messages would become, and nothing of it stays.
\set VERBOSITY terse
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS millrace;
SET timezone = 'UTC';
\pset format unaligned
\pset tuples_only on
CREATE SCHEMA pv;
SELECT millrace.create_stream('pv');
SELECT millrace.create_staging('pv.orders', stream => 'pv', payload => 'none', log => true, key => '{"id": [["$.id", "$key"], "integer"]}', version => '"$.v"',
  columns => '{"customer": "$.customer", "status": "$.status", "total": ["$.total", "numeric(10,2)"]}', filter => $$ status <> 'hidden' $$);
SELECT millrace.create_staging('pv.items', stream => 'pv', for_each => '$.items[*]', key => '{"id": [["$.id", "$key"], "integer"]}', version => '"$.v"',
  columns => '{"customer": "$.customer", "product": "@.p", "quantity": ["@.q", "integer"]}', expect => '{"positive": "quantity > 0"}');
SELECT millrace.create_hub('pv.h_customer', source => 'pv.orders', business_key => '{customer}');
SELECT millrace.create_hub('pv.h_order', source => 'pv.orders', business_key => '{id}');
SELECT millrace.create_link('pv.l_order_customer', source => 'pv.orders', hubs => '{pv.h_order, pv.h_customer}');
SELECT millrace.create_satellite('pv.s_order', source => 'pv.orders', parent => 'pv.h_order', attributes => '{status, total}');
SELECT millrace.create_mart('pv.spent', $$ SELECT customer, count(*) AS n, sum(total)::numeric(12,2) AS spent FROM pv.orders WHERE status = 'closed' GROUP BY customer $$);
SELECT millrace.create_mart('pv.all', $$ SELECT sum(quantity) AS pieces, count(DISTINCT product) AS products FROM pv.items $$);

SELECT millrace.create_mart('pv.striped', $$ SELECT customer AS "the customer", status, count(*) AS n FROM pv.orders AS "o o" GROUP BY 1, 2 $$, stripes => 4);
SELECT millrace.create_mart('pv.striped_all', $$ SELECT count(*) AS n FROM pv.orders $$, stripes => 4);
SELECT millrace.create_mart('pv.named', $$ SELECT o.customer, c.record_source AS source, count(DISTINCT o.status) AS n, max(o.total)::numeric(10,2) AS most FROM pv.orders o LEFT JOIN pv.h_customer_current c USING (customer)
  GROUP BY o.customer, c.record_source $$);

-- what a preview shows, without hashes and times
CREATE FUNCTION pg_temp.short(j json) RETURNS text LANGUAGE sql AS $$
    SELECT string_agg(key || '=' || coalesce(value, '-'), ' ' ORDER BY n) FROM json_each_text(j) WITH ORDINALITY AS e (key, value, n)
    WHERE key !~ '_hk$|^hashdiff$|_at$|^record_source$|^position$|^_(event_time|loaded_at|partition|position)$' $$;
-- and everything that it must leave as it was
CREATE FUNCTION pg_temp.state() RETURNS text LANGUAGE sql AS $$
    SELECT md5(string_agg(x, ' ')) FROM (
        SELECT t::text AS x FROM pv.orders t UNION ALL SELECT t::text FROM pv.items t UNION ALL SELECT t::text FROM pv.orders_log t UNION ALL SELECT t::text FROM pv.h_customer t
        UNION ALL SELECT t::text FROM pv.h_order t UNION ALL SELECT t::text FROM pv.l_order_customer t UNION ALL SELECT t::text FROM pv.s_order t UNION ALL SELECT t::text FROM pv.spent t
        UNION ALL SELECT t::text FROM pv."all" t UNION ALL SELECT t::text FROM millrace.stream_position t UNION ALL SELECT t::text FROM millrace.inbox t UNION ALL SELECT t::text FROM millrace.letter t
        UNION ALL SELECT t::text FROM millrace.target t UNION ALL SELECT t::text FROM millrace.stage_time t ORDER BY 1) AS all_rows $$;
\set show 'SELECT message, layer, relation, change, pg_temp.short(before) AS before, pg_temp.short(after) AS after, reason FROM'

-- before anything has come
SELECT pg_temp.state() AS state \gset
:show millrace.preview('pv', payload => '{"id": 1, "v": 1, "customer": "anna", "status": "closed", "total": 10, "items": [{"p": "tea", "q": 2}, {"p": "jam", "q": 0}]}');
SELECT pg_temp.state() = :'state' AS unchanged;
SELECT count(*) FROM millrace.preview('pv');

SELECT count(millrace.push('pv', json_build_object('id', i, 'v', 1, 'customer', 'c' || i % 3, 'status', 'closed', 'total', i, 'items', json_build_array(json_build_object('p', 'p' || i, 'q', i))))) FROM generate_series(1, 9) i;
-- the same of the inbox, and what really comes of it
SELECT pg_temp.state() AS state \gset
CREATE TEMP TABLE shown AS SELECT * FROM millrace.preview('pv', 100);
SELECT pg_temp.state() = :'state' AS unchanged;
SELECT messages, dead_letters FROM millrace.run_stream('pv');
SELECT layer, relation, change, count(*) FROM shown WHERE change <> 'none' GROUP BY 1, 2, 3 ORDER BY 1, 2, 3;
SELECT pg_temp.short(after) FROM shown WHERE layer = 'mart' EXCEPT ALL (SELECT pg_temp.short(to_json(t)) FROM pv.spent t UNION ALL SELECT pg_temp.short(to_json(t)) FROM pv."all" t
    UNION ALL SELECT pg_temp.short(to_json(t)) FROM pv.striped t UNION ALL SELECT pg_temp.short(to_json(t)) FROM pv.striped_all t UNION ALL SELECT pg_temp.short(to_json(t)) FROM pv.named t);
SELECT after ->> 'h_order_hk' FROM shown WHERE relation = 'pv.h_order' EXCEPT SELECT h_order_hk::text FROM pv.h_order;

-- changes of what is there
SELECT pg_temp.state() AS state \gset
:show millrace.preview('pv', payload => '{"id": 1, "v": 2, "customer": "c1", "status": "open", "total": 1, "items": []}'::json);
:show millrace.preview('pv', payload => '{"id": 1, "v": 2, "customer": "c2", "status": "closed", "total": 5, "items": [{"p": "p1", "q": 1}, {"p": "new", "q": 4}]}'::jsonb);
:show millrace.preview('pv', payload => '{"id": 7, "v": 2, "customer": "c1", "status": "closed", "total": 50, "items": [{"p": "p7", "q": 7}]}');
:show millrace.preview('pv', payload => '{"id": 1, "v": 0, "customer": "late", "status": "closed", "total": 5}');
:show millrace.preview('pv', payload => '{"id": 3, "v": 2, "customer": "c0", "status": "hidden"}');
:show millrace.preview('pv', payload => NULL::text, key => '2');
:show millrace.preview('pv', payload => '{"id": 4, "v": 2, "customer": "c1", "status": "closed", "total": "much", "items": [{"p": "p4", "q": -1}]}');
:show millrace.preview('pv', payload => 'nothing');
:show millrace.preview('pv', payload => '{"id": 9, "v": 1, "customer": "c0", "status": "closed", "total": 9, "items": [{"p": "p9", "q": 9}]}');
SELECT pg_temp.state() = :'state' AS unchanged;

-- in a transaction that has done something itself
BEGIN;
SELECT millrace.push('pv', '{"id": 1, "v": 2, "customer": "c1", "status": "closed", "total": 100, "items": []}') > 0;
SELECT messages FROM millrace.run_stream('pv');
:show millrace.preview('pv', payload => '{"id": 1, "v": 3, "customer": "c1", "status": "open", "total": 100, "items": []}');
SELECT * FROM pv.spent WHERE customer = 'c1';
ROLLBACK;

-- whose streams stop at bad data, and what is not allowed
SELECT millrace.create_stream('pv', on_error => 'stop', replace => true);
:show millrace.preview('pv', payload => '{"id": "x"}');
SELECT count(*) FROM millrace.preview('pv', 0);
SELECT count(*) FROM millrace.preview('nothing');
SELECT count(*) FROM millrace.preview(NULL);
CREATE ROLE pv_other IN ROLE millrace_admin;
SET ROLE pv_other;
SELECT count(*) FROM millrace.preview('pv');
RESET ROLE;
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT count(*) FROM millrace.preview('pv');
ROLLBACK;
BEGIN READ ONLY;
SELECT count(*) FROM millrace.preview('pv');
ROLLBACK;
SELECT relation, missing, unexpected FROM millrace.verify('pv.spent');

-- of a point-in-time table the spans in which the same rows of satellites are valid
SELECT millrace.push('pv', '{"id": 50, "v": 1, "customer": "c1", "status": "open", "total": 1}', message_time => '2026-01-05 10:00+00') > 0;
SELECT dead_letters FROM millrace.run_stream('pv');
SELECT millrace.create_pit('pv.pit_order', hub => 'pv.h_order', satellites => '{pv.s_order}');
ALTER VIEW pv.pit_order RENAME COLUMN s_order_applied_at TO "since when";
SELECT layer, relation, change, reason FROM millrace.preview('pv', payload => '{"id": 9, "v": 1}') WHERE layer = 'pit';
SELECT dead_letters FROM millrace.run_stream('pv');
SELECT pg_temp.state() AS state \gset
CREATE TEMP TABLE spans AS SELECT * FROM millrace.preview('pv', payload => '{"id": 50, "v": 2, "customer": "c1", "status": "closed", "total": 1}', message_time => '2026-01-07 10:00+00') WHERE layer = 'pit';
SELECT layer, relation, change, before - '{h_order_hk,s_order_hk,s_order_hashdiff}'::text[] AS before, after - '{h_order_hk,s_order_hk,s_order_hashdiff}'::text[] AS after
FROM (SELECT layer, relation, change, before::jsonb, after::jsonb FROM spans) AS s ORDER BY change;
SELECT pg_temp.state() = :'state' AS unchanged;
SELECT millrace.push('pv', '{"id": 50, "v": 2, "customer": "c1", "status": "closed", "total": 1}', message_time => '2026-01-07 10:00+00') > 0;
SELECT dead_letters FROM millrace.run_stream('pv');
SELECT count(*) FROM spans s JOIN pv.pit_order p ON p.snapshot_at = (s.after ->> 'from_at')::timestamptz
  AND (p.h_order_hk, p.s_order_hk, p."since when", p.s_order_hashdiff)
    = ((s.after ->> 'h_order_hk')::uuid, (s.after ->> 's_order_hk')::uuid, (s.after ->> 'since when')::timestamptz, (s.after ->> 's_order_hashdiff')::uuid);
SELECT millrace.drop_table('pv.pit_order');

SELECT millrace.drop_stream('pv', cascade => true);
DROP SCHEMA pv;
DROP ROLE pv_other;
