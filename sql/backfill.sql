-- Filling, verifying and rebuilding as users see them: what is shown, and what is refused.  What is computed is compared under random histories in test/property.
\set VERBOSITY terse
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS millrace;
CREATE ROLE filler LOGIN;
CREATE ROLE passer_by;
GRANT millrace_admin TO filler, passer_by;
GRANT CREATE ON DATABASE :DBNAME TO filler;
RESET client_min_messages;
\set VERBOSITY default
\set SHOW_CONTEXT never
SET TimeZone = 'UTC';
SET ROLE filler;
CREATE SCHEMA fs;
CREATE SCHEMA fd;
GRANT USAGE ON SCHEMA fd, fs TO passer_by;
SELECT millrace.create_stream('fill');
SELECT millrace.create_staging('fs.orders', stream => 'fill', key => '{"order_id": ["$.id", "bigint"]}', version => '["$.at", "timestamptz"]', deleted => $$ op = 'D' $$, log => true,
  columns => '{"op": "$.op", "status": "$.status"}');
SELECT millrace.create_staging('fs.items', stream => 'fill', for_each => '$.items[*]', key => '{"order_id": ["$.id", "bigint"]}', version => '["$.at", "timestamptz"]', deleted => $$ op = 'D' $$, log => true,
  columns => '{"op": "$.op", "shop": "$.shop", "product": "@.p", "quantity": ["@.q", "integer"]}');
SELECT millrace.create_staging('fs.plain', stream => 'fill', key => '{"order_id": ["$.id", "bigint"]}', version => '["$.at", "timestamptz"]', columns => '{"status": "$.status"}');
CREATE FUNCTION fs.say(message jsonb) RETURNS void LANGUAGE sql AS $$ SELECT millrace.push('fill', message, key => message ->> 'id') $$;
SELECT fs.say('{"id": 1, "at": "2026-01-05 10:00+00", "status": "OPEN", "shop": "n", "items": [{"p": "a", "q": 1}, {"p": "b", "q": 2}]}');
SELECT fs.say('{"id": 1, "at": "2026-01-06 10:00+00", "status": "PAID", "shop": "n", "items": [{"p": "b", "q": 2}]}');
SELECT fs.say('{"id": 2, "at": "2026-01-06 11:00+00", "status": "OPEN", "shop": "s", "items": []}');
SELECT fs.say('{"id": 3, "at": "2026-01-06 12:00+00", "op": "D"}');
SELECT messages, dead_letters FROM millrace.run_stream('fill');

-- ---- waiting, paused, filled
SELECT millrace.create_hub('fd.h_order', source => 'fs.orders', business_key => '{order_id}');
SELECT millrace.create_satellite('fd.s_status', source => 'fs.orders', parent => 'fd.h_order', attributes => '{status}');
SELECT millrace.create_pit('fd.pit_order', hub => 'fd.h_order', satellites => '{fd.s_status}', every => 'day');
SELECT millrace.create_mart('fd.by_status', 'SELECT status, count(*) AS n FROM fs.orders GROUP BY status');
SELECT relation, kind, state, chunks, rows_done, paused, last_error FROM millrace.backfill_status WHERE owner = 'filler' ORDER BY 1;
SELECT * FROM millrace.verify('fd.by_status');
SELECT * FROM millrace.rebuild('fd.by_status', filter => $$ status = 'PAID' $$);
SELECT millrace.pause_backfill('fd.by_status');
SELECT millrace.pause_backfill('fd.pit_order');
SELECT millrace.pause_backfill('fd.s_status');
SET millrace.backfill_rows = 1;
SELECT messages, dead_letters FROM millrace.run_stream('fill');
SELECT relation, kind, state, chunks, rows_done, paused, finished_at IS NOT NULL AS finished FROM millrace.backfill_status WHERE owner = 'filler' ORDER BY 1;
SELECT * FROM millrace.verify('fd.by_status');
SELECT * FROM millrace.verify('fd.pit_order');
SELECT * FROM millrace.rebuild('fd.by_status', filter => $$ status = 'PAID' $$);
-- what comes meanwhile is kept
SELECT fs.say('{"id": 4, "at": "2026-01-07 12:00+00", "status": "OPEN"}');
SELECT messages, dead_letters FROM millrace.run_stream('fill');
SELECT count(*) FROM fd.s_status WHERE applied_at > '2000-01-01';
SELECT millrace.resume_backfill('fd.by_status');
SELECT millrace.resume_backfill('fd.pit_order');
SELECT millrace.resume_backfill('fd.s_status');
SELECT messages, dead_letters FROM millrace.run_stream('fill');
RESET millrace.backfill_rows;
SELECT relation, kind, state, chunks > 1 AS in_chunks, rows_done, rows_estimate, paused, finished_at IS NOT NULL AS finished, last_error FROM millrace.backfill_status WHERE owner = 'filler' ORDER BY 1;
SELECT relation, missing, unexpected, example, compared_with, horizon FROM unnest('{fd.h_order,fd.s_status,fd.pit_order,fd.by_status,fs.orders}'::regclass[]) r, millrace.verify(r);

