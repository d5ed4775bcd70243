-- Marts: what can be maintained, what is refused and where, how they live.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS millrace;
\set VERBOSITY default
\set SHOW_CONTEXT never
SET client_min_messages = notice;
CREATE SCHEMA mstg;
CREATE SCHEMA mcdm;
SET search_path = mcdm, public;

SELECT millrace.create_stream('mart_feed');
SELECT millrace.create_staging('mstg.orders', stream => 'mart_feed', timezone => 'Asia/Ho_Chi_Minh',
  key => '{"id": ["$key", "bigint"]}',
  columns => '{"customer_id": "$.customer", "product_name": "$.product", "status": "$.status",
               "order_date": ["$.date", "timestamptz"], "quantity": ["$.quantity", "integer"],
               "total": ["$.total", "numeric(14,2)"], "weight": ["$.weight", "double precision"], "tags": ["$.tags", "json"]}');
SELECT millrace.create_staging('mstg.items', stream => 'mart_feed', for_each => '$.items[*]',
  key => '{"id": ["$key", "bigint"]}', columns => '{"product": "@.product", "quantity": ["@.quantity", "integer"]}');
CREATE TABLE mstg.other (id bigint, product_name text);
CREATE FUNCTION mstg.add_noise(bigint, integer) RETURNS bigint LANGUAGE sql VOLATILE AS 'SELECT coalesce($1, 0) + $2';
CREATE AGGREGATE mstg.noisy(integer) (SFUNC = mstg.add_noise, STYPE = bigint);

