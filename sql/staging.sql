-- Staging tables: every form of their declaration, what they hold, how they live.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS millrace;
SET client_min_messages = notice;
\set VERBOSITY default
\set SHOW_CONTEXT never
CREATE SCHEMA st;
SET search_path = st, public;
SET timezone = 'UTC';
SET datestyle = 'ISO';
-- Messages come in by this, with a time of their own.
CREATE PROCEDURE send(stream text, seconds integer, payload text, key text DEFAULT NULL, headers json DEFAULT NULL)
LANGUAGE sql AS $$ SELECT millrace.push(stream, payload, key => key, headers => headers, message_time => timestamptz '2026-01-05 12:00+00' + seconds * interval '1 second') $$;
CREATE FUNCTION run(stream text) RETURNS TABLE (messages bigint, dead_letters bigint)
LANGUAGE sql AS 'SELECT messages, dead_letters FROM millrace.run_stream(stream)';

-- What a statement says when it fails, without numbers that are others the next time.
CREATE FUNCTION try(statement text) RETURNS TABLE (state text, message text, detail text, hint text) LANGUAGE plpgsql AS $$
BEGIN
  EXECUTE statement;
  message := 'ok';
  RETURN NEXT;
EXCEPTION WHEN OTHERS THEN
  GET STACKED DIAGNOSTICS state = RETURNED_SQLSTATE, message = MESSAGE_TEXT, detail = PG_EXCEPTION_DETAIL, hint = PG_EXCEPTION_HINT;
  SELECT regexp_replace(message, '\d+', '…', 'g'), regexp_replace(detail, '\d+', '…', 'g'), regexp_replace(hint, '\d+', '…', 'g') INTO message, detail, hint;
  RETURN NEXT;
END $$;

-- ---- one object a message, with everything -----------------------------------------------------------------
SELECT millrace.create_stream('feed');
SELECT millrace.create_staging('orders', stream => 'feed',
  key => '{"order_id": [["$.id", "$key"], "bigint"], "shop": [["$headers.shop", "$.shop"], "text"]}',
  version => '["$.changed", "timestamptz"]', event_time => '["$.date", "timestamptz", "ms"]', max_ahead => '1 hour 30 minutes',
  columns => '{"status": [["$.status", "$.final_status"], "text"], "price": ["$.price", "numeric(12,2)"], "quantity": ["$.items[0].quantity", "integer"],
               "day": ["$.day", "date", "days"], "address": "$.address", "came": ["$timestamp", "timestamptz"], "no": ["$offset", "bigint"], "op": "$.op", "kind": "$.kind"}',
  route => $$ kind = 'order' $$, deleted => $$ op = 'D' $$,
  computed => '{"price": ["abs(raw.price)", "numeric(12,2)"], "total": ["abs(raw.price) * quantity", "numeric(14,2)"]}',
  filter => $$ status <> 'draft' $$, expect => '{"quantity_positive": "quantity > 0", "has_price": "raw.price IS NOT NULL"}',
  payload => 'jsonb', tombstone => 'always', log => true, timezone => 'Asia/Ho_Chi_Minh');
\d orders
\d orders_log
SELECT pg_get_viewdef(format('millrace_def.staging_%s', id)::regclass) FROM millrace.staging WHERE relation = 'orders'::regclass;
CALL send('feed', 1, '{"kind": "order", "id": 1, "shop": "a", "changed": "2026-01-01 07:00", "date": 1767225600500, "status": "open", "price": -2.505, "day": 20454,
                         "items": [{"quantity": 3}], "address": {"city": "Riga",  "zip": [1, 2]}}');
