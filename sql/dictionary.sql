-- Dictionaries over tables that another stream keeps: messages are enriched before they are staged, wait for what is not known
-- yet, and are completed when it is.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS millrace;
\set VERBOSITY default
\set SHOW_CONTEXT never
CREATE SCHEMA dic;
RESET client_min_messages;

SELECT millrace.create_stream('people');
SELECT millrace.create_staging('dic.people', stream => 'people', payload => 'none', key => '{"id": ["$.id", "integer"]}',
  columns => '{"name": "$.name", "address": ["$.address", "json"]}');
SELECT millrace.create_stream('goods');
SELECT millrace.create_staging('dic.goods', stream => 'goods', payload => 'none', key => '{"code": "$.code"}', columns => '{"category": "$.category", "price": ["$.price", "numeric(8,2)"]}');
SELECT millrace.create_dictionary('people', source => 'dic.people');
SELECT millrace.create_dictionary('goods', source => 'dic.goods');

-- what makes no sense is said when it is declared
SELECT millrace.create_dictionary('people', source => 'dic.people');
SELECT millrace.create_dictionary('x');
SELECT millrace.create_dictionary('x', source => 'dic.people', server => 'cache');
SELECT millrace.create_dictionary('x', source => 'dic.nothing');
SELECT millrace.create_dictionary('x', source => 'dic.people', lookup => '<id>');
SELECT millrace.create_dictionary('x', source => 'dic.people', ttl => '-1 s');
SELECT millrace.create_dictionary('x', source => 'dic.people', cache_size => 'much');
SELECT millrace.create_dictionary('x', server => 'nowhere');
CREATE SERVER elsewhere FOREIGN DATA WRAPPER millrace_kafka OPTIONS (bootstrap_servers '127.0.0.1:1');
SELECT millrace.create_dictionary('x', server => 'elsewhere');
CREATE SERVER cache FOREIGN DATA WRAPPER millrace_redis;
CREATE SERVER cache FOREIGN DATA WRAPPER millrace_redis OPTIONS (host '127.0.0.1', prot '1');
CREATE SERVER cache FOREIGN DATA WRAPPER millrace_redis OPTIONS (host '127.0.0.1', port 'x');
CREATE SERVER cache FOREIGN DATA WRAPPER millrace_redis OPTIONS (host '127.0.0.1', timeout '5 apples');
CREATE SERVER cache FOREIGN DATA WRAPPER millrace_redis OPTIONS (host '127.0.0.1', tls 'perhaps');
CREATE SERVER cache FOREIGN DATA WRAPPER millrace_redis OPTIONS (host '127.0.0.1', port '1', timeout '1s');
CREATE USER MAPPING FOR CURRENT_USER SERVER cache OPTIONS (password 'a', password_file 'b');
SELECT millrace.create_dictionary('x', server => 'cache', lookup => 'user');
SELECT millrace.create_dictionary('x', server => 'cache', type => 'hsh');
SELECT millrace.create_dictionary('x', server => 'cache', on_down => 'stay');
SELECT millrace.create_dictionary('x', server => 'cache', for_each => '$.menu[*]');
SELECT millrace.create_dictionary('x', server => 'cache', for_each => '$.menu', entry_key => '@.id');
SELECT millrace.create_dictionary('x', server => 'cache', for_each => '$.menu[*]', entry_key => '$.id');
SELECT millrace.create_dictionary('x', server => 'cache', for_each => '$.menu[*]', entry_key => '@.id', type => 'hash');
SELECT millrace.create_dictionary('x', server => 'cache', max_value => '1 TB');
-- one that does not answer is no reason to refuse it
SELECT millrace.create_dictionary('menus', server => 'cache', lookup => 'menu:<id>', for_each => '$.menu[*]', entry_key => '@.id', ttl => '5 s', on_down => 'stage');
DROP SERVER cache CASCADE;

