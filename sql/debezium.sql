-- Format debezium: changes in every shape that Debezium gives them, and what is no change. test/debezium has a real connector.
\set VERBOSITY terse
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS millrace;
SET timezone = 'UTC';
SET datestyle = 'ISO, YMD';
SET intervalstyle = 'postgres';
\pset format unaligned
\pset tuples_only on
CREATE SCHEMA dbz;

-- Messages as Kafka Connect writes them: without spaces.
CREATE FUNCTION dbz.envelope(op text, before text, after text, source text DEFAULT '"schema":"public","table":"orders","lsn":1') RETURNS text
LANGUAGE sql AS $$ SELECT format('{"before":%s,"after":%s,"source":{"version":"3.4.0.Final","connector":"postgresql",%s},"transaction":null,"op":%s,"ts_ms":1}',
    coalesce(before, 'null'), coalesce(after, 'null'), source, coalesce(to_json(op)::text, 'null')) $$;
CREATE FUNCTION dbz.with_schema(schema text, payload text) RETURNS text
LANGUAGE sql AS $$ SELECT format('{"schema":%s,"payload":%s}', schema, payload) $$;
-- The schema of an envelope around a row of these fields, or of the row alone.
CREATE FUNCTION dbz.row_schema(fields text) RETURNS text
LANGUAGE sql AS $$ SELECT format('{"type":"struct","fields":[%s],"optional":false,"name":"s.public.t.Value"}', fields) $$;
CREATE FUNCTION dbz.envelope_schema(fields text) RETURNS text
LANGUAGE sql AS $$ SELECT format('{"type":"struct","fields":[{"type":"struct","fields":[%1$s],"optional":true,"field":"before"},{"type":"struct","fields":[%1$s],"optional":true,"field":"after"},'
    '{"type":"struct","fields":[{"type":"int64","optional":true,"field":"lsn"}],"optional":false,"field":"source"},{"type":"string","optional":false,"field":"op"}],"optional":false}', fields) $$;
-- Messages and dead letters of the last run.
CREATE FUNCTION dbz.run(stream text) RETURNS text
LANGUAGE sql AS $$ SELECT format('%s messages, %s dead letters', messages, dead_letters) FROM millrace.run_stream(stream) $$;
CREATE VIEW dbz.letters AS SELECT coalesce(staging, '(all)') AS staging, sqlstate, message, coalesce(detail, '') AS detail, coalesce(hint, '') AS hint FROM millrace.dead_letter WHERE stream LIKE 'dbz%' ORDER BY id;

-- declaring
SELECT millrace.create_stream('dbz', format => 'debezum');
SELECT millrace.create_stream('dbz', format => 'debezium');
SELECT millrace.create_staging('dbz.versioned', stream => 'dbz', key => '{"id": ["$.id", "bigint"]}', version => '["$source.lsn", "bigint"]');
SELECT millrace.create_staging('dbz.versioned', stream => 'dbz', key => '{"id": ["$.id", "bigint"]}', version => '["$source.ts_ms", "timestamptz", "ms"]');
SELECT millrace.create_staging('dbz.versioned', stream => 'dbz', key => '{"id": ["$.id", "bigint"]}', version => '["$source.lsn", "bigint"]', tombstone => 'ignor');
SELECT millrace.create_staging('dbz.orders', stream => 'dbz', source_table => 'public.orders', payload => 'none', log => true, key => '{"id": ["$.id", "bigint"]}',
  columns => '{"status": "$.status", "total": ["$.total", "numeric(12,2)"], "was": "$before.status", "op": "$op", "tab": "$table", "lsn": ["$source.lsn", "bigint"]}');
SELECT millrace.create_staging('dbz.versioned', stream => 'dbz', source_table => 'public.orders', key => '{"id": ["$.id", "bigint"]}', version => '["$source.lsn", "bigint"]',
  tombstone => 'ignore', columns => '{"status": "$.status"}', log => true);
SELECT millrace.create_staging('dbz.items', stream => 'dbz', source_table => 'shop.items', payload => 'none', key => '{"id": ["$.id", "bigint"]}', columns => '{"name": "$.name"}');
SELECT millrace.describe('staging', 'dbz.versioned');

