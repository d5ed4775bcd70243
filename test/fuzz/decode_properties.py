#!/usr/bin/env python3
"""Random documents, broken bytes and random values through the decode stage, judged by PostgreSQL itself.

    decode_properties.py [--seed N] [--cases N]

Needs a running server (PGHOST, PGPORT, ... as for psql) with the extension millrace_decode_test to be had. Prints the
seed, one line a property, and ends with an error when one does not hold.
"""
import argparse
import random
import subprocess
import sys

NAMES = ['a', 'b', 'c', 'items', 'd e', 'é', 'x"y', 'back\\slash', '', 'long_name_of_a_member', 'A']
WORDS = ['x', '', 'CLOSED', 'two words', 'Ärger', '漢字', '😀', 'tab\there', 'line\nbreak', 'quote"d', 'back\\slash', 'a/b', '\x7f']
NUMBERS = ['0', '-0', '1', '-17', '1.0', '1.50', '1e3', '1E-2', '1e400', '12345678901234567890', '0.1', '-0.0', '123456.789']


def quote(text, rng):
    """A text as a JSON string, each character in a spelling of its own."""
    out = []
    for c in text:
        short = {'"': '\\"', '\\': '\\\\', '\n': '\\n', '\t': '\\t', '/': rng.choice(['/', '\\/'])}.get(c)
        if short:
            out.append(short)
        elif rng.random() < 0.1 or ord(c) < 32:
            units = c.encode('utf-16-be')
            out.append(''.join('\\u%04x' % int.from_bytes(units[i:i + 2], 'big') for i in range(0, len(units), 2)))
        else:
            out.append(c)
    return '"' + ''.join(out) + '"'


def space(rng):
    return rng.choice(['', '', '', '', ' ', '\n', '\t ', '\r\n'])


class Documents:
    def __init__(self, rng, duplicates, escapes):
        self.rng, self.duplicates, self.escapes = rng, duplicates, escapes

    def name(self):
        return self.rng.choice(NAMES if self.escapes else [n for n in NAMES if '"' not in n and '\\' not in n])

    def quote(self, text):
        if self.escapes:
            return quote(text, self.rng)
        return '"' + ''.join(c for c in text if c not in '"\\' and ord(c) >= 32) + '"'

    def value(self, depth):
        rng, kind = self.rng, self.rng.random()
        if depth == 0 or kind < 0.35:
            return rng.choice([self.quote(rng.choice(WORDS)), rng.choice(NUMBERS), 'true', 'false', 'null'])
        s = lambda: space(rng)
        if kind < 0.65:
            return '[' + s() + (s() + ',' + s()).join(self.value(depth - 1) for _ in range(rng.randrange(5))) + s() + ']'
        names = [self.name() for _ in range(rng.randrange(7))]
        if not self.duplicates:
            names = list(dict.fromkeys(names))
        return '{' + s() + (s() + ',' + s()).join(
            self.quote(n) + s() + ':' + s() + self.value(depth - 1) for n in names) + s() + '}'


def random_steps(rng, low, high):
    return [rng.choice(NAMES[:5] + NAMES) if rng.random() < 0.7 else rng.randrange(4) for _ in range(rng.randint(low, high))]


def spell(steps, rng):
    """Steps as a path."""
    out = ''
    for step in steps:
        if isinstance(step, int):
            out += f'[{step}]'
        elif step.isascii() and step.isidentifier() and rng.random() < 0.8:
            out += '.' + step
        else:
            out += rng.choice(['.%s', '[%s]']) % quote(step, rng)
    return out


def literal(value):
    """A text as an SQL literal."""
    if value is None:
        return 'NULL'
    return "E'" + value.replace('\\', '\\\\').replace("'", "\\'") + "'"


def steps_literal(steps):
    return 'NULL' if steps is None else 'ARRAY[' + ','.join(literal(str(s)) for s in steps) + ']::text[]'


