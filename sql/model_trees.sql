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
SELECT millrace.create_model('mt.m', 'xgboost', 'SELECT * FROM mt.event', label => 'bought', entity => '{user_id,session}', categories => '{"brand": -1}');
SELECT millrace.create_model('mt.m', 'xgboost', 'SELECT * FROM mt.event', label => 'bought', entity => '{user_id,session}', categories => '{"brand": 0}');
SELECT millrace.create_model('mt.m', 'xgboost', 'SELECT * FROM mt.event', label => 'bought', entity => '{user_id,session}', categories => '{"brandy": -1}');
SELECT millrace.create_model('mt.m', 'xgboost', 'SELECT user_id, bought FROM mt.event', label => 'bought', entity => '{user_id}');
SELECT millrace.create_model('mt.m', 'xgboost', 'SELECT * FROM mt.event', '{"max_dept": 3}', label => 'bought', entity => '{user_id}');
SELECT millrace.create_model('mt.m', 'xgboost', 'SELECT * FROM mt.event', '{"max_depth": 31}', label => 'bought', entity => '{user_id}');
SELECT millrace.create_model('mt.m', 'xgboost', 'SELECT * FROM mt.event', '{"rounds": 1.5}', label => 'bought', entity => '{user_id}');
SELECT millrace.create_model('mt.m', 'xgboost', 'SELECT * FROM mt.event', '{"rounds": "50"}', label => 'bought', entity => '{user_id}');
SELECT millrace.create_model('mt.m', 'xgboost', 'SELECT * FROM mt.event', '{"objective": "rank:ndcg"}', label => 'bought', entity => '{user_id}');
SELECT millrace.create_model('mt.m', 'item_knn', 'SELECT user_id, brand FROM mt.event', label => 'bought');

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
SELECT millrace.drop_model('mt.easy_model');
RESET ROLE;
SET client_min_messages = warning;
DROP SCHEMA mt CASCADE;
DROP OWNED BY mt_owner;
DROP ROLE mt_owner;
DROP ROLE mt_reader;
