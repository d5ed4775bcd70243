-- Streams of changes from PostgreSQL: their declaration. What they read is tested in test/cdc.
SET client_min_messages = error;
CREATE EXTENSION IF NOT EXISTS millrace;
\set VERBOSITY default
\set SHOW_CONTEXT never
\pset format unaligned
\pset tuples_only on
CREATE SCHEMA cdc;

-- ---- servers and mappings ------------------------------------------------------------------------------------
CREATE SERVER c_bad FOREIGN DATA WRAPPER millrace_postgres OPTIONS (hots 'x');
CREATE SERVER c_bad FOREIGN DATA WRAPPER millrace_postgres OPTIONS (password 'x');
CREATE SERVER c_bad FOREIGN DATA WRAPPER millrace_postgres OPTIONS (dbname 'x', sslmode 'sometimes');
-- Nobody listens there.
CREATE SERVER c_away FOREIGN DATA WRAPPER millrace_postgres OPTIONS (host '127.0.0.1', port '1', dbname 'x');
CREATE USER MAPPING FOR CURRENT_USER SERVER c_away OPTIONS (host 'x');
CREATE USER MAPPING FOR CURRENT_USER SERVER c_away OPTIONS (username 'x', password_file '/etc/passwd');
CREATE USER MAPPING FOR CURRENT_USER SERVER c_away OPTIONS (username 'x');

-- ---- options -------------------------------------------------------------------------------------------------
SELECT millrace.create_stream('c', server => 'c_away');
SELECT millrace.create_stream('c', server => 'c_away', options => '{"tabels": ["public.t"]}');
SELECT millrace.create_stream('c', server => 'c_away', options => '{"tables": "public.t"}');
SELECT millrace.create_stream('c', server => 'c_away', options => '{"tables": []}');
SELECT millrace.create_stream('c', server => 'c_away', options => '{"tables": ["t"]}');
SELECT millrace.create_stream('c', server => 'c_away', options => '{"tables": ["public.t", "public.t"]}');
SELECT millrace.create_stream('c', server => 'c_away', options => '{"tables": ["public.t"], "slot": "Big-Slot"}');
SELECT millrace.create_stream('c', server => 'c_away', options => '{"tables": ["public.t"], "publication": ""}');
SELECT millrace.create_stream('c', server => 'c_away', options => '{"tables": ["public.t"], "snapshot": "inital"}');
SELECT millrace.create_stream('c', server => 'c_away', options => '{"tables": ["public.t"], "truncate": "aply"}');
SELECT millrace.create_stream('c', server => 'c_away', options => '{"tables": ["public.t"], "on_lost": "earliest"}');
SELECT millrace.create_stream('c', server => 'c_away', options => '{"tables": ["public.t"], "snapshot_chunk": 0}');
SELECT millrace.create_stream('c', server => 'c_away', options => '{"tables": ["public.t"], "snapshot_parallel": 33}');
SELECT millrace.create_stream('c', server => 'c_away', options => '{"tables": ["public.t"], "wal_budget": "much"}');
SELECT millrace.create_stream('c', server => 'c_away', options => '{"tables": ["public.t"]}', workers => 2);
SELECT count(*) FROM millrace.stream WHERE name = 'c';
SET client_min_messages = warning;
SELECT millrace.create_stream('c', server => 'c_away', options => '{"tables": ["public.t"]}');
SET client_min_messages = error;
SELECT state, slot, publication, wal_status, position_lsn FROM millrace.replication_status WHERE stream = 'c';

-- ---- staging -------------------------------------------------------------------------------------------------
SELECT millrace.create_staging('cdc.t', stream => 'c', source_table => 'public.t');
SELECT millrace.create_staging('cdc.t', stream => 'c', source_table => 't', key => '{"id": ["$.id", "int"]}', columns => '{}');
SELECT millrace.create_staging('cdc.t', stream => 'c', source_table => 'public.t', key => '{"id": ["$.id", "int"]}', columns => '{"v": "$.v", "total": ["$.total", "numeric(12,2)"]}',
    computed => '{"v": ["upper(raw.v)", "text"]}', filter => $$ v <> 'BAD' $$);
SELECT millrace.create_stream('c_inbox');
SELECT millrace.create_staging('cdc.i', stream => 'c_inbox', source_table => 'public.t', key => '{"id": ["$.id", "int"]}', columns => '{}');
SELECT * FROM millrace.describe('stream', 'c');
SELECT * FROM millrace.describe('staging', 'cdc.t');