def grown(text, steps, rng, documents):
    """A document in which the steps lead somewhere, most of the time."""
    for step in reversed(steps):
        if isinstance(step, int):
            text = '[' + ','.join([documents.value(1) for _ in range(step)] + [text]) + ']'
        else:
            names = [n for n in dict.fromkeys([documents.name(), documents.name()]) if n != step]
            parts = [quote(n, rng) + ':' + documents.value(1) for n in names] + [quote(step, rng) + ':' + text]
            if documents.duplicates and rng.random() < 0.3:
                parts.insert(0, quote(step, rng) + ':' + documents.value(3))
            if documents.duplicates and rng.random() < 0.1:
                parts.append(quote(step, rng) + ':' + documents.value(3))
            text = '{' + ', '.join(parts) + '}'
    return text


def documents_sql(rng, count):
    """Cases: a document, perhaps a for_each of one or two [*], and paths for it."""
    yield 'CREATE TEMP TABLE cases (id int, doc text, exact boolean, for_each text, p text[], q text[]);'
    yield 'CREATE TEMP TABLE probes (id int, path text, root text, steps text[]);'
    cases, probes = [], []
    for n in range(count):
        documents = Documents(rng, rng.random() < 0.5, rng.random() < 0.6)
        levels = rng.choice([0, 1, 1, 2])
        p = random_steps(rng, 0, 2) if levels else None
        q = random_steps(rng, 0, 2) if levels == 2 else None
        element = lambda: documents.value(3)
        if levels == 2:
            inner = element
            element = lambda: grown('[' + ','.join(inner() for _ in range(rng.randrange(4))) + ']', q, rng, documents)
        text = documents.value(4)
        if levels and rng.random() < 0.9:
            text = grown('[' + ','.join(element() for _ in range(rng.randrange(5))) + ']', p, rng, documents)
        for_each = None if not levels else '$' + spell(p, rng) + '[*]' + ('' if q is None else spell(q, rng) + '[*]')
        cases.append(f'({n},{literal(space(rng) + text + space(rng))},{not documents.duplicates},'
                     f'{literal(for_each)},{steps_literal(p)},{steps_literal(q)})')
        seen = set()
        for _ in range(rng.randint(1, 8)):
            root = rng.choice(['$', '@', '@', '@@'][:[1, 3, 4][levels]])
            steps = random_steps(rng, 0, 4)
            if levels and root == '$' and rng.random() < 0.5:
                steps = p + random_steps(rng, 0, 3)
            path = root + spell(steps, rng)
            if path not in seen:
                seen.add(path)
                probes.append(f"({n},{literal(path)},'{root}',{steps_literal(steps)})")
    for table, rows in (('cases', cases), ('probes', probes)):
        for i in range(0, len(rows), 500):
            yield f'INSERT INTO {table} VALUES ' + ',\n'.join(rows[i:i + 500]) + ';'
    yield EXPECT