-- what is paused is one filling, not the next one, too
SELECT millrace.create_pit('fd.pit_late', hub => 'fd.h_order', satellites => '{fd.s_status}', every => 'day');
SELECT millrace.pause_backfill('fd.pit_late');
SELECT messages, dead_letters FROM millrace.run_stream('fill');
SELECT state, paused FROM millrace.backfill_status WHERE relation = 'fd.pit_late';
SELECT relation FROM millrace.rebuild('fd.pit_late');
SELECT state, paused FROM millrace.backfill_status WHERE relation = 'fd.pit_late';
SELECT relation FROM millrace.rebuild('fd.s_status');
SELECT messages, dead_letters FROM millrace.run_stream('fill');
SELECT state, paused FROM millrace.backfill_status WHERE relation = 'fd.pit_late';
SELECT millrace.drop_table('fd.pit_late');

-- a day of a log is dropped before it has been read
SELECT millrace.create_staging('fs.daily', stream => 'fill', key => '{"order_id": ["$.id", "bigint"]}', version => '["$.at", "timestamptz"]', log => true, log_partition => 'day', columns => '{"status": "$.status"}');
SELECT fs.say('{"id": 6, "at": "2026-01-07 13:00+00", "status": "OPEN"}');
SELECT messages, dead_letters FROM millrace.run_stream('fill');
SELECT millrace.create_satellite('fd.s_daily', source => 'fs.daily', parent => 'fd.h_order', attributes => '{status}');
SELECT millrace.pause_backfill('fd.s_daily');
SELECT messages, dead_letters FROM millrace.run_stream('fill');
DO $$ BEGIN EXECUTE (SELECT string_agg(format('DROP TABLE %s', p.relid), '; ') FROM pg_partition_tree('fs.daily_log') p WHERE p.isleaf); END $$;
SELECT millrace.resume_backfill('fd.s_daily');
SELECT messages, dead_letters FROM millrace.run_stream('fill');
SELECT state, rows_done, last_error FROM millrace.backfill_status WHERE relation = 'fd.s_daily';
SELECT millrace.drop_table('fd.s_daily');

-- one of its sources is dropped while it is being filled
SELECT millrace.create_hub('fd.h_status', source => 'fs.orders', business_key => '{status}');
SELECT millrace.add_source('fd.h_status', source => 'fs.daily');
SELECT millrace.pause_backfill('fd.h_status');
SELECT messages, dead_letters FROM millrace.run_stream('fill');
SELECT millrace.drop_table('fs.daily', cascade => true);
SELECT millrace.resume_backfill('fd.h_status');
SELECT messages, dead_letters FROM millrace.run_stream('fill');
SELECT state, paused FROM millrace.backfill_status WHERE relation = 'fd.h_status';
SELECT missing, unexpected FROM millrace.verify('fd.h_status');

-- another definition of what has rows, though it is to be filled from one more source
SELECT millrace.create_satellite('fd.s_order', source => 'fs.orders', parent => 'fd.h_order', attributes => '{status}');
SELECT messages, dead_letters FROM millrace.run_stream('fill');
SELECT millrace.create_staging('fs.second', stream => 'fill', key => '{"order_id": ["$.id", "bigint"]}', version => '["$.at", "timestamptz"]', log => true, columns => '{"status": "$.status", "op": "$.op"}');
SELECT millrace.add_source('fd.s_order', source => 'fs.second');
SELECT millrace.create_satellite('fd.s_order', source => 'fs.orders', parent => 'fd.h_order', attributes => '{status, op}', replace => true);
SELECT millrace.drop_table('fs.second', cascade => true);
SELECT messages, dead_letters FROM millrace.run_stream('fill');
SELECT millrace.drop_table('fd.s_order');
SELECT millrace.drop_table('fd.h_status');

