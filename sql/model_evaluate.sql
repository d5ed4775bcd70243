-- Judging models: splits, metrics.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS millrace;
\set VERBOSITY default
\set SHOW_CONTEXT never
SET client_min_messages = notice;
CREATE SCHEMA ml;
CREATE TABLE ml.bought (u text, i text, w double precision, at timestamptz);
INSERT INTO ml.bought SELECT 'u' || u, chr(96 + i), 1, '2024-01-01'::timestamptz + (u + 3 * i) * interval '1 day' FROM generate_series(1, 12) u, generate_series(1, 6) i WHERE (u * i) % 5 < 3;
SELECT millrace.create_model('ml.also', 'item_knn', 'SELECT u, i, at FROM ml.bought', '{"k": 3}');

-- Each way to split; the version is trained on all pairs afterwards.
SELECT millrace.train('ml.also', split => '{"by": "customer_rows", "test": 0.2, "seed": 42}');
SELECT millrace.train('ml.also', split => '{"by": "customers", "test": 0.3}', metrics => '{recall@2, coverage, user_coverage}');
SELECT millrace.train('ml.also', split => '{"by": "time", "since": "2024-01-20"}', metrics => '{recall@2, mrr}');
SELECT millrace.train('ml.also', split => '{"by": "leave_one_out"}', metrics => '{hit_rate@2, ndcg@2, ndcg_untruncated@2}');
SELECT millrace.train('ml.also', split => '{"by": "tables", "test": "SELECT u, i FROM ml.bought WHERE i = ''b''"}', metrics => '{precision@1, item_coverage}');
SELECT version, metric, round(value::numeric, 6) AS value, round(popularity::numeric, 6) AS popularity, pairs FROM millrace.model_version_metric WHERE model = 'ml.also' ORDER BY version, metric COLLATE "C";
SELECT version, split::json ->> 'by' AS split, refit, metrics, pairs, first_time AT TIME ZONE 'UTC' AS first_time, last_time AT TIME ZONE 'UTC' AS last_time FROM millrace.model_version_status ORDER BY version;

-- Other pairs; those that were trained on do not count.
CREATE VIEW ml.wanted AS SELECT u, 'f' AS i FROM ml.bought UNION SELECT 'nobody', 'a' UNION SELECT 'u1', 'nothing' UNION SELECT NULL, 'a';
SELECT metric, round(value::numeric, 6) AS value, round(popularity::numeric, 6) AS popularity, pairs, skipped FROM millrace.evaluate('ml.also', 1, 'SELECT u, i FROM ml.wanted', '{hit_rate@3, user_coverage, item_coverage, coverage}');
SELECT * FROM millrace.evaluate('ml.also', 1, 'SELECT u, i FROM ml.bought', '{mrr, coverage}');
SELECT * FROM millrace.evaluate('ml.also', 1, 'SELECT u, i FROM ml.bought WHERE false', '{mrr}');

-- What is kept as split never trains again.
SELECT * FROM millrace.evaluate('ml.also', 1);
SELECT millrace.train('ml.also', metrics => '{mrr}');
SELECT millrace.train('ml.also', split => '{"by": "leave_one_out"}', refit => false, metrics => '{mrr}');
SELECT millrace.train('ml.also');
SELECT version, pairs FROM millrace.model_version_status WHERE version > 6 ORDER BY version;
SELECT millrace.train('ml.also', metrics => '{hit_rate@3}');
SELECT metric, pairs FROM millrace.model_version_metric WHERE version > 6 ORDER BY version;
SELECT metric, pairs, skipped FROM millrace.evaluate('ml.also', 1, metrics => '{hit_rate@3}');
SELECT metric, pairs, skipped FROM millrace.evaluate('ml.also', 7, metrics => '{hit_rate@3}');