EXPECT = r'''
CREATE TEMP TABLE elements AS
SELECT id, 0 AS element, 0 AS outer_element, NULL::jsonb AS e, NULL::jsonb AS o FROM cases WHERE p IS NULL
UNION ALL
SELECT id, (n - 1)::int, 0, e, NULL
FROM cases, jsonb_array_elements(CASE WHEN jsonb_typeof(doc::jsonb #> p) = 'array' THEN doc::jsonb #> p END) WITH ORDINALITY x (e, n)
WHERE p IS NOT NULL AND q IS NULL
UNION ALL
SELECT id, (row_number() OVER (PARTITION BY id ORDER BY n, m) - 1)::int, (n - 1)::int, e, o
FROM cases, jsonb_array_elements(CASE WHEN jsonb_typeof(doc::jsonb #> p) = 'array' THEN doc::jsonb #> p END) WITH ORDINALITY x (o, n),
     jsonb_array_elements(CASE WHEN jsonb_typeof(o #> q) = 'array' THEN o #> q END) WITH ORDINALITY y (e, m)
WHERE q IS NOT NULL;

CREATE TEMP TABLE expected AS
SELECT id, element, outer_element, path,
       CASE root WHEN '$' THEN doc::jsonb #> steps WHEN '@' THEN e #> steps ELSE o #> steps END AS value,
       CASE WHEN exact AND root = '$' AND steps <> '{}' THEN doc::json #>> steps END AS exact_text
FROM cases JOIN elements USING (id) JOIN probes USING (id);

CREATE TEMP TABLE actual AS
SELECT c.id, false AS after, d.*
FROM cases c, decode_json(convert_to(doc, 'UTF8'), (SELECT array_agg(path) FROM probes WHERE probes.id = c.id), for_each) d
UNION ALL
SELECT c.id, true, d.*
FROM cases c JOIN cases f ON f.id = (c.id * 7 + 3) % (SELECT count(*) FROM cases),
     decode_after(convert_to(f.doc, 'UTF8'), convert_to(c.doc, 'UTF8'), (SELECT array_agg(path) FROM probes WHERE probes.id = c.id), c.for_each) d;

-- What differs in kind, in value, or, where PostgreSQL keeps it, in the text itself.
CREATE TEMP TABLE different AS
SELECT id, after, element, path, kind, value_text, json, value, exact_text
FROM (SELECT * FROM expected, (VALUES (false), (true)) v (after)) x
FULL JOIN actual USING (id, after, element, path)
WHERE x.outer_element IS DISTINCT FROM actual.outer_element OR
      kind IS DISTINCT FROM CASE coalesce(jsonb_typeof(value), 'absent') WHEN 'object' THEN 'container' WHEN 'array' THEN 'container'
                            ELSE coalesce(jsonb_typeof(value), 'absent') END OR
      CASE WHEN kind IN ('absent', 'null') THEN value_text IS NOT NULL
           WHEN kind IN ('string', 'boolean') THEN value_text IS DISTINCT FROM value #>> '{}'
           WHEN kind = 'number' THEN value_text::numeric IS DISTINCT FROM (value #>> '{}')::numeric
           ELSE value_text::jsonb IS DISTINCT FROM value END OR
      (kind NOT IN ('absent', 'null') AND json::jsonb IS DISTINCT FROM value) OR
      (exact_text IS NOT NULL AND value_text IS DISTINCT FROM exact_text);
TABLE different LIMIT 5;
SELECT 'RESULT documents: ' || (SELECT count(*) FROM cases) || ' documents, ' || (SELECT count(*) FROM actual) || ' values, ' ||
       (SELECT count(*) FROM actual WHERE kind <> 'absent') || ' there, ' || (SELECT count(*) FROM actual WHERE element > 0) ||
       ' of further elements, ' || count(*) || ' different' FROM different;
'''


def mutate(data, rng):
    data = bytearray(data)
    for _ in range(rng.randint(0, 3)):
        at = rng.randrange(len(data) + 1)
        what = rng.randrange(6)
        if what == 0 and at < len(data):
            data[at] = rng.randrange(256)
        elif what == 1:
            data[at:at + rng.randrange(4)] = b''
        elif what == 2:
            data[at:at] = rng.choice([b'"', b'\\', b'{', b'}', b'[', b']', b',', b':', b'\\u0000', b'\\ud800', b'\\udc00\\u12',
                                      b'\x00', b'\xff', b'\xc3', b'1e', b'-', b'nul', b'\\x', b'\x1f'])
        elif what == 3:
            del data[at:]
        elif what == 4:
            data += data[at:at + 20]
        else:
            data[at:at] = data[:at][-8:]
    return bytes(data)


