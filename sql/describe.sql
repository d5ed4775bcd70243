-- describe(): the SQL that it gives makes the same objects, and describe() says the same of them.
\set VERBOSITY terse
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS millrace;
\pset tuples_only on
\pset format unaligned
\o /dev/null
\set ECHO none
\i examples/restaurant/plain.sql
\set ECHO all
\o
\set ON_ERROR_STOP off

-- what has other than default values, strange names, quotes, and what has been renamed since
CREATE SCHEMA "De scribe";
CREATE SCHEMA other;
CREATE ROLE describe_pusher;
CREATE FUNCTION other.cleaned(v text) RETURNS text IMMUTABLE LANGUAGE sql RETURN nullif(btrim(v), '');
SELECT millrace.create_stream('it''s', workers => 3, on_error => 'skip', max_dead_letter_share => 0.25, letter_retention => '30 days');
SELECT millrace.grant_push('it''s', 'describe_pusher'), millrace.grant_push('it''s', 'public');
SELECT millrace.create_staging('"De scribe"."T""1"', stream => 'it''s', log => true, payload => 'jsonb', timezone => 'Europe/Berlin', tombstone => 'always', max_ahead => '2 hours',
  key => '{"a": [["$.a", "$key"], "bigint"], "B b": "$.b"}', version => '"$.version"', event_time => '["$.at", "timestamptz", "ms"]',
  columns => '{"c": ["$.c", "numeric(10,2)"], "when": ["$.w", "date", "DD.MM.YYYY"], "text": [["$.t", "$.u"]], "op": "$.op", "buyer": ["$.buyer", "bigint"], "seller": ["$.seller", "bigint"], "day": ["$.day", "date"]}',
  computed => '{"text": ["other.cleaned(raw.text) || ''\\d''", "text"], "twice": ["c * 2", "numeric(12,2)"]}',
  route => $r$ op <> 'x' AND "text" <> '$$' $r$, deleted => 'op = ''D''', filter => $$c > 0$$, expect => '{"it''s small": "c < 1000"}');
SELECT millrace.create_hub('other.h_person', source => '"De scribe"."T""1"', business_key => '{buyer}', hash_key => 'pk', names => '{"load_at": "at"}', record_source => 'it');
SELECT millrace.create_hub('other.h_thing', source => '"De scribe"."T""1"', business_key => '{a, "B b"}');
SELECT millrace.create_link('other.l_trade', source => '"De scribe"."T""1"', hubs => '{other.h_thing, buyer=other.h_person, seller=other.h_person}', columns => '{"seller": {"buyer": "seller"}}',
  names => '{"record_source": "src"}');
SELECT millrace.create_satellite('other.s_thing', source => '"De scribe"."T""1"', parent => 'other.h_thing', attributes => '{c, label}', columns => '{"label": "text"}', names => '{"position": "pos"}');
SELECT millrace.create_satellite('other.s_trade', source => '"De scribe"."T""1"', parent => 'other.l_trade', attributes => '{twice}');
SET search_path = "De scribe", public;
SELECT millrace.create_mart('other.per_day', $$ SELECT day, count(*) AS n, sum(c)::numeric(14,2) AS c FROM "T""1" GROUP BY day $$);
RESET search_path;
ALTER TABLE "De scribe"."T""1" RENAME COLUMN c TO "the cost";
ALTER TABLE "De scribe"."T""1" RENAME COLUMN buyer TO customer;
ALTER TABLE "De scribe"."T""1_log" RENAME COLUMN c TO "the cost";
ALTER TABLE other.h_person RENAME COLUMN at TO loaded;
ALTER TABLE other.l_trade RENAME COLUMN seller_hk TO sold_by;
ALTER TABLE other.s_thing RENAME COLUMN label TO title;
SELECT millrace.create_mart('other.per_customer', $$ SELECT customer, count(*) AS n FROM "De scribe"."T""1" GROUP BY 1 $$);
SELECT millrace.create_hub('other.h_customer', source => '"De scribe"."T""1"', business_key => '{customer}');
ALTER TABLE other.h_customer RENAME COLUMN customer TO number;
SELECT millrace.create_staging('other.crm', stream => 'it''s', key => '{"id": ["$.id", "bigint"]}', columns => '{"kind": "$.kind", "number": "$.number", "who": ["$.who", "bigint"]}',
  log => true, log_partition => 'day', log_retention => '90 days');
SELECT millrace.add_source('other.h_person', source => 'other.crm', columns => '{"buyer": "who"}', record_source => 'crm');
SELECT millrace.create_satellite('other.s_number', source => 'other.crm', parent => 'other.h_person', kind => 'multi_active', sub_key => '{kind}', attributes => '{number, extra}',
  columns => '{"buyer": "who", "extra": "kind"}', history => 'all');
