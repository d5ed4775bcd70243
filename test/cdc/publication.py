#!/usr/bin/python3
"""Publications that an administrator has made: what they leave out is told with the statement that mends it, which is run as it is told,
and then the staging tables are what the source has; so it is when a publication is changed while its stream runs."""
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), '..', 'lib'))
from database import Database, finish, is_          # noqa: E402
from shell import Shell                             # noqa: E402

STATEMENT = "SELECT substring(last_error FROM 'run at the source: (.*)$') FROM millrace.worker_status WHERE stream = '{}'"
ROWS = "SELECT coalesce(string_agg(concat_ws(' ', id, v), ', ' ORDER BY id), '') FROM {}"


def main():
    with Shell() as shell:
        shell.run('pg_start "$work/pg" "wal_level = logical" "fsync = off" "millrace.databases = postgres" "max_worker_processes = 16"')
        shell.environ()
        dsn = f"host={os.environ['PGHOST']} port={os.environ['PGPORT']} user=postgres"
        target = Database(f'{dsn} dbname=postgres')
        target.query('CREATE DATABASE shop')
        source = Database(f'{dsn} dbname=shop')
        source.query("""CREATE ROLE "Reader" LOGIN;
            CREATE TABLE public.a (id int PRIMARY KEY, v text); CREATE TABLE public.b (id int PRIMARY KEY, v text); CREATE TABLE public.c (id int PRIMARY KEY, v text);
            CREATE TABLE public.p (id int PRIMARY KEY, v text) PARTITION BY RANGE (id); CREATE TABLE public.p1 PARTITION OF public.p FOR VALUES FROM (0) TO (100);
            INSERT INTO public.a VALUES (1, 'x'), (2, 'x'), (3, 'x'); INSERT INTO public.b TABLE public.a; INSERT INTO public.c TABLE public.a; INSERT INTO public.p TABLE public.a;
            CREATE UNLOGGED TABLE public.u (id int PRIMARY KEY, v text); CREATE SCHEMA hidden; CREATE TABLE hidden.h (id int PRIMARY KEY, v text); INSERT INTO hidden.h VALUES (1, 'x')""")
        target.query(f"""CREATE EXTENSION millrace; CREATE SCHEMA bronze;
            CREATE SERVER source FOREIGN DATA WRAPPER millrace_postgres OPTIONS (host '{os.environ['PGHOST']}', port '{os.environ['PGPORT']}', dbname 'shop');
            CREATE SERVER limited FOREIGN DATA WRAPPER millrace_postgres OPTIONS (host '{os.environ['PGHOST']}', port '{os.environ['PGPORT']}', dbname 'shop');
            CREATE USER MAPPING FOR postgres SERVER source OPTIONS (username 'postgres');
            CREATE USER MAPPING FOR postgres SERVER limited OPTIONS (username 'Reader')""")

        def declare(stream, options, *tables, server='source'):
            target.query(f"SELECT millrace.create_stream('{stream}', server => '{server}', options => '{options}')")
            for table in tables:
                target.query(f"SELECT millrace.create_staging('bronze.{stream}_{table}', stream => '{stream}', source_table => 'public.{table}')")

        def start(stream):
            target.query('SELECT millrace.start_stream(%s)', stream)

        def mend(stream):
            for statement in target.one(STATEMENT.format(stream)).split('; '):
                source.query(statement)

        def same(what, stream, table):
            target.becomes(what, ROWS.format(f'bronze.{stream}_{table}'), source.one(ROWS.format(f'public.{table}')))

        # What is not sent.
        source.query("CREATE PUBLICATION part FOR TABLE public.a WHERE (id > 1), public.b (id), public.p WITH (publish = 'insert')")
        declare('part', '{"publication": "part", "tables": ["public.a", "public.b", "public.p"]}', 'a', 'b', 'p')
        is_('validate() tells it', target.one("SELECT hint FROM millrace.validate('part') WHERE message ~ 'does not publish update, delete, truncate'"),
            "Run at the source: ALTER PUBLICATION part SET (publish = 'insert, update, delete, truncate')")
        start('part')
        for what in ('does not publish update, delete, truncate', 'sends only rows of table public.a WHERE (id > 1)', 'sends table public.b without its columns v',
                     'table public.p is partitioned'):
            target.says(what, what)
            mend('part')
        for table in 'abp':
            same(f'mended, table {table} is copied', 'part', table)
        source.query("UPDATE public.a SET v = 'y'; UPDATE public.b SET v = 'y'; DELETE FROM public.p WHERE id = 2")
        for table in 'abp':
            same(f'and changes of {table} come', 'part', table)

        # Changed while it is read.
        source.query("ALTER PUBLICATION part SET (publish = 'insert, truncate')")
        source.query("UPDATE public.a SET v = 'z'; DELETE FROM public.b WHERE id = 1")
        target.says('a publication that leaves out changes stops the stream', 'does not publish update, delete')
        is_('with an incident for each table', target.query("SELECT kind, count(*)::int FROM millrace.incident GROUP BY 1"), [('publication_changed', 3)])
        mend('part')
        for table in 'ab':
            same(f'mended, table {table} is what it is at the source', 'part', table)

        # Tables come and go.
        source.query('CREATE PUBLICATION grows FOR TABLE public.a, public.b')
        declare('grows', '{"publication": "grows"}', 'a', 'b', 'c')
        start('grows')
        same('a publication is read', 'grows', 'b')
        source.query('ALTER PUBLICATION grows ADD TABLE public.c')
        source.query('ALTER PUBLICATION grows DROP TABLE public.b')
        same('a table that it gets is copied', 'grows', 'c')
        is_('one that it loses is an incident', target.one("SELECT detail FROM millrace.incident WHERE stream = 'grows'"), 'table public.b is not in the publication any more: its changes are not read')
        source.query("INSERT INTO public.b VALUES (9, 'later')")
        source.query('ALTER PUBLICATION grows ADD TABLE public.b')
        same('and is copied when it comes back', 'grows', 'b')

        # A publication that is gone.
        source.query('DROP PUBLICATION part')
        target.says('a publication that is gone', "publication part does not exist at the source any more; call millrace.reset_stream('part')")
        source.query("UPDATE public.a SET v = 'again'")
        target.query("SELECT millrace.reset_stream('part')")
        same('after reset_stream() all is copied again', 'part', 'a')
        source.query("UPDATE public.a SET v = 'and again'")
        same('and changes come', 'part', 'a')

        # A table that is gone.
        source.query('DROP TABLE public.b')
        target.says('a table that is gone', "table public.b does not exist at the source; it was dropped or renamed: create it again, or declare the stream without it (millrace.create_stream('part'")
        target.query("""SELECT millrace.create_stream('part', server => 'source', options => '{"publication": "part", "tables": ["public.a", "public.p"]}', replace => true)""")
        source.query("UPDATE public.a SET v = 'without b'")
        same('without it the stream goes on', 'part', 'a')

        # What no publication can have, and what the role may not do.
        declare('unlogged', '{"tables": ["public.u"]}')
        start('unlogged')
        target.says('an unlogged table', 'This operation is not supported for unlogged tables.')
        target.query("SELECT millrace.drop_stream('unlogged', cascade => true)")
        source.query('CREATE PUBLICATION hidden FOR TABLE hidden.h')
        declare('limited', '{"publication": "hidden", "tables": ["hidden.h"]}', server='limited')
        target.query("SELECT millrace.create_staging('bronze.h', stream => 'limited', source_table => 'hidden.h')")
        hints = target.query("SELECT hint FROM millrace.validate('limited') WHERE hint ~ '\"Reader\"' ORDER BY 1")
        is_('validate() tells what a role needs', [hint[0] for hint in hints], ['Run at the source: ' + s for s in ('ALTER ROLE "Reader" REPLICATION', 'GRANT SELECT ON hidden.h TO "Reader"', 'GRANT USAGE ON SCHEMA hidden TO "Reader"')])
        start('limited')
        for grant in ('ALTER ROLE "Reader" REPLICATION', 'GRANT USAGE ON SCHEMA hidden TO "Reader"', 'GRANT SELECT ON hidden.h TO "Reader"'):
            target.says(grant, f'run at the source: {grant}')
            source.query(target.one(STATEMENT.format('limited')))
        target.becomes('granted, the table is copied', ROWS.format('bronze.h'), '1 x')
        finish(shell)


if __name__ == '__main__':
    main()