-- an error stops the filling, not the stream
SELECT millrace.create_mart('fd.odd', 'SELECT 6 / (order_id - 2) AS part, count(*) AS n FROM fs.orders GROUP BY 1');
SELECT fs.say('{"id": 5, "at": "2026-01-07 12:00+00", "status": "OPEN"}');
SELECT messages, dead_letters FROM millrace.run_stream('fill');
SELECT relation, state, rows_done, last_error, sqlstate FROM millrace.backfill_status WHERE relation = 'fd.odd';
SELECT * FROM millrace.verify('fd.odd');
SELECT millrace.drop_table('fd.odd');

-- ---- what is refused
SELECT millrace.pause_backfill('fd.by_status');
SELECT millrace.resume_backfill('fd.pit_order');
SELECT millrace.pause_backfill('fs.orders');
SELECT millrace.pause_backfill('pg_class');
SELECT millrace.pause_backfill('fd.nothing');
SELECT * FROM millrace.verify('pg_class');
SELECT * FROM millrace.verify('fs.plain');
SELECT * FROM millrace.rebuild('pg_class');
SELECT * FROM millrace.rebuild('fs.plain');
SELECT * FROM millrace.rebuild('fd.pit_order', filter => $$ snapshot_at < '2026-02-01' $$);
SELECT * FROM millrace.rebuild('fd.by_status', filter => 'status > random()::text');
SELECT * FROM millrace.rebuild('fd.by_status', filter => 'n > 1');
SELECT * FROM millrace.rebuild('fd.by_status', filter => 'nothing = 1');
SELECT millrace.create_hub('fd.h_plain', source => 'fs.plain', business_key => '{order_id}');
SELECT millrace.create_satellite('fd.s_plain', source => 'fs.plain', parent => 'fd.h_plain', attributes => '{status}');
SELECT millrace.create_satellite('fd.e_none', source => 'fs.plain', parent => 'fd.h_plain', kind => 'multi_active', sub_key => '{status}');
SELECT messages, dead_letters FROM millrace.run_stream('fill');
SELECT * FROM millrace.verify('fd.s_plain');
SELECT * FROM millrace.verify('fd.e_none');
SELECT * FROM millrace.rebuild('fd.s_plain');
SELECT missing, unexpected, horizon FROM millrace.verify('fd.h_plain');
SET ROLE passer_by;
SELECT millrace.pause_backfill('fd.by_status');
SELECT * FROM millrace.verify('fd.s_status');
SELECT * FROM millrace.rebuild('fd.s_status');
SELECT count(*) > 0 AS seen FROM millrace.backfill_status WHERE owner = 'filler';
SET ROLE filler;

-- ---- one row of a set
SELECT millrace.create_hub('fd.h_product', source => 'fs.items', business_key => '{product}');
SELECT millrace.create_hub('fd.h_shop', source => 'fs.items', business_key => '{shop}');
SELECT millrace.create_link('fd.l_item', source => 'fs.items', hubs => '{fd.h_order, fd.h_product, fd.h_shop}');
SELECT millrace.create_satellite('fd.m_items', source => 'fs.items', parent => 'fd.h_order', kind => 'multi_active', sub_key => '{product}', attributes => '{quantity}');
SELECT millrace.create_satellite('fd.m_shops', source => 'fs.items', parent => 'fd.h_shop', kind => 'multi_active', sub_key => '{product,quantity}', history => 'all');
SELECT millrace.create_satellite('fd.e_item', source => 'fs.items', parent => 'fd.l_item', kind => 'effectivity', driving_key => '{order_id}');
SELECT millrace.create_satellite('fd.e_product', source => 'fs.items', parent => 'fd.l_item', kind => 'effectivity', driving_key => '{shop,order_id}', names => '{"driving_hk": "of", "confirmed_at": "last said"}');
-- of an object whose key names the parent and the sub-key: deletes end one of them
SELECT millrace.create_stream('phones');
SELECT millrace.create_staging('fs.phones', stream => 'phones', key => '{"customer": "$.customer", "place": "$.place"}', version => '["$.at", "timestamptz"]', deleted => $$ op = 'D' $$, log => true, columns => '{"op": "$.op", "number": "$.number"}');
SELECT millrace.create_hub('fd.h_customer', source => 'fs.phones', business_key => '{customer}');
SELECT millrace.create_satellite('fd.m_phone', source => 'fs.phones', parent => 'fd.h_customer', kind => 'multi_active', sub_key => '{place}', attributes => '{number}');
SELECT count(millrace.push('phones', m::json)) FROM unnest(ARRAY['{"customer": "ann", "place": "home", "number": "1", "at": "2026-01-05 10:00+00"}', '{"customer": "ann", "place": "work", "number": "2", "at": "2026-01-05 10:00+00"}',
  '{"customer": "ann", "place": "home", "op": "D", "at": "2026-01-06 10:00+00"}', '{"customer": "ann", "place": "home", "op": "D", "at": "2026-01-07 10:00+00"}']) m;
