-- Point-in-time tables.
\set VERBOSITY terse
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS millrace;
CREATE ROLE pit_builder LOGIN;
GRANT millrace_admin TO pit_builder;
GRANT CREATE ON DATABASE :DBNAME TO pit_builder;
RESET client_min_messages;
\set VERBOSITY default
\set SHOW_CONTEXT never
SET TimeZone = 'UTC';
SET ROLE pit_builder;
CREATE SCHEMA ps;
CREATE SCHEMA pd;
SELECT millrace.create_stream('pit_orders');
SELECT millrace.create_staging('ps.orders', stream => 'pit_orders', key => '{"order_id": ["$.id", "bigint"]}', version => '["$.at", "timestamptz"]', deleted => $$ op = 'D' $$,
  columns => '{"op": "$.op", "status": "$.status"}');
SELECT millrace.create_staging('ps.costs', stream => 'pit_orders', route => $$ cost IS NOT NULL $$, key => '{"order_id": ["$.id", "bigint"]}', version => '["$.at", "timestamptz"]',
  columns => '{"cost": ["$.cost", "numeric(12,2)"]}');
SELECT millrace.create_staging('ps.items', stream => 'pit_orders', for_each => '$.items[*]', key => '{"order_id": ["$.id", "bigint"]}', version => '["$.at", "timestamptz"]', columns => '{"product_id": "@.id", "quantity": ["@.quantity", "integer"]}');
SELECT millrace.create_hub('pd.h_order', source => 'ps.orders', business_key => '{order_id}');
SELECT millrace.create_hub('pd.h_product', source => 'ps.items', business_key => '{product_id}');
SELECT millrace.create_link('pd.l_order_product', source => 'ps.items', hubs => '{pd.h_order, pd.h_product}');
SELECT millrace.create_satellite('pd.s_status', source => 'ps.orders', parent => 'pd.h_order', attributes => '{status}');
SELECT millrace.create_satellite('pd.s_cost', source => 'ps.costs', parent => 'pd.h_order', attributes => '{cost}', names => '{"applied_at": "valid_from"}');
SELECT millrace.create_satellite('pd.s_lines', source => 'ps.items', parent => 'pd.h_order', kind => 'multi_active', sub_key => '{product_id}', attributes => '{quantity}');
SELECT millrace.create_satellite('pd.s_products', source => 'ps.items', parent => 'pd.h_product', kind => 'multi_active', sub_key => '{order_id}', attributes => '{quantity}');
SELECT millrace.create_satellite('pd.es', source => 'ps.items', parent => 'pd.l_order_product', kind => 'effectivity', driving_key => '{order_id}');
SELECT millrace.create_pit('pd.pit_order', hub => 'pd.h_order', satellites => '{pd.s_cost, pd.s_status}', every => 'day');
SELECT millrace.create_pit('pd.pit_month', hub => 'pd.h_order', satellites => '{pd.s_status, pd.s_lines}', every => 'month', timezone => 'Europe/Moscow');
\d pd.pit_order
SELECT relation, kind, state, sources FROM millrace.target_status WHERE kind = 'pit' AND owner = 'pit_builder' ORDER BY 1;
-- ---- what is refused
SELECT millrace.create_pit('pd.x', hub => 'pd.h_order', satellites => '{pd.s_status}', every => 'dya');
SELECT millrace.create_pit('pd.x', hub => 'pd.h_order', satellites => '{pd.s_status}', timezone => 'Mars/Olympus');
SELECT millrace.create_pit('pd.x', hub => 'pd.h_order', satellites => '{}');
SELECT millrace.create_pit('pd.x', hub => 'pd.h_order', satellites => '{pd.s_status, pd.s_status}');
SELECT millrace.create_pit('pd.x', hub => 'pd.h_order', satellites => '{pd.s_status, pd.h_order}');
SELECT millrace.create_pit('pd.x', hub => 'pd.s_status', satellites => '{pd.s_status}');
SELECT millrace.create_pit('pd.x', hub => 'pd.h_product', satellites => '{pd.s_status}');
SELECT millrace.create_pit('pd.x', hub => 'pd.h_product', satellites => '{pd.s_products}');
SELECT millrace.create_pit('pd.x', hub => 'pd.l_order_product', satellites => '{pd.es}');
SELECT millrace.create_pit('pd.pit_order', hub => 'pd.h_order', satellites => '{pd.s_cost, pd.s_status}');
SELECT millrace.create_pit('pd.h_order', hub => 'pd.h_order', satellites => '{pd.s_cost, pd.s_status}', replace => true);
SELECT millrace.create_pit('pd.pit_order', hub => 'pd.h_order', satellites => '{pd.s_cost, pd.s_status}', replace => true); -- the same

