#!/usr/bin/python3
"""Kills everything while a stream runs: what is in the tables at the end equals a recompute from the messages.

Messages of the restaurant's orders, with copies, broken ones and tombstones that overtake, in any order over 8
partitions, through a real broker and two workers.  Meanwhile workers and the postmaster are killed by -9 and the
broker is restarted.  At the end staging, vault and marts are compared with what Python makes of the messages, and
each broken one has to be in the dead letters exactly once.

    kill.py             20,000 messages, a few kills
    kill.py --long      300,000 messages, 20 workers, 5 postmasters, 3 brokers
    --seed, --messages, --workers-killed, --servers-killed, --brokers-killed
"""
import argparse
import hashlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), '..', 'lib'))
import psycopg2                                     # noqa: E402
from shell import TOP, Shell, wait_for              # noqa: E402

PARTITIONS = 8
TOPIC = 'orders'


def say(text):
    print(f'# {text}', flush=True)


# ---- what Python makes of the messages ---------------------------------------------------------------------------

class Expected:
    """Reads the lines that were produced, in the order in which each partition has them."""

    def __init__(self, lines):
        self.counts = Counter()                     # messages by partition
        self.letters = Counter()                    # broken ones by (partition, offset)
        self.newest = {}                            # order: (time, deleted, order, payload, text)
        self.users, self.restaurants, self.orders, self.products, self.categories = (set() for _ in range(5))
        self.order_user, self.order_product, self.product_restaurant, self.product_category = (set() for _ in range(4))
        self.user_names, self.restaurant_names, self.product_names, self.order_cost, self.order_status = ({} for _ in range(5))
        for line in lines:
            self.read(line)

    def read(self, line):
        partition, key, stamp, value = line.rstrip(b'\n').split(b'\t', 3)
        partition, order, stamp = int(partition), int(key), int(stamp)
        offset = self.counts[partition]
        self.counts[partition] += 1
        message = None
        if value:
            try:
                text = value.decode()
                message = json.loads(text)
            except ValueError:
                self.letters[partition, offset] += 1
                return
        if message is None:
            self.remember(order, (stamp, True, None, None))
            for satellite in (self.order_cost, self.order_status):
                assert_content(satellite, order, stamp, None)
            return
        payload = message['payload']
        self.remember(order, (stamp, False, payload, text))
        user, restaurant = payload['user'], payload['restaurant']
        self.orders.add(order)
        self.users.add(user['id'])
        self.restaurants.add(restaurant['id'])
        self.order_user.add((order, user['id']))
        assert_content(self.user_names, user['id'], stamp, (user['name'], user['login']))
        assert_content(self.restaurant_names, restaurant['id'], stamp, (restaurant['name'],))
        assert_content(self.order_cost, order, stamp, (payload['cost'], payload['payment']))
        assert_content(self.order_status, order, stamp, (payload['status'],))
        for item in payload['products']:
            self.products.add(item['id'])
            self.categories.add(item['category'])
            self.order_product.add((order, item['id']))
            self.product_restaurant.add((item['id'], restaurant['id']))
            self.product_category.add((item['id'], item['category']))
            assert_content(self.product_names, item['id'], stamp, (item['name'],))

    def remember(self, order, version):
        if order not in self.newest or version[:2] > self.newest[order][:2]:
            self.newest[order] = version

    def live(self):
        for order, (stamp, deleted, payload, text) in self.newest.items():
            if not deleted:
                yield order, stamp, payload, text

    def order_events(self):
        for order, stamp, p, text in self.live():
            yield (order, 'order', p['restaurant']['id'], p['restaurant']['name'], p['user']['id'], p['user']['name'], p['user']['login'],
                   p['status'], f"{p['cost']}.00", f"{p['payment']}.00", stamp, p['date'] + '+00',
                   hashlib.md5(text.encode()).hexdigest())

    def order_items(self):
        for order, stamp, p, text in self.live():
            for number, item in enumerate(p['products'], 1):
                yield (order, number, 'order', p['restaurant']['id'], p['user']['id'], p['status'], item['id'], item['name'],
                       item['category'], f"{item['price']}.00", item['quantity'], stamp, p['date'] + '+00')

    def product_counters(self):
        counts = defaultdict(set)
        for order, stamp, p, text in self.live():
            for item in p['products'] if p['status'] == 'CLOSED' else ():
                counts[p['user']['id'], item['id'], self.product_names[item['id']][1][0]].add(order)
        return (group + (len(orders),) for group, orders in counts.items())

    def category_counters(self):
        counts = defaultdict(set)
        for order, stamp, p, text in self.live():
            for item in p['products'] if p['status'] == 'CLOSED' else ():
                counts[p['user']['id'], item['category']].add(order)
        return ((user, hash_key(category), category, len(orders)) for (user, category), orders in counts.items())

    def checks(self):
        """What, the query, the rows that it has to give."""
        date = "to_char({} AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.US') || '+00'".format
        stamp = '(extract(epoch FROM _version) * 1000)::bigint'
        yield 'stg.order_events', f"""SELECT order_id, object_type, restaurant_id, restaurant_name, user_id, username, userlogin, status,
            cost::text, payment::text, {stamp}, {date('_event_time')}, md5(payload::text) FROM stg.order_events""", self.order_events()
        yield 'stg.order_items', f"""SELECT order_id, _element, object_type, restaurant_id, user_id, status, product_id, product_name,
            category_name, price::text, quantity, {stamp}, {date('_event_time')} FROM stg.order_items""", self.order_items()
        yield 'cdm.user_product_counters', 'SELECT user_id, product_id, product_name, order_cnt FROM cdm.user_product_counters', \
            self.product_counters()
        yield 'cdm.user_category_counters', """SELECT user_id, category_id::text, category_name, order_cnt
            FROM cdm.user_category_counters""", self.category_counters()
        for hub, column, keys in (('h_user', 'user_id', self.users), ('h_restaurant', 'restaurant_id', self.restaurants),
                                  ('h_order', 'order_id', self.orders), ('h_product', 'product_id', self.products),
                                  ('h_category', 'category_name', self.categories)):
            yield f'dds.{hub}', f'SELECT {column} FROM dds.{hub} WHERE record_source = \'orders\'', ((key,) for key in keys)
        for link, one, two, pairs in (('l_order_user', 'h_order', 'h_user', self.order_user),
                                      ('l_order_product', 'h_order', 'h_product', self.order_product),
                                      ('l_product_restaurant', 'h_product', 'h_restaurant', self.product_restaurant),
                                      ('l_product_category', 'h_product', 'h_category', self.product_category)):
            columns = {'h_order': 'order_id', 'h_user': 'user_id', 'h_product': 'product_id', 'h_restaurant': 'restaurant_id',
                       'h_category': 'category_name'}
            yield f'dds.{link}', f"""SELECT a.{columns[one]}, b.{columns[two]} FROM dds.{link} l JOIN dds.{one} a USING ({one}_hk)
                JOIN dds.{two} b USING ({two}_hk) WHERE l.record_source = 'orders'""", pairs
        for satellite, column, attributes, content in (
                ('s_user_names', 'user_id', 'username, userlogin', self.user_names),
                ('s_restaurant_names', 'restaurant_id', 'restaurant_name', self.restaurant_names),
                ('s_product_names', 'product_id', 'product_name', self.product_names),
                ('s_order_cost', 'order_id', 'cost::integer, payment::integer', self.order_cost),
                ('s_order_status', 'order_id', 'status', self.order_status)):
            yield f'dds.{satellite}_current', f'SELECT {column}, {attributes} FROM dds.{satellite}_current', \
                ((key,) + values for key, (_, values) in content.items() if values is not None)
        yield 'dead letters', 'SELECT partition, position, count(*) FROM millrace.dead_letter GROUP BY 1, 2', \
            ((partition, offset, n) for (partition, offset), n in self.letters.items())