-- Too little to split.
CREATE TABLE ml.few (u text, i text);
SELECT millrace.create_model('ml.edge', 'item_knn', 'SELECT u, i FROM ml.few');
SELECT millrace.train('ml.edge', split => '{"by": "customers"}', metrics => '{mrr, coverage, catalog_coverage@5}');
INSERT INTO ml.few VALUES ('u1', 'a');
SELECT millrace.train('ml.edge', split => '{"by": "customer_rows"}', metrics => '{mrr}');
INSERT INTO ml.few VALUES ('u1', 'b');
SELECT millrace.train('ml.edge', split => '{"by": "customer_rows"}', metrics => '{precision@5, mrr}');
SELECT version, metric, value, popularity, pairs FROM millrace.model_version_metric WHERE model = 'ml.edge' ORDER BY version, metric COLLATE "C";

-- What is refused.
SELECT millrace.train('ml.also', split => '{"by": "customer"}');
SELECT millrace.train('ml.also', split => '{"test": 0.2}');
SELECT millrace.train('ml.also', split => '{"by": "customers", "share": 0.2}');
SELECT millrace.train('ml.also', split => '{"by": "customers", "since": "2024-01-01"}');
SELECT millrace.train('ml.also', split => '{"by": "customers", "test": 1}');
SELECT millrace.train('ml.also', split => '{"by": "tables"}');
SELECT millrace.train('ml.also', split => '{"by": "tables", "test": "DELETE FROM ml.bought RETURNING u, i"}');
SELECT millrace.train('ml.also', split => '{"by": "tables", "test": "SELECT u FROM ml.bought"}');
SELECT millrace.train('ml.also', split => '[]');
SELECT millrace.train('ml.edge', split => '{"by": "time"}');
SELECT millrace.train('ml.edge', metrics => '{mrr}');
SELECT millrace.train('ml.also', split => '{"by": "customers"}', metrics => '{precision}');
SELECT millrace.train('ml.also', split => '{"by": "customers"}', metrics => '{precision@0}');
SELECT millrace.train('ml.also', split => '{"by": "customers"}', metrics => '{precision@05}');
SELECT millrace.train('ml.also', split => '{"by": "customers"}', metrics => '{auc}');
SELECT millrace.train('ml.also', split => '{"by": "customers"}', metrics => '{mrr, mrr}');
SELECT millrace.evaluate('ml.also', 99);
SELECT millrace.create_model('ml.x', 'item_knn', 'SELECT u, i, at, w FROM ml.bought');
SELECT millrace.create_model('ml.x', 'item_knn', 'SELECT u, i, w, at, w FROM ml.bought');
-- A test that would change something, by a function.
CREATE FUNCTION ml.meddle(text) RETURNS text LANGUAGE plpgsql AS $$ BEGIN INSERT INTO ml.few VALUES ('meddled', 'x'); RETURN $1; END $$;
SELECT millrace.evaluate('ml.also', 1, 'SELECT u, ml.meddle(i) FROM ml.bought');

-- Nobody judges another's model; the owner reads only what he may.
SET client_min_messages = warning;
CREATE ROLE regress_judge IN ROLE millrace_admin;
GRANT ALL ON SCHEMA ml TO regress_judge;
SET client_min_messages = notice;
SET ROLE regress_judge;
SELECT * FROM millrace.evaluate('ml.also', 1);
CREATE TABLE ml.own AS SELECT 'u' || u AS u, 'i' || i AS i FROM generate_series(1, 9) u, generate_series(1, 4) i;
SELECT millrace.create_model('ml.owned', 'item_knn', 'SELECT u, i FROM ml.own');
SELECT millrace.train('ml.owned', split => '{"by": "leave_one_out"}', metrics => '{coverage}');
SELECT millrace.train('ml.owned', split => '{"by": "tables", "test": "SELECT u, i FROM ml.bought"}');
SELECT millrace.evaluate('ml.owned', 1, 'SELECT u, i FROM ml.bought');
SELECT * FROM millrace.model_version_metric WHERE model = 'ml.owned';
SELECT millrace.drop_model('ml.owned');
DROP TABLE ml.own;
RESET ROLE;

SELECT millrace.drop_model('ml.also'), millrace.drop_model('ml.edge');
SET client_min_messages = warning;
DROP SCHEMA ml CASCADE;
DROP ROLE regress_judge;
