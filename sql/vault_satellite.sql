-- Satellites with all history, of times past, multi-active, effectivity; attributes that come and go; several sources.
\set VERBOSITY terse
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS millrace;
CREATE ROLE satellite_builder LOGIN;
GRANT millrace_admin TO satellite_builder;
GRANT CREATE ON DATABASE :DBNAME TO satellite_builder;
RESET client_min_messages;
\set VERBOSITY default
\set SHOW_CONTEXT never
SET TimeZone = 'UTC';
SET ROLE satellite_builder;
CREATE SCHEMA ss;
CREATE SCHEMA sd;
SELECT millrace.create_stream('satellite_orders');
SELECT millrace.create_staging('ss.orders', stream => 'satellite_orders', key => '{"order_id": ["$.id", "bigint"]}', version => '["$.at", "timestamptz"]', deleted => $$ op = 'D' $$,
  columns => '{"op": "$.op", "user_id": "$.user", "status": "$.status", "cost": ["$.cost", "numeric(12,2)"]}');
SELECT millrace.create_staging('ss.items', stream => 'satellite_orders', for_each => '$.items[*]', key => '{"order_id": ["$.id", "bigint"]}', version => '["$.at", "timestamptz"]',
  deleted => $$ op = 'D' $$, filter => $$ product_id <> 'hidden' $$,
  columns => '{"op": "$.op", "product_id": "@.id", "line": ["@.line", "integer"], "quantity": ["@.quantity", "integer"]}');
SELECT millrace.create_hub('sd.h_order', source => 'ss.orders', business_key => '{order_id}');
SELECT millrace.create_hub('sd.h_product', source => 'ss.items', business_key => '{product_id}');
SELECT millrace.create_link('sd.l_order_product', source => 'ss.items', hubs => '{sd.h_order, sd.h_product}');
SELECT millrace.create_satellite('sd.s_all', source => 'ss.orders', parent => 'sd.h_order', attributes => '{status}', history => 'all');
SELECT millrace.create_satellite('sd.s_changes', source => 'ss.orders', parent => 'sd.h_order', attributes => '{status, cost}');
SELECT millrace.create_satellite('sd.s_lines', source => 'ss.items', parent => 'sd.h_order', kind => 'multi_active', sub_key => '{line}', attributes => '{quantity}');
SELECT millrace.create_satellite('sd.s_product_lines', source => 'ss.items', parent => 'sd.h_product', kind => 'multi_active', sub_key => '{order_no, line}', attributes => '{quantity}', columns => '{"order_no": "order_id"}');
SELECT millrace.create_satellite('sd.es_order_product', source => 'ss.items', parent => 'sd.l_order_product', kind => 'effectivity', driving_key => '{order_id}');
SELECT millrace.create_satellite('sd.es_product_order', source => 'ss.items', parent => 'sd.l_order_product', kind => 'effectivity', driving_key => '{product_id}', history => 'all', names => '{"driving_hk": "product_key"}');
\d sd.s_lines
\d sd.es_product_order
\df sd.*
-- ---- what is refused
SELECT millrace.create_satellite('sd.x', source => 'ss.orders', parent => 'sd.h_order');
SELECT millrace.create_satellite('sd.x', source => 'ss.orders', parent => 'sd.h_order', attributes => '{status}', sub_key => '{cost}');
SELECT millrace.create_satellite('sd.x', source => 'ss.orders', parent => 'sd.h_order', attributes => '{status}', driving_key => '{order_id}');
SELECT millrace.create_satellite('sd.x', source => 'ss.items', parent => 'sd.h_order', attributes => '{quantity}', kind => 'multi_active');
SELECT millrace.create_satellite('sd.x', source => 'ss.items', parent => 'sd.h_order', attributes => '{quantity}', kind => 'multi_active', sub_key => '{quantity}');
SELECT millrace.create_satellite('sd.x', source => 'ss.items', parent => 'sd.h_order', attributes => '{quantity}', kind => 'multi_active', sub_key => '{order_id}');
SELECT millrace.create_satellite('sd.x', source => 'ss.items', parent => 'sd.h_order', kind => 'effectivity', driving_key => '{order_id}');
SELECT millrace.create_satellite('sd.x', source => 'ss.items', parent => 'sd.l_order_product', kind => 'effectivity');
SELECT millrace.create_satellite('sd.x', source => 'ss.items', parent => 'sd.l_order_product', kind => 'effectivity', driving_key => '{orderid}');
SELECT millrace.create_satellite('sd.x', source => 'ss.items', parent => 'sd.l_order_product', kind => 'effectivity', driving_key => '{order_id, product_id}');
SELECT millrace.create_satellite('sd.x', source => 'ss.items', parent => 'sd.l_order_product', kind => 'effectivity', driving_key => '{order_id}', attributes => '{quantity}');
SELECT millrace.create_satellite('sd.s_lines', source => 'ss.items', parent => 'sd.h_order', kind => 'multi_active', sub_key => '{quantity}', attributes => '{line}', replace => true);
SELECT millrace.create_satellite('sd.s_all', source => 'ss.orders', parent => 'sd.h_order', attributes => '{status}', replace => true);

