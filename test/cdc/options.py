#!/usr/bin/python3
"""What the options of a stream of changes say, and what becomes of the slot: no copy, truncations that are ignored or stop the stream, a
copy that pauses and goes on after a restart, a transaction that takes long, a position that moves while nothing comes."""
import os
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), '..', 'lib'))
from database import Database, finish, is_          # noqa: E402
from shell import Shell, wait_for                   # noqa: E402


def main():
    with Shell() as shell:
        shell.run('pg_start "$work/pg" "wal_level = logical" "fsync = off" "millrace.databases = postgres" "max_worker_processes = 16"')
        shell.environ()
        dsn = f"host={os.environ['PGHOST']} port={os.environ['PGPORT']} user=postgres"
        target = Database(f'{dsn} dbname=postgres')
        target.query('CREATE DATABASE shop')
        source = Database(f'{dsn} dbname=shop')
        target.query(f"""CREATE EXTENSION millrace; CREATE SCHEMA bronze; CREATE SCHEMA gold;
            CREATE SERVER source FOREIGN DATA WRAPPER millrace_postgres OPTIONS (host '{os.environ['PGHOST']}', port '{os.environ['PGPORT']}', dbname 'shop');
            CREATE USER MAPPING FOR postgres SERVER source OPTIONS (username 'postgres')""")

        def declare(stream, table, options='', log='false'):
            target.query(f"""SELECT millrace.create_stream('{stream}', server => 'source', options => '{{"tables": ["public.{table}"]{options}}}');
                SELECT millrace.create_staging('bronze.{table}', stream => '{stream}', source_table => 'public.{table}', log => {log})""")

        def start(stream):
            target.query('SELECT millrace.start_stream(%s)', stream)

        def stop(stream):
            target.query('SELECT millrace.stop_stream(%s)', stream)
            target.becomes(f'{stream} is stopped', f"SELECT state FROM millrace.stream_status WHERE stream = '{stream}'", 'stopped')
            wait_for('the slot', lambda: source.one(f"SELECT NOT active FROM pg_replication_slots WHERE slot_name = 'millrace_postgres_{stream}'"))

        # No copy, and truncations are not looked at.
        source.query("CREATE TABLE public.later (id int PRIMARY KEY, v text); INSERT INTO public.later VALUES (1, 'before')")
        declare('later', 'later', ', "snapshot": "never", "truncate": "ignore"')
        start('later')
        target.becomes('a stream that copies nothing is ready', "SELECT state FROM millrace.replication_status WHERE stream = 'later'", 'ready')
        source.query("INSERT INTO public.later VALUES (2, 'after'); TRUNCATE public.later; INSERT INTO public.later VALUES (3, 'emptied')")
        target.becomes('it has what was changed, and keeps what was truncated', "SELECT string_agg(v, ' ' ORDER BY id) FROM bronze.later", 'after emptied')
        is_('no copy was planned', target.one("SELECT count(*)::int FROM millrace.snapshot_status WHERE stream = 'later'"), 0)
        stop('later')

        # A copy that pauses holds, and goes on where it was.
        source.query("CREATE TABLE public.large (id int PRIMARY KEY, v text); INSERT INTO public.large SELECT i, repeat('x', 400) FROM generate_series(1, 50000) i")
        declare('large', 'large', ', "snapshot_chunk": 100')
        start('large')
        rows = "SELECT rows FROM millrace.snapshot_status WHERE stream = 'large'"
        wait_for('some of it', lambda: (target.query(rows) or [(0,)])[0][0] > 500)
        target.query("SELECT millrace.pause_snapshot('large')")
        source.query("INSERT INTO public.large VALUES (0, 'changed while it pauses')")
        target.becomes('changes come while the copy pauses', "SELECT count(*)::int FROM bronze.large WHERE id = 0", 1)
        held = target.one(rows)
        is_('which holds', target.one("SELECT state FROM millrace.snapshot_status WHERE stream = 'large'"), 'paused')
        stop('large')
        start('large')
        source.query("INSERT INTO public.large VALUES (-1, 'changed after a restart')")
        target.becomes('changes come after a restart', "SELECT count(*)::int FROM bronze.large WHERE id = -1", 1)
        is_('and the copy still holds', target.one(rows), held)
        is_('in the middle', 500 < held < 50000, True)
        target.query("SELECT millrace.resume_snapshot('large')")
        target.becomes('it goes on', "SELECT string_agg(state, ',') FROM millrace.snapshot_status WHERE stream = 'large'", 'done')
        is_('and reads no row twice', target.one(rows) <= 50002, True)
        is_('all is there', target.one('SELECT count(*)::int FROM bronze.large'), 50002)

        # Nothing of the table changes: what the slot keeps does not grow.
        source.query("CREATE TABLE public.other (t text); INSERT INTO public.other SELECT repeat('o', 1000) FROM generate_series(1, 20000)")
        end = source.one('SELECT pg_current_wal_lsn()')
        target.becomes('what others write is acknowledged', f"SELECT position_lsn::pg_lsn > '{end}'::pg_lsn - 2000000 FROM millrace.replication_status WHERE stream = 'large'", True, 60)
        wait_for('the slot', lambda: source.one(f"SELECT confirmed_flush_lsn > '{end}'::pg_lsn - 2000000 FROM pg_replication_slots WHERE slot_name = 'millrace_postgres_large'"), 60)
        is_('at the source', source.one("SELECT count(*)::int FROM pg_replication_slots WHERE slot_name = 'millrace_postgres_large'"), 1)
        stop('large')

        # A transaction that takes long: the source hears of us all the while, as wal_sender_timeout asks.
        source.query("CREATE TABLE public.slow (id int PRIMARY KEY, a int, b int); INSERT INTO public.slow SELECT i, i % 100, 0 FROM generate_series(1, 300000) i")
        declare('slow', 'slow', log='true')
        target.query('SELECT millrace.create_mart(%s, %s)', 'gold.slow', 'SELECT a, count(*) AS n, sum(b) AS b FROM bronze.slow GROUP BY a')
        start('slow')
        target.becomes('a table is copied', "SELECT string_agg(state, ',') FROM millrace.snapshot_status WHERE stream = 'slow'", 'done')
        source.query('UPDATE public.slow SET b = 1')
        heard = [time.time()]

        def taken():
            heard.append(max(heard[-1], source.one('SELECT max(extract(epoch FROM reply_time))::float FROM pg_stat_replication') or 0))
            return target.one('SELECT sum(b)::int FROM gold.slow') == 300000

        wait_for('the transaction', taken)
        heard.append(time.time())
        silence, whole = max(after - before for before, after in zip(heard, heard[1:])), heard[-1] - heard[0]
        # A machine that has much else to do is slow in every part of it.
        if not is_('a transaction that takes long is no silence', silence < max(4, whole / 2), True):
            print(f'# {silence:.1f} s of {whole:.1f} s')
        stop('slow')

        # A truncation that stops the stream, in the middle of a transaction and after another one.
        source.query('CREATE TABLE public.kept (id int PRIMARY KEY, v text)')
        declare('kept', 'kept', ', "truncate": "stop"')
        start('kept')
        target.becomes('a table is copied', "SELECT string_agg(state, ',') FROM millrace.snapshot_status WHERE stream = 'kept'", 'done')
        stop('kept')
        source.query("INSERT INTO public.kept VALUES (1, 'before')")
        source.query("BEGIN; INSERT INTO public.kept VALUES (2, 'with'); TRUNCATE public.kept; INSERT INTO public.kept VALUES (3, 'with'); COMMIT")
        start('kept')
        target.becomes('a truncation stops the stream', "SELECT state FROM millrace.stream_status WHERE stream = 'kept'", 'failed')
        target.says('which says why, and what to do', 'table public.kept of the source was truncated Declare the stream with truncate')
        is_('after what came before, and with nothing of its transaction', target.one("SELECT string_agg(id || v, ' ' ORDER BY id) FROM bronze.kept"), '1before')
        target.query("""SELECT millrace.create_stream('kept', server => 'source', options => '{"tables": ["public.kept"], "truncate": "apply"}', replace => true)""")
        target.becomes('told to, it goes on', "SELECT string_agg(id || v, ' ' ORDER BY id) FROM bronze.kept", '3with')
        # A table that is left out for a while.
        source.query("CREATE TABLE public.out (id int PRIMARY KEY, v text); INSERT INTO public.out SELECT i, 'a' FROM generate_series(1, 3) i")
        declare('out', 'out')
        replace = "SELECT millrace.create_stream('out', server => 'source', options => '{\"tables\": [%s]}', replace => true)"
        start('out')
        target.becomes('a table is copied', "SELECT string_agg(state, ',') FROM millrace.snapshot_status WHERE stream = 'out'", 'done')
        target.query(replace % '"public.kept"')
        is_('one that is left out says so', 'table public.out is not read any more' in ''.join(target.connection.notices), True)
        source.query("UPDATE public.out SET v = 'b' WHERE id = 1; DELETE FROM public.out WHERE id = 2")
        target.becomes('another one is read', "SELECT string_agg(source_table || state, ',') FROM millrace.snapshot_status WHERE stream = 'out'", 'public.keptdone')
        target.query(replace % '"public.kept", "public.out"')
        target.becomes('that comes back has what changed meanwhile', "SELECT string_agg(id || v, ' ' ORDER BY id) FROM bronze.out", '1b 3a')
        target.fails('the slot stays', "SELECT millrace.create_stream('out', server => 'source', options => '{\"tables\": [\"public.out\"], \"slot\": \"other\"}', replace => true)", 'cannot change its server, slot or publication')
        target.fails('the publication stays', "SELECT millrace.create_stream('out', server => 'source', options => '{\"tables\": [\"public.out\"], \"publication\": \"other\"}', replace => true)", 'cannot change its server, slot or publication')
        target.query(f"""CREATE SERVER own FOREIGN DATA WRAPPER millrace_postgres OPTIONS (host '{os.environ['PGHOST']}', port '{os.environ['PGPORT']}', dbname 'postgres');
            CREATE USER MAPPING FOR postgres SERVER own OPTIONS (username 'postgres')""")
        target.fails('the server stays', "SELECT millrace.create_stream('out', server => 'own', options => '{\"tables\": [\"public.out\"]}', replace => true)", 'cannot change its server, slot or publication')

        # What is written here is not read here, whatever is declared first.
        own = "SELECT millrace.create_stream('own', server => 'own', options => '{%s}')"
        target.fails('a stream of this database names its tables', own % '"publication": "all"', 'a stream of this very database must name its tables')
        target.fails('of which none is a staging table', own % '"tables": ["bronze.out"]', 'table bronze.out is written by millrace itself')
        target.fails('or one of millrace', own % '"tables": ["millrace.stream"]', 'table millrace.stream is written by millrace itself')
        target.query(own % '"tables": ["bronze.mine", "bronze.late_log", "gold.mine"]')
        written = 'which would be written by millrace itself'
        mapped = "SELECT millrace.create_staging('bronze.%s', stream => 'kept', source_table => 'public.kept', key => '{\"id\": [\"$.id\", \"int\"]}', columns => '{\"v\": \"$.v\"}', log => true)"
        target.fails('a staging table that is declared later is not read either', mapped % 'mine', written)
        target.fails('nor is a log', "SELECT millrace.create_staging('bronze.late', stream => 'kept', source_table => 'public.kept', log => true)", written)
        target.fails('nor a mart', "SELECT millrace.create_mart('gold.mine', 'SELECT v, count(*) AS n FROM bronze.out GROUP BY v')", written)
        target.fails('nor a hub', "SELECT millrace.create_hub('gold.mine', source => 'bronze.out', business_key => '{id}')", written)
        for stream in ('a-b', 'a_b'):
            target.query(f"SELECT millrace.create_stream('{stream}', server => 'source', options => '{{\"tables\": [\"public.out\"]}}')")
        is_('streams with names alike have slots of their own', target.one("SELECT count(DISTINCT slot)::int FROM millrace.replication_status WHERE stream IN ('a-b', 'a_b')"), 2)
        finish(shell)


if __name__ == '__main__':
    main()