-- ---- rows, late ones and again
CREATE FUNCTION ps.say(id bigint, at text, rest json) RETURNS void LANGUAGE sql AS
  $$ SELECT millrace.push('pit_orders', jsonb_build_object('id', id, 'at', at || '+00') || rest::jsonb, key => id::text) $$;
CREATE VIEW pd.report AS
  SELECT p.snapshot_at, o.order_id, s.status, c.cost FROM pd.pit_order p JOIN pd.h_order o USING (h_order_hk)
  JOIN pd.s_status s ON (s.h_order_hk, s.applied_at, s.hashdiff) = (p.s_status_hk, p.s_status_applied_at, p.s_status_hashdiff)
  JOIN pd.s_cost c ON (c.h_order_hk, c.valid_from, c.hashdiff) = (p.s_cost_hk, p.s_cost_applied_at, p.s_cost_hashdiff);
SELECT ps.say(1, '2026-01-05 10:00', '{"status": "OPEN"}');
SELECT ps.say(1, '2026-01-08 10:00', '{"status": "DONE", "cost": 3}');
SELECT ps.say(2, '2026-01-05 23:59:59.999999', '{"status": "OPEN", "cost": 9}');
SELECT dead_letters FROM millrace.run_stream('pit_orders');
SELECT * FROM pd.report WHERE snapshot_at < '2026-01-10' ORDER BY 1, 2;
SELECT ps.say(1, '2026-01-06 10:00', '{"status": "PAID"}');
SELECT ps.say(1, '2026-01-06 09:00', '{"status": "OPEN", "cost": 2}');
SELECT ps.say(2, '2026-01-07 00:00', '{"op": "D"}');
SELECT ps.say(1, '2026-01-07 10:00', '{"status": "PAID"}');
SELECT dead_letters FROM millrace.run_stream('pit_orders');
SELECT * FROM pd.report WHERE snapshot_at < '2026-01-10' ORDER BY 1, 2;
SELECT order_id, count(*) = (current_date - '2026-01-05'::date) AS one_a_day FROM pd.report WHERE snapshot_at < current_date GROUP BY 1 ORDER BY 1;
SELECT * FROM pd.report r FULL JOIN (SELECT t AS snapshot_at, order_id, status FROM (SELECT DISTINCT snapshot_at AS t FROM pd.pit_order) x, pd.s_status_as_of(t)) a USING (snapshot_at, order_id)
WHERE r.status IS DISTINCT FROM a.status;
SELECT snapshot_at, s_status_applied_at FROM pd.pit_month WHERE snapshot_at < '2026-04-01' ORDER BY 1, 2;
SELECT missing, unexpected FROM millrace.verify('pd.pit_order');
SELECT missing, unexpected FROM millrace.verify('pd.pit_month');

SELECT relation, change, before ->> 'until_at' AS was_until, after ->> 'from_at' AS from_at, after ->> 'until_at' AS until_at
FROM millrace.preview('pit_orders', payload => '{"id": 1, "at": "2026-01-09 10:00+00", "status": "GONE"}') WHERE layer = 'pit' ORDER BY relation, from_at;

-- ---- a confirmation hides one before it that was later than what another row says
SELECT ps.say(50, '2026-01-01 10:00', '{"status": "OPEN", "cost": 5}'), ps.say(50, '2026-01-03 10:00', '{"status": "OPEN", "cost": 5}');
SELECT dead_letters FROM millrace.run_stream('pit_orders');
SELECT ps.say(50, '2025-12-31 10:00', '{"status": "OPEN", "cost": 6}'), ps.say(50, '2026-01-02 10:00', '{"status": "OPEN", "cost": 6}');
SELECT dead_letters FROM millrace.run_stream('pit_orders');
SELECT ps.say(50, '2026-01-04 10:00', '{"status": "PAID"}');
SELECT dead_letters FROM millrace.run_stream('pit_orders');
SELECT ps.say(50, '2026-01-06 10:00', '{"status": "PAID", "cost": 5}');
SELECT dead_letters FROM millrace.run_stream('pit_orders');
SELECT * FROM pd.report WHERE order_id = 50 AND snapshot_at < '2026-01-08' ORDER BY 1;
SELECT missing, unexpected FROM millrace.verify('pd.pit_order');

