-- Models of what is bad: nothing, one of all, all the same, missing and huge values, queries that would change something.
\set VERBOSITY terse
\set SHOW_CONTEXT never
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS millrace;
CREATE SCHEMA mb;

-- ---- neighbours ----------------------------------------------------------------------------------------------
CREATE TABLE mb.bought (u text, i text, w double precision);
SELECT millrace.create_model('mb.m', 'item_knn', 'SELECT u, i, w FROM mb.bought');
-- nothing: there is a version of nothing, and no metric has a value
SELECT millrace.train('mb.m', split => '{"by": "customer_rows"}', metrics => '{mrr,catalog_coverage@3}', search => '{"k": [1, 2]}', trials => 2);
SELECT metric, value, pairs FROM millrace.model_version_metric WHERE model = 'mb.m' ORDER BY 1;
SELECT millrace.train('mb.m', metrics => '{mrr}');
SELECT millrace.similar('mb.m', 'a'), millrace.recommend('mb.m', 'u', 5), millrace.recommend('mb.m', items => '{a}', n => 5);
-- one user who has one item, then a hundred times
INSERT INTO mb.bought VALUES ('u', 'a', 1);
SELECT millrace.promote('mb.m', millrace.train('mb.m'));
SELECT millrace.similar('mb.m', 'a'), millrace.recommend('mb.m', 'u', 5);
SELECT rank, item, score, reason FROM millrace.recommend('mb.m', 'unknown', 5);
SELECT millrace.train('mb.m', split => '{"by": "customer_rows"}', metrics => '{mrr}'), millrace.train('mb.m', split => '{"by": "customers"}', metrics => '{mrr}');
INSERT INTO mb.bought SELECT 'u', 'a', 1 FROM generate_series(1, 99);
SELECT millrace.train('mb.m');
SELECT rows, pairs, users, items, neighbours FROM millrace.model_version_status WHERE model = 'mb.m' ORDER BY version DESC LIMIT 1;
-- one user who has several; several users of one; all users have all
TRUNCATE mb.bought;
INSERT INTO mb.bought SELECT 'u', i, 1 FROM unnest('{a,b,c}'::text[]) AS i;
SELECT millrace.promote('mb.m', millrace.train('mb.m'));
SELECT rank, item, score FROM millrace.similar('mb.m', 'a');
SELECT millrace.recommend('mb.m', 'u', 5);
SELECT rank, item FROM millrace.recommend('mb.m', items => '{a}', n => 2147483647);
TRUNCATE mb.bought;
INSERT INTO mb.bought SELECT 'u' || u, 'a', 1 FROM generate_series(1, 3) AS u;
SELECT millrace.train('mb.m');
INSERT INTO mb.bought SELECT 'u' || u, i, 1 FROM generate_series(1, 3) AS u, unnest('{b,c}'::text[]) AS i;
SELECT millrace.promote('mb.m', millrace.train('mb.m', split => '{"by": "leave_one_out"}', metrics => '{recall@1}'));
SELECT rank, item, score FROM millrace.similar('mb.m', 'b');
-- nulls alone; weights of zero
TRUNCATE mb.bought;
INSERT INTO mb.bought VALUES (NULL, NULL, NULL), ('u', NULL, 1), (NULL, 'a', 1), ('u', 'a', NULL);
SELECT millrace.train('mb.m');
SELECT rows, rows_skipped, pairs, users, items FROM millrace.model_version_status WHERE model = 'mb.m' ORDER BY version DESC LIMIT 1;
TRUNCATE mb.bought;
INSERT INTO mb.bought VALUES ('u', 'a', 0), ('u', 'b', 0);
SELECT millrace.promote('mb.m', millrace.train('mb.m'));
SELECT millrace.similar('mb.m', 'a');
-- 2^31 times, and the most that a weight can be
TRUNCATE mb.bought;
INSERT INTO mb.bought VALUES ('u', 'a', 2147483648), ('u', 'b', 5e99), ('u', 'b', 5e99), ('v', 'a', 2147483648), ('v', 'c', 1);
SELECT millrace.promote('mb.m', millrace.train('mb.m'));
SELECT rank, item, score::real FROM millrace.recommend('mb.m', 'v', 5);
INSERT INTO mb.bought VALUES ('u', 'b', 1e99);
SELECT millrace.train('mb.m');
SELECT version = (SELECT max(v.version) FROM millrace.model_version_status v WHERE v.model = 'mb.m') AS still_served FROM millrace.similar('mb.m', 'a', 1);
-- a query of which 2^31 rows are expected takes memory for those that come
CREATE FUNCTION mb.many() RETURNS TABLE (u text, i text) LANGUAGE plpgsql STABLE ROWS 2147483648 AS $$ BEGIN RETURN QUERY VALUES ('u', 'a'), ('u', 'b'), ('v', 'a'); END $$;
SELECT millrace.create_model('mb.many', 'item_knn', 'SELECT u, i FROM mb.many()');
SET maintenance_work_mem = '1MB';
SELECT millrace.train('mb.many');
RESET maintenance_work_mem;
SELECT item, neighbour, round(score::numeric, 4) AS score FROM mb.many ORDER BY 1, 2;

