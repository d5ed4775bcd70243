#!/usr/bin/env python3
"""Makes the messages of the restaurant model: always the same ones for the same arguments.

    gen_orders.py N [--lifecycle] [--raw] [--seed S] [--duplicates PCT] [--broken PCT] [--tombstones PCT] [--shuffle] ...
    gen_orders.py --dictionary        what a Redis holds for --raw messages, as commands

N is the number of orders. Without --lifecycle an order is one message, CLOSED or now and then CANCELLED; with it
an order is sent 2-4 times with rising record timestamps, from OPEN to CLOSED or CANCELLED, sometimes with items
taken off on the way, and a user may change his name between two of his orders. With --raw a message has ids in place
of the names of users and restaurants and of the categories of products, each of which is on its restaurant's menu.

As a module: messages(n, lifecycle=True, ...) yields Message(partition, key, timestamp, value, broken), where value
None is a tombstone and a broken value is one that no JSON parser takes.
"""
import argparse
import heapq
import random
import sys
import zlib
from collections import namedtuple
from hashlib import md5
from itertools import accumulate

USERS, RESTAURANTS, PRODUCTS, CATEGORIES = 20_000, 500, 5_000, 50
START = 1_767_225_600_000           # 2026-01-01 00:00:00 UTC, in ms
EVERY = 200                         # ms between two orders
SKEW = 0.8                          # popularity of rank r is (r + 1) ** -SKEW
CHUNK = 10_000                      # orders drawn at a time

Message = namedtuple('Message', 'partition key timestamp value broken')

FIRST = 'Anna Boris Clara David Elena Felix Greta Henry Irina Jonas Karla Lucas Maria Nikita Olga Peter'.split()
LAST = 'Adler Berg Conti Dvorak Eklund Fischer Garcia Horvat Ivanov Jansen Keller Lopez Moreau Novak'.split()
DISHES = 'soup roll salad pizza burger curry noodles steak pie wrap bowl toast stew dumplings'.split()
STYLES = 'spicy smoked green crispy royal golden rustic wild sweet classic double house'.split()
KITCHENS = ('sushi pizza burgers soups salads desserts drinks breakfast grill pasta').split()
BROKEN = ('<html>502 Bad Gateway</html>', '{"object_id":%d,"object_type":"order","payload":{"id":%d,"status":',
          '{"object_id":%d,"object_type":"order","payload":{"status":"CLO\udcffSED","id":%d}}')


def identifier(kind, number):
    """The id of a thing: 24 hexadecimal digits, as document stores give."""
    return md5(f'{kind}{number}'.encode()).hexdigest()[:24]


def category_name(number):
    return f'{KITCHENS[number % len(KITCHENS)]} {number // len(KITCHENS) + 1}'


def dish_name(number):
    return f'{STYLES[number % 12]} {DISHES[number // 12 % 14]} {number}'


def user_names(number, renamed=False):
    name = f'{FIRST[number % 16]} {LAST[number // 16 % 14]} {number}' + (' jr.' if renamed else '')
    return f'"name":"{name}","login":"user{number:05}@mail.test"'


def user_fragment(number, renamed, raw):
    """The payload's user; a renamed one keeps id and login."""
    return f'{{"id":"{identifier("user", number)}"' + ('' if raw else ',' + user_names(number, renamed)) + '}'


def restaurant_fragment(number, raw):
    return f'{{"id":"{identifier("restaurant", number)}"' + ('' if raw else f',"name":"{dish_name(number)}"') + '}'


def product_category(number):
    return category_name(number * 31 % CATEGORIES)


def product_fragment(number, raw):
    """A product before and after its quantity, and its price."""
    price = 40 + number * 7919 % 960
    return (f'{{"id":"{identifier("product", number)}","name":"{dish_name(number)}","price":{price},"quantity":',
            '}' if raw else f',"category":"{product_category(number)}"}}', price)


