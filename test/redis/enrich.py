#!/usr/bin/python3
"""Enrichment under random histories: whatever the order in which messages come and dictionaries learn, and whatever is killed.

Orders come to an inbox with two workers, some of them again, their versions in any order. Users and dishes are looked up in a
Redis, shops in a table that another stream keeps; ids become known before, between and after the messages that speak of
them, and some entries change. Meanwhile workers are killed by -9 and the Redis is, too. In the end, when everything is
known, nothing waits any more; each staged row is the newest version of its object with what a dictionary has said of its
ids at some time (of an entry that never changed: with just that), the log has every version, complete, and vault and marts equal a recompute.

    enrich.py [--seed N] [--messages 1500] [--kills 3]
"""
import argparse
import hashlib
import json
import os
import random
import signal
import socket
import sys
from collections import defaultdict

import psycopg2

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), '..', 'lib'))
from shell import Shell, wait_for    # noqa: E402

OBJECTS, USERS, SHOPS, MENUS, DISHES = 60, 25, 10, 6, 5

SETUP = """
CREATE EXTENSION millrace; CREATE SCHEMA p;
CREATE SERVER cache FOREIGN DATA WRAPPER millrace_redis OPTIONS (host '127.0.0.1', port '{port}');
SELECT millrace.create_stream('shops');
SELECT millrace.create_staging('p.shops', stream => 'shops', payload => 'none', key => '{{"id": ["$.id", "integer"]}}', columns => '{{"name": "$.name"}}');
SELECT millrace.create_dictionary('users', server => 'cache', lookup => 'user:<id>', ttl => '50 ms');
SELECT millrace.create_dictionary('menus', server => 'cache', lookup => 'menu:<id>', for_each => '$.menu[*]', entry_key => '@.id', ttl => '50 ms', cache_size => '2 kB');
SELECT millrace.create_dictionary('shops', source => 'p.shops');
SELECT millrace.create_stream('orders', workers => 2, enrich => '{{"user": ["users", "$.user"], "shop": ["shops", "$.shop"],
  "dish": {{"dictionary": "menus", "lookup": "$.menu", "for_each": "$.items[*]", "entry": "@.dish"}}}}');
SELECT millrace.create_staging('p.orders', stream => 'orders', log => true, payload => 'none', key => '{{"id": ["$.id", "integer"]}}', version => '["$.v", "integer"]',
  columns => '{{"user_id": "$.user", "user_name": "$dict.user.name", "shop_id": "$.shop", "shop_name": "$dict.shop.name", "state": "$.state"}}', filter => $$ state <> 'hidden' $$);
SELECT millrace.create_staging('p.items', stream => 'orders', log => true, for_each => '$.items[*]', key => '{{"id": ["$.id", "integer"]}}', version => '["$.v", "integer"]',
  columns => '{{"menu": "$.menu", "dish": "@.dish", "category": "@dict.dish.category", "n": ["@.n", "integer"]}}');
SELECT millrace.create_hub('p.h_order', source => 'p.orders', business_key => '{{id}}');
SELECT millrace.create_hub('p.h_category', source => 'p.items', business_key => '{{category}}');
SELECT millrace.create_link('p.l_order_category', source => 'p.items', hubs => '{{p.h_order, p.h_category}}');
SELECT millrace.create_satellite('p.s_order', source => 'p.orders', parent => 'p.h_order', attributes => '{{user_name, shop_name, state}}');
SELECT millrace.create_mart('p.by_category', 'SELECT category, count(DISTINCT id) AS orders, sum(n) AS n FROM p.items GROUP BY category');
SELECT millrace.create_mart('p.by_user', 'SELECT user_name, shop_name, count(*) AS n FROM p.orders GROUP BY user_name, shop_name');
SELECT millrace.start_stream('shops'), millrace.start_stream('orders');
"""


class Redis:
    """Sets keys, and remembers all that each entry has ever said."""

    def __init__(self, port):
        self.port = port
        self.now = {}
        self.ever = defaultdict(set)

    def set(self, key, value, said):
        self.now[key] = value
        for name, word in said.items():
            self.ever[name].add(word)
        self.send([(key, value)])

    def send(self, pairs):
        with socket.create_connection(('127.0.0.1', self.port)) as connection:
            for key, value in pairs:
                words = [b'SET', key.encode(), value.encode()]
                connection.sendall(b'*3\r\n' + b''.join(b'$%d\r\n%s\r\n' % (len(w), w) for w in words))
                assert connection.recv(100).startswith(b'+OK')

    def reload(self):
        self.send(self.now.items())