-- ---- neighbours that are counted -----------------------------------------------------------------------------
SELECT millrace.create_stream('bad_models');
SELECT millrace.create_staging('mb.item', stream => 'bad_models', key => '{"id": ["$key", "bigint"]}', columns => '{"u": "$.u", "i": "$.i"}');
SELECT millrace.create_model('mb.online', 'item_knn', 'SELECT u, i FROM mb.item', online => true);
SELECT messages FROM millrace.run_stream('bad_models');
SELECT millrace.similar('mb.online', 'a'), millrace.recommend('mb.online', 'u', 5);
SELECT count(millrace.push('bad_models', v, key => k)) FROM (VALUES ('1', '{"u": null, "i": null}'), ('2', '{"u": "u"}'), ('3', '{"i": "a"}')) AS m (k, v);
SELECT messages, dead_letters FROM millrace.run_stream('bad_models');
SELECT millrace.similar('mb.online', 'a'), millrace.recommend('mb.online', 'u', 5);
-- one user who has one item, however often
SELECT count(millrace.push('bad_models', '{"u": "u", "i": "a"}', key => k::text)) FROM generate_series(1, 100) AS k;
SELECT messages, dead_letters FROM millrace.run_stream('bad_models');
SELECT millrace.similar('mb.online', 'a'), millrace.recommend('mb.online', 'u', 5);
SELECT rank, item, reason FROM millrace.recommend('mb.online', 'unknown', 2147483647);
SELECT relation, missing, unexpected FROM millrace.verify('mb.online');
-- a model that would count more than 2^31 pairs is not declared
SELECT millrace.drop_model('mb.online');
INSERT INTO mb.item (id, u, i) SELECT 1000 + n, 'u', n FROM generate_series(1, 65537) AS n;
SELECT millrace.create_model('mb.huge', 'item_knn', 'SELECT u, i FROM mb.item', online => true);

-- ---- trees ---------------------------------------------------------------------------------------------------
CREATE TABLE mb.event (id integer, f real, g text, y double precision);
SELECT millrace.create_model('mb.t', 'xgboost', 'SELECT * FROM mb.event', '{"rounds": 2, "base_score": 0.5}', label => 'y', entity => '{id}', categories => '{"g": -1}');
SELECT millrace.train('mb.t');
-- one row, then the same again and again
INSERT INTO mb.event VALUES (1, 1, 'x', 1);
SELECT millrace.train('mb.t', split => '{"by": "rows"}');
SELECT millrace.train('mb.t') IS NOT NULL AS trained;
SELECT millrace.predict('mb.t', '{"f": 1, "g": "x"}') BETWEEN 0.5 AND 1 AS predicted;
INSERT INTO mb.event SELECT 1, 1, 'x', 1 FROM generate_series(1, 20);
SELECT millrace.train('mb.t', split => '{"by": "rows"}');
SELECT millrace.train('mb.t', search => '{"max_depth": [1, 2]}', trials => 2, split => '{"by": "tables", "test": "SELECT 7 AS id, 1 AS f, NULL AS g, 0 AS y"}') IS NOT NULL AS trained;
SELECT metric, value IS NULL AS without FROM millrace.model_version_metric WHERE model = 'mb.t' ORDER BY 1;
-- missing values, also of the entity; those without a label are skipped
INSERT INTO mb.event VALUES (NULL, 'NaN', NULL, 0), (NULL, NULL, '', 0), (2, NULL, NULL, NULL), (3, 0, 'y', 'NaN');
SELECT millrace.train('mb.t') IS NOT NULL AS trained;
SELECT rows, rows_skipped FROM millrace.model_version_status WHERE model = 'mb.t' ORDER BY version DESC LIMIT 1;
SELECT millrace.predict_for('mb.t', '{"id": null}') AS null_entity, millrace.predict_for('mb.t', '{"id": 99}') AS unknown;
-- labels that the objective does not know, and infinity
INSERT INTO mb.event VALUES (4, 0, 'y', -1);
\set VERBOSITY sqlstate
SELECT millrace.train('mb.t');
\set VERBOSITY terse
UPDATE mb.event SET y = 'Infinity' WHERE id = 4;
SELECT millrace.train('mb.t');
UPDATE mb.event SET y = 1, f = '-Infinity' WHERE id = 4;
SELECT millrace.train('mb.t');
DELETE FROM mb.event WHERE id = 4;
-- features that are none
SELECT millrace.predict('mb.t', '{"f": "x"}');
SELECT millrace.predict('mb.t', '{"f": [1]}');
SELECT millrace.predict('mb.t', '{"g": {}}');
SELECT millrace.predict('mb.t', '[1, 2]');
SELECT millrace.predict('mb.t', '1');
SELECT millrace.predict('mb.t', '{"f": 1');
SELECT millrace.predict('mb.t', ROW(1, 2));
SELECT millrace.predict('mb.t', '{}'::real[]);
SELECT millrace.predict('mb.t', ARRAY[1, 2, 3]::real[]);
SELECT millrace.predict('mb.t', e) FROM (SELECT 'x'::text AS f, 1 AS g) AS e;
SELECT millrace.predict('mb.t', e) FROM (SELECT now() AS f, 'x' AS g) AS e;
SELECT millrace.predict_for('mb.t', '{"id": "x"}');
SELECT millrace.predict_for('mb.t', '[1]');

