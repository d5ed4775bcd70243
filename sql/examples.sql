-- The examples run, and their tables are what a plain query makes of the same messages, in whatever order these come.
\set VERBOSITY terse
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS millrace;
SET timezone = 'UTC';
\pset tuples_only on
\pset format unaligned

\set ECHO none
\o /dev/null
\i examples/shop/shop.sql
\i examples/shop/generate.sql
\i examples/users/users.sql
\i examples/users/generate.sql
\o
\set ON_ERROR_STOP off
\set ECHO all

-- shuffled, some of them twice, in several batches; among them five of one customer within a minute
CREATE TEMP TABLE message AS SELECT row_number() OVER () AS n, m FROM (SELECT m FROM pg_temp.shop_messages(3000) AS m
  UNION ALL SELECT json_build_object('order_id', 'RAPID' || n, 'customer_id', 'CUST0007', 'product_id', 'PROD007', 'category', 'Toys', 'product_name', 'Toys 7', 'price', 10, 'quantity', 1, 'total', 10,
       'status', 'completed', 'region', 'East', 'order_date', now() + n * interval '10 s', 'updated_at', now()) FROM generate_series(1, 5) AS n) AS u;
SELECT count(millrace.push('shop', m, key => m ->> 'order_id')) > 3000 FROM (SELECT * FROM message ORDER BY md5(n::text)) AS x WHERE n % 2 = 0;
SELECT messages > 1000, dead_letters > 0 FROM millrace.run_stream('shop');
SELECT count(millrace.push('shop', m, key => m ->> 'order_id')) > 3000 FROM (SELECT * FROM message ORDER BY md5(n::text)) AS x;
SELECT a.messages, b.messages > 2000, b.dead_letters > 0 FROM millrace.run_stream('shop', 1000) a, millrace.run_stream('shop') b;

-- alerts: each order once, whatever came how often
SELECT rule, (count(*) = (SELECT count(DISTINCT m ->> 'order_id') FROM message WHERE CASE a.rule WHEN 'NEGATIVE_PRICE' THEN (m ->> 'price')::numeric < 0
       ELSE (m ->> 'quantity')::integer <= 0 AND (m ->> 'price')::numeric >= 0 END)) AS as_many FROM millrace.alert a WHERE rule IN ('NEGATIVE_PRICE', 'INVALID_QUANTITY') GROUP BY rule ORDER BY rule;
SELECT rule, key, suppressed IS NULL AS to_be_sent FROM millrace.alert WHERE rule = 'RAPID_ORDERS';

-- orders as they are, and what is sold
CREATE TEMP VIEW recomputed AS
SELECT DISTINCT ON (m ->> 'order_id') m ->> 'order_id' AS order_id, (m ->> 'order_date')::timestamptz AS order_date, m ->> 'customer_id' AS customer_id, m ->> 'product_id' AS product_id,
       m ->> 'category' AS category, m ->> 'product_name' AS product_name, (m ->> 'price')::numeric(12,2) AS price, (m ->> 'quantity')::integer AS quantity,
       (m ->> 'total')::numeric(14,2) AS total, m ->> 'status' AS status, m ->> 'region' AS region
FROM message ORDER BY m ->> 'order_id', (m ->> 'updated_at')::timestamptz DESC;
CREATE TEMP VIEW sold AS
SELECT order_id, order_date, customer_id, product_id, category, product_name, abs(price) AS price, quantity, (abs(price) * quantity)::numeric(14,2) AS total, status, region,
       price < 0 OR total <> price * quantity AS repaired
FROM recomputed WHERE status IN ('completed', 'processing') AND quantity > 0;
-- the data are as dirty as they should be
SELECT count(*) FILTER (WHERE price < 0) * 100.0 / count(*) BETWEEN 1.5 AND 2.5, count(*) FILTER (WHERE quantity = 0) * 100.0 / count(*) BETWEEN 0.5 AND 1.5,
       count(*) FILTER (WHERE status = '') * 100.0 / count(*) BETWEEN 0.5 AND 1.5, count(*) FILTER (WHERE total <> abs(price) * quantity) * 100.0 / count(*) BETWEEN 2 AND 4,
       count(DISTINCT customer_id) > 450, count(DISTINCT product_id) FROM recomputed;

