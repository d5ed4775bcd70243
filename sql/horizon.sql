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
  FROM millrace.verify(name) v $$;
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
SELECT s.relation, s.horizon = v.horizon AS same FROM millrace.target_status s, millrace.verify('hz.s_order') v WHERE s.relation IN ('hz.s_order', 'hz.pit_order') ORDER BY 1;
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

-- ---- a log that begins later: hubs and links have what is staged, too; satellites what came since, which is said
SET client_min_messages = warning;
SELECT millrace.create_stream('later');
SELECT millrace.create_staging('hz.l', stream => 'later', payload => 'none', key => '{"id": ["$.id", "bigint"]}', columns => '{"customer": "$.customer", "status": "$.status"}');
CREATE FUNCTION hz.say_later(ids int4range, status text) RETURNS bigint LANGUAGE sql AS $$
  SELECT count(millrace.push('later', json_build_object('id', i, 'customer', 'c' || i, 'status', status))) FROM generate_series(lower(ids), upper(ids) - 1) i $$;
SELECT hz.say_later('[1,21)', 'open');
SELECT messages, dead_letters FROM millrace.run_stream('later');
RESET client_min_messages;
-- declared before the log, activated after
SELECT millrace.create_hub('hz.l_first', source => 'hz.l', business_key => '{id}');
SELECT millrace.create_staging('hz.l', stream => 'later', payload => 'none', log => true, replace => true, key => '{"id": ["$.id", "bigint"]}', columns => '{"customer": "$.customer", "status": "$.status"}');
SELECT millrace.create_hub('hz.l_id', source => 'hz.l', business_key => '{id}');
SELECT millrace.create_hub('hz.l_customer', source => 'hz.l', business_key => '{customer}');
SELECT millrace.create_link('hz.l_both', source => 'hz.l', hubs => '{hz.l_id, hz.l_customer}');
SELECT hz.say_later('[19,23)', 'paid');
SELECT messages, dead_letters FROM millrace.run_stream('later');
SELECT millrace.create_satellite('hz.l_status', source => 'hz.l', parent => 'hz.l_id', attributes => '{status}');
SELECT messages, dead_letters FROM millrace.run_stream('later');
SELECT (SELECT count(*) FROM hz.l_first_current) AS first, (SELECT count(*) FROM hz.l_id_current) AS ids, (SELECT count(*) FROM hz.l_both_current) AS links, (SELECT count(*) FROM hz.l_status_current) AS statuses;
CREATE VIEW hz.later AS SELECT r AS relation, j.* FROM unnest('{hz.l_first,hz.l_id,hz.l_customer,hz.l_both,hz.l_status}'::regclass[]) r, hz.judged(r) j;
SELECT * FROM hz.later;
SELECT r AS relation, v.compared_with FROM unnest('{hz.l_id,hz.l_status,hz.h_order}'::regclass[]) r, millrace.verify(r) v;
-- a key that is no longer staged, and was never logged
SELECT millrace.push('later', '{"id": 1, "customer": "other", "status": "open"}') > 0;
SELECT messages, dead_letters FROM millrace.run_stream('later');
SELECT * FROM hz.later WHERE missing > 0 OR unexpected > 0;
SELECT rows_before = rows_after AS same FROM millrace.rebuild('hz.l_id');
\set VERBOSITY terse
SELECT * FROM millrace.rebuild('hz.l_customer');
\set VERBOSITY default
SELECT rows_before = rows_after AS same FROM millrace.rebuild('hz.l_customer', filter => $$ customer <> 'c1' $$);
DELETE FROM hz.l_id WHERE id = 7;
DELETE FROM hz.l_first WHERE id = 21;
SELECT * FROM hz.later WHERE missing > 0 OR unexpected > 0;
SELECT rows_after - rows_before AS more FROM millrace.rebuild('hz.l_id');
SELECT rows_after - rows_before AS more FROM millrace.rebuild('hz.l_first');
SELECT * FROM hz.later WHERE missing > 0 OR unexpected > 0;
-- a source without a log
SET client_min_messages = warning;
SELECT millrace.create_staging('hz.n', stream => 'later', payload => 'none', key => '{"id": ["$.id", "bigint"]}', columns => '{"status": "$.status"}');
SELECT hz.say_later('[30,32)', 'open');
SELECT messages, dead_letters FROM millrace.run_stream('later');
RESET client_min_messages;
SELECT millrace.create_hub('hz.n_status', source => 'hz.l', business_key => '{status}');
SELECT messages, dead_letters FROM millrace.run_stream('later');
SELECT millrace.add_source('hz.n_status', source => 'hz.n', columns => '{"status": "id"}');
SELECT messages, dead_letters FROM millrace.run_stream('later');
SELECT string_agg(status, ', ' ORDER BY status) FROM hz.n_status_current;
SELECT * FROM hz.judged('hz.n_status');

-- ---- a table that was adopted with rows, which no log has
SET client_min_messages = warning;
CREATE TABLE hz.a (id bigint PRIMARY KEY, name text, _version bigint, _event_time timestamptz, _partition integer, _position bigint, _loaded_at timestamptz);
INSERT INTO hz.a (id, name, _loaded_at) VALUES (1, 'ann', '2026-01-01'), (2, 'bob', NULL);
SELECT millrace.create_stream('adopting');
RESET client_min_messages;
SELECT millrace.create_staging('hz.a', stream => 'adopting', payload => 'none', log => true, key => '{"id": ["$.id", "bigint"]}', columns => '{"name": "$.name"}');
SELECT millrace.create_hub('hz.h_a', source => 'hz.a', business_key => '{id}');
SELECT millrace.push('adopting', '{"id": 2, "name": "bea"}') > 0, millrace.push('adopting', '{"id": 3, "name": "cat"}') > 0;
SELECT messages, dead_letters FROM millrace.run_stream('adopting');
SELECT string_agg(id::text, ', ' ORDER BY id) FROM hz.h_a_current;
SELECT * FROM hz.judged('hz.h_a');
SELECT * FROM hz.judged('hz.a');
SELECT * FROM millrace.rebuild('hz.a');
SELECT * FROM millrace.rebuild('hz.h_a');
SELECT millrace.drop_stream('adopting', cascade => true);

-- ---- what was filled from a log that has lost it since
SET client_min_messages = warning;
SELECT millrace.create_satellite('hz.l_again', source => 'hz.l', parent => 'hz.l_id', attributes => '{status}');
SELECT millrace.create_staging('hz.l', stream => 'later', payload => 'none', log => true, log_retention => '1 microsecond', replace => true, key => '{"id": ["$.id", "bigint"]}', columns => '{"customer": "$.customer", "status": "$.status"}');
SELECT messages, dead_letters FROM millrace.run_stream('later');
SELECT subject, action FROM millrace.maintain('later');
RESET client_min_messages;
SELECT * FROM hz.judged('hz.l_again');
SELECT * FROM hz.judged('hz.l_id');
SET client_min_messages = warning;
SELECT millrace.drop_stream('later', cascade => true);
SELECT millrace.drop_stream('hz', cascade => true);
DROP SCHEMA hz CASCADE;