def on_menu(restaurant, number):
    """A restaurant's own product in place of any."""
    return restaurant * (PRODUCTS // RESTAURANTS) + number % (PRODUCTS // RESTAURANTS)


def dictionary():
    """Yields the commands that put into a Redis what raw messages leave out."""
    for number in range(USERS):
        yield f"SET {identifier('user', number)} '{{{user_names(number)}}}'\n"
    for number in range(RESTAURANTS):
        menu = ','.join(f'{{"_id":"{identifier("product", product)}","category":"{product_category(product)}"}}'
                        for product in (on_menu(number, i) for i in range(PRODUCTS // RESTAURANTS)))
        yield f"SET {identifier('restaurant', number)} '{{\"name\":\"{dish_name(number)}\",\"menu\":[{menu}]}}'\n"


def cumulative(count):
    return list(accumulate((rank + 1) ** -SKEW for rank in range(count)))


def rename_time(number, span):
    """When a user changes his name: one in twenty does, at a time of his own."""
    return START + number * 7919 % span if number % 20 == 7 else None


def make_orders(n, rng, lifecycle, distinct_users, raw):
    """Yields (order id, timestamp, value) for every state of every order, in order of order ids."""
    def make_user(number):
        return user_fragment(number, False, raw), user_fragment(number, True, raw), rename_time(number, max(1, n * EVERY))

    users = [make_user(i) for i in range(USERS)]
    restaurants = [restaurant_fragment(i, raw) for i in range(RESTAURANTS)]
    products = [product_fragment(i, raw) for i in range(PRODUCTS)]
    status, array = ('final_status', 'order_items') if raw else ('status', 'products')
    by_user, by_restaurant, by_product = (cumulative(c) for c in (USERS, RESTAURANTS, PRODUCTS))
    choices, rand, cancelled = rng.choices, rng.random, 0.1

    for first in range(0, n, CHUNK):
        size = min(CHUNK, n - first)
        whose = choices(range(USERS), cum_weights=by_user, k=size)
        where = choices(range(RESTAURANTS), cum_weights=by_restaurant, k=size)
        counts = choices((1, 2, 3, 4, 5), k=size)
        quantities = choices((1, 1, 1, 2, 2, 3), k=sum(counts))
        what = choices(range(PRODUCTS), cum_weights=by_product, k=sum(counts))
        at = 0
        for i in range(size):
            order = first + i + 1
            timestamp = START + order * EVERY
            is_alone = distinct_users and order % distinct_users == 0
            user, renamed, when = make_user(USERS + order) if is_alone else users[whose[i]]
            items = [(products[on_menu(where[i], number) if raw else number], quantity)
                     for number, quantity in zip(what[at:at + counts[i]], quantities[at:at + counts[i]])]
            at += counts[i]
            second, ms = divmod(timestamp - START, 1000)
            day, second = divmod(second, 86_400)
            date = f'2026-{day // 28 % 12 + 1:02}-{day % 28 + 1:02} {second // 3600:02}:{second // 60 % 60:02}:' \
                   f'{second % 60:02}.{ms:03}000'
            end = 'CANCELLED' if rand() < cancelled else 'CLOSED'
            states = (end,)
            if lifecycle:
                states = ('OPEN', 'COOKING', 'DELIVERING')[:choices((1, 2, 3))[0]] + (end,)
            for state in states:
                if when is not None and timestamp >= when:
                    user = renamed
                cost = sum(product[2] * quantity for product, quantity in items)
                yield order, timestamp, (
                    f'{{"object_id":{order},"object_type":"order","payload":{{"id":{order},"date":"{date}",'
                    f'"cost":{cost},"payment":{cost if state == "CLOSED" or not lifecycle else 0},"{status}":"{state}",'
                    f'"restaurant":{restaurants[where[i]]},"user":{user},"{array}":['
                    + ','.join([f'{product[0]}{quantity}{product[1]}' for product, quantity in items]) + ']}}')
                timestamp += 1_000 + int(rand() * 60_000)
                if lifecycle and len(items) > 1 and rand() < 0.15:
                    items.pop(int(rand() * len(items)))


def with_faults(orders, rng, duplicates, broken, tombstones):
    """Adds the same message once more, messages that are none, and tombstones: (order, timestamp, value, broken)."""
    last = None
    for order, timestamp, value in orders:
        if last and last[0] != order and rng.random() < tombstones:
            # one in five comes back: its tombstone lies before the last state
            yield last[0], last[1] + (500 if rng.random() < 0.8 else -500), None, False
        last = order, timestamp
        yield order, timestamp, value, False
        if rng.random() < duplicates:
            yield order, timestamp, value, False
        if rng.random() < broken:
            text = rng.choice(BROKEN)
            yield order, timestamp + 250, text % (order, order) if '%d' in text else text, True


def in_order_of_time(orders, lateness):
    """Interleaves the orders as they happen; a copy comes up to `lateness` ms after its original."""
    heap, number, previous = [], 0, None
    for row in orders:
        at = row[1]
        if row == previous:
            at += 1 + number * 7919 % lateness
        previous = row
        number += 1
        heapq.heappush(heap, (at, number, row))
        while heap[0][0] < START + row[0] * EVERY:
            yield heapq.heappop(heap)[2]
    while heap:
        yield heapq.heappop(heap)[2]


def messages(n, lifecycle=False, seed=1, duplicates=0, broken=0, tombstones=0, shuffle=False, scatter=False,
             partitions=8, distinct_users=0, raw=False):
    """Yields the messages in the order in which they are to be produced. The percentages are of 100."""
    rng = random.Random(seed)
    rows = make_orders(n, rng, lifecycle, distinct_users, raw)
    if duplicates or broken or tombstones:
        rows = with_faults(rows, random.Random(f'{seed} faults'), duplicates / 100, broken / 100, tombstones / 100)
    else:
        rows = ((order, timestamp, value, False) for order, timestamp, value in rows)
    if lifecycle or duplicates or broken or tombstones:
        rows = in_order_of_time(rows, 60_000)
    if shuffle:
        rows = list(rows)
        random.Random(f'{seed} shuffle').shuffle(rows)
    anywhere = random.Random(f'{seed} scatter')
    for order, timestamp, value, is_broken in rows:
        key = str(order)
        partition = anywhere.randrange(partitions) if scatter else zlib.crc32(key.encode()) % partitions
        yield Message(partition, key, timestamp, value, is_broken)


FORMATS = {
    'kcat': lambda m: f'{m.key}\t{m.value or ""}\n',
    'timestamps': lambda m: f'{m.partition}\t{m.key}\t{m.timestamp}\t{m.value or ""}\n',
    'json': lambda m: f'{m.value}\n',
}


def main():
    parser = argparse.ArgumentParser(description='Makes the messages of the restaurant model, one a line.')
    parser.add_argument('n', type=int, nargs='?', default=0, help='number of orders')
    parser.add_argument('--dictionary', action='store_true', help='what a Redis holds for raw messages, as its commands')
    parser.add_argument('--raw', action='store_true', help='ids in place of names and categories')
    parser.add_argument('--lifecycle', action='store_true', help='2-4 states of each order, OPEN to CLOSED or CANCELLED')
    parser.add_argument('--seed', type=int, default=1)
    parser.add_argument('--duplicates', type=float, default=0, metavar='PCT', help='messages sent once more')
    parser.add_argument('--broken', type=float, default=0, metavar='PCT', help='messages that are not JSON, beside the good ones')
    parser.add_argument('--tombstones', type=float, default=0, metavar='PCT', help='orders that are deleted')
    parser.add_argument('--shuffle', action='store_true', help='any order of delivery')
    parser.add_argument('--scatter', action='store_true', help='any partition, not the one of the key')
    parser.add_argument('--partitions', type=int, default=8, help='crc32 of the key modulo this')
    parser.add_argument('--distinct-users', type=int, default=0, metavar='N',
                        help=f'a user of its own for every N-th order, whose number is {USERS} and that of the order')
    parser.add_argument('--format', choices=FORMATS, default='kcat',
                        help="kcat: key, tab, value, for kcat -P -Z -K '\\t'; timestamps: partition, key, ms, value, for "
                             'bench/produce; json: the value alone. An empty value is a tombstone')
    parser.add_argument('--timestamps', action='store_const', const='timestamps', dest='format', help='--format timestamps')
    options = vars(parser.parse_args())
    line = FORMATS[options.pop('format')]
    of_dictionary = options.pop('dictionary')
    out = open(sys.stdout.fileno(), 'w', encoding='utf-8', errors='surrogateescape', buffering=1 << 20, newline='\n')
    out.writelines(dictionary() if of_dictionary else map(line, messages(**options)))
    out.close()


if __name__ == '__main__':
    try:
        main()
    except BrokenPipeError:
        sys.stderr.close()
