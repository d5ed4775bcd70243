#!/usr/bin/python3
"""Staging tables and marts under random histories: whatever the order of delivery, the borders of batches and the
interleaving of workers, they hold what Python makes of the messages.

A history has objects with versions (none and ties among them), copies, deletes, tombstones, rows that a filter or an
expectation leaves out, empty arrays, messages of no interest and broken ones.  It is delivered in several shuffles: in
batches of any size, by two sessions whose transactions are open at the same time (some are rolled back), and to a
staging table without a declared version, where the order of arrival counts.

Connects as libpq's environment says (a superuser of a server with millrace), makes a database of its own and drops it.
Prints its seed; `staging.py --seed N --runs 1` repeats a run.
"""
import argparse
import hashlib
import json
import random
import sys
import threading
import time
from collections import Counter, defaultdict

import psycopg2

START = 1_767_225_600                   # 2026-01-01
STATES = ['open', 'paid', 'closed', 'hidden', None]
PRODUCTS = ['tea', 'milk', 'bread', '', None]

SETUP = r"""
CREATE EXTENSION millrace; CREATE SCHEMA p;
SELECT millrace.create_stream('feed', workers => 1);
-- a declared version that may be missing, and many rules
SELECT millrace.create_staging('p.orders', stream => 'feed', key => '{"id": [["$.id", "$key"], "integer"], "shop": [["$.shop", "$headers.shop"], "text"]}',
  version => '["$.v", "integer"]', tombstone => 'refuse', columns => '{"kind": "$.kind", "op": "$.op", "state": "$.state", "price": ["$.price", "numeric(8,2)"]}',
  route => $$ kind = 'order' $$, deleted => $$ op = 'D' $$, computed => '{"double": ["raw.price * 2", "numeric(9,2)"], "price": ["abs(raw.price)", "numeric(8,2)"]}',
  filter => $$ state <> 'hidden' $$, expect => '{"affordable": "price < 90"}', log => true);
SELECT millrace.create_staging('p.items', stream => 'feed', for_each => '$.items[*]', key => '{"id": [["$.id", "$key"], "integer"], "shop": [["$.shop", "$headers.shop"], "text"]}',
  version => '["$.v", "integer"]', tombstone => 'refuse', columns => '{"kind": "$.kind", "op": "$.op", "state": "$.state", "product": "@.product", "n": ["@.n", "integer"]}',
  route => $$ kind = 'order' $$, deleted => $$ op = 'D' $$, filter => $$ product <> '' $$, expect => '{"few": "n < 9"}');
-- versions are times, tombstones have theirs
SELECT millrace.create_staging('p.timed', stream => 'feed', key => '{"id": [["$.id", "$key"], "integer"]}', version => '["$timestamp", "timestamptz"]',
  columns => '{"state": "$.state", "v": ["$.v", "integer"]}', payload => 'none');
-- the source's own order
SELECT millrace.create_staging('p.arrived', stream => 'feed', key => '{"id": [["$.id", "$key"], "integer"]}', columns => '{"state": "$.state", "v": ["$.v", "integer"]}', payload => 'none');
SELECT millrace.create_mart('p.by_state', 'SELECT state, count(*) AS n, sum(price)::numeric(12,2) AS total, count(DISTINCT id) AS ids FROM p.orders GROUP BY state');
SELECT millrace.create_mart('p.by_product', 'SELECT shop, product, count(DISTINCT id) AS ids, sum(n) AS n, count(*) FILTER (WHERE state = ''closed'') AS closed FROM p.items GROUP BY shop, product');
SELECT millrace.create_mart('p.all_timed', 'SELECT count(*) AS n, sum(v) AS v FROM p.timed');
SELECT millrace.create_mart('p.all_arrived', 'SELECT state, count(*) AS n, sum(v) AS v FROM p.arrived GROUP BY state');
"""

MARTS = ('p.by_state', 'p.by_product', 'p.all_timed', 'p.all_arrived')