-- What no mart has, with the reason and the place.
SELECT millrace.create_mart('x', 'SELECT status, row_number() OVER (ORDER BY status) AS r FROM mstg.orders GROUP BY status');
SELECT millrace.create_mart('x', 'SELECT status, count(*) AS n FROM mstg.orders WHERE id IN (SELECT id FROM mstg.other) GROUP BY status');
SELECT millrace.create_mart('x', 'SELECT status, (SELECT 1) AS one FROM mstg.orders GROUP BY status');
SELECT millrace.create_mart('x', 'SELECT o.status, count(*) AS n FROM (SELECT * FROM mstg.orders) o GROUP BY o.status');
SELECT millrace.create_mart('x', 'SELECT DISTINCT ON (status) status, count(*) AS n FROM mstg.orders GROUP BY status');
SELECT millrace.create_mart('x', 'SELECT DISTINCT status, count(*) AS n FROM mstg.orders GROUP BY status');
SELECT millrace.create_mart('x', 'SELECT status, count(*) AS n FROM mstg.orders GROUP BY status LIMIT 3');
SELECT millrace.create_mart('x', 'SELECT status, count(*) AS n FROM mstg.orders GROUP BY status ORDER BY n');
SELECT millrace.create_mart('x', 'SELECT count(*) AS n FROM mstg.orders UNION ALL SELECT count(*) FROM mstg.orders');
SELECT millrace.create_mart('x', 'WITH o AS (SELECT * FROM mstg.orders) SELECT count(*) AS n FROM o');
SELECT millrace.create_mart('x', 'SELECT status, count(*) AS n FROM mstg.orders GROUP BY ROLLUP (status)');
SELECT millrace.create_mart('x', 'SELECT status, generate_series(1, 2) AS g FROM mstg.orders GROUP BY status');
SELECT millrace.create_mart('x', 'SELECT id, status FROM mstg.orders');
SELECT millrace.create_mart('x', 'SELECT 1 AS one; DROP TABLE mstg.other');
SELECT millrace.create_mart('x', 'DELETE FROM mstg.orders');
SELECT millrace.create_mart('x', 'SELECT nothing FROM mstg.orders GROUP BY 1');
SELECT millrace.create_mart('x', 'SELECT count(*), count(status) FROM mstg.orders');
SELECT millrace.create_mart('x', 'SELECT count(*) + 1 FROM mstg.orders');
-- Tables.
SELECT millrace.create_mart('x', 'SELECT count(*) AS n FROM mstg.other');
SELECT millrace.create_mart('x', 'SELECT status, count(*) AS n FROM mstg.orders, mstg.other GROUP BY status');
SELECT millrace.create_mart('x', 'SELECT count(*) AS n FROM mstg.orders JOIN mstg.other USING (id)');
SELECT millrace.create_mart('x', 'SELECT count(*) AS n FROM mstg.orders JOIN mstg.items USING (id)');
SELECT millrace.create_mart('x', 'SELECT count(*) AS n FROM generate_series(1, 3)');
-- Time and chance.
SELECT millrace.create_mart('x', 'SELECT status, count(*) AS n FROM mstg.orders WHERE order_date > now() - interval ''1 day'' GROUP BY status');
SELECT millrace.create_mart('x', 'SELECT status, count(*) FILTER (WHERE order_date::date = CURRENT_DATE) AS n FROM mstg.orders GROUP BY status');
SELECT millrace.create_mart('x', 'SELECT age(order_date) AS age, count(*) AS n FROM mstg.orders GROUP BY 1');
SELECT millrace.create_mart('x', 'SELECT status, sum(quantity * random()::integer) AS n FROM mstg.orders GROUP BY status');
SELECT millrace.create_mart('x', 'SELECT status, to_char(count(*), ''999'') AS n FROM mstg.orders GROUP BY status');
CREATE FUNCTION mstg.looked_up(text) RETURNS text STABLE LANGUAGE sql AS 'SELECT $1';
SELECT millrace.create_mart('x', 'SELECT mstg.looked_up(status) AS s, count(*) AS n FROM mstg.orders GROUP BY 1');
-- Aggregates.
SELECT millrace.create_mart('x', 'SELECT status, json_agg(tags) AS t FROM mstg.orders GROUP BY status');
SELECT millrace.create_mart('x', 'SELECT status, rank(5) WITHIN GROUP (ORDER BY quantity) AS r FROM mstg.orders GROUP BY status');
SELECT millrace.create_mart('x', 'SELECT status, percentile_cont(quantity / 100.0) WITHIN GROUP (ORDER BY weight) AS p FROM mstg.orders GROUP BY status, quantity');
SELECT millrace.create_mart('x', 'SELECT status, count(DISTINCT (status, product_name)) AS p FROM mstg.orders GROUP BY status');
SELECT millrace.create_mart('x', 'SELECT quantity::bit(4) AS q, max(total) AS t FROM mstg.orders GROUP BY 1');
SELECT millrace.create_mart('x', 'SELECT status, mstg.noisy(quantity) AS q FROM mstg.orders GROUP BY status');
SELECT millrace.create_mart('x', 'SELECT status, millrace.latest(tags, order_date) AS t FROM mstg.orders GROUP BY status');
SELECT millrace.create_mart('x', 'SELECT ctid::text AS place, count(*) AS n FROM mstg.orders GROUP BY 1');
SELECT millrace.create_mart('x', 'SELECT orders, count(*) AS n FROM mstg.orders GROUP BY orders');
-- Arguments.
SELECT millrace.create_mart('x', 'SELECT count(*) AS n FROM mstg.orders', stripes => 0);
SELECT millrace.create_mart('x', 'SELECT status, count(*) AS n FROM mstg.orders GROUP BY status', stripes => 4, order_by => 'n');
SELECT millrace.create_mart('x', 'SELECT max(total)::numeric(14,2) AS most FROM mstg.orders', stripes => 4);
SELECT millrace.create_mart('x', 'SELECT quantity::bit(4) AS q, count(*) AS n FROM mstg.orders GROUP BY 1', stripes => 4);
SELECT millrace.create_mart('x', 'SELECT status, count(*) AS n FROM mstg.orders GROUP BY status', order_by => 'm');
SELECT millrace.create_mart('x', 'SELECT status, count(*) AS n FROM mstg.orders GROUP BY status', order_by => 'n; DROP TABLE mstg.other');
SELECT millrace.create_mart('x', 'SELECT status, count(*) AS n FROM mstg.orders GROUP BY status', order_by => 'n + 1');
SELECT millrace.create_mart('mstg.other', 'SELECT count(*) AS n FROM mstg.orders');
SELECT millrace.create_mart(NULL, 'SELECT 1');
SELECT count(*) FROM millrace.target WHERE kind = 'mart';
SELECT relname FROM pg_class WHERE relname LIKE 'mart\_%' AND relnamespace::regnamespace::text LIKE 'millrace%';

-- Numbers that Trino does not see.
BEGIN;
SELECT millrace.create_mart('x', 'SELECT status, sum(total) AS total, avg(quantity) AS q, sum(total)::numeric(18,2) AS cast_total FROM mstg.orders GROUP BY status');
ROLLBACK;

