#!/usr/bin/python3
"""What goes wrong at a source, what one sees of it here, and that the stream goes on when it is mended: nothing is silent.

The source is a server of its own, which is stopped, killed and set up wrongly.
"""
import os
import signal
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), '..', 'lib'))
import psycopg2                                     # noqa: E402
import psycopg2.extras                              # noqa: E402
from database import Database, finish, is_          # noqa: E402
from shell import Shell, wait_for                   # noqa: E402

STATE = "SELECT state FROM millrace.stream_status WHERE stream = 'shop'"
SUM = 'SELECT coalesce(sum(v), 0)::int FROM bronze.t'
SLOTS = "SELECT string_agg(slot_name, ',') FROM pg_replication_slots"


def kill(shell, name):
    with open(os.path.join(shell.work, name, 'data', 'postmaster.pid')) as file:
        os.kill(int(file.readline()), signal.SIGKILL)


def start_again(shell, name):
    """The server can start when everybody who hangs on its shared memory has noticed."""
    shell.run(f'again() {{ (pg_start "$work/{name}"); }}; wait_for 180 again')


def change_while_made(source, target, table, change, columns, interrupted=False):
    """A table changes while its stream's slot is made, between two transactions that are waited for, and a third one has a row of it."""
    source.query(f'CREATE TABLE public.{table} (id int PRIMARY KEY, v text); ALTER TABLE public.{table} OWNER TO repl')
    target.query(f"""SELECT millrace.create_stream('{table}', server => 'source', options => '{{"tables": ["public.{table}"]}}');
        SELECT millrace.create_staging('bronze.{table}', stream => '{table}', source_table => 'public.{table}')""")
    first, second, writer = (psycopg2.connect(source.dsn) for _ in range(3))
    first.cursor().execute('INSERT INTO public.keyless VALUES (1)')
    target.query(f"SELECT millrace.start_stream('{table}')")
    target.says('a slot waits for a transaction', f'process {first.get_backend_pid()} ')
    second.cursor().execute('INSERT INTO public.keyless VALUES (2)')
    source.query(change)
    first.commit()
    target.says('and for another one', f'process {second.get_backend_pid()} ')
    row = f"INSERT INTO public.{table} SELECT %s, {', '.join(['%s::text'] * columns.count(','))}"
    writer.cursor().execute(row, [1] + ['x'] * columns.count(','))
    second.commit()
    target.says('then it is settled, and waits for those that came meanwhile', f'process {writer.get_backend_pid()} ', 30)
    if interrupted:
        target.query(f"SELECT pg_terminate_backend(pid) FROM millrace.worker_status WHERE stream = '{table}'")
        wait_for('another slot', lambda: source.one('SELECT count(*) FROM pg_replication_slots WHERE active') == 2, 30)
    writer.commit()
    target.becomes(f'the table is copied in spite of {change}', f"SELECT max(state) FROM millrace.snapshot_status WHERE stream = '{table}'", 'done', 60)
    source.query(row, 2, *['y'] * columns.count(','))
    rows = f"SELECT string_agg(concat_ws(' ', {columns}), ', ' ORDER BY id) FROM %s.{table}"
    target.becomes('and changes of it come as they are', rows % 'bronze', source.one(rows % 'public'), 60)
    is_('the stream runs', target.one(f"SELECT state FROM millrace.stream_status WHERE stream = '{table}'"), 'running')
    wait_for('one slot', lambda: source.one(SLOTS) == f'millrace_postgres_{table}', 30)
    target.query(f"SET client_min_messages = error; SELECT millrace.drop_stream('{table}', cascade => true)")