def digest(text):
    """The digest that breaks ties of versions."""
    raw = bytearray(hashlib.sha256(len(text.encode()).to_bytes(4, 'big') + text.encode()).digest()[:16])
    raw[6] = raw[6] & 0x0f | 0x80
    raw[8] = raw[8] & 0x3f | 0x80
    return bytes(raw)


class World:
    """The messages, the dictionaries, and what is done to everything in between."""

    def __init__(self, rng, shell):
        self.rng = rng
        self.shell = shell
        self.redis = Redis(int(shell.value('$REDIS_PORT')))
        self.sent = set()
        self.menus = defaultdict(dict)
        self.connection = None

    def sql(self, text, *values):
        """Runs a statement; a server that was killed is waited for."""
        def attempt():
            try:
                if self.connection is None:
                    self.connection = psycopg2.connect('')
                    self.connection.autocommit = True
                with self.connection.cursor() as cursor:
                    cursor.execute(text, values)
                    return (cursor.fetchall() if cursor.description else []),
            except psycopg2.Error as error:
                if error.pgcode and error.pgcode[:3] not in ('57P', '080'):
                    raise
                self.connection = None
        return wait_for('the server', attempt)[0]

    def push(self):
        rng = self.rng
        if self.sent and rng.random() < 0.1:
            text = rng.choice(sorted(self.sent))
        else:
            text = json.dumps({
                'id': rng.randrange(OBJECTS), 'v': rng.randrange(30), 'state': rng.choice(['open', 'paid', 'hidden']),
                'user': rng.choice([None, f'u{rng.randrange(USERS)}', f'u{rng.randrange(USERS)}']), 'shop': rng.randrange(SHOPS),
                'menu': f'm{rng.randrange(MENUS)}', 'items': [{'dish': f'd{rng.randrange(DISHES)}', 'n': rng.randrange(5)} for _ in range(rng.randrange(4))]})
        # a statement that was cut off may or may not have pushed it: twice does no harm
        self.sql("SELECT millrace.push('orders', %s, key => %s)", text, str(json.loads(text)['id']))
        self.sent.add(text)

    def learn_user(self, number):
        word = f'N{number}' + (f'.{self.rng.randrange(3)}' if number % 4 == 0 else '')
        self.redis.set(f'user:u{number}', json.dumps({'name': word}), {('user', f'u{number}'): word})

    def learn_dish(self, menu, dish):
        self.menus[menu][dish] = f'c{(menu + dish) % 4}' + (f'.{self.rng.randrange(2)}' if menu == 0 else '')
        entries = self.menus[menu]
        self.redis.set(f'menu:m{menu}', json.dumps({'menu': [{'id': f'd{d}', 'category': c} for d, c in entries.items()]}),
                       {('dish', f'm{menu}', f'd{d}'): c for d, c in entries.items()})

    def learn_shop(self, number):
        self.redis.ever['shop', str(number)].add(f'S{number}')
        self.sql("SELECT millrace.push('shops', %s)", json.dumps({'id': number, 'name': f'S{number}'}))

    def learn(self):
        kind = self.rng.random()
        if kind < 0.4:
            self.learn_user(self.rng.randrange(USERS))
        elif kind < 0.8:
            self.learn_dish(self.rng.randrange(MENUS), self.rng.randrange(DISHES))
        else:
            self.learn_shop(self.rng.randrange(SHOPS))

    def learn_rest(self):
        for number in range(USERS):
            if ('user', f'u{number}') not in self.redis.ever:
                self.learn_user(number)
        for menu in range(MENUS):
            for dish in range(DISHES):
                if dish not in self.menus[menu]:
                    self.learn_dish(menu, dish)
        for number in range(SHOPS):
            self.learn_shop(number)

    def kill(self):
        """A worker, and with it all backends of the server; or the Redis, which forgets everything."""
        if self.rng.random() < 0.6:
            pids = self.sql("SELECT pid FROM millrace.worker_status WHERE stream = 'orders' AND pid IS NOT NULL")
            if pids:
                try:
                    os.kill(self.rng.choice(pids)[0], signal.SIGKILL)
                except ProcessLookupError:
                    pass
        else:
            self.shell.run('redis_restart KILL')
            self.redis.reload()

    def settled(self):
        """Nothing is left to be read or to wait."""
        return self.sql('SELECT NOT EXISTS (SELECT FROM millrace.inbox) AND NOT EXISTS (SELECT FROM millrace.pending_message)')[0][0]


def newest(sent):
    """The newest version of each object, as its JSON."""
    best = {}
    for text in sent:
        message = json.loads(text)
        rank = message['v'], digest(text)
        if message['id'] not in best or rank > best[message['id']][0]:
            best[message['id']] = rank, message
    return {number: message for number, (rank, message) in best.items()}