-- What a change would become; the source is not asked.
SELECT layer, relation, change, after ->> 'v' AS v, reason FROM millrace.preview('c', payload => '{"id": 1, "v": "x"}');
SELECT layer, relation, change, after ->> 'v' AS v, reason FROM millrace.preview('c', payload => '{"id": 1, "v": "bad", "total": null}', headers => '{"op": "U"}');
SELECT layer, relation, change, after ->> 'v' AS v, reason FROM millrace.preview('c', payload => '{"id": 1, "v": "good"}', headers => '{"op": "U"}');
SELECT layer, relation, change, after ->> 'v' AS v, reason FROM millrace.preview('c', payload => '{"id": 1}', headers => '{"op": "D", "table": "public.t"}');
SELECT layer, relation, change, reason FROM millrace.preview('c', payload => '{"id": "x"}');
SELECT * FROM millrace.preview('c', payload => '{}', headers => '{"table": "public.u"}');
SELECT * FROM millrace.preview('c', payload => '{}', headers => '{"op": "X"}');
SELECT * FROM millrace.preview('c', 5);

-- ---- its life ------------------------------------------------------------------------------------------------
SELECT config_version AS before FROM millrace.stream WHERE name = 'c' \gset
SELECT millrace.create_stream('c', server => 'c_away', options => '{"tables": ["public.t"]}', replace => true);
SELECT config_version = :before FROM millrace.stream WHERE name = 'c';
SELECT millrace.create_stream('c', server => 'c_away', options => '{"tables": ["public.t"], "snapshot": "only", "wal_budget": "1 GB"}', replace => true);
SELECT options FROM millrace.stream WHERE name = 'c';
SELECT millrace.create_stream('c', replace => true);
SELECT millrace.push('c', '{}');
SELECT millrace.resnapshot('c', 'public.u');
SELECT millrace.resnapshot('c', 'public.t', filter => 'id > 1; DROP TABLE t');
SELECT millrace.resnapshot('c', NULL);
SELECT millrace.resnapshot('c_inbox', 'public.t');
SELECT millrace.resnapshot('c', 'public.t', filter => 'id > 1');
SELECT millrace.pause_snapshot('c');
SELECT source_table, state, filter, rows, share_done FROM millrace.snapshot_status WHERE stream = 'c';
SELECT millrace.resnapshot('c', 'public.t');
SELECT millrace.resume_snapshot('c');
SELECT source_table, state, filter, rows, share_done FROM millrace.snapshot_status WHERE stream = 'c';
-- All was copied, which was all; then it is to be followed.
UPDATE millrace.replication SET state = 'finished';
SELECT millrace.resnapshot('c', 'public.t');
SELECT millrace.create_stream('c', server => 'c_away', options => '{"tables": ["public.t"]}', replace => true);
SELECT state FROM millrace.replication_status WHERE stream = 'c';
SELECT millrace.reset_stream('c', start => 'earliest');
SELECT millrace.reset_stream('c');
SELECT severity, subject, message ~ 'refused' FROM millrace.validate('c') WHERE severity = 'error';
SELECT millrace.drop_stream('c');
SELECT millrace.drop_stream('c', cascade => true);
SELECT count(*) FROM millrace.replication;

-- ---- this very database --------------------------------------------------------------------------------------
SELECT current_setting('port') AS port, current_database() AS name \gset
CREATE SERVER c_here FOREIGN DATA WRAPPER millrace_postgres OPTIONS (host '/nowhere', port :'port', dbname :'name');
CREATE USER MAPPING FOR CURRENT_USER SERVER c_here OPTIONS (username 'x');
SELECT millrace.create_staging('cdc.i', stream => 'c_inbox', key => '{"id": ["$.id", "int"]}', columns => '{}');
SELECT millrace.create_stream('c', server => 'c_here', options => '{"tables": ["cdc.i"]}');
SELECT millrace.create_stream('c', server => 'c_here', options => '{"tables": ["millrace.stream"]}');
SELECT millrace.create_stream('c', server => 'c_here', options => '{"tables": ["cdc.other"]}');
-- A slot that is being made would be left behind.
BEGIN;
UPDATE millrace.replication SET state = 'making';
DROP EXTENSION millrace CASCADE;
ROLLBACK;
SELECT millrace.drop_stream('c');
SELECT millrace.drop_stream('c_inbox', cascade => true);

-- ---- what becomes wider by itself ----------------------------------------------------------------------------
SELECT o AS old, string_agg(n, ', ') FILTER (WHERE millrace_internal.widens(o, n)) AS wider
FROM unnest('{smallint,integer,bigint,real,double precision,text,character varying,character varying(5),character varying(9),"numeric(8,2)","numeric(9,2)","numeric(9,3)",numeric,date}'::text[]) AS o,
     unnest('{smallint,integer,bigint,real,double precision,text,character varying,character varying(5),character varying(9),"numeric(8,2)","numeric(9,2)","numeric(9,3)",numeric,date}'::text[]) AS n
WHERE o <> n GROUP BY o ORDER BY o COLLATE "C";
DROP SERVER c_away CASCADE;
DROP SERVER c_here CASCADE;
DROP SCHEMA cdc CASCADE;
