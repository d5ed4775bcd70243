-- Models of trees: what they are declared from, import, predictions, who may ask.
\set VERBOSITY terse
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS millrace;
\set SHOW_CONTEXT never
SET client_min_messages = notice;
CREATE SCHEMA mt;
CREATE TABLE mt.event (user_id bigint, session text, brand text, price numeric(10,2), is_new boolean, bought integer, seen_at timestamptz);
INSERT INTO mt.event VALUES (1, 's', 'acme', 5, true, 1, now()), (1, 't', 'bolt', 50, NULL, 0, now()), (2, 's', 'none', 7, false, NULL, now()), (3, 's', NULL, NULL, false, 1, now()), (4, 's', 'acme', 1, true, 0, now()), (4, 's', 'acme', 2, true, 0, now());

-- what cannot be declared
SELECT millrace.create_model('mt.m', 'xgboost', 'SELECT * FROM mt.event', entity => '{user_id}');
SELECT millrace.create_model('mt.m', 'xgboost', 'SELECT * FROM mt.event', label => 'bougth', entity => '{user_id}');
SELECT millrace.create_model('mt.m', 'xgboost', 'SELECT * FROM mt.event', label => 'bought', entity => '{user_id,bought}');
SELECT millrace.create_model('mt.m', 'xgboost', 'SELECT * FROM mt.event', label => 'bought', entity => '{user_id,session}');
SELECT millrace.create_model('mt.m', 'xgboost', 'SELECT *, now()::date AS today FROM mt.event', label => 'bought', entity => '{user_id,session}', categories => '{"brand": -1}');
SELECT millrace.create_model('mt.m', 'xgboost', 'SELECT user_id, bought, seen_at FROM mt.event', label => 'bought', entity => '{user_id}');
SELECT millrace.create_model('mt.m', 'xgboost', 'SELECT * FROM mt.event', label => 'bought', entity => '{user_id,session}', categories => '{"brand": 0}');
SELECT millrace.create_model('mt.m', 'xgboost', 'SELECT * FROM mt.event', label => 'bought', entity => '{user_id,session}', categories => '{"brandy": -1}');
SELECT millrace.create_model('mt.m', 'xgboost', 'SELECT user_id, bought FROM mt.event', label => 'bought', entity => '{user_id}');
SELECT millrace.create_model('mt.m', 'xgboost', 'SELECT * FROM mt.event', '{"max_dept": 3}', label => 'bought', entity => '{user_id}');
SELECT millrace.create_model('mt.m', 'xgboost', 'SELECT * FROM mt.event', '{"max_depth": 31}', label => 'bought', entity => '{user_id}');
SELECT millrace.create_model('mt.m', 'xgboost', 'SELECT * FROM mt.event', '{"rounds": 1.5}', label => 'bought', entity => '{user_id}');
SELECT millrace.create_model('mt.m', 'xgboost', 'SELECT * FROM mt.event', '{"rounds": "50"}', label => 'bought', entity => '{user_id}');
SELECT millrace.create_model('mt.m', 'xgboost', 'SELECT * FROM mt.event', '{"objective": "rank:ndcg"}', label => 'bought', entity => '{user_id}');
SELECT millrace.create_model('mt.m', 'item_knn', 'SELECT user_id, brand FROM mt.event', label => 'bought');
SELECT millrace.create_model('mt.m', 'xgboost', 'SELECT user_id, bought, price * 2, price * 3 FROM mt.event', label => 'bought', entity => '{user_id}');
SELECT millrace.create_model('mt.m', 'xgboost', 'SELECT user_id, bought, price, price FROM mt.event', label => 'bought', entity => '{user_id}');

SELECT millrace.create_model('mt.m', 'xgboost', 'SELECT user_id, session, brand, price, is_new, bought FROM mt.event', label => 'bought', entity => '{user_id,session}', categories => '{"brand": -1}');
\set file '{"version":[1,7,4],"learner":{"feature_names":["brand","price","is_new"],"objective":{"name":"reg:squarederror"},"learner_model_param":{"base_score":"1","num_feature":"3","num_class":"0"},"gradient_booster":{"name":"gbtree","model":{"trees":[{"left_children":[1,-1,3,-1,-1],"right_children":[2,-1,4,-1,-1],"split_indices":[0,0,1,0,0],"split_conditions":[0,10,6,20,40],"default_left":[0,0,1,0,0],"loss_changes":[3,0,2,0,0],"sum_hessian":[5,1,4,2,2]}]}}}}'
SELECT millrace.predict('mt.m', '{}');
SELECT millrace.import_model('mt.m', :'file'::bytea);
SELECT millrace.import_model('mt.m', :'file'::bytea, '{"brand": ["acme", 1]}');
SELECT millrace.import_model('mt.m', convert_to(replace(:'file', 'is_new', 'is_old'), 'UTF8'), '{"brand": ["acme", "bolt"]}');
SELECT millrace.import_model('mt.m', NULL);
SELECT millrace.import_model('mt.m', :'file'::bytea, '{"brand": ["bolt", "acme"]}');
SELECT * FROM mt.m ORDER BY feature;
SELECT version, aliases, params, rows FROM millrace.model_version_status WHERE model = 'mt.m';

