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
SELECT millrace.push('orders', '{"id": 1, "u": "a", "i": "x"}'), millrace.push('orders', '{"id": 2, "u": "a", "i": "y"}');
SELECT messages FROM millrace.run_stream('orders');
SELECT millrace.train('ml.streamed');
SELECT s.source_positions::json -> 'orders' ->> '0' = p.position::text AS as_of_now FROM millrace.model_status s, millrace.stream_position p WHERE s.model = 'ml.streamed';

-- What is refused.
SELECT millrace.create_model('ml.x', 'item_knn', 'SELECT u, i FROM ml.bought', keep => 0);
SELECT millrace.train('ml.also', like_version => 99);
SELECT millrace.train('ml.also', like_version => 1, metrics => '{mrr}');
SELECT millrace.promote('ml.also', 10, gate => 'new.speed > old.speed');
SELECT millrace.promote('ml.also', 10, gate => 'new.mrr > 0; DROP TABLE ml.bought');
SELECT millrace.promote('ml.also', 10, gate => 'mrr > 0');
SELECT millrace.promote('ml.also', 10, test => 'SELECT u, i FROM ml.bought');
SELECT millrace.promote('ml.streamed', millrace.train('ml.streamed'), gate => 'new.mrr > old.mrr');
SELECT millrace.promote('ml.also', 10, alias => NULL);

SELECT millrace.drop_model('ml.also'), millrace.drop_model('ml.streamed');
SET client_min_messages = warning;
DROP VIEW ml.seen;
SELECT millrace.drop_table('ml.orders', cascade => true), millrace.drop_stream('orders');
DROP SCHEMA ml CASCADE;
