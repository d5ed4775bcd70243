#!/usr/bin/python3
"""Sinks, from a stream that runs to Kafka, Redis and HTTP: the last message of a row is the row, also when the stream's worker is killed meanwhile."""
import collections
import json
import os
import signal

import psycopg2

from common import Database, Shell, Sink, finish, is_, start, wait_for

SINGLE = 1500       # rows that come once
HOT = 10            # rows that change again and again
VERSIONS = 120

SETUP = """
CREATE SCHEMA s;
SELECT millrace.create_stream('feed');
SELECT millrace.create_staging('s.items', stream => 'feed', key => '{"id": ["$.id", "integer"]}', version => '["$.v", "integer"]', deleted => $$ op = 'D' $$,
  columns => '{"op": "$.op", "kind": "$.kind"}');
SELECT millrace.create_mart('s.kinds', 'SELECT kind, count(*) AS n FROM s.items GROUP BY kind');
SELECT millrace.create_channel('topic', server => 'broker', options => '{"topic": "items"}');
SELECT millrace.create_channel('cache', server => 'cache', options => '{"set": {"item:<key>": 3600}}');
SELECT millrace.create_channel('hook', server => 'hook', options => '{"path": "/kinds"}');
SELECT millrace.create_sink('items', source => 's.items', channel => 'topic', message_key => 'id', message => $$ jsonb_build_object('id', id, 'v', _version, 'kind', kind) $$);
SELECT millrace.create_sink('newest', source => 's.items', channel => 'cache', message_key => 'id', message => $$ jsonb_build_object('v', _version) $$, at_most_every => '300 ms');
SELECT millrace.create_sink('kinds', source => 's.kinds', channel => 'hook', message => $$ jsonb_build_object('kind', kind, 'n', n) $$);
SELECT millrace.start_stream('feed');
"""


def ask(sql, *arguments):
    """An answer; again until the server gives one, which restarts after a kill."""
    def answer():
        try:
            database = Database()
            rows = database.query(sql, *arguments)
            database.connection.close()
            return (rows,)
        except psycopg2.OperationalError:
            return None
    return wait_for(sql, answer, 120)[0]


def consume(shell, topic):
    """(key, value) of all committed messages; None: a tombstone."""
    text = shell.value(f'$(kcat -b "$KAFKA_BOOTSTRAP" -C -t {topic} -e -q -Z -X isolation.level=read_committed -f "%k=%s;" )')
    pairs = [part.split('=', 1) for part in text.split(';') if part]
    return [(key, None if value == 'NULL' else json.loads(value)) for key, value in pairs]


def push(messages):
    ask("SELECT count(millrace.push('feed', m, key => m ->> 'id')) FROM json_array_elements(%s::json) m", json.dumps(messages))


def all_sent():
    return ask("SELECT (SELECT sum(waiting + sending) FROM millrace.channel_status) = 0 AND (SELECT sum(waiting) FROM millrace.sink_status) = 0 "
               "AND (SELECT bool_and(lag_messages = 0 AND state = 'running') FROM millrace.stream_status)") == [(True,)]


def main():
    with Shell() as shell:
        shell.run('redis_start "$work/redis"; kafka_start "$work/kafka"; kafka_topic items 1')
        db = start(shell, 'restart_after_crash = on')
        hook = Sink()
        db.query(f"CREATE SERVER cache FOREIGN DATA WRAPPER millrace_redis OPTIONS (host '127.0.0.1', port '{shell.value('$REDIS_PORT')}')")
        db.query(f"CREATE SERVER broker FOREIGN DATA WRAPPER millrace_kafka OPTIONS (bootstrap_servers '{shell.value('$KAFKA_BOOTSTRAP')}')")
        db.query(f"CREATE SERVER hook FOREIGN DATA WRAPPER millrace_http OPTIONS (url '{hook.url}')")
        db.query(SETUP)
        db.connection.close()

        # Rows that come once, and among them versions of those that change, while the worker is ended and killed.
        for v in range(1, VERSIONS + 1):
            single = range(HOT + 1 + (v - 1) * SINGLE // VERSIONS, HOT + 1 + v * SINGLE // VERSIONS)
            push([{'id': n, 'v': 1, 'kind': 'single'} for n in single] + [{'id': n, 'v': v, 'kind': 'hot'} for n in range(1, HOT + 1)])
            if v in (40, 80):
                pid = wait_for('the worker', lambda: ask("SELECT pid FROM pg_stat_activity WHERE application_name LIKE 'millrace: feed%%'"))[0][0]
                if v == 40:
                    ask('SELECT pg_terminate_backend(%s)', pid)
                else:
                    os.kill(pid, signal.SIGKILL)
        push([{'id': n, 'v': VERSIONS + 1, 'op': 'D'} for n in (1, 2, HOT + 1)])
        wait_for('everything to be sent', all_sent, 240)

        counts = collections.defaultdict(list)
        for key, value in consume(shell, 'items'):
            counts[int(key)].append(value)
        is_('each row that came once is sent once', [n for n in range(HOT + 2, HOT + SINGLE + 1) if counts[n] != [{'id': n, 'v': 1, 'kind': 'single'}]], [])
        is_('versions are in order, none comes twice', [n for n in range(1, HOT + 1)
                                                        if [m['v'] for m in counts[n] if m] != sorted({m['v'] for m in counts[n] if m})], [])
        is_('the last one is the row', [counts[n][-1] for n in range(3, HOT + 1)], [{'id': n, 'v': VERSIONS, 'kind': 'hot'} for n in range(3, HOT + 1)])
        is_('a deleted row is a tombstone', [counts[n][-1] for n in (1, 2, HOT + 1)], [None] * 3)

        keys = [f'item:{n}' for n in range(1, HOT + 3)]
        found = [shell.value(f'$(redis get {key})') for key in keys]
        is_('Redis has rows as they are', found, ['', ''] + [json.dumps({'v': VERSIONS})] * (HOT - 2) + ['', json.dumps({'v': 1})])
        is_('and was told less often than they changed', ask("SELECT count(*) < %s FROM millrace.outbox WHERE channel = 'cache' AND key = '5'", VERSIONS), [(True,)])

        last = {body['kind']: body['n'] for body in hook.bodies('/kinds')}
        is_('the webhook has the groups as they are', last, {'single': SINGLE - 1, 'hot': HOT - 2})
        push([{'id': n, 'v': VERSIONS + 1, 'op': 'D'} for n in range(3, HOT + 1)])
        wait_for('a group to go', lambda: {'deleted': 'hot'} in hook.bodies('/kinds'), 60)
        is_('and hears of one that is gone', hook.bodies('/kinds')[-1], {'deleted': 'hot'})
        hook.end()
        finish(shell)


if __name__ == '__main__':
    main()