SELECT millrace.create_satellite('other.s_number', source => 'other.crm', parent => 'other.h_person', kind => 'multi_active', sub_key => '{kind}', attributes => '{number}',
  columns => '{"buyer": "who"}', history => 'all', replace => true);
-- marts that were replaced to read what is newer than they are
SELECT millrace.create_mart('other.per_customer', $$ SELECT millrace.hash_key('other.h_customer'::regclass, customer) AS customer, count(*) AS n FROM "De scribe"."T""1" GROUP BY 1 $$, replace => true);
SELECT millrace.create_mart('other.per_kind', $$ SELECT kind, count(*) AS n FROM other.crm GROUP BY kind $$);
SELECT millrace.create_hub('other.h_kind', source => 'other.crm', business_key => '{kind}');
SELECT millrace.create_satellite('other.s_kind', source => 'other.crm', parent => 'other.h_kind', attributes => '{who}');
SELECT millrace.create_mart('other.per_kind', $$ SELECT kind, s.who, count(*) AS n FROM other.crm LEFT JOIN other.s_kind_current s USING (kind) GROUP BY kind, s.who $$, replace => true);
SELECT millrace.create_pit('other.pit_thing', hub => 'other.h_thing', satellites => '{other.s_thing}', every => 'month');
SELECT millrace.create_satellite('other.e_trade', source => '"De scribe"."T""1"', parent => 'other.l_trade', kind => 'effectivity', driving_key => '{a, "B b"}');

