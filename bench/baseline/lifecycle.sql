-- One batch of messages from the temporary table raw (session.sql) to the marts, when an order comes several times, in any
-- order of its states, some of them twice: the same job as orders.sql, and as well done by hand. The newest state of an
-- order counts, by the message's time; hubs, links and satellites see every state; the marts take back what the state
-- before had counted.

DROP TABLE IF EXISTS event, newest, item, counted;
TRUNCATE gone;

CREATE TEMP TABLE event AS
SELECT (j -> 'object_id')::bigint AS order_id, j ->> 'object_type' AS object_type, p -> 'restaurant' ->> 'id' AS restaurant_id,
	p -> 'restaurant' ->> 'name' AS restaurant_name, p -> 'user' ->> 'id' AS user_id, p -> 'user' ->> 'name' AS username,
	p -> 'user' ->> 'login' AS userlogin, p ->> 'status' AS status, (p -> 'cost')::numeric(12,2) AS cost,
	(p -> 'payment')::numeric(12,2) AS payment, to_timestamp(ms / 1000.0) AS at, (p ->> 'date')::timestamptz AS _event_time,
	partition, position, payload, p -> 'products' AS products, dds.hash(j ->> 'object_id') AS h_order_hk
FROM (SELECT *, payload::jsonb AS j FROM raw OFFSET 0) m, LATERAL (SELECT j -> 'payload' AS p OFFSET 0) d;
ANALYZE event (order_id, restaurant_id, user_id, status);

CREATE TEMP TABLE newest AS
SELECT DISTINCT ON (order_id) * FROM event e
WHERE NOT EXISTS (SELECT FROM stg.order_events o WHERE o.order_id = e.order_id AND o._version >= e.at)
ORDER BY order_id, at DESC;
ANALYZE newest (order_id, position);

CREATE TEMP TABLE item AS
SELECT e.order_id, n::integer AS _element, e.object_type, e.restaurant_id, e.user_id, e.status, i.product_id, i.product_name,
	i.category_name, i.price, i.quantity, e.at, e._event_time, e.partition, e.position, e.h_order_hk
FROM event e, ROWS FROM (jsonb_to_recordset(e.products) AS (id text, name text, category text, price numeric(12,2), quantity integer))
	WITH ORDINALITY AS i (product_id, product_name, category_name, price, quantity, n);
ANALYZE item (order_id, restaurant_id, user_id, status, product_id, category_name, position);

-- staging: the newest states only
INSERT INTO stg.order_events AS o
SELECT order_id, object_type, restaurant_id, restaurant_name, user_id, username, userlogin, status, cost, payment,
	at, _event_time, partition, position, now(), payload
FROM newest ORDER BY order_id
ON CONFLICT (order_id) DO UPDATE SET object_type = excluded.object_type, restaurant_id = excluded.restaurant_id,
	restaurant_name = excluded.restaurant_name, user_id = excluded.user_id, username = excluded.username, userlogin = excluded.userlogin,
	status = excluded.status, cost = excluded.cost, payment = excluded.payment, _version = excluded._version,
	_event_time = excluded._event_time, _partition = excluded._partition, _position = excluded._position,
	_loaded_at = excluded._loaded_at, payload = excluded.payload;
WITH deleted AS (DELETE FROM stg.order_items i USING newest n WHERE i.order_id = n.order_id
	RETURNING i.order_id, i.user_id, i.product_id, i.category_name, i.status)
INSERT INTO gone SELECT * FROM deleted;
INSERT INTO stg.order_items
SELECT i.order_id, _element, i.object_type, i.restaurant_id, i.user_id, i.status, product_id, product_name, category_name, price, quantity,
	i.at, i._event_time, i.partition, i.position, now()
FROM item i JOIN newest USING (position) ORDER BY i.order_id, _element;

-- hubs
INSERT INTO dds.h_user SELECT dds.hash(user_id), user_id, now(), 'orders'
FROM (SELECT DISTINCT user_id FROM event) d ORDER BY 1 ON CONFLICT DO NOTHING;
INSERT INTO dds.h_restaurant SELECT dds.hash(restaurant_id), restaurant_id, now(), 'orders'
FROM (SELECT DISTINCT restaurant_id FROM event) d ORDER BY 1 ON CONFLICT DO NOTHING;
INSERT INTO dds.h_product SELECT dds.hash(product_id), product_id, now(), 'orders'
FROM (SELECT DISTINCT product_id FROM item) d ORDER BY 1 ON CONFLICT DO NOTHING;
INSERT INTO dds.h_category SELECT dds.hash(category_name), category_name, now(), 'orders'
FROM (SELECT DISTINCT category_name FROM item) d ORDER BY 1 ON CONFLICT DO NOTHING;
INSERT INTO dds.h_order SELECT h_order_hk, order_id, now(), 'orders'
FROM (SELECT DISTINCT h_order_hk, order_id FROM event) d ORDER BY 1 ON CONFLICT DO NOTHING;

