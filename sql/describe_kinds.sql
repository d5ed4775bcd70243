-- describe() of what reads elsewhere, of dictionaries, point-in-time tables, settings of marts and sources that were added: what it says makes
-- the same again.  Whether a broker is there does not matter; a mirror asks its source for key and columns, here another database of this server.
\set VERBOSITY terse
SET client_min_messages = error;
CREATE EXTENSION IF NOT EXISTS millrace;
\pset tuples_only on
\pset format unaligned
\set ON_ERROR_STOP off
CREATE SCHEMA kinds;
CREATE DATABASE describe_source;
SELECT current_database() AS database, current_user AS me, current_setting('port') AS port, split_part(current_setting('unix_socket_directories'), ',', 1) AS socket \gset
\c describe_source
CREATE TABLE public.item (id bigint PRIMARY KEY, name varchar(20), price numeric(8,2), at timestamptz, tags text[]);
\c :database
SET client_min_messages = error;
CREATE SERVER kinds_broker FOREIGN DATA WRAPPER millrace_kafka OPTIONS (bootstrap_servers '127.0.0.1:1');
CREATE SERVER kinds_source FOREIGN DATA WRAPPER millrace_postgres OPTIONS (host :'socket', port :'port', dbname 'describe_source');
CREATE SERVER kinds_cache FOREIGN DATA WRAPPER millrace_redis OPTIONS (host '127.0.0.1', port '1', timeout '1s');
CREATE USER MAPPING FOR CURRENT_USER SERVER kinds_source OPTIONS (username :'me');

-- ---- what there is
SELECT millrace.create_stream('kinds people');
SELECT millrace.create_staging('kinds.people', stream => 'kinds people', payload => 'none', key => '{"id": ["$.id", "integer"]}', columns => '{"name": "$.name"}');
SELECT millrace.create_dictionary('kinds people', source => 'kinds.people', ttl => '90 seconds', cache_size => '1 MB');
SELECT millrace.create_dictionary('kinds menus', server => 'kinds_cache', lookup => 'it''s:<id>', for_each => '$.menu[*]', entry_key => '@.id', ttl => '5 s', max_value => '2 MB', on_down => 'stage');
SELECT millrace.create_dictionary('kinds users', server => 'kinds_cache', type => 'hash');
SELECT millrace.create_stream('kinds kafka', server => 'kinds_broker', workers => 2, on_error => 'stop', incident_retention => '1 year',
  options => '{"topic": ["a", "b"], "partitions": [0, 3], "start": {"a": {"0": 100}}, "on_lost": "latest", "group": null, "refresh": "1 minute", "properties": {"client.id": "it''s \\ me", "fetch.wait.max.ms": 100}}',
  enrich => '{"user": ["kinds users", "$.user"], "buyer": ["kinds people", "$.buyer"],
    "dish": {"dictionary": "kinds menus", "lookup": "$.restaurant", "entry": "@.dish", "for_each": "$.items[*]"}}');
SELECT millrace.create_stream('kinds debezium', format => 'debezium', letter_retention => '1 mon 3 days');
SELECT millrace.create_stream('kinds changes', server => 'kinds_source',
  options => '{"tables": ["public.item"], "publication": "kinds", "slot": "kinds", "snapshot": "never", "snapshot_chunk": 500, "snapshot_parallel": 2, "truncate": "stop", "on_lost": "resnapshot", "wal_budget": "2 GB"}');
SELECT millrace.create_staging('kinds.orders', stream => 'kinds kafka', log => true, key => '{"order_id": ["$.id", "bigint"]}', version => '["$.at", "timestamptz"]',
  columns => '{"user_id": "$.user", "user_name": "$dict.user.name", "buyer": "$dict.buyer.name", "amount": ["$.amount", "numeric(12,2)"], "seller": "$.seller", "day": ["$.day", "date"]}');
SELECT millrace.create_staging('kinds.items', stream => 'kinds kafka', for_each => '$.items[*]', log => true, key => '{"order_id": ["$.id", "bigint"]}', version => '["$.at", "timestamptz"]',
  columns => '{"dish": "@dict.dish.name", "no": ["@.no", "integer"], "amount": ["@.amount", "numeric(12,2)"]}');
SELECT millrace.create_staging('kinds.crm', stream => 'kinds people', log => true, key => '{"no": "$.no"}', version => '["$.v", "bigint"]', columns => '{"who": "$.who", "by": "$.by", "nick": "$.nick", "sum": "$.sum"}');
SELECT millrace.create_staging('kinds.item', stream => 'kinds changes', source_table => 'public.item', event_time => '["$.at", "timestamptz"]',
  computed => '{"dear": ["price > 100", "boolean"]}', filter => $$ name <> 'test' $$, max_ahead => '3 days');
