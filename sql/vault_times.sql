-- Satellites: deletes without a version, attributes that are removed, or that have the names of technical columns; what does not depend on sessions and rebuilding.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS millrace;
RESET client_min_messages;
\set VERBOSITY terse
\set SHOW_CONTEXT never
SET TimeZone = 'UTC';
CREATE SCHEMA vt;

-- ---- since when an unconditional delete counts: its message's time, or the version that it takes away when that is later, wherever batches end
SELECT millrace.create_stream(s), millrace.create_staging('vt.' || s, stream => s, tombstone => 'always', log => true, payload => 'none', key => '{"id": ["$key", "integer"]}', version => '["$.v", "timestamptz"]', columns => '{"state": "$.s"}'),
  millrace.create_hub('vt.h_' || s, source => ('vt.' || s)::regclass, business_key => '{id}')
FROM unnest('{at_once, one_by_one}'::text[]) s;
SELECT millrace.create_satellite('vt.s_' || s, source => ('vt.' || s)::regclass, parent => ('vt.h_' || s)::regclass, attributes => '{state}') FROM unnest('{at_once, one_by_one}'::text[]) s;
CREATE TEMP TABLE said (step integer, object integer, version text, at text);
INSERT INTO said VALUES
  -- behind the message's clock, and ahead of it
  (1, 1, '10:00', '10:01'), (2, 1, NULL, '12:00'),
  (1, 2, '13:00', '10:01'), (2, 2, NULL, '12:00'),
  -- what comes later beats what was taken away, or does not
  (1, 3, '13:00', '10:01'), (2, 3, NULL, '12:00'), (3, 3, '14:00', '12:30'),
  (1, 4, '13:00', '10:01'), (2, 4, NULL, '12:00'), (3, 4, '12:30', '12:30'),
  (0, 5, '13:00', '10:01'), (2, 5, NULL, '12:00'), (3, 5, '14:00', '12:30'), (4, 5, NULL, '12:40'),
  (0, 6, '13:00', '10:01'), (2, 6, NULL, '12:00'), (3, 6, '12:30', '12:30'), (4, 6, NULL, '13:30'),
  -- of what nobody has said anything
  (1, 7, NULL, '12:00');
DO $$
DECLARE
  s integer;
BEGIN
  FOR s IN 0..4 LOOP
    PERFORM millrace.push(stream, CASE WHEN version IS NOT NULL THEN json_build_object('v', '2026-01-01 ' || version || '+00', 's', version) END, key => object::text, message_time => ('2026-01-01 ' || at || '+00')::timestamptz)
    FROM said, unnest('{at_once, one_by_one}'::text[]) stream WHERE step = s ORDER BY object;
    PERFORM millrace.run_stream(stream) FROM unnest('{one_by_one, at_once}'::text[]) stream WHERE stream = 'one_by_one' OR s = 0;
  END LOOP;
END $$;
SELECT batches FROM millrace.run_stream('at_once');
CREATE VIEW vt.told AS SELECT 's_at_once' AS name, id, applied_at, confirmed_at, is_deleted, state FROM vt.s_at_once JOIN vt.h_at_once USING (h_at_once_hk)
  UNION ALL SELECT 's_one_by_one', id, applied_at, confirmed_at, is_deleted, state FROM vt.s_one_by_one JOIN vt.h_one_by_one USING (h_one_by_one_hk);
SELECT id, to_char(applied_at, 'HH24:MI') AS applied_at, is_deleted FROM vt.told WHERE name = 's_one_by_one' AND is_deleted ORDER BY id, applied_at;
SELECT count(*) AS differ FROM ((SELECT id, applied_at, confirmed_at, is_deleted, state FROM vt.told WHERE name = 's_at_once' EXCEPT ALL SELECT id, applied_at, confirmed_at, is_deleted, state FROM vt.told WHERE name = 's_one_by_one')
  UNION ALL (SELECT id, applied_at, confirmed_at, is_deleted, state FROM vt.told WHERE name = 's_one_by_one' EXCEPT ALL SELECT id, applied_at, confirmed_at, is_deleted, state FROM vt.told WHERE name = 's_at_once')) AS x;
