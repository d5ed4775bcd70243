#!/usr/bin/python3
"""Kafka, Redis and NOTIFY: what is sent once, in which order, and what happens when they are away for a while."""
import json
import os
import select
import socket
import subprocess

from common import Database, Shell, attempts, finish, is_, setting, settled, start


def add(db, channel, key, message, **arguments):
    more = ''.join(f', {name} => %s' for name in arguments)
    db.query(f'SELECT add(%s, %s, %s{more})', channel, key, json.dumps(message), *arguments.values())


def notify(db):
    db.query("SELECT millrace.create_channel('told', options => '{\"channel\": \"news\"}'); LISTEN news")
    add(db, 'told', 'k', {'n': 1})
    add(db, 'told', 'k', {'text': 'x' * 9000})
    db.query("SELECT add('told', 'k', NULL)")
    settled(db, 'told')
    select.select([db.connection], [], [], 10)
    db.connection.poll()
    is_('NOTIFY tells in order', [json.loads(n.payload) for n in db.connection.notifies], [{'n': 1}, {'deleted': 'k'}])
    is_('what is too long for it is a dead letter', db.one("SELECT message FROM millrace.dead_letter WHERE channel = 'told'"),
        'NOTIFY takes less than 8000 bytes, and the message has 9012')
    db.query('UNLISTEN news')


CHANNEL_ID = "SELECT id FROM millrace.channel WHERE name = 'topic'"


class Redis:
    def __init__(self, shell):
        self.shell = shell

    def ask(self, command):
        return self.shell.value(f'$(redis {command})')


def redis(db, shell):
    cache = Redis(shell)
    db.query(f"CREATE SERVER cache FOREIGN DATA WRAPPER millrace_redis OPTIONS (host '127.0.0.1', port '{shell.value('$REDIS_PORT')}', timeout '500ms')")
    db.query("""SELECT millrace.create_channel('board', server => 'cache',
                options => '{"set": {"board:latest": 300, "board:<key>": 3600}, "publish": "board:updates"}')""")
    heard = subprocess.Popen(['redis-cli', '-p', shell.value('$REDIS_PORT'), 'SUBSCRIBE', 'board:updates'], stdout=subprocess.PIPE, text=True)
    for _ in range(3):
        heard.stdout.readline()
    add(db, 'board', 'a', {'n': 1})
    settled(db, 'board')
    is_('keys are set with their time to live', (cache.ask('get board:latest'), cache.ask('get board:a'), 290 < int(cache.ask('ttl board:latest')) <= 300), ('{"n": 1}', '{"n": 1}', True))
    is_('and published', [heard.stdout.readline().strip() for _ in range(3)][2], '{"n": 1}')
    db.query("SELECT add('board', 'a', NULL)")
    settled(db, 'board')
    is_('what was deleted is deleted there', cache.ask('exists board:a'), '0')
    is_('and said', [heard.stdout.readline().strip() for _ in range(3)][2], '{"deleted": "a"}')
    heard.kill()
    heard.wait()

    shell.run('redis_stop KILL')
    add(db, 'board', 'a', {'n': 2})
    db.becomes('Redis is down: the channel fails', "SELECT state FROM millrace.channel_status WHERE channel = 'board'", 'failing')
    for n in range(3, 50):
        add(db, 'board', 'a', {'n': n})
    add(db, 'board', 'b', {'n': 100})
    db.becomes('it is tried again', "SELECT failures >= 2 FROM millrace.channel_status WHERE channel = 'board'", True)
    shell.run('redis_run')
    settled(db, 'board')
    is_('it is back: the newest of each key arrives', (cache.ask('get board:a'), cache.ask('get board:b')), ('{"n": 49}', '{"n": 100}'))
    is_('older ones were overtaken', db.one("SELECT count(*) >= 46 FROM millrace.outbox WHERE channel = 'board' AND state = 'superseded'"), True)
    is_('nobody listens: that is success', attempts(db, 'board')[-1][1], 'sent')


def consume(shell, topic):
    """(key, value) of all committed messages; None: a tombstone."""
    text = shell.value(f'$(kcat -b "$KAFKA_BOOTSTRAP" -C -t {topic} -e -q -Z -X isolation.level=read_committed -f "%k=%s;" )')
    return [tuple(part.split('=', 1)) for part in text.split(';') if part]


def gaps(found, wanted):
    """What is wrong with a list of numbers, in a few words."""
    first = next((n for n, (a, b) in enumerate(zip(found, wanted)) if a != b), None)
    return 'none' if found == wanted else f'{len(found)} instead of {len(wanted)}, the first wrong one at {first}'


