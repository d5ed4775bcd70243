-- Hubs, links, satellites, hash keys.
\set VERBOSITY terse
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS millrace;
CREATE ROLE vault_builder LOGIN;
GRANT millrace_admin TO vault_builder;
GRANT CREATE ON DATABASE :DBNAME TO vault_builder;
RESET client_min_messages;
\set VERBOSITY default
\set SHOW_CONTEXT never
SET ROLE vault_builder;
CREATE SCHEMA vs;
CREATE SCHEMA vd;
SELECT millrace.create_stream('vault_orders');
SELECT millrace.create_staging('vs.orders', stream => 'vault_orders',
  key => '{"order_id": ["$.id", "bigint"]}', version => '["$.at", "timestamptz"]', deleted => $$ op = 'D' $$,
  columns => '{"op": "$.op", "user_id": "$.user", "seller_id": "$.seller", "status": "$.status", "cost": ["$.cost", "numeric"], "place": "$.place"}');
SELECT millrace.create_staging('vs.items', stream => 'vault_orders', for_each => '$.items[*]',
  key => '{"order_id": ["$.id", "bigint"]}', version => '["$.at", "timestamptz"]',
  columns => '{"product_id": "@.id", "quantity": ["@.quantity", "integer"]}');

-- ---- declarations
SELECT millrace.create_hub('vd.h_order', source => 'vs.orders', business_key => '{order_id}');
SELECT millrace.create_hub('vd.h_user', source => 'vs.orders', business_key => '{user_id}', hash_key => 'user_pk', names => '{"load_at": "load_dts", "record_source": "load_src"}', record_source => 'shop');
SELECT millrace.create_hub('vd.h_product', source => 'vs.items', business_key => '{product_id}');
SELECT millrace.create_hub('vd.h_place', source => 'vs.orders', business_key => '{place, cost}');
SELECT millrace.create_link('vd.l_order_user', source => 'vs.orders', hubs => '{vd.h_order, buyer=vd.h_user, seller=vd.h_user}', columns => '{"seller": {"user_id": "seller_id"}}');
SELECT millrace.create_link('vd.l_order_product', source => 'vs.items', hubs => '{vd.h_order, vd.h_product}', names => '{"h_order_hk": "order_key"}');
SELECT millrace.create_satellite('vd.s_status', source => 'vs.orders', parent => 'vd.h_order', attributes => '{status}');
SELECT millrace.create_satellite('vd.s_quantity', source => 'vs.items', parent => 'vd.l_order_product', attributes => '{amount}', columns => '{"amount": "quantity"}');
-- Hubs and links are analyzed by small samples; satellites have values that people ask for.
SELECT c.relname, count(*) FILTER (WHERE a.attstattarget = 20) AS fewer_statistics, count(*) AS columns FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0
WHERE c.relkind = 'r' AND c.relnamespace IN ('vs'::regnamespace, 'vd'::regnamespace) GROUP BY c.relname ORDER BY c.relname;
-- Rows that other objects' versions confirm have more room for that than those of objects themselves, and none that are never confirmed.
SELECT millrace.create_satellite('vd.s_place', source => 'vs.orders', parent => 'vd.h_user', attributes => '{place}');
SELECT millrace.create_satellite('vd.s_costs', source => 'vs.orders', parent => 'vd.h_user', attributes => '{cost}', history => 'all');
SELECT relname, reloptions FROM pg_class WHERE relkind = 'r' AND relnamespace = 'vd'::regnamespace AND relname LIKE 's\_%' ORDER BY relname;
SELECT millrace.drop_table('vd.s_place');
SELECT millrace.drop_table('vd.s_costs');
\d vd.h_user
\d vd.l_order_user
\d vd.s_status
\d vd.h_user_current
\d vd.l_order_user_current
\d vd.s_quantity_current
SELECT kind, relation, definition, state, horizon FROM millrace.target ORDER BY id; -- not for users
RESET ROLE;
\x on
SELECT kind, relation, definition::jsonb - 'parent' - 'hubs' AS definition, horizon FROM millrace.target WHERE owner = 'vault_builder'::regrole ORDER BY id;
\x off
SET ROLE vault_builder;