-- ---- rows: out of order, some again
CREATE FUNCTION ss.say(id bigint, at text, rest json) RETURNS void LANGUAGE sql AS
  $$ SELECT millrace.push('satellite_orders', jsonb_build_object('id', id, 'at', '2026-01-01 ' || at || '+00') || rest::jsonb, key => id::text) $$;
SELECT ss.say(1, '10:00', '{"status": "OPEN", "cost": 1, "items": [{"id": "a", "line": 1, "quantity": 1}, {"id": "b", "line": 2, "quantity": 2}]}');
SELECT ss.say(1, '14:00', '{"status": "OPEN", "cost": 1, "items": [{"id": "a", "line": 1, "quantity": 1}, {"id": "b", "line": 2, "quantity": 3}]}');
SELECT ss.say(2, '10:00', '{"status": "OPEN", "items": [{"id": "b", "line": 1, "quantity": 1}, {"id": "b", "line": 1, "quantity": 2}]}');
SELECT dead_letters FROM millrace.run_stream('satellite_orders');
SELECT ss.say(1, '12:00', '{"status": "PAID", "cost": 1, "items": [{"id": "a", "line": 1, "quantity": 1}]}');
SELECT ss.say(1, '11:00', '{"status": "OPEN", "cost": 1, "items": [{"id": "a", "line": 1, "quantity": 1}, {"id": "b", "line": 2, "quantity": 2}]}');
SELECT ss.say(2, '11:00', '{"status": "OPEN", "items": [{"id": "hidden", "line": 1}]}'); -- filtered out: ends nothing
SELECT ss.say(2, '12:00', '{"status": "DONE", "items": []}');
SELECT dead_letters FROM millrace.run_stream('satellite_orders');
SELECT ss.say(1, '12:00', '{"status": "PAID", "cost": 1, "items": [{"id": "a", "line": 1, "quantity": 1}]}');
SELECT ss.say(2, '13:00', '{"op": "D"}');
SELECT dead_letters FROM millrace.run_stream('satellite_orders');
SELECT t::time, order_id, status, applied_at::time, confirmed_at::time FROM generate_series('2026-01-01 09:30'::timestamptz, '2026-01-01 14:30', '1 hour') t, sd.s_all_as_of(t) ORDER BY 1, 2;
SELECT t::time, order_id, status, cost, applied_at::time FROM generate_series('2026-01-01 09:30'::timestamptz, '2026-01-01 14:30', '1 hour') t, sd.s_changes_as_of(t) ORDER BY 1, 2;
SELECT t::time, order_id, line, quantity, applied_at::time, confirmed_at::time FROM generate_series('2026-01-01 09:30'::timestamptz, '2026-01-01 14:30', '1 hour') t, sd.s_lines_as_of(t) ORDER BY 1, 2, 3;
SELECT t::time, product_id, order_no, line, quantity, applied_at::time FROM generate_series('2026-01-01 09:30'::timestamptz, '2026-01-01 14:30', '4 hours') t, sd.s_product_lines_as_of(t) ORDER BY 1, 2, 3, 4;
SELECT t::time, order_id, product_id, applied_at::time FROM generate_series('2026-01-01 09:30'::timestamptz, '2026-01-01 14:30', '1 hour') t, sd.es_order_product_as_of(t) ORDER BY 1, 2, 3;
SELECT order_id, status FROM sd.s_all_current ORDER BY 1;
SELECT order_id, line, quantity FROM sd.s_lines_current ORDER BY 1, 2;
SELECT order_id, product_id, applied_at::time, confirmed_at::time FROM sd.es_order_product_current ORDER BY 1, 2;
SELECT order_id, product_id, applied_at::time FROM sd.es_product_order_current ORDER BY 1, 2;
SELECT (SELECT count(*) FROM sd.s_all) AS s_all, (SELECT count(*) FROM sd.s_lines) AS s_lines, (SELECT count(*) FROM sd.es_order_product) AS es_order_product;
SELECT relation, skipped FROM millrace.target_status WHERE relation = 'sd.s_lines';
SELECT status FROM sd.s_all_as_of('infinity') EXCEPT ALL SELECT status FROM sd.s_all_current;
-- (few rows, and perhaps statistics: it must be able to)
SET enable_seqscan = off; SET enable_sort = off; SET enable_bitmapscan = off;
EXPLAIN (COSTS OFF) SELECT status FROM sd.s_all_as_of('2026-01-01 12:00+00') WHERE h_order_hk = millrace.hash_key('sd.h_order', 1);
RESET enable_seqscan; RESET enable_sort; RESET enable_bitmapscan;