SELECT millrace.create_stream('orders', enrich => '["goods", "$.id"]');
SELECT millrace.create_stream('orders', enrich => '{"buyer": "people"}');
SELECT millrace.create_stream('orders', enrich => '{"buyer": ["peopel", "$.buyer"]}');
SELECT millrace.create_stream('orders', enrich => '{"buyer": {"dictionary": "people", "look_up": "$.buyer"}}');
SELECT millrace.create_stream('orders', enrich => '{"buyer": {"dictionary": "people"}}');
SELECT millrace.create_stream('orders', enrich => '{"buyer": ["people", "@.buyer"]}');
SELECT millrace.create_stream('orders', enrich => '{"buyer": ["people", "$dict.buyer"]}');
SELECT millrace.create_stream('orders', enrich => '{"buyer": ["people", "$.buyers[*]"]}');
SELECT millrace.create_stream('orders', enrich => '{"buyer": ["menus", "$.buyer"]}');
SELECT millrace.create_stream('orders', enrich => '{"buyer": {"dictionary": "people", "lookup": "$.buyer", "entry": "$.x"}}');
SELECT millrace.create_stream('people', enrich => '{"friend": ["people", "$.friend"]}', replace => true);

SELECT millrace.create_stream('orders', enrich => '{"buyer": ["people", "$.buyer"], "good": {"dictionary": "goods", "lookup": "@.code", "for_each": "$.items[*]"}}');
SELECT millrace.create_staging('dic.x', stream => 'orders', key => '{"id": ["$.id", "integer"]}', columns => '{"a": "$dict.seller.name"}');
SELECT millrace.create_staging('dic.x', stream => 'orders', key => '{"id": ["$.id", "integer"]}', columns => '{"a": "$dict.buyer.nme"}');
SELECT millrace.create_staging('dic.x', stream => 'orders', key => '{"id": ["$.id", "integer"]}', columns => '{"a": "$dict.good.category"}');
SELECT millrace.create_staging('dic.x', stream => 'orders', for_each => '$.items[*]', key => '{"id": ["$.id", "integer"]}', columns => '{"a": "@dict.buyer.name"}');
SELECT millrace.create_staging('dic.x', stream => 'orders', for_each => '$.other[*]', key => '{"id": ["$.id", "integer"]}', columns => '{"a": "@dict.good.category"}');
SELECT millrace.create_staging('dic.x', stream => 'orders', key => '{"id": "$dict.buyer.name"}');
SELECT millrace.create_staging('dic.x', stream => 'orders', key => '{"id": ["$.id", "integer"]}', version => '"$dict.buyer.name"');
SELECT millrace.create_staging('dic.x', stream => 'orders', key => '{"id": ["$.id", "integer"]}', columns => '{"a": "$dict.buyer.name"}', route => $$ a = 'Ann' $$);

SELECT millrace.create_staging('dic.orders', stream => 'orders', log => true, payload => 'none', key => '{"id": ["$.id", "integer"]}', version => '["$.v", "integer"]',
  columns => '{"buyer": "$.buyer", "buyer_name": "$dict.buyer.name", "city": "$dict.buyer.address.city", "state": "$.state"}', expect => '{"named": "buyer_name IS NOT NULL"}');
SELECT millrace.create_staging('dic.items', stream => 'orders', for_each => '$.items[*]', key => '{"id": ["$.id", "integer"]}', version => '["$.v", "integer"]',
  columns => '{"code": "@.code", "category": "@dict.good.category", "price": ["@dict.good.price", "numeric(8,2)"], "n": ["@.n", "integer"]}',
  computed => '{"total": ["price * n", "numeric(10,2)"]}');
SELECT millrace.create_hub('dic.h_order', source => 'dic.orders', business_key => '{id}');
SELECT millrace.create_hub('dic.h_category', source => 'dic.items', business_key => '{category}');
SELECT millrace.create_link('dic.l_order_category', source => 'dic.items', hubs => '{dic.h_order, dic.h_category}');
SELECT millrace.create_satellite('dic.s_order', source => 'dic.orders', parent => 'dic.h_order', attributes => '{buyer_name, city, state}');
SELECT millrace.create_mart('dic.by_category', 'SELECT category, count(*) AS n, sum(total)::numeric(12,2) AS total FROM dic.items GROUP BY category');
SELECT millrace.describe('dictionary', 'menus');
SELECT millrace.describe('dictionary', 'people');
SELECT millrace.describe('stream', 'orders');

