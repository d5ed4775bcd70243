#!/usr/bin/python3
"""What a truncation or a copy removes, and what it does not: rows of a declared version that have not changed stay, and dead letters of rows
that are gone bring nothing back."""
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), '..', 'lib'))
from database import Database, finish, is_          # noqa: E402
from shell import Shell                             # noqa: E402


def main():
    with Shell() as shell:
        shell.run('pg_start "$work/pg" "wal_level = logical" "fsync = off" "millrace.databases = postgres" "max_worker_processes = 16"')
        shell.environ()
        dsn = f"host={os.environ['PGHOST']} port={os.environ['PGPORT']} user=postgres"
        target = Database(f'{dsn} dbname=postgres')
        target.query('CREATE DATABASE shop')
        source = Database(f'{dsn} dbname=shop')
        source.query('CREATE TABLE public.t (id int PRIMARY KEY, n int, v int); INSERT INTO public.t SELECT i, i, 5 FROM generate_series(1, 6) i')
        target.query(f"""CREATE EXTENSION millrace; CREATE SCHEMA bronze;
            CREATE SERVER source FOREIGN DATA WRAPPER millrace_postgres OPTIONS (host '{os.environ['PGHOST']}', port '{os.environ['PGPORT']}', dbname 'shop');
            CREATE USER MAPPING FOR postgres SERVER source OPTIONS (username 'postgres');
            SELECT millrace.create_stream('shop', server => 'source', options => '{{"tables": ["public.t"]}}')""")
        declare = """SELECT millrace.create_staging('bronze.%s', stream => 'shop', source_table => 'public.t', key => '{"id": ["$.id", "int"]}',
            columns => '{"n": ["$.n", "int"]}', computed => '{"share": ["%s", "int"]}', version => %s, replace => true)"""
        tables = {'declared': """'["$.v", "int"]'""", 'ordered': 'NULL'}
        for name, version in tables.items():
            target.query(declare % (name, '100 / n', version))
        target.query("SELECT millrace.start_stream('shop')")
        copied = "SELECT count(*)::int FROM millrace.snapshot_status WHERE state = 'done' AND started_at > '%s'"

        def becomes(what, wanted):
            for name in tables:
                target.becomes(f'{what}: {name}', f"SELECT string_agg(id || ' ' || n, ', ' ORDER BY id) FROM bronze.{name}", wanted)

        def copy(what, without=None):
            """The table is copied again; without: what happens there while it is not in the publication."""
            now = target.one('SELECT clock_timestamp()')
            if without is None:
                target.query("SELECT millrace.resnapshot('shop', 'public.t')")
            else:
                source.query(f'BEGIN; ALTER PUBLICATION millrace_postgres_shop DROP TABLE public.t; COMMIT')
                source.query(without)
            target.becomes(what, copied % now, 1)

        becomes('all is there', '1 1, 2 2, 3 3, 4 4, 5 5, 6 6')
        copy('it is copied again')
        becomes('what has not changed stays', '1 1, 2 2, 3 3, 4 4, 5 5, 6 6')
        source.query('UPDATE public.t SET n = 22, v = 6 WHERE id = 2; UPDATE public.t SET n = 3 WHERE id = 3')
        copy('it is copied without changes of it', 'DELETE FROM public.t WHERE id = 1')
        becomes('what was not found goes', '2 22, 3 3, 4 4, 5 5, 6 6')

        # Letters.
        source.query('INSERT INTO public.t VALUES (7, 0, 5), (8, 0, 5)')
        target.becomes('rows become dead letters', "SELECT count(*)::int FROM millrace.dead_letter WHERE state = 'open'", 4)
        copy('it is copied without the delete of one', 'DELETE FROM public.t WHERE id = 7')
        for name, version in tables.items():
            target.query(declare % (name, '100 / nullif(n, 0)', version))
        target.query("SELECT millrace.retry('true')")
        becomes('tried again, only what is there comes', '2 22, 3 3, 4 4, 5 5, 6 6, 8 0')
        for name, version in tables.items():
            target.query(declare % (name, '100 / n', version))
        source.query('INSERT INTO public.t VALUES (9, 0, 5)')
        target.becomes('a row becomes a dead letter', "SELECT count(*)::int FROM millrace.dead_letter WHERE state = 'open'", 2)
        source.query('TRUNCATE public.t; INSERT INTO public.t VALUES (10, 10, 5)')
        becomes('the table is emptied', '10 10')
        for name, version in tables.items():
            target.query(declare % (name, '100 / nullif(n, 0)', version))
        target.query("SELECT millrace.retry('true')")
        becomes('nothing comes back', '10 10')
        finish(shell)


if __name__ == '__main__':
    main()
