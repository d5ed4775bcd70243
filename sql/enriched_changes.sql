-- Enrichment of changes that leave out what has not changed: what waits for a dictionary, and what waits for a letter, meet.
\set VERBOSITY terse
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS millrace;
\pset format unaligned
\pset tuples_only on
CREATE SCHEMA ech;

SELECT millrace.create_stream('ech_people');
SELECT millrace.create_staging('ech.people', stream => 'ech_people', payload => 'none', key => '{"id": ["$.id", "integer"]}', columns => '{"name": "$.name"}');
SELECT millrace.create_dictionary('ech_people', source => 'ech.people');
SELECT millrace.create_stream('ech', format => 'debezium', enrich => '{"buyer": ["ech_people", "$.buyer"], "seller": ["ech_people", "$.doc.seller"]}');
-- in the source's own order, and with a declared version
SELECT millrace.create_staging('ech.own', stream => 'ech', payload => 'none', log => true, key => '{"id": ["$.id", "integer"]}',
  columns => '{"v": ["$.v", "integer"], "note": "$.note", "buyer": "$dict.buyer.name", "seller": "$dict.seller.name"}', expect => '{"positive": "v > 0"}');
SELECT millrace.create_staging('ech.versioned', stream => 'ech', payload => 'none', log => true, key => '{"id": ["$.id", "integer"]}', version => '["$.v", "integer"]', tombstone => 'ignore',
  columns => '{"note": "$.note", "buyer": "$dict.buyer.name", "seller": "$dict.seller.name"}', expect => '{"short": "length(note) < 9"}');

-- What a change does not say was not sent.
CREATE FUNCTION ech.change(op text, id integer, v integer, buyer integer, note text DEFAULT '__debezium_unavailable_value', seller integer DEFAULT NULL) RETURNS boolean
LANGUAGE sql AS $$ SELECT millrace.push('ech', json_build_object('before', NULL, 'after', json_build_object('id', id, 'v', v, 'buyer', buyer, 'note', note,
    'doc', CASE WHEN seller IS NULL THEN '__debezium_unavailable_value' ELSE format('{"seller": %s}', seller) END),
  'source', json_build_object('schema', 'public', 'table', 't'), 'op', op)::text, key => json_build_object('id', id)::text) > 0 $$;
CREATE FUNCTION ech.learn(VARIADIC ids integer[]) RETURNS bigint
LANGUAGE sql AS $$ SELECT count(millrace.push('ech_people', json_build_object('id', i, 'name', 'P' || i))) FROM unnest(ids) i $$;
CREATE FUNCTION ech.run(stream text) RETURNS text
LANGUAGE sql AS $$ SELECT format('%s messages, %s dead letters', messages, dead_letters) FROM millrace.run_stream(stream) $$;
CREATE VIEW ech.shown AS SELECT 'own' AS staging, id, v, note, buyer, seller FROM ech.own UNION ALL SELECT 'versioned', id, _version, note, buyer, seller FROM ech.versioned ORDER BY 1, 2;
CREATE VIEW ech.logged AS SELECT 'own' AS staging, id, v, note, buyer, seller FROM ech.own_log UNION ALL SELECT 'versioned', id, _version, note, buyer, seller FROM ech.versioned_log ORDER BY 1, 2, 3;
CREATE VIEW ech.waiting AS SELECT staging, id, count(*) FROM millrace.pending_message WHERE stream = 'ech' GROUP BY 1, 2 ORDER BY 1, 2;
CREATE VIEW ech.letters AS SELECT staging, kind, state, message FROM millrace.dead_letter WHERE stream = 'ech' ORDER BY id;
SELECT ech.learn(1, 2);
SELECT ech.run('ech_people');

-- the id was not sent: what the dictionary said of it stays, in the same batch and later
SELECT ech.change('c', 1, 1, 1, 'a', 2), ech.change('u', 1, 2, 2);
SELECT ech.run('ech');
SELECT ech.change('u', 1, 3, 1);
SELECT ech.run('ech');
TABLE ech.shown;
TABLE ech.letters;

-- a change that waits is completed, with what it left out
SELECT ech.change('u', 1, 4, 8);
SELECT ech.run('ech');
TABLE ech.shown;
TABLE ech.waiting;
SELECT ech.learn(8);
SELECT ech.run('ech_people');
SELECT ech.run('ech');
TABLE ech.shown;
TABLE ech.logged;
TABLE ech.waiting;

-- overtaken, it cannot tell any more what it left out; a whole one can
SELECT ech.change('u', 1, 5, 9), ech.change('u', 1, 6, 9, 'b', 2);
SELECT ech.run('ech');
SELECT ech.change('u', 1, 7, 1, 'c', 1);
SELECT ech.run('ech');
SELECT ech.learn(9);
SELECT ech.run('ech_people');
SELECT ech.run('ech');
TABLE ech.shown;
SELECT * FROM ech.logged WHERE v > 4;
TABLE ech.waiting;

-- whom an id that was not sent names is not known while that is waited for
SELECT ech.change('c', 2, 1, 1, 'd', 10);
SELECT ech.run('ech');
SELECT ech.change('u', 2, 2, 1);
SELECT ech.run('ech');
TABLE ech.letters;
SELECT ech.learn(10);
SELECT ech.run('ech_people');
SELECT ech.run('ech');
SELECT * FROM ech.shown WHERE id = 2;
SELECT taken, superseded, refused FROM millrace.retry(filter => $$ stream = 'ech' $$);
SELECT * FROM ech.shown WHERE id = 2;

-- a row that failed an expectation alone is of the version that is there: it does not come to nothing, but what it left out is not known
SELECT millrace.discard(filter => $$ stream = 'ech' $$) > 0;
SELECT ech.change('c', 3, 1, 1, 'e', 1), ech.change('u', 3, 2, 1, 'much too long');
SELECT ech.run('ech');
SELECT taken, superseded, refused FROM millrace.retry(filter => $$ stream = 'ech' $$);
TABLE ech.letters;
SELECT ech.change('u', 3, 3, 1, 'short', 2);
SELECT ech.run('ech');
SELECT taken, superseded, refused FROM millrace.retry(filter => $$ stream = 'ech' $$);
SELECT * FROM ech.shown WHERE id = 3;
TABLE ech.letters;

-- what waits is a person's, too, also when it left something out
SELECT ech.change('u', 1, 8, 70);
SELECT ech.run('ech');
SELECT relation, rows FROM millrace.erase('ech', '{"id": 1}') WHERE rows > 0 ORDER BY relation;
TABLE ech.waiting;
SELECT * FROM ech.shown WHERE id = 1;
SELECT v.* FROM unnest('{ech.own, ech.versioned}'::regclass[]) r, millrace.verify(r) v;

SELECT millrace.drop_stream('ech', cascade => true);
SELECT millrace.drop_dictionary('ech_people');
SELECT millrace.drop_stream('ech_people', cascade => true);
DROP SCHEMA ech CASCADE;