-- ---- one that is declared later, another source, rebuild, replace
SELECT millrace.create_pit('pd.pit_hour', hub => 'pd.h_order', satellites => '{pd.s_status}', every => 'hour');
SELECT dead_letters FROM millrace.run_stream('pit_orders');
SELECT snapshot_at, s_status_applied_at, s_status_hk = h_order_hk AS there FROM pd.pit_hour WHERE h_order_hk = millrace.hash_key('pd.h_order', 2) AND snapshot_at BETWEEN '2026-01-06 22:00' AND '2026-01-07 02:00' ORDER BY 1;
SELECT millrace.create_stream('pit_other');
SELECT millrace.create_staging('ps.other', stream => 'pit_other', key => '{"no": "$.no"}', version => '["$.at", "timestamptz"]', columns => '{"state": "$.state"}', log => true);
SELECT millrace.push('pit_other', '{"no": "3", "at": "2026-01-05 12:00+00", "state": "ELSEWHERE"}') > 0 AS pushed;
SELECT dead_letters FROM millrace.run_stream('pit_other');
SELECT millrace.add_source('pd.h_order', 'ps.other', columns => '{"order_id": "no"}');
SELECT millrace.add_source('pd.s_status', 'ps.other', columns => '{"order_id": "no", "status": "state"}');
SELECT dead_letters FROM millrace.run_stream('pit_other');
SELECT dead_letters FROM millrace.run_stream('pit_orders');
SELECT millrace.push('pit_other', '{"no": "1", "at": "2026-01-09 12:00+00", "state": "ELSEWHERE"}') > 0 AS pushed;
SELECT dead_letters FROM millrace.run_stream('pit_other');
SELECT * FROM pd.report WHERE snapshot_at BETWEEN '2026-01-08' AND '2026-01-10' ORDER BY 1, 2;
SELECT missing, unexpected FROM millrace.verify('pd.pit_order');
SELECT millrace.describe('pit', 'pd.pit_month');
RESET ROLE;
SELECT 'pit_' || id AS pit FROM millrace.target WHERE relation = 'pd.pit_order'::regclass \gset
UPDATE millrace_state.:"pit" SET s2_applied_at = 'epoch' WHERE from_at = '2026-01-05 23:59:59.999999+00';
SET ROLE pit_builder;
SELECT missing > 0 AS missing, unexpected > 0 AS unexpected FROM millrace.verify('pd.pit_order');
SELECT rows_before = rows_after AS same FROM millrace.rebuild('pd.pit_order');
SELECT missing, unexpected FROM millrace.verify('pd.pit_order');
SELECT millrace.create_pit('pd.pit_order', hub => 'pd.h_order', satellites => '{pd.s_status}', replace => true);
DROP VIEW pd.report;
SELECT millrace.create_pit('pd.pit_order', hub => 'pd.h_order', satellites => '{pd.s_status}', replace => true);
SELECT dead_letters FROM millrace.run_stream('pit_orders');
SELECT missing, unexpected FROM millrace.verify('pd.pit_order');

