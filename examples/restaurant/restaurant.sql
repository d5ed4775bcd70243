-- Restaurant: raw orders as JSON messages, enriched from a Redis → staging → Data Vault → counters of what each customer buys.
--
--	psql -v redis=localhost -f restaurant.sql                                       on the inbox: millrace.push('orders', …)
--	psql -v redis=localhost -v broker=localhost:9092 [-v topic=orders] -f …         from a Kafka topic
--	psql -v redis_port=6380 -v start=1 …                                            another port of the Redis; and start it at once
--
-- The shape of a message, and what the Redis holds, is in README.md.
\set ON_ERROR_STOP on
\if :{?topic}
\else
\set topic order-service_orders
\endif
\if :{?redis}
\else
\set redis localhost
\endif
\if :{?redis_port}
\else
\set redis_port 6379
\endif

CREATE EXTENSION IF NOT EXISTS millrace;
CREATE SCHEMA stg;
CREATE SCHEMA dds;
CREATE SCHEMA cdm;

-- what is known by id: users {name, login}, restaurants {name, menu: [{_id, category}]}
CREATE SERVER cache FOREIGN DATA WRAPPER millrace_redis OPTIONS (host :'redis', port :'redis_port');
SELECT millrace.create_dictionary('users',       server => 'cache', lookup => '<id>');
SELECT millrace.create_dictionary('restaurants', server => 'cache', lookup => '<id>');
SELECT millrace.create_dictionary('dishes',      server => 'cache', lookup => '<id>', for_each => '$.menu[*]', entry_key => '@._id');

-- the stream: an inbox, or a topic
\set enrich '{"user": ["users", "$.payload.user.id"], "restaurant": ["restaurants", "$.payload.restaurant.id"], "dish": {"dictionary": "dishes", "lookup": "$.payload.restaurant.id", "for_each": "$.payload.order_items[*]", "entry": "@.id"}}'
\if :{?broker}
CREATE SERVER broker FOREIGN DATA WRAPPER millrace_kafka OPTIONS (bootstrap_servers :'broker');
SELECT millrace.create_stream('orders', server => 'broker', format => 'json', enrich => :'enrich',
  options => json_build_object('topic', :'topic', 'start', 'earliest'));
\else
SELECT millrace.create_stream('orders', format => 'json', enrich => :'enrich');
\endif

-- staging: one row an order, and one row an item of it
SELECT millrace.create_staging('stg.order_events', stream => 'orders', route => $$ object_type = 'order' $$, log => true, timezone => 'Europe/Moscow',
  key => '{"order_id": [["$.object_id", "$key"], "bigint"]}',
  version => '["$timestamp", "timestamptz"]', event_time => '["$.payload.date", "timestamptz"]',
  columns => '{"object_type": "$.object_type",
               "restaurant_id": "$.payload.restaurant.id", "restaurant_name": "$dict.restaurant.name",
               "user_id": "$.payload.user.id", "username": "$dict.user.name", "userlogin": "$dict.user.login",
               "status": [["$.payload.status", "$.payload.final_status"], "text"],
               "cost": ["$.payload.cost", "numeric(12,2)"], "payment": ["$.payload.payment", "numeric(12,2)"]}');
SELECT millrace.create_staging('stg.order_items', stream => 'orders', for_each => '$.payload.order_items[*]', timezone => 'Europe/Moscow',
  route => $$ object_type = 'order' $$,
  key => '{"order_id": [["$.object_id", "$key"], "bigint"]}',
  version => '["$timestamp", "timestamptz"]', event_time => '["$.payload.date", "timestamptz"]',
  columns => '{"object_type": "$.object_type", "restaurant_id": "$.payload.restaurant.id",
               "user_id": "$.payload.user.id", "status": [["$.payload.status", "$.payload.final_status"], "text"],
               "product_id": "@.id", "product_name": "@.name", "category_name": "@dict.dish.category",
               "price": ["@.price", "numeric(12,2)"], "quantity": ["@.quantity", "integer"]}');

-- Data Vault: what there is, how it hangs together, what is known about it, and from when to when
SELECT millrace.create_hub('dds.h_user',       source => 'stg.order_events', business_key => '{user_id}');
SELECT millrace.create_hub('dds.h_restaurant', source => 'stg.order_events', business_key => '{restaurant_id}');
SELECT millrace.create_hub('dds.h_order',      source => 'stg.order_events', business_key => '{order_id}');
SELECT millrace.create_hub('dds.h_product',    source => 'stg.order_items',  business_key => '{product_id}');
SELECT millrace.create_hub('dds.h_category',   source => 'stg.order_items',  business_key => '{category_name}');
SELECT millrace.create_link('dds.l_order_user',         source => 'stg.order_events', hubs => '{dds.h_order, dds.h_user}');
SELECT millrace.create_link('dds.l_order_product',      source => 'stg.order_items',  hubs => '{dds.h_order, dds.h_product}');
SELECT millrace.create_link('dds.l_product_restaurant', source => 'stg.order_items',  hubs => '{dds.h_product, dds.h_restaurant}');
SELECT millrace.create_link('dds.l_product_category',   source => 'stg.order_items',  hubs => '{dds.h_product, dds.h_category}');
SELECT millrace.create_satellite('dds.s_user_names', source => 'stg.order_events', parent => 'dds.h_user',
  attributes => '{username, userlogin}');
SELECT millrace.create_satellite('dds.s_restaurant_names', source => 'stg.order_events', parent => 'dds.h_restaurant',
  attributes => '{restaurant_name}');
SELECT millrace.create_satellite('dds.s_product_names', source => 'stg.order_items', parent => 'dds.h_product',
  attributes => '{product_name}');
SELECT millrace.create_satellite('dds.s_order_cost', source => 'stg.order_events', parent => 'dds.h_order',
  attributes => '{cost, payment}');
SELECT millrace.create_satellite('dds.s_order_status', source => 'stg.order_events', parent => 'dds.h_order',
  attributes => '{status}');
SELECT millrace.create_satellite('dds.es_order_product', source => 'stg.order_items', parent => 'dds.l_order_product',
  kind => 'effectivity', driving_key => '{order_id}');
SELECT millrace.create_pit('dds.pit_order', hub => 'dds.h_order', satellites => '{dds.s_order_cost, dds.s_order_status}', every => 'day');

-- marts: what a customer has bought, by product and by category; the product's name is looked up when the mart is read
SELECT millrace.create_mart('cdm.user_product_counters', $$
  SELECT i.user_id, i.product_id, n.product_name, count(DISTINCT i.order_id) AS order_cnt
  FROM stg.order_items i LEFT JOIN dds.s_product_names_current n USING (product_id)
  WHERE i.status = 'CLOSED' GROUP BY i.user_id, i.product_id, n.product_name $$);
SELECT millrace.create_mart('cdm.user_category_counters', $$
  SELECT user_id, millrace.hash_key('dds.h_category', category_name) AS category_id, category_name,
         count(DISTINCT order_id) AS order_cnt
  FROM stg.order_items WHERE status = 'CLOSED' GROUP BY user_id, category_name $$);

\if :{?start}
SELECT millrace.start_stream('orders');
\endif
