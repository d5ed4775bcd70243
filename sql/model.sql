-- Models: item-item neighbours, their versions and their answers.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS millrace;
\set VERBOSITY default
\set SHOW_CONTEXT never
SET client_min_messages = notice;
CREATE SCHEMA ml;
CREATE TABLE ml.bought (u text, i text, w double precision);
INSERT INTO ml.bought VALUES ('u1', 'a', 1), ('u1', 'b', 1), ('u2', 'a', 1), ('u2', 'b', 1), ('u2', 'c', 1), ('u3', 'a', 1), ('u3', 'a', 1), ('u3', NULL, 1), (NULL, 'a', 1);

-- By hand: cos(a,b) .8165, cos(a,c) .5774, cos(b,c) .7071.
SELECT millrace.create_model('ml.also', kind => 'item_knn', query => 'SELECT u, i FROM ml.bought', params => '{"similarity": "cosine", "k": 2}');
SELECT * FROM millrace.recommend('ml.also', 'u1', 10);
SELECT millrace.train('ml.also');
SELECT version, item, rank, neighbour, round(score::numeric, 4) AS score FROM ml.also ORDER BY item, rank;
SELECT model, version, newest_version, versions FROM millrace.model_status;
SELECT version, aliases, params, rows, rows_skipped, pairs, users, items, neighbours FROM millrace.model_version_status;
SELECT count(*) FROM millrace.training_progress;

-- Answers.
SELECT * FROM millrace.similar('ml.also', 'b', 10);
SELECT * FROM millrace.similar('ml.also', 'b', 1);
SELECT * FROM millrace.similar('ml.also', 'nothing', 10);
SELECT rank, item, round(score::numeric, 4) AS score, reason, version FROM millrace.recommend('ml.also', 'u1', 10);
SELECT rank, item, round(score::numeric, 4) AS score, reason FROM millrace.recommend('ml.also', 'u3', 10, explain => true);
SELECT rank, item, round(score::numeric, 4) AS score, reason FROM millrace.recommend('ml.also', 'u1', 10, exclude_seen => false);
SELECT rank, item, score, reason FROM millrace.recommend('ml.also', 'nobody', 2);
SELECT rank, item, score, reason FROM millrace.recommend('ml.also', NULL, 2);
SELECT rank, item, score, reason FROM millrace.recommend('ml.also', 'nobody', 2, fallback => false);
SELECT rank, item, round(score::numeric, 4) AS score, reason FROM millrace.recommend('ml.also', items => '{b, b, nothing}', n => 10);
SELECT rank, item, score, reason FROM millrace.recommend('ml.also', items => '{nothing}', n => 1);
SELECT rank, item, score, reason FROM millrace.recommend('ml.also', items => '{}', n => 1);
SELECT count(*) FROM millrace.recommend('ml.also', 'u1', 0);
SELECT count(*) FROM millrace.similar('ml.also', 'a', 0);
SELECT * FROM millrace.recommend('ml.also', 'u1', -1);
SELECT * FROM millrace.similar('ml.also', 'a', -1);
SELECT * FROM millrace.recommend('ml.also', 'u1', NULL::integer);
SELECT * FROM millrace.similar('ml.bought', 'a', 1);
-- For many users.
SELECT x.u, r.rank, r.item FROM (SELECT DISTINCT u FROM ml.bought WHERE u IS NOT NULL) AS x CROSS JOIN LATERAL millrace.recommend('ml.also', x.u, 1) AS r ORDER BY x.u;

