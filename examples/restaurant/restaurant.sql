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

-- vault and marts; which products an order had from when to when, and what it looked like at the end of each day
\ir model.sql
SELECT millrace.create_satellite('dds.es_order_product', source => 'stg.order_items', parent => 'dds.l_order_product',
  kind => 'effectivity', driving_key => '{order_id}');
SELECT millrace.create_pit('dds.pit_order', hub => 'dds.h_order', satellites => '{dds.s_order_cost, dds.s_order_status}', every => 'day');

\if :{?start}
SELECT millrace.start_stream('orders');
\endif
