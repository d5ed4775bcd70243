-- What bad input says to those who caused it.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS millrace;
SET client_min_messages = notice;
\set VERBOSITY default
\set SHOW_CONTEXT never
CREATE SCHEMA bad;
SET search_path = bad, public;
SET timezone = 'UTC';
SET datestyle = 'ISO';
-- What a statement says when it fails, without numbers that are others the next time.
CREATE FUNCTION public.try(statement text) RETURNS TABLE (state text, message text, detail text, hint text) LANGUAGE plpgsql AS $$
BEGIN
  EXECUTE statement;
  message := 'ok';
  RETURN NEXT;
EXCEPTION WHEN OTHERS THEN
  GET STACKED DIAGNOSTICS state = RETURNED_SQLSTATE, message = MESSAGE_TEXT, detail = PG_EXCEPTION_DETAIL, hint = PG_EXCEPTION_HINT;
  SELECT regexp_replace(message, '\d+', '…', 'g'), regexp_replace(detail, '\d+', '…', 'g'), regexp_replace(hint, '\d+', '…', 'g') INTO message, detail, hint;
  RETURN NEXT;
END $$;

-- ---- messages ------------------------------------------------------------------------------------------------
-- `things` maps columns of many types, `anything` only the key: what one cannot take the other may.
SELECT millrace.create_stream('bad');
SELECT millrace.create_staging('things', stream => 'bad', key => '{"id": [["$.id", "$key"], "integer"]}', version => '["$.at", "timestamptz"]', payload => 'jsonb',
  columns => '{"name": "$.name", "small": ["$.small", "smallint"], "price": ["$.price", "numeric(6,2)"], "weight": ["$.weight", "double precision"], "day": ["$.day", "date"],
               "short": ["$.short", "varchar(3)"], "ok": ["$.ok", "boolean"], "unit": ["$.unit", "uuid"]}', computed => '{"ratio": ["1 / small", "integer"]}');
SELECT millrace.create_staging('anything', stream => 'bad', key => '{"id": [["$.id", "$key"], "text"]}');
CREATE TABLE case_of (n integer GENERATED ALWAYS AS IDENTITY, what text, position bigint);
CREATE PROCEDURE send(what text, payload text, key text DEFAULT NULL) LANGUAGE sql AS $$ INSERT INTO case_of (what, position) VALUES (what, millrace.push('bad', payload, key => key)) $$;
CREATE PROCEDURE send_bytes(what text, payload bytea, key text DEFAULT NULL) LANGUAGE sql AS $$ INSERT INTO case_of (what, position) VALUES (what, millrace.push('bad', payload, key => key)) $$;