-- What is trained later is served when it is promoted.
INSERT INTO ml.bought VALUES ('u4', 'c', 1), ('u4', 'd', 1);
BEGIN;
SELECT millrace.train('ml.also');
ROLLBACK;
SELECT millrace.train('ml.also');
SELECT version FROM millrace.similar('ml.also', 'a', 1);
SELECT item FROM millrace.similar('ml.also', 'd', 9);
SELECT millrace.promote('ml.also', version => 3, reason => 'has d');
SELECT item, version FROM millrace.similar('ml.also', 'd', 9);
SELECT millrace.drop_version('ml.also', 3);
SELECT millrace.promote('ml.also', version => 2);
SELECT millrace.rollback('ml.also', reason => 'complaints');
SELECT millrace.rollback('ml.also');
SELECT alias, from_version, to_version, is_rollback, reason FROM millrace.model_alias_history ORDER BY promoted_at;
SELECT millrace.drop_version('ml.also', 3);
SELECT DISTINCT version FROM ml.also;
-- The same data give the same hash.
SELECT millrace.train('ml.also');
SELECT millrace.train('ml.also');
SELECT count(DISTINCT input_hash) FROM millrace.model_version_status WHERE version > 1;
-- The query follows renames.
ALTER TABLE ml.bought RENAME TO renamed;
INSERT INTO ml.renamed SELECT 'u5', 'e', 1;
SELECT millrace.train('ml.also');
ALTER TABLE ml.renamed RENAME TO bought;

-- Weights are summed.
TRUNCATE ml.bought;
INSERT INTO ml.bought VALUES ('u1', 'a', 1), ('u1', 'a', 1), ('u1', 'b', 3), ('u2', 'a', 4), ('u2', 'b', 1), ('u2', 'c', 0), ('u3', 'c', 5), ('u3', 'b', NULL);
SELECT millrace.create_model('ml.weighted', 'item_knn', 'SELECT u, i, w::numeric FROM ml.bought');
SELECT millrace.train('ml.weighted');
SELECT item, rank, neighbour, round(score::numeric, 6) AS score FROM ml.weighted ORDER BY item, rank;
SELECT round(10 / (sqrt(2 * 2 + 4 * 4) * sqrt(3 * 3 + 1))::numeric, 6) AS expected;
SELECT rank, item, score, reason FROM millrace.recommend('ml.weighted', 'u2', 9);
INSERT INTO ml.bought VALUES ('u2', 'a', -5);
SELECT millrace.train('ml.weighted');
UPDATE ml.bought SET w = 'Infinity' WHERE w = -5;
SELECT millrace.train('ml.weighted');
UPDATE ml.bought SET w = 'NaN' WHERE w = 'Infinity';
SELECT millrace.train('ml.weighted');
SELECT version FROM millrace.similar('ml.weighted', 'a', 1);

-- Nothing, one user, one item, all the same.
SELECT millrace.create_model('ml.edge', 'item_knn', 'SELECT u, i FROM ml.bought');
TRUNCATE ml.bought;
SELECT millrace.train('ml.edge');
SELECT count(*) FROM millrace.recommend('ml.edge', 'u1', 5);
INSERT INTO ml.bought VALUES ('u1', 'a');
SELECT millrace.promote('ml.edge', millrace.train('ml.edge'));
SELECT rank, item, score, reason FROM millrace.recommend('ml.edge', 'u1', 5);
SELECT rank, item, score, reason FROM millrace.recommend('ml.edge', 'u2', 5);
INSERT INTO ml.bought VALUES ('u1', 'b'), ('u2', 'a'), ('u2', 'b');
SELECT millrace.promote('ml.edge', millrace.train('ml.edge'));
SELECT item, neighbour, score FROM ml.edge WHERE version = 3 ORDER BY 1;

-- Ids of other types.
CREATE TABLE ml.numbered (customer bigint, product uuid);
INSERT INTO ml.numbered SELECT c, ('00000000-0000-0000-0000-00000000000' || p)::uuid FROM generate_series(1, 12) c, generate_series(1, 4) p WHERE c % p = 0;
SELECT millrace.create_model('ml.typed', 'item_knn', 'SELECT customer, product FROM ml.numbered', params => '{"similarity": "jaccard", "k": 1}');
SELECT millrace.train('ml.typed');
SELECT r.* FROM (VALUES (2::bigint)) AS v (customer) CROSS JOIN LATERAL millrace.recommend('ml.typed', v.customer::text, 1) AS r;
SELECT * FROM millrace.recommend('ml.typed', 'x', 1);

