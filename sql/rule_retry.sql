-- Rules that were suspended: what came meanwhile counts when they are judged again.
\set VERBOSITY terse
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS millrace;
CREATE ROLE retry_maker LOGIN;
GRANT millrace_admin TO retry_maker;
GRANT CREATE ON DATABASE :DBNAME TO retry_maker;
RESET client_min_messages;
\set VERBOSITY default
\set SHOW_CONTEXT never
SET TimeZone = 'UTC';
SET ROLE retry_maker;
CREATE SCHEMA rr;
SELECT millrace.create_stream('rr_events');
SELECT millrace.create_staging('rr.events', stream => 'rr_events', key => '{"id": ["$.id", "bigint"]}', version => '["$.v", "integer"]', columns => '{"who": "$.who", "n": ["$.n", "integer"]}');
SELECT millrace.create_mart('rr.by_who', 'SELECT who, count(*)::integer AS n FROM rr.events GROUP BY who');
CREATE FUNCTION rr.say(first integer, last integer, who text, n integer, v integer DEFAULT 1, at timestamptz DEFAULT clock_timestamp()) RETURNS bigint LANGUAGE sql AS
  $$ SELECT count(millrace.push('rr_events', json_build_object('id', i, 'v', v, 'who', who, 'n', n), key => i::text, message_time => at)) FROM generate_series(first, last) i $$;
CREATE FUNCTION rr.much(n integer, bound integer) RETURNS boolean LANGUAGE sql IMMUTABLE AS $$ SELECT n >= bound $$;
CREATE VIEW rr.alerts AS SELECT rule, key, split_part(occurrence, '@', 1) AS about, suppressed FROM millrace.alert WHERE rule LIKE 'rr %' ORDER BY rule, id;

SELECT rr.say(1, 2, 'old', 8);
SELECT messages FROM millrace.run_stream('rr_events');
SELECT millrace.create_rule('rr match', kind => 'match', source => 'rr.events', predicate => 'rr.much(n, 8)');
SELECT millrace.create_rule('rr again', kind => 'match', source => 'rr.events', predicate => 'rr.much(n, 8)', again => true);
SELECT millrace.create_rule('rr often', kind => 'frequency', source => 'rr.events', key => '{who}', count => 2, within => '1 hour', predicate => 'rr.much(n, 8)');
SELECT millrace.create_rule('rr many', kind => 'threshold', source => 'rr.by_who', predicate => 'rr.much(n, 2)', send_resolved => true);
SELECT messages FROM millrace.run_stream('rr_events');
SELECT * FROM rr.alerts;
SELECT clock_timestamp() AS early \gset
SELECT rr.say(3, 4, 'a', 8);
SELECT messages FROM millrace.run_stream('rr_events');
SELECT rr.say(3, 3, 'a', 9, 2);
SELECT messages FROM millrace.run_stream('rr_events');
SELECT * FROM rr.alerts WHERE suppressed IS NULL;

-- what the batch holds that suspends them has not been judged
CREATE OR REPLACE FUNCTION rr.much(n integer, bound integer) RETURNS boolean LANGUAGE plpgsql IMMUTABLE AS $$ BEGIN RAISE 'forbidden' USING ERRCODE = 'insufficient_privilege'; END $$;
SELECT rr.say(5, 6, 'b', 8);
SELECT messages FROM millrace.run_stream('rr_events');
SELECT rule, state, reason FROM millrace.rule_status WHERE rule LIKE 'rr %' ORDER BY rule;
SELECT rr.say(7, 8, 'c', 8);
SELECT messages FROM millrace.run_stream('rr_events');
CREATE OR REPLACE FUNCTION rr.much(n integer, bound integer) RETURNS boolean LANGUAGE sql IMMUTABLE AS $$ SELECT n >= bound $$;
SELECT millrace.retry_rule(rule) FROM millrace.rule_status WHERE rule LIKE 'rr %' ORDER BY rule;
SELECT messages FROM millrace.run_stream('rr_events');
SELECT * FROM rr.alerts WHERE about !~ 'old' AND key NOT IN ('1', '2');
-- and what was sent before, and was read only now, is no history
SELECT rr.say(9, 10, 'd', 8, at => :'early');
SELECT messages FROM millrace.run_stream('rr_events');
SELECT * FROM rr.alerts WHERE about ~ 'd' OR key IN ('9', '10');

-- what was there before the rule stays history, when it has never judged it
CREATE OR REPLACE FUNCTION rr.much(n integer, bound integer) RETURNS boolean LANGUAGE plpgsql IMMUTABLE AS $$ BEGIN RAISE 'forbidden' USING ERRCODE = 'insufficient_privilege'; END $$;
SELECT millrace.create_rule('rr new match', kind => 'match', source => 'rr.events', predicate => 'rr.much(n, 8)', key => '{who}');
SELECT millrace.create_rule('rr new many', kind => 'threshold', source => 'rr.by_who', predicate => 'rr.much(n, 2)');
SELECT messages FROM millrace.run_stream('rr_events');
SELECT rr.say(11, 12, 'e', 8);
SELECT messages FROM millrace.run_stream('rr_events');
CREATE OR REPLACE FUNCTION rr.much(n integer, bound integer) RETURNS boolean LANGUAGE sql IMMUTABLE AS $$ SELECT n >= bound $$;
SELECT millrace.retry_rule(rule) FROM millrace.rule_status WHERE rule LIKE 'rr %' ORDER BY rule;
SELECT messages FROM millrace.run_stream('rr_events');
SELECT * FROM rr.alerts WHERE rule LIKE 'rr new %';
-- groups that hold when the mart is made anew are history also after that
SELECT rr.say(13, 13, 'f', 8);
SELECT messages FROM millrace.run_stream('rr_events');
SELECT millrace.create_mart('rr.by_who', 'SELECT who, count(*)::integer + 1 AS n FROM rr.events GROUP BY who', replace => true);
SELECT messages FROM millrace.run_stream('rr_events');
SELECT * FROM rr.alerts WHERE rule LIKE 'rr %many' AND about ~ 'f';

SELECT millrace.drop_table('rr.events', cascade => true);
SELECT millrace.drop_stream('rr_events');

-- A life of an object ends with the version that an unconditional delete has taken away: that is no new one when it comes again.
SELECT millrace.create_stream('rr_lives');
SELECT millrace.create_staging('rr.lives', stream => 'rr_lives', key => '{"id": [["$.id", "$key"], "integer"]}', version => '["$.v", "integer"]', columns => '{"a": "$.a"}', tombstone => 'always');
SELECT millrace.create_rule('rr lives', kind => 'match', source => 'rr.lives', predicate => $$ a = 'x' $$);
CREATE FUNCTION rr.live(v integer) RETURNS bigint LANGUAGE plpgsql AS $$ BEGIN
  PERFORM CASE WHEN v IS NULL THEN millrace.push('rr_lives', NULL::text, key => '1') ELSE millrace.push('rr_lives', json_build_object('id', 1, 'v', v, 'a', 'x')) END;
  PERFORM millrace.run_stream('rr_lives');
  RETURN (SELECT count(*) FROM millrace.alert WHERE rule = 'rr lives');
END $$;
SELECT v, rr.live(v) AS alerts FROM unnest(ARRAY[1, NULL, 1, 2, NULL, 3]) WITH ORDINALITY AS u (v, n) ORDER BY n;
SELECT millrace.drop_stream('rr_lives', cascade => true);
RESET ROLE;
SET client_min_messages = warning;
DROP SCHEMA rr CASCADE;
DROP OWNED BY retry_maker;
DROP ROLE retry_maker;