CREATE VIEW dic.shown AS SELECT id, buyer_name, city, state, _version, (SELECT string_agg(concat_ws(' ', i.code, i.category, i.total), ', ' ORDER BY i._element) FROM dic.items i WHERE i.id = o.id) AS items FROM dic.orders o ORDER BY id;
CREATE VIEW dic.waiting AS SELECT staging, dictionary, id, reason, convert_from(value, 'UTF8')::json ->> 'id' AS order_id FROM millrace.pending_message ORDER BY staging, dictionary, id, order_id;
CREATE VIEW dic.vault AS SELECT id, buyer_name, city, state FROM dic.s_order_current ORDER BY id, state;

SELECT count(millrace.push('people', json_build_object('id', i, 'name', n, 'address', json_build_object('city', c)))) FROM (VALUES (1, 'Ann', 'Oslo'), (2, E'B"o\\b', 'Rome')) AS p (i, n, c);
SELECT count(millrace.push('goods', json_build_object('code', c, 'category', k, 'price', p))) FROM (VALUES ('t', 'tea', 2.5), ('m', 'milk', 1.25)) AS g (c, k, p);
SELECT * FROM millrace.run_stream('people');
SELECT * FROM millrace.run_stream('goods');

-- 1 is known whole; 2 waits for a person, 3 for a good, 4 has no ids, 5 one that no integer can be
SELECT count(millrace.push('orders', o)) FROM (VALUES
  ('{"id": 1, "v": 1, "buyer": 1, "state": "open", "items": [{"code": "t", "n": 2}, {"code": "m", "n": 1}]}'),
  ('{"id": 2, "v": 1, "buyer": 7, "state": "open", "items": [{"code": "t", "n": 1}]}'),
  ('{"id": 3, "v": 1, "buyer": "2", "state": "open", "items": [{"code": "t", "n": 1}, {"code": "s", "n": 4}]}'),
  ('{"id": 4, "v": 1, "state": "open", "items": []}'),
  ('{"id": 5, "v": 1, "buyer": "x7", "items": [{"code": null, "n": 1}]}'),
  ('{"id": 6, "v": ')) AS o (o);
SELECT * FROM millrace.run_stream('orders');
TABLE dic.shown;
TABLE dic.waiting;
TABLE dic.vault;
TABLE dic.by_category ORDER BY 1;
SELECT kind, message FROM millrace.dead_letter ORDER BY id;
SELECT dictionary, source, streams, hits, misses, unknown, pending, pending_messages FROM millrace.dictionary_status ORDER BY 1;
SELECT severity, subject, message FROM millrace.validate('orders') WHERE subject LIKE 'dictionary%';
SELECT (SELECT count(*) FROM dic.orders_log) AS logged, v.* FROM millrace.verify('dic.orders') v;

-- nothing is learned: nothing changes
SELECT * FROM millrace.run_stream('orders');
TABLE dic.waiting;

-- what is declared over staged rows meanwhile is filled with those that are complete
SELECT millrace.create_hub('dic.h_code', source => 'dic.items', business_key => '{code}');
SELECT * FROM millrace.run_stream('orders');
SELECT string_agg(code, ', ' ORDER BY code) AS codes, (SELECT missing + unexpected FROM millrace.verify('dic.h_code')) AS wrong FROM dic.h_code;

-- a newer version comes meanwhile and knows its buyer; the older one is completed for the log and the vault alone
SELECT count(millrace.push('orders', '{"id": 2, "v": 2, "buyer": 1, "state": "paid", "items": [{"code": "m", "n": 3}]}'));
SELECT * FROM millrace.run_stream('orders');
SELECT count(millrace.push('people', '{"id": 7, "name": "Gil", "address": {"city": "Bonn"}}'));
SELECT count(millrace.push('goods', '{"code": "s", "category": "salt", "price": 0.5}'));
SELECT * FROM millrace.run_stream('people');
SELECT * FROM millrace.run_stream('goods');
SELECT change, relation, after ->> 'category' AS category, reason FROM millrace.preview('orders', payload => '{"id": 9, "v": 1, "buyer": 7, "items": [{"code": "s", "n": 1}, {"code": "?", "n": 1}]}') WHERE layer = 'staging';
SELECT * FROM millrace.run_stream('orders');
TABLE dic.shown;
TABLE dic.waiting;
SELECT id, _version, buyer_name, state FROM dic.orders_log ORDER BY id, _version;
SELECT string_agg(code, ', ' ORDER BY code) AS codes, (SELECT missing + unexpected FROM millrace.verify('dic.h_code')) AS wrong FROM dic.h_code;
TABLE dic.vault;
TABLE dic.by_category ORDER BY 1;
SELECT v.* FROM unnest('{dic.orders, dic.by_category, dic.h_order, dic.h_category, dic.s_order}'::regclass[]) r, millrace.verify(r) v;

