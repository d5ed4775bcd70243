-- From when on tables are complete, and what verify() judges: definitions that change, logs that begin later.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS millrace;
\set VERBOSITY default
\set SHOW_CONTEXT never
\pset format unaligned
\pset tuples_only on
CREATE SCHEMA hz;
SELECT millrace.create_stream('hz');
SELECT millrace.create_staging('hz.o', stream => 'hz', log => true, key => '{"id": ["$.id", "bigint"]}', version => '["$.at", "timestamptz"]',
  columns => '{"customer": "$.customer", "payer": "$.payer", "status": "$.status", "note": "$.note"}');
SELECT millrace.create_hub('hz.h_order', source => 'hz.o', business_key => '{id}');
SELECT millrace.create_hub('hz.h_customer', source => 'hz.o', business_key => '{customer}');
SELECT millrace.create_link('hz.l_order', source => 'hz.o', hubs => '{hz.h_order, hz.h_customer}');
SELECT millrace.create_satellite('hz.s_order', source => 'hz.o', parent => 'hz.h_order', attributes => '{status}');
SELECT millrace.create_pit('hz.pit_order', hub => 'hz.h_order', satellites => '{hz.s_order}');
SELECT millrace.create_mart('hz.m', 'SELECT status, count(*) AS n FROM hz.o GROUP BY status');
CREATE FUNCTION hz.say(ids int4range, status text) RETURNS bigint LANGUAGE sql AS $$
  SELECT count(millrace.push('hz', json_build_object('id', i, 'at', timestamptz '2026-01-05 00:00+00' + i * interval '1 minute', 'customer', 'c' || i % 5, 'payer', 'p' || i % 3, 'status', status, 'note', 'n' || i)))
  FROM generate_series(lower(ids), upper(ids) - 1) i $$;
SELECT hz.say('[1,11)', 'open');
SELECT messages, dead_letters FROM millrace.run_stream('hz');
CREATE FUNCTION hz.judged(name regclass) RETURNS TABLE (missing bigint, unexpected bigint, judged text) LANGUAGE sql AS $$
  SELECT v.missing, v.unexpected, CASE WHEN v.horizon = '-infinity' THEN 'all' WHEN v.horizon = 'infinity' THEN 'nothing' ELSE 'since ' || (v.horizon < clock_timestamp()) END
         || CASE WHEN v.horizon = s.horizon THEN '' ELSE ', complete since another time' END
  FROM millrace.verify(name) v JOIN millrace.target_status s ON s.relation = name::text $$;
RESET client_min_messages;

-- ---- another record source is no other content
SELECT millrace.create_hub('hz.h_order', source => 'hz.o', business_key => '{id}', record_source => 'x', replace => true);
SELECT millrace.create_link('hz.l_order', source => 'hz.o', hubs => '{hz.h_order, hz.h_customer}', record_source => 'x', replace => true);
SELECT millrace.create_satellite('hz.s_order', source => 'hz.o', parent => 'hz.h_order', attributes => '{status}', record_source => 'x', replace => true);
SELECT * FROM hz.judged('hz.h_order');
DELETE FROM hz.h_order WHERE id = 3;
DELETE FROM hz.l_order WHERE h_order_hk = millrace.hash_key('hz.h_order', 3);
UPDATE hz.s_order SET status = 'closed' WHERE h_order_hk = millrace.hash_key('hz.h_order', 4);
SELECT * FROM hz.judged('hz.h_order');
SELECT * FROM hz.judged('hz.l_order');
SELECT * FROM hz.judged('hz.s_order');
SELECT count(*) FROM unnest('{hz.h_order,hz.l_order,hz.s_order}'::regclass[]) r, millrace.rebuild(r);
SELECT r.*, j.* FROM unnest('{hz.h_order,hz.l_order,hz.s_order}'::regclass[]) r, hz.judged(r) j;

