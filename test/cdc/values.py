#!/usr/bin/python3
"""Values of every type arrive as the source writes them: those that a snapshot reads, and those that are streamed.

The source's own settings of how values are written must not matter, nor those of the target.
"""
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), '..', 'lib'))
from database import Database, finish, is_          # noqa: E402
from shell import Shell                             # noqa: E402

DIGITS = '1234567890' * 100

# Of each type some values as SQL, beside NULL.
VALUES = {
    'smallint': ['-32768', '32767'], 'integer': ['-2147483648', '0'], 'bigint': ['-9223372036854775808', '9223372036854775807'],
    'numeric': [f'-{DIGITS}.{DIGITS}', "'NaN'", "'Infinity'", "'-Infinity'", '1.10', '1e-500'], 'numeric(1000,500)': [f'{DIGITS[:500]}.{DIGITS[:500]}', "'NaN'"],
    'real': ["'NaN'", "'-Infinity'", "'-0'", '1e-45', '3.4028235e38'], 'double precision': ["'NaN'", "'Infinity'", "'-0'", '5e-324', '0.1', '1.7976931348623157e308'],
    'money': ['12345.67', '-0.01'], 'boolean': ['true', 'false'], '"char"': ["'a'", "''"], 'name': ["'n'"], 'character(5)': ["'ab'"], 'character varying(10)': ["'ab '"],
    'text': ["''", r"E'tab\t line\n \\ \\N \"quoted\" \u00e4\U0001F600'", "repeat('long', 100000)"], 'bytea': ["''", r"'\x00ff5c09'", "decode(repeat('00ff', 50000), 'hex')"],
    'date': ["'infinity'", "'-infinity'", "'0044-03-15 BC'", "'2024-02-29'"], 'time without time zone': ["'24:00'", "'00:00:00.000001'"],
    'time with time zone': ["'12:00:00.5+14'", "'12:00-15:59:59'"], 'timestamp without time zone': ["'infinity'", "'4713-01-01 BC'", "'2024-12-31 23:59:60'"],
    'timestamp with time zone': ["'-infinity'", "'2024-06-01 12:00:00.123456+05:45'", "'0001-01-01 BC'"], 'interval': ["'-1 year 2 mons -3 days 04:05:06.789'", "'0'", "'-0.000001 s'"],
    'interval day to second(3)': ["'1 day 2:03:04.567'"], 'uuid': ["'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'"],
    'json': [r"""' {"b" : 1, "a":[1,  2], "a": "\u00e4"}'""", "'null'"], 'jsonb': [r"""'{"b": 1.10, "a": [1, "x\ty"]}'""", "'null'"], 'jsonpath': ["'$.a[*] ? (@ > 1)'"],
    'inet': ["'::1'", "'192.168.0.1/24'"], 'cidr': ["'10.0.0.0/8'"], 'macaddr': ["'08:00:2b:01:02:03'"], 'macaddr8': ["'08:00:2b:01:02:03:04:05'"],
    'bit(5)': ["B'10101'"], 'bit varying': ["B''", "B'101'"], 'point': ["'(0.1,-1e300)'"], 'line': ["'{1,2,3}'"], 'lseg': ["'(1,2),(3,4)'"], 'box': ["'(1,2),(3,4)'"],
    'path': ["'[(1,2),(3,4)]'", "'((1,2),(3,4))'"], 'polygon': ["'((1,2),(3,4),(5,6))'"], 'circle': ["'<(1,2),0.3>'"],
    'tsvector': ["'a:1 fat:2B cat'"], 'tsquery': ["'fat & (cat | !rat:A)'"], 'xml': ["'<a b=\"1\">&lt;</a>'"],
    'int4range': ["'[1,5)'", "'empty'", "'(,)'"], 'int8range': ["'[1,)'"], 'numrange': ["'(0.10,1]'"], 'tsrange': ["'[2024-01-01,2024-02-01)'"], 'tstzrange': ["'[2024-01-01 00:00+09,infinity]'"],
    'daterange': ["'[2024-01-01,)'"], 'int4multirange': ["'{[1,5),[7,9)}'", "'{}'"], 'tstzmultirange': ["'{[2024-01-01 00:00+09,2024-02-01 00:00+00)}'"], 'nummultirange': ["'{(,1.10]}'"],
    'integer[]': ["'{}'", "'[2:3]={1,NULL}'", "'{{1,2},{3,4}}'"], 'text[]': [r"""'{"a,b","NULL",NULL,"\"","\\",""," x "}'"""], 'numeric[]': ["'{NaN,1.10}'"], 'bytea[]': [r"""'{"\\x00ff"}'"""],
    'timestamp with time zone[]': ["'{2024-06-01 12:00+05:45}'"], 'jsonb[]': [r"""ARRAY['{"a": 1}'::jsonb]"""], 'int4range[]': ["""'{"[1,5)",empty}'"""], 'uuid[]': ["'{a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11}'"],
    'oid': ['4294967295'], 'xid': ["'4294967295'"], 'xid8': ["'18446744073709551615'"], 'cid': ["'1'"], 'tid': ["'(1,2)'"], 'pg_lsn': ["'16/B374D848'"], 'pg_snapshot': ["'10:20:10,14'"],
    'regtype': ["'integer'"], 'oidvector': ["'1 2'"], 'int2vector': ["'1 2'"], 'refcursor': ["'c'"],
    # Of the source alone: text here.
    'app.colour': ["'deep blue'"], 'app.pair': [r"""ROW(1, E'a "b"\t,')"""], 'app.pair[]': ["ARRAY[ROW(1, 'x')]::app.pair[]"], 'app.positive': ['7'],
    # There as here.
    'app.mood': ["'so so'"], 'app.mood[]': ["""'{"so so"}'"""],
}