-- ---- what is refused
SELECT millrace.create_hub('vd.h_order', source => 'vs.orders', business_key => '{order_id}');
SELECT millrace.create_hub('vd.h_order', source => 'vs.orders', business_key => '{order_id, user_id}', replace => true);
SELECT millrace.create_hub('vd.h_order', source => 'vs.items', business_key => '{order_id}', replace => true);
SELECT millrace.create_hub('vd.h_order', source => 'vs.orders', business_key => '{order_id}', names => '{"load_at": "x"}', replace => true);
SELECT millrace.create_hub('vd.h_x', source => 'vd.h_order', business_key => '{order_id}');
SELECT millrace.create_hub('vd.h_x', source => 'vs.orders', business_key => '{ordr_id}');
SELECT millrace.create_hub('vd.h_x', source => 'vs.orders', business_key => '{}');
SELECT millrace.create_hub('vd.h_x', source => 'vs.orders', business_key => '{order_id,order_id}');
SELECT millrace.create_hub('vd.h_x', source => 'vs.orders', business_key => '{order_id}', names => '{"loadat": "x"}');
SELECT millrace.create_hub('vd.h_x', source => 'vs.orders', business_key => '{order_id}', names => '{"load_at": "order_id"}');
SELECT millrace.create_hub('vs.orders', source => 'vs.orders', business_key => '{order_id}');
SELECT millrace.create_link('vd.l_x', source => 'vs.orders', hubs => '{vd.h_order}');
SELECT millrace.create_link('vd.l_x', source => 'vs.orders', hubs => '{vd.h_order, vd.h_order}');
SELECT millrace.create_link('vd.l_x', source => 'vs.orders', hubs => '{vd.h_user, b=vd.h_user}');
SELECT millrace.create_link('vd.l_x', source => 'vs.orders', hubs => '{vd.h_order, vd.h_product}');
SELECT millrace.create_link('vd.l_x', source => 'vs.orders', hubs => '{vd.h_order, vd.h_nothing}');
SELECT millrace.create_link('vd.l_x', source => 'vs.orders', hubs => '{vd.h_order, b=vd.h_user}', columns => '{"c": {"user_id": "seller_id"}}');
SELECT millrace.create_link('vd.l_x', source => 'vs.orders', hubs => '{vd.h_order, b=vd.h_user}', columns => '{"b": {"userid": "seller_id"}}');
SELECT millrace.create_satellite('vd.s_x', source => 'vs.orders', parent => 'vd.s_status', attributes => '{status}');
SELECT millrace.create_satellite('vd.s_x', source => 'vs.orders', parent => 'vd.h_order', attributes => '{status}', history => 'change');
SELECT millrace.create_satellite('vd.s_x', source => 'vs.orders', parent => 'vd.h_order', kind => 'effectivity', driving_key => '{order_id}');
SELECT millrace.create_satellite('vd.s_x', source => 'vs.orders', parent => 'vd.h_order', attributes => '{order_id}');
SELECT millrace.create_satellite('vd.s_x', source => 'vs.orders', parent => 'vd.h_order', attributes => '{status}', columns => '{"statsu": "status"}');
SELECT millrace.create_satellite('vd.s_status', source => 'vs.orders', parent => 'vd.h_user', attributes => '{status}', replace => true);
\set VERBOSITY terse
ALTER TABLE vd.h_order DROP COLUMN order_id;
ALTER TABLE vd.s_status ALTER COLUMN status TYPE varchar(3);
DROP TABLE vd.s_status;
\set VERBOSITY default

-- ---- rows
CREATE FUNCTION vs.say(id bigint, at text, rest json) RETURNS void LANGUAGE sql AS
  $$ SELECT millrace.push('vault_orders', jsonb_build_object('id', id, 'at', '2026-01-01 ' || at || '+00') || rest::jsonb, key => id::text) $$;
SELECT vs.say(1, '10:00', '{"user": "u1", "seller": "u2", "status": "OPEN", "cost": "1.00", "place": "a", "items": [{"id": "p", "quantity": 1}, {"id": null, "quantity": 2}]}');
SELECT vs.say(2, '10:00', '{"user": null, "status": "OPEN", "cost": "1.0", "place": "a", "items": [{"id": "p", "quantity": 5}]}');
SELECT vs.say(1, '12:00', '{"user": "u1", "seller": "u2", "status": "CLOSED", "cost": null, "place": "a", "items": [{"id": "p", "quantity": 1}]}');
SELECT * FROM millrace.run_stream('vault_orders');
SELECT order_id, record_source FROM vd.h_order ORDER BY 1;
SELECT user_id, load_src FROM vd.h_user_current ORDER BY 1;
SELECT place, cost FROM vd.h_place_current;
SELECT order_id, buyer_user_id, seller_user_id FROM vd.l_order_user_current ORDER BY 1;
SELECT order_id, product_id FROM vd.l_order_product_current ORDER BY 1, 2;
SELECT order_id, applied_at, confirmed_at, status FROM vd.s_status_current ORDER BY 1;
SELECT order_id, product_id, applied_at, confirmed_at, amount FROM vd.s_quantity_current ORDER BY 1, 2;
SELECT count(*), bool_and(status IS NULL) FROM vd.s_status WHERE h_order_hk = '00000000-0000-0000-0000-000000000000'; -- the ghost record
RESET ROLE;
SELECT t.relation, sum(c.skipped) FROM millrace.target_counter c JOIN millrace.target t ON t.id = c.target_id GROUP BY 1 ORDER BY 1;
SET ROLE vault_builder;