CREATE FUNCTION pg_temp.same(what text, left_query text, right_query text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    rows bigint;
    different bigint;
BEGIN
    EXECUTE format('SELECT count(*) FROM (%s) AS l', left_query) INTO rows;
    EXECUTE format('SELECT count(*) FROM ((%1$s EXCEPT ALL %2$s) UNION ALL (%2$s EXCEPT ALL %1$s)) AS d', '(' || left_query || ')', '(' || right_query || ')') INTO different;
    RETURN format('%s: %s', what, CASE WHEN rows = 0 THEN 'empty' WHEN different = 0 THEN 'same' ELSE different || ' rows differ' END);
END $$;
SELECT pg_temp.same('bronze', 'SELECT order_id, order_date, customer_id, product_id, category, product_name, price, quantity, total, status, region FROM bronze.orders', 'SELECT * FROM recomputed');
SELECT pg_temp.same('silver', 'SELECT order_id, order_date, customer_id, product_id, category, product_name, price, quantity, total, status, region, repaired FROM silver.orders', 'SELECT * FROM sold');
SELECT pg_temp.same('daily_summary', 'SELECT * FROM gold.daily_summary', $$
    SELECT order_date::date, count(*), sum(total)::numeric(18,2), avg(total)::numeric(14,2), count(DISTINCT customer_id), count(DISTINCT product_name) FROM sold GROUP BY 1 $$);
SELECT pg_temp.same('category_performance', 'SELECT date, category, order_count, quantity_sold, revenue, avg_price FROM gold.category_performance', $$
    SELECT order_date::date, category, count(*), sum(quantity), sum(total)::numeric(18,2), (sum(total) / sum(quantity))::numeric(14,2) FROM sold GROUP BY 1, 2 $$);
SELECT pg_temp.same('overall_metrics', 'SELECT * FROM gold.overall_metrics', $$
    SELECT count(*), sum(total)::numeric(18,2), count(DISTINCT customer_id), count(DISTINCT product_id), count(*) FILTER (WHERE repaired) FROM sold $$);
SELECT pg_temp.same('top_products', 'SELECT * FROM gold.top_products', $$
    SELECT product_id, product_name, category, count(*), sum(quantity), sum(total)::numeric(18,2) AS r FROM sold GROUP BY 1, 2, 3 ORDER BY r DESC, product_id LIMIT 10 $$);
SELECT pg_temp.same('category_stats', 'SELECT * FROM gold.category_stats', $$
    SELECT category, count(*), sum(quantity), sum(total)::numeric(18,2), (100 * sum(total) / (SELECT sum(total) FROM sold))::numeric(5,2) FROM sold GROUP BY 1 $$);
SELECT pg_temp.same('region_stats', 'SELECT * FROM gold.region_stats', 'SELECT region, count(*), sum(total)::numeric(18,2) FROM sold GROUP BY 1');
SELECT pg_temp.same('hourly_stats', 'SELECT * FROM gold.hourly_stats', 'SELECT extract(hour FROM order_date)::integer, count(*), sum(total)::numeric(18,2) FROM sold GROUP BY 1');
SELECT pg_temp.same('status_counts', 'SELECT * FROM gold.status_counts', 'SELECT status, count(*) FROM recomputed GROUP BY 1');
-- a message that came twice is refused twice
SELECT pg_temp.same('rejected', 'SELECT reason, rejected FROM gold.rejected', $$
    SELECT CASE WHEN (m ->> 'quantity')::integer = 0 THEN 'quantity_positive' ELSE 'has_status' END, sum(CASE WHEN n % 2 = 0 THEN 2 ELSE 1 END)
    FROM message WHERE m ->> 'status' = '' OR ((m ->> 'quantity')::integer = 0 AND m ->> 'status' IN ('completed', 'processing')) GROUP BY 1 $$);
SELECT relation, missing, unexpected FROM unnest('{gold.daily_summary, gold.category_performance, gold.product_day, gold.region_day, gold.hour_day, gold.overall_metrics, gold.status_counts}'::regclass[]) r,
     millrace.verify(r) ORDER BY 1;

-- users
SELECT count(millrace.push('users', m, key => m #>> '{login,uuid}')) FROM pg_temp.user_messages(500) m;
SELECT millrace.push('users', '{"login": {"uuid": "nobody"}}') > 0, millrace.push('users', NULL::text, key => md5('user7')::uuid::text) > 0;
SELECT messages, dead_letters FROM millrace.run_stream('users');
SELECT pg_temp.same('profiles', 'SELECT * FROM app.profiles', $$
    SELECT (m #>> '{login,uuid}')::uuid, m #>> '{name,first}', m #>> '{name,last}', m ->> 'gender',
           (m #>> '{location,street,number}') || ' ' || (m #>> '{location,street,name}') || ', ' || (m #>> '{location,city}') || ', ' || (m #>> '{location,state}') || ', ' || (m #>> '{location,country}'),
           m #>> '{location,postcode}', m ->> 'email', m #>> '{login,username}', (m #>> '{dob,date}')::timestamptz, (m #>> '{registered,date}')::timestamptz, m ->> 'phone', m #>> '{picture,medium}'
    FROM pg_temp.user_messages(500) m WHERE m #>> '{login,uuid}' <> md5('user7')::uuid::text $$);
SELECT kind, message FROM millrace.dead_letter WHERE stream = 'users';

SELECT millrace.drop_stream('users', cascade => true);
SELECT millrace.drop_model('gold.also_bought');
DROP VIEW gold.top_products, gold.category_stats, gold.region_stats, gold.hourly_stats, gold.rejected;
SELECT millrace.drop_stream('shop', cascade => true);
DROP SCHEMA bronze, silver, gold, app;

-- with data of their own, as one tries them
\c -
SET client_min_messages = warning;
SET timezone = 'UTC';
\pset tuples_only off
\set orders 1000
\set users 100
\set ECHO none
\i examples/shop/shop.sql
\i examples/users/users.sql
\set ON_ERROR_STOP off
\set ECHO all
SELECT count(*) FROM app.profiles;
SELECT millrace.drop_stream('users', cascade => true);
SELECT millrace.drop_model('gold.also_bought');
DROP VIEW gold.top_products, gold.category_stats, gold.region_stats, gold.hourly_stats, gold.rejected;
SELECT millrace.drop_stream('shop', cascade => true);
DROP SCHEMA bronze, silver, gold, app;