-- The marts of the shop.
SELECT millrace.create_mart('daily_summary', $$
  SELECT order_date::date AS date, count(*) AS total_orders, sum(total)::numeric(18,2) AS total_revenue, (sum(total) / count(*))::numeric(14,2) AS avg_order_value,
         count(DISTINCT customer_id) AS unique_customers, count(DISTINCT product_name) AS unique_products
  FROM mstg.orders GROUP BY 1 $$);
SELECT millrace.create_mart('product_day', $$
  SELECT order_date::date AS date, product_name, count(*) AS order_count, sum(quantity) AS quantity_sold, sum(total)::numeric(18,2) AS revenue
  FROM mstg.orders GROUP BY 1, 2 $$, order_by => 'date, revenue DESC');
SELECT millrace.create_mart('everything', 'SELECT count(*) AS n, sum(quantity) AS q FROM mstg.orders');
\d product_day
SELECT pg_get_indexdef(indexrelid) LIKE '%DESC%' AS descending FROM pg_index
WHERE NOT indisunique AND indrelid IN (SELECT ('millrace_state.mart_' || id)::regclass FROM millrace.target WHERE relation = 'product_day'::regclass);
SELECT * FROM everything;
SELECT * FROM millrace.verify('daily_summary');

SELECT count(millrace.push('mart_feed', json_build_object('customer', 'c' || i % 3, 'product', 'p' || i % 2, 'status', 'open', 'date', '2026-01-05 16:30+00'::timestamptz + i * interval '10 min',
    'quantity', i, 'total', i * 1.5)::text, key => i::text)) FROM generate_series(1, 6) AS i;
SELECT messages, dead_letters FROM millrace.run_stream('mart_feed');
SELECT * FROM daily_summary ORDER BY 1;
SELECT * FROM product_day ORDER BY 1, 2;
SELECT * FROM everything;
-- Updates and deletes; groups that reach zero disappear, the one of all rows stays.
SELECT millrace.push('mart_feed', '{"customer": "c1", "product": "p9", "status": "open", "date": "2026-01-06 00:00+00", "quantity": 10}', key => '1') IS NOT NULL AS pushed;
SELECT millrace.push('mart_feed', NULL, key => '6') IS NOT NULL AS pushed;
SELECT messages, dead_letters FROM millrace.run_stream('mart_feed');
SELECT * FROM daily_summary ORDER BY 1;
SELECT * FROM product_day ORDER BY 1, 2;
SELECT * FROM everything;
SELECT count(millrace.push('mart_feed', NULL, key => i::text)) FROM generate_series(1, 4) AS i;
SELECT messages, dead_letters FROM millrace.run_stream('mart_feed');
SELECT * FROM daily_summary;
SELECT * FROM product_day;
SELECT * FROM everything;
SELECT v.* FROM (VALUES ('daily_summary'), ('product_day'), ('everything')) AS m (name), millrace.verify(m.name::regclass) AS v;

-- Over a filled staging table a mart starts complete.
SELECT millrace.create_mart('late', 'SELECT status, count(*) AS n FROM mstg.orders GROUP BY status');
SELECT * FROM late;
SELECT millrace.run_stream('mart_feed');
SELECT * FROM late;

-- What somebody did to the state is found, and mended.
DO $$ BEGIN EXECUTE (SELECT format('UPDATE millrace_state.mart_%s SET n = n + 5', id) FROM millrace.target WHERE relation = 'late'::regclass); END $$;
SELECT * FROM millrace.verify('late');
SELECT * FROM millrace.rebuild('late');
SELECT * FROM millrace.verify('late');
SELECT * FROM millrace.verify('mstg.other');
SELECT * FROM millrace.rebuild('mstg.other');

-- Replacing.
SELECT millrace.create_mart('late', 'SELECT status, count(*) AS n FROM mstg.orders GROUP BY status');
SELECT definition_no FROM millrace.target WHERE relation = 'late'::regclass;
SELECT millrace.create_mart('late', 'select  status, count( * ) as n from mstg.orders group by 1', replace => true);
SELECT definition_no FROM millrace.target WHERE relation = 'late'::regclass;
CREATE VIEW over_late AS SELECT status FROM late;
GRANT SELECT ON late TO PUBLIC;
COMMENT ON VIEW late IS 'by status';
SELECT millrace.create_mart('late', 'SELECT status, count(*) AS n, sum(quantity) AS q FROM mstg.orders GROUP BY status', replace => true);
SELECT * FROM late;
SELECT * FROM over_late;
SELECT millrace.create_mart('late', 'SELECT count(*) AS n, status FROM mstg.orders GROUP BY status', replace => true);
DROP VIEW over_late;
SELECT millrace.create_mart('late', 'SELECT product_name, count(*) AS n, count(DISTINCT status) AS s FROM mstg.orders GROUP BY product_name', replace => true);
SELECT millrace.create_staging('mstg.items', stream => 'mart_feed', for_each => '$.items[*]', timezone => 'Europe/Berlin',
  key => '{"id": ["$key", "bigint"]}', columns => '{"product": "@.product", "quantity": ["@.quantity", "integer"]}', replace => true);
