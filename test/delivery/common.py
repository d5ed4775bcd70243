"""What tests of channels share: a server, a sink, and messages put into the outbox as rules do it."""
import os
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), '..', 'lib'))
from database import Database, finish, is_          # noqa: E402, F401
from shell import TOP, Shell, wait_for                 # noqa: E402, F401
from sink import Sink                               # noqa: E402, F401

SETUP = """
CREATE EXTENSION millrace;
CREATE FUNCTION add(channel text, key text, message json, group_by text DEFAULT NULL, alert bigint DEFAULT NULL, not_after timestamptz DEFAULT NULL,
                    count integer DEFAULT 1) RETURNS void LANGUAGE sql AS $$
    INSERT INTO millrace.outbox_message (channel_id, key, group_by, alert_id, message, created_at, not_after)
    SELECT c.id, $2, $4, $5, $3, clock_timestamp(), $6 FROM millrace.channel c, generate_series(1, $7) WHERE c.name = $1;
    SELECT millrace_internal.wake_delivery() $$;
"""


def start(shell, *settings):
    lines = ' '.join(f'"{line}"' for line in ("millrace.databases = 'postgres'", "max_worker_processes = 16", "fsync = off",
                                              "track_commit_timestamp = on", "millrace.allowed_hosts = '127.0.0.1'", *settings))
    shell.run(f'pg_start "$work/pg" {lines}')
    shell.environ()
    database = Database()
    database.query(SETUP)
    return database


def setting(database, name, value):
    """Changes a setting, and waits until whoever is asked sees it."""
    database.query(f"ALTER SYSTEM SET {name} = '{value}'")
    database.query('SELECT pg_reload_conf()')
    wait_for(name, lambda: database.one(f"SELECT current_setting('{name}')") == value)


def settled(database, channel, seconds=60):
    """Waits until nothing of a channel waits or is being sent."""
    wait_for(f'{channel} to be settled', lambda: database.one(
        f"SELECT waiting + sending FROM millrace.channel_status WHERE channel = '{channel}'") == 0, seconds)


def attempts(database, channel):
    return database.query(f"SELECT attempt, outcome, status FROM millrace.delivery_attempt WHERE channel = '{channel}' ORDER BY delivery_id, part, attempt")


def pauses(db, channel):
    """Seconds from each attempt that is repeated to the time that the next one was set for, from its end and from when that was recorded: the one
    is not less than what it has to wait, the other not more, however slow the machine is.  No attempt comes earlier."""
    found = db.query("""SELECT extract(epoch FROM a.next_at - a.at)::float - a.seconds, extract(epoch FROM a.next_at - pg_xact_commit_timestamp(a.xmin))::float,
                               lag(a.next_at) OVER (PARTITION BY a.delivery_id ORDER BY a.no) <= a.at, a.outcome
                        FROM millrace.attempt a JOIN millrace.delivery d ON d.id = a.delivery_id JOIN millrace.channel c ON c.id = d.channel_id
                        WHERE c.name = %s ORDER BY a.delivery_id, a.no""", channel)
    is_(f'{channel}: no attempt comes too early', [row for row in found if row[2] is False], [])
    return [row[:2] for row in found if row[3] == 'retry']


def holds_for(seconds, condition):
    """Is the condition true all the time?"""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not condition():
            return False
        time.sleep(0.02)
    return True