-- ---- more attributes: what came before is not judged, and the horizon says so
SELECT millrace.create_satellite('hz.s_order', source => 'hz.o', parent => 'hz.h_order', attributes => '{status, note}', record_source => 'x', replace => true);
SELECT hz.say('[11,13)', 'open');
SELECT messages, dead_letters FROM millrace.run_stream('hz');
SELECT * FROM hz.judged('hz.s_order');
UPDATE hz.s_order SET status = 'closed' WHERE h_order_hk = millrace.hash_key('hz.h_order', 4);
SELECT * FROM hz.judged('hz.s_order');
UPDATE hz.s_order SET status = 'closed' WHERE h_order_hk = millrace.hash_key('hz.h_order', 12);
SELECT * FROM hz.judged('hz.s_order');
SELECT horizon = (SELECT horizon FROM millrace.target_status WHERE relation = 'hz.s_order') AS same FROM millrace.target_status WHERE relation = 'hz.pit_order';
SELECT rows_after FROM millrace.rebuild('hz.s_order');
SELECT * FROM hz.judged('hz.s_order');
SELECT count(*) FROM hz.s_order WHERE note IS NULL AND applied_at > '2000-01-01';

-- ---- the same of keys that are read from elsewhere
SELECT millrace.create_link('hz.l_order', source => 'hz.o', hubs => '{hz.h_order, hz.h_customer}', columns => '{"h_customer": {"customer": "payer"}}', record_source => 'x', replace => true);
SELECT hz.say('[13,15)', 'open');
SELECT messages, dead_letters FROM millrace.run_stream('hz');
SELECT * FROM hz.judged('hz.l_order');
SELECT rows_after FROM millrace.rebuild('hz.l_order');
SELECT * FROM hz.judged('hz.l_order');

-- ---- marts and point-in-time tables cover what is there
SELECT millrace.create_mart('hz.m', 'SELECT status, count(*) AS n, count(DISTINCT customer) AS customers FROM hz.o GROUP BY status', replace => true);
SELECT missing, unexpected, horizon FROM millrace.verify('hz.m');
SELECT millrace.create_pit('hz.pit_order', hub => 'hz.h_order', satellites => '{hz.s_order}', every => 'month', replace => true);
SELECT messages, dead_letters FROM millrace.run_stream('hz');
SELECT missing, unexpected, horizon FROM millrace.verify('hz.pit_order');

-- ---- a source that comes and goes
SELECT millrace.create_staging('hz.crm', stream => 'hz', log => true, route => 'who IS NOT NULL', key => '{"who": "$.who"}', columns => '{"alias": "$.alias"}');
SELECT millrace.add_source('hz.h_customer', source => 'hz.crm', columns => '{"customer": "who"}');
SELECT millrace.push('hz', '{"who": "c9", "alias": "a9"}') > 0;
SELECT messages, dead_letters FROM millrace.run_stream('hz');
SELECT missing, unexpected FROM millrace.verify('hz.h_customer');
SELECT millrace.add_source('hz.h_customer', source => 'hz.crm', columns => '{"customer": "alias"}', replace => true);
SELECT millrace.push('hz', '{"who": "c8", "alias": "a8"}') > 0;
SELECT messages, dead_letters FROM millrace.run_stream('hz');
SELECT * FROM hz.judged('hz.h_customer');
SELECT millrace.drop_source('hz.h_customer', source => 'hz.crm');
SELECT * FROM hz.judged('hz.h_customer');
SELECT millrace.add_source('hz.h_customer', source => 'hz.crm', columns => '{"customer": "who"}');
SELECT messages, dead_letters FROM millrace.run_stream('hz');
SELECT millrace.drop_table('hz.crm', cascade => true);
SELECT * FROM hz.judged('hz.h_customer');
SET client_min_messages = warning;
SELECT millrace.drop_stream('hz', cascade => true);
DROP SCHEMA hz CASCADE;
