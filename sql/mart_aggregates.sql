-- Aggregates that are computed from side tables; exact sums of floating point numbers; stripes.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS millrace;
CREATE SCHEMA astg;
CREATE SCHEMA acdm;
SET search_path = acdm, public;
SELECT millrace.create_stream('aggregate_feed');
SELECT millrace.create_staging('astg.events', stream => 'aggregate_feed', key => '{"id": ["$key", "bigint"]}',
  columns => '{"user_id": "$.user", "brand": "$.brand", "at": ["$.at", "timestamptz"], "price": ["$.price", "numeric(10,2)"],
               "count": ["$.count", "integer"], "ratio": ["$.ratio", "double precision"]}');

-- In plain SQL.
SELECT millrace.latest(v, t) FROM (VALUES ('a', 1), ('b', 3), (NULL, 3), ('c', 3), ('d', 2), ('e', NULL)) AS x (v, t);
SELECT millrace.latest(v, t) FROM (VALUES (1, now()), (NULL, now() + interval '1 hour')) AS x (v, t);
SELECT millrace.latest(v, t) IS NULL AS nothing FROM (VALUES (1, NULL::date)) AS x (v, t);
SELECT millrace.latest('{}'::json, 1);
SELECT sum(x), millrace.exact_sum(x), millrace.exact_avg(x) FROM (VALUES (1e16::float8), (1), (-1e16)) AS v (x);
SELECT millrace.exact_sum(x) FROM (VALUES (0.1::real), (0.2), (NULL)) AS v (x);
SELECT millrace.exact_numeric(0.1), millrace.exact_numeric(0.1::real), millrace.exact_numeric('-Infinity'), millrace.exact_numeric(5e-324) > 0 AS tiny;
SELECT millrace.exact_sum(x) IS NULL AS nothing FROM (VALUES (NULL::float8)) AS v (x);

SELECT millrace.create_mart('features', $$
  SELECT user_id, millrace.latest(brand, at) AS brand, max(price)::numeric(10,2) AS dearest, min(count) FILTER (WHERE price > 1) AS least,
         count(DISTINCT brand) AS brands, string_agg(DISTINCT brand, '+') AS names, sum(ratio) AS ratio, avg(ratio) AS mean,
         array_agg(count) AS counts, percentile_disc(0.5) WITHIN GROUP (ORDER BY count) AS median
  FROM astg.events GROUP BY user_id $$, order_by => 'dearest DESC NULLS LAST, user_id');
SELECT millrace.create_mart('odd', $$ SELECT user_id, millrace.latest(brand, at ORDER BY count) AS brand FROM astg.events GROUP BY user_id $$);
SELECT millrace.create_mart('whole', $$ SELECT max(at) AS last, count(*) AS n, regr_count(count, count) AS pairs FROM astg.events $$);
SELECT millrace.create_mart('striped', $$ SELECT brand, upper(brand) AS name, count(*) AS n, sum(price)::numeric(12,2) AS spent FROM astg.events GROUP BY brand $$, stripes => 4);
SELECT millrace.create_mart('striped_whole', $$ SELECT count(*) AS n, avg(count)::numeric(6,2) AS mean FROM astg.events $$, stripes => 2);
SELECT millrace.create_mart('striped_stored', $$ SELECT at, to_char(at, 'YYYY-MM') AS month, count(*) AS n FROM astg.events GROUP BY at $$, stripes => 4);
SELECT millrace.create_mart('striped_signs', $$ SELECT ratio, to_char(ratio, 'S9') AS sign, count(*) AS n FROM astg.events WHERE ratio = 0 GROUP BY ratio $$, stripes => 2);
SELECT millrace.create_mart('odd', $$ SELECT brand, to_json(brand) AS quoted, count(*) AS n FROM astg.events GROUP BY brand $$, stripes => 2);
SELECT * FROM whole, striped_whole;
SELECT pg_get_viewdef('millrace_def.mart_' || id) ~ 'exact_sum.*array_agg\((events\.)?count ORDER BY (events\.)?count\)' AS one_meaning
FROM millrace.target WHERE relation = 'features'::regclass;