SELECT millrace.create_staging('mstg.orders', stream => 'mart_feed', timezone => 'Europe/Berlin', replace => true,
  key => '{"id": ["$key", "bigint"]}',
  columns => '{"customer_id": "$.customer", "product_name": "$.product", "status": "$.status",
               "order_date": ["$.date", "timestamptz"], "quantity": ["$.quantity", "integer"],
               "total": ["$.total", "numeric(14,2)"], "weight": ["$.weight", "double precision"], "tags": ["$.tags", "json"]}');
SELECT * FROM late;
SELECT relacl::text LIKE '%=r/%' AS granted, obj_description(oid) FROM pg_class WHERE oid = 'late'::regclass;
SELECT definition_no FROM millrace.target WHERE relation = 'late'::regclass;
SELECT millrace.push('mart_feed', '{"product": "p5", "status": "new"}', key => '5') IS NOT NULL AS pushed;
SELECT messages, dead_letters FROM millrace.run_stream('mart_feed');
SELECT * FROM late;
SELECT * FROM millrace.verify('late');

-- Joins to what is current in the vault: made when the mart is read, by what it is grouped by.
SELECT millrace.create_hub('h_product', source => 'mstg.orders', business_key => '{product_name}');
SELECT millrace.create_satellite('s_product', source => 'mstg.orders', parent => 'h_product', attributes => '{status}');
SELECT millrace.create_mart('by_product', $$
  SELECT o.product_name, millrace.hash_key('mcdm.h_product', o.product_name) IS NOT NULL AS has_key, upper(p.status) AS status, count(DISTINCT o.id) AS orders
  FROM mstg.orders o LEFT JOIN s_product_current p USING (product_name) GROUP BY o.product_name, upper(p.status) $$);
SELECT millrace.create_mart('x', 'SELECT customer_id, count(*) AS n FROM mstg.orders LEFT JOIN s_product_current p USING (product_name) WHERE p.status = ''new'' GROUP BY 1');
SELECT millrace.create_mart('x', 'SELECT p.status, count(*) AS n FROM mstg.orders LEFT JOIN s_product_current p USING (product_name) GROUP BY 1');
SELECT millrace.create_mart('x', 'SELECT customer_id, count(*) AS n FROM mstg.orders o JOIN s_product_current p ON p.product_name = o.product_name GROUP BY 1');
SELECT millrace.create_mart('x', 'SELECT customer_id || p.status AS cs, count(*) AS n FROM mstg.orders LEFT JOIN s_product_current p USING (product_name) GROUP BY 1, product_name');
SELECT millrace.create_mart('x', 'SELECT product_name, count(p.status) AS n FROM mstg.orders LEFT JOIN s_product_current p USING (product_name) GROUP BY 1');
SELECT millrace.create_mart('x', 'SELECT o.status, count(*) AS n FROM mstg.orders o LEFT JOIN s_product_current p ON p.status = o.status GROUP BY 1');
SELECT millrace.create_mart('x', 'SELECT product_name, count(*) AS n FROM s_product_current LEFT JOIN mstg.orders o USING (product_name) GROUP BY 1');
SELECT millrace.create_mart('x', 'SELECT product_name, p.status, count(*) AS n FROM mstg.orders LEFT JOIN s_product_current p USING (product_name) GROUP BY 1, 2', order_by => 'status');
SELECT millrace.push('mart_feed', '{"product": "p6", "status": "new"}', key => '60') IS NOT NULL AS pushed;
SELECT messages, dead_letters FROM millrace.run_stream('mart_feed');
SELECT * FROM by_product WHERE product_name = 'p6';
SELECT millrace.push('mart_feed', '{"product": "p6", "status": "old"}', key => '60') IS NOT NULL AS pushed;
ALTER TABLE mstg.orders RENAME COLUMN product_name TO product;
SELECT messages, dead_letters FROM millrace.run_stream('mart_feed');
SELECT * FROM by_product WHERE product_name = 'p6';
SELECT * FROM millrace.verify('by_product');
\set VERBOSITY terse
ALTER TABLE mstg.orders DROP COLUMN status;
ALTER TABLE mstg.orders ALTER COLUMN product TYPE varchar(5);
\set VERBOSITY default
SELECT millrace.drop_table('s_product');

