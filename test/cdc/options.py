#!/usr/bin/python3
"""What the options of a stream of changes say: no copy, truncations that are ignored, a copy that pauses and goes on after a
restart; and the position, which moves while nothing of the stream's tables comes."""
import os
import sys

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
        target.query(f"""CREATE EXTENSION millrace; CREATE SCHEMA bronze;
            CREATE SERVER source FOREIGN DATA WRAPPER millrace_postgres OPTIONS (host '{os.environ['PGHOST']}', port '{os.environ['PGPORT']}', dbname 'shop');
            CREATE USER MAPPING FOR postgres SERVER source OPTIONS (username 'postgres')""")

        def declare(stream, table, options=''):
            target.query(f"""SELECT millrace.create_stream('{stream}', server => 'source', options => '{{"tables": ["public.{table}"]{options}}}');
                SELECT millrace.create_staging('bronze.{table}', stream => '{stream}', source_table => 'public.{table}')""")

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
        wait_for('the source to be told', lambda: source.one(f"SELECT confirmed_flush_lsn > '{end}'::pg_lsn - 2000000 FROM pg_replication_slots WHERE slot_name = 'millrace_postgres_large'"), 60)
        stop('large')
        finish(shell)


if __name__ == '__main__':
    main()
