#!/usr/bin/python3
"""run_stream() over changes, from another server and from this very one, which also waits for the transaction that calls it; and what a
source keeps of log for a stream that nobody runs."""
import os
import sys
import threading
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), '..', 'lib'))
import psycopg2                                     # noqa: E402
from database import Database, finish, is_          # noqa: E402
from shell import Shell, wait_for                   # noqa: E402


def main():
    with Shell() as shell:
        shell.run('pg_start "$work/source" "wal_level = logical" "fsync = off" "shared_preload_libraries = \'\'"')
        ports = {'away': (shell.value('$work/source'), shell.value('$PGPORT'))}
        shell.run('pg_start "$work/target" "wal_level = logical" "fsync = off" "millrace.databases = postgres" "max_worker_processes = 16"')
        shell.environ()
        ports['here'] = (os.environ['PGHOST'], os.environ['PGPORT'])
        target = Database(f"host={ports['here'][0]} port={ports['here'][1]} user=postgres dbname=postgres")
        target.query('CREATE DATABASE shop')
        target.query('CREATE EXTENSION millrace; CREATE SCHEMA bronze')
        sources = {}
        for name, (host, port) in ports.items():
            sources[name] = Database(f"host={host} port={port} user=postgres dbname={'postgres' if name == 'away' else 'shop'}")
            sources[name].query(f"CREATE TABLE public.{name} (id int PRIMARY KEY, v int); INSERT INTO public.{name} SELECT i, 1 FROM generate_series(1, 1000) i")
            target.query(f"""CREATE SERVER {name} FOREIGN DATA WRAPPER millrace_postgres OPTIONS (host '{host}', port '{port}', dbname '{'postgres' if name == 'away' else 'shop'}');
                CREATE USER MAPPING FOR postgres SERVER {name} OPTIONS (username 'postgres');
                SELECT millrace.create_stream('{name}', server => '{name}', options => '{{"tables": ["public.{name}"], "snapshot_chunk": 100, "wal_budget": "4MB"}}');
                SELECT millrace.create_staging('bronze.{name}', stream => '{name}', source_table => 'public.{name}')""")

        def same(what, name):
            sql = f"SELECT string_agg(id || ' ' || v, ',' ORDER BY id) FROM %s.{name}"
            is_(what, target.one(sql % 'bronze'), sources[name].one(sql % 'public'))

        # Another server.
        is_('the first run copies all', target.one("SELECT messages::int FROM millrace.run_stream('away')"), 1000)
        same('as it is', 'away')
        sources['away'].query('UPDATE public.away SET v = 7 WHERE id < 5')
        target.query("BEGIN; SELECT millrace.run_stream('away'); SELECT millrace.run_stream('away'); ROLLBACK")
        is_('what was rolled back is taken again', target.one("SELECT messages::int FROM millrace.run_stream('away')"), 4)
        same('whole', 'away')
        sources['away'].query('UPDATE public.away SET v = 2 WHERE id < 10; DELETE FROM public.away WHERE id = 500')
        target.query("SELECT millrace.resnapshot('away', 'public.away')")
        is_('another one copies again, and takes what has changed', target.one("SELECT messages::int FROM millrace.run_stream('away')") >= 1009, True)
        same('to what is there', 'away')
        is_('with nothing left', target.one("SELECT state FROM millrace.snapshot_status WHERE stream = 'away'"), 'done')
        is_('which it says when it is asked', target.one("SELECT messages::int FROM millrace.run_stream('away')"), 0)
        target.query("SELECT millrace.pause_snapshot('away'); SELECT millrace.resnapshot('away', 'public.away')")
        is_('a copy that pauses is not waited for', target.one("SELECT messages::int FROM millrace.run_stream('away')"), 0)
        target.query("SELECT millrace.resume_snapshot('away'); SELECT millrace.run_stream('away')")
        writer = psycopg2.connect(sources['away'].dsn)
        writer.cursor().execute('CREATE TABLE public.other (id int)')
        timer = threading.Timer(2, writer.rollback)
        timer.start()
        target.query("SELECT millrace.resnapshot('away', 'public.away')")
        is_('a transaction that runs there is waited for', target.one("SELECT messages::int FROM millrace.run_stream('away')") >= 999, True)
        timer.join()

        # A rule that is not told when rows happened: those that are copied are no events, and what changes stays one when it is copied again.
        target.query("SELECT millrace.create_rule('often', kind => 'frequency', source => 'bronze.away', key => '{v}', count => 8, within => '1 hour')")
        sources['away'].query('UPDATE public.away SET v = 5 WHERE id BETWEEN 100 AND 106')
        target.query("SELECT millrace.run_stream('away')")
        target.query("SELECT millrace.resnapshot('away', 'public.away')")
        is_('all are copied again', target.one("SELECT messages::int FROM millrace.run_stream('away')") >= 999, True)
        alerts = "SELECT key, details ->> 'count', suppressed FROM millrace.alert WHERE rule = 'often'"
        is_('which is no alert', target.query(alerts), [])
        sources['away'].query('UPDATE public.away SET v = 5 WHERE id = 107')
        target.query("SELECT millrace.run_stream('away')")
        is_('the last of as many changes makes one', target.query(alerts), [('5', '8', None)])

        # This one.
        target.fails('this server cannot make a slot for a transaction of its own', "SELECT millrace.run_stream('here')", 'call start_stream(), which lets a worker make it')
        is_('nothing is left of the attempt', sources['here'].one('SELECT count(*)::int FROM pg_replication_slots'), 0)
        target.query("SELECT millrace.start_stream('here')")
        target.becomes('a worker makes it', "SELECT max(state) FROM millrace.snapshot_status WHERE stream = 'here'", 'done')
        target.query("SELECT millrace.stop_stream('here')")
        target.becomes('the stream is stopped', "SELECT state FROM millrace.stream_status WHERE stream = 'here'", 'stopped')
        sources['here'].query('UPDATE public.here SET v = 3 WHERE id < 20')
        target.query("SELECT millrace.resnapshot('here', 'public.here')")
        is_('then a transaction of its own copies', target.one("SELECT messages::int FROM millrace.run_stream('here')") >= 1019, True)
        same('to what is there', 'here')

        # The position moves while nothing comes; then a transaction of which nothing is wanted, before anybody has looked again.
        sources['away'].query('CREATE TABLE public.wanted (id int PRIMARY KEY); CREATE TABLE public.other (id int); CREATE PUBLICATION two FOR TABLE public.wanted, public.other')
        target.query("""SELECT millrace.create_stream('some', server => 'away', options => '{"tables": ["public.wanted"], "publication": "two"}');
            SELECT millrace.create_staging('bronze.wanted', stream => 'some', source_table => 'public.wanted'); SELECT millrace.start_stream('some')""")
        sources['away'].query('INSERT INTO public.wanted VALUES (1)')
        target.becomes('a stream of one table of two', 'SELECT count(*)::int FROM bronze.wanted', 1)
        position = "SELECT position FROM millrace.stream_partition WHERE stream = 'some'"
        for round in range(3):
            before = target.one(position)
            sources['away'].query("SELECT pg_logical_emit_message(false, 'x', repeat('x', 1000000)) FROM generate_series(1, 3)")
            wait_for('the position to move', lambda: target.one(position) > before)
            sources['away'].query('INSERT INTO public.other VALUES (1)')
            before = target.one(position)
            time.sleep(1.5)
            target.query("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'millrace: some #0'")
            sources['away'].query(f'INSERT INTO public.wanted VALUES ({round} + 2)')
            target.becomes('what comes then is taken', 'SELECT count(*)::int FROM bronze.wanted', round + 2)
        is_('and nothing was lost', target.query("SELECT kind, detail FROM millrace.incident WHERE stream = 'some'"), [])
        target.query("SELECT millrace.stop_stream('some')")

        # Nobody reads, and the log grows.
        over = "SELECT string_agg(stream, ',' ORDER BY stream) FROM millrace.replication_status WHERE over_budget"
        for source in sources.values():
            source.query("SELECT pg_logical_emit_message(false, 'x', repeat('x', 1000000)) FROM generate_series(1, 6)")
        target.becomes('what is kept for streams that are stopped is seen', over, 'away,here')
        is_('and said once', target.query("SELECT stream, kind, count(*)::int FROM millrace.incident GROUP BY 1, 2 ORDER BY 1"), [('away', 'wal_retained', 1), ('here', 'wal_retained', 1)])
        target.query("SELECT millrace.start_stream('away'); SELECT millrace.start_stream('here')")

        def few_kept():
            # A slot begins again at a note of which transactions run, as a checkpoint makes it, once a change after that has been taken.
            for name, source in sources.items():
                source.query(f'CHECKPOINT; UPDATE public.{name} SET v = v WHERE id = 1')
            return target.one(over) is None

        is_('it is over when they run', wait_for('little to be kept', few_kept), True)
        finish(shell)


if __name__ == '__main__':
    main()
