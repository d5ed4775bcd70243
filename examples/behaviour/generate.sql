-- Made-up events of a shop's visitors: the same ones each time. Who sees a cheap product of a strong brand many times on a weekend buys it more often.
--
--	SELECT * FROM pg_temp.behaviour_events(10000);

CREATE FUNCTION pg_temp.share(n bigint, what text) RETURNS double precision
LANGUAGE sql IMMUTABLE
RETURN ('x' || substr(md5(what || n), 1, 12))::bit(48)::bigint / 281474976710656.0;

CREATE FUNCTION pg_temp.behaviour_events(events bigint) RETURNS SETOF json
LANGUAGE sql STABLE
SET timezone = 'UTC' AS $$
    SELECT json_build_object('user_id', user_id, 'product_id', product_id, 'user_session', 's' || user_id || '-' || day, 'event_timestamp', at, 'event_type', CASE WHEN bought THEN 'purchase' ELSE 'cart' END,
        'brand', brand, 'price', price, 'event_weekday', extract(isodow FROM at), 'category_code_level1', category, 'category_code_level2', category || '.' || product_id % 4, 'activity_count', activity,
        'is_purchased', bought::integer)
    FROM (SELECT d.*, pg_temp.share(n, 'buys') < 0.1 + 0.3 * (brand IN ('acme', 'bolt'))::integer + 0.2 * (price < 60)::integer + 0.03 * least(activity, 10) + 0.1 * (extract(isodow FROM at) > 5)::integer AS bought
          FROM (SELECT n, 1000 + floor(pg_temp.share(n, 'user') * 400)::integer AS user_id, p AS product_id, floor(pg_temp.share(n, 'day') * 60)::integer AS day,
                       timestamptz '2026-01-01 08:00+00' + make_interval(days => floor(pg_temp.share(n, 'day') * 60)::integer, secs => n % 40000) AS at,
                       CASE WHEN p % 11 > 0 THEN (ARRAY['acme', 'bolt', 'corvid', 'delta', 'Echo'])[p % 5 + 1] END AS brand, round((5 + 400 * pg_temp.share(p, 'price') ^ 2)::numeric, 2) AS price,
                       (ARRAY['electronics', 'appliances', 'apparel'])[p % 3 + 1] AS category, 1 + floor(pg_temp.share(n, 'activity') * 15)::integer AS activity
                FROM (SELECT n, 1 + floor(pg_temp.share(n, 'product') ^ 2 * 300)::integer AS p FROM generate_series(1, events) AS n) AS g) AS d) AS e
$$;
