-- One batch of orders from the temporary table raw (session.sql) to the marts, in one transaction of the caller's: the best
-- set-based SQL that we could write by hand. Rows are sorted by key before each insert, every statement sees the whole batch,
-- and an order that is there already is left out at the start: what is keyed by the order needs no ON CONFLICT after that,
-- which costs as much as the insert itself.
--
-- What it does not do, and millrace does: take a newer state of an order or a tombstone; bear a message that comes twice in
-- one batch, or a second loader at the same time; set aside a message that is wrong (the batch fails).

DROP TABLE IF EXISTS event, item;

-- staging
CREATE TEMP TABLE event AS
SELECT (j -> 'object_id')::bigint AS order_id, j ->> 'object_type' AS object_type, p -> 'restaurant' ->> 'id' AS restaurant_id,
	p -> 'restaurant' ->> 'name' AS restaurant_name, p -> 'user' ->> 'id' AS user_id, p -> 'user' ->> 'name' AS username,
	p -> 'user' ->> 'login' AS userlogin, p ->> 'status' AS status, (p -> 'cost')::numeric(12,2) AS cost,
	(p -> 'payment')::numeric(12,2) AS payment, at AS _version, position, payload, p -> 'products' AS products,
	dds.hash(j ->> 'object_id') AS h_order_hk
FROM (SELECT position, payload, payload::jsonb AS j FROM raw OFFSET 0) m,
	LATERAL (SELECT j -> 'payload' AS p, (j #>> '{payload,date}')::timestamptz AS at OFFSET 0) d
WHERE NOT EXISTS (SELECT FROM stg.order_events o WHERE o.order_id = (j -> 'object_id')::bigint);
ANALYZE event (order_id, restaurant_id, user_id, status);

INSERT INTO stg.order_events
SELECT order_id, object_type, restaurant_id, restaurant_name, user_id, username, userlogin, status, cost, payment,
	_version, _version, 0, position, now(), payload
FROM event ORDER BY order_id;

CREATE TEMP TABLE item AS
SELECT e.order_id, n::integer AS _element, e.object_type, e.restaurant_id, e.user_id, e.status, i.product_id, i.product_name,
	i.category_name, i.price, i.quantity, e._version, e.position, e.h_order_hk
FROM event e, ROWS FROM (jsonb_to_recordset(e.products) AS (id text, name text, category text, price numeric(12,2), quantity integer))
	WITH ORDINALITY AS i (product_id, product_name, category_name, price, quantity, n);
ANALYZE item (order_id, restaurant_id, user_id, status, product_id, category_name);

INSERT INTO stg.order_items
SELECT order_id, _element, object_type, restaurant_id, user_id, status, product_id, product_name, category_name, price, quantity,
	_version, _version, 0, position, now()
FROM item ORDER BY order_id, _element;

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
FROM event ORDER BY 1;

-- links
INSERT INTO dds.l_order_user
SELECT dds.hash(e.order_id || e.user_id), e.h_order_hk, u.h_user_hk, now(), 'orders'
FROM event e JOIN dds.h_user u USING (user_id) ORDER BY 1;
INSERT INTO dds.l_order_product
SELECT dds.hash(i.order_id || i.product_id), i.h_order_hk, p.h_product_hk, now(), 'orders'
FROM (SELECT DISTINCT order_id, product_id, h_order_hk FROM item) i JOIN dds.h_product p USING (product_id)
ORDER BY 1;
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

-- satellites: names when they differ from the last ones, cost and status of every order
INSERT INTO dds.s_user_names
SELECT u.h_user_hk, d.username, d.userlogin, d.applied_at, d.hashdiff, now(), 'orders'
FROM (SELECT user_id, username, userlogin, min(_version) AS applied_at, dds.hash(concat_ws('|', username, userlogin)) AS hashdiff
	  FROM event GROUP BY 1, 2, 3) d JOIN dds.h_user u USING (user_id)
WHERE d.hashdiff IS DISTINCT FROM
	(SELECT s.hashdiff FROM dds.s_user_names s WHERE s.h_user_hk = u.h_user_hk ORDER BY s.applied_at DESC LIMIT 1)
ORDER BY 1 ON CONFLICT DO NOTHING;
INSERT INTO dds.s_restaurant_names
SELECT r.h_restaurant_hk, d.restaurant_name, d.applied_at, d.hashdiff, now(), 'orders'
FROM (SELECT restaurant_id, restaurant_name, min(_version) AS applied_at, dds.hash(restaurant_name) AS hashdiff
	  FROM event GROUP BY 1, 2) d JOIN dds.h_restaurant r USING (restaurant_id)
WHERE d.hashdiff IS DISTINCT FROM
	(SELECT s.hashdiff FROM dds.s_restaurant_names s WHERE s.h_restaurant_hk = r.h_restaurant_hk ORDER BY s.applied_at DESC LIMIT 1)
ORDER BY 1 ON CONFLICT DO NOTHING;
INSERT INTO dds.s_product_names
SELECT p.h_product_hk, d.product_name, d.applied_at, d.hashdiff, now(), 'orders'
FROM (SELECT product_id, product_name, min(_version) AS applied_at, dds.hash(product_name) AS hashdiff
	  FROM item GROUP BY 1, 2) d JOIN dds.h_product p USING (product_id)
WHERE d.hashdiff IS DISTINCT FROM
	(SELECT s.hashdiff FROM dds.s_product_names s WHERE s.h_product_hk = p.h_product_hk ORDER BY s.applied_at DESC LIMIT 1)
ORDER BY 1 ON CONFLICT DO NOTHING;
INSERT INTO dds.s_order_cost
SELECT h_order_hk, cost, payment, _version, dds.hash(concat_ws('|', cost, payment)), now(), 'orders'
FROM event ORDER BY 1;
INSERT INTO dds.s_order_status
SELECT e.h_order_hk, e.status, e._version, d.hashdiff, now(), 'orders'
FROM event e JOIN (SELECT status, dds.hash(status) AS hashdiff FROM event GROUP BY 1) d USING (status)
ORDER BY 1;

-- marts
INSERT INTO cdm.user_product_counters AS m
SELECT user_id, product_id, count(*)
FROM (SELECT DISTINCT user_id, product_id, order_id FROM item WHERE status = 'CLOSED') d
GROUP BY 1, 2 ORDER BY 1, 2
ON CONFLICT (user_id, product_id) DO UPDATE SET order_cnt = m.order_cnt + excluded.order_cnt;
INSERT INTO cdm.user_category_counters AS m
SELECT d.user_id, d.category_name, c.h_category_hk, d.order_cnt
FROM (SELECT user_id, category_name, count(*) AS order_cnt
	  FROM (SELECT DISTINCT user_id, category_name, order_id FROM item WHERE status = 'CLOSED') o GROUP BY 1, 2) d
	JOIN dds.h_category c USING (category_name)
ORDER BY 1, 2
ON CONFLICT (user_id, category_name) DO UPDATE SET order_cnt = m.order_cnt + excluded.order_cnt;
