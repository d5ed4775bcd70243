-- Shop: orders with dirty data → bronze (as they came) → silver (clean) → gold (figures).
--
--	psql -f shop.sql                           the model, on an inbox: millrace.push('shop', …)
--	psql -v orders=20000 -f shop.sql           and that many made-up orders, consumed, with the figures shown
--	psql -v broker=localhost:9092 -f shop.sql  the model, from the Kafka topic shop-orders (-v start=1 starts it)
--	psql -v source=app -f shop.sql             the model, from the changes of shop.orders (table.sql) in database app of this server; that may
--	                                           be the database of the model, too (-v start=1 starts it)
--
-- and where its alerts go, any of them: -v hook=http://localhost:9000 (a webhook), -v alert_broker=localhost:9092 (the Kafka topic shop-alerts),
-- -v redis=localhost -v redis_port=6379 (published to shop:alerts, kept for an hour as shop:alert:KEY). A hook's host must be in millrace.allowed_hosts.
--
-- A message is an order as it is now (the key is order_id); it comes again whenever the order changes:
--
--	{"order_id": "ORD0000001", "order_date": "2026-01-01T09:30:00Z", "customer_id": "CUST0001", "product_id": "PROD001",
--	 "category": "Books", "product_name": "Novel 1", "price": 12.50, "quantity": 2, "total": 25.00, "status": "completed",
--	 "payment_method": "card", "region": "North", "created_at": "2026-01-01T09:30:00Z", "updated_at": "2026-01-02T10:00:00Z"}
--
-- In this shop's data about 2 % of prices are negative (a sign that slipped in: the price is right), 3 % of totals are wrong (they are
-- computed anew), 1 % of quantities are 0 and 1 % of statuses empty: those orders are of no use. Silver holds what was really sold,
-- status completed or processing; an order that is cancelled leaves it, and leaves the figures of gold with it. What silver refuses is
-- in millrace.dead_letter with the name of the expectation that failed; bronze holds it as it came.
\set ON_ERROR_STOP on

CREATE EXTENSION IF NOT EXISTS millrace;
CREATE SCHEMA bronze;
CREATE SCHEMA silver;
CREATE SCHEMA gold;

-- where orders come from; :mapping is what both staging tables say of that: the name of a table, or each column of a message
\if :{?source}
CREATE SERVER shop_source FOREIGN DATA WRAPPER millrace_postgres OPTIONS (host :'HOST', port :'PORT', dbname :'source');
CREATE USER MAPPING FOR CURRENT_USER SERVER shop_source OPTIONS (username :'USER');      -- and password_file, where one is asked for
SELECT millrace.create_stream('shop', server => 'shop_source', options => '{"tables": ["shop.orders"]}');
SELECT $$ source_table => 'shop.orders' $$ AS mapping \gset
\else
\if :{?broker}
CREATE SERVER shop_broker FOREIGN DATA WRAPPER millrace_kafka OPTIONS (bootstrap_servers :'broker');
SELECT millrace.create_stream('shop', server => 'shop_broker', options => '{"topic": "shop-orders"}');
\else
SELECT millrace.create_stream('shop');
\endif
SELECT $$ key => '{"order_id": ["$.order_id", "text"]}', version => '["$.updated_at", "timestamptz"]',
  columns => '{"order_date": ["$.order_date", "timestamptz"], "customer_id": "$.customer_id",
               "product_id": "$.product_id", "category": "$.category", "product_name": "$.product_name",
               "price": ["$.price", "numeric(12,2)"], "quantity": ["$.quantity", "integer"], "total": ["$.total", "numeric(14,2)"],
               "status": "$.status", "payment_method": "$.payment_method", "region": "$.region",
               "created_at": ["$.created_at", "timestamptz"], "updated_at": ["$.updated_at", "timestamptz"]}' $$ AS mapping \gset
\endif

-- bronze: everything, as it came
SELECT millrace.create_staging('bronze.orders', stream => 'shop', event_time => '"$.order_date"', :mapping);