-- A between: B came late.  Then again what is known, and a delete with what is older than it.
SELECT vs.say(1, '11:00', '{"status": "PAID"}');
SELECT vs.say(2, '11:00', '{"status": "OPEN"}');
SELECT vs.say(2, '13:00', '{"op": "D"}');
SELECT vs.say(2, '12:30', '{"status": "SHIPPED"}');
SELECT dead_letters FROM millrace.run_stream('vault_orders');
SELECT k.order_id, s.applied_at, s.confirmed_at, s.is_deleted, s.status FROM vd.s_status s JOIN vd.h_order k USING (h_order_hk) WHERE order_id > 0 ORDER BY 1, 2;
SELECT order_id, applied_at, confirmed_at, status FROM vd.s_status_current ORDER BY 1;
SELECT vs.say(2, '14:00', '{"status": "OPEN"}');
SELECT vs.say(2, '14:00', '{"op": "D"}'); -- at equal times a delete is last
SELECT vs.say(2, '14:30', '{"status": "OPEN"}');
SELECT vs.say(2, '14:20', '{"status": "OPEN"}');
SELECT dead_letters FROM millrace.run_stream('vault_orders');
SELECT order_id, applied_at, confirmed_at, status FROM vd.s_status_current ORDER BY 1;

-- ---- hash keys: the types are the hub's
SELECT millrace.hash_key('vd.h_order', 1), millrace.hash_key('vd.h_order', '1'), millrace.hash_key('vd.h_order', 1::numeric) = (SELECT h_order_hk FROM vd.h_order WHERE order_id = 1) AS same;
SELECT millrace.hash_key('vd.h_place', 'a||b', 1.0) = millrace.hash_key('vd.h_place', 'a||b', 1.00) AS number_alike, millrace.hash_key('vd.h_place', 'a', NULL) AS zero;
SELECT millrace.hash_key('vd.l_order_product', 1, NULL) = (SELECT l_order_product_hk FROM vd.l_order_product_current WHERE order_id = 1 AND product_id IS NULL) AS same_link;
SELECT millrace.hash_key('vd.h_order', VARIADIC ARRAY[1]) = millrace.hash_key('vd.h_order', 1) AS same_variadic;
SELECT millrace.hash_key('vd.h_order', 1, 2);
SELECT millrace.hash_key('vd.h_order', 'x');
SELECT millrace.hash_key('vd.s_status', 1);
-- (few rows, and perhaps statistics: it must be able to)
SET enable_seqscan = off; SET enable_bitmapscan = off;
EXPLAIN (COSTS OFF) SELECT status FROM vd.s_status_current WHERE h_order_hk = millrace.hash_key('vd.h_order', 1);
RESET enable_seqscan; RESET enable_bitmapscan;
-- every type has one text whatever the session says
SELECT millrace.create_staging('vs.typed', stream => 'vault_orders', route => $$ kind = 'typed' $$, key => '{"id": ["$.typed", "bigint"]}',
  columns => '{"kind": "$.kind", "t": ["$.t", "timestamptz"], "ts": ["$.t", "timestamp"], "d": ["$.d", "date"], "f": ["$.f", "float8"], "r": ["$.f", "real"], "b": ["$.b", "bytea"], "u": ["$.u", "uuid"], "c": ["$.c", "char(4)"], "o": ["$.o", "boolean"], "i": ["$.i", "interval"], "s": ["$.s", "smallint"], "a": ["$.a", "integer[]"]}');
