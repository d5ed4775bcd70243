#!/usr/bin/python3
"""Kills the delivery worker at each step of claim, send and record: everything arrives, at most once more for each kill, to Kafka once.

Needs a build with debug points (make DEBUG_POINTS=1 install), as scripts/test.sh makes it.
"""
import json
import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, '..', 'lib'))
sys.path.insert(0, os.path.join(HERE, '..', 'delivery'))
import psycopg2                                     # noqa: E402
from common import SETUP                            # noqa: E402
from database import finish, is_                    # noqa: E402
from shell import Shell, wait_for                   # noqa: E402
from sink import Sink                               # noqa: E402

POINTS = ('delivery_claimed', 'delivery_sent', 'delivery_before_record', 'delivery_recorded')
MESSAGES = 30


def query(sql, *arguments):
    """Rows; again until the server answers, which restarts after each kill."""
    def answer():
        try:
            connection = psycopg2.connect('', connect_timeout=5)
            connection.autocommit = True
            cursor = connection.cursor()
            cursor.execute(sql, arguments or None)
            rows = cursor.fetchall() if cursor.description else []
            connection.close()
            return (rows,)
        except psycopg2.DatabaseError:
            return None

    return wait_for(sql, answer)[0]


def starts():
    """When the server was started or restarted last."""
    return query("SELECT backend_start FROM pg_stat_activity WHERE backend_type = 'checkpointer'")


def kill_at(point, channel):
    """Puts messages into the outbox while whoever comes to the point is killed."""
    before = starts()
    query(f"ALTER SYSTEM SET millrace.debug_point = '{point}'")
    query('SELECT pg_reload_conf()')
    wait_for('the setting', lambda: query('SHOW millrace.debug_point') == [(point,)])
    # The server may go down after the commit and before its answer: then it is asked again.
    query("""SELECT count(add(%s, 'k' || n %% 5, json_build_object('point', %s, 'n', n))) FROM generate_series(1, %s) n
             WHERE NOT EXISTS (SELECT FROM millrace.outbox o WHERE o.channel = %s AND o.message ->> 'point' = %s)""", channel, point, MESSAGES, channel, point)
    wait_for(f'a kill at {point}', lambda: starts() != before, 60)
    query('ALTER SYSTEM RESET millrace.debug_point')
    query('SELECT pg_reload_conf()')
    wait_for('everything to be sent', lambda: query(f"SELECT waiting + sending FROM millrace.channel_status WHERE channel = '{channel}'") == [(0,)], 120)


def main():
    with Shell() as shell:
        shell.run('kafka_start "$work/kafka"; kafka_topic out 1')
        shell.run('pg_start "$work/pg" "millrace.databases = \'postgres\'" "restart_after_crash = on" "millrace.allowed_hosts = \'127.0.0.1\'"')
        shell.environ()
        sink = Sink()
        query(SETUP)
        query(f"CREATE SERVER hook FOREIGN DATA WRAPPER millrace_http OPTIONS (url '{sink.url}')")
        query(f"CREATE SERVER broker FOREIGN DATA WRAPPER millrace_kafka OPTIONS (bootstrap_servers '{os.environ['KAFKA_BOOTSTRAP']}')")
        query("SELECT millrace.create_channel('hook', server => 'hook', options => '{\"path\": \"/k\", \"connections\": 1}')")
        query("SELECT millrace.create_channel('hooks', server => 'hook', options => '{\"path\": \"/m\"}')")
        query("SELECT millrace.create_channel('topic', server => 'broker', options => '{\"topic\": \"out\"}')")
        def kills():
            return int(shell.value('$(grep -c "was terminated by signal 9" "$work/pg/server.log" || true)'))

        for point in POINTS:
            before = kills()
            kill_at(point, 'hook')
            got = [(json.loads(request.body)['n'], request.key) for request in sink.got('/k') if json.loads(request.body)['point'] == point]
            is_(f'{point}: all arrive', sorted({n for n, _ in got}), list(range(1, MESSAGES + 1)))
            is_(f'{point}: with one key each', len(set(got)), MESSAGES)
            # Whoever is started before the setting is taken back is killed as well.
            is_(f'{point}: at most one more for each kill', len(got) - MESSAGES <= kills() - before, True)
            firsts = [n for place, (n, key) in enumerate(got) if key not in [k for _, k in got[:place]]]
            is_(f'{point}: those of one key in order', all([n for n in firsts if n % 5 == k] == sorted(n for n in firsts if n % 5 == k) for k in range(5)), True)
        # Over many connections answers are recorded together: a kill repeats several messages, each of them once.
        for point in ('delivery_sent', 'delivery_before_record'):
            before = kills()
            kill_at(point, 'hooks')
            got = [(json.loads(request.body)['n'], request.key) for request in sink.got('/m') if json.loads(request.body)['point'] == point]
            most = max(got.count(one) for one in got)
            is_(f'{point}, many connections: all arrive with one key each', (sorted({n for n, _ in got}), len(set(got))), (list(range(1, MESSAGES + 1)), MESSAGES))
            is_(f'{point}, many connections: each at most once more for each kill', most <= 1 + kills() - before, True)
        for point in POINTS + ('delivery_written',):
            kill_at(point, 'topic')
            text = shell.value('$(kcat -b "$KAFKA_BOOTSTRAP" -C -t out -e -q -X isolation.level=read_committed)')
            found = [message['n'] for message in map(json.loads, text.splitlines()) if message['point'] == point]
            is_(f'{point}: Kafka has each once, in order', found, list(range(1, MESSAGES + 1)))
        sink.end()
        finish(shell)


if __name__ == '__main__':
    main()
