-- Further sources of links, of another stream, with other names and types, and of a satellite that hangs on the link.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS millrace;
SET TimeZone = 'UTC';
\set SHOW_CONTEXT never
CREATE SCHEMA ls;
CREATE SCHEMA ld;
SELECT millrace.create_stream('link_orders'), millrace.create_stream('link_crm');
SELECT millrace.create_staging('ls.orders', stream => 'link_orders', key => '{"order_id": ["$.id", "bigint"]}', version => '["$.at", "timestamptz"]', log => true,
  columns => '{"user_id": "$.user", "seller_id": "$.seller", "price": ["$.price", "numeric(12,2)"]}');
SELECT millrace.create_staging('ls.crm', stream => 'link_crm', key => '{"no": "$.no"}', version => '["$.at", "timestamptz"]', log => true,
  columns => '{"who": "$.who", "by": "$.by", "sum": "$.sum"}');
SELECT millrace.create_hub('ld.h_order', source => 'ls.orders', business_key => '{order_id}');
SELECT millrace.create_hub('ld.h_user', source => 'ls.orders', business_key => '{user_id}');
SELECT millrace.create_link('ld.l_trade', source => 'ls.orders', hubs => '{ld.h_order, buyer=ld.h_user, seller=ld.h_user}', columns => '{"seller": {"user_id": "seller_id"}}');
SELECT millrace.create_satellite('ld.s_trade', source => 'ls.orders', parent => 'ld.l_trade', attributes => '{price}');

-- what is refused
SELECT millrace.add_source('ld.l_trade', source => 'ls.crm');
SELECT millrace.add_source('ld.l_trade', source => 'ls.crm', columns => '{"h_order": {"order_id": "no"}, "buyer": {"user_id": "who"}, "salesman": {"user_id": "by"}}');
SELECT millrace.add_source('ld.l_trade', source => 'ls.crm', columns => '{"h_order": {"order_id": "no"}, "buyer": {"user_id": "who"}, "seller": {"user_id": "bye"}}');
SELECT millrace.add_source('ld.l_trade', source => 'ls.crm', columns => '{"h_order": {"order_id": "no"}, "buyer": {"user": "who"}, "seller": {"user_id": "by"}}');
SELECT millrace.add_source('ld.l_trade', source => 'ls.crm', columns => '{"h_order": {"order_id": "no"}, "buyer": {"user_id": "who"}, "seller": {"user_id": "by"}}', record_source => 'crm');
SELECT millrace.add_source('ld.l_trade', source => 'ls.crm', columns => '{"h_order": {"order_id": "no"}, "buyer": {"user_id": "who"}, "seller": {"user_id": "by"}}', record_source => 'crm'); -- is there
SELECT millrace.add_source('ld.h_order', source => 'ls.crm', columns => '{"order_id": "no"}');
SELECT millrace.add_source('ld.h_user', source => 'ls.crm', columns => '{"user_id": "who"}');
SELECT millrace.add_source('ld.s_trade', source => 'ls.crm', columns => '{"price": "sum"}');
SELECT relation, sources FROM millrace.target_status WHERE relation::text LIKE 'ld.%' ORDER BY 1;

-- Both name one trade: it is there once, whoever comes first; what the CRM says later of its price counts.
SELECT FROM millrace.push('link_orders', '{"id": 1, "user": "ann", "seller": "bob", "price": 5, "at": "2026-01-01 10:00+00"}');
SELECT FROM millrace.push('link_crm', '{"no": "1", "who": "ann", "by": "bob", "sum": "6.50", "at": "2026-01-01 11:00+00"}');
SELECT FROM millrace.push('link_crm', '{"no": "2", "who": "bob", "by": null, "sum": "7", "at": "2026-01-01 11:00+00"}');
SELECT FROM millrace.push('link_crm', '{"no": "2", "who": "bob", "by": "ann", "sum": "8", "at": "2026-01-01 12:00+00"}');
SELECT FROM millrace.push('link_crm', '{"no": "x", "who": "bob", "by": "ann", "sum": "8", "at": "2026-01-01 12:00+00"}');
SELECT dead_letters FROM millrace.run_stream('link_crm');
SELECT dead_letters FROM millrace.run_stream('link_orders');
SELECT staging, sqlstate, message FROM millrace.dead_letter WHERE stream = 'link_crm';
SELECT order_id, buyer_user_id, seller_user_id, record_source FROM ld.l_trade_current ORDER BY 1, 2, 3;
SELECT order_id, buyer_user_id, seller_user_id, price, applied_at FROM ld.s_trade_current ORDER BY 1, 2, 3;
SELECT relation, missing, unexpected FROM unnest('{ld.h_order,ld.h_user,ld.l_trade,ld.s_trade}'::regclass[]) AS r, millrace.verify(r);

-- A link that is declared over both when they have rows is filled from both.
SELECT millrace.create_link('ld.l_again', source => 'ls.orders', hubs => '{ld.h_order, buyer=ld.h_user, seller=ld.h_user}', columns => '{"seller": {"user_id": "seller_id"}}');
SELECT millrace.add_source('ld.l_again', source => 'ls.crm', columns => '{"h_order": {"order_id": "no"}, "buyer": {"user_id": "who"}, "seller": {"user_id": "by"}}');
SELECT dead_letters FROM millrace.run_stream('link_orders');
SELECT dead_letters FROM millrace.run_stream('link_crm');
SELECT count(*) AS links, count(*) FILTER (WHERE EXISTS (SELECT FROM ld.l_trade t WHERE (t.h_order_hk, t.buyer_hk, t.seller_hk) = (a.h_order_hk, a.buyer_hk, a.seller_hk))) AS same FROM ld.l_again a;

-- Taken from other columns; then none.
SELECT millrace.add_source('ld.l_trade', source => 'ls.crm', columns => '{"h_order": {"order_id": "no"}, "buyer": {"user_id": "by"}, "seller": {"user_id": "who"}}', replace => true);
SELECT FROM millrace.push('link_crm', '{"no": "3", "who": "bob", "by": "ann", "sum": "9", "at": "2026-01-01 11:00+00"}');
SELECT dead_letters FROM millrace.run_stream('link_crm');
SELECT order_id, buyer_user_id, seller_user_id, record_source FROM ld.l_trade_current WHERE order_id > 2;
SELECT millrace.drop_source('ld.l_trade', 'ls.crm');
SELECT millrace.drop_source('ld.l_trade', 'ls.crm');
SELECT millrace.drop_source('ld.l_trade', 'ls.orders');
SELECT FROM millrace.push('link_crm', '{"no": "4", "who": "ann", "by": "bob", "sum": "9", "at": "2026-01-01 11:00+00"}');
SELECT dead_letters FROM millrace.run_stream('link_crm');
SELECT count(*) FROM ld.l_trade_current WHERE order_id > 3;

SELECT millrace.drop_stream(s, cascade => true) FROM unnest('{link_orders,link_crm}'::text[]) AS s;
DROP SCHEMA ls, ld;