-- Of ids that are equal but differ the same one stays, in whatever order rows come.
CREATE TABLE ml.variant AS SELECT row_number() OVER () AS n, 'u' || u AS u, p FROM generate_series(1, 2) AS u, unnest('{1.0, 1, 2, 1.00}'::numeric[]) AS p;
SELECT millrace.create_model('ml.variants', 'item_knn', 'SELECT u, p FROM ml.variant ORDER BY n');
SELECT millrace.train('ml.variants');
UPDATE ml.variant SET n = -n;
SELECT millrace.train('ml.variants');
SELECT count(DISTINCT v.input_hash) AS hashes, string_agg(DISTINCT m.item::text, ' ') AS items FROM millrace.model_version_status v JOIN ml.variants m USING (version) WHERE v.model = 'ml.variants';
SELECT item FROM millrace.similar('ml.variants', '1.000');
-- An id of any length is not found in an index; an array is no id.
SELECT millrace.create_model('ml.x', 'item_knn', 'SELECT ARRAY[u] AS u, p FROM ml.variant');
SELECT millrace.create_model('ml.long', 'item_knn', $$ SELECT left(x.long, 1298) || u AS u, left(x.long, n::integer) AS p FROM ml.variant, (SELECT string_agg(md5(g::text), '') AS long FROM generate_series(1, 41) AS g) AS x $$);
UPDATE ml.variant SET n = 1299 + abs(n) % 2;
SELECT millrace.train('ml.long', split => '{"by": "customer_rows"}', refit => false, metrics => '{}');
UPDATE ml.variant SET n = 1301;
SELECT millrace.train('ml.long');
-- What was dropped with CASCADE leaves a model that can be dropped, and so does the view.
\set VERBOSITY terse
DROP TABLE ml.variant CASCADE;
\set VERBOSITY default
SELECT severity, subject, message, hint FROM millrace.validate() WHERE subject IN ('model ml.variants', 'model ml.typed');
SELECT millrace.train('ml.variants');
SELECT * FROM millrace.evaluate('ml.variants', 1, 'SELECT 1, 2');
SELECT item FROM millrace.similar('ml.variants', '1');
SELECT millrace.drop_model('ml.long');
DROP VIEW ml.variants;
SELECT millrace.drop_model(m.relation) FROM millrace.model m WHERE NOT EXISTS (SELECT FROM pg_class c WHERE c.oid = m.relation);

-- The catalogue is read when a model answers: what is not available, or not in it, is not answered; what the version does not know comes last.
TRUNCATE ml.bought;
INSERT INTO ml.bought VALUES ('u1', 'a'), ('u1', 'b'), ('u2', 'a'), ('u2', 'b'), ('u2', 'c'), ('u3', 'a'), ('u3', 'd'), ('u4', 'c'), ('u4', 'd'), ('u4', 'e');
CREATE TABLE ml.product (code text PRIMARY KEY, category text, price numeric, available boolean);
INSERT INTO ml.product VALUES ('a', 'x', 5, true), ('b', 'x', 20, true), ('c', 'y', 5, true), ('d', 'x', 7, true), ('new', 'x', 1, true), ('newer', 'y', 1, true);
SELECT millrace.create_model('ml.shop', 'item_knn', 'SELECT u, i FROM ml.bought', catalogue => 'SELECT code, category, price, available FROM ml.product');
SELECT millrace.train('ml.shop');
SELECT rank, item, round(score::numeric, 4) AS score, reason FROM millrace.recommend('ml.shop', 'u1', 10);
SELECT rank, item, round(score::numeric, 4) AS score, reason FROM millrace.recommend('ml.shop', 'u1', 10, filter => $$ category = 'x' AND price < 10 $$);
SELECT rank, item, round(score::numeric, 4) AS score, reason FROM millrace.recommend('ml.shop', 'u1', 1, filter => $$ category = 'x' $$, explain => true);
SELECT rank, item, round(score::numeric, 4) AS score, reason FROM millrace.recommend('ml.shop', 'u1', 10, filter => $$ category = 'x' $$, fallback => false);
SELECT rank, item, round(score::numeric, 4) AS score, reason FROM millrace.recommend('ml.shop', items => '{a}', n => 10, filter => $$ price < 6 $$);
SELECT item FROM millrace.similar('ml.shop', 'a', 10);
UPDATE ml.product SET available = CASE code WHEN 'd' THEN false END WHERE code IN ('d', 'newer');
SELECT rank, item FROM millrace.recommend('ml.shop', 'u1', 10);
SELECT item FROM millrace.similar('ml.shop', 'a', 10);
SELECT count(*) FROM millrace.recommend('ml.shop', 'u1', 0, filter => 'price > 0');
SELECT item FROM millrace.recommend('ml.shop', 'u1', 10, filter => '');
SELECT item FROM millrace.recommend('ml.shop', 'u1', 10, filter => 'pric > 0');
SELECT item FROM millrace.recommend('ml.shop', 'u1', 10, filter => 'price');
SELECT item FROM millrace.recommend('ml.shop', 'u1', 10, filter => 'true; DROP TABLE ml.product');
SELECT item FROM millrace.recommend('ml.shop', 'u1', 10, filter => 'price > (SELECT 0)');
SELECT item FROM millrace.recommend('ml.shop', 'u1', 10, filter => 'price > random()');
SELECT item FROM millrace.recommend('ml.shop', 'u1', 10, filter => 'count(*) > 0');
SELECT item FROM millrace.recommend('ml.shop', 'u1', 10, filter => 'price / 0 > 1');
-- Without one it is the items of the version.
SELECT item FROM millrace.recommend('ml.edge', 'u3', 10, filter => $$ item <> 'a' $$);
SELECT millrace.create_model('ml.x', 'item_knn', 'SELECT u, i FROM ml.bought', catalogue => 'SELECT price FROM ml.product');
SELECT millrace.create_model('ml.x', 'item_knn', 'SELECT u, i FROM ml.bought', catalogue => 'SELECT code, 1 AS available FROM ml.product');
SELECT millrace.create_model('ml.x', 'item_knn', 'SELECT u, i FROM ml.bought', catalogue => 'DELETE FROM ml.product');
\set VERBOSITY terse
DROP TABLE ml.product;
\set VERBOSITY default