-- one row's life: insert, update, what a snapshot reads, delete, the tombstone after it
CREATE TABLE dbz.life (n serial, key text, value text);
INSERT INTO dbz.life (key, value) VALUES
  ('{"id":1}', dbz.envelope('c', NULL, '{"id":1,"status":"new","total":"12.50"}', '"schema":"public","table":"orders","lsn":10')),
  ('{"id":1}', dbz.envelope('u', '{"id":1,"status":"new","total":"12.50"}', '{"id":1,"status":"paid","total":"12.50"}', '"schema":"public","table":"orders","lsn":11')),
  ('{"id":2}', dbz.envelope('r', NULL, '{"id":2,"status":"old","total":"1"}', '"snapshot":"true","schema":"public","table":"orders","lsn":9')),
  ('{"id":3}', dbz.envelope('c', NULL, '{"id":3,"status":"gone","total":"2"}', '"schema":"public","table":"orders","lsn":12')),
  ('{"id":3}', dbz.envelope('d', '{"id":3,"status":null,"total":null}', NULL, '"schema":"public","table":"orders","lsn":13')),
  ('{"id":3}', NULL),
  ('{"id":7}', dbz.envelope('c', NULL, '{"id":7,"name":"nail"}', '"schema":"shop","table":"items","lsn":14')),
  -- the key alone says whose row is deleted, when the source keeps nothing of it
  ('{"id":4}', dbz.envelope('c', NULL, '{"id":4,"status":"gone","total":"2"}', '"schema":"public","table":"orders","lsn":15')),
  ('{"id":4}', dbz.envelope('d', NULL, NULL, '"schema":"public","table":"orders","lsn":16')),
  -- a key that changed: a delete and an insert
  ('{"id":2}', dbz.envelope('d', '{"id":2}', NULL, '"schema":"public","table":"orders","lsn":17')),
  ('{"id":2}', NULL),
  ('{"id":20}', dbz.envelope('c', NULL, '{"id":20,"status":"old","total":"1"}', '"schema":"public","table":"orders","lsn":17'));
SELECT count(millrace.push('dbz', value, key => key)) FROM (SELECT * FROM dbz.life ORDER BY n) l;
SELECT dbz.run('dbz');
SELECT id, status, total, was, op, tab, lsn FROM dbz.orders ORDER BY id;
SELECT id, status, _version FROM dbz.versioned ORDER BY id;
SELECT id, name FROM dbz.items;
SELECT id, _version, _deleted FROM dbz.versioned_log WHERE id IN (3, 4) ORDER BY _version;
SELECT * FROM dbz.letters;
-- again, and again in another order: nothing changes
CREATE TABLE dbz.before AS SELECT id, status, total, was, op, tab, lsn FROM dbz.orders;
SELECT millrace.reset_stream('dbz');
SELECT count(millrace.push('dbz', value, key => key)) FROM (SELECT * FROM dbz.life ORDER BY n) l;
SELECT count(millrace.push('dbz', value, key => key)) FROM (SELECT * FROM dbz.life ORDER BY n) l;
SELECT dbz.run('dbz');
SELECT count(*) FROM (TABLE dbz.before EXCEPT SELECT id, status, total, was, op, tab, lsn FROM dbz.orders UNION ALL (SELECT id, status, total, was, op, tab, lsn FROM dbz.orders EXCEPT TABLE dbz.before)) d;
SELECT count(millrace.push('dbz', value, key => key)) FROM (SELECT * FROM dbz.life ORDER BY n DESC) l;
SELECT dbz.run('dbz');
SELECT id, status, _version FROM dbz.versioned ORDER BY id;

-- what is no change of a row is nobody's
SELECT count(millrace.push('dbz', value)) FROM (VALUES
  ('{"ts_ms":1795828200350}'), ('{"ts_ms": 1795828200350}'),
  ('{"status":"BEGIN","id":"741:22341240","event_count":null,"data_collections":null,"ts_ms":1}'),
  ('{"status":"END","id":"741:1","event_count":1,"data_collections":[{"data_collection":"public.t","event_count":1}],"ts_ms":1}'),
  ('{"source":{"db":"shop"},"ts_ms":1,"databaseName":"shop","schemaName":null,"ddl":"ALTER TABLE t ADD x int","tableChanges":[]}'),
  ('{"op":"m","ts_ms":1,"source":{"schema":"","table":""},"message":{"prefix":"a","content":"aGk="}}'),
  (dbz.with_schema('{"type":"struct","fields":[{"type":"int64","optional":false,"field":"ts_ms"}],"optional":false,"name":"io.debezium.connector.common.Heartbeat"}', '{"ts_ms":1}'))) v (value);