SELECT count(*) AS differ FROM (SELECT id, _version, _deleted FROM vt.at_once_log EXCEPT ALL SELECT id, _version, _deleted FROM vt.one_by_one_log) AS x;
SELECT id, state FROM vt.s_at_once_current ORDER BY id;
SELECT id, state FROM vt.at_once ORDER BY id;
CREATE TEMP TABLE told AS TABLE vt.told;
SELECT r, missing, unexpected FROM unnest('{vt.at_once, vt.one_by_one, vt.s_at_once, vt.s_one_by_one}'::regclass[]) r, millrace.verify(r);
SELECT rows_before = rows_after AS same FROM unnest('{vt.s_at_once, vt.s_one_by_one}'::regclass[]) r, millrace.rebuild(r);
SELECT count(*) AS differ FROM (TABLE told EXCEPT ALL TABLE vt.told) AS x;
SELECT millrace.drop_stream(s, cascade => true) FROM unnest('{at_once, one_by_one}'::text[]) s;

-- ---- an attribute of a multi-active satellite that is removed makes no new sets
SELECT millrace.create_stream('sets');
SELECT millrace.create_staging('vt.phones', stream => 'sets', for_each => '$.phones[*]', payload => 'none', log => true, key => '{"id": ["$key", "integer"]}', version => '["$.v", "timestamptz"]', columns => '{"kind": "@.kind", "number": "@.number", "note": "@.note"}');
SELECT millrace.create_staging('vt.single', stream => 'sets', for_each => '$.phones[*]', payload => 'none', log => true, key => '{"id": ["$key", "integer"], "line": ["$.line", "integer"]}', version => '["$.v", "timestamptz"]', columns => '{"number": "@.number", "note": "@.note"}');
SELECT millrace.create_hub('vt.h_id', source => 'vt.phones', business_key => '{id}');
SELECT millrace.create_satellite('vt.m_phone', source => 'vt.phones', parent => 'vt.h_id', kind => 'multi_active', sub_key => '{kind}', attributes => '{number, note}');
SELECT millrace.create_satellite('vt.m_single', source => 'vt.single', parent => 'vt.h_id', kind => 'multi_active', sub_key => '{line}', attributes => '{number, note}');
SELECT millrace.create_satellite('vt.s_single', source => 'vt.single', parent => 'vt.h_id', attributes => '{line, note}');
CREATE FUNCTION vt.phones(id integer, at text, phones json) RETURNS void LANGUAGE sql AS
  $$ SELECT millrace.push('sets', json_build_object('v', '2026-01-01 ' || at || '+00', 'line', 1, 'phones', phones), key => id::text) $$;
SELECT vt.phones(1, '10:00', '[{"kind": "home", "number": "1", "note": "a"}, {"kind": "work", "number": "2", "note": "b"}]'), vt.phones(2, '10:00', '[{"kind": "home", "number": "3", "note": "c"}]'), vt.phones(3, '10:00', '[]'), vt.phones(6, '10:00', '[{"kind": "home", "number": "7", "note": "d"}]');
SELECT dead_letters FROM millrace.run_stream('sets');
SELECT millrace.create_satellite('vt.m_phone', source => 'vt.phones', parent => 'vt.h_id', kind => 'multi_active', sub_key => '{kind}', attributes => '{number}', replace => true);
SELECT millrace.create_satellite('vt.m_single', source => 'vt.single', parent => 'vt.h_id', kind => 'multi_active', sub_key => '{line}', attributes => '{number}', replace => true);
SELECT millrace.create_satellite('vt.s_single', source => 'vt.single', parent => 'vt.h_id', attributes => '{line}', replace => true);
SELECT vt.phones(1, '11:00', '[{"kind": "work", "number": "2", "note": "b"}, {"kind": "home", "number": "1", "note": "other"}]'), vt.phones(2, '11:00', '[{"kind": "home", "number": "4", "note": "c"}]'), vt.phones(3, '11:00', '[]'), vt.phones(6, '11:00', '[{"kind": "home", "number": "7"}]');
SELECT dead_letters FROM millrace.run_stream('sets');
SELECT id, to_char(applied_at, 'HH24:MI') AS applied_at, to_char(confirmed_at, 'HH24:MI') AS confirmed_at, kind, number, note, is_deleted FROM vt.m_phone JOIN vt.h_id USING (h_id_hk) WHERE id IS NOT NULL ORDER BY id, m_phone.applied_at, kind;
SELECT id, to_char(applied_at, 'HH24:MI') AS applied_at, to_char(confirmed_at, 'HH24:MI') AS confirmed_at, line, number, note FROM vt.m_single JOIN vt.h_id USING (h_id_hk) WHERE id IS NOT NULL ORDER BY id, m_single.applied_at;
SELECT r, missing, unexpected FROM unnest('{vt.m_phone, vt.m_single, vt.s_single}'::regclass[]) r, millrace.verify(r);
-- also when none is left
SELECT millrace.create_satellite('vt.m_phone', source => 'vt.phones', parent => 'vt.h_id', kind => 'multi_active', sub_key => '{kind}', replace => true);
SELECT vt.phones(1, '12:00', '[{"kind": "work", "number": "5"}, {"kind": "home"}]'), vt.phones(2, '12:00', '[{"kind": "work"}]');
SELECT dead_letters FROM millrace.run_stream('sets');
SELECT id, to_char(applied_at, 'HH24:MI') AS applied_at, to_char(confirmed_at, 'HH24:MI') AS confirmed_at, kind, number, note, is_deleted FROM vt.m_phone JOIN vt.h_id USING (h_id_hk) WHERE id IS NOT NULL ORDER BY id, m_phone.applied_at, kind;
SELECT r, missing, unexpected FROM unnest('{vt.m_phone, vt.m_single, vt.s_single}'::regclass[]) r, millrace.verify(r);
-- what is not there is found all the same
UPDATE vt.m_phone SET confirmed_at = applied_at WHERE confirmed_at = '2026-01-01 12:00+00';
DELETE FROM vt.m_single WHERE applied_at = '2026-01-01 11:00+00';
SELECT r, missing, unexpected FROM unnest('{vt.m_phone, vt.m_single, vt.s_single}'::regclass[]) r, millrace.verify(r);
SELECT r, rows_after FROM unnest('{vt.m_phone, vt.m_single, vt.s_single}'::regclass[]) r, millrace.rebuild(r);
SELECT r, missing, unexpected FROM unnest('{vt.m_phone, vt.m_single, vt.s_single}'::regclass[]) r, millrace.verify(r);

