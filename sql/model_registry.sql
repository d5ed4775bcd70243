-- Versions of models: what is noted of them, gates, keep, aliases over time, training like a version.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS millrace;
\set VERBOSITY default
\set SHOW_CONTEXT never
SET client_min_messages = notice;
CREATE SCHEMA ml;
CREATE TABLE ml.bought (u text, i text);
INSERT INTO ml.bought SELECT 'u' || u, 'i' || i FROM generate_series(1, 40) u, generate_series(1, 15) i WHERE (u * i + u / 3) % 7 < 3;
SELECT millrace.create_model('ml.also', 'item_knn', 'SELECT u, i FROM ml.bought', '{"k": 3}', keep => 3);
SELECT millrace.train('ml.also', split => '{"by": "customer_rows", "seed": 7}', refit => false, metrics => '{recall@5, coverage}');
SELECT version, aliases, round(sparsity::numeric, 4) AS sparsity, source_positions, input_hash IS NOT NULL AS hashed, seconds > 0 AS timed FROM millrace.model_version_status;

-- A gate judges both versions by the same pairs, which neither was trained on.
SELECT millrace.train('ml.also');
SELECT millrace.promote('ml.also', 2, gate => 'new."recall@5" > old."recall@5"');
SELECT millrace.promote('ml.also', 2, gate => 'new."recall@5" >= old."recall@5" AND new.coverage = 1', reason => 'as good');
SELECT from_version, to_version, gate, judged::json -> 'new' ->> 'coverage' AS coverage, reason FROM millrace.model_alias_history ORDER BY promoted_at;
-- By other pairs.
SELECT millrace.train('ml.also');
SELECT millrace.promote('ml.also', 3, alias => 'shadow', gate => 'false');
SELECT millrace.promote('ml.also', 3, gate => 'new.mrr IS NOT NULL', test => 'SELECT u, i FROM ml.bought');
SELECT millrace.promote('ml.also', 3, gate => 'new.mrr < old.mrr', test => 'SELECT u, ''i99'' FROM ml.bought');
-- No older version passes, and not the same.
SELECT millrace.promote('ml.also', 1, gate => 'true'), millrace.promote('ml.also', 3, gate => 'true');
SELECT millrace.promote('ml.also', 1, reason => 'no gate');
SELECT millrace.rollback('ml.also', reason => 'back');
SELECT alias, from_version, to_version, is_rollback, reason FROM millrace.model_alias_history ORDER BY promoted_at;

-- What an alias named, and when.
SELECT millrace.model_at('ml.also') AS now, millrace.model_at('ml.also', at => '2020-01-01') AS before, millrace.model_at('ml.also', 'shadow') AS shadow, millrace.model_at('ml.also', 'other') AS other;
SELECT array_agg(millrace.model_at('ml.also', 'production', promoted_at) ORDER BY promoted_at) FROM millrace.model_alias_history WHERE alias = 'production';
SELECT model, version, newest_version, versions, age_seconds >= 0 AS has_age, source_positions, keep FROM millrace.model_status;

-- The newest three stay, and what aliases name.
SELECT millrace.promote('ml.also', 1, alias => 'first');
SELECT millrace.train('ml.also'), millrace.train('ml.also'), millrace.train('ml.also');
SELECT version, aliases FROM millrace.model_version_status ORDER BY version;
SELECT DISTINCT version FROM ml.also ORDER BY 1;
-- A version that is dropped and one that is rolled back leave their numbers unused.
SELECT millrace.drop_version('ml.also', 6);
BEGIN;
SELECT millrace.train('ml.also');
ROLLBACK;
SELECT millrace.train('ml.also');

-- Like an earlier one: the same bytes, while the data are the same.
SELECT millrace.train('ml.also', like_version => 1);
SELECT (SELECT array_agg((t.item, t.rank, t.neighbour, t.score) ORDER BY t.item, t.rank) FROM ml.also t WHERE t.version = 1)
     = (SELECT array_agg((t.item, t.rank, t.neighbour, t.score) ORDER BY t.item, t.rank) FROM ml.also t WHERE t.version = 9) AS same;