SELECT dbz.run('dbz');
SELECT * FROM dbz.letters;

-- bad messages
SELECT count(millrace.push('dbz', value, key => '{"id":1}')) FROM (VALUES
  (dbz.envelope('u', NULL, NULL)), ('{"op":"c","source":{"schema":"public","table":"orders"}}'), (dbz.envelope('c', NULL, '[1]')),
  (dbz.envelope('x', NULL, '{"id":1}')), (dbz.envelope(NULL, NULL, '{"id":1}')), ('{"after":{"id":1},"source":{}}'), (dbz.envelope('t', NULL, NULL)),
  ('{"__op":"q","id":1}'), ('[1]'), ('5'), (''), ('{"op":"c",'), (dbz.envelope('c', NULL, '{"id":1') || '}'),
  (dbz.with_schema('{"type":"struct","fields":[]}', '{"op":"c","after":')), (dbz.with_schema('null', '7')),
  (dbz.envelope('c', NULL, '{"status":"no key"}')), (dbz.envelope('c', NULL, '{"id":1,"total":"much"}'))) v (value);
SELECT dbz.run('dbz');
SELECT DISTINCT ON (message, staging) * FROM dbz.letters ORDER BY message, staging;
SELECT millrace.discard(filter => $$ stream = 'dbz' $$) > 0;

-- a schema tells types: no format is needed, whatever the column's type is
SELECT millrace.create_stream('dbz_types', format => 'debezium');
SELECT millrace.create_staging('dbz.typed', stream => 'dbz_types', payload => 'none', key => '{"d": ["$.d", "date"]}',
  columns => '{"t1": ["$.t1", "time"], "t2": ["$.t2", "time"], "t3": ["$.t3", "time"], "ts1": ["$.ts1", "timestamp"], "ts2": ["$.ts2", "timestamp", "ms"], "ts3": ["$.ts3", "timestamp"],
               "tsz": ["$.tsz", "timestamptz"], "n": ["$.n", "numeric(12,2)", "base64"], "v": ["$.v", "numeric"], "nt": "$.n", "b": ["$.b", "bytea"], "bits": ["$.bits", "bit(10)"],
               "iv": ["$.iv", "interval"], "u": ["$.u", "uuid"], "j": ["$.j", "jsonb"], "ja": ["$.j.a", "integer"], "d_text": "$.d", "ts_text": "$.ts2", "key_text": "$key.d", "was": ["$before.d", "date"]}');
CREATE TABLE dbz.field_list AS SELECT string_agg(format('{"type":"%s","optional":true%s,"field":"%s"}', type, ',"name":"' || name || '"' || coalesce(',"parameters":' || parameters, ''), field), ',') AS fields
FROM (VALUES ('int32', 'io.debezium.time.Date', NULL, 'd'), ('int32', 'io.debezium.time.Time', NULL, 't1'), ('int64', 'io.debezium.time.MicroTime', NULL, 't2'), ('int64', 'io.debezium.time.NanoTime', NULL, 't3'),
  ('int64', 'org.apache.kafka.connect.data.Timestamp', NULL, 'ts1'), ('int64', 'io.debezium.time.MicroTimestamp', NULL, 'ts2'), ('int64', 'io.debezium.time.NanoTimestamp', NULL, 'ts3'),
  ('string', 'io.debezium.time.ZonedTimestamp', NULL, 'tsz'), ('bytes', 'org.apache.kafka.connect.data.Decimal', '{"scale":"2","connect.decimal.precision":"12"}', 'n'),
  ('struct', 'io.debezium.data.VariableScaleDecimal', NULL, 'v'), ('bytes', NULL, NULL, 'b'), ('bytes', 'io.debezium.data.Bits', '{"length":"10"}', 'bits'),
  ('int64', 'io.debezium.time.MicroDuration', NULL, 'iv'), ('string', 'io.debezium.data.Uuid', NULL, 'u'), ('string', 'io.debezium.data.Json', NULL, 'j')) AS f (type, name, parameters, field);
