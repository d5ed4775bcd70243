-- Restaurant: the Data Vault and the marts over stg.order_events and stg.order_items, however these come to be. Read by
-- restaurant.sql and plain.sql.

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