-- links
INSERT INTO dds.l_order_user
SELECT dds.hash(e.order_id || e.user_id), e.h_order_hk, u.h_user_hk, now(), 'orders'
FROM (SELECT DISTINCT order_id, user_id, h_order_hk FROM event) e JOIN dds.h_user u USING (user_id) ORDER BY 1 ON CONFLICT DO NOTHING;
INSERT INTO dds.l_order_product
SELECT dds.hash(i.order_id || i.product_id), i.h_order_hk, p.h_product_hk, now(), 'orders'
FROM (SELECT DISTINCT order_id, product_id, h_order_hk FROM item) i JOIN dds.h_product p USING (product_id)
ORDER BY 1 ON CONFLICT DO NOTHING;
INSERT INTO dds.l_product_restaurant
SELECT dds.hash(i.product_id || i.restaurant_id), p.h_product_hk, r.h_restaurant_hk, now(), 'orders'
FROM (SELECT DISTINCT product_id, restaurant_id FROM item) i
	JOIN dds.h_product p USING (product_id) JOIN dds.h_restaurant r USING (restaurant_id)
ORDER BY 1 ON CONFLICT DO NOTHING;
INSERT INTO dds.l_product_category
SELECT dds.hash(i.product_id || i.category_name), p.h_product_hk, c.h_category_hk, now(), 'orders'
FROM (SELECT DISTINCT product_id, category_name FROM item) i
	JOIN dds.h_product p USING (product_id) JOIN dds.h_category c USING (category_name)
ORDER BY 1 ON CONFLICT DO NOTHING;

-- satellites: every state of an order is another one; of names and costs a row says from when to when it was so
INSERT INTO dds.s_order_status (h_order_hk, status, applied_at, hashdiff, confirmed_at, load_at, record_source)
SELECT e.h_order_hk, e.status, e.at, d.hashdiff, e.at, now(), 'orders'
FROM (SELECT DISTINCT h_order_hk, status, at FROM event) e
	JOIN (SELECT status, dds.hash(status) AS hashdiff FROM event GROUP BY 1) d USING (status)
ORDER BY 1, 3, 4 ON CONFLICT DO NOTHING;
\set satellite dds.s_order_cost
\set parent h_order_hk
\set attributes 'cost, payment'
\set content '(content).a, (content).b'
\set said 'SELECT DISTINCT h_order_hk AS parent, at, row(cost, payment)::dds.pair_of_numbers AS content, dds.hash(concat_ws(''|'', cost, payment)) AS hash FROM event'
\ir satellite.sql
\set satellite dds.s_user_names
\set parent h_user_hk
\set attributes 'username, userlogin'
\set said 'SELECT u.h_user_hk AS parent, e.at, row(username, userlogin)::dds.pair_of_texts AS content, dds.hash(concat_ws(''|'', username, userlogin)) AS hash FROM (SELECT DISTINCT user_id, username, userlogin, at FROM event) e JOIN dds.h_user u USING (user_id)'
\ir satellite.sql
\set satellite dds.s_restaurant_names
\set parent h_restaurant_hk
\set attributes restaurant_name
\set content content
\set said 'SELECT r.h_restaurant_hk AS parent, e.at, restaurant_name AS content, dds.hash(restaurant_name) AS hash FROM (SELECT DISTINCT restaurant_id, restaurant_name, at FROM event) e JOIN dds.h_restaurant r USING (restaurant_id)'
\ir satellite.sql
\set satellite dds.s_product_names
\set parent h_product_hk
\set attributes product_name
\set said 'SELECT p.h_product_hk AS parent, e.at, product_name AS content, dds.hash(product_name) AS hash FROM (SELECT DISTINCT product_id, product_name, at FROM item) e JOIN dds.h_product p USING (product_id)'
\ir satellite.sql

-- marts: what the newest states count less what those before had counted
CREATE TEMP TABLE counted AS
SELECT DISTINCT order_id, user_id, product_id, category_name, 1 AS n FROM item i WHERE status = 'CLOSED' AND position IN (SELECT position FROM newest)
UNION ALL
SELECT DISTINCT order_id, user_id, product_id, category_name, -1 FROM gone WHERE status = 'CLOSED';
INSERT INTO cdm.user_product_counters AS m
SELECT user_id, product_id, sum(n) FROM (SELECT DISTINCT user_id, product_id, order_id, n FROM counted) d
GROUP BY 1, 2 HAVING sum(n) <> 0 ORDER BY 1, 2
ON CONFLICT (user_id, product_id) DO UPDATE SET order_cnt = m.order_cnt + excluded.order_cnt;
INSERT INTO cdm.user_category_counters AS m
SELECT d.user_id, d.category_name, c.h_category_hk, d.order_cnt
FROM (SELECT user_id, category_name, sum(n) AS order_cnt FROM (SELECT DISTINCT user_id, category_name, order_id, n FROM counted) o
	  GROUP BY 1, 2 HAVING sum(n) <> 0) d
	JOIN dds.h_category c USING (category_name)
ORDER BY 1, 2
ON CONFLICT (user_id, category_name) DO UPDATE SET order_cnt = m.order_cnt + excluded.order_cnt;
DELETE FROM cdm.user_product_counters m USING (SELECT DISTINCT user_id, product_id FROM gone WHERE status = 'CLOSED') g
WHERE m.user_id = g.user_id AND m.product_id = g.product_id AND m.order_cnt = 0;
DELETE FROM cdm.user_category_counters m USING (SELECT DISTINCT user_id, category_name FROM gone WHERE status = 'CLOSED') g
WHERE m.user_id = g.user_id AND m.category_name = g.category_name AND m.order_cnt = 0;