CREATE FUNCTION dbz.typed_row(day integer, rest text DEFAULT '') RETURNS text
LANGUAGE sql AS $$ SELECT '{"d":' || day || ',"t1":45296789,"t2":45296789123,"t3":45296789123456,"ts1":1704164645678,"ts2":1704164645678901,"ts3":1704164645678901000,"tsz":"2024-01-02T03:04:05.678901Z","n":"BM4=",'
  '"v":{"scale":5,"value":"/w=="},"b":"AP8=","bits":"qgI=","iv":93784000000,"u":"a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11","j":"{\"a\": 1, \"b\": \"\\u00e9\"}"' || rest || '}' $$;
SELECT millrace.push('dbz_types', dbz.with_schema(dbz.envelope_schema(fields), dbz.envelope('c', NULL, dbz.typed_row(19782))),
  key => dbz.with_schema(dbz.row_schema('{"type":"int32","optional":false,"name":"io.debezium.time.Date","field":"d"}'), '{"d":19782}')) > 0 FROM dbz.field_list;
SELECT millrace.push('dbz_types', dbz.with_schema(dbz.row_schema(fields), dbz.typed_row(19783)),
  key => dbz.with_schema(dbz.row_schema('{"type":"int32","optional":false,"name":"io.debezium.time.Date","field":"d"}'), '{"d":19783}')) > 0 FROM dbz.field_list;
-- the same bytes as before up to the payload: the schema is known
SELECT millrace.push('dbz_types', dbz.with_schema(dbz.envelope_schema(fields), dbz.envelope('u', '{"d":19782}', dbz.typed_row(19784)))) > 0 FROM dbz.field_list;
SELECT dbz.run('dbz_types');
SELECT * FROM dbz.letters;
\x on
SELECT d, t1, t2, t3, ts1, ts2, ts3, tsz, n, v, nt, b, bits, iv, u, j, ja, d_text, ts_text, key_text, was FROM dbz.typed ORDER BY d;
\x off
-- deletes and tombstones, with the key's schema
SELECT millrace.push('dbz_types', dbz.with_schema(dbz.envelope_schema(fields), dbz.envelope('d', '{"d":19782}', NULL)),
  key => dbz.with_schema(dbz.row_schema('{"type":"int32","optional":false,"name":"io.debezium.time.Date","field":"d"}'), '{"d":19782}')) > 0 FROM dbz.field_list;
SELECT millrace.push('dbz_types', NULL::text, key => dbz.with_schema(dbz.row_schema('{"type":"int32","optional":false,"name":"io.debezium.time.Date","field":"d"}'), '{"d":19783}')) > 0;
SELECT dbz.run('dbz_types');
SELECT d FROM dbz.typed;
-- values at the edges, and what their type cannot be
SELECT millrace.create_staging('dbz.edges', stream => 'dbz_types', payload => 'none', key => '{"n": "$.n"}', columns => '{"d": "$.d", "t": "$.t2", "ts": "$.ts2"}');
SELECT count(millrace.push('dbz_types', dbz.with_schema(dbz.row_schema(fields), value))) FROM dbz.field_list, (VALUES
  ('{"n":"AA==","d":-719162,"t2":0,"ts2":-62135596800000000}'), ('{"n":"gA==","d":0,"t2":86400000000,"ts2":9223372036825200000}'), ('{"n":"fw==","d":2932896,"t2":86399999999,"ts2":-9223372036832400000}'),
  ('{"n":"/////w==","ts2":null}'), ('{"n":"//8B"}'), ('{"n":"gAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"}'), ('{"n":"EjRWeJq83vASNFZ4mrze8BI="}'), ('{"n":12.5}'), ('{"n":"1.5"}'), ('{"n":""}'),
  ('{"n":"AQ==","d":99999999999}'), ('{"n":"AQ==","t2":-1}'), ('{"n":"AQ==","t2":86400000001}'), ('{"n":"AQ==","ts2":1e30}'), ('{"n":"AQ==","d":"2024-01-01"}')) v (value);