CALL send('not JSON', '<html>502 Bad Gateway</html>');
CALL send('cut off', '{"id": 1, "name": "x');
CALL send('more than one value', '{"id": 1} {"id": 2}');
CALL send('single quotes', $$ {'id': 1} $$);
CALL send('a comma too many', '{"id": 1,}');
CALL send('not a number', '{"id": 1, "price": NaN}');
CALL send_bytes('invalid UTF-8', '\x7b226964223a312c226e616d65223a22ff227d');
CALL send_bytes('UTF-8 cut off', '\x7b226964223a312c226e616d65223a22c3227d');
CALL send_bytes('overlong UTF-8', '\x7b226964223a312c226e616d65223a22c0af227d');
CALL send_bytes('a byte of zero', '\x7b226964223a312c226e616d65223a2200227d');
CALL send_bytes('invalid UTF-8 in what nobody maps', '\x7b226964223a312c22657874726122203a22ff227d');
CALL send_bytes('UTF-16', '\xfffe7b00220069006400220000');
CALL send_bytes('a byte order mark', '\xefbbbf7b226964223a313030317d');
CALL send('\u0000 in a column', '{"id": 2, "name": "a\u0000b"}');
CALL send('\u0000 in what nobody maps', '{"id": 3, "extra": "a\u0000b"}');
CALL send('half a surrogate', '{"id": 4, "name": "\ud83d"}');
CALL send('a control character', E'{"id": 4, "name": "a\tb"}');
CALL send('20 MB', '{"id": 1002, "name": "' || repeat('x', 20 * 1024 * 1024) || '"}');
CALL send('nesting of 10,000', '{"id": 1003, "extra": ' || repeat('[', 10000) || repeat(']', 10000) || '}');
CALL send('nesting of 10,000 objects in a column', '{"id": 1004, "name": ' || repeat('{"a":', 10000) || '1' || repeat('}', 10000) || '}');
CALL send('nesting of 1,000,000', repeat('[', 1000000));
CALL send('1e400 as a double', '{"id": 5, "weight": 1e400}');
CALL send('1e400 as a numeric', '{"id": 6, "price": 1e400}');
CALL send('1e400 as text', '{"id": 1005, "name": 1e400}');
CALL send('1e2000000000 in what nobody maps', '{"id": 1006, "extra": 1e2000000000}');
CALL send('duplicate members: the last counts', '{"id": 1007, "name": "first", "name": "last"}');
CALL send('no key', '{"name": "x"}');
CALL send('a key of null', '{"id": null}');
CALL send('a key of another type', '{"id": "one"}');
CALL send('a key that is an object', '{"id": {"no": 1}}');
CALL send('a key too large', '{"id": 3000000000}');
CALL send('a key with a fraction', '{"id": 1.5}');
CALL send('an integer out of range', '{"id": 7, "small": 32768}');
CALL send('an integer with a fraction', '{"id": 8, "small": 1.5}');
CALL send('a numeric too large', '{"id": 9, "price": 12345.6}');
CALL send('a numeric that is text', '{"id": 10, "price": "12,50"}');
CALL send('a date that is none', '{"id": 11, "day": "2026-02-30"}');
CALL send('a text too long', '{"id": 12, "short": "four"}');
CALL send('a boolean that is none', '{"id": 13, "ok": "perhaps"}');
CALL send('a uuid that is none', '{"id": 14, "unit": "123"}');
CALL send('a division by zero', '{"id": 15, "small": 0}');
CALL send('a version that is none', '{"id": 16, "at": "yesterday noon"}');
CALL send('a version in the year 9999', '{"id": 17, "at": "9999-12-31T23:59:59Z"}');
CALL send('a version beyond all', '{"id": 18, "at": "infinity"}');
CALL send('an empty payload', '', '19');
CALL send('blanks', '   ', '19');
CALL send('null', 'null', '1008');
CALL send('a number', '42', '1009');
CALL send('a string', '"text"', '1010');
CALL send('an array', '[{"id": 1}, {"id": 2}]');
CALL send('an array, with a key', '[1, 2]', '1011');
CALL send('an empty object, with a key', '{}', '1012');
CALL send('a tombstone before its object', NULL, '1013');
CALL send('the object after its tombstone', '{"id": 1013, "name": "older", "at": "2026-01-01"}');
CALL send('a tombstone without a key', NULL);
CALL send('a tombstone with a key of another type', NULL, 'one');
CALL send('a good one', '{"id": 1014, "name": "good", "small": 1, "price": 12.345, "weight": 1.5, "day": "2026-02-28", "short": "abc", "ok": true, "unit": "00000000-0000-8000-8000-000000000001", "at": "2026-01-01"}');
SELECT messages, dead_letters FROM millrace.run_stream('bad');
-- What became of each: taken by whom, refused by whom and why.
SELECT c.what, (SELECT string_agg(t, ', ' ORDER BY t DESC) FROM (SELECT 'things' AS t FROM things s WHERE s._position = c.position UNION ALL SELECT 'anything' FROM anything s WHERE s._position = c.position) x) AS taken_by,
       l.staging AS refused_by, l.kind, l.sqlstate, left(regexp_replace(l.message, '\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\S*', '…'), 150) AS message
