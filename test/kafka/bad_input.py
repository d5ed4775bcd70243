#!/usr/bin/python3
"""What stops a worker that reads from Kafka, what its owner then sees, and that it goes on by itself when that is mended.

Bad messages are in sql/bad_input.sql, endpoints that are wrong in source.sh.
"""
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), '..', 'lib'))
from database import Database, finish, is_          # noqa: E402
from shell import Shell                             # noqa: E402

STATE = "SELECT state FROM millrace.stream_status WHERE stream = 'feed'"
COUNT = 'SELECT count(*) FROM app.things'


def problem(database):
    """What the worker says it stopped on: SQLSTATE and message."""
    return database.query("SELECT sqlstate, last_error FROM millrace.stream_status WHERE stream = 'feed'")[0]


def things(shell, first, last, template='{"id": %d, "n": %d}'):
    """Produces things from first to last, n being id."""
    lines = ''.join(f'{i}\t' + template.replace('%d', str(i)) + '\n' for i in range(first, last + 1))
    shell.run(f"printf %s '{lines}' | kcat -P -b \"$KAFKA_BOOTSTRAP\" -t things -K '\\t'")


def main():
    with Shell() as shell:
        shell.run('kafka_start "$work/kafka"')
        shell.run('kafka_topic things 2')
        shell.run('pg_start "$work/pg" "millrace.databases = \'postgres\'"')
        shell.environ()
        owner = Database()
        owner.query('CREATE EXTENSION millrace')
        owner.query('CREATE SCHEMA app')
        owner.query(f"CREATE SERVER broker FOREIGN DATA WRAPPER millrace_kafka OPTIONS (bootstrap_servers '{os.environ['KAFKA_BOOTSTRAP']}')")
        things(shell, 1, 100)

        # The broker is down when all is declared and started.
        shell.run('kafka_stop')
        declare = """SELECT millrace.create_staging('app.things', stream => 'feed', replace => true, key => '{"id": ["$.id", "integer"]}',
            columns => '{"n": ["$.n", "integer"], "note": "$.note"}')"""
        owner.query("""SELECT millrace.create_stream('feed', server => 'broker', options => '{"topic": "things", "start": "earliest"}')""")
        owner.query(declare)
        owner.query("SELECT millrace.start_stream('feed')")
        owner.becomes('with the broker down the stream waits', STATE, 'waiting')
        is_('and says for what', 'broker' in problem(owner)[1] or 'reach' in problem(owner)[1], True)
        shell.run('kafka_run')
        owner.becomes('when it is there the stream goes on', COUNT, 100)
        owner.becomes('and runs', STATE, 'running')

        # A column goes, with CASCADE.
        owner.query('ALTER TABLE app.things DROP COLUMN note CASCADE')
        things(shell, 101, 110)
        owner.becomes('a column that was dropped stops the stream', STATE, 'failed')
        is_('with the reason', 'is gone' in problem(owner)[1], True)
        owner.query(declare)
        owner.becomes('declared again, it goes on', COUNT, 110)
        owner.becomes('and runs', STATE, 'running')

        # What the table refuses for everything: the messages' fault, as far as anybody can tell.
        owner.query('ALTER TABLE app.things ADD CHECK (id <> 115)')
        things(shell, 111, 120)
        owner.becomes('a constraint refuses one', COUNT, 119)
        owner.becomes('which is a dead letter', "SELECT count(*) FROM millrace.dead_letter WHERE sqlstate = '23514'", 1)

        # A mart that cannot be computed.
        owner.query("SELECT millrace.create_mart('app.ratio', 'SELECT 1000 / n AS ratio, count(*) AS n FROM app.things GROUP BY 1')")
        things(shell, 121, 130)
        owner.becomes('a mart over what is there', 'SELECT coalesce(sum(n), 0)::integer FROM app.ratio', 129)
        things(shell, 131, 131, '{"id": %d, "n": 0}')
        owner.becomes('a mart that divides by zero stops the stream', STATE, 'failed')
        is_('with the reason', problem(owner)[1], 'cannot maintain mart app.ratio: division by zero')
        is_('and nothing is lost or dead', (owner.one(COUNT), owner.one('SELECT count(*) FROM millrace.dead_letter')), (129, 1))
        owner.query("SELECT millrace.create_mart('app.ratio', 'SELECT 1000 / nullif(n, 0) AS ratio, count(*) AS n FROM app.things GROUP BY 1', replace => true)")
        owner.becomes('another mart frees it', COUNT, 130)
        owner.becomes('and is complete', 'SELECT sum(n)::integer FROM app.ratio', 130)
        is_('and right', owner.query("SELECT missing, unexpected FROM millrace.verify('app.ratio')"), [(0, 0)])

        # A stream that is told to stop at bad data.
        owner.query("""SELECT millrace.create_stream('feed', server => 'broker', options => '{"topic": "things", "start": "earliest"}', on_error => 'stop', replace => true)""")
        owner.becomes('it still runs', STATE, 'running')
        things(shell, 132, 132, '{"id": %d, "n": "x"}')
        owner.becomes('bad data stops it', STATE, 'failed')
        is_('with the message', problem(owner), ('22P02', 'stream feed stops at a message that cannot be taken: invalid input syntax for type integer: "x"'))
        is_('and the place', owner.one("SELECT detail ~ 'Topic \"things\", partition [01], position [0-9]+' FROM millrace.worker_status"), True)
        owner.query("""SELECT millrace.create_stream('feed', server => 'broker', options => '{"topic": "things", "start": "earliest"}', replace => true)""")
        owner.becomes('told otherwise it goes on', "SELECT count(*) FROM millrace.dead_letter WHERE sqlstate = '22P02'", 1)
        owner.becomes('and runs', STATE, 'running')

        # Somebody has a lock: the stream waits for it as everybody does.
        locker = Database()
        locker.connection.autocommit = False
        locker.query('LOCK TABLE app.things')
        things(shell, 133, 140)
        owner.becomes('a lock is waited for', "SELECT count(*)::integer FROM pg_locks WHERE NOT granted AND relation = 'app.things'::regclass", 1)
        locker.connection.rollback()
        owner.becomes('and taken', COUNT, 138)

        # The table goes, with what hangs on it.
        owner.query('SET client_min_messages = error')
        owner.query('DROP TABLE app.things CASCADE')
        things(shell, 141, 141)
        owner.becomes('a table that was dropped stops the stream', STATE, 'failed')
        is_('with the reason', 'was dropped' in problem(owner)[1], True)
        is_('and a way out', 'millrace.drop_table' in owner.one('SELECT hint FROM millrace.worker_status'), True)
        owner.query("SELECT millrace.drop_table((SELECT relation::oid::text FROM millrace.staging), cascade => true)")
        owner.becomes('which frees it', STATE, 'running')
        finish(shell)


if __name__ == '__main__':
    main()