-- the first complete enrichment stays, also when the message comes again
SELECT count(millrace.push('people', '{"id": 1, "name": "Anna", "address": {"city": "Oslo"}}'));
SELECT * FROM millrace.run_stream('people');
SELECT count(millrace.push('orders', '{"id": 1, "v": 1, "buyer": 1, "state": "open", "items": [{"code": "t", "n": 2}, {"code": "m", "n": 1}]}'));
SELECT * FROM millrace.run_stream('orders');
SELECT (SELECT buyer_name FROM dic.orders WHERE id = 1) AS staged, (SELECT string_agg(buyer_name, ', ') FROM dic.orders_log WHERE id = 1) AS logged,
  (SELECT string_agg(buyer_name, ', ') FROM dic.s_order JOIN dic.h_order USING (h_order_hk) WHERE id = 1) AS vault;

-- a message that waits is a person's, too
SELECT count(millrace.push('orders', '{"id": 10, "v": 1, "buyer": 70, "items": []}'));
SELECT count(millrace.push('orders', '{"id": 11, "v": 1, "buyer": 71, "items": []}'));
SELECT * FROM millrace.run_stream('orders');
SELECT relation, rows FROM millrace.erase('orders', '{"buyer": "70"}') WHERE rows > 0;
TABLE dic.waiting;

-- the largest number that the key can be is found, a larger one is one that it cannot be
SELECT count(millrace.push('people', '{"id": 2147483647, "name": "Max", "address": {"city": "Bonn"}}'));
SELECT * FROM millrace.run_stream('people');
SELECT count(millrace.push('orders', json_build_object('id', i, 'v', 1, 'buyer', b, 'items', json_build_array()))) FROM (VALUES (12, 2147483647), (13, 2147483648), (14, -2147483649)) AS o (i, b);
SELECT * FROM millrace.run_stream('orders');
SELECT id, buyer_name FROM dic.orders WHERE id > 11 ORDER BY id;
TABLE dic.waiting;

-- what a staging table no longer maps is not waited for
DROP VIEW dic.vault;
SELECT millrace.drop_table('dic.s_order');
SELECT millrace.create_staging('dic.orders', stream => 'orders', log => true, payload => 'none', key => '{"id": ["$.id", "integer"]}', version => '["$.v", "integer"]',
  columns => '{"buyer": "$.buyer", "state": "$.state"}', replace => true);
SELECT * FROM millrace.run_stream('orders');
TABLE dic.waiting;

-- what is used stays
SELECT millrace.drop_dictionary('people');
SELECT millrace.drop_table('dic.people', cascade => true);
SELECT millrace.drop_dictionary('peolpe');
CREATE ROLE dic_user;
GRANT millrace_admin TO dic_user;
SET ROLE dic_user;
SELECT millrace.create_stream('mine', enrich => '{"buyer": ["people", "$.buyer"]}');
SELECT millrace.drop_dictionary('menus');
SELECT count(*) FROM millrace.pending_message;
RESET ROLE;
SELECT millrace.create_stream('orders', replace => true);
SET client_min_messages = warning;
SELECT millrace.drop_table('dic.items', cascade => true);
RESET client_min_messages;
SELECT millrace.create_stream('orders', replace => true);
SELECT millrace.drop_dictionary('people');
SELECT millrace.drop_dictionary('goods');
SELECT millrace.drop_dictionary('menus');

SET client_min_messages = warning;
SELECT millrace.drop_stream(s, cascade => true) FROM unnest('{orders, people, goods}'::text[]) s;
DROP SERVER cache, elsewhere CASCADE;
DROP SCHEMA dic CASCADE;
DROP ROLE dic_user;