SELECT millrace.create_hub('vd.h_typed', source => 'vs.typed', business_key => '{t, ts, d, f, r, b, u, c, o, i, s, a}');
SELECT millrace.hash_key('vd.h_typed', '2026-01-05 12:00:00.5+03', '2026-01-05 12:00:00', 'infinity', 0.1, '-0', '\x00ff', 'A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11', 'ab', true, '1 day 02:00', 7, '{1,2}');
SET DateStyle = 'German'; SET IntervalStyle = 'iso_8601'; SET extra_float_digits = -3; SET bytea_output = 'escape'; SET TimeZone = 'Europe/Riga';
SELECT millrace.hash_key('vd.h_typed', '2026-01-05 12:00:00.5+03', '2026-01-05 12:00:00', 'infinity', 0.1, '-0', '\x00ff', 'A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11', 'ab', true, '1 day 02:00', 7, '{1,2}');
RESET DateStyle; RESET IntervalStyle; RESET extra_float_digits; RESET bytea_output; RESET TimeZone;

-- ---- replace: nothing, a new attribute, another source column, a rename
SELECT millrace.create_satellite('vd.s_status', source => 'vs.orders', parent => 'vd.h_order', attributes => '{status}', replace => true);
SELECT count(*) AS rows_before FROM vd.s_status \gset
SELECT millrace.create_satellite('vd.s_status', source => 'vs.orders', parent => 'vd.h_order', attributes => '{status, cost}', replace => true);
SELECT vs.say(1, '15:00', '{"status": "CLOSED"}'); -- without a cost nothing new is said
SELECT dead_letters FROM millrace.run_stream('vault_orders');
SELECT count(*) = :rows_before AS no_new_rows FROM vd.s_status;
SELECT vs.say(1, '16:00', '{"status": "CLOSED", "cost": 3.50}');
SELECT dead_letters FROM millrace.run_stream('vault_orders');
SELECT order_id, applied_at, confirmed_at, status, cost FROM vd.s_status_current ORDER BY 1;
ALTER TABLE vs.orders RENAME COLUMN status TO state;
ALTER TABLE vd.s_status RENAME COLUMN status TO state;
ALTER TABLE vd.h_order RENAME COLUMN order_id TO number;
SELECT vs.say(1, '17:00', '{"status": "LOST", "cost": 3.5}');
SELECT dead_letters FROM millrace.run_stream('vault_orders');
SELECT order_id, status, cost FROM vd.s_status_current ORDER BY 1;
SELECT millrace.create_satellite('vd.s_cost', source => 'vs.orders', parent => 'vd.h_order', attributes => '{state}');
\d vd.s_cost_current
SELECT millrace.create_satellite('vd.s_status', source => 'vs.orders', parent => 'vd.h_order', attributes => '{status, cost}', replace => true);

-- ---- tables that are there already
CREATE TABLE vd.h_adopted (pk uuid, place varchar(20), at timestamptz NOT NULL, src text, note text);
SELECT millrace.create_hub('vd.h_adopted', source => 'vs.orders', business_key => '{place}');
SELECT millrace.create_hub('vd.h_adopted', source => 'vs.orders', business_key => '{place}', hash_key => 'note', names => '{"load_at": "at", "record_source": "src"}');
SELECT millrace.create_hub('vd.h_adopted', source => 'vs.orders', business_key => '{place}', hash_key => 'pk', names => '{"load_at": "at", "record_source": "src"}');
ALTER TABLE vd.h_adopted ADD PRIMARY KEY (pk), ALTER place SET NOT NULL;
SELECT millrace.create_hub('vd.h_adopted', source => 'vs.orders', business_key => '{place}', hash_key => 'pk', names => '{"load_at": "at", "record_source": "src"}');
ALTER TABLE vd.h_adopted ALTER place DROP NOT NULL, ADD must integer NOT NULL;
SELECT millrace.create_hub('vd.h_adopted', source => 'vs.orders', business_key => '{place}', hash_key => 'pk', names => '{"load_at": "at", "record_source": "src"}');
ALTER TABLE vd.h_adopted ALTER must SET DEFAULT 0;
SELECT millrace.create_hub('vd.h_adopted', source => 'vs.orders', business_key => '{place}', hash_key => 'pk', names => '{"load_at": "at", "record_source": "src"}');
SELECT vs.say(3, '10:00', '{"place": "b"}');
SELECT dead_letters FROM millrace.run_stream('vault_orders');
SELECT pk, place, src, must FROM vd.h_adopted ORDER BY place;

-- Keys that are known to a session are forgotten when somebody truncates.
TRUNCATE vd.h_adopted;
SELECT vs.say(3, '11:00', '{"place": "b"}');
SELECT dead_letters FROM millrace.run_stream('vault_orders');
SELECT place FROM vd.h_adopted;