def digest(value):
    """The digest that breaks ties: a UUID of version 8."""
    raw = bytearray(hashlib.sha256(len(value.encode()).to_bytes(4, 'big') + value.encode()).digest()[:16])
    raw[6] = raw[6] & 0x0f | 0x80
    raw[8] = raw[8] & 0x3f | 0x80
    return bytes(raw)


# ---- histories ---------------------------------------------------------------------------------------------------

def message(rng, objects):
    """(seconds, payload, key, headers) of a random message about one of a few objects."""
    number = rng.randrange(objects)
    seconds = rng.randrange(40)
    key = str(number)
    shop = 'ab'[number % 2]
    kind = rng.random()
    if kind < 0.10:
        return seconds, None, key, json.dumps({'shop': shop})
    if kind < 0.14:
        return seconds, rng.choice(['{"id": ', 'nothing', '', '{"id": 1, "id"}', '{"x": "\\u0000"}']), key, None
    payload = {'kind': 'order', 'id': number, 'shop': shop}
    if kind < 0.18:
        payload['kind'] = rng.choice(['visit', None])
    if kind > 0.96:
        payload[rng.choice(['v', 'price'])] = 'not a number'
    elif rng.random() < 0.9:
        payload['v'] = rng.randrange(6)
    if rng.random() < 0.12:
        payload['op'] = 'D'
    payload['state'] = rng.choice(STATES)
    payload.setdefault('price', rng.choice([None, -5.25, 7.5, 89.99, 90, 100]))
    if rng.random() < 0.9:
        payload['items'] = [{'product': rng.choice(PRODUCTS), 'n': rng.choice([1, 2, 8, 9, None])} for _ in range(rng.choice([0, 0, 1, 2, 3]))]
    return seconds, json.dumps(payload), key, json.dumps({'shop': shop})