def kafka(db, shell):
    origin = db.one("SELECT left(md5(millrace_internal.fence()), 16)")
    shell.run('kafka_topic out 1 max.message.bytes=100000; kafka_topic many 3')
    db.query(f"CREATE SERVER broker FOREIGN DATA WRAPPER millrace_kafka OPTIONS (bootstrap_servers '{shell.value('$KAFKA_BOOTSTRAP')}')")
    db.query("SELECT millrace.create_channel('topic', server => 'broker', options => '{\"topic\": \"out\"}')")
    add(db, 'topic', 'k', {'n': 1})
    db.query("SELECT add('topic', 'k', NULL)")
    settled(db, 'topic')
    is_('messages are written with their keys, a deletion as a tombstone', consume(shell, 'out'), [('k', '{"n": 1}'), ('k', 'NULL')])
    db.query("SELECT add('topic', 'k' || n % 10, json_build_object('n', n)) FROM generate_series(1, 5000) n")
    settled(db, 'topic')
    found = [json.loads(value)['n'] for _, value in consume(shell, 'out')[2:]]
    is_('5,000 in their order, each once', gaps(found, list(range(1, 5001))), 'none')
    # One that does not compress, among others that are sent with it.
    db.query("SELECT add('topic', 'k', CASE n WHEN 5990 THEN json_build_object('n', n, 'text', %s) ELSE json_build_object('n', n) END) FROM generate_series(5980, 6000) n", os.urandom(200000).hex())
    settled(db, 'topic')
    is_('what is too large for the topic is a dead letter', db.one("SELECT count(*) FROM millrace.dead_letter WHERE channel = 'topic' AND message ~ 'too large|Message size'"), 1)
    is_('the others go on', gaps([json.loads(value)['n'] for _, value in consume(shell, 'out')[5002:]], [n for n in range(5980, 6001) if n != 5990]), 'none')

    shell.run('kafka_stop KILL')
    db.query("SELECT add('topic', 'k', json_build_object('n', n)) FROM generate_series(7001, 7100) n")
    db.becomes('Kafka is down: the channel fails', "SELECT state FROM millrace.channel_status WHERE channel = 'topic'", 'failing')
    db.query("SELECT add('told', 'k', '{\"while\": \"down\"}')")
    settled(db, 'told')
    is_('others are served', attempts(db, 'told')[-1][1], 'sent')
    shell.run('kafka_run')
    settled(db, 'topic', 240)
    found = [json.loads(value)['n'] for _, value in consume(shell, 'out')[5022:]]
    is_('it is back: all arrive in order, each once', gaps(found, list(range(7001, 7101))), 'none')

    # The worker ends at any moment: nothing is lost, nothing comes twice.
    for round in range(3):
        db.query("SELECT add('topic', 'k', json_build_object('n', n)) FROM generate_series(%s, %s) n", 8000 + round * 1000, 8999 + round * 1000)
        db.query("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'millrace: delivery #0'")
    settled(db, 'topic', 120)
    found = [json.loads(value)['n'] for _, value in consume(shell, 'out')[5122:]]
    is_('a worker that ends in the middle: each once, in order', gaps(found, list(range(8000, 11000))), 'none')

    # Numbers are taken in one order, and committed in the other.
    late = Database()
    late.query('BEGIN')
    add(late, 'topic', 'late', {'n': 11000})
    add(db, 'topic', 'early', {'n': 11001})
    settled(db, 'topic')
    late.query('COMMIT')
    settled(db, 'topic')
    is_('what was committed later with a lower number arrives', [json.loads(value)['n'] for _, value in consume(shell, 'out')[-2:]], [11001, 11000])

    # The broker forgets the number while messages are in doubt.
    shell.run('kafka_stop KILL')
    db.query("SELECT add('topic', 'k', json_build_object('n', n)) FROM generate_series(12000, 12004) n")
    db.becomes('in doubt', "SELECT state FROM millrace.channel_status WHERE channel = 'topic'", 'failing')
    setting(db, 'millrace.instance', 'away')
    group = f"millrace-{origin}-{db.one(CHANNEL_ID)}"
    shell.run(f'kafka_run; kafka_java org.apache.kafka.tools.consumer.group.ConsumerGroupCommand --bootstrap-server "$KAFKA_BOOTSTRAP" --delete --group {group} >&2')
    setting(db, 'millrace.instance', '')
    settled(db, 'topic', 120)
    found = [json.loads(value)['n'] for _, value in consume(shell, 'out')[-5:]]
    is_('forgotten, they are sent at least once', found, list(range(12000, 12005)))
    is_('and the log says so', shell.value('$(grep -c "WARNING: .*channel \\"topic\\" may send .* messages twice" "$work/pg/server.log" || true)') != '0', True)

    # The topic takes more now.  What is sent again is not what it was sent with, and not taken for that.
    shell.run('kafka_java kafka.admin.ConfigCommand --bootstrap-server "$KAFKA_BOOTSTRAP" --alter --entity-type topics --entity-name out --add-config max.message.bytes=1000000 >&2')
    is_('a dead letter is tried again', db.one("SELECT taken::int FROM millrace.retry($$ channel = 'topic' $$)"), 1)
    settled(db, 'topic')
    is_('and arrives', [json.loads(value)['n'] for _, value in consume(shell, 'out')[-1:]], [5990])

    # The database goes back, and its numbers with it: to a backup, say.
    db.query(f'UPDATE millrace.channel_state SET send_no = send_no - 3 WHERE channel_id = ({CHANNEL_ID})')
    db.query("SELECT add('topic', 'k', json_build_object('n', n)) FROM generate_series(13000, 13009) n")
    settled(db, 'topic')
    is_('what comes after that is sent all the same', [json.loads(value)['n'] for _, value in consume(shell, 'out')[-10:]], list(range(13000, 13010)))
    shell.run('kafka_stop KILL')
    db.query(f'UPDATE millrace.channel_state SET send_no = send_no - 3 WHERE channel_id = ({CHANNEL_ID})')
    db.query("SELECT add('topic', 'k', json_build_object('n', n)) FROM generate_series(14000, 14009) n")
    db.becomes('the broker is away then', "SELECT state FROM millrace.channel_status WHERE channel = 'topic'", 'failing')
    shell.run('kafka_run')
    settled(db, 'topic', 240)
    is_('so when the broker was away', [json.loads(value)['n'] for _, value in consume(shell, 'out')[-10:]], list(range(14000, 14010)))
    is_('and the log says why', shell.value('$(grep -c "WARNING: .*channel \\"topic\\" has sent messages that this database knows nothing of" "$work/pg/server.log" || true)') != '0', True)

    db.query("SELECT millrace.create_channel('missing', server => 'broker', options => '{\"topic\": \"missing\"}')")
    add(db, 'missing', 'k', {})
    db.becomes('a topic that is not there', "SELECT last_error FROM millrace.channel_status WHERE channel = 'missing'", 'the topic does not exist on the broker', 60)
    is_('validate sends to a topic', [row[0] for row in db.query("SELECT severity || ': ' || message FROM millrace.validate('topic', send => true) WHERE severity <> 'warning'")], ['info: a test message was taken'])
    add(db, 'topic', 'k', {'n': 20000})
    settled(db, 'topic')
    is_('and the channel goes on', json.loads(consume(shell, 'out')[-1][1]), {'n': 20000})


