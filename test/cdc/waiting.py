#!/usr/bin/python3
"""Changes that wait for a dictionary while the source loses their rows: what comes to be known later brings none of them back."""
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), '..', 'lib'))
from database import Database, finish, is_          # noqa: E402
from shell import Shell, wait_for                   # noqa: E402

WAITING = 'SELECT count(*)::int FROM millrace.pending_message'


def main():
    with Shell() as shell:
        shell.run('pg_start "$work/pg" "wal_level = logical" "fsync = off" "millrace.databases = postgres" "max_worker_processes = 16"')
        shell.environ()
        dsn = f"host={os.environ['PGHOST']} port={os.environ['PGPORT']} user=postgres"
        target = Database(f'{dsn} dbname=postgres')
        target.query('CREATE DATABASE shop')
        source = Database(f'{dsn} dbname=shop')
        source.query("CREATE TABLE public.t (id int PRIMARY KEY, owner text); INSERT INTO public.t VALUES (1, 'a'), (2, 'a')")
        target.query(f"""CREATE EXTENSION millrace; CREATE SCHEMA silver; CREATE SCHEMA bronze;
            CREATE SERVER source FOREIGN DATA WRAPPER millrace_postgres OPTIONS (host '{os.environ['PGHOST']}', port '{os.environ['PGPORT']}', dbname 'shop');
            CREATE USER MAPPING FOR postgres SERVER source OPTIONS (username 'postgres');
            SELECT millrace.create_stream('owners');
            SELECT millrace.create_staging('bronze.owners', stream => 'owners', key => '{{"owner": "$.owner"}}', columns => '{{"name": "$.name"}}');
            SELECT millrace.create_dictionary('owners', source => 'bronze.owners');
            SELECT millrace.create_stream('shop', server => 'source', options => '{{"tables": ["public.t"]}}', enrich => '{{"owner": ["owners", "$.owner"]}}');
            SELECT millrace.create_staging('silver.t', stream => 'shop', source_table => 'public.t', key => '{{"id": ["$.id", "int"]}}', log => true,
                columns => '{{"owner": "$.owner", "name": "$dict.owner.name"}}', filter => $$ name <> 'nobody' $$);
            SELECT millrace.start_stream('owners'); SELECT millrace.start_stream('shop')""")

        def learn(owner):
            target.query("SELECT millrace.push('owners', json_build_object('owner', %s, 'name', 'Owner ' || %s))", owner, owner)

        def same(what):
            source.query("INSERT INTO public.t VALUES (1000, 'a') ON CONFLICT (id) DO UPDATE SET owner = 'a'; DELETE FROM public.t WHERE id = 1000")
            target.becomes(f'{what}: nothing waits', WAITING, 0)
            target.becomes(f'{what}: all has come', "SELECT lag_bytes < 1000000 AND state = 'ready' FROM millrace.replication_status", True)
            wanted = source.one("SELECT coalesce(string_agg(id || ' Owner ' || owner, ', ' ORDER BY id), '') FROM public.t")
            target.becomes(what, "SELECT coalesce(string_agg(id || ' ' || name, ', ' ORDER BY id), '') FROM silver.t", wanted, 30)

        target.becomes('rows wait for their owner', WAITING, 2)
        learn('a')
        same('known')

        source.query("INSERT INTO public.t VALUES (3, 'b'), (4, 'b')")
        target.becomes('others wait', WAITING, 2)
        source.query("TRUNCATE public.t; INSERT INTO public.t VALUES (5, 'a')")
        target.becomes('the table is emptied', "SELECT string_agg(id::text, ' ') FROM silver.t", '5')
        learn('b')
        same('what waited when the table was emptied stays away')

        source.query("INSERT INTO public.t VALUES (6, 'c'), (7, 'c')")
        target.becomes('others wait', WAITING, 2)
        target.query("SELECT millrace.stop_stream('shop')")
        target.becomes('stopped', "SELECT state FROM millrace.stream_status WHERE stream = 'shop'", 'stopped')
        wait_for('the slot', lambda: source.one('SELECT bool_and(NOT active) FROM pg_replication_slots'))
        source.query('DELETE FROM public.t WHERE id = 6')
        target.query("SELECT millrace.reset_stream('shop'); SELECT millrace.start_stream('shop')")
        target.becomes('copied again', "SELECT string_agg(state, ',') FROM millrace.snapshot_status", 'done')
        learn('c')
        same('what waited for a row that was deleted before reset_stream() stays away')

        finish(shell)


if __name__ == '__main__':
    main()
