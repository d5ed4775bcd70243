-- Logs in days, and what is kept for a time only.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS millrace;
\set VERBOSITY default
\set SHOW_CONTEXT never
SET timezone = 'America/New_York'; -- no setting of the session may matter
CREATE SCHEMA keep;
SELECT millrace.create_stream('keep', letter_retention => '30 days', incident_retention => '1 year');
SELECT millrace.create_staging('keep.a', stream => 'keep', key => '{"id": ["$.id", "bigint"]}', log_partition => 'day');
SELECT millrace.create_staging('keep.a', stream => 'keep', key => '{"id": ["$.id", "bigint"]}', log_retention => '1 day');
SELECT millrace.create_staging('keep.a', stream => 'keep', key => '{"id": ["$.id", "bigint"]}', log => true, log_partition => 'dai');
SELECT millrace.create_staging('keep.a', stream => 'keep', key => '{"id": ["$.id", "bigint"]}', log => true, log_retention => '-1 day');
SELECT millrace.create_staging('keep.a', stream => 'keep', key => '{"id": ["$.id", "bigint"]}', version => '["$.v", "bigint"]', columns => '{"n": ["$.n", "integer"]}',
  log => true, log_partition => 'day', log_retention => '7 days');
SELECT millrace.create_staging('keep.b', stream => 'keep', key => '{"id": ["$.id", "bigint"]}', columns => '{"n": ["$.n", "integer"]}', log => true, log_retention => '7 days');

-- Today and two days ahead are there, by UTC.
CREATE VIEW keep.days AS SELECT (p.since AT TIME ZONE 'UTC')::date - (now() AT TIME ZONE 'UTC')::date AS ahead,
  p.part::text = 'keep.a_log' || to_char(p.since AT TIME ZONE 'UTC', '_YYYYMMDD') AS named FROM millrace_internal.log_parts('keep.a_log') p;
SELECT * FROM keep.days;

-- Messages of any time land today.
SELECT millrace.push('keep', '{"id": 1, "v": 1, "n": 1}', message_time => '1970-01-01 00:00+00') IS NOT NULL AS pushed;
SELECT millrace.push('keep', '{"id": 2, "v": 1, "n": 2}', message_time => '2999-12-31 00:00+00') IS NOT NULL AS pushed;
SELECT millrace.push('keep', '{"id": 3, "v": 1, "n": "x"}') IS NOT NULL AS pushed;
SELECT * FROM millrace.run_stream('keep');
SELECT id, n, _rows, tableoid::regclass::text = 'keep.a_log' || to_char(now() AT TIME ZONE 'UTC', '_YYYYMMDD') AS today FROM keep.a_log ORDER BY id;

-- Who writes makes the days that are missing, also when columns were added meanwhile.
SELECT millrace.create_staging('keep.a', stream => 'keep', key => '{"id": ["$.id", "bigint"]}', version => '["$.v", "bigint"]', columns => '{"n": ["$.n", "integer"], "m": "$.m"}',
  log => true, log_partition => 'day', log_retention => '7 days', replace => true);
DO $$ DECLARE p record; BEGIN
  FOR p IN SELECT * FROM millrace_internal.log_parts('keep.a_log') OFFSET 1 LOOP EXECUTE format('DROP TABLE %s', p.part); END LOOP; END $$;
SELECT * FROM keep.days;
SELECT millrace.push('keep', '{"id": 1, "v": 2, "n": 10, "m": "new"}') IS NOT NULL AS pushed;
SELECT messages FROM millrace.run_stream('keep');
SELECT * FROM keep.days;
SELECT id, n, m FROM keep.a_log ORDER BY id, _version;

-- Nothing is too old yet.
SELECT * FROM millrace.maintain();

-- Two days of long ago, one of them in use; rows, letters and an incident of long ago.
DO $$ BEGIN PERFORM millrace_internal.extend_log(s.id, now() - interval '40 days') FROM millrace.staging s WHERE s.relation = 'keep.a'::regclass; END $$;
SELECT count(*) FROM keep.days;
INSERT INTO keep.a_log SELECT id, n, _version, _event_time, _partition, _position, now() - interval '40 days', payload, _rows, _deleted, _message_time, m FROM keep.a_log WHERE id = 2;
UPDATE keep.b_log SET _loaded_at = now() - interval '8 days' WHERE id = 1;
UPDATE millrace.letter SET at = now() - interval '31 days' WHERE stream_id = (SELECT id FROM millrace.stream WHERE name = 'keep') AND staging_id = (SELECT id FROM millrace.staging WHERE relation = 'keep.b'::regclass);
INSERT INTO millrace.stream_incident (stream_id, kind, detail, at) SELECT id, 'test', 'old', now() - interval '2 years' FROM millrace.stream WHERE name = 'keep'
  UNION ALL SELECT id, 'test', 'new', now() FROM millrace.stream WHERE name = 'keep';
DO $$ BEGIN EXECUTE format('CREATE VIEW keep.needs AS SELECT * FROM %s', (SELECT part FROM millrace_internal.log_parts('keep.a_log') LIMIT 1)); END $$;
SELECT stream, subject, regexp_replace(action, '_\d{8}', '_DAY', 'g') AS action, rows FROM millrace.maintain('keep');
SELECT count(*) FROM keep.days;
SELECT id FROM keep.b_log ORDER BY id;
SELECT staging, count(*) FROM millrace.dead_letter WHERE stream = 'keep' GROUP BY 1;
SELECT detail FROM millrace.incident WHERE stream = 'keep';
-- The log says from when on it is complete.
SELECT relation, now() - log_since BETWEEN interval '6 days 23 hours' AND '40 days' AS since FROM millrace.staging WHERE log_since > '-infinity' AND relation::text LIKE 'keep.%' ORDER BY 1;
DROP VIEW keep.needs;
SELECT stream, subject, regexp_replace(action, '_\d{8}', '_DAY', 'g') AS action, rows FROM millrace.maintain('keep');
SELECT * FROM millrace.maintain('keep');
SELECT * FROM millrace.maintain('kep');

-- What cannot change, and what can.
SELECT millrace.create_staging('keep.a', stream => 'keep', key => '{"id": ["$.id", "bigint"]}', version => '["$.v", "bigint"]', columns => '{"n": ["$.n", "integer"], "m": "$.m"}',
  log => true, replace => true);
SELECT millrace.create_staging('keep.a', stream => 'keep', key => '{"id": ["$.id", "bigint"]}', version => '["$.v", "bigint"]', columns => '{"n": ["$.n", "integer"], "m": "$.m"}',
  log => true, log_partition => 'day', log_retention => '90 days', replace => true);
SELECT relation, log_partition, log_retention FROM millrace.staging WHERE relation::text LIKE 'keep.%' ORDER BY 1;

-- One's own streams only.
CREATE ROLE keep_stranger;
GRANT millrace_admin TO keep_stranger;
SET ROLE keep_stranger;
SELECT * FROM millrace.maintain();
SELECT * FROM millrace.maintain('keep');
RESET ROLE;
DROP ROLE keep_stranger;
DROP VIEW keep.days;
SELECT millrace.drop_stream('keep', cascade => true);
DROP SCHEMA keep;
