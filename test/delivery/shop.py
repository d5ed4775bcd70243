#!/usr/bin/python3
"""The shop example: its five alerts arrive over HTTP, in Kafka and in Redis, each occurrence once and with what it is about; and the demonstration shows it.

Orders and what becomes of them are drawn at random; what must arrive is reckoned here, from the rules as their declaration says them.
"""
import argparse
import collections
import json
import os
import random
import subprocess

from common import TOP, Database, Shell, Sink, finish, is_, wait_for

GROUP = (('HIGH_VALUE_ORDER', 'critical', ('order_id', 'customer_id', 'product_name', 'total', 'quantity'), lambda o: o['total'] > 10000),
         ('SUSPICIOUS_QUANTITY', 'warning', ('order_id', 'quantity'), lambda o: o['quantity'] > 50),
         ('NEGATIVE_PRICE', 'warning', ('order_id', 'price'), lambda o: o['price'] < 0),
         ('INVALID_QUANTITY', 'warning', ('order_id', 'quantity'), lambda o: o['quantity'] <= 0))


def told(rule, severity, key, details):
    """An alert as it can be compared, of whatever was received."""
    return rule, severity, key, json.dumps({name: float(value) if isinstance(value, (int, float)) else value for name, value in details.items()}, sort_keys=True)


class Shop:
    """The table of orders, and the alerts that its changes must make."""
    def __init__(self, db, chance):
        self.db = db
        self.chance = chance
        self.fired = set()
        self.expected = collections.Counter()

    def draw(self, order_id):
        price, quantity = self.chance.choice((-5, 1, 20, 300)), self.chance.choice((-1, 0, 1, 2, 50, 51, 200))
        return {'order_id': order_id, 'customer_id': f'C{order_id}', 'product_name': f'"{order_id}" & <co>', 'price': price, 'quantity': quantity, 'total': price * quantity}

    def judge(self, order):
        for rule, severity, details, true in GROUP:
            if true(order):
                if (rule, order['order_id']) not in self.fired:
                    self.fired.add((rule, order['order_id']))
                    self.expected[told(rule, severity, order['order_id'], {name: order[name] for name in details})] += 1
                return

    def insert(self, order):
        self.db.query("""INSERT INTO shop.orders (order_id, customer_id, product_id, product_name, price, quantity, total) VALUES (%s, %s, 'P', %s, %s, %s, %s)""",
                      order['order_id'], order['customer_id'], order['product_name'], order['price'], order['quantity'], order['total'])
        self.judge(order)

    def update(self, order):
        self.db.query('UPDATE shop.orders SET price = %s, quantity = %s, total = %s WHERE order_id = %s', order['price'], order['quantity'], order['total'], order['order_id'])
        self.judge(order)

    def delete(self, order_id):
        self.db.query('DELETE FROM shop.orders WHERE order_id = %s', order_id)
        self.fired = {(rule, of) for rule, of in self.fired if of != order_id}

    def burst(self, customer, orders, ahead=0):
        """So many orders of a customer at one moment, some minutes from now: from five on they are one occurrence."""
        at = self.db.one("""WITH w AS (INSERT INTO shop.orders (order_id, customer_id, product_id, price, quantity, total, order_date)
                              SELECT %s || '-' || %s || '-' || n, %s, 'P', 1, 1, 1, now() + %s * interval '1 minute' FROM generate_series(1, %s) n RETURNING order_date)
                            SELECT max(order_date)::text FROM w""", customer, ahead, customer, ahead, orders)
        if orders >= 5:
            self.expected[told('RAPID_ORDERS', 'warning', customer, {'count': 5, 'from': at, 'to': at})] += 1


def of_message(message):
    return told(message['rule'], message['severity'], message['key'], message['details'])


def of_text(text):
    """What the hook's message expression has written."""
    head, details = text.split(' ', 3)[:3], text.split(' ', 3)[3]
    return told(head[1].rstrip(','), head[0].rstrip(':'), head[2], json.loads(details))


def consume(shell):
    text = shell.value('$(kcat -b "$KAFKA_BOOTSTRAP" -C -t shop-alerts -e -q -X isolation.level=read_committed -f "%k=%s\\\\n")')
    return [line.split('=', 1) for line in text.splitlines()]


def different(found, expected):
    """What is not as it should be, in a few lines."""
    found = collections.Counter(found)
    return [('missing', *row) for row in (expected - found).elements()][:5] + [('too many', *row) for row in (found - expected).elements()][:5]