SELECT count(*) AS versions, count(DISTINCT input_hash) AS inputs, count(DISTINCT params) AS params, count(DISTINCT split) AS splits FROM millrace.model_version_status WHERE version IN (1, 9);
SELECT a.metric, a.value = b.value AS same FROM millrace.model_version_metric a JOIN millrace.model_version_metric b USING (metric) WHERE a.version = 1 AND b.version = 9 ORDER BY 1;
INSERT INTO ml.bought VALUES ('u41', 'i1'), ('u41', 'i2'), ('u41', 'i3');
SELECT millrace.train('ml.also', like_version => 1);

-- Positions of the streams behind the query, through views and marts.
SELECT millrace.create_stream('orders');
SELECT millrace.create_staging('ml.orders', stream => 'orders', key => '{"id": ["$.id", "bigint"]}', columns => '{"u": "$.u", "i": "$.i"}');
SELECT millrace.create_mart('ml.counts', 'SELECT u, i, count(*) AS n FROM ml.orders GROUP BY u, i');
CREATE VIEW ml.seen AS SELECT u, i, n FROM ml.counts WHERE n > 0;
SELECT millrace.create_model('ml.streamed', 'item_knn', 'SELECT u, i, n FROM ml.seen');
SELECT count(millrace.push('orders', v)) FROM unnest('{"{\"id\": 1, \"u\": \"a\", \"i\": \"x\"}","{\"id\": 2, \"u\": \"a\", \"i\": \"y\"}"}'::json[]) AS v;
SELECT messages FROM millrace.run_stream('orders');
SELECT millrace.train('ml.streamed');
SELECT s.source_positions::json -> 'orders' ->> '0' = p.position::text AS as_of_now FROM millrace.model_status s, millrace.stream_partition p WHERE s.model = 'ml.streamed' AND p.stream = 'orders';

-- A search: each trial is a row, the best is trained on all rows.
CREATE TABLE ml.searched (u integer, i integer);
INSERT INTO ml.searched SELECT u, i FROM generate_series(1, 150) u, generate_series(1, 30) i WHERE (u * 7 + i * 11) % 13 < 3 OR u % 5 = i % 5;
SELECT millrace.create_model('ml.tuned', 'item_knn', 'SELECT u, i FROM ml.searched', '{"shrink": 1.5}');
SELECT millrace.train('ml.tuned', split => '{"by": "customer_rows"}', metrics => '{ndcg@5, mrr}', search => '{"k": [1, 2, 5, 20], "similarity": ["cosine", "jaccard", "bm25"]}', trials => 9, seed => 3);
SELECT count(*), count(DISTINCT params) > 3 AS differ, bool_and(params::json ->> 'shrink' = '1.5') AS rest_kept, bool_and(metric = 'ndcg@5' AND value BETWEEN 0 AND 1) AS judged FROM millrace.model_version_trial;
SELECT (SELECT max(value) FROM millrace.model_version_trial) = (SELECT value FROM millrace.model_version_metric WHERE model = 'ml.tuned' AND metric = 'ndcg@5') AS best_is_noted,
       (SELECT bool_or(t.params = v.params AND t.chosen AND t.value = (SELECT max(value) FROM millrace.model_version_trial)) FROM millrace.model_version_trial t, millrace.model_version_status v WHERE v.model = 'ml.tuned') AS best_is_trained;