def main():
    with Shell() as shell:
        shell.run('pg_start "$work/source" "wal_level = replica" "fsync = off" "shared_preload_libraries = \'\'"')
        host, port, password = shell.value('$work/source'), shell.value('$PGPORT'), shell.value('$PGPASSWORD')
        source_dsn = f'host={host} port={port} user=postgres dbname=postgres'
        source = Database(source_dsn)
        source.query("CREATE TABLE public.t (id int PRIMARY KEY, v int); CREATE TABLE public.keyless (v int); INSERT INTO public.t SELECT i, 1 FROM generate_series(1, 10) i; CREATE ROLE repl LOGIN PASSWORD 'right'; GRANT SELECT ON public.t TO repl")
        shell.run('pg_start "$work/target" "fsync = off" "millrace.databases = \'postgres, restored\'" "max_worker_processes = 24"')
        shell.environ()
        target_dsn = f"host={os.environ['PGHOST']} port={os.environ['PGPORT']} user=postgres dbname="
        target = Database(target_dsn + 'postgres')
        target.query(f"""CREATE EXTENSION millrace; CREATE SCHEMA bronze; SET client_min_messages = error;
            CREATE SERVER source FOREIGN DATA WRAPPER millrace_postgres OPTIONS (host '127.0.0.1', port '{port}', dbname 'postgres');
            CREATE USER MAPPING FOR postgres SERVER source OPTIONS (username 'repl', password 'wrong')""")
        declare = "SELECT millrace.create_staging('bronze.t', stream => 'shop', source_table => 'public.t'"

        def change(v):
            source.query(f'UPDATE public.t SET v = {v}')

        # Down when all is declared.
        shell.run('pg_stop "$work/source"')
        target.query("""SELECT millrace.create_stream('shop', server => 'source', options => '{"tables": ["public.t"]}')""")
        is_('create_stream() warns of a source that is down', any('refused' in notice for notice in target.connection.notices) or target.one("SELECT bool_or(message ~ 'refused') FROM millrace.validate('shop') WHERE severity = 'error'"), True)
        target.fails('a mirror needs the source', declare + ')', 'cannot be read from server "source"')
        target.query(declare + """, key => '{"id": ["$.id", "int"]}', columns => '{"v": ["$.v", "int"]}')""")
        target.query("SELECT millrace.start_stream('shop')")
        target.becomes('with the source down the stream waits', STATE, 'waiting')
        target.says('and says for what', 'refused')

        # Set up wrongly, one thing after the other.
        start_again(shell, 'source')
        source.connect()
        target.says('a wrong password', 'password authentication failed')
        is_('which is in no message', target.one("SELECT count(*)::int FROM millrace.worker_status w WHERE w::text ~ 'wrong'"), 0)
        target.query("ALTER USER MAPPING FOR postgres SERVER source OPTIONS (SET password 'right')")
        target.says('a role that may not replicate', 'ALTER ROLE')
        source.query('ALTER ROLE repl REPLICATION')
        target.says('a source that does not log what is needed', 'wal_level of the source is replica, not logical')
        is_('validate() says so, too', target.one("SELECT count(*)::int FROM millrace.validate('shop') WHERE message ~ '^wal_level'"), 1)
        source.query("ALTER SYSTEM SET wal_level = logical")
        shell.run('pg_stop "$work/source"')
        start_again(shell, 'source')
        source.connect()
        target.says('a publication that the role may not make', 'run at the source, as the owner of the tables: CREATE PUBLICATION millrace_postgres_shop FOR TABLE public.t')
        statement = target.one("SELECT substring(last_error FROM 'CREATE PUBLICATION .*') FROM millrace.worker_status")
        # Somebody's transaction is waited for.
        other = psycopg2.connect(source_dsn)
        other.cursor().execute('INSERT INTO public.keyless VALUES (1)')
        source.query(statement)
        target.says('a transaction that the slot waits for', 'the source waits for the end of transactions that began before: process')
        other.commit()
        target.becomes('set up, it reads', SUM, 10)
        target.becomes('and runs', STATE, 'running')
        source.query('ALTER TABLE public.t OWNER TO repl')
        target.fails('a mirror needs a key', "SELECT millrace.create_staging('bronze.keyless', stream => 'shop', source_table => 'public.keyless')", 'has no primary key')
        target.fails('and a table', "SELECT millrace.create_staging('bronze.keyless', stream => 'shop', source_table => 'public.nothing')", 'does not exist on server')

        # Killed.
        kill(shell, 'source')
        target.becomes('a source that is killed is waited for', STATE, 'waiting')
        start_again(shell, 'source')
        source.connect()
        change(2)
        target.becomes('and read on', SUM, 20)
        kill(shell, 'target')
        change(3)
        start_again(shell, 'target')
        target.connect()
        target.becomes('a target that is killed reads on', SUM, 30)

        # The slot is somebody else's.
        def stop():
            target.query("SELECT millrace.stop_stream('shop')")
            target.becomes('stopped', STATE, 'stopped')
            wait_for('the slot', lambda: source.one('SELECT bool_and(NOT active) FROM pg_replication_slots'))

        def start():
            target.query("SELECT millrace.start_stream('shop')")

        stop()
        thief = psycopg2.connect(source_dsn, connection_factory=psycopg2.extras.LogicalReplicationConnection)
        thief.cursor().execute("START_REPLICATION SLOT millrace_postgres_shop LOGICAL 0/0 (proto_version '1', publication_names 'millrace_postgres_shop')")
        start()
        target.says('a slot that another one reads', 'is in use by process')
        thief.close()
        change(4)
        target.becomes('it is read when he has gone', SUM, 40)

        # Nothing happens at the source: its log does not grow from one copy to the next.
        for time in ('once', 'twice', 'three times'):
            target.query("SELECT millrace.resnapshot('shop', 'public.t')")
            target.becomes(f'copied again {time}', "SELECT state FROM millrace.snapshot_status WHERE source_table = 'public.t'", 'done', 60)
            stop()
            start()

        # It is gone, or another one, or has lost its log.
        stop()
        source.query("SELECT pg_drop_replication_slot('millrace_postgres_shop')")
        change(5)
        source.query('DELETE FROM public.t WHERE id = 10')
        start()
        target.says('a slot that is gone', 'does not exist any more; changes since')
        target.becomes('is an incident', "SELECT count(*)::int FROM millrace.incident WHERE kind = 'slot_lost'", 1)
        is_('and nothing is taken before somebody decides', target.one(SUM), 40)
        target.query("SELECT millrace.reset_stream('shop')")
        target.becomes('after reset_stream() all is copied again, and what was deleted goes', SUM, 45)
        target.becomes('and the stream runs', STATE, 'running')
        stop()
        source.query("SELECT pg_drop_replication_slot('millrace_postgres_shop')")
        change(6)
        source.query("SELECT pg_create_logical_replication_slot('millrace_postgres_shop', 'pgoutput')")
        start()
        target.says('a slot that was made again', 'was created again or moved by somebody else')
        target.becomes('is an incident', "SELECT count(*)::int FROM millrace.incident WHERE kind = 'slot_lost'", 2)
        target.query("""SELECT millrace.create_stream('shop', server => 'source', options => '{"tables": ["public.t"], "on_lost": "resnapshot"}', replace => true)""")
        target.becomes('told to, the stream copies again by itself', SUM, 54)
        stop()
        source.query("ALTER SYSTEM SET max_slot_wal_keep_size = '1MB'")
        source.query('SELECT pg_reload_conf()')
        change(7)
        for _ in range(4):
            source.query("SELECT pg_logical_emit_message(false, 'x', 'x')")
            source.query('SELECT pg_switch_wal()')
        source.query('CHECKPOINT')
        is_('the source has thrown the log away', source.one('SELECT wal_status FROM pg_replication_slots'), 'lost')
        start()
        target.becomes('a slot that has lost its log begins anew', SUM, 63)
        target.becomes('with an incident', "SELECT count(*)::int FROM millrace.incident WHERE kind = 'slot_lost' AND detail ~ 'max_slot_wal_keep_size.*copied again'", 1)
        source.query('ALTER SYSTEM RESET max_slot_wal_keep_size')
        source.query('SELECT pg_reload_conf()')

        # A copy of the database.
        shell.run('as_server "$(pg_bin pg_dump)" -Fc -h "$PGHOST" -p "$PGPORT" -U postgres postgres >"$work/dump"; chmod 644 "$work/dump"')
        target.query('CREATE DATABASE restored')
        shell.run('as_server "$(pg_bin pg_restore)" --exit-on-error -h "$PGHOST" -p "$PGPORT" -U postgres -d restored "$work/dump"')
        restored = Database(target_dsn + 'restored')
        is_('a restored stream is fenced', restored.one(STATE), 'fenced')
        restored.fails('and does not start', "SELECT millrace.start_stream('shop')", 'belongs to another instance')
        change(8)
        target.becomes('the original reads on', SUM, 72)
        read = source.one('SELECT pg_current_wal_lsn()')
        source.query('DELETE FROM public.keyless')
        wait_for('the slot', lambda: source.one('SELECT confirmed_flush_lsn >= %s FROM pg_replication_slots', read) or change(8))
        restored.query("BEGIN; SET client_min_messages = error; SELECT millrace.drop_stream('shop', cascade => true); ROLLBACK")
        restored.query("BEGIN; SET client_min_messages = error; DROP EXTENSION millrace CASCADE; ROLLBACK")
        restored.query('SELECT millrace.adopt()')
        stop()
        restored.query("SELECT millrace.create_stream('shop', server => 'source', options => '{\"tables\": [\"public.t\"]}', replace => true); SELECT millrace.start_stream('shop')")
        restored.says('adopted, it finds that the original has read on', 'was created again or moved')

        # The end: the original is gone, as far as its slot is concerned.
        restored.query("SET client_min_messages = error; SELECT millrace.stop_stream('shop')")
        target.fails('the extension cannot be dropped while a stream owns a slot', 'DROP EXTENSION millrace CASCADE', "Call millrace.drop_stream('shop', cascade => true) first")
        target.query("SET client_min_messages = error; SELECT millrace.drop_stream('shop', cascade => true)")
        is_('drop_stream() drops the slot', source.one(SLOTS), None)
        # Tables change while a slot is made.
        source.query('GRANT CREATE ON DATABASE postgres TO repl')
        change_while_made(source, target, 'emptied', 'TRUNCATE public.emptied', 'id, v')
        change_while_made(source, target, 'widened', 'ALTER TABLE public.widened ADD COLUMN more text', 'id, v, more')
        change_while_made(source, target, 'interrupted', 'ALTER TABLE public.interrupted ADD COLUMN more text', 'id, v, more', True)
        # A publication that is there, and empty.
        source.query('CREATE PUBLICATION empty')
        target.query("""SELECT millrace.create_stream('shop', server => 'source', options => '{"publication": "empty"}')""")
        start()
        target.says('a publication without a table', 'publication empty has no table')
        source.query('ALTER PUBLICATION empty ADD TABLE public.t')
        target.query(declare + ')')
        target.becomes('with one, its tables are copied', SUM, 72)
        # A stream that copies only.
        target.query("""SELECT millrace.create_stream('once', server => 'source', options => '{"tables": ["public.t"], "snapshot": "only", "publication": "empty"}')""")
        target.query("SELECT millrace.create_staging('bronze.once', stream => 'once', source_table => 'public.t')")
        once = "SELECT state || ' ' || coalesce(last_error, '') FROM millrace.stream_status WHERE stream = 'once'"
        target.query("SELECT millrace.start_stream('once')")
        target.becomes('one that copies only stops by itself', once, 'stopped ')
        is_('when all is copied', target.one('SELECT sum(v)::int FROM bronze.once'), 72)
        is_('and drops its slot', source.one(SLOTS), 'millrace_postgres_shop')
        source.query('DELETE FROM public.t WHERE id = 9')
        # No slot is free, then the one that it needs.
        unsettled = "$(grep -c 'millrace_postgres_once. is read from where it was made: %s' $work/target/server.log)"
        source.query("SELECT pg_create_physical_replication_slot('other_' || i) FROM generate_series(2, current_setting('max_replication_slots')::int) i")
        target.query("SELECT millrace.reset_stream('once'); SELECT millrace.start_stream('once')")
        target.says('with no slot free it says so', 'raise max_replication_slots at the source')
        target.query("SELECT millrace.stop_stream('once')")
        target.becomes('stopped', "SELECT state FROM millrace.stream_status WHERE stream = 'once'", 'stopped')
        source.query("SELECT pg_drop_replication_slot('other_2')")
        is_('it copies again when it is reset', target.one("SELECT messages FROM millrace.run_stream('once')") > 0, True)
        is_('without settling it', shell.value(unsettled % 'all replication slots are in use'), '1')
        is_('all of it', target.one('SELECT sum(v)::int FROM bronze.once'), 64)
        source.query("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name ~ '^other_'; REVOKE EXECUTE ON FUNCTION pg_replication_slot_advance FROM PUBLIC")
        is_('so it does when the role may not move a slot', target.one("SELECT millrace.reset_stream('once'); SELECT messages FROM millrace.run_stream('once')") > 0, True)
        is_('and drops its slot', source.one(SLOTS), 'millrace_postgres_shop')
        target.query("SELECT millrace.drop_stream('once', cascade => true)")

        shell.run('pg_stop "$work/source"')
        target.query("SET client_min_messages = warning")
        target.query("SELECT millrace.drop_stream('shop', cascade => true)")
        is_('of a source that is down drop_stream() says what is left there', 'SELECT pg_drop_replication_slot(\'millrace_postgres_shop\');' in ''.join(target.connection.notices), True)
        target.query('SET client_min_messages = error; DROP EXTENSION millrace CASCADE')
        is_('then the extension goes', target.one("SELECT count(*)::int FROM pg_extension WHERE extname = 'millrace'"), 0)
        finish(shell)


if __name__ == '__main__':
    main()