def assert_content(satellite, parent, stamp, values):
    """The last assertion counts; the generator makes no two different ones of one parent at the same time."""
    if parent not in satellite or stamp >= satellite[parent][0]:
        satellite[parent] = stamp, values


def hash_key(*values):
    encoded = b''.join(len(value.encode()).to_bytes(4, 'big') + value.encode() for value in values)
    digest = bytearray(hashlib.sha256(encoded).digest()[:16])
    digest[6] = digest[6] & 0x0f | 0x80             # version 8
    digest[8] = digest[8] & 0x3f | 0x80
    text = digest.hex()
    return '-'.join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))


# ---- what is killed ----------------------------------------------------------------------------------------------

class Run:
    def __init__(self, shell, options):
        self.shell = shell
        self.options = options
        self.rng = random.Random(options.seed)
        self.connection = None
        self.produced = Counter()

    def query(self, sql, *arguments):
        """Rows, or None while the server is away."""
        try:
            if self.connection is None:
                self.connection = psycopg2.connect('', connect_timeout=5)
                self.connection.autocommit = True
            with self.connection.cursor() as cursor:
                cursor.execute(sql, arguments)
                return cursor.fetchall()
        except psycopg2.Error as error:
            if error.pgcode and error.pgcode[:3] not in ('57P', '080'):
                raise
            self.connection = None
            return None

    def positions(self):
        rows = self.query("SELECT partition, position FROM millrace.stream_position WHERE topic <> ''")
        return None if rows is None else dict(rows)

    def consumed(self):
        positions = self.positions()
        return None if positions is None else sum(positions.values())

    def wait_consumed(self, what, count, seconds=180):
        """Waits for a number of messages; a worker that has failed for good ends the test at once."""
        progress = [time.monotonic(), None]

        def there():
            now = self.consumed()
            if now is not None and now != progress[1]:
                progress[:] = [time.monotonic(), now]
            if time.monotonic() - progress[0] > seconds / 2:
                raise TimeoutError(f'{what}: stands still at {progress[1]} of {count}')
            return now is not None and now >= count

        try:
            wait_for(what, there, seconds)
        except TimeoutError:
            for row in self.query('SELECT worker, state, failures, last_error, detail, context FROM millrace.worker_status') or ():
                say(row)
            for row in self.query("SELECT pid, state, wait_event, left(query, 200), backend_type FROM pg_stat_activity WHERE datname IS NOT NULL") or ():
                say(row)
            raise

    def produce(self, lines):
        subprocess.run([os.path.join(TOP, 'bench', 'produce'), os.environ['KAFKA_BOOTSTRAP'], TOPIC], input=b''.join(lines), check=True,
                       stderr=subprocess.DEVNULL)
        self.produced.update(int(line[:line.index(b'\t')]) for line in lines)

    def kill_worker(self):
        rows = self.query("SELECT pid FROM millrace.worker_status WHERE stream = 'orders' AND state = 'running' AND pid IS NOT NULL")
        alive = self.query("SELECT pid FROM pg_stat_activity WHERE backend_type LIKE 'millrace%%'")
        pids = sorted({pid for pid, in rows or ()} & {pid for pid, in alive or ()})
        if not pids:
            return False
        return kill(self.rng.choice(pids))

    def kill_server(self):
        pid = int(self.shell.value('$(head -n 1 "$work/pg/data/postmaster.pid")'))
        kill(pid)
        # The server can start when everybody who hangs on the shared memory has noticed.
        start = time.monotonic()
        self.shell.run('start_again() { (pg_start "$work/pg"); }; wait_for 180 start_again')
        say(f'the server took {time.monotonic() - start:.1f} s to come back')
        return True

    def kill_broker(self):
        start = time.monotonic()
        self.shell.run(f'kafka_restart {self.rng.choice(["KILL", "TERM"])}')
        say(f'the broker took {time.monotonic() - start:.1f} s to come back')
        return True

    def go(self, lines):
        """Produces chunk after chunk, and kills something in the middle of each."""
        options = self.options
        events = ['worker'] * options.workers_killed + ['server'] * options.servers_killed + ['broker'] * options.brokers_killed
        self.rng.shuffle(events)
        size = len(lines) // (len(events) + 1) + 1
        start = time.monotonic()
        for number, event in enumerate(events + [None]):
            before = sum(self.produced.values())
            self.produce(lines[number * size:(number + 1) * size])
            if event is None:
                break
            at = before + int(size * self.rng.choice([0, 0.05, 0.3, 0.6]))
            self.wait_consumed('the stream goes on', at)
            wait_for(f'something to kill: {event}', getattr(self, f'kill_{event}'))
            say(f'{time.monotonic() - start:6.1f} s: {event} killed at {at} or more')
        self.wait_consumed('the end', len(lines), 300)
        say(f'{time.monotonic() - start:6.1f} s: all is consumed')