SELECT dbz.run('dbz_types');
SELECT n, d, t, ts FROM dbz.edges ORDER BY n COLLATE "C";
SELECT DISTINCT staging, sqlstate, message, detail FROM dbz.letters WHERE staging IN ('dbz.edges', '(all)') ORDER BY message;
SELECT millrace.discard(filter => $$ stream = 'dbz_types' $$) > 0;

-- without a schema, formats tell
SELECT millrace.create_stream('dbz_formats', format => 'debezium');
SELECT millrace.create_staging('dbz.x', stream => 'dbz_formats', key => '{"id": ["$.id", "bigint", "base64"]}');
SELECT millrace.create_staging('dbz.formats', stream => 'dbz_formats', payload => 'none', key => '{"id": ["$.id", "bigint"]}',
  columns => '{"n": ["$.n", "numeric(12,2)", "base64"], "v": ["$.v", "numeric", "base64"], "b": ["$.b", "bytea", "base64"], "d": ["$.d", "date", "days"], "ms": ["$.ms", "timestamp(3)", "ms"],
               "us": ["$.us", "timestamp", "us"], "ns": ["$.ns", "timestamptz", "ns"], "ti": ["$.ti", "time(3)", "us"], "iso": ["$.iso", "timestamp"], "iso_d": ["$.iso_d", "date"], "iso_t": ["$.iso_t", "time"], "j": ["$.j", "json"]}');
SELECT count(millrace.push('dbz_formats', value)) FROM (VALUES
  ('{"id":1,"n":"BM4=","v":{"scale":2,"value":"MDk="},"b":"AP8=","d":19782,"ms":1704164645678,"us":1704164645678901,"ns":1704164645678901000,"ti":45296789123,"iso":"2024-01-02T03:04:05.678901Z","iso_d":"2024-02-29Z","iso_t":"12:34:56.789Z","j":"[1]"}'),
  ('{"id":2,"n":12.30,"v":"AQ=="}'), ('{"id":3,"n":"-12.30"}'), ('{"id":4,"v":{"scale":2}}'), ('{"id":5,"v":{"scale":99999,"value":"AQ=="}}'), ('{"id":6,"b":"A"}'), ('{"id":7,"v":{"value":"+YA=","scale":-3}}'), ('{"id":8,"ti":-1}')) v (value);
SELECT dbz.run('dbz_formats');
\x on
SELECT id, n, v, b, d, ms, us, ns, ti, iso, iso_d, iso_t, j FROM dbz.formats ORDER BY id;
\x off
SELECT sqlstate, message, hint FROM dbz.letters;
SELECT millrace.discard(filter => $$ stream = 'dbz_formats' $$) > 0;

-- unwrapped rows: $op and $table as far as the connector says them, deletes rewritten or as tombstones
SELECT millrace.create_stream('dbz_unwrapped', format => 'debezium');
SELECT millrace.create_staging('dbz.unwrapped', stream => 'dbz_unwrapped', payload => 'none', key => '{"id": ["$.id", "bigint"]}', columns => '{"name": "$.name", "op": "$op", "tab": "$table"}');
SELECT count(millrace.push('dbz_unwrapped', value, key => key)) FROM (VALUES
  ('{"id":1}', '{"id":1,"name":"a","__op":"c","__deleted":"false","__source_schema":"public","__table":"t"}'), ('{"id":2}', '{"id":2,"name":"b","__deleted":"false"}'), ('{"id":3}', '{"id":3,"name":"c"}'),
  ('{"id":4}', '{"id":4,"name":"d","__op":"c","__deleted":"false"}'), ('{"id":4}', '{"id":4,"name":null,"__op":"d","__deleted":"true"}'), ('{"id":4}', NULL),
  ('{"id":5}', '{"id":5,"name":"e"}'), ('{"id":5}', '{"id":5,"name":"e","__deleted":true}'), ('{"id":6}', '{"id":6,"name":"f"}'), ('{"id":6}', NULL),
  ('{"id":10}', '{"id":10,"name":"h"}'), ('{"id":10}', 'null'), ('{"id":11}', '{"id":11,"name":"i"}'), ('{"id":11}', '{"schema":null,"payload":null}'),
  -- columns that are called as Debezium calls the parts of a message
  ('{"id":7}', '{"id":7,"name":"g","op":"z","source":"x","after":"y","schema":"s","payload":"p"}'), ('{"schema":"k"}', '{"schema":"s","payload":"p","id":8}'), ('raw', '{"id":9}')) v (key, value);