CREATE FUNCTION pg_temp.event(id integer, who text, brand text, at date, price numeric, count integer, ratio float8) RETURNS bigint LANGUAGE sql AS $$
  SELECT millrace.push('aggregate_feed', json_build_object('user', who, 'brand', brand, 'at', at, 'price', price, 'count', count, 'ratio', ratio)::text, key => id::text) $$;
SELECT count(*) FROM (SELECT pg_temp.event(1, 'ann', 'a', '2026-01-01', 1, 3, 1e16), pg_temp.event(2, 'ann', 'b', '2026-01-03', 5, 3, 1),
  pg_temp.event(3, 'ann', 'c', '2026-01-02', 4, 9, -1e16), pg_temp.event(4, 'bob', NULL, '2026-01-02', NULL, NULL, NULL), pg_temp.event(5, NULL, 'b', NULL, 2, 2, 0.5)) AS x;
SELECT messages FROM millrace.run_stream('aggregate_feed');
SELECT * FROM features ORDER BY user_id;
SELECT * FROM whole;
SELECT * FROM striped ORDER BY brand;
SELECT * FROM striped_whole;
SELECT * FROM striped_stored ORDER BY at;
-- What is taken back comes to light: the dearest, the latest, a distinct one; one group goes, one changes from NULL.
SELECT count(*) FROM (SELECT millrace.push('aggregate_feed', NULL, key => '2'), pg_temp.event(3, 'ann', 'a', '2026-01-02', 4, 7, 2),
  millrace.push('aggregate_feed', NULL, key => '4'), pg_temp.event(5, 'cid', 'z', '2026-01-09', 2, 2, 0.5)) AS x;
SELECT messages FROM millrace.run_stream('aggregate_feed');
SELECT * FROM features ORDER BY user_id;
SELECT * FROM whole;
SELECT * FROM striped ORDER BY brand;
SELECT relation, missing, unexpected, example FROM unnest('{features,whole,striped,striped_whole}'::regclass[]) AS m, millrace.verify(m);
-- A wrong row of a side table is found before a batch makes something of it.
BEGIN;
DO $$
BEGIN
  EXECUTE (SELECT format('UPDATE millrace_state.mart_%s_values_1 AS s SET n = n + 1 WHERE s.v1 = (SELECT min(o.v1) FROM millrace_state.mart_%1$s_values_1 AS o)', t.id) FROM millrace.target t WHERE t.relation = 'whole'::regclass);
END $$;
SELECT missing, unexpected, regexp_replace(example, 'mart_\d+', 'mart_N') AS example FROM millrace.verify('whole');
SELECT count(*) FROM millrace.rebuild('whole');
SELECT missing, unexpected FROM millrace.verify('whole');
ROLLBACK;
-- What ties in an order of the user's is ordered, too, and by the definition as by the mart.
SELECT count(*) FROM (SELECT pg_temp.event(8, 'eve', 'z', '2026-01-02', 1, 3, 1), pg_temp.event(9, 'eve', 'y', '2026-01-01', 1, 3, 1), pg_temp.event(10, 'eve', 'x', '2026-01-01', 1, 5, 1)) AS x;
SELECT messages FROM millrace.run_stream('aggregate_feed');
SELECT millrace.create_mart('ties', $$
  SELECT user_id, array_agg(brand ORDER BY count) AS brands, string_agg(brand, '+' ORDER BY at DESC) AS names, array_agg(DISTINCT brand ORDER BY brand DESC) AS all_brands
  FROM astg.events WHERE user_id = 'eve' GROUP BY user_id $$);