-- an unknown brand is -1 and goes left; nothing goes right, and there left without a price
SELECT user_id, session, brand, price, millrace.predict('mt.m', e) AS row, millrace.predict('mt.m', jsonb_build_object('brand', brand, 'price', price)) AS jsonb,
       millrace.predict('mt.m', e, true) AS margin FROM mt.event AS e ORDER BY 1, 2, price;
SELECT millrace.predict('mt.m', '{"brand": "bolt", "price": 6}'), millrace.predict('mt.m', ARRAY[0, 5.99, NULL]::real[]), millrace.predict('mt.m', NULL::jsonb), millrace.predict('mt.m', '{"brand": "x"}'::json);
SELECT millrace.predict('mt.m', e) = millrace.predict('mt.m', ARRAY[0, 6, 1]::real[]) AS by_name FROM (SELECT true AS is_new, 'x' AS other, '6'::text AS price, 'bolt'::varchar AS brand) AS e;
SELECT millrace.predict('mt.m', '{"price": 1e39}');
SELECT millrace.predict('mt.m', '{"price": "Infinity"}');
SELECT millrace.predict('mt.m', '{"prices": 1}');
SELECT millrace.predict('mt.event', '{}');
SELECT * FROM millrace.recommend('mt.m', 'x');

SELECT s.session, millrace.predict_for('mt.m', json_build_object('user_id', 1, 'session', s.session)) FROM (VALUES ('s'), ('t'), ('u')) AS s (session);
SELECT millrace.predict_for('mt.m', '{"user_id": 3, "session": "s"}'), millrace.predict_for('mt.m', '{"user_id": null, "session": "s"}');
SELECT millrace.predict_for('mt.m', '{"user_id": 4, "session": "s"}');
SELECT millrace.predict_for('mt.m', '{"user_id": 4}');
SELECT millrace.predict_for('mt.m', '{"user_id": 4, "session": "s", "brand": "x"}');

SELECT millrace.train('mt.m', like_version => 2);

-- another version at once, in the same statement's session; back; gone
SELECT millrace.import_model('mt.m', convert_to(replace(:'file', '"base_score":"1"', '"base_score":"2"'), 'UTF8'), '{"brand": ["acme", "bolt"]}');
PREPARE p AS SELECT millrace.predict('mt.m', '{"brand": "acme", "price": 1}');
EXECUTE p;
SELECT millrace.promote('mt.m', 3);
EXECUTE p;
DO $$
BEGIN
    FOR i IN 2..3 LOOP
        RAISE NOTICE '%', millrace.predict('mt.m', '{"brand": "acme", "price": 1}');
        PERFORM millrace.promote('mt.m', i);
    END LOOP;
    RAISE NOTICE '%', millrace.predict('mt.m', '{"brand": "acme", "price": 1}');
END
$$;
SELECT millrace.rollback('mt.m');
EXECUTE p;
-- what a session keeps may get another index
REINDEX TABLE CONCURRENTLY millrace.model_alias;
EXECUTE p;
SELECT millrace.drop_version('mt.m', 3);

CREATE ROLE mt_reader;
GRANT USAGE ON SCHEMA mt TO mt_reader;
SET ROLE mt_reader;
EXECUTE p;
RESET ROLE;
GRANT SELECT ON mt.m TO mt_reader;
SET ROLE mt_reader;
EXECUTE p;
SELECT millrace.predict_for('mt.m', '{"user_id": 1, "session": "s"}');
RESET ROLE;
SELECT millrace.grant_profiles('mt.m', 'mt_reader');
SET ROLE mt_reader;
SELECT millrace.predict_for('mt.m', '{"user_id": 1, "session": "s"}');
RESET ROLE;