-- A value that the hub's type cannot take is a dead letter; what came with it is not lost.
SELECT millrace.drop_table('vd.h_adopted');
CREATE TABLE vd.h_number (h_number_hk uuid PRIMARY KEY, place integer, load_at timestamptz, record_source text);
SELECT millrace.create_hub('vd.h_number', source => 'vs.orders', business_key => '{place}');
SELECT vs.say(4, '10:00', '{"place": "12"}');
SELECT vs.say(5, '10:00', '{"place": "x12"}');
SELECT vs.say(6, '10:00', '{"place": " 13"}');
SELECT dead_letters FROM millrace.run_stream('vault_orders');
SELECT place, h_number_hk = millrace.hash_key('vd.h_number', place) AS same FROM vd.h_number ORDER BY 1;
SELECT staging, kind, sqlstate, message FROM millrace.dead_letter WHERE stream = 'vault_orders';
SELECT number FROM vd.h_order WHERE number > 3 ORDER BY 1;

-- Another business key under a hash key that is there is refused, in hubs and links, whether the key is known or not.
INSERT INTO vd.h_product (h_product_hk, product_id, load_at, record_source) VALUES (millrace.hash_key('vd.h_product', 'forged'), 'genuine', now(), 'somebody');
INSERT INTO vd.l_order_product SELECT millrace.hash_key('vd.l_order_product', 8, 'p'), h_order_hk, millrace.hash_key('vd.h_product', 'p'), now(), 'somebody' FROM vd.h_order WHERE number = 1;
SELECT vs.say(7, '10:00', '{"items": [{"id": "p", "quantity": 1}]}');
SELECT vs.say(8, '10:00', '{"items": [{"id": "p", "quantity": 1}]}');
SELECT vs.say(9, '10:00', '{"items": [{"id": "forged", "quantity": 1}]}');
SELECT vs.say(9, '11:00', '{"items": [{"id": "p", "quantity": 1}]}');
SELECT dead_letters FROM millrace.run_stream('vault_orders');
SELECT staging, kind, sqlstate, message, detail FROM millrace.dead_letter WHERE stream = 'vault_orders' AND sqlstate = '23505' ORDER BY id;
SELECT order_id, product_id FROM vd.l_order_product_current WHERE order_id > 6 ORDER BY 1, 2;
-- Tables with triggers are written by statements, which see it, too.
CREATE FUNCTION vd.pass() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NEW; END $$;
CREATE TRIGGER pass BEFORE INSERT ON vd.h_product FOR EACH ROW EXECUTE FUNCTION vd.pass();
CREATE TRIGGER pass BEFORE INSERT ON vd.l_order_product FOR EACH ROW EXECUTE FUNCTION vd.pass();
INSERT INTO vd.l_order_product SELECT millrace.hash_key('vd.l_order_product', 11, 'p'), h_order_hk, millrace.hash_key('vd.h_product', 'p'), now(), 'somebody' FROM vd.h_order WHERE number = 1;
SELECT vs.say(10, '10:00', '{"items": [{"id": "forged", "quantity": 1}]}');
SELECT vs.say(11, '10:00', '{"items": [{"id": "p", "quantity": 1}]}');
SELECT vs.say(12, '10:00', '{"items": [{"id": "p", "quantity": 1}, {"id": "triggered", "quantity": 1}]}');
SELECT dead_letters FROM millrace.run_stream('vault_orders');
SELECT staging, kind, sqlstate, message, detail FROM millrace.dead_letter WHERE stream = 'vault_orders' AND sqlstate = '23505' AND convert_from(value, 'UTF8')::json ->> 'id' IN ('10', '11') ORDER BY id;
SELECT order_id, product_id FROM vd.l_order_product_current WHERE order_id > 9 ORDER BY 1, 2;

-- ---- dropping
SELECT millrace.drop_table('vd.h_order');
SELECT millrace.drop_table('vd.s_status');
SELECT millrace.drop_table('vd.h_order', cascade => true);
SELECT millrace.drop_table('vs.orders', cascade => true);
SELECT millrace.drop_table('vs.items', cascade => true);
SELECT millrace.drop_table('vs.typed', cascade => true);
SELECT relname FROM pg_class WHERE relnamespace IN ('vd'::regnamespace, 'vs'::regnamespace) AND relkind IN ('r', 'v');
SELECT count(*) FROM pg_class WHERE relnamespace = 'millrace_def'::regnamespace AND relowner = 'vault_builder'::regrole;
SELECT millrace.drop_stream('vault_orders');
\set VERBOSITY terse
DROP SCHEMA vs, vd CASCADE;
RESET ROLE;
SET client_min_messages = warning;
REVOKE CREATE ON DATABASE :DBNAME FROM vault_builder;
DROP OWNED BY vault_builder;
DROP ROLE vault_builder;