SELECT messages FROM millrace.run_stream('aggregate_feed');
SELECT * FROM ties;
SELECT missing, unexpected, example FROM millrace.verify('ties');
SELECT regexp_matches(replace(pg_get_viewdef('millrace_def.mart_' || id), 'events.', ''), 'ORDER BY [^)]*', 'g') AS orders FROM millrace.target WHERE relation = 'ties'::regclass;
-- A group is one row although its stripes store other texts of it; it is in another stripe than the one that is written now.
SELECT pg_temp.event(6, 'dan', 'd', NULL, NULL, NULL, 0) > 0 AS pushed;
SELECT messages FROM millrace.run_stream('aggregate_feed');
DO $$
BEGIN
  EXECUTE (SELECT format('UPDATE millrace_state.mart_%s SET stripe = 1 - stripe', t.id) FROM millrace.target t WHERE t.relation = 'striped_signs'::regclass);
END $$;
SELECT pg_temp.event(7, 'dan', 'd', NULL, NULL, NULL, '-0') > 0 AS pushed;
SELECT messages FROM millrace.run_stream('aggregate_feed');
SELECT abs(ratio) AS ratio, length(sign), n FROM striped_signs;
-- Whoever reads in the order of order_by reads its index, and sorts nothing.
CREATE FUNCTION pg_temp.plan(query text) RETURNS SETOF text LANGUAGE plpgsql AS $$
DECLARE
  line text;
BEGIN
  FOR line IN EXECUTE 'EXPLAIN (COSTS OFF) ' || query LOOP
    RETURN NEXT regexp_replace(line, 'mart_\d+', 'mart_N', 'g');
  END LOOP;
END $$;
SET enable_seqscan = off;
SELECT pg_temp.plan('SELECT user_id, dearest FROM features ORDER BY dearest DESC NULLS LAST, user_id LIMIT 2') AS plan;
RESET enable_seqscan;
SELECT user_id, dearest FROM features ORDER BY dearest DESC NULLS LAST, user_id;
-- Another query; names of tables and indexes are as if it had been there from the beginning.
SELECT millrace.create_mart('features', $$ SELECT user_id, max(price)::numeric(10,2) AS dearest FROM astg.events GROUP BY user_id $$, replace => true);
SELECT millrace.create_mart('striped', $$ SELECT brand, upper(brand) AS name, count(*) AS n, sum(price)::numeric(12,2) AS spent FROM astg.events GROUP BY brand $$, replace => true);
SELECT * FROM features ORDER BY user_id;
SELECT relation, missing, unexpected, example FROM unnest('{features,striped}'::regclass[]) AS m, millrace.verify(m);
SELECT count(*) FROM pg_class WHERE relnamespace = 'millrace_state'::regnamespace AND relname LIKE '%\_new%';
-- A reader needs rights on the mart only; its state belongs to whom the extension belongs to, and is readable for its owner, also a new one.
CREATE ROLE aggregate_owner;
CREATE ROLE aggregate_reader;
GRANT USAGE ON SCHEMA acdm, astg TO aggregate_owner, aggregate_reader;
GRANT CREATE ON SCHEMA acdm TO aggregate_owner;
GRANT SELECT ON features TO aggregate_reader;
SET ROLE aggregate_reader;
SELECT count(*) FROM features;
RESET ROLE;
SELECT DISTINCT grantee::regrole FROM millrace_internal.mart_tables('mart_' || (SELECT id FROM millrace.target WHERE relation = 'acdm.striped'::regclass)) AS t,
  aclexplode(t.relacl) WHERE grantee <> t.relowner;
ALTER VIEW striped OWNER TO aggregate_owner;
GRANT SELECT ON striped TO aggregate_reader;
SELECT messages FROM millrace.run_stream('aggregate_feed');
SET ROLE aggregate_reader;
SELECT count(*) FROM striped;
RESET ROLE;
ALTER VIEW striped OWNER TO CURRENT_USER;
SELECT millrace.drop_table('features');
DROP OWNED BY aggregate_owner, aggregate_reader;
DROP ROLE aggregate_owner, aggregate_reader;