class Checks:
    def __init__(self):
        self.failed = 0

    def check(self, name, wrong):
        """Says that a thing is right, or what is wrong with it."""
        if wrong:
            self.failed += 1
            print(f'not ok - {name}: {wrong[:5]}')
        else:
            print(f'ok - {name}')


def judge(world, checks):
    ever = world.redis.ever
    wanted = newest(world.sent)

    def said(kind, *ids):
        return ever[(kind, *ids)] if ids[-1] is not None else {None}

    rows = {row[0]: row[1:] for row in world.sql('SELECT id, _version, user_id, user_name, shop_name, state FROM p.orders')}
    wrong = [number for number in rows if number not in wanted or wanted[number]['state'] == 'hidden']
    for number, message in wanted.items():
        if message['state'] == 'hidden':
            continue
        row = rows.get(number)
        if row is None or row[:2] != (message['v'], message['user']) or row[4] != message['state'] or \
                row[2] not in said('user', message['user']) or row[3] not in said('shop', str(message['shop'])):
            wrong.append((number, row, message))
    checks.check('orders are the newest ones, with names that were said', wrong)

    items = defaultdict(list)
    for number, *row in world.sql('SELECT id, menu, dish, n, category FROM p.items ORDER BY id, _element'):
        items[number].append(row)
    wrong = [number for number in items if number not in wanted]
    for number, message in wanted.items():
        rows = items[number]
        if [row[:3] for row in rows] != [[message['menu'], item['dish'], item['n']] for item in message['items']] or \
                any(row[3] not in said('dish', row[0], row[1]) for row in rows):
            wrong.append((number, rows, message))
    checks.check('items are those of the newest orders, with categories that were said', wrong)

    versions = defaultdict(int)
    for text in world.sent:
        message = json.loads(text)
        versions[message['id'], message['v']] += 1
    logged = {row[:2]: row for row in world.sql(
        '''SELECT id, _version, count(DISTINCT (user_id, shop_id, state)), bool_and(_rows = 0 OR (user_id IS NULL) = (user_name IS NULL)),
                  bool_and(_rows = 0 OR shop_name IS NOT NULL) FROM p.orders_log GROUP BY 1, 2''')}
    checks.check('the log has every version, each complete',
                 sorted(set(versions) ^ set(logged)) + [row for row in logged.values() if not (row[3] and row[4])])
    checks.check('no log has a category missing', world.sql('SELECT id, _version FROM p.items_log WHERE _rows > 0 AND category IS NULL'))
    checks.check('vault and marts equal a recompute', world.sql(
        '''SELECT v.relation, v.missing, v.unexpected, v.example FROM unnest('{p.orders, p.items, p.h_order, p.h_category, p.l_order_category, p.s_order,
           p.by_category, p.by_user}'::regclass[]) r, millrace.verify(r) v WHERE v.missing + v.unexpected > 0'''))
    checks.check('the vault knows the names that are staged', world.sql(
        '''SELECT o.id, o.user_name, c.user_name FROM p.orders o LEFT JOIN p.s_order_current c USING (id)
           WHERE c.id IS NULL OR NOT EXISTS (SELECT FROM p.s_order s JOIN p.h_order h USING (h_order_hk)
               WHERE h.id = o.id AND (s.user_name, s.shop_name, s.state) IS NOT DISTINCT FROM (o.user_name, o.shop_name, o.state))'''))
    checks.check('there are no dead letters', world.sql('SELECT message FROM millrace.dead_letter'))


def main():
    parser = argparse.ArgumentParser(description='Enrichment under random histories.')
    parser.add_argument('--seed', type=int, default=random.randrange(10 ** 6))
    parser.add_argument('--messages', type=int, default=1500)
    parser.add_argument('--kills', type=int, default=3)
    options = parser.parse_args()
    print(f'seed {options.seed}', flush=True)
    rng = random.Random(options.seed)
    checks = Checks()
    with Shell() as shell:
        shell.run('pg_start "$work/pg" "millrace.databases = \'postgres\'" "fsync = off"; redis_start "$work/redis"')
        shell.environ()
        world = World(rng, shell)
        world.sql(SETUP.format(port=world.redis.port))
        kills = set(rng.sample(range(options.messages), options.kills))
        for number in range(options.messages):
            world.push()
            if rng.random() < 0.1:
                world.learn()
            if number in kills:
                world.kill()
        waiting = world.sql('SELECT count(*) FROM millrace.pending_message')[0][0]
        world.learn_rest()
        wait_for('everything is known', world.settled)
        print(f'{waiting} messages waited when the last one was sent')
        judge(world, checks)
    sys.exit(checks.failed > 0)


if __name__ == '__main__':
    main()