-- The same seed draws the same; numbers are drawn from ranges, too.
SELECT millrace.train('ml.tuned', split => '{"by": "customer_rows"}', metrics => '{ndcg@5, mrr}', search => '{"k": [1, 2, 5, 20], "similarity": ["cosine", "jaccard", "bm25"]}', trials => 9, seed => 3);
SELECT count(DISTINCT (trial, params, value)) FROM millrace.model_version_trial WHERE version <= 2;
SELECT millrace.train('ml.tuned', split => '{"by": "leave_one_out"}', search => '{"k": {"log": [2, 50]}, "shrink": {"uniform": [0.5, 3]}}');
SELECT count(*), bool_and((params::json ->> 'k')::integer BETWEEN 2 AND 50) AS whole, bool_and((params::json ->> 'shrink')::float BETWEEN 0.5 AND 3) AS within FROM millrace.model_version_trial WHERE version = 3;
SELECT millrace.train('ml.tuned', like_version => 1);
SELECT count(DISTINCT params), count(DISTINCT input_hash) FROM millrace.model_version_status WHERE model = 'ml.tuned' AND version IN (1, 4);
-- Halving: of 9, 5, 3, 2, 1 are left; the last one is judged by all.
INSERT INTO ml.searched SELECT u, i FROM generate_series(151, 1600) u, generate_series(1, 30) i WHERE (u * 7 + i * 11) % 13 < 3 OR u % 5 = i % 5;
SELECT millrace.train('ml.tuned', split => '{"by": "customer_rows"}', metrics => '{ndcg@5}', search => '{"k": [1, 2, 5, 20], "similarity": ["cosine", "jaccard", "bm25"]}', trials => 9, halving => true);
SELECT rung, count(*), count(*) FILTER (WHERE chosen AND value = (SELECT x.value FROM millrace.model_version_metric x WHERE x.model = 'ml.tuned' AND x.version = 5)) > 0 AS chosen FROM millrace.model_version_trial WHERE version = 5 GROUP BY 1 ORDER BY 1;
SELECT pairs FROM millrace.model_version_metric WHERE model = 'ml.tuned' AND version = 5;
SELECT count(*) FROM (SELECT u, count(*) AS n FROM ml.searched GROUP BY u) s, generate_series(1, round(0.2 * n)::integer);
SELECT millrace.train('ml.tuned', split => '{"by": "customers"}', metrics => '{ndcg@5}', search => '{"k": [1, 2]}', trials => 1, halving => true);

-- In the background: test/t/011_trainer.pl has what happens then.
BEGIN;
SELECT millrace.train('ml.tuned', async => true);
SELECT model, version, state, error FROM millrace.training;
ROLLBACK;

-- What is refused.
SELECT millrace.train('ml.tuned', search => '{"k": [1, 2]}');
SELECT millrace.train('ml.tuned', split => '{"by": "customers"}', metrics => '{}', search => '{"k": [1, 2]}');
SELECT millrace.train('ml.tuned', trials => 5);
SELECT millrace.train('ml.tuned', halving => true);
SELECT millrace.train('ml.tuned', search => '{"k": [1]}', trials => 0);
SELECT millrace.train('ml.tuned', search => '{"K": [1]}');
SELECT millrace.train('ml.tuned', search => '{"k": [0]}');
SELECT millrace.train('ml.tuned', search => '{"k": 5}');
SELECT millrace.train('ml.tuned', search => '{"k": []}');
SELECT millrace.train('ml.tuned', search => '{"k": {"log": [0, 5]}}');
SELECT millrace.train('ml.tuned', search => '{"k": {"log": [5, 1]}}');
SELECT millrace.train('ml.tuned', search => '{"k": {"normal": [5, 1]}}');
SELECT millrace.train('ml.tuned', like_version => 1, search => '{"k": [1]}');
SELECT millrace.train('ml.tuned', split => '{"by": "customer"}', async => true);
SELECT millrace.train('ml.tuned', split => '{"by": "customers"}', metrics => '{auc}', async => true);
SELECT millrace.train('ml.tuned', split => '{"by": "customers"}', search => '{"k": {"uniform": [-50, 1]}}', async => true);
SELECT millrace.create_model('ml.x', 'item_knn', 'SELECT u, i FROM ml.bought', keep => 0);
SELECT millrace.train('ml.also', like_version => 99);
SELECT millrace.train('ml.also', like_version => 1, metrics => '{mrr}');
SELECT millrace.promote('ml.also', 10, gate => 'new.speed > old.speed');
SELECT millrace.promote('ml.also', 10, gate => 'new.mrr > 0; DROP TABLE ml.bought');
SELECT millrace.promote('ml.also', 10, gate => 'mrr > 0');
SELECT millrace.promote('ml.also', 10, test => 'SELECT u, i FROM ml.bought');
SELECT millrace.promote('ml.streamed', millrace.train('ml.streamed'), gate => 'new.mrr > old.mrr');
SELECT millrace.promote('ml.also', 10, alias => NULL);

SELECT millrace.drop_model('ml.also'), millrace.drop_model('ml.streamed'), millrace.drop_model('ml.tuned');
SELECT count(*) FROM millrace.training;
SET client_min_messages = warning;
DROP VIEW ml.seen;
SELECT millrace.drop_table('ml.orders', cascade => true), millrace.drop_stream('orders');
DROP SCHEMA ml CASCADE;