-- ---- an object for each sub-key: its delete ends that one
SELECT millrace.create_staging('ss.phones', stream => 'satellite_orders', route => $$ kind = 'phone' $$, key => '{"user_id": "$.user", "type": "$.type"}', version => '["$.at", "timestamptz"]', deleted => $$ op = 'D' $$,
  columns => '{"kind": "$.kind", "op": "$.op", "number": "$.number"}');
SELECT millrace.create_hub('sd.h_user', source => 'ss.phones', business_key => '{user_id}');
SELECT millrace.create_satellite('sd.s_phone', source => 'ss.phones', parent => 'sd.h_user', kind => 'multi_active', sub_key => '{type}', attributes => '{number}');
CREATE FUNCTION ss.phone(at text, owner text, type text, number text) RETURNS void LANGUAGE sql AS
  $$ SELECT millrace.push('satellite_orders', jsonb_build_object('kind', 'phone', 'id', 99, 'user', owner, 'type', type, 'number', number, 'op', CASE WHEN number IS NULL THEN 'D' END, 'at', '2026-01-01 ' || at || '+00'), key => owner) $$;
SELECT ss.phone('10:00', 'ann', 'home', '1'), ss.phone('11:00', 'ann', 'work', '2'), ss.phone('12:00', 'ann', 'home', NULL), ss.phone('09:00', 'bob', 'home', '3'), ss.phone('13:00', 'ann', 'work', '4');
SELECT dead_letters FROM millrace.run_stream('satellite_orders');
SELECT user_id, type, number, applied_at::time FROM sd.s_phone_current ORDER BY 1, 2;
SELECT user_id, type, number FROM sd.s_phone_as_of('2026-01-01 11:30') ORDER BY 1, 2;

-- ---- attributes: one that is removed adds no rows, nor one that is added or comes back, before it has another value
SELECT ss.say(3, '14:00', '{"status": "OPEN", "cost": 1}');
SELECT dead_letters FROM millrace.run_stream('satellite_orders');
SELECT count(*) AS rows_before FROM sd.s_changes \gset
SELECT millrace.create_satellite('sd.s_changes', source => 'ss.orders', parent => 'sd.h_order', attributes => '{status}', replace => true);
SELECT ss.say(3, '15:00', '{"status": "OPEN", "cost": 5}');
SELECT dead_letters FROM millrace.run_stream('satellite_orders');
SELECT count(*) = :rows_before AS no_new_rows FROM sd.s_changes;
SELECT order_id, status, cost, confirmed_at::time FROM sd.s_changes_current ORDER BY 1;
SELECT millrace.create_satellite('sd.s_changes', source => 'ss.orders', parent => 'sd.h_order', attributes => '{status, cost, user_id}', replace => true);
SELECT ss.say(3, '16:00', '{"status": "OPEN", "cost": 1}');
SELECT dead_letters FROM millrace.run_stream('satellite_orders');
SELECT count(*) = :rows_before AS no_new_rows FROM sd.s_changes;
SELECT order_id, status, cost, user_id, confirmed_at::time FROM sd.s_changes_current ORDER BY 1;
SELECT ss.say(3, '17:00', '{"status": "OPEN", "cost": 1, "user": "ann"}');
SELECT dead_letters FROM millrace.run_stream('satellite_orders');
SELECT count(*) - :rows_before AS new_rows FROM sd.s_changes;
SELECT millrace.create_satellite('sd.s_changes', source => 'ss.orders', parent => 'sd.h_order', attributes => '{cost}', replace => true);
RESET ROLE;
SELECT definition -> 'attributes' AS attributes FROM millrace.target WHERE relation = 'sd.s_changes'::regclass;
SET ROLE satellite_builder;

