#!/usr/bin/python3
"""What may happen to a copy while it goes on: the table is to be copied again, is rewritten, hides rows, cannot be read to its end; rows are to be
read again all the time; what it removes cannot be removed; the source is
an earlier one again. In the end the mirror has what the source has, or the stream says why not."""
import os
import sys
import threading

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), '..', 'lib'))
from database import Database, finish, is_          # noqa: E402
from shell import Shell                             # noqa: E402

ROWS = 3000
DONE = "SELECT bool_and(state = 'done') FROM millrace.snapshot_status WHERE stream = '{}'"


def main():
    with Shell() as shell:
        # Two servers: an open transaction of the source's own would keep a copy waiting.
        shell.run('pg_start "$work/source" "wal_level = logical" "fsync = off" "shared_preload_libraries = \'\'" "max_replication_slots = 20" "max_wal_senders = 20"')
        host, port = shell.value('$PGHOST'), shell.value('$PGPORT')
        shop = f'host={host} port={port} user=postgres dbname=postgres'
        shell.run('pg_start "$work/target" "fsync = off" "millrace.databases = postgres" "millrace.worker_memory = 64MB" "max_worker_processes = 24"')
        shell.environ()
        dsn = f"host={os.environ['PGHOST']} port={os.environ['PGPORT']} user=postgres dbname=postgres"
        target = Database(dsn)
        source = Database(shop)
        source.query('CREATE ROLE reader LOGIN REPLICATION')
        target.query(f"""CREATE EXTENSION millrace; CREATE SCHEMA bronze;
            CREATE SERVER source FOREIGN DATA WRAPPER millrace_postgres OPTIONS (host '{host}', port '{port}', dbname 'postgres');
            CREATE SERVER narrow FOREIGN DATA WRAPPER millrace_postgres OPTIONS (host '{host}', port '{port}', dbname 'postgres');
            CREATE USER MAPPING FOR postgres SERVER source OPTIONS (username 'postgres');
            CREATE USER MAPPING FOR postgres SERVER narrow OPTIONS (username 'reader')""")

        def make(name, server='source', rows=ROWS, chunk=100, columns='filler text'):
            """A table at the source, of about 30 rows a page, and its mirror; not started."""
            source.query(f"""CREATE TABLE public.{name} (id int PRIMARY KEY, v int, {columns}); ALTER TABLE public.{name} ALTER COLUMN filler SET STORAGE EXTERNAL;
                INSERT INTO public.{name} SELECT i, 0, repeat('x', 200) FROM generate_series(1, {rows}) i; ANALYZE public.{name}""")
            target.query(f"""SELECT millrace.create_stream('{name}', server => '{server}', options => '{{"tables": ["public.{name}"], "snapshot_chunk": {chunk}}}');
                SELECT millrace.create_staging('bronze.{name}', stream => '{name}', source_table => 'public.{name}')""")
            return f"SELECT count(*) || ' ' || sum(v) || ' ' || sum(id::bigint * length(filler)) FROM %s.{name}"

        def start(name):
            target.query(f"SELECT millrace.start_stream('{name}')")
            target.becomes(f'{name} is copied', DONE.format(name), True, 120)

        def same(what, sql):
            target.becomes(what, sql % 'bronze', source.one(sql % 'public'))

        def go_on():
            """The log of a source where nothing happens does not pass the place that the last round counts as."""
            writer = Database(shop)
            while not over.wait(0.2):
                writer.query("SELECT pg_logical_emit_message(false, 'test', '')")

        over = threading.Event()
        threading.Thread(target=go_on, daemon=True).start()

        # A second call while rows of the first are processed.
        sql = make('twice')
        start('twice')
        objects = target.one("SELECT 'millrace_state.object_' || id FROM millrace.staging WHERE relation = 'bronze.twice'::regclass")
        other = Database(dsn)
        other.query(f'BEGIN; SELECT FROM {objects} WHERE k1 = {ROWS} FOR UPDATE')
        target.query(f"SELECT millrace.resnapshot('twice', 'public.twice', 'id > {ROWS - 10}')")
        target.becomes('a copy of some rows is being processed', "SELECT count(*)::int FROM pg_stat_activity WHERE backend_type = 'millrace stream worker' AND wait_event_type = 'Lock'", 1)
        target.query("SELECT millrace.resnapshot('twice', 'public.twice')")
        other.query('COMMIT')
        target.becomes('the table is copied whole', DONE.format('twice') + f" AND rows = {ROWS}", True)
        same('when that is asked for meanwhile', sql)

        # Rows that move to other pages between two rounds.
        sql = make('rewritten')
        source.query(f"DELETE FROM public.rewritten WHERE id <= {ROWS // 2}")
        other.query("BEGIN; LOCK TABLE bronze.rewritten IN ACCESS EXCLUSIVE MODE")
        target.query("SELECT millrace.start_stream('rewritten')")
        target.becomes('a copy has begun', "SELECT count(*)::int FROM pg_stat_activity WHERE backend_type = 'millrace stream worker' AND wait_event_type = 'Lock'", 1)
        source.query('VACUUM FULL public.rewritten')
        other.query('COMMIT')
        target.becomes('it ends', DONE.format('rewritten'), True)
        same('a table that is rewritten while it is copied', sql)

        # A policy that hides rows from a copy, which the stream would bring.
        sql = make('hidden', 'narrow')
        source.query('GRANT SELECT ON public.hidden TO reader; ALTER TABLE public.hidden ENABLE ROW LEVEL SECURITY; CREATE PUBLICATION millrace_postgres_hidden FOR TABLE public.hidden')
        target.query("SELECT millrace.start_stream('hidden')")
        target.says('rows that a policy hides are an error', 'row-level security')
        source.query('ALTER ROLE reader BYPASSRLS')
        target.becomes('until the role may see them', DONE.format('hidden'), True)
        same('and then all are there', sql)

        # A copy that fails in its middle: changes come nevertheless.
        sql = make('broken')
        start('broken')
        target.query("SELECT millrace.resnapshot('broken', 'public.broken', '1 / (v - 7) <> 5')")
        target.becomes('a filter that does no harm', DONE.format('broken'), True)
        source.query(f'UPDATE public.broken SET v = 7 WHERE id = {ROWS}')
        target.query("SELECT millrace.resnapshot('broken', 'public.broken', '1 / (v - 7) <> 5')")
        target.says('a copy that fails says why', 'division by zero')
        for i in range(5):
            source.query(f'UPDATE public.broken SET v = {i} WHERE id < 100')
            target.becomes('changes come while it does', 'SELECT min(v) FROM bronze.broken WHERE id < 100', i, 20)
        source.query(f'UPDATE public.broken SET v = 1 WHERE id = {ROWS}')
        target.becomes('it goes on when it can', DONE.format('broken'), True)
        same('with all rows', sql)

        # Rows that have to be read again keep no table from being copied, and each is read again, however many they are.
        sql = make('again', rows=30000, chunk=2000, columns='big text, filler text')
        source.query("ALTER TABLE public.again ALTER COLUMN big SET STORAGE EXTERNAL; UPDATE public.again SET big = repeat('b', 2100)")
        stop = threading.Event()

        def touch():
            writer = Database(shop)
            n = 0
            while not stop.is_set():
                n += 1
                writer.query(f'UPDATE public.again SET v = v + 1 WHERE id = {n % 30000 + 1}')

        target.query("SELECT millrace.create_staging('bronze.few', stream => 'again', source_table => 'public.again', filter => 'v % 2 = 0')")
        thread = threading.Thread(target=touch)
        thread.start()
        start('again')
        stop.set()
        thread.join()
        source.query('UPDATE public.again SET v = 2 * v + 1')
        target.becomes('all have changed', "SELECT count(*)::int FROM bronze.few", 0)
        source.query('UPDATE public.again SET v = v + 1')
        target.becomes('many rows are read again', 'SELECT (SELECT count(*) FROM bronze.few WHERE length(big) = 2100) || \' \' || (SELECT count(*) FROM millrace.snapshot_key)', '30000 0')
        same('rows that are read again', sql)

        # What is to be read again and is gone: rounds that bring nothing come between transactions that have piled up, and are no part of them.
        target.query("SELECT millrace.stop_stream('again')")
        target.becomes('the worker ends', "SELECT count(pid)::int FROM millrace.worker_status WHERE stream = 'again'", 0)
        source.query("""CREATE PROCEDURE public.touch() LANGUAGE plpgsql AS $$ BEGIN
            FOR i IN 1 .. 20000 LOOP UPDATE public.again SET v = v + 1 WHERE id = (i + 1) / 2; COMMIT; END LOOP; END $$""")
        source.query('CALL public.touch()')
        source.query('DELETE FROM public.again WHERE id <= 10000')
        target.query("SELECT millrace.start_stream('again')")
        target.becomes('rows that are gone are not read again for ever', 'SELECT (SELECT count(*) FROM bronze.few) || \' \' || (SELECT count(*) FROM millrace.snapshot_key)', '20000 0')
        same('and the others are there', sql)
        is_('by a worker that nothing has ended', target.one("SELECT coalesce(max(last_error), '') FROM millrace.worker_status WHERE stream = 'again'"), '')

        # What is gone at the source and cannot be removed here.
        sql = make('kept')
        start('kept')
        target.query("""CREATE FUNCTION public.keep() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'row % is needed', OLD.id USING ERRCODE = 'foreign_key_violation'; END $$;
            CREATE TRIGGER keep BEFORE DELETE ON bronze.kept FOR EACH ROW WHEN (OLD.id = 5) EXECUTE FUNCTION public.keep()""")
        source.query('TRUNCATE public.kept')
        source.query("INSERT INTO public.kept VALUES (-1, 9, 'after')")
        target.becomes('what cannot be removed keeps nothing else', 'SELECT max(v) FROM bronze.kept WHERE id = -1', 9, 60)
        is_('and is a dead letter', target.one("SELECT string_agg(message, ',') FROM millrace.dead_letter WHERE stream = 'kept'"), 'row 5 is needed')
        over.set()

        # A source that is restored from an earlier copy, the slot with it: what it commits from there on would be skipped.
        source.connection.close()
        shell.run('pg_stop "$work/source"; cp -a "$work/source/data" "$work/earlier"; pg_start "$work/source"')
        source.connect()
        source.query(f'UPDATE public.twice SET v = 1 WHERE id < {ROWS // 2}')
        source.query(f'UPDATE public.twice SET v = 2 WHERE id < {ROWS // 2}')
        target.becomes('changes come after a restart', 'SELECT min(v) FROM bronze.twice WHERE id < 100', 2)
        source.connection.close()
        shell.run('pg_stop "$work/source"; rm -r "$work/source/data"; mv "$work/earlier" "$work/source/data"; pg_start "$work/source"')
        target.says('a source that has gone back is noticed', 'the source has gone back to an earlier state')
        source.connect()
        target.query("SELECT millrace.reset_stream('twice')")
        target.becomes('its table is copied again when it is reset', 'SELECT max(v) FROM bronze.twice', 0)
        finish(shell)


if __name__ == '__main__':
    main()