def bytes_sql(rng, count):
    yield 'CREATE TEMP TABLE broken (id int, doc bytea);'
    rows = []
    for n in range(count):
        documents = Documents(rng, True, rng.random() < 0.6)
        rows.append(f"({n},'\\x{mutate(documents.value(4).encode(), rng).hex()}')")
    for i in range(0, len(rows), 500):
        yield 'INSERT INTO broken VALUES ' + ',\n'.join(rows[i:i + 500]) + ';'
    yield r'''
CREATE FUNCTION pg_temp.ours(doc bytea, paths text[], for_each text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
    PERFORM * FROM decode_json(doc, paths, for_each);
    RETURN 'ok';
EXCEPTION WHEN OTHERS THEN RETURN sqlstate;
END $$;
CREATE FUNCTION pg_temp.theirs(doc bytea) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
    PERFORM convert_from(doc, 'UTF8')::jsonb;
    RETURN 'ok';
EXCEPTION WHEN OTHERS THEN
    -- A number that numeric cannot hold hides what comes after it: no judgement.
    RETURN CASE WHEN sqlstate = '22003' OR sqlerrm LIKE '%type numeric%' THEN 'none' ELSE sqlstate END;
END $$;
CREATE TEMP TABLE judged AS
SELECT id, doc, pg_temp.theirs(doc) AS theirs, pg_temp.ours(doc, '{$}', NULL) AS whole,
       pg_temp.ours(doc, '{$.a,$.b[1].c,$[0],$.items,@.a,@@.b}', '$.items[*].items[*]') AS parts,
       pg_temp.ours(doc, '{$topic}', NULL) AS nothing
FROM broken;
CREATE TEMP TABLE misjudged AS
SELECT * FROM judged WHERE whole <> parts OR whole <> nothing OR whole !~ '^(ok|22...)$' OR (theirs <> 'none' AND whole <> theirs);
TABLE misjudged LIMIT 5;
SELECT 'RESULT broken bytes: ' || count(*) || ' texts, ' || count(*) FILTER (WHERE whole <> 'ok') || ' refused (' ||
       (SELECT string_agg(theirs || ' ' || n, ', ') FROM (SELECT theirs, count(*) AS n FROM judged GROUP BY 1 ORDER BY 1) x) || '), ' ||
       (SELECT count(*) FROM misjudged) || ' different' FROM judged;
'''


def number(rng, digits):
    return rng.choice(['', '', '-', '+']) + str(rng.randrange(10 ** rng.randint(1, digits)))


def clock(rng):
    """A date and perhaps a time, mostly of the ISO shape, sometimes just beside it."""
    text = '%04d-%02d-%02d' % (rng.choice([2026, 2024, 2000, 1999, 1970, 1900, 1, 0, 9999, rng.randrange(1, 9999)]),
                               rng.randrange(1, 13) if rng.random() < 0.97 else 13,
                               rng.randrange(1, 29) if rng.random() < 0.8 else rng.randrange(0, 33))
    if rng.random() < 0.15:
        return text
    text += rng.choice([' ', 'T', ' ', 'T', 't', '  ']) + '%02d:%02d:%02d' % (
        rng.randrange(24) if rng.random() < 0.95 else rng.choice([24, 25]), rng.randrange(60) if rng.random() < 0.98 else 60,
        rng.randrange(60) if rng.random() < 0.95 else rng.choice([60, 61]))
    if rng.random() < 0.6:
        text += '.' + ''.join(rng.choice('0123456789') for _ in range(rng.choice([0, 1, 2, 3, 5, 6, 6, 6, 7, 9])))
    return text + rng.choice(['', '', 'Z', '+00', '+03', '-05:30', '+05:45', '+14:00', '-15:59', '+16', '+0300', ' +03', ' UTC', 'z',
                              '+03:60', ' BC', '-00:00', '+3', ' Europe/Moscow', 'x'])


def uuid(rng):
    text = '%032x' % rng.randrange(1 << 128)
    text = '-'.join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))
    return rng.choice([text, text, text, text.upper(), text.replace('-', ''), '{' + text + '}', text[:-1], text[:-1] + 'g', text[:8] + ':' + text[9:]])


def values_for(kind, rng):
    if kind in ('smallint', 'integer', 'bigint'):
        edge = {'smallint': 2 ** 15, 'integer': 2 ** 31, 'bigint': 2 ** 63}[kind]
        return rng.choice([number(rng, 20), number(rng, 5), str(edge - rng.randrange(3)), str(-edge - rng.randrange(-1, 2)), ' 7', '7 ', '', '-',
                           '1.0', '1e3', '0x10', '007', '--1', '1_000', 'NaN'])
    if kind.startswith('numeric'):
        return rng.choice([number(rng, 15) + '.' + number(rng, 5).lstrip('+-'), number(rng, 9), '1e400', '1e-5', 'NaN', 'Infinity', '', 'x', '.5', '5.',
                           '9999999999.995', '9999999999.994', ' 1 '])
    if kind == 'boolean':
        return rng.choice(['true', 'false', 't', 'f', 'TRUE', 'yes', 'off', '1', '0', '', ' true ', 'tru', 'maybe'])
    if kind == 'uuid':
        return uuid(rng)
    if kind in ('date', 'timestamp', 'timestamptz', 'timestamp(3)', 'timestamptz(0)'):
        return clock(rng) if rng.random() < 0.97 else rng.choice(['infinity', 'epoch', 'now()', '', 'x', '20260101', '2026-W01', '01/02/2026'])
    if kind == 'double precision':
        return rng.choice([number(rng, 18), '1e400', '0.1', '-0', 'NaN', 'x', '1e308'])
    return ''.join(rng.choice(['a', 'é', ' ', '漢', 'z', '😀', "'", '\\']) for _ in range(rng.randrange(8)))