-- An error in a mart's expression is one of its configuration.
SELECT millrace.create_mart('fragile', 'SELECT 1 / quantity AS q, count(*) AS n FROM mstg.orders GROUP BY 1');
SELECT millrace.push('mart_feed', '{"quantity": 0}', key => '50') IS NOT NULL AS pushed;
SELECT millrace.run_stream('mart_feed');
SELECT millrace.drop_table('fragile');
SELECT messages, dead_letters FROM millrace.run_stream('mart_feed');

-- Owners and readers.
CREATE ROLE mart_owner LOGIN;
CREATE ROLE mart_reader;
GRANT millrace_admin TO mart_owner;
GRANT CREATE, USAGE ON SCHEMA mcdm TO mart_owner;
GRANT USAGE ON SCHEMA mcdm TO mart_reader;
SET ROLE mart_owner;
SELECT millrace.create_mart('mine', 'SELECT status, count(*) AS n FROM mstg.orders GROUP BY status');
RESET ROLE;
GRANT USAGE ON SCHEMA mstg TO mart_owner;
SET ROLE mart_owner;
SELECT millrace.create_mart('mine', 'SELECT status, count(*) AS n FROM mstg.orders GROUP BY status');
RESET ROLE;
GRANT SELECT (status) ON mstg.orders TO mart_owner;
SET ROLE mart_owner;
SELECT millrace.create_mart('mine', 'SELECT status, count(*) AS n FROM mstg.orders GROUP BY status');
GRANT SELECT ON mine TO mart_reader;
RESET ROLE;
SELECT messages, dead_letters FROM millrace.run_stream('mart_feed');
SELECT pg_get_userbyid(relowner) FROM pg_class WHERE oid = 'mine'::regclass;
SET ROLE mart_reader;
SELECT * FROM mine ORDER BY 1;
RESET ROLE;
SET ROLE mart_owner;
SELECT * FROM millrace.verify('mine');
SELECT * FROM millrace.rebuild('mine');
SELECT millrace.rebuild('late');
SELECT millrace.create_mart('late', 'SELECT count(*) AS n FROM mstg.orders', replace => true);
RESET ROLE;
REVOKE SELECT (status) ON mstg.orders FROM mart_owner;
SELECT millrace.push('mart_feed', '{"status": "x"}', key => '51') IS NOT NULL AS pushed;
SELECT millrace.run_stream('mart_feed');

-- Dropping.
SELECT millrace.drop_table('mine');
SELECT messages, dead_letters FROM millrace.run_stream('mart_feed');
SELECT millrace.drop_table('h_product', cascade => true);
SELECT millrace.drop_table(relation::text) FROM millrace.target WHERE kind = 'mart' ORDER BY id;
SELECT relname FROM pg_class WHERE relname LIKE 'mart\_%' AND relnamespace::regnamespace::text LIKE 'millrace%';
DROP OWNED BY mart_owner, mart_reader;
DROP ROLE mart_owner, mart_reader;