def rows(database, table, columns):
    """All values as text, but for those of the numbering."""
    database.query("SET datestyle = ISO; SET intervalstyle = postgres; SET extra_float_digits = 3; SET timezone = 'UTC'; SET bytea_output = hex")
    return {row[0]: row[1:] for row in database.query(f"SELECT id, {', '.join(f'''CASE WHEN num_nulls({c}) = 0 THEN format('%s', {c}) END''' for c in columns)} FROM {table} ORDER BY id")}


def main():
    with Shell() as shell:
        shell.run('pg_start "$work/pg" "wal_level = logical" "fsync = off" "millrace.databases = postgres" "max_worker_processes = 16" "datestyle = \'German\'" "bytea_output = escape" "timezone = \'Asia/Tokyo\'"')
        shell.environ()
        dsn = f"host={os.environ['PGHOST']} port={os.environ['PGPORT']} user=postgres"
        target = Database(f'{dsn} dbname=postgres')
        target.query('CREATE DATABASE shop')
        target.query("ALTER DATABASE shop SET datestyle = 'SQL, DMY'")
        target.query("ALTER DATABASE shop SET intervalstyle = 'iso_8601'")
        target.query('ALTER DATABASE shop SET extra_float_digits = -3')
        source = Database(f'{dsn} dbname=shop')
        source.query("""CREATE SCHEMA app; CREATE TYPE app.colour AS ENUM ('deep blue'); CREATE TYPE app.pair AS (n int, t text); CREATE DOMAIN app.positive AS int CHECK (value > 0);
                        CREATE TYPE app.mood AS ENUM ('so so')""")
        target.query("CREATE EXTENSION millrace; CREATE SCHEMA app; CREATE SCHEMA bronze; CREATE TYPE app.mood AS ENUM ('so so')")
        source.query('SET datestyle = ISO; SET intervalstyle = postgres')
        if not source.one("SELECT bool_or(setting ~ '--with-libxml') FROM pg_config WHERE name = 'CONFIGURE'"):
            del VALUES['xml']
        names = {f'c{n}': type for n, type in enumerate(VALUES)}
        inserts = [f"INSERT INTO public.every (c{n}) VALUES ({value})" for n, type in enumerate(VALUES) for value in VALUES[type]]
        source.query(f"CREATE TABLE public.every (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, {', '.join(f'{c} {type}' for c, type in names.items())})")
        source.query('INSERT INTO public.every DEFAULT VALUES')
        for insert in inserts:
            source.query(insert)
        # Keys of which equal values have different texts, and those that are written in several ways.
        keys = {'numeric': ("'1.0'", "'1.00'"), 'timestamp with time zone': ("'2024-01-01 00:00+09'", "'2023-12-31 00:00+09'"), 'bytea': (r"'\x00'", r"'\x01'"), 'uuid': ("'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'", "'b0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'"),
                'text': ("' a'", "'a '"), 'date': ("'infinity'", "'2024-02-29'"), 'interval': ("'1 day'", "'24 hours'"), 'double precision': ("'-0'", "'NaN'")}
        for n, type in enumerate(keys):
            source.query(f'CREATE TABLE public.key{n} (id {type} PRIMARY KEY, v int); INSERT INTO public.key{n} VALUES ({keys[type][0]}, 1)')
        tables = ['public.every'] + [f'public.key{n}' for n in range(len(keys))]
        target.query(f"CREATE SERVER source FOREIGN DATA WRAPPER millrace_postgres OPTIONS (host '{os.environ['PGHOST']}', port '{os.environ['PGPORT']}', dbname 'shop')")
        target.query("CREATE USER MAPPING FOR postgres SERVER source OPTIONS (username 'postgres')")
        target.query("SELECT millrace.create_stream('shop', server => 'source', options => %s)", '{"tables": [%s]}' % ', '.join(f'"{t}"' for t in tables))
        for table in tables:
            target.query("SELECT millrace.create_staging(%s, stream => 'shop', source_table => %s)", table.replace('public', 'bronze'), table)
        target.query("SELECT millrace.start_stream('shop')")
        target.becomes('the tables are copied', "SELECT count(*)::int FROM millrace.snapshot_status WHERE state = 'done'", len(tables))
        is_('without dead letters', target.query('SELECT staging, message FROM millrace.dead_letter'), [])

        def compare(how):
            wanted, found = rows(source, 'public.every', names), rows(target, 'bronze.every', names)
            differ = [f'{type}: {w[n]!r:.100} is {found.get(i, (None,) * len(names))[n]!r:.100}' for i, w in wanted.items() for n, type in enumerate(names.values()) if w[n] != found.get(i, (None,) * len(names))[n]]
            is_(f'every value that is {how}', differ + sorted(found.keys() - wanted.keys()), [])

        compare('copied')
        is_('columns have their types', target.query("SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute WHERE attrelid = 'bronze.every'::regclass AND attname ~ '^c[0-9]+$' AND attname <> 'ctid' ORDER BY attnum"),
            [(c, 'text' if type.startswith(('app.colour', 'app.pair', 'app.positive')) else type) for c, type in names.items()])
        for insert in inserts:
            source.query(insert)
        source.query('INSERT INTO public.every DEFAULT VALUES')
        # Large values stay as they are, and all are written again.
        source.query('UPDATE public.every SET c0 = 1')
        for n, type in enumerate(keys):
            source.query(f'UPDATE public.key{n} SET v = 2; UPDATE public.key{n} SET id = {keys[type][1]}')
        last = source.one("INSERT INTO public.every DEFAULT VALUES RETURNING id")
        target.becomes('changes come', f'SELECT count(*)::int FROM bronze.every WHERE id = {last}', 1)
        compare('streamed')
        for n, type in enumerate(keys):
            sql = "SELECT format('%%s', id), v FROM {}.key{}"
            is_(f'a key of {type}', target.query(sql.format('bronze', n)), source.query(sql.format('public', n)))
            source.query(f'DELETE FROM public.key{n}')
        target.becomes('and are deleted by it', 'SELECT ' + ' + '.join(f'(SELECT count(*)::int FROM bronze.key{n})' for n in range(len(keys))), 0)
        is_('nothing was refused', target.query('SELECT staging, message FROM millrace.dead_letter'), [])
        finish(shell)


if __name__ == '__main__':
    main()