def history(rng, count, objects):
    messages = [message(rng, objects) for _ in range(count)]
    return messages + [rng.choice(messages) for _ in range(count // 10)]


# ---- what Python makes of them -----------------------------------------------------------------------------------

class Version:
    def __init__(self, order, deleted, rows, staged):
        self.order = order              # compares as millrace orders versions
        self.deleted = deleted
        self.rows = rows
        self.staged = staged            # version as the table shows it


def none_first(value):
    return (value is not None, value or 0)


def cast_price(payload):
    price = payload.get('price')
    if isinstance(price, str):
        raise ValueError
    return price


def parse(value):
    """The payload, or ValueError for one that is none; None for a tombstone."""
    if value is None:
        return None
    if '\\u0000' in value:
        raise ValueError
    return json.loads(value)


class Expected:
    """Newest versions by object; `arrival` is the order in which messages were pushed."""

    def __init__(self, messages, latest=True):
        self.orders, self.items, self.timed, self.arrived = {}, {}, {}, {}
        self.letters = Counter()        # (staging, kind, element, expectation)
        self.logged = 0
        for position, (seconds, value, key, headers) in enumerate(messages):
            try:
                payload = parse(value)
            except ValueError:
                self.letters[None, 'message', None, None] += 1
                continue
            self.read(position, seconds, value, payload, key)

    def read(self, position, seconds, value, payload, key):
        if payload is None:
            # The declared version is in the payload: a tombstone has none, and is refused.
            self.letters['p.orders', 'object', None, None] += 1
            self.letters['p.items', 'object', None, None] += 1
            number = int(key)
            keep(self.timed, number, Version((seconds, 1, digest('')), True, [], seconds))
            keep(self.arrived, number, Version(position, True, [], None))
            return
        number = payload['id']
        state, v = payload.get('state'), payload.get('v')
        bad_version, bad_price = isinstance(v, str), isinstance(payload.get('price'), str)
        if payload['kind'] == 'order':
            deleted = payload.get('op') == 'D'
            order = (none_first(v), deleted, digest(value)) if not bad_version else None
            if bad_version or bad_price:
                self.letters['p.orders', 'object', None, None] += 1
            else:
                rows = []
                price = payload['price']
                if not deleted and state is not None and state != 'hidden':
                    if price is not None and abs(price) < 90:
                        rows.append((state, f'{abs(price):.2f}', f'{price * 2:.2f}', value))
                    else:
                        self.letters['p.orders', 'row', None, 'affordable'] += 1
                keep(self.orders, (number, payload['shop']), Version(order, deleted, rows, v))
                self.logged += max(1, len(rows))
            if bad_version:
                self.letters['p.items', 'object', None, None] += 1
            else:
                rows = []
                for element, item in enumerate([] if deleted else payload.get('items', []), 1):
                    if item['product'] is None or item['product'] == '':
                        continue
                    if item['n'] is not None and item['n'] < 9:
                        rows.append((element, state, item['product'], item['n']))
                    else:
                        self.letters['p.items', 'row', element, 'few'] += 1
                keep(self.items, (number, payload['shop']), Version(order, deleted, rows, v))
        if bad_version:
            self.letters['p.timed', 'object', None, None] += 1
            self.letters['p.arrived', 'object', None, None] += 1
        else:
            keep(self.timed, number, Version((seconds, 0, digest(value)), False, [(state, v)], seconds))
            keep(self.arrived, number, Version(position, False, [(state, v)], None))

    def tables(self):
        yield 'p.orders', 'SELECT id, shop, state, price::text, double::text, payload::text, _version FROM p.orders', \
            (key + row + (v.staged,) for key, v in self.orders.items() for row in v.rows)
        yield 'p.items', 'SELECT id, shop, _element, state, product, n, _version FROM p.items', \
            (key + row + (v.staged,) for key, v in self.items.items() for row in v.rows)
        yield 'p.timed', f'SELECT id, state, v, extract(epoch FROM _version)::integer - {START} FROM p.timed', \
            ((key,) + row + (v.staged,) for key, v in self.timed.items() for row in v.rows)
        yield 'p.arrived', 'SELECT id, state, v FROM p.arrived', ((key,) + row for key, v in self.arrived.items() for row in v.rows)
        for table, objects, keys in (('p.orders', self.orders, 'k1, k2'), ('p.items', self.items, 'k1, k2')):
            yield f'objects of {table}', f'SELECT {keys}, version, flags & 1, digest::text FROM {{{table}}}', \
                (key + (v.staged, int(v.deleted), uuid(v.order[2])) for key, v in objects.items())
        yield 'objects of p.timed', f'SELECT k1, extract(epoch FROM version)::integer - {START}, flags & 1 FROM {{p.timed}}', \
            ((key, v.staged, int(v.deleted)) for key, v in self.timed.items())
        yield 'objects of p.arrived', 'SELECT k1, flags & 1 FROM {p.arrived}', ((key, int(v.deleted)) for key, v in self.arrived.items())
        yield 'dead letters', 'SELECT staging, kind, element, expectation, count(*) FROM millrace.dead_letter GROUP BY 1, 2, 3, 4', \
            (letter + (n,) for letter, n in self.letters.items())
        yield 'the log', 'SELECT count(*) FROM p.orders_log', [(self.logged,)]
        # marts
        states, products = defaultdict(list), defaultdict(list)
        for (number, shop), v in self.orders.items():
            for state, price, _, _ in v.rows:
                states[state].append((number, float(price)))
        for (number, shop), v in self.items.items():
            for _, state, product, n in v.rows:
                products[shop, product].append((number, n, state))
        yield 'p.by_state', 'SELECT state, n, total::text, ids FROM p.by_state', \
            ((state, len(rows), f'{sum(p for _, p in rows):.2f}', len({i for i, _ in rows})) for state, rows in states.items())
        yield 'p.by_product', 'SELECT shop, product, ids, n, closed FROM p.by_product', \
            (group + (len({i for i, _, _ in rows}), sum(n for _, n, _ in rows), sum(s == 'closed' for _, _, s in rows)) for group, rows in products.items())
        rows = [row for v in self.timed.values() for row in v.rows]
        yield 'p.all_timed', 'SELECT n, v FROM p.all_timed', [(len(rows), total(v for _, v in rows))]
        states = defaultdict(list)
        for version in self.arrived.values():
            for state, v in version.rows:
                states[state].append(v)
        yield 'p.all_arrived', 'SELECT state, n, v FROM p.all_arrived', ((state, len(rows), total(rows)) for state, rows in states.items())


def keep(objects, key, version):
    if key not in objects or version.order > objects[key].order:
        objects[key] = version


def total(values):
    values = [value for value in values if value is not None]
    return sum(values) if values else None


def uuid(raw):
    text = raw.hex()
    return '-'.join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))