FROM case_of c LEFT JOIN millrace.dead_letter l ON l.position = c.position AND l.stream = 'bad' ORDER BY c.n, l.staging;
-- versions of psql differ in how wide they take a byte order mark
SELECT DISTINCT sqlstate, message, replace(detail, chr(65279), '<BOM>') COLLATE "C" AS detail, hint FROM millrace.dead_letter WHERE stream = 'bad' AND coalesce(detail, hint, '') <> '' ORDER BY 1, 2, 3, 4;
SELECT id, left(name, 20) AS name, length(name), small, price, weight, day, short, ok, unit, ratio FROM things WHERE id > 1000 ORDER BY id;
SELECT id, left(payload::text, 40) AS payload FROM anything ORDER BY id COLLATE "C";
SELECT octet_length(value) FROM millrace.dead_letter WHERE stream = 'bad' AND octet_length(value) > 100000;
-- Letters hold bytes as they came, even those that are no text.
SELECT encode(value, 'escape') AS value FROM millrace.dead_letter WHERE stream = 'bad' AND message ~ 'UTF8' ORDER BY position LIMIT 1;

-- Input functions say so in many ways, and so do functions in PL/pgSQL; one that calls what is not there is no bad data.
CREATE FUNCTION grade(n integer) RETURNS text LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE
  result text;
BEGIN
  ASSERT n <> 2, 'two is not graded';
  IF n = 3 THEN
    SELECT 'three' INTO STRICT result WHERE false;
  ELSIF n = 4 THEN
    RETURN bad.grade(n);
  ELSIF n = 5 THEN
    RETURN bad.nobody(n);
  END IF;
  CASE n WHEN 1 THEN RETURN 'good'; END CASE;
END $$;
SELECT millrace.create_stream('words');
SELECT millrace.create_staging('words', stream => 'words', key => '{"id": ["$.id", "integer"]}', computed => '{"grade": ["bad.grade(n)", "text"]}',
  columns => '{"n": ["$.n", "integer"], "doc": ["$.doc", "tsvector"], "asked": ["$.asked", "tsquery"], "path": ["$.path", "jsonpath"], "table": ["$.table", "regclass"]}');
SELECT count(millrace.push('words', m)) FROM unnest(ARRAY['{"id": 1, "n": 1, "doc": "a b", "asked": "a & b", "path": "$.a", "table": "bad.things"}', '{"id": 2, "n": 2}', '{"id": 3, "n": 3}', '{"id": 4, "n": 4}',
  '{"id": 6, "n": 6}', '{"id": 7, "n": 1, "doc": "''"}', '{"id": 8, "n": 1, "asked": "a b"}', '{"id": 9, "n": 1, "path": "$."}', '{"id": 10, "n": 1, "table": "bad.nothing"}', '{"id": 11, "n": 1}']) AS m;
SELECT messages, dead_letters FROM millrace.run_stream('words');
SELECT convert_from(value, 'UTF8')::json ->> 'id' AS id, sqlstate, message FROM millrace.dead_letter WHERE stream = 'words' ORDER BY position;
SELECT id, grade, doc, asked, path, "table" FROM words ORDER BY id;
SELECT millrace.push('words', '{"id": 12, "n": 5}'::text) > 0 AS pushed;
SELECT * FROM try($$ SELECT millrace.run_stream('words') $$);
SELECT millrace.drop_stream('words', cascade => true);