-- ---- several sources, one of another stream and of other types
SELECT millrace.create_stream('satellite_crm');
SELECT millrace.create_staging('ss.crm', stream => 'satellite_crm', key => '{"id": "$.id"}', version => '["$.at", "timestamptz"]', deleted => $$ op = 'D' $$,
  columns => '{"op": "$.op", "order_no": "$.order", "state": "$.state", "alias": "$.alias"}');
SELECT millrace.add_source('sd.h_user', source => 'ss.crm');
SELECT millrace.add_source('sd.h_user', source => 'ss.crm', columns => '{"user": "id"}');
SELECT millrace.add_source('sd.h_user', source => 'ss.crm', columns => '{"user_id": "id"}', record_source => 'crm');
SELECT millrace.add_source('sd.h_user', source => 'ss.crm', columns => '{"user_id": "id"}', record_source => 'crm'); -- is there
SELECT millrace.add_source('sd.h_user', source => 'ss.crm', columns => '{"user_id": "alias"}');
SELECT millrace.add_source('sd.h_order', source => 'ss.crm', columns => '{"order_id": "order_no"}');
SELECT millrace.add_source('sd.s_all', source => 'ss.crm', columns => '{"order_id": "order_no", "status": "state"}');
SELECT millrace.add_source('sd.s_phone', source => 'ss.crm', columns => '{"user_id": "id", "type": "state", "number": null}');
SELECT millrace.add_source('sd.h_product_current', source => 'ss.crm');
SELECT relation, sources FROM millrace.target_status WHERE sources LIKE '%crm%' ORDER BY 1;
SELECT FROM millrace.push('satellite_crm', '{"id": "cid", "alias": "bob", "order": "7", "state": "NEW", "at": "2026-01-01 10:00+00"}');
SELECT FROM millrace.push('satellite_crm', '{"id": "dan", "order": "1", "state": "SOLD", "at": "2026-01-01 18:00+00"}');
SELECT FROM millrace.push('satellite_crm', '{"id": "eve", "order": "none", "state": "NEW", "at": "2026-01-01 10:00+00"}');
SELECT dead_letters FROM millrace.run_stream('satellite_crm');
SELECT user_id, record_source FROM sd.h_user_current ORDER BY 1;
SELECT order_id, status, record_source FROM sd.s_all_current ORDER BY 1;
SELECT staging, message FROM millrace.dead_letter WHERE stream = 'satellite_crm';
SELECT ss.say(1, '17:30', '{"status": "LATE"}');
SELECT dead_letters FROM millrace.run_stream('satellite_orders');
SELECT order_id, status, record_source FROM sd.s_all_current ORDER BY 1;
SELECT millrace.drop_source('sd.s_all', 'ss.items');
SELECT millrace.drop_source('sd.s_all', 'ss.crm');
SELECT millrace.drop_source('sd.s_all', 'ss.orders');
SELECT FROM millrace.push('satellite_crm', '{"id": "dan", "order": "1", "state": "GONE", "at": "2026-01-01 19:00+00"}');
SELECT dead_letters FROM millrace.run_stream('satellite_crm');
SELECT order_id, status FROM sd.s_all_current ORDER BY 1;

-- A mart may not be joined to what has several rows for a key.
SELECT millrace.create_mart('sd.m', $$ SELECT o.order_id, l.quantity, count(*) AS n FROM ss.orders o LEFT JOIN sd.s_lines_current l USING (order_id) GROUP BY 1, 2 $$);
SELECT rows > 0 AS counted FROM millrace.stage_stats WHERE stream = 'satellite_orders' AND stage = 'vault';

-- ---- dropping: what has another source stays
SELECT millrace.drop_table('ss.phones', cascade => true);
SELECT relation, sources FROM millrace.target_status WHERE owner = 'satellite_builder' ORDER BY 1;
SELECT millrace.drop_table('sd.es_order_product');
SELECT millrace.drop_table('ss.crm', cascade => true);
SELECT millrace.drop_table('ss.items', cascade => true);
SELECT millrace.drop_table('ss.orders', cascade => true);
SELECT relname FROM pg_class WHERE relnamespace IN ('sd'::regnamespace, 'ss'::regnamespace) AND relkind IN ('r', 'v');
\df sd.*
SELECT millrace.drop_stream('satellite_orders');
SELECT millrace.drop_stream('satellite_crm');
\set VERBOSITY terse
DROP SCHEMA ss, sd CASCADE;
RESET ROLE;
SET client_min_messages = warning;
REVOKE CREATE ON DATABASE :DBNAME FROM satellite_builder;
DROP OWNED BY satellite_builder;
DROP ROLE satellite_builder;