-- ---- queries that would change something ---------------------------------------------------------------------
CREATE FUNCTION mb.meddle(anyelement) RETURNS anyelement LANGUAGE plpgsql AS $$ BEGIN INSERT INTO mb.bought VALUES ('meddled', 'x', 1); RETURN $1; END $$;
TRUNCATE mb.bought;
INSERT INTO mb.bought VALUES ('u', 'a', 1), ('u', 'b', 1), ('v', 'a', 1), ('v', 'c', 1);
SELECT millrace.create_model('mb.offered', 'item_knn', 'SELECT u, i FROM mb.bought', catalogue => 'SELECT mb.meddle(i) AS i, w FROM mb.bought');
SELECT millrace.create_model('mb.liked', 'item_knn', 'SELECT u, i FROM mb.bought', popular => 'SELECT mb.meddle(i), 1 FROM mb.bought');
SELECT millrace.create_model('mb.trees', 'xgboost', 'SELECT id, mb.meddle(f) AS f, y FROM mb.event', '{"rounds": 1}', label => 'y', entity => '{id}');
SELECT millrace.train('mb.offered'), millrace.train('mb.liked');
SELECT millrace.recommend('mb.offered', 'u', 5);
SELECT millrace.recommend('mb.liked', 'nobody', 5);
SELECT millrace.recommend('mb.liked', 'nobody', 5, filter => 'mb.meddle(item) IS NULL');
SELECT millrace.train('mb.m', split => '{"by": "tables", "test": "SELECT u, mb.meddle(i) FROM mb.bought"}');
SELECT millrace.train('mb.m', split => '{"by": "tables", "test": "SELECT u, i FROM mb.bought", "train": "SELECT u, mb.meddle(i), w FROM mb.bought"}');
SELECT millrace.evaluate('mb.m', 1, 'WITH d AS (DELETE FROM mb.bought RETURNING u, i) SELECT u, i FROM d');
SELECT millrace.train('mb.trees');
SELECT millrace.import_model('mb.trees', '{"version":[1,7,4],"learner":{"feature_names":[],"objective":{"name":"reg:squarederror"},"learner_model_param":{"base_score":"1","num_feature":"1","num_class":"0"},"gradient_booster":{"name":"gbtree","model":{"trees":[]}}}}');
SELECT millrace.predict_for('mb.trees', '{"id": 2}');
SELECT millrace.evaluate('mb.t', (SELECT max(v.version) FROM millrace.model_version_status v WHERE v.model = 'mb.t'), 'SELECT id, mb.meddle(f) AS f, g, y FROM mb.event');
SELECT count(*) FROM mb.bought WHERE u = 'meddled';

SELECT millrace.drop_model(m.relation) FROM millrace.model m WHERE m.relation::text LIKE 'mb.%';
SELECT millrace.drop_stream('bad_models', cascade => true);
DROP SCHEMA mb CASCADE;
