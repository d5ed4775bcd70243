-- Behaviour: what visitors of a shop do → a star schema → features → who is going to buy.
--
--	psql -f behaviour.sql                           the model, on an inbox: millrace.push('events', …)
--	psql -v events=20000 -f behaviour.sql           and that many made-up events, consumed; a model of purchases is trained and asked
--	psql -v broker=localhost:9092 -f behaviour.sql  the model, from the Kafka topic events (-v start=1 starts it)
--
-- A message is an event:
--
--	{"user_id": 1007, "product_id": 31, "user_session": "s1007-12", "event_timestamp": "2026-01-13T09:30:00Z", "event_type": "cart", "brand": "acme", "price": 12.50,
--	 "event_weekday": 2, "category_code_level1": "electronics", "category_code_level2": "electronics.3", "activity_count": 4, "is_purchased": 0}
\set ON_ERROR_STOP on

CREATE EXTENSION IF NOT EXISTS millrace;
CREATE SCHEMA stg;
CREATE SCHEMA dwh;
CREATE SCHEMA feature_store;
CREATE SCHEMA ml;

\if :{?broker}
CREATE SERVER behaviour_broker FOREIGN DATA WRAPPER millrace_kafka OPTIONS (bootstrap_servers :'broker');
SELECT millrace.create_stream('events', server => 'behaviour_broker', options => '{"topic": "events", "start": "earliest"}');
\else
SELECT millrace.create_stream('events');
\endif
SELECT millrace.create_staging('stg.events', stream => 'events', event_time => '"$.event_timestamp"', payload => 'none',
  key => '{"user_id": ["$.user_id", "bigint"], "product_id": ["$.product_id", "bigint"], "user_session": "$.user_session", "event_timestamp": ["$.event_timestamp", "timestamptz"]}',
  columns => '{"event_type": "$.event_type", "brand": "$.brand", "price": ["$.price", "numeric(10,2)"], "event_weekday": ["$.event_weekday", "integer"],
               "category_code_level1": "$.category_code_level1", "category_code_level2": "$.category_code_level2",
               "activity_count": ["$.activity_count", "integer"], "is_purchased": ["$.is_purchased", "integer"]}',
  computed => '{"price_tier": ["CASE WHEN price < 50 THEN ''low'' WHEN price < 200 THEN ''mid'' ELSE ''high'' END", "text"]}');

-- the star: facts are the staged events; dimensions are kept with every batch
SELECT millrace.create_hub('dwh.h_user', source => 'stg.events', business_key => '{user_id}');
SELECT millrace.create_hub('dwh.h_product', source => 'stg.events', business_key => '{product_id}');
SELECT millrace.create_satellite('dwh.s_product', source => 'stg.events', parent => 'dwh.h_product', attributes => '{brand, price, price_tier, category_code_level2}');
SELECT millrace.create_mart('dwh.dim_category', $$ SELECT category_code_level1, category_code_level2, count(*) AS events FROM stg.events GROUP BY 1, 2 $$);
SELECT millrace.create_mart('dwh.dim_date', $$ SELECT (event_timestamp AT TIME ZONE 'UTC')::date AS date, max(event_weekday) AS weekday, count(*) AS events FROM stg.events GROUP BY 1 $$);
CREATE VIEW dwh.dim_user AS SELECT user_id FROM dwh.h_user WHERE user_id IS NOT NULL;
CREATE VIEW dwh.dim_product AS SELECT h.product_id, s.brand, s.price, s.price_tier, s.category_code_level2 FROM dwh.s_product_current s JOIN dwh.h_product h USING (h_product_hk);
CREATE VIEW dwh.fact_event AS SELECT user_id, product_id, (event_timestamp AT TIME ZONE 'UTC')::date AS date, category_code_level2, user_session, event_timestamp, event_type, activity_count, is_purchased FROM stg.events;
CREATE VIEW dwh.session_summary AS
  SELECT user_id, user_session, min(event_timestamp) AS begun, max(event_timestamp) AS ended, count(*) AS events, count(DISTINCT product_id) AS products, sum(is_purchased) AS purchases
  FROM dwh.fact_event GROUP BY 1, 2;

-- what is known of a visitor and a product in a session
SELECT millrace.create_mart('feature_store.streaming_features', $$
  SELECT user_id, product_id, user_session, millrace.latest(brand, event_timestamp) AS brand, millrace.latest(price, event_timestamp)::numeric(10,2) AS price,
         max(event_weekday) AS event_weekday, millrace.latest(category_code_level1, event_timestamp) AS category_code_level1,
         millrace.latest(category_code_level2, event_timestamp) AS category_code_level2, max(activity_count) AS activity_count, max(is_purchased) AS is_purchased
  FROM stg.events GROUP BY 1, 2, 3 $$);

SELECT millrace.create_model('ml.purchase', kind => 'xgboost', query => $$ SELECT * FROM feature_store.streaming_features $$, label => 'is_purchased',
  entity => '{user_id, product_id, user_session}', params => '{"objective": "binary:logistic", "tree_method": "hist", "rounds": 50}',
  categories => '{"brand": -1, "category_code_level1": -1, "category_code_level2": -1}', keep => 5);

\if :{?start}
SELECT millrace.start_stream('events');
\endif
\if :{?events}
\ir generate.sql
SELECT count(millrace.push('events', event)) AS pushed FROM pg_temp.behaviour_events(:events) AS event;
SELECT * FROM millrace.run_stream('events');
-- a first version, which is served; a better one takes its place, if it is better by what the same split sets aside
SELECT millrace.train('ml.purchase', split => '{"by": "rows", "seed": 42}', metrics => '{auc,logloss}');
SELECT millrace.train('ml.purchase', search => '{"max_depth": [3, 4], "learning_rate": {"log": [0.05, 0.5]}}', trials => 5, seed => 42, split => '{"by": "rows", "seed": 42}', metrics => '{auc,logloss}');
SELECT version, metric, round(value::numeric, 3) AS value, round(popularity::numeric, 3) AS of_the_mean FROM millrace.model_version_metric WHERE model = 'ml.purchase' ORDER BY 1, 2;
SELECT millrace.promote('ml.purchase', version => 2, gate => 'new.auc > old.auc');
SELECT feature, splits, round(gain::numeric) AS gain FROM ml.purchase WHERE version = 2 ORDER BY gain DESC;
SELECT user_id, product_id, user_session, brand, price, round(millrace.predict('ml.purchase', f)::numeric, 3) AS probability FROM feature_store.streaming_features AS f ORDER BY probability DESC, 1, 2, 3 LIMIT 5;
SELECT round(millrace.predict_for('ml.purchase', '{"user_id": 1000, "product_id": 70, "user_session": "s1000-24"}')::numeric, 3) AS probability;
\endif