SELECT dbz.run('dbz_unwrapped');
SELECT id, name, op, tab FROM dbz.unwrapped ORDER BY id;
SELECT * FROM dbz.letters;
-- a key that is no object says nothing of a deleted row
SELECT millrace.push('dbz_unwrapped', NULL::text, key => 'raw') > 0;
SELECT dbz.run('dbz_unwrapped');
SELECT message, hint FROM dbz.letters;
SELECT millrace.discard(filter => $$ stream = 'dbz_unwrapped' $$);

-- large values that an update left alone are what they were
SELECT millrace.create_stream('dbz_toast', format => 'debezium');
SELECT millrace.create_staging('dbz.toast', stream => 'dbz_toast', payload => 'none', key => '{"id": ["$.id", "bigint"]}',
  columns => '{"n": ["$.n", "integer"], "big": "$.big", "j": ["$.j", "jsonb"], "x": ["$.j.x", "integer"], "b": ["$.b", "bytea", "base64"], "a": ["$.a", "jsonb"], "ai": ["$.ai", "jsonb"]}', filter => 'n < 100');
SELECT millrace.create_staging('dbz.toast_items', stream => 'dbz_toast', for_each => '$.j.items[*]', key => '{"id": ["$.id", "bigint"]}', columns => '{"n": ["$.n", "integer"], "item": "@.i"}');
CREATE FUNCTION dbz.toast(op text, id integer, n integer, big text DEFAULT NULL) RETURNS bigint
LANGUAGE sql AS $$ SELECT millrace.push('dbz_toast', dbz.envelope(op, NULL, format('{"id":%s,"n":%s,%s}', id, n, CASE WHEN big IS NULL THEN
  '"big":"__debezium_unavailable_value","j":"__debezium_unavailable_value","b":"X19kZWJleml1bV91bmF2YWlsYWJsZV92YWx1ZQ==","a":["__debezium_unavailable_value"],'
  '"ai":[95,95,100,101,98,101,122,105,117,109,95,117,110,97,118,97,105,108,97,98,108,101,95,118,97,108,117,101]'
  ELSE format('"big":"%1$s","j":"{\"x\":7,\"items\":[{\"i\":\"%1$s\"},{\"i\":\"2\"}]}","b":"AP8=","a":["%1$s"],"ai":[1,2]', big) END)), key => format('{"id":%s}', id)) $$;
SELECT dbz.toast('c', 1, 1, 'long') > 0;
SELECT dbz.toast('u', 1, 2) > 0;
SELECT dbz.run('dbz_toast');
SELECT id, n, big, j, x, b, a, ai FROM dbz.toast;
SELECT dbz.toast('u', 1, 3) > 0;
SELECT dbz.toast('u', 1, 100) > 0;
SELECT dbz.run('dbz_toast');
SELECT id, n, big, x FROM dbz.toast;
-- it was filtered out: nobody knows any more
SELECT dbz.toast('u', 1, 4) > 0;
SELECT dbz.run('dbz_toast');
SELECT id, n, item FROM dbz.toast_items ORDER BY id, _element;
SELECT DISTINCT staging, message, hint FROM dbz.letters ORDER BY 1, 2;
SELECT dbz.toast('u', 1, 5, 'whole') > 0;
SELECT dbz.run('dbz_toast');
SELECT id, n, big, x FROM dbz.toast;
SELECT id, n, item FROM dbz.toast_items ORDER BY id, _element;
SELECT millrace.discard(filter => $$ stream = 'dbz_toast' $$) > 0;
-- delivered once more after its object was deleted, such an update says nothing, in the same batch and later
SELECT dbz.toast('c', 2, 1, 'long') > 0, dbz.toast('u', 2, 2) > 0, millrace.push('dbz_toast', dbz.envelope('d', '{"id":2}', NULL), key => '{"id":2}') > 0, dbz.toast('u', 2, 2) > 0;
SELECT dbz.run('dbz_toast');
SELECT dbz.toast('u', 2, 2) > 0;
SELECT dbz.run('dbz_toast');
SELECT id, n, big FROM dbz.toast ORDER BY id;
-- or one whose version is no newer than what is staged: what it left out may be something else by now
SELECT millrace.create_staging('dbz.toast_versioned', stream => 'dbz_toast', payload => 'none', log => true, key => '{"id": ["$.id", "bigint"]}', version => '["$.n", "integer"]', tombstone => 'ignore',
  columns => '{"big": "$.big"}');