CALL send('feed', 2, '{"kind": "order", "shop": "a", "changed": "2026-01-01 08:00", "final_status": "closed", "price": 1, "items": [{"quantity": 1}], "address": "x\u00e9"}', '2', '{"shop": "b"}');
CALL send('feed', 3, '{"kind": "visit", "id": "not a number"}');
CALL send('feed', 4, '{"kind": "order", "id": 3, "shop": "a", "changed": "2026-01-01 08:00", "status": "draft", "price": 1, "items": [{"quantity": 1}]}');
CALL send('feed', 5, '{"kind": "order", "id": 4, "shop": "a", "changed": "2026-01-01 08:00", "status": "open", "price": 1, "items": [{"quantity": 0}]}');
CALL send('feed', 6, '{"kind": "order", "id": 5, "shop": "a", "changed": "2026-01-01 08:00", "status": "open", "items": [{"quantity": 1}]}');
CALL send('feed', 7, '{"id": 6, "shop": "a", "changed": "2026-01-01 08:00"}');
SELECT * FROM run('feed');
SELECT order_id, shop, status, price, quantity, day, address, came, no > 0 AS numbered, op, kind, total, _version, _event_time, _partition, _position = no AS positioned FROM orders ORDER BY 1;
SELECT payload FROM orders ORDER BY order_id LIMIT 1;
SELECT order_id, _version, status, _rows, _deleted, _message_time FROM orders_log ORDER BY _position;
SELECT kind, staging, element, expectation, sqlstate, message, key, convert_from(value, 'UTF8') AS value FROM millrace.dead_letter ORDER BY position;
-- What an older version says comes too late, an equal one changes nothing; a newer one that is filtered removes the row, and so does one that is deleted.
CALL send('feed', 8, '{"kind": "order", "id": 1, "shop": "a", "changed": "2026-01-01 06:00", "status": "late", "price": 1, "items": [{"quantity": 1}]}');
CALL send('feed', 9, '{"kind": "order", "shop": "a", "changed": "2026-01-01 09:00", "status": "draft", "price": 1, "items": [{"quantity": 1}]}', '2', '{"shop": "b"}');
CALL send('feed', 10, '{"kind": "order", "id": 3, "shop": "a", "changed": "2026-01-01 09:00", "op": "D"}');
CALL send('feed', 11, '{"kind": "order", "id": 3, "shop": "a", "changed": "2026-01-01 08:30", "status": "late", "price": 1, "items": [{"quantity": 1}]}');
SELECT * FROM run('feed');
SELECT order_id, status, _version FROM orders ORDER BY 1;
-- A tombstone needs the whole key; with tombstone => 'always' it removes its object whatever its version, until a newer one comes.
CALL send('feed', 12, NULL, '1', '{"shop": "a"}');
CALL send('feed', 13, NULL, '1');
SELECT * FROM run('feed');
SELECT count(*) FROM orders;
SELECT sqlstate, message FROM millrace.dead_letter ORDER BY position DESC LIMIT 1;
CALL send('feed', 14, '{"kind": "order", "id": 1, "shop": "a", "changed": "2026-01-01 06:30", "status": "late", "price": 1, "items": [{"quantity": 1}]}');
CALL send('feed', 15, '{"kind": "order", "id": 1, "shop": "a", "changed": "2026-01-01 10:00", "status": "back", "price": 1, "items": [{"quantity": 1}]}');
SELECT * FROM run('feed');
SELECT order_id, status, _version FROM orders ORDER BY 1;
SELECT order_id, status, _rows, _deleted FROM orders_log WHERE order_id = 1 ORDER BY _position;
-- A version too far ahead would win for ever.
SELECT millrace.push('feed', json_build_object('kind', 'order', 'id', 7, 'shop', 'a', 'changed', clock_timestamp() + interval '2 hours', 'status', 'open', 'price', 1, 'items', json_build_array(json_build_object('quantity', 1)))) IS NOT NULL AS pushed;
SELECT millrace.push('feed', json_build_object('kind', 'order', 'id', 8, 'shop', 'a', 'changed', clock_timestamp() + interval '1 hour', 'status', 'open', 'price', 1, 'items', json_build_array(json_build_object('quantity', 1)))) IS NOT NULL AS pushed;
SELECT * FROM run('feed');
SELECT order_id FROM orders ORDER BY 1;
SELECT sqlstate, regexp_replace(message, '"?\d.*\d"?', '…') AS message, detail FROM millrace.dead_letter ORDER BY position DESC LIMIT 1;