SET max_parallel_workers_per_gather = 2;
SET parallel_setup_cost = 0;
SET parallel_tuple_cost = 0;
SET min_parallel_table_scan_size = 0;
SELECT count(*), min(millrace.predict('mt.m', ARRAY[0, i, NULL]::real[])), max(millrace.predict('mt.m', ARRAY[0, i, NULL]::real[])) FROM generate_series(1, 1000) i;
SELECT sum(millrace.predict('mt.m', e)) FROM mt.event AS e;

-- entities are compared as their types do
CREATE EXTENSION citext SCHEMA mt;
CREATE TABLE mt.person AS SELECT name, code::char(3), brand, price, is_new, bought FROM mt.event, (VALUES ('Ann'::mt.citext, 'abc'), ('Bob', 'abd')) AS n (name, code) WHERE price = 5;
SELECT millrace.create_model('mt.named', 'xgboost', 'SELECT * FROM mt.person', label => 'bought', entity => '{name,code}', categories => '{"brand": -1}');
SELECT millrace.import_model('mt.named', :'file'::bytea, '{"brand": ["bolt", "acme"]}');
SELECT millrace.predict_for('mt.named', '{"name": "ANN", "code": "abc"}') AS ann, millrace.predict_for('mt.named', '{"name": "bob", "code": "abc"}') AS bob;
SELECT millrace.drop_model('mt.named');
-- and so are those that judge, and those that were trained on, however they are written
CREATE TABLE mt.same AS SELECT ('Name' || i % 50)::mt.citext AS name, (i % 4)::numeric AS code, i::money AS paid, i % 7 AS number, i % 2 AS bought FROM generate_series(1, 400) i;
SELECT millrace.create_model('mt.spelt', 'xgboost', 'SELECT * FROM mt.same', '{"rounds": 2}', label => 'bought', entity => '{name,code,paid}');
SELECT millrace.train('mt.spelt', split => '{"by": "rows"}', refit => false);
SELECT millrace.train('mt.spelt');
UPDATE mt.same SET name = upper(name::text), code = code + 0.00;
SELECT millrace.train('mt.spelt', like_version => 2);
SELECT pairs, skipped FROM millrace.evaluate('mt.spelt', 1, 'SELECT name::text, code::double precision, paid, number, bought FROM mt.same', '{auc}');
SELECT millrace.predict_for('mt.spelt', '{"name": "nAME1", "code": 1.000, "paid": 1}') IS NOT NULL AS known, millrace.predict_for('mt.spelt', '{"name": "name1", "code": 2, "paid": 1}') IS NULL AS unknown;
SELECT millrace.drop_model('mt.spelt');

-- features in another order
SELECT millrace.import_model('mt.m', convert_to(replace(:'file', '"brand","price"', '"price","brand"'), 'UTF8'), '{"brand": ["acme", "bolt"]}');
-- a margin of zero keeps its sign
SELECT millrace.promote('mt.m', millrace.import_model('mt.m', convert_to(replace(replace(replace(:'file', '"1","num_f', '"0.5","num_f'), 'reg:squarederror', 'binary:logistic'), '10,6,20,40', '-0E0,6,-0.0,-0E0'), 'UTF8'), '{"brand": []}'));
SELECT millrace.predict('mt.m', '{}', true) AS margin, millrace.predict('mt.m', '{}');

SELECT millrace.drop_model('mt.m');
EXECUTE p;
SELECT c.relname FROM pg_class c WHERE c.relname ~ '_(trees|importance)$';