-- What is refused.
SELECT millrace.create_model('ml.also', 'item_knn', 'SELECT u, i FROM ml.bought');
SELECT millrace.create_model('ml.x', 'item_nn', 'SELECT u, i FROM ml.bought');
SELECT millrace.create_model('ml.x', 'item_knn', 'SELECT u FROM ml.bought');
SELECT millrace.create_model('ml.x', 'item_knn', 'SELECT u, i, u AS w FROM ml.bought');
SELECT millrace.create_model('ml.x', 'item_knn', 'DELETE FROM ml.bought RETURNING u, i');
SELECT millrace.create_model('ml.x', 'item_knn', 'WITH d AS (DELETE FROM ml.bought RETURNING u, i) SELECT u, i FROM d');
SELECT millrace.create_model('ml.x', 'item_knn', 'SELECT u, i FROM ml.bought', '{"similarity": "cosin"}');
SELECT millrace.create_model('ml.x', 'item_knn', 'SELECT u, i FROM ml.bought', '{"K": 5}');
SELECT millrace.create_model('ml.x', 'item_knn', 'SELECT u, i FROM ml.bought', '{"k": 0}');
SELECT millrace.create_model('ml.x', 'item_knn', 'SELECT u, i FROM ml.bought', '{"shrink": -1}');
SELECT millrace.create_model('ml.x', 'item_knn', 'SELECT u, point(1, 2) AS i FROM ml.bought');
SELECT millrace.promote('ml.also', 99);
SELECT millrace.train('ml.bought');
-- Users and items need no names, columns of a catalogue do; what is kept reads nothing temporary, what is read now may.
SELECT millrace.create_model('ml.unnamed', 'item_knn', $$ SELECT u || '', i || '' FROM ml.bought $$);
SELECT millrace.train('ml.unnamed');
SELECT millrace.create_model('ml.x', 'item_knn', 'SELECT u, i FROM ml.bought', catalogue => 'SELECT code, price * 2 FROM ml.product');
SELECT millrace.create_model('ml.x', 'item_knn', 'SELECT u, i FROM ml.bought', catalogue => 'SELECT code, price, -price AS price FROM ml.product');
CREATE TEMP TABLE passing AS SELECT u, i, 1 AS n FROM ml.bought;
SELECT millrace.create_model('ml.x', 'item_knn', 'SELECT u, i FROM passing');
SELECT millrace.create_model('ml.x', 'item_knn', 'SELECT u, i FROM ml.bought', catalogue => 'SELECT i FROM passing');
SELECT millrace.create_model('ml.x', 'item_knn', 'SELECT u, i FROM ml.bought', popular => 'SELECT i, n FROM passing');
SELECT count(*) FROM millrace.evaluate('ml.unnamed', 1, $$ SELECT u || '', i || '' FROM passing $$);
SELECT millrace.train('ml.unnamed', split => '{"by": "tables", "test": "SELECT u, i FROM passing"}', async => true);
SELECT millrace.drop_model('ml.unnamed');
-- A query that would change something, by a function.
CREATE FUNCTION ml.meddle(text) RETURNS text LANGUAGE plpgsql AS $$ BEGIN INSERT INTO ml.bought VALUES ('meddled', 'x'); RETURN $1; END $$;
SELECT millrace.create_model('ml.meddling', 'item_knn', 'SELECT u, ml.meddle(i) FROM ml.bought');
SELECT millrace.train('ml.meddling');
SELECT count(*) FROM ml.bought WHERE u = 'meddled';