def silent(db):
    """Endpoints that never answer or refuse: what is taken with their messages, and is after them, is sent before they have failed."""
    hole, closed = socket.socket(), socket.socket()
    for one in (hole, closed):
        one.bind(('127.0.0.1', 0))
    hole.listen()
    names = []
    for what, port in (('silent', hole.getsockname()[1]), ('refused', closed.getsockname()[1])):
        db.query(f"CREATE SERVER redis_{what} FOREIGN DATA WRAPPER millrace_redis OPTIONS (host '127.0.0.1', port '{port}', timeout '3s')")
        db.query(f"CREATE SERVER kafka_{what} FOREIGN DATA WRAPPER millrace_kafka OPTIONS (bootstrap_servers '127.0.0.1:{port}')")
        for kind, options in (('redis', '{"publish": "x"}'), ('kafka', '{"topic": "x"}')):
            names.append(f'{kind}_{what}')
            db.query(f"SELECT millrace.create_channel('{kind}_{what}', server => '{kind}_{what}', options => '{options}')")
    db.query("SELECT millrace.create_channel('meanwhile')")
    db.query("SELECT add(name, 'k', '{}') FROM unnest(%s) name", names + ['meanwhile'])
    settled(db, 'meanwhile')
    for name in names:
        db.becomes(f'{name} fails', f"SELECT state FROM millrace.channel_status WHERE channel = '{name}'", 'failing')
    ends = "SELECT channel, min(at + make_interval(secs => seconds)) FROM millrace.delivery_attempt GROUP BY channel"
    is_('what never answers holds up no other channel', db.query(f"""SELECT e.channel FROM ({ends}) e (channel, at) JOIN ({ends}) m (channel, at) ON m.channel = 'meanwhile'
        WHERE e.channel IN ('redis_silent', 'kafka_silent', 'kafka_refused') AND e.at < m.at"""), [])
    db.query("SELECT millrace.drop_channel(name) FROM unnest(%s) name", names)
    hole.close()
    closed.close()


def main():
    with Shell() as shell:
        shell.run('redis_start "$work/redis"; kafka_start "$work/kafka"')
        db = start(shell)
        notify(db)
        silent(db)
        redis(db, shell)
        kafka(db, shell)
        finish(shell)


if __name__ == '__main__':
    main()