-- ---- the table under the stream ---------------------------------------------------------------------------------
SELECT millrace.create_stream('table_of');
SELECT millrace.create_staging('victim', stream => 'table_of', key => '{"id": ["$key", "integer"]}', columns => '{"a": "$.a", "b": ["$.b", "integer"]}');
SELECT * FROM try('ALTER TABLE victim DROP COLUMN b');
SELECT * FROM try('ALTER TABLE victim DROP COLUMN _version');
SELECT * FROM try('ALTER TABLE victim ALTER COLUMN a TYPE varchar(2)');
SELECT * FROM try('DROP TABLE victim');
ALTER TABLE victim RENAME COLUMN a TO other;
SELECT millrace.push('table_of', '{"a": "x", "b": 1}', key => '1') IS NOT NULL AS pushed;
SELECT messages, dead_letters FROM millrace.run_stream('table_of');
SELECT id, other, b FROM victim;
ALTER TABLE victim ADD CHECK (other <> 'no'), ADD COLUMN needed integer NOT NULL DEFAULT 7, ADD COLUMN mine text;
SELECT millrace.push('table_of', '{"a": "no", "b": 1}', key => '1') IS NOT NULL AS pushed;
SELECT messages, dead_letters FROM millrace.run_stream('table_of');
ALTER TABLE victim ALTER COLUMN needed DROP DEFAULT;
SELECT millrace.push('table_of', '{"a": "yes", "b": 1}', key => '2') IS NOT NULL AS pushed;
SELECT messages, dead_letters FROM millrace.run_stream('table_of');
SELECT sqlstate, message, hint FROM millrace.dead_letter WHERE stream = 'table_of' ORDER BY id;
SELECT id, other, needed FROM victim ORDER BY id;
-- Two staging tables in one table.
SELECT * FROM try($$ SELECT millrace.create_staging('victim', stream => 'bad', key => '{"id": ["$key", "integer"]}', columns => '{"a": "$.a", "b": ["$.b", "integer"]}') $$);
SELECT * FROM try($$ SELECT millrace.create_staging('bad.victim', stream => 'bad', key => '{"id": ["$key", "integer"]}', columns => '{"a": "$.a", "b": ["$.b", "integer"]}', replace => true) $$);
SELECT * FROM try($$ SELECT millrace.create_staging('other_victim', stream => 'bad', key => '{"id": ["$key", "integer"]}', columns => '{"a": "$.a"}') $$);
SELECT * FROM try($$ SELECT millrace.create_staging('other_victim', stream => 'bad', key => '{"id": ["$key", "integer"]}', columns => '{"a": "$.a", "b": ["$.b", "integer"]}') $$);
SELECT * FROM try($$ SELECT millrace.create_stream('bad', on_error => 'stop') $$);
-- What is no table, or not one's own.
CREATE VIEW a_view AS SELECT 1 AS id;
SELECT * FROM try($$ SELECT millrace.create_staging('a_view', stream => 'bad', key => '{"id": "$key"}') $$);
SELECT * FROM try($$ SELECT millrace.create_staging('pg_catalog.pg_class', stream => 'bad', key => '{"oid": "$key"}') $$);
SELECT * FROM try($$ SELECT millrace.create_staging('nowhere.table', stream => 'bad', key => '{"id": "$key"}') $$);
SELECT * FROM try($$ SELECT millrace.create_staging('', stream => 'bad', key => '{"id": "$key"}') $$);
SELECT * FROM try($$ SELECT millrace.create_staging(NULL, stream => 'bad', key => '{"id": "$key"}') $$);