-- ---- several elements, another staging table of the same stream, @ and @@ ------------------------------------
SELECT millrace.create_stream('baskets');
SELECT millrace.create_staging('lines', stream => 'baskets', for_each => '$.orders[*].items[*]', key => '{"basket": ["$.id", "bigint"]}', version => '["$.v", "integer"]', payload => 'none',
  columns => '{"customer": "$.customer", "order_no": ["@@.no", "integer"], "place": "@@.where.city", "product": "@.product", "quantity": ["@.quantity", "integer"], "either": [["@.note", "@@.note", "$.note"], "text"],
               "whole": "@"}',
  computed => '{"double": ["quantity * 2", "integer"], "quantity": ["coalesce(raw.quantity, 1)", "integer"], "number": ["_element", "integer"]}', filter => $$ product <> 'hidden' $$,
  expect => '{"small": "quantity < 100", "named": "product <> ''''"}');
SELECT millrace.create_staging('baskets', stream => 'baskets', key => '{"basket": [["$.id", "$key"], "bigint"]}', columns => '{"customer": "$.customer", "v": ["$.v", "integer"]}', payload => 'none');
SELECT millrace.create_staging('raw', stream => 'baskets', key => '{"basket": [["$.id", "$key"], "text"]}', tombstone => 'refuse', version => '["$.v", "integer"]');
CALL send('baskets', 1, '{"id": 1, "customer": "c1", "v": 1, "note": "whole", "orders": [{"no": 1, "where": {"city": "Riga"}, "items": [{"product": "p1", "quantity": 2, "note": "mine"}, {"product": "hidden"}]},
  {"no": 2, "note": "order", "items": []}, {"no": 3, "note": "order", "items": [{"product": "p2"}, {"product": "", "quantity": 1}, {"product": "p3", "quantity": 100}, {"product": "p4"}]}]}');
CALL send('baskets', 2, '{"id": 2, "customer": "c2", "v": 1, "orders": []}');
CALL send('baskets', 3, '{"id": 3, "customer": "c3", "v": 1}');
CALL send('baskets', 4, '{"id": 4, "customer": "c4", "v": 1, "orders": {"no": 1, "items": "none"}}');
SELECT * FROM run('baskets');
SELECT basket, _element, customer, order_no, place, product, quantity, either, whole, double, number, _version, _event_time FROM lines ORDER BY basket, _element;
SELECT basket, customer, v, _version = _position AS own_order FROM baskets ORDER BY 1;
SELECT staging, kind, element, expectation, message FROM millrace.dead_letter WHERE stream = 'baskets' ORDER BY 1, 3;
-- A newer version replaces all elements of its object; one without elements leaves none.
CALL send('baskets', 5, '{"id": 1, "customer": "c1", "v": 2, "orders": [{"no": 9, "items": [{"product": "p9"}]}]}');
CALL send('baskets', 6, '{"id": 1, "customer": "late", "v": 1, "orders": [{"no": 9, "items": [{"product": "late"}]}]}');
SELECT * FROM run('baskets');
SELECT basket, _element, order_no, product, _version FROM lines ORDER BY 1, 2;
SELECT basket, customer FROM baskets ORDER BY 1;
SELECT basket, _version, payload FROM raw ORDER BY 1;
CALL send('baskets', 7, '{"id": 1, "customer": "c1", "v": 3, "orders": []}');
CALL send('baskets', 8, NULL, '1');
SELECT * FROM run('baskets');
SELECT count(*) FROM lines;
SELECT basket FROM baskets ORDER BY 1;
SELECT staging, sqlstate, message, detail, hint FROM millrace.dead_letter WHERE stream = 'baskets' AND element IS NULL ORDER BY id;

-- ---- the source's own order: whatever comes later is newer ---------------------------------------------------
SELECT millrace.create_stream('plain');
SELECT millrace.create_staging('plain', stream => 'plain', key => '{"id": ["$key", "integer"]}', columns => '{"a": "$.a"}');
CALL send('plain', 100, '{"a": "first"}', '1');
CALL send('plain', 50, '{"a": "second"}', '1');
CALL send('plain', 100, '{"a": "gone"}', '2');
CALL send('plain', 10, NULL, '2');
CALL send('plain', 10, NULL, '3');
CALL send('plain', 10, '{"a": "after the tombstone"}', '3');
SELECT * FROM run('plain');
SELECT id, a, _version = _position AS own_order, _event_time, payload FROM plain ORDER BY 1;
CALL send('plain', 1, '{"a": "back"}', '2');
CALL send('plain', 1, '{"a": "third"}', '1');
SELECT * FROM run('plain');
SELECT id, a FROM plain ORDER BY 1;

-- ---- adopting a table ----------------------------------------------------------------------------------------
CREATE TABLE adopted (more text DEFAULT 'mine', a text, id integer, _version bigint, _event_time timestamptz, _partition integer, _position bigint, _loaded_at timestamptz);
SELECT millrace.create_staging('adopted', stream => 'plain', key => '{"id": ["$key", "integer"]}', columns => '{"a": "$.a"}', payload => 'none');
ALTER TABLE adopted ADD UNIQUE (id);
SELECT millrace.create_staging('adopted', stream => 'plain', key => '{"id": ["$key", "integer"]}', columns => '{"a": ["$.a", "integer"]}', payload => 'none');
SELECT millrace.create_staging('adopted', stream => 'plain', key => '{"id": ["$key", "integer"]}', columns => '{"a": "$.a"}');
INSERT INTO adopted (id, a) VALUES (1, 'was there'), (9, 'was there');
SELECT millrace.create_staging('adopted', stream => 'plain', key => '{"id": ["$key", "integer"]}', columns => '{"a": "$.a"}', payload => 'none');
CALL send('plain', 1, '{"a": "fourth"}', '1');
CALL send('plain', 1, '{"a": "new"}', '5');
SELECT * FROM run('plain');
SELECT id, a, more FROM adopted ORDER BY 1;
CALL send('plain', 1, '{"a": "replaced"}', '9');
SELECT * FROM run('plain');
SELECT id, a, more FROM adopted ORDER BY 1;
-- With a declared version the rows have the one that they tell.
CREATE TABLE adopted_items (id integer, _element integer, a text, _version integer, _event_time timestamptz, _partition integer, _position bigint, _loaded_at timestamptz, PRIMARY KEY (id, _element));
INSERT INTO adopted_items (id, _element, a, _version) VALUES (1, 1, 'was there', 5), (1, 2, 'was there', 5), (2, 1, 'was there', 5), (3, 1, 'was there', NULL);
SELECT millrace.create_staging('adopted_items', stream => 'plain', for_each => '$.i[*]', key => '{"id": ["$key", "integer"]}', version => '["$.v", "integer"]', columns => '{"a": "@"}', payload => 'none');
CALL send('plain', 1, '{"v": 6, "i": ["new"]}', '1');
CALL send('plain', 1, '{"v": 4, "i": ["late"]}', '2');
CALL send('plain', 1, '{"i": ["same", "new"]}', '3');
SELECT * FROM run('plain');
SELECT id, _element, a, _version FROM adopted_items ORDER BY 1, 2;
SELECT millrace.drop_table('adopted_items');

-- ---- replacing -----------------------------------------------------------------------------------------------
SELECT millrace.create_staging('plain', stream => 'plain', key => '{"id": ["$key", "integer"]}', columns => '{"a": "$.a"}');
SELECT millrace.create_staging('plain', stream => 'plain', key => '{"id": ["$key", "integer"]}', columns => '{"a": "$.a"}', replace => true);
SELECT millrace.create_staging('plain', stream => 'plain', key => '{"id": ["$key", "integer"]}', columns => '{"a": "$.a", "b": ["$.b", "integer"]}', filter => $$ a <> 'hide' $$, log => true, replace => true);
CALL send('plain', 1, '{"a": "fifth", "b": 7}', '1');
CALL send('plain', 1, '{"a": "hide", "b": 7}', '2');
SELECT * FROM run('plain');
SELECT id, a, b FROM plain ORDER BY 1;
SELECT id, a, b, _rows FROM plain_log ORDER BY _position;
-- What cannot change says so.
SELECT millrace.create_staging('plain', stream => 'plain', key => '{"id": ["$key", "bigint"]}', columns => '{"a": "$.a"}', replace => true);
SELECT millrace.create_staging('plain', stream => 'plain', key => '{"id": ["$key", "integer"]}', columns => '{"a": ["$.a", "integer"]}', replace => true);
SELECT millrace.create_staging('plain', stream => 'plain', key => '{"id": ["$key", "integer"]}', version => '["$.v", "bigint"]', columns => '{"a": "$.a"}', replace => true);
SELECT millrace.create_staging('plain', stream => 'plain', key => '{"id": ["$key", "integer"]}', for_each => '$.a[*]', columns => '{"a": "$.a"}', payload => 'none', replace => true);
SELECT millrace.create_staging('plain', stream => 'feed', key => '{"id": ["$key", "integer"]}', columns => '{"a": "$.a"}', replace => true);
-- A column that is not mapped any more stays in the table, and is not written.
SELECT millrace.create_staging('plain', stream => 'plain', key => '{"id": ["$key", "integer"]}', columns => '{"b": ["$.b", "integer"]}', replace => true);
CALL send('plain', 1, '{"a": "not read", "b": 8}', '1');
SELECT * FROM run('plain');
SELECT id, a, b FROM plain ORDER BY 1;

-- ---- renames and drops while the stream lives -----------------------------------------------------------------
ALTER TABLE plain RENAME COLUMN b TO renamed;
ALTER TABLE plain RENAME COLUMN id TO key_renamed;
ALTER TABLE plain RENAME COLUMN _version TO version_renamed;
ALTER TABLE plain RENAME TO renamed;
CREATE SCHEMA elsewhere;
ALTER TABLE renamed SET SCHEMA elsewhere;
CALL send('plain', 1, '{"b": 9}', '1');
CALL send('plain', 1, '{"b": 9}', '4');
SELECT * FROM run('plain');
SELECT key_renamed, renamed FROM elsewhere.renamed ORDER BY 1;
SELECT millrace.create_staging('elsewhere.renamed', stream => 'plain', key => '{"id": ["$key", "integer"]}', columns => '{"b": ["$.b", "integer"]}', replace => true);
SELECT millrace.create_staging('elsewhere.renamed', stream => 'plain', key => '{"id": ["$key", "integer"]}', columns => '{"b": ["$.b", "integer"], "c": "$.c"}', replace => true);
BEGIN;
ALTER TABLE elsewhere.renamed RENAME COLUMN renamed TO b;
ALTER TABLE elsewhere.renamed RENAME COLUMN key_renamed TO id;
ALTER TABLE elsewhere.renamed RENAME COLUMN version_renamed TO _version;
SELECT millrace.create_staging('elsewhere.renamed', stream => 'plain', key => '{"id": ["$key", "integer"]}', columns => '{"b": ["$.b", "integer"], "c": "$.c"}', replace => true);
ALTER TABLE elsewhere.renamed RENAME COLUMN b TO renamed;
ALTER TABLE elsewhere.renamed RENAME COLUMN id TO key_renamed;
COMMIT;
CALL send('plain', 1, '{"b": 9, "c": "x"}', '4');
SELECT * FROM run('plain');
SELECT key_renamed, renamed, c FROM elsewhere.renamed WHERE key_renamed = 4;
-- Columns that came later have the targets of the others; so has what the extension knows of the objects.
SELECT attrelid = 'elsewhere.renamed'::regclass AS is_staging, array_agg(DISTINCT attstattarget) AS targets, count(*) FROM pg_attribute
WHERE attnum > 0 AND NOT attisdropped AND attrelid IN (SELECT unnest(ARRAY[s.relation, to_regclass(format('millrace_state.object_%s', s.id))]) FROM millrace.staging s WHERE s.relation = 'elsewhere.renamed'::regclass)
GROUP BY 1 ORDER BY 1;
-- A column that was there keeps the target that it has.
BEGIN;
ALTER TABLE elsewhere.renamed ADD COLUMN d text, ALTER d SET STATISTICS 100;
SELECT millrace.create_staging('elsewhere.renamed', stream => 'plain', key => '{"key_renamed": ["$key", "integer"]}', columns => '{"renamed": ["$.b", "integer"], "c": "$.c", "d": "$.d"}', replace => true);
SELECT attstattarget FROM pg_attribute WHERE attrelid = 'elsewhere.renamed'::regclass AND attname = 'd';
ROLLBACK;
SET client_min_messages = warning;
SELECT * FROM try('ALTER TABLE elsewhere.renamed DROP COLUMN renamed');
SELECT * FROM try('ALTER TABLE elsewhere.renamed ALTER COLUMN renamed TYPE bigint');
SELECT * FROM try('DROP TABLE elsewhere.renamed');
-- With CASCADE the stream stops at what is gone, until it is declared again.
ALTER TABLE adopted DROP COLUMN a CASCADE;
CALL send('plain', 1, '{"b": 10}', '1');
SELECT * FROM try($$ SELECT * FROM run('plain') $$);
SELECT severity, subject, message, hint FROM millrace.validate('plain') WHERE severity = 'error';
SELECT millrace.create_staging('adopted', stream => 'plain', key => '{"id": ["$key", "integer"]}', columns => '{"a": "$.a"}', payload => 'none', replace => true);
SELECT * FROM run('plain');
SELECT id, a, more FROM adopted ORDER BY 1;
ALTER TABLE adopted DROP COLUMN id CASCADE;
SELECT * FROM try($$ SELECT * FROM run('plain') $$);
SELECT millrace.create_staging('adopted', stream => 'plain', key => '{"id": ["$key", "integer"]}', columns => '{"a": "$.a"}', payload => 'none', replace => true);
SELECT millrace.drop_table('adopted');
SELECT * FROM run('plain');
SELECT key_renamed, renamed FROM elsewhere.renamed ORDER BY 1;
DROP TABLE elsewhere.renamed CASCADE;
CALL send('plain', 1, '{"b": 11}', '1');
SELECT * FROM try($$ SELECT * FROM run('plain') $$);
SELECT severity, subject ~ '^staging \d+$' AS by_number, message, regexp_replace(hint, '\d+', 'n') AS hint FROM millrace.validate('plain') WHERE severity = 'error';
SELECT millrace.drop_table((SELECT relation::oid::text FROM millrace.staging s JOIN millrace.stream f ON f.id = s.stream_id WHERE f.name = 'plain'));
SELECT count(*) FROM millrace.staging s JOIN millrace.stream f ON f.id = s.stream_id WHERE f.name = 'plain';
SELECT * FROM run('plain');
SELECT to_regclass('plain_log');

SET client_min_messages = notice;

-- ---- dropping ------------------------------------------------------------------------------------------------
SELECT millrace.create_mart('by_customer', 'SELECT customer, count(*) AS n FROM st.baskets GROUP BY customer');
SELECT millrace.drop_table('baskets');
SELECT millrace.drop_table('baskets', cascade => true);
SELECT to_regclass('baskets'), to_regclass('by_customer');
SELECT millrace.drop_stream('baskets');
SELECT millrace.drop_stream('baskets', cascade => true);
SELECT relname FROM pg_class WHERE relnamespace IN ('st'::regnamespace, 'elsewhere'::regnamespace) AND relkind IN ('r', 'v') ORDER BY 1;
BEGIN;
SELECT millrace.create_staging('never', stream => 'plain', key => '{"id": "$key"}');
ROLLBACK;
SELECT to_regclass('never'), (SELECT count(*) FROM pg_class WHERE relname ~ '^(object|staging)_\d+$' AND relnamespace::regnamespace::text IN ('millrace_state', 'millrace_def'))
       = 2 * (SELECT count(*) FROM millrace.staging) AS nothing_left;

-- ---- run_stream within a larger transaction --------------------------------------------------------------------
SELECT millrace.create_staging('whole', stream => 'plain', key => '{"id": ["$key", "integer"]}', columns => '{"a": ["$.a", "integer"]}');
BEGIN;
SELECT count(millrace.push('plain', json_build_object('a', i), key => (i % 3)::text)) FROM generate_series(1, 10) i;
SELECT messages, batches, dead_letters FROM millrace.run_stream('plain', max_messages => 4);
SELECT id, a FROM whole ORDER BY 1;
SAVEPOINT s;
SELECT * FROM run('plain');
SELECT id, a FROM whole ORDER BY 1;
ROLLBACK TO s;
SELECT id, a FROM whole ORDER BY 1;
SELECT * FROM run('plain');
SELECT id, a FROM whole ORDER BY 1;
ROLLBACK;
SELECT count(*) FROM whole;
SELECT * FROM run('plain');
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT * FROM run('plain');
ROLLBACK;
BEGIN READ ONLY;
SELECT * FROM run('plain');
ROLLBACK;
SELECT millrace.run_stream('plain', max_messages => -1);
SELECT millrace.run_stream('plian');

-- ---- dead letters: tried again, discarded; streams that skip or stop ---------------------------------------------
SELECT millrace.create_stream('careful');
SELECT millrace.create_staging('careful', stream => 'careful', key => '{"id": ["$.id", "integer"]}', version => '["$.v", "integer"]', columns => '{"n": ["$.n", "smallint"]}',
  expect => '{"positive": "n > 0"}');
SELECT millrace.create_staging('other', stream => 'careful', key => '{"id": ["$.id", "integer"]}', version => '["$.v", "integer"]', columns => '{"n": ["$.n", "bigint"]}');
CALL send('careful', 1, '{"id": 1, "v": 1, "n": 70000}');
CALL send('careful', 2, '{"id": 2, "v": 1, "n": 70000}');
CALL send('careful', 3, '{"id": 3, "v": 1, "n": -1}');
CALL send('careful', 4, '{"id": 4, "v": 1, "n": 1}');
CALL send('careful', 5, '{"id": 5, "v": 1, "n":');
CALL send('careful', 6, '{"id": 2, "v": 2, "n": 2}');
SELECT * FROM run('careful');
SELECT id, n FROM careful ORDER BY 1;
SELECT id, n FROM other ORDER BY 1;
SELECT staging, kind, state, expectation, attempts, sqlstate, message FROM millrace.dead_letter WHERE stream = 'careful' ORDER BY position;
-- Nothing has changed: refused again, except where something newer had come.
SELECT * FROM millrace.retry(ARRAY(SELECT id FROM millrace.dead_letter WHERE stream = 'careful'));
SELECT staging, kind, state, expectation, attempts, sqlstate, message FROM millrace.dead_letter WHERE stream = 'careful' ORDER BY position;
SELECT id, n FROM careful ORDER BY 1;
-- What the new definition takes is taken.
SELECT millrace.create_staging('careful', stream => 'careful', key => '{"id": ["$.id", "integer"]}', version => '["$.v", "integer"]', columns => '{"n": ["$.n", "smallint"]}', replace => true,
  computed => '{"n": ["abs(raw.n)", "smallint"]}', expect => '{"positive": "n > 0"}');
SELECT * FROM millrace.retry(ARRAY(SELECT id FROM millrace.dead_letter WHERE stream = 'careful'));
SELECT id, n FROM careful ORDER BY 1;
SELECT kind, state, attempts, sqlstate, convert_from(value, 'UTF8') AS value FROM millrace.dead_letter WHERE stream = 'careful' ORDER BY position;
SELECT millrace.create_staging('careful', stream => 'careful', key => '{"id": ["$.id", "integer"]}', version => '["$.v", "integer"]', columns => '{"n": ["$.n", "smallint"], "wide": ["$.n", "bigint"]}', replace => true,
  computed => '{"n": ["least(abs(wide), 32767)", "smallint"]}', expect => '{"positive": "n > 0"}');
BEGIN;
SELECT millrace.discard((SELECT id FROM millrace.dead_letter WHERE stream = 'careful' AND kind = 'message'));
SELECT millrace.discard(ARRAY[-1]);
ROLLBACK;
SELECT millrace.discard(ARRAY(SELECT id FROM millrace.dead_letter WHERE stream = 'careful'));
SELECT count(*) FROM millrace.dead_letter WHERE stream = 'careful';
-- Skip: counted, not kept.  Stop: the stream stands before it, nothing of the batch is there.
SELECT millrace.create_stream('careful', on_error => 'skip', replace => true);
CALL send('careful', 7, '{"id": 7, "v": 1, "n": "x"}');
CALL send('careful', 8, '{"id": 8, "v": 1, "n": 8}');
SELECT * FROM run('careful');
SELECT id, n FROM careful WHERE id > 6 ORDER BY 1;
SELECT count(*) FROM millrace.dead_letter WHERE stream = 'careful';
SELECT millrace.create_stream('careful', on_error => 'stop', replace => true);
CALL send('careful', 9, '{"id": 9, "v": 1, "n": 9}');
CALL send('careful', 10, '{"id": 10, "v": 1, "n": "x"}');
\set VERBOSITY terse
SELECT * FROM run('careful');
\set VERBOSITY default
SELECT id, n FROM careful WHERE id > 8 ORDER BY 1;
SELECT millrace.create_stream('careful', on_error => 'dead_letter', replace => true);
SELECT * FROM run('careful');
SELECT id, n FROM careful WHERE id > 8 ORDER BY 1;

-- The same version again changes nothing, but under a newer definition it is applied again.
CALL send('careful', 40, '{"id": 40, "v": 1, "n": 4}');
CALL send('careful', 41, '{"id": 40, "v": 1, "n": 4}');
SELECT * FROM run('careful');
SELECT id, n, _position = (SELECT min(_position) FROM other WHERE id = 40) AS first_one FROM careful WHERE id = 40;
SELECT millrace.create_staging('careful', stream => 'careful', key => '{"id": ["$.id", "integer"]}', version => '["$.v", "integer"]', columns => '{"n": ["$.n", "smallint"], "wide": ["$.n", "bigint"]}', replace => true,
  computed => '{"n": ["least(abs(wide) * 10, 32767)", "smallint"]}', expect => '{"positive": "n > 0"}');
CALL send('careful', 42, '{"id": 40, "v": 0, "n": 5}');
CALL send('careful', 43, '{"id": 40, "v": 1, "n": 4}');
SELECT * FROM run('careful');
SELECT id, n FROM careful WHERE id = 40;
SET client_min_messages = warning;
SELECT millrace.create_staging('careful', stream => 'careful', key => '{"id": ["$.id", "integer"]}', version => '["$.v", "integer"]', columns => '{"n": ["$.n", "smallint"], "wide": ["$.n", "bigint"]}', replace => true,
  computed => '{"n": ["least(abs(wide), 32767)", "smallint"]}', expect => '{"positive": "n > 0"}');
SET client_min_messages = notice;

-- ---- what the table itself refuses -------------------------------------------------------------------------------
ALTER TABLE careful ADD CHECK (n <> 13), ADD UNIQUE (wide);
SELECT count(millrace.push('careful', json_build_object('id', i, 'v', 1, 'n', CASE i WHEN 25 THEN 13 WHEN 28 THEN 22 WHEN 29 THEN 8 ELSE i END))) FROM generate_series(20, 30) i;
SELECT * FROM run('careful');
SELECT id, n FROM careful WHERE id >= 20 ORDER BY 1;
SELECT id, n FROM other WHERE id >= 20 ORDER BY 1;
SELECT staging, kind, sqlstate, message FROM millrace.dead_letter WHERE stream = 'careful' AND sqlstate LIKE '23%' ORDER BY position;
UPDATE careful SET wide = -8 WHERE id = 8;
SELECT * FROM millrace.retry(ARRAY(SELECT id FROM millrace.dead_letter WHERE stream = 'careful' AND sqlstate LIKE '23%'));
SELECT id, n FROM careful WHERE id >= 20 ORDER BY 1;

SET client_min_messages = error;
SELECT millrace.drop_stream(name, cascade => true) FROM millrace.stream WHERE name IN ('feed', 'plain', 'careful');
DROP SCHEMA st CASCADE;
DROP SCHEMA elsewhere CASCADE;

-- The log takes what a renamed column holds, and gives it to what is filled from it.
SELECT millrace.create_stream('renamed');
SELECT millrace.create_staging('renamed', stream => 'renamed', key => '{"id": ["$.id", "integer"]}', columns => '{"v": "$.v"}', log => true);
ALTER TABLE renamed RENAME COLUMN v TO w;
SELECT millrace.push('renamed', '{"id": 1, "v": "x"}') > 0 AS pushed;
SELECT messages FROM millrace.run_stream('renamed');
SELECT id, v FROM renamed_log;
SELECT millrace.create_hub('h_renamed', source => 'renamed', business_key => '{w}');
SELECT messages FROM millrace.run_stream('renamed');
SELECT w FROM h_renamed WHERE w IS NOT NULL;
-- What PostgreSQL lets one do with it is found out before anything is written or read.
ALTER TABLE renamed_log ALTER COLUMN id TYPE text;
SELECT millrace.push('renamed', '{"id": 2, "v": "y"}') > 0 AS pushed;
SELECT messages FROM millrace.run_stream('renamed');
ALTER TABLE renamed_log ALTER COLUMN id TYPE integer USING id::integer, ALTER COLUMN _partition TYPE text;
SELECT messages FROM millrace.run_stream('renamed');
\set VERBOSITY terse
SELECT message_partition FROM millrace.trace('renamed', '{"id": 1}');
\set VERBOSITY default
ALTER TABLE renamed_log ALTER COLUMN _partition TYPE integer USING _partition::integer;
SELECT messages FROM millrace.run_stream('renamed');
SELECT id, v FROM renamed_log ORDER BY id;
SELECT millrace.drop_stream('renamed', cascade => true);

-- A payload as jsonb is what PostgreSQL makes of the message.
SELECT millrace.create_stream('whole');
SELECT millrace.create_staging('whole', stream => 'whole', payload => 'jsonb', key => '{"id": ["$key", "integer"]}', columns => '{"v": "$.v"}');
CREATE TEMP TABLE said AS SELECT row_number() OVER () AS id, said FROM unnest(ARRAY[
  '{}', '[]', ' [ ] ', '1', '-0', '"text"', 'null', 'true', '{"v": 1, "v": {"deep": [1, [2, {"three": 3.10}]]}}', '[1, "two", null, false, {"v": []}]',
  '{"v": "a\"b\\c\/d\b\n\u00e9\ud83d\ude00"}', '{"n\u0061me": 1, "name": 2}', '{"v": 1e400}', '{"skipped": {"a": [{}, [], "x", 1.50, 0.000001]}, "v": "kept"}',
  '{"v": [1.0E+3, 12345678901234567890.12345678901234567890]}', '{"b": 1, "aa": 2, "a": 3}', '{"v": "žluťoučký кот"}',
  '{"v": ' || repeat('[', 900) || repeat(']', 900) || '}', '{"v": ' || repeat('9', 3000) || '}']) AS said;
SELECT count(millrace.push('whole', said, key => id::text)) FROM said;
SELECT messages, dead_letters FROM millrace.run_stream('whole');
SELECT count(*) AS rows, count(*) FILTER (WHERE payload::text = said::jsonb::text) AS equal FROM said JOIN whole USING (id);
SELECT millrace.push('whole', '{"v": 1e999999}', key => '1') > 0 AS pushed;
SELECT messages, dead_letters FROM millrace.run_stream('whole');
SELECT staging, sqlstate, message FROM millrace.dead_letter WHERE stream = 'whole';
SELECT millrace.drop_stream('whole', cascade => true);

-- What unconditional deletes leave does not depend on where batches end: all orders of five states and deletes, one by one, and all but the first at once.
SELECT millrace.create_stream(s), millrace.create_staging(s, stream => s, tombstone => 'always', payload => 'none', key => '{"id": ["$key", "integer"]}', version => '["$.v", "integer"]')
FROM unnest('{at_once, one_by_one}'::text[]) s;
CREATE TEMP TABLE told AS SELECT step, object, object / power(4, step)::integer % 4 AS v FROM generate_series(0, 4) step, generate_series(0, 1023) object;
DO $$
DECLARE
  s integer;
BEGIN
  FOR s IN 0..4 LOOP
    PERFORM millrace.push(stream, CASE WHEN v > 0 THEN json_build_object('v', v)::text END, key => object::text) FROM told, unnest('{at_once, one_by_one}'::text[]) stream WHERE step = s ORDER BY object;
    PERFORM millrace.run_stream(stream) FROM unnest('{one_by_one, at_once}'::text[]) stream WHERE stream = 'one_by_one' OR s = 0;
  END LOOP;
END $$;
SELECT messages, batches FROM millrace.run_stream('at_once');
SELECT count(a.id) AS left, count(*) FILTER (WHERE a IS NULL OR b IS NULL OR a._version <> b._version) AS differ FROM at_once a FULL JOIN one_by_one b USING (id);
SELECT millrace.drop_stream(s, cascade => true) FROM unnest('{at_once, one_by_one}'::text[]) s;