SELECT millrace.create_staging('kinds.names', stream => 'kinds changes', source_table => 'public.item', key => '{"id": ["$.id", "bigint"]}', columns => '{"name": "$.name"}');
SELECT millrace.create_hub('kinds.h_order', source => 'kinds.orders', business_key => '{order_id}');
SELECT millrace.create_hub('kinds.h_user', source => 'kinds.orders', business_key => '{user_id}');
SELECT millrace.create_hub('kinds.h_item', source => 'kinds.item', business_key => '{id}');
SELECT millrace.create_link('kinds.l_order', source => 'kinds.orders', hubs => '{kinds.h_order, kinds.h_user, seller=kinds.h_user}', columns => '{"seller": {"user_id": "seller"}}');
SELECT millrace.create_satellite('kinds.s_order', source => 'kinds.orders', parent => 'kinds.h_order', attributes => '{amount}');
SELECT millrace.create_satellite('kinds.s_lines', source => 'kinds.items', parent => 'kinds.h_order', kind => 'multi_active', sub_key => '{no}', attributes => '{dish, amount}', history => 'all');
SELECT millrace.create_satellite('kinds.s_trade', source => 'kinds.orders', parent => 'kinds.l_order', attributes => '{amount, day}');
SELECT millrace.create_satellite('kinds.s_item', source => 'kinds.item', parent => 'kinds.h_item', attributes => '{name, price}');
SELECT millrace.create_satellite('kinds.s_name', source => 'kinds.names', parent => 'kinds.h_item', attributes => '{name}');
SELECT millrace.add_source('kinds.h_order', source => 'kinds.crm', columns => '{"order_id": "no"}', record_source => 'it''s crm');
SELECT millrace.add_source('kinds.l_order', source => 'kinds.crm', columns => '{"h_order": {"order_id": "no"}, "h_user": {"user_id": "who"}, "seller": {"user_id": "by"}}', record_source => 'crm');
SELECT millrace.add_source('kinds.l_order', source => 'kinds.orders', columns => '{"h_user": {"user_id": "buyer"}, "seller": {"user_id": "user_id"}}');
SELECT millrace.add_source('kinds.s_order', source => 'kinds.crm', columns => '{"order_id": "no", "amount": "sum"}');
SELECT millrace.add_source('kinds.s_trade', source => 'kinds.crm', columns => '{"amount": "sum", "day": null}', record_source => 'crm');
SELECT millrace.create_pit('kinds.p_order', hub => 'kinds.h_order', satellites => '{kinds.s_order, kinds.s_lines}', every => 'day', timezone => 'Europe/Berlin');
SELECT millrace.create_pit('kinds.p_item', hub => 'kinds.h_item', satellites => '{kinds.s_name, kinds.s_item}', every => 'hour');
SELECT millrace.create_mart('kinds.by_day', $$ SELECT day, count(*) AS n, sum(amount)::numeric(14,2) AS amount FROM kinds.orders GROUP BY day $$, order_by => 'day, amount DESC NULLS LAST');
SELECT millrace.create_mart('kinds.by_seller', $$ SELECT seller, count(*) AS n FROM kinds.orders GROUP BY seller $$, stripes => 5);
SELECT millrace.create_mart('kinds.prices', $$ SELECT dear, count(*) AS n FROM kinds.item GROUP BY dear $$);
SELECT millrace.create_model('kinds.bought', 'item_knn', 'SELECT seller, amount, 1 FROM kinds.orders', params => '{"k": 5, "similarity": "dice"}', catalogue => 'SELECT DISTINCT amount, day FROM kinds.orders');
SELECT millrace.create_model('kinds.plain', 'item_knn', 'SELECT o.day, o.amount, o.day AS bought FROM kinds.orders AS o;', keep => 4);
ALTER TABLE kinds.l_order RENAME COLUMN seller_hk TO sold_by;
ALTER TABLE kinds.s_trade RENAME COLUMN day TO "The day";
ALTER TABLE kinds.orders RENAME COLUMN seller TO salesman;
ALTER TABLE kinds.crm RENAME COLUMN "by" TO sold_by;
ALTER TABLE kinds.item RENAME COLUMN name TO label;

\set ECHO none
\pset tuples_only off
SELECT millrace.describe(k, n) AS text FROM (VALUES ('dictionary', 'kinds people'), ('dictionary', 'kinds menus'), ('dictionary', 'kinds users'), ('stream', 'kinds kafka'), ('stream', 'kinds debezium'), ('stream', 'kinds changes'),
  ('staging', 'kinds.item'), ('staging', 'kinds.names'), ('link', 'kinds.l_order'), ('satellite', 'kinds.s_order'), ('satellite', 'kinds.s_trade'), ('pit', 'kinds.p_order'), ('pit', 'kinds.p_item'),
  ('mart', 'kinds.by_day'), ('mart', 'kinds.by_seller'), ('model', 'kinds.bought'), ('model', 'kinds.plain')) AS o (k, n);
\pset tuples_only on
\set ECHO all