SELECT dbz.toast('c', 3, 1, 'long') > 0, dbz.toast('u', 3, 2) > 0, dbz.toast('u', 3, 3, 'longer') > 0, dbz.toast('u', 3, 2) > 0;
SELECT dbz.run('dbz_toast');
SELECT dbz.toast('u', 3, 2) > 0, dbz.toast('u', 3, 3) > 0;
SELECT dbz.run('dbz_toast');
SELECT id, _version, big FROM dbz.toast_versioned_log ORDER BY id, _version;
-- but it waits for an insert that could not be taken
SELECT millrace.push('dbz_toast', dbz.envelope('c', NULL, '{"id":2,"n":"many","big":"new","j":null}'), key => '{"id":2}') > 0;
SELECT dbz.run('dbz_toast');
SELECT dbz.toast('u', 2, 3) > 0;
SELECT dbz.run('dbz_toast');
SELECT DISTINCT staging, message, hint FROM dbz.letters ORDER BY 1, 2;
SELECT millrace.discard(filter => $$ stream = 'dbz_toast' $$) > 0;

-- a table that changes: a column added, one dropped, one of another type
SELECT millrace.create_stream('dbz_ddl', format => 'debezium');
SELECT millrace.create_staging('dbz.ddl', stream => 'dbz_ddl', payload => 'none', key => '{"id": ["$.id", "bigint"]}', columns => '{"a": ["$.a", "integer"], "b": ["$.b", "date"]}');
CREATE FUNCTION dbz.ddl(fields text, after text) RETURNS bigint
LANGUAGE sql AS $$ SELECT millrace.push('dbz_ddl', dbz.with_schema(dbz.envelope_schema('{"type":"int64","optional":false,"field":"id"},' || fields), dbz.envelope('c', NULL, after))) $$;
SELECT dbz.ddl('{"type":"int32","field":"a"},{"type":"int32","name":"io.debezium.time.Date","field":"b"}', '{"id":1,"a":1,"b":19782}') > 0;
SELECT dbz.ddl('{"type":"int32","field":"a"},{"type":"int32","name":"io.debezium.time.Date","field":"b"},{"type":"int32","name":"io.debezium.time.Date","field":"c"}', '{"id":2,"a":1,"b":19782,"c":19783}') > 0;
SELECT dbz.ddl('{"type":"int32","name":"io.debezium.time.Date","field":"b"}', '{"id":3,"b":19782}') > 0;
SELECT dbz.ddl('{"type":"string","field":"a"},{"type":"string","name":"io.debezium.time.IsoDate","field":"b"}', '{"id":4,"a":"seven","b":"2024-02-29Z"}') > 0;
SELECT dbz.run('dbz_ddl');
SELECT id, a, b FROM dbz.ddl ORDER BY id;
SELECT message FROM dbz.letters;
SELECT millrace.create_staging('dbz.ddl', stream => 'dbz_ddl', payload => 'none', key => '{"id": ["$.id", "bigint"]}', columns => '{"a": ["$.n", "integer"], "b": ["$.b", "date"], "a_text": "$.a", "c": ["$.c", "date"]}', replace => true);
SELECT * FROM millrace.retry(filter => $$ stream = 'dbz_ddl' $$);
SELECT id, a, b, a_text, c FROM dbz.ddl ORDER BY id;
SELECT layer, relation, change, (SELECT string_agg(key || '=' || coalesce(value, '-'), ' ' ORDER BY n) FROM json_each_text(after) WITH ORDINALITY AS e (key, value, n) WHERE key !~ '^_')
FROM millrace.preview('dbz_ddl', payload => dbz.envelope('u', NULL, '{"id":1,"n":5,"b":"2024-03-01"}')) ORDER BY 1, 2, 3;
SELECT layer, relation, change FROM millrace.preview('dbz_ddl', payload => dbz.envelope('d', '{"id":1}', NULL)) ORDER BY 1, 2, 3;
SELECT count(*) FROM millrace.preview('dbz_ddl', payload => '{"ts_ms":1}');