def kill(pid):
    try:
        os.kill(pid, signal.SIGKILL)
        return True
    except ProcessLookupError:
        return False


def compare(run, expected):
    good = True
    for what, query, rows in expected.checks():
        found = Counter(run.query(query))
        wanted = Counter(rows)
        missing, unexpected = wanted - found, found - wanted
        if missing or unexpected:
            good = False
            print(f'not ok - {what}: {sum(missing.values())} missing, {sum(unexpected.values())} unexpected')
            for title, difference in (('missing', missing), ('unexpected', unexpected)):
                for row in sorted(map(str, difference))[:3]:
                    say(f'{title} {row}')
        else:
            print(f'ok - {what}: {sum(wanted.values())} rows')
    for mart in ('cdm.user_product_counters', 'cdm.user_category_counters'):
        rows = run.query('SELECT missing, unexpected FROM millrace.verify(%s)', mart)
        good = good and rows == [(0, 0)]
        print(f"{'ok' if rows == [(0, 0)] else 'not ok'} - verify({mart}) = {rows}")
    # The bulk writer puts entries into leaves itself: every row has its entry, every page its order.
    run.query('CREATE EXTENSION IF NOT EXISTS amcheck; SELECT 1')
    indexes = run.query("""SELECT count(bt_index_parent_check(c.oid, heapallindexed => true, rootdescend => true))
        FROM pg_class c JOIN pg_index i ON i.indexrelid = c.oid WHERE c.relam = 403 AND c.relnamespace::regnamespace::text IN ('stg', 'dds', 'cdm', 'millrace_state')""")
    good = good and indexes[0][0] > 10
    print(f"{'ok' if indexes[0][0] > 10 else 'not ok'} - {indexes[0][0]} indexes are sound")
    positions = run.positions()
    good = good and positions == dict(expected.counts)
    print(f"{'ok' if positions == dict(expected.counts) else 'not ok'} - positions are at the ends of the partitions")
    return good


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('--seed', type=int, default=int(time.time()))
    parser.add_argument('--long', action='store_true')
    parser.add_argument('--messages', type=int)
    parser.add_argument('--workers-killed', type=int)
    parser.add_argument('--servers-killed', type=int)
    parser.add_argument('--brokers-killed', type=int)
    options = parser.parse_args()
    for name, long, short in (('messages', 300_000, 20_000), ('workers_killed', 20, 4), ('servers_killed', 5, 1), ('brokers_killed', 3, 1)):
        if getattr(options, name) is None:
            setattr(options, name, long if options.long else short)
    print(f'seed {options.seed}', flush=True)

    # Three messages an order on average, and 5 % copies.
    generator = subprocess.run(
        [sys.executable, os.path.join(TOP, 'bench', 'gen_orders.py'), str(options.messages * 10 // 32), '--lifecycle', '--duplicates', '5',
         '--broken', '0.1', '--tombstones', '3', '--shuffle', '--scatter', '--partitions', str(PARTITIONS), '--timestamps',
         '--seed', str(options.seed)], stdout=subprocess.PIPE, check=True)
    lines = generator.stdout.splitlines(keepends=True)
    expected = Expected(lines)
    say(f'{len(lines)} messages, {sum(expected.letters.values())} of them broken, '
        f'{sum(version[1] for version in expected.newest.values())} orders deleted')

    with Shell() as shell:
        shell.run('make -s -C "$1/bench" produce')
        shell.run('kafka_start "$work/kafka"')
        shell.run(f'kafka_topic {TOPIC} {PARTITIONS}')
        shell.run('pg_start "$work/pg" "millrace.databases = \'postgres\'" "log_error_verbosity = verbose"')
        shell.environ()
        run = Run(shell, options)
        shell.run(f'psql -qAtX -o /dev/null -v broker="$KAFKA_BOOTSTRAP" -v topic={TOPIC} -f "$1/examples/restaurant/plain.sql"')
        run.query("SELECT millrace.create_stream('orders', server => 'broker', workers => 2, "
                  "options => %s, replace => true)", json.dumps({'topic': TOPIC, 'start': 'earliest'}))
        run.query("SELECT millrace.start_stream('orders')")
        try:
            run.go(lines)
            good = compare(run, expected)
        except Exception as error:
            print(f'not ok - {error}')
            good = False
        if not good:
            shell.run('grep -vE "LOG: +00000|LOCATION" "$work/pg/server.log" | tail -n 40')
    print('ok - equal to the recompute' if good else f'not ok - repeat with --seed {options.seed}')
    sys.exit(not good)


if __name__ == '__main__':
    main()
