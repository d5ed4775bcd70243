-- Restaurant without dictionaries: messages that hold names and categories → staging → Data Vault → counters of what each
-- customer buys.
--
--	psql -f plain.sql                                                               on the inbox: millrace.push('orders', …)
--	psql -v broker=localhost:9092 [-v topic=orders] -f plain.sql                    from a Kafka topic
--	psql -v start=1 …                                                               and start it at once
--	psql -v log=true …                                                              with a log of every version, so that all can be verified
--
-- The shape of a message is in README.md.
\set ON_ERROR_STOP on
\if :{?topic}
\else
\set topic order-service_orders
\endif
\if :{?log}
\else
\set log false
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
SELECT millrace.create_staging('stg.order_events', stream => 'orders', log => :log, route => $$ object_type = 'order' $$,
  key => '{"order_id": [["$.object_id", "$key"], "bigint"]}',
  version => '["$timestamp", "timestamptz"]', event_time => '["$.payload.date", "timestamptz"]',
  columns => '{"object_type": "$.object_type",
               "restaurant_id": "$.payload.restaurant.id", "restaurant_name": "$.payload.restaurant.name",
               "user_id": "$.payload.user.id", "username": "$.payload.user.name", "userlogin": "$.payload.user.login",
               "status": "$.payload.status",
               "cost": ["$.payload.cost", "numeric(12,2)"], "payment": ["$.payload.payment", "numeric(12,2)"]}');
SELECT millrace.create_staging('stg.order_items', stream => 'orders', log => :log, for_each => '$.payload.products[*]',
  route => $$ object_type = 'order' $$,
  key => '{"order_id": [["$.object_id", "$key"], "bigint"]}',
  version => '["$timestamp", "timestamptz"]', event_time => '["$.payload.date", "timestamptz"]',
  columns => '{"object_type": "$.object_type", "restaurant_id": "$.payload.restaurant.id",
               "user_id": "$.payload.user.id", "status": "$.payload.status",
               "product_id": "@.id", "product_name": "@.name", "category_name": "@.category",
               "price": ["@.price", "numeric(12,2)"], "quantity": ["@.quantity", "integer"]}');

-- vault and marts
\ir model.sql

\if :{?start}
SELECT millrace.start_stream('orders');
\endif