-- ---- declarations -------------------------------------------------------------------------------------------------
-- Each is undone at once.
CREATE FUNCTION declare(arguments text) RETURNS TABLE (state text, message text, detail text, hint text) LANGUAGE sql AS
$$ SELECT * FROM try(format('DO %L', format('BEGIN PERFORM millrace.create_staging(%L, stream => %L, %s); RAISE EXCEPTION %L; END', 'declared', 'bad', arguments, 'taken'))) $$;
CREATE TABLE declaration (n integer GENERATED ALWAYS AS IDENTITY, arguments text);
INSERT INTO declaration (arguments) VALUES
 ($$ columns => '{"a": "$.a"}' $$),
 ($$ key => '{}' $$),
 ($$ key => '["id"]' $$),
 ($$ key => '{"id": "id"}' $$),
 ($$ key => '{"id": "$."}' $$),
 ($$ key => '{"id": "$.a[*]"}' $$),
 ($$ key => '{"id": "$.a[?(@.b)]"}' $$),
 ($$ key => '{"id": "$..a"}' $$),
 ($$ key => '{"id": "$nothing"}' $$),
 ($$ key => '{"id": "@.id"}' $$),
 ($$ key => '{"id": 1}' $$),
 ($$ key => '{"id": []}' $$),
 ($$ key => '{"id": [[], "text"]}' $$),
 ($$ key => '{"id": ["$.a", "$.b"]}' $$),
 ($$ key => '{"id": ["$.a", "interger"]}' $$),
 ($$ key => '{"id": ["$.a", "record"]}' $$),
 ($$ key => '{"id": ["$.a", "json"]}' $$),
 ($$ key => '{"id": ["$.a", "integer[]"]}' $$),
 ($$ key => '{"id": ["$.a", "integer", "ms"]}' $$),
 ($$ key => '{"id": ["$.a", "timestamptz", "msec"]}' $$),
 ($$ key => '{"id": ["$.a", "text", "s", "more"]}' $$),
 ($$ key => '{"id": "$.a", "id": "$.b"}' $$),
 ($$ key => '{"id": "$.a"}', columns => '{"id": "$.b"}' $$),
 ($$ key => '{"id": "$.a"}', columns => '{"_version": "$.b"}' $$),
 ($$ key => '{"id": "$.a"}', columns => '{"payload": "$.b"}' $$),
 ($$ key => '{"id": "$.a"}', columns => '{"x": "@.b"}' $$),
 ($$ key => '{"id": "$.a"}', columns => '{"": "$.b"}' $$),
 ($$ key => '{"id": "$.a"}', columns => '{"a": "$.a' $$),
 ($$ key => '{"id": "$.a"}', for_each => '$.items' $$),
 ($$ key => '{"id": "$.a"}', for_each => 'items[*]' $$),
 ($$ key => '{"id": "$.a"}', version => '["$.v", "json"]' $$),
 ($$ key => '{"id": "$.a"}', version => '["@.v", "integer"]', for_each => '$.i[*]' $$),
 ($$ key => '{"id": "$.a"}', event_time => '["$.v", "integer"]' $$),
 ($$ key => '{"id": "$.a"}', route => 'id' $$),
 ($$ key => '{"id": "$.a"}', route => 'ID IS NOT NULL AND nothing = 1' $$),
 ($$ key => '{"id": "$.a"}', filter => 'id <> ''x'' FROM pg_class' $$),
 ($$ key => '{"id": "$.a"}', filter => 'true; DROP TABLE victim' $$),
 ($$ key => '{"id": "$.a"}', filter => 'id IN (SELECT relname FROM pg_class)' $$),
 ($$ key => '{"id": "$.a"}', filter => 'now() > ''2026-01-01''' $$),
 ($$ key => '{"id": "$.a"}', filter => 'CURRENT_DATE > ''2026-01-01''' $$),
 ($$ key => '{"id": "$.a"}', filter => 'random() > 0.5' $$),
 ($$ key => '{"id": "$.a"}', filter => 'row_number() OVER () > 0' $$),
 ($$ key => '{"id": "$.a"}', filter => 'count(*) > 0' $$),
 ($$ key => '{"id": "$.a"}', filter => 'generate_series(1, 2) > 1' $$),
 ($$ key => '{"id": "$.a"}', filter => 'true) AS x, (true' $$),
 ($$ key => '{"id": "$.a"}', filter => 'true -- and more' $$),
 ($$ key => '{"id": "$.a"}', filter => '' $$),
 ($$ key => '{"id": "$.a"}', computed => '{"b": "1"}' $$),
 ($$ key => '{"id": "$.a"}', computed => '{"b": ["1", "nothing"]}' $$),
 ($$ key => '{"id": "$.a"}', computed => '{"id": ["1", "text"]}' $$),
 ($$ key => '{"id": "$.a"}', computed => '{"b": ["raw.b", "text"]}' $$),
 ($$ key => '{"id": "$.a"}', computed => '{"b": ["''x''", "integer"]}' $$),
 ($$ key => '{"id": "$.a"}', computed => '{"b": ["now()", "timestamptz"]}' $$),
 ($$ key => '{"id": "$.a"}', expect => '{"e": ["id = 1"]}' $$),
 ($$ key => '{"id": "$.a"}', expect => '{"e": "id"}' $$),
 ($$ key => '{"id": "$.a"}', expect => '{"e": "nothing > 1"}' $$),
 ($$ key => '{"id": "$.a"}', payload => 'jsom' $$),
 ($$ key => '{"id": "$.a"}', payload => 'json', for_each => '$.i[*]' $$),
 ($$ key => '{"id": "$.a"}', tombstone => 'never' $$),
 ($$ key => '{"id": "$.a"}', max_ahead => '-1 day' $$),
 ($$ key => '{"id": "$.a"}', timezone => 'Europe/Moskva' $$),
 ($$ key => '{"id": "$.a"}', source_table => 'public.orders' $$),
 ($$ key => '{"id": "$.a"}', colums => '{}' $$),
 ($$ key => '{"id": "$.a"}', log => NULL $$),
 ($$ key => '{"id": "$.a"}', timezone => NULL $$),
 ($$ key => '{"id": "$.a"}', max_ahead => NULL $$),
 ($$ key => '{"id": "$.a"}', tombstone => NULL $$),
 ($$ key => '{"id": "$.a"}', replace => NULL $$);