TYPES = ['smallint', 'integer', 'bigint', 'numeric', 'numeric(12,2)', 'boolean', 'uuid', 'date', 'timestamp', 'timestamptz', 'timestamp(3)',
         'timestamptz(0)', 'double precision', 'text', 'varchar', 'varchar(3)', 'char(4)']


def conversions_sql(rng, count):
    yield 'CREATE TEMP TABLE inputs (zone text, type text, value text);'
    rows = []
    for _ in range(count):
        for kind in TYPES:
            zone = rng.choice(['UTC', 'Europe/Moscow', 'America/New_York', 'Asia/Kathmandu'])
            rows.append(f"('{zone}','{kind}',{literal(values_for(kind, rng))})")
    for i in range(0, len(rows), 1000):
        yield 'INSERT INTO inputs VALUES ' + ',\n'.join(rows[i:i + 1000]) + ';'
    for kind in TYPES:
        yield f'CREATE TEMP TABLE "t_{kind}" (c {kind});'
    yield r'''
CREATE FUNCTION pg_temp.ours(zone text, type text, value text, json boolean) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
    PERFORM set_config('TimeZone', zone, true);
    RETURN CASE WHEN json THEN convert_json(to_json(value)::text, type) ELSE convert_plain(value, type) END;
EXCEPTION WHEN OTHERS THEN RETURN sqlstate || ' ' || sqlerrm;
END $$;
CREATE FUNCTION pg_temp.theirs(zone text, type text, value text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE result text;
BEGIN
    PERFORM set_config('TimeZone', zone, true);
    EXECUTE format('INSERT INTO %I VALUES (%L) RETURNING format(''%%s'', c)', 't_' || type, value) INTO result;
    RETURN result;
EXCEPTION WHEN OTHERS THEN RETURN sqlstate || ' ' || sqlerrm;
END $$;
CREATE TEMP TABLE converted AS
SELECT *, pg_temp.ours(zone, type, value, false) AS plain, pg_temp.ours(zone, type, value, true) AS json, pg_temp.theirs(zone, type, value) AS theirs FROM inputs;
SELECT * FROM converted WHERE (plain, json) IS DISTINCT FROM (theirs, theirs) LIMIT 5;
SELECT 'RESULT conversions: ' || count(*) || ' values, ' || count(*) FILTER (WHERE theirs ~ '^[0-9A-Z]{5} ') || ' refused, ' ||
       count(*) FILTER (WHERE (plain, json) IS DISTINCT FROM (theirs, theirs)) || ' different' FROM converted;

-- Numbers in any spelling for integers: whole ones count.
CREATE FUNCTION pg_temp.whole(value text, type text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
    RETURN convert_json(value, type);
EXCEPTION WHEN OTHERS THEN RETURN sqlstate;
END $$;
CREATE FUNCTION pg_temp.theirs(value text, type text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE format('SELECT %L::%s', value, type);
    RETURN 'ok';
EXCEPTION WHEN OTHERS THEN RETURN sqlstate;
END $$;
CREATE TEMP TABLE numbers AS
SELECT m || f || CASE WHEN x IS NULL THEN '' ELSE 'e' || x END AS value, type
FROM (VALUES ('0'), ('1'), ('-1'), ('12'), ('-120'), ('9223372036854775807'), ('-9223372036854775808'), ('2147483648'), ('32768')) a (m),
     (VALUES (''), ('.0'), ('.5'), ('.50'), ('.250'), ('.000000001')) b (f),
     (VALUES (NULL), ('0'), ('1'), ('2'), ('+3'), ('-1'), ('-2'), ('9'), ('400'), ('-400')) c (x), (VALUES ('smallint'), ('integer'), ('bigint')) d (type);
CREATE TEMP TABLE wholes AS
SELECT value, type, pg_temp.whole(value, type) AS ours,
       CASE WHEN value::numeric <> trunc(value::numeric) THEN pg_temp.theirs(value, type)
            WHEN value::numeric BETWEEN -2 ^ b AND 2 ^ b - 1 THEN trunc(value::numeric)::text ELSE '22003' END AS theirs
FROM numbers, LATERAL (SELECT CASE type WHEN 'smallint' THEN 15 WHEN 'integer' THEN 31 ELSE 63 END::numeric) x (b);
SELECT * FROM wholes WHERE ours IS DISTINCT FROM theirs LIMIT 5;
SELECT 'RESULT whole numbers: ' || count(*) || ' numbers, ' || count(*) FILTER (WHERE ours IS DISTINCT FROM theirs) || ' different' FROM wholes;

-- Numbers since the epoch.
SET TimeZone = 'Europe/Moscow';
CREATE TEMP TABLE epochs AS
SELECT n::text AS value, unit, type, convert_json(n::text, type, unit) AS ours,
       CASE WHEN unit = 'days' AND type = 'timestamptz' THEN ('epoch'::timestamptz + n * interval '24 hours')::text
            WHEN unit = 'days' AND type = 'timestamp' THEN (date '1970-01-01' + n::int)::timestamp::text
            WHEN unit = 'days' THEN (date '1970-01-01' + n::int)::text
            WHEN type = 'timestamptz' THEN i::text WHEN type = 'timestamp' THEN i::timestamp::text ELSE i::date::text END AS theirs
FROM (SELECT unit, type, CASE unit WHEN 's' THEN trunc(x * 2e9) WHEN 'ms' THEN trunc(x * 2e12) WHEN 'us' THEN trunc(x * 2e15) ELSE trunc(x * 40000) END AS n
      FROM (VALUES ('s'), ('ms'), ('us'), ('days')) u (unit), (VALUES ('timestamptz'), ('timestamp'), ('date')) t (type),
           LATERAL (SELECT (g / 200.0 - 0.5)::numeric * sin(g)::numeric FROM generate_series(1, 200) g) s (x)) y,
     LATERAL (SELECT 'epoch'::timestamptz + (CASE unit WHEN 's' THEN n * 1000000 WHEN 'ms' THEN n * 1000 ELSE n END)::float8 * interval '1 microsecond') z (i);
SELECT * FROM epochs WHERE ours IS DISTINCT FROM theirs LIMIT 5;
SELECT 'RESULT epochs: ' || count(*) || ' numbers, ' || count(*) FILTER (WHERE ours IS DISTINCT FROM theirs) || ' different' FROM epochs;
'''


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('--seed', type=int, default=random.SystemRandom().randrange(1 << 32))
    parser.add_argument('--cases', type=int, default=3000)
    args = parser.parse_args()
    print('seed', args.seed)
    rng = random.Random(args.seed)
    failed = False
    for sql in (documents_sql(rng, args.cases), bytes_sql(rng, args.cases * 2), conversions_sql(rng, args.cases // 2)):
        script = ('\\set ON_ERROR_STOP 1\nSET client_min_messages = warning;\nSET DateStyle = ISO;\n'
                  'CREATE EXTENSION IF NOT EXISTS millrace_decode_test;\n' + '\n'.join(sql))
        run = subprocess.run(['psql', '-X', '-q', '-A', '-t', '-f', '-'], input=script.encode(), stdout=subprocess.PIPE)
        out = run.stdout.decode()
        results = [line for line in out.splitlines() if line.startswith('RESULT ')]
        for line in results:
            print(line[len('RESULT '):])
        if run.returncode != 0 or not results or any(not line.endswith(', 0 different') for line in results):
            print(out, file=sys.stderr)
            failed = True
    sys.exit(1 if failed else 0)


if __name__ == '__main__':
    main()