-- silver: cleaned; orders that are sold; what is of no use is refused by name
SELECT millrace.create_staging('silver.orders', stream => 'shop', event_time => '"$.order_date"', payload => 'none', :mapping,
  computed => '{"price": ["abs(raw.price)", "numeric(12,2)"], "total": ["abs(raw.price) * quantity", "numeric(14,2)"],
                "repaired": ["raw.price < 0 OR raw.total IS DISTINCT FROM raw.price * raw.quantity", "boolean"]}',
  filter => $$ status IN ('completed', 'processing') OR status = '' OR status IS NULL $$,
  expect => '{"quantity_positive": "quantity > 0", "has_status": "status <> ''''"}');

-- gold: marts, kept with every batch
SELECT millrace.create_mart('gold.daily_summary', $$
  SELECT order_date::date AS date, count(*) AS total_orders, sum(total)::numeric(18,2) AS total_revenue,
         (sum(total) / count(*))::numeric(14,2) AS avg_order_value,
         count(DISTINCT customer_id) AS unique_customers, count(DISTINCT product_name) AS unique_products
  FROM silver.orders GROUP BY 1 $$);
SELECT millrace.create_mart('gold.category_performance', $$
  SELECT order_date::date AS date, category, count(*) AS order_count, sum(quantity) AS quantity_sold, sum(total)::numeric(18,2) AS revenue,
         (sum(total) / sum(quantity))::numeric(14,2) AS avg_price
  FROM silver.orders GROUP BY 1, 2 $$);
SELECT millrace.create_mart('gold.product_day', $$
  SELECT order_date::date AS date, product_id, product_name, category, count(*) AS order_count, sum(quantity) AS quantity_sold,
         sum(total)::numeric(18,2) AS revenue
  FROM silver.orders GROUP BY 1, 2, 3, 4 $$, order_by => 'date, revenue DESC');
SELECT millrace.create_mart('gold.region_day', $$
  SELECT order_date::date AS date, region, count(*) AS order_count, sum(total)::numeric(18,2) AS revenue, count(DISTINCT customer_id) AS customers
  FROM silver.orders GROUP BY 1, 2 $$);
SELECT millrace.create_mart('gold.hour_day', $$
  SELECT order_date::date AS date, extract(hour FROM order_date)::integer AS hour, count(*) AS order_count, sum(total)::numeric(18,2) AS revenue
  FROM silver.orders GROUP BY 1, 2 $$);
SELECT millrace.create_mart('gold.overall_metrics', $$
  SELECT count(*) AS total_orders, sum(total)::numeric(18,2) AS total_revenue, count(DISTINCT customer_id) AS unique_customers,
         count(DISTINCT product_id) AS unique_products, count(*) FILTER (WHERE repaired) AS repaired_orders
  FROM silver.orders $$);
SELECT millrace.create_mart('gold.status_counts', $$ SELECT status, count(*) AS orders FROM bronze.orders GROUP BY status $$);

-- what customers bought besides: a model, trained by millrace.train('gold.also_bought') when there are orders; it recommends what has been sold, live
SELECT millrace.create_model('gold.also_bought', kind => 'item_knn', query => 'SELECT customer_id, product_id FROM silver.orders',
  catalogue => 'SELECT DISTINCT product_id, product_name, category FROM gold.product_day');

-- alerts: judged on what came, before it is cleaned; and where they go
\if :{?hook}
CREATE SERVER shop_hook FOREIGN DATA WRAPPER millrace_http OPTIONS (url :'hook');
SELECT millrace.create_channel('shop_hook', server => 'shop_hook',
  message => $$ jsonb_build_object('text', format('%s: %s, %s %s', message ->> 'severity', message ->> 'rule', key, message ->> 'details')) $$);
\endif
\if :{?alert_broker}
CREATE SERVER shop_alert_broker FOREIGN DATA WRAPPER millrace_kafka OPTIONS (bootstrap_servers :'alert_broker');
SELECT millrace.create_channel('shop_topic', server => 'shop_alert_broker', options => '{"topic": "shop-alerts"}');
\endif
\if :{?redis}
CREATE SERVER shop_cache FOREIGN DATA WRAPPER millrace_redis OPTIONS (host :'redis', port :'redis_port');
SELECT millrace.create_channel('shop_cache', server => 'shop_cache', options => '{"set": {"shop:alert:<key>": 3600}, "publish": "shop:alerts"}');
\endif
SELECT coalesce(array_agg(channel), '{}') AS channels FROM millrace.channel_status WHERE channel IN ('shop_hook', 'shop_topic', 'shop_cache') \gset
SELECT millrace.create_rule('HIGH_VALUE_ORDER',    kind => 'match', source => 'bronze.orders', predicate => 'total > 10000', rule_group => 'order_check', ordinal => 1,
  details => '{order_id, customer_id, product_name, total, quantity}', severity => 'critical', channels => :'channels');
SELECT millrace.create_rule('SUSPICIOUS_QUANTITY', kind => 'match', source => 'bronze.orders', predicate => 'quantity > 50', rule_group => 'order_check', ordinal => 2,
  details => '{order_id, quantity}', channels => :'channels');
SELECT millrace.create_rule('NEGATIVE_PRICE',      kind => 'match', source => 'bronze.orders', predicate => 'price < 0',     rule_group => 'order_check', ordinal => 3,
  details => '{order_id, price}', channels => :'channels');
SELECT millrace.create_rule('INVALID_QUANTITY',    kind => 'match', source => 'bronze.orders', predicate => 'quantity <= 0', rule_group => 'order_check', ordinal => 4,
  details => '{order_id, quantity}', channels => :'channels');
SELECT millrace.create_rule('RAPID_ORDERS', kind => 'frequency', source => 'bronze.orders', key => '{customer_id}', count => 5, within => '5 minutes', event_time => 'order_date',
  channels => :'channels');

-- and views over them
CREATE VIEW gold.top_products AS
  SELECT product_id, product_name, category, sum(order_count)::bigint AS order_count, sum(quantity_sold)::bigint AS quantity_sold, sum(revenue)::numeric(18,2) AS revenue
  FROM gold.product_day GROUP BY product_id, product_name, category ORDER BY revenue DESC, product_id LIMIT 10;
CREATE VIEW gold.category_stats AS
  SELECT category, sum(order_count)::bigint AS order_count, sum(quantity_sold)::bigint AS quantity_sold, sum(revenue)::numeric(18,2) AS revenue,
         (100 * sum(revenue) / sum(sum(revenue)) OVER ())::numeric(5,2) AS revenue_share
  FROM gold.category_performance GROUP BY category;
CREATE VIEW gold.region_stats AS
  SELECT region, sum(order_count)::bigint AS order_count, sum(revenue)::numeric(18,2) AS revenue FROM gold.region_day GROUP BY region;
CREATE VIEW gold.hourly_stats AS
  SELECT hour, sum(order_count)::bigint AS order_count, sum(revenue)::numeric(18,2) AS revenue FROM gold.hour_day GROUP BY hour;
CREATE VIEW gold.rejected AS
  SELECT staging, coalesce(expectation, sqlstate || ' ' || message) AS reason, count(*) AS rejected, min(at) AS first_at, max(at) AS last_at
  FROM millrace.dead_letter WHERE stream = 'shop' AND state = 'open' GROUP BY 1, 2;

\if :{?start}
SELECT millrace.start_stream('shop');
\endif
\if :{?orders}
\ir generate.sql
SELECT count(millrace.push('shop', message, key => message ->> 'order_id')) AS pushed FROM pg_temp.shop_messages(:orders) AS message;
SELECT * FROM millrace.run_stream('shop');
SELECT * FROM gold.overall_metrics;
SELECT * FROM gold.top_products;
SELECT * FROM gold.category_stats ORDER BY category;
SELECT * FROM gold.region_stats ORDER BY region;
SELECT reason, rejected FROM gold.rejected ORDER BY reason;
SELECT millrace.train('gold.also_bought') AS version;
SELECT rank, item, score::numeric(6,3) AS score, reason FROM millrace.recommend('gold.also_bought', 'CUST0042', 3, filter => $$ category = 'Food' $$, explain => true);
SELECT rule, count(*) AS alerts, count(*) FILTER (WHERE suppressed IS NULL) AS to_be_sent FROM millrace.alert GROUP BY rule ORDER BY rule;
\endif