SELECT d.arguments, t.* FROM declaration d, declare(d.arguments) t ORDER BY n;
SELECT * FROM try($$ SELECT millrace.create_staging('declared', stream => 'bda', key => '{"id": "$key"}') $$);
SELECT * FROM try($$ SELECT millrace.create_staging('declared', stream => NULL, key => '{"id": "$key"}') $$);
SELECT * FROM try($$ SELECT millrace.create_stream('orders', fromat => 'json') $$);
SELECT * FROM try($$ SELECT millrace.create_stream('orders', format => 'jsno') $$);
SELECT * FROM try($$ SELECT millrace.create_stream('orders', on_error => 'ignore') $$);
SELECT * FROM try($$ SELECT millrace.create_stream('orders', on_error => 'dead_leter') $$);
SELECT * FROM try($$ SELECT millrace.create_stream('orders', workers => 0) $$);
SELECT * FROM try($$ SELECT millrace.create_stream('orders', options => '{"topic": "x"}') $$);
SELECT * FROM try($$ SELECT millrace.create_stream('orders', server => 'nowhere', options => '{"topic": "x"}') $$);
SELECT * FROM try($$ SELECT millrace.create_stream('') $$);
SELECT * FROM try($$ SELECT millrace.drop_table('nothing') $$);
SELECT * FROM try($$ SELECT millrace.drop_table('case_of') $$);
SELECT * FROM try($$ SELECT millrace.drop_stream('bda') $$);
SELECT * FROM try($$ SELECT millrace.push('bda', '{}'::text) $$);
SELECT * FROM try($$ SELECT millrace.push(NULL, '{}'::text) $$);
SELECT * FROM try($$ SELECT millrace.run_stream(NULL) $$);
SELECT to_regclass('declared') IS NULL AS nothing_was_made;

-- No argument name of ours needs quotes.
SELECT p.oid::regprocedure AS function, a.name FROM pg_proc p, unnest(p.proargnames) AS a (name) JOIN pg_get_keywords() k ON k.word = a.name
WHERE p.pronamespace = 'millrace'::regnamespace AND k.catcode IN ('R', 'C') ORDER BY 1, 2;