-- Who may ask.
CREATE ROLE regress_reader;
SET client_min_messages = warning;
GRANT USAGE ON SCHEMA ml TO regress_reader;
SET client_min_messages = notice;
SET ROLE regress_reader;
SELECT * FROM millrace.similar('ml.edge', 'a', 1);
RESET ROLE;
GRANT SELECT ON ml.edge, ml.shop TO regress_reader;
-- The catalogue is read as the model's owner, the filter is the caller's.
CREATE FUNCTION ml.secret() RETURNS boolean LANGUAGE sql IMMUTABLE AS 'SELECT true';
REVOKE EXECUTE ON FUNCTION ml.secret() FROM PUBLIC;
CREATE FUNCTION ml.who() RETURNS text LANGUAGE sql STABLE AS 'SELECT current_user::text';
SET ROLE regress_reader;
SELECT * FROM millrace.similar('ml.edge', 'a', 1);
SELECT count(*) FROM ml.product;
SELECT item FROM millrace.recommend('ml.shop', items => '{a}', n => 2, filter => $$ ml.who() = 'regress_reader' $$);
SELECT item FROM millrace.recommend('ml.shop', items => '{a}', n => 2, filter => 'ml.secret()');
SELECT item FROM millrace.recommend('ml.edge', items => '{a}', n => 1);
SELECT item FROM millrace.recommend('ml.edge', 'u1', 1);
SELECT millrace.train('ml.edge');
RESET ROLE;
SELECT millrace.grant_profiles('ml.edge', 'regress_reader');
SET ROLE regress_reader;
SELECT count(*) FROM millrace.recommend('ml.edge', 'u1', 1);
RESET ROLE;
SELECT millrace.revoke_profiles('ml.edge', 'regress_reader');
SET ROLE regress_reader;
SELECT item FROM millrace.recommend('ml.edge', 'u1', 1);
RESET ROLE;

-- A catalogue that was dropped with its table.
SET client_min_messages = warning;
DROP TABLE ml.product CASCADE;
SET client_min_messages = notice;
SELECT item FROM millrace.recommend('ml.shop', items => '{a}', n => 2, filter => 'price > 0');
SELECT item FROM millrace.similar('ml.shop', 'a', 2);

-- Nothing stays.
SELECT millrace.drop_model('ml.also'), millrace.drop_model('ml.weighted'), millrace.drop_model('ml.edge'), millrace.drop_model('ml.shop'), millrace.drop_model('ml.typed'), millrace.drop_model('ml.meddling');
SELECT count(*) FROM pg_class WHERE relname ~ '^model_(catalogue_)?[0-9]' AND relnamespace IN ('millrace_state'::regnamespace, 'millrace_def'::regnamespace);
SELECT count(*) FROM millrace.model_alias_history;
SELECT * FROM millrace.similar('ml.edge', 'a', 1);
SET client_min_messages = warning;
DROP SCHEMA ml CASCADE;
DROP ROLE regress_reader;