-- schemas come and go, more than are remembered
SELECT count(dbz.ddl(format('{"type":"int32","name":"io.debezium.time.Date","field":"b"},{"type":"string","field":"f%s"}', i % 600), format('{"id":%s,"b":%s}', 1000 + i, i))) FROM generate_series(1, 1300) i;
SELECT dbz.run('dbz_ddl');
SELECT count(*), count(*) FILTER (WHERE b = date '1970-01-01' + (id - 1000)::integer) FROM dbz.ddl WHERE id > 1000;
-- what is no row is the same after a schema that is known as after a new one
SELECT dbz.ddl('{"type":"string","field":"known"}', '{"id":3000}') > 0;
SELECT count(millrace.push('dbz_ddl', dbz.with_schema(dbz.envelope_schema('{"type":"int64","optional":false,"field":"id"},{"type":"string","field":"' || field || '"}'), payload), key => '{"id":3000}'))
FROM (VALUES (1, ''), (2, ' '), (3, '7'), (4, '"a"'), (5, '[1]'), (6, '{"id":1'), (7, 'null '), (8, 'null')) v (n, payload), unnest(ARRAY['known', 'new ' || n]) field;
SELECT dbz.run('dbz_ddl');
SELECT message, count(*) FROM dbz.letters GROUP BY message ORDER BY message COLLATE "C";
SELECT count(*) FROM dbz.ddl WHERE id = 3000;
SELECT millrace.discard(filter => $$ stream = 'dbz_ddl' $$) > 0;

-- payloads are kept as they came
SELECT millrace.create_stream('dbz_payload', format => 'debezium');
SELECT millrace.create_staging('dbz.payload_json', stream => 'dbz_payload', key => '{"id": ["$.id", "bigint"]}');
SELECT millrace.create_staging('dbz.payload_jsonb', stream => 'dbz_payload', payload => 'jsonb', key => '{"id": ["$.id", "bigint"]}');
SELECT millrace.push('dbz_payload', dbz.envelope('c', NULL, '{"id":1}')) > 0;
SELECT dbz.run('dbz_payload');
SELECT payload ->> 'op', payload #>> '{after,id}' FROM dbz.payload_json UNION ALL SELECT payload ->> 'op', payload #>> '{after,id}' FROM dbz.payload_jsonb;

-- a tombstone that says nothing, and one that is all that comes of a delete
SELECT millrace.create_staging('dbz.ignored', stream => 'dbz_payload', payload => 'none', key => '{"id": ["$.id", "bigint"]}', version => '["$source.lsn", "bigint"]', tombstone => 'ignore');
SELECT millrace.create_staging('dbz.always', stream => 'dbz_payload', payload => 'none', key => '{"id": ["$.id", "bigint"]}', version => '["$source.lsn", "bigint"]', tombstone => 'always');
SELECT count(millrace.push('dbz_payload', value, key => '{"id":1}')) FROM (VALUES (dbz.envelope('c', NULL, '{"id":1}')), (NULL), (dbz.envelope('d', '{"id":1}', NULL, '"lsn":2')), (NULL), (dbz.envelope('c', NULL, '{"id":1}', '"lsn":3')), (NULL)) v (value);
SELECT dbz.run('dbz_payload');
SELECT 'ignored', id, _version FROM dbz.ignored UNION ALL SELECT 'always', id, _version FROM dbz.always UNION ALL SELECT 'own order', id, _version FROM dbz.payload_json;
SELECT * FROM dbz.letters;

SET client_min_messages = error;
DO $$ BEGIN PERFORM millrace.drop_stream(name, cascade => true) FROM millrace.stream WHERE name LIKE 'dbz%'; END $$;
DROP SCHEMA dbz CASCADE;
