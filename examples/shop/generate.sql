-- Made-up orders of a shop: the same ones each time, on every machine (a hash of the order's number takes the place of chance).
--
--	SELECT * FROM pg_temp.shop_messages(1000);
--
-- 500 customers, 100 products in 10 categories, 5 regions, 60 days. Every fifth order changes once (pending → completed,
-- processing → cancelled or returned), as a second message with a later updated_at. About 2 % of prices are negative, 1 % of
-- quantities 0, 1 % of statuses empty, 3 % of totals wrong.

CREATE FUNCTION pg_temp.draw(n bigint, what text, sides bigint) RETURNS bigint
LANGUAGE sql IMMUTABLE
RETURN (('x' || substr(md5(what || n), 1, 12))::bit(48)::bigint) % sides;

CREATE FUNCTION pg_temp.shop_messages(orders bigint) RETURNS SETOF json
LANGUAGE sql STABLE
SET timezone = 'UTC' AS $$
    WITH drawn AS (
        SELECT n, 1 + pg_temp.draw(n, 'customer', 500) AS customer, 1 + pg_temp.draw(n, 'product', 100) AS product,
               timestamptz '2026-01-01 00:00+00' + make_interval(secs => pg_temp.draw(n, 'time', 60 * 86400)) AS at,
               CASE WHEN pg_temp.draw(n, 'quantity', 100) = 0 THEN 0 ELSE 1 + pg_temp.draw(n, 'pieces', 5) END AS quantity,
               pg_temp.draw(n, 'sign', 50) = 0 AS negative, pg_temp.draw(n, 'total', 33) = 0 AS wrong,
               pg_temp.draw(n, 'status', 100) AS status, pg_temp.draw(n, 'change', 5) = 0 AS changes,
               (ARRAY['card', 'cash', 'transfer', 'wallet'])[1 + pg_temp.draw(n, 'payment', 4)] AS payment_method,
               (ARRAY['North', 'South', 'East', 'West', 'Central'])[1 + pg_temp.draw(n, 'region', 5)] AS region
        FROM generate_series(1, orders) AS n
    ), priced AS (
        SELECT *, (ARRAY['Books', 'Electronics', 'Clothing', 'Home', 'Garden', 'Toys', 'Sports', 'Beauty', 'Food', 'Music'])[1 + product % 10] AS category,
               (5 + pg_temp.draw(product, 'price', 20000) / 100.0)::numeric(12,2) AS price
        FROM drawn
    ), told AS (
        SELECT p.*, v.step,
               CASE WHEN p.status = 0 THEN ''
                    WHEN v.step = 1 AND p.changes THEN CASE WHEN p.status % 2 = 0 THEN 'pending' ELSE 'processing' END
                    WHEN v.step = 2 THEN CASE WHEN p.status % 2 = 0 THEN 'completed' WHEN p.status % 4 = 1 THEN 'cancelled' ELSE 'returned' END
                    WHEN p.status <= 70 THEN 'completed' WHEN p.status <= 80 THEN 'processing' WHEN p.status <= 90 THEN 'pending'
                    WHEN p.status <= 95 THEN 'cancelled' ELSE 'returned' END AS state
        FROM priced p CROSS JOIN LATERAL generate_series(1, CASE WHEN p.changes THEN 2 ELSE 1 END) AS v (step)
    )
    SELECT json_build_object('order_id', 'ORD' || lpad(n::text, 7, '0'), 'order_date', at, 'customer_id', 'CUST' || lpad(customer::text, 4, '0'),
               'product_id', 'PROD' || lpad(product::text, 3, '0'), 'category', category, 'product_name', category || ' ' || product,
               'price', CASE WHEN negative THEN -price ELSE price END, 'quantity', quantity,
               'total', price * quantity + CASE WHEN wrong THEN 10 ELSE 0 END, 'status', state, 'payment_method', payment_method, 'region', region,
               'created_at', at, 'updated_at', at + (step - 1) * interval '1 day')
    FROM told ORDER BY at + (step - 1) * interval '1 day', n, step
$$;