def alerts(shell, seed):
    chance = random.Random(seed)
    sink = Sink()
    accepted = []

    def answer(body):
        """Refuses now and then, which must neither lose nor double anything."""
        if chance.random() < 0.02:
            return 503
        accepted.append(json.loads(body)['text'])
        return 200

    sink.answers['/'] = [answer]
    shell.run('pg_start "$work/pg" "wal_level = logical" "fsync = off" "millrace.databases = postgres" "millrace.allowed_hosts = \'127.0.0.1\'"')
    shell.environ()
    shell.run('psql -qXAt -o /dev/null -v orders=500 -f "$1/examples/shop/table.sql"')
    shell.run(f'psql -qXAt -o /dev/null -v source=postgres -v start=1 -v hook={sink.url} -v alert_broker="$KAFKA_BOOTSTRAP" '
              '-v redis=127.0.0.1 -v redis_port="$REDIS_PORT" -f "$1/examples/shop/shop.sql"')
    heard = subprocess.Popen(['redis-cli', '-p', shell.value('$REDIS_PORT'), 'SUBSCRIBE', 'shop:alerts'], stdout=open(os.path.join(shell.work, 'heard'), 'w'))

    def hears():
        with open(os.path.join(shell.work, 'heard')) as file:
            return file.read().splitlines()

    wait_for('the subscriber', hears)
    db = Database()
    db.becomes('the table is copied', "SELECT string_agg(state, ',') FROM millrace.snapshot_status", 'done')
    shop = Shop(db, chance)

    def settled():
        # The position is the end of a commit that was taken: what comes here after it may be nobody's change.
        lsn = db.one('SELECT pg_current_wal_lsn()::text')
        db.query("INSERT INTO shop.orders (order_id, customer_id, product_id) VALUES ('last', 'last', 'P'); DELETE FROM shop.orders WHERE order_id = 'last'")
        wait_for('the changes', lambda: db.one('SELECT min(position) >= (%s::pg_lsn - %s::pg_lsn) FROM millrace.stream_partition', lsn, '0/0'))
        wait_for('the deliveries', lambda: db.one('SELECT sum(waiting + sending) FROM millrace.channel_status') == 0)

    # A key has no more than one alert at a time here: of two that wait, Redis takes the newer one only.
    ids = [f'O{n}' for n in range(60)]
    for order_id in ids:
        shop.insert(shop.draw(order_id))
    for customer, orders in (('four', 4), ('five', 5), ('twelve', 12)):
        shop.burst(customer, orders)
    settled()
    for order_id in chance.sample(ids, 40):
        shop.update(shop.draw(order_id))
    shop.burst('five', 5, 10)
    settled()
    for order_id in chance.sample(ids, 30):
        shop.delete(order_id)
        shop.insert(shop.draw(order_id))
    settled()

    rules = sorted({rule for rule, *_ in shop.expected})
    is_('all five rules have fired', rules, ['HIGH_VALUE_ORDER', 'INVALID_QUANTITY', 'NEGATIVE_PRICE', 'RAPID_ORDERS', 'SUSPICIOUS_QUANTITY'])
    print(f'# {sum(shop.expected.values())} alerts')
    is_('each occurrence is an alert, once', different([told(*row) for row in db.query('SELECT rule, severity, key, details FROM millrace.alert WHERE suppressed IS NULL')], shop.expected), [])
    is_('HTTP has taken each once', different(map(of_text, accepted), shop.expected), [])
    is_('whatever was refused came again with its own key', len({got.key for got in sink.got('/')}), sum(shop.expected.values()))
    topic = [(key, json.loads(value)) for key, value in consume(shell)]
    is_('Kafka has each once', different([of_message(value) for _, value in topic], shop.expected), [])
    is_('with its key', [key for key, value in topic if key != value['key']], [])
    published = [json.loads(line) for line in hears() if line.startswith('{')]
    is_('Redis has published each once', different(map(of_message, published), shop.expected), [])
    newest = {message['key']: message for message in published}
    kept = {key: json.loads(shell.value(f'$(redis get shop:alert:{key})')) for key in newest}
    is_('and keeps the newest of each key', kept, newest)
    is_('of what was there before nothing was sent', db.query("""SELECT count(*) FILTER (WHERE suppressed = 'history') = (SELECT count(*) FROM shop.orders WHERE (price < 0 OR quantity <= 0) AND order_id LIKE 'ORD%'),
        count(*) FILTER (WHERE suppressed <> 'history') FROM millrace.alert"""), [(True, 0)])
    heard.kill()
    heard.wait()
    sink.end()


def demonstration():
    demo = subprocess.run([os.path.join(TOP, 'scripts', 'demo.sh'), '--alerts'], env={**os.environ, 'BUILD': '0', 'INSTALL': '0', 'ORDERS': '500'},
                          stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300)
    said = [demo.stdout.count(part) for part in ('critical: HIGH_VALUE_ORDER, DEAR', 'DEAR  {"rule" : "HIGH_VALUE_ORDER"', '\n{"rule" : "HIGH_VALUE_ORDER"', 'RAPID_ORDERS')]
    if not is_('the demonstration shows what arrived in all three', (demo.returncode, said), (0, [1, 1, 1, 5])):
        print(demo.stdout)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('--seed', type=int, default=random.randrange(10**9))
    seed = parser.parse_args().seed
    print('seed', seed)
    with Shell() as shell:
        shell.run('redis_start "$work/redis"; kafka_start "$work/kafka"; kafka_topic shop-alerts 3')
        alerts(shell, seed)
        shell.run('kafka_stop; pg_stop "$work/pg"')
        demonstration()
        finish(shell)


if __name__ == '__main__':
    main()
