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
-- Each rollback takes back one promotion, also of a version that was there before.
BEGIN;
SELECT millrace.promote('ml.also', 3), millrace.promote('ml.also', 2), millrace.promote('ml.also', 2);
SELECT millrace.rollback('ml.also') AS one, millrace.rollback('ml.also') AS two, millrace.rollback('ml.also') AS three;
SELECT millrace.promote('ml.also', 3), millrace.rollback('ml.also') AS back;
ROLLBACK;
-- A gate that had nothing to be compared with judged nothing.
BEGIN;
SELECT millrace.promote('ml.also', 3, alias => 'first', gate => 'new.mrr > old.mrr');
SELECT gate, judged FROM millrace.model_alias_history WHERE alias = 'first';
ROLLBACK;
SELECT millrace.promote('ml.also', 3, alias => '');
SELECT millrace.promote('ml.also', 3, gate => 'new.mrr > (1');
SELECT millrace.train('ml.also', like_version => 99, async => true);

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

-- Without an evaluation set a gate compares what the same split gave when both were trained.
SELECT millrace.train('ml.tuned', split => '{"by": "customer_rows", "seed": 42}', metrics => '{coverage, precision@10}') AS older \gset
SELECT millrace.promote('ml.tuned', :older);
INSERT INTO ml.searched SELECT u, 30 - u % 30 FROM generate_series(1, 150) u;
SELECT millrace.train('ml.tuned', split => '{"by": "customer_rows", "seed": 42}', metrics => '{coverage, precision@10}') AS newer \gset
SELECT millrace.promote('ml.tuned', :newer, gate => $$ new.coverage > old.coverage OR (abs(new.coverage - old.coverage) <= 0.01 AND new."precision@10" > 0.5 * old."precision@10") $$);
SELECT h.metric, h.value::double precision = x.value AS is_noted FROM millrace.model_alias_history a, json_each_text(a.judged::json -> 'new') AS h (metric, value), millrace.model_version_metric x
WHERE a.to_version = :newer AND x.model = 'ml.tuned' AND x.version = :newer AND x.metric = h.metric ORDER BY 1;
SELECT millrace.rollback('ml.tuned', reason => 'complaints') = :older AS is_back;
SELECT millrace.promote('ml.tuned', :newer, gate => 'new.mrr > old.mrr');
SELECT millrace.promote('ml.tuned', millrace.train('ml.tuned', split => '{"by": "customer_rows", "seed": 43}', metrics => '{coverage}'), gate => 'new.coverage >= old.coverage');
-- A search that is given no split makes its own.
SELECT millrace.train('ml.tuned', search => '{"k": [1, 2]}', trials => 2) AS searched \gset
SELECT split, pairs > 0 AS judged FROM millrace.model_version_status WHERE model = 'ml.tuned' AND version = :searched;