-- Technical columns count when a mart reads them; columns that others fill cannot be read.
SET timezone = 'UTC';
SELECT millrace.create_stream('times');
SELECT millrace.create_staging('mstg.seen', stream => 'times', key => '{"id": ["$.id", "integer"]}', columns => '{"a": "$.a"}', event_time => '["$.at", "timestamptz"]');
SELECT millrace.create_mart('by_time', 'SELECT (_event_time AT TIME ZONE ''UTC'')::date AS day, count(*) AS n FROM mstg.seen GROUP BY 1');
SELECT millrace.push('times', '{"id": 1, "a": "x", "at": "2026-01-01"}') > 0 AS pushed;
SELECT messages FROM millrace.run_stream('times');
SELECT millrace.push('times', '{"id": 1, "a": "x", "at": "2026-01-02"}') > 0 AS pushed;
SELECT messages FROM millrace.run_stream('times');
SELECT day = date '2026-01-02' AS second, n FROM by_time;
SELECT missing, unexpected FROM millrace.verify('by_time');
ALTER TABLE mstg.seen ADD COLUMN mine integer DEFAULT 5;
SELECT millrace.create_mart('by_mine', 'SELECT mine, count(*) AS n FROM mstg.seen GROUP BY mine');
SELECT millrace.create_mart('by_place', 'SELECT ctid::text AS place, count(*) AS n FROM mstg.seen GROUP BY 1');
SELECT millrace.create_mart('by_row', 'SELECT count(s) AS n FROM mstg.seen AS s');
SELECT millrace.drop_table('by_time');
-- A state that somebody has put a trigger on is not changed directly: with stripes it is not changed at all.
SELECT millrace.create_mart('by_a', 'SELECT a, count(*) AS n FROM mstg.seen GROUP BY a', stripes => 2);
SELECT id AS mart FROM millrace.target WHERE relation = 'by_a'::regclass \gset
CREATE TRIGGER others BEFORE UPDATE ON millrace_state.mart_:mart FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger();
SELECT millrace.push('times', '{"id": 2, "a": "x", "at": "2026-01-02"}') > 0 AS pushed;
SELECT messages FROM millrace.run_stream('times');
DROP TRIGGER others ON millrace_state.mart_:mart;
SELECT messages FROM millrace.run_stream('times');
SELECT * FROM by_a;
SELECT millrace.drop_table('by_a');
-- A mart without groups has a row of nothing, too, whatever stripe a session writes: other sessions have others.
SELECT millrace.create_mart('whole', 'SELECT count(*) AS n FROM mstg.seen WHERE a = ''w''', stripes => 2);
CREATE FUNCTION mcdm.come_and_go() RETURNS bigint LANGUAGE plpgsql AS $$
BEGIN
    PERFORM millrace.push('times', '{"id": 3, "a": "w", "at": "2026-01-02"}'), millrace.run_stream('times');
    PERFORM millrace.push('times', '{"id": 3, "a": "v", "at": "2026-01-02"}'), millrace.run_stream('times');
    RETURN (SELECT n FROM mcdm.whole);
END
$$;
SELECT mcdm.come_and_go();
\c -
SELECT mcdm.come_and_go();
\c -
SELECT mcdm.come_and_go();
\c -
SELECT mcdm.come_and_go();
SELECT missing, unexpected FROM millrace.verify('mcdm.whole');
SELECT millrace.drop_table('mcdm.whole');
-- A value that is too long for an index of a mart is that of a message, the others go on.
SELECT millrace.create_mart('mcdm.longest', 'SELECT id % 2 AS half, max(a) AS longest, count(*) AS n FROM mstg.seen WHERE id >= 10 GROUP BY id % 2');
SELECT millrace.create_mart('mcdm.names', 'SELECT a, count(*) AS n FROM mstg.seen WHERE id >= 10 GROUP BY a');
SELECT count(millrace.push('times', json_build_object('id', i, 'a', CASE i WHEN 11 THEN (SELECT string_agg(md5(n::text), '') FROM generate_series(1, 200) n) ELSE 'a' || i END, 'at', '2026-01-02')))
FROM generate_series(10, 14) i;
SELECT messages, dead_letters FROM millrace.run_stream('times');
SELECT staging, kind, sqlstate, regexp_replace(message, '\d+', 'N', 'g') AS message FROM millrace.dead_letter WHERE stream = 'times';
SELECT * FROM mcdm.longest ORDER BY half;
SELECT a FROM mcdm.names ORDER BY a;
SELECT relation, missing, unexpected FROM unnest('{mcdm.longest, mcdm.names}'::regclass[]) AS m, millrace.verify(m);
SELECT * FROM millrace.retry(filter => $$ stream = 'times' $$);
SELECT millrace.drop_table('mcdm.longest'), millrace.drop_table('mcdm.names');
SELECT * FROM millrace.retry(filter => $$ stream = 'times' $$);
-- An error that is raised again outlives the batch, large as it may be, in which it was kept.
SELECT millrace.create_stream('large');
SELECT millrace.create_staging('mstg.large', stream => 'large', key => '{"id": ["$key", "bigint"]}', columns => '{"x": ["$.x", "integer"]}');
SELECT millrace.create_mart('mcdm.parts', 'SELECT 1000 / x AS part, count(*) AS n FROM mstg.large GROUP BY 1000 / x');
SELECT count(millrace.push('large', json_build_object('x', i % 20000)::text, key => i::text)) FROM generate_series(1, 20000) i;
SELECT * FROM millrace.run_stream('large');
SELECT millrace.drop_table('mcdm.parts');
SELECT * FROM millrace.run_stream('large');