# ---- delivery ----------------------------------------------------------------------------------------------------

class Delivery:
    """Pushes a history and has it consumed in one way or another; remembers in which order it was numbered."""

    def __init__(self, rng, database, messages):
        self.rng, self.database = rng, database
        self.waiting = list(messages)
        self.numbered = []
        self.lock = threading.Lock()
        self.control = self.connect()
        self.control.autocommit = True

    def connect(self):
        return psycopg2.connect(dbname=self.database, options='-c client_min_messages=warning')

    def push(self, connection, count):
        """Takes the next messages and pushes them in one transaction."""
        with self.lock:
            taken, self.waiting = self.waiting[:count], self.waiting[count:]
        cursor = connection.cursor()
        numbered = []
        for message in taken:
            seconds, value, key, headers = message
            cursor.execute("SELECT millrace.push('feed', %s::text, key => %s, headers => %s, message_time => to_timestamp(%s))",
                           (value, key, headers, START + seconds))
            numbered.append((cursor.fetchone()[0], message))
        connection.commit()
        with self.lock:
            self.numbered += numbered

    def finish(self):
        self.control.cursor().execute("SELECT * FROM millrace.run_stream('feed')")

    def alone(self):
        """One session: pushes some, takes some, sometimes thinks better of it."""
        connection = self.connect()
        while self.waiting:
            self.push(connection, self.rng.choice([1, 3, 10, 50]))
            for _ in range(self.rng.choice([0, 1, 2])):
                connection.cursor().execute("SELECT * FROM millrace.run_stream('feed', %s)", (self.rng.choice([1, 2, 5, 20, None]),))
                if self.rng.random() < 0.2:
                    connection.rollback()
                connection.commit()
        connection.close()
        self.finish()

    def pair(self):
        """Two sessions: one waits for what the other has open, which is then committed or rolled back."""
        first, second = self.connect(), self.connect()
        while self.waiting:
            self.push(first, self.rng.choice([5, 20, 60]))
            limit = self.rng.choice([1, 4, 10, None])
            first.cursor().execute("SELECT * FROM millrace.run_stream('feed', %s)", (self.rng.choice([1, 4, 10, None]),))
            errors = []

            def run():
                try:
                    second.cursor().execute("SELECT * FROM millrace.run_stream('feed', %s)", (limit,))
                except psycopg2.Error as error:
                    errors.append(error)

            thread = threading.Thread(target=run)
            thread.start()
            self.wait(lambda: not thread.is_alive() or self.one('SELECT count(*) FROM pg_locks WHERE NOT granted') > 0, 'the second session')
            first.rollback() if self.rng.random() < 0.3 else first.commit()
            thread.join()
            if errors:
                # The position had moved: whoever runs the stream by hand tries again.
                if 'position' not in str(errors[0]):
                    raise errors[0]
                second.rollback()
            second.rollback() if self.rng.random() < 0.3 else second.commit()
        first.close()
        second.close()
        self.finish()

    def workers(self):
        """Two background workers, fed by two sessions."""
        cursor = self.control.cursor()
        cursor.execute("SELECT millrace.create_stream('feed', workers => 2, replace => true)")
        cursor.execute("ALTER SYSTEM SET millrace.databases = %s", (self.database,))
        cursor.execute('SELECT pg_reload_conf()')
        try:
            self.wait(lambda: self.one("SHOW millrace.databases") == self.database, 'the setting')
            cursor.execute("SELECT millrace.start_stream('feed')")
            self.wait(lambda: self.one("SELECT count(*) FROM millrace.worker_status WHERE state = 'running'") == 2, 'the workers')
            threads = [threading.Thread(target=self.feed) for _ in range(2)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            self.wait(lambda: self.one('SELECT count(*) FROM millrace.inbox') == 0, 'the workers to consume everything')
            cursor.execute("SELECT millrace.stop_stream('feed')")
            self.wait(lambda: self.one("SELECT count(*) FROM millrace.worker_status WHERE pid IS NOT NULL") == 0, 'the workers to end')
        finally:
            cursor.execute('ALTER SYSTEM RESET millrace.databases')
            cursor.execute('SELECT pg_reload_conf()')
            self.wait(lambda: self.one("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND backend_type LIKE 'millrace%'") == 0, 'the manager to end')

    def feed(self):
        connection = self.connect()
        while self.waiting:
            self.push(connection, random.choice([1, 2, 5, 20]))
        connection.close()

    def one(self, query):
        cursor = self.control.cursor()
        cursor.execute(query)
        return cursor.fetchone()[0]

    def wait(self, condition, what):
        deadline = time.monotonic() + 240
        while not condition():
            if time.monotonic() > deadline:
                raise TimeoutError(f'{what}: not within 240 s; {self.one("SELECT string_agg(w::text, chr(10)) FROM millrace.worker_status w")}')
            time.sleep(0.005)


def compare(delivery, expected):
    cursor = delivery.control.cursor()
    cursor.execute("SELECT relation::text, format('millrace_state.object_%s', id) FROM millrace.staging")
    objects = dict(cursor.fetchall())
    good = True
    for what, query, rows in expected.tables():
        for table, name in objects.items():
            query = query.replace('{' + table + '}', name)
        cursor.execute(query)
        found, wanted = Counter(cursor.fetchall()), Counter(rows)
        if found != wanted:
            good = False
            print(f'# {what} differs: missing {list((wanted - found).items())[:5]}, unexpected {list((found - wanted).items())[:5]}')
    for mart in MARTS:
        cursor.execute('SELECT missing, unexpected FROM millrace.verify(%s)', (mart,))
        verified = cursor.fetchone()
        if verified != (0, 0):
            good = False
            print(f'# verify({mart}) = {verified}')
    return good


def check(seed, mode):
    """One history, delivered in one way."""
    rng = random.Random(f'{seed} {mode}')
    made = random.Random(f'{seed} made')
    messages = history(made, made.choice([30, 100, 300]), made.choice([3, 10, 40]))
    rng.shuffle(messages)
    admin = psycopg2.connect('')
    admin.autocommit = True
    database = f'staging_{seed}_{mode}'
    admin.cursor().execute(f'DROP DATABASE IF EXISTS {database}')
    admin.cursor().execute(f'CREATE DATABASE {database} TEMPLATE template0')
    try:
        delivery = Delivery(rng, database, messages)
        delivery.control.cursor().execute(SETUP)
        getattr(delivery, mode)()
        good = compare(delivery, Expected([message for _, message in sorted(delivery.numbered, key=lambda pair: pair[0])]))
        delivery.control.close()
        if good:
            admin.cursor().execute(f'DROP DATABASE {database}')
    finally:
        admin.close()
    print(f"{'ok' if good else 'not ok'} - seed {seed}, {mode}: {len(messages)} messages", flush=True)
    return good


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('--seed', type=int, default=int(time.time()))
    parser.add_argument('--runs', type=int, default=6)
    parser.add_argument('--mode', choices=['alone', 'pair', 'workers'])
    options = parser.parse_args()
    print(f'seed {options.seed}', flush=True)
    bad = 0
    for seed in range(options.seed, options.seed + options.runs):
        for mode in [options.mode] if options.mode else ['alone', 'pair', 'workers']:
            bad += not check(seed, mode)
    sys.exit(bad > 0)


if __name__ == '__main__':
    main()