-- Declared again: nothing happens when nothing changes, and sessions that have asked know what does.
CREATE TABLE ml.product (i integer, price integer, available boolean DEFAULT true);
INSERT INTO ml.product SELECT i, i % 5 FROM generate_series(1, 40) i;
SELECT count(*) FROM millrace.recommend('ml.tuned', '1', 100);
SELECT xmin AS before FROM millrace.model WHERE relation = 'ml.tuned'::regclass \gset
SELECT millrace.create_model('ml.tuned', 'item_knn', 'SELECT u, i FROM ml.searched', '{"shrink": 1.5}');
SELECT millrace.create_model('ml.tuned', 'item_knn', 'SELECT u,i FROM ml.searched;', '{"shrink":1.5}', replace => true);
SELECT xmin = :'before' AS untouched FROM millrace.model WHERE relation = 'ml.tuned'::regclass;
SELECT millrace.create_model('ml.tuned', 'item_knn', 'SELECT u, i FROM ml.searched', '{"k": 7}', catalogue => 'SELECT i, price, available FROM ml.product', popular => 'SELECT i, price FROM ml.product', keep => 2, replace => true);
SELECT bool_and(p.price = 2) AS cheap, bool_or(r.item = '37') AS has_unknown FROM millrace.recommend('ml.tuned', '1', 100, filter => 'price = 2', exclude_seen => false) r JOIN ml.product p ON p.i::text = r.item;
SELECT millrace.train('ml.tuned') AS newest \gset
SELECT v.params, s.keep FROM millrace.model_version_status v JOIN millrace.model_status s USING (model) WHERE model = 'ml.tuned' AND v.version = :newest;
SELECT millrace.create_model('ml.tuned', 'item_knn', 'SELECT u, i FROM ml.searched', '{"k": 7}', catalogue => 'SELECT i, price AS euros FROM ml.product', replace => true);
SELECT count(*) > 0 AS found FROM millrace.recommend('ml.tuned', '1', 100, filter => 'euros = 2');
ALTER TABLE ml.searched RENAME COLUMN u TO who;
SELECT replace(millrace.describe('model', 'ml.tuned'), ');', ', replace => true);') AS again \gset
:again
SELECT millrace.create_model('ml.tuned', 'item_knn', 'SELECT who, i FROM ml.searched WHERE i > 1', '{"k": 7}', replace => true);
SELECT millrace.train('ml.tuned') AS newest \gset
SELECT min(item) FROM ml.tuned WHERE version = :newest;
SELECT millrace.create_model('ml.tuned', 'item_knn', 'SELECT who::text, i FROM ml.searched', replace => true);
SELECT millrace.create_model('ml.tuned', 'item_knn', 'SELECT who, i, 2 FROM ml.searched', replace => true);
SELECT millrace.create_model('ml.tuned', 'item_knn', 'SELECT who, i FROM ml.searched', online => true, replace => true);
SELECT millrace.create_model('ml.searched', 'item_knn', 'SELECT who, i FROM ml.searched', replace => true);
-- What users have now is counted anew by another query, and by none that is over more than one staging table.
SELECT millrace.create_stream('now');
SELECT millrace.create_staging('ml.had', stream => 'now', key => '{"id": ["$.id", "bigint"]}', columns => '{"u": "$.u", "i": "$.i"}');
SELECT millrace.create_mart('ml.had_counts', 'SELECT u, i, count(*) AS n FROM ml.had GROUP BY u, i');
SELECT millrace.create_model('ml.now', 'item_knn', 'SELECT u, i FROM ml.had');
SELECT count(millrace.push('now', json_build_object('id', u * 10 + i, 'u', 'u' || u, 'i', 'i' || i))) FROM generate_series(1, 5) u, generate_series(1, 4) i WHERE (u + i) % 3 > 0;
SELECT messages FROM millrace.run_stream('now');
SELECT millrace.train('ml.now');
SELECT array_agg(item ORDER BY rank) FROM millrace.recommend('ml.now', 'u1', 10);
SELECT millrace.create_model('ml.now', 'item_knn', $$ SELECT u, i FROM ml.had WHERE i <> 'i1' $$, replace => true);
SELECT profiles FROM millrace.model_status WHERE model = 'ml.now';
SELECT array_agg(item ORDER BY rank) FROM millrace.recommend('ml.now', 'u1', 10);
SELECT messages FROM millrace.run_stream('now');
SELECT s.profiles, v.missing, v.unexpected FROM millrace.model_status s, millrace.verify('ml.now') v WHERE model = 'ml.now';
SELECT array_agg(item ORDER BY rank) FROM millrace.recommend('ml.now', 'u1', 10);
SELECT millrace.create_model('ml.now', 'item_knn', 'SELECT u, i FROM ml.had JOIN ml.had_counts USING (u, i)', replace => true);
SELECT profiles FROM millrace.model_status WHERE model = 'ml.now';
SELECT array_agg(item ORDER BY rank) FROM millrace.recommend('ml.now', 'u1', 10);
SELECT millrace.drop_model('ml.now');
SELECT millrace.drop_stream('now', cascade => true);

-- In the background: test/t/011_trainer.pl has what happens then.
BEGIN;
SELECT millrace.train('ml.tuned', async => true);
SELECT model, version, state, error FROM millrace.training;
ROLLBACK;