-- Training, by somebody who is no superuser: what is easy to learn is learnt, and judged.
CREATE ROLE mt_owner;
GRANT millrace_admin TO mt_owner;
GRANT USAGE, CREATE ON SCHEMA mt TO mt_owner;
CREATE TABLE mt.easy AS SELECT i AS id, (ARRAY['x', 'y'])[i % 2 + 1] AS category, i % 7 AS number, i % 2 = 1 AS bought FROM generate_series(1, 2000) i;
ALTER TABLE mt.easy OWNER TO mt_owner;
SET ROLE mt_owner;
SELECT millrace.create_model('mt.easy_model', 'xgboost', 'SELECT * FROM mt.easy', '{"rounds": 20, "max_depth": 2}', label => 'bought', entity => '{id}', categories => '{"category": "missing"}', keep => 2);
SELECT millrace.train('mt.easy_model', split => '{"by": "customer_rows"}');
SELECT millrace.train('mt.easy_model', metrics => '{auc}');
SELECT millrace.train('mt.easy_model', split => '{"by": "tables", "test": "SELECT id, number FROM mt.easy"}');
SELECT millrace.train('mt.easy_model', split => '{"by": "rows", "seed": 1}', refit => false);
SELECT metric, round(value::numeric, 2) AS value, round(popularity::numeric, 2) AS popularity FROM millrace.model_version_metric WHERE model = 'mt.easy_model' ORDER BY 1;
SELECT metric, round(value::numeric, 2) AS value, pairs FROM millrace.evaluate('mt.easy_model', 2);
SELECT metric, round(value::numeric, 2) AS value, pairs, skipped FROM millrace.evaluate('mt.easy_model', 2, 'SELECT *, 1 AS other FROM mt.easy WHERE id <= 100', '{error,mae}');
SELECT millrace.train('mt.easy_model', search => '{"max_depth": [1, 2], "learning_rate": {"log": [0.1, 0.5]}}', trials => 2, split => '{"by": "tables", "test": "SELECT * FROM mt.easy WHERE id > 1900"}');
SELECT trial, metric, round(value::numeric, 1) < 0.3 AS is_small FROM millrace.model_version_trial WHERE model = 'mt.easy_model' ORDER BY trial;
-- halving: of 5, 3, 2, 1 are left; the last one has all of its rounds
BEGIN;
SELECT millrace.train('mt.easy_model', search => '{"max_depth": [1, 2], "learning_rate": {"log": [0.01, 0.5]}}', trials => 5, halving => true) AS halved \gset
SELECT rung, count(*), count(*) FILTER (WHERE chosen AND value = (SELECT x.value FROM millrace.model_version_metric x WHERE x.model = 'mt.easy_model' AND x.version = :halved AND x.metric = 'logloss')) > 0 AS chosen
FROM millrace.model_version_trial WHERE version = :halved GROUP BY 1 ORDER BY 1;
-- however many are trained at once, they are found to be the same
SET LOCAL max_parallel_maintenance_workers = 0;
SELECT millrace.train('mt.easy_model', search => '{"max_depth": [1, 2], "learning_rate": {"log": [0.01, 0.5]}}', trials => 5) AS one_by_one \gset
SET LOCAL max_parallel_maintenance_workers = 3;
SELECT millrace.train('mt.easy_model', search => '{"max_depth": [1, 2], "learning_rate": {"log": [0.01, 0.5]}}', trials => 5) AS at_once \gset
SELECT count(*), count(DISTINCT (trial, params, metrics)) FROM millrace.model_version_trial WHERE version IN (:one_by_one, :at_once);
ROLLBACK;
SELECT millrace.promote('mt.easy_model', 3, gate => 'new.error <= old.error');
SELECT version, aliases, metrics, rows, rows_skipped FROM millrace.model_version_status WHERE model = 'mt.easy_model' ORDER BY version;
SELECT bought, round(avg(millrace.predict('mt.easy_model', e))::numeric, 1) FROM mt.easy AS e GROUP BY 1 ORDER BY 1;
SELECT round(millrace.predict_for('mt.easy_model', '{"id": 4}')::numeric, 1);
-- as it is described it is declared again, and means the same
SELECT millrace.describe('model', 'mt.easy_model') AS described \gset
SELECT millrace.drop_model('mt.easy_model');
:described
SELECT millrace.describe('model', 'mt.easy_model') = :'described' AS is_the_same;
SELECT :'described' AS described;
-- what it reads is dropped: an entity has no features, a row still has
SELECT millrace.train('mt.easy_model');
SELECT round(millrace.predict_for('mt.easy_model', '{"id": 4}')::numeric, 1);
SELECT round(millrace.predict('mt.easy_model', e)::numeric, 1) FROM mt.easy AS e WHERE id = 4;
SET client_min_messages = warning;
DROP TABLE mt.easy CASCADE;
SET client_min_messages = notice;
SELECT millrace.predict_for('mt.easy_model', '{"id": 4}');
SELECT millrace.train('mt.easy_model');
SELECT round(millrace.predict('mt.easy_model', '{"category": "x", "number": 4}')::numeric, 1);
SELECT millrace.drop_model('mt.easy_model');
RESET ROLE;
SET client_min_messages = warning;
DROP SCHEMA mt CASCADE;
DROP OWNED BY mt_owner;
DROP ROLE mt_owner;
DROP ROLE mt_reader;