SELECT messages, dead_letters FROM millrace.run_stream('phones');
SELECT messages, dead_letters FROM millrace.run_stream('fill');
SELECT customer, place, number FROM fd.m_phone_current;
ALTER TABLE fd.m_items RENAME COLUMN product TO "The product";
CREATE VIEW fd.checked AS SELECT relation, missing, unexpected, example IS NOT NULL AS shown FROM unnest('{fd.m_items,fd.m_shops,fd.e_item,fd.e_product,fd.m_phone}'::regclass[]) r, millrace.verify(r);
SELECT * FROM fd.checked;
UPDATE fd.m_items SET quantity = 3 WHERE "The product" = 'b' AND applied_at = '2026-01-06 10:00+00';
SELECT * FROM fd.checked WHERE shown;
SELECT e."The product", e.quantity, compared_with, horizon FROM millrace.verify('fd.m_items'), json_populate_record(NULL::fd.m_items, regexp_replace(example, '^unexpected: ', '')::json) e;
SELECT * FROM millrace.rebuild('fd.m_items', filter => $$ quantity = 3 $$);
DELETE FROM fd.m_items WHERE is_deleted AND applied_at = '2026-01-06 11:00+00';
SELECT * FROM fd.checked WHERE shown;
SELECT rows_after - rows_before AS more FROM millrace.rebuild('fd.m_items');
UPDATE fd.m_shops SET is_deleted = true WHERE product = 'a';
UPDATE fd.m_phone SET confirmed_at = confirmed_at - interval '1 day' WHERE is_deleted AND place = 'home';
UPDATE fd.e_item SET l_item_hk = gen_random_uuid() WHERE is_deleted IS FALSE AND applied_at = '2026-01-06 10:00+00';
INSERT INTO fd.e_product SELECT (json_populate_record(e, '{"last said": "2026-01-08", "applied_at": "2026-01-08"}')).* FROM fd.e_product e WHERE applied_at = '2026-01-05 10:00+00' ORDER BY l_item_hk LIMIT 1;
SELECT * FROM fd.checked;
SELECT relation, rows_after - rows_before AS more FROM unnest('{fd.m_shops,fd.m_phone,fd.e_item,fd.e_product}'::regclass[]) r, millrace.rebuild(r);
SELECT * FROM fd.checked WHERE shown;
-- the hashes, made by hand
SELECT count(*), bool_and(h.sub_key_hk = millrace.hashdiff('{NULL}', h."The product")) AS sub_keys,
       bool_and(h.hashdiff = (SELECT millrace.hash_set(array_agg(o.sub_key_hk ORDER BY o.sub_key_hk), array_agg(millrace.hashdiff('{1}', o.quantity) ORDER BY o.sub_key_hk))
                              FROM fd.m_items o WHERE (o.h_order_hk, o.applied_at) = (h.h_order_hk, h.applied_at))) AS sets
FROM fd.m_items h WHERE NOT is_deleted AND applied_at > '2000-01-01';
SELECT millrace.hash_set('{00000000-0000-0000-0000-000000000000}', '{}');

SELECT millrace.drop_stream('phones', cascade => true);
SELECT millrace.drop_stream('fill', cascade => true);
\set VERBOSITY terse
SET client_min_messages = warning;
DROP SCHEMA fd, fs CASCADE;
RESET ROLE;
REVOKE CREATE ON DATABASE :DBNAME FROM filler;
DROP OWNED BY filler, passer_by;
DROP ROLE filler, passer_by;