-- What is refused.
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

-- A model belongs to whom its view belongs to.
CREATE ROLE registry_giver;
CREATE ROLE registry_taker;
GRANT millrace_admin TO registry_giver, registry_taker;
SET client_min_messages = warning;
GRANT ALL ON SCHEMA ml TO registry_giver, registry_taker;
SET client_min_messages = notice;
CREATE TABLE ml.price AS SELECT 'i' || i AS item, i AS price, i % 2 AS bought FROM generate_series(1, 15) i;
GRANT SELECT ON ml.bought, ml.price, ml.orders TO registry_giver, registry_taker;
SET ROLE registry_giver;
SELECT millrace.create_model('ml.given', 'item_knn', 'SELECT u, i FROM ml.bought', catalogue => 'SELECT item, price FROM ml.price', popular => 'SELECT item, price FROM ml.price');
SELECT millrace.create_model('ml.given_trees', 'xgboost', 'SELECT * FROM ml.price', '{"rounds": 1}', label => 'bought', entity => '{item}');
SELECT millrace.create_model('ml.given_streamed', 'item_knn', 'SELECT u, i FROM ml.orders', online => true);
SELECT millrace.train('ml.given'), millrace.train('ml.given_trees');
RESET ROLE;
REVOKE SELECT ON ml.price, ml.bought, ml.orders FROM registry_giver;
ALTER VIEW ml.given OWNER TO registry_taker;
SELECT model, owner FROM millrace.model_status WHERE model ~ 'given' ORDER BY 1;
REASSIGN OWNED BY registry_giver TO registry_taker;
SELECT model, owner FROM millrace.model_status WHERE model ~ 'given' ORDER BY 1;
SET ROLE registry_giver;
SELECT millrace.train('ml.given');
SELECT count(*) FROM ml.given;
RESET ROLE;
DROP OWNED BY registry_giver;
DROP ROLE registry_giver;
SELECT millrace.push('orders', '{"id": 3, "u": "a", "i": "z"}'::json) IS NOT NULL AS pushed;
SELECT messages, dead_letters FROM millrace.run_stream('orders');
SET ROLE registry_taker;
SELECT count(*) > 0 AS seen FROM ml.given, ml.given_trees;
SELECT item, neighbour FROM ml.given_streamed WHERE item = 'z' ORDER BY 2;
SELECT item FROM millrace.recommend('ml.given', 'nobody', 1, filter => 'price < 9');
SELECT millrace.predict_for('ml.given_trees', '{"item": "i3"}') IS NOT NULL AS predicted;
SELECT millrace.promote('ml.given', millrace.train('ml.given')), millrace.train('ml.given_trees');
RESET ROLE;
-- What is dropped with all that somebody owns leaves models that can be dropped.
SELECT m.relation::oid AS trees FROM millrace.model m WHERE m.relation = 'ml.given_trees'::regclass \gset
DROP OWNED BY registry_taker;
SELECT regexp_replace(subject, '\d+', 'n') AS subject, message, regexp_replace(hint, '\d+', 'n') AS hint FROM millrace.validate() WHERE subject ~ 'model \d';
SELECT millrace.push('orders', '{"id": 4, "u": "b", "i": "z"}'::json) IS NOT NULL AS pushed;
\set VERBOSITY sqlstate
SELECT millrace.predict(:trees, '{"price": 1}');
SELECT * FROM millrace.run_stream('orders');
\set VERBOSITY default
SELECT millrace.drop_model(m.relation) FROM millrace.model m WHERE m.owner = 'registry_taker'::regrole;
DROP ROLE registry_taker;
SELECT messages, dead_letters FROM millrace.run_stream('orders');

SELECT millrace.drop_model(m.relation) FROM millrace.model m WHERE m.relation::text LIKE 'ml.%';
SELECT count(*) FROM millrace.training;
SET client_min_messages = warning;
DROP VIEW ml.seen;
SELECT millrace.drop_table('ml.orders', cascade => true), millrace.drop_stream('orders');
DROP SCHEMA ml CASCADE;
