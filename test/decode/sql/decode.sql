-- Paths, plans, messages that are not what they should be, and conversions.
SET client_min_messages = warning;
CREATE EXTENSION millrace_decode_test;
SET DateStyle = ISO;
SET TimeZone = 'UTC';

-- How a query is refused: everything but the place in the source.
CREATE FUNCTION refused(query text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    message text; detail text; hint text; context text;
BEGIN
    EXECUTE query;
    RETURN 'accepted';
EXCEPTION WHEN OTHERS THEN
    GET STACKED DIAGNOSTICS message = MESSAGE_TEXT, detail = PG_EXCEPTION_DETAIL, hint = PG_EXCEPTION_HINT, context = PG_EXCEPTION_CONTEXT;
    RETURN sqlstate || ': ' || message || coalesce(E'\n  detail: ' || nullif(detail, ''), '') || coalesce(E'\n  hint: ' || nullif(hint, ''), '') ||
        coalesce(E'\n  context: ' || nullif(rtrim(regexp_replace(context, '(SQL statement|PL/pgSQL function).*', ''), E'\n'), ''), '');
END $$;
\pset tuples_only

-- Paths and their one spelling.
SELECT p, path_text(p) FROM unnest(ARRAY['$', '$.a', '$."a"', '$["a"]', '$.a[0][12]', '$.a[*].b[*]', '$."two words"', '$."\u00e9\""',
    '$.été', '$key', '$key.id', '$headers."x-id"', '$topic', '$partition', '$offset', '$timestamp', '$op', '$before.x', '$table',
    '$dict.user.name', '@', '@.id', '@[0]', '@@', '@@.id', '@dict.dish.category', '$.a$1', '$."1"']) p;
SELECT refused($$ SELECT path_text('') $$);
SELECT refused($$ SELECT path_text('payload.id') $$);
SELECT refused($$ SELECT path_text('$kay') $$);
SELECT refused($$ SELECT path_text('$.') $$);
SELECT refused($$ SELECT path_text('$.a.') $$);
SELECT refused($$ SELECT path_text('$.user-id') $$);
SELECT refused($$ SELECT path_text('$.1a') $$);
SELECT refused($$ SELECT path_text('$."a') $$);
SELECT refused($$ SELECT path_text('$.a[') $$);
SELECT refused($$ SELECT path_text('$.a[-1]') $$);
SELECT refused($$ SELECT path_text('$.a[99999999999]') $$);
SELECT refused($$ SELECT path_text('$.a[1') $$);
SELECT refused($$ SELECT path_text('$.é b') $$);
SELECT refused($$ SELECT path_text('$topic.x') $$);
SELECT refused($$ SELECT path_text('@@@') $$);

-- Plans.
SELECT refused($$ SELECT * FROM decode_json('{}', '{$.a[*]}') $$);
SELECT refused($$ SELECT * FROM decode_json('{}', '{@.a}') $$);
SELECT refused($$ SELECT * FROM decode_json('{}', '{@@.a}', '$.a[*]') $$);
SELECT refused($$ SELECT * FROM decode_json('{}', '{$.a}', '$.a') $$);
SELECT refused($$ SELECT * FROM decode_json('{}', '{$.a}', '$key[*]') $$);

-- Values.
SELECT path, kind, value_text, json FROM decode_json(convert_to('{"a": 1.50, "b": "x\ny", "c": [1, {"d": null}], "e": true, "f": null, "a b": "\u00e9"}', 'UTF8'),
    ARRAY['$', '$.a', '$.b', '$.c', '$.c[1]', '$.c[1].d', '$.c[2]', '$.e', '$.f', '$.g', '$.a.x', '$."a b"']);
SELECT path, kind, value_text, json FROM decode_json('{"b": "x"}', '{$key,$key.id,$headers,$headers.h,$headers.n,$topic,$partition,$offset,$timestamp,$op,$table,$before.x,$dict.x}',
    NULL, '{"id": 7}', '{"h": "v", "n": null}');
-- A tombstone has its metadata.
SELECT path, kind, value_text FROM decode_json(NULL, '{$,$.a,$key,$offset}', NULL, 'k');
SELECT path, kind, value_text FROM decode_json('{}', '{$key,$key.id}');
-- The last of two members counts, and nothing of the first is left.
SELECT element, path, kind, value_text FROM decode_json('{"a": {"b": 1, "i": [{"x": 1}, {"x": 2}]}, "a": {"c": 2, "i": [{"x": 3}]}}', '{$.a.b,$.a.c,@.x}', '$.a.i[*]');
SELECT element, path, kind, value_text FROM decode_json('{"a": {"i": [1, 2]}, "a": 5}', '{$.a,@}', '$.a.i[*]');
-- Elements of elements, numbered through.
SELECT element, outer_element, path, value_text FROM decode_json('{"o": [{"n": "x", "i": [1, 2]}, {"n": "y"}, {"n": "z", "i": [3]}]}', '{@,@@.n,$.o[1].n,@dict.x}', '$.o[*].i[*]');
-- What is no array has no elements.
SELECT (SELECT count(*) FROM decode_json(convert_to(d, 'UTF8'), '{@}', '$.a[*]')) AS elements, d
FROM unnest(ARRAY['{"a": [1, null]}', '{"a": []}', '{"a": {"x": 1}}', '{"a": null}', '{"a": 1}', '{}', '[]', '1', 'null', '"a"']) d;
SELECT element, value_text FROM decode_json('[[1], [2]]', '{@[0]}', '$[*]');

-- Messages that are not JSON.
SELECT refused($$ SELECT * FROM decode_json('', '{$.a}') $$);
SELECT refused($$ SELECT * FROM decode_json(' ', '{$.a}') $$);
SELECT refused($$ SELECT * FROM decode_json('{"a": 1', '{$.a}') $$);
SELECT refused($$ SELECT * FROM decode_json('{"a": tru}', '{$.a}') $$);
SELECT refused($$ SELECT * FROM decode_json('{"a": 1} x', '{$.a}') $$);
SELECT refused($$ SELECT * FROM decode_json('<html>', '{$.a}') $$);
SELECT refused($$ SELECT * FROM decode_json('\x7b2261223a22ff227d', '{$.b}') $$);
SELECT refused($$ SELECT * FROM decode_json('\x7b2261223a220022', '{$.b}') $$);
SELECT refused($$ SELECT * FROM decode_json('\x7b2261223a225c7530303030227d', '{$.b}') $$);
SELECT refused($$ SELECT * FROM decode_json('\x7b2261223a225c7564383030227d', '{$.b}') $$);
SELECT refused($$ SELECT * FROM decode_json('{}', '{$key.id}', NULL, 'no json') $$);
SELECT refused($$ SELECT * FROM decode_json('{}', '{$key}', NULL, '\xff') $$);
SELECT kind FROM decode_json(convert_to(repeat('[', 1000) || repeat(']', 1000), 'UTF8'), '{$}');
SELECT refused($$ SELECT kind FROM decode_json(convert_to(repeat('[', 1001) || repeat(']', 1001), 'UTF8'), '{$}') $$);
SELECT refused($$ SELECT kind FROM decode_json(convert_to('{"a": ' || repeat('[', 10000) || repeat(']', 10000) || '}', 'UTF8'), '{$.b}') $$);
SELECT refused($$ SELECT kind FROM decode_json(convert_to(repeat('{"a":', 10000) || '1' || repeat('}', 10000), 'UTF8'), '{$.a.a.a}') $$);
SELECT kind, length(value_text) FROM decode_json(convert_to('{"a": "' || repeat('x', 20000000) || '", "b": 1}', 'UTF8'), '{$.b,$.a}');
SELECT count(*), max(value_text) FROM decode_json(convert_to('{"a": [' || repeat('1,', 999999) || '2]}', 'UTF8'), '{@}', '$.a[*]');
SELECT refused($$ SELECT count(*) FROM decode_json(convert_to('{"a": [' || repeat('1,', 9000000) || '2]}', 'UTF8'), '{@}', '$.a[*]') $$);

-- Conversions.
SELECT v, t, convert_json(v, t) FROM (VALUES ('5.0', 'integer'), ('1e3', 'integer'), ('"5"', 'integer'), ('"a\"b"', 'jsonb'), ('"a\"b"', 'json'),
    ('"a\"b"', 'text'), ('{"a" : 1}', 'json'), ('{"a" : 1}', 'jsonb'), ('{"a" : 1}', 'text'), ('[1, 2]', 'text'), ('null', 'jsonb'), ('true', 'boolean'), ('true', 'text'),
    ('"{1,2}"', 'integer[]'), ('"2026-01-01 00:00:00.000000"', 'timestamptz'), ('"2026-01-01T03:00:00+03:00"', 'timestamptz')) x (v, t);
SELECT convert_plain('{"a" : 1}', 'jsonb');
SELECT refused($$ SELECT convert_json('5.5', 'integer') $$);
SELECT refused($$ SELECT convert_json('"5.0"', 'integer') $$);
SELECT refused($$ SELECT convert_json('3e9', 'integer') $$);
SELECT refused($$ SELECT convert_json('1e400', 'bigint') $$);
SELECT refused($$ SELECT convert_json('"x"', 'bigint') $$);
SELECT refused($$ SELECT convert_json('1e400', 'numeric(12,2)') $$);
SELECT refused($$ SELECT convert_json('"abcd"', 'varchar(3)') $$);
SELECT refused($$ SELECT convert_json('"2026-02-30"', 'date') $$);
CREATE DOMAIN positive AS integer CHECK (VALUE > 0);
SELECT refused($$ SELECT convert_json('5.0', 'positive') $$);
SELECT refused($$ SELECT convert_json('-5', 'positive') $$);

-- Formats of times.
SELECT v, t, f, convert_json(v, t, f) FROM (VALUES ('1767225600', 'timestamptz', 's'), ('1767225600.5', 'timestamptz', 's'), ('"1767225600123"', 'timestamptz', 'ms'),
    ('1767225600123456', 'timestamptz', 'us'), ('1767225600123456789', 'timestamptz', 'ns'), ('20454', 'date', 'days'), ('20454', 'timestamptz', 'days'),
    ('"05.01.2026 12:30"', 'timestamptz', 'DD.MM.YYYY HH24:MI'), ('"20260105"', 'date', 'YYYYMMDD'), ('1767225600123', 'timestamptz(0)', 'ms'), ('-1', 'timestamp', 's')) x (v, t, f);
SET TimeZone = 'Asia/Ho_Chi_Minh';
SELECT t, f, convert_json(v, t, f) FROM (VALUES ('1767222000000', 'timestamptz', 'ms'), ('1767222000000', 'timestamp', 'ms'), ('1767222000000', 'date', 'ms'),
    ('20453', 'date', 'days'), ('20453', 'timestamp', 'days'), ('"2026-01-01 00:00:00"', 'timestamptz', NULL)) x (v, t, f);
SELECT refused($$ SELECT convert_json('1e300', 'timestamptz', 's') $$);
SELECT refused($$ SELECT convert_json('9223372036854775807', 'timestamptz', 'ms') $$);
SELECT refused($$ SELECT convert_json('"NaN"', 'timestamptz', 's') $$);
SELECT refused($$ SELECT convert_json('1', 'timestamptz', 'sec') $$);
SELECT refused($$ SELECT convert_json('1', 'integer', 's') $$);