-- expressions over functions, operators and types that are found by a search_path, or are called otherwise by now
CREATE SCHEMA helper;
CREATE FUNCTION helper.cleaned(v text) RETURNS text IMMUTABLE LANGUAGE sql RETURN nullif(btrim(v), '');
CREATE FUNCTION helper.is_small(v text) RETURNS boolean IMMUTABLE LANGUAGE sql RETURN length(v) < 100;
CREATE OPERATOR helper.@@@ (LEFTARG = text, RIGHTARG = text, FUNCTION = pg_catalog.textcat);
CREATE DOMAIN helper.code AS text CHECK (VALUE <> '');
SET search_path = helper, public;
SELECT millrace.create_staging('other.said', stream => 'it''s', key => '{"id": ["$.id", "bigint"]}', columns => '{"c": "$.c", "kind": ["$.kind", "code"], "note": "$.note"}',
  computed => '{"note": ["cleaned(raw.note) @@@ c || ''$1''''\"$2'' -- as it is said\n", "text"], "more": ["cleaned(kind)", "code"], "short": ["c", "varchar(3)"]}',
  route => $$ cleaned(c) <> 'x' $$, deleted => 'kind = ''D''', filter => $$ is_small(said.note) AND helper.cleaned("note") IS NOT NULL $$, expect => '{"small": "is_small(kind)", "all": "to_json(said.*) IS NOT NULL", "c": "c <> ''''"}');
RESET search_path;
ALTER TABLE other.said RENAME COLUMN c TO "the c";
ALTER TABLE other.said RENAME COLUMN more TO less;
ALTER FUNCTION helper.cleaned(text) RENAME TO tidied;
ALTER SCHEMA helper RENAME TO "new helper";

SELECT millrace.describe('stream', 'it''s');
SELECT millrace.describe('staging', '"De scribe"."T""1"');
SELECT millrace.describe('hub', 'other.h_person');
SELECT millrace.describe('hub', 'other.h_thing');
SELECT millrace.describe('hub', 'other.h_customer');
SELECT millrace.describe('link', 'other.l_trade');
SELECT millrace.describe('satellite', 'other.s_thing');
SELECT millrace.describe('satellite', 'other.s_trade');
SELECT millrace.describe('satellite', 'other.s_number');
SELECT millrace.describe('satellite', 'other.e_trade');
SELECT millrace.describe('staging', 'other.crm');
SELECT millrace.describe('mart', 'other.per_day');
ALTER TABLE other.said RENAME TO told;
SELECT millrace.describe('staging', 'other.told');
ALTER TABLE other.told RENAME TO said;
SELECT millrace.describe('satellite', 'dds.s_order_cost');

-- what is there: everything of the configuration but numbers and times, and all columns, indexes, views
CREATE VIEW described AS
SELECT 'stream' AS what, (to_jsonb(s) - '{id, created_at, config_version, fence}'::text[])::text AS row FROM millrace.stream s
UNION ALL
SELECT 'grant', s.name || ' ' || g.role FROM millrace.stream_grant g JOIN millrace.stream s ON s.id = g.stream_id
UNION ALL
-- (what expressions say when they are printed, their definition tells)
SELECT 'staging', (to_jsonb(s) - CASE s.relation::text WHEN 'other.said' THEN '{id, stream_id, definition}' ELSE '{id, stream_id, log_since}' END::text[])::text || (SELECT r.name FROM millrace.stream r WHERE r.id = s.stream_id) FROM millrace.staging s
UNION ALL
SELECT 'target', regexp_replace((to_jsonb(t) - '{id, horizon, definition_no}'::text[] #- '{definition, query}')::text, '"id": \d+|"satellites": \[[\d, ]+\]', '', 'g')
       || (SELECT string_agg((to_jsonb(x) - '{target_id, staging_id}'::text[])::text || g.relation::text, ' ' ORDER BY x.ordinal)
           FROM millrace.target_source x JOIN millrace.staging g ON g.id = x.staging_id WHERE x.target_id = t.id)
FROM millrace.target t
UNION ALL
SELECT 'column', format('%s.%s %s %s %s', a.attrelid::regclass, a.attname, a.attnum, format_type(a.atttypid, a.atttypmod), a.attnotnull)
FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
WHERE c.relnamespace IN ('stg'::regnamespace, 'dds'::regnamespace, 'cdm'::regnamespace, 'other'::regnamespace, '"De scribe"'::regnamespace) AND c.relkind IN ('r', 'v') AND a.attnum > 0
UNION ALL
SELECT 'index', pg_get_indexdef(i.indexrelid) FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid
WHERE c.relnamespace IN ('stg'::regnamespace, 'dds'::regnamespace, 'other'::regnamespace, '"De scribe"'::regnamespace)
UNION ALL
SELECT 'view', c.oid::regclass || ' ' || regexp_replace(pg_get_viewdef(c.oid), '(millrace_state\.[a-z]+_)\d+', '\1', 'g') FROM pg_class c
WHERE c.relnamespace IN ('dds'::regnamespace, 'cdm'::regnamespace, 'other'::regnamespace) AND c.relkind = 'v'
UNION ALL
SELECT 'definition', pg_get_viewdef(c.oid) FROM pg_class c WHERE c.relnamespace = 'millrace_def'::regnamespace;

CREATE TABLE before AS SELECT * FROM described;
SELECT count(*) > 300 FROM before;
SELECT millrace.describe() AS text \gset
SELECT millrace.drop_stream('it''s', cascade => true), millrace.drop_stream('orders', cascade => true);
SELECT count(*) FROM described;
\o /dev/null
:text
\o
(SELECT '-' AS side, * FROM before EXCEPT ALL SELECT '-', * FROM described)
UNION ALL
(SELECT '+' AS side, * FROM described EXCEPT ALL SELECT '+', * FROM before) ORDER BY 2, 1;
SELECT millrace.describe() = :'text' AS same_text;

-- replace => true with the same changes nothing
\set ECHO none
SELECT sum(config_version) AS versions FROM millrace.stream \gset
\o /dev/null
SELECT regexp_replace(millrace.describe('mart', 'cdm.user_category_counters'), '\);$', ', replace => true);') AS again \gset
:again
SELECT regexp_replace(millrace.describe('staging', 'stg.order_items'), '\);$', ', replace => true);') AS again \gset
:again
SELECT regexp_replace(millrace.describe('satellite', 'dds.s_order_cost'), '\);$', ', replace => true);') AS again \gset
:again
SELECT regexp_replace(millrace.describe('link', 'dds.l_order_user'), '\);$', ', replace => true);') AS again \gset
:again
SELECT regexp_replace(millrace.describe('stream', 'orders'), '\);$', ', replace => true);') AS again \gset
:again
\o
\set ECHO all
SELECT sum(config_version) = :versions AS unchanged FROM millrace.stream;

-- who may ask, and what is not there
CREATE ROLE describe_nobody;
GRANT millrace_admin TO describe_pusher;
SET ROLE describe_pusher;
SELECT length(millrace.describe('hub', 'dds.h_user')) > 0;
SET ROLE describe_nobody;
SELECT millrace.describe('hub', 'dds.h_user');
RESET ROLE;
SELECT millrace.describe('hub', 'dds.nothing');
SELECT millrace.describe('hub', 'dds.l_order_user');
SELECT millrace.describe('hubs', 'dds.h_user');
SELECT millrace.describe('stream', 'nothing');

DROP VIEW described;
DROP TABLE before;
SELECT millrace.drop_stream('it''s', cascade => true), millrace.drop_stream('orders', cascade => true);
DROP FUNCTION other.cleaned;
DROP SCHEMA stg, dds, cdm, other, "De scribe";
SET client_min_messages = warning;
DROP SCHEMA "new helper" CASCADE;
REVOKE millrace_admin FROM describe_pusher;
DROP ROLE describe_pusher, describe_nobody;