-- ---- an attribute that is added has a column of its own
SELECT millrace.create_stream('flags');
SELECT millrace.create_staging('vt.flags', stream => 'flags', payload => 'none', route => 'is_deleted IS NOT NULL', key => '{"id": ["$key", "integer"]}', columns => '{"is_deleted": ["$.gone", "boolean"], "state": "$.state", "mine": "$.mine"}');
SELECT millrace.create_satellite('vt.s_flags', source => 'vt.flags', parent => 'vt.h_id', attributes => '{state, is_deleted}');
SELECT millrace.create_satellite('vt.s_flags', source => 'vt.flags', parent => 'vt.h_id', attributes => '{state}');
SELECT millrace.create_satellite('vt.s_flags', source => 'vt.flags', parent => 'vt.h_id', attributes => '{state, is_deleted}', replace => true);
ALTER TABLE vt.s_flags RENAME state TO mine;
SELECT millrace.create_satellite('vt.s_flags', source => 'vt.flags', parent => 'vt.h_id', attributes => '{mine}', replace => true);
SELECT FROM millrace.push('flags', '{"gone": true, "state": "on", "mine": "x"}', key => '9');
SELECT dead_letters FROM millrace.run_stream('flags');
SELECT mine, is_deleted FROM vt.s_flags WHERE mine IS NOT NULL;

-- ---- what a session has set does not matter
SET timezone_abbreviations = 'Australia';
SELECT millrace.create_staging('vt.zones', stream => 'flags', payload => 'none', route => 'at IS NOT NULL', key => '{"id": ["$key", "integer"]}', columns => '{"at": "$.at"}', computed => '{"read": ["at::timestamptz", "timestamptz"]}');
SELECT FROM millrace.push('flags', '{"at": "2026-01-01 10:00 EST"}', key => '9');
SELECT dead_letters FROM millrace.run_stream('flags');
RESET timezone_abbreviations;
SELECT read FROM vt.zones;

-- ---- rows that a hub skips are counted once
SELECT millrace.create_hub('vt.h_kind', source => 'vt.phones', business_key => '{kind}');
SELECT vt.phones(4, '10:00', '[{"number": "1"}, {"kind": "work"}]');
SELECT dead_letters FROM millrace.run_stream('sets');
SELECT skipped FROM millrace.target_status WHERE relation = 'vt.h_kind';
SELECT rows_before = rows_after AS same FROM millrace.rebuild('vt.h_kind');
SELECT skipped FROM millrace.target_status WHERE relation = 'vt.h_kind';
SET client_min_messages = warning;
SELECT millrace.drop_stream(s, cascade => true) FROM unnest('{flags, sets}'::text[]) s;
DROP SCHEMA vt CASCADE;
