-- Restaurant without dictionaries: messages that hold names and categories → staging → Data Vault → counters of what each
-- customer buys.
--
--	psql -f plain.sql                                                               on the inbox: millrace.push('orders', …)
--	psql -v broker=localhost:9092 [-v topic=orders] -f plain.sql                    from a Kafka topic
--	psql -v start=1 …                                                               and start it at once
--
-- The shape of a message is in README.md.
\set ON_ERROR_STOP on
\if :{?topic}
\else
\set topic order-service_orders
\endif

CREATE EXTENSION IF NOT EXISTS millrace;
CREATE SCHEMA stg;
CREATE SCHEMA dds;
CREATE SCHEMA cdm;

-- the stream: an inbox, or a topic
\if :{?broker}
CREATE SERVER broker FOREIGN DATA WRAPPER millrace_kafka OPTIONS (bootstrap_servers :'broker');
SELECT millrace.create_stream('orders', server => 'broker', format => 'json',
  options => json_build_object('topic', :'topic', 'start', 'earliest'));
\else
SELECT millrace.create_stream('orders', format => 'json');
\endif

-- staging: one row an order, and one row an item of it
SELECT millrace.create_staging('stg.order_events', stream => 'orders', route => $$ object_type = 'order' $$,
  key => '{"order_id": [["$.object_id", "$key"], "bigint"]}',
  version => '["$timestamp", "timestamptz"]', event_time => '["$.payload.date", "timestamptz"]',
  columns => '{"object_type": "$.object_type",
               "restaurant_id": "$.payload.restaurant.id", "restaurant_name": "$.payload.restaurant.name",
               "user_id": "$.payload.user.id", "username": "$.payload.user.name", "userlogin": "$.payload.user.login",
               "status": "$.payload.status",
               "cost": ["$.payload.cost", "numeric(12,2)"], "payment": ["$.payload.payment", "numeric(12,2)"]}');
SELECT millrace.create_staging('stg.order_items', stream => 'orders', for_each => '$.payload.products[*]',
  route => $$ object_type = 'order' $$,
  key => '{"order_id": [["$.object_id", "$key"], "bigint"]}',
  version => '["$timestamp", "timestamptz"]', event_time => '["$.payload.date", "timestamptz"]',
  columns => '{"object_type": "$.object_type", "restaurant_id": "$.payload.restaurant.id",
               "user_id": "$.payload.user.id", "status": "$.payload.status",
               "product_id": "@.id", "product_name": "@.name", "category_name": "@.category",
               "price": ["@.price", "numeric(12,2)"], "quantity": ["@.quantity", "integer"]}');

-- Data Vault: what there is, how it hangs together, what is known about it
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
