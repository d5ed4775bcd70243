#!/usr/bin/python3
"""One transaction of the source with more rows than fit into a worker's memory: it is seen whole or not at all, and the worker needs no
more memory for many rows than for few: what is in use stays within millrace.worker_memory, and the process within a quarter more. All rows at once would be
more. And small transactions that have piled up are not made one. --long: a million rows."""
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), '..', 'lib'))
from database import Database, finish, is_          # noqa: E402
from shell import Shell, wait_for                   # noqa: E402

ROWS = 1000000 if '--long' in sys.argv else 120000
SMALL = 30000                                       # transactions, of two rows
MEMORY = 64                                         # MB, the least that the setting takes


def anonymous(pid):
    """Anonymous memory of a process, in MB."""
    try:
        with open(f'/proc/{pid}/status') as status:
            return next((int(line.split()[1]) / 1024 for line in status if line.startswith('RssAnon')), 0)
    except FileNotFoundError:
        return 0


def main():
    with Shell() as shell:
        shell.run(f'pg_start "$work/pg" "wal_level = logical" "fsync = off" "track_commit_timestamp = on" "millrace.databases = postgres" "millrace.worker_memory = \'{MEMORY}MB\'" "max_wal_size = 4GB"')
        shell.environ()
        dsn = f"host={os.environ['PGHOST']} port={os.environ['PGPORT']} user=postgres"
        target = Database(f'{dsn} dbname=postgres')
        target.query('CREATE DATABASE shop')
        source = Database(f'{dsn} dbname=shop')
        source.query('CREATE TABLE public.t (id int PRIMARY KEY, v int, filler text)')
        target.query(f"""CREATE EXTENSION millrace; CREATE SCHEMA bronze; CREATE SCHEMA gold;
            CREATE SERVER source FOREIGN DATA WRAPPER millrace_postgres OPTIONS (host '{os.environ['PGHOST']}', port '{os.environ['PGPORT']}', dbname 'shop');
            CREATE USER MAPPING FOR postgres SERVER source OPTIONS (username 'postgres');
            SELECT millrace.create_stream('shop', server => 'source', options => '{{"tables": ["public.t"]}}');
            SELECT millrace.create_staging('bronze.t', stream => 'shop', source_table => 'public.t', log => true);
            SELECT millrace.create_mart('gold.t', 'SELECT v % 10 AS digit, count(*) AS n, sum(v) AS v FROM bronze.t GROUP BY v % 10');
            SELECT millrace.start_stream('shop')""")
        target.becomes('the table is copied', "SELECT max(state) FROM millrace.snapshot_status", 'done')
        pid = target.one('SELECT pid FROM millrace.worker_status')
        count = 'SELECT count(*)::int, coalesce(sum(v), 0)::bigint, (SELECT coalesce(sum(n), 0)::int FROM gold.t), (SELECT coalesce(sum(v), 0)::bigint FROM gold.t) FROM bronze.t'
        before = target.query(count)[0]
        for what, sql in (('inserts', f"INSERT INTO public.t SELECT i, 1, repeat('x', 100) FROM generate_series(1, {ROWS}) i"), ('updates', 'UPDATE public.t SET v = v + id % 3')):
            source.query(sql)
            wanted = source.query('SELECT count(*)::int, sum(v)::bigint, count(*)::int, sum(v)::bigint FROM public.t')[0]
            peak = 0
            seen = {before}

            def arrived():
                nonlocal peak
                peak = max(peak, anonymous(pid))
                target.query('SELECT pg_log_backend_memory_contexts(%s)', pid)
                seen.add(target.query(count)[0])
                return wanted in seen

            wait_for(what, arrived, 480)
            is_(f'{ROWS} {what} of one transaction are seen at once', seen, {before, wanted})
            print(f'# {peak:.0f} MB at most')
            is_(f'with at most {MEMORY * 5 // 4} MB', 1 < peak <= MEMORY * 5 // 4, True)
            before = wanted
        used = int(shell.value('$(sed -nE "s/.*Grand total: ([0-9]+) bytes.*/\\1/p" "$work/pg/server.log" | sort -n | tail -n 1)')) / 1024 / 1024
        print(f'# {used:.0f} MB of them in use')
        is_(f'of which {MEMORY} MB are in use', 10 < used <= MEMORY, True)
        is_('by the same worker', target.one('SELECT pid FROM millrace.worker_status'), pid)

        # Small transactions that have piled up are not made one large one: what was done is not done again when something happens.
        target.query("SELECT millrace.stop_stream('shop')")
        target.becomes('the worker ends', 'SELECT count(pid)::int FROM millrace.worker', 0)
        source.query(f"""CREATE PROCEDURE public.fill() LANGUAGE plpgsql AS $$ BEGIN
            FOR i IN 1 .. {SMALL} LOOP INSERT INTO public.t VALUES (-2 * i, 1, repeat('x', 100)), (1 - 2 * i, 1, repeat('x', 100)); COMMIT; END LOOP; END $$""")
        source.query('CALL public.fill()')
        # A round of a copy, which brings nothing here, is no part of the transactions between which it is read.
        target.query("SELECT millrace.resnapshot('shop', 'public.t', 'id IS NULL')")
        target.query("SELECT millrace.start_stream('shop')")
        target.becomes('small transactions arrive', 'SELECT count(*)::int FROM bronze.t WHERE id < 0', 2 * SMALL)
        is_(f'{SMALL} transactions of the source are several of the target', target.one('SELECT count(DISTINCT pg_xact_commit_timestamp(xmin)) > 3 FROM bronze.t WHERE id < 0'), True)
        is_('each in one', target.query('SELECT (id - 1) / 2 FROM bronze.t WHERE id < 0 GROUP BY 1 HAVING count(DISTINCT pg_xact_commit_timestamp(xmin)) > 1'), [])
        target.becomes('and the table is copied between them', "SELECT max(state) FROM millrace.snapshot_status", 'done')
        is_('by a worker that nothing has ended', target.one("SELECT coalesce(max(last_error), '') FROM millrace.worker_status"), '')

        # A column that comes within a transaction when a part of it has been taken.
        source.query('BEGIN; UPDATE public.t SET v = v + 1; ALTER TABLE public.t ADD COLUMN w int DEFAULT 5; UPDATE public.t SET w = id WHERE id < 100; COMMIT')
        wanted = source.query('SELECT sum(v)::bigint, sum(w)::bigint FROM public.t')[0]
        target.becomes('mirrors follow what changes within a large transaction', "SELECT EXISTS (SELECT FROM pg_attribute WHERE attrelid = 'bronze.t'::regclass AND attname = 'w')", True, 120)
        target.becomes('which is taken whole', 'SELECT array[sum(v), sum(w)]::bigint[]::text FROM bronze.t', '{%d,%d}' % wanted, 120)

        # One that the stream does not take leaves alone what was committed before it.
        target.query("SELECT millrace.create_stream('shop', server => 'source', options => '{\"tables\": [\"public.t\"], \"truncate\": \"stop\"}', replace => true)")
        target.query("SELECT millrace.stop_stream('shop')")
        target.becomes('the worker ends', 'SELECT count(pid)::int FROM millrace.worker', 0)
        source.query('UPDATE public.t SET v = -7 WHERE id = 1')
        source.query('BEGIN; UPDATE public.t SET v = -8; TRUNCATE public.t; COMMIT')
        target.query("SELECT millrace.start_stream('shop')")
        target.becomes('what came before a transaction that is refused is taken', 'SELECT v FROM bronze.t WHERE id = 1', -7, 60)
        target.says('and the stream stops at it', 'table public.t of the source was truncated')
        finish(shell)


if __name__ == '__main__':
    main()
