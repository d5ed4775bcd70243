-- validate(): what is wrong, and what somebody should see to.
\set VERBOSITY terse
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS millrace;
\pset format unaligned
\pset tuples_only on
CREATE SCHEMA va;
SELECT millrace.create_stream('va');
\set look 'SELECT severity, subject, message FROM millrace.validate(''va'') WHERE message !~ ''background'''
:look;
SELECT millrace.create_staging('va.t', stream => 'va', payload => 'none', key => '{"id": ["$.id", "integer"]}', columns => '{"n": ["$.n", "numeric"], "tags": ["$.tags", "text[]"]}', expect => '{"few": "n < 10"}');
SELECT millrace.create_hub('va.h', source => 'va.t', business_key => '{id}');
:look;
SELECT millrace.push('va', '{"id": 1, "n": 1}') > 0, millrace.push('va', '{"id": 2, "n": 100}') > 0, millrace.push('va', 'x') > 0;
SELECT messages, dead_letters FROM millrace.run_stream('va');
CREATE FUNCTION va.f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
CREATE TRIGGER f BEFORE INSERT ON va.h FOR EACH ROW EXECUTE FUNCTION va.f();
ALTER TABLE va.t ENABLE ROW LEVEL SECURITY;
SELECT millrace.create_hub('va.h2', source => 'va.t', business_key => '{id}');
BEGIN;
SELECT millrace.create_stream('va', workers => 100, replace => true);
SELECT millrace.start_stream('va');
:look AND message !~ 'waits';
ROLLBACK;
SELECT millrace.discard(array_agg(id)) FROM millrace.dead_letter WHERE stream = 'va';
DROP TRIGGER f ON va.h;
ALTER TABLE va.t DISABLE ROW LEVEL SECURITY;
SELECT messages FROM millrace.run_stream('va');
:look;
SELECT millrace.validate('nothing');
SELECT millrace.drop_stream('va', cascade => true);
DROP SCHEMA va CASCADE;
