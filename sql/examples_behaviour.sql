-- The behaviour example: its star is what plain queries make of the events; a model is trained, promoted, and predicts what is bought.
\set VERBOSITY terse
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS millrace;
SET timezone = 'UTC';
\pset tuples_only on
\pset format unaligned
\set ECHO none
\o /dev/null
\i examples/behaviour/behaviour.sql
\i examples/behaviour/generate.sql
\o
\set ON_ERROR_STOP off
\set ECHO all
CREATE TEMP TABLE event AS SELECT row_number() OVER () AS n, e FROM pg_temp.behaviour_events(4000) AS e;
SELECT count(millrace.push('events', e)) FROM (SELECT e FROM event ORDER BY md5(n::text)) AS x;
SELECT messages, dead_letters FROM millrace.run_stream('events');
CREATE TEMP VIEW plain AS SELECT (e ->> 'user_id')::bigint AS user_id, (e ->> 'product_id')::bigint AS product_id, e ->> 'user_session' AS user_session, (e ->> 'event_timestamp')::timestamptz AS at, e ->> 'brand' AS brand,
    (e ->> 'price')::numeric AS price, e ->> 'category_code_level2' AS level2, (e ->> 'activity_count')::integer AS activity, (e ->> 'is_purchased')::integer AS bought FROM event;
SELECT count(*) = (SELECT count(DISTINCT user_id) FROM plain) FROM dwh.dim_user;
SELECT count(*) FROM (SELECT product_id, brand, price FROM dwh.dim_product EXCEPT SELECT product_id, brand, price FROM plain) AS d;
SELECT count(*) = (SELECT count(DISTINCT level2) FROM plain) FROM dwh.dim_category;
SELECT count(*) = (SELECT count(DISTINCT at::date) FROM plain), sum(events) = (SELECT count(*) FROM dwh.fact_event) FROM dwh.dim_date;
SELECT count(*) = (SELECT count(*) FROM (SELECT DISTINCT user_id, user_session FROM plain) AS s) FROM dwh.session_summary;
SELECT count(*) FROM (SELECT user_id, product_id, user_session, activity_count, is_purchased FROM feature_store.streaming_features EXCEPT ALL SELECT user_id, product_id, user_session, max(activity), max(bought) FROM plain GROUP BY 1, 2, 3) AS d;

SELECT millrace.train('ml.purchase', split => '{"by": "rows", "seed": 42}', metrics => '{auc}');
SELECT millrace.train('ml.purchase', search => '{"max_depth": [3, 4], "learning_rate": {"log": [0.05, 0.2]}}', trials => 3, seed => 42, split => '{"by": "rows", "seed": 42}', metrics => '{auc,logloss}');
SELECT metric, value > 0.6 AND popularity = 0.5 FROM millrace.model_version_metric WHERE model = 'ml.purchase' AND metric = 'auc';
SELECT millrace.promote('ml.purchase', 2, gate => 'new.auc > 0.6');
SELECT version FROM millrace.model_status WHERE model = 'ml.purchase';
SELECT avg(millrace.predict('ml.purchase', f)) FILTER (WHERE is_purchased = 1) > avg(millrace.predict('ml.purchase', f)) FILTER (WHERE is_purchased = 0) AS buyers_are_told FROM feature_store.streaming_features AS f;
SELECT count(*) FILTER (WHERE millrace.predict_for('ml.purchase', json_build_object('user_id', user_id, 'product_id', product_id, 'user_session', user_session)) IS DISTINCT FROM millrace.predict('ml.purchase', f)) AS differ, count(*)
FROM (SELECT * FROM feature_store.streaming_features ORDER BY 1, 2, 3 LIMIT 50) AS f;
SELECT millrace.predict_for('ml.purchase', '{"user_id": 571535080, "product_id": 12300394, "user_session": "s1"}') IS NULL AS is_unknown;
SELECT (SELECT source_positions::json FROM millrace.model_version_status WHERE model = 'ml.purchase' AND version = 2) -> 'events' IS NOT NULL AS knows_where;
SELECT millrace.drop_model('ml.purchase');
DROP VIEW dwh.session_summary, dwh.fact_event, dwh.dim_user, dwh.dim_product;
SELECT millrace.drop_stream('events', cascade => true);
DROP SCHEMA stg, dwh, feature_store, ml;