-- ---- everything of the configuration but numbers and times, and all columns, indexes, views
CREATE VIEW kinds_described AS
SELECT 'stream' AS what, (to_jsonb(s) - '{id, created_at, config_version, fence}'::text[])::text AS row FROM millrace.stream s WHERE s.name LIKE 'kinds%'
UNION ALL
SELECT 'dictionary', (to_jsonb(d) - '{id, created_at, relation}'::text[])::text || coalesce(d.relation::text, '') AS row FROM millrace.dictionary d WHERE d.name LIKE 'kinds%'
UNION ALL
SELECT 'staging', (to_jsonb(s) - '{id, stream_id, log_since}'::text[])::text || (SELECT r.name FROM millrace.stream r WHERE r.id = s.stream_id) FROM millrace.staging s WHERE s.relation::text LIKE 'kinds.%'
UNION ALL
SELECT 'target', regexp_replace((to_jsonb(t) - '{id, horizon}'::text[] #- '{definition, query}' #- '{definition, hub}' #- '{definition, satellites}' #- '{definition, model}')::text, '"id": \d+', '', 'g')
       || coalesce((SELECT string_agg(o.relation::text, ' ' ORDER BY x.n) FROM json_array_elements_text(t.definition -> 'satellites') WITH ORDINALITY AS x (id, n)
                    JOIN millrace.target o ON o.id = x.id::integer), '')
       || coalesce((SELECT string_agg((to_jsonb(x) - '{target_id, staging_id, ordinal}'::text[])::text || g.relation::text, ' ' ORDER BY CASE t.kind WHEN 'pit' THEN 0 ELSE x.ordinal END, g.relation::text)
                    FROM millrace.target_source x JOIN millrace.staging g ON g.id = x.staging_id WHERE x.target_id = t.id), '')
FROM millrace.target t WHERE t.relation::text LIKE 'kinds.%'
UNION ALL
SELECT 'column', format('%s.%s %s %s %s', a.attrelid::regclass, a.attname, a.attnum, format_type(a.atttypid, a.atttypmod), a.attnotnull)
FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid WHERE c.relnamespace = 'kinds'::regnamespace AND c.relkind IN ('r', 'v') AND a.attnum > 0
UNION ALL
SELECT 'index', regexp_replace(pg_get_indexdef(i.indexrelid), '(mart|pit|model)_\d+', '\1_N', 'g') FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid
WHERE c.relnamespace = 'kinds'::regnamespace
   OR c.oid IN (SELECT to_regclass(format('millrace_state.%s_%s', t.kind, t.id)) FROM millrace.target t WHERE t.relation::text LIKE 'kinds.%')
UNION ALL
SELECT 'view', c.oid::regclass || ' ' || regexp_replace(pg_get_viewdef(c.oid), '(mart|pit|model)_\d+', '\1_N', 'g') FROM pg_class c WHERE c.relnamespace = 'kinds'::regnamespace AND c.relkind = 'v';
CREATE TABLE kinds_before AS SELECT * FROM kinds_described;
SELECT what, count(*) > 0 FROM kinds_before GROUP BY what ORDER BY what;
SELECT string_agg(row, E'\n') ~ '"order_by": "day, amount DESC' AND string_agg(row, E'\n') ~ '"stripes": 5' FROM kinds_before WHERE what = 'target';

-- ---- gone, and made again
SELECT millrace.describe() AS text \gset
SELECT millrace.drop_model('kinds.bought'), millrace.drop_model('kinds.plain');
SELECT millrace.drop_stream(s, cascade => true) FROM unnest('{kinds kafka, kinds debezium, kinds changes}'::text[]) AS s;
SELECT millrace.drop_dictionary(d) FROM unnest('{kinds people, kinds menus, kinds users}'::text[]) AS d;
SELECT millrace.drop_stream('kinds people', cascade => true);
SELECT count(*) FROM kinds_described;
\o /dev/null
:text
\o
(SELECT '-' AS side, * FROM kinds_before EXCEPT ALL SELECT '-', * FROM kinds_described)
UNION ALL
(SELECT '+' AS side, * FROM kinds_described EXCEPT ALL SELECT '+', * FROM kinds_before) ORDER BY 2, 1;
SELECT millrace.describe() = :'text' AS same_text;

-- what asks nobody is made although its source is away
SELECT millrace.describe('stream', 'kinds changes') AS stream, millrace.describe('staging', 'kinds.names') AS names, millrace.describe('staging', 'kinds.item') AS mirror \gset
SELECT millrace.drop_stream('kinds changes', cascade => true);
ALTER SERVER kinds_source OPTIONS (SET host '127.0.0.1', SET port '1');
\set ECHO none
\o /dev/null
:stream
:names
\o
:mirror
\set ECHO all
SELECT millrace.describe('staging', 'kinds.names') = :'names' AS same_text;

SELECT millrace.drop_model('kinds.bought'), millrace.drop_model('kinds.plain');
DROP VIEW kinds_described;
DROP TABLE kinds_before;
SELECT millrace.drop_stream(s, cascade => true) FROM unnest('{kinds kafka, kinds debezium, kinds changes}'::text[]) AS s;
SELECT millrace.drop_dictionary(d) FROM unnest('{kinds people, kinds menus, kinds users}'::text[]) AS d;
SELECT millrace.drop_stream('kinds people', cascade => true);
DROP SERVER kinds_broker, kinds_source, kinds_cache CASCADE;
DROP SCHEMA kinds CASCADE;
DROP DATABASE describe_source;