-- ---- owners -------------------------------------------------------------------------------------------------------
CREATE ROLE bad_owner LOGIN IN ROLE millrace_admin;
CREATE ROLE bad_other LOGIN IN ROLE millrace_admin;
GRANT ALL ON SCHEMA bad TO bad_owner;
GRANT USAGE ON SCHEMA bad TO bad_other;
SET ROLE bad_owner;
SELECT millrace.create_stream('owned');
SELECT millrace.create_staging('owned', stream => 'owned', key => '{"id": ["$key", "integer"]}', columns => '{"a": "$.a"}', log => true);
SET ROLE bad_other;
SELECT * FROM try($$ SELECT millrace.push('owned', '{"a": 1}'::text, key => '1') $$);
SELECT * FROM try($$ SELECT millrace.run_stream('owned') $$);
SELECT * FROM try($$ SELECT millrace.create_staging('stolen', stream => 'owned', key => '{"id": "$key"}') $$);
SELECT * FROM try($$ SELECT millrace.drop_table('owned', cascade => true) $$);
SELECT * FROM try($$ SELECT millrace.drop_stream('owned', cascade => true) $$);
SELECT * FROM try($$ SELECT millrace.create_stream('owned', replace => true, workers => 2) $$);
SELECT * FROM try($$ SELECT millrace.start_stream('owned') $$);
SELECT * FROM try($$ SELECT * FROM millrace_internal.fence() $$);
SELECT * FROM try($$ SELECT * FROM millrace.letter $$);
SELECT count(*) FROM millrace.dead_letter WHERE stream = 'owned';
RESET ROLE;
-- The owner loses a privilege on his own table: the stream stops, and nothing is lost.
REVOKE INSERT ON owned FROM bad_owner;
SET ROLE bad_owner;
SELECT millrace.push('owned', '{"a": 1}', key => '1') IS NOT NULL AS pushed;
SELECT * FROM try($$ SELECT millrace.run_stream('owned') $$);
SELECT severity, subject, message, hint FROM millrace.validate('owned') WHERE severity = 'error';
RESET ROLE;
GRANT INSERT ON owned TO bad_owner;
REVOKE ALL ON SCHEMA bad FROM bad_owner;
SET ROLE bad_owner;
SELECT * FROM try($$ SELECT millrace.run_stream('owned') $$);
SELECT severity, subject, message, hint FROM millrace.validate('owned') WHERE severity = 'error';
RESET ROLE;
GRANT USAGE ON SCHEMA bad TO bad_owner;
SET ROLE bad_owner;
SELECT messages, dead_letters FROM millrace.run_stream('owned');
RESET ROLE;
SELECT id, a FROM owned;
-- The owner is dropped: not while something is his.
SELECT * FROM try($$ DROP ROLE bad_owner $$);
REASSIGN OWNED BY bad_owner TO bad_other;
SELECT millrace.push('owned', '{"a": 2}', key => '2') IS NOT NULL AS pushed;
SELECT * FROM try($$ SELECT millrace.run_stream('owned') $$);
DROP OWNED BY bad_owner;
DROP ROLE bad_owner;
SELECT * FROM try($$ SELECT millrace.run_stream('owned') $$);
SELECT severity, regexp_replace(subject, '\d+', '…') AS subject, message, hint FROM millrace.validate('owned') WHERE severity = 'error';
SELECT * FROM try($$ SELECT millrace.push('owned', '{"a": 3}'::text) $$);
SELECT stream, owner ~ 'unknown' AS owner_unknown, lag_messages FROM millrace.stream_status WHERE stream = 'owned';
SELECT * FROM try($$ SELECT millrace.drop_stream('owned', cascade => true) $$);
SELECT to_regclass('owned'), to_regclass('owned_log');

-- What a domain asks is not the message's either.
CREATE FUNCTION bad.asks(value text) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN RETURN EXISTS (SELECT FROM bad.gone_table); END $$;
CREATE DOMAIN bad.asked AS text CHECK (bad.asks(value));
SELECT millrace.create_stream('asked');
SELECT millrace.create_staging('answers', stream => 'asked', key => '{"id": ["$.id", "integer"]}', columns => '{"a": ["$.a", "bad.asked"]}');
SELECT millrace.push('asked', '{"id": 1, "a": "x"}'::text) IS NOT NULL AS pushed;
SELECT * FROM try($$ SELECT millrace.run_stream('asked') $$);
CREATE TABLE bad.gone_table ();
INSERT INTO bad.gone_table DEFAULT VALUES;
SELECT messages, dead_letters FROM millrace.run_stream('asked');
SELECT millrace.drop_stream('asked', cascade => true);

SET client_min_messages = error;
SELECT millrace.drop_stream(name, cascade => true) FROM millrace.stream WHERE name IN ('bad', 'table_of');
DROP SCHEMA bad CASCADE;
DROP FUNCTION public.try;
DROP OWNED BY bad_other;
DROP ROLE bad_other;

-- A database in which messages would not be what they were.
CREATE DATABASE bad_encoding TEMPLATE template0 ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C';
SELECT current_database() AS here \gset
\c bad_encoding
CREATE EXTENSION millrace;
\c :here
DROP DATABASE bad_encoding;