-- ---- clocks that are set back: by an hour in Berlin, by an hour over midnight in Havana, by half an hour on Lord Howe
SELECT millrace.create_pit('pd.pit_berlin', hub => 'pd.h_order', satellites => '{pd.s_status}', every => 'hour', timezone => 'Europe/Berlin');
SELECT millrace.create_pit('pd.pit_havana', hub => 'pd.h_order', satellites => '{pd.s_status}', every => 'day', timezone => 'America/Havana');
SELECT millrace.create_pit('pd.pit_lord_howe', hub => 'pd.h_order', satellites => '{pd.s_status}', every => 'hour', timezone => 'Australia/Lord_Howe');
-- each order changes once, a quarter of an hour after the one before
SELECT count(ps.say(1000 + 100 * n + i, (at + CASE c WHEN 0 THEN interval '-3 days' ELSE i * interval '15 minutes' END)::text, json_build_object('status', CASE c WHEN 0 THEN 'OPEN' ELSE 'PAID' END)))
FROM unnest('{2025-10-25 22:00, 2025-11-02 03:00, 2025-04-05 13:00, 2025-03-30 00:00, 2025-03-09 04:00, 2025-10-04 14:00}'::timestamp[]) WITH ORDINALITY AS d (at, n), generate_series(1, 16) i, generate_series(0, 1) c;
SELECT dead_letters FROM millrace.run_stream('pit_orders');
SELECT p.snapshot_at, count(*) FILTER (WHERE s.status = 'PAID') AS paid FROM pd.pit_berlin p JOIN pd.h_order o USING (h_order_hk) JOIN pd.s_status s ON (s.h_order_hk, s.applied_at, s.hashdiff) = (p.s_status_hk, p.s_status_applied_at, p.s_status_hashdiff)
WHERE o.order_id BETWEEN 1100 AND 1199 AND snapshot_at BETWEEN '2025-10-25 22:00' AND '2025-10-26 03:00' GROUP BY 1 ORDER BY 1;
SELECT p.snapshot_at, count(*) FILTER (WHERE s.status = 'PAID') AS paid FROM pd.pit_havana p JOIN pd.h_order o USING (h_order_hk) JOIN pd.s_status s ON (s.h_order_hk, s.applied_at, s.hashdiff) = (p.s_status_hk, p.s_status_applied_at, p.s_status_hashdiff)
WHERE o.order_id BETWEEN 1200 AND 1299 AND snapshot_at BETWEEN '2025-11-01' AND '2025-11-04' GROUP BY 1 ORDER BY 1;
CREATE FUNCTION pd.differ(pit regclass) RETURNS TABLE (snapshots bigint, differ bigint) LANGUAGE plpgsql AS $$
BEGIN
  RETURN QUERY EXECUTE format('SELECT count(DISTINCT p.snapshot_at), count(*) FILTER (WHERE a.status IS DISTINCT FROM s.status)
    FROM unnest(''{2025-10-26, 2025-11-02 05:00, 2025-04-05 15:00, 2025-03-30, 2025-03-09 05:00, 2025-10-04 15:00}''::timestamptz[]) WITH ORDINALITY AS c (at, n)
    JOIN pd.h_order o ON o.order_id / 100 = 10 + c.n JOIN %s p USING (h_order_hk) JOIN pd.s_status s ON (s.h_order_hk, s.applied_at, s.hashdiff) = (p.s_status_hk, p.s_status_applied_at, p.s_status_hashdiff)
    LEFT JOIN LATERAL (SELECT v.status FROM pd.s_status_as_of(p.snapshot_at) v WHERE v.h_order_hk = p.h_order_hk) a ON true
    WHERE p.snapshot_at BETWEEN c.at - interval ''5 hours'' AND c.at + interval ''25 hours''', pit);
END $$;
SELECT r AS pit, d.* FROM unnest('{pd.pit_berlin, pd.pit_havana, pd.pit_lord_howe}'::regclass[]) r, pd.differ(r) d;
SELECT r AS pit, v.missing, v.unexpected FROM unnest('{pd.pit_berlin, pd.pit_havana, pd.pit_lord_howe}'::regclass[]) r, millrace.verify(r) v;
SELECT rows_before = rows_after AS same FROM unnest('{pd.pit_berlin, pd.pit_havana, pd.pit_lord_howe}'::regclass[]) r, millrace.rebuild(r);
SELECT millrace.drop_table(r) FROM unnest('{pd.pit_berlin, pd.pit_havana, pd.pit_lord_howe}'::text[]) r;

-- ---- dropping
SELECT millrace.drop_table('pd.s_status');
SELECT millrace.drop_table('pd.pit_month');
SELECT millrace.drop_table('pd.s_status', cascade => true);
SELECT relation FROM millrace.target_status WHERE owner = 'pit_builder' ORDER BY 1;
SELECT millrace.drop_table('ps.other', cascade => true);
SELECT millrace.drop_table('ps.orders', cascade => true);
SELECT millrace.drop_table('ps.costs', cascade => true);
SELECT millrace.drop_table('ps.items', cascade => true);
SELECT relname FROM pg_class WHERE relnamespace IN ('pd'::regnamespace, 'ps'::regnamespace) AND relkind IN ('r', 'v') OR relname ~ '^pit_\d';
SELECT millrace.drop_stream('pit_orders');
SELECT millrace.drop_stream('pit_other');
\set VERBOSITY terse
DROP SCHEMA ps, pd CASCADE;
RESET ROLE;
SET client_min_messages = warning;
REVOKE CREATE ON DATABASE :DBNAME FROM pit_builder;
DROP OWNED BY pit_builder;
DROP ROLE pit_builder;
